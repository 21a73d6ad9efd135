"""ns.namespace: who may bind what where, what forks and sharers see, and changes that happen everywhere or nowhere."""

from errno import EACCES, EBUSY, EINVAL, EIO, ELOOP, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS

import pytest
import trio
import trio.testing
from nskit import USER, Board, administrator, bind, everything, ls, member, planted, read, unbind, write

from ns.mounts import DialDevice, mount_of, mount_origin
from ns.namespace import Change, Namespace
from ns.table import EMPTY, MAX_DEPTH, Order, Origin
from vfs.inline import PENDING, resume, start
from vfs.node import ROOT, Caller, SetStat
from vfs.walk import walk

AFTER = Order.AFTER


def refuses(errno):
    return pytest.raises(OSError, match=rf"Errno {errno}\b")


def task(parent, label, *, who_sees=None, **kw):
    """Return a fork of `parent` whose holder is no administrator."""
    return parent.fork(Board(parent.devices.trees, admin=False, **kw), label=label)


# bind


def test_new_is_resolved_where_the_writer_is_and_old_where_the_target_is():
    writer = administrator(x={"f": b"1"})
    target = Namespace(Board(), label="target")

    async def main():
        await bind(writer, "#x", "/here")
        await bind(target, "/here", "/there", writer=writer)
        assert await everything(target.root) == {"there": {"f": b"1"}}
        assert await ls(writer) == ["here"]
        with refuses(ENOENT):
            await bind(target, "/there", "/again", writer=writer)

    trio.run(main)


def test_a_bind_means_what_new_named_then():
    ns = administrator(x={"f": b"x"}, y={"f": b"y"})

    async def main():
        await bind(ns, "#x", "/a")
        await bind(ns, "/a", "/b")
        await bind(ns, "#y", "/a")
        assert (await read(ns, "/a/f"), await read(ns, "/b/f")) == (b"y", b"x")
        assert ns.table.members("/b") == (member("#x"),)

    trio.run(main)


def test_binding_a_union_binds_all_of_it():
    ns = administrator(x={"f": b"x"}, y={"f": b"y", "g": b"y"})

    async def main():
        await bind(ns, "#x", "/u", readonly=True)
        await bind(ns, "#y", "/u", order=AFTER, create=True)
        await bind(ns, "/u", "/v")
        assert ns.table.members("/v") == (member("#x", readonly=True), member("#y"))
        assert await everything(await walk(ns.root, "/v", ROOT)) == {"f": b"x", "g": b"y"}
        await bind(ns, "/u", "/w", create=True)
        assert [m.create for m in ns.table.members("/w")] == [True, False]

    trio.run(main)


def test_a_file_binds_over_files_only_and_a_directory_over_directories_only():
    ns = administrator(x={"f": b"1", "d": {}, "g": b"2"})

    async def main():
        await bind(ns, "#x", "/x")
        await bind(ns, "#x/d", "/n/d")
        for new, old in (("#x/f", "/x/d"), ("#x/d", "/x/f"), ("#x/f", "/n"), ("#x/f", "/n/d"), ("#x/f", "/")):
            with refuses(EINVAL):
                await bind(ns, new, old)
        with refuses(EINVAL):
            await bind(ns, "#x/f", "/x/g", order=AFTER)
        await bind(ns, "#x/f", "/x/g")
        assert await read(ns, "/x/g") == b"1"
        with refuses(EINVAL):
            await bind(ns, "#x/d", "/x/g")
        await bind(ns, "#x/f", "/new/file")
        assert await read(ns, "/new/file") == b"1"

    trio.run(main)


def test_mountpoints_grow_in_our_own_directories_and_never_in_a_tree():
    ns = administrator(x={"d": {"f": b""}}, y={})

    async def main():
        await bind(ns, "#x", "/x")
        for old in ("/x/new", "/x/new/deep", "/x/d/new"):
            with refuses(ENOENT):
                await bind(ns, "#y", old)
        with refuses(ENOTDIR):
            await bind(ns, "#y", "/x/d/f/new")
        assert await everything(ns.devices.trees["x"]) == {"d": {"f": b""}}
        await bind(ns, "#y", "/our/own/deep")
        await bind(ns, "#y", "/our/too")
        assert await everything(await walk(ns.root, "/our", ROOT)) == {"own": {"deep": {}}, "too": {}}

    trio.run(main)


