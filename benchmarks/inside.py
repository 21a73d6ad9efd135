"""What programs cost inside a task: git, tar, python and dd on a host directory, against the same outside.

    python benchmarks/inside.py [--rounds N]

The task is fully isolated (own user, root, namespaces, system call filter) and has the directory as a bind of its
own (`bind -i`). Each program runs several times in a row, timed from within; rounds inside and outside alternate,
and ratios are of medians in the same run. Then the neighbour's delay: the latency of a sleeping process that is
woken every 2 ms, alone and beside a task that forks as much as its limits let it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from serving import Server, serving, table

PYTHON = "/usr/bin/python3"
FILES, FOLDERS = 2000, 40
OWNER = 12345
PROGRAMS = {
    "git status": "git -c safe.directory=* status --short",
    "tar": "tar cf /dev/null --exclude=big .",
    "python -c": f"{PYTHON} -I -c pass",
    "dd, 64 MiB read": "dd if=big of=/dev/null bs=1M status=none",
    "dd, 64 MiB written": "dd if=/dev/zero of=out bs=1M count=64 conv=notrunc status=none",
}
TIMED = f"""
import json, os, subprocess, sys, time
os.chdir(sys.argv[1])
found = {{}}
for name, command in {PROGRAMS!r}.items():
    times = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    found[name] = sorted(times)[3]
print(json.dumps(found))
"""
WOKEN = """
import json, time
late = []
for _ in range(1500):
    start = time.perf_counter()
    time.sleep(0.002)
    late.append(time.perf_counter() - start - 0.002)
print(json.dumps(sorted(late)[-15] * 1e3))
"""
BOMB = """
import os
while True:
    try:
        os.fork()
    except BlockingIOError:
        os.wait()
"""


def prepare(directory: Path) -> None:
    """Fill a directory with a repository of small files and one big one."""
    for number in range(FILES):
        folder = directory / f"folder{number % FOLDERS}"
        folder.mkdir(exist_ok=True)
        (folder / f"file{number}").write_text(f"{number}\n" * 50)
    (directory / ".gitignore").write_text("big\nout\n")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost", "-C", str(directory)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    (directory / "big").write_bytes(os.urandom(1 << 20) * 64)
    (directory / "out").touch()
    subprocess.run(["chown", "-R", f"{OWNER}:{OWNER}", str(directory)], check=True)


def task(server: Server, program: str, *words: str, binds: tuple[str, ...] = (), ctl: tuple[str, ...] = ()) -> Path:
    """Start Python with a program as a task; return the task's directory."""
    path = server.mount / "task" / (server.mount / "task/new").read_text().strip()
    for line in binds:
        (path / "ns/ctl").write_text(line + "\n")
    for line in ctl:
        (path / "ctl").write_text(line + "\n")
    (path / "args").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in (PYTHON, "-Ic", program, *words)))
    (path / "ctl").write_text("start\n")
    return path


def inside(server: Server, program: str, *words: str, binds: tuple[str, ...] = ()) -> object:
    path = task(server, program, *words, binds=binds)
    if (path / "wait").read_text() != "0\n":
        raise RuntimeError((path / "fd/2").read_text())
    return json.loads((path / "fd/1").read_text())


def outside(program: str, *words: str) -> object:
    """Run Python with a program as the directory's owner."""
    done = subprocess.run(
        [PYTHON, "-Ic", program, *words],
        check=True,
        stdout=subprocess.PIPE,
        user=OWNER,
        group=OWNER,
        extra_groups=[],
        env={"PATH": os.defpath, "HOME": "/nonexistent"},
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if shutil.which("git") is None or not os.path.exists(PYTHON):
        sys.exit("inside.py: git and /usr/bin/python3 are needed")
    directory = Path(tempfile.mkdtemp(prefix="wanixfs-bench-work-"))
    try:
        prepare(directory)
        with serving() as server:
            ours, native, rows = [], [], []
            for _ in range(rounds):
                native.append(outside(TIMED, str(directory)))
                ours.append(inside(server, TIMED, "/work", binds=(f"bind -i #host{directory} /work",)))
            for name in PROGRAMS:
                here, there = (statistics.median(run[name] for run in runs) * 1e3 for runs in (ours, native))
                rows.append((name, f"{there:.1f}", f"{here:.1f}", f"{there / here:.2f}"))
            table("inside a task", ("program", "outside ms", "inside ms", "speed / outside"), rows)
            alone = [inside(server, WOKEN) for _ in range(rounds)]
            idle, rows = statistics.median(alone), []
            for limits in (("pidlimit 50",), ("pidlimit 50", "nice 19")):
                bomb = task(server, BOMB, ctl=limits)
                busy = statistics.median(inside(server, WOKEN) for _ in range(rounds))
                (bomb / "ctl").write_text("kill 9\n")
                (bomb / "wait").read_text()
                rows.append((", ".join(limits), f"{idle:.2f}", f"{busy:.2f}", f"{busy / idle:.2f}"))
            table("p99 of a wake-up beside a fork bomb", ("its limits", "alone ms", "beside ms", "ratio"), rows)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
