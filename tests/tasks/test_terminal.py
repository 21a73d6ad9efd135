"""A task's terminal: what is typed waits while nobody reads it, and ends when nobody can."""

import os
import termios
import tty
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio

from tasks.terminal import Terminal
from vfs.inline import PENDING, resume, start
from vfs.node import Handle


@pytest.fixture
def pair() -> Iterator[tuple[Terminal, int]]:
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    terminal = Terminal(master)
    try:
        yield terminal, slave
    finally:
        for fd in (master, slave):
            with suppress(OSError):
                os.close(fd)


def fill(handle: Handle) -> None:
    """Type until not even one byte more is taken."""
    for size in (4096, 1):
        with pytest.raises(BlockingIOError):
            while True:
                start(handle.write(bytes(size), 0, nonblock=True))


def blocked_writing(handle: Handle) -> Coroutine[Any, Any, int]:
    """Start a write that waits. A full terminal may yet take more: the kernel moves what it has in its own time."""
    while True:
        writing = handle.write(b"more", 0)
        if start(writing) is PENDING:
            return writing


def test_typed_text_arrives(pair: tuple[Terminal, int]) -> None:
    terminal, slave = pair
    handle = terminal.open()
    assert start(handle.write(b"hello\n", 0)) == 6
    assert os.read(slave, 100) == b"hello\n"
    handle.close()


def test_typing_waits_while_the_terminal_is_full_and_goes_on(pair: tuple[Terminal, int]) -> None:
    terminal, slave = pair
    handle = terminal.open()
    fill(handle)

    async def main() -> None:
        writing = blocked_writing(handle)

        async def drain() -> None:
            os.set_blocking(slave, False)
            seen = b""
            while b"more" not in seen:
                await trio.lowlevel.wait_readable(slave)
                seen += os.read(slave, 65536)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain)
                assert await resume(writing) == 4

    trio.run(main)
    handle.close()


def test_typing_to_nobody_is_a_broken_pipe(pair: tuple[Terminal, int]) -> None:
    terminal, slave = pair
    handle = terminal.open()
    os.close(slave)
    with pytest.raises(BrokenPipeError):
        start(handle.write(b"hello", 0))
    handle.close()


def test_typist_who_waits_is_told_that_the_reader_has_gone(pair: tuple[Terminal, int]) -> None:
    terminal, slave = pair
    handle = terminal.open()
    fill(handle)

    async def main() -> None:
        writing = blocked_writing(handle)
        os.close(slave)
        with trio.fail_after(10), pytest.raises(BrokenPipeError):
            await resume(writing)

    trio.run(main)
    handle.close()


def test_size_and_end_of_input_reach_the_program(pair: tuple[Terminal, int]) -> None:
    terminal, slave = pair
    terminal.resize(7, 70)
    assert termios.tcgetwinsize(slave) == (7, 70)
    mode = termios.tcgetattr(slave)
    mode[3] |= termios.ICANON
    termios.tcsetattr(slave, termios.TCSANOW, mode)
    terminal.end_input()
    assert os.read(slave, 10) == b""
