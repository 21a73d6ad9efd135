"""WASI tasks as tasks: what is refused at start, kills, limits, traps, the cache, and a module that drives /task."""

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from errno import EACCES, ENOENT, ENOEXEC, ENOMEM, ENOTSUP
from pathlib import Path

import pytest
import trio
import wasmtime
from wasikit import ANY, CREATE, IO, READ_ONLY, SUCCESS, Node, Program, node, own_users

from tests.drivers.recorder import alive, until

Body = Callable[[Node], Awaitable[None]]


def run(tmp_path: Path, body: Body) -> None:
    async def main() -> None:
        async with node(tmp_path) as here:
            await body(here)

    trio.run(main)


def wat(body: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {body})"))


START = '(func (export "_start"))'
SPIN = wat('(func (export "_start") (loop $again (br $again)))')
SPIN_AT_START = wat(f"(func $spin (loop $again (br $again))) (start $spin) {START}")
SAY = Program()
SAY.write(2, b"ready")
SLOW = Program()
SLOW.write(2, b"ready")
SLOW.call("fd_read", 0, *SLOW.vector(SLOW.room(8)), SLOW.u32())

REFUSED = {
    "text": (b"#!/bin/sh\n", ENOEXEC, "not a WebAssembly module"),
    "empty": (b"", ENOEXEC, "empty"),
    "magic only": (b"\0asm", ENOEXEC, "not a WebAssembly module"),
    "truncated": (Program().compile()[:-10], ENOEXEC, ""),
    "component": (b"\0asm\x0d\0\1\0", ENOEXEC, "component"),
    "other version": (b"\0asm\2\0\0\0", ENOEXEC, "version"),
    "no _start": (wat('(func (export "main"))'), ENOEXEC, "_start"),
    "_start with parameters": (wat('(func (export "_start") (param i32))'), ENOEXEC, "_start"),
    "_start a memory": (wat('(memory (export "_start") 1)'), ENOEXEC, "_start"),
    "unknown import": (wat(f'(import "env" "f" (func)) {START}'), ENOEXEC, "env.f"),
    "unknown function": (wat(f'(import "wasi_snapshot_preview1" "fd_dance" (func)) {START}'), ENOEXEC, "fd_dance"),
    "wrong type": (wat(f'(import "wasi_snapshot_preview1" "fd_close" (func)) {START}'), ENOEXEC, "fd_close"),
    "older wasi": (wat(f'(import "wasi_unstable" "fd_close" (func)) {START}'), ENOEXEC, "wasi_unstable"),
    "imported memory": (wat(f'(import "env" "memory" (memory 1)) {START}'), ENOEXEC, "env.memory"),
    "shared memory": (b"\0asm\1\0\0\0\5\4\1\3\1\1", ENOEXEC, ""),
    "garbage": (b"\0asm\1\0\0\0" + bytes(range(256)), ENOEXEC, ""),
}


def test_what_cannot_run_is_refused_at_start_with_the_reason(tmp_path: Path) -> None:
    async def body(here: Node) -> None:
        for name, (content, errno, said) in REFUSED.items():
            path = here.put("bad.wasm", content)
            task = await here.new("type wasi", f"cmd {path}")
            with pytest.raises(OSError) as raised:
                await here.echo("start", f"/task/{task}/ctl")
            error = await here.cat(f"/task/{task}/error")
            assert raised.value.errno == errno and said in error and error, (name, error)
            assert await here.cat(f"/task/{task}/status") == "allocated\n"
            here.put("bad.wasm", Program().compile())
            await here.echo("start", f"/task/{task}/ctl")  # once there is something to run it does
            assert (await here.end(task)).code == 0

    run(tmp_path, body)


@own_users
def test_a_program_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    async def body(here: Node) -> None:
        (here.tmp / "folder.wasm").mkdir()
        secret = here.put("secret.wasm", Program().compile())
        (here.tmp / "secret.wasm").chmod(0o711)
        for path, errno in (("/tmp/none.wasm", ENOENT), ("/tmp/folder.wasm", EACCES), (secret, EACCES)):
            with pytest.raises(OSError) as raised:
                await here.new("type wasi", f"cmd {path}", "start")
            assert raised.value.errno == errno, path

    run(tmp_path, body)


