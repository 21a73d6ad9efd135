"""A module's linear memory as its host functions see it: every access inside it, or EFAULT."""

import ctypes
from collections.abc import Iterator
from errno import EFAULT, EINVAL
from struct import Struct
from typing import Any

import wasmtime

from tasks.drivers.wasi.abi import IOVEC, U32

MAX_VECTORS = 1024


class Memory:
    """The memory of the module that calls, in `store`. `enter` first: a memory that has grown may have moved."""

    store: wasmtime.Store

    def __init__(self) -> None:
        self._export: wasmtime.Memory | None = None
        self._size = -1
        self._view = memoryview(b"")

    def enter(self, caller: wasmtime.Caller) -> None:
        """Look at the memory that the calling module exports as `memory`; one without has an empty one."""
        if self._export is None:
            export = caller.get("memory")
            if not isinstance(export, wasmtime.Memory):
                return
            self._export = export
        size = self._export.data_len(self.store)
        if size != self._size:
            address = ctypes.addressof(self._export.data_ptr(self.store).contents) if size else 0
            self._view = memoryview((ctypes.c_ubyte * size).from_address(address) if size else b"").cast("B")
            self._size = size

    def slice(self, at: int, size: int) -> memoryview:
        if at + size > len(self._view):
            raise OSError(EFAULT, "outside the memory")
        return self._view[at : at + size]

    def get(self, layout: Struct, at: int) -> tuple[Any, ...]:
        return layout.unpack(self.slice(at, layout.size))

    def put(self, layout: Struct, at: int, *values: int) -> None:
        layout.pack_into(self.slice(at, layout.size), 0, *values)

    def put_u32(self, at: int, value: int) -> None:
        self.put(U32, at, value)

    def put_bytes(self, at: int, data: bytes | memoryview) -> None:
        self.slice(at, len(data))[:] = data

    def vectors(self, at: int, count: int) -> Iterator[memoryview]:
        """Return the parts of memory that an array of iovecs names. EINVAL for more than 1024 of them."""
        if count > MAX_VECTORS:
            raise OSError(EINVAL, "too many vectors")
        table = bytes(self.slice(at, count * IOVEC.size))
        return (self.slice(where, size) for where, size in IOVEC.iter_unpack(table))
