"""The life of a session, and of one turn in it, as tables: (state, event) -> state. What is not listed is refused."""

from enum import StrEnum
from errno import EBUSY, ENOENT


class State(StrEnum):
    MISSING = "missing"
    """There is none of that name."""
    CREATING = "creating"
    """Its agent is being started."""
    READY = "ready"
    """It can work at once; nothing runs."""
    ACTIVE = "active"
    """At least one turn runs."""
    IDLE = "idle"
    """Its agent was stopped to save memory; the next prompt or switch starts it again."""
    ERRORED = "errored"
    """Its agent cannot be started, and `error` says why; a prompt, a switch or `open` tries again."""
    STOPPED = "stopped"
    """Stopped by request; a prompt, a switch or `open` starts it again."""
    ARCHIVED = "archived"
    """Kept, but works no more until it is opened again."""


class Event(StrEnum):
    OPEN = "open"
    WAKE = "wake"
    UP = "come up"
    FAIL = "fail"
    BEGIN = "begin a turn in"
    SETTLE = "settle"
    DIE = "lose the agent of"
    REST = "rest"
    STOP = "stop"
    ARCHIVE = "archive"
    REMOVE = "remove"


_NO_AGENT = (State.IDLE, State.ERRORED, State.STOPPED)
_AGENT = (State.READY, State.ACTIVE)
_KNOWN = tuple(state for state in State if state is not State.MISSING)

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.MISSING, Event.OPEN): State.CREATING,
    (State.ARCHIVED, Event.OPEN): State.CREATING,
    (State.CREATING, Event.UP): State.READY,
    (State.CREATING, Event.FAIL): State.ERRORED,
    **{(state, Event.BEGIN): State.ACTIVE for state in _AGENT},
    (State.ACTIVE, Event.SETTLE): State.READY,
    **{(state, Event.REST): State.IDLE for state in (State.CREATING, *_AGENT)},
    **{(state, event): State.CREATING for state in _NO_AGENT for event in (Event.OPEN, Event.WAKE)},
    **{(state, event): state for state in (State.CREATING, *_AGENT) for event in (Event.OPEN, Event.WAKE)},
    **{(state, Event.DIE): State.CREATING for state in _AGENT},
    **{(state, Event.STOP): State.STOPPED for state in _KNOWN if state is not State.ARCHIVED},
    **{(state, Event.ARCHIVE): State.ARCHIVED for state in _KNOWN},
    **{(state, Event.REMOVE): State.MISSING for state in _KNOWN},
}


def next_state(state: State, event: Event) -> State:
    """Return the state after `event`. ENOENT where there is no session, EBUSY where the event does not fit."""
    target = TRANSITIONS.get((state, event))
    if target is None:
        if state is State.MISSING:
            raise OSError(ENOENT, "no such session")
        raise OSError(EBUSY, f"cannot {event} a session that is {state}")
    return target


class TurnState(StrEnum):
    QUEUED = "queued"
    WORKING = "working"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED)


UNKNOWN = "unknown"
"""What is said of a turn that never existed."""
INTERRUPTED = "interrupted"
"""The reason of a turn that was under way when its agent or the supervisor was lost."""
