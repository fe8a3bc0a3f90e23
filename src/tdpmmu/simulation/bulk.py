"""Loops over a whole page table that nobody can see the inside of, done as one operation.

A layer on top of a kernel's class.  Each loop costs what its operations cost one by one, and counts
as many events; where somebody could look, it is left to the layer below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tdpmmu.arch.requests import WaitIpi
from tdpmmu.arch.spte import PAGE_SHIFT
from tdpmmu.arch.table import CmpXchgSpte, ReadSpte, SetPrivate, TablePage, WriteSpte, XchgSpte
from tdpmmu.events.records import PfnMarkedDirty
from tdpmmu.kernel.locks import NeedBreak
from tdpmmu.machine.op import Op
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.simulation.dirty import DirtyWords
from tdpmmu.simulation.masks import dirty_mask, present_mask
from tdpmmu.simulation.regions import LOST
from tdpmmu.simulation.splits import BulkSplit
from tdpmmu.simulation.tables import ENTRIES, ArrayPage
from tdpmmu.simulation.words import ArmWords
from tdpmmu.worlds.simulate.ops import AskAll, SendAll

if TYPE_CHECKING:
    from tdpmmu.mmu.kvm import Memslot
    from tdpmmu.simulation.kernel import Simulated as Base
    from tdpmmu.simulation.machine import Simulation
    from tdpmmu.worlds.simulate.clock import Clock
    from tdpmmu.worlds.simulate.thread import SimThread
else:
    Base = object


@dataclass(frozen=True, slots=True)
class RemoveEntries(Op):
    """Freeze all entries of a last-level table; false: it has to be done one by one."""

    page: TablePage
    base: int
    shared: bool


@dataclass(frozen=True, slots=True)
class FillSplit(Op):
    """Fill a table nobody sees with the parts of a huge page."""

    page: TablePage
    huge: int
    level: int


@dataclass(frozen=True, slots=True, eq=False)
class ClearEntries(Op):
    """Take bits from leaves of a last-level table, from ``index`` on, where ``old`` was read.

    As many as can be done before it is somebody else's turn, but not the last one of the table: how
    many, and what is read of the entry after them.
    """

    page: TablePage
    index: int
    old: int
    bits: int


class ClearingIter(TdpIter):
    """A walk that takes ``bits`` from leaves: it runs through last-level tables."""

    __slots__ = ("bits", "mmu")

    def __init__(
        self, mmu: Bulk, bits: int, root: TablePage, start: int, end: int, min_level: int
    ) -> None:
        super().__init__(mmu.kvm, root, start, end, min_level=min_level)
        self.mmu = mmu
        self.bits = bits

    async def next_pte(self) -> bool:
        """Go to the next SPTE that has to be looked at by itself; false at the end."""
        found = await super().next_pte()
        if found and self.level == 1 and self.mmu.may_yield_here(self):
            await self._run_through()
        return found

    async def _run_through(self) -> None:
        table = self.pt_path[0]
        assert table is not None
        index = self.kvm.geometry.index(self.gfn, 1)
        done, old = await ClearEntries(table, index, self.old_spte, self.bits)
        if done:
            self.gfn += done
            self.next_last_level_gfn = self.gfn
            self.sptep = table.entries[index + done]
            self.old_spte = old


class Bulk(Base):
    """Whole tables at once."""

    def iter_to_clear(self, root: TablePage, slot: Memslot, bits: int, min_level: int) -> TdpIter:
        end = slot.base_gfn + slot.npages
        return ClearingIter(self, bits, root, slot.base_gfn, end, min_level)

    async def make_all_cpus_request(self) -> None:
        kick = await AskAll(self.kvm.vcpus_to_ask)
        if kick is None:
            await super().make_all_cpus_request()
        elif kick:
            for vcpu in await SendAll(kick):
                await WaitIpi(self.kvm.hardware, vcpu)

    async def arm_words(self, slot: Memslot, words: DirtyWords, pool: int) -> None:
        at = 0
        while at < len(words):
            done = await ArmWords(slot, words, at)
            if not done:
                await self.arm_word(slot, words.word(at), pool)
            at += done or 1

    async def remove_entries(self, sp: TablePage, base: int, level: int, shared: bool) -> None:
        if level > 1 or not await RemoveEntries(sp, base, shared):
            await super().remove_entries(sp, base, level, shared)

    async def fill_split_table(self, sp: TablePage, huge: int, level: int) -> None:
        await FillSplit(sp, huge, level)


class BulkOps:
    """What the operations of this layer do, in virtual time."""

    def __init__(self, simulation: Simulation, clock: Clock) -> None:
        self._simulation = simulation
        self._clock = clock
        clock.handlers[RemoveEntries] = self._remove
        clock.handlers[FillSplit] = self._fill
        clock.handlers[ClearEntries] = self._clear
        clock.handlers[AskAll] = self._ask_one_by_one

    def _seen_inside(self, thread: SimThread, region: int, shared: bool) -> bool:
        """Whether another thread could be in a table of that 2 MiB region."""
        run, me = self._simulation, thread.number
        if any(gfn >> 9 == region for who, gfn in run.what.faulting.items() if who != me):
            return True
        if not shared:
            return False
        readers: int = thread.step[run.kvm.mmu_lock.readers] & ~(1 << me)
        return bool(readers >> run.guest.vcpus)

    def _remove(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, RemoveEntries)
        page = op.page
        assert isinstance(page, ArrayPage)
        run, clock, price = self._simulation, self._clock, self._clock.price
        fmt, row = run.format, page.row()
        present = present_mask(fmt, row)
        mapped = int(present.sum())
        dirty = int((present & dirty_mask(fmt, row)).sum())
        dear = thread.scan.dear(page.entries[0])
        cost = dirty * price.of_event(PfnMarkedDirty)
        cost -= (ENTRIES - dear) * run.costs.saved_ahead
        if op.shared:
            changed = ENTRIES
            cost += ENTRIES * price.of(XchgSpte)
        else:
            changed = mapped
            cost += ENTRIES * price.of(ReadSpte) + mapped * price.of(WriteSpte)
        far: int | None = 0
        if run.numa is not None:
            touched = np.ones(ENTRIES, dtype=np.int64) + (0 if op.shared else present)
            cost += int(touched[:dear].sum()) * run.numa.far_spte(thread, page)
            cost += int(touched[dear:].sum()) * run.numa.far_ahead(thread, page)
            far = run.numa.far_zaps(thread, op.base, dirty, cost)
            cost += far or 0
        frozen = np.uint64(fmt.removed)
        if (
            far is None
            or self._seen_inside(thread, op.base >> 9, op.shared)
            or thread.now + cost > min(clock.ledger.next_sample, clock.until)
            or bool((row == frozen).any())
        ):
            clock.complete(thread, False, 0)
            return True
        if op.shared:
            row[:] = frozen
        else:
            row[present] = frozen
        counts = clock.ledger.counts
        counts["SpteChanged"] += changed
        if dirty:
            counts["PfnMarkedDirty"] += dirty
        clock.ledger.small_bytes -= mapped << PAGE_SHIFT
        if mapped:
            run.regions.set(LOST, op.base)
        clock.complete(thread, True, cost)
        return True

    def _ask_one_by_one(self, thread: SimThread, op: Op) -> bool:
        """Guests that are no herd."""
        self._clock.complete(thread, None, 0)
        return True

    def _clear(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, ClearEntries)
        page = op.page
        assert isinstance(page, ArrayPage)
        run, clock, price = self._simulation, self._clock, self._clock.price
        fmt, row, bits = run.format, page.row()[op.index :], np.uint64(op.bits)
        limit = min(clock.next_turn()[0], clock.until)
        contended = clock.locks.contended(run.kvm.mmu_lock.name)
        contended = contended or clock.cpus.need_resched(thread)
        if int(row[0]) != op.old or len(row) < 2 or contended:
            clock.complete(thread, (0, op.old), 0)
            return True
        # Of the last one nothing is done here: the walk goes on at another table after it.
        entries = row[:-1]
        clears = present_mask(fmt, entries) & (entries & bits != 0)
        loses = clears & dirty_mask(fmt, entries) & ~dirty_mask(fmt, entries & ~bits)
        line = np.full(len(row), -run.costs.saved_ahead, dtype=np.int64)
        dear = thread.scan.dear(page.entries[op.index])
        line[:dear] = 0
        mark = 0
        if run.numa is not None:
            line += run.numa.far_ahead(thread, page)
            line[:dear] += run.numa.far_spte(thread, page) - run.numa.far_ahead(thread, page)
            base = run.memory[page.header.chunk][page.header.offset].gfn
            far = run.numa.far_mark(thread, base) if loses.any() else 0
            if far is None:
                clock.complete(thread, (0, op.old), 0)
                return True
            mark = far
        cost = price.of(NeedBreak) + clears * (price.of(CmpXchgSpte) + line[:-1])
        cost += loses * (price.of_event(PfnMarkedDirty) + mark)
        # Then the next entry is read.
        over = np.cumsum(cost + price.of(ReadSpte) + line[1:])
        done = int(np.searchsorted(over, limit - thread.now, side="right"))
        thread.scan.through(page.entries[op.index], page.entries[op.index + done])
        counts = clock.ledger.counts
        cleared, lost = int(clears[:done].sum()), int(loses[:done].sum())
        if cleared:
            entries[:done][clears[:done]] &= ~bits
            counts["SpteChanged"] += cleared
        if lost:
            counts["PfnMarkedDirty"] += lost
        ns = int(over[done - 1]) if done else 0
        clock.complete(thread, (done, int(row[done]) if done else op.old), ns)
        return True

    def _fill(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, FillSplit)
        page = op.page
        assert isinstance(page, ArrayPage)
        run = self._simulation
        first = run.format.split_child(op.huge, op.level, 0)
        stride = np.uint64(run.kvm.geometry.pages(op.level) << PAGE_SHIFT)
        page.row()[:] = np.uint64(first) + np.arange(ENTRIES, dtype=np.uint64) * stride
        self._clock.complete(thread, None, ENTRIES * self._clock.price.of(SetPrivate))
        return True


def bulk_layers(bulk: bool) -> tuple[type[Any], ...]:
    """What to put on top of a kernel's class."""
    return (Bulk, BulkSplit) if bulk else ()
