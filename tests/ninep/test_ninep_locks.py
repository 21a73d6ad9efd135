"""Byte-range locks: what fcntl(2) promises, judged also by a model that knows every byte."""

from errno import EDEADLK, EINVAL, ENOLCK
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from vfs.inline import PENDING, resume, start
from vfs.locks import END, READ_LOCK, UNLOCK, WRITE_LOCK, Lock, LockTable, span

A, B, C = ("a",), ("b",), ("c",)


def lock(kind, start_at, end, owner, pid=1):
    return Lock(kind, start_at, end, owner, pid)


def test_readers_share_and_a_writer_excludes():
    table = LockTable()
    assert table.set(1, lock(READ_LOCK, 0, 10, A)) is None
    assert table.set(1, lock(READ_LOCK, 5, 15, B)) is None
    assert table.set(1, lock(WRITE_LOCK, 12, 20, A)) == lock(READ_LOCK, 5, 15, B)
    assert table.set(1, lock(WRITE_LOCK, 15, 20, A)) is None
    assert table.set(2, lock(WRITE_LOCK, 0, END, C)) is None


def test_the_lock_in_the_way_is_shown_with_its_range_and_holder():
    table = LockTable()
    table.set(1, lock(WRITE_LOCK, 3, END, A, pid=77))
    held = table.conflict(1, lock(READ_LOCK, 100, 101, B))
    assert (held.kind, held.start, held.length, held.pid) == (WRITE_LOCK, 3, 0, 77)
    assert table.conflict(1, lock(READ_LOCK, 0, 3, B)) is None
    assert table.conflict(1, lock(WRITE_LOCK, 0, END, A)) is None


def test_unlocking_the_middle_leaves_both_ends():
    table = LockTable()
    table.set(1, lock(WRITE_LOCK, 0, 100, A))
    table.set(1, lock(UNLOCK, 40, 60, A))
    free = [byte for byte in (0, 39, 40, 59, 60, 99, 100) if not table.conflict(1, lock(READ_LOCK, byte, byte + 1, B))]
    assert free == [40, 59, 100]


def test_a_range_may_reach_to_the_end_and_no_further():
    assert span(5, 0) == (5, END)
    assert span(0, END) == (0, END)
    for start_at, length in ((END, 0), (1, END), (-1, 5), (END - 1, 2)):
        with pytest.raises(OSError) as caught:
            span(start_at, length)
        assert caught.value.errno == EINVAL


def test_releasing_an_owner_drops_its_locks_and_no_others():
    table = LockTable()
    for file in (1, 2):
        table.set(file, lock(WRITE_LOCK, 0, 10, A))
        table.set(file, lock(WRITE_LOCK, 10, 20, B))
    table.release(A, 1)
    assert table.conflict(1, lock(WRITE_LOCK, 0, 10, C)) is None
    assert table.conflict(1, lock(WRITE_LOCK, 10, 20, C)) is not None
    assert table.conflict(2, lock(WRITE_LOCK, 0, 10, C)) is not None
    table.release(A)
    assert table.conflict(2, lock(WRITE_LOCK, 0, 10, C)) is None


def test_no_more_locks_than_allowed_are_kept():
    table = LockTable(most=3)
    for byte in (0, 2, 4):
        table.set(1, lock(WRITE_LOCK, byte, byte + 1, A))
    with pytest.raises(OSError) as caught:
        table.set(1, lock(WRITE_LOCK, 6, 7, A))
    assert caught.value.errno == ENOLCK
    table.set(1, lock(WRITE_LOCK, 0, 5, A))  # replaces all three
    table.set(1, lock(WRITE_LOCK, 6, 7, A))
    table.set(1, lock(UNLOCK, 1, 2, A))
    with pytest.raises(OSError, match="too many"):
        table.set(1, lock(UNLOCK, 3, 4, A))
    table.release(A)
    for byte in (0, 2, 4):
        table.set(1, lock(WRITE_LOCK, byte, byte + 1, B))


def test_a_waiter_gets_the_lock_as_soon_as_it_is_free():
    async def main():
        table, got = LockTable(), []
        table.set(1, lock(WRITE_LOCK, 0, 10, A))

        async def wait(wanted, name):
            await table.wait(1, wanted)
            got.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, lock(READ_LOCK, 0, 5, B), "b")
            nursery.start_soon(wait, lock(READ_LOCK, 5, 10, C), "c")
            await trio.testing.wait_all_tasks_blocked()
            assert got == []
            table.set(1, lock(UNLOCK, 0, 5, A))
            await trio.testing.wait_all_tasks_blocked()
            assert got == ["b"]
            table.release(A)
        assert got == ["b", "c"]

    trio.run(main)


def test_a_free_lock_is_taken_without_waiting_and_a_held_one_parks():
    async def main():
        table = LockTable()
        assert start(table.wait(1, lock(WRITE_LOCK, 0, 1, A))) is None
        waits = table.wait(1, lock(WRITE_LOCK, 0, 1, B))
        assert start(waits) is PENDING
        table.release(A)  # between the park and the resumption
        await resume(waits)
        assert table.conflict(1, lock(READ_LOCK, 0, 1, C)).owner == B

    trio.run(main)


def test_a_cancelled_waiter_gets_nothing_and_is_forgotten():
    async def main():
        table = LockTable()
        table.set(1, lock(WRITE_LOCK, 0, 1, A))
        with trio.move_on_after(0):
            await table.wait(1, lock(WRITE_LOCK, 0, 1, B))
        table.release(A)
        assert table.set(1, lock(WRITE_LOCK, 0, 1, C)) is None
        assert not table._waiting

    trio.run(main)


def test_waiting_in_a_circle_is_refused():
    async def main():
        table = LockTable()
        for byte, owner in enumerate((A, B, C)):
            table.set(byte, lock(WRITE_LOCK, 0, 1, owner))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.wait, 1, lock(WRITE_LOCK, 0, 1, A))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(table.wait, 2, lock(WRITE_LOCK, 0, 1, B))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(OSError) as caught:
                await table.wait(0, lock(READ_LOCK, 0, 1, C))
            assert caught.value.errno == EDEADLK
            table.release(C)
            await trio.testing.wait_all_tasks_blocked()
            table.release(B)

    trio.run(main)


@given(
    st.lists(
        st.tuples(st.sampled_from([READ_LOCK, WRITE_LOCK, UNLOCK]), st.integers(0, 9), st.integers(1, 10),
                  st.sampled_from([A, B, C])),
        max_size=30,
    )
)  # fmt: skip
@settings(max_examples=300)
def test_any_sequence_of_locks_gives_what_a_model_of_single_bytes_gives(steps):
    table = LockTable()
    model = {}  # (byte, owner) -> kind
    for kind, first, length, owner in steps:
        covered = range(first, first + length)
        blocked = kind != UNLOCK and any(
            byte in covered and other != owner and WRITE_LOCK in (kind, held) for (byte, other), held in model.items()
        )
        assert (table.set(7, lock(kind, first, first + length, owner)) is not None) == blocked
        if not blocked:
            for byte in covered:
                model.pop((byte, owner), None)
                if kind != UNLOCK:
                    model[byte, owner] = kind
        seen = {(b, held.owner): held.kind for held in table._held.get(7, ()) for b in range(held.start, held.end)}
        assert seen == model
        ranges = sorted((held.owner, held.start, held.end, held.kind) for held in table._held.get(7, ()))
        for one, two in pairwise(ranges):
            assert one[0] != two[0] or one[2] < two[1] or (one[2] == two[1] and one[3] != two[3]), "not joined"
        assert table._count == len(ranges)
