"""A second server over the same state: nothing that was acknowledged is lost, nothing is stuck."""

import gc
import os

import trio
import trio.testing
from tasks_household import household

from tasks.drivers.base import Exit


def test_running_ended_and_waiting_tasks_are_found_again(tmp_path):
    async def main():
        async with household(tmp_path) as node:
            running = await node.started("alias runner", "label team=x")
            ended = await node.started()
            lost = await node.started()
            paused = await node.started()
            await node.echo("pause", f"/task/{paused}/ctl")
            over = await node.started()
            node.driver.finish(over, 4)
            waiting = await node.new("cmd /bin/b", f"after {running}", "start")
            plain = await node.new("cmd /bin/c 'x y'")
            await node.echo("K=v", f"/task/{plain}/env")
            await node.echo("bind /tmp /work", f"/task/{plain}/ns/ctl")
            node.driver.write(running, 1, b"so far\n")
            dump = await node.cat(f"/task/{plain}/ns/dump")
            old = node.driver
        old.tasks[ended].exit = Exit(9, "exited")
        del old.tasks[lost]
        async with household(tmp_path, old) as node:
            assert await node.cat("/task/runner/id") == f"{running}\n"
            assert await node.cat(f"/task/{running}/status") == "running\n"
            assert await node.cat(f"/task/{running}/labels") == "team=x\n"
            assert await node.cat(f"/task/{paused}/status") == "stopped\n"
            assert await node.cat(f"/task/{ended}/wait") == "9\n"
            assert await node.cat(f"/task/{over}/wait") == "4\n"
            assert await node.cat(f"/task/{lost}/wait") == "137\n"
            assert await node.cat(f"/task/{lost}/reason") == "supervisor lost\n"
            assert await node.cat(f"/task/{plain}/cmd") == "/bin/c 'x y'\n"
            assert await node.cat(f"/task/{plain}/env") == "K=v\n"
            assert await node.cat(f"/task/{plain}/ns/dump") == dump
            assert await node.cat(f"/task/{waiting}/status") == "allocated\n"
            node.driver.write(running, 1, b"and on\n")
            node.driver.finish(running, 0)
            assert await node.cat(f"/task/{running}/fd/1") == "so far\nand on\n"
            assert await node.cat(f"/task/{running}/wait") == "0\n"
            await trio.testing.wait_all_tasks_blocked()
            assert await node.cat(f"/task/{waiting}/status") == "running\n"
            assert int(await node.new()) > int(plain)

    trio.run(main)


def test_a_task_whose_start_was_under_way_is_found_running(tmp_path):
    async def main():
        async with household(tmp_path) as node:
            id = await node.new("cmd /bin/a")
            await node.echo("start", f"/task/{id}/ctl")
            node.service.journal._db.execute("DELETE FROM journal WHERE kind = 'started'")
            old = node.driver
        async with household(tmp_path, old) as node:
            assert await node.cat(f"/task/{id}/status") == "running\n"
            node.driver.finish(id, 2)
            assert await node.cat(f"/task/{id}/wait") == "2\n"

    trio.run(main)


def test_capabilities_come_back_and_say_what_they_lost(tmp_path):
    async def main():
        async with household(tmp_path) as node:
            mem = (await node.cat("/cap/new/mem")).strip()
            gone = (await node.cat("/cap/new/pipe")).strip()
            await node.echo("remove", f"/cap/{gone}/ctl")
        async with household(tmp_path) as node:
            assert await node.ls("/cap") == ["new", mem]
            assert (await node.cat(f"/cap/{mem}/ctl")).startswith("# error: what was in it was lost")
            assert int(await node.cat("/cap/new/mem")) > int(gone)

    trio.run(main)


def test_a_damaged_journal_row_is_passed_over(tmp_path):
    async def main():
        async with household(tmp_path) as node:
            one, two = await node.new("cmd a"), await node.new("cmd b")
            node.service.journal._db.execute("UPDATE journal SET state = '{' WHERE task = ? AND seq > 2", (int(one),))
        async with household(tmp_path) as node:
            assert await node.cat(f"/task/{two}/cmd") == "b\n"
            assert one in await node.ls("/task")

    trio.run(main)


def test_nothing_is_kept_open_between_servers(tmp_path):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))

    async def main():
        async with household(tmp_path) as node:
            await node.started()

    for _ in range(3):
        trio.run(main)
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 3
