"""WASI tasks: how soon they run, what a file call costs, and a hundred at once.

    python benchmarks/wasi.py [--count N]

Starts go through the mounted tree (create, start, wait), against a Linux task of /bin/true made the same way and
`python -c pass` as a plain process. Small reads are fd_pread calls of 128 bytes from a host file in a loop, against
the same module under wasmtime's own WASI on a preopened host directory, in this process.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import wasmtime
from serving import Server, serving, table

EMPTY = '(module (func (export "_start")))'
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


def through_tree(mount: Path, command: str) -> None:
    """Run one task by files alone."""
    id = (mount / "task/new").read_text().strip()
    task = mount / "task" / id
    (task / "ctl").write_text(f"cmd {command}\nstart\n")
    code = (task / "wait").read_text()
    if code != "0\n":
        raise RuntimeError(f"task {id}: {code} {(task / 'error').read_text()}")
    (task / "ctl").write_text("remove\n")


def plain_python() -> None:
    subprocess.run([sys.executable, "-c", "pass"], check=True, stdin=subprocess.DEVNULL)


def median_ms(run: Callable[[], None], count: int) -> float:
    times = []
    run()
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def starts(server: Server, count: int) -> None:
    module = put(server, "empty.wasm", EMPTY)
    wasi = median_ms(lambda: through_tree(server.mount, module), count)
    linux = median_ms(lambda: through_tree(server.mount, "/bin/true"), count)
    python = median_ms(plain_python, count)
    rows: list[tuple[str, ...]] = [
        (name, f"{value:.2f}", f"{wasi / value:.2f}")
        for name, value in (("WASI task", wasi), ("Linux task, isolated", linux), ("python -c pass", python))
    ]
    table("warm start to exit code", ("kind", "p50 ms", "WASI / this"), rows)


def reads(server: Server, count: int) -> None:
    data = server.state / "tmp/data"
    data.write_bytes(bytes(4096))
    data.chmod(0o644)
    ours = put(server, "reads.wasm", READS.format(path="tmp/data", size=8, count=count))
    nothing = put(server, "empty.wasm", EMPTY)
    spent = median_ms(lambda: through_tree(server.mount, ours), 3)
    spent -= median_ms(lambda: through_tree(server.mount, nothing), 5)
    native = native_reads(data.parent, count)
    rows: list[tuple[str, ...]] = [
        (name, f"{count / milliseconds * 1e3:,.0f}", f"{milliseconds / count * 1e3:.1f}")
        for name, milliseconds in (("WASI task, over 9P", spent), ("wasmtime, host directory", native))
    ]
    table("reads of 128 bytes", ("kind", "calls/s", "us a call"), rows)


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
    module = put(server, "empty.wasm", EMPTY)
    with ThreadPoolExecutor(count) as pool:
        before = time.perf_counter()
        list(pool.map(lambda _: through_tree(server.mount, module), range(count)))
        spent = time.perf_counter() - before
    table("many at once", ("tasks", "s", "tasks/s"), [(str(count), f"{spent:.2f}", f"{count / spent:.0f}")])


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
