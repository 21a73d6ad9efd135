"""Requests that wait: Tflush, clunk, version and close while they do, tags, and how many there may be."""

import os
from errno import EAGAIN, EBADF, EINTR

import pytest
import trio
from ninepkit import Slow, Wire

from vfs.directory import Dir
from vfs.inline import park
from vfs.locks import LockTable
from vfs.memory import MemoryTree
from vfs.ninep import session as session_module
from vfs.ninep.codec import ProtocolError, encode
from vfs.ninep.messages import NOTAG


def with_slow(slow, scenario):
    """Run `scenario(wire, nursery)` with the file `slow` open as fid 1, then see that nothing is left."""

    async def main():
        wire = Wire(Dir({"slow": slow}, mode=0o755, id=5)).attach()
        wire.open(1, "slow", os.O_RDWR)
        async with trio.open_nursery() as nursery:
            await scenario(wire, nursery)
            wire.session.close()
            await wire.run_waiting(nursery)
            slow.signal.notify()
        assert slow.open_handles == 0
        assert not wire.session.waiting
        assert not wire.session.operations.fids

    trio.run(main)


def read(tag, count=100):
    return encode("Tread", tag, 1, 0, count)


def test_a_read_waits_without_holding_up_others_and_is_answered_when_it_can():
    slow = Slow()

    async def scenario(wire, nursery):
        assert wire.send(read(7)) == []
        assert wire.ask("Tgetattr", 1, 0, tag=8)
        await wire.run_waiting(nursery)
        assert wire.replies() == []
        slow.feed(b"data")
        await wire.run_waiting(nursery)
        assert wire.replies() == [("Rread", 7, (b"data",))]

    with_slow(slow, scenario)


def test_flushing_what_does_not_wait_is_answered_at_once():
    async def scenario(wire, nursery):
        assert wire.ask("Tflush", 99) == ()
        wire.ask("Tgetattr", 1, 0, tag=5)
        assert wire.ask("Tflush", 5) == ()
        assert wire.ask("Tflush", 1, tag=1) == ()  # itself

    with_slow(Slow(), scenario)


def test_a_flushed_request_is_never_answered():
    slow = Slow()

    async def scenario(wire, nursery):
        wire.send(read(7))
        await wire.run_waiting(nursery)
        assert wire.send(encode("Tflush", 8, 7)) == []
        await wire.run_waiting(nursery)
        assert wire.replies() == [("Rflush", 8, ())]
        slow.feed(b"for the next")
        await wire.run_waiting(nursery)
        assert wire.replies() == []
        assert wire.send(read(7)) == [("Rread", 7, (b"for the next",))]  # nothing was lost, the tag is free

    with_slow(slow, scenario)


def test_a_request_flushed_before_its_task_began_is_never_answered():
    async def scenario(wire, nursery):
        wire.send(read(7), encode("Tflush", 8, 7))
        await wire.run_waiting(nursery)
        assert wire.replies() == [("Rflush", 8, ())]

    with_slow(Slow(), scenario)


def test_a_request_that_ended_in_spite_of_its_flush_is_answered_before_rflush():
    slow = Slow(stubborn=True)

    async def scenario(wire, nursery):
        wire.send(read(7))
        await wire.run_waiting(nursery)
        wire.send(encode("Tflush", 8, 7))
        await wire.run_waiting(nursery)
        assert wire.replies() == []  # the call cannot be aborted: Rflush is held until it ends
        slow.feed(b"done all the same")
        await wire.run_waiting(nursery)
        assert wire.replies() == [("Rread", 7, (b"done all the same",)), ("Rflush", 8, ())]

    with_slow(slow, scenario)


def test_several_flushes_of_one_request_are_answered_in_order():
    async def scenario(wire, nursery):
        wire.send(read(7))
        await wire.run_waiting(nursery)
        wire.send(encode("Tflush", 8, 7), encode("Tflush", 9, 7), encode("Tflush", 10, 8))  # the last one of a flush
        await wire.run_waiting(nursery)
        assert wire.replies() == [("Rflush", 8, ()), ("Rflush", 9, ()), ("Rflush", 10, ())]

    with_slow(Slow(), scenario)


@pytest.mark.parametrize("again", [read(7), encode("Tgetattr", 7, 1, 0), encode("Tflush", 7, 7)])
def test_a_tag_in_use_ends_the_connection(again):
    async def scenario(wire, nursery):
        wire.send(read(7))
        with pytest.raises(ProtocolError, match="tag 7"):
            wire.send(again)

    with_slow(Slow(), scenario)


def test_the_tag_of_a_waiting_flush_is_in_use():
    async def scenario(wire, nursery):
        wire.send(read(7), encode("Tflush", 8, 7))
        with pytest.raises(ProtocolError, match="tag 8"):
            wire.send(encode("Tgetattr", 8, 1, 0))

    with_slow(Slow(), scenario)


