"""Tell a task's type from its program, for `type auto`."""

import os

from tasks.model import Spec
from vfs.node import Caller, Node
from vfs.walk import open_path

WASM_MAGIC = b"\0asm"


async def sniff(root: Node, spec: Spec) -> str:
    """Return "wasi" for a WebAssembly module or component, else "linux".

    The program is looked for below `root` as execvp(3) would: by PATH where its name has no slash. One that
    cannot be read (execute-only) or found is left for the driver to judge.
    """
    program = spec.argv[0] if spec.argv else ""
    who = Caller(spec.user.uid, spec.user.gid)
    if "/" in program:
        places = [os.path.join(spec.cwd, program)]
    else:
        path = spec.env.get("PATH", "/usr/local/bin:/usr/bin:/bin")
        places = [os.path.join(folder, program) for folder in path.split(":") if folder.startswith("/")]
    for place in places:
        try:
            _, handle = await open_path(root, place, os.O_RDONLY, who)
        except OSError:
            continue
        try:
            magic = bytes(await handle.read(len(WASM_MAGIC), 0))
        except OSError:
            magic = b""
        finally:
            handle.close()
        return "wasi" if magic == WASM_MAGIC else "linux"
    return "wasi" if program.endswith(".wasm") else "linux"
