"""Connect a task's descriptor to a file that only this server can read or write, by copying.

Host files and pipes give the task a kernel descriptor of their own; every
other node (another task's fd/0, an imported tree) is pumped through a pipe.
"""

import os
from collections.abc import Callable

import structlog
import trio

from vfs.node import Handle

log = structlog.get_logger("tasks")
CHUNK = 65536


def open_pump(handle: Handle, *, reads: bool, spawn: Callable[..., object], name: str) -> int:
    """Return a descriptor through which a task reads (`reads`) or writes `handle`, which the pump closes in the end.

    `spawn(async_fn, *args)` must give it a task that lives as long as the server.
    """
    ours, theirs = os.pipe2(os.O_CLOEXEC)[:: 1 if not reads else -1]
    os.set_blocking(ours, False)
    spawn(_feed if reads else _drain, handle, ours, name)
    return theirs


async def _feed(handle: Handle, fd: int, name: str) -> None:
    """Copy from the handle to the pipe until its end."""
    offset = 0
    try:
        while data := await handle.read(CHUNK, offset):
            offset += len(data)
            view = memoryview(bytes(data))
            while view:
                try:
                    view = view[os.write(fd, view) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(fd)
    except BrokenPipeError:
        pass
    except OSError as error:
        log.warning("pump stopped", file=name, error=str(error))
    finally:
        os.close(fd)
        handle.close()


async def _drain(handle: Handle, fd: int, name: str) -> None:
    """Copy from the pipe to the handle until no writer is left. An error breaks the pipe for its writers."""
    offset = 0
    try:
        while True:
            try:
                data = os.read(fd, CHUNK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(fd)
                continue
            if not data:
                await handle.flush()
                return
            while data:
                taken = await handle.write(data, offset)
                offset += taken
                data = data[taken:]
    except OSError as error:
        log.warning("pump stopped", file=name, error=str(error))
    finally:
        os.close(fd)
        handle.close()
