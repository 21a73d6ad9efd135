"""WASI tasks: how soon they say something, what a file call costs, and a hundred at once.

    python benchmarks/wasi.py [--count N]

Starts go through the mounted tree: a task is created, configured and started, and the first byte of its output read,
against a Linux task that echoes, `python -c pass` to its end, and `wasmtime run` where there is one. Small reads are
fd_pread calls of 128 bytes in a loop, against the same module on wasmtime's own WASI and a preopened directory.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import wasmtime
from serving import ROOT, Server, resident_bytes, serving, table

sys.path.append(str(ROOT))

from tasks.drivers.wasi.modules import SETTLED_NS

INTERPRETER = Path(__file__).parent.parent / ".venv/wasi-programs/python-3.11.3.wasm"
"""Where scripts/test puts it."""
HELLO = """(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\\08\\00\\00\\00\\06\\00\\00\\00hello\\n")
    (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))))"""
WAITS = """(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\\08\\00\\00\\00\\06\\00\\00\\00")
    (func (export "_start") (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))))"""
READS = """(module
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_pread" (func $read (param i32 i32 i32 i64 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "{path}")
    (data (i32.const 256) "\\00\\10\\00\\00\\80\\00\\00\\00")
    (func (export "_start") (local $left i32)
        (local.set $left (i32.const {count}))
        (if (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const {size}) (i32.const 0)
            (i64.const 6) (i64.const 0) (i32.const 0) (i32.const 264)) (then unreachable))
        (loop $again
            (if (call $read (i32.load (i32.const 264)) (i32.const 256) (i32.const 1) (i64.const 0) (i32.const 268))
                (then unreachable))
            (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))"""


def started(mount: Path, command: str) -> Path:
    """Make and start a task by files alone; return its directory."""
    task = mount / "task" / (mount / "task/new").read_text().strip()
    (task / "ctl").write_text(f"cmd {command}\n")
    (task / "ctl").write_text("start\n")
    return task


def ended(task: Path) -> None:
    code = (task / "wait").read_text()
    if code != "0\n":
        raise RuntimeError(f"{task.name}: {code} {(task / 'error').read_text()}")
    (task / "ctl").write_text("remove\n")


def spoken(mount: Path, command: str) -> Callable[[], Callable[[], None]]:
    def run() -> Callable[[], None]:
        task = started(mount, command)
        with (task / "fd/1").open("rb", buffering=0) as output:
            if not output.read(1):
                raise RuntimeError(f"{command} says nothing: {(task / 'error').read_text()}")
        return lambda: ended(task)

    return run


def program(*words: str) -> Callable[[], Callable[[], None]]:
    def run() -> Callable[[], None]:
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        return lambda: None

    return run


def median_ms(run: Callable[[], Callable[[], None]], count: int) -> float:
    """Return the median time of `run`; what it returns is done after each, and not counted."""
    times = []
    run()()
    for _ in range(count):
        start = time.perf_counter()
        after = run()
        times.append((time.perf_counter() - start) * 1e3)
        after()
    return statistics.median(times)


def starts(server: Server, count: int) -> None:
    module = put(server, "hello.wasm", HELLO)
    kinds = {
        "WASI task": spoken(server.mount, module),
        "Linux task, isolated": spoken(server.mount, "/bin/echo hello"),
        "python -c pass": program(sys.executable, "-c", "pass"),
    }
    if cli := shutil.which("wasmtime"):
        kinds["wasmtime run"] = program(cli, "run", str(server.state / "tmp/hello.wasm"))
    if INTERPRETER.exists():
        copy = server.state / "tmp/python.wasm"
        shutil.copyfile(INTERPRETER, copy)
        kinds["WASI task of CPython, 20 MB"] = spoken(server.mount, "/tmp/python.wasm -c 'print(1)'")
        time.sleep(SETTLED_NS / 1e9)  # what has just changed is read and hashed at every start
    found = {name: median_ms(run, count) for name, run in kinds.items()}
    wasi = found["WASI task"]
    rows: list[tuple[str, ...]] = [(name, f"{value:.2f}", f"{wasi / value:.2f}") for name, value in found.items()]
    table("warm start to first output", ("kind", "p50 ms", "WASI / this"), rows)


def reads(server: Server, count: int) -> None:
    data = server.state / "tmp/data"
    data.write_bytes(bytes(4096))
    data.chmod(0o644)
    native = native_reads(data.parent, count)
    rows: list[tuple[str, ...]] = [row("wasmtime, host directory", native, native, count)]
    for name, path, number in (
        ("host file", "tmp/data", count),
        ("file of the server", "task/self/status", count // 10),
    ):
        module = put(server, "reads.wasm", READS.format(path=path, size=len(path), count=number))
        nothing = put(server, "none.wasm", READS.format(path=path, size=len(path), count=1))
        spent = median_ms(to_end(server.mount, module), 3) - median_ms(to_end(server.mount, nothing), 5)
        rows.append(row(f"WASI task, {name}", spent * count / number, native, count))
    table("reads of 128 bytes", ("kind", "calls/s", "us a call", "this / wasmtime"), rows)


def row(name: str, milliseconds: float, native: float, count: int) -> tuple[str, ...]:
    micros = milliseconds / count * 1e3
    return name, f"{1e6 / micros:,.0f}", f"{micros:.1f}", f"{milliseconds / native:.2f}"


def to_end(mount: Path, command: str) -> Callable[[], Callable[[], None]]:
    def run() -> Callable[[], None]:
        ended(started(mount, command))
        return lambda: None

    return run


def native_reads(folder: Path, count: int) -> float:
    """Return the milliseconds that the same loop takes on wasmtime's own WASI."""
    engine = wasmtime.Engine()
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    store = wasmtime.Store(engine)
    config = wasmtime.WasiConfig()
    config.preopen_dir(str(folder), "/")
    store.set_wasi(config)
    module = wasmtime.Module(engine, READS.format(path="data", size=4, count=count))
    start = linker.instantiate(store, module).exports(store)["_start"]
    assert isinstance(start, wasmtime.Func)
    before = time.perf_counter()
    start(store)
    return (time.perf_counter() - before) * 1e3


def crowd(server: Server, count: int) -> None:
    """Run many tasks at once, each of which waits until all have begun."""
    module = put(server, "waits.wasm", WAITS)
    with ThreadPoolExecutor(count) as pool:
        before = time.perf_counter()
        tasks = list(pool.map(lambda _: started(server.mount, module), range(count)))
        begun = time.perf_counter() - before
        memory = sum(resident_bytes(pid) for pid in children(server.supervisor())) / count
        before = time.perf_counter()
        for task in tasks:
            (task / "fd/0ctl").write_text("close\n")
        list(pool.map(ended, tasks))
        over = time.perf_counter() - before
    rows: list[tuple[str, ...]] = [
        (str(count), f"{begun:.2f}", f"{over:.2f}", f"{count / begun:.0f}", f"{memory / 1e6:.1f}")
    ]
    table("many at once", ("tasks", "s to start all", "s to end all", "starts/s", "MB a task"), rows)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def put(server: Server, name: str, text: str) -> str:
    """Put a module where tasks find it as the path that is returned."""
    path = server.state / "tmp" / name
    path.write_bytes(wasmtime.wat2wasm(text))
    path.chmod(0o644)
    return f"/tmp/{name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="starts of each kind")
    count = parser.parse_args().count
    with serving() as server:
        starts(server, count)
        reads(server, 20_000)
        crowd(server, 100)


if __name__ == "__main__":
    main()
