"""Mount and serve as a user without any privilege: `user_mount.py MOUNTPOINT UID`, started by root."""

import os
import subprocess
import sys

import trio

from vfs.directory import Dir
from vfs.fuse.devfuse import mounted, unmount
from vfs.host import HostTree
from vfs.memory import MemoryTree


def client(point: str) -> str:
    script = (
        "cd $0/memory; echo text > f; cat f; stat -c '%u %a' f; cp $0/host/file .; cat file; ls $0; stat -f -c %T ."
    )
    return subprocess.run(["sh", "-c", script, point], check=True, capture_output=True, text=True, timeout=30).stdout


async def main(point: str, uid: int) -> None:
    memory, host = MemoryTree(label="user", uid=uid, gid=uid), HostTree(os.path.dirname(point) + "/host", label="h")
    async with mounted(point, Dir({"memory": memory.root, "host": host.root}, id=3)) as mount:
        print(await trio.to_thread.run_sync(client, point), end="", flush=True)
        try:
            unmount(os.path.dirname(point))
        except OSError as error:
            print(error.errno)
        assert not mount.gone.is_set()
    print(os.path.ismount(point))


os.setgroups([])
os.setresgid(*[int(sys.argv[2])] * 3)
os.setresuid(*[int(sys.argv[2])] * 3)
trio.run(main, sys.argv[1], int(sys.argv[2]))