def test_old_is_kept_by_its_real_path():
    links = {"link": "real", "abs": "/x/real", "far": "real/deep", "dangling": "nowhere"}
    ns = administrator(x={"real": {"m": {}, "deep": {}}, "m": {}, **links}, y={"f": b"y"})

    async def main():
        await bind(ns, "#x", "/x")
        for old in ("/x/link/m", "/x/abs/m", "//x/./link/../real/m/"):
            await bind(ns, "#y", old)
            assert [path for path, _ in ns.table.items()] == ["/x", "/x/real/m"]
            assert await read(ns, "/x/link/m/f") == b"y"
            await unbind(ns, old)
        await bind(ns, "#y", "/x/m")
        await bind(ns, "#y", "/x/far/../m")
        assert [path for path, _ in ns.table.items()] == ["/x", "/x/m", "/x/real/m"]
        await unbind(ns, "/x/far/../m")
        assert [path for path, _ in ns.table.items()] == ["/x", "/x/m"]
        with refuses(ENOENT):
            await bind(ns, "#y", "/x/dangling")
        with refuses(ENOENT):
            await bind(ns, "#y", "/nowhere/../n")

    trio.run(main)


@pytest.mark.parametrize(
    ("new", "old", "errno"),
    [
        ("x", "/a", EINVAL),
        ("", "/a", EINVAL),
        ("#", "/a", EINVAL),
        ("#x/../y", "/a", EINVAL),
        ("#x", "a", EINVAL),
        ("#x", "", EINVAL),
        ("#x", "#x", EINVAL),
        ("#nodevice", "/a", ENOENT),
        ("#x/nothing", "/a", ENOENT),
        ("#x/f/g", "/a", ENOTDIR),
        ("/nothing", "/a", ENOENT),
        ("#x", "/" + "n" * 256, ENAMETOOLONG),
        ("#x", "/" + "n/" * 2048, ENAMETOOLONG),
        ("#x", "/a\0", ENOENT),
    ],
)
def test_bad_words_change_nothing(new, old, errno):
    ns = administrator(x={"f": b""})

    async def main():
        with refuses(errno):
            await bind(ns, new, old)
        assert ns.table is EMPTY

    trio.run(main)


def test_a_device_may_be_a_file():
    ns = administrator()
    tree = planted("c", {"f": b"hello"})

    async def main():
        ns.devices.trees["cons"] = await tree.lookup("f", ROOT)
        await bind(ns, "#cons", "/dev/cons")
        assert await read(ns, "/dev/cons") == b"hello"
        with refuses(ENOTDIR):
            await bind(ns, "#cons/x", "/a")

    trio.run(main)


def test_long_and_deep_paths_are_bound():
    ns = administrator(x={"f": b"1"})

    async def main():
        deep, long = "/a" * MAX_DEPTH, "/" + "/".join(["x" * 255] * 15)
        for path in (deep, long):
            await bind(ns, "#x", path)
            assert await read(ns, path + "/f") == b"1"
        with refuses(ENAMETOOLONG):
            await bind(ns, "#x", deep + "/a")

    trio.run(main)


def test_an_origin_that_no_script_could_name_is_refused():
    name = "n" * 250
    tree = {}
    inner = tree
    for _ in range(20):
        inner[name] = inner = {}
    ns = administrator(x=tree)

    async def main():
        await bind(ns, "#x" + f"/{name}" * 15, "/half")
        with refuses(ENAMETOOLONG):
            await bind(ns, "/half" + f"/{name}" * 3, "/whole")

    trio.run(main)


