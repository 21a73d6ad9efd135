"""The tree of `/sessions`, in the order `ls` shows it. docs/tree.md restates it for users; a test compares the two.

What a session has done is shown to its own tasks, to read; what steers it is the administrator's alone, so that an
agent cannot forge its history.
"""

import json
import os
import stat as statmod
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from errno import EACCES

from tasks import values
from tasks.events import Events
from tasks.model import User
from tasks.sessions.home import SESSION_FILE, WORK
from tasks.sessions.model import MAX_MESSAGE, Session, Turn
from tasks.sessions.options import USAGE, options
from tasks.sessions.service import Sessions
from tasks.view import View
from vfs.control import Control, Verb, Verbs, usage
from vfs.directory import Dir, LiveDir
from vfs.files import ROOT_OWNER, Synthetic, Text
from vfs.host import HostTree
from vfs.node import Caller, DirEntry, Handle, Node, no_entry, node_id

WHOLE_WRITE = 4096
"""A write to `prompt` that is shorter than this ends the message (a shell splits its writes here)."""
CONVERSATION = 4 << 20
"""Characters of a conversation that are shown, the newest."""
LOGGED = frozenset({"opened", "state", "starting", "died", "mended", "note", "log", "sync", "switched"})
PAGE = 500


class SteeringControl(Control):
    """A control file of the administrator's whose verbs may wait: for an agent, for a sync."""

    __slots__ = ()
    unshared = True

    def __init__(self, view: View, verbs: Verbs) -> None:
        def steer(who: Caller) -> Verbs:
            view.acting(who).require_admin("steer sessions")
            return verbs

        super().__init__(steer)
        self.owner = ROOT_OWNER


class SessionTree:
    """Makes the nodes of `/sessions` for a view."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def root(self, view: View) -> Node:
        """Return `/sessions` as `view` sees it: every session, or only the viewer's own."""
        return view.node("sessions", lambda: self._root(view))

    def _root(self, view: View) -> Dir:
        sessions, chronicle = self.sessions, self.sessions.chronicle

        def seen() -> list[str]:
            if view.task is None:
                return [record.id for record in sessions.records()] if view.admin else []
            own = sessions.of_task(view.task)
            return [own.id] if own else []

        def child(name: str, who: Caller) -> Node:
            if name not in seen():
                raise no_entry(name)
            return view.node(f"sessions/{name}", lambda: SessionDir(sessions, view, sessions.get(name)))

        return LiveDir(
            seen,
            child,
            fixed={
                "ctl": SteeringControl(view, self._verbs()),
                "active": Text(lambda: sessions.active if sessions.active in seen() else ""),
                "events": Events(chronicle, chronicle.changed, visible=lambda row: view.admin or row.session in seen()),
            },
            kind=statmod.S_IFDIR,
            mode=0o755,
            owner=view.task or ROOT_OWNER,
        )

    def _verbs(self) -> dict[str, Verb]:
        sessions = self.sessions

        @usage(USAGE)
        async def open(id: str, *words: str) -> None:
            """make a session, or take it up again; answers once it can work"""
            await sessions.open(id, **options(words))

        async def switch(id: str) -> None:
            """make it the active one; answers once it can work"""
            await sessions.switch(id)

        def stop(id: str) -> None:
            """end its agent and its turns; a prompt starts it again"""
            sessions.stop(id)

        def archive(id: str) -> None:
            """stop it, and keep it until it is opened again"""
            sessions.archive(id)

        async def remove(id: str) -> None:
            """take it away, with its home and its history"""
            await sessions.remove(id)

        return {"open": open, "switch": switch, "stop": stop, "archive": archive, "remove": remove}


class Keeper:
    """To whom a session's files belong."""

    __slots__ = ("changed_ns", "gid", "uid")

    def __init__(self, user: User, changed: float) -> None:
        self.uid = user.uid
        self.gid = user.gid
        self.changed_ns = int(changed * 1e9)


