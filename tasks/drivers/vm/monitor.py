"""QEMU's monitor protocol, QMP: a JSON object a line; commands are answered in order, events come between."""

import json
import os
import socket
import struct
from collections.abc import Sequence
from errno import EIO, EMSGSIZE, EPROTO

import trio

MAX_LINE = 1 << 20


class Monitor:
    """One end of a monitor's socket, for one user at a time. Owns it."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = trio.socket.from_stdlib_socket(connected)
        self._data = bytearray()

    async def begin(self) -> None:
        """Take the greeting and leave the mode that it begins in."""
        await self._receive()
        await self.execute("qmp_capabilities")

    async def execute(self, name: str, fds: Sequence[int] = (), /, **arguments: object) -> object:
        """Carry out a command and return what it returns. EIO with QEMU's words where it fails or QEMU is gone."""
        words = {key.replace("_", "-"): value for key, value in arguments.items()}
        line = json.dumps({"execute": name, "arguments": words}).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        await self._socket.sendmsg([line], rights)
        while True:
            reply = await self._receive()
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                error = reply["error"]
                raise OSError(EIO, f"{name}: {error.get('desc') if isinstance(error, dict) else error}")

    async def until(self, event: str, **data: object) -> None:
        """Return at an event with these data, or raise EIO when it came with a status that says failed."""
        while True:
            message = await self._receive()
            found = message.get("data", {})
            if message.get("event") != event or not isinstance(found, dict):
                continue
            if all(found.get(key) == value for key, value in data.items()):
                return
            if found.get("status") == "failed":
                raise OSError(EIO, f"{event}: failed")

    async def _receive(self) -> dict[str, object]:
        while b"\n" not in self._data:
            if len(self._data) > MAX_LINE:
                raise OSError(EMSGSIZE, "the monitor's line has no end")
            more = await self._socket.recv(1 << 16)
            if not more:
                raise OSError(EIO, "the machine has ended")
            self._data += more
        line, _, rest = bytes(self._data).partition(b"\n")
        self._data[:] = rest
        try:
            message = json.loads(line)
        except ValueError as error:
            raise OSError(EPROTO, "the monitor does not speak JSON") from error
        if not isinstance(message, dict):
            raise OSError(EPROTO, "the monitor does not send objects")
        return message

    def close(self) -> None:
        self._socket.close()


_CAPABILITIES = [{"capability": name, "state": True} for name in ("events", "x-ignore-shared")]


async def save(monitor: Monitor, state: int) -> None:
    """Stop a machine and write its state, without its shared memory, to a file."""
    await monitor.execute("stop")
    await monitor.execute("migrate-set-capabilities", capabilities=_CAPABILITIES)
    await monitor.execute("getfd", [state], fdname="state")
    await monitor.execute("migrate", uri="fd:state")
    await monitor.until("MIGRATION", status="completed")


async def load(monitor: Monitor, state: int) -> None:
    """Let a machine that waits for it go on from a state that was saved; it is the machine's descriptor `state`."""
    await monitor.execute("migrate-set-capabilities", capabilities=_CAPABILITIES)
    await monitor.execute("migrate-incoming", uri=f"fd:{state}")
    await monitor.until("MIGRATION", status="completed")
    await monitor.execute("cont")


def reopened(file: int, flags: int = os.O_RDONLY) -> int:
    """Return a new open file of the same memory, with an offset of its own."""
    return os.open(f"/proc/self/fd/{file}", flags | os.O_CLOEXEC)
