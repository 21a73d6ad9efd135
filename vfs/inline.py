"""Run a coroutine inside its caller until it first has to wait.

A task per request costs more than most requests (see docs/design.md), yet a
request that waits must not hold up the others. So every operation of a tree
is a coroutine, and a server starts it with `start`: it runs to its end right
there, or stops at the first `await park()`. Only then does the server give it
a task of its own, with a cancel scope, which finishes it by `resume`.

The rule for authors: nothing of trio (events, scopes, nurseries, sleeps) may
be touched before `await park()`. `vfs.waiting.Signal.wait` parks by itself.
Time passes in `park()`: whatever was checked before it must be checked again.
"""

import types
from collections.abc import Coroutine, Generator
from typing import Any, Final, TypeVar

T = TypeVar("T")


class _Pending:
    def __repr__(self) -> str:
        return "PENDING"


PENDING: Final = _Pending()
"""What `start` returns for a coroutine that has to wait."""

_PARK = object()
_inline = False


@types.coroutine
def _yield_park() -> Generator[object, None, None]:
    yield _PARK


async def park() -> bool:
    """Leave the inline path before a wait; returns whether time may have passed (False in an ordinary task)."""
    if not _inline:
        return False
    await _yield_park()
    return True


def start(coro: Coroutine[Any, Any, T]) -> T | _Pending:
    """Run `coro` as far as it gets without waiting.

    Returns its result, raises its exception, or returns PENDING: then it must
    be finished by `await resume(coro)` in a trio task, or ended by `coro.close()`.
    Not reentrant: a coroutine that is being started awaits others, it does not start them.
    """
    global _inline
    _inline = True
    try:
        trap = coro.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        _inline = False
    if trap is not _PARK:
        coro.close()
        raise RuntimeError("a coroutine waited without park()")
    return PENDING


class Lane:
    """Starts coroutines as `start` does, each for half as much: none has to end in a StopIteration.

    One generator runs them, one after another. One that waits takes it along and the next gets a new one.
    """

    __slots__ = ("_calls", "_turn", "waiting")

    def __init__(self) -> None:
        self._turn = 0
        self._calls = self._open()
        self.waiting: Generator[Any, Any, Any]
        """After PENDING: what is to be finished by `resume`, or ended by `close()`, in place of the coroutine."""

    def _open(self) -> Any:
        calls: Any = self._run(self._turn)
        next(calls)
        return calls

    @types.coroutine
    def _run(self, turn: int) -> Any:
        result = None
        while turn == self._turn:
            result = yield from (yield result)
        return result

    def start(self, coro: Coroutine[Any, Any, T]) -> T | _Pending:
        """Run `coro` as far as it gets without waiting; see `start` and `waiting`."""
        global _inline
        calls = self._calls
        _inline = True
        try:
            result: T = calls.send(coro)
        except BaseException:
            self._calls = self._open()  # an error ends the generator that it comes through
            raise
        finally:
            _inline = False
        if calls.gi_yieldfrom is None:
            return result
        self._turn += 1
        self._calls = self._open()
        if result is not _PARK:
            calls.close()
            raise RuntimeError("a coroutine waited without park()")
        self.waiting = calls
        return PENDING


@types.coroutine
def resume(coro: Coroutine[Any, Any, T] | Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """Finish a coroutine for which `start` returned PENDING, as if awaited here."""
    result: T = yield from coro  # type: ignore[misc]
    return result
