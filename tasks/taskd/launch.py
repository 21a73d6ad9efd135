"""One task's birth: from a `start` request to a process that runs its program.

The supervisor is single-threaded and small, so it forks by clone3(2). The
child reports what went wrong through a close-on-exec pipe: an error as
(errno, text), nothing at all when exec succeeded. Everything that may block
(a program on a mount whose server is slow) happens in the child.
"""

import fcntl
import gc
import os
import resource
import select
import signal
import struct
import termios
from collections.abc import Callable, Sequence
from errno import EACCES, EINVAL, EIO, ENOENT, ENOTDIR

from tasks.taskd import privilege, relay, root, syscalls
from tasks.taskd.processes import join
from tasks.taskd.protocol import Message, integer, table, text, texts
from tasks.taskd.stocks import Stocks

MAX_ARGUMENT = 128 << 10  # the kernel's MAX_ARG_STRLEN
MAX_PATH = 4096
MAX_NUMBER = 1023
MAX_ID = (1 << 32) - 2
INIT = ["/usr/bin/env", "--ignore-signal=CHLD", "/bin/cat", "/proc/self/comm", "-"]
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


class Spec:
    """A `start` request, checked. Descriptors are those of the request: they live as long as its handling."""

    __slots__ = (
        "allow",
        "argv",
        "cgroup",
        "chroot",
        "cwd",
        "env",
        "fds",
        "gid",
        "join",
        "net",
        "nice",
        "plan",
        "pty",
        "relay",
        "seccomp",
        "spool_limit",
        "spools",
        "sweep",
        "task",
        "uid",
    )

    def __init__(self, message: Message, fds: Sequence[int], stocks: Stocks | None = None) -> None:
        def fd(source: Message, key: str) -> int:
            return fds[integer(source, key, 0, len(fds) - 1)]

        def numbered(key: str) -> dict[int, int]:
            return {_number(number): fd(table(message, key), number) for number in table(message, key)}

        self.task = text(message, "task", 64)
        self.argv = texts(message, "argv", MAX_ARGUMENT)
        if not self.argv or not self.argv[0]:
            raise OSError(EINVAL, "no command")
        environment = table(message, "env")
        self.env = {key: text(environment, key, MAX_ARGUMENT) for key in environment}
        if any(not key or "=" in key or "\0" in key for key in self.env):
            raise OSError(EINVAL, "env: bad name")
        self.cwd = text(message, "cwd", MAX_PATH)
        self.chroot = text(message, "chroot", MAX_PATH, "")
        self.uid = integer(message, "uid", 0, MAX_ID)
        self.gid = integer(message, "gid", 0, MAX_ID)
        self.nice = integer(message, "nice", -20, 19, 0)
        self.fds = numbered("fds")
        self.spools = numbered("spools")
        if self.fds.keys() & self.spools.keys():
            raise OSError(EINVAL, "a descriptor cannot be given and spooled")
        self.spool_limit = integer(message, "spool_limit", 1, 1 << 50)
        self.pty = None
        if message.get("pty") is not None:
            size = table(message, "pty")
            self.pty = (integer(size, "rows", 1, 65535), integer(size, "columns", 1, 65535))
        self.cgroup = fd(message, "cgroup") if "cgroup" in message else -1
        self.sweep = fd(message, "sweep") if "sweep" in message else -1
        self.join = texts(message, "join", MAX_PATH)
        self.net = text(message, "net", 16, "host")
        self.allow = relay.parse(message)
        self.relay = -1
        try:
            self.seccomp = bytes.fromhex(text(message, "seccomp", 1 << 16, ""))
        except ValueError:
            raise OSError(EINVAL, "seccomp: not hexadecimal") from None
        self.plan = None
        if message.get("root") is not None:
            plan = table(message, "root")
            stock = stocks.of(text(plan, "stock", 64), message.get("stock")) if stocks and "stock" in plan else None
            self.plan = root.Plan(plan, stock)


def _number(key: str) -> int:
    if not key.isascii() or not key.isdigit() or int(key) > MAX_NUMBER:
        raise OSError(EINVAL, f"not a descriptor number: {key!r}")
    return int(key)


