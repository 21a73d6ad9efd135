"""WASI tasks in a whole server of this process, and programs for them made of calls.

A `Program` is a list of WASI calls; the module made of it carries them out, keeps every errno, and at its end writes
its memory to stdout, where the test reads what each call answered.
"""

import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import wasmtime

from tasks.drivers.wasi.abi import MODULE, SIGNATURES
from tasks.task import Task
from tests.tasks.tasks_household import Household
from vfs.node import ROOT
from vfs.walk import open_path
from wanixfs.config import Config
from wanixfs.program import opened

SUCCESS, ACCES, AGAIN, BADF, EXIST, FAULT, INVAL, IO, ISDIR, LOOP = 0, 2, 6, 8, 20, 21, 28, 29, 31, 32
NAMETOOLONG, NOENT, NOTDIR, NOTEMPTY, NOTSOCK, NOTSUP, PERM, PIPE, SPIPE = 37, 44, 54, 55, 57, 58, 63, 64, 70
NOTCAPABLE = 76
READ, SEEK, SET_FLAGS, TELL, WRITE, ALLOCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 6, 1 << 8
ANY = (1 << 30) - 1
READ_WRITE = ANY
READ_ONLY = ANY & ~(WRITE | ALLOCATE)
DEADLINE = 60.0
CREATE, DIRECTORY, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8
SCRIPT = "bind #task /task\nbind #cap /cap\nbind #dev /dev\nbind #tmp /tmp\nbind -c #mem /mem\n"
_DUMP = 1 << 16
own_users = pytest.mark.skipif(os.geteuid() != 0, reason="without root all tasks have one user")


class Cell(int):
    """An address in the program's memory; as an argument it is a pointer, `.value` what lies there by then."""

    size: int

    def __new__(cls, at: int, size: int) -> "Cell":
        cell = super().__new__(cls, at)
        cell.size = size
        return cell

    @property
    def value(self) -> str:
        return f"(i32.load (i32.const {int(self)}))"


class Program:
    """A module under construction. The first page is its memory's part that the test sees."""

    def __init__(self) -> None:
        self._top = 1024
        self._data: list[tuple[int, bytes]] = []
        self._code: list[str] = []
        self._used: set[str] = {"fd_write", "proc_exit"}

    def room(self, size: int) -> Cell:
        cell = Cell(self._top, size)
        self._top += (size + 15) // 8 * 8
        assert self._top <= _DUMP
        return cell

    def u32(self) -> Cell:
        return self.room(4)

    def data(self, data: bytes) -> Cell:
        cell = self.room(len(data))
        self._data.append((int(cell), data))
        return cell

    def text(self, text: str) -> tuple[int, int]:
        """Return (pointer, length)."""
        data = text.encode("utf-8", "surrogateescape")
        return self.data(data), len(data)

    def vector(self, *parts: Cell) -> tuple[int, int]:
        """Return (pointer, count) of an array of iovecs."""
        return self.data(b"".join(struct.pack("<II", part, part.size) for part in parts)), len(parts)

    def call(self, name: str, *args: "int | str") -> Cell:
        """Add a call; return the cell of its errno."""
        self._used.add(name)
        kinds = ["i64" if kind in "LS" else "i32" for kind in SIGNATURES[name]]
        assert len(kinds) == len(args), (name, kinds, args)
        words = " ".join(
            arg if isinstance(arg, str) else f"({kind}.const {int(arg)})" for kind, arg in zip(kinds, args, strict=True)
        )
        answer = self.u32()
        self._code.append(f"(i32.store (i32.const {int(answer)}) (call ${name} {words}))")
        return answer

    def open(
        self, path: str, oflags: int = 0, rights: int = READ_WRITE, *, flags: int = 0, at: "int | str" = 3
    ) -> Cell:
        """Add a path_open that follows symlinks; return the cell of the descriptor, -1 unless it succeeds."""
        fd = self.data(b"\xff" * 4)
        self.call("path_open", at, 1, *self.text(path), oflags, rights, ANY, flags, fd)
        return fd

    def write(self, fd: "int | str", data: bytes) -> Cell:
        return self.call("fd_write", fd, *self.vector(self.data(data)), self.u32())

    def code(self, text: str) -> None:
        """Add an instruction in WebAssembly's own words."""
        self._code.append(text)

    def wat(self, *, exit: int = 0) -> str:
        imports = "\n".join(f'(import "{MODULE}" "{name}" (func ${name} {_type(name)}))' for name in sorted(self._used))
        data = "\n".join(f'(data (i32.const {at}) "{_quoted(content)}")' for at, content in self._data)
        body = "\n".join(self._code)
        return f"""(module {imports} (memory (export "memory") 2) {data}
            (func (export "_start") (local $left i32)
                {body}
                (i32.store (i32.const 0) (i32.const 0))
                (i32.store (i32.const 4) (i32.const {_DUMP}))
                (block $done (loop $more
                    (br_if $done (i32.eqz (i32.load (i32.const 4))))
                    (br_if $done (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
                    (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.load (i32.const 8))))
                    (i32.store (i32.const 4) (i32.sub (i32.load (i32.const 4)) (i32.load (i32.const 8))))
                    (br $more)))
                (call $proc_exit (i32.const {exit}))))"""

    def compile(self, *, exit: int = 0) -> bytes:
        return bytes(wasmtime.wat2wasm(self.wat(exit=exit)))


