"""The commands for files, run as a user runs them, against a server of a few nodes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import ROOT, SECONDS, WANIXFS, Served

SMALL = Path(__file__).parent / "small_server.py"


def small(address: str, *words: str) -> Iterator[Served]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, SMALL, address, *words], env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout
        yield Served(process, None, process.stdout.readline().decode().strip(), Path("/none"))
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from small(f"unix!{tmp_path_factory.mktemp('small')}/9p")


@pytest.fixture
def tcp() -> Iterator[Served]:
    yield from small("tcp!127.0.0.1!0", "open sesame")


def test_ls_lists_names_attributes_and_json(server: Served) -> None:
    assert server.out("ls").split() == ["busy", "ctl", "idle", "mem", "never"]
    line = server.out("ls", "-l", "/ctl").split()
    assert (line[0], line[-1]) == ("-rw-------", "/ctl")
    found = json.loads(server.out("ls", "--json", "/"))
    assert [(one["path"], one["type"]) for one in found][3] == ("/mem", "directory")


def test_write_makes_replaces_and_appends(server: Served) -> None:
    server.run("write", "/mem/f", "first", "line")
    assert server.out("cat", "/mem/f") == "first line\n"
    server.run("write", "/mem/f", stdin=b"from stdin")
    server.run("write", "-a", "/mem/f", ", more")
    assert server.out("cat", "/mem/f") == "from stdin, more\n"


def test_refused_command_is_one_line_in_the_control_files_words(server: Served) -> None:
    done = server.run("write", "/ctl", "jump", "9", status=1)
    assert done.stderr == b"wanixfs: /ctl: too high: 9\n"
    assert done.stdout == b""


def test_missing_file_is_one_line_and_debug_shows_where(server: Served) -> None:
    done = server.run("cat", "/mem/none", status=1)
    assert done.stderr == b"wanixfs: /mem/none: No such file or directory\n"
    assert b"Traceback" in server.run("--debug", "cat", "/mem/none", status=1).stderr


def test_stat_shows_attributes(server: Served) -> None:
    server.run("write", "/mem/s", "12345")
    assert "size 6\n" in server.out("stat", "/mem/s")
    shown = json.loads(server.out("stat", "--json", "/mem/s"))
    assert (shown["type"], shown["size"], shown["mode"]) == ("file", 6, "0644")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_read_ends_at_once_here_and_on_the_server(server: Served, number: signal.Signals) -> None:
    with server.start("cat", "/never") as waiting:
        server.run("cat", "/busy")
        waiting.send_signal(number)
        out, err = waiting.communicate(timeout=SECONDS)
    server.run("cat", "/idle")
    assert (out, err, waiting.returncode) == (b"", b"", 128 + number)


def test_reader_of_ours_that_leaves_ends_us_in_silence(server: Served) -> None:
    server.run("write", "/mem/large", stdin=bytes(3 << 20))
    with server.start("cat", "/mem/large", "/mem/large") as writer:
        assert writer.stdout
        assert writer.stdout.read(10) == bytes(10)
        writer.stdout.close()
        assert writer.stderr
        assert writer.stderr.read() == b""
        assert writer.wait(SECONDS) == 141


def test_cp_takes_files_in_and_out(server: Served, tmp_path: Path) -> None:
    data = os.urandom(2_500_000)
    (tmp_path / "in").write_bytes(data)
    (tmp_path / "in").chmod(0o750)
    server.run("cp", str(tmp_path / "in"), ":/mem/copied")
    assert json.loads(server.out("stat", "--json", "/mem/copied"))["mode"] == "0750"
    server.run("cp", ":/mem/copied", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_cp_copies_directories_with_all_they_hold(server: Served, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    (top / "a/file").write_text("one")
    (top / "a/b/empty").touch()
    (top / "link").symlink_to("a/file")
    os.mkfifo(top / "fifo")
    done = server.run("cp", "-r", str(top), ":/mem")
    assert done.stderr.decode() == f"wanixfs: {top}/fifo: not a file, directory or link: left out\n"
    (tmp_path / "back").mkdir()
    server.run("cp", "-r", ":/mem/top", str(tmp_path / "back"))
    (top / "fifo").unlink()
    assert subprocess.run(["diff", "-r", top, tmp_path / "back/top"], check=False).returncode == 0
    assert os.readlink(tmp_path / "back/top/link") == "a/file"


def test_cp_of_a_directory_needs_to_be_asked_for(server: Served, tmp_path: Path) -> None:
    assert b"copied with -r" in server.run("cp", str(tmp_path), ":/mem/d", status=1).stderr
    assert b"copied with -r" in server.run("cp", ":/mem", str(tmp_path / "d"), status=1).stderr
    assert server.run("cp", "a", "b", status=2).returncode == 2


def test_cp_out_never_writes_through_a_link_that_is_there(server: Served, tmp_path: Path) -> None:
    for folder in ("tree/dir", "plan", "target"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tree/dir/file").write_text("evil")
    (tmp_path / "tree/name").write_text("evil")
    server.run("cp", "-r", str(tmp_path / "tree"), ":/mem/hostile")
    (tmp_path / "plan/hostile").mkdir()
    (tmp_path / "plan/hostile/dir").symlink_to(tmp_path / "target")
    assert server.run("cp", "-r", ":/mem/hostile", str(tmp_path / "plan"), status=1)
    (tmp_path / "plan/hostile/dir").unlink()
    (tmp_path / "plan/hostile/name").symlink_to(tmp_path / "target/file")
    assert server.run("cp", "-r", ":/mem/hostile", str(tmp_path / "plan"), status=1)
    assert not list((tmp_path / "target").iterdir())


def test_tcp_needs_the_token(tcp: Served) -> None:
    assert "mem" in tcp.out("--token", "open sesame", "ls")
    assert b"wanixfs: cannot" in tcp.run("--token", "wrong", "ls", status=1).stderr
    assert b"wanixfs: cannot" in tcp.run("ls", status=1).stderr


def test_without_a_server_one_line_tells_what_starts_one(tmp_path: Path) -> None:
    environment = os.environ | {"WANIXFS_ADDR": f"unix!{tmp_path}/none", "PYTHONPATH": str(ROOT)}
    for words in (["run", "true"], ["ls"], ["ps"]):
        done = subprocess.run([*WANIXFS, *words], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (1, 125)
        assert done.stderr == f"wanixfs: no server at unix!{tmp_path}/none; start one with: wanixfs serve\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_program(shell: str) -> None:
    done = subprocess.run([*WANIXFS, "completion", shell], capture_output=True, text=True, check=True)
    assert "_WANIXFS_COMPLETE" in done.stdout


def test_bash_can_read_its_completion_script() -> None:
    script = subprocess.run([*WANIXFS, "completion", "bash"], capture_output=True, check=True).stdout
    assert subprocess.run(["bash", "-n"], input=script, check=False).returncode == 0


@pytest.mark.root
def test_mount_shows_the_tree_until_it_is_interrupted(server: Served, tmp_path: Path) -> None:
    with server.start("mount", "--ready-fd", "1", server.address, str(tmp_path)) as mounting:
        try:
            assert mounting.stdout
            assert mounting.stdout.readline() == b"ready\n"
            assert sorted(os.listdir(tmp_path)) == ["busy", "ctl", "idle", "mem", "never"]
            (tmp_path / "mem/through").write_text("a mount")
            assert server.out("cat", "/mem/through") == "a mount"
        finally:
            mounting.send_signal(signal.SIGINT)
            _, err = mounting.communicate(timeout=SECONDS)
    assert (mounting.returncode, err) == (130, b"")
    assert not os.path.ismount(tmp_path)


@pytest.mark.root
def test_detached_mount_returns_mounted_and_ends_when_unmounted(server: Served, tmp_path: Path) -> None:
    server.run("mount", "-d", server.address, str(tmp_path))
    try:
        assert (tmp_path / "mem").is_dir()
    finally:
        server.run("umount", str(tmp_path))
    assert not os.path.ismount(tmp_path)


def test_mount_of_nobody_fails_in_one_line(tmp_path: Path) -> None:
    for words in (["mount"], ["mount", "-d"]):
        done = subprocess.run(
            [*WANIXFS, *words, f"unix!{tmp_path}/none", str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.count("no server at") == 1
        assert "Traceback" not in done.stderr