def test_a_waiting_write_has_kept_its_data():
    slow = Slow()

    async def scenario(wire, nursery):
        buffer = bytearray(encode("Twrite", 7, 1, 0, b"precious"))
        wire.session.process(buffer, 0, len(buffer))
        buffer[:] = b"\xaa" * len(buffer)  # the next frames come into the same buffer
        await wire.run_waiting(nursery)
        slow.feed(room=8)
        await wire.run_waiting(nursery)
        assert wire.replies() == [("Rwrite", 7, (8,))]
        assert slow.taken == [b"precious"]

    with_slow(slow, scenario)


def test_a_clunk_ends_what_waits_on_its_fid_before_the_file_is_closed():
    slow = Slow()

    async def scenario(wire, nursery):
        wire.send(read(7), encode("Twrite", 8, 1, 0, b"x"))
        await wire.run_waiting(nursery)
        wire.send(encode("Tclunk", 9, 1))
        with pytest.raises(OSError) as caught:
            wire.ask("Tgetattr", 1, 0, tag=10)  # gone at once
        assert caught.value.errno == EBADF
        await wire.run_waiting(nursery)
        replies = wire.replies()
        assert sorted(replies[:2]) == [("Rlerror", 7, (EINTR,)), ("Rlerror", 8, (EINTR,))]
        assert replies[2:] == [("Rclunk", 9, ())]
        assert (slow.open_handles, slow.flushed) == (0, 1)

    with_slow(slow, scenario)


def test_a_clunk_that_is_flushed_still_closes_the_file_when_it_can():
    slow = Slow(stubborn=True)

    async def scenario(wire, nursery):
        wire.send(read(7))
        await wire.run_waiting(nursery)
        wire.send(encode("Tclunk", 9, 1))
        await wire.run_waiting(nursery)
        wire.send(encode("Tflush", 10, 9))
        await wire.run_waiting(nursery)
        assert wire.replies() == [("Rflush", 10, ())]
        assert slow.open_handles == 1
        slow.feed(b"late")
        await wire.run_waiting(nursery)
        assert wire.replies() == [("Rread", 7, (b"late",))]
        assert slow.open_handles == 0

    with_slow(slow, scenario)


def test_a_remove_ends_what_waits_on_its_fid():
    slow = Slow()

    async def scenario(wire, nursery):
        wire.send(read(7))
        await wire.run_waiting(nursery)
        wire.send(encode("Tremove", 9, 1))
        await wire.run_waiting(nursery)
        assert [name for name, _, _ in wire.replies()] == ["Rlerror", "Rlerror"]  # EINTR, and Dir removes nothing
        assert slow.open_handles == 0

    with_slow(slow, scenario)


def test_a_version_silences_what_waits():
    slow = Slow()

    async def scenario(wire, nursery):
        wire.send(read(7), encode("Tflush", 8, 7), read(9))
        await wire.run_waiting(nursery)
        wire.replies()
        assert wire.send(encode("Tversion", NOTAG, 8192, "9P2000.L"))[-1][0] == "Rversion"
        await wire.run_waiting(nursery)
        assert wire.replies() == []
        assert slow.open_handles == 0
        wire.attach()
        wire.open(1, "slow", os.O_RDWR)
        assert wire.send(read(7)) == []  # the tags are free again

    with_slow(slow, scenario)


def test_a_version_in_the_same_turn_as_a_waiting_request_frees_its_tag():
    async def scenario(wire, nursery):
        replies = wire.send(read(7), encode("Tversion", NOTAG, 8192, "9P2000.L"), encode("Tgetattr", 7, 1, 0))
        assert [name for name, _, _ in replies] == ["Rversion", "Rlerror"]

    with_slow(Slow(), scenario)


def test_only_so_many_requests_wait(monkeypatch):
    monkeypatch.setattr(session_module, "MAX_WAITING", 3)

    async def scenario(wire, nursery):
        assert wire.send(read(1), read(2), read(3)) == []
        assert wire.send(read(4)) == [("Rlerror", 4, (EAGAIN,))]
        await wire.run_waiting(nursery)
        assert wire.ask("Tgetattr", 1, 0, tag=4)
        assert wire.send(encode("Tflush", 5, 2)) == []  # ending one is always possible
        await wire.run_waiting(nursery)
        assert wire.replies() == [("Rflush", 5, ())]
        assert wire.send(read(4)) == []

    with_slow(Slow(), scenario)


def test_only_so_much_data_is_held_or_promised_for_what_waits(monkeypatch):
    monkeypatch.setattr(session_module, "MAX_WAITING_BYTES", 100_000)

    async def scenario(wire, nursery):
        assert wire.send(read(1, 1 << 31)) == []  # promises msize at most
        assert wire.send(read(2, 1 << 31)) == [("Rlerror", 2, (EAGAIN,))]
        assert wire.send(read(2, 1000)) == []
        assert wire.send(encode("Twrite", 3, 1, 0, bytes(40_000))) == [("Rlerror", 3, (EAGAIN,))]
        wire.send(encode("Tflush", 4, 1))
        await wire.run_waiting(nursery)
        wire.replies()
        assert wire.send(encode("Twrite", 3, 1, 0, bytes(40_000))) == []

    with_slow(Slow(), scenario)


