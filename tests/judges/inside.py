"""Pid 1 of the guest that judges our 9P server: mounts what the server exports, and reports what v9fs makes of it.

The kernel command line carries `judge={json}`, percent-encoded; each report is a JSON line on the virtio port "report".
"""

import faulthandler
import json
import os
import subprocess
import time
import traceback
import urllib.parse
from pathlib import Path

from tasks.taskd import boot
from tests.judges import load

ROOT = "/new"
LACKING = {
    "none": ("setxattr", "getxattr", "removexattr"),
    "loose": ("setxattr", "getxattr", "removexattr", "unlinked"),
}
"""What v9fs cannot do itself: user xattrs on tmpfs; with a cache it looks for unlinked files by name to write them."""
LINKS = ("bin", "lib", "lib64", "sbin")


def main() -> None:
    boot.mount_kernel()
    boot.load_modules()
    boot.raise_interface("lo")
    boot.raise_interface("eth0", boot.ADDRESS, boot.NETMASK)
    words = dict(word.partition("=")[::2] for word in Path("/proc/cmdline").read_text().split())
    plan = json.loads(urllib.parse.unquote(words["judge"]))
    (port,) = (
        f"/dev/{port.name}"
        for port in Path("/sys/class/virtio-ports").iterdir()
        if (port / "name").read_text() == "report\n"
    )
    faulthandler.dump_traceback_later(plan["patience"], repeat=True)
    with open(port, "w", buffering=1) as report:
        for name, seconds, error in judged(plan):
            print(json.dumps({"case": name, "seconds": round(seconds, 2), "error": error}), file=report)
    os.sync()
    boot.power_off()


def judged(plan):
    """Yield (case, seconds, error or None) for everything that the plan asks for."""
    boot.mount("tmpfs", ROOT)
    mount(f"{ROOT}/usr", "usr", plan, cache="loose")
    for name in LINKS:
        os.symlink(f"usr/{name}", f"{ROOT}/{name}")
    boot.mount_kernel(ROOT)
    boot.mount("tmpfs", f"{ROOT}/right")
    os.makedirs(f"{ROOT}/tmp")
    os.makedirs(f"{ROOT}/etc")
    os.makedirs(f"{ROOT}/judges")
    for judge in Path("/judges").iterdir():
        (Path(f"{ROOT}/judges") / judge.name).write_bytes(judge.read_bytes())
    os.chroot(ROOT)
    os.chdir("/")
    for tree in plan["trees"]:
        for cache in ("none", "loose"):
            place = f"/{tree}-{cache}"
            mount(place, tree, plan, cache=cache)
            for name, case in cases(plan, place, cache):
                started = time.monotonic()
                error = None
                try:
                    case()
                except BaseException:
                    error = traceback.format_exc()
                yield f"{tree} {cache} {name}", time.monotonic() - started, error
            os.chdir("/")


def mount(place, tree, plan, *, cache):
    aname = f"/{tree}?{plan['token']}"
    options = {"msize": str(plan["msize"]), "port": str(plan["port"]), "cache": cache, "aname": aname}
    boot.mount("9p", place, source=plan["host"], trans="tcp", version="9p2000.L", access="any", uname="root", **options)


def cases(plan, place, cache):
    top = f"{place}/{cache}"
    os.mkdir(top)
    for seed in range(plan["files"]):
        yield (
            f"fsx {seed}",
            lambda seed=seed: load.exercise_file(
                f"{top}/file{seed}", seed=seed, count=plan["file_calls"], maps=cache != "none"
            ),
        )
    for seed in range(plan["trees_of_calls"]):

        def compare(seed=seed):
            right, judged = f"/right/{place[1:]}-{seed}", f"{top}/tree{seed}"
            os.mkdir(right)
            os.mkdir(judged)
            load.compare_trees(right, judged, seed=seed, count=plan["tree_calls"], without=LACKING[cache])

        yield f"fsstress {seed}", compare
    for judge in plan["judges"]:

        def run(judge=judge):
            right, judged = f"/right/{place[1:]}-{judge}", f"{top}/{judge}"
            os.mkdir(right)
            os.mkdir(judged)
            expected, found = (printed(judge, where) for where in (right, judged))
            assert found == expected, f"{found}\n--- is not what it prints on tmpfs:\n{expected}"

        yield judge, run


def printed(judge, where):
    """Return what a judge prints with `where` as its directory."""
    program = "/usr/bin/bash" if judge.endswith(".sh") else "/usr/bin/python3"
    environment = {"PATH": "/usr/bin", "LC_ALL": "C.UTF-8", "HOME": where, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [program, f"/judges/{judge}"], cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return f"{done.stdout.decode(errors='replace')}exit status {done.returncode}\n".replace(where, "HERE")
