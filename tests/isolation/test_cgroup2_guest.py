"""Cgroups of version 2 with every controller, which this machine may not have: in a guest that has nothing else."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from serving import ROOT

from tasks.drivers.vm import initrd, kernel, qemu

SECONDS = 100.0
INSIDE = "tests.isolation.cgroup2_inside"
_LOADED = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2])
origins = {m.__spec__.name: m.__spec__.origin for m in list(sys.modules.values()) if getattr(m, "__spec__", None)}
print(json.dumps({name: origin for name, origin in origins.items() if origin and origin.startswith("/")}))
"""


def why_not() -> str:
    if not shutil.which(qemu.PROGRAM):
        return f"needs {qemu.PROGRAM} (Debian package qemu-system-x86)"
    try:
        kernel.find(kernel.default_cache(os.environ, os.geteuid()))
    except OSError as error:
        return str(error.strerror)
    return ""


pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(why_not()), reason=why_not())]


def image() -> bytes:
    """Return an initrd that runs the cases, with the packages that they need."""
    words = (sys.executable, "-c", _LOADED, str(ROOT), INSIDE)
    loaded = json.loads(subprocess.run(words, check=True, capture_output=True, cwd="/").stdout)
    places = (str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    imports, files = [], {}
    for name, origin in loaded.items():
        place = next((place for place in places if origin.startswith(f"{place}/")), None)
        if place:
            files[initrd.LIBRARY + origin.removeprefix(place)] = Path(origin).read_bytes()
        elif origin.startswith(f"{sysconfig.get_path('stdlib')}/"):
            imports.append(name)
    native = [origin for origin in loaded.values() if origin.endswith(".so")]
    files |= {path: Path(path).read_bytes() for path in initrd.with_libraries(native)}
    found = kernel.find(kernel.default_cache(os.environ, os.geteuid()))
    return initrd.build(found, imports=imports, start=f"exec('from {INSIDE} import main; main()')", files=files)


def test_groups_of_version_2_bound_pause_tell_and_end(tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(image())
    found = kernel.find(kernel.default_cache(os.environ, os.geteuid()))
    report = ("file,path=" + str(tmp_path / "report") + ",id=report", "virtserialport,chardev=report,name=report")
    command = [
        *qemu.command(found.image, tmp_path / "initrd", memory=512 << 20),
        *("-chardev", report[0], "-device", report[1], "-serial", f"file:{tmp_path}/console"),
    ]
    subprocess.run(command, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL)
    cases = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    failed = [f"{case['case']}: {case['error']}" for case in cases if case["error"]]
    assert not failed, "\n".join(failed)
    assert len(cases) == 5, (tmp_path / "console").read_text()[-9000:]
