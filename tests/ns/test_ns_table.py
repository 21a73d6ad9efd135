"""ns.table: the immutable bind table against a list that is searched from end to end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nskit import member

from ns.table import EMPTY, MAX_DEPTH, Member, Order, Origin, names_of

ORDERS = st.sampled_from(Order)
ELEMENTS = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(ELEMENTS, max_size=3).map(lambda names: "/" + "/".join(names))
ORIGINS = st.sampled_from([Origin("x", "p"), Origin("x", "p/q"), Origin("x"), Origin("y", "p"), Origin("z")])


@pytest.mark.parametrize("text", ["#task", "#task/5/fd", "#host/usr/bin", "#mem/a b", "#host/\udcff\n"])
def test_an_origin_prints_as_it_parses(text):
    assert str(Origin.parse(text)) == text


@pytest.mark.parametrize("text", ["", "task", "/task", "#", "#/x", "#a b", "#host/../etc", "#" + "x" * 33, "#.x"])
def test_what_is_no_device_path_is_no_origin(text):
    with pytest.raises(OSError, match="Errno 22"):
        Origin.parse(text)


def test_an_origin_is_kept_in_one_spelling():
    assert Origin.parse("#host//usr/./bin/") == Origin("host", "usr/bin")


def test_an_origin_knows_what_is_above_it():
    assert [str(origin) for origin in Origin("h", "a/b").upward()] == ["#h/a/b", "#h/a", "#h"]
    assert Origin("h", "a/b/c").below(Origin("h", "a")) == ["b", "c"]
    assert Origin("h", "a").below(Origin("h")) == ["a"]


@pytest.mark.parametrize(
    ("path", "names"), [("/", ()), ("//a/./b/", ("a", "b")), ("/../a/../b", ("b",)), ("/a\nb", ("a\nb",))]
)
def test_a_path_is_normalised(path, names):
    assert names_of(path) == names


@pytest.mark.parametrize(
    ("path", "errno"),
    [("a", 22), ("", 22), ("/a\0", 2), ("/" + "x" * 256, 36), ("/" + "a/" * 2048, 36), ("/a" * (MAX_DEPTH + 1), 36)],
)
def test_a_path_that_no_directory_can_have_is_refused(path, errno):
    with pytest.raises(OSError, match=f"Errno {errno}"):
        names_of(path)


def test_the_longest_and_deepest_paths_can_be_bound():
    deep, long = "/a" * MAX_DEPTH, "/" + "/".join(["x" * 255] * 16)
    table = EMPTY.bind(deep, [member("#x")]).bind(long, [member("#y")])
    assert len(long) == 4096
    assert table.members(deep) == (member("#x"),)
    assert table.children_below("/") == {"a", "x" * 255}
    assert table.unbind(deep).unbind(long) == EMPTY
    assert table.unbind(deep).unbind(long).size == 0


def test_a_member_of_a_union_that_is_bound_again_moves():
    table = EMPTY.bind("/u", [member("#x")]).bind("/u", [member("#y")], Order.AFTER)
    table = table.bind("/u", [member("#x", create=True)], Order.AFTER)
    assert [str(m.origin) for m in table.members("/u")] == ["#y", "#x"]
    assert table.members("/u")[1].create


def test_the_same_origin_can_be_held_at_several_paths_and_let_go_one_by_one():
    table = EMPTY.bind("/a", [member("#x/p", readonly=True)]).bind("/b", [member("#x/p")])
    assert table.holder(Origin("x", "p/q")).readonly is False
    table = table.unbind("/b")
    assert table.holder(Origin("x", "p/q")).readonly is True
    assert table.unbind("/a").holder(Origin("x", "p/q")) is None


def test_the_nearest_holder_wins():
    table = EMPTY.bind("/a", [member("#x")]).bind("/b", [member("#x/p/q", readonly=True)])
    assert table.holder(Origin("x", "p/q/r")).origin == Origin("x", "p/q")
    assert table.holder(Origin("x", "other")).origin == Origin("x")
    assert table.holder(Origin("y")) is None


def test_binding_again_replaces_the_node_even_where_nothing_else_differs():
    old, new = object(), object()
    table = EMPTY.bind("/a", [Member(Origin("x"), old)]).bind("/a", [Member(Origin("x"), new)])
    assert table.members("/a")[0].node is new
    assert table.holder(Origin("x")).node is new


def test_masks_outlive_clear_and_only_grow():
    table = EMPTY.bind("/a", [member("#x")]).masked(mask=["srv"], hidden=[Origin("x", "s")])
    assert table.masked(mask=["srv"]) is table
    cleared = table.clear().masked(mask=["cap"])
    assert cleared.mask == {"srv", "cap"}
    assert cleared.hidden == {Origin("x", "s")}
    assert cleared.items() == []


def test_hidden_things_are_found_wherever_they_are_bound():
    table = EMPTY.bind("/u", [member("#h/usr")]).bind("/all", [member("#h")]).bind("/s", [member("#h/usr/s/t")])
    table = table.masked(hidden=[Origin("h", "usr/s")])
    assert sorted(table.hidden_paths()) == ["/all/usr/s", "/u/s"]
    assert table.bind("/all/usr", [member("#x")]).hidden_paths() == ["/u/s"]
    assert sorted(table.bind("/all/usr/s/deep", [member("#x")]).hidden_paths()) == ["/all/usr/s", "/u/s"]
    whole = table.bind("/m", [member("#h/usr/s")])
    assert "/m" in whole.hidden_paths()
    assert "/m" not in whole.bind("/m", [member("#x")], Order.AFTER).hidden_paths()
    assert table.revealed([Origin("h", "usr/s")]).hidden_paths() == []


class Model:
    """The plainest thing that could be right: a list of paths in the order bound, searched from end to end."""

    def __init__(self):
        self.binds = []

    def at(self, path):
        return next((members for bound, members in self.binds if bound == path), [])

    def put(self, path, members):
        if any(bound == path for bound, _ in self.binds):
            self.binds = [(bound, members if bound == path else old) for bound, old in self.binds]
        else:
            self.binds.append((path, members))
        self.binds = [(bound, old) for bound, old in self.binds if old]

    def bind(self, path, new, order):
        old = [m for m in self.at(path) if m.origin not in {n.origin for n in new}]
        if order is Order.REPLACE or not self.at(path):
            self.binds = [(bound, members) for bound, members in self.binds if bound != path]
            self.put(path, list(new))
        else:
            self.put(path, list(new) + old if order is Order.BEFORE else old + list(new))

    def unbind(self, path, origin):
        self.put(path, [m for m in self.at(path) if origin is not None and m.origin != origin])

    def below(self, path):
        prefix = path.rstrip("/") + "/"
        inside = [bound for bound, _ in self.binds if bound.startswith(prefix) and bound != path]
        return {bound[len(prefix) :].split("/")[0] for bound in inside}

    def size(self):
        places = {"/" if not bound.rstrip("/") else bound for bound, _ in self.binds}
        for bound, _ in self.binds:
            names = names_of(bound)
            places |= {"/" + "/".join(names[:n]) for n in range(len(names) + 1)}
        return len(places) + sum(len(members) for _, members in self.binds)

    def holds(self, origin):
        held = [m for _, members in self.binds for m in members]
        for above in origin.upward():
            found = [m.readonly for m in held if m.origin == above]
            if found:
                return above, min(found)
        return None


SOURCES = st.lists(ORIGINS, min_size=1, max_size=2, unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("bind"), PATHS, st.lists(ORIGINS, min_size=1, max_size=2, unique=True), ORDERS, st.booleans()
        ),
        st.tuples(st.just("unbind"), PATHS, st.none() | ORIGINS),
    ),
    max_size=25,
)


@given(STEPS)
def test_the_table_does_what_a_list_does(steps):
    model, table = Model(), EMPTY
    versions = []
    for step in steps:
        if step[0] == "bind":
            _, path, origins, order, readonly = step
            members = [Member(origin, readonly=readonly) for origin in origins]
            model.bind(path, members, order)
            table = table.bind(path, members, order)
        else:
            _, path, origin = step
            model.unbind(path, origin)
            table = table.unbind(path, None if origin is None else [origin])
        assert table.items() == [(path, tuple(members)) for path, members in model.binds]
        assert table.size == model.size()
        for path in ["/", "/a", "/b", "/a/b", "/a/b/c", "/c/c"]:
            assert table.members(path) == tuple(model.at(path))
            assert table.children_below(path) == model.below(path)
        for origin in [Origin("x", "p/q/r"), Origin("x"), Origin("y", "p"), Origin("z", "o")]:
            holder = table.holder(origin)
            assert (holder and (holder.origin, holder.readonly)) == model.holds(origin)
        versions.append((table, table.items()))
    for version, items in versions:
        assert version.items() == items


def test_equality_is_about_what_shows_not_about_age():
    one = EMPTY.bind("/a", [member("#x")]).bind("/b", [member("#y")])
    other = EMPTY.bind("/b", [member("#y")]).bind("/a", [member("#x")])
    assert one == other
    assert one != other.bind("/b", [member("#y", readonly=True)])
    assert one != one.masked(mask=["srv"])
    assert one != one.bind("/a", [member("#z")], Order.AFTER)
    assert one != "a table"
