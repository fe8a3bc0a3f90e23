"""Whoever goes through a page table in order finds its lines fetched ahead.

The CPU's prefetcher stays within a page of 4K, which a page table is, and needs to see where the
accesses go: the first line comes all the way from memory, each one that follows has been asked for
before it is needed.  Any other order, and another table, begins anew.
"""

from __future__ import annotations

from typing import Any

from tdpmmu.machine.state import Cell

LINE_SPTES = 8
"""Entries of a page table in one cache line."""


class Scan:
    """Where a thread's last access to a page table was."""

    __slots__ = ("_ahead", "_first", "_line", "_table")

    def __init__(self) -> None:
        self._table = -1
        self._first = 0
        self._line = 0
        self._ahead = False

    def at(self, sptep: Cell) -> bool:
        """The thread goes to this entry: whether its line was fetched ahead.

        To ask again about the same entry changes nothing.
        """
        if sptep.chunk != self._table:
            page: Any = sptep.page
            self._table = sptep.chunk
            self._first = page.entries[0].offset
            self._line = (sptep.offset - self._first) // LINE_SPTES
            self._ahead = False
            return False
        line = (sptep.offset - self._first) // LINE_SPTES
        if line != self._line:
            self._ahead = line == self._line + 1
            self._line = line
        return self._ahead

    def dear(self, first: Cell) -> int:
        """If it goes on in order from this entry: how many come before those fetched ahead."""
        if self.at(first):
            return 0
        return LINE_SPTES - (first.offset - self._first) % LINE_SPTES

    def through(self, first: Cell, last: Cell) -> None:
        """It has gone through all entries from one to the other, in order."""
        self.at(first)
        line = (last.offset - self._first) // LINE_SPTES
        if line > self._line:
            self._line, self._ahead = line, True
