"""ns.tree: what a namespace looks like to whoever walks it."""

import os
import stat
from errno import EACCES, EBUSY, EEXIST, ELOOP, ENOENT, ENOTDIR, EPERM, EROFS, EXDEV

import pytest
import trio
from nskit import USER, Board, administrator, bind, everything, ls, member, planted, read, unbind, write

from ns.namespace import Namespace
from ns.table import EMPTY, Order
from ns.tree import MAX_NESTING
from vfs.host import HostTree
from vfs.node import ROOT, Handle, Node, SetStat, Stat
from vfs.walk import walk

AFTER, BEFORE = Order.AFTER, Order.BEFORE


def refuses(errno):
    return pytest.raises(OSError, match=rf"Errno {errno}\b")


def test_the_root_of_an_empty_namespace_is_an_empty_directory():
    ns = administrator()

    async def main():
        st = await ns.root.stat()
        assert stat.S_ISDIR(st.st_mode)
        assert await ls(ns) == []
        with refuses(ENOENT):
            await walk(ns.root, "/x", ROOT)
        with refuses(EPERM):
            await ns.root.mkdir("x", 0o755, ROOT)
        with refuses(EPERM):
            await ns.root.setstat(SetStat(mode=0), ROOT)

    trio.run(main)


def test_parents_of_a_bind_come_and_go_with_it():
    ns = administrator(x={"f": b"1"})

    async def main():
        await bind(ns, "#x", "/a/b/c")
        assert await everything(ns.root) == {"a": {"b": {"c": {"f": b"1"}}}}
        kept = await walk(ns.root, "/a/b", ROOT)
        await unbind(ns, "/a/b/c")
        assert await ls(ns) == []
        with refuses(ENOENT):
            await kept.stat()

    trio.run(main)


def test_the_first_member_that_has_a_name_wins_one_level_deep():
    ns = administrator(x={"d": {"x": b"x"}, "f": b"x"}, y={"d": {"y": b"y"}, "f": b"y", "g": b"y"})

    async def main():
        await bind(ns, "#x", "/u")
        await bind(ns, "#y", "/u", order=AFTER)
        assert await everything(await walk(ns.root, "/u", ROOT)) == {"d": {"x": b"x"}, "f": b"x", "g": b"y"}
        await bind(ns, "#y", "/u", order=BEFORE)
        assert await everything(await walk(ns.root, "/u", ROOT)) == {"d": {"y": b"y"}, "f": b"y", "g": b"y"}

    trio.run(main)


def test_binding_around_a_directory_of_a_tree_keeps_what_was_there():
    ns = administrator(h={"bin": {"ls": b"host"}}, x={"ls": b"mine", "new": b"1"})

    async def main():
        await bind(ns, "#h", "/h")
        await bind(ns, "#x", "/h/bin", order=AFTER)
        assert await everything(await walk(ns.root, "/h/bin", ROOT)) == {"ls": b"host", "new": b"1"}
        await bind(ns, "#x", "/h/bin", order=BEFORE)
        assert await read(ns, "/h/bin/ls") == b"mine"
        await unbind(ns, "/h/bin", "#x")
        assert await ls(ns, "/h/bin") == ["ls"]
        await unbind(ns, "/h/bin")
        assert await ls(ns, "/h/bin") == ["ls"]

    trio.run(main)


def test_a_bind_on_a_directory_of_a_tree_hides_it_until_unbound():
    ns = administrator(h={"d": {"old": b""}, "e": {}}, x={"new": b""})

    async def main():
        await bind(ns, "#h", "/h")
        before = await walk(ns.root, "/h", ROOT)
        await bind(ns, "#x", "/h/d")
        assert await everything(before) == {"d": {"new": b""}, "e": {}}
        await unbind(ns, "/h/d")
        assert await everything(before) == {"d": {"old": b""}, "e": {}}

    trio.run(main)


