"""A 9P server of a few nodes, for the commands that need no tasks: `small_server.py ADDRESS [TOKEN]`.

Prints its address once it serves.

    /mem    a writable memory tree
    /ctl    a control file with one verb, `jump`, which is always refused
    /never  a file whose read waits for ever
    /busy   a file whose read waits until somebody waits for /never; /idle: until nobody does
"""

import sys
from errno import EINVAL

import trio

from vfs.control import Control
from vfs.directory import Dir
from vfs.files import Awaited
from vfs.inline import park
from vfs.memory import MemoryTree
from vfs.ninep import address
from vfs.ninep.access_token import authorised_path
from vfs.ninep.peer import PeerCred
from vfs.ninep.server import serve
from vfs.node import Caller, Node
from vfs.waiting import Signal


class Counted(Signal):
    """A signal that is never given and tells, by `changed`, how many wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.changed = Signal()

    async def wait(self) -> None:
        await park()
        self.waiting += 1
        self.changed.notify()
        try:
            await super().wait()
        finally:
            self.waiting -= 1
            self.changed.notify()


def jump(height: str) -> None:
    """as high as it says"""
    raise OSError(EINVAL, f"too high: {height}")


def main(where: str, token: str = "") -> None:
    never = Counted()
    root = Dir(
        {
            "mem": MemoryTree(label="small").root,
            "ctl": Control({"jump": jump}),
            "never": Awaited(lambda: False, str, lambda: never),
            "busy": Awaited(lambda: never.waiting > 0, str, lambda: never.changed),
            "idle": Awaited(lambda: never.waiting == 0, str, lambda: never.changed),
        }
    )

    async def attach(uname: str, uid: int, aname: str, peer: PeerCred | None) -> tuple[Node, Caller]:
        if peer is None:
            authorised_path(aname, token)
        return root, Caller(uid, uid)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            listener = address.listen(address.parse(where))
            await nursery.start(serve, [listener], attach)
            tcp = where.startswith("tcp!")
            print(f"tcp!127.0.0.1!{listener.getsockname()[1]}" if tcp else where, flush=True)

    trio.run(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
