"""Ageing: the host asks which pages were accessed (``kvm_age_gfn``, ``tdp_mmu.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.table import TablePage
from tdpmmu.machine.op import Read
from tdpmmu.mmu.fast_page_fault import FastPageFault
from tdpmmu.mmu.tdp_iter import TdpIter


class Ageing(FastPageFault):
    """``clear_young``: accessed bits are cleared, and nobody flushes for it."""

    async def age_gfn_range(self, start: int, end: int) -> bool:
        """``kvm_tdp_mmu_age_gfn_range``, called with ``mmu_lock`` taken for write; true: young."""
        kvm = self.kvm
        young = False
        await kvm.mmu_lock.write_lock()
        for root in await Read(kvm.tdp_mmu_roots):
            if await self.age_gfn_range_in(root, start, end):
                young = True
        await kvm.mmu_lock.write_unlock()
        return young

    async def age_gfn_range_in(self, root: TablePage, start: int, end: int) -> bool:
        """``age_gfn_range`` of one root."""
        kvm = self.kvm
        spte = kvm.format
        young = False
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, start, end)
        while await it.next_pte():
            if not spte.is_shadow_present(it.old_spte) or not spte.is_last(it.old_spte, it.level):
                continue
            if it.old_spte & spte.accessed:
                await self.clear_spte_bits(it, spte.accessed)
                young = True
        await kvm.rcu.read_unlock()
        return young
