"""A node whose sessions' tasks are fake, for tests of what sessions do: every output and end comes from the test."""

import os
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tasks.drivers.fake import FakeDriver
from tasks.drivers.linux.roots import Roots
from tasks.ports import NoVault
from tasks.sessions.policy import Policy
from wanixfs.config import Config
from wanixfs.house import House
from wanixfs.program import opened

HERE = Path(__file__).parent
SCRIPT = f"""
-bind -r #host/usr /usr
-bind -r #host/bin /bin
-bind -r #host/lib /lib
-bind -r #host/lib64 /lib64
bind -r #host{HERE} {HERE}
"""
SECONDS = 60


class Node:
    """A node in this process, and the shorthands of these tests."""

    def __init__(self, house, driver):
        self.house = house
        self.driver = driver
        self.sessions = house.sessions
        self.chronicle = house.sessions.chronicle

    async def until(self, holds):
        """Wait until `holds()`: whatever is shown is told of when it changes."""
        with trio.fail_after(SECONDS):
            while not holds():
                await self.chronicle.changed.wait()

    async def started(self, count):
        """Wait until that many tasks were ever started; return the last."""
        with trio.fail_after(SECONDS):
            while len(self.driver.tasks) + len(self.driver.forgotten) < count:
                await self.house.service.changes.wait()
            return max(self.driver.tasks, key=int)

    async def ended(self, turn):
        await self.until(lambda: self.sessions.turn(turn.id).state.ended)
        return self.sessions.turn(turn.id)

    def kinds(self, session):
        return [row.kind for row in self.chronicle.since(0, session, 10_000)]


def config_of(tmp_path, policy, text=SCRIPT):
    script = tmp_path / "init.ns"
    script.write_text(text)
    state = tmp_path / "state"
    state.mkdir(mode=0o711, exist_ok=True)
    return Config(state=state, listen=("unix!/nowhere",), namespace=script, sessions=Policy(**policy))


@asynccontextmanager
async def node(tmp_path, survivor=None, *, script=SCRIPT, **policy):
    """Open a node over `tmp_path`; opened again there with the driver that survived, it is the next server."""
    async with trio.open_nursery() as nursery:
        house = House(config_of(tmp_path, policy, script), nursery)
        driver = FakeDriver(house.service, survivor)
        await house.open({"linux": driver}, NoVault())
        await nursery.start(house.service.run)
        await nursery.start(house.sessions.run)
        yield Node(house, driver)
        house.sessions.halt()
        nursery.cancel_scope.cancel()
    house.close()


@asynccontextmanager
async def linux_node(tmp_path, *, leave=False, **policy):
    """Open a node whose tasks are real; `leave` leaves them to the next one over the same `tmp_path`."""
    config = config_of(tmp_path, policy)
    async with opened(config) as (house, driver), trio.open_nursery() as nursery:
        if os.geteuid() == 0:
            driver.roots = Roots(devices={"host": Path("/"), "home": config.state / "homes"})
        try:
            await nursery.start(house.sessions.run)
            yield Node(house, driver)
        except BaseException:
            leave = False
            raise
        finally:
            house.sessions.halt()
            if not leave:
                with trio.move_on_after(20, shield=True):
                    await driver.quit()


def run(test, tmp_path, **policy):
    """Run the coroutine function `test` with a node of its own."""

    async def main():
        async with node(tmp_path, **policy) as one:
            await test(one)

    trio.run(main)
