"""vsock as a guest's driver and the host's programs see it: connections, credit, ends, a guest that lies."""

import gc
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
import trio.testing
from virtio.machine import Driver, Machine, Posted

from vfs.virtio import vsock
from vfs.virtio.vsock import (
    BUFFER,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HEADER,
    HOST,
    MAX_CONNECTIONS,
    MAX_OWED,
    NO_RECEIVE,
    NO_SEND,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    serve_vsock,
)

CID = 7


class Packet(NamedTuple):
    operation: int
    host: int
    guest: int
    flags: int
    forwarded: int
    data: bytes


class Guest:
    """A guest's vsock driver: what it receives it keeps, and it has given `count` buffers of `size` bytes for that."""

    def __init__(self, receive: Driver, transmit: Driver, *, count: int = 32, size: int = 4096) -> None:
        self.receive = receive
        self.transmit = transmit
        self.size = size
        self.posted: dict[int, Posted] = {}
        for _ in range(count):
            self.give()

    def give(self) -> None:
        posted = self.receive.submit([], [44, self.size], indirect=True)
        self.posted[posted.head] = posted

    def give_back(self, head: int) -> None:
        self.receive.post(head)
        self.receive.ring()

    async def packet(self) -> Packet:
        """Wait for the next packet and give its buffer back to be filled again."""
        while not self.arrived:
            self.arrived += await self.receive.returned()
        head, length = self.arrived.pop(0)
        raw = self.receive.read(self.posted[head], length)
        fields = HEADER.unpack_from(raw)
        source, target, host, guest, size, kind, operation, flags, buffer, forwarded = fields
        assert (source, target, kind) == (HOST, CID, 1)
        assert len(raw) == 44 + size
        assert buffer == BUFFER or operation == RST
        self.give_back(head)
        return Packet(operation, host, guest, flags, forwarded, raw[44:])

    arrived: list[tuple[int, int]]

    async def send(
        self,
        operation: int,
        host: int,
        guest: int,
        data: bytes = b"",
        *,
        flags: int = 0,
        room: int = BUFFER,
        taken: int = 0,
        length: int | None = None,
        source: int = CID,
        target: int = HOST,
        kind: int = 1,
        wait: bool = True,
    ) -> None:
        size = len(data) if length is None else length
        header = HEADER.pack(source, target, guest, host, size, kind, operation, flags, room, taken & 0xFFFF_FFFF)
        self.transmit.recycle()
        self.transmit.submit([header, data] if data else [header], indirect=True)
        if wait:
            await self.transmit.returned()


Test = Callable[[Guest, Path], Awaitable[None]]


def serving(path: Path, test: Test, *, count: int = 32, size: int = 4096) -> None:
    """Serve and run `await test(guest, uds)` with a driver that has set its queues up."""
    uds = path / "v"

    async def main() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(serve_vsock, path / "machine", uds, CID))
                machine = await Machine.connect(path / "machine")
                try:
                    await machine.begin()
                    assert await machine.get(24, struct.pack("<III8x", 0, 8, 0)) == struct.pack("<IIIQ", 0, 8, 0, CID)
                    guest = Guest(await machine.queue(0, 64), await machine.queue(1, 64), count=count, size=size)
                    guest.arrived = []
                    await trio.testing.wait_all_tasks_blocked()
                    await test(guest, uds)
                finally:
                    machine.close()
                    nursery.cancel_scope.cancel()
        assert not uds.exists() and not (path / "machine").exists()

    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    trio.run(main)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


async def dial(uds: Path, hello: bytes = b"CONNECT 52\n") -> trio.SocketStream:
    stream = await trio.open_unix_socket(str(uds))
    await stream.send_all(hello)
    assert isinstance(stream, trio.SocketStream)
    return stream


async def exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more, f"the end after {len(data)} bytes"
        data += more
    return data


async def line(stream: trio.SocketStream) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        data += await exactly(stream, 1)
    return data


