"""What the server knows of a session's workspace: where its folders are, and how to bring them in step."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from errno import EIO
from pathlib import Path
from typing import Any

import trio

from tasks.workspace import __main__ as program
from tasks.workspace.manifest import Conflict, load_conflicts
from tasks.workspace.passes import Progress, Report

MAX_LINE = 256 << 20
"""Bytes of a report at the most: every path of it may be a problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """The host's `folder`, its copy `work` that belongs to uid and gid, and the file that remembers both."""

    folder: Path
    work: Path
    record: Path
    uid: int
    gid: int

    async def sync(self, tell: Callable[[Progress], None] = lambda progress: None) -> Report:
        """Bring both folders in step and return what was done; `tell` hears how far it is, some times a second.

        Runs in a process of its own. Two syncs of one workspace follow one another. OSError: a folder that is not there
        or cannot be read, a full disk. Cancelled, it ends at once, and has lost nothing.
        """
        words = [str(path) for path in (self.folder, self.work, self.record)] + [str(self.uid), str(self.gid)]
        command = [sys.executable, "-I", "-S", program.__file__, *words]
        answer: dict[str, Any] = {}
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            async with process.stdout as output:
                async for line in lines(output):
                    said = json.loads(line)
                    if "progress" in said:
                        tell(Progress(**said["progress"]))
                    else:
                        answer = said
                await process.wait()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
        if "error" in answer:
            raise OSError(answer["error"], answer["detail"])
        if "report" not in answer:
            raise OSError(EIO, f"the sync ended early (status {process.returncode})")
        report = answer["report"]
        return Report(**report | {"conflicts": [Conflict(**each) for each in report["conflicts"]]})

    def conflicts(self) -> list[Conflict]:
        """Return the conflicts that nobody has cleared away since they were found."""
        return load_conflicts(self.record)


async def lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """Give the lines of a stream. OSError EIO past `MAX_LINE`."""
    rest = bytearray()
    async for piece in stream:
        rest += piece
        *complete, tail = rest.split(b"\n")
        rest = bytearray(tail)
        if len(rest) > MAX_LINE:
            raise OSError(EIO, "a line without an end")
        for line in complete:
            yield bytes(line)
