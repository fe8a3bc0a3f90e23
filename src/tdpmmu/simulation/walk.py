"""The hardware's walk of many addresses at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tdpmmu.arch.spte import (
    BASE_ADDR_MASK,
    PAGE_SHIFT,
    PT64_NX_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    SpteFormat,
)
from tdpmmu.arch.table import TABLE_PFN
from tdpmmu.simulation.bulk import present_mask
from tdpmmu.simulation.tables import Rows

Ints = npt.NDArray[np.int64]


class Walker:
    """Which touches of a batch hit, and at which level.

    Where the last-level tables' parents are is remembered until ``forget`` is called.
    """

    def __init__(self, fmt: SpteFormat, rows: Rows, levels: int, pages: int) -> None:
        """``pages``: of guest memory."""
        self._format = fmt
        self._rows = rows
        self._levels = levels
        self._gigabytes = np.arange(-(-pages >> 18), dtype=np.int64) << 18
        self._parents: dict[int, Ints | None] = {}
        if fmt.name == "ept":
            need, shut = [1, 3, 4], [0, 0, 0]
        else:
            base = PT_PRESENT_MASK | PT_USER_MASK
            need, shut = [base, base | PT_WRITABLE_MASK, base], [0, 0, PT64_NX_MASK]
        if fmt.has_ad_bits:
            # A write that sets the dirty bit leaves a trace.
            need[1] |= fmt.dirty
        self._need = np.array(need, dtype=np.uint64)
        self._shut = np.array(shut, dtype=np.uint64) if any(shut) else None

    def forget(self) -> None:
        """Something above the parents of last-level tables has changed."""
        self._parents.clear()

    def __call__(
        self, root: int, gfns: Ints, access: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.bool_], Ints]:
        """Whether each touch is allowed and leaves no trace, and the level of its leaf (or 0)."""
        if root not in self._parents:
            self._parents[root] = self._find_parents(root)
        parents = self._parents[root]
        if parents is None:
            table = np.full(len(gfns), root, dtype=np.int64)
            leaf, level = self._descend(table, gfns, self._levels)
        else:
            leaf, level = self._descend(parents[gfns >> 18], gfns, 2)
        need = self._need[access]
        hit = (leaf & need) == need
        hit &= level > 0
        if self._shut is not None:
            hit &= (leaf & self._shut[access]) == 0
        return hit, level

    def _find_parents(self, root: int) -> Ints | None:
        """The table of level 2 for each 1 GiB; None if there are leaves above, or none below."""
        fmt, array = self._format, self._rows.array
        table = np.full(len(self._gigabytes), root, dtype=np.int64)
        for level in range(self._levels, 2, -1):
            entry = array[table, self._gigabytes >> 9 * (level - 1) & 511]
            large = (entry & np.uint64(fmt.large)) != 0
            if large.any() or not present_mask(fmt, entry).all():
                return None
            table = self._table(entry)
        return table

    def _table(self, entry: npt.NDArray[np.uint64]) -> Ints:
        pfn = (entry & np.uint64(BASE_ADDR_MASK)) >> np.uint64(PAGE_SHIFT)
        return pfn.astype(np.int64) - TABLE_PFN

    def _descend(self, table: Ints, gfns: Ints, top: int) -> tuple[npt.NDArray[np.uint64], Ints]:
        """The leaves, and their levels, from tables of level ``top`` on."""
        fmt, array = self._format, self._rows.array
        leaf = np.zeros(len(gfns), dtype=np.uint64)
        level_of = np.zeros(len(gfns), dtype=np.int64)
        todo: Ints | None = None
        for level in range(top, 0, -1):
            index = (gfns if todo is None else gfns[todo]) >> 9 * (level - 1) & 511
            entry = array[table, index]
            present = present_mask(fmt, entry)
            last = present if level == 1 else present & ((entry & np.uint64(fmt.large)) != 0)
            found = np.flatnonzero(last)
            at = found if todo is None else todo[found]
            leaf[at] = entry[found]
            level_of[at] = level
            if level == 1:
                break
            down = np.flatnonzero(present & ~last)
            if not len(down):
                break
            todo = down if todo is None else todo[down]
            table = self._table(entry[down])
        return leaf, level_of

    def find(self, root: int, gfn: int) -> tuple[int, int, int]:
        """The level at which one walk ends, the row it is in there, and the entry."""
        fmt, flat = self._format, self._rows.flat
        row, level = root, self._levels
        while True:
            entry: int = flat[row * 512 + (gfn >> 9 * (level - 1) & 511)]
            if not fmt.is_shadow_present(entry) or fmt.is_last(entry, level):
                return level, row, entry
            row = fmt.pfn(entry) - TABLE_PFN
            level -= 1
