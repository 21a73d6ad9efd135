"""A module's linear memory as its host functions see it: every access inside it, or EFAULT."""

import ctypes
from errno import EFAULT, EINVAL
from struct import Struct

import wasmtime
from wasmtime import _ffi as ffi

from tasks.drivers.wasi.abi import IOVEC, U32

MAX_VECTORS = 1024
_CALLER = ctypes.POINTER(ffi.wasmtime_caller_t)


class Memory:
    """The memory of the module that calls, in `store`. It may grow but does not move (see `engine`)."""

    store: wasmtime.Store

    def __init__(self) -> None:
        self.known = False
        """Whether `find` has found it. It can't have while there was no call yet, of a start section perhaps."""
        self._export: wasmtime.Memory | None = None
        self._view = memoryview(b"")

    def find(self, caller: int) -> None:
        """Look for what the module at this wasmtime_caller_t exports as `memory`; one without has an empty one."""
        export = wasmtime.Caller(ctypes.cast(caller, _CALLER)).get("memory")
        if isinstance(export, wasmtime.Memory):
            self._export = export
            self.known = True

    def check(self, at: int, size: int) -> None:
        """EFAULT unless these bytes are inside the memory, which may have grown since the last look."""
        if at + size > len(self._view) and at + size > self._look():
            raise OSError(EFAULT, "outside the memory")

    def _look(self) -> int:
        if self._export is None:
            return 0
        size = self._export.data_len(self.store)
        if size > len(self._view):
            address = ctypes.addressof(self._export.data_ptr(self.store).contents)
            self._view = memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")
        return size

    def slice(self, at: int, size: int) -> memoryview:
        self.check(at, size)
        return self._view[at : at + size]

    def put(self, layout: Struct, at: int, *values: int) -> None:
        self.check(at, layout.size)
        layout.pack_into(self._view, at, *values)

    def put_u32(self, at: int, value: int) -> None:
        self.put(U32, at, value)

    def put_bytes(self, at: int, data: bytes | memoryview) -> None:
        self.slice(at, len(data))[:] = data

    def vectors(self, at: int, count: int) -> list[memoryview]:
        """Return the parts of memory that an array of iovecs names. EINVAL for more than 1024 of them."""
        if count > MAX_VECTORS:
            raise OSError(EINVAL, "too many vectors")
        self.check(at, count * IOVEC.size)
        table = bytes(self._view[at : at + count * IOVEC.size])
        return [self.slice(where, size) for where, size in IOVEC.iter_unpack(table)]
