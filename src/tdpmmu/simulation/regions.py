"""What is known of guest memory by region or block, in arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tdpmmu.machine.state import Cell, Layout

REGION = 512
"""4 KiB pages of a 2 MiB region."""

LOST, SMALL_HOST, SWAPPED = 1, 2, 4
"""Bits of a region: it has lost some of what it mapped; the host maps it by 4K pages although it
could do better; some of these are swapped out."""

ABSENT_SHIFT = 0
"""A block's number is twice its generation, plus one if the host has not allocated it."""


class Regions:
    """A byte of bits for each 2 MiB region."""

    def __init__(self, pages: int) -> None:
        """``pages``: of guest memory."""
        self.array = np.zeros(-(-pages // REGION), dtype=np.uint8)
        self._flat: Any = self.array.data

    def has(self, bit: int, gfn: int) -> bool:
        """Whether the region of a gfn has that bit."""
        return bool(self._flat[gfn >> 9] & bit)

    def set(self, bit: int, gfn: int) -> None:
        """Give it that bit."""
        self._flat[gfn >> 9] |= bit

    def set_all(self, bit: int, first: int, pages: int) -> None:
        """Give that bit to all regions that have some of these gfns."""
        self.array[first >> 9 : (first + pages - 1 >> 9) + 1] |= bit

    def clear(self, bit: int, first: int, pages: int) -> None:
        """Take that bit from all regions that have some of these gfns."""
        self.array[first >> 9 : (first + pages - 1 >> 9) + 1] &= 0xFF ^ bit


class Blocks:
    """How often the host has taken each of its blocks away, and whether it has it allocated.

    Blocks are in rows, of which only those are kept that differ from all others: ``rows`` says
    which one it is.
    """

    def __init__(self, layout: Layout, pages: int, block: int, present: bool) -> None:
        """``block``: pages in one; ``present``: whether the host has them all at the start."""
        self._chunk = layout.chunk("host pages")
        self._block = block
        self.width = max(1, REGION // block)
        self.rows = np.zeros(-(-pages // (block * self.width)), dtype=np.int32)
        self.array = np.full((4, self.width), int(not present), dtype=np.int64)
        self._used = 1

    def join(self, memory: list[Any]) -> None:
        """Be what the cells of ``generation`` are found in."""
        memory[self._chunk] = self

    def _number(self, block: int) -> int:
        return int(self.array[self.rows[block // self.width], block % self.width])

    def _put(self, block: int, number: int) -> None:
        row = self.rows[block // self.width]
        if not row:
            if self._used == len(self.array):
                self.array = np.concatenate([self.array, np.repeat(self.array[:1], self._used, 0)])
            row = self.rows[block // self.width] = self._used
            self._used += 1
        self.array[row, block % self.width] = number

    def absent(self, gfn: int) -> bool:
        """Whether the host has to allocate the page first."""
        return bool(self._number(gfn // self._block) & 1)

    def set_absent(self, gfn: int, absent: bool) -> None:
        """The host has allocated it, or taken it away."""
        block = gfn // self._block
        self._put(block, self._number(block) & ~1 | absent)

    def generation(self, gfn: int) -> int:
        """How often the host has taken the block of a gfn away."""
        return self._number(gfn // self._block) >> 1

    # --- as cells and as a chunk of memory ------------------------------------------------------

    def cell(self, block: int) -> Cell:
        """The generation of that block."""
        return Cell("host page", self._chunk, block)

    def __getitem__(self, block: int) -> int:
        return self._number(block) >> 1

    def __setitem__(self, block: int, generation: int) -> None:
        self._put(block, generation << 1 | self._number(block) & 1)


class Generations:
    """``HostMemory.generation``: a cell for each block, made when it is asked for."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    def __getitem__(self, block: int) -> Cell:
        return self._blocks.cell(block)

    def __iter__(self) -> Iterator[Cell]:
        raise TypeError("there are too many blocks to go through")
