"""From nothing to an exit code: create, start and wait through the mounted tree, against subprocess and bubblewrap.

    python benchmarks/launch.py [--count N]

Every task has its own user, home, namespace, pid, ipc and mount namespaces; bubblewrap is given the same kinds. The
program is /bin/true. The client is one Python process that pokes files, with the calls that a shell makes; ratios are
of medians in the same run.
"""

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving import cpu_seconds, serving, table

BWRAP = shlex.split(
    "bwrap --unshare-pid --unshare-ipc --unshare-uts --unshare-net --die-with-parent --new-session"
    " --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64"
    " --proc /proc --dev /dev --tmpfs /tmp --dir /home/x --unshare-user --uid 200000 --gid 200000 /bin/true"
)


def through_tree(mount: Path) -> None:
    """Run one task by files alone: each opened, read or written once, and closed."""
    id = read(f"{mount}/task/new").strip()
    task = f"{mount}/task/{id}"
    write(f"{task}/ctl", "cmd /bin/true\nstart\n")
    code = read(f"{task}/wait")
    if code != "0\n":
        raise RuntimeError(f"task {id}: {code}")
    write(f"{task}/ctl", "remove\n")


def read(path: str) -> str:
    """Return what one read gives: a value file is never longer."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096).decode()
    finally:
        os.close(fd)


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def by_program(words: list[str]) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


def measure(run: Callable[[], None], count: int, width: int) -> float:
    """Return the median milliseconds of one run with `width` in flight."""

    def timed(_: int) -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3

    with ThreadPoolExecutor(width) as pool:
        list(pool.map(timed, range(width * 2)))
        return statistics.median(pool.map(timed, range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="runs of each kind")
    count = parser.parse_args().count
    if shutil.which("bwrap") is None:
        sys.exit("launch.py: bwrap is needed (Debian package bubblewrap)")
    rows = []
    with serving() as server:
        for width in (1, 8):
            ours = measure(lambda: through_tree(server.mount), count, width)
            plain = measure(lambda: by_program(["/bin/true"]), count, width)
            bwrap = measure(lambda: by_program(BWRAP), count, width)
            for name, value in (("tree, isolated", ours), ("subprocess", plain), ("bwrap", bwrap)):
                rows.append((str(width), name, f"{value:.2f}", f"{ours / value:.2f}"))
        before = cpu_seconds(server.pid, server.supervisor())
        for _ in range(count):
            through_tree(server.mount)
        spent = (cpu_seconds(server.pid, server.supervisor()) - before) / count * 1e3
    table("launch: create -> start -> wait", ("in flight", "kind", "p50 ms", "tree / this"), rows)
    print(f"\n  server and supervisor: {spent:.2f} ms of processor time a task")


if __name__ == "__main__":
    main()
