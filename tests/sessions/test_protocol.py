"""pi's RPC without I/O: lines however they are cut, and what a turn's messages come to."""

import json

from hypothesis import given
from hypothesis import strategies as st

from tasks.sessions import protocol
from tasks.sessions.live import outcome
from tasks.sessions.protocol import MAX_OUTPUT, Lines, Progress, decode, encode, fold, joined
from tasks.sessions.states import TurnState


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)), st.data())
def test_lines_are_the_same_however_the_stream_is_cut(lines, data):
    stream = b"".join(line + b"\n" for line in lines) + b"tail"
    cut, fed, at = Lines(0), [], 0
    while at < len(stream):
        end = data.draw(st.integers(at + 1, len(stream)))
        fed += cut.feed(stream[at:end])
        at = end
    assert fed == lines
    assert (cut.taken, cut.position) == (len(stream) - 4, len(stream))


def test_a_line_that_is_too_long_is_passed_over(monkeypatch):
    monkeypatch.setattr(protocol, "MAX_LINE", 10)
    lines = Lines(0)
    assert [*lines.feed(b"a\n" + b"x" * 8), *lines.feed(b"x" * 8), *lines.feed(b"x\nb\n")] == [b"a", b"b"]
    assert lines.taken == lines.position == 22


def test_what_was_lost_costs_the_line_that_it_cuts():
    lines = Lines(0)
    assert list(lines.feed(b"a\nbroken")) == [b"a"]
    lines.skip_to(100)
    assert list(lines.feed(b"rest\nc\n")) == [b"c"]
    assert lines.taken == 107


@given(st.text())
def test_any_text_makes_one_line_and_comes_back(text):
    line = encode({"message": text})
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert decode(line) == {"message": text}


def test_line_separators_of_unicode_are_data():
    assert encode({"m": "a\u2028b"}).count(b"\n") == 1


def test_what_is_no_message_is_none():
    for line in (b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000):
        assert decode(line) is None


def told(progress, *messages):
    return joined([seen for message in messages for seen in fold(progress, message)])


def delta(text, kind="text_delta"):
    return {"type": "message_update", "assistantMessageEvent": {"type": kind, "delta": text}}


def ended(**message):
    return {"type": "message_end", "message": {"role": "assistant", **message}}


def test_a_turn_from_prompt_to_end():
    progress = Progress()
    seen = told(
        progress,
        {"type": "response", "command": "prompt", "success": True},
        {"type": "agent_start"},
        {"type": "message_start"},
        delta("think", "thinking_delta"),
        delta("he"),
        delta("llo"),
        ended(stopReason="toolUse", usage={"input": 3, "cost": {"total": 1}}),
        {"type": "tool_execution_start", "toolCallId": "1", "toolName": "bash"},
        {"type": "tool_execution_end", "toolCallId": "1", "toolName": "bash", "isError": True},
        {"type": "message_start"},
        delta("done"),
        ended(stopReason="stop", usage={"input": 4}),
        {"type": "agent_end"},
    )
    assert [(kind, data.get("text")) for kind, data in seen if kind != "tool"] == [
        ("thinking", "think"),
        ("output", "hello"),
        ("output", "\n\ndone"),
    ]
    assert [data["failed"] for kind, data in seen if kind == "tool"] == [False, True]
    assert (progress.accepted, progress.finished, progress.busy, progress.usage) == (True, True, False, {"input": 7})
    assert outcome(progress) == (TurnState.COMPLETED, "")
    assert Progress.from_kept(json.loads(json.dumps(progress.kept()))) == progress


def test_an_agent_that_tries_again_is_not_at_its_end():
    progress = Progress()
    told(progress, {"type": "agent_end"}, {"type": "auto_retry_start"})
    assert progress.finished and progress.busy
    told(progress, {"type": "agent_start"}, {"type": "auto_retry_end"}, {"type": "agent_end"})
    assert progress.finished and not progress.busy


def test_refusals_and_errors_are_failures_with_their_reason():
    refused = Progress()
    told(refused, {"type": "response", "command": "prompt", "success": False, "error": "no model"})
    assert outcome(refused) == (TurnState.FAILED, "no model")
    failed = Progress()
    told(failed, ended(stopReason="error", errorMessage="too long"))
    assert outcome(failed) == (TurnState.FAILED, "too long")
    aborted = Progress()
    told(aborted, ended(stopReason="aborted"))
    assert outcome(aborted)[0] is TurnState.CANCELLED


def test_a_second_answer_to_a_prompt_that_was_taken_means_nothing():
    progress = Progress()
    told(progress, {"type": "response", "command": "prompt", "success": True})
    told(progress, {"type": "response", "command": "prompt", "success": False, "error": "already at work"})
    assert progress.accepted and not progress.refused


def test_an_answer_without_end_is_kept_up_to_its_limit():
    progress = Progress()
    seen = told(progress, *(delta("x" * 100_000) for _ in range(20)))
    assert len(seen[0][1]["text"]) == progress.written == MAX_OUTPUT


KINDS = ("message_update", "message_end", "response", "agent_end", "tool_execution_end", "x")
NAMES = st.sampled_from(["type", "delta", "role", "usage", "message", "assistantMessageEvent"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
)


@given(ANYTHING, st.sampled_from(KINDS))
def test_messages_of_any_shape_do_no_harm(value, kind):
    progress = Progress()
    for name in ("message", "assistantMessageEvent", "command", "toolName"):
        fold(progress, {"type": kind, name: value})
    assert Progress.from_kept(progress.kept()) == progress
