"""Compiled modules, kept on disk under the hash of what they were compiled from.

Whoever can write a compiled module runs code of his own in the tasks that use
it. So the directory is the server's alone; tasks get an open file, and only
`compiler` makes what is stored, each under the hash of its own input.
"""

import hashlib
import os
import sys
import tempfile
from errno import EFBIG, EIO, ENOEXEC
from importlib.metadata import version
from pathlib import Path

import trio

from tasks.drivers.wasi import compiler
from vfs.node import Handle

MAX_MODULE = 128 << 20
KEPT_BYTES = 1 << 30
MAGIC, MODULE_VERSION, COMPONENT_LAYER = b"\0asm", b"\1\0\0\0", b"\1\0"
_CHUNK = 1 << 20
_REFUSED = 1


class Modules:
    """The compiled modules in one directory, made if need be."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        for unfinished in directory.glob("*.new"):
            unfinished.unlink()
        self._directory = directory
        self._variant = f"{version('wasmtime')}-{os.uname().machine}"
        self._compilers = trio.CapacityLimiter(2)

    async def open(self, file: Handle) -> tuple[int, Path]:
        """Return the compiled form of a module, open for reading, and where it is kept.

        ENOEXEC with the reason for what is no module that can run here, EFBIG for one that is too large.
        """
        memory = os.memfd_create("module", os.MFD_CLOEXEC)
        try:
            digest = await _copy(file, memory)
            path = self._directory / f"{digest}-{self._variant}"
            try:
                found = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                async with self._compilers:
                    await self._compile(memory, path)
                found = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            else:
                os.utime(path)
            return found, path
        finally:
            os.close(memory)

    async def _compile(self, source: int, path: Path) -> None:
        fd, new = tempfile.mkstemp(dir=self._directory, suffix=".new")
        try:
            os.lseek(source, 0, os.SEEK_SET)
            done = await trio.run_process(
                [sys.executable, "-I", compiler.__file__],
                stdin=source,
                stdout=fd,
                capture_stderr=True,
                check=False,
            )
            said = done.stderr.decode(errors="replace").strip()
            if done.returncode == _REFUSED and said:
                raise OSError(ENOEXEC, said.splitlines()[-1][:500])
            if done.returncode:
                raise OSError(EIO, f"the module could not be compiled: the compiler ended with {done.returncode}")
            os.fsync(fd)  # half a module would be taken for code
            os.rename(new, path)
        except BaseException:
            os.unlink(new)
            raise
        finally:
            os.close(fd)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        kept = sorted(
            (entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in os.scandir(self._directory)
        )
        excess = sum(size for _, size, _ in kept) - KEPT_BYTES
        for _, size, path in kept[:-1]:
            if excess <= 0:
                break
            os.unlink(path)
            excess -= size


async def _copy(file: Handle, memory: int) -> str:
    """Copy a module and return its hash, letting others go on in between."""
    digest = hashlib.sha256()
    size = 0
    while chunk := bytes(await file.read(_CHUNK, size)):
        if not size:
            _check_header(chunk)
        os.write(memory, chunk)
        digest.update(chunk)
        size += len(chunk)
        if size > MAX_MODULE:
            raise OSError(EFBIG, f"a module has {MAX_MODULE} bytes at most")
        await trio.lowlevel.checkpoint()
    if not size:
        raise OSError(ENOEXEC, "not a WebAssembly module: the file is empty")
    return digest.hexdigest()


def _check_header(start: bytes) -> None:
    if start[:4] != MAGIC:
        raise OSError(ENOEXEC, "not a WebAssembly module")
    if start[6:8] == COMPONENT_LAYER:
        raise OSError(ENOEXEC, "a WebAssembly component, not a module")
    if start[4:8] != MODULE_VERSION:
        raise OSError(ENOEXEC, "not a WebAssembly module of version 1")