class SessionDir(Dir):
    """`/sessions/<id>`. Its files are made when they are looked up."""

    __slots__ = ("session", "sessions", "view")

    def __init__(self, sessions: Sessions, view: View, session: Session) -> None:
        super().__init__({}, mode=0o700, owner=Keeper(session.user, session.used))
        self.sessions = sessions
        self.view = view
        self.session = session.id

    @property
    def record(self) -> Session:
        return self.sessions.get(self.session)

    async def lookup(self, name: str, who: Caller) -> Node:
        kind = FROM_HOME.get(name)
        if kind is not None:
            node = await self.sessions.service.homes.node(self.record.user).lookup(name, who)
            if statmod.S_IFMT((await node.stat()).st_mode) != kind:
                raise no_entry(name)  # its owner has put something else there, a link that leads elsewhere perhaps
            return node
        make = SESSION_FILES.get(name)
        if make is None:
            raise no_entry(name)
        return self.adopt(name, make(self))

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        there = set(os.listdir(self.sessions.service.homes.path(self.record.user)))
        entries = [DirEntry(name, 0, kind) for name, kind in FROM_HOME.items() if name in there]
        entries += [
            DirEntry(
                name, node_id(self.id, name), statmod.S_IFDIR if name in ("history", "artifacts") else statmod.S_IFREG
            )
            for name in SESSION_FILES
        ]
        return entries

    def verbs(self) -> dict[str, Verb]:
        sessions, id = self.sessions, self.session

        async def sync() -> None:
            """bring work and the session's folder in step now"""
            await sessions.sync(id)

        @usage("cancel [TASK]")
        def cancel(task: str = "") -> None:
            """end one task, or every task that is not over"""
            turns = [values.number(task, 1, 1 << 62)] if task else []
            for number in turns or [turn.id for turn in sessions.chronicle.open_turns(id)]:
                if sessions.turn(number).session != id:
                    raise no_entry(task)
                sessions.cancel(number)

        async def timeout(seconds: str) -> None:
            """end every further task after this time; 0: never"""
            sessions.set_timeout(id, values.decimal(seconds, 0.0, 1e8) or None)

        def stop() -> None:
            """end its agent and its tasks; a prompt starts it again"""
            sessions.stop(id)

        def archive() -> None:
            """stop it, and keep it until it is opened again"""
            sessions.archive(id)

        async def remove() -> None:
            """take it away, with its home and its history"""
            await sessions.remove(id)

        return {
            "sync": sync,
            "cancel": cancel,
            "timeout": timeout,
            "stop": stop,
            "archive": archive,
            "remove": remove,
        }

    def turn_names(self) -> Iterator[str]:
        return (str(turn.id) for turn in reversed(self.every_turn()))

    def every_turn(self) -> list[Turn]:
        """Return all turns without their output, newest first."""
        return self.sessions.chronicle.turns(self.session, limit=1 << 31, output=False)

    def turn(self, name: str, who: Caller) -> Node:
        if not (name.isascii() and name.isdigit() and len(name) < 19):
            raise no_entry(name)
        number = int(name)
        if self.sessions.turn(number).session != self.session:
            raise no_entry(name)
        return Dir(
            {
                file: Text(lambda show=show: show(self.sessions.turn(number)), mode=0o400)  # type: ignore[misc]
                for file, show in TURN_FILES.items()
            },
            mode=0o500,
        )

    def artifacts(self) -> Node:
        """Return what its turns left behind, a directory for each that left anything."""
        place = self.sessions.artifacts(self.session)
        return HostTree(place, label=f"artifacts/{self.session}", readonly=True).root if place.is_dir() else Dir({})

    def metadata(self) -> str:
        return json.dumps(self.record.shown(), indent=2)

    def task(self) -> str:
        return json.dumps(self.sessions.state(self.session), indent=2)

    def tasks(self) -> str:
        shown = (turn.shown() for turn in reversed(self.every_turn()))
        return "".join(json.dumps({k: v for k, v in one.items() if k != "output"}) + "\n" for one in shown)

    def conversation(self) -> str:
        """Return the newest messages in both directions, as a client shows them."""
        messages: list[dict[str, object]] = []
        size = 0
        before = None
        while size < CONVERSATION and (page := self.sessions.turns(self.session, before=before, limit=PAGE)):
            for turn in page:
                if turn.output:
                    answer = {"role": "assistant", "text": turn.output, "time": turn.ended, "state": turn.state}
                    messages.append({"task": str(turn.id), **answer})
                messages.append({"task": str(turn.id), "role": "user", "text": turn.message, "time": turn.created})
                size += len(turn.output) + len(turn.message)
                if size >= CONVERSATION:
                    break
            before = page[-1].id
        return json.dumps(messages[::-1], indent=1)

    def log(self) -> str:
        """Return what happened to the session itself and what its agent wrote on stderr, one entry a line."""
        rows = self.sessions.chronicle.newest(self.session, LOGGED, PAGE)
        lines = [
            f"{datetime.fromtimestamp(row.at, UTC).isoformat(timespec='milliseconds')} {row.kind} {row.data}"
            for row in rows
        ]
        task = self.sessions.service.tasks.get(self.record.task)
        words = self.sessions.last_words(task) if task is not None else ""
        return "\n".join([*lines, words])


