"""Namespace scripts in the manner of namespace(6): read, run, and written by `dump` so that they replay.

One command a line, quoted as `vfs.words` quotes:

    bind [-abcir] NEW OLD       mount [-abcr] ADDRESS OLD [ANAME]
    unbind [NEW] OLD            mask PATH|#DEVICE[/PATH]            clear

A line that starts with `#` and a blank (or is `#` alone) is a comment; `#task` is a device. A verb with `-`
before it, as in make(1), may fail for want of a file (ENOENT) without ending the script.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from errno import EINVAL, ENOENT
from pathlib import Path

from ns.mounts import mount_of
from ns.namespace import Namespace
from ns.table import BindTable, Member, Order, Place
from vfs.node import Caller
from vfs.words import quote, split_line

USAGE = {
    "bind": "bind [-abcir] NEW OLD",
    "mount": "mount [-abcr] ADDRESS OLD [ANAME]",
    "unbind": "unbind [NEW] OLD",
    "mask": "mask PATH|#DEVICE[/PATH]",
    "clear": "clear",
}
_COMMENT = re.compile(r"[ \t]*#(?:[ \t\r][^\n]*)?(?=\n|\Z)")
_LOGICAL_LINE = re.compile(r"""(?:[^\n'"\\]++ | \\. | '[^']*+' | "(?:[^"\\]++|\\.)*+")*+""", re.VERBOSE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """The flags of bind and mount: -a after, -b before, -c create, -r read-only; of bind alone: -i as one's own."""

    order: Order = Order.REPLACE
    create: bool = False
    readonly: bool = False
    owned: bool = False

    def __str__(self) -> str:
        letters = self.order.value + "c" * self.create + "i" * self.owned + "r" * self.readonly
        return f" -{letters}" if letters else ""


@dataclass(frozen=True, slots=True)
class Bind:
    new: str
    old: str
    how: How = How()

    def __str__(self) -> str:
        return f"bind{self.how} {quote(self.new)} {quote(self.old)}"


@dataclass(frozen=True, slots=True)
class Mount:
    address: str
    old: str
    aname: str = "/"
    how: How = How()

    def __str__(self) -> str:
        return f"mount{self.how} {quote(self.address)} {quote(self.old)} {quote(self.aname)}"


@dataclass(frozen=True, slots=True)
class Unbind:
    old: str
    new: str | None = None

    def __str__(self) -> str:
        return f"unbind {quote(self.old)}" if self.new is None else f"unbind {quote(self.new)} {quote(self.old)}"


@dataclass(frozen=True, slots=True)
class Mask:
    what: str

    def __str__(self) -> str:
        return f"mask {quote(self.what)}"


@dataclass(frozen=True, slots=True)
class Clear:
    def __str__(self) -> str:
        return "clear"


Command = Bind | Mount | Unbind | Mask | Clear


@dataclass(frozen=True, slots=True)
class Line:
    """A command, the line it began on, and whether it may fail for want of a file."""

    number: int
    command: Command
    optional: bool = False


def command(words: Sequence[str]) -> Command:
    """Return what one line's words command. EINVAL with the usage."""
    verb, *rest = words or [""]
    if verb not in USAGE:
        raise OSError(EINVAL, f"unknown verb: {verb[:64]!r}")
    flags = ""
    if verb in ("bind", "mount"):
        while rest and rest[0].startswith("-"):
            flags += rest.pop(0)[1:] or "?"
    match verb, rest:
        case "bind", [new, old]:
            return Bind(new, old, _how(flags, "abcir"))
        case "mount", [address, old]:
            return Mount(address, old, how=_how(flags))
        case "mount", [address, old, aname]:
            return Mount(address, old, aname, _how(flags))
        case "unbind", [old]:
            return Unbind(old)
        case "unbind", [new, old]:
            return Unbind(old, new)
        case "mask", [what]:
            return Mask(what)
        case "clear", []:
            return Clear()
    raise OSError(EINVAL, f"usage: {USAGE[verb]}")


def _how(flags: str, known: str = "abcr") -> How:
    if set(flags) - set(known) or {"a", "b"} <= set(flags):
        raise OSError(EINVAL, f"flags are of -{known}, and not both of -a and -b: {flags[:16]!r}")
    order = Order.AFTER if "a" in flags else Order.BEFORE if "b" in flags else Order.REPLACE
    return How(order=order, create="c" in flags, readonly="r" in flags, owned="i" in flags)


def parse(text: str) -> Iterator[Line]:
    """Yield the commands of a script. EINVAL with the line's number."""
    number, pos = 1, 0
    while pos < len(text):
        end = (_COMMENT.match(text, pos) or _LOGICAL_LINE.match(text, pos)).end()  # type: ignore[union-attr]
        try:
            yield from _line(number, text[pos:end], whole=text[end : end + 1] in ("", "\n"))
        except OSError as error:
            raise OSError(error.errno, f"line {number}: {error.strerror}") from None
        number += 1 + text.count("\n", pos, end)
        pos = end + 1


def _line(number: int, text: str, *, whole: bool) -> Iterator[Line]:
    if not whole:
        raise OSError(EINVAL, "no closing quotation")
    if _COMMENT.fullmatch(text):
        return
    words = split_line(text)
    if words:
        optional = words[0].startswith("-")
        yield Line(number, command([words[0][optional:], *words[1:]]), optional)


async def apply(command: Command, target: Namespace, *, writer: Namespace, who: Caller) -> None:
    """Do one command to `target` with the authority of `writer`; errors are those of the namespace's methods."""
    match command:
        case Bind(new, old, how):
            await target.bind(
                new,
                old,
                writer=writer,
                who=who,
                order=how.order,
                create=how.create,
                readonly=how.readonly,
                owned=how.owned,
            )
        case Mount(address, old, aname, how):
            await target.mount(
                address, old, aname, writer=writer, who=who, order=how.order, create=how.create, readonly=how.readonly
            )
        case Unbind(old, new):
            await target.unbind(old, new, writer=writer, who=who)
        case Mask(what):
            await target.mask(what, who=who)
        case Clear():
            await target.clear()


async def run(text: str, target: Namespace, *, writer: Namespace, who: Caller) -> None:
    """Do every command of a script, in order. The first error ends it and names its line."""
    for line in parse(text):
        try:
            await apply(line.command, target, writer=writer, who=who)
        except OSError as error:
            if not (line.optional and error.errno == ENOENT):
                raise OSError(error.errno, f"line {line.number}: {line.command}: {error.strerror}") from error


def dump(table: BindTable) -> str:
    """Write a script that makes a namespace equal to this one, whatever its directories hold by then.

    A path comes before the paths above it, else in the order bound: so each is bound where nothing exists yet,
    and no line depends on a directory of a tree that may have gone. Masks come last, as they forbid.
    """
    commands: list[Command] = [Clear()]
    for names, place in _replayable(table):
        for member in place.members:
            first = member is place.members[0]
            commands.append(_binding(member, "/" + "/".join(names), Order.REPLACE if first else Order.AFTER))
    commands += [Mask(f"#{device}") for device in sorted(table.mask)]
    commands += [Mask(str(origin)) for origin in sorted(table.hidden)]
    return "".join(f"{command}\n" for command in commands)


def _binding(member: Member, old: str, order: Order) -> Command:
    how = How(order=order, create=member.create, readonly=member.readonly, owned=member.owned)
    mount = mount_of(member.origin)
    return Mount(mount[0], old, mount[1], how) if mount else Bind(str(member.origin), old, how)


def _replayable(table: BindTable) -> list[tuple[tuple[str, ...], Place]]:
    places = table.places()
    age = {names: place.serial for names, place in places}

    def rank(item: tuple[tuple[str, ...], Place]) -> tuple[int, int]:
        names, _ = item
        return min(age[names[:n]] for n in range(len(names) + 1) if names[:n] in age), -len(names)

    return sorted(places, key=rank)


def init_script() -> str:
    """Return the script of the init namespace that is shipped."""
    return Path(__file__).with_name("init.ns").read_text()
