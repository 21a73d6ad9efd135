"""Compile one module: from stdin to stdout, or a line on stderr of why not and exit status 1.

A process of its own, because the module is anybody's: it has no privileges,
nothing open but its streams, and bounds on its memory and time. What it
writes is kept under the hash of what it read, so a compiler that a module has
taken over can only spoil that module's own code.
"""

import os
import resource
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))))

import wasmtime

from tasks.drivers.wasi.abi import MODULE, SIGNATURES
from tasks.drivers.wasi.engine import new_engine
from tasks.taskd import privilege, syscalls

NOBODY = 65534
MAX_MEMORY = 4 << 30
MAX_SECONDS = 120
_KINDS = {"u": "i32", "p": "i32", "L": "i64", "S": "i64"}


def give_up_privileges() -> None:
    """Become nobody, whom nobody's other processes can't look into, and who gives way to everyone."""
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    nobody = os.geteuid() == 0 and not privilege.one_user()
    privilege.become(*((NOBODY, NOBODY) if nobody else (os.geteuid(), os.getegid())))
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)


def check(module: wasmtime.Module) -> None:
    """Raise ValueError for a module that is no WASI command or wants what there isn't."""
    for wanted in module.imports:
        name = f"{wanted.module}.{wanted.name}"
        kinds = SIGNATURES.get(wanted.name or "") if wanted.module == MODULE else None
        if kinds is None or not isinstance(wanted.type, wasmtime.FuncType):
            raise ValueError(f"unknown import {name}")
        results = [] if wanted.name == "proc_exit" else ["i32"]
        if ([str(kind) for kind in wanted.type.params], [str(kind) for kind in wanted.type.results]) != (
            [_KINDS[letter] for letter in kinds],
            results,
        ):
            raise ValueError(f"import {name} has another type")
    start = next((export.type for export in module.exports if export.name == "_start"), None)
    if not isinstance(start, wasmtime.FuncType) or start.params or start.results:
        raise ValueError("no function _start: a library, not a command")


def main() -> None:
    engine = new_engine(in_parallel=True)
    give_up_privileges()
    try:
        module = wasmtime.Module(engine, sys.stdin.buffer.read())
        check(module)
    except (wasmtime.WasmtimeError, ValueError) as error:
        sys.exit(" ".join(str(error).split()))
    sys.stdout.buffer.write(module.serialize())


if __name__ == "__main__":
    main()
