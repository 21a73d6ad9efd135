"""vfs.inline: a request runs in its caller until it waits, then goes on in a task of its own."""

import pytest
import trio
import trio.testing

from vfs.inline import PENDING, Lane, park, resume, start
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


def test_a_lane_starts_one_after_another_and_outlives_errors():
    async def fails():
        raise OSError(2, "gone")

    lane = Lane()
    assert lane.start(immediate(1)) == 1
    with pytest.raises(OSError, match="gone"):
        lane.start(fails())
    assert lane.start(immediate(2)) == 2


def test_what_waits_leaves_its_lane_and_is_finished_in_a_task():
    async def main():
        signals = [Signal(), Signal()]

        async def waits(signal):
            await signal.wait()
            await signal.wait()
            return signal

        lane = Lane()
        parked = []
        for signal in signals:
            assert lane.start(waits(signal)) is PENDING
            parked.append(lane.waiting)
            assert lane.start(immediate(3)) == 3
        got = []

        async def finish(call):
            got.append(await resume(call))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish, parked[1])
            await trio.testing.wait_all_tasks_blocked()
            signals[1].notify()
        assert got == [signals[1]]
        assert lane.start(immediate(4)) == 4
        parked[0].close()
        assert lane.start(immediate(5)) == 5

    trio.run(main)


def test_closing_what_waits_runs_its_cleanup():
    ended = []

    async def waits():
        try:
            await park()
        finally:
            ended.append(True)

    lane = Lane()
    assert lane.start(waits()) is PENDING
    lane.waiting.close()
    assert ended == [True]


def test_a_lane_refuses_a_wait_without_park():
    async def main():
        async def forgetful():
            await trio.lowlevel.checkpoint()

        lane = Lane()
        with pytest.raises(RuntimeError, match="park"):
            lane.start(forgetful())
        assert lane.start(immediate(6)) == 6

    trio.run(main)
