"""What this machine can do for us, what it cannot, and what to install: found by trying, not by guessing."""

import ctypes
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from errno import ENOSYS
from importlib.metadata import version
from pathlib import Path

from tasks.drivers.vm import kernel, qemu
from tasks.drivers.wasi.modules import COMPILER
from vfs.ninep import address as addresses

PROBE_SECONDS = 10.0
PASSTHROUGH_SINCE = (6, 9)
SYSCALLS = {"open_tree": 428, "move_mount": 429, "pidfd_open": 434, "clone3": 435, "openat2": 437, "mount_setattr": 442}
"""Linux syscall numbers (the same on every architecture since 5.1)."""
SMALLEST_MODULE = bytes.fromhex("0061736d01000000 010401600000 03020100 070a01065f73746172740000 0a040102000b")
"""A WebAssembly module whose function _start returns."""
CONTROLLERS = ("memory", "pids", "cpu")


class State(StrEnum):
    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at: what it is for, how it is, what would help, and whether nothing is served without it."""

    name: str
    state: State
    detail: str
    remedy: str = ""
    required: bool = False


def ok(name: str, detail: str) -> Finding:
    return Finding(name=name, state=State.OK, detail=detail)


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    shown = ".".join(map(str, version))
    if version >= (3, 11):
        return ok("python", shown)
    remedy = "install Python 3.11 or newer"
    return Finding(name="python", state=State.MISSING, detail=shown, remedy=remedy, required=True)


def check_user(uid: int) -> Finding:
    if uid == 0:
        return ok("user", "root: every task can have a user of its own")
    return Finding(
        name="user",
        state=State.LIMITED,
        detail=f"uid {uid}: all tasks run as you, with your groups, in one user namespace: no uid of their own, no"
        " memory, process or processor limits unless cgroups are delegated, no quota, no devices, no bind -i",
        remedy="run the server as root for a user per task",
    )


def check_fuse(uid: int, device: str = "/dev/fuse") -> Finding:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Finding(
            name="fuse",
            state=State.MISSING,
            detail=f"{device}: {error.strerror}: no mounts, 9P only",
            remedy="modprobe fuse; in a container, pass /dev/fuse in",
        )
    if uid != 0 and shutil.which("fusermount3") is None:
        return Finding(
            name="fuse",
            state=State.MISSING,
            detail="no fusermount3, which mounts for users",
            remedy="apt-get install fuse3",
        )
    return ok("fuse", f"{device} can be opened")


def check_passthrough(uid: int, release: str) -> Finding:
    match = re.match(r"(\d+)\.(\d+)", release)
    linux = (int(match[1]), int(match[2])) if match else (0, 0)
    if uid == 0 and linux >= PASSTHROUGH_SINCE:
        return ok("passthrough", f"Linux {release}: the kernel reads and writes host files itself")
    why = f"Linux {release} is older than {PASSTHROUGH_SINCE[0]}.{PASSTHROUGH_SINCE[1]}" if uid == 0 else "not root"
    return Finding(name="passthrough", state=State.LIMITED, detail=f"{why}: data of host files goes through the server")


def check_syscalls() -> Finding:
    """Call each with arguments that it must refuse: whatever errno but ENOSYS says that it is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    missing = []
    for name, number in SYSCALLS.items():
        libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 5)
        if ctypes.get_errno() == ENOSYS:
            missing.append(name)
    if not missing:
        return ok("syscalls", " ".join(SYSCALLS))
    return Finding(
        name="syscalls",
        state=State.MISSING,
        detail=f"the kernel lacks {' '.join(missing)}: no Linux tasks",
        remedy="use Linux 5.12 or newer (a container's seccomp filter may hide them)",
    )


def check_namespaces(uid: int) -> Finding:
    kinds = ["--mount", "--pid", "--ipc", "--uts", *(["--user", "--map-root-user"] if uid else [])]
    command = ["unshare", *kinds, "--fork", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name="namespaces", state=State.MISSING, detail=str(error), remedy="apt-get install util-linux")
    if done.returncode == 0:
        return ok("namespaces", "mount, pid, ipc and uts" + (" in one user namespace" if uid else ""))
    return Finding(
        name="namespaces",
        state=State.MISSING,
        detail=f"{done.stderr.strip()}: no Linux tasks",
        remedy="run as root" if uid else "the container needs CAP_SYS_ADMIN",
    )