class Surroundings:
    """What every launch needs and is opened once, before the first: all of the supervisor's own process."""

    def __init__(self) -> None:
        self.null = os.open("/dev/null", os.O_RDWR)
        self.alive = os.pidfd_open(os.getpid())
        self.life, self.lifeline = os.pipe()
        """The first ends with the supervisor, who alone has the other."""
        self.pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self.open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        privilege.one_user()


def spawn(spec: Spec, given: dict[int, int], terminal: int, around: Surroundings) -> tuple[int, int, int]:
    """Start the child; return (pid, pid of its namespace's init or 0, descriptor of the status pipe).

    `given` maps its descriptor numbers to open descriptors, `terminal` is the slave side of its terminal or -1.
    The status pipe ends without a byte once exec succeeded; otherwise it holds what `failure` reads.
    """
    status, report = os.pipe()
    os.set_blocking(status, False)

    def births(flags: int) -> tuple[int, int]:
        init, ready = _spawn_init(around) if spec.plan else (0, -1)
        try:
            main = syscalls.clone3(flags, cgroup=spec.cgroup)
            if main == 0:
                _child(spec, given, terminal, around, ready, report)
        except OSError:
            if init:
                os.kill(init, signal.SIGKILL)
            raise
        finally:
            if ready >= 0:
                os.close(ready)
        return main, init

    unblocked = syscalls.set_signal_mask(syscalls.ALL_SIGNALS)
    try:
        if spec.plan:
            spec.plan.stock.look()
            main, init = _in_other_pids(births, around)
        else:
            main, init = births(0)
    except OSError:
        os.close(status)
        raise
    finally:
        os.close(report)
        if spec.plan:
            spec.plan.stock.unclasp()
        syscalls.set_signal_mask(unblocked)
    return main, init, status


def _in_other_pids(births: Callable[[int], tuple[int, int]], around: Surroundings) -> tuple[int, int]:
    """Return what `births` does, which makes children of ours, by clone3 with these flags, in another pid namespace.

    A plain user's supervisor could not come back to its own, so there a child goes, and makes siblings.
    """
    if not privilege.one_user():
        try:
            return births(0)
        finally:
            syscalls.setns(around.pid_namespace, syscalls.CLONE_NEWPID)
    told, tell = os.pipe()
    with open(told, "rb") as said:
        try:
            child = syscalls.clone3(0)
            if child == 0:
                try:
                    gc.disable()
                    os.write(tell, struct.pack("=bii", 1, *births(syscalls.CLONE_PARENT)))
                except BaseException as error:
                    os.write(tell, bytes(1))
                    _report(tell, error)
                finally:
                    os._exit(0)
        finally:
            os.close(tell)
        outcome = said.read()
    os.waitpid(child, 0)
    if not outcome[:1] == b"\1":
        raise failure(outcome[1:])
    _, first, second = struct.unpack("=bii", outcome)
    return first, second


def graft(plan: root.Plan, main: int, around: Surroundings) -> tuple[int, int]:
    """Start a child that changes the root of the task whose main process is `main`; return its pid and status pipe.

    It is born in the task's pid namespace, so that a /proc it mounts is the task's.
    """
    task = os.pidfd_open(main)
    status, report = os.pipe()
    os.set_blocking(status, False)
    unblocked = syscalls.set_signal_mask(syscalls.ALL_SIGNALS)

    def births(flags: int) -> tuple[int, int]:
        syscalls.setns(task, syscalls.CLONE_NEWPID)
        child = syscalls.clone3(flags | syscalls.CLONE_NEWNS)
        if child == 0:
            try:
                gc.disable()
                os.close(around.lifeline)
                _die_with(around)
                plan.graft(task)
            except BaseException as error:
                _report(report, error)
            finally:
                os._exit(0)
        return child, 0

    try:
        child, _ = _in_other_pids(births, around)
    except OSError:
        os.close(status)
        raise
    finally:
        os.close(report)
        os.close(task)
        syscalls.set_signal_mask(unblocked)
    return child, status


def _report(report: int, error: BaseException) -> None:
    number, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (EIO, repr(error))
    os.write(report, (number or EIO).to_bytes(4, "little") + str(reason).encode("utf-8", "replace")[:500])


def failure(report: bytes) -> OSError:
    """Return the error that a child wrote to its status pipe."""
    return OSError(int.from_bytes(report[:4], "little"), report[4:].decode("utf-8", "replace"))