async def from_host(guest: Guest, uds: Path) -> tuple[trio.SocketStream, int, int]:
    """Connect from the host to port 52 of the guest; returns the stream and both ports."""
    stream = await dial(uds)
    asked = await guest.packet()
    assert (asked.operation, asked.guest) == (REQUEST, 52)
    await guest.send(RESPONSE, asked.host, 52)
    assert await line(stream) == b"OK %d\n" % asked.host
    return stream, asked.host, 52


async def from_guest(guest: Guest, uds: Path, port: int = 99) -> tuple[trio.SocketStream, int, int]:
    """Connect from port 1000 of the guest to `port` of the host; returns the host's stream and both ports."""
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(f"{uds}_{port}")
    listener.listen(1)
    await guest.send(REQUEST, port, 1000)
    sock, _ = await listener.accept()
    listener.close()
    os.unlink(f"{uds}_{port}")
    answer = await guest.packet()
    assert (answer.operation, answer.host, answer.guest) == (RESPONSE, port, 1000)
    return trio.SocketStream(sock), port, 1000


@pytest.fixture(params=[from_host, from_guest], ids=["from the host", "from the guest"])
def connect(request: pytest.FixtureRequest) -> Callable[[Guest, Path], Awaitable[tuple[trio.SocketStream, int, int]]]:
    return request.param  # type: ignore[no-any-return]


Connect = Callable[[Guest, Path], Awaitable[tuple[trio.SocketStream, int, int]]]


def test_bytes_go_both_ways(tmp_path: Path, connect: Connect):
    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await connect(guest, uds)
        await stream.send_all(b"from the host")
        packet = await guest.packet()
        assert packet[:3] == (RW, host, port) and packet.data == b"from the host"
        await guest.send(RW, host, port, b"from the guest")
        assert await exactly(stream, 14) == b"from the guest"
        await stream.aclose()

    serving(tmp_path, test)


def test_much_from_the_host_arrives_in_order_within_the_guests_credit(tmp_path: Path):
    data = random.Random(1).randbytes(3_000_000)

    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await from_host(guest, uds)
        got = bytearray()
        told = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            while len(got) < len(data):
                packet = await guest.packet()
                if packet.operation == CREDIT_REQUEST:
                    await guest.send(CREDIT_UPDATE, host, port, room=50_000, taken=len(got))
                    told = len(got)
                    continue
                assert packet.operation == RW
                got += packet.data
                assert len(got) - told <= BUFFER
                if len(got) - told > 20_000:
                    await guest.send(CREDIT_UPDATE, host, port, room=50_000, taken=len(got))
                    told = len(got)
        assert got == data
        await stream.aclose()

    serving(tmp_path, test)


def test_nothing_more_is_sent_than_the_guest_has_room_for(tmp_path: Path):
    async def test(guest: Guest, uds: Path) -> None:
        stream = await dial(uds)
        asked = await guest.packet()
        await guest.send(RESPONSE, asked.host, 52, room=10)
        await line(stream)
        await stream.send_all(b"0123456789abcdef")
        assert (await guest.packet()).data == b"0123456789"
        assert (await guest.packet()).operation == CREDIT_REQUEST
        await trio.testing.wait_all_tasks_blocked()
        assert guest.receive.completions() == []
        await guest.send(CREDIT_UPDATE, asked.host, 52, room=10, taken=4)
        assert (await guest.packet()).data == b"abcd"
        assert (await guest.packet()).operation == CREDIT_REQUEST
        await guest.send(CREDIT_UPDATE, asked.host, 52, room=10, taken=14)
        assert (await guest.packet()).data == b"ef"
        await stream.aclose()

    serving(tmp_path, test)


def test_what_the_host_does_not_take_is_kept_and_the_guest_told_when_it_has(tmp_path: Path):
    data = random.Random(2).randbytes(BUFFER)

    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await from_host(guest, uds)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for at in range(0, BUFFER, 1 << 16):
            await guest.send(RW, host, port, data[at : at + (1 << 16)])
        assert await exactly(stream, BUFFER) == data
        told = [await guest.packet()]
        assert told[0].operation == CREDIT_UPDATE
        await guest.send(CREDIT_REQUEST, host, port)
        while told[-1].forwarded != BUFFER:
            told.append(await guest.packet())
        assert [packet.forwarded for packet in told] == sorted(packet.forwarded for packet in told)
        await stream.aclose()

    serving(tmp_path, test)


