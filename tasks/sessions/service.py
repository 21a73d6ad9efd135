"""The sessions of a node: opens, switches, stops and removes them, and takes prompts.

Everything that changes is in the chronicle before anyone is told. Agents are ordinary tasks, one user each: they
outlive the server, and the next one goes on with them.
"""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from errno import E2BIG, EAGAIN, EBUSY, EINVAL, ENOENT, ENOSPC, ETIMEDOUT
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio
from immutables import Map

from ns.namespace import Namespace
from ns.script import dump
from ns.script import run as run_script
from tasks.fds import STDIN, Held
from tasks.service import TERM_GRACE, TaskService
from tasks.sessions import artifacts, home
from tasks.sessions.agent import Agent
from tasks.sessions.chronicle import Chronicle
from tasks.sessions.live import LIVELY, Live
from tasks.sessions.model import MAX_MESSAGE, Session, Spec, Turn, session_id
from tasks.sessions.policy import Policy
from tasks.sessions.ports import NoWorkspace, Workspace
from tasks.sessions.runs import message_file
from tasks.sessions.states import Event, State, TurnState
from tasks.task import Task
from tasks.transitions import State as TaskState
from vfs.inline import park
from vfs.node import ROOT
from vfs.waiting import Signal
from vfs.words import quote

log = structlog.get_logger("sessions")

MAX_SESSIONS = 10_000
PREFIX = "session"
"""What the names of sessions' homes begin with; a dot and the session's name follow, which no task's home has."""
KILL_GRACE = 10.0
WORDS = 2048
"""Bytes of an agent's last words on stderr that are kept."""
SWEEP = 60.0
"""Seconds between looks for what is kept too long."""


