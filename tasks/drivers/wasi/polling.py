"""poll_oneoff: wait for clocks and descriptors."""

import select
import time
from collections.abc import Callable, Sequence
from errno import EBADF, EINVAL, ENOTSUP
from fcntl import ioctl
from termios import FIONREAD
from typing import NamedTuple

from tasks.drivers.wasi.abi import (
    ABSTIME,
    CLOCK,
    EVENT,
    FD_READ,
    FD_WRITE,
    HANGUP,
    REGULAR_FILE,
    SUBSCRIPTION,
    U32,
    Rights,
    errno_of,
)
from tasks.drivers.wasi.descriptors import Descriptor, HostFile
from tasks.drivers.wasi.memory import Memory

MAX_SUBSCRIPTIONS = 16384


class Event(NamedTuple):
    userdata: int
    errno: int
    kind: int
    size: int = 0
    flags: int = 0


class Timer(NamedTuple):
    clock: int
    deadline: int
    """On that clock, in ns."""
    event: Event

    def left(self) -> int:
        return self.deadline - time.clock_gettime_ns(self.clock)


def poll(
    memory: Memory,
    get: Callable[[int, int], Descriptor],
    subscriptions: int,
    events: int,
    count: int,
    clocks: Sequence[int],
) -> int:
    """Wait for one of `count` subscriptions at least; write the events and return how many there are."""
    if not 0 < count <= MAX_SUBSCRIPTIONS:
        raise OSError(EINVAL, "no such number of subscriptions")
    table = bytes(memory.slice(subscriptions, count * SUBSCRIPTION.size))
    memory.slice(events, count * EVENT.size)
    ready: list[Event] = []
    timers: list[Timer] = []
    waited: list[tuple[int, HostFile, Event]] = []
    for userdata, kind, subject, timeout, _, flags in SUBSCRIPTION.iter_unpack(table):
        try:
            if kind == CLOCK:
                timers.append(_timer(clocks, subject, timeout, flags, Event(userdata, 0, CLOCK)))
                continue
            if kind not in (FD_READ, FD_WRITE):
                raise OSError(EINVAL, "no such subscription")
            descriptor = get(subject, Rights.POLL_FD_READWRITE.value)
            event = Event(userdata, 0, kind)
            if isinstance(descriptor, HostFile):
                waited.append((select.POLLIN if kind == FD_READ else select.POLLOUT, descriptor, event))
            else:
                ready.append(event._replace(size=_left(descriptor) if kind == FD_READ else 0))
        except OSError as error:
            ready.append(Event(userdata, errno_of(error), kind if kind <= FD_WRITE else CLOCK))
    while True:
        ready += _wait(waited, 0 if ready else min((timer.left() for timer in timers), default=None))
        ready += [timer.event for timer in timers if timer.left() <= 0]
        if ready:
            break
    for index, found in enumerate(ready):
        memory.put(EVENT, events + index * EVENT.size, *found)
    return len(ready)


def _timer(clocks: Sequence[int], number: int, timeout: int, flags: int, event: Event) -> Timer:
    if number >= len(clocks) or flags & ~ABSTIME:
        raise OSError(EINVAL, "no such clock")
    if number > 1:
        raise OSError(ENOTSUP, "a clock that stands still while waiting")
    clock = clocks[number]
    return Timer(clock, timeout if flags & ABSTIME else time.clock_gettime_ns(clock) + timeout, event)


def _wait(waited: Sequence[tuple[int, HostFile, Event]], nanoseconds: int | None) -> list[Event]:
    """Wait for descriptors until then (None: for ever); a day at most, for the caller looks again."""
    seconds = None if nanoseconds is None else min(max(nanoseconds, 0) / 1e9, 86400.0)
    if not waited:
        assert seconds is not None
        time.sleep(seconds)
        return []
    wanted: dict[int, int] = {}
    for bits, file, _ in waited:
        wanted[file.number] = wanted.get(file.number, 0) | bits
    poller = select.poll()
    for number, bits in wanted.items():
        poller.register(number, bits)
    happened = dict(poller.poll(None if seconds is None else seconds * 1000))  # rounded up
    found: list[Event] = []
    for bits, file, event in waited:
        state = happened.get(file.number, 0)
        if state & select.POLLNVAL:
            found.append(event._replace(errno=errno_of(OSError(EBADF, ""))))
        elif state & (bits | select.POLLHUP | select.POLLERR):
            hangup = HANGUP if state & (select.POLLHUP | select.POLLERR) else 0
            found.append(event._replace(size=_left(file) if bits == select.POLLIN else 0, flags=hangup))
    return found


def _left(descriptor: Descriptor) -> int:
    """Return how many bytes can be read at once, as far as that is known; a stream of the tree has at least one."""
    if descriptor.type == REGULAR_FILE:
        return max(0, descriptor.stat().size - descriptor.seek(0, 1))
    if not isinstance(descriptor, HostFile):
        return 1
    try:
        return int(U32.unpack(ioctl(descriptor.number, FIONREAD, bytes(4)))[0])
    except OSError:
        return 0