def test_the_table_is_bounded():
    trees = {"x": planted("x", {})}
    ns = Namespace(Board(trees), label="n", limit=9)

    async def main():
        for path in ("/a", "/b", "/c", "/d"):
            await bind(ns, "#x", path)
        full = ns.table
        for attempt in (bind(ns, "#x", "/e"), ns.mask("#srv", who=ROOT)):
            with refuses(ENOSPC):
                await attempt
        assert ns.table is full
        await bind(ns, "#x", "/a")
        await unbind(ns, "/b")
        await bind(ns, "#x", "/e")
        with refuses(ENOSPC):
            await bind(ns.fork(ns.devices, label="f"), "#x", "/g")

    trio.run(main)


# loops


def test_a_directory_bound_below_itself_shows_the_tree_and_not_the_binds():
    ns = administrator(x={"a": {"b": {}}})

    async def main():
        await bind(ns, "#x", "/")
        await bind(ns, "/", "/a")
        await bind(ns, "/a", "/a/a/b")
        assert await everything(ns.root) == {"a": {"a": {"b": {"a": {"b": {}}}}}}

    trio.run(main)


def test_a_directory_that_only_leads_to_binds_is_nothing_to_bind():
    ns = administrator(x={})

    async def main():
        await bind(ns, "#x", "/n/x")
        for new in ("/", "/n"):
            with refuses(EINVAL):
                await bind(ns, new, "/a")

    trio.run(main)


def test_a_view_s_own_device_that_leads_into_a_namespace_is_not_followed():
    ns = administrator(x={})
    ns.devices.trees["task"] = planted("t", {"7": {"root": {}}})

    async def main():
        await bind(ns, "#x", "/x")
        ns.devices.trees["task"] = ns.root
        ns._cell.table = ns.table.bind("/loop", [member("#task/loop")]).bind("/in", [member("#task/x")])
        for path in ("/loop/f", "/in/f"):
            with refuses(ELOOP):
                await walk(ns.root, path, ROOT)

    trio.run(main)


# authority


def test_a_task_cannot_name_a_device_that_its_mask_excludes():
    admin = administrator(host={"usr": {}}, srv={})
    child = admin.fork(Board(admin.devices.trees, admin=False), label="c", mask=["srv"])

    async def main():
        for name in ("#host/usr", "#srv"):
            with refuses(EPERM):
                await bind(child, name, "/x")
        grandchild = task(child, "g")
        with refuses(EPERM):
            await bind(grandchild, "#srv", "/x")
        await bind(child, "#srv", "/srv", writer=admin)
        assert await ls(child) == ["srv"]

    trio.run(main)


def test_a_task_names_a_host_path_exactly_where_its_namespace_holds_it_or_a_parent():
    admin = administrator(host={"usr": {"bin": {"ls": b"1"}}, "etc": {"shadow": b"no"}, "data": {}})

    async def main():
        await bind(admin, "#host/usr", "/usr", readonly=True)
        child = task(admin, "c")
        await bind(child, "#host/usr/bin", "/b")
        await bind(child, "#host/usr", "/again")
        await bind(child, "#host/usr/bin/ls", "/program")
        assert all(m.readonly for _, members in child.table.items() for m in members)
        with refuses(EROFS):
            await write(child, "/b/new", b"")
        for name in ("#host", "#host/etc", "#host/etc/shadow", "#host/us", "#host/data"):
            with refuses(EPERM):
                await bind(child, name, "/x")
        await unbind(child, "/usr")
        await unbind(child, "/again")
        with refuses(EPERM):
            await bind(child, "#host/usr", "/x")
        await bind(child, "#host/usr/bin", "/still")

    trio.run(main)


def test_search_permission_on_the_way_to_new_is_the_writers_own():
    ns = administrator(x={"open": {}, "closed": {"in": {}}})

    async def main():
        closed = await ns.devices.trees["x"].lookup("closed", ROOT)
        await closed.setstat(SetStat(mode=0o700), ROOT)
        await bind(ns, "#x", "/x")
        child = task(ns, "c")
        for new in ("#x/closed/in", "/x/closed/in"):
            with refuses(EACCES):
                await bind(child, new, "/a", who=USER)
        with refuses(EACCES):
            await bind(child, "#x/open", "/x/closed/in", who=USER)
        await bind(child, "#x/open", "/a", who=USER)
        await bind(child, "#x/closed/in", "/b", who=ROOT)

    trio.run(main)


def test_read_only_is_never_lost_by_binding_again():
    ns = administrator(x={"d": {"f": b""}, "e": {}})

    async def main():
        await bind(ns, "#x", "/r", readonly=True)
        await bind(ns, "/r/d", "/a")
        await bind(ns, "/r/d/f", "/f")
        await bind(ns, "/a", "/r/e", order=AFTER)
        assert [m.readonly for _, members in ns.table.items() for m in members] == [True] * 5
        with refuses(EROFS):
            await write(ns, "/f", b"")

    trio.run(main)


def test_what_each_view_has_of_its_own_is_never_bound_with_the_writers_authority():
    trees = {"task": planted("admin", {"5": {"who": b"admin"}, "6": {}})}
    admin = Namespace(Board(trees), label="admin")
    child = Namespace(Board({"task": planted("child", {"5": {"who": b"child"}})}, admin=False), label="c")

    async def main():
        await bind(child, "#task/5", "/five", writer=admin)
        assert await read(child, "/five/who") == b"child"
        with refuses(ENOENT):
            await bind(child, "#task/6", "/six", writer=admin)

    trio.run(main)


# masks


def test_a_path_s_mask_follows_the_thing_and_cannot_be_walked_around():
    admin = administrator(host={"usr": {"s": {"key": b"k"}, "f": b""}}, x={"mine": b""})

    async def main():
        await bind(admin, "#host/usr", "/usr")
        child = task(admin, "c")
        await child.mask("/usr/s", who=ROOT)
        await bind(child, "/usr", "/u2")
        assert await everything(await walk(child.root, "/usr", ROOT)) == {"s": {}, "f": b""}
        assert await ls(child, "/u2/s") == []
        for new in ("/usr/s", "/u2/s", "#host/usr/s"):
            with refuses(EACCES):
                await bind(child, new, "/x")
        for new in ("/usr/s/key", "#host/usr/s/key"):
            with refuses(ENOENT):
                await bind(child, new, "/x")
        with refuses(EPERM):
            await unbind(child, "/usr/s")
        with refuses(EACCES):
            await bind(child, "#x", "/usr/s", writer=admin)
        grandchild = task(child, "g")
        await grandchild.clear()
        await bind(grandchild, "#host/usr", "/back", writer=admin)
        assert await ls(grandchild, "/back/s") == []
        assert sorted(child.table.hidden_paths()) == ["/u2/s", "/usr/s"]
        assert await read(admin, "/usr/s/key") == b"k"

    trio.run(main)


def test_a_mask_leaves_what_was_bound_from_inside_and_lets_nothing_more_out():
    admin = administrator(host={"s": {"in": {"f": b"1", "g": b"2"}}})

    async def main():
        await bind(admin, "#host/s", "/s")
        await bind(admin, "#host/s/in", "/in")
        child = task(admin, "c")
        await child.mask("/s", who=ROOT)
        assert await everything(child.root) == {"s": {}, "in": {"f": b"1", "g": b"2"}}
        for new in ("/in/f", "#host/s/in/f", "#host/s/in"):
            with refuses(EACCES):
                await bind(child, new, "/x")

    trio.run(main)


def test_a_mask_holds_through_another_namespace_s_root():
    outer, inner = administrator("outer"), administrator("inner", y={"f": b"1"})

    async def main():
        await bind(inner, "#y", "/y")
        outer._cell.table = EMPTY.bind("/task", [member("#root", node=inner.root)])
        await outer.mask("#y", who=ROOT)
        await bind(outer, "/task/y", "/before")
        await outer.mask("#y/f", who=ROOT)
        with refuses(EACCES):
            await bind(outer, "/task/y/f", "/x")

    trio.run(main)