def _spawn_init(around: Surroundings) -> tuple[int, int]:
    """Open a pid namespace for the next child and start its pid 1; the caller returns to its own namespace.

    Pid 1 reaps by ignoring SIGCHLD and otherwise only exists, for as long as the supervisor does: when it is killed,
    the kernel kills all the others, and it can be waited for only once they are gone. It is cat because that is
    everywhere, small, and can be started without a copy of our memory; env makes it ignore the signal, which shells
    will not. It first writes its name, to a pipe that is returned beside its pid: what dies before stays a zombie.
    """
    syscalls.unshare(syscalls.CLONE_NEWPID)
    ready, name = os.pipe()
    streams = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((around.life, name, around.null))]
    try:
        return os.posix_spawn(INIT[0], INIT, {}, file_actions=streams, setsid=True), ready
    except OSError:
        os.close(ready)
        raise
    finally:
        os.close(name)


def _die_with(around: Surroundings) -> None:
    """Be killed when the supervisor dies, also if it died just now."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    supervisor = select.poll()
    supervisor.register(around.alive, select.POLLIN)
    if supervisor.poll(0):
        os._exit(125)


def _child(spec: Spec, given: dict[int, int], terminal: int, around: Surroundings, ready: int, report: int) -> None:
    """Become the task's main process. Never returns."""
    try:
        gc.disable()  # it would touch, and so copy, every object there is
        os.close(around.lifeline)
        wanted = {0: around.null, 1: around.null, 2: around.null, **given}
        above = max(wanted) + 1  # out of the way of the task's own numbers
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, above)
        around.alive = fcntl.fcntl(around.alive, fcntl.F_DUPFD_CLOEXEC, above)
        wanted = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for number, fd in wanted.items()}
        _become(spec, wanted, terminal, around, ready)
    except BaseException as error:
        _report(report, error)
    finally:
        os._exit(125)


def _become(spec: Spec, given: dict[int, int], terminal: int, around: Surroundings, ready: int) -> None:
    os.setsid()
    join(spec.join)
    if spec.nice:
        os.setpriority(os.PRIO_PROCESS, 0, spec.nice)
    apart = syscalls.CLONE_NEWNET if spec.net == "none" else 0
    if spec.plan:
        apart |= syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS  # its plan finds it a mount namespace
    syscalls.unshare(apart)
    if spec.net == "none":
        relay.raise_loopback()
    if spec.allow:
        relay.listen(spec.allow, spec.relay)
    if spec.plan:
        spec.plan.build(terminal)
        os.read(ready, 1)
    if terminal >= 0:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    syscalls.close_on_exec_from(0)
    for number, fd in given.items():
        os.dup2(fd, number)
    resource.setrlimit(resource.RLIMIT_NOFILE, around.open_files)
    os.umask(0o022)
    if spec.chroot:
        os.chroot(spec.chroot)
    privilege.become(spec.uid, spec.gid)
    if not spec.plan:
        # Kept across exec: all that the task leaves behind stays below its main process, where it can be found.
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    _die_with(around)  # a change of uid clears it, so only now
    _enter(spec.cwd)
    if spec.seccomp:
        syscalls.seccomp(spec.seccomp)
    syscalls.set_signal_mask(syscalls.NO_SIGNALS)
    _exec(spec.argv, spec.env)


def _enter(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as error:
        raise OSError(error.errno, f"cwd {directory}: {error.strerror}") from None


def _exec(argv: list[str], env: dict[str, str]) -> None:
    """execvpe(3) by the task's own PATH, but a file without a known format is ENOEXEC, not a shell script."""
    program = argv[0]
    if "/" in program:
        places = [program]
    else:
        places = [os.path.join(place, program) for place in env.get("PATH", DEFAULT_PATH).split(":")]
    denied = False
    for place in places:
        try:
            os.execve(place, argv, env)
        except OSError as error:
            if error.errno == EACCES:
                denied = True
            elif error.errno not in (ENOENT, ENOTDIR):
                raise OSError(error.errno, f"{program}: {error.strerror}") from None
    if denied:
        raise OSError(EACCES, f"{program}: permission denied")
    raise OSError(ENOENT, f"{program}: not found")
