"""Pid 1 of the guest of virtiofs.py: the same uses of files on each mount in turn, best times as one JSON line."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from tasks.taskd import boot

MIB = 1 << 20


def main() -> None:
    boot.mount_kernel()
    boot.load_modules()
    words = dict(word.partition("=")[::2] for word in Path("/proc/cmdline").read_text().split())
    mounts = words["mounts"].split(",")
    for name in mounts:
        if name == "9p":
            boot.mount("9p", f"/{name}", source=name, trans="virtio", version="9p2000.L", msize="512000", cache="none")
        else:
            boot.mount("virtiofs", f"/{name}", source=name)
    best: dict[str, dict[str, float]] = {}
    for _ in range(int(words["rounds"])):
        for what, use in USES.items():
            for name in mounts:
                if what != "open+read again":
                    Path("/proc/sys/vm/drop_caches").write_text("3\n")
                began = time.perf_counter()
                count = use(f"/{name}")
                each = (time.perf_counter() - began) / count
                held = best.setdefault(what, {})
                held[name] = min(held.get(name, each), each)
    (port,) = Path("/sys/class/virtio-ports").iterdir()
    Path(f"/dev/{port.name}").write_text(json.dumps(best) + "\n")
    boot.power_off()


def sequential(top: str) -> int:
    fd = os.open(f"{top}/big", os.O_RDONLY)
    buffer = bytearray(MIB)
    done = 0
    while got := os.readv(fd, [buffer]):
        done += got
    os.close(fd)
    return done // MIB


def stat(top: str) -> int:
    names = [f"{top}/small/{number}" for number in range(500)]
    for name in names:
        os.stat(name)
    return len(names)


def open_read(top: str) -> int:
    names = [f"{top}/small/{number}" for number in range(500)]
    for name in names:
        fd = os.open(name, os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)
    return len(names)


def list_all(top: str) -> int:
    """As `ls -lR`: the names of each directory, then the attributes of each name."""
    todo, count = [f"{top}/tree"], 0
    while todo:
        directory = todo.pop()
        for name in sorted(os.listdir(directory)):
            path = f"{directory}/{name}"
            st = os.lstat(path)
            count += 1
            if st.st_mode & 0o170000 == 0o040000:
                todo.append(path)
    return count


USES: dict[str, Callable[[str], int]] = {
    "sequential": sequential,
    "stat": stat,
    "open+read": open_read,
    "open+read again": open_read,
    "ls -lR": list_all,
}
