"""Tell a task's type from its program, for `type auto`."""

import os
from collections.abc import Mapping
from errno import EACCES, ENOENT, ENOTDIR

from tasks.model import Spec
from vfs.node import Caller, Handle, Node
from vfs.walk import open_path

WASM_MAGIC = b"\0asm"
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


async def open_program(root: Node, program: str, cwd: str, env: Mapping[str, str], who: Caller) -> Handle:
    """Open a program for reading, found below `root` as execvp(3) would: by PATH where its name has no slash.

    ENOENT, EACCES, and what else opening it may raise.
    """
    if "/" in program:
        places = [os.path.join(cwd, program)]
    else:
        path = env.get("PATH", DEFAULT_PATH)
        places = [os.path.join(folder, program) for folder in path.split(":") if folder.startswith("/")]
    denied = False
    for place in places:
        try:
            _, handle = await open_path(root, place, os.O_RDONLY, who)
        except IsADirectoryError:
            denied = True
        except OSError as error:
            if error.errno == EACCES:
                denied = True
            elif error.errno not in (ENOENT, ENOTDIR):
                raise
        else:
            return handle
    if denied:
        raise OSError(EACCES, f"{program}: permission denied")
    raise OSError(ENOENT, f"{program}: not found")


async def sniff(root: Node, spec: Spec) -> str:
    """Return "wasi" for a WebAssembly module or component, else "linux".

    A program that cannot be read (execute-only) or found is left for the driver to judge.
    """
    program = spec.argv[0] if spec.argv else ""
    try:
        handle = await open_program(root, program, spec.cwd, spec.env, Caller(spec.user.uid, spec.user.gid))
    except OSError:
        return "wasi" if program.endswith(".wasm") else "linux"
    try:
        return "wasi" if bytes(await handle.read(len(WASM_MAGIC), 0)) == WASM_MAGIC else "linux"
    except OSError:
        return "linux"
    finally:
        handle.close()
