"""A task's life is what its tables and its runs say, in whatever order workers speak."""

from dataclasses import replace
from errno import EACCES, EBUSY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanixfs.control import lifecycle
from wanixfs.control.model import (
    FanOut,
    Needs,
    Retry,
    Run,
    RunId,
    RunStatus,
    Task,
    TaskId,
    TaskSpec,
    TaskStatus,
    WorkerId,
)

W = WorkerId("w")


def made(**spec: object) -> Task:
    return Task(id=TaskId("t"), spec=TaskSpec(needs=Needs(agent="echo"), **spec), created_at_ms=0)  # type: ignore[arg-type]


def given_out(task: Task, *names: str) -> Task:
    for name in names:
        task = lifecycle.assign(task, RunId(name), W, 1)
    return task


def last(task: Task) -> Run:
    return task.runs[-1]


def test_terminal_statuses_lead_nowhere() -> None:
    assert {status for status in RunStatus if lifecycle.is_over(status)} == {"COMPLETED", "FAILED", "CANCELLED"}
    assert {status for status in TaskStatus if lifecycle.is_over(status)} == {"COMPLETED", "FAILED", "CANCELLED"}


def test_a_run_completes_its_task() -> None:
    task = given_out(made(), "r")
    assert task.status == TaskStatus.RUNNING and lifecycle.open_lanes(task) == ()
    task = lifecycle.report(task, RunId("r"), RunStatus.RUNNING, 2)
    task = lifecycle.report(task, RunId("r"), RunStatus.COMPLETED, 5, backend="m")
    assert (task.status, task.finished_at_ms) == (TaskStatus.COMPLETED, 5)
    assert (last(task).started_at_ms, last(task).finished_at_ms, last(task).backend_used) == (2, 5, "m")


def test_a_late_completion_never_overwrites_a_cancel() -> None:
    task = lifecycle.cancel(given_out(made(), "r"), 3, "enough")
    assert last(task).stopping == "enough" and not lifecycle.is_over(last(task).status)
    task = lifecycle.report(task, RunId("r"), RunStatus.COMPLETED, 4)
    assert (task.status, last(task).status, last(task).error_message) == ("CANCELLED", "CANCELLED", "enough")
    assert task.finished_at_ms == 3


def test_a_task_that_is_over_cannot_be_cancelled() -> None:
    task = lifecycle.report(given_out(made(), "r"), RunId("r"), RunStatus.COMPLETED, 2)
    with pytest.raises(OSError) as refused:
        lifecycle.cancel(task, 3, "")
    assert refused.value.errno == EBUSY


def test_a_lost_run_is_tried_again_as_often_as_the_policy_says() -> None:
    task = given_out(made(retry=Retry(max_attempts=3, backoff_ms=100)), "a")
    task = lifecycle.lose(task, RunId("a"), 10, "gone")
    assert (task.status, lifecycle.open_lanes(task), task.not_before_ms) == ("RUNNING", (0,), 110)
    task = lifecycle.lose(given_out(task, "b"), RunId("b"), 200, "gone")
    assert task.not_before_ms == 400
    task = lifecycle.lose(given_out(task, "c"), RunId("c"), 500, "gone for good")
    assert (task.status, task.error_message, lifecycle.open_lanes(task)) == ("FAILED", "gone for good", ())


@pytest.mark.parametrize(("on_failure", "status"), [(False, "FAILED"), (True, "RUNNING")])
def test_a_failure_is_final_unless_the_policy_says_otherwise(on_failure: bool, status: str) -> None:
    task = given_out(made(retry=Retry(max_attempts=2, on_failure=on_failure)), "a")
    assert lifecycle.report(task, RunId("a"), RunStatus.FAILED, 2, error="exit 1").status == status


@pytest.mark.parametrize(
    ("wanted", "completions", "status"),
    [(1, 1, "COMPLETED"), (2, 1, "RUNNING"), (2, 2, "COMPLETED"), (3, 2, "RUNNING")],
)
def test_fan_out_completes_with_the_wanted_number(wanted: int, completions: int, status: str) -> None:
    task = given_out(made(fan_out=FanOut(runs=3, wanted=wanted)), "a", "b", "c")
    assert [run.lane for run in task.runs] == [0, 1, 2]
    for name in "abc"[:completions]:
        task = lifecycle.report(task, RunId(name), RunStatus.COMPLETED, 2)
    assert task.status == status
    told = [bool(run.stopping) for run in lifecycle.live_runs(task)]
    assert told == [status == "COMPLETED"] * (3 - completions)


def test_fan_out_fails_as_soon_as_the_wanted_number_is_out_of_reach() -> None:
    task = given_out(made(fan_out=FanOut(runs=3, wanted=2)), "a", "b", "c")
    task = lifecycle.report(task, RunId("a"), RunStatus.FAILED, 2, error="one")
    assert task.status == "RUNNING"
    task = lifecycle.report(task, RunId("b"), RunStatus.FAILED, 3, error="two")
    assert (task.status, task.error_message, last(task).stopping) == ("FAILED", "two", "two")


def test_a_deadline_fails_a_task_and_stops_its_runs() -> None:
    task = given_out(made(deadline_ms=50), "r")
    assert lifecycle.expire(task, 49) == task
    task = lifecycle.expire(task, 50)
    assert (task.status, task.error_message, last(task).stopping) == (
        "FAILED",
        "deadline exceeded",
        "deadline exceeded",
    )
    assert lifecycle.expire(task, 99) == task


def test_a_run_is_spoken_of_by_its_own_worker_only() -> None:
    run = last(given_out(made(), "r"))
    assert lifecycle.owned(run, W) is run
    with pytest.raises(OSError) as refused:
        lifecycle.owned(run, WorkerId("thief"))
    assert refused.value.errno == EACCES


MOVES = st.lists(
    st.tuples(st.sampled_from(["assign", "lose", "cancel", "expire", *RunStatus]), st.integers(0, 5)), max_size=30
)


@given(MOVES, st.integers(1, 3), st.integers(1, 3), st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_whatever_comes_in_whatever_order_what_is_over_stays(
    moves: list[tuple[str, int]], runs: int, attempts: int, on_failure: bool
) -> None:
    retry = Retry(max_attempts=attempts, on_failure=on_failure)
    task = made(fan_out=FanOut(runs=runs, wanted=runs), retry=retry, deadline_ms=20)
    for now, (move, which) in enumerate(moves, 1):
        before, run_id = task, RunId(str(which % max(len(task.runs), 1)))
        if move == "assign" and lifecycle.open_lanes(task):
            task = lifecycle.assign(task, RunId(str(len(task.runs))), W, now)
        elif move == "lose":
            task = lifecycle.lose(task, run_id, now, "lost")
        elif move == "cancel" and not lifecycle.is_over(task.status):
            task = lifecycle.cancel(task, now, "cancelled")
        elif move == "expire":
            task = lifecycle.expire(task, now)
        elif move in set(RunStatus):
            task = lifecycle.report(task, run_id, RunStatus(move), now)
        if lifecycle.is_over(before.status):
            assert replace(task, runs=()) == replace(before, runs=())
            assert all(run.stopping for run in lifecycle.live_runs(task))
        for old, new in zip(before.runs, task.runs, strict=False):
            assert new.status == old.status or new.status in lifecycle.RUN_NEXT[old.status]
        lanes = [run.lane for run in lifecycle.live_runs(task)]
        assert len(lanes) == len(set(lanes)) and max(map([r.lane for r in task.runs].count, range(runs))) <= attempts
