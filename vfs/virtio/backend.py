"""A vhost-user backend without a socket: a machine's request goes in, the reply comes out.

It keeps what a machine has set up: features, the guest's memory, the device's queues.
"""

import os
from collections.abc import Callable
from errno import EINVAL, ENOTSUP, EPROTO
from stat import S_ISREG
from typing import Any, Protocol

from vfs.virtio.memory import Memory, Region
from vfs.virtio.messages import (
    CONFIG,
    F_EVENT_INDEX,
    F_PROTOCOL_FEATURES,
    FEATURES,
    MAX_REGIONS,
    NO_FD,
    PROTOCOL_FEATURES,
    QUEUE_MASK,
    REGION,
    REQUESTS,
    STATE,
    U64,
    Request,
)
from vfs.virtio.ring import Addresses, Queue


class Device(Protocol):
    """What a guest sees: its queues, and what is done with the requests in them.

    `config` is its configuration space, `features` what it offers beside `messages.FEATURES`.
    """

    queues: int
    features: int
    config: bytes

    def serve(self, queue: Queue) -> bool:
        """Handle some of what the guest has made available in `queue`; tells whether there may be more.

        OSError (EPROTO, EFAULT) for what no driver does: the machine is then left alone.
        """
        ...

    def reset(self) -> None:
        """The machine has gone, or the guest has begun anew: drop everything that belongs to it."""
        ...


class Backend:
    """One machine's use of `device`. `started(queue)` is called whenever a queue begins to run."""

    def __init__(self, device: Device, started: Callable[[Queue], None]) -> None:
        self.queues = [Queue(index) for index in range(device.queues)]
        self._device = device
        self._started = started
        self._memory = Memory()
        self._features = 0
        self._enabled: set[int] = set()

    def close(self) -> None:
        """Give everything back that the machine lent."""
        for queue in self.queues:
            queue.close()
        self._memory = Memory()
        self._device.reset()

    def receive(self, number: int, payload: bytes, fds: list[int]) -> bytes | None:
        """Carry out a request and return the body of its reply, or None where it has none.

        Descriptors that are kept are taken out of `fds`; the caller closes the others. ENOTSUP for an unknown
        request; EPROTO for one that is malformed; EINVAL, EFAULT for values that make no sense.
        """
        try:
            request = Request(number)
        except ValueError:
            raise OSError(ENOTSUP, f"vhost-user request {number}") from None
        layout = REQUESTS[request]
        size = layout.body.size
        if len(payload) < size or (len(payload) > size and not layout.more) or len(fds) > layout.fds:
            raise OSError(EPROTO, f"malformed {request.name}")
        fields: list[Any] = list(layout.body.unpack_from(payload))
        if layout.more:
            fields.append(payload[size:])
        if layout.fds:
            fields.append(fds)
        handler: Callable[..., bytes | None] = getattr(self, f"_{request.name.lower()}")
        return handler(*fields)

    # What is offered and agreed

    def _get_features(self) -> bytes:
        return U64.pack(FEATURES | self._device.features)

    def _set_features(self, features: int) -> None:
        if features & ~(FEATURES | self._device.features):
            raise OSError(EINVAL, "features that were not offered")
        self._features = features

    def _get_protocol_features(self) -> bytes:
        return U64.pack(PROTOCOL_FEATURES)

    def _set_protocol_features(self, features: int) -> None:
        if features & ~PROTOCOL_FEATURES:
            raise OSError(EINVAL, "protocol features that were not offered")

    def _get_queue_num(self) -> bytes:
        return U64.pack(len(self.queues))

    def _set_owner(self) -> None:
        pass

    def _reset_owner(self) -> None:
        self._reset_device()

    def _reset_device(self) -> None:
        for queue in self.queues:
            queue.stop()
        self._enabled.clear()
        self._device.reset()

    def _get_config(self, offset: int, size: int, flags: int, more: bytes) -> bytes:
        if len(more) != size:
            raise OSError(EPROTO, "malformed GET_CONFIG")
        return CONFIG.pack(offset, size, flags) + self._device.config[offset : offset + size].ljust(size, b"\0")

    def _set_config(self, offset: int, size: int, flags: int, more: bytes) -> None:
        pass  # nothing in our configuration spaces can be written

    # Memory

    def _set_mem_table(self, count: int, _: int, more: bytes, fds: list[int]) -> None:
        if not 0 < count <= MAX_REGIONS or len(fds) != count or len(more) < count * REGION.size:
            raise OSError(EPROTO, "malformed SET_MEM_TABLE")
        if not all(S_ISREG(os.fstat(fd).st_mode) for fd in fds):
            raise OSError(EINVAL, "memory that is no file")
        regions = [Region(*fields) for fields in REGION.iter_unpack(more[: count * REGION.size])]
        self._memory = Memory(zip(regions, fds, strict=True))
        for queue in self.queues:
            if queue.running:
                queue.map(self._memory)

    # Queues

    def _queue(self, index: int) -> Queue:
        if index >= len(self.queues):
            raise OSError(EINVAL, "no such queue")
        return self.queues[index]

    def _set_vring_num(self, index: int, size: int) -> None:
        self._queue(index).resize(size)

    def _set_vring_addr(self, index: int, flags: int, descriptors: int, used: int, available: int, log: int) -> None:
        queue = self._queue(index)
        queue.addresses = Addresses(descriptors, used, available)
        if queue.running:
            queue.map(self._memory)

    def _set_vring_base(self, index: int, last: int) -> None:
        queue = self._queue(index)
        if queue.running:
            raise OSError(EINVAL, "the queue runs")
        queue.last = last & 0xFFFF

    def _get_vring_base(self, index: int, _: int) -> bytes:
        queue = self._queue(index)
        if queue.kick >= 0:
            os.close(queue.kick)
            queue.kick = -1
        return STATE.pack(index, queue.stop())

    def _set_vring_kick(self, value: int, fds: list[int]) -> None:
        queue = self._queue(value & QUEUE_MASK)
        if value & NO_FD or len(fds) != 1:
            raise OSError(ENOTSUP, "a queue that has to be polled")
        queue.stop()
        if queue.kick >= 0:
            os.close(queue.kick)
        os.set_blocking(fds[0], False)
        queue.kick = fds.pop()
        if not self._features & F_PROTOCOL_FEATURES:
            self._enabled.add(queue.index)
        self._start(queue)

    def _set_vring_call(self, value: int, fds: list[int]) -> None:
        queue = self._queue(value & QUEUE_MASK)
        if queue.call >= 0:
            os.close(queue.call)
            queue.call = -1
        if fds:
            os.set_blocking(fds[0], False)
            queue.call = fds.pop()

    def _set_vring_err(self, value: int, fds: list[int]) -> None:
        self._queue(value & QUEUE_MASK)  # errors end the connection: nothing is told this way

    def _set_vring_enable(self, index: int, enabled: int) -> None:
        queue = self._queue(index)
        if enabled:
            self._enabled.add(index)
            self._start(queue)
        else:
            self._enabled.discard(index)
            queue.stop()

    def _start(self, queue: Queue) -> None:
        if queue.index in self._enabled and queue.kick >= 0 and not queue.running:
            queue.frugal = self._features & F_EVENT_INDEX != 0
            queue.start(self._memory)
            self._started(queue)
