"""The vhost-user protocol as tables: requests, feature bits, and what each request carries.

Source: QEMU's docs/interop/vhost-user.rst. Numbers are in the byte order of the machine (x86: little).
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

HEADER = Struct("<III")  # request flags size
VERSION = 1
REPLY = 1 << 2
NEED_REPLY = 1 << 3
MAX_PAYLOAD = 4096
MAX_REGIONS = 8
"""Regions of one memory table, and so descriptors of one message."""

F_INDIRECT = 1 << 28
F_EVENT_INDEX = 1 << 29
F_PROTOCOL_FEATURES = 1 << 30
F_VERSION_1 = 1 << 32
FEATURES = F_INDIRECT | F_EVENT_INDEX | F_PROTOCOL_FEATURES | F_VERSION_1
"""What any device of ours offers."""

PF_MQ = 1 << 0
PF_REPLY_ACK = 1 << 3
PF_CONFIG = 1 << 9
PF_RESET_DEVICE = 1 << 13
PROTOCOL_FEATURES = PF_MQ | PF_REPLY_ACK | PF_CONFIG | PF_RESET_DEVICE
"""No in-flight table and no reconnection: QEMU asks for neither for these devices."""


class Request(IntEnum):
    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34


NOTHING = Struct("<")
U64 = Struct("<Q")
STATE = Struct("<II")  # queue number
ADDRESSES = Struct("<IIQQQQ")  # queue flags descriptors used available log
TABLE = Struct("<II")  # regions padding, then REGION each
REGION = Struct("<QQQQ")  # guest size user offset
CONFIG = Struct("<III")  # offset size flags, then that many bytes
QUEUE_MASK = 0xFF
NO_FD = 1 << 8
"""Bit beside the number of a queue: no descriptor comes along."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a request carries: fixed fields, whether bytes follow them, and how many descriptors come along."""

    body: Struct = NOTHING
    more: bool = False
    fds: int = 0


REQUESTS: dict[Request, Layout] = {
    Request.GET_FEATURES: Layout(),
    Request.SET_FEATURES: Layout(U64),
    Request.SET_OWNER: Layout(),
    Request.RESET_OWNER: Layout(),
    Request.SET_MEM_TABLE: Layout(TABLE, more=True, fds=MAX_REGIONS),
    Request.SET_VRING_NUM: Layout(STATE),
    Request.SET_VRING_ADDR: Layout(ADDRESSES),
    Request.SET_VRING_BASE: Layout(STATE),
    Request.GET_VRING_BASE: Layout(STATE),
    Request.SET_VRING_KICK: Layout(U64, fds=1),
    Request.SET_VRING_CALL: Layout(U64, fds=1),
    Request.SET_VRING_ERR: Layout(U64, fds=1),
    Request.GET_PROTOCOL_FEATURES: Layout(),
    Request.SET_PROTOCOL_FEATURES: Layout(U64),
    Request.GET_QUEUE_NUM: Layout(),
    Request.SET_VRING_ENABLE: Layout(STATE),
    Request.GET_CONFIG: Layout(CONFIG, more=True),
    Request.SET_CONFIG: Layout(CONFIG, more=True),
    Request.RESET_DEVICE: Layout(),
}
