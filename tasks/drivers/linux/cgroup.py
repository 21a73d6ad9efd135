"""Control groups: limits, pausing and accounting of a task, on version 1, version 2 and machines that mix them.

A task's group is a directory of its own in every hierarchy that has something
for it. Where a controller is missing the others still work, and
`Cgroups.controllers` says what there is. Figures and limits: cgroup-v1/*.rst
and cgroup-v2.rst of the kernel's documentation.
"""

import os
import signal
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from errno import EBUSY, EINVAL, ENOENT, ENOTSUP
from pathlib import Path

import trio

from tasks.drivers.base import Limits
from tasks.drivers.linux.oom import OomNotice

CONTROLLERS = frozenset({"memory", "pids", "cpu", "cpuacct", "io", "blkio", "freezer"})
PERIOD_USEC = 100_000
LEAST_QUOTA_USEC = 1_000
FREEZE_DEADLINE = 2.0
SWEEP_DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup hierarchy: the directory below which ours goes, and the controllers we can use there."""

    base: Path
    controllers: frozenset[str]
    unified: bool


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
    """The cgroup of one task: a directory in each hierarchy."""

    def __init__(self, name: str, places: list[tuple[Path, Hierarchy]]) -> None:
        self.name = name
        self._directories = [directory for directory, _ in places]
        self._of: dict[str, tuple[Path, bool]] = {}
        self.unified: Path | None = None
        """Its version 2 directory, in which clone3(2) can make a process."""
        self.joined: list[Path] = []
        """Its version 1 `tasks` files: a process that writes "0" there is in."""
        for directory, hierarchy in places:
            self._of.update(dict.fromkeys(hierarchy.controllers, (directory, hierarchy.unified)))
            if hierarchy.unified:
                self.unified = directory
            else:
                self.joined.append(directory / "tasks")

    @property
    def sweep(self) -> Path:
        """A directory whose cgroup.procs lists every process of the group."""
        return self.unified or self._directories[0]

    def limit(self, limits: Limits) -> None:
        """Apply the limits, None lifting one. ENOTSUP without the controller; EBUSY if memory in use can't be freed."""
        self._limit_memory(limits.memory)
        self._set("pids", {"pids.max": "max" if limits.pids is None else str(limits.pids)}, limits.pids)
        quota = None if limits.cpu is None else max(LEAST_QUOTA_USEC, round(limits.cpu * PERIOD_USEC))
        if self._has("cpu", unified=True):
            self._set("cpu", {"cpu.max": f"{quota or 'max'} {PERIOD_USEC}"}, quota)
        else:
            self._set("cpu", {"cpu.cfs_period_us": str(PERIOD_USEC), "cpu.cfs_quota_us": str(quota or -1)}, quota)

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
        for file, text in values.items():
            try:
                (directory / file).write_text(text)
            except FileNotFoundError:  # no swap accounting
                if not file.startswith(("memory.swap", "memory.memsw")):
                    raise

    async def pause(self, stopped: bool) -> None:
        """Freeze or thaw every process; returns when they are. ENOTSUP without a freezer."""
        if self.unified:
            file, word, sign = self.unified / "cgroup.freeze", str(int(stopped)), f"frozen {int(stopped)}"
            state = self.unified / "cgroup.events"
        elif "freezer" in self._of:
            file = state = self._of["freezer"][0] / "freezer.state"
            word = sign = "FROZEN" if stopped else "THAWED"
        else:
            raise OSError(ENOTSUP, "this machine has no freezer")
        file.write_text(word)
        with trio.move_on_after(FREEZE_DEADLINE):
            while sign not in state.read_text():
                await trio.sleep(0.001)
            return
        raise OSError(EBUSY, "some processes are in an uninterruptible wait")

    @property
    def can_pause(self) -> bool:
        return self.unified is not None or "freezer" in self._of

    def pids(self) -> list[int]:
        """Return its processes."""
        return [int(pid) for pid in (self.sweep / "cgroup.procs").read_text().split()]

    def kill(self) -> None:
        """Send SIGKILL to every process, frozen ones too."""
        if self.unified and (self.unified / "cgroup.kill").exists():
            (self.unified / "cgroup.kill").write_text("1")
            return
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.unified is None and "freezer" in self._of:
            (self._of["freezer"][0] / "freezer.state").write_text("THAWED")

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
            table = _table(self.unified / "cpu.stat")
            keys = ("user_usec", "system_usec", "throttled_usec")
            return {key: table[key] for key in keys if key in table}
        nanoseconds = self._numbers("cpuacct", {"user_usec": "cpuacct.usage_user", "system_usec": "cpuacct.usage_sys"})
        figures = {key: value // 1000 for key, value in nanoseconds.items()}
        if "cpu" in self._of:
            figures["throttled_usec"] = _table(self._of["cpu"][0] / "cpu.stat").get("throttled_time", 0) // 1000
        return figures

    def _io(self) -> dict[str, int]:
        figures = {"read_bytes": 0, "write_bytes": 0}
        if "io" in self._of:
            for line in (self._of["io"][0] / "io.stat").read_text().splitlines():
                values = dict(item.split("=") for item in line.split()[1:])
                figures["read_bytes"] += int(values["rbytes"])
                figures["write_bytes"] += int(values["wbytes"])
            return figures
        if "blkio" not in self._of:
            return {}
        for line in (self._of["blkio"][0] / "blkio.throttle.io_service_bytes").read_text().splitlines():
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
                text = (self._of[controller][0] / file).read_text().strip()
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
        return _table(directory / ("memory.events" if unified else "memory.oom_control")).get("oom_kill", 0)

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


def _table(path: Path) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in path.read_text().splitlines())}


def _rmdir(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno == EBUSY:  # a process that has ended but is not quite gone
            return False
        if error.errno != ENOENT:
            raise
    return True


class Cgroups:
    """All the groups of one server: below a directory `name` in each hierarchy that lets us make one."""

    def __init__(self, name: str, mounted: list[Hierarchy]) -> None:
        self._places: list[tuple[Path, Hierarchy]] = []
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
            self._places.append((hierarchy.base / name, hierarchy))
        self.controllers: frozenset[str] = frozenset().union(*(hierarchy.controllers for _, hierarchy in self._places))
        """The controllers that groups have."""

    def __bool__(self) -> bool:
        return bool(self._places)

    def make(self, task: str) -> Group:
        """Make a task's group."""
        places = [(place / task, hierarchy) for place, hierarchy in self._places]
        for directory, _ in places:
            try:
                os.mkdir(directory)
            except FileExistsError:
                continue
        return Group(task, places)

    def find(self, task: str) -> Group | None:
        """Return the group that a task has, as far as it is still there."""
        there = [(place / task, hierarchy) for place, hierarchy in self._places if (place / task).is_dir()]
        return Group(task, there) if there else None

    def remove(self, group: Group) -> None:
        """Remove a group whose processes have ended, now or, if one lingers, with a later one."""
        self._stale = [stale for stale in (*self._stale, group) if not stale.remove()]

    def kill_all(self, *, but: Container[str] = ()) -> None:
        """Kill what is left in any group `but` those and remove them. Blocks until it is done."""
        names = {path.name for place, _ in self._places for path in place.iterdir() if path.is_dir()}
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
