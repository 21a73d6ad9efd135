"""How processes belong together: below one another, or in a cgroup."""

import os
from collections.abc import Container, Iterable


def descendants(roots: Iterable[int], *, without: Container[int] = ()) -> list[int]:
    """Return the pids of all processes below `roots`, leaving out `without` and what is below those.

    A snapshot: they may be gone by now. Zombies count: they are gone when they have been waited for.
    """
    children = _read_children if os.path.exists(f"/proc/self/task/{os.getpid()}/children") else _scan().get
    found: list[int] = []
    todo = list(roots)
    while todo:
        below = [pid for pid in children(todo.pop(), []) if pid not in without]
        found += below
        todo += below
    return found


def _read_children(pid: int, missing: list[int]) -> list[int]:
    found = list(missing)
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        pass
    return found


def _scan() -> dict[int, list[int]]:
    """Return the children of every process, for kernels without CONFIG_PROC_CHILDREN."""
    table: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue
        parent = int(stat[stat.rindex(b")") + 2 :].split()[1])
        table.setdefault(parent, []).append(int(name))
    return table


def members(group: int) -> list[int]:
    """Return the pids of the processes in the cgroup with this directory descriptor."""
    fd = os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=group)
    try:
        data = b""
        while part := os.read(fd, 1 << 16):
            data += part
    finally:
        os.close(fd)
    return [int(pid) for pid in data.split()]


def join(groups: Iterable[str]) -> None:
    """Put the calling process into version 1 cgroups, each given by its `tasks` file."""
    for tasks in groups:
        fd = os.open(tasks, os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, b"0")
        os.close(fd)