def test_closing_the_session_cancels_what_waits_and_closes_what_is_open():
    slow = Slow()

    async def scenario(wire, nursery):
        wire.send(read(7), encode("Twrite", 8, 1, 0, b"x"))
        await wire.run_waiting(nursery)
        wire.session.close()
        await wire.run_waiting(nursery)
        assert slow.open_handles == 0
        assert slow.flushed == 0  # nobody asked for it
        assert wire.replies() == []

    with_slow(slow, scenario)


def test_a_waiting_open_that_finds_its_fid_clunked_closes_the_file_again():
    class Late(Slow):
        async def open(self, flags, who):
            await park()
            with trio.CancelScope(shield=True):
                await self.signal.wait()
            return await super().open(flags, who)

    late = Late()

    async def main():
        wire = Wire(Dir({"late": late}, mode=0o755, id=5)).attach()
        async with trio.open_nursery() as nursery:
            wire.ask("Twalk", 0, 1, ("late",))
            wire.send(encode("Tlopen", 7, 1, 0), encode("Tlopen", 8, 1, 0))
            await wire.run_waiting(nursery)
            late.feed()
            await wire.run_waiting(nursery)
            assert sorted(name for name, _, _ in wire.replies()) == ["Rlerror", "Rlopen"]  # one of them wins
            assert late.open_handles == 1
            wire.ask("Tclunk", 1)
            wire.ask("Twalk", 0, 1, ("late",))
            wire.send(encode("Tlopen", 7, 1, 0))
            await wire.run_waiting(nursery)
            wire.send(encode("Tclunk", 9, 1))
            await wire.run_waiting(nursery)
            late.feed()
            await wire.run_waiting(nursery)
            assert wire.replies() == [("Rlerror", 7, (EBADF,)), ("Rclunk", 9, ())]
            assert late.open_handles == 0

    trio.run(main)


def test_a_blocking_lock_waits_and_a_flush_gives_it_up():
    tree = MemoryTree(label="t")

    async def main():
        wire = Wire(tree.root, locks=LockTable()).attach()
        wire.make("f")
        wire.open(1, "f")
        wire.open(2, "f")
        blocking = ("Tlock", 2, 1, 1, 0, 0, 8, "c")
        async with trio.open_nursery() as nursery:
            wire.ask("Tlock", 1, 1, 0, 0, 0, 7, "c")
            assert wire.send(encode(blocking[0], 5, *blocking[1:])) == []
            await wire.run_waiting(nursery)
            wire.send(encode("Tflush", 6, 5))
            await wire.run_waiting(nursery)
            assert wire.replies() == [("Rflush", 6, ())]
            assert wire.send(encode(blocking[0], 5, *blocking[1:])) == []
            await wire.run_waiting(nursery)
            wire.ask("Tclunk", 1)
            await wire.run_waiting(nursery)
            assert wire.replies() == [("Rlock", 5, (0,))]
            assert wire.ask("Tgetlock", 2, 1, 0, 0, 9, "c")[0] == 1
            wire.session.close()

    trio.run(main)


def test_storms_of_flushes_answer_every_tag_exactly_once():
    slow = Slow()

    async def scenario(wire, nursery):
        for round_ in range(20):
            reads = [read(tag) for tag in range(100)]
            flushes = [encode("Tflush", 1000 + tag, tag) for tag in range(100)]
            wire.send(*reads)
            if round_ % 2:
                await wire.run_waiting(nursery)
            slow.feed(*[b"x"] * (round_ * 5))
            wire.send(*flushes[::-1])
            await wire.run_waiting(nursery)
            replies = wire.replies()
            tags = [tag for _, tag, _ in replies]
            assert len(set(tags)) == len(tags)
            assert set(range(1000, 1100)) <= set(tags)
            for place, (name, tag, _) in enumerate(replies):
                if name == "Rread":
                    assert ("Rflush", 1000 + tag, ()) in replies[place:]
            slow.chunks.clear()
            assert not wire.session.waiting

    with_slow(slow, scenario)


def test_a_node_that_waits_without_leaving_the_inline_path_is_a_bug_and_not_a_hang(monkeypatch):
    class Careless(Slow):
        async def stat(self):
            await trio.sleep(0)
            return await super().stat()

    monkeypatch.setattr("vfs.errors.log", lambda *words, **facts: None)

    async def main():
        wire = Wire(Dir({"c": Careless()}, mode=0o755, id=5)).attach()
        assert wire.send(encode("Twalk", 3, 0, 1, ("c",))) == [("Rlerror", 3, (5,))]

    trio.run(main)