def test_kill_ends_a_spinning_module_at_once(tmp_path: Path) -> None:
    async def body(here: Node) -> None:
        for number, code in ((15, 143), (9, 137), (10, 138), (2, 130)):
            task = await here.task(SPIN if number != 9 else SPIN_AT_START)
            pid = here.record(task).main_pid
            await here.echo(f"kill {number}", f"/task/{task}/ctl")
            found = await here.end(task)
            assert (found.code, found.reason) == (code, f"signal {number}")
            assert not alive(pid)

    run(tmp_path, body)


def test_timeout_pause_and_figures_are_those_of_every_task(tmp_path: Path) -> None:
    async def body(here: Node) -> None:
        task = await here.task(SPIN, timeout="0.2", nice="5")
        pid = here.record(task).main_pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == 5
        figures = {name: await here.cat(f"/task/{task}/stat/{name}") for name in ("mem", "cpu", "io")}
        assert "current_bytes" in figures["mem"] and "user_usec" in figures["cpu"]
        found = await here.end(task)
        assert (found.code, found.reason) == (143, "timed out after 0.2 s")
        other = await here.task(SLOW)
        await here.echo("pause", f"/task/{other}/ctl")
        assert await here.cat(f"/task/{other}/status") == "stopped\n"
        await here.echo("resume", f"/task/{other}/ctl")
        await here.echo("close", f"/task/{other}/fd/0ctl")
        assert (await here.end(other)).code == 0

    run(tmp_path, body)


CALL_DEEP = '(func (export "_start") call $deep)'
TRAPS = {
    "unreachable": ("(func $deep unreachable)" + CALL_DEEP, "unreachable"),
    "recursion": ("(func $deep call $deep)" + CALL_DEEP, "call stack exhausted"),
    "start section": ("(func $deep unreachable) (start $deep)" + START, "unreachable"),
    "memory": (
        '(memory 1) (func $deep (drop (i32.load (i32.const -1)))) (func (export "_start") call $deep)',
        "out of bounds",
    ),
    "division": (
        '(func $deep (drop (i32.div_u (i32.const 1) (i32.const 0)))) (func (export "_start") call $deep)',
        "divide by zero",
    ),
}


def test_traps_are_told_with_the_backtrace(tmp_path: Path) -> None:
    async def body(here: Node) -> None:
        for name, (text, said) in TRAPS.items():
            found = await here.run(wat(text))
            assert (found.code, found.reason) == (134, "trap"), name
            assert said in found.error and "!deep" in found.error and "wasm backtrace" in found.error, found.error
        assert (await here.run(Program())).code == 0

    run(tmp_path, body)


GROW = wat("""(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (if (i32.eq (memory.grow (i32.const 15)) (i32.const 1)) (then
            (if (i32.eq (memory.grow (i32.const 1600)) (i32.const -1)) (then (call $exit (i32.const 7)))))))""")


def test_memlimit_makes_growing_fail_in_the_module(tmp_path: Path) -> None:
    async def body(here: Node) -> None:
        assert (await here.run(GROW, memlimit="16M")).code == 7
        assert (await here.run(GROW)).code == 0
        huge = wat(f"(memory 65536) {START}")
        assert (await here.run(huge)).code == 0  # address space, not memory
        with pytest.raises(OSError) as raised:
            await here.task(wat(f'(memory (export "memory") 65536) {START}'), memlimit="1G")
        assert raised.value.errno == ENOMEM
        hidden = await here.run(huge, memlimit="1G")
        assert hidden.code == 134 and "memory" in hidden.error

    run(tmp_path, body)


