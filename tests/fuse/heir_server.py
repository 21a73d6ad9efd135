"""A server on a /dev/fuse descriptor that someone else holds too: `heir_server.py MOUNTPOINT FD JOURNAL HOSTDIR`."""

import signal
import sys
from pathlib import Path

import trio

from vfs.directory import Dir
from vfs.files import Awaited, Text
from vfs.fuse.devfuse import mounted
from vfs.host import HostTree
from vfs.memory import MemoryTree
from vfs.pipes import Pipe
from vfs.waiting import Signal


async def main(point: str, fd: int, journal: Path, host: str) -> None:
    done, changed = [], Signal()

    def go(text: str) -> None:
        done.append(text)
        changed.notify()

    root = Dir(
        {
            "wait": Awaited(lambda: bool(done), lambda: done[0], lambda: changed),
            "go": Text(lambda: "", go),
            "text": Text(lambda: "one\ntwo\nthree\n"),
            "host": HostTree(host, label="host").root,
            "memory": MemoryTree(label="memory").root,
            "pipe": Pipe().writer,
            "many": Dir({f"n{number}": Text(lambda: "") for number in range(2000)}),
        },
        id=4242,
    )
    async with mounted(point, root, fd=fd, journal=journal) as mount:
        mount.keep = True
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            print("ready", mount.session.heir, flush=True)
            async for _ in signals:
                return


trio.run(main, sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
