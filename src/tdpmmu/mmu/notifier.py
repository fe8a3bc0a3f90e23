"""mmu_notifier: the host takes a page away from the guest (``kvm_main.c``, v5.12)."""

from __future__ import annotations

from tdpmmu.events.records import Warned
from tdpmmu.machine.op import Add, Emit, Read, Write
from tdpmmu.mmu.kvm import NO_RANGE
from tdpmmu.mmu.nx_recovery import NxRecovery


class Notifier(NxRecovery):
    """``invalidate_range_start`` and ``_end``."""

    async def unmap_range(self, start: int, end: int) -> bool:
        """``kvm_unmap_hva_range``: in the legacy MMU by rmap, in the TDP MMU by walking."""
        flush = await self.unmap_rmap(start, end)
        zapped = await self.tdp_mmu_unmap(start, end)
        return flush or zapped

    async def slot_ranges(self, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """The gfn ranges that the slots map to host pages ``[start, end)``."""
        ranges: list[tuple[int, int]] = []
        for as_id in (0, 1):
            slots = await Read(self.kvm.memslots[as_id])
            for slot in slots.slots:
                first = max(start, slot.hva)
                last = min(end, slot.hva + slot.npages)
                gfns = (slot.base_gfn + first - slot.hva, slot.base_gfn + last - slot.hva)
                if first < last and gfns not in ranges:
                    ranges.append(gfns)
        return tuple(ranges)

    async def invalidate_range_start(self, start: int, end: int) -> None:
        """``kvm_mmu_notifier_invalidate_range_start`` for host pages ``[start, end)``."""
        kvm = self.kvm
        await self.invalidation_begins()
        await kvm.srcu.read_lock()
        ranges = await self.slot_ranges(start, end)
        if ranges:
            await kvm.mmu_lock.write_lock()
            flush = False
            await Add(kvm.mmu_notifier_count, 1)
            for first, last in ranges:
                await self.invalidate_range_add(first, last)
                zapped = await self.unmap_range(first, last)
                flush = flush or zapped
            if flush:
                await self.flush_remote_tlbs()
            await kvm.mmu_lock.write_unlock()
        await kvm.srcu.read_unlock()

    async def invalidate_range_end(self, start: int, end: int) -> None:
        """``kvm_mmu_notifier_invalidate_range_end``."""
        kvm = self.kvm
        await kvm.srcu.read_lock()
        ranges = await self.slot_ranges(start, end)
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

    async def host_takes_back(self, gfn: int) -> None:
        """A whole host page behind ``gfn`` is swapped out and its frames given to somebody else."""
        memory = self.kvm.memory
        start = gfn // memory.block * memory.block
        await self.invalidate_range_start(start, start + memory.block)
        await memory.take_back(gfn)
        await self.invalidate_range_end(start, start + memory.block)
