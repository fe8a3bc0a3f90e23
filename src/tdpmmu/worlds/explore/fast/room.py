"""Arrays that grow in place: address space is reserved, and memory is taken as it is touched."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from tdpmmu.worlds.explore.fast.control import Words

PAGE = mmap.PAGESIZE
HUGE = 1 << 21
"""Bytes of a huge page: fewer misses of the TLB, which large sets are full of."""

SMALL = 4 * HUGE
"""Bytes at the beginning that stay on small pages: a small search should take little memory."""

_NORESERVE = 0x4000 if sys.platform == "linux" else 0x40


def fill(array: Words, pieces: Iterable[Words]) -> int:
    """Put pieces into an array, one behind the other; how many items they have."""
    at = 0
    for piece in pieces:
        array[at : at + len(piece)] = piece
        at += len(piece)
    return at


class Room:
    """An array of ``dtype`` with room for ``most`` items, all zero, of which few may be in use.

    Where so much address space is not to be had (``ulimit -v``, strict overcommit) it begins with
    ``least``, and moves when it has to grow.
    """

    def __init__(self, dtype: type[np.generic], most: int, least: int = 1 << 10) -> None:
        self.dtype = np.dtype(dtype)
        try:
            self.array = self._reserve(most)
        except (OSError, ValueError, OverflowError):
            self.array = self._reserve(least)

    def _reserve(self, items: int) -> Words:
        length = -(-items * self.dtype.itemsize // PAGE) * PAGE
        if hasattr(mmap, "MAP_PRIVATE"):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
            area = mmap.mmap(-1, length, flags=flags)
        else:
            area = mmap.mmap(-1, length)
        advice: Any = getattr(mmap, "MADV_HUGEPAGE", None)
        if advice is not None and length > SMALL:
            with suppress(OSError):  # a kernel without them
                area.madvise(advice, SMALL, length - SMALL)
        self._area, self._given_back = area, 0
        return np.frombuffer(area, self.dtype)

    def give_back(self, items: int) -> None:
        """Give the memory of the first ``items`` back: they are zero, or as they were."""
        size = items * self.dtype.itemsize
        page = HUGE if size > SMALL else PAGE
        end = size // page * page
        advice: Any = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None and end > self._given_back:
            self._area.madvise(advice, self._given_back, end - self._given_back)
        self._given_back = end

    def grow(self, items: int) -> Words:
        """The array, with room for so many items."""
        if items > len(self.array):
            old = self.array
            self.array = self._reserve(max(items, len(old) + len(old) // 2))
            self.array[: len(old)] = old
        return self.array

    def bytes_of(self, items: int) -> int:
        """The memory that the first ``items`` take, once they have been touched."""
        size = items * self.dtype.itemsize
        page = HUGE if size > SMALL else PAGE
        return -(-size // page) * page
