"""The guest's first root: Python as it is here, what of its library the supervisor imports, kernel modules.

Everything lies where it lies on the host, so that Python and its loader find
it, but without sources: they are compiled when the archive is made. The form
is cpio's "newc" (Documentation/driver-api/early-userspace/buffer-format.rst), not
compressed: unpacking would cost more than loading.
"""

import ast
import importlib.util
import json
import os
import re
import stat
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from errno import EIO
from marshal import dumps
from pathlib import Path

from tasks.drivers.vm.kernel import Kernel
from tasks.drivers.vm.names import MODULES

ROOT = Path(__file__).parents[3]
LIBRARY = "/usr/lib/wanixfs"
INIT = "/sbin/taskd"
_LOADED = """
import importlib, json, sys
sys.path += sys.argv[1:2]
for name in sys.argv[2:]:
    importlib.import_module(name)
print(json.dumps([[m.__spec__.origin, m.__spec__.name, m.__spec__.submodule_search_locations is not None]
                  for m in list(sys.modules.values()) if getattr(m, "__spec__", None) and m.__spec__.origin]))
"""
_NEEDS = re.compile(r"(?:=> )?(/\S+) \(0x[0-9a-f]+\)")
_DEVICES = {"console": (5, 1), "null": (1, 3), "urandom": (1, 9)}


@dataclass
class Archive:
    """A cpio archive in the making. Directories above what is added come by themselves."""

    _data: bytearray = field(default_factory=bytearray)
    _names: set[str] = field(default_factory=set)

    def add(self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Add a file of root's at an absolute path; `mode` is an st_mode. What is there already stays."""
        name = path.strip("/")
        if name in self._names:
            return
        self._names.add(name)
        if "/" in name:
            self.add(os.path.dirname(name), stat.S_IFDIR | 0o755)
        self._entry(name, mode, data, device)

    def _entry(self, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        encoded = os.fsencode(name) + b"\0"
        numbers = (len(self._names), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        self._data += b"070701" + "".join(f"{number:08X}" for number in numbers).encode() + encoded
        self._pad()
        self._data += data
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self.add(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        self.add(path, stat.S_IFLNK | 0o777, os.fsencode(target))

    def finished(self) -> bytes:
        """Return the archive, which is not added to any more."""
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self._data)


def build(
    kernel: Kernel,
    *,
    imports: Sequence[str] = (),
    start: str = "from tasks.taskd.guest import main; main()",
    files: Mapping[str, bytes] = {},
) -> bytes:
    """Return an initrd whose pid 1 executes the Python statements `start`, with what they and `imports` import.

    `files` are executable files to be there too, by path.
    """
    archive = Archive()
    for name, (major, minor) in _DEVICES.items():
        archive.add(f"/dev/{name}", stat.S_IFCHR | 0o666, device=(major, minor))
    for directory in ("proc", "sys", "run", "root", "tmp", "ns"):
        archive.add(f"/{directory}", stat.S_IFDIR | 0o755)
    for number, module in enumerate(kernel.modules(MODULES)):
        archive.file(f"/lib/modules/{number:02}-{module.name}", module.read_bytes())
    python = os.path.realpath(sys.executable)
    _add_python(archive, python, [*imports, *_imported(start)])
    archive.file(INIT, f"#!{python} -ISB\nimport sys\nsys.path.append({LIBRARY!r})\n{start}\n".encode(), 0o755)
    for path, data in files.items():
        archive.file(path, data, 0o755)
    return archive.finished()


def _imported(code: str) -> list[str]:
    """Return the names of the modules that some statements import at their top."""
    found = []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.ImportFrom) and statement.module:
            found.append(statement.module)
        elif isinstance(statement, ast.Import):
            found += [name.name for name in statement.names]
    return found


def _add_python(archive: Archive, python: str, imports: Sequence[str]) -> None:
    library = os.path.dirname(os.__file__)
    loaded = json.loads(_output(python, "-I", "-S", "-X", "utf8", "-c", _LOADED, str(ROOT), *imports))
    native = [python]
    for origin, name, package in [*loaded, [os.__file__, "os", False]]:
        if origin.endswith(".so"):
            native.append(origin)
        elif origin.endswith(".py"):
            place = f"{library}/" if origin.startswith(f"{library}/") else f"{LIBRARY}/"
            place += name.replace(".", "/") + ("/__init__" if package else "")
            archive.file(f"{place}.pyc", _compiled(Path(origin), f"{place}.py"))
    archive.add(f"{library}/lib-dynload", stat.S_IFDIR | 0o755)
    for path in with_libraries(native):
        archive.file(path, Path(path).read_bytes(), 0o755)


def _compiled(source: Path, name: str) -> bytes:
    """Return the module as a .pyc file that is never checked against a source (PEP 552)."""
    code = compile(source.read_bytes(), name, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + struct.pack("<I8x", 1) + dumps(code)


def with_libraries(native: Sequence[str]) -> list[str]:
    """Return these programs and libraries and the libraries that they load, by the paths they are loaded from."""
    found = dict.fromkeys(native)
    for path in native:
        found |= dict.fromkeys(_NEEDS.findall(_output("ldd", path)))
    return list(found)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.defpath})
    if done.returncode:
        raise OSError(EIO, f"{command[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout
