"""ns.script: scripts in the manner of namespace(6), dumps that replay, and the namespace against a plain model."""

from errno import EINVAL, ENOENT, EPERM

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from nskit import Board, administrator, bind, everything, ls, member, planted, read

from ns.mounts import DialDevice
from ns.namespace import Namespace
from ns.script import USAGE, Bind, Clear, How, Line, Mask, Mount, Unbind, apply, command, dump, init_script, parse, run
from ns.table import EMPTY, Order, Origin
from vfs.node import ROOT
from vfs.walk import walk

AFTER, BEFORE = Order.AFTER, Order.BEFORE


def refuses(errno):
    return pytest.raises(OSError, match=rf"Errno {errno}\b")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bind #host/usr /usr", Bind("#host/usr", "/usr")),
        ("bind -r /a /b", Bind("/a", "/b", How(readonly=True))),
        ("bind -ac /a /b", Bind("/a", "/b", How(order=AFTER, create=True))),
        ("bind -b -c -r /a /b", Bind("/a", "/b", How(order=BEFORE, create=True, readonly=True))),
        ("mount tcp!h!564 /n/h", Mount("tcp!h!564", "/n/h", "/")),
        ("mount -a unix!/s /n/h /export", Mount("unix!/s", "/n/h", "/export", How(order=AFTER))),
        ("unbind /a", Unbind("/a")),
        ("unbind /new /old", Unbind("/old", "/new")),
        ("mask #srv", Mask("#srv")),
        ("mask '/a b'", Mask("/a b")),
        ("clear", Clear()),
        (' bind\t"/a \\"b\\"" \'/c\nd\' ', Bind('/a "b"', "/c\nd")),
    ],
)
def test_a_line_is_read_and_written(line, expected):
    assert list(parse(line + "\n")) == list(parse(line)) == [Line(1, expected)]
    assert [entry.command for entry in parse(str(expected))] == [expected]


@pytest.mark.parametrize(
    "line",
    [
        "bnid /a /b",
        "bind /a",
        "bind /a /b /c",
        "bind",
        "bind -ab /a /b",
        "bind -a -b /a /b",
        "bind -x /a /b",
        "bind - /a /b",
        "bind -- /a /b",
        "mount -c a",
        "mount a /b c d",
        "unbind",
        "unbind a b c",
        "mask",
        "mask /a /b",
        "clear all",
        "#task",
        "bind 'a /b",
        "bind /a /b\\",
        "-",
        "- bind /a /b",
    ],
)
def test_a_bad_line_is_refused_with_its_number(line):
    with pytest.raises(OSError, match="line 2: ") as refused:
        list(parse("clear\n" + line))
    assert refused.value.errno == EINVAL


def test_comments_and_empty_lines_say_nothing():
    text = "# don't mind\n#\n\n   # indented 'quote\n#\ttab\nbind '#x' '/a\n# part of the name'\n"
    assert list(parse(text)) == [Line(6, Bind("#x", "/a\n# part of the name"))]


def test_a_hostile_script_is_refused_in_linear_time():
    for text in ("bind '" + "x\n" * 500_000, 'bind "' + "\\\n" * 500_000, "bind " + "a'b'\\" * 200_000):
        with refuses(EINVAL):
            list(parse(text))


def test_every_verb_has_its_usage():
    for verb, usage in USAGE.items():
        with pytest.raises(OSError, match="Errno 22") as refused:
            command([verb, *"123456"])
        assert usage in str(refused.value)
    with refuses(EINVAL):
        command([])


def test_a_script_runs_until_its_first_error_and_names_the_line():
    ns = administrator(x={"d": {}})

    async def main():
        with pytest.raises(OSError, match=r"line 3: bind #x/none /c: ") as refused:
            await run("bind #x /a\n\nbind #x/none /c\nbind #x /d\n", ns, writer=ns, who=ROOT)
        assert refused.value.errno == ENOENT
        assert await ls(ns) == ["a"]

    trio.run(main)


def test_an_optional_line_may_miss_its_file_but_nothing_else():
    ns = administrator(x={"d": {}, "f": b""})

    async def main():
        await run("-bind #x/none /c\n-bind #x /a\n", ns, writer=ns, who=ROOT)
        assert await ls(ns) == ["a"]
        with refuses(EINVAL):
            await run("-bind #x/f /a\n", ns, writer=ns, who=ROOT)

    trio.run(main)


def test_every_command_does_what_it_says():
    tree = planted("far", {"g": b"far"})

    async def dial(address, aname, who):
        return tree

    trees = {"x": planted("x", {"f": b"1", "s": b"2"}), "9p": DialDevice(dial)}
    writer, target = Namespace(Board(trees), label="w"), Namespace(Board(trees), label="t")

    async def main():
        text = "bind -r #x /x\nmount unix!/s /n/far\nmask /x/s\nmask #srv\nbind #x /gone\nunbind /gone\n"
        await run(text, target, writer=writer, who=ROOT)
        assert await ls(target) == ["n", "x"]
        assert (await read(target, "/x/f"), await read(target, "/n/far/g")) == (b"1", b"far")
        assert (target.table.mask, target.table.hidden) == ({"srv"}, {Origin("x", "s")})
        assert dump(target.table) == ("clear\nbind -r #x /x\nmount unix!/s /n/far /\nmask #srv\nmask #x/s\n")
        await apply(Clear(), target, writer=writer, who=ROOT)
        assert await ls(target) == []

    trio.run(main)


def test_a_dump_does_not_depend_on_what_the_trees_hold_by_then():
    ns = administrator(x={"m": {"deep": {}}, "f": b""}, y={"g": b""})

    async def main():
        for new, old in (("#x", "/x"), ("#y", "/x/m"), ("#y/g", "/x/f"), ("#x", "/x/m"), ("#y", "/x/m/m/deep")):
            await bind(ns, new, old)
        x = ns.devices.trees["x"]
        await (await x.lookup("m", ROOT)).rmdir("deep", ROOT)
        await x.rmdir("m", ROOT)
        await x.unlink("f", ROOT)
        again = Namespace(ns.devices, label="again")
        await run(dump(ns.table), again, writer=ns, who=ROOT)
        assert again.table == ns.table
        assert dump(again.table) == dump(ns.table)

    trio.run(main)


def test_a_task_replays_its_dump_on_another_and_needs_no_administrator():
    admin = administrator(host={"usr": {"bin": {"ls": b""}}, "etc": {}}, x={}, srv={})

    async def main():
        await run("bind -r #host/usr /usr\nbind -r /usr/bin /bin\nbind -a #x /bin\n", admin, writer=admin, who=ROOT)
        one = admin.fork(Board(admin.devices.trees, admin=False), label="1", mask=["srv"])
        two = admin.fork(Board(admin.devices.trees, admin=False), label="2")
        await run("clear\nbind #x /other\n", two, writer=two, who=ROOT)
        await run(dump(one.table), two, writer=one, who=ROOT)
        assert two.table == one.table
        with refuses(EPERM):
            await run("bind #host/etc /etc\n", two, writer=one, who=ROOT)

    trio.run(main)


BYTES = st.binary(min_size=1, max_size=60).map(lambda name: name.decode("utf-8", "surrogateescape"))
NAMES = (st.text(min_size=1, max_size=20).filter(lambda name: name.isprintable()) | BYTES).filter(
    lambda name: name not in (".", "..") and "/" not in name and "\0" not in name
)


@given(st.lists(st.tuples(NAMES, NAMES, st.sampled_from(Order), st.booleans(), st.booleans()), max_size=6))
def test_a_dump_of_any_names_parses_back(binds):
    table = EMPTY
    for device_path, name, order, create, readonly in binds:
        table = table.bind(f"/{name}", [member(f"#x/{device_path}", create=create, readonly=readonly)], order)
    again = EMPTY
    first, *rest = (line.command for line in parse(dump(table)))
    assert first == Clear()
    for entry in rest:
        assert isinstance(entry, Bind)
        how = entry.how
        again = again.bind(entry.old, [member(entry.new, create=how.create, readonly=how.readonly)], how.order)
    assert again == table


# The namespace against a model: a list of binds, searched from end to end, over plain dicts.

TREES = {
    "x": {"a": {"a": {}, "b": {"f": b"x.a.b.f"}}, "f": b"x.f"},
    "y": {"a": {"c": {}}, "b": {"a": {"f": b"y.b.a.f"}}, "f": b"y.f"},
    "z": {"c": {"f": b"z.c.f"}, "f": {"a": b"z.f.a"}},
}


class Refused(Exception):
    """What the model would not do."""


class Model:
    """Binds as [path, [(origin, tree, readonly)]], oldest first."""

    def __init__(self):
        self.binds = []

    def at(self, path):
        return next((members for bound, members in self.binds if bound == path), [])

    def look(self, path):
        """Return the members that show at `path`: [] for a directory that leads to binds only, None for nothing."""
        members, here = self.at(()), ()
        for name in path:
            here = (*here, name)
            inner = self.at(here)
            if not inner:
                for origin, tree, readonly in members:
                    if isinstance(tree, dict) and name in tree:
                        inner = [(f"{origin}/{name}", tree[name], readonly)]
                        break
            if not inner and not any(bound[: len(here)] == here for bound, _ in self.binds):
                return None
            members = inner
        return members

    def bind(self, origin, old, order, readonly):
        if origin.startswith("#"):
            device, *names = origin[1:].split("/")
            tree = TREES[device]
            for name in names:
                if not isinstance(tree, dict) or name not in tree:
                    raise Refused
                tree = tree[name]
            sources = [(origin, tree, False)]
        else:
            sources = self.look(tuple(name for name in origin.split("/") if name))
        if not sources:
            raise Refused
        new = [(name, tree, ro or readonly) for name, tree, ro in sources]
        is_dir = isinstance(new[0][1], dict)
        if order is not Order.REPLACE and not is_dir:
            raise Refused
        there = self.look(old)
        if there is None:
            above = next(self.look(old[:n]) for n in range(len(old), -1, -1) if self.look(old[:n]) is not None)
            if above:
                raise Refused
        elif is_dir != (not there or isinstance(there[0][1], dict)):
            raise Refused
        if order is Order.REPLACE:
            self.binds = [entry for entry in self.binds if entry[0] != old] + [(old, new)]
            return
        present = [m for m in self.at(old) or there or [] if m[0] not in {n[0] for n in new}]
        members = new + present if order is BEFORE else present + new
        if self.at(old):
            self.binds = [(bound, members if bound == old else kept) for bound, kept in self.binds]
        else:
            self.binds.append((old, members))

    def unbind(self, old):
        if not self.at(old):
            raise Refused
        self.binds = [entry for entry in self.binds if entry[0] != old]

    def everything(self, path=()):
        members = self.look(path)
        if members and isinstance(members[0][1], bytes):
            return members[0][1]
        names = {name for _, tree, _ in members for name in tree}
        names |= {bound[len(path)] for bound, _ in self.binds if bound[: len(path)] == path and len(bound) > len(path)}
        return {name: self.everything((*path, name)) for name in names}


