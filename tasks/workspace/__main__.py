"""The program of one sync: `LEFT RIGHT RECORD [UID GID]`. Says how far it is, and its report, in JSON lines."""

import fcntl
import gc
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))  # started alone, without the environment's packages

from tasks.workspace.manifest import lock
from tasks.workspace.passes import Progress, sync
from tasks.workspace.side import Side

INTERVAL = 0.2
"""Seconds between two lines of progress at the least."""


class Teller:
    """Writes progress, but not more often than anyone can read."""

    def __init__(self) -> None:
        self._next = time.monotonic() + INTERVAL

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + INTERVAL
            say({"progress": progress._asdict()})


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


def main(words: list[str]) -> int:
    gc.disable()  # many small objects, none of them in a cycle
    left, right, record, *owner = words
    with lock(Path(record)).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            folders = (Side(Path(left)), Side(Path(right), (int(owner[0]), int(owner[1])) if owner else None))
            report = sync(*folders, Path(record), Teller())
        except OSError as error:
            say({"error": error.errno, "detail": error.strerror or os.strerror(error.errno or 0)})
            return 1
    say({"report": asdict(report)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
