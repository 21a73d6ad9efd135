"""The chronicle: what is in it together, what comes back from the disk, what is dropped and what is not."""

import time
from errno import EEXIST, ENOENT, ENOSPC

import pytest

from tasks.model import User
from tasks.sessions.chronicle import Chronicle
from tasks.sessions.model import Session, Spec
from tasks.sessions.states import State, TurnState

USER = User(name="pw-a", uid=1, gid=1, home="session.a")
SPEC = Spec(agent=("x", "y"), binds=("bind a /b",), env={"K": "V"}, timeout=1.5)
SESSION = Session(id="a", state=State.READY, error="", spec=SPEC, user=USER, created=1.0, used=2.0, task=7)


def test_what_is_written_is_there_for_the_next_server(tmp_path):
    first = Chronicle(tmp_path / "db")
    first.put(SESSION)
    first.active = "a"
    first.set_place("a", 123)
    turn = first.add_turn("a", "hällo\u2028", "key")
    first.begin_turn(turn, task=9)
    first.happened("a", "output", {"text": "so "}, turn=turn.id)
    first.happened("a", "output", {"text": "far"}, turn=turn.id)
    first.set_progress(turn.id, {"accepted": True})
    first.close()
    again = Chronicle(tmp_path / "db")
    assert again.sessions() == [SESSION]
    assert (again.active, again.place("a"), again.run_of(turn.id)) == ("a", 123, 9)
    found = again.turn(turn.id)
    assert (found.message, found.output, found.state) == ("hällo\u2028", "so far", TurnState.WORKING)
    assert again.progress(turn.id) == {"accepted": True}
    assert again.last_seq == first.last_seq
    assert again.turn_of_key("a", "key") == found
    again.close()


def test_a_change_is_there_whole_or_not_at_all():
    chronicle = Chronicle(":memory:")
    with pytest.raises(ZeroDivisionError), chronicle.change():
        chronicle.put(SESSION)
        chronicle.happened("a", "opened")
        raise ZeroDivisionError
    assert chronicle.sessions() == [] and chronicle.since(0) == []


def test_a_turn_ends_once():
    chronicle = Chronicle(":memory:")
    turn = chronicle.add_turn("a", "hello")
    chronicle.end_turn(turn.id, TurnState.CANCELLED, "first")
    chronicle.end_turn(turn.id, TurnState.COMPLETED)
    assert (chronicle.turn(turn.id).state, chronicle.turn(turn.id).reason) == (TurnState.CANCELLED, "first")
    assert [row.kind for row in chronicle.since(0)] == ["prompt", "ended"]


def test_a_key_is_taken_once_in_each_session():
    chronicle = Chronicle(":memory:")
    chronicle.add_turn("a", "hello", "key")
    with pytest.raises(OSError) as info:
        chronicle.add_turn("a", "hello", "key")
    assert info.value.errno == EEXIST
    chronicle.add_turn("b", "hello", "key")
    assert len(chronicle.turns()) == 2


def test_numbers_of_happenings_never_come_again(tmp_path):
    chronicle = Chronicle(tmp_path / "db")
    for _ in range(5):
        chronicle.happened("a", "note")
    chronicle.forget_happenings(0)
    chronicle.close()
    again = Chronicle(tmp_path / "db")
    again.happened("a", "note")
    assert [row.seq for row in again.since(0)][-1] == 6
    again.close()


def test_what_is_dropped_is_the_oldest_and_nothing_of_a_turn_under_way():
    chronicle = Chronicle(":memory:")
    for _ in range(10):
        chronicle.happened("a", "note")
    turn = chronicle.add_turn("a", "hello")
    for _ in range(10):
        chronicle.happened("a", "output", {"text": "x"}, turn=turn.id)
    chronicle.forget_happenings(3)
    assert chronicle.oldest_seq() == 11 and chronicle.turn(turn.id).output == "x" * 10
    chronicle.end_turn(turn.id, TurnState.COMPLETED)
    chronicle.forget_happenings(3)
    assert len(chronicle.since(0)) <= 4 and chronicle.turn(turn.id).output == "x" * 10


def test_history_is_kept_for_each_session_and_a_turn_that_is_not_over_always():
    chronicle = Chronicle(":memory:")
    waiting = chronicle.add_turn("a", "waits")
    for session in "ab":
        for number in range(5):
            chronicle.end_turn(chronicle.add_turn(session, str(number)).id, TurnState.COMPLETED)
    chronicle.forget_turns(keep=2, before=0.0)
    assert [turn.message for turn in chronicle.turns("a")] == ["4", "3", "waits"]
    assert [turn.message for turn in chronicle.turns("b")] == ["4", "3"]
    chronicle.forget_turns(keep=2, before=time.time() + 1)
    assert [turn.id for turn in chronicle.turns()] == [waiting.id]


def test_pages_of_history_go_backwards():
    chronicle = Chronicle(":memory:")
    for number in range(5):
        chronicle.add_turn("a", str(number))
    page = chronicle.turns("a", limit=2)
    assert [turn.message for turn in page] == ["4", "3"]
    assert [turn.message for turn in chronicle.turns("a", before=page[-1].id, limit=2)] == ["2", "1"]


def test_a_chronicle_that_cannot_be_written_refuses_prompts(tmp_path):
    chronicle = Chronicle(tmp_path / "db")
    chronicle._db.execute("PRAGMA query_only = 1")
    with pytest.raises(OSError) as info:
        chronicle.add_turn("a", "hello")
    assert info.value.errno == ENOSPC
    chronicle._db.execute("PRAGMA query_only = 0")
    assert chronicle.turns() == []
    with pytest.raises(OSError) as info:
        chronicle.turn(1)
    assert info.value.errno == ENOENT
    chronicle.close()