def test_runner_has_no_privilege_no_file_system_and_no_other_file(tmp_path: Path) -> None:
    async def body(here: Node) -> None:
        task = await here.task(SLOW)
        pid = here.record(task).main_pid
        status = Path(f"/proc/{pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status and "Threads:\t1" in status and "SigBlk:\t0000000000000000" in status
        assert "Seccomp:\t2" in status
        assert f"PPid:\t{here.driver.supervisor_pid}\n" in status
        if os.geteuid() == 0:
            assert f"Uid:\t{here.record(task).uid}\t" in status and "CapEff:\t0000000000000000" in status
            assert os.listdir(f"/proc/{pid}/root/") == []
            files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            kinds = sorted(file.split(":")[0] if ":" in file else Path(file).parent.name for file in files)
            assert kinds == ["pipe", "pipe", "pipe", "socket", "wasm"]
        else:
            with pytest.raises(PermissionError):  # not even to its own user
                os.listdir(f"/proc/{pid}/fd")
        await here.echo("kill 9", f"/task/{task}/ctl")
        await here.end(task)

    run(tmp_path, body)


def test_module_is_compiled_once_and_a_foreign_or_spoilt_copy_again(tmp_path: Path) -> None:
    async def body(here: Node) -> None:
        cache = tmp_path / "state/wasm"
        assert cache.stat().st_mode & 0o777 == 0o700
        for _ in range(2):
            assert (await here.run(Program())).code == 0
        (kept,) = cache.iterdir()
        assert kept.stat().st_mode & 0o077 == 0
        stored = kept.stat()
        assert (await here.run(Program(), "again")).code == 0
        assert (kept.stat().st_ino, kept.stat().st_size) == (stored.st_ino, stored.st_size)
        kept.write_bytes(b"no code at all")
        assert (await here.run(Program())).code == 0
        assert kept.stat().st_size == stored.st_size
        assert (await here.run(SAY)).code == 0
        assert len(list(cache.iterdir())) == 2

    run(tmp_path, body)


def test_warm_program_that_died_is_started_again(tmp_path: Path) -> None:
    async def body(here: Node) -> None:
        waiting = await here.task(SLOW)
        parent = here.driver.supervisor_pid
        zygotes = [
            int(pid)
            for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            if b"zygote.py" in Path(f"/proc/{pid}/cmdline").read_bytes() and int(pid) != here.record(waiting).main_pid
        ]
        assert len(zygotes) == 1
        os.kill(zygotes[0], signal.SIGKILL)
        await until(lambda: not alive(zygotes[0]))
        assert (await here.run(Program())).code == 0
        await here.echo("close", f"/task/{waiting}/fd/0ctl")
        assert (await here.end(waiting)).code == 0

    run(tmp_path, body)


def test_many_tasks_run_at_once_and_leave_nothing_open(tmp_path: Path) -> None:
    async def body(here: Node) -> None:
        assert (await here.run(Program())).code == 0
        before = len(os.listdir("/proc/self/fd"))
        names = [str(number) for number in range(30)]
        program = Program()
        fd = program.open("tmp/new", CREATE)
        program.write(fd.value, b"mine")
        codes: list[int] = []

        async def one(name: str) -> None:
            codes.append((await here.run(program, name)).code)

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(one, name)
        assert codes == [0] * len(names)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)

    run(tmp_path, body)


