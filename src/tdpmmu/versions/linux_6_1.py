"""v6.1 (Debian's 6.1.192): invalid roots, leaf-only unmapping, flushes left to the caller."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import FlushOwnTlb, LoadRoot
from tdpmmu.arch.table import (
    Allocate,
    ClearSpteBits,
    CmpXchgSpte,
    Header,
    ReadHeader,
    ReadSpte,
    TablePage,
    WriteSpte,
    XchgSpte,
)
from tdpmmu.events.records import (
    NxPageRecovered,
    PageZapped,
    PfnMarkedDirty,
    RangeZapped,
    Warned,
    Yielded,
)
from tdpmmu.machine.op import Add, Choose, Emit, ListDel, Read, Write
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.fault import RET_PF_FIXED, RET_PF_RETRY, RET_PF_SPURIOUS, Fault
from tdpmmu.mmu.flush import Flush
from tdpmmu.mmu.kvm import NO_RANGE
from tdpmmu.mmu.lifetime import CountLeaks
from tdpmmu.mmu.memslots import WaitForInvalidations
from tdpmmu.mmu.nx_worker import NxWorker
from tdpmmu.mmu.page_split import NO_EAGER_PAGE_SPLIT
from tdpmmu.mmu.shadow import InvalidList
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.versions.linux_5_13 import Linux_5_13


class Linux_6_1(Linux_5_13):
    """v6.1, with what Debian's 6.1.192 has got from later releases."""

    version: ClassVar[str] = "6.1"
    spte_kernel: ClassVar[str] = "6.1"
    changes: ClassVar[tuple[str, ...]] = (
        "role.level of a TDP table is its own level (5.14)",
        "52ac8b358b0c memslots wait for invalidations between start and end (5.15)",
        "f81602958c11 who syncs a shadow page flushes what it dropped (5.15)",
        "a955cad84cda a fault whose root was invalidated is retried (5.16)",
        "7533377215b6 an invalidation's walk holds a reference to its root (5.16)",
        "bb95dfb9e2df removed tables leave their flush to the caller (5.18)",
        "bd29677952fa a yield flushes before it leaves RCU (5.18)",
        "a3fe5dbda0a4 huge pages are split as dirty logging begins (5.18)",
        "c10743a1824b recovery zaps its own page only (5.18)",
        "a leaf that was writable is made again without D, and without a look at shadow pages",
        "edbdb43fc96b the TDP MMU keeps a reference to each valid root (6.4, in 6.1.192)",
    )
    flush_before_rcu_unlock: ClassVar[bool] = True

    async def dropped_in_sync(self) -> bool:
        """f81602958c11 (5.15): whoever syncs flushes."""
        return True

    async def flush_remote_tlbs(self) -> None:
        """Nobody counts what syncs have dropped (5.15)."""
        await Flush.flush_remote_tlbs(self)

    # --- page table pages -----------------------------------------------------------------------

    async def alloc_page(self, fault: Fault, it: TdpIter) -> TablePage:
        """``tdp_mmu_alloc_sp``, ``tdp_mmu_init_child_sp``: ``role.level`` is the table's own."""
        page: TablePage = await Allocate(
            self.kvm.pools[fault.pool],
            Header(
                it.gfn,
                it.level - 1,
                it.level - 1,
                fault.as_id,
                it.root.number,
                True,
                it.sptep,
                fault.guest_mode,
            ),
        )
        return page

    def splits_eagerly(self) -> bool:
        """The module parameter ``eager_page_split``."""
        return NO_EAGER_PAGE_SPLIT not in self.kvm.config.options

    def split_end(self, last: int) -> int:
        """Up to 6.7 (1aa4bb916808) the last gfn is taken for the end."""
        return last

    async def alloc_page_for_split(self, it: TdpIter, pool: int, shared: bool) -> TablePage:
        """``tdp_mmu_alloc_sp_for_split``: first without sleeping, so under the lock."""
        if await Choose("GFP_NOWAIT is enough", (True, False)):
            return await self.take_page_for_split(it, pool)
        return await super().alloc_page_for_split(it, pool, shared)

    async def handle_changed_spte(
        self, sptep: Cell, old: int, new: int, level: int, shared: bool
    ) -> None:
        """``handle_changed_spte``: a table goes when its entry becomes a leaf or non-present."""
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
        if was_present and not was_leaf and (is_leaf or not is_present):
            await self.handle_removed_page(self.kvm.page_of(old), shared)

    async def handle_removed_page(self, sp: TablePage, shared: bool) -> None:
        """``handle_removed_pt``: no flush of its own; that is the caller's business."""
        kvm = self.kvm
        header = await ReadHeader(sp)
        level = header.role_level
        await Emit(PageZapped(sp.name, header.gfn, level, False))
        await self.unlink_page(sp, shared)
        await self.remove_entries(sp, header.gfn, level, shared)
        await kvm.rcu.call(sp)

    async def set_spte(self, it: TdpIter, new: int) -> None:
        """``tdp_mmu_set_spte``: an SPTE that others may change without the lock is exchanged."""
        spte = self.kvm.format
        if self.has_volatile_bits(it.old_spte, it.level):
            await self.kvm.mmu_lock.assert_held_write()
            it.old_spte = await XchgSpte(it.sptep, new)
            await self.handle_changed_spte(it.sptep, it.old_spte, new, it.level, False)
            return
        if spte.is_frozen(it.old_spte):
            await Emit(Warned("a frozen SPTE under mmu_lock held for write"))
        await super().set_spte(it, new)

    def has_volatile_bits(self, spte: int, level: int) -> bool:
        """``spte_has_volatile_bits``: hardware may set A or D, a fast page fault R, W and X."""
        spte_format = self.kvm.format
        if not spte_format.is_shadow_present(spte) or not spte_format.is_last(spte, level):
            return False
        if spte_format.is_mmu_writable(spte) and not spte_format.is_writable(spte):
            return True
        if spte_format.is_access_track(spte):
            return True
        if not spte_format.ad_enabled(spte):
            return False
        if not spte & spte_format.accessed:
            return True
        return spte_format.is_writable(spte) and not spte_format.is_dirty(spte)

    async def write_spte(self, it: TdpIter, new: int) -> None:
        """``kvm_tdp_mmu_write_spte``: an exchange where a bit could be lost otherwise."""
        if self.has_volatile_bits(it.old_spte, it.level):
            it.old_spte = await XchgSpte(it.sptep, new)
        else:
            await super().write_spte(it, new)

    async def clear_spte_bits(self, it: TdpIter, mask: int) -> None:
        """``tdp_mmu_clear_spte_bits``: an atomic AND where a bit could be lost otherwise."""
        if self.has_volatile_bits(it.old_spte, it.level):
            it.old_spte = await ClearSpteBits(it.sptep, mask)
            await self.trace_spte_changed(it.sptep, it.old_spte, it.old_spte & ~mask, it.level)
        else:
            await super().clear_spte_bits(it, mask)

    async def set_spte_atomic(self, it: TdpIter, new: int) -> bool:
        """``tdp_mmu_set_spte_atomic``: callers are trusted not to come with a frozen entry."""
        await self.kvm.mmu_lock.assert_held_read()
        if self.kvm.format.is_frozen(it.old_spte):
            await Emit(Warned("a frozen SPTE is about to be changed by who did not freeze it"))
        if not await CmpXchgSpte(it.sptep, it.old_spte, new):
            return False
        await self.handle_changed_spte(it.sptep, it.old_spte, new, it.level, True)
        return True

    # --- roots ----------------------------------------------------------------------------------

    async def new_root_count(self) -> int:
        """One reference for the vCPU, one for the TDP MMU, put when the root is invalidated."""
        return 2

    async def free_root(self, root: TablePage) -> None:
        """The end of ``kvm_tdp_mmu_put_root``: what the root maps was zapped before."""
        kvm = self.kvm
        if not await Read(root.invalid):
            await Emit(Warned("the last reference to a valid root is put"))
        await kvm.tdp_mmu_pages_lock.lock()
        await ListDel(kvm.tdp_mmu_roots, root)
        await kvm.tdp_mmu_pages_lock.unlock()
        await kvm.rcu.call(root)

    async def invalidate_all_roots(self) -> tuple[TablePage, ...]:
        """The TDP MMU's own reference is handed on to who zaps the root."""
        invalidated: list[TablePage] = []
        for root in await Read(self.kvm.tdp_mmu_roots):
            if not await Read(root.invalid):
                await Write(root.invalid, True)
                invalidated.append(root)
        return tuple(invalidated)

    async def zap_invalidated_roots(self, invalidated: tuple[TablePage, ...]) -> None:
        """No flush: whoever loads a root flushes its own TLB (``kvm_mmu_load``)."""
        for root in invalidated:
            await self.zap_root(root, True)
            await self.put_root(root)

    async def zap_root(self, root: TablePage, can_yield: bool) -> bool:
        """``tdp_mmu_zap_root``: in passes, so that no step takes down too much at once."""
        kvm = self.kvm
        shared = not await kvm.mmu_lock.held_for_write()
        await kvm.rcu.read_lock()
        for level in self.zap_passes():
            await self.zap_root_level(root, level, shared)
        await kvm.rcu.read_unlock()
        return False

    def zap_passes(self) -> tuple[int, ...]:
        """1G first, then what hangs below the root."""
        levels = self.kvm.geometry.levels
        return (min(3, levels), levels) if levels > 3 else (levels,)

    def max_gfn_to_zap(self) -> int:
        """``tdp_mmu_max_gfn_exclusive``."""
        return self.kvm.geometry.max_gfn

    async def zap_root_level(self, root: TablePage, zap_level: int, shared: bool) -> None:
        """``__tdp_mmu_zap_root``."""
        kvm = self.kvm
        it = TdpIter(kvm, root, 0, self.max_gfn_to_zap(), min_level=zap_level)
        while await it.next_pte():
            while True:
                if await self.iter_cond_resched(it, False, shared):
                    break
                if not kvm.format.is_shadow_present(it.old_spte) or it.level > zap_level:
                    break
                if not shared:
                    await self.set_spte(it, kvm.format.nonpresent)
                    break
                if await self.set_spte_atomic(it, kvm.format.nonpresent):
                    break
                it.old_spte = await ReadSpte(it.sptep)

    # --- yielding and zapping -------------------------------------------------------------------

    async def iter_cond_resched(self, it: TdpIter, flush: bool, shared: bool = False) -> bool:
        """``tdp_mmu_iter_cond_resched``: flush, leave RCU, break the lock; the walk restarts
        later.
        """
        if not self.may_yield_here(it):
            return False
        if not await self.kvm.mmu_lock.needbreak():
            return False
        if flush:
            await self.flush_remote_tlbs()
        await self.kvm.rcu.read_unlock()
        await self.break_lock(shared)
        await self.kvm.rcu.read_lock()
        await Emit(Yielded("tdp_mmu_iter_cond_resched"))
        it.yielded = True
        return True

    async def tdp_mmu_unmap(self, as_id: int, start: int, end: int, flush: bool = False) -> bool:
        """``kvm_tdp_mmu_unmap_gfn_range``: leaves only, with a reference to each root."""
        root = await self.first_root()
        while root is not None:
            if await self.page_as_id(root) == as_id:
                flush = await self.zap_leafs(root, start, end, True, flush)
            root = await self.next_root(root)
        return flush

    async def tdp_mmu_zap_leafs(self, start: int, end: int, flush: bool) -> bool:
        """``kvm_tdp_mmu_zap_leafs``: in every root."""
        root = await self.first_root()
        while root is not None:
            flush = await self.zap_leafs(root, start, end, True, flush)
            root = await self.next_root(root)
        return flush

    async def zap_leafs(
        self, root: TablePage, start: int, end: int, can_yield: bool, flush: bool
    ) -> bool:
        """``tdp_mmu_zap_leafs``."""
        kvm = self.kvm
        await kvm.mmu_lock.assert_held_write()
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, start, end)
        while await it.next_pte():
            if can_yield and await self.iter_cond_resched(it, flush):
                flush = False
                continue
            if not kvm.format.is_shadow_present(it.old_spte) or not kvm.format.is_last(
                it.old_spte, it.level
            ):
                continue
            await self.set_spte(it, kvm.format.nonpresent)
            flush = True
        await kvm.rcu.read_unlock()
        return flush

    async def tdp_mmu_zap_all(self) -> None:
        """``kvm_tdp_mmu_zap_all``: every root, invalid ones too; nobody runs, nobody flushes."""
        root = await self.first_root()
        while root is not None:
            await self.zap_root(root, True)
            root = await self.next_root(root)

    async def zap_gfn_range_all(self, start: int, end: int) -> None:
        """``kvm_zap_gfn_range``: leaves only, and no fault may map in the range meanwhile."""
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        await self.zap_range_begins(start, end)
        flush = await self.unmap_rmap(start, end)
        if await self.tdp_mmu_zap_leafs(start, end, flush):
            await self.flush_remote_tlbs_with_address(start, end - start)
        await self.zap_range_ends()
        await Emit(RangeZapped(start, end - start))
        await kvm.mmu_lock.write_unlock()

    async def zap_range_begins(self, start: int, end: int) -> None:
        """``kvm_mmu_invalidate_begin``."""
        await Add(self.kvm.mmu_notifier_count, 1)
        await self.invalidate_range_add(start, end)

    async def zap_range_ends(self) -> None:
        """``kvm_mmu_invalidate_end``."""
        kvm = self.kvm
        await Add(kvm.mmu_notifier_seq, 1)
        await Add(kvm.mmu_notifier_count, -1)
        if not await Read(kvm.mmu_notifier_count):
            await Write(kvm.mmu_notifier_range, NO_RANGE)

    async def zap_sp(self, sp: TablePage) -> bool:
        """``kvm_tdp_mmu_zap_sp``: the one entry that points to it."""
        kvm = self.kvm
        header = await ReadHeader(sp)
        if header.parent is None:
            await Emit(Warned("recovery of a root"))
            return False
        old = await ReadSpte(header.parent)
        if not kvm.format.is_shadow_present(old):
            await Emit(Warned("a page on the list to recover is not linked"))
            return False
        await WriteSpte(header.parent, kvm.format.nonpresent)
        await self.handle_changed_spte(
            header.parent, old, kvm.format.nonpresent, header.level + 1, False
        )
        return True

    # --- page faults and notifiers --------------------------------------------------------------

    async def is_page_fault_stale(self, vcpu: VcpuCells, fault: Fault) -> bool:
        """``is_page_fault_stale``: a root that was invalidated since is not mapped into."""
        root = self.kvm.hardware.page_by_number[fault.root]
        if await Read(root.invalid):
            return True
        return await super().is_page_fault_stale(vcpu, fault)

    async def tdp_mmu_map(self, fault: Fault) -> str:
        """``kvm_tdp_mmu_map``: a huge page in the way is zapped, a table put in its place."""
        kvm = self.kvm
        spte = kvm.format
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, kvm.hardware.page_by_number[fault.root], fault.gfn, fault.gfn + 1)
        while await it.next_pte():
            if await self.disallowed_by_child(fault, it.old_spte, it.level):
                fault.goal_level -= 1
            if it.level == fault.goal_level:
                break
            if spte.is_shadow_present(it.old_spte) and spte.is_large(it.old_spte):
                if not await self.zap_spte_atomic(it):
                    break
                it.old_spte = await ReadSpte(it.sptep)
            if not spte.is_shadow_present(it.old_spte):
                if spte.is_frozen(it.old_spte):
                    break
                if not await self.map_table(fault, it):
                    break
        if it.level != fault.goal_level or self.leaf_is_frozen(it):
            await kvm.rcu.read_unlock()
            return RET_PF_RETRY
        result = await self.map_target_level(fault, it)
        await kvm.rcu.read_unlock()
        return result

    def leaf_is_frozen(self, it: TdpIter) -> bool:
        """f5d16bb9be68 (6.2, in 6.1.192): a frozen leaf is not for this fault to change."""
        return self.kvm.format.is_frozen(it.old_spte)

    async def disallowed_by_child(self, fault: Fault, spte: int, level: int) -> bool:
        """``disallowed_hugepage_adjust``: a table where a huge page was wanted goes before it."""
        spte_format = self.kvm.format
        return (
            level > 1
            and level == fault.goal_level
            and spte_format.is_shadow_present(spte)
            and not spte_format.is_large(spte)
        )

    async def adjust_for_table(self, fault: Fault, spte: int, level: int) -> None:
        if await self.disallowed_by_child(fault, spte, level):
            fault.goal_level -= 1

    async def make_spte(self, fault: Fault, it: TdpIter) -> int:
        """``make_spte``: a leaf that was writable needs no look at shadow pages."""
        spte_format = self.kvm.format
        old = it.old_spte
        # Whether it is present is not asked: an MMIO SPTE, too, counts as one that was writable.
        was_leaf = spte_format.is_last(old, it.level)
        if fault.slot is None or not was_leaf or not spte_format.is_writable(old):
            return await super().make_spte(fault, it)
        spte = self.leaf_spte(fault, it.level, it.gfn)
        if spte_format.is_writable(spte):
            await self.mark_page_dirty_in_slot(fault.slot, it.gfn)
            spte = self.made_again(spte)
        return spte

    def was_writable_leaf(self, old: int, level: int) -> bool:
        # As in the TDP MMU, an MMIO SPTE of a writable page counts, too.
        return self.kvm.format.is_last(old, level) and self.kvm.format.is_writable(old)

    def made_again(self, spte: int) -> int:
        """The page counts as dirty already by the old SPTE, so the new one starts without D."""
        return spte & ~self.kvm.format.dirty

    async def map_target_level(self, fault: Fault, it: TdpIter) -> str:
        """``tdp_mmu_map_handle_target_level``: a leaf that replaces a table flushes at once."""
        kvm = self.kvm
        new = await self.make_spte(fault, it)
        if new == it.old_spte:
            return self.map_result(fault, RET_PF_SPURIOUS)
        if not await self.set_spte_atomic(it, new):
            return RET_PF_RETRY
        if kvm.format.is_shadow_present(it.old_spte) and not kvm.format.is_last(
            it.old_spte, it.level
        ):
            await self.flush_remote_tlbs_with_address(it.gfn, kvm.geometry.pages(it.level))
        return self.map_result(fault, RET_PF_FIXED)

    async def invalidation_begins(self) -> None:
        await self.kvm.mn_invalidate_lock.lock()
        await Add(self.kvm.mn_active_invalidate_count, 1)
        await self.kvm.mn_invalidate_lock.unlock()

    async def invalidation_ends(self) -> None:
        await self.kvm.mn_invalidate_lock.lock()
        await Add(self.kvm.mn_active_invalidate_count, -1)
        await self.kvm.mn_invalidate_lock.unlock()

    async def block_invalidations(self) -> None:
        await WaitForInvalidations(self.kvm)

    async def unblock_invalidations(self) -> None:
        await self.kvm.mn_invalidate_lock.unlock()

    # --- NX recovery ----------------------------------------------------------------------------

    def effective_period(self, period: int, ratio: int = 60) -> int:
        return NxWorker.effective_period(self, period, ratio)

    async def recover_nx_lpages(self) -> None:
        """``kvm_recover_nx_huge_pages``: under the write lock, and in an RCU section."""
        kvm = self.kvm
        await kvm.srcu.read_lock()
        await kvm.mmu_lock.write_lock()
        await kvm.rcu.read_lock()
        invalid_list = InvalidList()
        flush = False
        splits = await Read(kvm.nx_lpage_splits)
        to_zap = self.pages_to_zap(splits)
        while to_zap > 0:
            pages = await Read(kvm.lpage_disallowed_mmu_pages)
            if not pages:
                break
            sp = pages[0]
            zapped = await self.recover_page(sp, invalid_list)
            flush = flush or zapped
            if await Read(sp.nx_huge_page_disallowed):
                await Emit(Warned("a recovered page is still marked disallowed"))
            to_zap -= 1
            if await kvm.mmu_lock.needbreak():
                await self.remote_flush_or_zap(invalid_list, flush)
                await kvm.rcu.read_unlock()
                await kvm.mmu_lock.cond_resched_write()
                await Emit(Yielded("kvm_recover_nx_huge_pages"))
                flush = False
                await kvm.rcu.read_lock()
        await self.recovery_ends(invalid_list, flush)
        await kvm.mmu_lock.write_unlock()
        await kvm.srcu.read_unlock()

    async def recovery_ends(self, invalid_list: InvalidList, flush: bool) -> None:
        """The flush that is still owed, and only then out of RCU."""
        await self.remote_flush_or_zap(invalid_list, flush)
        await self.kvm.rcu.read_unlock()

    async def recover_page(self, sp: TablePage, invalid_list: InvalidList) -> bool:
        """Zap one page of the list; true: a flush is owed."""
        header = await ReadHeader(sp)
        if header.tdp:
            zapped = await self.zap_sp(sp)
            await Emit(NxPageRecovered(header.gfn, zapped))
            return zapped
        await self.prepare_zap_page(sp, invalid_list)
        await Emit(NxPageRecovered(header.gfn, True))
        return False

    # --- the end --------------------------------------------------------------------------------

    async def destroy(self, roots: tuple[TablePage, ...]) -> None:
        """``kvm_mmu_zap_all``, the vCPUs' ``kvm_mmu_unload``, ``kvm_mmu_uninit_tdp_mmu``."""
        kvm = self.kvm
        for vcpu in tuple(kvm.vcpus):
            await LoadRoot(vcpu, ())
            await FlushOwnTlb(vcpu)
        await kvm.mmu_lock.write_lock()
        await self.zap_all_shadow_pages()
        await self.tdp_mmu_zap_all()
        await kvm.mmu_lock.write_unlock()
        await self.put_vcpu_roots(roots)
        await kvm.mmu_lock.write_lock()
        invalidated = await self.invalidate_all_roots()
        await kvm.mmu_lock.write_unlock()
        await kvm.mmu_lock.read_lock()
        await self.zap_invalidated_roots(invalidated)
        await kvm.mmu_lock.read_unlock()
        await kvm.rcu.barrier()
        await CountLeaks(kvm)
