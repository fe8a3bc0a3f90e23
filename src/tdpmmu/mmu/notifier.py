"""mmu_notifier: the host takes a page away from the guest (``kvm_main.c``, v5.12)."""

from __future__ import annotations

from tdpmmu.machine.op import Add, Read, Write
from tdpmmu.mmu.kvm import NO_RANGE
from tdpmmu.mmu.nx_recovery import NxRecovery


class Notifier(NxRecovery):
    """``invalidate_range_start`` and ``_end``."""

    async def unmap_range(self, start: int, end: int) -> bool:
        """``kvm_unmap_hva_range``: in the legacy MMU by rmap, in the TDP MMU by walking."""
        flush = await self.unmap_rmap(start, end)
        zapped = await self.tdp_mmu_unmap(start, end)
        return flush or zapped

    async def invalidate_range_start(self, start: int, end: int) -> None:
        """``kvm_mmu_notifier_invalidate_range_start`` for gfns ``[start, end)``."""
        kvm = self.kvm
        await kvm.srcu.read_lock()
        await kvm.mmu_lock.write_lock()
        await Add(kvm.mmu_notifier_count, 1)
        await Write(kvm.mmu_notifier_range, (start, end))
        if await self.unmap_range(start, end):
            await self.flush_remote_tlbs()
        await kvm.mmu_lock.write_unlock()
        await kvm.srcu.read_unlock()

    async def invalidate_range_end(self) -> None:
        """``kvm_mmu_notifier_invalidate_range_end``."""
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        await Add(kvm.mmu_notifier_seq, 1)
        await Add(kvm.mmu_notifier_count, -1)
        if not await Read(kvm.mmu_notifier_count):
            await Write(kvm.mmu_notifier_range, NO_RANGE)
        await kvm.mmu_lock.write_unlock()

    async def host_takes_back(self, gfn: int) -> None:
        """A whole host page behind ``gfn`` is swapped out and its frames given to somebody else."""
        memory = self.kvm.memory
        start = gfn // memory.block * memory.block
        await self.invalidate_range_start(start, start + memory.block)
        await memory.take_back(gfn)
        await self.invalidate_range_end()
