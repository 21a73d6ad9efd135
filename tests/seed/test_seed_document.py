"""The shell lines of the process model document, run as written: by /bin/sh on a mount, and by name over 9P.

What differs from the document is in docs/deviations.md, and only that. Lines that the document leaves open (which
program, what it prints) are ours, marked by a leading blank.
"""

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from serving import ROOT, SECONDS, Served, serving

from wanixfs.cli.failure import describe
from wanixfs.cli.options import Target
from wanixfs.cli.session import attached
from wanixfs.cli.tree import Tree

pytestmark = pytest.mark.root

MYAPP = """#!/bin/sh
echo "$0 $*"
echo "PATH=$PATH HOME=$HOME"
pwd
cat /mnt/file
ls /sensitive 2>/dev/null || echo "nothing sensitive"
echo problem >&2
exit 3
"""

Section = list[tuple[str, str]]
"""Lines with what each prints (a regular expression for all of it)."""

SECTIONS: dict[str, Section] = {
    "creation, configuration, execution": [
        ("task_id=$(cat /task/new)", ""),
        (" cat /task/$task_id/status", "allocated\n"),
        ('echo "cmd /bin/myapp arg1 arg2" > /task/$task_id/ctl', ""),
        ('echo "unbind /sensitive" > /task/$task_id/ns/ctl', ""),
        ('echo "bind /custom /mnt" > /task/$task_id/ns/ctl', ""),
        ('echo "PATH=/bin:/usr/bin" > /task/$task_id/env', ""),
        ('echo "HOME=/home/pw-$task_id" > /task/$task_id/env', ""),
        ('echo "/home/pw-$task_id" > /task/$task_id/cwd', ""),
        ('echo "start" > /task/$task_id/ctl', ""),
        ("cat /task/$task_id/status", "(running|exited)\n"),
        (
            "cat /task/$task_id/fd/1",
            "/bin/myapp arg1 arg2\nPATH=/bin:/usr/bin HOME=/home/pw-1\n/home/pw-1\ncustom\nnothing sensitive\n",
        ),
        ("cat /task/$task_id/fd/2", "problem\n"),
        ("cat /task/$task_id/wait", "3\n"),
        (" cat /task/$task_id/status", "exited\n"),
        ("cat /task/$task_id/exitcode", "3\n"),
    ],
    "termination by SIGTERM": [
        ("task_id=$(cat /task/new)", ""),
        (' echo "cmd /bin/sleep 1000" > /task/$task_id/ctl', ""),
        ('echo "start" > /task/$task_id/ctl', ""),
        ('echo "kill 15" > /task/$task_id/ctl', ""),
        (" cat /task/$task_id/wait", "143\n"),
        ("cat /task/$task_id/exitcode", "143\n"),
    ],
    "termination by SIGKILL": [
        ("task_id=$(cat /task/new)", ""),
        (' echo "cmd /bin/sleep 1000" > /task/$task_id/ctl', ""),
        ('echo "start" > /task/$task_id/ctl', ""),
        ('echo "kill 9" > /task/$task_id/ctl', ""),
        (" cat /task/$task_id/wait", "137\n"),
        ("cat /task/$task_id/exitcode", "137\n"),
    ],
    "redirection of descriptors": [
        ("task_id=$(cat /task/new)", ""),
        (" other_task=$(cat /task/new)", ""),
        ('echo "dup /tmp/output.log" > /task/$task_id/fd/1ctl', ""),
        ('echo "pipe $other_task/fd/1" > /task/$task_id/fd/0ctl', ""),
        (' echo "cmd tr a-z A-Z" > /task/$task_id/ctl', ""),
        (' echo "cmd echo through the pipe" > /task/$other_task/ctl', ""),
        (' echo "start" > /task/$task_id/ctl', ""),
        (' echo "start" > /task/$other_task/ctl', ""),
        (" cat /task/$task_id/wait", "0\n"),
        (" cat /tmp/output.log", "THROUGH THE PIPE\n"),
        (" cat /task/$task_id/fd/1", ""),
    ],
    "files of the namespace": [
        ("task_id=$(cat /task/new)", ""),
        (' echo "bind /custom /mnt" > /task/$task_id/ns/ctl', ""),
        ("cat /task/$task_id/ns/mounts", "(.|\n)*"),
        ("cat /task/$task_id/ns/binds", "(.|\n)*/mnt(.|\n)*"),
        ("cat /task/$task_id/ns/dump", "(.|\n)*\nbind \\S+/custom /mnt\n"),
        (' echo "unbind /mnt" > /task/$task_id/ns/ctl', ""),
        (' echo "unbind /mnt" > /task/$task_id/ns/ctl', ".*(no such file|I/O error).*\n"),
    ],
    "shared portions of namespaces": [
        (" task1=$(cat /task/new)", ""),
        (" task2=$(cat /task/new)", ""),
        ("mkdir /tmp/shared", ""),
        ('echo "bind /tmp/shared /shared" > /task/$task1/ns/ctl', ""),
        ('echo "bind /tmp/shared /shared" > /task/$task2/ns/ctl', ""),
        (' echo "for both" > /tmp/shared/note', ""),
        (' echo "cmd cat /shared/note" > /task/$task1/ctl', ""),
        (' echo "cmd cat /shared/note" > /task/$task2/ctl', ""),
        (' echo "start" > /task/$task1/ctl', ""),
        (' echo "start" > /task/$task2/ctl', ""),
        (" cat /task/$task1/fd/2", ""),
        (" cat /task/$task1/fd/1", "for both\n"),
        (" cat /task/$task2/fd/1", "for both\n"),
    ],
    "pipes": [
        (" task1=$(cat /task/new)", ""),
        (" task2=$(cat /task/new)", ""),
        ("pipe_id=$(cat /cap/new/pipe)", ""),
        ('echo "dup /cap/$pipe_id/w" > /task/$task1/fd/1ctl', ""),
        ('echo "dup /cap/$pipe_id/r" > /task/$task2/fd/0ctl', ""),
        (' echo "cmd seq 20000" > /task/$task1/ctl', ""),
        (' echo "cmd wc -l" > /task/$task2/ctl', ""),
        (' echo "start" > /task/$task2/ctl', ""),
        (' echo "start" > /task/$task1/ctl', ""),
        (" cat /task/$task2/fd/1", "20000\n"),
        (" cat /task/$task1/wait", "0\n"),
        (" cat /task/$task2/wait", "0\n"),
    ],
    "files as signals": [
        (" mkdir /tmp/signals", ""),
        ('echo "ready" > /tmp/signals/proc1', ""),
        (' echo "ready" > /tmp/signals/proc2', ""),
        ("while [ ! -f /tmp/signals/proc2 ]; do sleep 1; done", ""),
        (" cat /tmp/signals/proc1", "ready\n"),
    ],
    "limits and accounting": [
        ("task_id=$(cat /task/new)", ""),
        ('echo "memlimit 100M" > /task/$task_id/ctl', ""),
        ('echo "nice 10" > /task/$task_id/ctl', ""),
        (' echo "cmd nice" > /task/$task_id/ctl', ""),
        (' echo "start" > /task/$task_id/ctl', ""),
        (" cat /task/$task_id/fd/1", "10\n"),
        (" running=$(cat /task/new)", ""),
        (' echo "memlimit 100M" > /task/$running/ctl', ""),
        (' echo "cmd sleep 1000" > /task/$running/ctl', ""),
        (' echo "start" > /task/$running/ctl', ""),
        ("cat /task/$running/stat/mem", "(.|\n)*current_bytes [1-9][0-9]*\n(.|\n)*"),
        ("cat /task/$running/stat/cpu", "(.|\n)*user_usec [0-9]+\n(.|\n)*"),
        ("cat /task/$running/stat/io", "([a-z_]+ [0-9]+\n)*"),
        (' echo "kill 9" > /task/$running/ctl', ""),
        (" cat /task/$running/wait", "137\n"),
    ],
}


