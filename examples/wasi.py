#!/usr/bin/env python3
"""A WebAssembly module among ordinary programs: `examples/wasi.py DIR`, where DIR is the mount point of a tree.

Compiles a module that writes its input in capitals, gives it what a Linux task prints through a kernel pipe, and prints
what comes out. Any module for WASI preview 1 would do, such as `clang --target=wasm32-wasi` makes.
"""

import sys
from pathlib import Path

import wasmtime

CAPITALS = """(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (func (export "_start") (local $at i32) (local $letter i32)
        (i32.store (i32.const 0) (i32.const 65536))  ;; one vector: the second page
        (loop $again
            (i32.store (i32.const 4) (i32.const 65536))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 4)))
            (if (i32.eqz (i32.load (i32.const 4))) (then return))
            (local.set $at (i32.add (i32.const 65536) (i32.load (i32.const 4))))
            (loop $letters
                (local.set $at (i32.sub (local.get $at) (i32.const 1)))
                (local.set $letter (i32.load8_u (local.get $at)))
                (if (i32.lt_u (i32.sub (local.get $letter) (i32.const 97)) (i32.const 26))
                    (then (i32.store8 (local.get $at) (i32.sub (local.get $letter) (i32.const 32)))))
                (br_if $letters (i32.gt_u (local.get $at) (i32.const 65536))))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (br $again))))"""


def main(tree: Path) -> int:
    program = tree / "tmp/capitals.wasm"
    program.write_bytes(wasmtime.wat2wasm(CAPITALS))
    names, capitals = ((tree / "task/new").read_text().strip() for _ in range(2))
    tell = {
        f"{names}/ctl": "cmd ls /usr/bin",
        f"{capitals}/ctl": "cmd /tmp/capitals.wasm",
        f"{capitals}/fd/0ctl": f"pipe {names}/fd/1",
    }
    for file, command in tell.items():
        (tree / "task" / file).write_text(command + "\n")
    for task in (names, capitals):
        (tree / "task" / task / "ctl").write_text("start\n")
    sys.stdout.write((tree / "task" / capitals / "fd/1").read_text())
    return int((tree / "task" / capitals / "wait").read_text())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
