"""What a task may use, and that its neighbours do not notice when it wants more."""

import json
import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prison import PYTHON, Cell, Prisoner, new_cell
from serving import SECONDS, Served

pytestmark = pytest.mark.root

EAT = "data = bytearray(100 << 20); data[::4096] = bytes(len(data[::4096]))"
"""Python that uses 100 MB."""


@contextmanager
def sibling(served: Served) -> Iterator[Prisoner]:
    assert served.mount
    found = Prisoner(new_cell(served.mount))
    try:
        yield found
    finally:
        found.release()


def start(served: Served, *argv: str, limits: tuple[str, ...] = ()) -> Cell:
    assert served.mount
    cell = new_cell(served.mount, *limits)
    (cell.path / "args").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in argv))
    cell.ctl("start")
    return cell


def events(cell: Cell, until: Callable[[dict[str, object]], bool]) -> list[dict[str, object]]:
    """Return a task's events up to the first that is awaited."""
    found: list[dict[str, object]] = []
    fd = os.open(cell.path / "events", os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    text = b""
    try:
        while not (found and until(found[-1])):
            while b"\n" not in text:
                assert poll.poll(SECONDS * 1000), f"only {found}"
                try:
                    piece = os.read(fd, 65536)
                except BlockingIOError:
                    continue
                assert piece, f"only {found}"
                text += piece
            line, _, text = text.partition(b"\n")
            found.append(json.loads(line))
    finally:
        os.close(fd)
    return found


def processes_of(cell: Cell) -> list[int]:
    marker = f"CELL={cell.path}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_memory_beyond_the_limit_ends_the_task_and_spares_its_siblings(served: Served) -> None:
    with sibling(served) as other:
        cell = start(served, PYTHON, "-Ic", EAT, limits=("memlimit 50M",))
        assert cell.read("wait") == "137"
        assert (cell.read("reason"), cell.read("error")) == ("out of memory", "out of memory")
        assert [event["event"] for event in events(cell, lambda e: e["event"] == "exited")].count("oom") == 1
        assert other.attempt("pass") == "0"
        assert other.cell.read("status") == "running"


def test_kill_for_memory_is_told_while_the_rest_of_the_task_goes_on(served: Served) -> None:
    script = f"{PYTHON} -Ic '{EAT}'; exec sleep 1000"
    cell = start(served, "/bin/sh", "-c", script, limits=("memlimit 50M",))
    try:
        found = events(cell, lambda e: e["event"] == "oom")
        assert found[-1]["limit_bytes"] == 50 << 20
        assert cell.read("status") == "running"
        assert cell.read("error") == "out of memory"
        cell.ctl("kill 15")
        cell.read("wait")
        assert cell.read("reason") == "signal 15"
    finally:
        cell.end()


def test_fork_bomb_meets_its_limit_and_siblings_go_on(served: Served) -> None:
    bomb = "import os\nwhile True:\n try: os.fork()\n except BlockingIOError: print('full', flush=True); os.wait()"
    with sibling(served) as other:
        cell = start(served, PYTHON, "-Ic", bomb, limits=("pidlimit 50", "nice 19"))
        try:
            with open(cell.path / "fd/1") as out:
                assert out.readline() == "full\n"
            assert len(processes_of(cell)) <= 50
            assert other.sees("return os.popen('echo fine').read()") == "fine\n"
        finally:
            cell.end()
        assert processes_of(cell) == []


def test_pause_stops_a_busy_tree_and_resume_lets_it_go_on(served: Served) -> None:
    busy = "for i in 1 2 3; do (while :; do :; done) & done; wait"
    cell = start(served, "/bin/sh", "-c", busy, limits=("nice 19",))

    def used() -> int:
        lines = (cell.path / "stat/cpu").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("user", "system")))

    def spends() -> bool:
        before, deadline = used(), time.monotonic() + SECONDS
        while used() == before and time.monotonic() < deadline:
            pass
        return used() > before

    try:
        assert spends()
        cell.ctl("pause")
        assert cell.read("status") == "stopped"
        before = used()
        spent = sum(process_ticks(pid) for pid in processes_of(cell))
        with sibling(served) as other:
            other.sees("sum(range(10 ** 6))")
        assert (used(), sum(process_ticks(pid) for pid in processes_of(cell))) == (before, spent)
        cell.ctl("resume")
        assert cell.read("status") == "running"
        assert spends()
    finally:
        cell.end()
    assert processes_of(cell) == []


def process_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_kill_leaves_no_orphan(served: Served) -> None:
    script = (
        "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & setsid sleep 1000' & done; echo up; wait"
    )
    cell = start(served, "/bin/sh", "-c", script)
    with open(cell.path / "fd/1") as out:
        assert out.readline() == "up\n"
    assert len(processes_of(cell)) >= 2
    cell.ctl("kill 9")
    assert cell.read("wait") == "137"
    assert processes_of(cell) == []
