"""A task's output: moved from its pipe or terminal into a file by the kernel, the newest part kept."""

import errno
import os

from tasks.taskd.syscalls import punch_hole, splice

CHUNK = 1 << 20
BLOCK = 4096


class Spool:
    """What comes out of `source` (non-blocking; a pipe, or a terminal's master side), appended to `file`.

    Offsets of the file are offsets of the stream: `end` is how much came, `start` the oldest byte kept. Without a
    source (-1) nothing ever comes. Owns `file`, and `source` too unless it is a terminal.
    """

    def __init__(self, numbers: list[int], source: int, file: int, limit: int, *, terminal: bool = False) -> None:
        self.numbers = numbers
        self.source = source
        self.file = file
        self.limit = limit
        self.terminal = terminal
        self.start = 0
        self.end = os.fstat(file).st_size
        self.eof = False

    def drain(self) -> bool:
        """Move what is there now, within reason; False when there is nothing more for now."""
        if self.source < 0:
            self.eof = True
        if self.eof:
            return False
        try:
            moved = self._copy() if self.terminal else splice(self.source, self.file, self.end, CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if self.terminal and error.errno == errno.EIO:  # nobody has the terminal open any more
                moved = 0
            else:
                return self._make_room()
        if not moved:
            self.eof = True
            return False
        self.end += moved
        self._forget_below((self.end - self.limit) // BLOCK * BLOCK)
        return True

    def _copy(self) -> int:
        data = os.read(self.source, CHUNK)
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self.file, data[done:], self.end + done)
        except OSError:
            self.start = self.end + len(data)
        return len(data)

    def _make_room(self) -> bool:
        """The file takes no more (the disk is full): give up the older half of it; once that is little, what comes."""
        if self.end - self.start > 64 * BLOCK:
            self._forget_below((self.start + self.end) // 2 // BLOCK * BLOCK)
        else:
            self.end += len(os.read(self.source, CHUNK))
            self.start = self.end
        return True

    def _forget_below(self, offset: int) -> None:
        if offset <= self.start:
            return
        self.start = offset
        try:
            punch_hole(self.file, 0, offset)
        except OSError:
            pass  # a filesystem without holes keeps the bytes; they count as dropped all the same

    def state(self) -> list[int]:
        """Return [end, start, eof] as messages carry it."""
        return [self.end, self.start, int(self.eof)]

    def close(self) -> None:
        """Let go of the file and the pipe; the state stays. Harmless when done before."""
        if self.source >= 0 and not self.terminal:
            os.close(self.source)
        if self.file >= 0:
            os.close(self.file)
        self.source = self.file = -1
        self.eof = True
