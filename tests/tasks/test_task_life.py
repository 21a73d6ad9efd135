"""The life of a task through its files: made, configured, started, watched, ended, forgotten."""

import json
import signal
from errno import EACCES, EAGAIN, EBUSY, EDEADLK, EEXIST, EINVAL, ENOENT, ENOTSUP, EPERM, ESRCH

import pytest
import trio
import trio.testing
from tasks_household import household, refused, run

from vfs.node import Caller
from vfs.walk import open_path


def test_a_task_runs_and_its_code_is_there_for_everyone(tmp_path):
    async def test(node):
        id = await node.new("cmd /bin/echo 'a b' c")
        assert await node.cat(f"/task/{id}/status") == "allocated\n"
        assert await node.cat(f"/task/{id}/args") == "/bin/echo\na b\nc\n"
        assert await node.cat(f"/task/{id}/cmd") == "/bin/echo 'a b' c\n"
        await node.echo("start", f"/task/{id}/ctl")
        assert await node.cat(f"/task/{id}/status") == "running\n"
        assert await node.cat(f"/task/{id}/exitcode") == ""
        assert node.driver.tasks[id].launch.argv == ("/bin/echo", "a b", "c")
        codes = []

        async def waiter():
            codes.append(await node.cat(f"/task/{id}/wait"))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            assert codes == []
            node.driver.finish(id, 3)
        assert codes == ["3\n"] * 10
        assert await node.cat(f"/task/{id}/wait") == "3\n"
        assert await node.cat(f"/task/{id}/exitcode") == "3\n"
        assert await node.cat(f"/task/{id}/status") == "exited\n"
        assert await node.cat(f"/task/{id}/reason") == "exited\n"

    run(tmp_path, test)


def test_listing_and_stat_allocate_nothing(tmp_path):
    async def test(node):
        for _ in range(3):
            assert await node.ls("/task") == ["new", "wait", "events"]
        _, handle = await open_path(node.root(), "/task/new", 0, Caller(0, 0))
        assert [await handle.read(10, 0), await handle.read(10, 0)] == [b"1\n", b"1\n"]
        assert await node.ls("/task") == ["new", "wait", "events", "1"]

    run(tmp_path, test)


def test_the_tree_lists_in_its_declared_order(tmp_path):
    async def test(node):
        id = await node.new()
        assert await node.ls(f"/task/{id}") == [
            "ctl",
            "id",
            "parent",
            "type",
            "user",
            "error",
            "reason",
            "times",
            "labels",
            "children",
            "cmd",
            "args",
            "cwd",
            "env",
            "status",
            "wait",
            "exitcode",
            "fd",
            "ns",
            "stat",
            "home",
            "events",
            "console",
        ]
        assert await node.ls(f"/task/{id}/fd") == ["ctl", "0", "0ctl", "1", "1ctl", "2", "2ctl"]
        assert await node.ls(f"/task/{id}/ns") == ["ctl", "mounts", "binds", "dump", "root"]
        assert await node.ls(f"/task/{id}/stat") == ["mem", "cpu", "io", "pids"]

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("line", "errno"),
    [
        ("start", EINVAL),
        ("nope", EINVAL),
        ("cmd", EINVAL),
        ("start now", EINVAL),
        ("kill 9", ESRCH),
        ("kill", EINVAL),
        ("kill 0", EINVAL),
        ("kill 65", EINVAL),
        ("kill NOSUCH", EINVAL),
        ("kill 99999999999999999999", EINVAL),
        ("pause", ESRCH),
        ("resume", ESRCH),
        ("memlimit lots", EINVAL),
        ("memlimit -1", EINVAL),
        ("memlimit 0", EINVAL),
        ("memlimit 1e9", EINVAL),
        ("nice 20", EINVAL),
        ("nice x", EINVAL),
        ("cpulimit 0", EINVAL),
        ("cpulimit nan", EINVAL),
        ("pidlimit 0", EINVAL),
        ("timeout -1", EINVAL),
        ("timeout inf", EINVAL),
        ("alias 12", EINVAL),
        ("alias new", EINVAL),
        ("alias a/b", EINVAL),
        ("alias ..", EINVAL),
        ("alias 'a\nb'", EINVAL),
        ("label x", EINVAL),
        ("label =x", EINVAL),
        ("after 999", EINVAL),
        ("restart sometimes", EINVAL),
        ("restart on-failure 0", EINVAL),
        ("user no-such-user", EINVAL),
        ("net allow", EINVAL),
        ("net allow x:0", EINVAL),
        ("net maybe", EINVAL),
        ("type plan9", EINVAL),
        ("pty 0x0", EINVAL),
        ("pty big", EINVAL),
        ("quota many", EINVAL),
        ("checkpoint", ESRCH),
        ("restore /x", ENOTSUP),
        ("cmd 'unclosed", EINVAL),
        ("cmd a\0b", EINVAL),
        ("\x01\x02\x7f", EINVAL),
    ],
)
def test_bad_words_have_their_errno_and_change_nothing(tmp_path, line, errno):
    async def test(node):
        id = await node.new()
        task = node.service.tasks[int(id)]
        before = (task.spec, task.state, task.alias, node.service.journal.last_seq)
        await refused(errno, node.echo(line, f"/task/{id}/ctl"))
        assert (task.spec, task.state, task.alias, node.service.journal.last_seq) == before
        assert (await node.cat(f"/task/{id}/ctl")).startswith("# error: ")
        assert await node.cat(f"/task/{id}/error") != ""
        await node.echo("cmd /bin/true", f"/task/{id}/ctl")
        assert await node.cat(f"/task/{id}/error") == ""

    run(tmp_path, test)