def test_a_module_makes_configures_and_waits_for_a_task(tmp_path: Path) -> None:
    """It reads /task/new; where its own number would go in a path it opens the alias that it gives."""
    program = Program()
    new = program.open("task/new", 0, READ_ONLY)
    number, count = program.room(16), program.u32()
    program.call("fd_read", new.value, *program.vector(number), count)
    # "task/" + number + "/ctl", put together in memory: the number's digits are read to where the path has room
    path = program.data(b"task/" + bytes(20))
    program.code(f"(memory.copy (i32.const {path + 5}) (i32.const {int(number)}) (i32.load (i32.const {int(count)})))")
    program.code(
        f"(memory.copy (i32.add (i32.const {path + 4}) (i32.load (i32.const {int(count)})))"
        f" (i32.const {int(program.data(b'/ctl'))}) (i32.const 4))"
    )
    ctl = program.u32()
    size = f"(i32.add (i32.const 8) (i32.load (i32.const {int(count)})))"
    opened = program.call("path_open", 3, 1, path, size, 0, ANY, ANY, 0, ctl)
    told = program.write(ctl.value, b"alias child\ncmd /tmp/child.wasm one\nstart\n")
    wait = program.open("task/child/wait", 0, READ_ONLY)
    code, code_size = program.room(16), program.u32()
    program.call("fd_read", wait.value, *program.vector(code), code_size)
    output = program.open("task/child/fd/2", 0, READ_ONLY)
    text, text_size = program.room(16), program.u32()
    program.call("fd_read", output.value, *program.vector(text), text_size)

    async def body(here: Node) -> None:
        here.put("child.wasm", SAY.compile(exit=5))
        found = await here.run(program)
        assert found.code == 0 and (found[opened], found[told]) == (SUCCESS, SUCCESS)
        assert found.bytes(code, found[code_size]) == b"5\n"
        assert found.bytes(text, found[text_size]) == b"ready"

    run(tmp_path, body)


def test_wasi_task_reads_what_a_linux_task_pipes_to_it(tmp_path: Path) -> None:
    program = Program()
    text, count = program.room(16), program.u32()
    program.call("fd_read", 0, *program.vector(text), count)

    async def body(here: Node) -> None:
        reader = await here.new(f"cmd {here.put('reader.wasm', program.compile())}")
        writer = await here.new("type linux", "cmd echo through")
        await here.echo("/", f"/task/{writer}/cwd")
        await here.echo(f"pipe {reader}/fd/0", f"/task/{writer}/fd/1ctl")
        await here.echo("start", f"/task/{writer}/ctl")
        await here.echo("start", f"/task/{reader}/ctl")
        found = await here.end(reader)
        assert found.bytes(text, found[count]) == b"through\n"

    run(tmp_path, body)


def test_network_is_refused_and_limits_offered(tmp_path: Path) -> None:
    async def body(here: Node) -> None:
        assert here.house.drivers["wasi"].capabilities >= {"memlimit", "nice", "pause", "stat"}
        with pytest.raises(OSError) as raised:
            await here.task(Program(), net="allow 127.0.0.1:80")
        assert raised.value.errno == ENOTSUP

    run(tmp_path, body)


def test_task_and_its_host_files_outlive_the_server_but_not_its_tree(tmp_path: Path) -> None:
    program = Program()
    before = program.open("tmp/new", CREATE)
    control = program.open("task/self/ctl")
    program.write(2, b"ready")
    line, count = program.room(8), program.u32()
    program.call("fd_read", 0, *program.vector(line), count)
    after = program.write(before.value, b"kept")
    command = program.write(control.value, b"label a=b")
    opened = program.call("path_open", 3, 0, *program.text("tmp"), 0, 0, 0, 0, program.u32())

    async def main() -> None:
        async with node(tmp_path, leave=True) as first:
            task = await first.task(program)
            await first.said(task, "ready")
        async with node(tmp_path) as second:
            assert await second.cat(f"/task/{task}/status") == "running\n"
            assert await second.cat(f"/task/{task}/type") == "wasi\n"
            await second.echo("go", f"/task/{task}/fd/0")
            found = await second.end(task)
            assert found.code == 0 and found.bytes(line, found[count]) == b"go\n"
            assert (found[before], found[control], found[after]) == (4, 5, SUCCESS)
            assert (found[command], found[opened]) == (IO, IO)
            assert (second.tmp / "new").read_bytes() == b"kept"

    trio.run(main)


def test_server_does_without_the_engine() -> None:
    loaded = "import sys, wanixfs.program; sys.exit('wasmtime' in sys.modules)"
    subprocess.run([sys.executable, "-c", loaded], check=True, cwd=Path(__file__).parents[2])
