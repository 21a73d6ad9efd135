"""What a task must not do, tried from inside: each attempt as the task's own user and as uid 0, each with its errno."""

import ctypes
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import pytest
from prison import CLEAR, SECRET, Prison, Prisoner

pytestmark = pytest.mark.root

Attempts = Mapping[str, tuple[str, str]]
"""What is attempted -> the errno it must meet (of the user, then, if another, of uid 0) and a function's body."""

X86 = os.uname().machine == "x86_64"


def number(x86_64: int, aarch64: int) -> int:
    return x86_64 if X86 else aarch64


MOUNT, UMOUNT, PIVOT_ROOT, CHROOT = number(165, 40), number(166, 39), number(155, 41), number(161, 51)
UNSHARE, SETNS, CLONE, PTRACE = number(272, 97), number(308, 268), number(56, 220), number(101, 117)
KEYCTL, ADD_KEY, REQUEST_KEY = number(250, 219), number(248, 217), number(249, 218)
BPF, PERF, USERFAULT, HANDLE = number(321, 280), number(298, 241), number(323, 282), number(304, 265)
READV, SYSLOG, REBOOT, SETTIME = number(310, 270), number(103, 116), number(169, 142), number(164, 170)
INIT_MODULE, SWAPON, ACCT, KEXEC = number(175, 105), number(167, 224), number(163, 89), number(246, 104)
SHMGET, CAPSET, PRLIMIT = number(29, 194), number(126, 91), number(302, 261)


def each(attempts: Attempts) -> Callable[..., Any]:
    """Make a test of each attempt."""
    return pytest.mark.parametrize("attempt", attempts.values(), ids=attempts.keys())


def refused(prison: Prison, prisoner: Prisoner, as_root: bool, attempt: tuple[str, str]) -> None:
    wanted, body = attempt
    for name, value in (
        ("SIBLING", prison.sibling.id),
        ("PID", prison.sibling_pid),
        ("SERVER", prison.served.process.pid),
        ("STATE", prison.served.state),
        ("TOP", prison.bound.parent),
    ):
        body = body.replace(name, str(value))
    assert prisoner.attempt(body) == wanted.split()[-1 if as_root else 0], body


FILES: Attempts = {
    "the host's shadow file": ("ENOENT", "read('/etc/shadow')"),
    "the host's root directory": ("ENOENT", "os.listdir('/root')"),
    "the state directory": ("ENOENT", "os.listdir('STATE')"),
    "the server's journal": ("ENOENT", "read('STATE/journal.db')"),
    "the token of the server": ("ENOENT", "read('STATE/token')"),
    "the supervisor's socket": (
        "ENOENT",
        "socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect('STATE/taskd.sock')",
    ),
    "the server's socket": ("ENOENT", "socket.socket(socket.AF_UNIX).connect('TOP/9p')"),
    "a sibling's home by name": ("ENOENT", "read('/home/pw-SIBLING/secret')"),
    "a sibling's home on the host": ("ENOENT", "read('STATE/homes/SIBLING/secret')"),
    "a write to a program": ("EACCES EROFS", "write('/usr/bin/id', '')"),
    "a new program": ("EROFS", "os.open('/usr/bin/new', os.O_CREAT | os.O_WRONLY)"),
    "a change of mode": ("EROFS", "os.chmod('/usr/bin/id', 0o777)"),
    "the machine's disk": ("ENOENT", "os.open('/dev/vda', os.O_RDONLY)"),
    "the machine's memory": ("ENOENT", "os.open('/dev/mem', os.O_RDONLY)"),
    "the FUSE device": ("ENOENT", "os.open('/dev/fuse', os.O_RDWR)"),
    "sysfs": ("ENOENT", "os.listdir('/sys')"),
    "the cgroups": ("ENOENT", "os.listdir('/sys/fs/cgroup')"),
    "a new file in the root": ("EACCES 0", "os.close(os.open('/new', os.O_CREAT | os.O_WRONLY))"),
}


@each(FILES)
def test_files_outside_the_namespace(
    prison: Prison, prisoner: Prisoner, as_root: bool, attempt: tuple[str, str]
) -> None:
    refused(prison, prisoner, as_root, attempt)


