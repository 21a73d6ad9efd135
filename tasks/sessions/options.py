"""The words after `open ID`: what a session is to be, as pairs of a name and a value."""

from collections.abc import Callable, Sequence
from typing import Any

from tasks import values
from tasks.model import TYPES
from tasks.sessions.model import MAX_PARALLEL, THINKING
from vfs.words import quote

USAGE = (
    "open ID [model M] [thinking L] [folder PATH] [live yes|no] [agent CMD] [run CMD] [type T] [net N] [timeout S]"
    " [parallel N] [env K=V]... [bind NEW:OLD[:FLAGS]]..."
)


def options(words: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a `Spec` that these words set. EINVAL."""
    if len(words) % 2:
        raise values.invalid(f"usage: {USAGE}")
    fields: dict[str, Any] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name not in _FIELDS:
            raise values.invalid(f"not an option of a session: {name[:64]!r}")
        field, read = _FIELDS[name]
        made = read(value)
        if isinstance(made, dict):
            made = fields.get(field, {}) | made
        elif name == "bind":
            made = (*fields.get(field, ()), made)
        fields[field] = made
    if fields.get("agent"):
        fields.setdefault("run", ())
    elif fields.get("run"):
        fields.setdefault("agent", ())
    return fields


def _word(text: str) -> str:
    if len(text) > 1024 or not text.isprintable():
        raise values.invalid(f"not one printable word: {text[:64]!r}")
    return text


def _thinking(text: str) -> str:
    if text not in THINKING:
        raise values.invalid(f"not a level of thinking: {text[:64]!r} (one of {', '.join(THINKING[1:])})")
    return text


def _type(text: str) -> str:
    if text not in TYPES:
        raise values.invalid(f"not a type: {text[:64]!r} (one of {', '.join(TYPES)})")
    return text


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise values.invalid(f"yes or no, not {text[:64]!r}")
    return text == "yes"


def _seconds(text: str) -> float | None:
    return values.decimal(text, 0.0, 1e8) or None


def _bind(text: str) -> str:
    new, _, rest = text.partition(":")
    old, _, flags = rest.partition(":")
    if not new or not old.startswith("/") or set(flags) - set("abcr"):
        raise values.invalid(f"not NEW:OLD or NEW:OLD:FLAGS: {text[:64]!r}")
    return " ".join(["bind", *([f"-{flags}"] if flags else []), quote(new), quote(old)])


_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "model": ("model", _word),
    "thinking": ("thinking", _thinking),
    "folder": ("folder", lambda text: values.absolute_path(text) if text else ""),
    "live": ("live", _yes),
    "agent": ("agent", values.command),
    "run": ("run", values.command),
    "type": ("type", _type),
    "net": ("net", _word),
    "timeout": ("timeout", _seconds),
    "parallel": ("parallel", lambda text: values.number(text, 1, MAX_PARALLEL)),
    "env": ("env", lambda text: dict([values.assignment(text)])),
    "bind": ("binds", _bind),
}
