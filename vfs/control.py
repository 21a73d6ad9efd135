"""Control files: one command a line, an error is that write's errno, and `cat ctl` is the manual."""

import inspect
import os
import stat as statmod
from collections.abc import Awaitable, Callable, Mapping
from errno import E2BIG, EBADF, EINVAL
from functools import lru_cache
from math import inf
from typing import Generic, Protocol, TypeVar

from vfs.files import Synthetic, as_bytes, as_text
from vfs.node import Caller, Handle
from vfs.words import split_commands

MAX_LINE = 1 << 20
"""Bytes of one command at the most, E2BIG beyond."""
WHOLE_WRITE = 4096
"""A write shorter than this ends with a whole command even without a newline (a shell splits its writes here)."""

Verb = Callable[..., "Awaitable[None] | None"]
Verbs = Mapping[str, Verb]
F = TypeVar("F", bound=Verb)
Line = TypeVar("Line")


class Refusal(Protocol):
    """Where the message of the last refused command is kept ("" after one that was accepted)."""

    error: str


class Kept:
    """A `Refusal` of its own."""

    def __init__(self) -> None:
        self.error = ""


def usage(text: str) -> Callable[[F], F]:
    """State a verb's words where its signature cannot (flags, alternatives)."""

    def mark(verb: F) -> F:
        verb.__dict__["usage"] = text
        return verb

    return mark


def usage_line(name: str, verb: Verb) -> str:
    """Return `NAME WORDS  # first line of the docstring`."""
    words = getattr(verb, "usage", None)
    if words is None:
        words = name
        for parameter in inspect.signature(verb).parameters.values():
            shown = parameter.name.upper()
            if parameter.kind is parameter.VAR_POSITIONAL:
                words += f" [{shown}...]"
            elif parameter.default is not parameter.empty:
                words += f" [{shown}]"
            else:
                words += f" {shown}"
    doc = (verb.__doc__ or "").strip().partition("\n")[0]
    return f"{words:<28}  # {doc}" if doc else words


def takes(verb: Verb, words: int) -> bool:
    """Tell whether `verb` can be called with that many words."""
    function = getattr(verb, "__func__", None)
    least, most = _arity(verb) if function is None else _arity(function)
    own = function is not None  # a bound method's own object is none of the words
    return least <= words + own <= most


@lru_cache(maxsize=1024)
def _arity(verb: Verb) -> tuple[int, float]:
    """Return how many arguments a function takes, at the least and at the most."""
    parameters = inspect.signature(verb).parameters.values()
    least = sum(p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in parameters)
    return least, inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(parameters)


class Control(Synthetic):
    """A control file over a table of verbs (source order is the order of its manual).

    The table may depend on who opens the file: then it is a function of the caller. A verb gets the line's further
    words as `str`; it changes everything or raises OSError and changes nothing.
    `def` verbs run inline; an `async def` one may wait, and its writer with it.
    """

    __slots__ = ("note", "refusal", "verbs")

    def __init__(
        self,
        verbs: Verbs | Callable[[Caller], Verbs],
        *,
        refusal: Refusal | None = None,
        note: Callable[[], str] | None = None,
        mode: int = 0o600,
    ) -> None:
        super().__init__(statmod.S_IFREG | mode)
        self.verbs = verbs
        self.refusal: Refusal = refusal or Kept()
        self.note = note

    async def open(self, flags: int, who: Caller) -> Handle:
        return ControlHandle(self, self.verbs if isinstance(self.verbs, Mapping) else self.verbs(who))

    def manual(self, verbs: Verbs) -> str:
        lines = [f"# error: {self.refusal.error}"] if self.refusal.error else []
        if self.note is not None:
            lines.append(self.note())
        lines += [usage_line(name, verb) for name, verb in verbs.items()]
        return "\n".join(lines)


async def run_command(verbs: Verbs, words: list[str]) -> None:
    """Run one command. EINVAL for an unknown verb, a wrong number of words or a NUL, else the verb's own error."""
    name, *rest = words
    if any("\0" in word for word in words):
        raise OSError(EINVAL, "NUL in command")
    verb = verbs.get(name)
    if verb is None:
        raise OSError(EINVAL, f"unknown verb: {name[:64]!r}")
    if not takes(verb, len(rest)):
        raise OSError(EINVAL, f"usage: {usage_line(name, verb).partition('  #')[0].strip()}")
    done = verb(*rest)
    if done is not None:
        await done


class LineHandle(Handle, Generic[Line]):
    """Takes whole lines off the writes to an open file and hands each on, in order, before the write is answered."""

    __slots__ = ("_skipping", "_tail", "_text")

    def __init__(self) -> None:
        self._skipping = False
        self._tail = ""
        self._text = b""

    def text(self) -> str:
        """Return what a read at offset 0 shows."""
        raise OSError(EBADF, "write only")

    def split(self, text: str) -> tuple[list[Line], str]:
        """Return the complete lines of `text`, and the tail after the last."""
        raise NotImplementedError

    async def run(self, line: Line) -> None:
        """Act on one line. An OSError refuses it and all that follow in the same write."""
        raise NotImplementedError

    def refused(self, error: OSError) -> None:
        """Keep the message of a refusal."""

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        if offset == 0:
            self._text = as_bytes(self.text())
        return self._text[offset : offset + size]

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        taken = len(data)
        text = as_text(bytes(data))
        whole = taken < WHOLE_WRITE or "\n" in text
        text, self._tail = self._tail + text, ""
        if not whole and not self._skipping and len(text) <= MAX_LINE:
            self._tail = text  # no line ends here, and looking for one each time would take the square of the length
        else:
            await self._run(text, last=taken < WHOLE_WRITE)
        return taken

    async def flush(self) -> None:
        tail, self._tail = self._tail, ""
        if tail:
            await self._run(tail, last=True)

    async def _run(self, text: str, *, last: bool) -> None:
        try:
            if self._skipping:
                _, newline, text = text.partition("\n")
                self._skipping = not newline
            lines, tail = self.split(text)
            if self._skipping or len(tail) > MAX_LINE:
                self._skipping = True
                raise OSError(E2BIG, f"a line is at most {MAX_LINE} bytes")
            for line in lines:
                await self.run(line)
            if not last:
                self._tail = tail
            elif tail:
                lines, rest = self.split(tail + "\n")
                if rest:
                    raise OSError(EINVAL, "no closing quotation")
                for line in lines:
                    await self.run(line)
        except OSError as error:
            self.refused(error)
            raise


class ControlHandle(LineHandle[list[str]]):
    """An open `Control`."""

    __slots__ = ("_node", "_verbs")

    def __init__(self, node: Control, verbs: Verbs) -> None:
        super().__init__()
        self._node = node
        self._verbs = verbs

    def text(self) -> str:
        return self._node.manual(self._verbs)

    def split(self, text: str) -> tuple[list[list[str]], str]:
        commands, tail = split_commands(text)
        if any(sum(map(len, words)) > MAX_LINE for words in commands):
            raise OSError(E2BIG, f"a command is at most {MAX_LINE} bytes")
        return commands, tail

    async def run(self, line: list[str]) -> None:
        self._node.refusal.error = ""  # before, for the verb may set off what has an error to tell
        await run_command(self._verbs, line)

    def refused(self, error: OSError) -> None:
        self._node.refusal.error = error.strerror or os.strerror(error.errno or EINVAL)
