"""virtiofs as a machine and its guest's driver see it: the vhost-user protocol, FUSE requests, a guest that lies."""

import gc
import os
import random
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from errno import EACCES, EINTR, EINVAL, ENOENT, ENOSYS, EPERM, EROFS
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from virtio.machine import GUEST, NEXT, SIZE, USER, Driver, Machine

from vfs.directory import Dir
from vfs.files import Awaited, Text
from vfs.fuse.messages import IN_HEADER, Op
from vfs.host import HostTree
from vfs.memory import MemoryTree
from vfs.node import ROOT, Caller, Node
from vfs.virtio.fs import serve_fs
from vfs.virtio.messages import Request
from vfs.waiting import Signal

USER_OF_TASK = Caller(12345, 12345)
OTHER = 23456


class Guest:
    """A guest's FUSE driver on one request queue."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.unique = 0

    def frame(self, op: int, nodeid: int, body: bytes, uid: int) -> list[bytes]:
        self.unique += 2
        header = IN_HEADER.pack(IN_HEADER.size + len(body), op, self.unique, nodeid, uid, uid, 77, 0, 0)
        return [header, body] if body else [header]

    async def ask(
        self, op: int, nodeid: int = 1, body: bytes = b"", *, room: int = 4096, uid: int = 0
    ) -> tuple[int, bytes]:
        """Return the errno and the body of the answer; the guest says that it is for `uid`."""
        answer = await self.driver.ask(self.frame(op, nodeid, body, uid), [16, room], indirect=True)
        length, error, unique = struct.unpack_from("=IiQ", answer)
        assert (length, unique) == (len(answer), self.unique)
        return -error, answer[16:]

    async def ok(self, op: int, nodeid: int = 1, body: bytes = b"", **options: int) -> bytes:
        error, answer = await self.ask(op, nodeid, body, **options)
        assert error == 0, os.strerror(error)
        return answer

    async def error(self, op: int, nodeid: int = 1, body: bytes = b"", **options: int) -> int:
        return (await self.ask(op, nodeid, body, **options))[0]

    async def init(self) -> bytes:
        return await self.ok(Op.INIT, body=struct.pack("=IIII I 44x", 7, 38, 131072, 0xFFFF_FFFF, 0xFFFF_FFFF))

    async def lookup(self, *names: str) -> int:
        nodeid = 1
        for name in names:
            nodeid = struct.unpack_from("=Q", await self.ok(Op.LOOKUP, nodeid, name.encode() + b"\0"))[0]
        return nodeid

    async def open(self, nodeid: int, flags: int = os.O_RDONLY, uid: int = 0) -> int:
        return struct.unpack_from("=Q", await self.ok(Op.OPEN, nodeid, struct.pack("=II", flags, 0), uid=uid))[0]

    @staticmethod
    def read(fh: int, size: int = 4096, offset: int = 0) -> bytes:
        return struct.pack("=QQIIQII", fh, offset, size, 0, 0, 0, 0)

    @staticmethod
    def write(fh: int, data: bytes, offset: int = 0) -> bytes:
        return struct.pack("=QQIIQII", fh, offset, len(data), 0, 0, 0, 0) + data


Test = Callable[[Machine, Guest], Awaitable[None]]


def serving(path: Path, root: Node | Callable[[], Node], test: Test, *, user: Caller = ROOT, **options: Any) -> None:
    """Serve `root` and run `await test(machine, guest)` on a queue that has been set up."""

    async def main() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                tree = root if isinstance(root, Node) else root()
                await nursery.start(partial(serve_fs, path / "fs", tree, user, **options))
                machine = await Machine.connect(path / "fs")
                try:
                    await machine.begin()
                    guest = Guest(await machine.queue(1, 128))
                    await guest.init()
                    await test(machine, guest)
                finally:
                    machine.close()
                    nursery.cancel_scope.cancel()
        assert not (path / "fs").exists()

    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    trio.run(main)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def top(tmp_path: Path) -> Path:
    path = tmp_path / "top"
    path.mkdir()
    (path / "small").write_text("hello\n")
    (path / "large").write_bytes(random.Random(1).randbytes(3_000_000))
    return path


def host(top: Path, **options: bool) -> Callable[[], Node]:
    return lambda: HostTree(top, label="test", **options).root


def test_a_guest_reads_a_host_file(tmp_path: Path, top: Path):
    large = (top / "large").read_bytes()

    async def test(machine: Machine, guest: Guest) -> None:
        fh = await guest.open(await guest.lookup("large"))
        for offset, size in ((0, 100), (1, 65536), (2_999_990, 100), (3_000_000, 10), (1 << 40, 10)):
            assert await guest.ok(Op.READ, 1, guest.read(fh, size, offset), room=size) == large[offset : offset + size]
        assert await guest.error(Op.READ, 1, guest.read(fh, 10, (1 << 64) - 1)) == EINVAL
        assert await guest.error(Op.READ, 1, guest.read(fh + 1, 10)) != 0

    serving(tmp_path, host(top), test)


def test_a_read_fills_many_buffers_in_order(tmp_path: Path, top: Path):
    async def test(machine: Machine, guest: Guest) -> None:
        fh = await guest.open(await guest.lookup("large"))
        frame = guest.frame(Op.READ, 1, guest.read(fh, 5 * 4096, 7), 0)
        answer = await guest.driver.ask(frame, [16, *[4096] * 5], indirect=True)
        assert answer[16:] == (top / "large").read_bytes()[7 : 7 + 5 * 4096]

    serving(tmp_path, host(top), test)


def test_made_files_are_read_and_written(tmp_path: Path):
    values = ["first"]
    root = Dir({"value": Text(lambda: values[-1], values.append)}, id=9)

    async def test(machine: Machine, guest: Guest) -> None:
        nodeid = await guest.lookup("value")
        fh = await guest.open(nodeid, os.O_RDWR)
        assert await guest.ok(Op.READ, nodeid, guest.read(fh)) == b"first\n"
        await guest.ok(Op.WRITE, nodeid, guest.write(fh, b"second\n"))
        assert values == ["first", "second"]
        assert await guest.ok(Op.READ, nodeid, guest.read(fh)) == b"second\n"

    serving(tmp_path, root, test)


def test_large_writes_arrive_whole(tmp_path: Path, top: Path):
    data = random.Random(2).randbytes(1 << 20)

    async def test(machine: Machine, guest: Guest) -> None:
        fh = await guest.open(await guest.lookup("small"), os.O_RDWR)
        await guest.ok(Op.WRITE, 1, guest.write(fh, data, 3), room=8)
        assert (top / "small").read_bytes() == b"hel" + data

    serving(tmp_path, host(top), test)


def waiting() -> tuple[Dir, Callable[[], None]]:
    signal, done = Signal(), []

    def finish() -> None:
        done.append(True)
        signal.notify()

    return Dir({"wait": Awaited(lambda: bool(done), lambda: "0", lambda: signal)}, id=9), finish


def test_a_read_that_waits_holds_nobody_up_and_is_answered_when_there_is_something(tmp_path: Path):
    root, finish = waiting()

    async def test(machine: Machine, guest: Guest) -> None:
        nodeid = await guest.lookup("wait")
        fh = await guest.open(nodeid)
        posted = guest.driver.submit(guest.frame(Op.READ, nodeid, guest.read(fh), 0), [16, 64])
        await guest.ok(Op.GETATTR, 1, bytes(16))
        finish()
        ((head, _),) = await guest.driver.returned()
        assert head == posted.head

    serving(tmp_path, root, test, patience=1000)


def test_a_read_that_waits_too_long_is_answered_as_if_interrupted(tmp_path: Path):
    """Linux cannot interrupt a request on virtiofs: this is what lets a signal through."""
    root, finish = waiting()

    async def test(machine: Machine, guest: Guest) -> None:
        nodeid = await guest.lookup("wait")
        fh = await guest.open(nodeid)
        assert await guest.error(Op.READ, nodeid, guest.read(fh)) == EINTR
        finish()
        assert await guest.ok(Op.READ, nodeid, guest.read(fh)) == b"0\n"

    serving(tmp_path, root, test, patience=0.05)


def test_an_interrupt_on_the_first_queue_ends_a_read_on_the_second(tmp_path: Path):
    root, _ = waiting()

    async def test(machine: Machine, guest: Guest) -> None:
        first = Guest(await machine.queue(0, 16))
        nodeid = await guest.lookup("wait")
        fh = await guest.open(nodeid)
        posted = guest.driver.submit(guest.frame(Op.READ, nodeid, guest.read(fh), 0), [16, 64])
        await trio.testing.wait_all_tasks_blocked()
        await first.driver.ask(first.frame(Op.INTERRUPT, 0, struct.pack("=Q", guest.unique), 0))
        await guest.driver.returned()
        assert struct.unpack("=IiQ", guest.driver.read(posted, 16)) == (16, -EINTR, guest.unique)

    serving(tmp_path, root, test, patience=1000)


def test_forgets_come_back_without_an_answer(tmp_path: Path, top: Path):
    async def test(machine: Machine, guest: Guest) -> None:
        first = Guest(await machine.queue(0, 16))
        nodeid = await guest.lookup("small")
        assert await first.driver.ask(first.frame(Op.FORGET, nodeid, struct.pack("=Q", 1), 0)) == b""
        assert await guest.error(Op.GETATTR, nodeid, bytes(16)) != 0

    serving(tmp_path, host(top), test)


def test_nobody_waits_for_a_notice_that_cannot_come(tmp_path: Path):
    root, _ = waiting()

    async def test(machine: Machine, guest: Guest) -> None:
        nodeid = await guest.lookup("wait")
        fh = await guest.open(nodeid)
        assert await guest.error(Op.POLL, nodeid, struct.pack("=QQII", fh, 1, 1, 1)) == ENOSYS

    serving(tmp_path, root, test)


def test_a_halted_machine_gets_its_answers_when_it_goes_on(tmp_path: Path):
    root, finish = waiting()

    async def test(machine: Machine, guest: Guest) -> None:
        nodeid = await guest.lookup("wait")
        fh = await guest.open(nodeid)
        posted = guest.driver.submit(guest.frame(Op.READ, nodeid, guest.read(fh), 0), [16, 64])
        await guest.ok(Op.GETATTR, 1, bytes(16))
        last = await machine.stop(guest.driver)
        finish()
        await trio.testing.wait_all_tasks_blocked()
        assert guest.driver.completions() == []
        await machine.start(guest.driver, last)
        await guest.driver.returned()
        assert guest.driver.read(posted, 18)[16:] == b"0\n"
        await guest.ok(Op.GETATTR, 1, bytes(16))

    serving(tmp_path, root, test, patience=1000)


def test_memory_may_be_shared_anew_while_queues_run(tmp_path: Path, top: Path):
    async def test(machine: Machine, guest: Guest) -> None:
        await machine.share()
        await guest.ok(Op.GETATTR, 1, bytes(16))

    serving(tmp_path, host(top), test)


def test_another_machine_may_follow_and_finds_nothing_of_the_first(tmp_path: Path, top: Path):
    async def test(machine: Machine, guest: Guest) -> None:
        fh = await guest.open(await guest.lookup("small"))
        machine.sock.close()
        second = await Machine.connect(tmp_path / "fs")
        try:
            await second.begin()
            later = Guest(await second.queue(1, 64))
            await later.init()
            assert await later.error(Op.READ, 1, later.read(fh)) != 0
            later_fh = await later.open(await later.lookup("small"))
            assert await later.ok(Op.READ, 1, later.read(later_fh)) == b"hello\n"
        finally:
            second.close()

    serving(tmp_path, host(top), test)


def test_a_machine_that_has_gone_leaves_no_memory_behind(tmp_path: Path, top: Path):
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("/memfd:guest")

    async def test(machine: Machine, guest: Guest) -> None:
        await guest.open(await guest.lookup("small"))
        assert mapped() == 2  # the machine's own, and ours
        gc.disable()
        try:
            machine.sock.close()
            await trio.testing.wait_all_tasks_blocked()
            assert mapped() == 1
        finally:
            gc.enable()

    serving(tmp_path, host(top), test)


# Whom a guest's word does not make


def ask_as(uid: int) -> dict[str, int]:
    return {"uid": uid}


@pytest.mark.root
@pytest.mark.parametrize("claimed", [0, USER_OF_TASK.uid, OTHER])
def test_whoever_a_guest_claims_to_be_it_acts_as_its_user(tmp_path: Path, top: Path, claimed: int):
    for name, owner, mode in (("mine", USER_OF_TASK.uid, 0o600), ("other", OTHER, 0o600), ("roots", 0, 0o644)):
        (top / name).write_text(name)
        os.chown(top / name, owner, owner)
        (top / name).chmod(mode)
    private = top / "private"
    private.mkdir(mode=0o700)
    (private / "secret").write_text("secret")
    sticky = top / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "theirs").write_text("theirs")
    os.chown(sticky / "theirs", OTHER, OTHER)
    (sticky / "theirs").chmod(0o666)

    async def test(machine: Machine, guest: Guest) -> None:
        who = ask_as(claimed)
        nodes = {name: await guest.lookup(name) for name in ("mine", "other", "roots", "private", "sticky")}
        theirs = await guest.lookup("sticky", "theirs")
        flags = struct.pack("=II", os.O_RDWR, 0)
        assert await guest.error(Op.OPEN, nodes["mine"], flags, **who) == 0
        assert await guest.error(Op.OPEN, nodes["other"], flags, **who) == EACCES
        assert await guest.error(Op.OPEN, nodes["roots"], flags, **who) == EACCES
        assert await guest.error(Op.OPEN, nodes["roots"], struct.pack("=II", os.O_TRUNC, 0), **who) == EACCES
        assert await guest.error(Op.LOOKUP, nodes["private"], b"secret\0", **who) == EACCES
        assert await guest.error(Op.MKDIR, 1, struct.pack("=II", 0o755, 0) + b"new\0", **who) == EACCES
        assert await guest.error(Op.UNLINK, 1, b"mine\0", **who) == EACCES
        assert await guest.error(Op.UNLINK, nodes["sticky"], b"theirs\0", **who) == EPERM
        rename = struct.pack("=Q", nodes["sticky"]) + b"theirs\0mine\0"
        assert await guest.error(Op.RENAME, nodes["sticky"], rename, **who) == EPERM
        assert await guest.error(Op.LINK, nodes["sticky"], struct.pack("=Q", nodes["other"]) + b"l\0", **who) == EACCES
        chown = struct.pack("=II 72x II 4x", 1 << 1, 0, USER_OF_TASK.uid, 0)
        assert await guest.error(Op.SETATTR, theirs, chown, **who) == EPERM
        chmod = struct.pack("=II 60x I 16x", 1, 0, 0o777)
        assert await guest.error(Op.SETATTR, theirs, chmod, **who) == EPERM
        assert await guest.error(Op.SETATTR, nodes["mine"], chmod, **who) == 0
        device = struct.pack("=IIII", 0o20666, os.makedev(1, 3), 0, 0) + b"null\0"
        assert await guest.error(Op.MKNOD, nodes["sticky"], device, **who) == EPERM
        body = struct.pack("=IIII", os.O_RDWR, 0o644, 0, 0) + b"made\0"
        await guest.ok(Op.CREATE, nodes["sticky"], body, **who)
        assert (sticky / "made").stat().st_uid == USER_OF_TASK.uid
        trusted = struct.pack("=II", 1, 0) + b"trusted.x\0v"
        assert await guest.error(Op.SETXATTR, nodes["mine"], trusted, **who) == EPERM

    serving(tmp_path, host(top), test, user=USER_OF_TASK)
    assert (top / "mine").stat().st_mode & 0o777 == 0o777
    assert (sticky / "theirs").stat().st_uid == OTHER
    assert not (sticky / "null").exists()


@pytest.mark.root
def test_a_read_only_tree_stays_as_it_is_even_for_root(tmp_path: Path, top: Path):
    async def test(machine: Machine, guest: Guest) -> None:
        nodeid = await guest.lookup("small")
        assert await guest.error(Op.OPEN, nodeid, struct.pack("=II", os.O_WRONLY, 0)) == EROFS
        assert await guest.error(Op.UNLINK, 1, b"small\0") == EROFS
        assert await guest.error(Op.SETATTR, nodeid, struct.pack("=II 60x I 16x", 1, 0, 0o777)) == EROFS
        fh = await guest.open(nodeid)
        assert await guest.error(Op.WRITE, nodeid, guest.write(fh, b"x")) != 0

    serving(tmp_path, host(top, readonly=True), test)
    assert (top / "small").read_text() == "hello\n"


def test_a_writer_may_touch_what_is_not_his(tmp_path: Path):
    """utimensat(2): to about now, who may write may set the times; to other times, only the owner."""
    tree = MemoryTree(label="touch")

    async def test(machine: Machine, guest: Guest) -> None:
        node, handle = await tree.root.create("f", os.O_WRONLY, 0o666, Caller(OTHER, OTHER))
        handle.close()
        nodeid = await guest.lookup("f")
        now = struct.pack("=II 80x", 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8, 0)
        assert await guest.error(Op.SETATTR, nodeid, now) == 0
        then = struct.pack("=II 16x QQ 48x", 1 << 4 | 1 << 5, 0, 1000, 1000)
        assert await guest.error(Op.SETATTR, nodeid, then) == EPERM
        assert (await node.stat()).st_mtime_ns > 10**18

    serving(tmp_path, tree.root, test, user=USER_OF_TASK)


# Requests that no driver makes


def test_an_answer_that_finds_no_room_is_dropped(tmp_path: Path, top: Path):
    async def test(machine: Machine, guest: Guest) -> None:
        driver = guest.driver
        for writable in ([], [8], [16, 4]):
            assert await driver.ask(guest.frame(Op.GETATTR, 1, bytes(16), 0), writable) == b""
        await guest.ok(Op.GETATTR, 1, bytes(16))

    serving(tmp_path, host(top), test)


def test_a_read_gets_no_more_than_it_has_room_for(tmp_path: Path, top: Path):
    async def test(machine: Machine, guest: Guest) -> None:
        fh = await guest.open(await guest.lookup("large"))
        answer = await guest.driver.ask(guest.frame(Op.READ, 1, guest.read(fh, 4096), 0), [16, 100])
        assert answer[16:] == (top / "large").read_bytes()[:100]
        await guest.ok(Op.GETATTR, 1, bytes(16))

    serving(tmp_path, host(top), test)


def test_any_fuse_garbage_is_answered_and_the_guest_served_on(
    tmp_path: Path, top: Path, request: pytest.FixtureRequest
):
    rounds = 20_000 if request.config.option.long else 1_000
    rng = random.Random(11)

    async def test(machine: Machine, guest: Guest) -> None:
        fh = await guest.open(await guest.lookup("small"))
        for _ in range(rounds):
            guest.driver.recycle()
            op = rng.choice([*Op, 0, 7, 4096]) if rng.random() < 0.9 else rng.randrange(1 << 32)
            if op in (Op.DESTROY, Op.INIT):
                continue
            body = bytearray(rng.randbytes(rng.choice([0, 8, 16, 40, 64, 88])))
            if rng.random() < 0.5:
                body[:8] = struct.pack("=Q", rng.choice([fh, 1, 0]))
            frame = bytearray(b"".join(guest.frame(op, rng.choice([0, 1, 2, 1 << 63]), bytes(body), 0)))
            if rng.random() < 0.2:
                frame[rng.randrange(8)] ^= 1 << rng.randrange(8)
            await guest.driver.ask([bytes(frame)], [rng.choice([16, 24, 4096])])
        await guest.ok(Op.GETATTR, 1, bytes(16))

    serving(tmp_path, host(top), test, patience=0.05)


Breaking = Callable[[Machine, Guest], None]


def _head(machine: Machine, guest: Guest) -> None:
    guest.driver.post(999)


def _address(machine: Machine, guest: Guest) -> None:
    guest.driver.descriptor(5, GUEST + SIZE, 64, 0, 0)
    guest.driver.post(5)


def _loop(machine: Machine, guest: Guest) -> None:
    guest.driver.descriptor(5, GUEST, 64, NEXT, 5)
    guest.driver.post(5)


def _index(machine: Machine, guest: Guest) -> None:
    struct.pack_into("<H", machine.memory, guest.driver.available + 2, 40_000)


def _header(machine: Machine, guest: Guest) -> None:
    guest.driver.submit([b"short"], [16])


def _length(machine: Machine, guest: Guest) -> None:
    for number in range(3):
        guest.driver.descriptor(number, GUEST, SIZE, NEXT if number < 2 else 0, number + 1)
    guest.driver.post(0)


@pytest.mark.parametrize(
    "breaks", [_head, _address, _loop, _index, _header, _length], ids=lambda breaks: breaks.__name__
)
def test_a_broken_ring_ends_that_machine_and_no_other(tmp_path: Path, top: Path, breaks: Breaking):
    async def test(machine: Machine, guest: Guest) -> None:
        breaks(machine, guest)
        guest.driver.ring()
        assert await machine.closed()
        second = await Machine.connect(tmp_path / "fs")
        try:
            await second.begin()
            await Guest(await second.queue(1, 64)).init()
        finally:
            second.close()

    serving(tmp_path, host(top), test)


# Requests that no machine makes


@pytest.mark.parametrize(
    ("number", "payload", "fds"),
    [
        (0, b"", 0),
        (9999, b"", 0),
        (Request.SET_FEATURES, b"\xff" * 8, 0),
        (Request.SET_FEATURES, b"short", 0),
        (Request.SET_PROTOCOL_FEATURES, b"\xff" * 8, 0),
        (Request.SET_MEM_TABLE, b"", 0),
        (Request.SET_MEM_TABLE, struct.pack("<II QQQQ", 1, 0, GUEST, SIZE, USER, 0), 0),
        (Request.SET_MEM_TABLE, struct.pack("<II QQQQ", 9, 0, GUEST, SIZE, USER, 0), 1),
        (Request.SET_MEM_TABLE, struct.pack("<II QQQQ", 1, 0, GUEST, 1 << 62, USER, 0), 1),
        (Request.SET_MEM_TABLE, struct.pack("<II QQQQ", 1, 0, GUEST, SIZE, USER, (1 << 64) - 4096), 1),
        (Request.SET_VRING_NUM, struct.pack("<II", 1, 3), 0),
        (Request.SET_VRING_NUM, struct.pack("<II", 99, 16), 0),
        (Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", 1, 0, 1, 2, 3, 0), 0),
        (Request.SET_VRING_BASE, struct.pack("<II", 1, 3), 0),
        (Request.SET_VRING_KICK, struct.pack("<Q", 1 | 1 << 8), 0),
        (Request.SET_VRING_KICK, struct.pack("<Q", 99), 1),
        (Request.SET_VRING_CALL, struct.pack("<Q", 1), 2),
        (Request.SET_VRING_ENABLE, struct.pack("<II", 99, 1), 0),
        (Request.SET_OWNER, b"more", 0),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(tmp_path: Path, number: int, payload: bytes, fds: int):
    async def test(machine: Machine, guest: Guest) -> None:
        with pytest.raises(OSError) as caught:
            await machine.put(number, payload, [machine.fd] * fds)
        assert caught.value.errno == EINVAL

    serving(tmp_path, Dir({}, id=9), test)


def test_a_request_longer_than_any_ends_the_connection(tmp_path: Path):
    async def test(machine: Machine, guest: Guest) -> None:
        with suppress(OSError):
            await machine.send(Request.SET_OWNER, bytes(5000))
        assert await machine.closed()

    serving(tmp_path, Dir({}, id=9), test)


def test_a_machine_that_hangs_up_within_a_request_is_forgotten(tmp_path: Path):
    async def test(machine: Machine, guest: Guest) -> None:
        await machine.sock.send(struct.pack("<III", Request.SET_FEATURES, 1, 8) + b"half")
        machine.sock.close()
        second = await Machine.connect(tmp_path / "fs")
        await second.begin()
        second.close()

    serving(tmp_path, Dir({}, id=9), test)


def test_any_garbage_from_a_machine_is_refused_or_ends_its_connection(tmp_path: Path, request: pytest.FixtureRequest):
    rounds = 5_000 if request.config.option.long else 300
    rng = random.Random(5)

    async def one(machine: Machine) -> None:
        for _ in range(rng.randrange(1, 8)):
            number = rng.choice([*Request]) if rng.random() < 0.9 else rng.randrange(1 << 32)
            payload = rng.randbytes(rng.choice([0, 8, 8, 8, 40, 40, 12, 4096]))
            if len(payload) >= 8 and rng.random() < 0.7:
                payload = struct.pack("<II", rng.randrange(3), rng.choice([0, 1, 16, 64])) + payload[8:]
            await machine.send(number, payload, [machine.fd] * rng.randrange(3), flags=rng.choice([1, 9]))

    async def test(machine: Machine, guest: Guest) -> None:
        machine.sock.close()
        for _ in range(rounds):
            mad = await Machine.connect(tmp_path / "fs", size=1 << 20)
            with suppress(OSError):
                await mad.begin()
                await mad.queue(rng.randrange(2), 16)
                await one(mad)
            mad.close()
        sane = await Machine.connect(tmp_path / "fs")
        await sane.begin()
        later = Guest(await sane.queue(1, 64))
        await later.init()
        assert await later.error(Op.LOOKUP, 1, b"nothing\0") == ENOENT
        sane.close()

    serving(tmp_path, Dir({}, id=9), test)
