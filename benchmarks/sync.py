"""A workspace sync beside `rsync -a`: 10,000 files copied, then 1 % of them changed. Ratios of one run.

    python benchmarks/sync.py [FILES]

Wall and processor time (the children's; user and system) of the whole program on either side; medians of the runs.
rsync goes one way and compares what it finds; the sync goes both ways, remembers, and waits for the disk.
"""

import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "tasks/workspace/__main__.py"
RUNS = 5


def fill(top: Path, files: int) -> list[Path]:
    paths = []
    for number in range(files):
        path = top / f"{number // 1000}/{number // 50 % 20}/file{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.randbytes(random.randint(100, 8000)))
        paths.append(path)
    return paths


def timed(command: list[str]) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(what: str, prepare: Callable[[], None], ours: list[str], rsync: list[str]) -> None:
    results: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    for _ in range(RUNS):
        prepare()
        os.sync()
        for command, times in zip((ours, rsync), results, strict=True):
            times.append(timed(command))
    (wall, cpu), (peer_wall, peer_cpu) = (
        tuple(statistics.median(column) for column in zip(*times, strict=True)) for times in results
    )
    print(
        f"{what:28} sync {wall * 1e3:7.0f} ms {cpu * 1e3:7.0f} ms CPU   rsync {peer_wall * 1e3:7.0f} ms"
        f" {peer_cpu * 1e3:7.0f} ms CPU   ratio {wall / peer_wall:5.2f}  CPU {cpu / peer_cpu:5.2f}"
    )


def main(files: int) -> None:
    random.seed(1)
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        left, right, peer = top / "left", top / "right", top / "peer"
        paths = fill(left, files)
        ours = [sys.executable, "-I", "-S", str(PROGRAM), str(left), str(right), str(top / "record")]
        rsync = ["rsync", "-a", "--delete", f"{left}/", str(peer)]

        def empty() -> None:
            for folder in (right, peer):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            (top / "record").unlink(missing_ok=True)

        def change() -> None:
            for path in random.sample(paths, max(1, files // 100)):
                path.write_bytes(random.randbytes(random.randint(100, 8000)))

        print(f"{files} files, medians of {RUNS} runs")
        measure("first copy", empty, ours, rsync)
        measure("nothing changed", lambda: None, ours, rsync)
        measure("1 % changed", change, ours, rsync)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
