"""What a module learns of its process: words, environment, clocks, randomness, waiting, and how it ends."""

import os
import struct
import time
from pathlib import Path

import pytest
import trio
import wasmtime
from wasikit import BADF, CREATE, FAULT, INVAL, NOTSUP, SUCCESS, Cell, Ended, Program, node

from tasks.fds import Held

REALTIME, MONOTONIC = 0, 1
CLOCK, FD_READ, FD_WRITE = 0, 1, 2


def ended(tmp_path: Path, program: Program, *words: str, stdin: bytes | None = None) -> Ended:
    async def main() -> Ended:
        async with node(tmp_path) as here:
            task = await here.task(program, *words)
            if stdin is not None:
                await here.echo(stdin, f"/task/{task}/fd/0")
            return await here.end(task)

    return trio.run(main)


def strings(program: Program, kind: str) -> tuple[Cell, Cell, Cell, Cell]:
    """Add the fetching of args or environ: (count, size, pointers, text)."""
    count, size, pointers, text = program.u32(), program.u32(), program.room(256), program.room(4096)
    program.call(f"{kind}_sizes_get", count, size)
    program.call(f"{kind}_get", pointers, text)
    return count, size, pointers, text


def test_arguments_and_environment_arrive_whole(tmp_path: Path) -> None:
    program = Program()
    args, env = strings(program, "args"), strings(program, "environ")

    async def main() -> Ended:
        async with node(tmp_path) as here:
            path = here.put("program.wasm", program.compile())
            task = await here.new(f"cmd {path} 'two words' '' ü")
            await here.echo("K=V W=X\nE=", f"/task/{task}/env")
            await here.echo("start", f"/task/{task}/ctl")
            return await here.end(task)

    found = trio.run(main)
    words = found.bytes(args[3])[: found[args[1]]].split(b"\0")
    assert words == [b"/tmp/program.wasm", b"two words", b"", "ü".encode(), b""]
    assert found[args[0]] == 4
    start = int(args[3])
    pointers = struct.unpack_from("<4I", found.bytes(args[2]))
    assert pointers == (start, start + 18, start + 28, start + 29)
    environment = dict(entry.split(b"=", 1) for entry in found.bytes(env[3])[: found[env[1]]].split(b"\0") if entry)
    assert len(environment) == found[env[0]]
    assert environment[b"K"] == b"V W=X" and environment[b"E"] == b""
    assert environment[b"HOME"] == environment[b"PWD"]


def test_clocks_tell_the_time_and_their_resolution(tmp_path: Path) -> None:
    program = Program()
    times = [program.room(8) for _ in range(5)]
    for number, cell in enumerate(times[:4]):
        program.call("clock_time_get", number, 0, cell)
    program.call("clock_time_get", MONOTONIC, 0, times[4])
    unknown = program.call("clock_time_get", 4, 0, program.room(8))
    resolution = program.room(8)
    program.call("clock_res_get", MONOTONIC, resolution)
    no_resolution = program.call("clock_res_get", 9, program.room(8))
    before = time.time_ns()
    found = ended(tmp_path, program)
    assert before <= found.u64(times[0]) <= time.time_ns()
    assert 0 < found.u64(times[1]) <= found.u64(times[4]) <= time.monotonic_ns()
    assert 0 < found.u64(times[3]) <= found.u64(times[2]) < 60 * 10**9 or found.u64(times[2]) > 0
    assert (found[unknown], found[no_resolution]) == (INVAL, INVAL)
    assert 1 <= found.u64(resolution) <= 10**9


def test_random_bytes_are_fresh_in_every_task(tmp_path: Path) -> None:
    program = Program()
    one, two = program.room(32), program.room(32)
    program.call("random_get", one, 32)
    program.call("random_get", two, 32)
    yielded = program.call("sched_yield")

    async def main() -> list[Ended]:
        async with node(tmp_path) as here:
            return [await here.run(program) for _ in range(3)]

    runs = trio.run(main)
    assert len({found.bytes(cell) for found in runs for cell in (one, two)}) == 6
    assert runs[0][yielded] == SUCCESS


def subscribed(program: Program, *subscriptions: tuple[int, ...]) -> tuple[Cell, Cell, Cell]:
    """Add a poll_oneoff of (userdata, kind, subject, timeout, flags); return (errno, count, events)."""
    raw = b"".join(
        struct.pack("<QB7xI4xQQH6x", userdata, kind, subject, timeout, 0, flags)
        for userdata, kind, subject, timeout, flags in subscriptions
    )
    count, events = program.u32(), program.room(32 * max(1, len(subscriptions)))
    return program.call("poll_oneoff", program.data(raw), events, len(subscriptions), count), count, events


