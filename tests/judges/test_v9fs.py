"""The Linux kernel's 9P client (v9fs), in a guest, as judge of our server: what it sees must be what tmpfs shows."""

import json
import os
import shutil
import urllib.parse
from pathlib import Path

import pytest
import trio

from tasks.drivers.vm import initrd, kernel, qemu
from vfs.host import HostTree
from vfs.memory import MemoryTree
from vfs.ninep.access_token import authorised_path
from vfs.ninep.address import Address, listen
from vfs.ninep.server import serve
from vfs.node import ROOT

JUDGES = Path(__file__).parents[1] / "fuse/judges"
PROGRAMS = ("names.sh", "archives.sh", "git.sh")
TOKEN = "a-token"
SECONDS = 500.0


def why_not() -> str:
    if not shutil.which(qemu.PROGRAM):
        return f"needs {qemu.PROGRAM} (Debian package qemu-system-x86)"
    try:
        kernel.find(kernel.default_cache(os.environ, os.geteuid()))
    except OSError as error:
        return str(error.strerror)
    return "" if os.geteuid() == 0 else "needs root (other owners)"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def plan(*, long: bool) -> dict[str, object]:
    return {
        "token": TOKEN,
        "host": "10.0.2.2",
        "patience": 600,
        "msize": 256 << 10,
        "trees": ["memory", "host"],
        "files": 20 if long else 1,
        "file_calls": 2000 if long else 300,
        "trees_of_calls": 20 if long else 1,
        "tree_calls": 3000 if long else 600,
        "judges": PROGRAMS if long else PROGRAMS[:1],
    }


def boot(tmp_path: Path, asked: dict[str, object], seconds: float) -> list[dict[str, object]]:
    """Serve the trees to a guest that carries out the plan; return what it reports."""
    found = kernel.find(kernel.default_cache(os.environ, os.geteuid()))
    files = {f"/judges/{name}": (JUDGES / name).read_bytes() for name in PROGRAMS}
    image = tmp_path / "initrd"
    image.write_bytes(initrd.build(found, start="from tests.judges.inside import main; main()", files=files))
    folder = tmp_path / "exported"
    folder.mkdir()
    trees = {
        "memory": MemoryTree(label="memory").root,
        "host": HostTree(folder, label="host").root,
        "usr": HostTree(Path("/usr"), label="usr").root,
    }

    async def attach(uname, n_uname, aname, peer):
        return trees[authorised_path(aname, TOKEN).strip("/")], ROOT

    async def main() -> str:
        listener = listen(Address("tcp", host="127.0.0.1", port=0))
        words = json.dumps(asked | {"port": listener.getsockname()[1]}, separators=(",", ":"))
        command = [
            *qemu.command(found.image, image, memory=512 << 20, words=f"judge={urllib.parse.quote(words)}"),
            *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
            *(
                "-chardev",
                f"file,path={tmp_path}/report,id=report",
                "-device",
                "virtserialport,chardev=report,name=report",
            ),
            *("-serial", f"file:{tmp_path}/console"),
        ]
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, [listener], attach)
            with trio.move_on_after(seconds) as scope:
                await trio.run_process(command, check=False)
            nursery.cancel_scope.cancel()
        reports = (tmp_path / "report").read_text()
        told = reports + (tmp_path / "console").read_text()
        assert not scope.cancelled_caught, f"the guest did not end:\n{told[-5000:]}"
        return reports

    return [json.loads(line) for line in trio.run(main).splitlines()]


def judge(tmp_path: Path, asked: dict[str, object], seconds: float) -> None:
    cases = boot(tmp_path, asked, seconds)
    failed = [f"{case['case']}: {case['error']}" for case in cases if case["error"]]
    assert not failed, "\n".join(failed)
    expected = 4 * (asked["files"] + asked["trees_of_calls"] + len(asked["judges"]))
    assert len(cases) == expected, (tmp_path / "console").read_text()[-5000:]


@pytest.mark.timeout(600)
def test_v9fs_sees_what_tmpfs_shows(tmp_path):
    judge(tmp_path, plan(long=False), SECONDS)


@pytest.mark.long
def test_v9fs_sees_what_tmpfs_shows_for_hours(tmp_path):
    judge(tmp_path, plan(long=True), 3000)
