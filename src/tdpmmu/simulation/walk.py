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
from tdpmmu.simulation.bulk import dirty_mask, present_mask
from tdpmmu.simulation.tables import Rows

Ints = npt.NDArray[np.int64]


class Walker:
    """Which touches of a batch hit, and at which level."""

    def __init__(self, fmt: SpteFormat, rows: Rows, levels: int) -> None:
        self._format = fmt
        self._rows = rows
        self._levels = levels
        if fmt.name == "ept":
            need, shut = [1, 3, 4], [0, 0, 0]
        else:
            base = PT_PRESENT_MASK | PT_USER_MASK
            need, shut = [base, base | PT_WRITABLE_MASK, base], [0, 0, PT64_NX_MASK]
        self._need = np.array(need, dtype=np.uint64)
        self._shut = np.array(shut, dtype=np.uint64)

    def __call__(
        self, root: int, gfns: Ints, access: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.bool_], Ints]:
        """Whether each touch is allowed and leaves no trace, and the level of its leaf (or 0)."""
        fmt, array = self._format, self._rows.array
        count = len(gfns)
        leaf = np.zeros(count, dtype=np.uint64)
        level_of = np.zeros(count, dtype=np.int64)
        todo = np.arange(count)
        table = np.full(count, root, dtype=np.int64)
        for level in range(self._levels, 0, -1):
            index = gfns[todo] >> 9 * (level - 1) & 511
            entry = array[table, index]
            present = present_mask(fmt, entry)
            last = present if level == 1 else present & ((entry & np.uint64(fmt.large)) != 0)
            found = todo[last]
            leaf[found] = entry[last]
            level_of[found] = level
            if level == 1:
                break
            down = present & ~last
            todo = todo[down]
            if not len(todo):
                break
            pfn = (entry[down] & np.uint64(BASE_ADDR_MASK)) >> np.uint64(PAGE_SHIFT)
            table = pfn.astype(np.int64) - TABLE_PFN
        need = self._need[access]
        hit = (level_of > 0) & ((leaf & need) == need) & ((leaf & self._shut[access]) == 0)
        # A write that sets the dirty bit does leave a trace.
        hit &= (access != 1) | dirty_mask(fmt, leaf)
        return hit, level_of

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
