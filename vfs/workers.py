"""Threads for the system calls that may block: cold reads, large writes, fsync.

`trio.to_thread` starts each call anew and wakes the loop once per call. Here a few threads stay, and one wake-up
delivers every result that has come in since the last (measured: 4 against 61 us a call; see docs/design.md).
"""

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

import outcome
import trio

T = TypeVar("T")
THREADS = 4


class _Results:
    """What finished for one trio run."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._done: deque[tuple[trio.lowlevel.Task, outcome.Outcome[Any]]] = deque()
        self._waking = False

    def put(self, task: trio.lowlevel.Task, result: outcome.Outcome[Any]) -> None:
        """Deliver a result; called in a worker thread."""
        self._done.append((task, result))
        if not self._waking:
            self._waking = True
            try:
                self._token.run_sync_soon(self._deliver)
            except trio.RunFinishedError:
                self._done.clear()

    def _deliver(self) -> None:
        self._waking = False  # before the queue is emptied: what comes later wakes again
        while self._done:
            trio.lowlevel.reschedule(*self._done.popleft())


_Job = tuple[Callable[[], Any], trio.lowlevel.Task, _Results]
_jobs: SimpleQueue[_Job] = SimpleQueue()
_results: trio.lowlevel.RunVar[_Results] = trio.lowlevel.RunVar("vfs.workers")
_threads: list[threading.Thread] = []


def _work() -> None:
    while True:
        call, task, results = _jobs.get()
        results.put(task, outcome.capture(call))
        del call, task, results


async def in_worker(call: Callable[[], T]) -> T:
    """Return what `call()` returns or raises, run in a thread. Park first.

    A system call can't be aborted: cancellation has its effect only afterwards.
    """
    try:
        results = _results.get()
    except LookupError:
        results = _Results()
        _results.set(results)
    if len(_threads) < THREADS:
        _threads.append(threading.Thread(target=_work, name=f"vfs-worker-{len(_threads)}", daemon=True))
        _threads[-1].start()
    _jobs.put((call, trio.lowlevel.current_task(), results))
    value: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
    return value
