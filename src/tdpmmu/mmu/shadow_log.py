"""Dirty logging in the shadow MMU: huge pages split and recovered (``mmu.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.guest import ACC_EXEC
from tdpmmu.arch.table import ReadHeader, ReadSpte, TablePage, WriteSpte
from tdpmmu.kernel.locks import Sleep
from tdpmmu.machine.op import Read
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.fault import KVM_MAX_HUGEPAGE_LEVEL
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.shadow_pages import ShadowPages


class ShadowLog(ShadowPages):
    """By reverse map, under ``mmu_lock`` held for write."""

    # --- splitting ------------------------------------------------------------------------------

    async def shadow_split_huge_pages(self, slot: Memslot, start: int, end: int, pool: int) -> None:
        geometry = self.kvm.geometry
        for level in range(KVM_MAX_HUGEPAGE_LEVEL, 1, -1):
            for gfn in range(geometry.round(start, level), end, geometry.pages(level)):
                await self.rmap_cond_resched()
                await self.shadow_split_rmap(gfn, level, pool)

    async def shadow_split_rmap(self, gfn: int, level: int, pool: int) -> None:
        """``shadow_mmu_try_split_huge_pages``: the caches are filled outside of the lock."""
        kvm = self.kvm
        topped_up = False
        while True:
            huge_sptep = await self.huge_rmap_spte(gfn, level)
            if huge_sptep is None or await self.no_mmu_pages_left():
                return
            if topped_up:
                topped_up = False
                await self.shadow_split_huge_page(huge_sptep, pool)
                continue
            topped_up = True
            await kvm.mmu_lock.write_unlock()
            await Sleep("topup_split_caches")
            await kvm.mmu_lock.write_lock()

    async def huge_rmap_spte(self, gfn: int, level: int) -> Cell | None:
        """The first leaf of that size in a page that is still valid."""
        for sptep in await self.rmap_sptes(gfn, level, level):
            if not await Read(sptep.page.invalid):
                return sptep
        return None

    async def no_mmu_pages_left(self) -> bool:
        """``kvm_mmu_available_pages() <= KVM_MIN_FREE_MMU_PAGES``: what a fault may need."""
        kvm = self.kvm
        used = await Read(kvm.n_used_mmu_pages)
        quota = kvm.config.mmu_pages
        return bool(quota) and quota - used <= kvm.geometry.levels - 1

    async def shadow_split_huge_page(self, huge_sptep: Cell, pool: int) -> None:
        """``shadow_mmu_split_huge_page``: a direct page, perhaps one that is there and in use."""
        spte_format = self.kvm.format
        huge = await ReadSpte(huge_sptep)
        gfn = await self.page_gfn(huge_sptep)
        access = await self.page_access(huge_sptep)
        role = await self.child_role(huge_sptep, True, access)
        sp = await self.find_shadow_page(None, gfn, role)
        if sp is None:
            sp = await self.alloc_shadow_page(pool, gfn, role)
        pages = self.kvm.geometry.pages(role.level)
        flush = False
        for index, sptep in enumerate(sp.entries):
            old = await ReadSpte(sptep)
            if spte_format.is_shadow_present(old):
                # A table below may map less than the huge page did.
                flush = flush or not spte_format.is_last(old, role.level)
                continue
            offset = index * pages
            executable = bool(access & ACC_EXEC)
            spte = spte_format.split_child(huge, role.level, offset, executable=executable)
            await WriteSpte(sptep, spte)
            await self.rmap_add(sptep, gfn + offset, access)
        await self.link_shadow_page(huge_sptep, sp, flush)

    async def page_access(self, sptep: Cell) -> int:
        """``kvm_mmu_page_get_access``."""
        sp: TablePage = sptep.page
        header = await ReadHeader(sp)
        if header.direct:
            return int(header.access)
        shadowed = await Read(sp.shadowed)
        return int(shadowed[self.spte_index(sptep)][1])

    # --- recovering -----------------------------------------------------------------------------

    async def rmap_zap_collapsible_sptes(self, slot: Memslot) -> None:
        """``kvm_rmap_zap_collapsible_sptes``: leaves that are smaller than they need be."""
        geometry = self.kvm.geometry
        flush = False
        for level in range(1, KVM_MAX_HUGEPAGE_LEVEL):
            first = geometry.round(slot.base_gfn, level)
            for gfn in range(first, slot.base_gfn + slot.npages, geometry.pages(level)):
                if await self.rmap_cond_resched(flush):
                    flush = False
                zapped = await self.zap_collapsible_rmap(slot, gfn, level)
                flush = flush or zapped
        if flush:
            await self.flush_remote_tlbs()

    async def zap_collapsible_rmap(self, slot: Memslot, gfn: int, level: int) -> bool:
        """``kvm_mmu_zap_collapsible_spte`` of one rmap: true: a flush is owed."""
        kvm = self.kvm
        flush = False
        for sptep in await self.rmap_sptes(gfn, level, level):
            header = await ReadHeader(sptep.page)
            if not header.direct or not self.base_in_slot(slot, header.gfn):
                continue
            wanted = await self.max_mapping_level(slot, header.gfn, KVM_MAX_HUGEPAGE_LEVEL)
            if header.level >= wanted:
                continue
            await self.drop_spte(sptep)
            if kvm.config.ranged_flush:
                await self.flush_remote_tlbs_with_address(gfn, kvm.geometry.pages(level))
            else:
                flush = True
        return flush

    def base_in_slot(self, slot: Memslot, gfn: int) -> bool:
        """``is_gfn_in_memslot``: nothing is known of a page that begins outside of the slot."""
        return slot.covers(gfn)