def test_mountpoints_show_through_a_tree_that_is_bound_above_them():
    ns = administrator(h={"f": b"h"}, x={"g": b"x"})

    async def main():
        await bind(ns, "#x", "/a/b/c")
        await bind(ns, "#h", "/a")
        assert await everything(ns.root) == {"a": {"f": b"h", "b": {"c": {"g": b"x"}}}}

    trio.run(main)


def test_new_files_of_a_union_go_to_the_first_member_that_takes_them():
    ns = administrator(x={}, y={}, z={})

    async def main():
        for device, how in (("#x", {}), ("#y", {"create": True}), ("#z", {"create": True})):
            await bind(ns, device, "/u", order=AFTER, **how)
        await write(ns, "/u/f", b"1")
        await (await walk(ns.root, "/u", ROOT)).mkdir("d", 0o755, ROOT)
        await write(ns, "/u/d/g", b"2")
        for device in "xyz":
            await bind(ns, f"#{device}", f"/{device}")
        assert await ls(ns, "/x") == await ls(ns, "/z") == []
        assert await everything(await walk(ns.root, "/y", ROOT)) == {"f": b"1", "d": {"g": b"2"}}

    trio.run(main)


def test_a_union_without_a_member_that_takes_them_refuses_new_files_but_not_changes():
    ns = administrator(x={}, y={"f": b"old"})

    async def main():
        await bind(ns, "#x", "/u")
        await bind(ns, "#y", "/u", order=AFTER)
        with refuses(EPERM):
            await write(ns, "/u/new", b"")
        await write(ns, "/u/f", b"new")
        assert await read(ns, "/u/f") == b"new"
        await (await walk(ns.root, "/u", ROOT)).unlink("f", ROOT)
        assert await ls(ns, "/u") == []

    trio.run(main)


def test_a_name_that_any_member_has_cannot_be_made_again():
    ns = administrator(x={}, y={"f": b"", "d": {}})

    async def main():
        await bind(ns, "#x", "/u", create=True)
        await bind(ns, "#y", "/u", order=AFTER)
        await bind(ns, "#y", "/u/d")
        union = await walk(ns.root, "/u", ROOT)
        for name in ("f", "d"):
            with refuses(EEXIST):
                await union.create(name, os.O_WRONLY, 0o644, ROOT)
            with refuses(EEXIST):
                await union.mkdir(name, 0o755, ROOT)

    trio.run(main)


def test_a_single_bind_takes_new_files_without_a_flag():
    ns = administrator(x={})

    async def main():
        await bind(ns, "#x", "/u")
        await write(ns, "/u/f", b"1")
        assert await read(ns, "/u/f") == b"1"

    trio.run(main)


def test_a_read_only_bind_refuses_every_change():
    ns = administrator(x={"f": b"1", "d": {"g": b"2"}, "l": "f"})

    async def main():
        await bind(ns, "#x", "/r", readonly=True)
        top, inner = await walk(ns.root, "/r", ROOT), await walk(ns.root, "/r/d", ROOT)
        file = await walk(ns.root, "/r/d/g", ROOT)
        link = await walk(ns.root, "/r/l", ROOT, follow=False)
        assert await link.readlink() == "f"
        assert await read(ns, "/r/l") == b"1"
        attempts = [
            lambda: top.create("n", os.O_WRONLY, 0o644, ROOT),
            lambda: inner.mkdir("n", 0o755, ROOT),
            lambda: inner.symlink("n", "t", ROOT),
            lambda: inner.mknod("n", stat.S_IFIFO | 0o600, 0, ROOT),
            lambda: inner.unlink("g", ROOT),
            lambda: top.rmdir("d", ROOT),
            lambda: top.rename("f", inner, "f", 0, ROOT),
            lambda: top.setstat(SetStat(mode=0), ROOT),
            lambda: top.setxattr("user.a", b"", 0, ROOT),
            lambda: inner.removexattr("user.a", ROOT),
            lambda: file.setstat(SetStat(size=0), ROOT),
            lambda: file.setxattr("user.a", b"", 0, ROOT),
            lambda: file.removexattr("user.a", ROOT),
            lambda: file.open(os.O_WRONLY, ROOT),
            lambda: file.open(os.O_RDWR, ROOT),
            lambda: file.open(os.O_RDONLY | os.O_TRUNC, ROOT),
            lambda: link.setstat(SetStat(mtime_ns=0), ROOT),
        ]
        for attempt in attempts:
            with refuses(EROFS):
                await attempt()
        assert (await file.stat()).st_size == 1
        assert await file.listxattr() == await top.listxattr() == ()

    trio.run(main)


