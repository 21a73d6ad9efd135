"""vfs.inline: a request runs in its caller until it waits, then goes on in a task of its own."""

import pytest
import trio
import trio.testing

from vfs.inline import PENDING, park, resume, start
from vfs.waiting import Signal


async def immediate(value):
    return value


def test_a_coroutine_that_does_not_wait_ends_in_start():
    assert start(immediate(7)) == 7


def test_an_error_comes_out_of_start():
    async def fails():
        raise OSError(2, "gone")

    with pytest.raises(OSError, match="gone"):
        start(fails())


def test_a_waiting_coroutine_is_finished_in_a_task_and_can_be_cancelled_there():
    async def main():
        signal = Signal()
        ready = False

        async def waits():
            while not ready:
                await signal.wait()
            return "done"

        coro = waits()
        assert start(coro) is PENDING
        got = []

        async def finish(work):
            got.append(await resume(work))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish, coro)
            await trio.testing.wait_all_tasks_blocked()
            ready = True
            signal.notify()
        assert got == ["done"]

        ready = False
        coro = waits()
        assert start(coro) is PENDING
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(finish, coro)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        assert got == ["done"]

    trio.run(main)


def test_a_coroutine_that_waits_without_park_is_refused():
    async def main():
        async def forgetful():
            await trio.lowlevel.checkpoint()

        with pytest.raises(RuntimeError, match="park"):
            start(forgetful())

    trio.run(main)


def test_park_does_nothing_in_an_ordinary_task():
    async def main():
        assert await park() is False

    trio.run(main)


def test_watchers_are_called_once():
    calls = []
    signal = Signal()
    signal.watch(lambda: calls.append(1))
    signal.notify()
    signal.notify()
    assert calls == [1]
