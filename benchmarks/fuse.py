"""Compare the FUSE server with a C one and with the native filesystem, in one run.

    python benchmarks/fuse.py [--seconds 1] [--repeat 5] [--only stat]

Needs root, cc and libfuse3 (Debian packages gcc, pkg-config and libfuse3-dev). The first table sets the server's CPU
per operation on a memory tree against libfuse's low-level API (clients/hello_ll.c) under the same load
(clients/fuseload.c): neither lets the kernel cache names. The C program caches no attributes either, as it could not
tell the kernel when they change; ours are good for the system call that looked them up. Servers and clients share one
CPU, or what is measured is how long a virtual machine takes to wake the other one. The second table sets what programs
get of a host tree through the mount against the same files natively. Every figure is the median of the repeats, which
take turns.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from vfs.fuse.devfuse import mounted  # noqa: E402
from vfs.host import HostTree  # noqa: E402
from vfs.memory import MemoryTree  # noqa: E402
from vfs.node import ROOT, Node  # noqa: E402

MIB = 1 << 20
BIG = 256 * MIB
TREE_FILES = 4000
READY_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: a mode of fuseload; `target` is the ratio that is aimed at (at most; at least where `rate`)."""

    mode: str
    target: float
    clients: int = 1
    rate: bool = False


AGAINST_C = (
    Row(mode="stat", target=1.3),
    Row(mode="stat", target=1.3, clients=4),
    Row(mode="cycle", target=1.5),
    Row(mode="cycle", target=1.5, clients=4),
    Row(mode="create", target=1.6),
    Row(mode="create", target=1.6, clients=4),
)
AGAINST_NATIVE = (
    Row(mode="seq", target=0.9, rate=True),
    Row(mode="random", target=0.85, rate=True),
    Row(mode="exec", target=0.5, rate=True),
    Row(mode="find", target=3.0),
)


async def serve(kind: str, point: str, top: str) -> None:
    """Be our server until terminated."""
    async with mounted(point, HostTree(top, label="benchmark").root if kind == "host" else await memory()):
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            print("ready", flush=True)
            async for _ in signals:
                return


async def memory() -> Node:
    """Return the root of a memory tree that holds what hello_ll does."""
    root = MemoryTree(label="benchmark").root
    for number in range(100):
        _, handle = await root.create(f"f{number:02}", os.O_WRONLY, 0o644, ROOT)
        await handle.write(b"x" * 4096, 0)
        handle.close()
    return root


@contextmanager
def running(command: list[str], point: Path) -> Iterator[int]:
    """Run a server that mounts `point`; gives its pid."""
    point.mkdir()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not os.path.ismount(point):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"{command[0]} does not mount")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def make_host_tree(top: Path) -> None:
    """Make a large file, a program, and a tree of 4,000 files in 200 directories."""
    with open(top / "big", "wb") as big:
        for _ in range(BIG // MIB):
            big.write(os.urandom(MIB))
    shutil.copy(shutil.which("true") or "/bin/true", top / "program")
    for number in range(TREE_FILES):
        directory = top / "tree" / f"d{number % 20}" / f"e{number // 20 % 10}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file-{number}").write_bytes(b"x" * (number % 3000))


