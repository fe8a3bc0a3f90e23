"""Ageing: the host asks which pages were accessed (``kvm_age_gfn``, v6.12).

With A/D bits the accessed bit is cleared.  Without, the leaf is made inaccessible (access
tracking), so that the next access faults and ``fast_page_fault`` restores it.
"""

from __future__ import annotations

from tdpmmu.arch.table import ClearSpteBits, ReadSpte, TablePage, WriteSpte, XchgSpte
from tdpmmu.events.records import PfnMarkedDirty
from tdpmmu.machine.op import Emit, Read
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.fast_page_fault import FastPageFault
from tdpmmu.mmu.notifier import GfnRange
from tdpmmu.mmu.tdp_iter import TdpIter

NO_AD_BITS = "no-ad-bits"
"""The CPU keeps no accessed and dirty bits (with EPT only)."""


class Ageing(FastPageFault):
    """``clear_young``: nobody flushes for it."""

    async def need_write_protect(self, root: TablePage) -> bool:
        """``tdp_mmu_need_write_protect``: without dirty bits always."""
        return not self.kvm.format.has_ad_bits or await super().need_write_protect(root)

    async def age_hva_range(self, start: int, end: int) -> bool:
        """``kvm_mmu_notifier_clear_young``: of host pages ``[start, end)``; true: young."""
        kvm = self.kvm
        await kvm.srcu.read_lock()
        ranges = await self.hva_ranges(start, end)
        young = bool(ranges) and await self.age_ranges(ranges)
        await kvm.srcu.read_unlock()
        return young

    async def age_ranges(self, ranges: tuple[GfnRange, ...]) -> bool:
        """``kvm_age_gfn`` for each slot, under ``mmu_lock`` held for write."""
        await self.kvm.mmu_lock.write_lock()
        young = False
        for as_id, start, end in ranges:
            aged = await self.age_gfn(as_id, start, end)
            young = young or aged
        await self.kvm.mmu_lock.write_unlock()
        return young

    async def age_gfn(self, as_id: int, start: int, end: int) -> bool:
        """``kvm_age_gfn``: by rmap if there are any, and in the TDP MMU's roots."""
        has_rmaps = self.kvm.config.shadow_pages
        young = has_rmaps and await self.rmap_age_gfn_range(start, end)
        in_tdp = await self.tdp_mmu_age_gfn_range(as_id, start, end)
        return young or in_tdp

    # --- shadow pages ---------------------------------------------------------------------------

    async def rmap_age_gfn_range(self, start: int, end: int) -> bool:
        """``kvm_rmap_age_gfn_range`` (``kvm_age_rmap`` up to 6.8): leaves of every level."""
        kvm = self.kvm
        young = False
        for level in range(1, kvm.config.huge_level + 1):
            first = kvm.geometry.round(start, level)
            for gfn in range(first, end, kvm.geometry.pages(level)):
                for sptep in await self.rmap_sptes(gfn, level, level):
                    aged = await self.age_shadow_spte(sptep, level)
                    young = young or aged
        return young

    async def age_shadow_spte(self, sptep: Cell, level: int) -> bool:
        """``mmu_spte_age``: the dirty status is passed on before W goes."""
        spte_format = self.kvm.format
        spte = await ReadSpte(sptep)
        if not spte_format.is_accessed(spte):
            return False
        if spte_format.ad_enabled(spte):
            await ClearSpteBits(sptep, spte_format.accessed)
            return True
        if spte_format.is_writable(spte):
            await Emit(PfnMarkedDirty(spte_format.pfn(spte), self.kvm.geometry.pages(level)))
        await XchgSpte(sptep, spte_format.mark_for_access_track(spte))
        return True

    # --- the TDP MMU ----------------------------------------------------------------------------

    async def tdp_mmu_age_gfn_range(self, as_id: int, start: int, end: int) -> bool:
        """``kvm_tdp_mmu_age_gfn_range``: in the roots of a slot's address space."""
        young = False
        for root in await Read(self.kvm.tdp_mmu_roots):
            if await self.page_as_id(root) == as_id:
                aged = await self.age_gfn_range_in(root, start, end)
                young = young or aged
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
            if spte.is_accessed(it.old_spte):
                await self.age_spte(it)
                young = True
        await kvm.rcu.read_unlock()
        return young

    async def age_spte(self, it: TdpIter) -> None:
        """``age_gfn_range``'s handler: the dirty status is passed on before W goes."""
        spte = self.kvm.format
        if spte.ad_enabled(it.old_spte):
            await self.clear_young_bits(it, spte.accessed)
            return
        if spte.is_writable(it.old_spte):
            pages = self.kvm.geometry.pages(it.level)
            await Emit(PfnMarkedDirty(spte.pfn(it.old_spte), pages))
        await self.write_spte(it, spte.mark_for_access_track(it.old_spte))

    async def clear_young_bits(self, it: TdpIter, mask: int) -> None:
        """The accessed bit of a leaf."""
        await self.clear_spte_bits(it, mask)

    async def write_spte(self, it: TdpIter, new: int) -> None:
        """``kvm_tdp_mmu_write_spte``; before 5.18 a plain write."""
        await WriteSpte(it.sptep, new)
