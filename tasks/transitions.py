"""The life of a task as a table: (state, event) -> state. Everything not listed is refused.

The four words that `status` shows are states; `waiting` (for another task's
end) and `starting` (between the verb and exec) show as `allocated`.
"""

from enum import StrEnum
from errno import EBUSY, ESRCH


class State(StrEnum):
    ALLOCATED = "allocated"
    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    EXITED = "exited"

    @property
    def shown(self) -> str:
        return "allocated" if self in (State.WAITING, State.STARTING) else self.value

    @property
    def configurable(self) -> bool:
        """Whether what a task will be can still be changed."""
        return self in (State.ALLOCATED, State.WAITING)

    @property
    def live(self) -> bool:
        """Whether it has a process."""
        return self in (State.RUNNING, State.STOPPED)


class Event(StrEnum):
    START = "start"
    WAIT = "wait"
    RELEASED = "released"
    STARTED = "started"
    FAILED = "failed"
    PAUSE = "pause"
    RESUME = "resume"
    EXITED = "exited"
    RESTART = "restart"
    CANCEL = "cancel"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.ALLOCATED, Event.START): State.STARTING,
    (State.ALLOCATED, Event.WAIT): State.WAITING,
    (State.WAITING, Event.RELEASED): State.STARTING,
    (State.WAITING, Event.CANCEL): State.EXITED,
    (State.STARTING, Event.STARTED): State.RUNNING,
    (State.STARTING, Event.FAILED): State.ALLOCATED,
    (State.STARTING, Event.EXITED): State.EXITED,
    (State.RUNNING, Event.PAUSE): State.STOPPED,
    (State.STOPPED, Event.RESUME): State.RUNNING,
    (State.RUNNING, Event.EXITED): State.EXITED,
    (State.STOPPED, Event.EXITED): State.EXITED,
    (State.RUNNING, Event.RESTART): State.STARTING,
    (State.STOPPED, Event.RESTART): State.STARTING,
}

# What a refused event means to its writer: no process to act on, or the wrong moment.
_NEEDS_PROCESS = {Event.PAUSE, Event.RESUME}


def next_state(state: State, event: Event) -> State:
    """Return the state after `event`. EBUSY where it does not fit; ESRCH where it needs a process and there is none."""
    target = TRANSITIONS.get((state, event))
    if target is None:
        if event in _NEEDS_PROCESS and not state.live:
            raise OSError(ESRCH, f"the task has no process: {state.shown}")
        raise OSError(EBUSY, f"cannot {event} a task that is {state.shown}")
    return target