OLD = st.lists(st.sampled_from(["a", "b", "c", "f"]), max_size=3).map(tuple)
NEW = st.sampled_from(["#x", "#y", "#z", "#x/a", "#x/a/b", "#y/b", "#x/f", "#z/c/f", "#z/none"]) | OLD.map(
    lambda names: "/" + "/".join(names)
)
COMMANDS = st.lists(
    st.tuples(st.just("bind"), NEW, OLD, st.sampled_from(Order), st.booleans()) | st.tuples(st.just("unbind"), OLD),
    max_size=10,
)


def check_against_model(steps):
    trees = {name: planted(name, tree) for name, tree in TREES.items()}
    ns, model = Namespace(Board(trees), label="n"), Model()

    async def main():
        for step in steps:
            kind, *words = step
            try:
                model.bind(*words) if kind == "bind" else model.unbind(*words)
                expected = None
            except Refused:
                expected = Refused
            old = "/" + "/".join(words[1] if kind == "bind" else words[0])
            try:
                if kind == "bind":
                    await bind(ns, words[0], old, order=words[2], readonly=words[3])
                else:
                    await ns.unbind(old, writer=ns, who=ROOT)
                got = None
            except OSError as error:
                assert error.errno in (EINVAL, ENOENT, 20)
                got = Refused
            assert got is expected, step
            shown = [(path, [(str(m.origin), m.readonly) for m in members]) for path, members in ns.table.items()]
            assert shown == [
                ("/" + "/".join(path), [(origin, ro) for origin, _, ro in members]) for path, members in model.binds
            ]
        assert await everything(ns.root) == model.everything()
        again = Namespace(Board(trees), label="again")
        await run(dump(ns.table), again, writer=ns, who=ROOT)
        assert again.table == ns.table
        assert dump(again.table) == dump(ns.table)
        assert await everything(again.root) == model.everything()

    trio.run(main)


@given(COMMANDS)
@settings(max_examples=150)
def test_a_namespace_shows_what_a_list_of_binds_would_and_its_dump_replays(steps):
    check_against_model(steps)


@pytest.mark.long
@given(COMMANDS)
@settings(max_examples=10_000)
def test_a_namespace_shows_what_a_list_of_binds_would_many_times(steps):
    check_against_model(steps)


def test_the_shipped_init_script_binds_devices_and_host_programs_and_no_secret():
    host = {"usr": {}, "bin": "usr/bin", "sbin": {}, "etc": {"services": b"", "shadow": b"", "ssl": {"private": {}}}}
    host["usr"]["bin"] = {"sh": b"#!"}
    named = {str(line.command.new) for line in parse(init_script())}
    devices = {Origin.parse(new).device for new in named} - {"host", "etc"}
    assert {"task", "cap", "srv", "dev", "tmp"} <= devices
    trees = {name: planted(name, {}) for name in devices}
    trees |= {"host": planted("host", host), "etc": planted("etc", {"passwd": b"root", "group": b"", "hosts": b""})}
    ns = Namespace(Board(trees), label="init")

    async def main():
        await run(init_script(), ns, writer=ns, who=ROOT)
        assert set(await ls(ns)) == {*devices, "usr", "bin", "sbin", "etc"}
        assert {"group", "passwd", "hosts", "services"} == set(await ls(ns, "/etc"))
        assert await read(ns, "/bin/sh") == b"#!"
        for path in ("/usr", "/bin", "/sbin", "/etc/services"):
            assert all(m.readonly for m in ns.table.members(path))
        await (await walk(ns.root, "/tmp", ROOT)).mkdir("d", 0o755, ROOT)

    trio.run(main)


def test_the_shipped_init_script_names_no_host_file_that_holds_secrets():
    for line in parse(init_script()):
        assert isinstance(line.command, Bind)
        origin = Origin.parse(line.command.new)
        if origin.device == "host":
            assert line.command.how.readonly
            assert origin.path not in ("", "etc", "etc/ssl", "root", "home", "var", "proc", "sys", "dev", "run")
            assert not {"shadow", "gshadow", "private", "ssh", "sudoers"} & set(origin.path.split("/"))
