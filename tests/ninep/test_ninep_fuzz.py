"""The session against mutated and senseless frames: it answers or drops the connection, and leaks nothing."""

import gc
import os
import random
from collections import Counter
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory

import pytest
import trio
from frames import GOLDEN
from ninepkit import ALICE, Slow, Wire

from vfs.conformance import NodeFiles, remove_tree
from vfs.directory import Dir
from vfs.host import HostTree
from vfs.inline import start
from vfs.memory import MemoryTree
from vfs.ninep.codec import ProtocolError, encode
from vfs.ninep.messages import MESSAGES, NUMBER
from vfs.node import ROOT

CORPUS = [golden.frame for golden in GOLDEN if golden.name[0] == "T"]
RARE = ("Tversion", "Tattach", "Tauth", "Tclunk", "Tremove", "Tflush")
ON_OPEN = ("Tread", "Twrite", "Treaddir", "Tfsync", "Tlock", "Tgetlock", "Tclunk")
NAMES = [*"abcabcabcabc", "slow", "dir", "dir", "..", ".", "", "x" * 256, "a/b", "n\0", "\udcff", "user.a"]
PLACES = [(), ("dir",), ("dir", "a"), ("dir", "b"), ("dir", "link"), ("slow",)]
FIDS = (0, 0, 1, 2, 3, 4, 5, 6, 7, 0xFFFFFFFF)


def fid_for(rng, field, request, fids):
    """Return a fid that fits the request, mostly."""
    if rng.random() < 0.1:
        return rng.choice(FIDS)
    if field == "newfid":
        fitting = [number for number in range(1, 16) if number not in fids]
    else:
        fitting = [number for number, fid in fids.items() if (fid.handle is not None) == (request in ON_OPEN)]
    return rng.choice(fitting or FIDS)


def sensible(rng, fids):
    """Return a request whose every field is of the kind that a client with these fids would send."""
    requests = [m for m in MESSAGES.values() if m.name[0] == "T"]
    message = rng.choices(requests, [1 if m.name in RARE else 20 for m in requests])[0]
    values = []
    for field, kind in message.fields:
        if "fid" in field:
            value = fid_for(rng, field, message.name, fids)
        elif kind == "s" and "xattr" in message.name and rng.random() < 0.8:
            value = rng.choice(("", "user.a", "user.a"))
        elif kind == "s":
            value = "9P2000.L" if field == "version" else rng.choice(NAMES)
        elif kind == "s*":
            value = tuple(rng.choices(NAMES, k=rng.choice((0, 1, 1, 2, 17))))
        elif kind == "d":
            value = rng.randbytes(rng.choice((0, 1, 10, 5000)))
        elif field == "oldtag":
            value = rng.randrange(50)
        elif field == "msize":
            value = rng.choice((0, 4120, 8192, 1 << 31))
        elif field in ("type", "flags", "offset", "count", "attr_size") and rng.random() < 0.8:
            value = rng.choice((0, 0, 1, 2, 2, 100))
        else:
            bits = 8 * int(kind)
            value = rng.choice((0, 0, 1, 2, 2, 3, 100, rng.getrandbits(bits), (1 << bits) - 1))
        values.append(value)
    return encode(message.name, rng.randrange(50), *values)


