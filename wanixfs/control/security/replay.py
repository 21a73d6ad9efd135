"""A worker's memory of what it was told to run: an assignment that was recorded and sent again does not run again."""

from collections import OrderedDict
from collections.abc import Callable
from errno import EACCES, EALREADY
from time import time

from wanixfs.control.model import RunId

MAX_AGE_MS = 300_000
MAX_KEPT = 100_000


class ReplayGuard:
    """Remembers run ids and nonces for as long as an assignment may be old; older ones need no memory to be refused.

    A full memory refuses, for forgetting early would let through what was seen.
    """

    def __init__(
        self,
        *,
        max_age_ms: int = MAX_AGE_MS,
        max_kept: int = MAX_KEPT,
        now_ms: Callable[[], int] = lambda: int(time() * 1_000),
    ) -> None:
        self._max_age_ms = max_age_ms
        self._max_kept = max_kept
        self._now_ms = now_ms
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()

    def check(self, run_id: RunId, nonce: str, issued_at_ms: int) -> None:
        """Let an assignment pass once. EACCES: stale, from the future, or without a nonce. EALREADY: seen."""
        now_ms = self._now_ms()
        if abs(now_ms - issued_at_ms) > self._max_age_ms:
            raise OSError(EACCES, f"the assignment of run {run_id} is of another time")
        if not nonce:
            raise OSError(EACCES, f"the assignment of run {run_id} has no nonce")
        # From the future by as much as may be, an assignment could come again until it is as old as may be.
        while self._seen and next(iter(self._seen.values())) + 2 * self._max_age_ms < now_ms:
            self._seen.popitem(last=False)
        marks = ("run", run_id), ("nonce", nonce)
        if any(mark in self._seen for mark in marks):
            raise OSError(EALREADY, f"run {run_id} was assigned before")
        if len(self._seen) + len(marks) > self._max_kept:
            raise OSError(EACCES, "too many assignments at a time")
        for mark in marks:
            self._seen[mark] = now_ms