class Sink(Node, Handle):
    """A character device that keeps what is written to it."""

    __slots__ = ("got",)

    def __init__(self):
        self.id = 4711
        self.got = b""

    async def stat(self):
        return Stat(stat.S_IFCHR | 0o666, self.id)

    async def open(self, flags, who):
        return self

    async def write(self, data, offset, nonblock=False):
        self.got += bytes(data)
        return len(data)


def test_a_device_of_a_read_only_bind_takes_writes():
    ns = administrator()
    sink = ns.devices.trees["null"] = Sink()

    async def main():
        await bind(ns, "#null", "/dev/null", readonly=True)
        await write(ns, "/dev/null", b"x")
        assert sink.got == b"x"

    trio.run(main)


def test_read_only_and_writable_views_of_one_file_are_different_files_to_a_server():
    ns = administrator(x={"f": b"", "d": {}})

    async def main():
        await bind(ns, "#x", "/w")
        await bind(ns, "#x", "/r", readonly=True)
        for name in ("f", "d", ""):
            ids = {(await walk(ns.root, f"/{top}/{name}", ROOT)).id for top in "wr"}
            assert len(ids) == 2

    trio.run(main)


def test_a_directory_bound_again_read_only_is_another_to_a_server_that_holds_the_first():
    ns = administrator(x={"d": {}})

    async def main():
        await bind(ns, "#x", "/a")
        before = await walk(ns.root, "/a/d", ROOT)
        await bind(ns, "#x", "/a", readonly=True)
        after = await walk(ns.root, "/a/d", ROOT)
        assert before.id != after.id
        await before.mkdir("by-an-old-cwd", 0o755, ROOT)
        with refuses(EROFS):
            await after.mkdir("new", 0o755, ROOT)

    trio.run(main)


def test_a_writable_file_keeps_its_identity_through_every_path():
    ns = administrator(x={"d": {"f": b""}})

    async def main():
        await bind(ns, "#x", "/a")
        await bind(ns, "#x/d", "/b")
        other = ns.fork(ns.devices, label="other")
        own = await walk(ns.devices.trees["x"], "d/f", ROOT)
        for tree, path in ((ns, "/a/d/f"), (ns, "/b/f"), (other, "/a/d/f")):
            assert (await walk(tree.root, path, ROOT)).id == own.id

    trio.run(main)


def test_directories_reached_by_two_binds_are_told_apart_as_each_has_mountpoints_of_its_own():
    ns = administrator(x={"d": {"m": {}}}, y={"f": b"y"})

    async def main():
        await bind(ns, "#x", "/a")
        await bind(ns, "#x", "/b")
        await bind(ns, "#y", "/a/d/m")
        one, two = await walk(ns.root, "/a/d", ROOT), await walk(ns.root, "/b/d", ROOT)
        assert one.id != two.id
        assert (await everything(one), await everything(two)) == ({"m": {"f": b"y"}}, {"m": {}})

    trio.run(main)


