"""From packaged kernel images to what a guest boots."""

import gzip
import lzma
import struct
from errno import EINVAL, ENOENT
from pathlib import Path

import pytest

from tasks.drivers.vm.kernel import Kernel, default_cache, depends, fetch, find, vmlinux

ELF = b"\x7fELF" + bytes(range(256)) * 64


def bzimage(payload: bytes) -> bytes:
    """Return a boot sector, one sector of setup code, and the payload 16 bytes into what follows."""
    image = bytearray(1024)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + bytes(16) + payload + b"trailing"


SIZE = struct.pack("<I", len(ELF))
FORMS = {
    "xz": lzma.compress(ELF, check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2}])
    + SIZE,
    "gzip": gzip.compress(ELF) + SIZE,
}


@pytest.mark.parametrize("form", FORMS)
def test_image_is_unpacked(form: str) -> None:
    assert vmlinux(bzimage(FORMS[form])) == ELF


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"MZ" + bytes(2000),
        bzimage(b"")[:700],
        bzimage(b"unknown"),
        bzimage(FORMS["xz"][:60]),
        bzimage(lzma.compress(b"x")),
    ],
    ids=["empty", "no header", "cut", "unknown form", "cut payload", "not ELF"],
)
def test_what_is_no_kernel_is_refused(image: bytes) -> None:
    with pytest.raises(OSError) as raised:
        vmlinux(image)
    assert raised.value.errno == EINVAL


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    for name, needs in (("a", b"b,c-d"), ("b", b"c-d"), ("c_d", b""), ("other", b"")):
        (tmp_path / f"modules/{name}.ko").write_bytes(b"\x7fELF\0depends=" + needs + b"\0name=x\0")
    assert [path.stem for path in Kernel(tmp_path).modules(["a", "b"])] == ["c_d", "b", "a"]
    assert depends(b"no section") == []
    with pytest.raises(FileNotFoundError):
        Kernel(tmp_path).modules(["missing"])


def test_newest_kernel_is_found_and_none_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        find(tmp_path)
    assert raised.value.errno == ENOENT and str(tmp_path) in str(raised.value)
    for version in ("6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-100-amd64", ".new-7"):
        (tmp_path / version).mkdir()
        if version != "6.1.0-100-amd64":  # not unpacked to its end
            (tmp_path / version / "vmlinux").touch()
    assert find(tmp_path).directory.name == "6.1.0-56-amd64"
    assert fetch(tmp_path) == find(tmp_path)


def test_cache_is_where_the_environment_says() -> None:
    assert default_cache({"WANIXFS_KERNELS": "/k"}, 0) == Path("/k")
    assert default_cache({}, 0) == Path("/var/cache/wanixfs/kernels")
    assert default_cache({"HOME": "/h"}, 5) == Path("/h/.cache/wanixfs/kernels")
    assert default_cache({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, 5) == Path("/x/wanixfs/kernels")