def load(program: Path, row: Row, path: Path, seconds: float, pid: int) -> dict[str, float]:
    words = [row.mode, path, row.clients, seconds, pid]
    done = subprocess.run([program, *map(str, words)], check=True, capture_output=True, text=True, timeout=seconds + 60)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def find(path: Path) -> float:
    """Return the seconds that listing a tree with all attributes takes."""
    began = time.perf_counter()
    subprocess.run(["find", path, "-printf", "%s %m %T@ %p\n"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each, whose median counts")
    parser.add_argument("--only", default="", help="what to measure: stat cycle create seq random exec find")
    parser.add_argument("--serve", nargs=3, metavar=("KIND", "POINT", "TOP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve, *options.serve)
        return
    if os.geteuid() or not (shutil.which("cc") and shutil.which("pkg-config")):
        sys.exit("needs root, cc and libfuse3: apt-get install gcc pkg-config libfuse3-dev")
    missed = 0
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuse-bench-")))
        program, peer, top = work / "fuseload", work / "hello_ll", work / "top"
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True
        )
        subprocess.run(["cc", "-O2", "-o", program, HERE / "clients/fuseload.c"], check=True)
        subprocess.run(["cc", "-O2", "-o", peer, HERE / "clients/hello_ll.c", *flags.stdout.split()], check=True)
        top.mkdir()
        make_host_tree(top)
        me = [sys.executable, __file__, "--serve"]
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cpus)})
        ours = stack.enter_context(running([*me, "memory", f"{work}/ours", str(top)], work / "ours"))
        theirs = stack.enter_context(
            running([str(peer), "-f", "-o", "default_permissions,allow_other", f"{work}/theirs"], work / "theirs")
        )
        table = Table("operation", "clients", title="FUSE server, CPU us per operation")
        for column in ("libfuse (C)", "ours", "ratio", "target", "ours op/s", "C op/s"):
            table.add_column(column, justify="right")
        for row in AGAINST_C:
            if options.only not in ("", row.mode):
                continue
            figures: dict[str, list[dict[str, float]]] = {"theirs": [], "ours": []}
            for _ in range(options.repeat):
                for name, pid in (("theirs", theirs), ("ours", ours)):
                    figures[name].append(load(program, row, work / name, options.seconds, pid))
            mine, other = (
                sorted(figures[name], key=lambda found: found["server_us"])[options.repeat // 2]
                for name in ("ours", "theirs")
            )
            ratio = mine["server_us"] / other["server_us"]
            missed += ratio > row.target
            table.add_row(
                row.mode,
                str(row.clients),
                f"{other['server_us']:.1f}",
                f"{mine['server_us']:.1f}",
                f"{ratio:.2f}",
                f"{row.target}",
                *(f"{found['operations'] / found['seconds']:.0f}" for found in (mine, other)),
            )
        Console().print(table)

        os.sched_setaffinity(0, cpus)
        stack.enter_context(running([*me, "host", f"{work}/host", str(top)], work / "host"))
        table = Table("what", title="A host tree through the mount, against native")
        for column in ("native", "mounted", "ratio", "target"):
            table.add_column(column, justify="right")
        for row in AGAINST_NATIVE:
            if options.only not in ("", row.mode):
                continue
            name = {"seq": "big", "random": "big", "exec": "program", "find": "tree"}[row.mode]
            took: dict[Path, list[float]] = {top: [], work / "host": []}
            for _ in range(options.repeat):
                for where, seconds in took.items():
                    if row.mode == "find":
                        find(where / name)  # warms up what is then measured
                        seconds.append(find(where / name))
                    else:
                        found = load(program, row, where / name, options.seconds, 0)
                        seconds.append(found["seconds"] / (found["bytes"] or found["operations"]))
            native, mount = map(statistics.median, took.values())
            ratio = native / mount if row.rate else mount / native
            missed += ratio < row.target if row.rate else ratio > row.target
            unit: Callable[[float], str] = {
                "seq": lambda each: f"{1e-6 / each:.0f} MB/s",
                "random": lambda each: f"{1 / each / 4096:.0f}/s",
                "exec": lambda each: f"{each * 1e3:.2f} ms",
                "find": lambda each: f"{each * 1e3:.0f} ms",
            }[row.mode]
            bound = f">= {row.target}" if row.rate else f"<= {row.target}"
            table.add_row(row.mode, unit(native), unit(mount), f"{ratio:.2f}", bound)
        Console().print(table)
        print(f"{missed} ratio(s) beyond their target" if missed else "every ratio within its target")


if __name__ == "__main__":
    main()
