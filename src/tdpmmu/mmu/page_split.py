"""Eager page splitting: huge pages are split before guest writes need it (``tdp_mmu.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.table import (
    Allocate,
    FreeUnused,
    Header,
    ReadHeader,
    SetPrivate,
    TablePage,
)
from tdpmmu.events.records import PageLinked
from tdpmmu.kernel.locks import Sleep
from tdpmmu.machine.op import Emit
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.log_protect import LogProtect
from tdpmmu.mmu.tdp_iter import TdpIter

NO_EAGER_PAGE_SPLIT = "no-eager-page-split"
"""The module parameter ``eager_page_split`` is off."""


class PageSplit(LogProtect):
    """Tables with the same translations take the place of huge pages, and nobody flushes."""

    def splits_eagerly(self) -> bool:
        """``eager_page_split``: kernels before 5.18 have no such thing."""
        return False

    async def slot_split_huge_pages(self, slot: Memslot, pool: int) -> None:
        """``kvm_mmu_slot_try_split_huge_pages``: a whole slot, as logging is switched on."""
        if not self.tdp_mmu_enabled():
            return
        end = slot.base_gfn + slot.npages
        if self.kvm.config.shadow_pages:
            await self.kvm.mmu_lock.write_lock()
            await self.shadow_split_huge_pages(slot, slot.base_gfn, end, pool)
            await self.kvm.mmu_lock.write_unlock()
        await self.lock_slot_walk()
        await self.tdp_split_huge_pages(slot, slot.base_gfn, end, pool)
        await self.unlock_slot_walk()

    async def split_huge_pages(self, slot: Memslot, start: int, end: int, pool: int) -> None:
        """``kvm_mmu_try_split_huge_pages``: a range, under ``mmu_lock`` held for write."""
        if not self.tdp_mmu_enabled():
            return
        if self.kvm.config.shadow_pages:
            await self.shadow_split_huge_pages(slot, start, end, pool)
        await self.tdp_split_huge_pages(slot, start, end, pool)

    async def shadow_split_huge_pages(self, slot: Memslot, start: int, end: int, pool: int) -> None:
        """``kvm_shadow_mmu_try_split_huge_pages``: shadow pages are made further up."""

    async def tdp_split_huge_pages(self, slot: Memslot, start: int, end: int, pool: int) -> None:
        """``kvm_tdp_mmu_try_split_huge_pages``."""
        root = await self.first_slot_root(slot)
        while root is not None:
            await self.split_huge_pages_root(root, start, end, pool)
            root = await self.next_slot_root(slot, root)

    async def split_huge_pages_root(self, root: TablePage, start: int, end: int, pool: int) -> None:
        """``tdp_mmu_split_huge_pages_root``: whose table it will be is not known first."""
        kvm = self.kvm
        spte = kvm.format
        shared = not await kvm.mmu_lock.held_for_write()
        sp: TablePage | None = None
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, start, end, min_level=2)
        while await it.next_pte():
            while True:
                if await self.iter_cond_resched(it, False, shared):
                    break
                if not spte.is_shadow_present(it.old_spte) or not spte.is_large(it.old_spte):
                    break
                if sp is None:
                    sp = await self.alloc_page_for_split(it, pool, shared)
                    if it.yielded:
                        break
                if await self.split_huge_page(it, sp, shared):
                    sp = None
                    break
                it.old_spte = await self.reread(it)
        await kvm.rcu.read_unlock()
        if sp is not None:
            await FreeUnused(sp)

    async def alloc_page_for_split(self, it: TdpIter, pool: int, shared: bool) -> TablePage:
        """``tdp_mmu_alloc_sp_for_split``: outside of the lock, so the walk starts again."""
        kvm = self.kvm
        await kvm.rcu.read_unlock()
        if shared:
            await kvm.mmu_lock.read_unlock()
        else:
            await kvm.mmu_lock.write_unlock()
        await Sleep("tdp_mmu_alloc_sp_for_split")
        sp = await self.take_page_for_split(it, pool)
        if shared:
            await kvm.mmu_lock.read_lock()
        else:
            await kvm.mmu_lock.write_lock()
        await kvm.rcu.read_lock()
        it.yielded = True
        return sp

    async def take_page_for_split(self, it: TdpIter, pool: int) -> TablePage:
        """The allocation itself; what the page will be for is not known yet."""
        header = await ReadHeader(it.root)
        sp: TablePage = await Allocate(self.kvm.pools[pool], header)
        return sp

    async def split_huge_page(self, it: TdpIter, sp: TablePage, shared: bool) -> bool:
        """``tdp_mmu_init_child_sp``, ``tdp_mmu_split_huge_page``; false: somebody was first."""
        kvm = self.kvm
        root = await ReadHeader(it.root)
        level = it.level - 1
        header = Header(
            it.gfn, level, level, root.as_id, it.root.number, True, it.sptep, root.guest_mode
        )
        await SetPrivate(sp.header, header)
        await self.fill_split_table(sp, it.old_spte, level)
        if not shared:
            await self.set_spte(it, kvm.format.nonleaf(sp.pfn))
        elif not await self.set_spte_atomic(it, kvm.format.nonleaf(sp.pfn)):
            return False
        await Emit(PageLinked(sp.name, it.gfn, level))
        await self.list_split_page(sp, shared)
        return True

    async def list_split_page(self, sp: TablePage, shared: bool) -> None:
        """The end of ``tdp_mmu_link_sp``: onto the list of all TDP tables, up to 6.1."""
        await self.link_page(sp, shared, False)
