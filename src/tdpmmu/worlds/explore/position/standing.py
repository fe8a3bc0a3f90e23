"""A suspended coroutine, and the key of where it stands, kept from step to step.

A step runs the innermost frames.  It cannot change a frame that still awaits what it awaited
before, unless the two share an object that can change: so only what has moved, and what shares
objects with that, is looked at again.  :func:`~tdpmmu.worlds.explore.position.frames.position_key`
says the same, from scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import CoroutineType
from typing import Any

from tdpmmu.worlds.explore.position import encoding
from tdpmmu.worlds.explore.position.frames import awaited_by, frame_key, is_last, operation_key
from tdpmmu.worlds.explore.position.visit import NONE_MET_AGAIN

Number = Callable[[Hashable], int]
"""Equal keys have equal numbers."""


class _Frame:
    """A frame as it was: ``last`` is how many objects were met up to its end, ``lowest`` the
    smallest number of those that were met again in it."""

    __slots__ = ("awaited", "coro", "last", "lowest", "number")

    def __init__(
        self, coro: CoroutineType[Any, Any, Any], awaited: Any, number: int, last: int, lowest: int
    ) -> None:
        self.coro = coro
        self.awaited = awaited
        self.number = number
        self.last = last
        self.lowest = lowest


class Standing:
    """A coroutine, and what was seen of its frames."""

    __slots__ = ("_frames", "_visit", "coro")

    def __init__(self, coro: CoroutineType[Any, Any, Any]) -> None:
        self.coro = coro
        self._frames: list[_Frame] = []
        self._visit = encoding.visit()

    def key(self, op: Any, number: Number) -> tuple[int, ...]:
        """The key of where the coroutine stands, suspended at ``op``: the numbers of its parts.

        :raises UnsupportedPosition: its future cannot be told from a key.
        """
        frames, visit = self._frames, self._visit
        del frames[self._unchanged() :]
        visit.forget(frames[-1].last if frames else 0)
        current: Any = frames[-1].awaited if frames else self.coro
        while True:
            awaited = awaited_by(current)
            visit.lowest = NONE_MET_AGAIN
            found = number(frame_key(current, awaited, visit))
            frames.append(_Frame(current, awaited, found, len(visit.seen), visit.lowest))
            if is_last(current, awaited):
                break
            current = awaited
        return (*[frame.number for frame in frames], number(operation_key(current, op)))

    def _unchanged(self) -> int:
        """How many outer frames say what they said."""
        frames = self._frames
        count = 0
        while count < len(frames) and frames[count].coro.cr_await is frames[count].awaited:
            count += 1
        lowest = min([frame.lowest for frame in frames[count:]], default=NONE_MET_AGAIN)
        while count and lowest < frames[count - 1].last:
            count -= 1
            lowest = min(lowest, frames[count].lowest)
        return count
