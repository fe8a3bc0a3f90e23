"""The suspended coroutines of one thread, and how to get one that stands at a position."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from types import CoroutineType
from typing import Any, Final

from tdpmmu.worlds.explore.position.refusal import UnsupportedPosition
from tdpmmu.worlds.explore.position.standing import Standing

LIVE_LIMIT: Final = 4096
"""How many suspended coroutines are kept; the rest are replayed when needed."""


class Coroutines:
    """Coroutines by the position at which they stand, the oldest given up for the newest."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, Any]], limit: int) -> None:
        self._start = start
        self._limit = limit
        self._live: OrderedDict[int, Standing] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live)

    def begin(self) -> Standing:
        """A coroutine that has not begun."""
        coro = self._start()
        if not isinstance(coro, CoroutineType):
            raise UnsupportedPosition(f"{coro!r} is not a coroutine; write 'async def'")
        return Standing(coro)

    def take(self, pos: int) -> Standing | None:
        """The coroutine that stands at ``pos``; it is the caller's now."""
        return self._live.pop(pos, None)

    def keep(self, pos: int, standing: Standing) -> None:
        """Remember a coroutine that stands at ``pos``, whichever way it came there."""
        if pos in self._live:
            close(standing.coro)
            return
        self._live[pos] = standing
        if len(self._live) > self._limit:
            close(self._live.popitem(last=False)[1].coro)

    def replay(self, results: Iterable[Any]) -> tuple[Standing, Any]:
        """A coroutine after these results from the start, and the operation that it waits for.

        Coroutines cannot be copied.
        """
        standing = self.begin()
        send = standing.coro.send
        op = send(None)
        for result in results:
            op = send(result)
        return standing, op

    def close(self) -> None:
        """Let go of all."""
        while self._live:
            close(self._live.popitem()[1].coro)


def close(coro: CoroutineType[Any, Any, Any]) -> None:
    """Drop a coroutine.  Where positions are supported no handler is there that could run."""
    for _ in range(100):
        try:
            coro.close()
        except Exception:  # a refused position: 'finally' that awaits, or raises
            continue
        return