def test_a_directory_is_one_object_with_one_id_wherever_it_has_been_moved():
    ns = administrator(x={"d": {"m": {}}, "e": {}}, y={"f": b"y"})

    async def main():
        await bind(ns, "#x", "/a")
        top, before = await walk(ns.root, "/a", ROOT), await walk(ns.root, "/a/d", ROOT)
        await top.rename("d", await walk(ns.root, "/a/e", ROOT), "moved", 0, ROOT)
        after = await walk(ns.root, "/a/e/moved", ROOT)
        assert after is before
        await bind(ns, "#y", "/a/e/moved/m")
        assert await everything(before) == {"m": {"f": b"y"}}

    trio.run(main)


def test_mountpoints_cannot_be_removed_or_renamed():
    ns = administrator(x={"d": {}, "f": b""}, y={})

    async def main():
        await bind(ns, "#x", "/a")
        await bind(ns, "#y", "/a/d")
        await bind(ns, "#x/f", "/a/f")
        top = await walk(ns.root, "/a", ROOT)
        for attempt in (
            lambda: top.rmdir("d", ROOT),
            lambda: top.unlink("f", ROOT),
            lambda: top.rename("d", top, "e", 0, ROOT),
            lambda: top.rename("f", top, "d", 0, ROOT),
            lambda: ns.root.rmdir("a", ROOT),
        ):
            with refuses(EBUSY):
                await attempt()

    trio.run(main)


def test_rename_and_link_work_across_binds_of_one_tree_and_not_across_trees():
    ns = administrator(x={"d": {"f": b"1"}, "e": {}}, y={})

    async def main():
        for name, path in (("#x/d", "/d"), ("#x/e", "/e"), ("#y", "/y"), ("#x/e", "/r")):
            await bind(ns, name, path, readonly=path == "/r")
        source, target = await walk(ns.root, "/d", ROOT), await walk(ns.root, "/e", ROOT)
        await source.rename("f", target, "g", 0, ROOT)
        await source.link(await walk(ns.root, "/e/g", ROOT), "h", ROOT)
        assert await everything(ns.root) == {"d": {"h": b"1"}, "e": {"g": b"1"}, "r": {"g": b"1"}, "y": {}}
        other = await walk(ns.root, "/y", ROOT)
        with refuses(EXDEV):
            await source.rename("h", other, "h", 0, ROOT)
        with refuses(EXDEV):
            await other.link(await walk(ns.root, "/e/g", ROOT), "g", ROOT)
        with refuses(EXDEV):
            await source.link(await walk(ns.root, "/r/g", ROOT), "writable", ROOT)
        with refuses(EPERM):
            await source.link(target, "directory", ROOT)
        with refuses(EXDEV):
            await source.rename("h", ns.devices.trees["x"], "h", 0, ROOT)
        with refuses(EROFS):
            await source.rename("h", await walk(ns.root, "/r", ROOT), "h", 0, ROOT)

    trio.run(main)


def test_a_rename_in_a_union_replaces_what_is_seen():
    ns = administrator(x={"a": b"a", "b": b"b"}, y={"b": b"below"})

    async def main():
        await bind(ns, "#y", "/u", create=True)
        await bind(ns, "#x", "/u", order=BEFORE)
        union = await walk(ns.root, "/u", ROOT)
        await union.rename("a", union, "b", 0, ROOT)
        assert await everything(union) == {"b": b"a"}
        with refuses(EXDEV):
            await union.rename("b", union, "new", 0, ROOT)

    trio.run(main)


def test_attributes_of_a_union_are_those_of_its_first_member():
    ns = administrator(x={}, y={})

    async def main():
        await bind(ns, "#x", "/u")
        await bind(ns, "#y", "/u", order=AFTER)
        union = await walk(ns.root, "/u", ROOT)
        await union.setstat(SetStat(mode=0o700), ROOT)
        await union.setxattr("user.k", b"v", 0, ROOT)
        assert stat.S_IMODE((await ns.devices.trees["x"].stat()).st_mode) == 0o700
        assert stat.S_IMODE((await ns.devices.trees["y"].stat()).st_mode) == 0o755
        assert (await union.listxattr(), await union.getxattr("user.k")) == (("user.k",), b"v")
        await union.removexattr("user.k", ROOT)
        assert await union.statfs() == await ns.devices.trees["x"].statfs()

    trio.run(main)


