"""From a namespace to mounts: what the kernel can bind itself it binds, the rest comes from the server's own mount."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from errno import EFBIG, ENOTSUP, ESTALE
from pathlib import Path

from ns.namespace import Namespace
from ns.table import BindTable, Member
from tasks.drivers.base import Launch
from tasks.taskd.protocol import Message
from tasks.taskd.root import DEVICES, MAX_TEXT
from vfs.host import HostNode
from vfs.hostmounts import MountedAbove
from vfs.node import ROOT, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Where the trees that tasks bind can be found by path.

    `devices` are those that are host directories, by name ("host": "/"). `views` is the directory, in a FUSE mount
    of this server, that shows each task's namespace as `<task>/`; None where there is no mount: then a bind of
    anything else cannot be realised.
    """

    devices: Mapping[str, Path] = field(default_factory=lambda: {"host": Path("/")})
    views: Path | None = None


async def root_of(launch: Launch, namespace: Namespace, table: BindTable, roots: Roots) -> Message:
    """Return the root that a task with this table gets, as the supervisor's `start` takes it.

    `/proc` is the task's own, and its home is at `/home/<user>`, where the table has nothing else. ENOTSUP or ESTALE,
    naming the bind that cannot be realised.
    """
    steps: list[Message] = []
    bound = dict(table.items())
    for path, members in bound.items():
        for step in await _steps(path, members, launch, namespace, roots):
            steps.append(step)
    if "/proc" not in bound:
        steps.append({"kind": "proc", "at": "/proc", "guarded": launch.uid == 0})
    home = f"/home/{launch.user}"
    if home not in bound and "/home" not in bound:
        steps.append({"kind": "bind", "at": home, "path": str(launch.home)})
    steps.sort(key=lambda step: str(step["at"]).rstrip("/").count("/"))
    steps += [{"kind": "mask", "at": path} for path in table.hidden_paths()]
    return {"steps": steps}


async def _steps(
    path: str, members: tuple[Member, ...], launch: Launch, namespace: Namespace, roots: Roots
) -> list[Message]:
    member = members[0]
    device, inner = member.origin
    if len(members) == 1:
        if device == "dev" and not inner:
            return [{"kind": "dev", "at": path}]
        if device == "etc" and not member.dir:
            return [{"kind": "file", "at": path, "text": await _text(member, namespace)}]
        base = Path("/") if device == "dev" and inner in DEVICES else roots.devices.get(device)
        if base is not None:
            where = base / "dev" / inner if device == "dev" else base / inner
            return list(_host_binds(path, member, where))
    if roots.views is None:
        what = " + ".join(str(each.origin) for each in members)
        raise OSError(ENOTSUP, f"bind {what} {path}: only the server's mount can show this, and it has none")
    step: Message = {"kind": "bind", "at": path, "path": f"{roots.views}/{launch.id}{path}"}
    return [step | {"readonly": True}] if all(each.readonly for each in members) else [step]


def _host_binds(path: str, member: Member, where: Path) -> Iterator[Message]:
    """Yield the bind of a host file or directory, and those of the mounts below it that its tree shows."""
    node = member.node
    step: Message = {"kind": "bind", "at": path, "path": str(where), "readonly": member.readonly}
    yield step | _identity(node, path)
    if isinstance(node, MountedAbove):
        prefix = node.path.rstrip("/") + "/"
        for point in sorted(node.points):
            if point.startswith(prefix):
                below = point.removeprefix(prefix)
                yield {**step, "at": f"{path.rstrip('/')}/{below}", "path": point}


def _identity(node: Node | None, path: str) -> Message:
    """Return what the bound file is, whatever its path means by now."""
    if isinstance(node, MountedAbove):
        node = node.node
    if not isinstance(node, HostNode):
        return {}
    try:
        st = os.fstat(node.fd())
    except OSError as error:
        raise OSError(ESTALE, f"bind at {path}: what was bound is no longer there") from error
    return {"device": st.st_dev, "inode": st.st_ino}


async def _text(member: Member, namespace: Namespace) -> str:
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