def test_only_the_administrator_takes_a_mask_away():
    admin = administrator(host={"s": {"f": b"1"}, "file": b"2"})

    async def main():
        await bind(admin, "#host", "/h")
        await bind(admin, "#host/s", "/m")
        child = task(admin, "c")
        for path in ("/h/s", "/h/file"):
            await child.mask(path, who=ROOT)
        with refuses(EACCES):
            await child.mask("/m", who=ROOT)
        for path in ("/h/s", "/m", "/h/file"):
            with refuses(EPERM):
                await unbind(child, path)
        await unbind(child, "/m", writer=admin)
        await unbind(child, "/h/file", writer=admin)
        assert await everything(child.root) == {"h": {"s": {"f": b"1"}, "file": b"2"}, "m": {"f": b"1"}}

    trio.run(main)


def test_masks_are_named_by_device_path_too_and_bad_ones_are_refused():
    ns = administrator(x={"f": b""})

    async def main():
        await bind(ns, "#x", "/n/x")
        await ns.mask("#x/f", who=ROOT)
        await ns.mask("#srv", who=ROOT)
        assert (ns.table.hidden, ns.table.mask) == ({Origin("x", "f")}, {"srv"})
        for what, errno in (("/nothing", ENOENT), ("/n", EINVAL), ("x", EINVAL), ("#", EINVAL)):
            with refuses(errno):
                await ns.mask(what, who=ROOT)

    trio.run(main)


def test_masking_a_whole_bind_shows_an_empty_directory_in_its_place():
    ns = administrator(x={"d": {}}, y={"g": b""})

    async def main():
        await bind(ns, "#x", "/u")
        held = await walk(ns.root, "/u", ROOT)
        await ns.mask("/u", who=ROOT)
        assert await ls(ns, "/u") == []
        with refuses(EACCES):
            await held.readdir(ROOT)
        await bind(ns, "#y", "/u", order=AFTER)
        assert await ls(ns, "/u") == ["g"]

    trio.run(main)


# unbind and clear


def test_unbind_says_when_there_is_nothing_to_unbind():
    ns = administrator(x={"d": {}}, y={})

    async def main():
        await bind(ns, "#x", "/n/x")
        for old, new in (("/n/x", "#y"), ("/n", None), ("/", None), ("/n/x/d", None), ("/none", None), ("/n/x", "/q")):
            with refuses(ENOENT):
                await unbind(ns, old, new)
        await unbind(ns, "/n/../n/x", "/n/x")
        assert ns.table == EMPTY

    trio.run(main)


def test_unbind_by_device_path_needs_nothing_to_be_there_any_more():
    ns = administrator(x={"d": {}})

    async def main():
        await bind(ns, "#x/d", "/a")
        await ns.devices.trees["x"].rmdir("d", ROOT)
        await unbind(ns, "/a", "#x/d")
        assert ns.table == EMPTY

    trio.run(main)


# fork, share, copy, clean


def test_a_fork_shares_the_table_until_one_of_them_changes():
    ns = administrator(x={})

    async def main():
        for n in range(50):
            await bind(ns, "#x", f"/n/{n}")
        asked = len(ns.devices.asked)
        fork = ns.fork(ns.devices, label="f")
        assert fork.table is ns.table
        assert len(ns.devices.asked) == asked
        await bind(fork, "#x", "/only/fork")
        await unbind(ns, "/n/0")
        assert "only" not in await ls(ns)
        assert "0" in await ls(fork, "/n")

    trio.run(main)


def test_sharers_see_each_others_changes_and_keep_their_own_devices():
    ns = administrator(x={})
    other = ns.share(Board(ns.devices.trees, admin=False), label="o")

    async def main():
        await bind(other, "#x", "/from/other")
        await bind(ns, "#x", "/from/me")
        assert await ls(ns, "/from") == await ls(other, "/from") == ["me", "other"]
        assert ns.root.id != other.root.id
        assert ns.shares_with(other)

    trio.run(main)