class Sessions:
    """All sessions of one node. `run` must be running for anything to be done.

    `writer` is the administrator's namespace, with whose authority sessions' folders are bound. `kept` is the host
    directory for what turns leave behind.
    """

    def __init__(
        self,
        *,
        chronicle: Chronicle,
        service: TaskService,
        writer: Callable[[], Namespace],
        kept: Path,
        policy: Policy | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self.chronicle = chronicle
        self.service = service
        self.policy = policy or Policy()
        self.workspace: Workspace = workspace or NoWorkspace()
        self.left = Signal()
        """Notified when an agent has ended or come to rest."""
        self._writer = writer
        self._kept = kept
        self._live: dict[str, Live] = {}
        self._nursery: trio.Nursery | None = None
        self._agents: set[Live] = set()
        self.starts = trio.Semaphore(self.policy.starts)
        """Held by who starts an agent, until it is ready."""

    # Seeing

    @property
    def changed(self) -> Signal:
        """Notified after every change of anything that is shown."""
        return self.chronicle.changed

    @property
    def active(self) -> str:
        """The session last switched to, "" for none."""
        return self.chronicle.active

    def records(self) -> list[Session]:
        """Return all sessions, oldest first."""
        return [live.record for live in self._live.values()]

    def get(self, id: str) -> Session:
        """Return a session. ENOENT."""
        return self._known(id).record

    def _known(self, id: str) -> Live:
        live = self._live.get(id)
        if live is None:
            raise OSError(ENOENT, f"no such session: {id[:64]!r}")
        return live

    def of_task(self, task: Task) -> Session | None:
        """Return the session as whose user `task` runs, if any."""
        prefix, _, id = task.spec.user.home.partition(".")
        live = self._live.get(id) if prefix == PREFIX else None
        return live.record if live else None

    def turn(self, number: int) -> Turn:
        """Return a turn, under way or over. ENOENT."""
        return self.chronicle.turn(number)

    def turns(self, id: str | None = None, *, before: int | None = None, limit: int = 100) -> "list[Turn]":
        """Return up to `limit` turns below the number `before`, of one session or of all, newest first."""
        return self.chronicle.turns(id, before=before, limit=limit)

    def state(self, id: str) -> dict[str, Any]:
        """Return what a client needs to show a session, its turns that are not over included. ENOENT."""
        record = self.get(id)
        return {
            **record.shown(),
            "active": record.id == self.active,
            "turns": [turn.shown() for turn in self.chronicle.open_turns(id)],
            "conflicts": list(self.workspace.conflicts(id)),
            "seq": self.chronicle.last_seq,
        }

    # Steering

    async def open(self, id: str, **changes: Any) -> Session:
        """Make a session, or take up one that is there, and return it when it can work.

        `changes` are fields of its `Spec`. EINVAL for bad ones; EBUSY for those that a session at work cannot take;
        ETIMEDOUT, or what kept its agent from starting.
        """
        live = self._live.get(session_id(id))
        spec = replace(live.record.spec if live else Spec(), **changes)
        if spec.agent and spec.run:
            raise OSError(EINVAL, "either an agent that lives or a command to run, not both")
        if live is None:
            live = self._make(id, spec)
        elif spec != live.record.spec:
            self._change(live, spec)
        live.become(Event.OPEN)
        await self._until_ready(live)
        return live.record

    def _make(self, id: str, spec: Spec) -> Live:
        if len(self._live) >= MAX_SESSIONS:
            raise OSError(ENOSPC, f"more than {MAX_SESSIONS} sessions")
        if self._nursery is None:
            raise OSError(EAGAIN, "the server is coming up or going down; try again")
        homes, name = self.service.homes, f"{PREFIX}.{id}"
        if homes.exists(name):  # of a server that was killed before it noted the session
            homes.remove(name)
        user = homes.make(name, f"pw-{id}", self.service.journal.next("session"))
        try:
            home.furnish(homes.path(user), user, self.policy.template)
        except OSError:
            homes.remove(name)
            raise
        now = time.time()
        live = Live(self, Session(id=id, state=State.MISSING, error="", spec=spec, user=user, created=now, used=now))
        self._live[id] = live
        with self.chronicle.change():
            self.chronicle.happened(id, "opened", {"user": user.name})
            live.become(Event.OPEN)
        self._nursery.start_soon(live.run)
        return live

    def _change(self, live: Live, spec: Spec) -> None:
        if live.state is State.ACTIVE:
            raise OSError(EBUSY, "the session is at work: change it when its turn is over")
        if live.state in (State.CREATING, State.READY):
            live.become(Event.STOP)
        live.keep(spec=spec)

    async def switch(self, id: str) -> Session:
        """Make a session the active one, and return it when it can work: at once where its agent lives.

        Folders of the two sessions are brought in step meanwhile, unless a turn is at work there.
        EBUSY if it is archived, ETIMEDOUT, or what kept its agent from starting; it is the active one all the same.
        """
        live = self._known(id)
        live.wake()
        before = self.active
        if before != id:
            with self.chronicle.change():
                self.chronicle.active = id
                self.chronicle.happened(id, "switched", {"from": before})
        await self._until_ready(live)
        for other in {before, id} & self._live.keys():
            if self._live[other].state is not State.ACTIVE and self._nursery is not None:
                self._nursery.start_soon(self._live[other].sync_or_tell)
        return live.record

    async def _until_ready(self, live: Live) -> None:
        if live.state in (State.READY, State.ACTIVE):
            return
        await park()
        with trio.move_on_after(self.policy.switch_seconds):
            while live.state is State.CREATING:
                await live.changed.wait()
        match live.state:
            case State.READY | State.ACTIVE | State.IDLE:
                return
            case State.CREATING:
                raise OSError(ETIMEDOUT, f"the session was not ready within {self.policy.switch_seconds:g} s")
            case State.MISSING:
                raise OSError(ENOENT, "the session was removed")
        raise OSError(live.errno, live.record.error or f"the session is {live.state}")

    def prompt(self, id: str, message: str, *, key: str = "") -> Turn:
        """Take a prompt: when this returns it is kept, and will be worked off after those before it.

        A `key` that was given before in this session returns the turn that it made. ENOENT; EBUSY for an archived
        session; E2BIG, EINVAL for no message, ENOSPC.
        """
        live = self._known(id)
        if key and (earlier := self.chronicle.turn_of_key(id, key)):
            return earlier
        if not message.strip() or "\0" in message:
            raise OSError(EINVAL, "no message")
        if len(message.encode("utf-8", "replace")) > MAX_MESSAGE:
            raise OSError(E2BIG, f"a message is at most {MAX_MESSAGE} bytes")
        if live.state is State.ARCHIVED:
            raise OSError(EBUSY, "the session is archived: open it first")
        turn = self.chronicle.add_turn(id, message, key)
        live.keep(used=time.time())
        live.wake()
        return turn

    def cancel(self, number: int, reason: str = "") -> Turn:
        """End a turn as soon as its agent lets go of it. EBUSY where it is over. ENOENT."""
        turn = self.turn(number)
        if turn.state.ended:
            raise OSError(EBUSY, f"the turn is {turn.state}")
        self._known(turn.session).end(turn, TurnState.CANCELLED, reason or "cancelled")
        return self.turn(number)

    def set_timeout(self, id: str, seconds: float | None) -> None:
        """End every further turn of a session after that time; None: never. ENOENT."""
        live = self._known(id)
        live.keep(spec=replace(live.record.spec, timeout=seconds))

    def stop(self, id: str) -> Session:
        """End a session's agent and every turn that is not over. A prompt, a switch or `open` starts it again."""
        return self._end(id, Event.STOP)

    def archive(self, id: str) -> Session:
        """Stop a session, and keep it as it is until it is opened again."""
        return self._end(id, Event.ARCHIVE)

    def _end(self, id: str, event: Event) -> Session:
        live = self._known(id)
        with self.chronicle.change():
            live.become(event)
            live.end_all(TurnState.CANCELLED, "the session was stopped")
        return live.record

    async def remove(self, id: str) -> None:
        """Take a session away with its home and its history. ENOENT."""
        live = self._known(id)
        live.end_all(TurnState.CANCELLED, "the session was removed")
        live.become(Event.REMOVE)
        del self._live[id]
        await park()
        await live.ended.wait()
        with self.chronicle.change():
            self.chronicle.remove(id)
            if self.active == id:
                self.chronicle.active = ""
            self.chronicle.happened(id, "removed")
        self.workspace.forget(id)
        self.service.homes.remove(live.record.user.home)
        await trio.to_thread.run_sync(artifacts.forget, self.artifacts(id))
        await trio.to_thread.run_sync(self.service.homes.sweep, abandon_on_cancel=True)

    async def sync(self, id: str) -> None:
        """Bring a session's work directory and its folder in step now. ENOENT; what the sync cannot do."""
        await self._known(id).sync()

    async def bring_in_step(self, record: Session) -> None:
        """Do one sync of `record`, told as it goes on."""

        def tell(what: str, done: int, total: int) -> None:
            self.chronicle.happened(record.id, "sync", {"what": what, "done": done, "total": total})

        await self.workspace.sync(record, self.service.homes.path(record.user) / home.WORK, tell)

    async def collect(self, record: Session, turn: Turn) -> None:
        """Copy what a turn left in its home's `artifacts` to where no agent can change it."""
        kept = self.artifacts(record.id) / str(turn.id)
        place, since = self.service.homes.path(record.user), self.turn(turn.id).started or turn.created
        count, left = await trio.to_thread.run_sync(partial(artifacts.collect, place, kept, since=since))
        if count or left:
            data = {"count": count, "left_out_from": left} if left else {"count": count}
            self.chronicle.happened(record.id, "artifacts", data, turn=turn.id)

    def artifacts(self, id: str) -> Path:
        """Return the host directory that holds what a session's turns left behind; there may be none."""
        return self._kept / id

    # Running

    def load(self) -> None:
        """Know what the chronicle holds. Call once, when the task service has recovered its tasks."""
        self._live = {record.id: Live(self, record) for record in self.chronicle.sessions()}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the sessions until cancelled or halted. Tasks must be able to start by now."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for live in self._live.values():
                    self._take_up(live)
                    nursery.start_soon(live.run)
                await self._end_strays()
                task_status.started()
                while True:
                    self.reap(time.time())
                    await trio.sleep(SWEEP)
            finally:
                self._nursery = None

    def halt(self) -> None:
        """Look after nothing any more: what the sessions' tasks do from now on, the next server takes up."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _take_up(self, live: Live) -> None:
        """Bring a session of an earlier server in line with what is left: agents that are gone start when needed."""
        record = live.record
        if self.chronicle.open_turns(live.id):
            if record.state is not State.ARCHIVED:
                live.wake()
        elif record.state in LIVELY and not record.spec.run:
            task = self.service.tasks.get(record.task)
            if task is None or not task.state.live:
                live.become(Event.REST)

    async def _end_strays(self) -> None:
        """Remove tasks that an earlier server made for a session and did not come to note."""
        noted = {live.record.task for live in self._live.values()}
        noted |= {self.chronicle.run_of(turn.id) for turn in self.chronicle.open_turns()}
        for task in list(self.service.tasks.values()):
            if task.parent is None and task.id not in noted and task.spec.user.home.startswith(f"{PREFIX}."):
                await self.forget_task(task.id)

    def reap(self, now: float) -> None:
        """Archive and remove sessions that nobody uses, and forget the oldest of what is kept of all."""
        policy = self.policy
        for live in list(self._live.values()):
            unused = now - live.record.used
            if live.state is State.ARCHIVED:
                if policy.remove_seconds and unused > policy.remove_seconds and self._nursery is not None:
                    self._nursery.start_soon(self.remove, live.id)
            elif policy.archive_seconds and unused > policy.archive_seconds and live.state is not State.ACTIVE:
                self.archive(live.id)
        self.chronicle.forget_turns(keep=policy.keep_turns, before=now - policy.keep_turn_seconds)
        self.chronicle.forget_happenings(policy.keep_happenings)

    # What a session's own loop asks for

    def found_agent(self, live: Live) -> Agent | None:
        """Return the agent that an earlier server has started, dead or alive, if its task is known."""
        task = self.service.tasks.get(live.record.task)
        if task is None or task.times.started is None:
            return None
        self._agents.add(live)
        return self._agent(live, task, found=True)

    def _agent(self, live: Live, task: Task, *, found: bool = False) -> Agent:
        return Agent(self.chronicle, live.id, task, self.service.spool(task, 1), live.changed, found=found)

    async def start_agent(self, live: Live) -> Agent:
        """Start a session's agent as its user, in a namespace of its own. OSError where it cannot be started.

        Waits for room first: where too many agents live, the one that rested longest has to end.
        """
        while len(self._agents) >= self.policy.max_agents:
            resting = [other for other in self._agents if other.resting_since]
            if resting:
                min(resting, key=lambda other: other.resting_since).rest()
            await self.left.wait()
        self._agents.add(live)
        record, homes = live.record, self.service.homes
        if lost := home.tidy(homes.path(record.user), record.user):
            self.chronicle.happened(live.id, "mended", {"bytes": lost})
        inside, spec = homes.inside(record.user), record.spec
        argv = [*(spec.agent or self.policy.agent), "--mode", "rpc", "--session", f"{inside}/{home.SESSION_FILE}"]
        argv += ["--model", spec.model] if spec.model else []
        argv += ["--thinking", spec.thinking] if spec.thinking else []
        task = await self._new_task(live, tuple(argv))
        with self.chronicle.change():
            live.keep(task=task.id)
            self.chronicle.set_place(live.id, 0)
            self.chronicle.happened(live.id, "starting", {"task": str(task.id)})
        await self.service.start(task)
        return self._agent(live, task)

    async def end_agent(self, live: Live) -> None:
        """End a session's agent, if it has one, and give its place to another."""
        await self.forget_task(live.record.task)
        live.keep(task=0)
        self._agents.discard(live)
        self.left.notify()

    async def new_run(self, live: Live, turn: Turn) -> Task:
        """Return a task, not started, that is to work off one turn of a session with a plain command."""
        task = await self._new_task(live, live.record.spec.run)
        fd = message_file(turn.message)
        task.fds.set(STDIN, Held(fd, "prompt"))
        self.chronicle.begin_turn(turn, task=task.id)
        return task

    def found_run(self, turn: Turn) -> Task | None:
        """Return the task of a run that an earlier server has started, if it is known."""
        task = self.service.tasks.get(self.chronicle.run_of(turn.id))
        return task if task is not None and task.times.started is not None else None

    async def _new_task(self, live: Live, argv: tuple[str, ...]) -> Task:
        spec, user = live.record.spec, live.record.user
        task = self.service.create(None, user=user)
        inside = self.service.homes.inside(user)
        self.service.configure(
            task,
            "session",
            type=spec.type,
            argv=argv,
            cwd=f"{inside}/{home.WORK}",
            env=Map({**self.policy.env, **spec.env}),
            net=spec.net or self.policy.net,
            labels=Map(session=live.id),
        )
        binds = [*self.policy.binds, *spec.binds]
        if spec.live and spec.folder:
            flag = "-i " if home.belongs_to_another(Path(spec.folder), user) else ""
            binds.append(f"bind {flag}{quote('#host' + spec.folder)} {quote(f'{inside}/{home.WORK}')}")
        if binds:
            await run_script("\n".join(binds), task.namespace, writer=self._writer(), who=ROOT)
            self.service.touched(task, "namespace", None, {"ns": dump(task.namespace.table)})
        return task

    async def end_task(self, task: Task) -> None:
        """End a task, kindly first, and return when it has ended."""
        while task.state is TaskState.STARTING:
            await task.signal.wait()
        for number, seconds in ((signal.SIGTERM, TERM_GRACE), (signal.SIGKILL, KILL_GRACE)):
            if not task.ended:
                with suppress(OSError):
                    await self.service.kill(task, number)
            with trio.move_on_after(seconds):
                while task.state.live:
                    await task.signal.wait()

    async def forget_task(self, number: int) -> None:
        """Remove a task of a session's, if there still is one, and end it before."""
        task = self.service.tasks.get(number)
        if task is not None:
            await self.end_task(task)
            await self.service.remove(task)

    def last_words(self, task: Task) -> str:
        """Return the end of what a task wrote on its stderr."""
        spool = self.service.spool(task, 2)
        spool.measure()
        try:
            with spool.path.open("rb") as file:
                file.seek(max(spool.start, spool.end - WORDS))
                return file.read(WORDS).decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return ""
