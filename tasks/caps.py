"""`/cap`: things that tasks use together — pipes, memory trees, archives, imported trees — allocated like tasks."""

import json
import os
import stat as statmod
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from errno import EBUSY, EDQUOT, EFBIG, ENOSPC
from functools import partial
from tempfile import TemporaryFile

import trio

from tasks.ports import Dialer, Vault
from tasks.store import Journal
from tasks.task import Task
from tasks.view import View
from vfs.control import Control, Verb, usage
from vfs.directory import Dir, LiveDir
from vfs.files import ROOT_OWNER, Allocator, Text
from vfs.inline import park
from vfs.memory import MemoryTree
from vfs.node import Caller, Handle, Node, no_entry
from vfs.pipes import Broadcast, Duplex, Pipe
from vfs.tarball import TarTree
from vfs.walk import open_path

KINDS = ("pipe", "duplex", "mem", "tar", "signal", "9p")
MAX_CAPS = 10_000
MAX_CAPS_OF_USER = 1000
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

    def __init__(self, *, journal: Journal, vault: Vault, dial: Dialer) -> None:
        self._caps: dict[int, Cap] = {}
        self._journal = journal
        self._vault = vault
        self._dial = dial

    async def recover(self, tasks: Mapping[int, Task]) -> None:
        """Take up the capabilities of an earlier server; what could not be kept is empty, and its error says so."""
        known: dict[int, tuple[str, int]] = {}
        for row in self._journal.replay(kinds=("cap made", "cap removed")):
            data = json.loads(row.data)
            if row.kind == "cap made":
                known[data["cap"]] = (data["kind"], row.task)
            else:
                known.pop(data["cap"], None)
        for number, (kind, owner) in known.items():
            if owner and owner not in tasks:
                continue
            cap = self._new(number, kind, tasks.get(owner))
            kept = await self._vault.take(f"cap/{number}") if kind == "pipe" else []
            if len(kept) == 2:
                self._show_pipe(cap, Pipe.from_fds(*kept, uid=cap.uid, gid=cap.gid))
            else:
                _BUILD[kind](self, cap)
                cap.error = "what was in it was lost with the server"

    def make(self, kind: str, owner: Task | None) -> Cap:
        """Allocate a capability of that kind for `owner`. ENOSPC, EDQUOT at a limit."""
        if len(self._caps) >= MAX_CAPS:
            raise OSError(ENOSPC, f"more than {MAX_CAPS} capabilities")
        if (
            owner
            and sum(cap.owner is not None and cap.uid == owner.uid for cap in self._caps.values()) >= MAX_CAPS_OF_USER
        ):
            raise OSError(EDQUOT, f"the tasks of a user have at most {MAX_CAPS_OF_USER} capabilities")
        cap = self._new(self._journal.next("cap"), kind, owner)
        _BUILD[kind](self, cap)
        self._journal.append(owner.id if owner else 0, "cap made", {"cap": cap.id, "kind": kind})
        return cap

    def _new(self, number: int, kind: str, owner: Task | None) -> Cap:
        cap = Cap(number, kind, owner, changed_ns=time.time_ns())
        cap.uid, cap.gid = (owner.uid, owner.gid) if owner else (os.geteuid(), os.getegid())

        def remove() -> None:
            """forget it"""
            self.remove(cap)

        cap.verbs["remove"] = remove
        self._caps[number] = cap
        return cap

    def remove(self, cap: Cap) -> None:
        """Forget a capability; what is open of it stays usable."""
        if self._caps.pop(cap.id, None) is not None:
            cap.close()
            self._vault.drop(f"cap/{cap.id}")
            self._journal.append(cap.owner.id if cap.owner else 0, "cap removed", {"cap": cap.id})

    def remove_of(self, owner: Task) -> None:
        """Forget everything that a removed task had made."""
        for cap in [cap for cap in self._caps.values() if cap.owner is owner]:
            self.remove(cap)

    # The kinds

    def _pipe(self, cap: Cap) -> None:
        self._show_pipe(cap, Pipe(uid=cap.uid, gid=cap.gid))

    def _show_pipe(self, cap: Cap, pipe: Pipe) -> None:
        def keep() -> None:
            ends = pipe.keep()
            self._vault.hold(f"cap/{cap.id}", ends)
            for end in ends:
                os.close(end)

        cap.nodes |= {"r": pipe.reader, "w": pipe.writer}
        cap.close = pipe.close
        pipe.on_used = keep
        keep()

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

        new = Dir({kind: Allocator(lambda who, kind=kind: self.make(kind, view.task).id) for kind in KINDS}, mode=0o700)  # type: ignore[misc]
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
        return Dir(
            {
                "ctl": Control(lambda who: cap.verbs | self._sources(view.acting(who), cap), refusal=cap),
                "type": Text(lambda: cap.kind),
                **cap.nodes,
            },
            mode=0o700,
            owner=view.task or cap,
        )

    def _sources(self, view: View, cap: Cap) -> dict[str, Verb]:
        """Return the verbs that need the writer's authority: what an archive or an import is made from."""

        @usage("open PATH")
        async def open_archive(path: str) -> None:
            """show the tar archive at PATH in mount/"""
            self._empty(cap)
            _, handle = await open_path(view.namespace.root, path, os.O_RDONLY, view.caller)
            try:
                cap.nodes["mount"] = await _archive(handle, f"cap/{cap.id}")
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


async def _archive(handle: Handle, label: str) -> Node:
    """Return the tree of the archive that an open file holds. EFBIG past 1 GiB where it must be copied."""
    await park()
    with os.fdopen(os.dup(handle.fileno()), "rb") if handle.fileno() >= 0 else TemporaryFile() as file:
        while handle.fileno() < 0 and (data := await handle.read(1 << 20, file.tell())):
            file.write(data)
            if file.tell() > MAX_ARCHIVE:
                raise OSError(EFBIG, f"an archive is at most {MAX_ARCHIVE} bytes")
        file.seek(0)
        return (await trio.to_thread.run_sync(partial(TarTree, file, label=label))).root


_BUILD: Mapping[str, Callable[[Caps, Cap], None]] = {
    "pipe": Caps._pipe,
    "duplex": Caps._duplex,
    "mem": Caps._mem,
    "tar": Caps._tar,
    "signal": Caps._signal,
    "9p": Caps._9p,
}
