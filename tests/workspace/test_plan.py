"""What a sync decides: the table of one path, and what follows for the folders around it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.workspace.entries import Entry, leads_out
from tasks.workspace.plan import Choice, Move, Pair, Transfer, choose, make_plan

OLD = Entry("f", 0o644, 1, 1, 1, 1)
NEW = Entry("f", 0o644, 2, 2, 1, 2)
OTHER = Entry("f", 0o644, 3, 3, 1, 3)
SAME_SIZE = Entry("f", 0o644, 2, 9, 1, 9)
FOLDER = Entry("d", 0o755)
BASE = Pair(OLD, OLD)
IN_STEP = Pair(FOLDER, FOLDER)


@pytest.mark.parametrize(
    ("base", "left", "right", "choice"),
    [
        (BASE, OLD, OLD, Choice.KEEP),
        (BASE, NEW, OLD, Choice.TO_RIGHT),
        (BASE, OLD, NEW, Choice.TO_LEFT),
        (BASE, None, OLD, Choice.TO_RIGHT),
        (BASE, OLD, None, Choice.TO_LEFT),
        (BASE, None, None, Choice.KEEP),
        (BASE, None, NEW, Choice.TO_LEFT),
        (BASE, NEW, None, Choice.TO_RIGHT),
        (BASE, NEW, OTHER, Choice.ASIDE),
        (BASE, NEW, SAME_SIZE, Choice.COMPARE),
        (BASE, FOLDER, NEW, Choice.ASIDE),
        (None, NEW, None, Choice.TO_RIGHT),
        (None, None, NEW, Choice.TO_LEFT),
        (None, NEW, SAME_SIZE, Choice.COMPARE),
        (None, NEW, OTHER, Choice.ASIDE),
        (None, FOLDER, FOLDER, Choice.COMPARE),
        (None, Entry("l", target="a"), Entry("l", target="b"), Choice.ASIDE),
    ],
)
def test_choice_of_one_path(base, left, right, choice):
    assert choose(base, left, right) is choice


def test_deleted_folder_stays_where_it_holds_something_new():
    plan = make_plan({"d": IN_STEP, "d/old": BASE}, {}, {"d": FOLDER, "d/old": OLD, "d/new": NEW}, set())
    assert plan.folders == [Transfer("d", False)]
    assert plan.files == [Transfer("d/new", False)]
    assert plan.removals == [Transfer("d/old", True)]
    assert plan.restored == ["d"]


def test_folder_that_became_a_file_is_a_conflict_with_what_is_new_in_it():
    plan = make_plan({"d": IN_STEP}, {"d": NEW}, {"d": FOLDER, "d/new": NEW}, set())
    assert plan.aside == ["d"]


def test_renamed_file_is_moved():
    plan = make_plan({"a": BASE}, {"b": OLD._replace(ctime=7)}, {"a": OLD}, set())
    assert plan.moves == [Move("a", "b", True)]
    assert not plan.removals and not plan.files


def test_renamed_file_that_changed_on_the_other_side_is_no_move():
    plan = make_plan({"a": BASE}, {"b": OLD}, {"a": NEW}, set())
    assert plan.files == [Transfer("a", False), Transfer("b", True)]
    assert plan.restored == ["a"]


def test_nothing_below_an_unreadable_folder_is_touched():
    base = {"d": IN_STEP, "d/a": BASE, "b": BASE}
    plan = make_plan(base, {}, {"d": FOLDER, "d/a": NEW, "b": OLD}, {"d"})
    assert plan.removals == [Transfer("b", True)]
    assert not plan.files and not plan.folders


def test_link_that_leads_out_does_not_leave_the_session():
    plan = make_plan({}, {}, {"out": Entry("l", target="/etc/passwd"), "in": Entry("l", target="sub/x")}, set())
    assert plan.refused == ["out"]
    assert plan.files == [Transfer("in", False)]


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        ("a", "b", False),
        ("a", "/b", True),
        ("a", "..", True),
        ("d/a", "../b", False),
        ("d/a", "../../b", True),
        ("d/a", "./../../b", True),
        ("d/e/a", "x/../..", True),
        ("d/a", "b/..", True),
    ],
)
def test_link_leads_out(path, target, out):
    assert leads_out(path, target) is out


ENTRIES = st.one_of(
    st.none(),
    st.just(FOLDER),
    st.builds(lambda n: Entry("f", 0o644, n, n, n, n), st.integers(1, 3)),
)
NAMES = ("a", "d", "d/x", "d/x/y", "e", "e/z")


def tree(draw):
    entries = {}
    for name in NAMES:
        entry = draw(ENTRIES)
        above = name.rpartition("/")[0]
        if entry is not None and (not above or entries.get(above, OLD).kind == "d"):
            entries[name] = entry
    return entries


TREES = st.composite(tree)()


@settings(max_examples=500)
@given(TREES, TREES, TREES)
def test_every_path_that_is_anywhere_is_in_the_plan(base, left, right):
    plan = make_plan({name: Pair(entry, entry) for name, entry in base.items()}, left, right, set())
    moved = {each.path for each in plan.moves} | {each.old for each in plan.moves}
    told = moved | set(plan.kept) | set(plan.compare) | set(plan.aside)
    told |= {each.path for each in (*plan.removals, *plan.folders, *plan.files)}
    assert told == {*left, *right}


@settings(max_examples=500)
@given(TREES, TREES, TREES)
def test_only_what_the_other_side_has_seen_is_removed(base, left, right):
    plan = make_plan({name: Pair(entry, entry) for name, entry in base.items()}, left, right, set())
    for path, to_right in plan.removals:
        assert (right if to_right else left)[path] == base[path]