def events_of(found: Ended, poll: tuple[Cell, Cell, Cell]) -> list[tuple[int, ...]]:
    """Return (userdata, errno, kind, bytes, flags) of each event."""
    assert found[poll[0]] == SUCCESS
    return list(struct.iter_unpack("<QHB5xQH6x", found.bytes(poll[2], 32 * found[poll[1]])))


def test_poll_waits_for_the_clock_it_is_given(tmp_path: Path) -> None:
    program = Program()
    times = [program.room(8) for _ in range(4)]
    program.call("clock_time_get", MONOTONIC, 0, times[0])
    slept = subscribed(program, (7, CLOCK, MONOTONIC, 60_000_000, 0), (8, CLOCK, MONOTONIC, 10**12, 0))
    program.call("clock_time_get", MONOTONIC, 0, times[1])
    past = subscribed(program, (9, CLOCK, REALTIME, 5, 1))
    program.call("clock_time_get", MONOTONIC, 0, times[2])
    found = ended(tmp_path, program)
    assert events_of(found, slept) == [(7, 0, CLOCK, 0, 0)]
    assert events_of(found, past) == [(9, 0, CLOCK, 0, 0)]
    assert found.u64(times[1]) - found.u64(times[0]) >= 60_000_000


def test_poll_tells_what_descriptors_are_ready_for(tmp_path: Path) -> None:
    program = Program()
    fd = program.open("tmp/new", CREATE)
    program.write(fd.value, b"12345")
    program.call("fd_seek", fd.value, 2, 0, program.room(8))
    waited = subscribed(program, (1, FD_READ, 0, 0, 0), (2, CLOCK, MONOTONIC, 10**12, 0))
    line, count = program.room(16), program.u32()
    program.call("fd_read", 0, *program.vector(line), count)
    mixed = subscribed(
        program,
        (3, FD_WRITE, 1, 0, 0),
        (4, FD_READ, 99, 0, 0),
        (5, CLOCK, 9, 0, 0),
        (6, FD_READ, 4, 0, 0),
        (7, CLOCK, MONOTONIC, 10**12, 0),
    )
    none = program.call("poll_oneoff", 0, 0, 0, program.u32())
    many = program.call("poll_oneoff", 0, 0, 1 << 20, program.u32())
    cpu = subscribed(program, (8, CLOCK, 2, 1, 0))
    found = ended(tmp_path, program, stdin=b"abc\n")
    assert events_of(found, waited) == [(1, 0, FD_READ, 4, 0)]
    assert sorted(events_of(found, mixed)) == [
        (3, 0, FD_WRITE, 0, 0),
        (4, BADF, FD_READ, 0, 0),
        (5, INVAL, CLOCK, 0, 0),
        (6, 0, FD_READ, 3, 0),
    ]
    assert (found[none], found[many]) == (INVAL, INVAL)
    assert events_of(found, cpu) == [(8, NOTSUP, CLOCK, 0, 0)]


@pytest.mark.parametrize(("code", "shown"), [(0, 0), (3, 3), (255, 255), (256, 0)])
def test_exit_code_is_the_modules(tmp_path: Path, code: int, shown: int) -> None:
    async def main() -> Ended:
        async with node(tmp_path) as here:
            return await here.run(Program().compile(exit=code))

    found = trio.run(main)
    assert (found.code, found.reason, found.error) == (shown, "exited", "")


@pytest.mark.parametrize(("number", "code"), [(9, 137), (15, 143), (2, 130), (17, 0)])
def test_signal_to_itself_is_sent_by_wasis_number(tmp_path: Path, number: int, code: int) -> None:
    """17 is SIGCONT in WASI, which changes nothing."""
    program = Program()
    program.call("proc_raise", number)
    assert ended(tmp_path, program).code == code


def test_a_closed_pipe_is_an_error_and_no_signal(tmp_path: Path) -> None:
    program = Program()
    written = program.write(5, b"nobody reads")

    async def main() -> Ended:
        async with node(tmp_path) as here:
            path = here.put("program.wasm", program.compile())
            task = await here.new(f"cmd {path}")
            reader, writer = os.pipe()
            here.record(task).fds.set(5, Held(writer, "pipe"))
            os.close(reader)
            await here.echo("start", f"/task/{task}/ctl")
            return await here.end(task)

    found = trio.run(main)
    assert found[written] == 64 and found.code == 0


def test_functions_without_a_memory_export_fail_cleanly(tmp_path: Path) -> None:
    text = """(module (import "wasi_snapshot_preview1" "random_get" (func $r (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $x (param i32)))
        (memory 1) (func (export "_start") (call $x (call $r (i32.const 0) (i32.const 1)))))"""

    async def main() -> Ended:
        async with node(tmp_path) as here:
            return await here.run(bytes(wasmtime.wat2wasm(text)))

    assert trio.run(main).code == FAULT
