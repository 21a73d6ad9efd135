"""An agent that lives: one task that speaks pi's RPC on its standard streams, and what was taken in of its output.

What it says is taken in line by line, each batch in one transaction with how far it reaches, so that a server that
was killed goes on exactly there: the agent and its streams outlive it.
"""

import math
import os
import secrets
from errno import EPIPE

import trio

from tasks.fds import Stdin
from tasks.sessions.chronicle import Chronicle
from tasks.sessions.model import Turn
from tasks.sessions.protocol import PROMPT, Lines, Message, Progress, Seen, decode, encode, fold, joined
from tasks.sessions.states import TurnState
from tasks.spool import Spool
from tasks.task import Task
from vfs.node import ROOT
from vfs.waiting import Signal

CHUNK = 1 << 18
SECOND_LOOK = 1.0
"""Seconds after which an agent that says nothing is asked again; a prompt it has not answered never arrived."""
TURNING_POINTS = frozenset({"response", "agent_end", "agent_settled", "auto_retry_end", "compaction_end"})
"""Messages after which a turn may be over."""


class Agent:
    """The agent that runs as `task` for `session`. `read` must be running while anything is asked of it.

    `news` is notified when it has said something, and when it is gone. `found`: it was started by an earlier server,
    whose last message to it may have been cut short.
    """

    def __init__(
        self, chronicle: Chronicle, session: str, task: Task, spool: Spool, news: Signal, *, found: bool = False
    ) -> None:
        self.task = task
        self.gone = False
        self.news = news
        self._chronicle = chronicle
        self._session = session
        self._spool = spool
        self._torn = found
        self._name = secrets.token_hex(4)
        self._asked = 0
        self._answers: dict[str, Message] = {}
        self._turn = 0
        self.progress = Progress()
        """How far the turn is that was taken up last."""
        self._due = False

    # Its output

    async def read(self) -> None:
        """Take in what the agent says until it says nothing more."""
        spool = self._spool
        lines = Lines(self._chronicle.place(self._session))
        file = os.open(spool.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while True:
                while lines.position >= spool.end and not spool.eof:
                    await spool.changed.wait()
                if lines.position < spool.start:
                    lines.skip_to(spool.start)
                    self._chronicle.happened(self._session, "note", {"text": "some output of the agent was lost"})
                data = os.pread(file, CHUNK, lines.position)[: max(0, spool.end - lines.position)]
                if not data:
                    self.gone = True
                    self.news.notify()
                    return
                self._take(lines, data)
                await trio.lowlevel.checkpoint()
        finally:
            os.close(file)

    def _take(self, lines: Lines, data: bytes) -> None:
        seen: list[Seen] = []
        for line in lines.feed(data):
            if message := decode(line):
                seen += self._hear(message)
        with self._chronicle.change():
            for kind, detail in joined(seen):
                self._chronicle.happened(self._session, kind, detail, turn=self._turn)
            if self._turn:
                self._chronicle.set_progress(self._turn, self.progress.kept())
            self._chronicle.set_place(self._session, lines.taken)
        self.news.notify()

    def _hear(self, message: Message) -> list[Seen]:
        if message.get("type") == "response":
            name = message.get("id")
            if message.get("command") == "prompt" and name != f"{PROMPT}{self._turn}":
                return []  # of a turn that is over
            if name in self._answers:
                self._answers[name] = message
                return []
        if not self._turn:
            return []
        self._due = self._due or message.get("type") in TURNING_POINTS
        return fold(self.progress, message)

    # What it is asked

    async def send(self, message: Message) -> None:
        """Write a message into its stdin. EPIPE once it is closed."""
        stdin = None if self.task.ended else self.task.fds.stdin()
        if not isinstance(stdin, Stdin):
            raise OSError(EPIPE, "the agent's stdin is closed")
        line = b"\n" * self._torn + encode(message)
        writer = await stdin.pipe.writer.open(os.O_WRONLY, ROOT)
        self._torn = True
        try:
            self._torn = await writer.write(line, 0) < len(line)
        finally:
            writer.close()

    async def ask(self, command: str) -> Message:
        """Return the agent's answer to a command without arguments. EPIPE when it dies before."""
        self._asked += 1
        name = f"{self._name}-{self._asked}"
        self._answers[name] = {}
        try:
            await self.send({"id": name, "type": command})
            while not self._answers[name]:
                await self._something()
            return self._answers[name]
        finally:
            del self._answers[name]

    async def _something(self) -> None:
        if self.gone:
            raise OSError(EPIPE, "the agent has died")
        await self.news.wait()

    def take_up(self, turn: Turn) -> None:
        """What the agent says is about `turn` from now on, which it may have begun under an earlier server."""
        self._turn = turn.id
        self.progress = Progress.from_kept(self._chronicle.progress(turn.id))

    async def work(self, turn: Turn) -> Progress:
        """Have the agent work off `turn`, or go on with it; return how it went. EPIPE where it dies."""
        self.take_up(turn)
        progress = self.progress
        if turn.state is TurnState.WORKING and not progress.answered:
            await self._find_again()
        if not progress.answered:
            await self.send({"id": f"{PROMPT}{turn.id}", "type": "prompt", "message": turn.message})
        while not progress.answered:
            await self._something()
        while progress.accepted and not await self._settled():
            with trio.move_on_after(SECOND_LOOK if progress.finished and not progress.busy else math.inf):
                while not self._due:
                    await self._something()
        self._turn = 0
        return progress

    async def until_gone(self) -> None:
        """Return once everything that a dead agent had said is taken in."""
        while not self.gone:
            await self.news.wait()

    async def _find_again(self) -> None:
        """Wait until the prompt of an earlier server is answered, or has surely never arrived."""
        await self.ask("get_state")  # what arrived before this was read before this
        with trio.move_on_after(SECOND_LOOK):
            while not self.progress.answered:
                await self._something()

    async def _settled(self) -> bool:
        """Ask whether the agent has come to rest."""
        self._due = False
        state = (await self.ask("get_state")).get("data")
        if not isinstance(state, dict) or self.progress.busy:
            return False
        return not state.get("isStreaming") and not state.get("isCompacting")