def test_a_guest_that_sends_more_than_there_is_room_for_is_cut_off(tmp_path: Path):
    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await from_host(guest, uds)
        operations = []
        for _ in range(30):
            await guest.send(RW, host, port, bytes(1 << 16))
            await trio.testing.wait_all_tasks_blocked()
        while RST not in operations:
            operations.append((await guest.packet()).operation)
        await stream.aclose()

    serving(tmp_path, test)


def test_each_half_ends_by_itself(tmp_path: Path, connect: Connect):
    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await connect(guest, uds)
        await stream.send_all(b"question")
        await stream.send_eof()
        assert (await guest.packet()).data == b"question"
        packet = await guest.packet()
        assert (packet.operation, packet.flags) == (SHUTDOWN, NO_SEND)
        await guest.send(RW, host, port, b"answer")
        await guest.send(SHUTDOWN, host, port, flags=NO_SEND | NO_RECEIVE)
        assert (await guest.packet()).operation == RST
        assert await exactly(stream, 6) == b"answer"
        assert await stream.receive_some() == b""
        await stream.aclose()

    serving(tmp_path, test)


def test_a_guest_that_sends_no_more_may_still_be_sent_to(tmp_path: Path, connect: Connect):
    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await connect(guest, uds)
        await guest.send(RW, host, port, b"question")
        await guest.send(SHUTDOWN, host, port, flags=NO_SEND)
        assert await exactly(stream, 8) == b"question"
        assert await stream.receive_some() == b""
        await stream.send_all(b"answer")
        assert (await guest.packet()).data == b"answer"
        await stream.aclose()
        packet = await guest.packet()
        assert (packet.operation, packet.flags) == (SHUTDOWN, NO_SEND | NO_RECEIVE)
        await guest.send(RST, host, port)

    serving(tmp_path, test)


def test_a_guest_that_receives_no_more_is_not_sent_to(tmp_path: Path):
    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await from_host(guest, uds)
        await guest.send(SHUTDOWN, host, port, flags=NO_RECEIVE)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"x")
        await guest.send(RW, host, port, b"still here")
        assert await exactly(stream, 10) == b"still here"
        await stream.aclose()

    serving(tmp_path, test)


def test_what_is_left_is_delivered_before_the_end(tmp_path: Path):
    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await from_host(guest, uds)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(4):
            await guest.send(RW, host, port, bytes(1 << 16))
        await guest.send(SHUTDOWN, host, port, flags=NO_SEND | NO_RECEIVE)
        assert await exactly(stream, BUFFER) == bytes(BUFFER)
        assert await stream.receive_some() == b""
        while (await guest.packet()).operation != RST:
            pass
        await stream.aclose()

    serving(tmp_path, test)


def test_a_reset_ends_a_connection(tmp_path: Path, connect: Connect):
    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await connect(guest, uds)
        await guest.send(RST, host, port)
        assert await stream.receive_some() == b""
        await guest.send(RW, host, port, b"late")
        assert (await guest.packet()).operation == RST
        await stream.aclose()

    serving(tmp_path, test)


def test_a_program_of_the_host_that_has_gone_resets_the_connection(tmp_path: Path):
    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await from_host(guest, uds)
        await stream.aclose()
        packet = await guest.packet()
        assert (packet.operation, packet.flags) == (SHUTDOWN, NO_SEND | NO_RECEIVE)
        await guest.send(RW, host, port, b"anyone?")
        assert (await guest.packet()).operation == RST

    serving(tmp_path, test)