def test_a_started_task_is_busy(tmp_path):
    async def test(node):
        id = await node.started()
        for line in ("start", "cmd x", "type linux", "pty", "after 1", "restart no", "remove"):
            await refused(EINVAL if line == "after 1" else EBUSY, node.echo(line, f"/task/{id}/ctl"))
        await refused(EBUSY, node.echo("/x", f"/task/{id}/cwd"))
        await refused(EBUSY, node.echo("A=1", f"/task/{id}/env"))
        await refused(EBUSY, node.echo("dup /tmp/x", f"/task/{id}/fd/1ctl"))
        node.driver.finish(id, 0)
        await refused(EBUSY, node.echo("start", f"/task/{id}/ctl"))
        await refused(ESRCH, node.echo("kill 9", f"/task/{id}/ctl"))

    run(tmp_path, test)


def test_a_program_that_cannot_be_run_refuses_start_and_may_be_mended(tmp_path):
    async def test(node):
        node.driver.refuse(ENOENT)
        id = await node.new("cmd /no/such")
        await refused(ENOENT, node.echo("start", f"/task/{id}/ctl"))
        assert await node.cat(f"/task/{id}/status") == "allocated\n"
        assert "/no/such" in await node.cat(f"/task/{id}/error")
        await node.echo("cmd /bin/true\nstart", f"/task/{id}/ctl")
        assert await node.cat(f"/task/{id}/status") == "running\n"

    run(tmp_path, test)


def test_a_task_that_ends_before_its_start_has_answered_is_exited(tmp_path):
    async def test(node):
        node.driver.exit_early(7)
        id = await node.started()
        assert await node.cat(f"/task/{id}/wait") == "7\n"
        assert await node.cat(f"/task/{id}/status") == "exited\n"

    run(tmp_path, test)


def test_a_writer_that_gives_up_on_start_leaves_it_going(tmp_path):
    async def test(node):
        gate = node.driver.hold_starts()
        id = await node.new("cmd /bin/true")
        with trio.move_on_after(0.01) as scope:
            await node.echo("start", f"/task/{id}/ctl")
        assert scope.cancelled_caught
        await refused(EBUSY, node.echo("start", f"/task/{id}/ctl"))
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await node.cat(f"/task/{id}/status") == "running\n"

    run(tmp_path, test)


