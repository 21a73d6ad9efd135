"""One session while the server runs: its state, and the loop that gives it an agent and the agent its turns.

Which turns wait stands in the chronicle, and nowhere else; the loop is only woken. The server may be killed between
any two lines: what it had done is found again by the next one's loop.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from errno import EIO, ETIMEDOUT
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import trio

from tasks.sessions.agent import Agent
from tasks.sessions.model import Session, Turn
from tasks.sessions.protocol import Progress
from tasks.sessions.runs import Run
from tasks.sessions.states import INTERRUPTED, Event, State, TurnState, next_state
from tasks.task import Task
from vfs.errors import errno_of
from vfs.waiting import Signal

if TYPE_CHECKING:
    from tasks.sessions.service import Sessions

log = structlog.get_logger("sessions")

MAX_BACKOFF = 30.0
LIVELY = (State.CREATING, State.READY, State.ACTIVE)
Ending = tuple[TurnState, str]


class Live:
    """A session of `all`. What happens to it is decided here; `run` must be running for it to work."""

    def __init__(self, all: "Sessions", record: Session) -> None:
        self.record = record
        self.changed = Signal()
        self.agent: Agent | None = None
        self.resting_since = 0.0
        """Since when its agent has had nothing to do (monotonic seconds); 0 while it has."""
        self._all = all
        self._life: trio.CancelScope | None = None
        self._running: dict[int, trio.Event] = {}
        self._endings: dict[int, Ending] = {}
        self._runs: dict[int, Task] = {}
        self._syncing = trio.Lock()
        self._rest = False
        self._deaths = 0
        self._came_up = False
        self.errno = EIO
        """What kind of error made it errored."""
        self.ended = trio.Event()
        """Set once nothing of a removed session runs any more."""

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def state(self) -> State:
        return self.record.state

    # States

    def become(self, event: Event, error: str = "") -> None:
        """Take the step that the table has for `event`, and journal it. EBUSY, and no change, where it has none."""
        state = next_state(self.state, event)
        if state is self.state:
            return
        self.keep(state=state, error=error, used=time.time())
        if state not in LIVELY and self._life is not None:
            self._life.cancel()
        self.changed.notify()

    def keep(self, **fields: Any) -> None:
        """Change the record, in the chronicle first."""
        record = replace(self.record, **fields)
        with self._all.chronicle.change():
            self._all.chronicle.put(record)
            if record.state is not self.record.state:
                data = {"state": record.state, "was": self.record.state, "error": record.error}
                self._all.chronicle.happened(self.id, "state", data)
        self.record = record

    def wake(self) -> None:
        """Have what waits done, by an agent that is started if need be."""
        self.become(Event.WAKE)
        self.changed.notify()

    def rest(self) -> None:
        """Let the agent end as soon as it has nothing to do."""
        self._rest = True
        self.changed.notify()

    # Turns

    def _next(self) -> Turn | None:
        """Return the turn that comes next: one that was under way, else the first that waits."""
        turns = self._all.chronicle.open_turns(self.id)
        return next((turn for turn in turns if turn.id not in self._running), None)

    def end(self, turn: Turn, state: TurnState, reason: str) -> None:
        """End a turn: at once if it waits, else as soon as its agent has let go of it."""
        if turn.state is TurnState.QUEUED and turn.id not in self._running:
            self._all.chronicle.end_turn(turn.id, state, reason)
            return
        self._endings.setdefault(turn.id, (state, reason))
        if turn.id in self._running:
            self._running[turn.id].set()

    def _look_after(self, turn: Turn) -> trio.Event:
        """Count `turn` as looked after; return what is set when it is to end."""
        stop = self._running[turn.id] = trio.Event()
        if turn.id in self._endings:
            stop.set()
        return stop

    def _done(self, turn: Turn) -> None:
        self._running.pop(turn.id, None)
        self._endings.pop(turn.id, None)

    def end_all(self, state: TurnState, reason: str) -> None:
        """End every turn that is not over, whatever its agent thinks of it."""
        for turn in self._all.chronicle.open_turns(self.id):
            self._all.chronicle.end_turn(turn.id, state, reason)

    async def sync(self) -> None:
        """Bring the work directory and the session's folder in step."""
        if self.record.spec.folder and not self.record.spec.live:
            async with self._syncing:
                await self._all.bring_in_step(self.record)

    async def sync_or_tell(self) -> None:
        """Do the same where nobody waits for it: what goes wrong is told as a happening."""
        try:
            await self.sync()
        except OSError as error:
            self._all.chronicle.happened(self.id, "sync", {"error": error.strerror or str(error)})

    async def _keep_work(self, turn: Turn) -> None:
        """Keep what a turn has made, before it counts as over; where that cannot be done, say so."""
        await self.sync_or_tell()
        await self._all.collect(self.record, turn)

    # The loop

    async def run(self) -> None:
        """Look after the session for as long as it exists."""
        while self.state is not State.MISSING:
            if self.state in LIVELY:
                with trio.CancelScope() as self._life:
                    await self._live()
                self._life = None
                await self._let_go()
            else:
                await self.changed.wait()
        self.ended.set()

    async def _live(self) -> None:
        try:
            await (self._run_commands() if self.record.spec.run else self._keep_agent())
        except Exception as error:  # the boundary: one session's trouble ends no other
            cause: BaseException = error
            while isinstance(cause, BaseExceptionGroup):
                cause = cause.exceptions[0]
            self._fail(str(cause) or type(cause).__name__, errno_of(cause, f"session {self.id}"))

    def _fail(self, why: str, errno: int = EIO) -> None:
        self.errno = errno
        self.end_all(TurnState.FAILED, why)
        if self.state in (State.READY, State.ACTIVE):
            self.become(Event.DIE)
        if self.state is State.CREATING:
            self.become(Event.FAIL, why)

    async def _let_go(self) -> None:
        """After a life: end what nobody wants any more."""
        runs = list(self._runs.values())
        self.agent = None
        self._runs.clear()
        self._running.clear()
        self._endings.clear()
        for task in runs:
            await self._all.forget_task(task.id)
        await self._all.end_agent(self)

    # With an agent that lives

    async def _keep_agent(self) -> None:
        """Start the agent, or find it again, and give it turns; start it anew when it dies."""
        self._deaths = 0
        self._came_up = False
        while True:
            try:
                async with AsyncExitStack() as start:
                    agent = self._all.found_agent(self) if not self._deaths else None
                    if agent is None:
                        self._end_orphans()
                        await start.enter_async_context(self._all.starts)
                        agent = await self._all.start_agent(self)
                    self.agent = agent
                    rested = await self._serve(agent, start)
            except OSError as error:
                self._fail(error.strerror or str(error), error.errno or EIO)
                return
            if rested:
                self.become(Event.REST)
                return
            why = await self._bury(agent)
            if self._deaths > (self._all.policy.retries if self._came_up else 1):
                self._fail(f"the agent died {self._deaths} times in a row: {why}")
                return
            if self._deaths > 1:
                await trio.sleep(min(MAX_BACKOFF, self._all.policy.backoff_seconds * 2 ** (self._deaths - 2)))

    async def _bury(self, agent: Agent) -> str:
        """The agent has died: say so, end what it was at, and return why."""
        await self._all.end_task(agent.task)
        words, exit = self._all.last_words(agent.task), agent.task.exit
        why = f"exit code {exit.code}" if exit and exit.reason == "exited" else agent.task.reason
        self._all.chronicle.happened(self.id, "died", {"task": str(agent.task.id), "reason": why, "stderr": words})
        self._end_orphans()
        self._deaths += 1
        self.agent = None
        await self._all.end_agent(self)
        if self.state is not State.CREATING:
            self.become(Event.DIE, f"the agent died: {why}")
        last = words.rpartition("\n")[2]
        return f"{why}: {last}" if last else why

    def _end_orphans(self) -> None:
        """End the turns of an agent that is gone: as it said, if it had come to an end with them."""
        for turn in self._all.chronicle.open_turns(self.id):
            if turn.state is TurnState.WORKING:
                progress = Progress.from_kept(self._all.chronicle.progress(turn.id))
                whole = progress.finished and not progress.busy
                came_to = outcome(progress) if whole else (TurnState.FAILED, INTERRUPTED)
                state, reason = self._endings.pop(turn.id, came_to)
                self._all.chronicle.end_turn(turn.id, state, reason, usage=progress.usage)

    async def _serve(self, agent: Agent, start: AsyncExitStack) -> bool:
        """Give turns to a living agent until it should rest (True) or has died (False); `start` ends once it is ready.

        ETIMEDOUT where it never is.
        """
        rested = False
        async with aside(agent.read):
            ready = await self._is_ready(agent)
            await start.aclose()
            while ready and not agent.gone and not rested:
                if (turn := self._next()) is not None:
                    await self._work_off(agent, turn)
                else:
                    rested = await self._until_rest(agent)
        if not ready and not agent.gone:
            words = self._all.last_words(agent.task)
            seconds = self._all.policy.ready_seconds
            raise OSError(ETIMEDOUT, f"the agent was not ready within {seconds:g} s{words and ': ' + words}")
        return rested

    async def _is_ready(self, agent: Agent) -> bool:
        """Wait for the agent's first answer; tell whether it came in time."""
        turn = self._next()
        if turn is not None and turn.state is TurnState.WORKING:
            agent.take_up(turn)
        with trio.move_on_after(self._all.policy.ready_seconds):
            try:
                await agent.ask("get_state")
            except BrokenPipeError:
                await self._see_off(agent)
                return False
            self._came_up = True
            if self.state is State.CREATING:
                self.become(Event.UP)
            return True
        return False

    async def _see_off(self, agent: Agent) -> None:
        """An agent that does not listen any more is over, and so are its processes; hear it out."""
        await self._all.end_task(agent.task)
        await agent.until_gone()

    async def _until_rest(self, agent: Agent) -> bool:
        """Wait for something to do; tell whether the agent should end instead."""
        self.resting_since = time.monotonic()
        self._all.left.notify()
        with trio.move_on_after(self._all.policy.idle_seconds) as limit:
            while not agent.gone and not self._rest and self._next() is None:
                await self.changed.wait()
        self.resting_since = 0.0
        rest, self._rest = self._rest or limit.cancelled_caught, False
        return rest and not agent.gone and self._next() is None

    async def _work_off(self, agent: Agent, turn: Turn) -> None:
        """Work off one turn, or go on with one that was under way. Where the agent dies it stays under way."""
        chronicle = self._all.chronicle
        stop = self._look_after(turn)
        try:
            if turn.state is TurnState.QUEUED:
                await self.sync()
            progress = Progress()
            if not stop.is_set() or turn.state is TurnState.WORKING:
                if turn.state is TurnState.QUEUED:
                    chronicle.begin_turn(turn)
                self.become(Event.BEGIN)
                async with aside(partial(self._stop_when_asked, agent, turn, stop)):
                    try:
                        progress = await agent.work(turn)
                    except BrokenPipeError:
                        await self._see_off(agent)
                        progress = agent.progress
                if agent.gone and turn.id not in self._endings:
                    return
                await self._keep_work(turn)
            state, reason = self._endings.get(turn.id) or outcome(progress)
            chronicle.end_turn(turn.id, state, reason, usage=progress.usage)
            if state is TurnState.COMPLETED:
                self._deaths = 0
        except OSError as error:
            chronicle.end_turn(turn.id, TurnState.FAILED, error.strerror or str(error))
        finally:
            self._done(turn)
        if not agent.gone and self.state is State.ACTIVE:
            self.become(Event.SETTLE)

    async def _stop_when_asked(self, agent: Agent, turn: Turn, stop: trio.Event) -> None:
        """End the agent's turn when it is cancelled or has taken too long; the agent too, if it does not let go."""
        await self._until_stop(turn, stop)
        with trio.move_on_after(self._all.policy.abort_seconds):
            with suppress(OSError):
                await agent.send({"type": "abort"})
            await trio.sleep_forever()
        await self._all.end_task(agent.task)

    async def _until_stop(self, turn: Turn, stop: trio.Event) -> None:
        """Return when a turn is to end: it was cancelled, or it takes too long."""
        timeout = self.record.spec.timeout
        if timeout is None:
            await stop.wait()
            return
        with trio.move_on_after(timeout):
            await stop.wait()
        self._endings.setdefault(turn.id, (TurnState.FAILED, f"timed out after {timeout:g} s"))

    # With a plain command

    async def _run_commands(self) -> None:
        """Run the command for each prompt, as many at a time as the session allows."""
        if self.state is State.CREATING:
            self.become(Event.UP)
        async with trio.open_nursery() as nursery:
            while True:
                turn = self._next()
                if turn is None or len(self._running) >= self.record.spec.parallel:
                    await self.changed.wait()
                else:
                    nursery.start_soon(self._run_command, turn, self._look_after(turn))

    async def _run_command(self, turn: Turn, stop: trio.Event) -> None:
        chronicle = self._all.chronicle
        state, reason, code = TurnState.FAILED, INTERRUPTED, None
        task = self._all.found_run(turn)
        try:
            if turn.state is TurnState.QUEUED:
                await self.sync()
                task = None if stop.is_set() else await self._all.new_run(self, turn)
            if task is not None:
                self._runs[turn.id] = task
                self.become(Event.BEGIN)
                async with aside(partial(self._kill_when_asked, task, turn, stop)):
                    state, reason, code = await Run(chronicle, turn, task, self._all.service).finish()
                await self._keep_work(turn)
            state, reason = self._endings.get(turn.id, (state, reason))
        except OSError as error:
            state, reason = TurnState.FAILED, error.strerror or str(error)
        with chronicle.change():
            if task is not None:
                chronicle.happened(self.id, "log", {"text": self._all.last_words(task)}, turn=turn.id)
            chronicle.end_turn(turn.id, state, reason, code=code)
        self._done(turn)
        if self._runs.pop(turn.id, None) is not None and task is not None:
            await self._all.forget_task(task.id)
        if not self._running and self.state is State.ACTIVE:
            self.become(Event.SETTLE)
        self.changed.notify()

    async def _kill_when_asked(self, task: Task, turn: Turn, stop: trio.Event) -> None:
        await self._until_stop(turn, stop)
        await self._all.end_task(task)


@asynccontextmanager
async def aside(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Have `work` done beside the block, for as long as it takes; the block's own error comes out as it is."""
    failure: OSError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        try:
            yield
        except OSError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def outcome(progress: Progress) -> Ending:
    """Return how a turn ended, as its agent told."""
    if progress.refused:
        return TurnState.FAILED, progress.refused
    if progress.stop == "error":
        return TurnState.FAILED, progress.error or "the model failed"
    if progress.stop == "aborted":
        return TurnState.CANCELLED, "aborted"
    return TurnState.COMPLETED, ""