def test_a_guest_that_never_agrees_to_an_end_is_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vsock, "CLOSE_SECONDS", 0.05)

    async def test(guest: Guest, uds: Path) -> None:
        stream, _, _ = await from_host(guest, uds)
        await stream.aclose()
        assert (await guest.packet()).operation == SHUTDOWN
        assert (await guest.packet()).operation == RST

    serving(tmp_path, test)


def test_a_fault_of_ours_ends_that_connection_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def test(guest: Guest, uds: Path) -> None:
        first, host, port = await from_host(guest, uds)
        second, _, _ = await from_host(guest, uds)
        with monkeypatch.context() as faulty:
            faulty.setattr(vsock.Vsock, "_pull", lambda *_: 1 / 0)
            await first.send_all(b"x")
            assert (await guest.packet())[:3] == (RST, host, port)
        with suppress(trio.BrokenResourceError):  # closed with a byte unread
            assert await first.receive_some() == b""
        await second.send_all(b"y")
        assert (await guest.packet()).data == b"y"
        await first.aclose()
        await second.aclose()

    serving(tmp_path, test)


# Connecting


def test_nobody_is_connected_where_nobody_listens(tmp_path: Path):
    async def test(guest: Guest, uds: Path) -> None:
        await guest.send(REQUEST, 99, 1000)
        assert (await guest.packet())[:3] == (RST, 99, 1000)
        stream = await dial(uds)
        asked = await guest.packet()
        await guest.send(RST, asked.host, 52)
        assert await stream.receive_some() == b""
        await stream.aclose()

    serving(tmp_path, test)


def test_a_guest_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vsock, "ANSWER_SECONDS", 0.05)

    async def test(guest: Guest, uds: Path) -> None:
        stream = await dial(uds)
        assert (await guest.packet()).operation == REQUEST
        assert await stream.receive_some() == b""
        assert (await guest.packet()).operation == RST
        await stream.aclose()

    serving(tmp_path, test)


def test_a_connection_is_refused_until_the_guest_is_ready(tmp_path: Path):
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_vsock, tmp_path / "machine", tmp_path / "v", CID))
            stream = await dial(tmp_path / "v")
            assert await stream.receive_some() == b""
            await stream.aclose()
            nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize(
    "hello", [b"\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT -1\n", b"CONNECT 4294967296\n", b"connect 1\n", b"C" * 40]
)
def test_a_host_that_asks_otherwise_is_refused(tmp_path: Path, hello: bytes):
    async def test(guest: Guest, uds: Path) -> None:
        stream = await dial(uds, hello)
        with suppress(trio.BrokenResourceError):  # closed with bytes unread
            assert await stream.receive_some() == b""
        assert guest.receive.completions() == []
        await stream.aclose()

    serving(tmp_path, test)


def test_a_hello_may_come_in_pieces_and_what_follows_it_is_data(tmp_path: Path):
    async def test(guest: Guest, uds: Path) -> None:
        stream = await dial(uds, b"CONN")
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"ECT 52\nand more")
        asked = await guest.packet()
        await guest.send(RESPONSE, asked.host, 52)
        assert (await guest.packet()).data == b"and more"
        await stream.aclose()

    serving(tmp_path, test)


def test_connections_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vsock, "MAX_CONNECTIONS", 3)

    async def test(guest: Guest, uds: Path) -> None:
        streams = [(await from_host(guest, uds))[0] for _ in range(3)]
        refused = await dial(uds)
        with suppress(trio.BrokenResourceError):
            assert await refused.receive_some() == b""
        await guest.send(REQUEST, 99, 1000)
        assert (await guest.packet()).operation == RST
        for stream in [*streams, refused]:
            await stream.aclose()

    assert MAX_CONNECTIONS > 3
    serving(tmp_path, test)


def test_connections_end_with_the_machine(tmp_path: Path):
    async def test(guest: Guest, uds: Path) -> None:
        stream, _, _ = await from_host(guest, uds)
        guest.receive.machine.sock.close()
        assert await stream.receive_some() == b""
        await stream.aclose()

    serving(tmp_path, test)


