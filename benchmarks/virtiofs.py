"""Compare our virtiofs with Debian's virtiofsd and with QEMU's own 9P, in one guest, in one run.

    python benchmarks/virtiofs.py [--rounds 5] [--megabytes 32]

Needs root and QEMU (Debian package qemu-system-x86, whose qemu-system-common has virtiofsd); the guest's kernel comes
by apt. One host directory is exported by all three to the same guest, which uses each in turn: of the rounds the best
counts. The guest's caches are dropped before each use but `again`. virtiofsd runs with cache=auto and 9P with
cache=none, their defaults: so 9P reads straight into the program's buffer, keeps nothing, and cannot map files shared.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.serving import table
from tasks.drivers.vm import initrd, kernel, qemu
from vfs.host import HostTree
from vfs.node import ROOT
from vfs.virtio.fs import serve_fs

VIRTIOFSD = next((path for path in ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd") if os.path.exists(path)), "")
MEMORY = 512 << 20
SECONDS = 600
TARGET = 0.95
MODULE = "9pnet_virtio"


def fill(top: Path, megabytes: int) -> None:
    """Make a large file, 500 small ones in a directory, and a tree of 1,000 files in 50 directories."""
    with open(top / "big", "wb") as big:
        for _ in range(megabytes):
            big.write(os.urandom(1 << 20))
    (top / "small").mkdir()
    for number in range(500):
        (top / f"small/{number}").write_bytes(b"x" * 1024)
    for number in range(1000):
        directory = top / f"tree/{number % 50}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file-{number}").write_bytes(b"x" * (number % 3000))


def module(found: kernel.Kernel, work: Path) -> bytes:
    """Return the kernel module of QEMU's 9P, which our guests do without, from the kernel's package, or b""."""
    package = f"linux-image-{found.directory.name}"
    options = ["-q", "-o", "APT::Sandbox::User=root"]
    done = subprocess.run(["apt-get", *options, "download", package], cwd=work, capture_output=True, check=False)
    if done.returncode:
        return b""
    (archive,) = work.glob("*.deb")
    unpack = f"dpkg-deb --fsys-tarfile {archive} | tar -xO --wildcards '*/{MODULE}.ko'"
    return subprocess.run(unpack, shell=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout


async def serve(path: str, top: str) -> None:
    """Be our server until terminated."""
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_fs, path, HostTree(top, label="benchmark").root, ROOT))
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=32, help="size of the file that is read as a whole")
    parser.add_argument("--serve", nargs=2, metavar=("SOCKET", "TOP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve, *options.serve)
        return
    if os.geteuid() or not shutil.which(qemu.PROGRAM) or not VIRTIOFSD:
        sys.exit("needs root, QEMU and virtiofsd: apt-get install qemu-system-x86 qemu-system-common")
    found = kernel.fetch(kernel.default_cache(os.environ, os.geteuid()))
    with tempfile.TemporaryDirectory(prefix="virtiofs-bench-") as directory:
        work = Path(directory)
        top = work / "top"
        top.mkdir()
        fill(top, options.megabytes)
        extra = module(found, work)
        files = {f"/lib/modules/99-{MODULE}.ko": extra} if extra else {}
        image = work / "initrd"
        start = "from benchmarks.clients.guestfiles import main; main()"
        image.write_bytes(initrd.build(found, start=start, files=files))
        mounts = ["ours", "virtiofsd", *(["9p"] if extra else [])]
        servers = [
            subprocess.Popen([sys.executable, __file__, "--serve", f"{work}/ours", str(top)]),
            subprocess.Popen(
                [VIRTIOFSD, f"--socket-path={work}/virtiofsd", "-o", f"source={top}", "-o", "cache=auto", "-f"],
                stderr=subprocess.DEVNULL,
            ),
        ]
        try:
            while not all((work / name).exists() for name in mounts[:2]):
                if any(server.poll() is not None for server in servers):
                    sys.exit("a server does not start")
                time.sleep(0.05)
            words = f"mounts={','.join(mounts)} rounds={options.rounds}"
            command = [*qemu.command(found.image, image, memory=MEMORY, words=words)]
            command += ["-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on"]
            command += ["-machine", "memory-backend=mem", "-serial", f"file:{work}/console"]
            for name in mounts[:2]:
                command += ["-chardev", f"socket,id={name},path={work}/{name}"]
                command += ["-device", f"vhost-user-fs-pci,queue-size=1024,chardev={name},tag={name}"]
            if extra:
                command += ["-fsdev", f"local,id=fsdev,path={top},security_model=none"]
                command += ["-device", "virtio-9p-pci,fsdev=fsdev,mount_tag=9p"]
            command += ["-chardev", f"file,path={work}/report,id=report", "-device", "virtserialport,chardev=report"]
            subprocess.run(command, check=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
            text = (work / "report").read_text()
            if not text:
                sys.exit(f"the guest reports nothing:\n{(work / 'console').read_text()[-3000:]}")
        finally:
            for server in servers:
                server.terminate()
                server.wait()
    show(json.loads(text), mounts)


def show(times: dict[str, dict[str, float]], mounts: list[str]) -> None:
    missed = 0
    rows = []
    for what, each in times.items():
        unit = "MiB/s" if what == "sequential" else "/s"
        ratio = min(each[name] for name in mounts[1:]) / each["ours"]
        missed += ratio < TARGET
        rows.append((what, *(f"{1 / each[name]:.0f} {unit}" for name in mounts), f"{ratio:.2f}", f">= {TARGET}"))
    table(f"Files in a guest ({qemu.accelerator()})", ("use", *mounts, "ours to the best", "target"), rows)
    print(f"{missed} ratio(s) beyond their target" if missed else "every ratio within its target")


if __name__ == "__main__":
    main()
