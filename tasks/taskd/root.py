"""PLACEHOLDER"""

from collections.abc import Sequence

from tasks.taskd.protocol import Message


class Plan:
    def __init__(self, message: Message, fds: Sequence[int]) -> None: ...
    def build(self) -> None: ...