LINKS: Attempts = {
    ".. above the root": ("ENOENT", "read('/../../../../etc/shadow')"),
    ".. above a bind": ("ENOENT", "os.chdir('/bound'); read('../../../etc/shadow')"),
    ".. from a descriptor of the tree": (
        "ENOENT",
        "fd = os.open('/task', os.O_PATH); os.open('../../../etc/shadow', os.O_RDONLY, dir_fd=fd)",
    ),
    "a symlink of the host": ("ENOENT", "read('/bound/shadow')"),
    "a relative symlink of the host": ("ENOENT", "read('/bound/above/shadow')"),
    "a symlink of its own": (
        "ENOENT",
        "os.path.lexists('/tmp/link') or os.symlink('../../../../../etc/shadow', '/tmp/link'); read('/tmp/link')",
    ),
    "a hard link to a program": ("EROFS", "os.link('/usr/bin/su', '/usr/bin/su2')"),
    "a hard link across mounts": ("EXDEV", "os.link('/bound/id-root', '/tmp/su')"),
    "the root of init": ("ENOENT", "os.listdir('/proc/1/root/')"),
    "the descriptors of init": ("ENOENT", "os.listdir('/proc/1/fd')"),
    "the mounts of init, which are the host's": ("ENOENT", "read('/proc/1/mountinfo')"),
    "the memory of init": ("ENOENT", "os.open('/proc/1/mem', os.O_RDWR)"),
    "a namespace of init": ("ENOENT", "os.open('/proc/1/ns/mnt', os.O_RDONLY)"),
    "a file by its handle": ("EPERM", f"call({HANDLE}, -100, bytes(16), 0)"),
}


@each(LINKS)
def test_links_and_dots(prison: Prison, prisoner: Prisoner, as_root: bool, attempt: tuple[str, str]) -> None:
    refused(prison, prisoner, as_root, attempt)


def test_root_is_its_own_parent(prisoner: Prisoner) -> None:
    body = "a, b = os.stat('/'), os.stat('/..'); return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)"
    assert prisoner.sees(body) is True


def test_directory_moved_out_of_its_bind_leads_nowhere(prisoner: Prisoner) -> None:
    """The kernel loses the way up from a directory that was moved above the mount it is in."""
    prisoner.sees("os.makedirs('/tmp/top/low/moving', exist_ok=True); os.chmod('/tmp/top', 0o777)")
    prisoner.cell.ctl("bind #tmp/top/low /low", file="ns/ctl")
    try:
        outcome = prisoner.attempt(
            "os.chdir('/low/moving'); os.rename('/tmp/top/low/moving', '/tmp/top/moved'); os.listdir('../..')"
        )
    finally:
        prisoner.cell.ctl("unbind /low", file="ns/ctl")
        prisoner.sees("os.system('rm -r /tmp/top')")
    assert outcome == "ENOENT"


def test_no_descriptor_is_left_open_to_it(prisoner: Prisoner) -> None:
    shown = (
        "return sorted(os.readlink(f'/proc/self/fd/{n}').partition(':')[0] for n in os.listdir('/proc/self/fd')[:3])"
    )
    assert prisoner.sees(shown) == ["pipe", "pipe", "pipe"]
    count = prisoner.sees("return len(os.listdir('/proc/self/fd'))")
    assert count == 3 + 3, "its streams, the pipe of the attempt, the listing itself"


PRIVILEGES: Attempts = {
    "a device node": ("EPERM", "os.mknod('/tmp/node', stat.S_IFCHR | 0o666, os.makedev(1, 1))"),
    "a device node of the host": ("EACCES", "os.open('/bound/memory', os.O_RDONLY)"),
    "becoming root": ("EPERM 0", "os.setuid(0)"),
    "becoming another": ("EPERM", "os.setuid(1)"),
    "another group": ("EPERM", "os.setgid(1)"),
    "more groups": ("EPERM", "os.setgroups([0, 6])"),
    "a change of owner": ("EPERM", "path = f'/tmp/{os.getuid()}'; open(path, 'w').close(); os.chown(path, 1, 1)"),
    "a capability": ("EPERM", f"call({CAPSET}, struct.pack('II', 0x20080522, 0), struct.pack('6I', *[1 << 21] * 6))"),
    "a higher priority": ("EACCES", "os.setpriority(os.PRIO_PROCESS, 0, -20)"),
    "a raised limit": ("EPERM", f"call({PRLIMIT}, 0, 7, struct.pack('QQ', 1 << 22, 1 << 22), 0)"),
    "a new host name": ("EPERM", "socket.sethostname('other')"),
}


@each(PRIVILEGES)
def test_privileges(prison: Prison, prisoner: Prisoner, as_root: bool, attempt: tuple[str, str]) -> None:
    refused(prison, prisoner, as_root, attempt)


