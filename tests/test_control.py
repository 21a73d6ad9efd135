"""vfs.control: one command a line, its error is that write's, and what came before it has happened."""

import os

import pytest
import trio

from vfs.control import MAX_LINE, Control, usage
from vfs.node import ROOT
from vfs.words import split_commands


class Machine:
    """A control file whose verbs note what they were told."""

    def __init__(self):
        self.done = []
        self.node = Control({"go": self.go, "set": self.set, "say": self.say, "fail": self.fail})

    def go(self) -> None:
        """go on"""
        self.done.append("go")

    @usage("set NAME [VALUE]")
    def set(self, name: str, value: str = "1") -> None:
        """set NAME"""
        self.done.append((name, value))

    async def say(self, first: str, *more: str) -> None:
        """say it"""
        await trio.lowlevel.checkpoint()
        self.done.append((first, *more))

    def fail(self) -> None:
        """never works"""
        raise OSError(16, "busy now")


async def write(node, *pieces, flush=True):
    handle = await node.open(os.O_WRONLY, ROOT)
    try:
        offset = 0
        for piece in pieces:
            offset += await handle.write(piece, offset)
        if flush:
            await handle.flush()
        return offset
    finally:
        handle.close()


def refused(*pieces):
    machine = Machine()
    with pytest.raises(OSError) as info:
        trio.run(write, machine.node, *pieces)
    return machine, info.value


def test_commands_run_in_order_in_one_write():
    machine = Machine()
    assert trio.run(write, machine.node, b"go\nset a\nset b 'two words'\nsay x y z") == 36
    assert machine.done == ["go", ("a", "1"), ("b", "two words"), ("x", "y", "z")]


def test_lines_before_a_refused_one_have_run_and_those_after_have_not():
    machine, error = refused(b"go\nfail\nset a\n")
    assert (error.errno, machine.done) == (16, ["go"])
    assert machine.node.manual(machine.node.verbs).startswith("# error: busy now\n")
    trio.run(write, machine.node, b"go\n")
    assert "error" not in machine.node.manual(machine.node.verbs)


@pytest.mark.parametrize(
    "line",
    [
        b"nope\n",
        b"go now\n",
        b"set\n",
        b"set a b c\n",
        b"say\n",
        b"set 'a\n",
        b"set a\\",
        b"set a\0b\n",
        bytes(range(1, 9)) + b"\n",
        b"\xff\xfe\xfd\n",
    ],
)
def test_bad_lines_are_einval_and_change_nothing(line):
    machine, error = refused(line)
    assert (error.errno, machine.done) == (22, [])
    assert machine.node.refusal.error


def test_bytes_that_are_no_utf8_reach_the_verb_unchanged():
    machine = Machine()
    trio.run(write, machine.node, b"set \xff\xfe\n")
    assert os.fsencode(machine.done[0][0]) == b"\xff\xfe"


def test_a_tail_waits_for_the_next_write_after_a_full_one():
    machine = Machine()
    line = b"say " + b"x" * 5000 + b" end\n"
    trio.run(write, machine.node, line[:4096], line[4096:])
    assert machine.done == [("x" * 5000, "end")]


def test_a_tail_after_a_full_write_runs_at_close():
    machine = Machine()
    trio.run(write, machine.node, b"say " + b"x" * 4092)
    assert machine.done == [("x" * 4092,)]


def test_a_short_write_without_newline_runs_at_once():
    machine = Machine()

    async def main():
        handle = await machine.node.open(os.O_WRONLY, ROOT)
        await handle.write(b"go", 0)
        assert machine.done == ["go"]
        handle.close()

    trio.run(main)


@pytest.mark.parametrize("line", [b"x" * (MAX_LINE + 1), b"say '" + b"y" * MAX_LINE, b"say " + b"z " * MAX_LINE])
def test_a_line_has_a_largest_size(line):
    machine, error = refused(*(line[i : i + 65536] for i in range(0, len(line), 65536)), b"\n")
    assert (error.errno, machine.done) == (7, [])


def test_reading_gives_the_manual():
    async def main():
        handle = await Machine().node.open(os.O_RDONLY, ROOT)
        return (await handle.read(4096, 0)).decode().splitlines()

    lines = trio.run(main)
    assert [line.partition("#")[0].strip() for line in lines] == [
        "go",
        "set NAME [VALUE]",
        "say FIRST [MORE...]",
        "fail",
    ]
    assert lines[0].endswith("# go on")


def test_a_long_line_in_full_writes_is_looked_through_once(monkeypatch):
    machine = Machine()
    seen = []
    monkeypatch.setattr("vfs.control.split_commands", lambda text: seen.append(len(text)) or split_commands(text))

    async def main():
        handle = await machine.node.open(os.O_WRONLY, ROOT)
        await handle.write(b"say " + b"a " * 2046, 0)
        for n in range(1, 100):
            await handle.write(b"a " * 2048, n * 4096)
        await handle.write(b"\n", 100 * 4096)
        handle.close()

    trio.run(main)
    assert len(machine.done[0]) == 2046 + 99 * 2048
    assert sum(seen) <= 2 * 101 * 4096
