"""Sessions with a plain command: one run for each prompt, in order or side by side, journalled from first to last."""

import os
from errno import EBUSY, EINVAL, ENOENT

import pytest
from sessions_node import run

from tasks.sessions.states import State, TurnState


def refused(errno, function, *words):
    with pytest.raises(OSError) as info:
        function(*words)
    assert info.value.errno == errno, info.value


def test_a_prompt_is_run_and_its_answer_kept(tmp_path):
    async def test(node):
        session = await node.sessions.open("a", run=("/bin/cat",))
        assert session.state is State.READY
        turn = node.sessions.prompt("a", "hello")
        assert turn.state is TurnState.QUEUED
        task = await node.started(1)
        await node.until(lambda: node.sessions.get("a").state is State.ACTIVE)
        node.driver.write(task, 1, "hällo".encode()[:2])
        node.driver.write(task, 1, "hällo".encode()[2:])
        await node.until(lambda: node.sessions.turn(turn.id).output == "hällo")
        assert node.sessions.turn(turn.id).state is TurnState.WORKING
        node.driver.finish(task, 0)
        done = await node.ended(turn)
        assert (done.state, done.code, done.output) == (TurnState.COMPLETED, 0, "hällo")
        await node.until(lambda: node.sessions.get("a").state is State.READY)

    run(test, tmp_path)


def test_a_run_that_fails_says_with_what_code(tmp_path):
    async def test(node):
        await node.sessions.open("a", run=("/bin/false",))
        turn = node.sessions.prompt("a", "hello")
        node.driver.finish(await node.started(1), 3)
        done = await node.ended(turn)
        assert (done.state, done.code, done.reason) == (TurnState.FAILED, 3, "exit code 3")

    run(test, tmp_path)


def test_prompts_wait_for_those_before_them_unless_the_session_works_side_by_side(tmp_path):
    async def test(node):
        await node.sessions.open("one", run=("/bin/cat",))
        await node.sessions.open("two", run=("/bin/cat",), parallel=2)
        ones = [node.sessions.prompt("one", text) for text in "ab"]
        twos = [node.sessions.prompt("two", text) for text in "abc"]
        await node.started(3)
        states = [node.sessions.turn(turn.id).state.value for turn in (*ones, *twos)]
        assert states == ["working", "queued", "working", "working", "queued"]
        for task in ("1", "2", "3"):
            node.driver.finish(task, 0)
        await node.started(5)

    run(test, tmp_path)


def test_a_turn_can_be_cancelled_whether_it_runs_or_waits(tmp_path):
    async def test(node):
        await node.sessions.open("a", run=("/bin/cat",))
        first, second = (node.sessions.prompt("a", text) for text in "ab")
        await node.started(1)
        assert node.sessions.cancel(second.id).state is TurnState.CANCELLED
        node.sessions.cancel(first.id)
        assert (await node.ended(first)).state is TurnState.CANCELLED
        refused(EBUSY, node.sessions.cancel, first.id)

    run(test, tmp_path)


def test_a_key_asks_once(tmp_path):
    async def test(node):
        await node.sessions.open("a", run=("/bin/cat",))
        first = node.sessions.prompt("a", "hello", key="x")
        assert node.sessions.prompt("a", "hello", key="x").id == first.id
        assert len(node.sessions.turns("a")) == 1

    run(test, tmp_path)


def test_what_cannot_be_is_refused(tmp_path):
    async def test(node):
        refused(ENOENT, node.sessions.prompt, "nobody", "hello")
        refused(ENOENT, node.sessions.get, "nobody")
        for name in ("", "A", "a" * 29, "../x", "a.b", "-a"):
            with pytest.raises(OSError) as info:
                await node.sessions.open(name, run=("/bin/cat",))
            assert info.value.errno == EINVAL
        await node.sessions.open("a", run=("/bin/cat",))
        refused(EINVAL, node.sessions.prompt, "a", " \n")
        node.sessions.archive("a")
        refused(EBUSY, node.sessions.prompt, "a", "hello")
        await node.sessions.remove("a")
        refused(ENOENT, node.sessions.get, "a")

    run(test, tmp_path)


def test_a_home_that_nobody_noted_is_made_anew(tmp_path):
    async def test(node):
        left = node.house.homes.make("session.a", "pw-a", 1)
        (node.house.homes.path(left) / "secret").touch()
        session = await node.sessions.open("a", run=("/bin/cat",))
        assert os.listdir(node.house.homes.path(session.user)) == ["work"]

    run(test, tmp_path)
