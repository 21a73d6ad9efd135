"""VM tasks: how soon the program runs, in a guest that boots and in clones, and what a clone costs in memory.

    python benchmarks/vm.py [--count N]

The first start boots the template and clones it, the others only clone. Each is measured from `start` to its answer,
which comes when the program runs with the namespace mounted. Then N guests are alive at once, and each
answers; memory is the machines' proportional set size.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

from serving import ROOT, resident_bytes, serving, table

sys.path.append(str(ROOT))

from tasks.drivers.vm import qemu


def started(mount: Path, command: str) -> tuple[Path, float]:
    """Make and start a VM task; return its directory and how long `start` took, in seconds."""
    task = mount / "task" / (mount / "task/new").read_text().strip()
    (task / "ctl").write_text(f"type vm\ncmd {command}\n")
    begun = time.monotonic()
    (task / "ctl").write_text("start\n")
    return task, time.monotonic() - begun


def machines(supervisor: int) -> list[int]:
    """Return the pids of the machines that run."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [int(pid) for pid in children if qemu.PROGRAM in os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16, help="guests alive at once")
    count = parser.parse_args().count
    with serving() as server:
        _, booted = started(server.mount, "cat")
        begun = time.monotonic()
        tasks, seconds = zip(*(started(server.mount, "cat") for _ in range(count)), strict=True)
        crowd = time.monotonic() - begun
        memory = [resident_bytes(pid) for pid in machines(server.supervisor())]
        for task in tasks:
            (task / "fd/0").write_text("alive\n")
            with (task / "fd/1").open("rb", buffering=0) as output:
                if output.read(6) != b"alive\n":
                    raise RuntimeError(f"{task.name} does not answer")
        clone = statistics.median(seconds)
        rows = [
            ("first start, with the template's boot", f"{booted:.2f} s", ""),
            ("start of a clone, median", f"{clone:.2f} s", f"{clone / (booted - clone):.2f} of a boot"),
            (f"{count} clones one after the other, all answer", f"{crowd:.1f} s", ""),
            ("memory of a machine, mean", f"{statistics.mean(memory) / 1e6:.0f} MB", ""),
        ]
        table(f"VM tasks ({qemu.accelerator()})", ("what", "measured", "ratio"), rows)


if __name__ == "__main__":
    main()
