"""A house with a fake driver and the shell's two verbs, for tests of the tree: `cat` reads, `echo` writes."""

import os
from contextlib import asynccontextmanager

import pytest
import trio

from tasks.drivers.fake import FakeDriver
from tasks.ports import NoVault
from vfs.node import ROOT
from vfs.walk import open_path, walk
from wanixfs.config import Config
from wanixfs.house import House

SCRIPT = """
bind #task /task
bind #cap /cap
bind #srv /srv
bind #sessions /sessions
bind #tmp /tmp
bind #dev /dev
"""


class Household:
    """One node in this process, seen from the administrator's tree or a task's."""

    def __init__(self, house, driver):
        self.house = house
        self.driver = driver
        self.service = house.service

    def root(self, task=None):
        return self.house.views.admin.namespace.root if task is None else self.house.task_root(str(task))

    async def cat(self, path, *, task=None, who=ROOT, size=65536):
        _, handle = await open_path(self.root(task), path, os.O_RDONLY, who)
        try:
            data = b""
            while piece := await handle.read(size, len(data)):
                data += piece
            return os.fsdecode(data)
        finally:
            handle.close()

    async def echo(self, text, path, *, task=None, who=ROOT):
        data = text if isinstance(text, bytes) else os.fsencode(text + "\n")
        _, handle = await open_path(self.root(task), path, os.O_WRONLY | os.O_TRUNC, who)
        try:
            offset = 0
            while offset < len(data):
                offset += await handle.write(data[offset : offset + 65536], offset)
            await handle.flush()
        finally:
            handle.close()

    async def ls(self, path, *, task=None, who=ROOT):
        return [entry.name for entry in await (await walk(self.root(task), path, who)).readdir(who)]

    async def new(self, *lines, task=None):
        """Make a task, write these lines to its ctl, and return its id."""
        id = (await self.cat("/task/new", task=task)).strip()
        for line in lines:
            await self.echo(line, f"/task/{id}/ctl", task=task)
        return id

    async def started(self, *lines, task=None):
        return await self.new("cmd /bin/true", *lines, "start", task=task)


@asynccontextmanager
async def household(tmp_path, survivor=None, **settings):
    """Open a house over `tmp_path`; opened again there, it is the next server over the same state."""
    script = tmp_path / "init.ns"
    script.write_text(SCRIPT)
    config = Config(state=tmp_path / "state", listen=("unix!/nowhere",), namespace=script, **settings)
    config.state.mkdir(exist_ok=True)
    async with trio.open_nursery() as nursery:
        house = House(config, nursery)
        driver = FakeDriver(house.service, survivor)
        await house.open({"linux": driver}, NoVault())
        await nursery.start(house.service.run)
        await nursery.start(house.sessions.run)
        yield Household(house, driver)
        nursery.cancel_scope.cancel()
    house.close()


def run(tmp_path, test, **settings):
    """Run the coroutine function `test` with a house of its own."""

    async def main():
        async with household(tmp_path, **settings) as node:
            await test(node)

    trio.run(main)


async def refused(errno, awaitable):
    """Expect this errno of what is awaited."""
    with pytest.raises(OSError) as info:
        await awaitable
    assert info.value.errno == errno, info.value