def test_kill_pause_and_resume_reach_the_driver(tmp_path):
    async def test(node):
        id = await node.started()
        await node.echo("pause", f"/task/{id}/ctl")
        assert await node.cat(f"/task/{id}/status") == "stopped\n"
        await refused(EBUSY, node.echo("pause", f"/task/{id}/ctl"))
        await node.echo("resume", f"/task/{id}/ctl")
        await refused(EBUSY, node.echo("resume", f"/task/{id}/ctl"))
        await node.echo("kill TERM", f"/task/{id}/ctl")
        assert node.driver.tasks[id].signals == [signal.SIGTERM]
        assert await node.cat(f"/task/{id}/wait") == "143\n"
        assert await node.cat(f"/task/{id}/reason") == "signal 15\n"

    run(tmp_path, test)


def test_env_merges_and_removes(tmp_path):
    async def test(node):
        id = await node.new()
        env = f"/task/{id}/env"
        await node.echo("PATH=/bin:/usr/bin", env)
        await node.echo("HOME=/home/user", env)
        assert await node.cat(env) == "HOME=/home/user\nPATH=/bin:/usr/bin\n"
        await node.echo(b"A=x y = 'z'\nB=\n-HOME", env)
        assert await node.cat(env) == "A=x y = 'z'\nB=\nPATH=/bin:/usr/bin\n"
        for bad in ("no equals", "1A=2", "-", "=x", "A-B=c"):
            await refused(EINVAL, node.echo(bad, env))
        await node.echo("clear", env)
        assert await node.cat(env) == ""

    run(tmp_path, test)


def test_arguments_are_exact(tmp_path):
    async def test(node):
        id = await node.new()
        args = f"/task/{id}/args"
        await node.echo(b"/bin/x\n two words \n\nlast\n", args)
        assert node.service.tasks[int(id)].spec.argv == ("/bin/x", " two words ", "", "last")
        await node.echo(b"/bin/x\0a\nb\0", args)
        assert node.service.tasks[int(id)].spec.argv == ("/bin/x", "a\nb")
        assert await node.cat(args) == "/bin/x\0a\nb\0"

    run(tmp_path, test)


def test_children_inherit_and_see_only_their_own(tmp_path):
    async def test(node):
        parent = await node.new("cmd /bin/sh", "memlimit 64M")
        await node.echo("A=1", f"/task/{parent}/env")
        await node.echo("/tmp", f"/task/{parent}/cwd")
        await node.echo("start", f"/task/{parent}/ctl")
        sibling = await node.started()
        child = await node.new("cmd /bin/true", task=parent)
        assert await node.cat(f"/task/{child}/env", task=parent) == "A=1\n"
        assert await node.cat(f"/task/{child}/cwd", task=parent) == "/tmp\n"
        assert await node.cat(f"/task/{child}/parent", task=parent) == f"{parent}\n"
        assert await node.cat(f"/task/{child}/user") == await node.cat(f"/task/{parent}/user")
        assert await node.ls("/task", task=parent) == ["new", "self", "wait", "events", parent, child]
        assert await node.ls(f"/task/{parent}/children") == [child]
        assert await node.cat("/task/self/id", task=parent) == f"{parent}\n"
        await refused(ENOENT, node.cat(f"/task/{sibling}/status", task=parent))
        await refused(ENOENT, node.ls(f"/task/{parent}", task=child))
        await refused(EPERM, node.echo("memlimit 128M", f"/task/{child}/ctl", task=parent))
        await node.echo("memlimit 32M", f"/task/{child}/ctl", task=parent)
        await refused(EPERM, node.echo("net host", f"/task/{child}/ctl", task=parent))
        await refused(EPERM, node.echo("user root", f"/task/{child}/ctl", task=parent))
        await refused(EPERM, node.echo("nice -5", f"/task/{child}/ctl", task=parent))
        await refused(EPERM, node.echo("memlimit 33M", "/task/self/ctl", task=child))

    run(tmp_path, test)


def test_children_of_an_exited_task_pass_to_its_nearest_living_ancestor(tmp_path):
    async def test(node):
        top = await node.started()
        middle = await node.started(task=top)
        bottom = await node.started("alias low", task=middle)
        node.driver.finish(middle, 0)
        assert await node.cat(f"/task/{bottom}/parent") == f"{top}\n"
        assert await node.cat("/task/low/status", task=top) == "running\n"
        node.driver.finish(top, 0)
        assert await node.cat(f"/task/{bottom}/parent") == ""

    run(tmp_path, test)