class Shell:
    """/bin/sh with the document's absolute paths below a mount."""

    def __init__(self, served: Served) -> None:
        self.process = subprocess.Popen(
            ["/bin/sh"],
            env={"PATH": os.environ["PATH"], "ROOT": str(served.mount)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.alarm = threading.Timer(SECONDS, self.process.kill)
        self.alarm.start()

    def type(self, line: str) -> str:
        """Run one line; return all it prints."""
        assert self.process.stdin and self.process.stdout
        here = re.sub(r"(> |^cat |[(]cat |^mkdir |-f )/", r"\1$ROOT/", line.strip())
        self.process.stdin.write(f"{here}\necho '\1'\n")
        self.process.stdin.flush()
        said = ""
        while (got := self.process.stdout.readline()) != "\1\n":
            assert got, f"the shell died at {line}"
            said += got
        return said

    def close(self) -> None:
        self.alarm.cancel()
        self.process.communicate()


class NineP:
    """The few statements of the document, carried out over 9P by name."""

    def __init__(self, served: Served) -> None:
        self.target = Target(served.address)
        self.variables: dict[str, str] = {}

    def type(self, line: str) -> str:
        for form, action in self.forms().items():
            if match := re.fullmatch(form, line.strip()):
                words = [re.sub(r"\$(\w+)", lambda name: self.variables[name[1]], word) for word in match.groups()]
                return trio.run(self.carry_out, action, words)
        raise AssertionError(f"no form for {line}")

    def forms(self) -> dict[str, Callable[..., object]]:
        return {
            r"(\w+)=\$\(cat (\S+)\)": self.assign,
            r'echo "(.*)" > (\S+)': self.echo,
            r"cat (\S+)": self.cat,
            r"mkdir (\S+)": lambda tree, path: tree.mkdir(path, 0o777),
            r"while \[ ! -f (\S+) \]; do sleep 1; done": lambda tree, path: tree.stat(path),
        }

    async def carry_out(self, action: Callable[..., object], words: list[str]) -> str:
        with trio.fail_after(SECONDS):
            async with attached(self.target) as client:
                try:
                    said = await action(Tree(client.root), *words)  # type: ignore[misc]
                except OSError as error:
                    return f"{describe(error)}\n"
        return said if isinstance(said, str) else ""

    async def assign(self, tree: Tree, name: str, path: str) -> None:
        self.variables[name] = await tree.text(path)

    @staticmethod
    async def echo(tree: Tree, text: str, path: str) -> None:
        async with tree.writing(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as handle:
            await handle.write(f"{text}\n".encode(), 0)

    @staticmethod
    async def cat(tree: Tree, path: str) -> str:
        return (await tree.read(path)).decode()

    def close(self) -> None:
        """There is nothing to end: every line has its own connection."""


@pytest.fixture(params=[Shell, NineP])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell | NineP]:
    for folder in ("bin", "custom", "sensitive"):
        (tmp_path / folder).mkdir()
    (tmp_path / "custom/file").write_text("custom\n")
    (tmp_path / "sensitive/secret").touch()
    (tmp_path / "bin/myapp").write_text(MYAPP)
    (tmp_path / "bin/myapp").chmod(0o755)
    tmp_path.chmod(0o755)
    script = (ROOT / "ns/init.ns").read_text() + (
        f"bind -b #host{tmp_path}/bin /bin\n"
        f"bind #host{tmp_path}/custom /custom\n"
        f"bind #host{tmp_path}/sensitive /sensitive\n"
    )
    (tmp_path / "init.ns").write_text(script)
    with serving(tmp_path, "--namespace", str(tmp_path / "init.ns")) as served:
        opened: Shell | NineP = request.param(served)
        try:
            yield opened
        finally:
            opened.close()


@pytest.mark.parametrize("title", SECTIONS)
def test_lines_of_the_document_do_what_it_says(shell: Shell | NineP, title: str) -> None:
    for line, says in SECTIONS[title]:
        said = shell.type(line)
        assert re.fullmatch(says, said), f"{line}\nsaid {said!r}\nnot  {says!r}"
