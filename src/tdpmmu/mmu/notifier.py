"""mmu_notifier: the host takes a page away from the guest (``kvm_main.c``, v5.13).

A range of host pages is walked slot by slot, in each address space: ``kvm_handle_hva_range``, in
5.12 of each MMU for itself, from 5.13 for both.  What the walks of the slots owe is flushed at the
end.
"""

from __future__ import annotations

from tdpmmu.events.records import Warned
from tdpmmu.machine.op import Add, Emit, Read, Write
from tdpmmu.mmu.kvm import NO_RANGE
from tdpmmu.mmu.nx_recovery import NxRecovery

GfnRange = tuple[int, int, int]
"""``struct kvm_gfn_range``: the address space of its slot, the first gfn, and the one after it."""


class Notifier(NxRecovery):
    """``invalidate_range_start`` and ``_end``."""

    async def hva_ranges(self, start: int, end: int) -> tuple[GfnRange, ...]:
        """``kvm_for_each_memslot_in_hva_range``: each slot's part of ``[start, end)``, as gfns."""
        ranges: list[GfnRange] = []
        for as_id in (0, 1):
            slots = await Read(self.kvm.memslots[as_id])
            for slot in slots.slots:
                first = max(start, slot.hva)
                last = min(end, slot.hva + slot.npages)
                if first < last:
                    offset = slot.base_gfn - slot.hva
                    ranges.append((as_id, first + offset, last + offset))
        return tuple(ranges)

    async def gfn_ranges(self, start: int, end: int) -> tuple[GfnRange, ...]:
        """``kvm_for_each_memslot_in_gfn_range``: what each slot has of gfns ``[start, end)``."""
        ranges: list[GfnRange] = []
        for as_id in (0, 1):
            slots = await Read(self.kvm.memslots[as_id])
            for slot in slots.slots:
                first = max(start, slot.base_gfn)
                last = min(end, slot.base_gfn + slot.npages)
                if first < last:
                    ranges.append((as_id, first, last))
        return tuple(ranges)

    async def unmap_gfn_range(self, as_id: int, start: int, end: int) -> bool:
        """``kvm_unmap_gfn_range``: one slot's gfns, by rmap and in the TDP MMU's roots.

        A gfn has one rmap here for both address spaces.
        """
        flush = await self.unmap_rmap(start, end)
        zapped = await self.tdp_mmu_unmap(as_id, start, end)
        return flush or zapped

    async def unmap_ranges(self, ranges: tuple[GfnRange, ...]) -> bool:
        """``kvm_mmu_unmap_gfn_range`` for each slot, each from no flush owed; true: one is."""
        flush = False
        for as_id, start, end in ranges:
            await self.invalidate_range_add(start, end)
            zapped = await self.unmap_gfn_range(as_id, start, end)
            flush = flush or zapped
        return flush

    async def invalidate_range_start(self, start: int, end: int) -> None:
        """``kvm_mmu_notifier_invalidate_range_start`` for host pages ``[start, end)``."""
        kvm = self.kvm
        await self.invalidation_begins()
        await kvm.srcu.read_lock()
        ranges = await self.hva_ranges(start, end)
        if ranges:
            await kvm.mmu_lock.write_lock()
            await Add(kvm.mmu_notifier_count, 1)
            if await self.unmap_ranges(ranges):
                await self.flush_remote_tlbs()
            await kvm.mmu_lock.write_unlock()
        await kvm.srcu.read_unlock()

    async def invalidate_range_end(self, start: int, end: int) -> None:
        """``kvm_mmu_notifier_invalidate_range_end``."""
        kvm = self.kvm
        await kvm.srcu.read_lock()
        ranges = await self.hva_ranges(start, end)
        if ranges:
            await kvm.mmu_lock.write_lock()
            await Add(kvm.mmu_notifier_seq, 1)
            await Add(kvm.mmu_notifier_count, -1)
            count = await Read(kvm.mmu_notifier_count)
            if count < 0:
                await Emit(Warned("mmu_invalidate_in_progress drops below zero"))
            if not count:
                await Write(kvm.mmu_notifier_range, NO_RANGE)
            await kvm.mmu_lock.write_unlock()
        await kvm.srcu.read_unlock()
        await self.invalidation_ends()

    async def invalidate_range_add(self, start: int, end: int) -> None:
        """``kvm_mmu_invalidate_range_add``: one range for all that is under way."""
        kvm = self.kvm
        old = await Read(kvm.mmu_notifier_range)
        if old != NO_RANGE:
            start = min(start, old[0])
            end = max(end, old[1])
        await Write(kvm.mmu_notifier_range, (start, end))

    async def invalidation_begins(self) -> None:
        """From 5.15: ``mn_active_invalidate_count`` keeps memslots from being swapped."""

    async def invalidation_ends(self) -> None:
        """The counterpart."""

    async def host_unmaps(self, gfn: int) -> None:
        """What happens between start and end; to KVM nothing, but for an APIC access page."""
        await self.kvm.memory.take_back(gfn)

    async def host_takes_back(self, gfn: int) -> None:
        """A whole host page behind ``gfn`` is swapped out and its frames given to somebody else."""
        memory = self.kvm.memory
        start = gfn // memory.block * memory.block
        await self.invalidate_range_start(start, start + memory.block)
        await self.host_unmaps(gfn)
        await self.invalidate_range_end(start, start + memory.block)
