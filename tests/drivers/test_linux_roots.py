"""A task's namespace as its root: what the task sees, and what it cannot reach."""

import os
import signal
from collections.abc import Awaitable, Callable
from errno import ELOOP, ENOENT, ENOTSUP, ESTALE
from pathlib import Path

import pytest
import trio

from ns.namespace import Namespace
from ns.script import run as run_script
from tasks.drivers.base import Launch
from tasks.drivers.linux.driver import LinuxDriver
from tasks.drivers.linux.roots import Roots
from tasks.taskd.root import DEVICES
from tasks.taskd.stocks import MAX_STOCKS
from tests.drivers.recorder import GID, UID, Recorder, alive, launch, linux_driver, until
from vfs.directory import Dir
from vfs.files import Text
from vfs.fuse.devfuse import mounted
from vfs.hostmounts import HostMounts
from vfs.memory import MemoryTree
from vfs.node import ROOT, Node

pytestmark = pytest.mark.root

PROGRAMS = """
bind -r #host/usr /usr
-bind -r #host/bin /bin
-bind -r #host/lib /lib
-bind -r #host/lib64 /lib64
bind #dev /dev
"""


class Devices:
    """The devices of these tests: the host, /dev, a memory tree, a generated file."""

    admin = True

    def __init__(self) -> None:
        self._host = HostMounts()
        self.memory = MemoryTree(label="mem", mode=0o777)
        self._etc = Dir({"passwd": Text(lambda: f"somebody:x:{UID}:{GID}::/home/somebody:/bin/sh")})

    def allowed(self, name: str) -> bool:
        return True

    def per_view(self, name: str) -> bool:
        return name == "etc"

    async def device(self, name: str) -> Node:
        if name == "host":
            return self._host.root()
        found: dict[str, Node] = {"dev": self._dev(), "mem": self.memory.root, "etc": self._etc}
        if name not in found:
            raise OSError(ENOENT, name)
        return found[name]

    def _dev(self) -> Node:
        return Dir({"null": Text(lambda: "")})


class World:
    """A driver, a host directory that tasks may be given, and a namespace to bind it into."""

    def __init__(self, driver: LinuxDriver, recorder: Recorder, host: Path) -> None:
        self.driver = driver
        self.recorder = recorder
        self.host = host
        self.devices = Devices()
        self.namespace = Namespace(self.devices, label="test")
        self._count = 0

    async def script(self, text: str) -> None:
        """Change the namespace by a script."""
        await run_script(text, self.namespace, writer=self.namespace, who=ROOT)

    async def sh(self, script: str, **options: object) -> tuple[int, str]:
        """Run a shell script as a task; return its exit code and output."""
        self._count += 1
        task, out = f"t{self._count}", self.host.parent / f"out{self._count}"
        options = {"spools": {1: out, 2: out}, **options}
        await self.driver.start(self.launch(task, "sh", "-c", script, **options))
        return (await self.recorder.exit_of(task)).code, out.read_text()

    def launch(self, task: str, *argv: str, **options: object) -> Launch:
        home = self.host.parent / "home"
        return launch(task, *argv, state=home, namespace=self.namespace, **options)


def run(tmp_path: Path, body: Callable[[World], Awaitable[None]]) -> None:
    for name in ("host", "home", "state"):
        (tmp_path / name).mkdir()
    os.chown(tmp_path / "home", UID, GID)
    (tmp_path / "host" / "file").write_text("of the host\n")
    (tmp_path / "host" / "inner").mkdir()

    async def main() -> None:
        async with linux_driver(tmp_path / "state") as (driver, recorder):
            driver.roots = Roots()
            world = World(driver, recorder, tmp_path / "host")
            await world.script(PROGRAMS)
            await body(world)

    trio.run(main)