def test_aliases_belong_to_the_parent(tmp_path):
    async def test(node):
        one, two = await node.new("alias build"), await node.new()
        assert await node.cat("/task/build/id") == f"{one}\n"
        await refused(EEXIST, node.echo("alias build", f"/task/{two}/ctl"))
        await node.echo("alias other", f"/task/{one}/ctl")
        await refused(ENOENT, node.cat("/task/build/id"))
        await node.echo("alias build", f"/task/{two}/ctl")
        assert await node.cat("/task/build/id") == f"{two}\n"

    run(tmp_path, test)


def test_after_starts_in_order_and_refuses_circles(tmp_path):
    async def test(node):
        first = await node.started()
        second = await node.started(f"after {first}")
        third = await node.new("cmd /bin/true", f"after {first} {second}", "start")
        assert await node.cat(f"/task/{second}/status") == "allocated\n"
        assert second not in node.driver.tasks
        node.driver.finish(first, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert await node.cat(f"/task/{second}/status") == "running\n"
        assert third not in node.driver.tasks
        node.driver.finish(second, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert await node.cat(f"/task/{third}/status") == "running\n"
        a, b = await node.new("cmd x"), await node.new("cmd x")
        await node.echo(f"after {b}", f"/task/{a}/ctl")
        await node.echo(f"after {a}", f"/task/{b}/ctl")
        await refused(EDEADLK, node.echo("start", f"/task/{a}/ctl"))
        await refused(EINVAL, node.echo(f"after {a}", f"/task/{a}/ctl"))

    run(tmp_path, test)


def test_a_waiting_task_can_be_cancelled_and_one_that_then_fails_says_why(tmp_path):
    async def test(node):
        first = await node.started()
        second = await node.new("cmd x", f"after {first}", "start")
        third = await node.new("cmd x", f"after {first}", "start")
        await node.echo("kill INT", f"/task/{second}/ctl")
        assert await node.cat(f"/task/{second}/wait") == "130\n"
        node.driver.refuse(ENOENT)
        node.driver.finish(first, 0)
        assert await node.cat(f"/task/{third}/wait") == "126\n"
        assert "could not start" in await node.cat(f"/task/{third}/reason")

    run(tmp_path, test)


def test_restart_on_failure_counts_down(tmp_path):
    async def test(node):
        id = await node.started("restart on-failure 2")
        for _ in range(2):
            node.driver.finish(id, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert await node.cat(f"/task/{id}/status") == "running\n"
        node.driver.finish(id, 1)
        assert await node.cat(f"/task/{id}/wait") == "1\n"
        kinds = [json.loads(line)["event"] for line in (await node.cat(f"/task/{id}/events")).splitlines()]
        assert kinds.count("restarted") == 2

    run(tmp_path, test)


def test_wait_of_the_parent_gives_each_exit_once(tmp_path):
    async def test(node):
        ids = [await node.started() for _ in range(3)]
        got = []

        async def waiter():
            got.append(await node.cat("/task/wait"))

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            node.driver.finish(ids[1], 5)
            node.driver.finish(ids[0], 0)
        assert sorted(got) == sorted([f"{ids[1]} 5\n", f"{ids[0]} 0\n"])
        node.driver.finish(ids[2], 9)
        assert await node.cat(f"/task/{ids[2]}/wait") == "9\n"
        _, handle = await open_path(node.root(), "/task/wait", 0, Caller(0, 0))
        await refused(EAGAIN, handle.read(100, 0, True))

    run(tmp_path, test)


def test_events_follow_from_now_or_from_a_number(tmp_path):
    async def test(node):
        id = await node.new()
        _, handle = await open_path(node.root(), "/task/events", 2, Caller(0, 0))
        await refused(EAGAIN, handle.read(4096, 0, True))
        lines = []

        async def reader():
            lines.append(json.loads(await handle.read(4096, 0)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            await node.echo("cmd x", f"/task/{id}/ctl")
        assert (lines[0]["task"], lines[0]["event"], lines[0]["what"]) == (id, "configured", "cmd")
        await handle.write(b"since 0\n", 0)
        assert [json.loads(line)["seq"] for line in bytes(await handle.read(4096, 0)).splitlines()] == [1, 2]
        await refused(EINVAL, handle.write(b"since never\n", 0))

    run(tmp_path, test)


def test_timeout_terms_then_kills(tmp_path):
    async def main():
        async with household(tmp_path) as node:
            id = await node.started("timeout 30")
            node.driver.kills_lost = 1
            assert await node.cat(f"/task/{id}/wait") == "137\n"
            assert await node.cat(f"/task/{id}/reason") == "timed out after 30 s\n"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_never_used_tasks_and_old_exited_ones_are_reaped(tmp_path):
    async def test(node):
        unused, used = await node.new(), await node.new("cmd x")
        done = await node.started()
        node.driver.finish(done, 0)
        now = node.service.tasks[int(unused)].times.created
        node.service.reap(now + 99)
        assert await node.ls("/task") == ["new", "wait", "events", unused, used, done]
        node.service.reap(now + 101)
        assert await node.ls("/task") == ["new", "wait", "events", used, done]
        node.service.reap(now + 3600 * 24 + 60)
        assert await node.ls("/task") == ["new", "wait", "events", used]
        assert not (tmp_path / "state/homes" / unused).exists()
        assert not (tmp_path / "state/spools" / done).exists()

    run(tmp_path, test, grace_seconds=100)


def test_only_so_many_exited_tasks_are_kept(tmp_path):
    async def test(node):
        ids = [await node.started() for _ in range(4)]
        for id in ids:
            node.driver.finish(id, 0)
        assert await node.ls("/task") == ["new", "wait", "events", *ids[2:]]

    run(tmp_path, test, keep_tasks=2)


def test_remove_forgets_everything(tmp_path):
    async def test(node):
        id = await node.started()
        await refused(EBUSY, node.echo("remove", f"/task/{id}/ctl"))
        node.driver.finish(id, 0)
        await node.echo("remove", f"/task/{id}/ctl")
        await refused(ENOENT, node.cat(f"/task/{id}/status"))
        assert node.driver.forgotten == [id]
        assert node.service.journal.since(0, int(id)) == []

    run(tmp_path, test)


def test_lost_supervisor_ends_its_tasks(tmp_path):
    async def test(node):
        id = await node.started()
        node.driver.lose()
        assert await node.cat(f"/task/{id}/wait") == "137\n"
        assert await node.cat(f"/task/{id}/reason") == "supervisor lost\n"

    run(tmp_path, test)


def test_out_of_memory_is_told(tmp_path):
    async def test(node):
        id = await node.started("memlimit 10M")
        node.driver.out_of_memory(id)
        assert await node.cat(f"/task/{id}/error") == "out of memory\n"
        assert await node.cat(f"/task/{id}/status") == "running\n", "it may have been one process of many"
        node.driver.finish(id, 137, "out of memory")
        assert await node.cat(f"/task/{id}/reason") == "out of memory\n"
        assert '"event": "oom"' in await node.cat(f"/task/{id}/events")

    run(tmp_path, test)


def test_another_user_acts_as_itself_even_through_the_administrators_tree(tmp_path):
    async def test(node):
        id = await node.new()
        task = node.service.tasks[int(id)]
        user = Caller(task.uid, task.gid)
        stranger = Caller(task.uid + 1, task.gid + 1)
        await refused(EACCES, node.cat(f"/task/{id}/status", who=stranger))
        await refused(EACCES, node.cat("/task/new", who=stranger))
        await node.echo("cmd /bin/true", f"/task/{id}/ctl", who=user)
        await refused(EPERM, node.echo("net host", f"/task/{id}/ctl", who=user))
        await refused(EPERM, node.echo("user root", f"/task/{id}/ctl", who=user))
        await refused(EPERM, node.echo("bind #host/etc /x", f"/task/{id}/ns/ctl", who=user))

    run(tmp_path, test)
