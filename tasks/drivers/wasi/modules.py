"""Compiled modules, kept on disk under the hash of what they were compiled from.

Whoever can write a compiled module runs code of his own in the tasks that use
it. So the directory is the server's alone; tasks get an open file, and only
`compiler` makes what is stored, each under the hash of its own input.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from errno import EFBIG, EIO, ENOEXEC
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import trio

from vfs.node import Handle

MAX_MODULE = 128 << 20
MAX_SAID = 64 << 10
KEPT_BYTES = 1 << 30
KNOWN_FILES = 1024
COMPILER = Path(__file__).with_name("compiler.py")
"""A program, not to be imported: the server does without the engine."""
SETTLED_NS = 2_000_000_000
"""How long ago a file must have changed for a further change to show in its times: their grain is milliseconds."""
MAGIC, MODULE_VERSION, COMPONENT_LAYER = b"\0asm", b"\1\0\0\0", b"\1\0"
_CHUNK = 1 << 20
_REFUSED = 1


class FileState(NamedTuple):
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Modules:
    """The compiled modules in one directory, made if need be."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        for unfinished in directory.glob("*.new"):
            unfinished.unlink()
        self._directory = directory
        self._variant = f"{version('wasmtime')}-{os.uname().machine}"
        self._known: dict[FileState | None, str] = {}
        self._compilers = trio.CapacityLimiter(2)

    async def open(self, file: Handle) -> tuple[int, Path]:
        """Return the compiled form of a module, open for reading, and where it is kept.

        ENOEXEC with the reason for what is no module that can run here, EFBIG for one that is too large.
        """
        state = _state_of(file)
        if state in self._known:
            path = self._directory / self._known[state]
            with suppress(FileNotFoundError):
                return _open_kept(path), path
        memory = os.memfd_create("module", os.MFD_CLOEXEC)
        try:
            path = self._directory / f"{await _copy(file, memory)}-{self._variant}"
            try:
                found = _open_kept(path)
            except FileNotFoundError:
                async with self._compilers:
                    await self._compile(memory, path)
                found = _open_kept(path)
        finally:
            os.close(memory)
        if state is not None and state == _state_of(file):
            if len(self._known) >= KNOWN_FILES:
                del self._known[next(iter(self._known))]
            self._known[state] = path.name
        return found, path

    async def _compile(self, source: int, path: Path) -> None:
        fd, new = tempfile.mkstemp(dir=self._directory, suffix=".new")
        try:
            os.lseek(source, 0, os.SEEK_SET)
            status, said = await _run_compiler(source, fd)
            if status == _REFUSED and said:
                raise OSError(ENOEXEC, said.splitlines()[-1][:500])
            if status:
                raise OSError(EIO, f"the module could not be compiled: the compiler ended with {status}")
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


def _open_kept(path: Path) -> int:
    """Open a compiled module; it counts as used now."""
    found = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.utime(found)
    return found


def _state_of(file: Handle) -> FileState | None:
    """Return what tells a host's file as it is now; None where that can't be told, or not yet from the next change.

    A large module takes longer to hash than to start.
    """
    if file.fileno() < 0:
        return None
    st = os.fstat(file.fileno())
    settled = time.time_ns() - st.st_ctime_ns > SETTLED_NS
    return FileState(st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns) if settled else None


async def _run_compiler(source: int, output: int) -> tuple[int, str]:
    """Return how the compiler ended and what it said.

    It dies with the thread that started it, so that must be this one, not a worker that leaves when it is idle.
    """
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-I", str(COMPILER)]
        with subprocess.Popen(command, stdin=source, stdout=output, stderr=errors) as process:
            pidfd = os.pidfd_open(process.pid)
            try:
                await trio.lowlevel.wait_readable(pidfd)
            except BaseException:
                process.kill()
                raise
            finally:
                os.close(pidfd)
        errors.seek(0)
        return process.returncode, errors.read(MAX_SAID).decode(errors="replace").strip()


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
