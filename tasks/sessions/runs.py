"""One run of a plain command for one prompt: stdin is the prompt, stdout the answer, the exit code the result."""

import codecs
import os

import trio

from tasks.recovery import LOST
from tasks.service import TaskService
from tasks.sessions.chronicle import Chronicle
from tasks.sessions.model import Turn
from tasks.sessions.protocol import MAX_OUTPUT
from tasks.sessions.states import INTERRUPTED, TurnState
from tasks.task import Task
from tasks.transitions import State

CHUNK = 1 << 16


def message_file(message: str) -> int:
    """Return a descriptor from which a command reads its prompt; it is the caller's. No pipe: nobody has to wait."""
    fd = os.memfd_create("prompt", os.MFD_CLOEXEC)
    data = memoryview(message.encode("utf-8", "surrogateescape"))
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class Run:
    """The run of `turn` as `task`, from wherever it stands."""

    def __init__(self, chronicle: Chronicle, turn: Turn, task: Task, service: TaskService) -> None:
        self._chronicle = chronicle
        self._turn = turn
        self._task = task
        self._service = service

    async def finish(self) -> tuple[TurnState, str, int | None]:
        """Start the task if need be, take in its output and wait for its end; return the turn's, and the exit code."""
        task = self._task
        if task.state is State.ALLOCATED:
            await self._service.start(task)
        await self._take_output()
        while not task.ended:
            await task.signal.wait()
        assert task.exit is not None
        if task.reason == LOST:
            return TurnState.FAILED, INTERRUPTED, None
        if task.exit.code == 0:
            return TurnState.COMPLETED, "", 0
        exited = task.reason in ("", "exited")
        return TurnState.FAILED, f"exit code {task.exit.code}" if exited else task.reason, task.exit.code

    async def _take_output(self) -> None:
        """Journal the answer as it comes, in step with how far it is taken in."""
        spool = self._service.spool(self._task, 1)
        place = self._chronicle.progress(self._turn.id).get("place", 0)
        written = len(self._chronicle.output(self._turn.id))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        file = os.open(spool.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while written < MAX_OUTPUT:
                while place >= spool.end and not spool.eof:
                    await spool.changed.wait()
                place = max(place, spool.start)
                data = os.pread(file, min(CHUNK, spool.end - place), place)
                text = decoder.decode(data, final=not data)[: MAX_OUTPUT - written]
                place += len(data)
                written += len(text)
                with self._chronicle.change():
                    if text:
                        self._chronicle.happened(self._turn.session, "output", {"text": text}, turn=self._turn.id)
                    kept = {"place": place - len(decoder.getstate()[0])}
                    self._chronicle.set_progress(self._turn.id, kept)
                if not data:
                    return
                await trio.lowlevel.checkpoint()
        finally:
            os.close(file)
