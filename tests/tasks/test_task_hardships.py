"""What goes wrong around tasks: files open past a removal, full disks, homes too deep, servers that come back."""

import os
import time
from dataclasses import replace
from errno import EAGAIN, EBUSY, EDQUOT, ENOENT, ENOSPC, EPERM

import pytest
import trio
import trio.testing
from tasks_household import household, refused, run

from tasks import caps
from tasks.homes import Homes
from tasks.store import Journal
from vfs.node import ROOT
from vfs.walk import open_path


async def errno_of(awaitable):
    with pytest.raises(OSError) as info:
        await awaitable
    return info.value.errno


def test_removal_releases_whoever_waits_for_the_task(tmp_path):
    async def test(node):
        id = await node.new("cmd /bin/true")
        ended = []

        async def waiter():
            ended.append(await errno_of(node.cat(f"/task/{id}/wait")))

        async def reader(name):
            await node.cat(f"/task/{id}/{name}")
            ended.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            nursery.start_soon(reader, "fd/1")
            nursery.start_soon(reader, "events")
            await trio.testing.wait_all_tasks_blocked()
            assert ended == []
            with trio.fail_after(5):
                await node.echo("remove", f"/task/{id}/ctl")
                while len(ended) < 3:
                    await trio.testing.wait_all_tasks_blocked()
        assert set(ended) == {ENOENT, "fd/1", "events"}

    run(tmp_path, test)


def test_a_removed_task_cannot_be_brought_back_through_an_open_file(tmp_path):
    async def test(node):
        id = await node.new("cmd /bin/true")
        _, ctl = await open_path(node.root(), f"/task/{id}/ctl", os.O_WRONLY, ROOT)
        await ctl.write(b"remove\n", 0)
        rows = node.service.journal.last_seq
        for line, errno in (
            (b"start", EBUSY),
            (b"cmd x", EBUSY),
            (b"timeout 1", EBUSY),
            (b"alias ghost", ENOENT),
            (b"label a=b", ENOENT),
            (b"remove", ENOENT),
        ):
            assert await errno_of(ctl.write(line + b"\n", 0)) == errno, line
        assert node.driver.tasks == {}
        assert node.service.journal.last_seq == rows
        assert await errno_of(node.cat("/task/ghost/id")) == ENOENT

    run(tmp_path, test)


def test_a_full_disk_ends_no_server_and_loses_no_end(tmp_path):
    async def main():
        async with household(tmp_path) as node:
            id = await node.started()
            journal = node.service.journal._db
            (pages,) = journal.execute("PRAGMA page_count").fetchone()
            journal.execute(f"PRAGMA max_page_count = {pages}")
            for n in range(100):  # more than fits
                await node.echo(f"label n=x{n}{'y' * 200}", f"/task/{id}/ctl")
            node.driver.finish(id, 7)
            assert await node.cat(f"/task/{id}/wait") == "7\n"
            journal.execute("PRAGMA max_page_count = 100000")
            await node.new()
            old = node.driver
        async with household(tmp_path, old) as node:
            assert await node.cat(f"/task/{id}/exitcode") == "7\n"
            assert (await node.cat(f"/task/{id}/labels")).startswith("n=x99")

    trio.run(main)


def test_a_counter_without_disk_says_so(tmp_path):
    journal = Journal(tmp_path / "j.db")
    journal._db.execute("PRAGMA query_only = 1")
    with pytest.raises(OSError) as info:
        journal.next("task")
    assert info.value.errno == ENOSPC
    journal._db.execute("PRAGMA query_only = 0")
    assert journal.next("task") == 1
    journal.close()