def _times(turn: Turn) -> str:
    shown = (("created", turn.created), ("started", turn.started), ("ended", turn.ended))
    return "\n".join(
        f"{name} {datetime.fromtimestamp(when, UTC).isoformat(timespec='milliseconds')}"
        for name, when in shown
        if when is not None
    )


TURN_FILES: Mapping[str, Callable[[Turn], str]] = {
    "prompt": lambda turn: turn.message,
    "output": lambda turn: turn.output,
    "state": lambda turn: turn.state.value,
    "reason": lambda turn: turn.reason,
    "exit": lambda turn: "" if turn.code is None else str(turn.code),
    "usage": lambda turn: "\n".join(f"{name} {value}" for name, value in turn.usage.items()),
    "times": _times,
}
"""Every file of a turn in `history`."""
FROM_HOME = {SESSION_FILE: statmod.S_IFREG, WORK: statmod.S_IFDIR}
"""What of a session's directory is its user's own."""
SESSION_FILES: Mapping[str, Callable[[SessionDir], Node]] = {
    "ctl": lambda of: SteeringControl(of.view, of.verbs()),
    "prompt": lambda of: Prompt(of.sessions, of.view, of.session),
    "state": lambda of: Text(lambda: of.record.state.value, mode=0o400),
    "error": lambda of: Text(lambda: of.record.error, mode=0o400),
    "metadata.json": lambda of: Text(of.metadata, mode=0o400),
    "task.json": lambda of: Text(of.task, mode=0o400),
    "conversation.json": lambda of: Text(of.conversation, mode=0o400),
    "tasks.jsonl": lambda of: Text(of.tasks, mode=0o400),
    "history": lambda of: LiveDir(of.turn_names, of.turn, kind=statmod.S_IFDIR, mode=0o500),
    "artifacts": lambda of: of.artifacts(),
    "conflicts": lambda of: Text(lambda: "\n".join(of.sessions.workspace.conflicts(of.session)), mode=0o400),
    "log": lambda of: Text(of.log, mode=0o400),
    "events": lambda of: Events(of.sessions.chronicle, of.sessions.changed, of=of.session, movable=True),
}
"""Every file of a session that the server makes, in the order `ls` shows them."""


class Prompt(Synthetic):
    """`prompt`: a message that is written here is worked off; reading the same open file then gives its task's id."""

    __slots__ = ("session", "sessions", "view")

    def __init__(self, sessions: Sessions, view: View, session: str) -> None:
        super().__init__(statmod.S_IFREG | 0o600, ROOT_OWNER)
        self.sessions = sessions
        self.view = view
        self.session = session

    async def open(self, flags: int, who: Caller) -> Handle:
        if flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(EACCES, "write a message")
        self.view.acting(who).require_admin("steer sessions")
        return PromptHandle(self)


class PromptHandle(Handle):
    """An open `Prompt`."""

    __slots__ = ("_data", "_made", "_node")
    stream = True

    def __init__(self, node: Prompt) -> None:
        self._node = node
        self._data = b""
        self._made = b""

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        self._data += data
        if len(self._data) > MAX_MESSAGE + 1:
            self._data = b""
            raise values.too_big(f"a message is at most {MAX_MESSAGE} bytes")
        if len(data) < WHOLE_WRITE:
            await self.flush()
        return len(data)

    async def flush(self) -> None:
        data, self._data = self._data, b""
        if data:
            text = data.decode("utf-8", "replace").removesuffix("\n")
            self._made += b"%d\n" % self._node.sessions.prompt(self._node.session, text).id

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        made, self._made = self._made[:size], self._made[size:]
        return made