def test_join_copy_and_clean_leave_the_old_table_to_those_who_stay():
    ns = administrator(x={}, y={})
    one, two = (task(ns, label) for label in "12")

    async def main():
        await bind(one, "#x", "/one")
        two.join(one)
        assert two.shares_with(one)
        await bind(two, "#y", "/two")
        assert await ls(one) == ["one", "two"]
        two.copy_from(one)
        await unbind(two, "/two")
        assert (await ls(one), await ls(two)) == (["one", "two"], ["one"])
        two.join(one)
        two.clean()
        assert (await ls(one), await ls(two)) == (["one", "two"], [])
        await one.clear()
        assert await ls(one) == []

    trio.run(main)


def test_no_way_to_another_table_lifts_a_mask():
    ns = administrator(x={"s": {}}, y={})

    async def main():
        await bind(ns, "#x", "/x")
        masked = ns.fork(Board(ns.devices.trees, admin=False), label="m", mask=["y"])
        await masked.mask("/x/s", who=ROOT)
        free = task(ns, "f")
        with refuses(EPERM):
            masked.join(free)
        for part in (free.fork(free.devices, label="p", mask=["y"]), free.fork(free.devices, label="q")):
            if "y" not in part.table.mask:
                await part.mask("/x/s", who=ROOT)
            with refuses(EPERM):
                masked.join(part)
        masked.copy_from(free)
        assert (masked.table.mask, masked.table.hidden) == ({"y"}, {Origin("x", "s")})
        masked.clean()
        await masked.clear()
        assert (masked.table.mask, masked.table.hidden) == ({"y"}, {Origin("x", "s")})
        free.join(masked)
        assert not free.allowed("y")

    trio.run(main)


# mounts


def test_a_mount_is_a_bind_of_what_was_dialled():
    tree, dialled = planted("remote", {"d": {"f": b"1"}}), []

    async def dial(address, aname, who):
        dialled.append((address, aname, who))
        return tree

    ns = Namespace(Board({"9p": DialDevice(dial)}), label="n")

    async def main():
        await ns.mount("tcp!host!564", "/n/far", "/srv/a b", writer=ns, who=USER)
        assert dialled == [("tcp!host!564", "/srv/a b", USER)]
        assert await read(ns, "/n/far/d/f") == b"1"
        await bind(ns, "/n/far/d", "/d")
        await unbind(ns, "/n/far")
        assert await read(ns, "/d/f") == b"1"
        assert len(dialled) == 1
        await bind(ns, str(ns.table.members("/d")[0].origin), "/again", who=ROOT)
        assert len(dialled) == 2
        child = ns.fork(ns.devices, label="c", mask=["9p"])
        with refuses(EPERM):
            await child.mount("unix!/x", "/m", writer=child, who=USER)
        assert await ls(ns.fork(ns.devices, label="l"), "/d") == ["f"]

    trio.run(main)


def test_a_failed_dial_binds_nothing():
    async def dial(address, aname, who):
        raise OSError(EIO, "refused")

    ns = Namespace(Board({"9p": DialDevice(dial)}), label="n")

    async def main():
        with refuses(EIO):
            await ns.mount("unix!/x", "/m", writer=ns, who=ROOT)
        assert ns.table is EMPTY
        root = await ns.devices.device("9p")
        assert list(await root.readdir(ROOT)) == []

    trio.run(main)


@pytest.mark.parametrize(
    "words", [("a", "/"), ("unix!/run/x", ".."), (".", "."), ("tcp!h!1", "p?tok/en%2F"), ("é\udcff", "\n")]
)
def test_address_and_aname_come_back_from_an_origin(words):
    origin = mount_origin(*words)
    assert Origin.parse(str(origin)) == origin
    assert mount_of(origin) == words
    assert mount_of(origin.child("x")) is None


@pytest.mark.parametrize("words", [("", "/"), ("a", "")])
def test_a_mount_needs_an_address_and_an_aname(words):
    with refuses(EINVAL):
        mount_origin(*words)


