"""Option values that several commands take, refused with a clear word when they cannot be meant."""

from dataclasses import dataclass
from typing import Any

import click

from tasks import values
from vfs.words import quote


@dataclass(frozen=True, slots=True)
class Target:
    """Which server to talk to, and the token it wants (TCP)."""

    address: str
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Bind:
    """One line of a namespace: what NEW names appears at OLD."""

    new: str
    old: str
    flags: str = ""

    def line(self) -> str:
        """Return the `bind` command for ns/ctl."""
        flags = [f"-{self.flags}"] if self.flags else []
        return " ".join(["bind", *flags, quote(self.new), quote(self.old)])


class BindType(click.ParamType[Bind]):
    name = "NEW:OLD[:abcir]"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Bind:
        new, colon, old = str(value).partition(":")
        old, _, flags = old.partition(":")
        if not (colon and new and old.startswith("/")) or set(flags) - set("abcir"):
            self.fail(
                f"{value!r} is not NEW:OLD or NEW:OLD:FLAGS (OLD absolute, FLAGS of a, b, c, i and r)", param, context
            )
        return Bind(new, old, flags)


class AssignmentType(click.ParamType[tuple[str, str]]):
    name = "K=V"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail(f"{value!r} is not K=V", param, context)
        if "\n" in text:
            self.fail(f"the value of {key} holds a newline", param, context)
        return key, text


class SizeType(click.ParamType[int]):
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return values.size(str(value))
        except OSError as error:
            self.fail(str(error.strerror), param, context)


class SignalType(click.ParamType[int]):
    name = "SIGNAL"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        try:
            return values.signal_number(str(value))
        except OSError as error:
            self.fail(str(error.strerror), param, context)


BIND = BindType()
ASSIGNMENT = AssignmentType()
SIZE = SizeType()
SIGNAL = SignalType()
