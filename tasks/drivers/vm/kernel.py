"""The guest's kernel: Debian's, its vmlinux unpacked once and kept by version with the modules that guests load.

A vmlinux boots in half the time of the compressed image that is packaged. The
package comes by apt, which checks its signature; a kernel from elsewhere is
used where somebody puts one, in the same form:

    DIRECTORY/vmlinux           an ELF image with a PVH entry (CONFIG_PVH)
    DIRECTORY/modules/NAME.ko   uncompressed; MODULES and what they depend on

`python -m tasks.drivers.vm.kernel` fetches the kernel and prints its directory.
"""

import gzip
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from errno import EINVAL, EIO, ENOENT
from pathlib import Path, PurePath

from tasks.drivers.vm.names import MODULES

PACKAGE = "linux-image-amd64"
_VERSIONED = re.compile(r"^\s*Depends: (linux-image-[\w.+~-]+)$", re.MULTILINE)
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_SECONDS = 600
MAX_VMLINUX = 512 << 20


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel."""

    directory: Path

    @property
    def image(self) -> Path:
        return self.directory / "vmlinux"

    def modules(self, wanted: Sequence[str]) -> list[Path]:
        """Return the files of these modules, each after what it depends on. ENOENT."""
        found: dict[str, Path] = {}

        def add(name: str) -> None:
            path = self.directory / "modules" / f"{name}.ko"
            if name not in found:
                for dependency in depends(path.read_bytes()):
                    add(dependency)
                found[name] = path

        for name in wanted:
            add(name)
        return list(found.values())


def default_cache(env: Mapping[str, str], uid: int) -> Path:
    """Return where kernels are kept: WANIXFS_KERNELS, /var/cache for root, else XDG_CACHE_HOME."""
    if named := env.get("WANIXFS_KERNELS"):
        return Path(named)
    if uid == 0:
        return Path("/var/cache/wanixfs/kernels")
    return Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "/")) / ".cache") / "wanixfs/kernels"


def find(cache: Path) -> Kernel:
    """Return the newest kernel that is kept. ENOENT."""
    kept = [path for path in cache.glob("[!.]*") if (path / "vmlinux").exists()]
    if not kept:
        raise OSError(ENOENT, f"no guest kernel in {cache} (python -m tasks.drivers.vm.kernel fetches one)")
    return Kernel(max(kept, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)]))


def fetch(cache: Path) -> Kernel:
    """Return the newest kernel that is kept, or else Debian's, downloaded by apt. OSError with the reason."""
    try:
        return find(cache)
    except FileNotFoundError:
        pass
    if not shutil.which("apt-get"):
        raise OSError(ENOENT, f"no apt here: put a kernel below {cache} (see docs/vm.md)")
    package = _VERSIONED.search(_run("apt-cache", "depends", PACKAGE))
    if not package and os.geteuid() == 0:
        _run("apt-get", "-q", "update")
        package = _VERSIONED.search(_run("apt-cache", "depends", PACKAGE))
    if not package:
        raise OSError(ENOENT, f"apt knows no package {PACKAGE}")
    version = package[1].removeprefix("linux-image-")
    final = cache / version
    if not (final / "vmlinux").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as new:
            os.chmod(new, 0o755)
            _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package[1], cwd=new)
            (archive,) = Path(new).glob("*.deb")
            unpack(archive, Path(new) / "kernel")
            try:
                os.rename(Path(new) / "kernel", final)
            except OSError:
                if not (final / "vmlinux").exists():  # else another has been faster
                    raise
    return Kernel(final)


def unpack(archive: Path, directory: Path) -> None:
    """Unpack the kernel of a Debian package, and of its modules those that guests load."""
    (directory / "modules").mkdir(parents=True)
    process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE)
    assert process.stdout
    known: dict[str, bytes] = {}
    with process, tarfile.open(fileobj=process.stdout, mode="r|") as tar:
        for member in tar:
            path = PurePath(member.name)
            if path.name.startswith("vmlinuz-"):
                (directory / "vmlinux").write_bytes(vmlinux(_content(tar, member)))
            elif path.name.endswith((".ko", ".ko.xz")):
                data = _content(tar, member)
                known[_module(path.name)] = lzma.decompress(data) if path.suffix == ".xz" else data
    if process.returncode:
        raise OSError(EIO, f"dpkg-deb ended with status {process.returncode}")
    todo = list(MODULES)
    while todo:
        name = todo.pop()
        place = directory / "modules" / f"{name}.ko"
        if not place.exists():
            if name not in known:
                raise OSError(ENOENT, f"{archive.name} has no module {name}")
            place.write_bytes(known[name])
            todo += depends(known[name])


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _module(file: str) -> str:
    return file.partition(".")[0].replace("-", "_")


def depends(module: bytes) -> list[str]:
    """Return the names of the modules that a module needs, as its .modinfo section says."""
    found = _DEPENDS.search(module)
    return [name.replace("-", "_") for name in found[1].decode("ascii").split(",") if name] if found else []


def vmlinux(image: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage (Documentation/x86/boot.rst, `payload_offset`). EINVAL."""
    try:
        if image[0x202:0x206] != b"HdrS":
            raise ValueError("no boot header")
        start = (image[0x1F1] or 4) * 512 + 512
        offset, size = struct.unpack_from("<II", image, 0x248)
        payload = image[start + offset : start + offset + size]
        kernel = _decompressed(payload)
        if kernel[:4] != b"\x7fELF":
            raise ValueError("no ELF file inside")
    except (ValueError, IndexError, struct.error, lzma.LZMAError, EOFError) as error:
        raise OSError(EINVAL, f"not a kernel image: {error}") from error
    return kernel


def _decompressed(payload: bytes) -> bytes:
    """Return the content of a payload, which ends with its size. ValueError for an unknown form."""
    if payload[:6] == b"\xfd7zXZ\0":
        decompressor = lzma.LZMADecompressor(memlimit=MAX_VMLINUX)
        kernel = decompressor.decompress(payload, MAX_VMLINUX)
        if not decompressor.eof:
            raise ValueError("it is cut short")
        return kernel
    if payload[:2] == b"\x1f\x8b":
        return gzip.decompress(payload[:-4])
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        return subprocess.run(["zstd", "-dc"], input=payload[:-4], capture_output=True, check=True).stdout
    raise ValueError("compressed in an unknown way")


def _run(*command: str, cwd: str | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise OSError(EIO, f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(fetch(default_cache(os.environ, os.geteuid())).directory)
    except OSError as error:
        sys.exit(f"guest kernel: {error.strerror}")