# realisers


class FakeTask:
    """A running task that follows changes; the test scripts what it refuses."""

    def __init__(self, log, name, *, refuse_apply=0, refuse_revert=0, gate=None):
        self.log, self.name, self.gate = log, name, gate
        self.refuse_apply, self.refuse_revert = refuse_apply, refuse_revert

    async def apply(self, change: Change) -> None:
        self.log.append(("apply", self.name, change.paths()))
        if self.gate is not None:
            await self.gate.wait()
        if self.refuse_apply:
            raise OSError(self.refuse_apply, "refused")

    async def revert(self, change: Change) -> None:
        await trio.lowlevel.checkpoint()
        self.log.append(("revert", self.name, change.paths()))
        if self.refuse_revert:
            raise OSError(self.refuse_revert, "refused")

    async def settle(self, change: Change) -> None:
        self.settled = change.paths()


def test_a_change_reaches_the_table_after_every_running_task():
    ns = administrator(x={})
    log = []

    async def main():
        ns.realisers.extend([FakeTask(log, "a"), FakeTask(log, "b")])
        await bind(ns, "#x", "/n")
        assert log == [("apply", "a", ["/n"]), ("apply", "b", ["/n"])]
        assert await ls(ns) == ["n"]

    trio.run(main)


@pytest.mark.parametrize("change", ["bind", "unbind", "mask", "clear"])
def test_a_refused_change_is_taken_back_everywhere(change):
    ns = administrator(x={"s": {}}, y={})
    other = ns.share(ns.devices, label="o")
    log = []

    async def main():
        await bind(ns, "#x", "/x")
        before = ns.table
        ns.realisers.extend([FakeTask(log, "a"), FakeTask(log, "b"), FakeTask(log, "c", refuse_apply=EBUSY)])
        with refuses(EBUSY):
            match change:
                case "bind":
                    await bind(other, "#y", "/x")
                case "unbind":
                    await unbind(other, "/x")
                case "mask":
                    await other.mask("/x/s", who=ROOT)
                case "clear":
                    await other.clear()
        path = "/x/s" if change == "mask" else "/x"
        assert log == [(what, name, [path]) for what, name in zip(["apply"] * 3 + ["revert"] * 2, "abcba", strict=True)]
        assert ns.table is other.table is before
        ns.realisers.clear()
        await bind(ns, "#y", "/y")

    trio.run(main)


def test_the_first_refusal_is_what_the_writer_sees_even_where_taking_back_fails(capsys):
    ns = administrator(x={})
    log = []

    async def main():
        ns.realisers.extend(
            [
                FakeTask(log, "a"),
                FakeTask(log, "b", refuse_revert=EIO),
                FakeTask(log, "c", refuse_apply=EBUSY),
            ]
        )
        with refuses(EBUSY):
            await bind(ns, "#x", "/n")
        assert [name for what, name, _ in log if what == "revert"] == ["b", "a"]
        assert ns.table is EMPTY

    trio.run(main)
    assert "kept a change" in capsys.readouterr().out


def test_an_interrupted_change_is_taken_back():
    ns = administrator(x={})
    log, gate = [], trio.Event()

    async def main():
        ns.realisers.extend([FakeTask(log, "a"), FakeTask(log, "b", gate=gate)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bind, ns, "#x", "/n")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert [entry[:2] for entry in log] == [("apply", "a"), ("apply", "b"), ("revert", "a")]
        assert ns.table is EMPTY
        gate.set()
        await bind(ns, "#x", "/n")
        assert await ls(ns) == ["n"]

    trio.run(main)


def test_two_writers_take_turns_and_neither_is_lost():
    ns = administrator(x={}, y={}, z={})
    log, gate = [], trio.Event()

    async def main():
        ns.realisers.append(FakeTask(log, "t", gate=gate))
        async with trio.open_nursery() as nursery:
            for device in "xyz":
                nursery.start_soon(lambda device=device: bind(ns, f"#{device}", "/u", order=AFTER))
            await trio.testing.wait_all_tasks_blocked()
            assert len(log) == 1
            assert ns.table is EMPTY
            gate.set()
        assert {m.origin.device for m in ns.table.members("/u")} == set("xyz")
        assert len(log) == 3

    trio.run(main)


def test_a_plan_made_on_an_old_table_is_made_again():
    ns = administrator(x={}, y={})
    gate = trio.Event()

    async def main():
        ns.realisers.append(FakeTask([], "t", gate=gate))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bind, ns, "#x", "/n")
            await trio.testing.wait_all_tasks_blocked()

            async def too_late():
                with refuses(ENOENT):
                    await bind(ns, "#y", "/n/new")

            nursery.start_soon(too_late)
            await trio.testing.wait_all_tasks_blocked()
            gate.set()

    trio.run(main)


