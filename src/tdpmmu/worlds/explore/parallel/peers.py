"""How workers talk: each with each, all at the same points of the search."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any


class Peers:
    """One worker's lines to the others; ``lines[number]`` is not used.

    All workers make the same calls in the same order.  Pairs talk in lexicographic order and the
    first of a pair sends first, so nobody waits in a circle, however long the messages are.
    """

    def __init__(self, number: int, lines: Sequence[Connection | None]) -> None:
        self.number = number
        self.lines = lines

    def __len__(self) -> int:
        return len(self.lines)

    def exchange(self, messages: Sequence[Any]) -> list[Any]:
        """Give ``messages[i]`` to worker ``i``; what the others have for this one, by worker."""
        found: list[Any] = []
        for peer, line in enumerate(self.lines):
            if line is None:
                found.append(messages[peer])
                continue
            if self.number < peer:
                line.send_bytes(pickle.dumps(messages[peer], pickle.HIGHEST_PROTOCOL))
                found.append(pickle.loads(line.recv_bytes()))
            else:
                found.append(pickle.loads(line.recv_bytes()))
                line.send_bytes(pickle.dumps(messages[peer], pickle.HIGHEST_PROTOCOL))
        return found

    def tell(self, message: Any) -> list[Any]:
        """Give the same to all; what all have to say, by worker."""
        return self.exchange([message] * len(self.lines))
