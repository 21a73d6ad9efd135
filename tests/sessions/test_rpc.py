"""The RPC: several clients, replies by id, events from any number on, and every request carried out once."""

import json
from contextlib import asynccontextmanager

import pytest
import trio
from sessions_node import node

from tasks.sessions.states import State
from wanixfs.rpc import MAX_LINE, Rpc


class Client:
    """One connection, as a program would use it."""

    def __init__(self, stream):
        self.stream = stream
        self.buffer = b""
        self.messages = []
        self.count = 0

    async def send(self, message):
        data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        await self.stream.send_all(data)

    async def receive(self, fits=lambda message: True):
        """Return the next message that fits; others are kept."""
        while True:
            for at, message in enumerate(self.messages):
                if fits(message):
                    return self.messages.pop(at)
            while b"\n" not in self.buffer:
                data = await self.stream.receive_some()
                if not data:
                    raise EOFError
                self.buffer += data
            line, _, self.buffer = self.buffer.partition(b"\n")
            self.messages.append(json.loads(line))

    async def ask(self, kind, id=None, /, **payload):
        self.count += 1
        id = self.count if id is None else id
        await self.send({"id": id, "type": kind, "payload": payload})
        return await self.receive(lambda message: message.get("id") == id)

    async def result(self, kind, /, **payload):
        reply = await self.ask(kind, **payload)
        assert reply["ok"], reply
        return reply["result"]

    async def refused(self, code, kind, /, **payload):
        reply = await self.ask(kind, **payload)
        assert not reply["ok"] and reply["error"]["code"] == code, reply
        return reply["error"]

    async def event(self, kind):
        return await self.receive(lambda message: message.get("event") == kind)


@asynccontextmanager
async def served(tmp_path, *, network="unix", **policy):
    """A node with its RPC; yields it and what connects a client."""
    async with node(tmp_path, **policy) as one, trio.open_nursery() as nursery:
        if network == "unix":
            listener = trio.socket.socket(trio.socket.AF_UNIX)
            await listener.bind(str(tmp_path / "rpc"))
        else:
            listener = trio.socket.socket()
            await listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        await nursery.start(Rpc(one.sessions, "the token").serve, [trio.SocketListener(listener)])

        @asynccontextmanager
        async def connect():
            if network == "unix":
                stream = await trio.open_unix_socket(str(tmp_path / "rpc"))
            else:
                stream = await trio.open_tcp_stream(*listener.getsockname())
            async with stream:
                yield Client(stream)

        yield one, connect
        nursery.cancel_scope.cancel()


def run(test, tmp_path, **options):
    async def main():
        async with served(tmp_path, **options) as (one, connect):
            with trio.fail_after(30):
                await test(one, connect)

    trio.run(main)


def test_a_client_opens_prompts_and_sees_the_answer_come(tmp_path):
    async def test(node, connect):
        async with connect() as client:
            await client.result("subscribe")
            made = await client.result("create_or_open_task", taskId="a", run="/bin/cat", thinkingLevel="low")
            assert (made["task"]["state"], made["task"]["thinkingLevel"]) == (State.READY, "low")
            await client.result("switch_task", taskId="a")
            turn = (await client.result("prompt", message="hello"))["turn"]
            assert (turn["session"], turn["state"]) == ("a", "queued")
            task = await node.started(1)
            node.driver.write(task, 1, b"hi")
            node.driver.finish(task, 0)
            output, ended = await client.event("output"), await client.event("ended")
            assert (output["taskId"], output["payload"]) == ("a", {"text": "hi", "turn": turn["id"]})
            assert ended["payload"]["state"] == "completed" and ended["seq"] > output["seq"]
            assert (await client.result("history"))["turns"][0]["output"] == "hi"

    run(test, tmp_path)


def test_events_are_replayed_from_any_number_without_gap_or_repetition(tmp_path):
    async def test(node, connect):
        async with connect() as first:
            await first.result("subscribe", since=0)
            for name in "abc":
                await first.result("create_or_open_task", taskId=name, run="/bin/cat")
            seen = [await first.receive(lambda message: "seq" in message) for _ in range(node.chronicle.last_seq)]
        assert [message["seq"] for message in seen] == list(range(1, node.chronicle.last_seq + 1))
        for since in range(len(seen)):
            async with connect() as again:
                await again.result("subscribe", since=since)
                for expected in seen[since:]:
                    assert await again.receive(lambda message: "seq" in message) == expected

    run(test, tmp_path)


