"""Foreign judges: diod's client tools against our server, and our client against diod's server."""

import os
import shutil
import subprocess
import time

import pytest
import trio

from vfs.conformance import FEATURES, check_tree
from vfs.memory import MemoryTree
from vfs.ninep.access_token import authorised_path
from vfs.ninep.address import Address, listen
from vfs.ninep.client import connect
from vfs.ninep.server import serve
from vfs.node import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("diodls"), reason="needs diod's client tools (Debian package diod)")
SECONDS = 60
CONTENT = bytes(range(256)) * 5000


async def made_tree():
    tree = MemoryTree(label="t")
    directory = await tree.root.mkdir("dir", 0o755, ROOT)
    for name, data, mode in (("big", CONTENT, 0o644), ("empty", b"", 0o600), ("tool", b"s", 0o751)):
        _, handle = await directory.create(name, os.O_WRONLY, mode, ROOT)
        if data:
            await handle.write(data, 0)
        handle.close()
    many = await tree.root.mkdir("many", 0o755, ROOT)
    for number in range(1000):
        (await many.create(f"entry-{number:04}", os.O_WRONLY, 0o644, ROOT))[1].close()
    return tree


def against_server(tmp_path, scenario):
    """Run `scenario(ask)` with `ask(network, tool, *words)` giving the finished process of a diod tool."""

    async def main():
        tree = await made_tree()

        async def attach(uname, n_uname, aname, peer):
            path = aname if peer else authorised_path(aname, "s3cret")
            if path != "/export":
                raise OSError(13, "no such export")
            return tree.root, ROOT

        tcp = listen(Address("tcp", host="127.0.0.1", port=0))
        where = {"unix": f"{tmp_path}/s", "tcp": f"127.0.0.1:{tcp.getsockname()[1]}"}
        listeners = [tcp, listen(Address("unix", path=where["unix"]))]

        async def ask(network, tool, *words, aname=None):
            aname = aname or {"unix": "/export", "tcp": "/export?s3cret"}[network]
            with trio.fail_after(SECONDS):
                return await trio.run_process(
                    [tool, "-s", where[network], "-a", aname, *words],
                    capture_stdout=True, capture_stderr=True, check=False,
                )  # fmt: skip

        async with trio.open_nursery() as nursery:
            await nursery.start(serve, listeners, attach)
            await scenario(ask)
            nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize("network", ["unix", "tcp"])
def test_diodls_lists_what_we_serve(network, tmp_path):
    async def scenario(ask):
        plain = await ask(network, "diodls", "/")
        assert sorted(plain.stdout.split()) == [b"dir", b"many"], plain
        long = await ask(network, "diodls", "-l", "dir")
        shown = {line.split()[-1]: line.split() for line in long.stdout.decode().splitlines()}
        assert shown["big"][0].startswith("-rw-r--r--")
        assert int(shown["big"][4]) == len(CONTENT)
        assert shown["empty"][0].startswith("-rw-------")
        assert shown["tool"][0].startswith("-rwxr-x--x")
        assert shown["."][0].startswith("drwxr-xr-x")
        many = await ask(network, "diodls", "many")
        assert sorted(many.stdout.split()) == [b"entry-%04d" % number for number in range(1000)]

    against_server(tmp_path, scenario)


@pytest.mark.parametrize("network", ["unix", "tcp"])
def test_diodcat_reads_what_we_serve(network, tmp_path):
    async def scenario(ask):
        for words in ((), ("-m", "8192")):
            got = await ask(network, "diodcat", *words, "dir/big", "dir/empty")
            assert (got.returncode, got.stdout) == (0, CONTENT), got.stderr
        missing = await ask(network, "diodcat", "dir/none")
        assert missing.returncode
        assert b"No such file" in missing.stderr

    against_server(tmp_path, scenario)


def test_diod_tools_are_refused_without_the_token(tmp_path):
    async def scenario(ask):
        for aname in ("/export", "/export?wrong", "/export?"):
            got = await ask("tcp", "diodls", "/", aname=aname)
            assert got.returncode
            assert b"Permission denied" in got.stderr
        assert (await ask("unix", "diodls", "/", aname="/other")).returncode

    against_server(tmp_path, scenario)


@pytest.mark.root
def test_our_client_keeps_every_promise_against_diod(tmp_path):
    exported, path = tmp_path / "exported", tmp_path / "s"
    exported.mkdir()
    command = ["diod", "-f", "-n", "-l", str(path), "-e", str(exported), "-L", "stderr"]
    diod = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while not path.is_socket():  # diod tells nobody when it is ready
            assert diod.poll() is None
            assert time.monotonic() < deadline
            os.sched_yield()

        async def main():
            with trio.fail_after(SECONDS):
                async with connect(str(path), aname=str(exported), uid=0) as client:
                    report = await check_tree(client.root, who=ROOT, features=FEATURES - UNSUPPORTED)
                    report.check()
                    assert len(report.passed) > 20

        trio.run(main)
    finally:
        diod.terminate()
        diod.wait(SECONDS)


UNSUPPORTED = {"exchange", "noreplace", "fallocate", "holes", "xattr"}
