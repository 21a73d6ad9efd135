"""`/cap`: things that tasks use together — pipes, memory trees, archives, imported trees — allocated like tasks."""

import os
import stat as statmod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from errno import EBUSY, ENOTSUP

from tasks.ports import Dialer, Vault
from tasks.task import Task
from tasks.view import View
from vfs.control import Control, Verb, usage
from vfs.directory import Dir, LiveDir
from vfs.files import ROOT_OWNER, Allocator, Text
from vfs.memory import MemoryTree
from vfs.node import Caller, Node, no_entry
from vfs.pipes import Broadcast, Duplex, Pipe
from vfs.walk import open_path

KINDS = ("pipe", "duplex", "mem", "tar", "signal", "9p")
MAX_CAPS = 10_000
MAX_ARCHIVE = 1 << 30


@dataclass(eq=False, slots=True)
class Cap:
    """One capability. `owner` made it (None: the administrator); it is seen there and above."""

    id: int
    kind: str
    owner: Task | None
    error: str = ""
    nodes: dict[str, Node] = field(default_factory=dict)
    verbs: dict[str, Verb] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None
    uid: int = 0
    gid: int = 0
    changed_ns: int = 0


class Caps:
    """All capabilities of a node. Pipes outlive the server in the vault; trees do not, and say so in their type."""

    def __init__(self, *, next_id: Callable[[], int], vault: Vault, dial: Dialer) -> None:
        self._caps: dict[int, Cap] = {}
        self._next_id = next_id
        self._vault = vault
        self._dial = dial

    def make(self, kind: str, owner: Task | None) -> Cap:
        """Allocate a capability of that kind for `owner`."""
        if len(self._caps) >= MAX_CAPS:
            raise OSError(ENOTSUP, f"more than {MAX_CAPS} capabilities")
        cap = Cap(self._next_id(), kind, owner)
        if owner is not None:
            cap.uid, cap.gid = owner.uid, owner.gid
        _BUILD[kind](self, cap)
        cap.verbs["remove"] = lambda: self.remove(cap)
        cap.verbs["remove"].__doc__ = "forget it"
        self._caps[cap.id] = cap
        return cap

    def remove(self, cap: Cap) -> None:
        """Forget a capability; what is open of it stays usable."""
        if self._caps.pop(cap.id, None) is not None:
            cap.close()

    def remove_of(self, owner: Task) -> None:
        """Forget everything that a removed task had made."""
        for cap in [cap for cap in self._caps.values() if cap.owner is owner]:
            self.remove(cap)

    # The kinds

    def _pipe(self, cap: Cap) -> None:
        self._show_pipe(cap, Pipe(uid=cap.uid, gid=cap.gid))

    def _show_pipe(self, cap: Cap, pipe: Pipe) -> None:
        cap.nodes |= {"r": pipe.reader, "w": pipe.writer}
        cap.close = pipe.close

    def _duplex(self, cap: Cap) -> None:
        duplex = Duplex(uid=cap.uid, gid=cap.gid)
        cap.nodes |= {"data": duplex.data, "data1": duplex.data1}
        cap.close = duplex.close

    def _mem(self, cap: Cap) -> None:
        cap.nodes["mount"] = MemoryTree(label=f"cap/{cap.id}", uid=cap.uid, gid=cap.gid).root

    def _signal(self, cap: Cap) -> None:
        cap.nodes["signal"] = Broadcast(uid=cap.uid, gid=cap.gid)

    def _tar(self, cap: Cap) -> None:
        cap.nodes["mount"] = Dir({}, owner=cap)

    def _9p(self, cap: Cap) -> None:
        cap.nodes["mount"] = Dir({}, owner=cap)

    # The tree

    def tree(self, view: View) -> Node:
        """Return `/cap` as `view` sees it."""

        def visible(cap: Cap) -> bool:
            return view.admin or (cap.owner is not None and view.sees(cap.owner))

        def child(name: str, who: Caller) -> Node:
            cap = self._caps.get(int(name)) if name.isascii() and name.isdigit() and len(name) < 19 else None
            if cap is None or not visible(cap):
                raise no_entry(name)
            return view.node(f"cap/{name}", lambda: self._cap_dir(view, cap))

        new = Dir({kind: Allocator(lambda kind=kind: self.make(kind, view.task).id) for kind in KINDS}, mode=0o700)  # type: ignore[misc]
        return view.node(
            "cap",
            lambda: LiveDir(
                lambda: [str(cap.id) for cap in self._caps.values() if visible(cap)],
                child,
                fixed={"new": new},
                kind=statmod.S_IFDIR,
                mode=0o755,
                owner=view.task or ROOT_OWNER,
            ),
        )

    def _cap_dir(self, view: View, cap: Cap) -> Dir:
        verbs: Mapping[str, Verb] = cap.verbs | self._sources(view, cap)
        return Dir(
            {"ctl": Control(verbs, refusal=cap), "type": Text(lambda: cap.kind), **cap.nodes},
            mode=0o700,
            owner=view.task or cap,
        )

    def _sources(self, view: View, cap: Cap) -> dict[str, Verb]:
        """Return the verbs that need the writer's authority: what an archive or an import is made from."""

        @usage("open PATH")
        async def open_archive(path: str) -> None:
            """show the tar archive at PATH in mount/"""
            self._empty(cap)
            node, handle = await open_path(view.namespace.root, path, os.O_RDONLY, view.caller)
            try:
                cap.nodes["mount"] = await load_tar(node, handle, f"cap/{cap.id}")
            finally:
                handle.close()

        @usage("dial ADDR [ANAME]")
        async def dial(address: str, aname: str = "/") -> None:
            """show the tree that the 9P server at ADDR serves in mount/"""
            view.require_admin("dial")
            self._empty(cap)
            cap.nodes["mount"] = await self._dial(address, aname, view.caller)

        return {"tar": {"open": open_archive}, "9p": {"dial": dial}}.get(cap.kind, {})  # type: ignore[return-value]

    @staticmethod
    def _empty(cap: Cap) -> None:
        mount = cap.nodes["mount"]
        if not isinstance(mount, Dir):
            raise OSError(EBUSY, "it shows a tree already")


_BUILD: Mapping[str, Callable[[Caps, Cap], None]] = {
    "pipe": Caps._pipe,
    "duplex": Caps._duplex,
    "mem": Caps._mem,
    "tar": Caps._tar,
    "signal": Caps._signal,
    "9p": Caps._9p,
}
