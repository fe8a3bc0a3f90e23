"""Huge pages are possible again once logging ends (``kvm_mmu_zap_collapsible_sptes``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.table import TablePage
from tdpmmu.mmu.fault import KVM_MAX_HUGEPAGE_LEVEL
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.page_split import PageSplit
from tdpmmu.mmu.tdp_iter import TdpIter


class Collapse(PageSplit):
    """Tables where a huge page could be are zapped; the next fault maps the huge page."""

    async def zap_collapsible_sptes(self, slot: Memslot) -> None:
        """``kvm_mmu_zap_collapsible_sptes``: in both MMUs."""
        if self.kvm.config.shadow_pages:
            await self.kvm.mmu_lock.write_lock()
            await self.rmap_zap_collapsible_sptes(slot)
            await self.kvm.mmu_lock.write_unlock()
        await self.lock_slot_walk()
        root = await self.first_slot_root(slot)
        while root is not None:
            await self.collapse_range(root, slot)
            root = await self.next_slot_root(slot, root)
        await self.unlock_slot_walk()

    async def rmap_zap_collapsible_sptes(self, slot: Memslot) -> None:
        """``kvm_rmap_zap_collapsible_sptes``: where shadow pages are known, further up."""

    async def collapse_range(self, root: TablePage, slot: Memslot) -> None:
        """``zap_collapsible_spte_range``: freeze, flush, clear."""
        kvm = self.kvm
        shared = not await kvm.mmu_lock.held_for_write()
        end = slot.base_gfn + slot.npages
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, slot.base_gfn, end, min_level=2)
        while await it.next_pte():
            while True:
                if await self.iter_cond_resched(it, False, shared):
                    break
                if not await self.is_collapsible(slot, it):
                    break
                if await self.zap_spte_atomic(it):
                    break
                it.old_spte = await self.reread(it)
        await kvm.rcu.read_unlock()

    async def is_collapsible(self, slot: Memslot, it: TdpIter) -> bool:
        """Whether the entry at ``it`` is a table where a huge page could be."""
        spte = self.kvm.format
        if it.level > self.kvm.config.huge_level or not spte.is_shadow_present(it.old_spte):
            return False
        if spte.is_last(it.old_spte, it.level) or not slot.covers(it.gfn):
            return False
        level = await self.max_mapping_level(slot, it.gfn, KVM_MAX_HUGEPAGE_LEVEL)
        return level >= it.level
