"""Where the tables and pages are that words of the dirty log are about.

Words cost the same to walk to if their walks end at the same level, at the same sort of entry,
which is or is not the last one in its line, through tables that are equally far away.  What a line
of a ``struct page`` costs that somebody else has written to last comes on top of that, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tdpmmu.arch.spte import BASE_ADDR_MASK, PAGE_SHIFT
from tdpmmu.arch.table import TABLE_PFN
from tdpmmu.simulation.masks import present_mask
from tdpmmu.simulation.tables import ENTRIES
from tdpmmu.worlds.simulate.scan import LINE_SPTES

if TYPE_CHECKING:
    from tdpmmu.simulation.machine import Simulation
    from tdpmmu.worlds.simulate.thread import SimThread

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PLACES = 64
"""How many there may be; the words of others are done one by one."""

NOWHERE = -1


class Places:
    """The places of one VM, numbered as they are met."""

    def __init__(self, run: Simulation, root: int) -> None:
        self._run = run
        self._root = root
        self._numbers: dict[tuple[int, ...], int] = {}

    def find(self, gfns: Ints, thread: SimThread) -> tuple[Ints, Mask, Ints]:
        """Of each gfn the last-level table, by row, whether there is one, and the place."""
        run, kvm, fmt = self._run, self._run.kvm, self._run.format
        regions, which = np.unique(gfns >> 9, return_inverse=True)
        rows = np.full(len(regions), self._root, dtype=np.int64)
        depth = np.ones(len(regions), dtype=np.int64)
        sorts = np.zeros(len(regions), dtype=np.int64)
        path = []
        for level in range(kvm.geometry.levels, 1, -1):
            path.append(rows)
            entries = kvm.rows.array[rows, regions >> 9 * (level - 2) & ENTRIES - 1]
            below = present_mask(fmt, entries) & (entries & np.uint64(fmt.large) == 0)
            ends = (depth == 1) & ~below
            depth[ends] = level
            sorts[ends] = (entries[ends] & ~np.uint64(BASE_ADDR_MASK)).view(np.int64)
            pfns = (entries & np.uint64(BASE_ADDR_MASK)) >> np.uint64(PAGE_SHIFT)
            rows = np.where(depth == 1, pfns.astype(np.int64) - TABLE_PFN, self._root)
        path.append(rows)
        there = depth == 1
        # A walk looks at the entry behind the one that it ends at: is that in another line?
        last = regions >> 9 * np.maximum(depth - 2, 0) & LINE_SPTES - 1 == LINE_SPTES - 1
        columns = [depth, sorts, last.astype(np.int64)]
        if run.numa is not None:
            columns += [self._far(rows, thread) for rows in path]
            columns.append(self._far_pages(regions, thread))
        places = np.where(columns[-1] == NOWHERE, NOWHERE, self._number(columns))
        return rows[which], there[which], places[which]

    def _number(self, columns: list[Ints]) -> Ints:
        """Each row of the columns as one number."""
        numbers = self._numbers
        found = [
            numbers.setdefault(place, len(numbers))
            for place in zip(*(column.tolist() for column in columns), strict=True)
        ]
        places = np.array(found, dtype=np.int64)
        return np.where(places < PLACES, places, NOWHERE)

    def _far(self, rows: Ints, thread: SimThread) -> Ints:
        """What entries of these tables cost more."""
        run = self._run
        assert run.numa is not None
        pages = run.kvm.hardware.page_by_number
        each, which = np.unique(rows, return_inverse=True)
        far = [run.numa.far_spte(thread, pages[row]) for row in each.tolist()]
        return np.array(far, dtype=np.int64)[which]

    def _far_pages(self, regions: Ints, thread: SimThread) -> Ints:
        """What marking pages of these regions dirty costs more; -1 if they are not alike."""
        numa = self._run.numa
        assert numa is not None
        if not numa.marks:
            return np.zeros_like(regions)
        costs = []
        for first in (regions << 9).tolist():
            ends = {numa.far_page(thread, gfn) for gfn in (first, first + ENTRIES - 1)}
            costs.append(ends.pop() if len(ends) == 1 else NOWHERE)
        return np.array(costs, dtype=np.int64)


class Fetches:
    """Lines that have to come to a thread as it marks pages dirty, each for the first of them."""

    def __init__(self, run: Simulation, thread: SimThread, gfns: Ints, starts: Ints) -> None:
        """``gfns``: those that are marked dirty, which come after ``starts`` in words."""
        numa = run.numa
        assert numa is not None
        self._nodes, self._thread = numa.nodes, thread
        block = run.kvm.memory.block
        self._folios, first = np.unique(gfns // block * block, return_index=True)
        self.words: Ints = np.searchsorted(starts, first, side="right") - 1
        costs = [numa.nodes.at_leisure(thread, folio) for folio in self._folios.tolist()]
        self.costs: Ints = np.array([NOWHERE if c is None else c for c in costs], dtype=np.int64)

    def done(self, words: int, now: int) -> None:
        """The first so many words were done, by ``now``."""
        for folio in self._folios[self.words < words].tolist():
            self._nodes.taken(self._thread, folio, now)
