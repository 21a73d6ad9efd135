"""Split virtqueues in real shared memory: what a driver may do, and what it may not."""

import os
import random
import struct
from collections.abc import Iterator
from errno import EFAULT, EINVAL, EPROTO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio.machine import GUEST, INDIRECT, NEXT, SIZE, USER, WRITE, Driver, Machine

from vfs.virtio.memory import Memory, Region, gather, room, scatter
from vfs.virtio.ring import MAX_CHAIN, Addresses, Queue


class Shared(Machine):
    """A machine without a socket: memory and one ring."""

    def __init__(self, size: int = 16) -> None:
        self.set_up_memory(SIZE)
        self.driver = Driver(self, 0, size, 0, SIZE)
        self.mapped = Memory([(Region(GUEST, SIZE, USER, 0), self.fd)])
        self.queue = Queue(0)
        self.queue.resize(size)
        driver = self.driver
        self.queue.addresses = Addresses(USER + driver.table, USER + driver.used, USER + driver.available)
        self.queue.call = os.dup(driver.call)
        self.queue.start(self.mapped)

    def close(self) -> None:
        self.queue.close()
        del self.mapped
        self.driver.close()
        self.drop_memory()

    def interrupts(self) -> int:
        try:
            return os.eventfd_read(self.driver.call)
        except BlockingIOError:
            return 0

    def broken(self) -> int:
        """Take the next request, which must be refused; returns the errno."""
        with pytest.raises(OSError) as caught:
            self.queue.pop()
        assert caught.value.errno is not None
        return caught.value.errno


@pytest.fixture
def shared() -> Iterator[Shared]:
    machine = Shared()
    yield machine
    machine.close()


@pytest.mark.parametrize("indirect", [False, True])
def test_a_request_comes_out_as_it_was_put_in_and_goes_back(shared: Shared, indirect: bool):
    posted = shared.driver.submit([b"head", b"and more"], [8, 16], indirect=indirect)
    chain = shared.queue.pop()
    assert chain is not None
    assert b"".join(chain.readable) == b"headand more"
    assert sum(map(len, chain.writable)) == 24
    assert shared.queue.pop() is None
    scatter([b"0123456789"], chain.writable)
    shared.queue.push(chain, 10)
    shared.queue.tell()
    assert shared.driver.completions() == [(posted.head, 10)]
    assert shared.driver.read(posted, 10) == b"0123456789"
    assert shared.interrupts() == 1


def test_buffers_that_adjoin_become_one(shared: Shared):
    at, _ = shared.driver.place(b"abcdefgh", 4096)
    for number in range(4):
        shared.driver.descriptor(number, GUEST + at + 2 * number, 2, NEXT if number < 3 else 0, number + 1)
    shared.driver.post(0)
    chain = shared.queue.pop()
    assert chain is not None
    assert [bytes(part) for part in chain.readable] == [b"abcdefgh"]


def test_indices_wrap_around(shared: Shared):
    for number in range(70_000):
        shared.driver.recycle()
        posted = shared.driver.submit([b"%d" % number])
        chain = shared.queue.pop()
        assert chain is not None and b"".join(chain.readable) == b"%d" % number
        shared.queue.push(chain, 0)
        assert shared.driver.completions() == [(posted.head, 0)]


def test_requests_may_come_back_in_another_order(shared: Shared):
    heads = [shared.driver.submit([b"x"]).head for _ in range(3)]
    chains = [shared.queue.pop() for _ in range(3)]
    for chain in reversed(chains):
        assert chain is not None
        shared.queue.push(chain, 0)
    assert [head for head, _ in shared.driver.completions()] == heads[::-1]


def test_a_request_that_is_given_back_untaken_comes_again(shared: Shared):
    shared.driver.submit([b"x"])
    first = shared.queue.pop()
    shared.queue.unpop()
    assert shared.queue.pop() == first
    assert shared.queue.pop() is None


def test_one_interrupt_tells_of_many(shared: Shared):
    for _ in range(5):
        shared.driver.submit([b"x"])
    while (chain := shared.queue.pop()) is not None:
        shared.queue.push(chain, 0)
    shared.queue.tell()
    shared.queue.tell()
    assert shared.interrupts() == 1


def test_a_driver_is_told_only_when_it_wants_to_know(shared: Shared):
    """used_event: an interrupt is due when the index passes it, not before and not again."""
    shared.queue.frugal = True
    driver = shared.driver
    struct.pack_into("<H", shared.memory, driver.available + 4 + 2 * driver.size, 2)
    told = []
    for _ in range(5):
        driver.submit([b"x"])
        chain = shared.queue.pop()
        assert chain is not None
        shared.queue.push(chain, 0)
        shared.queue.tell()
        told.append(shared.interrupts())
    assert told == [0, 0, 1, 0, 0]


