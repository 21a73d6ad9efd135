"""pi's RPC, without I/O: JSON objects, one a line, ended by newlines only (U+2028 is data), in both directions.

What an agent says is folded into the progress of the turn under way; what of it a viewer should see comes out as
happenings. Unknown messages mean nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

MAX_LINE = 32 << 20
"""Bytes of one line of an agent at the most; longer ones are passed over."""
MAX_OUTPUT = 1 << 20
"""Characters of one turn's answer that are kept."""
MAX_REASON = 2000
"""Characters of an agent's own error that are kept."""
PROMPT = "turn-"
"""What the ids of prompts begin with; the turn's number follows."""

Message = Mapping[str, Any]


def encode(message: Message) -> bytes:
    """Return a message as its line."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def decode(line: bytes) -> Message | None:
    """Return the message of a line, None for one that holds none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


class Lines:
    """Cuts a stream of bytes into lines; `taken` counts the bytes of those that came out, and of those passed over."""

    def __init__(self, taken: int) -> None:
        self.taken = taken
        self._parts: list[bytes] = []
        self._held = 0
        self._skipping = False

    @property
    def position(self) -> int:
        """How far the stream has been fed."""
        return self.taken + self._held

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that `data` completes."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            line = b"".join((*self._parts, end))
            self.taken += self._held + len(end) + 1
            self._parts.clear()
            self._held = 0
            if not self._skipping:
                yield line
            self._skipping = False
        if self._held + len(rest) > MAX_LINE or self._skipping:
            self.taken += self._held + len(rest)
            self._parts.clear()
            self._held = 0
            self._skipping = True
        elif rest:
            self._parts.append(rest)
            self._held += len(rest)

    def skip_to(self, position: int) -> None:
        """Go on at `position`, in the middle of a line that is passed over."""
        self.taken = position
        self._parts.clear()
        self._held = 0
        self._skipping = True


@dataclass
class Progress:
    """How far a turn under way is, as its agent told. Kept in the chronicle, for a server that comes after."""

    accepted: bool = False
    refused: str = ""
    """Why the agent did not take the prompt."""
    finished: bool = False
    """Whether the agent came to an end, and nothing followed."""
    busy: bool = False
    """Whether it is between two attempts, or shortening its memory."""
    stop: str = ""
    error: str = ""
    written: int = 0
    gap: bool = False
    """Whether the next text begins a message of its own."""
    usage: dict[str, float] = field(default_factory=dict)

    @property
    def answered(self) -> bool:
        """Whether the agent has said that it takes the prompt, or that it does not."""
        return self.accepted or bool(self.refused)

    @classmethod
    def from_kept(cls, kept: Mapping[str, Any]) -> Self:
        return cls(**kept)

    def kept(self) -> dict[str, Any]:
        return asdict(self)


Seen = tuple[str, dict[str, Any]]


def fold(progress: Progress, message: Message) -> list[Seen]:
    """Take a message of the agent into `progress`; return what a viewer sees of it, as (kind, data)."""
    match message.get("type"):
        case "response" if message.get("command") == "prompt" and not progress.accepted:
            progress.accepted = bool(message.get("success"))
            progress.refused = "" if progress.accepted else _text(message, "error")[:MAX_REASON] or "refused"
        case "agent_start":
            progress.finished = False
        case "agent_end":
            progress.finished = True
        case "auto_retry_start" | "compaction_start":
            progress.busy = True
            return [("note", {"text": str(message["type"]).replace("_", " ")})]
        case "auto_retry_end" | "compaction_end":
            progress.busy = bool(message.get("willRetry"))
        case "message_update":
            return _delta(progress, message.get("assistantMessageEvent"))
        case "message_start":
            progress.gap = progress.written > 0
        case "message_end":
            _end_of_message(progress, message.get("message"))
        case "tool_execution_start" | "tool_execution_end" as kind:
            told = {"phase": kind.rpartition("_")[2], "call": _text(message, "toolCallId")}
            return [("tool", told | {"name": _text(message, "toolName"), "failed": bool(message.get("isError"))})]
    return []


def _delta(progress: Progress, event: object) -> list[Seen]:
    if not isinstance(event, dict) or event.get("type") not in ("text_delta", "thinking_delta"):
        return []
    text = _text(event, "delta")
    if event["type"] == "thinking_delta":
        return [("thinking", {"text": text})]
    text = ("\n\n" * progress.gap + text)[: MAX_OUTPUT - progress.written]
    progress.gap = False
    progress.written += len(text)
    return [("output", {"text": text})] if text else []


def _end_of_message(progress: Progress, message: object) -> None:
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return
    progress.stop = _text(message, "stopReason")
    progress.error = _text(message, "errorMessage")[:MAX_REASON]
    usage = message.get("usage")
    for name, value in usage.items() if isinstance(usage, dict) else ():
        if isinstance(value, int | float) and len(progress.usage) < 32:
            progress.usage[name] = progress.usage.get(name, 0) + value


def _text(message: Message, name: str) -> str:
    value = message.get(name)
    return value if isinstance(value, str) else ""


def joined(seen: list[Seen]) -> list[Seen]:
    """Put texts of one kind that follow one another into one."""
    whole: list[Seen] = []
    for kind, data in seen:
        if kind in ("output", "thinking") and whole and whole[-1][0] == kind:
            whole[-1][1]["text"] += data["text"]
        else:
            whole.append((kind, data))
    return whole