def cgroup_controllers(mountinfo: str) -> dict[str, str]:
    """Return controller -> mount point from the text of /proc/self/mountinfo; "unified" is version 2 itself."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        point = before.split()[4]
        if kind == "cgroup2":
            found["unified"] = point
        elif kind == "cgroup":
            found |= {name: point for name in options.split()[-1].split(",") if name in CONTROLLERS}
    return found


def check_cgroups() -> Finding:
    found = cgroup_controllers(Path("/proc/self/mountinfo").read_text())
    if unified := found.get("unified"):
        try:
            names = (Path(unified) / "cgroup.controllers").read_text().split()
        except OSError:
            names = []
        found |= {name: unified for name in names if name in CONTROLLERS}
    usable = {name for name in CONTROLLERS if name in found and os.access(found[name], os.W_OK)}
    lacking = [name for name in CONTROLLERS if name not in usable]
    if not lacking:
        versions = "version 2" if set(map(found.get, CONTROLLERS)) == {unified} else "version 1"
        return ok("cgroups", f"{versions}: {' '.join(CONTROLLERS)}")
    return Finding(
        name="cgroups",
        state=State.LIMITED,
        detail=f"cannot limit or account {' '.join(lacking)}",
        remedy="run as root, or under a systemd user session that delegates them",
    )


def check_seccomp(actions: str = "/proc/sys/kernel/seccomp/actions_avail") -> Finding:
    try:
        if "errno" in Path(actions).read_text().split():
            return ok("seccomp", "syscall filters")
    except OSError:
        pass
    return Finding(name="seccomp", state=State.LIMITED, detail="no syscall filters: tasks are isolated less")


def check_wasi(compiler: Path = COMPILER) -> Finding:
    """Compile the smallest program there is, as the server would."""
    command = [sys.executable, "-I", str(compiler)]
    try:
        done = subprocess.run(command, input=SMALLEST_MODULE, capture_output=True, timeout=PROBE_SECONDS, check=False)
        said = done.stderr.decode(errors="replace").strip() or f"the compiler ended with {done.returncode}"
        if done.returncode == 0:
            return ok("wasi", f"wasmtime {version('wasmtime')} compiles modules")
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    remedy = f"{sys.executable} -m pip install --upgrade wanixfs (or the wasmtime it names, for this processor)"
    return Finding(name="wasi", state=State.MISSING, detail=f"{said.splitlines()[-1]}: no WASI tasks", remedy=remedy)


def check_vm(kernels: Path) -> Finding:
    if missing := qemu.Qemu().missing():
        return Finding(name="vm", state=State.MISSING, detail=missing, remedy="apt install qemu-system-x86")
    try:
        found = kernel.find(kernels)
    except FileNotFoundError as error:
        remedy = "python -m tasks.drivers.vm.kernel"
        return Finding(name="vm", state=State.MISSING, detail=f"{error.strerror}", remedy=remedy)
    detail = f"guest kernel {found.directory.name} on QEMU"
    if qemu.accelerator() == "kvm":
        return ok("vm", f"{detail} with KVM")
    return Finding(name="vm", state=State.LIMITED, detail=f"{detail} without KVM: everything in a guest is slow")


def check_state(state: Path) -> Finding:
    """Find out whether the state directory can be made and written, without making it."""
    there = next(path for path in (state, *state.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            name="state",
            state=State.MISSING,
            detail=f"{there} cannot be written",
            remedy="name another with --state or WANIXFS_STATE",
            required=True,
        )
    free = shutil.disk_usage(there).free
    return ok("state", f"{state}: {free >> 20} MiB free")


def check_server(address: str) -> Finding:
    try:
        parsed = addresses.parse(address)
        if parsed.network == "unix":
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(PROBE_SECONDS)
                peer.connect(parsed.path)
        else:
            socket.create_connection((parsed.host, parsed.port), PROBE_SECONDS).close()
    except OSError as error:
        detail = f"nobody at {address}: {error.strerror or error}"
        return Finding(name="server", state=State.LIMITED, detail=detail, remedy="wanixfs serve")
    return ok("server", f"answers at {address}")


def examine(address: str, state: Path) -> list[Finding]:
    """Look at this machine as the user who asks."""
    uid = os.geteuid()
    return [
        check_python(),
        check_state(state),
        check_user(uid),
        check_fuse(uid),
        check_passthrough(uid, os.uname().release),
        check_syscalls(),
        check_namespaces(uid),
        check_cgroups(),
        check_seccomp(),
        check_wasi(),
        check_vm(kernel.default_cache(os.environ, uid)),
        check_server(address),
    ]


def report(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the lines for a reader: one of each finding, one more where something helps."""
    for finding in findings:
        yield f"{finding.state:<8} {finding.name:<12} {finding.detail}"
        if finding.remedy:
            yield f"{'':<21} -> {finding.remedy}"


def status(findings: Sequence[Finding]) -> int:
    """Return the exit status: 1 where the server could not run."""
    return int(any(finding.required and finding.state is State.MISSING for finding in findings))
