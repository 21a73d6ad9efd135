"""Compare the 9P server with diod (C) in one run: server CPU per operation and operations per second.

    python benchmarks/ninep.py [--seconds 0.5] [--repeat 5] [--only cycle] [--pinned]

Needs diod and cc (Debian packages diod and gcc). Both servers export the same host directory over a unix socket to
the same load generator (clients/p9load.c) with the same msize, in turns. Of the repeats the median counts. What is
judged is the ratio of server CPU per operation, which other load on the machine disturbs least. An operation `cycle` is
walk + open + read + clunk of a small file. With `--pinned` the servers have one processor and the load generator
another: diod's threads then hand requests on without waking a processor, which it does not get elsewhere.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from vfs.host import HostTree  # noqa: E402
from vfs.ninep import address  # noqa: E402
from vfs.ninep.server import serve  # noqa: E402
from vfs.node import ROOT, Caller, Node  # noqa: E402

KIB = 1024
DIOD_MSIZE = 64 * KIB
"""The most that Debian's diod offers."""
READY_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; `target` is the ratio to diod's CPU per operation that is aimed at."""

    operation: str
    depth: int
    target: float | None
    connections: int = 1
    size: int = 4 * KIB
    msize: int = DIOD_MSIZE
    against_diod: bool = True


ROWS = (
    Row(operation="getattr", depth=1, target=1.3),
    Row(operation="getattr", depth=8, target=0.5),
    Row(operation="getattr", depth=32, target=0.5),
    Row(operation="getattr", depth=1, connections=64, target=0.6),
    Row(operation="getattr", depth=8, connections=64, target=0.5),
    Row(operation="cycle", depth=1, target=1.3),
    Row(operation="cycle", depth=8, target=0.5),
    Row(operation="cycle", depth=32, target=0.5),
    Row(operation="readdir", depth=1, target=1.5),
    Row(operation="readdir", depth=8, target=1.5),
    Row(operation="read", depth=8, size=4 * KIB, target=0.5),
    Row(operation="read", depth=8, size=60 * KIB, target=0.9),
    Row(operation="write", depth=8, size=4 * KIB, target=0.5),
    Row(operation="write", depth=8, size=60 * KIB, target=1.1),
    Row(operation="read", depth=8, size=512 * KIB, msize=1 << 20, target=None, against_diod=False),
    Row(operation="write", depth=8, size=512 * KIB, msize=1 << 20, target=None, against_diod=False),
)


def make_tree(top: Path) -> None:
    """Make what p9load expects: small/f000..f999, directory/ with 1,000 names, big, written/w00..w63."""
    for name in ("small", "directory", "written"):
        (top / name).mkdir()
    for i in range(1000):
        (top / "small" / f"f{i:03}").write_bytes(b"s" * 4 * KIB)
        (top / "directory" / f"entry-number-{i:04}").touch()
    (top / "big").write_bytes(os.urandom(KIB) * (64 * KIB))
    for i in range(64):
        (top / "written" / f"w{i:02}").touch()


def run_server(path: str, top: str) -> None:
    """Be our server: export `top` at the unix socket `path` until terminated."""
    tree = HostTree(top, label="benchmark")

    async def attach(uname: str, n_uname: int, aname: str, peer: object) -> tuple[Node, Caller]:
        return tree.root, ROOT

    trio.run(serve, [address.listen(address.parse(path))], attach)


@contextmanager
def running(command: list[str], path: Path) -> Iterator[int]:
    """Run a server that listens at `path`; gives its pid."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(path))
                    break
                except OSError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise RuntimeError(f"{command[0]} does not serve") from None
                    time.sleep(0.02)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def on(processor: int, command: list[str]) -> list[str]:
    """Return `command` bound to one processor of those that this process may use (counted round)."""
    usable = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(usable[processor % len(usable)]), *command]


def measure(load: list[str], row: Row, path: Path, aname: str, pid: int, seconds: float) -> dict[str, float]:
    words = [path, aname, row.operation, row.connections, row.depth, row.msize, row.size, seconds, pid]
    done = subprocess.run(
        [*load, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True, timeout=seconds + 60
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def compare(rows: Iterable[Row], seconds: float, repeat: int, pinned: bool) -> tuple[Table, int]:
    """Measure every row against both servers; return the table and how many ratios missed their target."""
    table = Table("operation", "conns", "depth", "size", title="9P2000.L server, CPU us per operation")
    for column in ("diod", "ours", "ratio", "target", "ours op/s", "MB/s", "vs diod op/s"):
        table.add_column(column, justify="right")
    missed = 0
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ninep-bench-")))
        top = work / "top"
        top.mkdir()
        make_tree(top)
        subprocess.run(["cc", "-O2", "-o", work / "p9load", HERE / "clients/p9load.c"], check=True)
        serve_ours = [sys.executable, __file__, "--serve", f"{work}/ours", str(top)]
        serve_diod = ["diod", "-f", "-n", "-N", "-l", f"{work}/diod", "-e", str(top), "-L", "stderr"]
        load = [f"{work}/p9load"]
        if pinned:
            serve_ours, serve_diod, load = on(0, serve_ours), on(0, serve_diod), on(1, load)
        ours = stack.enter_context(running(serve_ours, work / "ours"))
        diod = stack.enter_context(running(serve_diod, work / "diod"))
        for row in rows:
            runs: tuple[list[dict[str, float]], list[dict[str, float]]] = [], []
            for _ in range(repeat):
                runs[0].append(measure(load, row, work / "ours", "/", ours, seconds))
                if row.against_diod:
                    runs[1].append(measure(load, row, work / "diod", str(top), diod, seconds))
            mine = medians(runs[0])
            figures = ["-", f"{mine['server_us']:.1f}", "-", "-", f"{mine['per_second']:.0f}"]
            figures += [f"{mine['mb_per_second']:.0f}" if mine["mb_per_second"] else "", "-"]
            if row.against_diod:
                theirs = medians(runs[1])
                ratio = mine["server_us"] / theirs["server_us"]
                missed += row.target is not None and ratio > row.target
                figures[0], figures[2], figures[3] = f"{theirs['server_us']:.1f}", f"{ratio:.2f}", f"{row.target}"
                figures[6] = f"{mine['per_second'] / theirs['per_second']:.2f}"
            size = f"{row.size // KIB}K" if row.operation in ("read", "write", "cycle") else ""
            table.add_row(row.operation, str(row.connections), str(row.depth), size, *figures)
    return table, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each row")
    parser.add_argument("--only", default="", help="operation to measure")
    parser.add_argument("--pinned", action="store_true", help="one processor for the servers, one for the load")
    parser.add_argument("--serve", nargs=2, metavar=("SOCKET", "TOP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run_server(*options.serve)
        return
    if not (shutil.which("diod") and shutil.which("cc")):
        sys.exit("needs diod and cc: apt-get install diod gcc")
    rows = [row for row in ROWS if options.only in ("", row.operation)]
    table, missed = compare(rows, options.seconds, options.repeat, options.pinned)
    Console(width=120).print(table)
    print(f"{missed} ratio(s) above target" if missed else "every ratio within its target")


if __name__ == "__main__":
    main()
