"""A task's namespace files and the capabilities bound into it."""

from errno import EBUSY, EINVAL, ENOENT, EPERM

from tasks_household import refused, run

from vfs.node import ROOT
from vfs.walk import walk


def test_the_seeds_namespace_lines(tmp_path):
    async def test(node):
        (tmp_path / "state/tmp/custom").mkdir()
        (tmp_path / "state/tmp/custom/file").write_text("seen\n")
        id = await node.new()
        await node.echo("unbind /dev", f"/task/{id}/ns/ctl")
        await node.echo("bind /tmp/custom /mnt", f"/task/{id}/ns/ctl")
        assert sorted(await node.ls(f"/task/{id}/ns/root")) == ["cap", "home", "mnt", "sessions", "srv", "task", "tmp"]
        assert await node.cat(f"/task/{id}/ns/root/mnt/file") == "seen\n"
        assert await node.cat("/mnt/file", task=id) == "seen\n"
        await refused(ENOENT, node.cat("/mnt/file"))
        await refused(ENOENT, node.echo("unbind /nothing", f"/task/{id}/ns/ctl"))
        await refused(ENOENT, node.echo("bind /no/such /mnt", f"/task/{id}/ns/ctl"))
        await refused(EINVAL, node.echo("bind /tmp/custom/file /mnt", f"/task/{id}/ns/ctl"))
        await refused(EINVAL, node.echo("bind -x /tmp /mnt", f"/task/{id}/ns/ctl"))
        await refused(EINVAL, node.echo("bind /tmp", f"/task/{id}/ns/ctl"))
        assert "/mnt '#tmp/custom' -" in await node.cat(
            f"/task/{id}/ns/mounts"
        ) or "/mnt #tmp/custom -" in await node.cat(f"/task/{id}/ns/mounts")

    run(tmp_path, test)


def test_a_dump_written_to_another_task_reproduces_the_namespace(tmp_path):
    async def test(node):
        (tmp_path / "state/tmp/a b").mkdir()
        one, two = await node.new(), await node.new()
        await node.echo("bind -r '/tmp/a b' /data\nunbind /srv\nbind -a -c /tmp /data", f"/task/{one}/ns/ctl")
        dump = await node.cat(f"/task/{one}/ns/dump")
        await node.echo(dump, f"/task/{two}/ns/ctl")
        assert await node.cat(f"/task/{two}/ns/dump") == dump
        assert await node.ls(f"/task/{two}/ns/root/data") == ["a b"]

    run(tmp_path, test)


def test_a_child_inherits_a_copy_that_goes_its_own_way(tmp_path):
    async def test(node):
        parent = await node.new()
        await node.echo("bind /tmp /work", f"/task/{parent}/ns/ctl")
        child = await node.new(task=parent)
        await node.echo("unbind /work", f"/task/{parent}/ns/ctl")
        assert "work" in await node.ls("/", task=child)
        assert "work" not in await node.ls("/", task=parent)
        await refused(EPERM, node.echo("bind #host/etc /x", f"/task/{child}/ns/ctl", task=parent))
        assert await node.cat("/task/self/id", task=child) == f"{child}\n"

    run(tmp_path, test)


def test_share_is_live_and_copy_is_not(tmp_path):
    async def test(node):
        one, two, three = [await node.new() for _ in range(3)]
        await node.echo(f"share {one}", f"/task/{two}/ns/ctl")
        await node.echo(f"copy {one}", f"/task/{three}/ns/ctl")
        await node.echo("bind /tmp /late", f"/task/{one}/ns/ctl")
        assert "late" in await node.ls("/", task=two)
        assert "late" not in await node.ls("/", task=three)
        await node.echo("clean", f"/task/{two}/ns/ctl")
        assert await node.ls("/", task=two) == []
        assert "late" in await node.ls("/", task=one)
        await refused(EINVAL, node.echo("share 99", f"/task/{one}/ns/ctl"))
        await node.echo("cmd x\nstart", f"/task/{one}/ctl")
        await refused(EBUSY, node.echo("clean", f"/task/{one}/ns/ctl"))

    run(tmp_path, test)


def test_a_namespace_inside_a_namespace_ends(tmp_path):
    async def test(node):
        id = await node.new()
        inner = await walk(node.root(), f"/task/{id}/ns/root/task/{id}/ns/root", ROOT)
        assert (await inner.stat()).st_mode & 0o777 == 0
        assert await inner.readdir(ROOT) == []
        assert "task" in await node.ls("/task/self/ns/root", task=id)

    run(tmp_path, test)


def test_capabilities_are_made_seen_and_removed(tmp_path):
    async def test(node):
        task = await node.new()
        mem = (await node.cat("/cap/new/mem")).strip()
        mine = (await node.cat("/cap/new/mem", task=task)).strip()
        assert await node.ls("/cap") == ["new", mem, mine]
        assert await node.ls("/cap", task=task) == ["new", mine]
        assert await node.cat(f"/cap/{mem}/type") == "mem\n"
        await node.echo(f"bind -c /cap/{mem}/mount /scratch", f"/task/{task}/ns/ctl")
        root = await walk(node.root(task), "/scratch", ROOT)
        made, handle = await root.create("note", 1, 0o644, ROOT)
        await handle.write(b"kept", 0)
        handle.close()
        assert await node.cat(f"/cap/{mem}/mount/note") == "kept"
        await refused(ENOENT, node.ls(f"/cap/{mem}", task=task))
        await node.echo("remove", f"/cap/{mem}/ctl")
        await refused(ENOENT, node.ls(f"/cap/{mem}"))
        assert await node.cat("/scratch/note", task=task) == "kept"
        await refused(ENOENT, node.cat("/cap/new/nosuch"))
        assert (await made.stat()).st_size == 4

    run(tmp_path, test)


def test_a_tar_capability_shows_an_archive(tmp_path):
    import tarfile

    async def test(node):
        (tmp_path / "hello").write_text("packed\n")
        with tarfile.open(tmp_path / "state/tmp/x.tar", "w") as tar:
            tar.add(tmp_path / "hello", "dir/hello")
        cap = (await node.cat("/cap/new/tar")).strip()
        await refused(ENOENT, node.echo("open /tmp/none.tar", f"/cap/{cap}/ctl"))
        await node.echo("open /tmp/x.tar", f"/cap/{cap}/ctl")
        assert await node.cat(f"/cap/{cap}/mount/dir/hello") == "packed\n"
        await refused(EBUSY, node.echo("open /tmp/x.tar", f"/cap/{cap}/ctl"))

    run(tmp_path, test)


def test_a_removed_tasks_capabilities_go_with_it(tmp_path):
    async def test(node):
        task = await node.new("cmd x")
        await node.cat("/cap/new/pipe", task=task)
        await node.echo("remove", f"/task/{task}/ctl")
        assert await node.ls("/cap") == ["new"]

    run(tmp_path, test)


def test_posts_hold_addresses(tmp_path):
    async def test(node):
        srv = await walk(node.root(), "/srv", ROOT)
        _, handle = await srv.create("mine", 1, 0o600, ROOT)
        await handle.write(b"unix!/run/x\n", 0)
        await refused(EINVAL, handle.write(b"nonsense!\n", 0))
        assert await node.cat("/srv/mine") == "unix!/run/x\n"
        await srv.unlink("mine", ROOT)
        assert await node.ls("/srv") == []

    run(tmp_path, test)
