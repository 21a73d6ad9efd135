"""vfs.hostmounts: the host's mounts are found where they are; our own are not entered."""

import os
import subprocess
from contextlib import contextmanager

import pytest
import trio

from vfs.hostmounts import HostMounts, mountpoints
from vfs.node import ROOT
from vfs.walk import walk

TABLE = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:21 / /proc rw shared:3 - proc proc rw
24 22 0:30 / /mnt/a\\040b rw - tmpfs tmpfs rw
25 22 0:31 / /mnt/tree rw,nosuid - fuse.wanixfs wanixfs rw
"""


def test_a_mount_table_gives_its_points_but_ours():
    assert mountpoints(TABLE, skip="fuse.wanixfs") == {"/", "/proc", "/mnt/a b"}


@contextmanager
def tmpfs(path):
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.root
def test_a_mount_is_entered_where_it_stands(tmp_path):
    (tmp_path / "plain").write_text("below\n")
    with tmpfs(tmp_path / "disk") as disk, tmpfs(disk / "inner") as inner:
        (disk / "one").write_text("1")
        (inner / "two").write_text("2")

        async def main():
            root = HostMounts().root()
            for name in ("plain", "disk", "disk/one", "disk/inner", "disk/inner/two"):
                node = await walk(root, str(tmp_path / name), ROOT)
                seen, is_there = await node.stat(), os.stat(tmp_path / name)
                assert (seen.st_ino, seen.st_dev) == (is_there.st_ino, is_there.st_dev)
            above = await walk(root, str(tmp_path), ROOT)
            assert {entry.name for entry in await above.readdir(ROOT)} == {"plain", "disk"}
            made, handle = await above.create("new", os.O_WRONLY, 0o600, ROOT)
            handle.close()
            assert (await made.stat()).st_ino == (tmp_path / "new").stat().st_ino
            await above.rename("new", above, "newer", 0, ROOT)
            await above.unlink("newer", ROOT)
            inside = await walk(root, str(disk), ROOT)
            with pytest.raises(OSError, match="Errno 18"):
                await above.rename("plain", inside, "moved", 0, ROOT)

        trio.run(main)


@pytest.mark.root
def test_a_mount_that_came_later_is_seen_by_the_next_root(tmp_path):
    async def main():
        mounts = HostMounts()
        mounts.root()
        with tmpfs(tmp_path / "late") as late:
            (late / "x").write_text("")
            assert await walk(mounts.root(), str(late / "x"), ROOT)

    trio.run(main)
