"""From binds to mounts: what the kernel can bind itself it binds, the rest comes from the server's own mount."""

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from errno import EBUSY, EFBIG, ENOTSUP, ESTALE
from pathlib import Path

from ns.namespace import Namespace
from ns.table import Member
from tasks.hostdevices import HostDevice
from tasks.taskd.protocol import Message
from tasks.taskd.root import DEVICES, MAX_TEXT
from vfs.host import HostNode
from vfs.hostmounts import MountedAbove
from vfs.node import ROOT, Node
from vfs.owned import Owned


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Where the trees that tasks bind can be found by path.

    `devices` are those that are host directories, by name ("host": "/"). `views` is the directory, in a FUSE mount
    of this server, that shows each task's namespace as `<task>/`; None where there is no mount: then a bind of
    anything else cannot be realised.
    """

    devices: Mapping[str, Path] = field(default_factory=lambda: {"host": Path("/")})
    views: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The task that a root is made for."""

    task: str
    user: str
    home: Path
    uid: int


def view_path(holder: Holder, roots: Roots) -> str:
    """Return where the server's mount shows the task's namespace; "" without a mount."""
    return f"{roots.views}/{holder.task}" if roots.views else ""


@dataclass(frozen=True, slots=True)
class Difference:
    """How one root becomes another: first `drop` and `steps`; then, once the live tree shows it, `late`.

    What lies below a changed path is mounted anew.
    """

    drop: list[str]
    steps: list[Message]
    late: list[Message]
    grows: bool

    def __bool__(self) -> bool:
        return bool(self.drop or self.steps or self.late)


def difference(before: Message, after: Message) -> Difference:
    """Return what to do to a task with the root `before` to give it `after`. EBUSY for a change of `/` itself."""
    old, new = _by_path(before), _by_path(after)
    changed = {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
    if "/" in changed:
        raise OSError(EBUSY, "the root of a running task cannot be replaced")
    drop = [path for path, steps in reversed(old.items()) if _within(path, changed) for _ in steps]
    shown = {path for path in changed & new.keys() if any(step["kind"] == "view" for step in new[path])}
    now = [step for path, steps in new.items() if _within(path, changed - shown) for step in steps]
    late = [step for path, steps in new.items() if _within(path, shown) for step in steps]
    return Difference(drop, [step for step in now if step not in late], late, bool(after["grows"]))


def _within(path: str, places: Collection[str]) -> bool:
    """Tell whether `path` is, or is below, one of `places`."""
    return any(path == place or path.startswith(place + "/") for place in places)


def _by_path(root: Message) -> dict[str, list[Message]]:
    found: dict[str, list[Message]] = {}
    steps = root["steps"]
    assert isinstance(steps, list)
    for step in steps:
        found.setdefault(str(step["at"]), []).append(step)
    return found


def steps_of(path: str, members: tuple[Member, ...], roots: Roots) -> list[Message]:
    """Return the steps that make what is bound at a path. ENOTSUP, naming the bind that cannot be realised."""
    member = members[0]
    device, inner = member.origin
    if len(members) == 1:
        if device == "dev" and not inner:
            devices: Iterator[Message] = ({"kind": "device", "at": f"{path}/{name}", "name": name} for name in DEVICES)
            return [{"kind": "dev", "at": path}, *devices]
        if device == "dev" and inner in DEVICES:
            return [{"kind": "device", "at": path, "name": inner}]
        if isinstance(member.node, HostDevice):
            block = stat.S_ISBLK(member.node.mode)
            return [{"kind": "host device", "at": path, "rdev": member.node.rdev, "block": block}]
        if (base := roots.devices.get(device)) is not None:
            return list(_host_binds(path, member, os.path.join(base, inner) if inner else str(base)))
    if roots.views is None:
        what = " + ".join(str(each.origin) for each in members)
        raise OSError(ENOTSUP, f"bind {what} {path}: only the server's mount can show this, and it has none")
    readonly = all(each.readonly for each in members)
    return [{"kind": "view", "at": path, "readonly": readonly}]


def _host_binds(path: str, member: Member, where: str) -> Iterator[Message]:
    """Yield the bind of a host file or directory, and those of the mounts below it that its tree shows."""
    node = member.node
    step: Message = {"kind": "bind", "at": path, "path": where, "readonly": member.readonly}
    if isinstance(node, Owned):
        step["owners"], node = asdict(node.shift), node.node
    yield step | _identity(node)
    if isinstance(node, MountedAbove):
        prefix = node.path.rstrip("/") + "/"
        for point in sorted(node.points):
            if point.startswith(prefix):
                below = point.removeprefix(prefix)
                yield {**step, "at": f"{path.rstrip('/')}/{below}", "path": point}


def _identity(node: Node | None) -> Message:
    """Return what the bound file is, whatever its path means by now; inode 0, which nothing is, if it has gone."""
    if isinstance(node, MountedAbove):
        node = node.node
    if not isinstance(node, HostNode):
        return {}
    try:
        st = os.fstat(node.fd())
    except OSError as error:
        if error.errno != ESTALE:
            raise
        return {"device": 0, "inode": 0}
    return {"device": st.st_dev, "inode": st.st_ino}


async def text_of(member: Member, namespace: Namespace) -> str:
    """Return the text of a bound file that each task has its own of. EFBIG."""
    node = await namespace.resolve(member, ROOT)
    handle = await node.open(os.O_RDONLY, ROOT)
    try:
        data = b""
        while part := await handle.read(MAX_TEXT, len(data)):
            data += bytes(part)
            if len(data) > MAX_TEXT:
                raise OSError(EFBIG, f"{member.origin} is too long to be copied")
    finally:
        handle.close()
    return os.fsdecode(data)