def test_a_table_that_is_held_does_not_change():
    ns = administrator(x={})
    log = []

    async def main():
        async with trio.open_nursery() as nursery, ns.hold() as table:
            nursery.start_soon(bind, ns, "#x", "/n")
            await trio.testing.wait_all_tasks_blocked()
            assert ns.table is table is EMPTY
            ns.realisers.append(FakeTask(log, "late"))
        assert log == [("apply", "late", ["/n"])]

    trio.run(main)


def test_a_change_runs_inline_until_a_running_task_must_follow():
    ns = administrator(x={})

    async def main():
        assert start(bind(ns, "#x", "/a")) is None
        ns.realisers.append(FakeTask([], "t"))
        pending = bind(ns, "#x", "/b")
        assert start(pending) is PENDING
        dropped = bind(ns, "#x", "/c")
        assert start(dropped) is PENDING
        dropped.close()
        await resume(pending)
        given_up = bind(ns, "#x", "/d")
        assert start(given_up) is PENDING
        given_up.close()
        await bind(ns, "#x", "/e")
        assert [path for path, _ in ns.table.items()] == ["/a", "/b", "/e"]

    trio.run(main)


def test_a_change_says_where_something_differs():
    old = EMPTY.bind("/a", [member("#x")]).bind("/b", [member("#x/s")])
    new = old.unbind("/b").bind("/c", [member("#y")]).masked(hidden=[Origin("x", "k")])
    assert Change(old, new).paths() == ["/a/k", "/b", "/c"]
    assert Change(old, old.bind("/a", [member("#x")])).paths() == ["/a"]
    assert Change(old, new, "/c").paths() == ["/c"]


def test_watchers_are_told_of_a_change():
    ns = administrator(x={})
    told = []

    async def main():
        ns.changed.watch(lambda: told.append(ns.table.items()))
        await bind(ns, "#x", "/n", who=Caller(0, 0))

    trio.run(main)
    assert told == [[("/n", (member("#x"),))]]


def test_a_fixed_namespace_changes_no_more_and_its_forks_do():
    ns = administrator(x={"f": b"x"})

    async def main():
        await bind(ns, "#x", "/a")
        assert (await walk(ns.root, "/a", ROOT)).name_seconds == 0
        ns.fix()
        with refuses(EBUSY):
            await bind(ns, "#x", "/b")
        with refuses(EBUSY):
            await unbind(ns, "/a")
        assert await everything(ns.root) == {"a": {"f": b"x"}}
        fork = ns.fork(Board(ns.devices.trees), label="fork")
        await bind(fork, "#x", "/b")
        assert await ls(fork) == ["a", "b"]
        assert (await walk(fork.root, "/a", ROOT)).name_seconds == 0

    trio.run(main)


def test_only_a_fixed_namespace_lets_a_kernel_remember_its_mountpoints():
    ns = administrator(x={"d": {}})

    async def main():
        await bind(ns, "#x", "/a")
        ns.fix()
        assert (await walk(ns.root, "/a", ROOT)).name_seconds > 0
        assert (await walk(ns.root, "/a/d", ROOT)).name_seconds == 0

    trio.run(main)
