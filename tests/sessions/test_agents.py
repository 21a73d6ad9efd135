"""Sessions with an agent that lives: it keeps its memory, dies and comes back, is stopped and waited for.

The agent is a small one (`small_agent.py`), run as a real task.
"""

import os
import signal
from errno import ETIMEDOUT
from pathlib import Path

import pytest
import trio
from sessions_node import linux_node

from tasks.sessions.states import INTERRUPTED, State, TurnState

AGENT = ("/usr/bin/python3", str(Path(__file__).with_name("small_agent.py")))


def run(test, tmp_path, **policy):
    async def main():
        async with linux_node(tmp_path, **({"agent": AGENT} | policy)) as node:
            await test(node)

    trio.run(main)


async def ask(node, session, message):
    turn = await node.ended(node.sessions.prompt(session, message))
    assert turn.state is TurnState.COMPLETED, turn
    return turn.output


def test_an_agent_lives_on_between_prompts_and_remembers(tmp_path):
    async def test(node):
        session = await node.sessions.open("a")
        assert session.state is State.READY
        assert await ask(node, "a", "my secret-1") == "heard: my secret-1"
        assert await ask(node, "a", "secrets") == "secret-1"
        assert node.sessions.get("a").task == session.task

    run(test, tmp_path)


def test_what_a_turn_shows_comes_in_order_and_once(tmp_path):
    async def test(node):
        await node.sessions.open("a")
        turn = await node.ended(node.sessions.prompt("a", "a message of more than a few letters"))
        rows = [row for row in node.chronicle.since(0, "a", 1000) if row.turn == turn.id]
        kinds = [row.kind for row in rows]
        assert (kinds[:2], kinds[-1], set(kinds[2:-1])) == (["prompt", "began"], "ended", {"output"})
        assert "".join(row.shown()["text"] for row in rows[2:-1]) == turn.output
        assert turn.usage == {"input": 36, "output": 43}

    run(test, tmp_path)


def test_an_agent_that_dies_comes_back_with_its_memory(tmp_path):
    async def test(node):
        session = await node.sessions.open("a")
        await ask(node, "a", "my secret-1")
        died = await node.ended(node.sessions.prompt("a", "die"))
        assert (died.state, died.reason) == (TurnState.FAILED, INTERRUPTED)
        assert await ask(node, "a", "secrets") == "secret-1"
        assert node.sessions.get("a").task != session.task
        assert "died" in node.kinds("a")

    run(test, tmp_path)


def test_prompts_that_wait_outlive_the_agent_before_them(tmp_path):
    async def test(node):
        await node.sessions.open("a")
        died = node.sessions.prompt("a", "die")
        after = node.sessions.prompt("a", "hello")
        assert (await node.ended(died)).state is TurnState.FAILED
        assert (await node.ended(after)).output == "heard: hello"

    run(test, tmp_path)


def test_a_turn_is_cancelled_and_the_agent_lives_on(tmp_path):
    async def test(node):
        session = await node.sessions.open("a")
        turn = node.sessions.prompt("a", "wait")
        await node.until(lambda: node.sessions.turn(turn.id).output == "waiting")
        node.sessions.cancel(turn.id)
        done = await node.ended(turn)
        assert (done.state, done.output) == (TurnState.CANCELLED, "waiting")
        assert await ask(node, "a", "hello") == "heard: hello"
        assert node.sessions.get("a").task == session.task

    run(test, tmp_path)


def test_an_agent_that_does_not_let_go_of_a_cancelled_turn_is_killed(tmp_path):
    async def test(node):
        session = await node.sessions.open("a")
        turn = node.sessions.prompt("a", "wait")
        await node.until(lambda: node.sessions.turn(turn.id).output == "waiting")
        os.kill(node.house.service.tasks[session.task].main_pid, signal.SIGSTOP)
        node.sessions.cancel(turn.id)
        assert (await node.ended(turn)).state is TurnState.CANCELLED
        assert await ask(node, "a", "hello") == "heard: hello"

    run(test, tmp_path, abort_seconds=0.05)


def test_a_turn_that_takes_too_long_is_ended(tmp_path):
    async def test(node):
        await node.sessions.open("a", timeout=0.2)
        done = await node.ended(node.sessions.prompt("a", "wait"))
        assert (done.state, done.reason) == (TurnState.FAILED, "timed out after 0.2 s")

    run(test, tmp_path)


def test_a_stopped_session_has_no_agent_and_starts_again_with_a_prompt(tmp_path):
    async def test(node):
        session = await node.sessions.open("a")
        await ask(node, "a", "my secret-1")
        task = node.house.service.tasks[session.task]
        waiting = node.sessions.prompt("a", "wait")
        assert node.sessions.stop("a").state is State.STOPPED
        assert node.sessions.turn(waiting.id).state is TurnState.CANCELLED
        with trio.fail_after(20):
            while not task.ended:
                await task.signal.wait()
        assert await ask(node, "a", "secrets") == "secret-1"

    run(test, tmp_path)


