"""Linux in a guest: its own drivers for virtiofs and vsock, against files that tmpfs shows alike, and hostile use."""

import hashlib
import json
import os
import random
import shutil
import socket
from errno import EINVAL
from functools import partial
from pathlib import Path

import pytest
import trio
from virtio.inside import ECHO, OTHER, SERVICE, SIZE, TASK

from tasks.drivers.vm import initrd, kernel, qemu
from vfs.directory import Dir
from vfs.files import Awaited, Text
from vfs.host import HostTree
from vfs.memory import MemoryTree
from vfs.node import ROOT, Caller
from vfs.virtio.fs import serve_fs
from vfs.virtio.vsock import serve_vsock
from vfs.waiting import Signal

MEMORY = 256 << 20
SECONDS = 110.0


def why_not() -> str:
    if not shutil.which(qemu.PROGRAM):
        return f"needs {qemu.PROGRAM} (Debian package qemu-system-x86)"
    try:
        kernel.find(kernel.default_cache(os.environ, os.geteuid()))
    except OSError as error:
        return str(error.strerror)
    return "" if os.geteuid() == 0 else "needs root (other owners)"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


class Host:
    """What the guest is given: files of several owners, a thing to wait for, a service on a port."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uds = path / "v"
        self.done = False
        self.changed = Signal()
        self.listening = trio.Event()
        for name, owner, mode in (("home", TASK, 0o700), ("tmp", 0, 0o1777), ("usr", 0, 0o755), ("exported", 0, 0o755)):
            (path / name).mkdir()
            (path / name).chmod(mode)
            os.chown(path / name, owner, owner)
        private = path / "tmp/private"
        private.mkdir()
        for file, owner, mode in (
            ("tmp/secret", OTHER, 0o600),
            ("tmp/private/inside", OTHER, 0o644),
            ("home/mine", TASK, 0o600),
            ("usr/file", TASK, 0o666),
        ):
            (path / file).write_text("text")
            os.chown(path / file, owner, owner)
            (path / file).chmod(mode)
        os.chown(private, OTHER, OTHER)
        private.chmod(0o700)
        large = random.Random(1).randbytes(20_000_001)
        (path / "usr/large").write_bytes(large)
        (path / "usr/large.sha256").write_text(hashlib.sha256(large).hexdigest())

    def view(self) -> Dir:
        """Return the tree of the task: some of it from the host, some made."""
        return Dir(
            {
                "home": HostTree(self.path / "home", label="home").root,
                "tmp": HostTree(self.path / "tmp", label="tmp").root,
                "usr": HostTree(self.path / "usr", label="usr", readonly=True).root,
                "wait": Awaited(lambda: self.done, lambda: "done", lambda: self.changed),
                "go": Text(lambda: "", self.go, mode=0o666),
            },
            id=9,
        )

    def go(self, what: str) -> None:
        if what == "listening":
            self.listening.set()
        elif what == "now":
            self.done = True
            self.changed.notify()
        else:
            raise OSError(EINVAL, what)

    async def service(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hash what a guest sends to port SERVICE, and send it as much back."""
        listener = trio.socket.socket(socket.AF_UNIX)
        await listener.bind(f"{self.uds}_{SERVICE}")
        listener.listen(1)
        task_status.started()
        sock, _ = await listener.accept()
        listener.close()
        async with trio.SocketStream(sock) as stream:
            digest = hashlib.sha256()
            async for data in stream:
                digest.update(data)
            back = os.urandom(SIZE)
            await stream.send_all(digest.digest() + back + hashlib.sha256(back).digest())

    async def dial(self) -> None:
        """Send much to port ECHO of the guest, which sends it back."""
        await self.listening.wait()
        data = os.urandom(SIZE)
        async with await trio.open_unix_socket(str(self.uds)) as stream:
            await stream.send_all(b"CONNECT %d\n" % ECHO)
            said = b""
            while not said.endswith(b"\n"):
                said += await stream.receive_some(1)
            assert said.startswith(b"OK ")
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    await stream.send_all(data)
                    await stream.send_eof()

                nursery.start_soon(send)
                back = b"".join([part async for part in stream])
        assert back == data


def devices(path: Path) -> list[str]:
    """Return QEMU's options for shared memory, our devices, and a port to report on."""
    options = ["-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on", "-machine", "memory-backend=mem"]
    for tag in ("memory", "host", "task"):
        options += ["-chardev", f"socket,id={tag},path={path}/{tag}.sock"]
        options += ["-device", f"vhost-user-fs-pci,queue-size=1024,chardev={tag},tag={tag}"]
    options += ["-chardev", f"socket,id=vsock,path={path}/vsock.sock", "-device", "vhost-user-vsock-pci,chardev=vsock"]
    options += [
        "-chardev",
        f"file,path={path}/report,id=report",
        "-device",
        "virtserialport,chardev=report,name=report",
    ]
    return [*options, "-serial", f"file:{path}/console"]


def boot(path: Path, calls: int) -> list[dict[str, object]]:
    """Run a guest to its end and return what it reports."""
    found = kernel.find(kernel.default_cache(os.environ, os.geteuid()))
    image = path / "initrd"
    image.write_bytes(initrd.build(found, start="from tests.virtio.inside import main; main()"))

    async def main() -> str:
        host = Host(path)
        async with trio.open_nursery() as nursery:
            trees = {
                "memory": (MemoryTree(label="memory").root, ROOT),
                "host": (HostTree(path / "exported", label="host").root, ROOT),
                "task": (host.view(), Caller(TASK, TASK)),
            }
            for tag, (tree, user) in trees.items():
                await nursery.start(partial(serve_fs, path / f"{tag}.sock", tree, user))
            await nursery.start(partial(serve_vsock, path / "vsock.sock", host.uds, 3))
            await nursery.start(host.service)
            nursery.start_soon(host.dial)
            command = [*qemu.command(found.image, image, memory=MEMORY, words=f"calls={calls}"), *devices(path)]
            with trio.move_on_after(SECONDS) as scope:
                await trio.run_process(command, check=False)
            nursery.cancel_scope.cancel()
        told = (path / "report").read_text()
        assert not scope.cancelled_caught, f"the guest did not end:\n{told}{(path / 'console').read_text()[-5000:]}"
        return told

    return [json.loads(line) for line in trio.run(main).splitlines()]


def judge(path: Path, calls: int) -> None:
    cases = boot(path, calls)
    failed = [f"{case['case']}: {case['error']}" for case in cases if case["error"]]
    assert not failed, "\n".join(failed)
    assert len(cases) == 11, (path / "console").read_text()[-5000:]
    made = (path / "home/by-root").stat()
    assert (made.st_uid, made.st_gid) == (TASK, TASK)
    assert (path / "tmp/secret").stat().st_mode & 0o777 == 0o600
    assert sorted(entry.name for entry in path.glob("*.sock")) == []


def test_a_guest_sees_what_it_should_and_does_what_it_may(tmp_path: Path):
    judge(tmp_path, 600)


@pytest.mark.long
def test_a_guest_sees_what_it_should_for_long(tmp_path: Path):
    judge(tmp_path, 6000)