@pytest.mark.parametrize("program", ["id-root", "id-daemon"])
def test_set_user_id_program_runs_as_the_task(prisoner: Prisoner, program: str) -> None:
    body = f"return [os.popen('/bound/{program} -{{}}'.format(what)).read() for what in 'ug'] == "
    body += "[f'{os.getuid()}\\n', f'{os.getgid()}\\n']"
    assert prisoner.sees(body) is True


def test_it_has_no_capability_and_can_gain_none(prisoner: Prisoner) -> None:
    status = prisoner.sees("return dict(line.split(':\\t') for line in read('/proc/self/status').splitlines())")
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    after_exec = prisoner.sees("return os.popen('grep CapPrm /proc/self/status').read()")
    assert after_exec.split()[1] == "0" * 16


CALLS: Attempts = {
    "mount": ("EPERM", f"call({MOUNT}, b'/', b'/tmp', 0, 4096, 0)"),
    "umount": ("EPERM", f"call({UMOUNT}, b'/usr', 2)"),
    "pivot_root": ("EPERM", f"call({PIVOT_ROOT}, b'/', b'/')"),
    "chroot": ("EPERM", f"call({CHROOT}, b'/tmp')"),
    "open_tree": ("EPERM", "call(428, -100, b'/usr', 1)"),
    "move_mount": ("EPERM", "call(429, -100, b'/usr', -100, b'/tmp', 0)"),
    "fsopen": ("EPERM", "call(430, b'tmpfs', 0)"),
    "mount_setattr": ("EPERM", "call(442, -100, b'/usr', 0, struct.pack('4Q', 0, 1, 0, 0), 32)"),
    "a user namespace": ("EPERM", f"call({UNSHARE}, 0x10000000)"),
    "a mount namespace": ("EPERM", f"call({UNSHARE}, 0x20000)"),
    "a pid namespace by clone": ("EPERM", f"call({CLONE}, 0x20000011, 0, 0, 0, 0)"),
    "a user namespace by clone": ("EPERM", f"call({CLONE}, 0x10000011, 0, 0, 0, 0)"),
    "clone3": ("ENOSYS", "call(435, struct.pack('11Q', 0x10000000, *[0] * 10), 88)"),
    "setns": ("EPERM", f"call({SETNS}, os.open('/proc/self/ns/net', os.O_RDONLY), 0)"),
    "keyctl": ("EPERM", f"call({KEYCTL}, 0, -3, 0)"),
    "add_key": ("EPERM", f"call({ADD_KEY}, b'user', b'k', b'v', 1, -3)"),
    "request_key": ("EPERM", f"call({REQUEST_KEY}, b'user', b'k', 0, -3)"),
    "bpf": ("EPERM", f"call({BPF}, 0, 0, 0)"),
    "perf events": ("EPERM", f"call({PERF}, bytes(128), 0, -1, -1, 0)"),
    "userfaultfd": ("EPERM", f"call({USERFAULT}, 0)"),
    "io_uring": ("EPERM", "call(425, 1, bytes(120))"),
    "the kernel's log": ("EPERM", f"call({SYSLOG}, 3, bytes(16), 16)"),
    "reboot": ("EPERM", f"call({REBOOT}, 0xfee1dead, 672274793, 0, 0)"),
    "setting the clock": ("EPERM", f"call({SETTIME}, bytes(16), 0)"),
    "a kernel module": ("EPERM", f"call({INIT_MODULE}, bytes(16), 16, b'')"),
    "swapon": ("EPERM", f"call({SWAPON}, b'/tmp/mine', 0)"),
    "acct": ("EPERM", f"call({ACCT}, b'/tmp/mine')"),
    "kexec": ("EPERM", f"call({KEXEC}, 0, 0, 0, 0)"),
    "input to its terminal": ("EPERM", "fcntl.ioctl(0, 0x5412, b'x')"),
}


@each(CALLS)
def test_system_calls(prison: Prison, prisoner: Prisoner, as_root: bool, attempt: tuple[str, str]) -> None:
    refused(prison, prisoner, as_root, attempt)