def test_a_union_shows_the_attributes_of_the_member_that_takes_new_files():
    ns = administrator(x={}, y={})

    async def main():
        await ns.devices.trees["y"].setstat(SetStat(mode=0o700, uid=1000), ROOT)
        await bind(ns, "#x", "/u")
        await bind(ns, "#y", "/u", order=AFTER, create=True)
        union = await walk(ns.root, "/u", ROOT)
        st = await union.stat()
        assert (stat.S_IMODE(st.st_mode), st.st_uid) == (0o700, 1000)
        await union.setstat(SetStat(mode=0o750), ROOT)
        assert stat.S_IMODE((await ns.devices.trees["y"].stat()).st_mode) == 0o750

    trio.run(main)


def test_a_union_opens_nothing_that_a_member_closes():
    ns = administrator(mine={}, closed={"secret": b"", "d": {"x": b""}}, open={"theirs": b"", "kept": b""})
    mine, closed, open_ = (ns.devices.trees[name] for name in ("mine", "closed", "open"))

    async def main():
        await mine.setstat(SetStat(mode=0o700, uid=USER.uid), ROOT)
        await closed.setstat(SetStat(mode=0o700), ROOT)
        for name in ("mine", "closed", "open"):
            await bind(ns, f"#{name}", "/u", order=AFTER)
        union = await walk(ns.root, "/u", USER)
        assert await ls(ns, "/u", USER) == ["theirs", "kept"]
        assert await ls(ns, "/u", ROOT) == ["secret", "d", "theirs", "kept"]
        for path in ("/u/secret", "/u/d/x"):
            with refuses(ENOENT):
                await walk(ns.root, path, USER)
        for attempt in (
            lambda: union.unlink("theirs", USER),
            lambda: union.rename("theirs", union, "kept", 0, USER),
            lambda: union.rename("theirs", union, "new", 0, USER),
        ):
            with refuses(EACCES):
                await attempt()
        await open_.setstat(SetStat(mode=0o1777), ROOT)
        with refuses(EPERM):
            await union.unlink("theirs", USER)
        await open_.setstat(SetStat(mode=0o777), ROOT)
        await union.unlink("theirs", USER)
        assert await ls(ns, "/u", USER) == ["kept"]

    trio.run(main)


def test_symlinks_of_a_tree_are_resolved_in_the_namespace():
    ns = administrator(x={"up": "../../../f", "root": "/y/f", "here": "./g", "g": b"x"}, y={"f": b"y"}, z={"f": b"z"})

    async def main():
        await bind(ns, "#x", "/x")
        await bind(ns, "#y", "/y")
        await bind(ns, "#z/f", "/f")
        assert [await read(ns, f"/x/{name}") for name in ("up", "root", "here")] == [b"z", b"y", b"x"]
        assert await read(ns, "/../../y/f") == b"y"

    trio.run(main)


def test_names_of_any_bytes_are_bound_and_found():
    names = ["a\nb", "\udcff\udc80", "é", "x" * 255, "#task", "-r", " "]
    ns = administrator(x={name: name.encode("utf-8", "surrogateescape") for name in names})

    async def main():
        for name in names:
            await bind(ns, f"#x/{name}", f"/n/{name}")
        assert sorted(await ls(ns, "/n")) == sorted(names)
        for name in names:
            assert await read(ns, f"/n/{name}") == name.encode("utf-8", "surrogateescape")

    trio.run(main)


