"""How a module's call becomes a call of Python: arguments are read where the engine has put them.

The engine's bindings make an object of every value, which costs ten times as much as everything done here. These are
its unchecked host functions (wasmtime.h): the linker has compared the types, so what lies in the slots is known.
"""

import ctypes
import traceback
from collections.abc import Callable
from struct import Struct

import wasmtime
from wasmtime import _ffi as ffi

from tasks.drivers.wasi.abi import MODULE, errno_of
from tasks.drivers.wasi.memory import Memory

_SLOT = 16
"""Bytes of a wasmtime_val_raw_t; values in it are little-endian."""
_TYPES = {
    "u": (wasmtime.ValType.i32, "I12x"),
    "p": (wasmtime.ValType.i32, "I12x"),
    "L": (wasmtime.ValType.i64, "Q8x"),
    "S": (wasmtime.ValType.i64, "q8x"),
}
_ANSWER = Struct("<I")
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_NO_FINALIZER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)()
assert ctypes.sizeof(ffi.wasmtime_val_raw_t) == _SLOT

_callbacks: list[object] = []
"""Linkers call these for as long as the process lives."""


def define(linker: wasmtime.Linker, memory: Memory, name: str, kinds: str, function: Callable[..., None]) -> None:
    """Make `function` what modules import as `name`; its parameters are of `kinds` (see `abi.SIGNATURES`).

    The module sees 0, or WASI's number for an OSError. Any other exception is a trap that holds the traceback.
    """
    layout = Struct("<" + "".join(_TYPES[kind][1] for kind in kinds))
    room = ctypes.c_char * max(layout.size, _SLOT)
    unpack, pack, slots_at, find = layout.unpack_from, _ANSWER.pack_into, room.from_address, memory.find

    def called(_env: object, caller: int, address: int, _count: int) -> int:
        slots = slots_at(address)
        try:
            if not memory.known:
                find(caller)
            function(*unpack(slots))
            pack(slots, 0, 0)
        except OSError as error:
            pack(slots, 0, errno_of(error))
        except BaseException:
            return _trap(f"the runner failed: {traceback.format_exc()}")
        return 0

    _callbacks.append(callback := _CALLBACK(called))
    results = [] if name == "proc_exit" else [wasmtime.ValType.i32()]
    kind = wasmtime.FuncType([_TYPES[letter][0]() for letter in kinds], results)
    error = ffi.wasmtime_linker_define_func_unchecked(
        linker.ptr(),
        ctypes.create_string_buffer(MODULE.encode()),
        len(MODULE),
        ctypes.create_string_buffer(name.encode()),
        len(name),
        kind.ptr(),
        ctypes.cast(callback, ffi.wasmtime_func_unchecked_callback_t),
        None,
        _NO_FINALIZER,
    )
    if error:
        raise wasmtime.WasmtimeError._from_ptr(error)


def _trap(text: str) -> int:
    return ctypes.cast(wasmtime.Trap(text)._consume(), ctypes.c_void_p).value or 0
