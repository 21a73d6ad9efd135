"""Control groups: limits, pausing and accounting of a task, on version 1, version 2 and machines that mix them.

A task's group is a directory of its own in every hierarchy that has something
for it. Where a controller is missing the others still work, and
`Cgroups.controllers` says what there is. Figures and limits: cgroup-v1/*.rst
and cgroup-v2.rst of the kernel's documentation.
"""

import os
import signal
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from errno import EAGAIN, EBUSY, EINVAL, ENOENT, ENOTSUP
from pathlib import Path

import trio

from tasks.drivers.base import Limits
from tasks.drivers.linux.oom import OomNotice

CONTROLLERS = frozenset({"memory", "pids", "cpu", "cpuacct", "io", "blkio", "freezer"})
PERIOD_USEC = 100_000
LEAST_QUOTA_USEC = 1_000
SHARES, LEAST_SHARES = 1024, 2
"""A version 1 group's part of a processor at nice 0; each step of nice is a factor of 1.25, as for processes."""
LATE = frozenset({"pids", "cpu"})
"""Controllers that do nothing without a limit: a version 1 directory of theirs is made only for one."""
TAKE_IN_ROUNDS = 32
BLOCK = 1 << 16
FREEZE_DEADLINE = 2.0
SWEEP_DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup hierarchy: the directory below which ours goes, and the controllers we can use there."""

    base: Path
    controllers: frozenset[str]
    unified: bool


Places = Sequence[tuple[str | Path, Hierarchy]]
"""Directories of one group, with the hierarchies they are in."""


def hierarchies(mountinfo: str, membership: str) -> list[Hierarchy]:
    """Return the hierarchies that proc_pid_mountinfo(5) lists, each based at the cgroup of cgroups(7)'s `membership`.

    Where version 2 does not let that cgroup have children with controllers (it holds processes), its root is tried.
    """
    own = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), path))
    found: list[Hierarchy] = []
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        root, mount = fields.split()[3:5]
        if kind not in ("cgroup", "cgroup2") or any(hierarchy.base.is_relative_to(mount) for hierarchy in found):
            continue
        if kind == "cgroup2":
            base = Path(mount) / _below(own.get("", "/"), root)
            controllers = _delegate(base)
            if not controllers and base != Path(mount):
                base, controllers = Path(mount), _delegate(Path(mount))
            found.append(Hierarchy(base, controllers, True))
            continue
        named = CONTROLLERS.intersection(options.split(","))
        if named:
            found.append(Hierarchy(Path(mount) / _below(own.get(min(named), "/"), root), named, False))
    return found


def _below(path: str, root: str) -> str:
    """Return where `path` of a hierarchy is in a mount that shows `root` of it, relative to the mount point."""
    return path.removeprefix(root.rstrip("/")).strip("/") if path.startswith(root) else ""


def _delegate(directory: Path) -> frozenset[str]:
    """Let children of a version 2 cgroup have every controller that it has and we use; return those they get."""
    try:
        for name in CONTROLLERS.intersection((directory / "cgroup.controllers").read_text().split()):
            try:
                (directory / "cgroup.subtree_control").write_text(f"+{name}")
            except OSError:
                continue
        return CONTROLLERS.intersection((directory / "cgroup.subtree_control").read_text().split())
    except OSError:
        return frozenset()


class Group:
    """The cgroup of one task: a directory in each hierarchy; in the `late` ones only once a limit needs it."""

    def __init__(self, name: str, places: Places, late: Places = ()) -> None:
        self.name = name
        self._directories = [str(directory) for directory, _ in places]
        self._late = {str(directory) for directory, _ in late}
        self._of: dict[str, tuple[str, bool]] = {}
        self.unified = ""
        """Its version 2 directory, in which clone3(2) can make a process."""
        for directory, hierarchy in (*places, *late):
            self._of.update(dict.fromkeys(hierarchy.controllers, (str(directory), hierarchy.unified)))
            if hierarchy.unified:
                self.unified = str(directory)

    @property
    def joined(self) -> list[str]:
        """Its version 1 `tasks` files: a process that writes "0" there is in."""
        return [f"{directory}/tasks" for directory in self._directories if directory != self.unified]

    @property
    def sweep(self) -> str:
        """A directory whose cgroup.procs lists every process of the group."""
        return self.unified or self._directories[0]

    def limit(self, limits: Limits) -> None:
        """Apply the limits, None lifting one; `nice` weighs the group as a whole against others.

        ENOTSUP without the controller; EBUSY if memory in use can't be freed.
        """
        self._limit_memory(limits.memory)
        self._set("pids", {"pids.max": "max" if limits.pids is None else str(limits.pids)}, limits.pids)
        quota = None if limits.cpu is None else max(LEAST_QUOTA_USEC, round(limits.cpu * PERIOD_USEC))
        if self._has("cpu", unified=True):
            values = {"cpu.max": f"{quota or 'max'} {PERIOD_USEC}", "cpu.weight.nice": str(limits.nice)}
        else:
            values = {"cpu.cfs_period_us": str(PERIOD_USEC), "cpu.cfs_quota_us": str(quota or -1)}
            values["cpu.shares"] = str(max(LEAST_SHARES, round(SHARES / 1.25**limits.nice)))
        self._set("cpu", values, quota)

    def _limit_memory(self, limit: int | None) -> None:
        if self._has("memory", unified=True):
            swap = "max" if limit is None else "0"
            text = "max" if limit is None else str(limit)
            self._set("memory", {"memory.max": text, "memory.swap.max": swap, "memory.oom.group": "1"}, limit)
            return
        files = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        text = "-1" if limit is None else str(limit)
        try:
            self._set("memory", dict.fromkeys(files, text), limit)
        except OSError as error:
            if error.errno != EINVAL:  # memory may never exceed memory and swap: raising goes the other way round
                raise
            self._set("memory", dict.fromkeys(reversed(files), text), limit)

    def _has(self, controller: str, *, unified: bool) -> bool:
        return controller in self._of and self._of[controller][1] is unified

    def _set(self, controller: str, values: Mapping[str, str], wanted: float | None) -> None:
        if controller not in self._of:
            if wanted is not None:
                raise OSError(ENOTSUP, f"this machine has no {controller} controller")
            return
        directory = self._of[controller][0]
        if directory in self._late:
            if wanted is None:
                return
            self._take_in(directory)
        for file, text in values.items():
            try:
                _write(f"{directory}/{file}", text)
            except FileNotFoundError:  # no swap accounting
                if not file.startswith(("memory.swap", "memory.memsw")):
                    raise

    def _take_in(self, directory: str) -> None:
        """Make a late directory and move every process there. EAGAIN if they multiply faster than that."""
        os.mkdir(directory)
        self._late.discard(directory)
        self._directories.append(directory)
        for _ in range(TAKE_IN_ROUNDS):
            outside = set(self.pids()).difference(_processes(directory))
            if not outside:
                return
            for pid in outside:
                try:
                    _write(f"{directory}/cgroup.procs", str(pid))
                except ProcessLookupError:
                    continue
        raise OSError(EAGAIN, "the task's processes could not all be reached; try again")

    async def pause(self, stopped: bool) -> None:
        """Freeze or thaw every process; returns when they are. ENOTSUP without a freezer."""
        if self.unified:
            file, word, sign = f"{self.unified}/cgroup.freeze", str(int(stopped)), f"frozen {int(stopped)}"
            state = f"{self.unified}/cgroup.events"
        elif "freezer" in self._of:
            file = state = f"{self._of['freezer'][0]}/freezer.state"
            word = sign = "FROZEN" if stopped else "THAWED"
        else:
            raise OSError(ENOTSUP, "this machine has no freezer")
        _write(file, word)
        with trio.move_on_after(FREEZE_DEADLINE):
            while sign not in _read(state):
                await trio.sleep(0.001)
            return
        raise OSError(EBUSY, "some processes are in an uninterruptible wait")

    @property
    def can_pause(self) -> bool:
        return bool(self.unified) or "freezer" in self._of

    def pids(self) -> list[int]:
        """Return its processes."""
        return _processes(self.sweep)

    def kill(self) -> None:
        """Send SIGKILL to every process, frozen ones too."""
        if self.unified:
            try:
                _write(f"{self.unified}/cgroup.kill", "1")
                return
            except FileNotFoundError:  # before Linux 5.14
                pass
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not self.unified and "freezer" in self._of:
            _write(f"{self._of['freezer'][0]}/freezer.state", "THAWED")

    def stat(self, what: str) -> dict[str, int]:
        """Return the figures of mem, cpu, io or pids; {} without the controller, then the caller asks /proc."""
        read = {"mem": self._memory, "cpu": self._cpu, "io": self._io, "pids": self._pids}[what]
        return read()

    def _memory(self) -> dict[str, int]:
        if self._has("memory", unified=True):
            files = {"current_bytes": "current", "peak_bytes": "peak", "limit_bytes": "max"}
            return self._numbers("memory", {key: f"memory.{file}" for key, file in files.items()})
        files = {"current_bytes": "usage", "peak_bytes": "max_usage", "limit_bytes": "limit"}
        return self._numbers("memory", {key: f"memory.{file}_in_bytes" for key, file in files.items()})

    def _cpu(self) -> dict[str, int]:
        if self.unified and "cpuacct" not in self._of:
            table = _table(f"{self.unified}/cpu.stat")
            keys = ("user_usec", "system_usec", "throttled_usec")
            return {key: table[key] for key in keys if key in table}
        figures = self._accounted()
        if "cpu" in self._of and self._of["cpu"][0] not in self._late:
            figures["throttled_usec"] = _table(f"{self._of['cpu'][0]}/cpu.stat").get("throttled_time", 0) // 1000
        return figures

    def _accounted(self) -> dict[str, int]:
        nanoseconds = self._numbers("cpuacct", {"user_usec": "cpuacct.usage_user", "system_usec": "cpuacct.usage_sys"})
        return {key: value // 1000 for key, value in nanoseconds.items()}

    def _io(self) -> dict[str, int]:
        figures = {"read_bytes": 0, "write_bytes": 0}
        if "io" in self._of:
            for line in _read(f"{self._of['io'][0]}/io.stat").splitlines():
                values = dict(item.split("=") for item in line.split()[1:])
                figures["read_bytes"] += int(values["rbytes"])
                figures["write_bytes"] += int(values["wbytes"])
            return figures
        if "blkio" not in self._of:
            return {}
        for line in _read(f"{self._of['blkio'][0]}/blkio.throttle.io_service_bytes").splitlines():
            _, *kind, count = line.split()
            if kind and f"{kind[0].lower()}_bytes" in figures:
                figures[f"{kind[0].lower()}_bytes"] += int(count)
        return figures

    def _pids(self) -> dict[str, int]:
        return self._numbers("pids", {"current": "pids.current", "peak": "pids.peak", "limit": "pids.max"})

    def _numbers(self, controller: str, files: Mapping[str, str]) -> dict[str, int]:
        """Read one number a file, leaving out those that are not there or say "max" (or v1's huge number for it)."""
        if controller not in self._of:
            return {}
        found: dict[str, int] = {}
        for key, file in files.items():
            try:
                text = _read(f"{self._of[controller][0]}/{file}").strip()
            except OSError as error:
                if error.errno != ENOENT:
                    raise
                continue
            if text != "max" and int(text) < 1 << 62:
                found[key] = int(text)
        return found

    def oom_kills(self) -> int:
        """Return how many of its processes were killed for want of memory."""
        if "memory" not in self._of:
            return 0
        directory, unified = self._of["memory"]
        return _table(f"{directory}/memory.{'events' if unified else 'oom_control'}").get("oom_kill", 0)

    def used(self) -> dict[str, int]:
        """Return what it used in all, as far as it is known: `user_usec`, `system_usec` and `peak_bytes`."""
        peak = "memory.peak" if self._has("memory", unified=True) else "memory.max_usage_in_bytes"
        figures = self._numbers("memory", {"peak_bytes": peak})
        if "cpuacct" in self._of:
            return figures | self._accounted()
        return figures | self._cpu()

    def oom_notice(self) -> OomNotice | None:
        """Return what wakes when it runs out of memory; None without the memory controller."""
        if "memory" not in self._of:
            return None
        directory, unified = self._of["memory"]
        return OomNotice(directory, unified=unified)

    def remove(self) -> bool:
        """Remove what is empty; returns whether everything is gone."""
        self._directories = [directory for directory in self._directories if not _rmdir(directory)]
        return not self._directories


def _read(path: str) -> str:
    """Return a small file's text, in three system calls."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = part = os.read(fd, BLOCK)
        while len(part) == BLOCK:
            part = os.read(fd, BLOCK)
            data += part
        return data.decode()
    finally:
        os.close(fd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _table(path: str) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in _read(path).splitlines())}


def _processes(directory: str) -> list[int]:
    return [int(pid) for pid in _read(f"{directory}/cgroup.procs").split()]


def _rmdir(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno == EBUSY:  # a process that has ended but is not quite gone
            return False
        if error.errno != ENOENT:
            raise
    return True


class Cgroups:
    """All the groups of one server: below a directory `name` in each hierarchy that lets us make one."""

    def __init__(self, name: str, mounted: list[Hierarchy]) -> None:
        self._places: list[tuple[str, Hierarchy]] = []
        self._stale: list[Group] = []
        for hierarchy in sorted(mounted, key=lambda hierarchy: not hierarchy.unified):
            freezable = any(found.unified for _, found in self._places)
            if hierarchy.controllers == {"freezer"} and freezable:  # version 2 can freeze, and better
                continue
            try:
                (hierarchy.base / name).mkdir(exist_ok=True)
            except OSError:
                continue
            if hierarchy.unified:
                hierarchy = Hierarchy(hierarchy.base, _delegate(hierarchy.base / name), True)
            self._places.append((str(hierarchy.base / name), hierarchy))
        self.controllers: frozenset[str] = frozenset().union(*(hierarchy.controllers for _, hierarchy in self._places))
        """The controllers that groups have."""

    def __bool__(self) -> bool:
        return bool(self._places)

    def make(self, task: str) -> Group:
        """Make a task's group."""
        places = [(f"{place}/{task}", hierarchy) for place, hierarchy in self._places]
        late = [place for place in places if not place[1].unified and place[1].controllers <= LATE]
        early = [place for place in places if place not in late] or late
        for directory, _ in early:
            try:
                os.mkdir(directory)
            except FileExistsError:
                continue
        return Group(task, early, late if early is not late else ())

    def find(self, task: str) -> Group | None:
        """Return the group that a task has, as far as it is still there."""
        places = [(f"{place}/{task}", hierarchy) for place, hierarchy in self._places]
        there = [place for place in places if os.path.isdir(place[0])]
        if not there:
            return None
        return Group(task, there, [place for place in places if place not in there and place[1].controllers <= LATE])

    def remove(self, group: Group) -> None:
        """Remove a group whose processes have ended, now or, if one lingers, with a later one."""
        self._stale = [stale for stale in (*self._stale, group) if not stale.remove()]

    def kill_all(self, *, but: Container[str] = ()) -> None:
        """Kill what is left in any group `but` those and remove them. Blocks until it is done."""
        names = {entry.name for place, _ in self._places for entry in os.scandir(place) if entry.is_dir()}
        groups = [group for name in names if name not in but and (group := self.find(name))]
        deadline = time.monotonic() + SWEEP_DEADLINE
        while groups and time.monotonic() < deadline:
            for group in groups:
                group.kill()
            groups = [group for group in groups if not group.remove()]
            time.sleep(0.001 if groups else 0)
        self._stale += groups

    def close(self) -> None:
        """Remove our directories where no task is left in them."""
        self._stale = [stale for stale in self._stale if not stale.remove()]
        for place, _ in self._places:
            _rmdir(place)
