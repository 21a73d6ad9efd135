"""The values that control verbs take: sizes, signals, numbers, assignments. EINVAL with the reason for all else."""

import os
import posixpath
import re
import signal
from errno import E2BIG, EINVAL

from vfs.words import quote, split_line

_SIZE = re.compile(r"(\d{1,18})([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NUMBER = re.compile(r"-?\d{1,18}", re.ASCII)
_DECIMAL = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)


def invalid(message: str) -> OSError:
    """Return an EINVAL with this message."""
    return OSError(EINVAL, message)


def too_big(message: str) -> OSError:
    """Return an E2BIG with this message."""
    return OSError(E2BIG, message)


def size(word: str) -> int:
    """Return the bytes that "100M", "64k", "1GiB" or a plain number mean (powers of 1024), more than 0."""
    match = _SIZE.fullmatch(word)
    if match is None or not int(match[1]):
        raise invalid(f"not a size: {word[:64]!r}")
    return int(match[1]) * _UNITS[match[2].upper()]


def number(word: str, low: int, high: int) -> int:
    """Return a decimal whole number from `low` to `high`."""
    if _NUMBER.fullmatch(word) is None or not low <= int(word) <= high:
        raise invalid(f"not a number from {low} to {high}: {word[:64]!r}")
    return int(word)


def decimal(word: str, low: float, high: float) -> float:
    """Return a decimal number from `low` to `high`."""
    if _DECIMAL.fullmatch(word) is None or not low <= float(word) <= high:
        raise invalid(f"not a number from {low:g} to {high:g}: {word[:64]!r}")
    return float(word)


def signal_number(word: str) -> int:
    """Return the signal that "15", "TERM" or "SIGTERM" names (signal(7))."""
    if word.isascii() and word.isdigit():
        value = int(word) if len(word) < 4 else 0
        if not 1 <= value < signal.NSIG:
            raise invalid(f"no such signal: {word[:64]}")
        return value
    name = word.upper()
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except KeyError:
        raise invalid(f"no such signal: {word[:64]!r}") from None


def assignment(word: str) -> tuple[str, str]:
    """Return K and V of "K=V"; K is a name as shells have it (letters, digits, underscore)."""
    key, equals, value = word.partition("=")
    if not equals:
        raise invalid(f"not K=V: {word[:64]!r}")
    return variable(key), value


def variable(name: str) -> str:
    """Return `name` if it can be an environment variable's."""
    if _NAME.fullmatch(name) is None:
        raise invalid(f"not a variable name: {name[:64]!r}")
    return name


def label(word: str) -> tuple[str, str]:
    """Return K and V of a label: K up to 63 of letters, digits, "-_./", V up to 255 printable characters."""
    key, equals, value = word.partition("=")
    if not equals or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,62}", key, re.ASCII) is None:
        raise invalid(f"not a label K=V: {word[:64]!r}")
    if len(value) > 255 or (value and not value.isprintable()):
        raise invalid("a label's value is at most 255 printable characters")
    return key, value


def command(text: str) -> tuple[str, ...]:
    """Return the words of a command line, quoted as in ctl."""
    words = tuple(split_line(text))
    if any("\0" in word for word in words):
        raise invalid("NUL in command")
    return words


def command_line(argv: tuple[str, ...]) -> str:
    """Return a command as one line that `command` reads back."""
    return " ".join(map(quote, argv))


def arguments(text: str) -> tuple[str, ...]:
    """Return the arguments that stand one a line, or NUL-separated where there is a NUL."""
    if not text:
        return ()
    return tuple(text.removesuffix("\0").split("\0")) if "\0" in text else tuple(text.split("\n"))


def argument_lines(argv: tuple[str, ...]) -> bytes:
    """Return arguments so that `arguments` reads them back: one a line, NUL-ended where one holds a newline."""
    end = "\0" if any("\n" in word for word in argv) else "\n"
    return os.fsencode("".join(word + end for word in argv))


def absolute_path(text: str) -> str:
    """Return a path that starts at the root, without "." and doubled slashes."""
    if not text.startswith("/") or "\0" in text or len(text) > 4096:
        raise invalid(f"not an absolute path: {text[:64]!r}")
    return posixpath.normpath(text)