def test_a_home_of_any_depth_is_deleted(tmp_path):
    homes = Homes(tmp_path / "homes", first=os.getuid(), last=os.getuid(), privileged=False)
    user = homes.new(1)
    folder = os.open(homes.path(user), os.O_RDONLY)
    kept = tmp_path / "kept"
    kept.write_text("not in the home")
    for _ in range(1500):
        os.mkdir("d", dir_fd=folder)
        os.symlink(kept, "link", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    homes.remove(user.home)
    assert not homes.path(user).exists()
    homes.sweep()
    assert os.listdir(tmp_path / "homes" / "retired") == []
    assert kept.read_text() == "not in the home"


@pytest.mark.root
def test_a_uid_is_given_again_only_when_the_home_is_gone(tmp_path):
    homes = Homes(tmp_path / "homes", first=70001, last=70001, privileged=True)
    user = homes.new(1)
    homes.remove(user.home)
    with pytest.raises(OSError, match="every uid"):
        homes.new(2)
    homes.sweep()
    assert homes.new(2).uid == 70001


def test_output_of_ended_tasks_is_there_after_a_restart(tmp_path):
    async def main():
        async with household(tmp_path, spool_limit=4096) as node:
            id = await node.started()
            node.driver.write(id, 1, b"x" * 5000 + b"end\n")
            node.driver.write(id, 2, b"err\n")
            node.driver.finish(id, 0)
            before = await node.cat(f"/task/{id}/fd/1")
            assert len(before) == 4096
            old = node.driver
        async with household(tmp_path, old, spool_limit=4096) as node:
            with trio.fail_after(5):
                assert await node.cat(f"/task/{id}/fd/2") == "err\n"
                assert await node.cat(f"/task/{id}/fd/1") == before

    trio.run(main)


def test_what_a_running_task_had_dropped_is_known_after_a_restart(tmp_path):
    async def main():
        async with household(tmp_path, spool_limit=4096) as node:
            id = await node.started()
            node.driver.write(id, 1, b"x" * 5000)
            old = node.driver
        async with household(tmp_path, old, spool_limit=4096) as node:
            assert node.service.spool(node.service.tasks[int(id)], 1).start == 5000 - 4096

    trio.run(main)


def test_endless_output_does_not_fill_the_journal(tmp_path):
    async def test(node):
        id = await node.started()
        rows = node.service.journal.last_seq
        for _ in range(1000):
            node.driver.write(id, 1, b"x" * 4096)
        assert 5 < node.service.journal.last_seq - rows < 20

    run(tmp_path, test, spool_limit=4096)


def test_a_childs_namespace_is_its_parents_as_it_was_after_a_restart_too(tmp_path):
    async def main():
        async with household(tmp_path) as node:
            parent = await node.started()
            await node.echo("bind /tmp /work\nmask #tmp", f"/task/{parent}/ns/ctl")
            child = await node.new(task=parent)
            orphan = await node.new("cmd a", task=parent)
            await node.echo("bind /tmp /later", f"/task/{parent}/ns/ctl")
            dump = await node.cat(f"/task/{child}/ns/dump")
            old = node.driver
        async with household(tmp_path, old) as node:
            assert sorted((await node.cat(f"/task/{child}/ns/dump")).splitlines()) == sorted(dump.splitlines())
            assert "/work" in dump and "/later" not in dump
            node.driver.finish(parent, 0)
            await node.echo("remove", f"/task/{parent}/ctl")
            old = node.driver
        async with household(tmp_path, old) as node:
            assert "/work" in await node.cat(f"/task/{orphan}/ns/binds")

    trio.run(main)


def test_trimming_at_a_restart_lets_waiting_tasks_go_on(tmp_path):
    async def main():
        async with household(tmp_path, keep_tasks=2) as node:
            for _ in range(2):
                node.driver.finish(await node.started(), 0)
            first = await node.started()
            second = await node.new("cmd /bin/b", f"after {first}", "start")
            old = node.driver
        old.tasks.pop(first)
        async with household(tmp_path, old, keep_tasks=2) as node:
            await trio.testing.wait_all_tasks_blocked()
            assert await node.cat(f"/task/{second}/status") == "running\n"

    trio.run(main)


def test_a_restarted_task_writes_on_where_its_descriptors_point(tmp_path):
    async def test(node):
        id = await node.new("cmd /bin/a", "restart on-failure 1")
        await node.echo("file /tmp/out w", f"/task/{id}/fd/1ctl")
        await node.echo("start", f"/task/{id}/ctl")
        first = dict(node.driver.tasks[id].launch.fds)
        node.driver.finish(id, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert node.driver.tasks[id].launch.fds.keys() == first.keys() == {0, 1}
        assert 1 not in node.driver.tasks[id].launch.spools
        node.driver.finish(id, 1)
        assert await node.cat(f"/task/{id}/exitcode") == "1\n"

    run(tmp_path, test)


def test_a_reader_follows_a_task_over_its_restarts(tmp_path):
    async def test(node):
        id = await node.started("restart on-failure 1")
        read = []

        async def reader():
            read.append(await node.cat(f"/task/{id}/fd/1"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            node.driver.write(id, 1, b"one\n")
            node.driver.finish(id, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert read == []
            node.driver.finish(id, 0)
        assert read == ["one\n"]

    run(tmp_path, test)


def test_a_run_too_short_to_be_seen_starting_is_restarted_all_the_same(tmp_path):
    async def test(node):
        id = await node.new("cmd /bin/a", "restart on-failure 1")
        node.driver.exit_early(1)
        original = node.driver.start

        async def start_then_refuse(launch):
            pid = await original(launch)
            node.driver.refuse(ENOENT)
            return pid

        node.driver.start = start_then_refuse
        await node.echo("start", f"/task/{id}/ctl")
        with trio.fail_after(5):
            assert await node.cat(f"/task/{id}/wait") == "126\n"

    run(tmp_path, test)


def test_a_server_that_leaves_first_brings_its_starts_to_their_end(tmp_path):
    async def test(node):
        held = node.driver.hold_starts()
        id, late = await node.new("cmd /bin/a"), await node.new("cmd /bin/b")
        settled = trio.Event()

        async def settle():
            await node.service.settle()
            settled.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.echo, "start", f"/task/{id}/ctl")
            await node.driver.start_arrived()
            nursery.start_soon(settle)
            await trio.testing.wait_all_tasks_blocked()
            assert not settled.is_set()
            assert await errno_of(node.echo("start", f"/task/{late}/ctl")) == EAGAIN
            held.set()
            with trio.fail_after(5):
                await settled.wait()
        assert await node.cat(f"/task/{id}/status") == "running\n"

    run(tmp_path, test)


def test_task_cannot_use_up_what_is_everybodys(tmp_path):
    async def test(node):
        node.service.policy = replace(node.service.policy, tasks_of_user=4, descriptors_of_user=2)
        greedy, other = await node.started(), await node.started()
        for _ in range(3):
            await node.new(task=greedy)
        await refused(EDQUOT, node.cat("/task/new", task=greedy))
        child = await node.new(task=other)
        assert child in await node.ls("/task", task=other)
        for number in (3, 4):
            await node.echo(f"dup {number} /dev/null", f"/task/{child}/fd/ctl", task=other)
        await refused(EDQUOT, node.echo("dup 5 /dev/null", f"/task/{child}/fd/ctl", task=other))
        await node.echo("dup 5 /dev/null", f"/task/{child}/fd/ctl")
        await node.new()

    run(tmp_path, test)


def test_task_cannot_use_up_the_capabilities(tmp_path, monkeypatch):
    monkeypatch.setattr(caps, "MAX_CAPS_OF_USER", 2)

    async def test(node):
        greedy, other = await node.started(), await node.started()
        for _ in range(2):
            await node.cat("/cap/new/mem", task=greedy)
        await refused(EDQUOT, node.cat("/cap/new/mem", task=greedy))
        await node.cat("/cap/new/mem", task=other)
        for _ in range(3):
            await node.cat("/cap/new/mem")

    run(tmp_path, test)


def test_share_of_a_user_is_given_back_and_outlives_the_server(tmp_path):
    async def make(node):
        node.service.policy = replace(node.service.policy, tasks_of_user=3)
        greedy = await node.started()
        first = await node.new("cmd x", task=greedy)
        await node.new("cmd x", task=greedy)
        await refused(EDQUOT, node.cat("/task/new", task=greedy))
        await node.echo("remove", f"/task/{first}/ctl", task=greedy)
        await node.new("cmd x", task=greedy)
        assert sum(node.service.count_of.values()) == len(node.service.tasks) == 3
        return greedy

    async def main():
        async with household(tmp_path) as node:
            greedy = await make(node)
            await node.echo("user nobody", f"/task/{await node.new('cmd x')}/ctl")
            before, survivor = dict(node.service.count_of), node.driver
        async with household(tmp_path, survivor) as node:
            assert dict(node.service.count_of) == before
            node.service.policy = replace(node.service.policy, tasks_of_user=3)
            await refused(EDQUOT, node.cat("/task/new", task=greedy))

    trio.run(main)


def test_task_may_shorten_its_own_time_but_not_lengthen_it(tmp_path):
    async def main():
        async with household(tmp_path) as node:
            id = await node.started("timeout 30")
            ctl = f"/task/{id}/ctl"
            await refused(EPERM, node.echo("timeout 31", ctl, task=id))
            node.service.tasks[int(id)].times = replace(node.service.tasks[int(id)].times, started=time.time() - 20)
            await refused(EPERM, node.echo("timeout 15", ctl, task=id))
            await node.echo("timeout 5", ctl, task=id)
            await node.echo("timeout 50", ctl)
            assert 69.9 < node.service.tasks[int(id)].spec.timeout < 75, "counted from its start"

    trio.run(main)
