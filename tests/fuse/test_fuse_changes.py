"""Host directories that others change: the kernel is told, and asks again."""

import os
from pathlib import Path

import pytest
import trio
from fusemount import Served, served, until

from ns.namespace import Namespace
from vfs.fuse.changes import Changes
from vfs.host import HostNode, HostTree
from vfs.node import ROOT, Node

FOREVER = 1e6


@pytest.fixture
def host(tmp_path: Path, monkeypatch):
    """A directory of the host whose names and attributes the kernel would trust for ever."""
    monkeypatch.setattr(HostNode, "cache_seconds", FOREVER)
    (tmp_path / "host/d").mkdir(parents=True)
    (tmp_path / "host/f").write_text("first")
    (tmp_path / "host/d/g").write_text("deep")
    return tmp_path / "host"


def sees(here: Served, script: str, text: str) -> None:
    until(lambda: here.sh(script, check=False) == text, f"{script!r} printing {text!r}")


@pytest.mark.root
def test_a_host_file_that_others_change_shows_so_by_name(tmp_path: Path, host: Path):
    with served(tmp_path / "m", HostTree(host, label="host").root) as here:
        assert here.sh("stat -c %s f d/g; cat f") == "5\n4\nfirst"
        (host / "f").write_text("longer")
        sees(here, "stat -c %s f; cat f", "6\nlonger")
        (host / "d/g").chmod(0o600)
        sees(here, "stat -c %a d/g", "600\n")
        (host / "new").write_text("another file")
        (host / "new").rename(host / "f")
        sees(here, "stat -c %s f; cat f", "12\nanother file")
        (host / "f").unlink()
        sees(here, "test -e f || echo gone", "gone\n")
        (host / "d").rename(host / "e")
        sees(here, "test -e d || cat e/g", "deep")


@pytest.mark.root
def test_a_directory_that_expires_keeps_what_is_mounted_on_it(tmp_path: Path, host: Path):
    with served(tmp_path / "m", HostTree(host, label="host").root) as here:
        here.sh("mount -t tmpfs none d; touch d/mounted f")
        try:
            (host / "d").chmod(0o700)
            (host / "f").chmod(0o600)
            sees(here, "stat -c %a f", "600\n")
            assert here.sh("ls d") == "mounted\n"
            (host / "d").chmod(0o711)
        finally:
            here.sh("umount d")
        sees(here, "stat -c %a d", "711\n")


@pytest.mark.root
def test_a_host_directory_in_a_namespace_shows_changes_too(tmp_path: Path, host: Path):
    class Devices:
        admin = True

        def allowed(self, name: str) -> bool:
            return True

        def per_view(self, origin) -> bool:
            return False

        async def device(self, name: str) -> Node:
            return tree.root

    async def root() -> Node:
        space = Namespace(Devices(), label="space")
        await space.bind("#host", "/all", writer=space, who=ROOT)
        await space.bind("#host/d", "/deep", writer=space, who=ROOT)
        return space.root

    tree = HostTree(host, label="host")
    with served(tmp_path / "m", trio.run(root)) as here:
        assert here.sh("stat -c %s all/d/g deep/g") == "4\n4\n"
        (host / "d/g").write_text("deeper")
        sees(here, "stat -c %s all/d/g deep/g", "6\n6\n")


def test_a_directory_is_watched_until_its_last_number_is_let_go(tmp_path: Path):
    async def main() -> None:
        changes = Changes(most=2)
        told: set[tuple[int, str]] = set()
        heard = trio.Event()

        async def tell(names):
            nonlocal heard
            told.update(names)
            heard.set()

        async def after(*names: str) -> set[tuple[int, str]]:
            nonlocal heard
            heard = trio.Event()
            told.clear()
            for name in names:
                (tmp_path / name).write_text("text")
            with trio.fail_after(10):
                while not any(name == "last" for _, name in told):
                    await heard.wait()
                    heard = trio.Event()
            return {entry for entry in told if entry[1] != "last"}

        for name in ("a", "b", "c"):
            (tmp_path / name).mkdir()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(changes.run, tell)
            changes.watch(1, str(tmp_path / "a"))
            changes.watch(2, str(tmp_path / "a"))
            assert await after("a/f", "a/last") == {(1, "f"), (2, "f")}
            changes.unwatch(1)
            assert await after("a/f", "a/last") == {(2, "f")}
            changes.watch(3, str(tmp_path / "b"))
            changes.watch(4, str(tmp_path / "c"))  # one too many: the oldest goes
            assert await after("a/f", "b/f", "c/f", "c/last") == {(3, "f"), (4, "f")}
            changes.watch(5, str(tmp_path / "nowhere"))
            changes.unwatch(5)
            os.unlink(tmp_path / "b/f")
            os.rmdir(tmp_path / "b")
            assert await after("c/last") <= {(3, "f")}
            changes.unwatch(3)
            assert not set(changes._watches) - {4}
            nursery.cancel_scope.cancel()
        changes.close()

    trio.run(main)