def mutated(rng, frame):
    """Return a frame with some bytes changed, its size mostly put right again."""
    frame = bytearray(frame)
    for _ in range(rng.choice((1, 1, 2, 8))):
        frame[rng.randrange(4, len(frame))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    if rng.random() < 0.2:
        del frame[rng.randrange(7, len(frame) + 1) :]
    if rng.random() < 0.2:
        frame += rng.randbytes(rng.randrange(30))
    size = rng.getrandbits(32) if rng.random() < 0.002 else len(frame)
    return size.to_bytes(4, "little") + bytes(frame[4:])


def senseless(rng, fids):
    frame = sensible(rng, fids) if rng.random() < 0.95 else rng.choice(CORPUS)
    return mutated(rng, frame) if rng.random() < 0.2 else frame


@contextmanager
def in_memory():
    """Give the root of a memory tree; afterwards it must be no larger than it was."""
    tree = MemoryTree(label="t", mode=0o777, max_bytes=1 << 20)
    budget = tree.used
    yield tree.root
    start_over(tree)
    assert tree.used == budget, "memory is held by what is gone"


@contextmanager
def on_the_host():
    """Give the root of a host tree; afterwards no descriptor of it may be open."""
    with TemporaryDirectory() as top:
        os.chmod(top, 0o777)
        gc.collect()
        tree = HostTree(top, label="t")
        before = len(os.listdir("/proc/self/fd"))
        yield tree.root
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before


def play(seed, count, ground):
    """Play `count` frames against sessions, a new one whenever one is dropped; returns (answered, dropped)."""
    rng = random.Random(seed)
    slow = Slow()
    answered = Counter()
    dropped = 0

    async def main():
        nonlocal dropped
        left = count
        while left > 0:
            place = ExitStack()
            root = Dir({"slow": slow, "dir": place.enter_context(ground())}, mode=0o777, id=5)
            wire = Wire(root, rng.choice((ROOT, ALICE)))
            wire.attach(msize=8192)
            wire.make("dir/a", b"text", 0o666)
            wire.ask("Twalk", 0, 1, ("dir",))
            wire.ask("Tsymlink", 1, "link", "a", 0)
            async with trio.open_nursery() as nursery:
                try:
                    for _ in range(min(left, 2000)):
                        if 0 not in wire.session.operations.fids:
                            wire.attach(msize=8192)
                        missing = rng.choice(FIDS[2:9])
                        if missing not in wire.session.operations.fids:
                            wire.send(encode("Twalk", 60, 0, missing, rng.choice(PLACES)))
                        left -= 1
                        answered.update(name for name, _, _ in wire.send(senseless(rng, wire.session.operations.fids)))
                        if rng.random() < 0.05:
                            slow.feed(b"x", room=1)
                            await wire.run_waiting(nursery)
                            answered.update(name for name, _, _ in wire.replies())
                except ProtocolError:
                    dropped += 1
                wire.session.close()
                await wire.run_waiting(nursery)
            assert slow.open_handles == 0
            assert not wire.session.operations.fids
            assert not wire.session.waiting
            assert wire.session._waiting_bytes == 0
            locks = wire.session.operations._locks
            assert not locks._held
            assert not locks._waiting
            del wire, root
            place.close()
            slow.chunks.clear()
            slow.room = 0

    trio.run(main)
    return answered, dropped


def start_over(tree):
    """Remove everything from a memory tree."""
    files = NodeFiles(tree.root, ROOT)
    for entry in start(files.readdir("")):
        inner = start(files.stat(entry.name))
        start(remove_tree(files, entry.name) if inner.st_mode & 0o170000 == 0o040000 else files.unlink(entry.name))
    for name in start(tree.root.listxattr()):
        start(tree.root.removexattr(name, ROOT))


def check(seed, count, monkeypatch, ground=in_memory):
    def no_bug(*words, **facts):
        raise AssertionError(facts["traceback"])

    monkeypatch.setattr("vfs.errors.log", no_bug)
    return play(seed, count, ground)


def test_senseless_frames_are_answered_or_end_the_connection_and_nothing_leaks(monkeypatch):
    answered, dropped = Counter(), 0
    for seed in range(5):
        more, drops = check(seed, 4000, monkeypatch)
        answered += more
        dropped += drops
    assert dropped > 5
    unreached = {"Rauth"}  # always refused
    assert set(answered) == {"Rlerror"} | {name for name in NUMBER if name[0] == "R"} - unreached


@pytest.mark.parametrize("seed", range(200, 203))
def test_senseless_frames_leave_no_descriptor_of_host_files(seed, monkeypatch):
    answered, _ = check(seed, 4000, monkeypatch, on_the_host)
    assert answered["Rread"] and answered["Rwrite"] and answered["Rrenameat"]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 150))
def test_a_million_senseless_frames(seed, monkeypatch):
    answered, _ = check(seed, 20_000, monkeypatch)
    assert answered.total() > 10_000
