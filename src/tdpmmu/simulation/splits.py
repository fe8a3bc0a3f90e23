"""Eager page splitting, many huge pages in one operation.

Each split of a slot gives the lock back to allocate a table, takes it again, walks down from the
root and fills the table.  Nobody who might look has a turn in between, so what comes of it is the
same, and what it takes is the sum.  Left to the layer below where a table is allocated otherwise,
or where what a step takes is not known beforehand: with NUMA, and where CPUs are shared or noisy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tdpmmu.arch.spte import PAGE_SHIFT
from tdpmmu.arch.table import (
    Allocate,
    CmpXchgSpte,
    Header,
    Pool,
    ReadHeader,
    ReadSpte,
    SetPrivate,
    TablePage,
)
from tdpmmu.events.records import PfnMarkedDirty
from tdpmmu.kernel.locks import NeedBreak
from tdpmmu.machine.op import Op
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.simulation.tables import ENTRIES, ArrayPage
from tdpmmu.worlds.simulate.scan import LINE_SPTES, Scan

if TYPE_CHECKING:
    from tdpmmu.simulation.kernel import Simulated as Base
    from tdpmmu.simulation.machine import Simulation
    from tdpmmu.worlds.simulate.clock import Clock
    from tdpmmu.worlds.simulate.thread import SimThread
else:
    Base = object

LEVEL = 2
"""Of the huge pages that are split so: 2 MiB."""


@dataclass(frozen=True, slots=True, eq=False)
class SplitMany(Op):
    """Split the huge pages of ``table`` from ``index`` on, as long as another one follows.

    The thread has come to the first with a table in hand, and does so: how many were
    split, and the entry of the one after them.
    """

    root: TablePage
    table: TablePage
    index: int
    pool: Pool
    last: int


class BulkSplit(Base):
    """Huge pages are split many at a time."""

    _pool: Pool | None = None

    async def alloc_page_for_split(self, it: TdpIter, pool: int, shared: bool) -> TablePage:
        sp = await super().alloc_page_for_split(it, pool, shared)
        self._pool = self.kvm.pools[pool] if it.yielded and shared else None
        return sp

    async def split_huge_page(self, it: TdpIter, sp: TablePage, shared: bool) -> bool:
        table = it.pt_path[LEVEL - 1]
        if self._pool is not None and shared and it.level == LEVEL and table is not None:
            pages = self.kvm.geometry.pages(LEVEL)
            index = self.kvm.geometry.index(it.gfn, LEVEL)
            last = min(ENTRIES, index + (it.end - it.gfn) // pages) - 1
            done, old = await SplitMany(it.root, table, index, self._pool, last)
            if done:
                it.gfn += done * pages
                it.next_last_level_gfn = it.yielded_gfn = it.gfn
                it.sptep = table.entries[index + done]
                it.old_spte = old
        return await super().split_huge_page(it, sp, shared)


class SplitOps:
    """The operation in virtual time."""

    def __init__(self, run: Simulation, clock: Clock) -> None:
        self._run = run
        self._clock = clock
        clock.handlers[SplitMany] = self._split

    def _ready(self, thread: SimThread, op: SplitMany) -> bool:
        """Whether all that is asked about has one answer."""
        run, clock = self._run, self._clock
        lock = run.kvm.mmu_lock.name
        return (
            run.numa is None
            and not clock.cpus.limit
            and not clock.cpus.need_resched(thread)
            and not clock.locks.contended(lock)
            and clock.locks.line(lock)[0] == thread.number
            and not clock.waiting
            and not thread.scan.at(op.table.entries[op.index])
        )

    def _split(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, SplitMany)
        clock = self._clock
        limit = min(clock.next_turn()[0], clock.until, clock.ledger.next_sample)
        index = op.index
        if self._ready(thread, op):
            while index < op.last and (end := self._one(thread, op, index, limit)) is not None:
                thread.now = end
                index += 1
        if index > op.index:
            thread.scan = Scan()
            thread.scan.at(op.table.entries[index])
        assert isinstance(op.table, ArrayPage)
        clock.complete(thread, (index - op.index, int(op.table.row()[index])), 0)
        return True

    def _one(self, thread: SimThread, op: SplitMany, index: int, limit: int) -> int | None:
        """One huge page; when the next one has been come to, None if that is too late."""
        run, clock, price = self._run, self._clock, self._clock.price
        costs, fmt, step, lock = run.costs, run.format, thread.step, run.kvm.mmu_lock
        assert isinstance(op.table, ArrayPage)
        entries = op.table.row()
        huge, following = int(entries[index]), int(entries[index + 1])
        if not all(fmt.is_shadow_present(one) and fmt.is_large(one) for one in (huge, following)):
            return None
        dirty = fmt.is_dirty(huge)
        released = thread.now + price.of(ReadHeader) + (1 + ENTRIES) * price.of(SetPrivate)
        released += price.of(CmpXchgSpte) + dirty * price.of_event(PfnMarkedDirty)
        released += price.of(ReadSpte) + price.of(NeedBreak) + costs.rcu
        if (index + 1) % LINE_SPTES == 0:
            released -= costs.saved_ahead
        unlocked = released + costs.read_unlock + price.of(ReadHeader)
        walk = costs.read_lock + costs.rcu
        walk += (2 * (run.kvm.geometry.levels - LEVEL) + 1) * price.of(ReadSpte)
        taken = unlocked + run.caches.take(thread)
        if taken + walk >= limit:
            return None
        clock.locks.again(thread, lock.name, "read", released, taken)
        self._link(op, index, huge, step)
        counts = clock.ledger.counts
        counts["LockReleased"] += 2
        counts["LockTaken"] += 2
        counts["PageLinked"] += 1
        counts["MightSleep"] += 1
        counts["PfnMarkedDirty"] += dirty
        return taken + walk

    def _link(self, op: SplitMany, index: int, huge: int, step: Any) -> None:
        """A table takes the place of a huge page."""
        run, level = self._run, LEVEL - 1
        fmt, root = run.format, step[op.root.header]
        page = Allocate(op.pool, root).apply(step, 0)
        assert isinstance(page, ArrayPage)
        run.ledger.tables += 1
        sptep = op.table.entries[index]
        gfn = step[op.table.header].gfn + index * run.kvm.geometry.pages(LEVEL)
        step[page.header] = Header(
            gfn, level, level, root.as_id, op.root.number, True, sptep, root.guest_mode
        )
        first = np.uint64(fmt.split_child(huge, level, 0))
        page.row()[:] = first + np.arange(ENTRIES, dtype=np.uint64) * np.uint64(1 << PAGE_SHIFT)
        CmpXchgSpte(sptep, huge, fmt.nonleaf(page.pfn)).apply(step, 0)