PROCESSES: Attempts = {
    "a sibling's /proc": ("ENOENT", "os.listdir('/proc/PID')"),
    "a sibling's environment": ("ENOENT", "read('/proc/PID/environ')"),
    "the server's /proc": ("ENOENT", "os.listdir('/proc/SERVER')"),
    "a signal to a sibling": ("ESRCH", "os.kill(PID, 0)"),
    "a signal to the server": ("ESRCH", "os.kill(SERVER, 9)"),
    "a signal to init": ("EPERM 0", "os.kill(1, 9)"),
    "ptrace of a sibling": ("ESRCH", f"call({PTRACE}, 16, PID, 0, 0)"),
    "ptrace of init": ("EPERM", f"call({PTRACE}, 16, 1, 0, 0)"),
    "the memory of a sibling": (
        "ESRCH",
        f"data = ctypes.create_string_buffer(8); where = struct.pack('QQ', ctypes.addressof(data), 8); "
        f"call({READV}, PID, where, 1, where, 1, 0)",
    ),
    "the memory of init": (
        "EPERM",
        f"data = ctypes.create_string_buffer(8); where = struct.pack('QQ', ctypes.addressof(data), 8); "
        f"call({READV}, 1, where, 1, where, 1, 0)",
    ),
    "a sibling's pidfd": ("ESRCH", "os.pidfd_open(PID)"),
    "a descriptor of init": ("EPERM", "call(438, os.pidfd_open(1), 0, 0)"),
}


@each(PROCESSES)
def test_processes_of_others(prison: Prison, prisoner: Prisoner, as_root: bool, attempt: tuple[str, str]) -> None:
    refused(prison, prisoner, as_root, attempt)


def test_it_sees_no_process_but_its_own(prisoner: Prisoner) -> None:
    pids = prisoner.sees("return [int(name) for name in os.listdir('/proc') if name.isdigit()]")
    assert 1 not in pids and len(pids) == 2, "the prisoner and the attempt"


MACHINE: Attempts = {
    "the core pattern": ("EACCES EROFS", "write('/proc/sys/kernel/core_pattern', '|/tmp/x')"),
    "the host name's sysctl": ("EACCES EROFS", "write('/proc/sys/kernel/hostname', 'x')"),
    "forwarding": ("EACCES EROFS", "write('/proc/sys/net/ipv4/ip_forward', '1')"),
    "an interrupt's processors": ("EACCES EROFS", "write('/proc/irq/default_smp_affinity', '1')"),
    "modprobe": ("EACCES EROFS", "write('/proc/sys/kernel/modprobe', '/tmp/x')"),
    "sysrq": ("EACCES EROFS", "write('/proc/sysrq-trigger', 'h')"),
    "the kernel's memory": ("EACCES", "os.open('/proc/kcore', os.O_RDONLY)"),
    "a change of the mode of the kernel's memory": ("EPERM EROFS", "os.chmod('/proc/kcore', 0o777)"),
    "a device of the bus": ("EACCES", "write('/proc/bus/pci/devices', '')"),
}
MACHINE = {name: case for name, case in MACHINE.items() if os.path.exists(case[1].split("'")[1])}


@each(MACHINE)
def test_settings_of_the_machine(prison: Prison, prisoner: Prisoner, as_root: bool, attempt: tuple[str, str]) -> None:
    refused(prison, prisoner, as_root, attempt)


@pytest.mark.skipif(not os.path.exists("/proc/keys"), reason="a kernel without keys")
def test_keys_of_others_are_not_shown(prisoner: Prisoner, as_root: bool) -> None:
    if as_root:
        assert prisoner.attempt("read('/proc/keys')") == "EACCES"
    else:
        uid = prisoner.sees("return os.getuid()")
        shown = prisoner.sees("return read('/proc/keys')")
        assert all(int(line.split()[5]) == uid for line in shown.splitlines())