def test_what_comes_between_looking_and_listening_is_not_missed(shared: Shared):
    shared.queue.frugal = True
    assert shared.queue.pop() is None
    shared.driver.submit([b"x"])
    assert shared.queue.listen()
    assert shared.queue.pop() is not None
    assert shared.queue.pop() is None
    assert not shared.queue.listen()
    (wanted,) = struct.unpack_from("<H", shared.memory, shared.driver.used + 4 + 8 * shared.driver.size)
    assert wanted == 1  # the next request is one to ring for


def test_answers_wait_while_the_machine_is_halted(shared: Shared):
    posted = shared.driver.submit([b"x"])
    chain = shared.queue.pop()
    assert chain is not None
    assert shared.queue.stop() == 1
    assert shared.queue.pop() is None
    shared.queue.push(chain, 7)
    assert shared.driver.completions() == []
    shared.queue.start(shared.mapped)
    assert shared.driver.completions() == [(posted.head, 7)]
    assert shared.interrupts() == 1


def test_answers_to_a_driver_that_has_begun_anew_are_dropped(shared: Shared):
    shared.driver.submit([b"x"])
    chain = shared.queue.pop()
    assert chain is not None
    shared.queue.stop()
    shared.driver.posted = 0
    struct.pack_into("<HH", shared.memory, shared.driver.available, 0, 0)
    shared.queue.last = 0
    shared.queue.start(shared.mapped)
    shared.queue.push(chain, 7)
    assert shared.driver.completions() == []
    posted = shared.driver.submit([b"y"])
    fresh = shared.queue.pop()
    assert fresh is not None
    shared.queue.push(fresh, 1)
    assert shared.driver.completions() == [(posted.head, 1)]


# What no driver does


def test_more_requests_than_entries_are_refused(shared: Shared):
    struct.pack_into("<H", shared.memory, shared.driver.available + 2, 17)
    assert shared.broken() == EPROTO


def test_requests_that_are_posted_again_before_they_came_back_are_refused(shared: Shared):
    shared.driver.submit([b"x"])
    for _ in range(16):
        assert shared.queue.pop() is not None
        shared.driver.post(0)
    assert shared.broken() == EPROTO


def test_a_head_outside_the_table_is_refused(shared: Shared):
    shared.driver.post(16)
    assert shared.broken() == EPROTO


def test_a_chain_that_leads_outside_the_table_is_refused(shared: Shared):
    shared.driver.descriptor(0, GUEST, 1, NEXT, 16)
    shared.driver.post(0)
    assert shared.broken() == EPROTO


def test_a_chain_that_leads_back_to_itself_ends(shared: Shared):
    shared.driver.descriptor(0, GUEST, 1, NEXT, 1)
    shared.driver.descriptor(1, GUEST + 8, 1, NEXT, 0)
    shared.driver.post(0)
    assert shared.broken() == EPROTO


def test_something_to_read_behind_what_is_to_be_written_is_refused(shared: Shared):
    shared.driver.descriptor(0, GUEST, 8, NEXT | WRITE, 1)
    shared.driver.descriptor(1, GUEST, 8, 0, 0)
    shared.driver.post(0)
    assert shared.broken() == EPROTO


@pytest.mark.parametrize(
    ("address", "length"),
    [(0, 1), (GUEST - 1, 2), (GUEST + SIZE, 1), (GUEST + SIZE - 1, 2), (GUEST, 0xFFFF_FFFF), ((1 << 64) - 1, 2)],
)
def test_a_buffer_outside_the_memory_is_refused(shared: Shared, address: int, length: int):
    shared.driver.descriptor(0, address, length, 0, 0)
    shared.driver.post(0)
    assert shared.broken() == EFAULT


@pytest.mark.parametrize("length", [0, 8, 17, 16 * (MAX_CHAIN + 1)])
def test_an_indirect_table_of_no_good_length_is_refused(shared: Shared, length: int):
    shared.driver.descriptor(0, GUEST, length, INDIRECT, 0)
    shared.driver.post(0)
    assert shared.broken() == EPROTO


def test_an_indirect_table_with_one_inside_or_behind_it_is_refused(shared: Shared):
    table, _ = shared.driver.place(16, 16)
    shared.driver.descriptor(0, GUEST, 16, INDIRECT, 0, table)
    shared.driver.descriptor(0, GUEST + table, 16, INDIRECT, 0)
    shared.driver.post(0)
    assert shared.broken() == EPROTO
    shared.driver.descriptor(0, GUEST + table, 16, INDIRECT | NEXT, 1)
    assert shared.broken() == EPROTO


