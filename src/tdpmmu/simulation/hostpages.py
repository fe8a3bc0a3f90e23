"""How the host maps guest memory: huge pages that are split, swapped out and collapsed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tdpmmu.simulation.regions import REGION, SMALL_HOST, SWAPPED, Blocks, Regions


class HostPages:
    """The host's page tables, as far as faults ask them.

    Transparent huge pages (a backing of 2M) are split and collapsed; hugetlb pages of 1G and memory
    backed by 4K pages stay what they are.  Page frames that change when a part of a huge page is
    swapped out keep their numbers: what has to be zapped was zapped by then.
    """

    def __init__(self, regions: Regions, blocks: Blocks, block: int, huge_level: int) -> None:
        self._regions = regions
        self._blocks = blocks
        self._huge_level = huge_level
        self.transparent = block == REGION
        self._swapped: dict[int, npt.NDArray[np.bool_]] = {}
        self._cursor = 0

    def level(self, gfn: int) -> int:
        """``host_pfn_mapping_level``."""
        return 1 if self._regions.has(SMALL_HOST, gfn) else self._huge_level

    def fault_in(self, gfn: int) -> int:
        """The page is there from now on; the level at which it was made, 0 if it was there."""
        if self._regions.has(SWAPPED, gfn):
            swapped = self._swapped[gfn // REGION]
            if not swapped[gfn % REGION]:
                return 0
            swapped[gfn % REGION] = False
            if not swapped.any():
                del self._swapped[gfn // REGION]
                self._regions.clear(SWAPPED, gfn, 1)
            return 1
        if not self._blocks.absent(gfn):
            return 0
        self._blocks.set_absent(gfn, False)
        return self.level(gfn)

    def huge(self, gfn: int, pages: int) -> list[int]:
        """Where the host's huge pages of that range begin."""
        if not self.transparent:
            return []
        first, last = gfn // REGION, min((gfn + pages - 1) // REGION + 1, len(self._regions.array))
        whole = np.flatnonzero(self._regions.array[first:last] & SMALL_HOST == 0)
        return ((whole + first) * REGION).tolist()

    def split(self, gfn: int) -> None:
        """``__split_huge_pmd``: the same frames by 4K pages; a page that is not there stays so."""
        region = gfn // REGION * REGION
        if self._blocks.absent(region):
            self._blocks.set_absent(region, False)
            self._swap(region, 0, REGION)
        self._regions.set(SMALL_HOST, region)

    def swap_out(self, gfn: int, pages: int) -> None:
        """4K pages of what has been split."""
        last = min(gfn + pages, REGION * len(self._regions.array))
        while gfn < last:
            end = min(last, gfn - gfn % REGION + REGION)
            self._swap(gfn, gfn % REGION, end - gfn)
            gfn = end

    def _swap(self, gfn: int, first: int, count: int) -> None:
        swapped = self._swapped.setdefault(gfn // REGION, np.zeros(REGION, dtype=np.bool_))
        swapped[first : first + count] = True
        self._regions.set(SWAPPED, gfn)

    def next_small(self) -> int:
        """The next region that khugepaged can collapse, in order; -1 if there is none."""
        found = np.flatnonzero(self._regions.array & (SMALL_HOST | SWAPPED) == SMALL_HOST)
        if not len(found):
            return -1
        at = int(np.searchsorted(found, self._cursor))
        region = int(found[at % len(found)])
        self._cursor = region + 1
        return region * REGION

    def collapse(self, gfn: int) -> None:
        """``collapse_huge_page``: the region is one huge page, of other frames."""
        self._regions.clear(SMALL_HOST, gfn, 1)