NETWORK: Attempts = {
    "an outside address": ("ENETUNREACH", "socket.socket().connect(('192.0.2.1', 80))"),
    "a raw socket": ("EPERM", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"),
    "a packet socket": ("EAFNOSUPPORT", "socket.socket(17, socket.SOCK_RAW, 0)"),
    "the hypervisor": ("EAFNOSUPPORT", "socket.socket(40, socket.SOCK_STREAM)"),
    "the kernel's crypto": ("EAFNOSUPPORT", "socket.socket(38, socket.SOCK_SEQPACKET)"),
    "an interface of its own": (
        "EPERM",
        "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh22x', b'lo', 0))",
    ),
}


@each(NETWORK)
def test_network(prison: Prison, prisoner: Prisoner, as_root: bool, attempt: tuple[str, str]) -> None:
    refused(prison, prisoner, as_root, attempt)


def test_sockets_of_the_host_are_out_of_reach(prisoner: Prisoner) -> None:
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as abstract:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        name = f"wanixfs-test-{os.getpid()}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        with closing(socket.create_connection(listener.getsockname())), socket.socket(socket.AF_UNIX) as client:
            client.connect(f"\0{name}")
        at = listener.getsockname()
        assert prisoner.attempt(f"socket.socket().connect({at!r})") == "ECONNREFUSED"
        assert prisoner.attempt(f"socket.socket(socket.AF_UNIX).connect('\\0{name}')") == "ECONNREFUSED"


def test_shared_memory_of_the_host_is_out_of_reach(prisoner: Prisoner) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    key = 0x77616E69
    segment = libc.shmget(key, 4096, 0o1666)
    assert segment >= 0
    try:
        assert prisoner.attempt(f"call({SHMGET}, {key}, 0, 0)") == "ENOENT"
    finally:
        libc.shmctl(segment, 0, None)


TREE: Attempts = {
    "a sibling's directory": ("ENOENT", "os.listdir('/task/SIBLING')"),
    "a sibling's directory from its own": ("ENOENT", "os.listdir('/task/self/../SIBLING')"),
    "a sibling's home": ("ENOENT", "read('/task/SIBLING/home/secret')"),
    "a sibling's ctl": ("ENOENT", "write('/task/SIBLING/ctl', 'kill 9')"),
    "a sibling's output": ("ENOENT", "read('/task/SIBLING/fd/1')"),
    "the views of all tasks": ("ENOENT", "os.listdir('/.views')"),
    "becoming root": ("EPERM", "write('/task/self/ctl', 'user root')"),
    "the host's directories": ("EPERM", "write('/task/self/ns/ctl', 'bind #host/etc /mnt')"),
    "the host through a parent of a bind": ("EINVAL", "write('/task/self/ns/ctl', 'bind #host/usr/.. /mnt')"),
    "a server of its own": ("EPERM", "write('/task/self/ns/ctl', 'mount tcp!127.0.0.1!564 /mnt')"),
    "a bind without its read-only flag": (
        "EROFS",
        "write('/task/self/ns/ctl', 'bind #host/usr /mnt'); os.open('/mnt/bin/new', os.O_CREAT | os.O_WRONLY)",
    ),
    "a bind through a symlink of its own": (
        "ENOENT",
        "os.path.lexists('/tmp/l2') or os.symlink('/root', '/tmp/l2'); write('/task/self/ns/ctl', 'bind /tmp/l2 /mnt')",
    ),
    "the namespace of a sibling": (
        "EINVAL",
        "write('/task/' + read('/task/new').strip() + '/ns/ctl', 'share SIBLING')",
    ),
    "a copy of a sibling's namespace": (
        "EINVAL",
        "write('/task/' + read('/task/new').strip() + '/ns/ctl', 'copy SIBLING')",
    ),
    "a child as root": ("EPERM", "write('/task/' + read('/task/new').strip() + '/ctl', 'user root')"),
    "a child with the host's network": ("EPERM", "write('/task/' + read('/task/new').strip() + '/ctl', 'net host')"),
    "a child that reads the host's files": (
        "ENOENT",
        "write('/task/' + read('/task/new').strip() + '/fd/ctl', 'open 0 /etc/shadow r')",
    ),
    "a child that reads through a symlink": (
        "ENOENT",
        "os.path.lexists('/tmp/l3') or os.symlink('/etc/shadow', '/tmp/l3'); "
        "write('/task/' + read('/task/new').strip() + '/fd/0ctl', 'file /tmp/l3')",
    ),
    "a sibling's pipe": (
        "EINVAL",
        "write('/task/' + read('/task/new').strip() + '/fd/0ctl', 'pipe SIBLING/fd/1')",
    ),
    "waiting for a sibling": ("EINVAL", "write('/task/' + read('/task/new').strip() + '/ctl', 'after SIBLING')"),
}


@each(TREE)
def test_tasks_of_others(prison: Prison, prisoner: Prisoner, as_root: bool, attempt: tuple[str, str]) -> None:
    refused(prison, prisoner, as_root, attempt)


def test_it_sees_no_task_but_its_own(prison: Prison, prisoner: Prisoner) -> None:
    seen = prisoner.sees("return os.listdir('/task')")
    assert prisoner.cell.id in seen and prison.sibling.id not in seen
    assert prison.sibling.id not in prisoner.sees("return os.listdir('/task/self/children')")


def test_sibling_can_do_what_the_others_may_not(prison: Prison) -> None:
    """The secret is there to be read: what refuses the prisoners is not that there is nothing."""
    assert (prison.sibling.path / "home/secret").read_text() == SECRET
    assert prison.sibling.read("status") == "running"


def test_prisoner_outlives_its_signals_to_init(prisoner: Prisoner) -> None:
    prisoner.attempt("os.kill(1, 9)")
    assert prisoner.attempt("pass") == CLEAR
    assert prisoner.cell.read("status") == "running"