@pytest.mark.parametrize("size", [0, 3, 65536, 1 << 31])
def test_a_ring_of_no_good_size_is_refused(size: int):
    with pytest.raises(OSError) as caught:
        Queue(0).resize(size)
    assert caught.value.errno == EINVAL


def test_a_ring_that_is_not_aligned_or_not_in_memory_does_not_start(shared: Shared):
    shared.queue.stop()
    good = shared.queue.addresses
    assert good is not None
    for part, error in ((8, EINVAL), (SIZE, EFAULT)):
        shared.queue.addresses = good._replace(descriptors=good.descriptors + part)
        with pytest.raises(OSError) as caught:
            shared.queue.start(shared.mapped)
        assert caught.value.errno == error
        assert not shared.queue.running


def test_any_garbage_in_the_rings_is_refused_or_yields_only_guest_memory(request: pytest.FixtureRequest):
    rounds = 30_000 if request.config.option.long else 1_500
    rng = random.Random(7)
    shared = Shared()
    outcomes = set()
    driver = shared.driver
    for _ in range(rounds):
        for number in range(18):
            address = GUEST + rng.choice([0, 16, 4096, SIZE - 16, SIZE, -1, 1 << 40])
            length = rng.choice([0, 1, 8, 16, 48, 4096, 0xFFFF_FFFF])
            driver.descriptor(number, address, length, rng.choice([0, 1, 1, 2, 3, 4, 7]), rng.randrange(18))
            if number == 15 and rng.random() < 0.9:
                break  # else the available ring is written over, too
        for number in range(driver.size):
            struct.pack_into("<H", shared.memory, driver.available + 4 + 2 * number, rng.randrange(17))
        index = shared.queue.last + rng.choice([0, 1, 1, 1, 2, 17, 40_000]) & 0xFFFF
        struct.pack_into("<H", shared.memory, driver.available + 2, index)
        try:
            chain = shared.queue.pop()
        except OSError as error:
            outcomes.add(error.errno)
            shared.queue.last = shared.queue.last + 1 & 0xFFFF  # a real one would be given up here
        else:
            if chain is not None:
                outcomes.add(0)
                assert len(chain.readable) + len(chain.writable) <= MAX_CHAIN
                shared.queue.push(chain, 0)
    shared.close()
    assert outcomes >= {0, EPROTO, EFAULT}


# Copying to and from several buffers


@settings(max_examples=200)
@given(st.lists(st.integers(0, 9)), st.lists(st.binary(max_size=12)))
def test_scatter_writes_one_after_another_and_gather_reads_it_back(sizes: list[int], parts: list[bytes]):
    buffers = [memoryview(bytearray(size)) for size in sizes]
    whole = b"".join(parts)
    if len(whole) > sum(sizes):
        with pytest.raises(OSError) as caught:
            scatter(parts, buffers)
        assert caught.value.errno == EFAULT
        return
    assert scatter(parts, buffers) == len(whole)
    assert gather(buffers, sum(sizes))[: len(whole)] == whole


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=9)), st.integers(0, 40), st.integers(0, 40))
def test_room_is_the_part_of_the_buffers_that_was_asked_for(parts: list[bytes], start: int, length: int):
    found = room([memoryview(part) for part in parts], start, length)
    assert b"".join(found) == b"".join(parts)[start : start + length]


def test_a_request_that_is_too_long_is_not_copied():
    with pytest.raises(OSError) as caught:
        gather([memoryview(bytes(4096))] * 3, 4096)
    assert caught.value.errno == EFAULT


# Memory


def test_memory_that_is_shorter_than_stated_is_refused(shared: Shared):
    for region in (Region(0, SIZE + 1, 0, 0), Region(0, SIZE, 0, 4096), Region(0, 0, 0, 0), Region(0, 1 << 63, 0, 0)):
        with pytest.raises(OSError) as caught:
            Memory([(region, shared.fd)])
        assert caught.value.errno == EINVAL


def test_regions_start_anywhere_in_their_file(shared: Shared):
    shared.memory[10_000:10_005] = b"there"
    memory = Memory([(Region(0x1000, 8192, 0x9000, 10_000), shared.fd), (Region(0, 4096, 0x1_0000, 0), shared.fd)])
    assert bytes(memory.guest(0x1000, 5)) == bytes(memory.user(0x9000, 5)) == b"there"
    with pytest.raises(OSError):
        memory.guest(0x0FFF, 2)  # the end of one and the start of the other are not one piece
