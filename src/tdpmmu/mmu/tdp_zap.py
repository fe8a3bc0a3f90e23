"""Changing TDP SPTEs and zapping below one root (``tdp_mmu.c``, v5.12-rc4)."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.table import (
    CmpXchgSpte,
    ReadHeader,
    ReadSpte,
    TablePage,
    WriteSpte,
    XchgSpte,
)
from tdpmmu.events.records import PageZapped, PfnMarkedDirty, Warned, Yielded
from tdpmmu.machine.op import Emit, Read, SetAdd, SetDel
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.shadow import ShadowMmu
from tdpmmu.mmu.tdp_iter import TdpIter


class TdpZap(ShadowMmu):
    """Entries change under ``mmu_lock`` held for write, or atomically under the read lock."""

    pfn_dirty_at_zap: ClassVar[bool] = True
    """A zap marks the host's page dirty and accessed: work that a world may charge for."""

    # --- bookkeeping of page table pages ---------------------------------------------------------

    async def link_page(self, sp: TablePage, shared: bool, account_nx: bool) -> None:
        """``tdp_mmu_link_page``."""
        kvm = self.kvm
        if shared:
            await kvm.tdp_mmu_pages_lock.lock()
        else:
            await kvm.mmu_lock.assert_held_write()
        await SetAdd(kvm.tdp_mmu_pages, sp)
        if account_nx:
            await self.account_huge_nx_page(sp)
        if shared:
            await kvm.tdp_mmu_pages_lock.unlock()

    async def unlink_page(self, sp: TablePage, shared: bool) -> None:
        """``tdp_mmu_unlink_page``."""
        kvm = self.kvm
        if shared:
            await kvm.tdp_mmu_pages_lock.lock()
        else:
            await kvm.mmu_lock.assert_held_write()
        if not await SetDel(kvm.tdp_mmu_pages, sp):
            await Emit(Warned(f"list_del corruption: {sp.name} is not on tdp_mmu_pages"))
        if await Read(sp.nx_huge_page_disallowed):
            await self.unaccount_huge_nx_page(sp)
        if shared:
            await kvm.tdp_mmu_pages_lock.unlock()

    # --- changing an SPTE -----------------------------------------------------------------------

    async def trace_spte_changed(self, sptep: Cell, old: int, new: int, level: int) -> None:
        """``trace_kvm_tdp_mmu_spte_changed``: for whoever holds the model against a kernel."""

    async def handle_changed_spte(
        self, sptep: Cell, old: int, new: int, level: int, shared: bool
    ) -> None:
        """``__handle_changed_spte``: what has to follow a change of an entry at ``level``."""
        spte = self.kvm.format
        was_present = spte.is_shadow_present(old)
        is_present = spte.is_shadow_present(new)
        was_leaf = was_present and spte.is_last(old, level)
        is_leaf = is_present and spte.is_last(new, level)
        pfn_changed = spte.pfn(old) != spte.pfn(new)
        if was_leaf and is_leaf and pfn_changed:
            await Emit(Warned("BUG: a present leaf SPTE was replaced by one for another pfn"))
        if old == new:
            return
        await self.trace_spte_changed(sptep, old, new, level)
        if not was_present and not is_present:
            if not (spte.is_frozen(new) or spte.is_mmio(old) or spte.is_mmio(new)):
                await Emit(Warned("a non-present SPTE was replaced by another one"))
            return
        gone = not is_present or not spte.is_dirty(new) or pfn_changed
        if was_leaf and spte.is_dirty(old) and gone:
            await Emit(PfnMarkedDirty(spte.pfn(old), self.kvm.geometry.pages(level)))
        if was_present and not was_leaf and (pfn_changed or not is_present):
            await self.handle_removed_page(self.kvm.page_of(old), shared)

    async def handle_removed_page(self, sp: TablePage, shared: bool) -> None:
        """``handle_removed_tdp_mmu_page``: a table left the paging structure; clear and free it."""
        kvm = self.kvm
        header = await ReadHeader(sp)
        level = header.role_level
        await Emit(PageZapped(sp.name, header.gfn, level - 1, False))
        await self.unlink_page(sp, shared)
        await self.remove_entries(sp, header.gfn, level - 1, shared)
        last = header.gfn + (kvm.geometry.fanout - 1) * kvm.geometry.pages(level - 1)
        await self.flush_removed_page(last, level)
        await kvm.rcu.call(sp)

    async def remove_entries(self, sp: TablePage, base: int, level: int, shared: bool) -> None:
        """Its loop over the entries of a table at ``level``, the first of which maps ``base``."""
        kvm = self.kvm
        frozen = kvm.format.removed
        for i in range(kvm.geometry.fanout):
            sptep = sp.entries[i]
            if shared:
                # Whoever froze this entry may still write it: wait until it took another value.
                while True:
                    old = await XchgSpte(sptep, frozen)
                    if not kvm.format.is_frozen(old):
                        break
            else:
                old = await ReadSpte(sptep)
                if not kvm.format.is_shadow_present(old):
                    continue
                await WriteSpte(sptep, frozen)
            await self.handle_changed_spte(sptep, old, frozen, level, shared)

    async def flush_removed_page(self, gfn: int, level: int) -> None:
        """The flush of a removed table, until 5.18 by itself; ``gfn`` is its *last* entry's."""
        await self.flush_remote_tlbs_with_address(gfn, self.kvm.geometry.pages(level))

    async def set_spte(self, it: TdpIter, new: int) -> None:
        """``tdp_mmu_set_spte``: with ``mmu_lock`` held for write."""
        await self.kvm.mmu_lock.assert_held_write()
        if self.kvm.format.is_frozen(it.old_spte):
            await Emit(Warned("a frozen SPTE under mmu_lock held for write"))
        await WriteSpte(it.sptep, new)
        await self.handle_changed_spte(it.sptep, it.old_spte, new, it.level, False)

    async def clear_spte_bits(self, it: TdpIter, mask: int) -> None:
        """``tdp_mmu_clear_spte_bits``; before 5.18 a plain write of what was read before."""
        new = it.old_spte & ~mask
        await WriteSpte(it.sptep, new)
        await self.trace_spte_changed(it.sptep, it.old_spte, new, it.level)

    async def reread(self, it: TdpIter) -> int:
        """``kvm_tdp_mmu_read_spte``."""
        value: int = await ReadSpte(it.sptep)
        return value

    async def set_spte_atomic(self, it: TdpIter, new: int) -> bool:
        """``tdp_mmu_set_spte_atomic``: with ``mmu_lock`` held for read; false if somebody was
        first.
        """
        await self.kvm.mmu_lock.assert_held_read()
        if self.kvm.format.is_frozen(it.old_spte):
            return False
        if not await CmpXchgSpte(it.sptep, it.old_spte, new):
            return False
        await self.handle_changed_spte(it.sptep, it.old_spte, new, it.level, True)
        return True

    async def zap_spte_atomic(self, it: TdpIter) -> bool:
        """``tdp_mmu_zap_spte_atomic``: freeze, flush, clear."""
        if not await self.set_spte_atomic(it, self.kvm.format.removed):
            return False
        pages = self.kvm.geometry.pages(it.level)
        await self.flush_remote_tlbs_with_address(it.gfn, pages)
        await WriteSpte(it.sptep, self.kvm.format.nonpresent)
        return True

    # --- zapping --------------------------------------------------------------------------------

    def may_yield_here(self, it: TdpIter) -> bool:
        """The forward-progress rule: the walk has got further since it last yielded."""
        return it.next_last_level_gfn != it.yielded_gfn

    async def break_lock(self, shared: bool) -> None:
        """``cond_resched_rwlock_read`` or ``_write``."""
        if shared:
            await self.kvm.mmu_lock.cond_resched_read()
        else:
            await self.kvm.mmu_lock.cond_resched_write()

    async def iter_cond_resched(self, it: TdpIter, flush: bool, shared: bool = False) -> bool:
        """``tdp_mmu_iter_cond_resched``: true if it yielded, and the walk starts at the root
        again.
        """
        if not self.may_yield_here(it):
            return False
        if not await self.kvm.mmu_lock.needbreak():
            return False
        await self.kvm.rcu.read_unlock()
        if flush:
            await self.flush_remote_tlbs()
        await self.break_lock(shared)
        await self.kvm.rcu.read_lock()
        await Emit(Yielded("tdp_mmu_iter_cond_resched"))
        await it.start()
        return True

    async def zap_gfn_range(
        self, root: TablePage, start: int, end: int, can_yield: bool, flush: bool = False
    ) -> bool:
        """``zap_gfn_range``: zap what lies in ``[start, end)`` below one root; true: flush owed."""
        kvm = self.kvm
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, start, end)
        while await it.next_pte():
            if can_yield and await self.iter_cond_resched(it, flush):
                flush = False
                continue
            if not kvm.format.is_shadow_present(it.old_spte):
                continue
            # A table that maps more than the range: zap inside it instead.
            outside = it.gfn < start or it.gfn + kvm.geometry.pages(it.level) > end
            if outside and not kvm.format.is_last(it.old_spte, it.level):
                continue
            await self.set_spte(it, kvm.format.nonpresent)
            flush = True
        await kvm.rcu.read_unlock()
        return flush
