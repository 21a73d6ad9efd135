"""The golden frames of corpus/frames.txt: every message of the protocol, written by hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Golden:
    name: str
    tag: int
    values: tuple[Any, ...]
    frame: bytes


def _qid(kind: int, path: int) -> bytes:
    return bytes([kind, 0, 0, 0, 0]) + path.to_bytes(8, "little")


def _load() -> list[Golden]:
    lines = (Path(__file__).parent / "corpus/frames.txt").read_text().splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    golden = []
    for head, frame in zip(kept[::2], kept[1::2], strict=True):
        name, tag, values = head.split(" ", 2)
        golden.append(Golden(name, int(tag), eval(values, {"Q": _qid}), bytes.fromhex(frame)))
    return golden


GOLDEN = _load()