@pytest.mark.parametrize("cid", [0, 2, 1 << 32, (1 << 32) - 1])
def test_a_context_id_that_no_guest_has_is_refused(tmp_path: Path, cid: int):
    with pytest.raises(OSError):
        trio.run(partial(serve_vsock, tmp_path / "machine", tmp_path / "v", cid))
    assert list(tmp_path.iterdir()) == []


# A guest that lies, or gives nothing


def test_without_buffers_what_is_owed_has_a_limit_and_nothing_is_lost(tmp_path: Path):
    total = MAX_OWED + 200

    async def test(guest: Guest, uds: Path) -> None:
        asked = 0
        with trio.move_on_after(1):
            while asked < total:
                await guest.send(RW, 1, asked, b"x", wait=False)
                asked += 1
                await guest.transmit.returned()
        assert MAX_OWED <= asked <= MAX_OWED + 65  # then none of its packets is taken
        refused = 0
        for _ in range(8):
            guest.give()
        guest.receive.ring()
        while refused < asked:
            packet = await guest.packet()
            assert (packet.operation, packet.guest) == (RST, refused)
            refused += 1

    serving(tmp_path, test, count=0, size=8)


def test_packets_for_others_or_of_another_kind_lead_nowhere(tmp_path: Path):
    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await from_host(guest, uds)
        await guest.send(RST, host, port, source=CID + 1)
        await guest.send(RST, host, port, target=CID)
        await guest.send(RW, host, port, b"here")
        assert await exactly(stream, 4) == b"here"
        await stream.aclose()

    serving(tmp_path, test)


@pytest.mark.parametrize("length", [0, 3, 5, 0xFFFF_FFFF])
def test_a_packet_whose_length_is_wrong_is_cut_or_ends_the_connection(tmp_path: Path, length: int):
    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await from_host(guest, uds)
        await guest.send(RW, host, port, b"data", length=length)
        if length <= 4:
            await guest.send(RST, host, port)
            with trio.fail_after(5):
                assert await stream.receive_some() == b"data"[:length]
        else:
            assert (await guest.packet()).operation == RST
        await stream.aclose()

    serving(tmp_path, test)


@pytest.mark.parametrize("writable", [[], [20], [44]], ids=["nothing", "no header", "no data"])
def test_a_buffer_that_holds_no_packet_ends_that_machine(tmp_path: Path, writable: list[int]):
    async def test(guest: Guest, uds: Path) -> None:
        guest.receive.submit([b"x"] if not writable else [], writable)
        await trio.testing.wait_all_tasks_blocked()
        await guest.send(REQUEST, 99, 1000, wait=False)
        assert await guest.receive.machine.closed()

    serving(tmp_path, test, count=0)


def test_any_packets_are_survived(tmp_path: Path, request: pytest.FixtureRequest):
    rounds = 30_000 if request.config.option.long else 1_500
    rng = random.Random(3)

    async def test(guest: Guest, uds: Path) -> None:
        stream, host, port = await from_host(guest, uds)
        for number in range(rounds):
            if number % 50 == 49:
                await stream.aclose()
                stream = await dial(uds)
                await trio.testing.wait_all_tasks_blocked()
            for head, length in guest.receive.completions():
                host, port = struct.unpack_from("<II", guest.receive.read(guest.posted[head], length), 16)
                guest.give_back(head)
            await guest.send(
                rng.choice([*range(9), 0xFFFF]),
                rng.choice([host, 0, 99]),
                rng.choice([port, 0, 1000]),
                rng.randbytes(rng.choice([0, 1, 100, 4000])),
                flags=rng.randrange(8),
                room=rng.choice([0, 1, 1 << 16, 0xFFFF_FFFF]),
                taken=rng.choice([0, 1, 0x8000_0000, 0xFFFF_FFFF]),
                length=rng.choice([None, None, 0, 77, 0xFFFF_FFFF]),
                kind=rng.choice([1, 1, 1, 0, 2]),
            )
        await stream.aclose()

    serving(tmp_path, test)