def test_listings_are_stable_and_types_are_told():
    ns = administrator(x={"z": b"", "y": {}}, f={"g": b""})

    async def main():
        for name in "qwertzuiop":
            await bind(ns, "#x", f"/n/{name}")
        await bind(ns, "#f/g", "/n/file")
        await bind(ns, "#x", "/n/deep/er")
        names = await ls(ns, "/n")
        assert names == await ls(ns, "/n") == sorted(names)
        entries = {entry.name: entry for entry in await (await walk(ns.root, "/n", ROOT)).readdir(ROOT)}
        assert {entries[name].type for name in "qwertzuiop"} == {entries["deep"].type} == {stat.S_IFDIR}
        assert len({entry.ino for entry in entries.values()}) == len(entries)
        assert (await walk(ns.root, "/n/deep", ROOT)).id == entries["deep"].ino

    trio.run(main)


def test_each_view_sees_its_own_device_and_none_where_it_has_none():
    trees = {"x": planted("x", {})}
    parent = Namespace(Board({**trees, "task": planted("t1", {"id": b"1", "1": {}})}), label="1")
    child = Board({**trees, "task": planted("t2", {"id": b"2"})}, admin=False)

    async def main():
        await bind(parent, "#task", "/task")
        await bind(parent, "#task/1", "/mine")
        fork = parent.fork(child, label="2")
        shared = parent.share(Board(trees, admin=False), label="3")
        assert (await read(parent, "/task/id"), await read(fork, "/task/id")) == (b"1", b"2")
        assert await ls(parent) == ["mine", "task"]
        assert await ls(fork) == ["task"]
        assert await ls(shared) == []
        for path in ("/task", "/mine"):
            with refuses(ENOENT):
                await walk(shared.root, path, ROOT)

    trio.run(main)


class Broken(Node):
    """A directory of a server that went away."""

    __slots__ = ()

    def __init__(self, real):
        self.id = real.id

    async def stat(self):
        raise OSError(5, "connection lost")

    lookup = readdir = lambda self, *_: self.stat()


def test_a_dead_tree_fails_where_it_is_bound_and_nowhere_else_and_can_be_unbound():
    ns = administrator(x={"f": b"1"}, y={})

    async def main():
        await bind(ns, "#x", "/n/x")
        dead = Broken(ns.devices.trees["y"])
        ns._cell.table = ns.table.bind("/n/dead", [member("#y", node=dead)]).bind(
            "/n/x", [member("#y", node=dead)], AFTER
        )
        assert await ls(ns, "/n") == ["dead", "x"]
        assert await read(ns, "/n/x/f") == b"1"
        with refuses(5):
            await ls(ns, "/n/dead")
        with refuses(5):
            await ls(ns, "/n/x")
        await bind(ns, "#x", "/n/dead", order=BEFORE)
        await unbind(ns, "/n/dead", "#y")
        await unbind(ns, "/n/x", "#y")
        assert await ls(ns, "/n/dead") == await ls(ns, "/n/x") == ["f"]

    trio.run(main)


def test_another_namespace_shows_as_a_directory_with_its_own_rules():
    outer = administrator("outer", x={"f": b"1", "d": {}})
    inner = administrator("inner", y={"g": b"2"})

    async def main():
        await bind(inner, "#y", "/y", readonly=True)
        await bind(inner, "#y/g", "/file")
        outer.devices.trees["root"] = inner.root
        await bind(outer, "#x", "/x")
        outer._cell.table = outer.table.bind("/task", [member("#root", node=inner.root)])
        assert await everything(outer.root) == {
            "task": {"y": {"g": b"2"}, "file": b"2"},
            "x": {"f": b"1", "d": {}},
        }
        with refuses(EROFS):
            await write(outer, "/task/y/g", b"")
        await bind(outer, "/task/y", "/direct")
        await bind(outer, "/task/file", "/g")
        assert [str(m.origin) for path in ("/direct", "/g") for m in outer.table.members(path)] == ["#y", "#y/g"]
        assert outer.table.members("/direct")[0].readonly
        await bind(inner, "#y", "/w")
        outer._cell.table = outer.table.bind("/task", [member("#root", node=inner.root, readonly=True)])
        for new, old in (("/task/w", "/w"), ("/task/w/g", "/wg"), ("/task/file", "/wf")):
            await bind(outer, new, old)
            assert outer.table.members(old)[0].readonly
        await unbind(inner, "/y")
        await unbind(inner, "/file")
        assert await read(outer, "/direct/g") == b"2"

    trio.run(main)


