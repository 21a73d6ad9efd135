"""Programs of the tests, in C or Rust, compiled for this machine or for WASI by what Debian has.

`filetree.c` works on files below a folder and says what it sees, in words that are the same on every system: run it
twice, in places that should behave alike, and compare what it prints.
"""

import shutil
import subprocess
from pathlib import Path

FILETREE = Path(__file__).with_name("filetree.c")
COMMANDS = {
    "linux": ("cc", "-static"),
    "wasi": ("clang", "--target=wasm32-wasi"),
}
WASI_LIBRARY = Path("/usr/lib/wasm32-wasi/libc.a")
RUST = "/usr/bin/rustc"
"""Debian's, which has a library for WASI beside it; another by this name may not."""
RUST_TARGETS = {"linux": (), "wasi": ("--target=wasm32-wasi",)}
SECONDS = 100


def why_not(kind: str) -> str:
    """Return why programs of a kind can't be compiled here, or an empty string."""
    compiler, *_ = COMMANDS[kind]
    if not shutil.which(compiler):
        return f"needs {compiler}"
    if kind == "wasi" and not (WASI_LIBRARY.exists() and shutil.which("wasm-ld")):
        return "needs a C library and a linker for WASI (Debian: wasi-libc, lld, libclang-rt-dev-wasm32)"
    return ""


def compiled(kind: str, folder: Path, source: Path = FILETREE) -> Path:
    """Compile one program, static, for "linux" or "wasi"; return where it is, executable by everyone."""
    program = folder / f"{source.stem}.{kind}"
    command = [*COMMANDS[kind], "-O1", "-s", "-Wall", "-Werror", "-Wno-unused-result", "-o", program, source]
    subprocess.run(command, check=True, timeout=SECONDS)
    program.chmod(0o755)
    return program


def why_no_rust() -> str:
    if Path(RUST).exists() and Path("/usr/lib/rustlib/wasm32-wasi").exists():
        return ""
    return "needs Rust and its library for WASI (Debian: rustc, libstd-rust-dev-wasm32)"


def compiled_rust(kind: str, folder: Path, source: Path) -> Path:
    """Like `compiled`, for a program in Rust."""
    program = folder / f"{source.stem}.{kind}"
    subprocess.run([RUST, *RUST_TARGETS[kind], "-O", "-o", program, source], check=True, timeout=SECONDS)
    program.chmod(0o755)
    return program