def test_an_agent_with_nothing_to_do_is_stopped_and_resumed_on_demand(tmp_path):
    async def test(node):
        await node.sessions.open("a")
        await ask(node, "a", "my secret-1")
        await node.until(lambda: node.sessions.get("a").state is State.IDLE)
        assert await ask(node, "a", "secrets") == "secret-1"

    run(test, tmp_path, idle_seconds=0.05)


def test_agents_that_rest_make_room_for_others(tmp_path):
    async def test(node):
        for name in "abc":
            await node.sessions.open(name)
            await ask(node, name, f"my secret-{name}")
        states = [record.state for record in node.sessions.records()]
        assert states == [State.IDLE, State.READY, State.READY]
        for name in "abc":
            assert await ask(node, name, "secrets") == f"secret-{name}"

    run(test, tmp_path, max_agents=2)


def test_an_agent_that_never_answers_is_an_error_with_a_reason(tmp_path):
    async def test(node):
        with pytest.raises(OSError, match="was not ready within") as info:
            await node.sessions.open("a", agent=("/bin/sh", "-c", "sleep 1000", "sh"))
        assert info.value.errno == ETIMEDOUT
        assert node.sessions.get("a").state is State.ERRORED
        await node.until(lambda: node.sessions.get("a").task == 0)

    run(test, tmp_path, ready_seconds=0.2)


def test_an_agent_that_cannot_start_is_an_error_with_its_last_words(tmp_path):
    async def test(node):
        with pytest.raises(OSError, match="exit code 3: no model here"):
            await node.sessions.open("a", agent=("/bin/sh", "-c", "echo no model here >&2; exit 3", "sh"))
        turn = await node.ended(node.sessions.prompt("a", "hello"))
        assert turn.state is TurnState.FAILED and "no model here" in turn.reason
        await node.sessions.open("a", agent=AGENT)
        assert await ask(node, "a", "hello") == "heard: hello"

    run(test, tmp_path, backoff_seconds=0.01)


def test_a_torn_last_line_of_the_session_file_is_mended(tmp_path):
    async def test(node):
        session = await node.sessions.open("a")
        await ask(node, "a", "my secret-1")
        node.sessions.stop("a")
        file = node.house.homes.path(session.user) / "session.json"
        with file.open("a") as torn:
            torn.write('{"role": "user", "te')
        assert await ask(node, "a", "secrets") == "secret-1"
        assert "mended" in node.kinds("a")

    run(test, tmp_path)


def test_a_turn_goes_on_under_the_next_server(tmp_path):
    async def main():
        async with linux_node(tmp_path, agent=AGENT, leave=True) as node:
            await node.sessions.open("a")
            turn = node.sessions.prompt("a", "wait")
            await node.until(lambda: node.sessions.turn(turn.id).output == "waiting")
            queued = node.sessions.prompt("a", "hello")
            task = node.sessions.get("a").task
        async with linux_node(tmp_path, agent=AGENT) as node:
            await node.until(lambda: node.sessions.get("a").state is State.ACTIVE)
            assert node.sessions.get("a").task == task
            assert node.sessions.turn(turn.id).state is TurnState.WORKING
            node.sessions.cancel(turn.id)
            assert (await node.ended(turn)).state is TurnState.CANCELLED
            done = await node.ended(queued)
            assert done.output == "heard: hello", (done, [row.line() for row in node.chronicle.since(0, "a", 1000)])
            assert node.sessions.get("a").task == task

    trio.run(main)


def test_a_server_that_is_stopped_leaves_sessions_that_resume_with_their_memory(tmp_path):
    async def main():
        async with linux_node(tmp_path, agent=AGENT) as node:
            await node.sessions.open("a")
            await ask(node, "a", "my secret-1")
        async with linux_node(tmp_path, agent=AGENT) as node:
            assert node.sessions.get("a").state is State.IDLE
            await node.sessions.switch("a")
            assert node.sessions.get("a").state is State.READY
            assert await ask(node, "a", "secrets") == "secret-1"

    trio.run(main)


def test_what_the_lost_supervisor_took_along_is_interrupted_and_the_rest_goes_on(tmp_path):
    async def main():
        async with linux_node(tmp_path, agent=AGENT, leave=True) as node:
            await node.sessions.open("a")
            await ask(node, "a", "my secret-1")
            turn = node.sessions.prompt("a", "wait")
            await node.until(lambda: node.sessions.turn(turn.id).output == "waiting")
            queued = node.sessions.prompt("a", "secrets")
            os.kill(node.driver.supervisor_pid, signal.SIGKILL)
        async with linux_node(tmp_path, agent=AGENT) as node:
            done = await node.ended(turn)
            assert (done.state, done.reason, done.output) == (TurnState.FAILED, INTERRUPTED, "waiting")
            assert (await node.ended(queued)).output == "secret-1"

    trio.run(main)
