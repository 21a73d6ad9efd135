"""Sessions of the real agent, pi, on a model on loopback: two memories, switched back and forth, and never mixed."""

import os
import signal

import pytest
import trio
from fake_model import model
from real_pi import SPEC, needs_pi, policy
from sessions_node import linux_node

from tasks.sessions.states import INTERRUPTED, State, TurnState

pytestmark = [pytest.mark.root, needs_pi]


def run(test, tmp_path):
    async def main():
        with model() as served:
            async with linux_node(tmp_path, **policy(served, tmp_path)) as node:
                await test(node, served)

    trio.run(main)


async def ask(node, session, message):
    turn = await node.ended(node.sessions.prompt(session, message))
    assert turn.state is TurnState.COMPLETED, turn
    return turn.output


def test_two_sessions_are_switched_a_hundred_times_and_remember_their_own(tmp_path):
    async def test(node, served):
        for name in "ab":
            await node.sessions.open(name, **SPEC)
            assert await ask(node, name, f"my secret-{name}") == f"I know secret-{name}"
        pids = {name: node.house.service.tasks[node.sessions.get(name).task].main_pid for name in "ab"}
        for number in range(100):
            name = "ab"[number % 2]
            await node.sessions.switch(name)
            assert node.sessions.active == name
            assert await ask(node, name, "recall") == f"I know secret-{name}"
        assert "died" not in node.kinds("a") + node.kinds("b")
        assert pids == {name: node.house.service.tasks[node.sessions.get(name).task].main_pid for name in "ab"}

    run(test, tmp_path)


def test_pi_comes_back_from_death_stop_and_a_torn_line_with_its_memory(tmp_path):
    async def test(node, served):
        session = await node.sessions.open("a", **SPEC)
        await ask(node, "a", "my secret-a")
        waiting = node.sessions.prompt("a", "wait for me, secret-b")
        await node.until(lambda: node.sessions.turn(waiting.id).output)
        os.kill(node.house.service.tasks[session.task].main_pid, signal.SIGKILL)
        died = await node.ended(waiting)
        assert (died.state, died.reason) == (TurnState.FAILED, INTERRUPTED)
        assert "secret-a" in await ask(node, "a", "recall")
        node.sessions.stop("a")
        await node.until(lambda: node.sessions.get("a").task == 0)
        with (node.house.homes.path(session.user) / "session.json").open("a") as torn:
            torn.write('{"type":"message","id":"')
        assert "secret-a" in await ask(node, "a", "recall")

    run(test, tmp_path)


def test_a_turn_of_pi_is_cancelled_and_a_model_that_fails_is_said(tmp_path):
    async def test(node, served):
        await node.sessions.open("a", **SPEC)
        waiting = node.sessions.prompt("a", "wait")
        await node.until(lambda: node.sessions.turn(waiting.id).output)
        node.sessions.cancel(waiting.id)
        assert (await node.ended(waiting)).state is TurnState.CANCELLED
        failed = await node.ended(node.sessions.prompt("a", "fail"))
        assert failed.state is TurnState.FAILED and "400" in failed.reason
        assert await ask(node, "a", "my secret-a") == "I know secret-a"
        assert node.sessions.get("a").state in (State.READY, State.ACTIVE)

    run(test, tmp_path)
