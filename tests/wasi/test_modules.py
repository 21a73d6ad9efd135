"""Compiled modules: what is compiled, hashed and read again, and what is not."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EIO
from pathlib import Path

import pytest
import trio
import wasmtime

from tasks.drivers.wasi import modules
from tasks.drivers.wasi.modules import Modules
from tests.drivers.recorder import alive, until
from vfs.node import Handle


def module(result: int) -> bytes:
    return bytes(wasmtime.wat2wasm(f'(module (func (export "_start")) (func (result i32) i32.const {result}))'))


class HostFile(Handle):
    """A host's file that counts how often it was read from its start."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.times_read = 0

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes:
        self.times_read += not offset
        return os.pread(self._fd, size, offset)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def opened(path: Path) -> Iterator[HostFile]:
    file = HostFile(path)
    try:
        yield file
    finally:
        file.close()


async def kept(known: Modules, file: Handle) -> Path:
    code, path = await known.open(file)
    os.close(code)
    return path


def test_file_that_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "SETTLED_NS", -1)

    async def main() -> None:
        known, source = Modules(tmp_path / "cache"), tmp_path / "a.wasm"
        source.write_bytes(module(1))
        with opened(source) as file:
            first = await kept(known, file)
            assert await kept(known, file) == first and file.times_read == 1
            first.unlink()
            assert await kept(known, file) == first and file.times_read == 2
        source.write_bytes(module(2))
        os.utime(source, (1, 1))
        with opened(source) as file:
            assert await kept(known, file) != first and file.times_read == 1

    trio.run(main)


def test_file_that_just_changed_is_read_again(tmp_path: Path) -> None:
    async def main() -> None:
        known, source = Modules(tmp_path / "cache"), tmp_path / "a.wasm"
        source.write_bytes(module(1))
        with opened(source) as file:
            for times in (1, 2):
                await kept(known, file)
                assert file.times_read == times

    trio.run(main)


def test_least_recently_used_modules_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        known = Modules(tmp_path / "cache")
        paths = []
        for number in range(3):
            source = tmp_path / f"{number}.wasm"
            source.write_bytes(module(number))
            with opened(source) as file:
                paths.append(await kept(known, file))
            os.utime(paths[-1], (number, number))
        with opened(tmp_path / "0.wasm") as file:
            await kept(known, file)  # used again, so no longer the oldest
        monkeypatch.setattr(modules, "KEPT_BYTES", paths[0].stat().st_size * 3)
        source.write_bytes(module(9))
        with opened(source) as file:
            last = await kept(known, file)
        assert sorted((tmp_path / "cache").iterdir()) == sorted([paths[0], paths[2], last])

    trio.run(main)


def test_compiler_outlives_idle_threads_but_not_its_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told of the death of the thread that started it, which must not be one that ends when it has no work."""
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.01)
    pid, go = tmp_path / "pid", tmp_path / "go"
    os.mkfifo(go)
    program = tmp_path / "compiler.py"
    program.write_text(
        "import ctypes, os\n"
        "ctypes.CDLL(None).prctl(1, 9)\n"
        f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        f"print(open({str(go)!r}).read(), end='')\n"
    )
    monkeypatch.setattr(modules, "COMPILER", program)
    source = tmp_path / "a.wasm"
    source.write_bytes(module(1))
    threads = threading.active_count()

    async def main() -> None:
        known = Modules(tmp_path / "cache")
        with opened(source) as file:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kept, known, file)
                await until(pid.exists)
                await until(lambda: threading.active_count() == threads)
                go.write_text("compiled")
            assert (await kept(known, file)).read_bytes() == b"compiled"
            (await kept(known, file)).unlink()
            pid.unlink()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kept, known, file)
                await until(lambda: pid.exists() and pid.read_text() != "")
                nursery.cancel_scope.cancel()
            assert not alive(int(pid.read_text()))
            assert list((tmp_path / "cache").iterdir()) == []

    trio.run(main)


def test_compiler_that_is_killed_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "compiler.py"
    program.write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(modules, "COMPILER", program)

    async def main() -> None:
        source = tmp_path / "a.wasm"
        source.write_bytes(module(1))
        with opened(source) as file:
            with pytest.raises(OSError) as raised:
                await Modules(tmp_path / "cache").open(file)
            assert raised.value.errno == EIO
        assert list((tmp_path / "cache").iterdir()) == []

    trio.run(main)
