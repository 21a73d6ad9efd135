"""A task's figures from /proc, where there is no controller to ask: what its living processes use now."""

import os
from collections.abc import Iterable

_TICK_USEC = 1_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def stat(what: str, pids: Iterable[int]) -> dict[str, int]:
    """Return the figures of mem, cpu, io or pids summed over `pids`; those that have ended count nothing (proc(5))."""
    read = {"mem": _memory, "cpu": _cpu, "io": _io, "pids": _one}[what]
    total: dict[str, int] = {}
    for pid in pids:
        try:
            figures = read(pid)
        except OSError:
            continue
        for key, value in figures.items():
            total[key] = total.get(key, 0) + value
    return total


def _read(pid: int, file: str) -> bytes:
    with open(f"/proc/{pid}/{file}", "rb") as stream:
        return stream.read()


def _memory(pid: int) -> dict[str, int]:
    return {"current_bytes": int(_read(pid, "statm").split()[1]) * _PAGE_BYTES}


def _cpu(pid: int) -> dict[str, int]:
    """Its own time and that of the children it has waited for."""
    stat = _read(pid, "stat")
    user, system, waited_user, waited_system = map(int, stat[stat.rindex(b")") + 2 :].split()[11:15])
    return {"user_usec": (user + waited_user) * _TICK_USEC, "system_usec": (system + waited_system) * _TICK_USEC}


def _io(pid: int) -> dict[str, int]:
    table = dict(line.split(b": ") for line in _read(pid, "io").splitlines())
    return {"read_bytes": int(table[b"read_bytes"]), "write_bytes": int(table[b"write_bytes"])}


def _one(pid: int) -> dict[str, int]:
    _read(pid, "stat")
    return {"current": 1}