def test_task_sees_what_its_namespace_holds_and_nothing_else(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.script(f"bind #host{world.host} /some/where")
        code, text = await world.sh("echo /*; ls -A /some /home; cat /some/where/file")
        names = [f"/{name}" for name in ("bin", "dev", "home", "lib", "lib64", "proc", "some", "usr")]
        present = [name for name in names if name in ("/dev", "/home", "/proc", "/some") or os.path.exists(name)]
        top = " ".join(present)
        assert (code, text) == (0, f"{top}\n/home:\nsomebody\n\n/some:\nwhere\nof the host\n")

    run(tmp_path, body)


def test_bind_is_writable_unless_bound_read_only(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.host.chmod(0o777)
        await world.script(f"bind #host{world.host} /rw\nbind -r #host{world.host} /ro")
        code, text = await world.sh("echo written > /rw/new && cat /ro/new && ! echo no > /ro/other")
        assert code == 0
        assert text.startswith("written\n") and "Read-only" in text
        assert (world.host / "new").read_text() == "written\n"
        assert not (world.host / "other").exists()

    run(tmp_path, body)


def test_more_layouts_than_the_supervisor_remembers_all_work(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        plain = world.namespace.fork(world.devices, label="plain")
        assert (await world.sh("true"))[0] == 0
        for count in range(MAX_STOCKS + 1):
            (world.host / str(count)).write_text(f"{count}\n")
            await world.script(f"bind #host{world.host}/{count} /own")
            assert await world.sh("cat /own") == (0, f"{count}\n")
        world.namespace = plain
        assert (await world.sh("ls /own"))[0] != 0

    run(tmp_path, body)


def test_bind_below_a_bind_and_a_file_over_a_file(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        (world.host / "inner" / "deep").write_text("deep\n")
        await world.script(f"""
            bind #host{world.host} /a
            bind #host{world.host}/inner /a/inner
            bind #host{world.host}/inner /b
            bind #host{world.host}/file /b/deep
        """)
        assert await world.sh("cat /a/inner/deep /b/deep") == (0, "deep\nof the host\n")

    run(tmp_path, body)


def test_processes_users_and_network_are_the_tasks_own(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.script("bind #etc/passwd /etc/passwd")
        script = "whoami; echo $$; echo /proc/[0-9]*; ls /proc/1 >/dev/null; cut -d: -f1 /proc/net/dev"
        _, text = await world.sh(script, net="none")
        assert text.splitlines()[:3] == ["somebody", "2", "/proc/2"]
        assert "/proc/1': No such file" in text
        assert text.splitlines()[-1].strip() == "lo"

    run(tmp_path, body)


def test_machine_wide_parts_of_proc_are_read_only_or_hidden(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        script = "echo x > /proc/sys/kernel/hostname; echo h > /proc/sysrq-trigger; wc -c < /proc/kallsyms"
        _, text = await world.sh(script, uid=0, gid=0)
        assert "cannot create /proc/sys/kernel/hostname: Read-only" in text
        assert "cannot create /proc/sysrq-trigger" in text or os.path.exists("/proc/sysrq-trigger") is False
        assert "/proc/kallsyms: Permission denied" in text

    run(tmp_path, body)


def test_dev_has_its_devices_shared_memory_and_terminals(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        script = """
            head -c 4 /dev/zero | wc -c; echo lost > /dev/null; ! echo full > /dev/full
            echo kept > /dev/shm/x && cat /dev/shm/x; echo out > /dev/stdout; echo error > /dev/stderr; ls /dev/pts
        """
        code, text = await world.sh(script)
        assert code == 0
        assert text.splitlines() == ["4", "sh: 2: echo: echo: I/O error", "kept", "out", "error", "ptmx"]

    run(tmp_path, body)


def test_terminal_has_a_name_inside(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        out = world.host.parent / "out"
        command = ("sh", "-c", "tty; stty size < /dev/tty")
        await world.driver.start(world.launch("t", *command, spools={1: out}, pty=(30, 90)))
        assert (await world.recorder.exit_of("t")).code == 0
        assert out.read_text().split() == ["/dev/console", "30", "90"]

    run(tmp_path, body)


def test_home_is_there_under_its_users_name(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        code, text = await world.sh("pwd; echo mine > file; cat file", cwd="/home/somebody")
        assert (code, text) == (0, "/home/somebody\nmine\n")
        assert (world.host.parent / "home" / "file").stat().st_uid == UID

    run(tmp_path, body)


def test_masked_paths_are_there_but_empty(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.script(f"bind #host{world.host} /a\nmask /a/file\nmask /a/inner\nbind #host{world.host} /again")
        for place in ("/a", "/again"):
            _, text = await world.sh(f"ls {place}; cat {place}/file; ls {place}/inner; stat -c %a {place}/file")
            assert "of the host" not in text
            assert text.split()[:2] == ["file", "inner"]
            assert text.split()[-1] == "0"

    run(tmp_path, body)


def test_nothing_mounted_by_tasks_shows_on_the_host(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        before = Path("/proc/self/mountinfo").read_text()
        pid = await world.driver.start(world.launch("t", "sleep", "1000"))
        assert Path("/proc/self/mountinfo").read_text() == before
        root = os.stat(f"/proc/{pid}/root/")
        assert (root.st_dev, root.st_ino) != (os.stat("/").st_dev, os.stat("/").st_ino)
        points = {line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
        expected = {"/", "/usr", "/dev", "/proc", "/home/somebody"}
        optional = {"/bin", "/lib", "/lib64", *(f"/dev/{name}" for name in (*DEVICES, "pts", "shm"))}
        assert expected <= points <= expected | optional

    run(tmp_path, body)


def test_links_of_the_host_and_dots_stay_inside(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        (world.host / "secret").symlink_to("/etc/shadow")
        (world.host / "up").symlink_to("../../../../../../etc")
        await world.script(f"bind #host{world.host} /a")
        _, text = await world.sh("cat /a/secret; ls /a/up/; ls /../../../etc; cd /a/inner/../../..; pwd")
        assert text.splitlines()[-1] == "/"
        assert text.count("No such file") == 3

    run(tmp_path, body)


def test_set_user_id_programs_and_devices_of_a_bind_do_not_act(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        os.mknod(world.host / "zero", 0o20666, os.makedev(1, 5))
        (world.host / "zero").chmod(0o666)
        world.host.chmod(0o755)
        id_program = world.host / "id"
        id_program.write_bytes(Path("/usr/bin/id").read_bytes())
        id_program.chmod(0o4755)
        await world.script(f"bind #host{world.host} /a")
        _, text = await world.sh("/a/id -u; head -c 1 /a/zero")
        assert text.splitlines()[0] == str(UID)
        assert "Permission denied" in text

    run(tmp_path, body)


@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="needs a python3 in /usr")
def test_calls_that_lead_out_are_refused_and_ordinary_ones_are_not(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        (world.host / "probe").write_text(PROBE)
        await world.script(f"bind -r #host{world.host} /a")
        code, text = await world.sh("python3 /a/probe")
        assert (code, text.split()) == (0, ["EPERM"] * 8 + ["ENOSYS", "fine"])

    run(tmp_path, body)


PROBE = """
import ctypes, errno, fcntl, os, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == "x86_64"
unshare, bpf, mount, clone = (272, 321, 165, 56) if x86 else (97, 280, 40, 220)
def name(*call):
    print(errno.errorcode[ctypes.get_errno()] if libc.syscall(*map(ctypes.c_long, call)) < 0 else "allowed")
for flags in (0x10000000, 0x20000, 0x40000000):
    name(unshare, flags)
name(bpf, 0, 0, 0)
name(425, 1, 0)
name(mount, 0, 0, 0, 0, 0)
name(clone, 0x10000011, 0, 0, 0, 0)
try:
    fcntl.ioctl(0, 0x5412, b"x")
except OSError as error:
    print(errno.errorcode[error.errno])
name(435, 0, 0)
thread = threading.Thread(target=lambda: subprocess.run(["true"], check=True))
thread.start()
thread.join()
print("fine")
"""


def test_kill_ends_every_process_of_the_pid_namespace(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        script = "for i in 1 2 3; do (setsid sleep 1000 &) ; done; echo ready; exec sleep 1000"
        out = world.host.parent / "out"
        await world.driver.start(world.launch("t", "sh", "-c", script, spools={1: out}))
        await world.recorder.until(lambda: ("t", 1) in world.recorder.spools)
        pids = await world.driver.pids("t")
        assert len(pids) >= 4
        await world.driver.kill("t", signal.SIGKILL)
        assert (await world.recorder.exit_of("t")).code == 137
        assert not any(map(alive, pids))

    run(tmp_path, body)


def test_orphans_are_reaped_inside(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        script = """
            for i in 1 2 3 4; do (setsid true &) ; done
            while grep -qs 'State:.Z' /proc/[0-9]*/status; do :; done
        """
        code, text = await world.sh(script)
        assert (code, text) == (0, "")

    run(tmp_path, body)


def test_death_of_the_supervisor_ends_isolated_tasks(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        out = world.host.parent / "out"
        script = "(setsid sleep 1000 &) ; echo ready; exec sleep 1000"
        await world.driver.start(world.launch("t", "sh", "-c", script, spools={1: out}))
        await world.recorder.until(lambda: ("t", 1) in world.recorder.spools)
        pids = await world.driver.pids("t")
        os.kill(world.driver.supervisor_pid, signal.SIGKILL)
        await world.recorder.until(lambda: bool(world.recorder.lost_because))
        await until(lambda: not any(map(alive, pids)))

    run(tmp_path, body)


def test_bind_that_only_a_mount_could_show_is_refused_by_name(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.script("bind #mem /memory")
        with pytest.raises(OSError, match="bind #mem /memory") as raised:
            await world.sh("true")
        assert raised.value.errno == ENOTSUP

    run(tmp_path, body)


def test_bind_whose_source_was_swapped_is_refused(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.script(f"bind #host{world.host}/inner /a")
        (world.host / "inner").rename(world.host / "elsewhere")
        (world.host / "inner").symlink_to("/etc")
        with pytest.raises(OSError, match="bind at /a") as raised:
            await world.sh("ls /a")
        assert raised.value.errno == ELOOP
        (world.host / "inner").unlink()
        (world.host / "inner").mkdir()
        with pytest.raises(OSError, match="bind at /a") as raised:
            await world.sh("ls /a")
        assert raised.value.errno == ESTALE
        assert not world.recorder.exits

    run(tmp_path, body)


def test_program_missing_from_the_namespace_is_missing(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        with pytest.raises(FileNotFoundError):
            await world.driver.start(world.launch("t", str(world.host / "file")))
        with pytest.raises(FileNotFoundError, match="cwd"):
            await world.driver.start(world.launch("t", "true", cwd="/nowhere"))

    run(tmp_path, body)


def test_trees_of_the_server_come_from_its_mount(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        mount = world.host.parent / "mount"
        mount.mkdir()
        await world.script(f"bind #mem /memory\nbind #mem /union\nbind -a #host{world.host} /union")

        def view(task: str) -> Node:
            return world.namespace.root

        async with mounted(mount, MemoryTree(label="main").root, views=view):
            world.driver.roots = Roots(views=mount / ".views")
            script = "echo from a task > /memory/note; cat /union/note /union/file; ls /union"
            code, text = await world.sh(script)
            assert (code, text) == (0, "from a task\nof the host\nfile\ninner\nnote\n")
            node = await world.devices.memory.root.lookup("note", ROOT)
            assert (await node.stat()).st_uid == UID
            assert (await world.sh("grep fuse /proc/mounts | cut -d' ' -f2 | sort"))[1] == "/memory\n/union\n"

    run(tmp_path, body)


class Running:
    """A task that answers questions about its namespace while it runs."""

    def __init__(self, world: World, task: str) -> None:
        self._world = world
        self._task = task
        self._out = world.host.parent / f"{task}.out"
        self._read = 0
        self._questions = -1

    async def start(self) -> "Running":
        read, self._questions = os.pipe()
        script = 'while read line; do eval "$line" 2>&1; echo done; done'
        launch = self._world.launch(self._task, "sh", "-c", script, fds={0: read}, spools={1: self._out})
        await self._world.driver.start(launch)
        os.close(read)
        return self

    async def ask(self, command: str) -> str:
        """Return what the command says inside."""
        os.write(self._questions, command.encode() + b"\n")
        await self._world.recorder.until(lambda: self._out.read_text()[self._read :].endswith("done\n"))
        text = self._out.read_text()[self._read :]
        self._read += len(text)
        return text.removesuffix("done\n")

    async def end(self) -> None:
        os.close(self._questions)
        assert (await self._world.recorder.exit_of(self._task)).code == 0


def test_bind_and_unbind_reach_a_running_task(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await Running(world, "t").start()
        await world.script(f"bind #host{world.host} /late/bind")
        assert await task.ask("cat /late/bind/file") == "of the host\n"
        (world.host / "inner" / "deep").write_text("deep\n")
        await world.script(f"bind #host{world.host}/inner /late/bind/inner\nbind #host{world.host}/inner /other")
        assert await task.ask("cat /late/bind/inner/deep /other/deep") == "deep\ndeep\n"
        await world.script("unbind /late/bind/inner\nunbind /other")
        assert await task.ask("ls /late/bind/inner") == "deep\n"
        assert "No such file" in await task.ask("ls -d /other")
        await world.script("unbind /late/bind")
        assert "No such file" in await task.ask("ls /late")
        assert await task.ask("grep -c late /proc/mounts") == "0\n"
        await task.end()
        assert not world.namespace.realisers

    run(tmp_path, body)


def test_bind_above_a_bind_keeps_both_in_a_running_task(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.script(f"bind #host{world.host}/inner /a/inner")
        task = await Running(world, "t").start()
        await world.script(f"bind #host{world.host} /a")
        (world.host / "inner" / "deep").write_text("deep\n")
        assert await task.ask("cat /a/file /a/inner/deep; grep -c ' /a' /proc/mounts") == "of the host\ndeep\n2\n"
        await world.script("unbind /a")
        assert await task.ask("ls /a; grep -c ' /a' /proc/mounts") == "inner\n1\n"
        await task.end()

    run(tmp_path, body)


def test_replaced_and_masked_binds_change_in_a_running_task(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.script(f"bind #host{world.host}/file /x\nbind #host{world.host} /a")
        task = await Running(world, "t").start()
        (world.host / "second").write_text("second\n")
        await world.script(f"bind #host{world.host}/second /x\nbind -r #host{world.host} /a\nmask /a/file")
        assert await task.ask("cat /x; cat /a/file; touch /a/new") == (
            "second\ncat: /a/file: Permission denied\ntouch: cannot touch '/a/new': Read-only file system\n"
        )
        await task.end()

    run(tmp_path, body)


def test_change_that_a_running_task_cannot_follow_happens_nowhere(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.script(f"bind #host{world.host} /a")
        task = await Running(world, "t").start()
        table = world.namespace.table
        for refused in (f"bind #host{world.host} /", "bind #mem /memory"):
            with pytest.raises(OSError):
                await world.script(refused)
            assert world.namespace.table is table
        assert await task.ask("cat /a/file; ls -d /memory") == (
            "of the host\nls: cannot access '/memory': No such file or directory\n"
        )
        await task.end()

    run(tmp_path, body)


def test_every_task_that_shares_a_namespace_follows_it(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        tasks = [await Running(world, f"t{number}").start() for number in range(3)]
        await world.script(f"bind #host{world.host} /shared")
        for task in tasks:
            assert await task.ask("cat /shared/file") == "of the host\n"
            await task.end()

    run(tmp_path, body)


def test_trees_of_the_server_reach_a_running_task(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        mount = world.host.parent / "mount"
        mount.mkdir()

        def view(task: str) -> Node:
            return world.namespace.root

        async with mounted(mount, MemoryTree(label="main").root, views=view):
            world.driver.roots = Roots(views=mount / ".views")
            task = await Running(world, "t").start()
            await world.script(f"bind #mem /memory\nbind #host{world.host} /memory2\nbind -a #mem /memory2")
            assert await task.ask("echo live > /memory/note; cat /memory2/note /memory2/file") == "live\nof the host\n"
            await world.script("unbind /memory\nunbind #mem /memory2")
            assert await task.ask("ls /memory2; ls -d /memory") == (
                "file\ninner\nls: cannot access '/memory': No such file or directory\n"
            )
            await task.end()

    run(tmp_path, body)