def test_namespaces_inside_each_other_end():
    ns = administrator(x={})

    async def main():
        ns._cell.table = EMPTY.bind("/in", [member("#loop", node=ns.root)])
        node, depth = ns.root, 0
        with refuses(ELOOP):
            while True:
                node, depth = await node.lookup("in", ROOT), depth + 1
        assert depth <= MAX_NESTING + 2

    trio.run(main)


def test_what_is_no_directory_has_no_children():
    ns = administrator(x={"f": b""})

    async def main():
        await bind(ns, "#x/f", "/r", readonly=True)
        with refuses(ENOTDIR):
            await walk(ns.root, "/r/x", ROOT)
        node = await walk(ns.root, "/r", ROOT)
        with refuses(ENOTDIR):
            await node.readdir(ROOT)
        with refuses(ENOTDIR):
            await walk(ns.root, "/r/", ROOT)

    trio.run(main)


def test_what_is_masked_shows_as_nothing_with_mode_0():
    ns = administrator(x={"d": {"s": {"key": b"k"}, "f": b"secret"}})

    async def main():
        await bind(ns, "#x", "/x")
        await ns.mask("/x/d/s", who=ROOT)
        await ns.mask("/x/d/f", who=ROOT)
        directory, file = await walk(ns.root, "/x/d/s", ROOT), await walk(ns.root, "/x/d/f", ROOT)
        assert [(await node.stat()).st_mode for node in (directory, file)] == [stat.S_IFDIR, stat.S_IFREG]
        assert await ls(ns, "/x/d/s") == []
        with refuses(EACCES):
            await file.open(os.O_RDONLY, ROOT)
        with refuses(ENOENT):
            await read(ns, "/x/d/s/key")
        with refuses(ENOTDIR):
            await file.lookup("x", ROOT)
        parent = await walk(ns.root, "/x/d", ROOT)
        for attempt in (lambda: parent.unlink("f", ROOT), lambda: parent.rename("s", parent, "t", 0, ROOT)):
            with refuses(EPERM):
                await attempt()
        with refuses(EXDEV):
            await parent.link(file, "other", ROOT)

    trio.run(main)


async def expect_entries_as_looked_up(directory):
    for entry in await directory.readdir(ROOT):
        node = await directory.lookup(entry.name, ROOT)
        assert (entry.id or entry.ino) == node.id, entry
        if stat.S_ISDIR((await node.stat()).st_mode):
            await expect_entries_as_looked_up(node)


@pytest.mark.parametrize("readonly", [False, True])
def test_a_listing_gives_the_ids_that_lookups_give(readonly, tmp_path):
    content = {"d": {"e": {}, "f": b"1"}, "f": b"2", "l": "f"}
    ns = administrator(x=content, y={"d": {"z": b""}, "g": b""})
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").touch()
    ns.devices.trees["disk"] = HostTree(tmp_path, label="disk").root

    async def main():
        await bind(ns, "#x", "/u", readonly=readonly)
        await bind(ns, "#y", "/u", order=AFTER, readonly=readonly)
        await bind(ns, "#x/f", "/u/d/f", readonly=readonly)
        await bind(ns, "#x/d", "/u/d/e", readonly=readonly)
        await bind(ns, "#disk", "/disk", readonly=readonly)
        await bind(ns, "#disk/d/f", "/alone/file", readonly=readonly)
        await expect_entries_as_looked_up(ns.root)

    trio.run(main)