def test_a_client_behind_what_is_kept_is_told_to_start_again(tmp_path):
    async def test(node, connect):
        async with connect() as client:
            for name in "abc":
                await client.result("create_or_open_task", taskId=name, run="/bin/cat")
            node.chronicle.forget_happenings(2)
            await client.result("subscribe", since=0)
            reset = await client.event("reset")
            assert reset["payload"] == {"oldest": node.chronicle.oldest_seq()}
            assert (await client.receive(lambda message: "seq" in message))["seq"] == reset["payload"]["oldest"]

    run(test, tmp_path)


def test_a_request_sent_again_is_carried_out_once_also_by_another_connection(tmp_path):
    async def test(node, connect):
        async with connect() as first:
            await first.result("hello", client="page")
            await first.result("create_or_open_task", taskId="a", run="/bin/cat")
            one = await first.ask("prompt", "p1", taskId="a", message="hello")
            assert await first.ask("prompt", "p1", taskId="a", message="hello") == one
        async with connect() as second:
            await second.ask("hello", "h", client="page")
            assert await second.ask("prompt", "p1", taskId="a", message="hello") == one
        async with connect() as stranger:
            other = await stranger.ask("prompt", "p1", taskId="a", message="hello")
            assert other["result"]["turn"]["id"] != one["result"]["turn"]["id"]
        assert len(node.sessions.turns("a")) == 2

    run(test, tmp_path)


def test_a_prompt_sent_again_to_the_next_server_is_carried_out_once(tmp_path):
    async def main():
        ids = []
        for _ in range(2):
            async with served(tmp_path) as (_, connect), connect() as client:
                await client.result("hello", client="page")
                await client.result("create_or_open_task", taskId="a", run="/bin/cat")
                reply = await client.ask("prompt", "p1", taskId="a", message="hello")
                ids.append(reply["result"]["turn"]["id"])
            (tmp_path / "rpc").unlink()
        assert ids[0] == ids[1]

    trio.run(main)


def test_a_switch_of_one_client_does_not_turn_anothers_prompts(tmp_path):
    async def test(node, connect):
        async with connect() as one, connect() as two:
            for name in "ab":
                await one.result("create_or_open_task", taskId=name, run="/bin/cat")
            await one.result("switch_task", taskId="a")
            await two.result("switch_task", taskId="b")
            assert (await one.result("prompt", message="hello"))["turn"]["session"] == "a"
            assert (await two.result("prompt", message="hello"))["turn"]["session"] == "b"

    run(test, tmp_path)


def test_requests_that_wait_do_not_hold_up_others(tmp_path):
    async def test(node, connect):
        async with connect() as client:
            gate = node.driver.hold_starts()
            await client.send({"id": "slow", "type": "create_or_open_task", "payload": {"taskId": "a", "agent": "x"}})
            await node.driver.start_arrived()
            assert (await client.result("get_state", taskId="a"))["task"]["state"] == State.CREATING
            assert (await client.result("stop_task", taskId="a"))["task"]["state"] == State.STOPPED
            gate.set()
            assert not (await client.receive(lambda message: message.get("id") == "slow"))["ok"]

    run(test, tmp_path)


def test_what_makes_no_sense_is_refused_and_changes_nothing(tmp_path):
    async def test(node, connect):
        async with connect() as client:
            for line in (b"{\n", b"[]\n", b"1\n", b'{"id":[],"type":"x"}\n', b'{"id":1}\n', b"[" * 100_000 + b"\n"):
                await client.send(line)
                assert (await client.receive())["error"]["code"] == "EINVAL"
            await client.refused("EINVAL", "no_such_thing")
            await client.refused("EINVAL", "prompt", message="hello")
            await client.refused("ENOENT", "prompt", taskId="a", message="hello")
            await client.refused("ENOENT", "switch_task", taskId="a")
            await client.refused("EINVAL", "create_or_open_task", taskId="../a")
            await client.refused("EINVAL", "create_or_open_task", taskId="a", thinkingLevel="no such level")
            await client.refused("EINVAL", "subscribe", since=-1)
            assert (await client.result("get_state", taskId="a"))["task"]["state"] == State.MISSING
            await client.send(b"x" * (MAX_LINE + 1))
            assert (await client.receive())["error"]["code"] == "EINVAL"
            with pytest.raises(EOFError):
                await client.receive()
        assert node.sessions.records() == []

    run(test, tmp_path)


def test_tcp_wants_the_token_before_anything_else(tmp_path):
    async def test(node, connect):
        async with connect() as client:
            await client.refused("EACCES", "get_state")
            await client.refused("EACCES", "hello", token="another")
            await client.refused("EACCES", "get_state")
            await client.result("hello", token="the token")
            assert (await client.result("get_state"))["tasks"] == []

    run(test, tmp_path, network="tcp")