def _type(name: str) -> str:
    kinds = " ".join("i64" if kind in "LS" else "i32" for kind in SIGNATURES[name])
    return f"(param {kinds})" + ("" if name == "proc_exit" else " (result i32)")


def _quoted(data: bytes) -> str:
    return "".join(f"\\{byte:02x}" for byte in data)


@dataclass(frozen=True)
class Ended:
    """How a task ended, and what it wrote."""

    code: int
    out: bytes
    err: bytes
    error: str
    reason: str

    def __getitem__(self, cell: Cell) -> int:
        """Return the 32 bits that the program left in a cell."""
        assert len(self.out) == _DUMP, (self.code, self.error, self.err)
        return int(struct.unpack_from("<I", self.out, cell)[0])

    def u64(self, cell: Cell) -> int:
        return int(struct.unpack_from("<Q", self.out, cell)[0])

    def bytes(self, cell: Cell, size: int | None = None) -> bytes:
        return self.out[cell : cell + (cell.size if size is None else size)]


class Node(Household):  # type: ignore[misc]
    """A server's tree, with the verbs of WASI tasks. `tmp` is the folder behind its /tmp."""

    def __init__(self, house: object, driver: object, tmp: Path) -> None:
        super().__init__(house, driver)
        self.tmp = tmp

    def put(self, name: str, content: bytes) -> str:
        """Put a file into /tmp and return its path."""
        (self.tmp / name).write_bytes(content)
        (self.tmp / name).chmod(0o644)
        return f"/tmp/{name}"

    async def task(self, wasm: "bytes | Program", *words: str, name: str = "program.wasm", **settings: str) -> str:
        """Make, configure and start a task; return its id. `settings` are verbs of its ctl."""
        path = self.put(name, wasm.compile() if isinstance(wasm, Program) else wasm)
        command = " ".join(["cmd", path, *words])
        return str(await self.new(command, *(f"{verb} {value}" for verb, value in settings.items()), "start"))

    def record(self, task: str) -> Task:
        return self.service.tasks[int(task)]  # type: ignore[no-any-return]

    async def said(self, task: str, text: str) -> None:
        """Wait until a task has written this, first of all, to its stderr."""
        _, handle = await open_path(self.root(), f"/task/{task}/fd/2", os.O_RDONLY, ROOT)
        found = b""
        while len(found) < len(text):
            found += bytes(await handle.read(len(text), len(found)))
        handle.close()
        assert found.decode() == text

    async def end(self, task: str) -> Ended:
        """Wait for a task's end."""
        code = int(await self.cat(f"/task/{task}/wait"))
        spools = [self.service.spools / task / number for number in "12"]
        out, err = (spool.read_bytes() if spool.exists() else b"" for spool in spools)
        texts = [await self.cat(f"/task/{task}/{name}") for name in ("error", "reason")]
        return Ended(code, out, err, *(text.rstrip("\n") for text in texts))

    async def run(self, wasm: "bytes | Program", *words: str, **settings: str) -> Ended:
        return await self.end(await self.task(wasm, *words, **settings))


@asynccontextmanager
async def node(tmp_path: Path, *, leave: bool = False) -> AsyncIterator[Node]:
    """Open a server over `tmp_path`, without a mount; its supervisor ends with it unless it is to `leave` its tasks."""
    script = tmp_path / "init.ns"
    script.write_text(SCRIPT)
    config = Config(state=tmp_path / "state", listen=("unix!/nowhere",), namespace=script)
    config.state.mkdir(mode=0o711, exist_ok=True)
    with trio.fail_after(DEADLINE):
        async with opened(config) as (house, driver):
            try:
                yield Node(house, driver, config.state / "tmp")
            finally:
                with trio.move_on_after(10, shield=True):
                    if not leave:
                        await driver.quit()
