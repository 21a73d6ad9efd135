"""What a VM driver needs of a virtual machine monitor: a program that is started like a task and given descriptors.

The descriptors are the same whoever implements it. The task's own streams are
the machine's too, so that its output goes where the task's output goes, with
no server between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tasks.drivers.vm.monitor import Monitor

STDIN, OUT = 0, 1
CONTROL, MONITOR, FILES, RAM, STATE, KERNEL, INITRD, ERR, CONSOLE = range(3, 12)
"""Numbers of the machine's descriptors.

The task's input and output; a socket to the supervisor inside, one to the machine's own monitor, one on which the 9P
server answers the guest; the memory and the device state that a clone starts from; what boots; the task's error output
(2 is the machine's own) and the guest's console.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What is the same for a template and all its clones. `memory` in bytes."""

    kernel: Path
    initrd: Path
    memory: int


class Machine(Protocol):
    """A virtual machine monitor."""

    name: str

    def missing(self) -> str:
        """Return what keeps it from running here, or an empty string."""
        ...

    def group(self) -> int | None:
        """Return the group that the program must have to use the hardware, if any."""
        ...

    async def drained(self, monitor: Monitor, output: int) -> bool:
        """Tell whether all that the guest has written to this descriptor has left the machine."""
        ...

    def command(self, memory: int, *, clone: bool) -> Sequence[str]:
        """Return the command line of a machine that boots with `memory` bytes in RAM, or of a clone.

        A clone goes on from STATE with memory that is a copy of RAM, made page by page when it writes.
        """
        ...
