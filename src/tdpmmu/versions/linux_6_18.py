"""v6.18, as far as NX recovery, page faults and the mmu_notifier go.

What it does not model of that release: fast page fault, dirty logging, memslots, invalid roots,
the check for a pending invalidation before ``mmu_lock`` is taken (a shortcut), page statistics.
"""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.hardware import FlushOwnTlb, LoadRoot
from tdpmmu.arch.table import (
    Allocate,
    FreeUnused,
    Header,
    ReadHeader,
    ReadSpte,
    SetPrivate,
    TablePage,
    WriteSpte,
    XchgSpte,
)
from tdpmmu.events.records import (
    NxPageAccounted,
    NxPageRecovered,
    NxPageUnaccounted,
    PageLinked,
    PageZapped,
    Refcount,
    Warned,
    Yielded,
)
from tdpmmu.machine.op import Add, Emit, ListAdd, ListDel, Read, Write
from tdpmmu.mmu.fault import RET_PF_FIXED, RET_PF_RETRY, RET_PF_SPURIOUS, Fault
from tdpmmu.mmu.lifetime import CountLeaks
from tdpmmu.mmu.shadow import InvalidList
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.versions.linux_5_12 import Linux_5_12


class Linux_6_18(Linux_5_12):
    """v6.18: recovery of TDP pages under the read lock (a57750909580)."""

    version: ClassVar[str] = "6.18"
    spte_kernel: ClassVar[str] = "6.18"
    changes: ClassVar[tuple[str, ...]] = (
        "bb95dfb9e2df removed tables leave their flush to the caller (5.18)",
        "bd29677952fa a yield flushes before it leaves RCU (5.18)",
        "61f94478547b a table is marked before it is linked (6.2)",
        "21a36ac6b6c7 and put on the list only if still marked (6.2)",
        "f5d16bb9be68 frozen entries are never mapped over (6.2)",
        "6777885605e1 one list for the TDP MMU, one for the legacy MMU (6.18)",
        "a57750909580 TDP pages are recovered under mmu_lock for read (6.18)",
    )
    flush_before_rcu_unlock: ClassVar[bool] = True
    lockless_nx_flag: ClassVar[bool] = True

    # --- page table pages -----------------------------------------------------------------------

    async def alloc_page(self, fault: Fault, it: TdpIter) -> TablePage:
        """``tdp_mmu_alloc_sp``, ``tdp_mmu_init_child_sp``: ``role.level`` is the table's own."""
        page: TablePage = await Allocate(
            self.kvm.pools[fault.pool],
            Header(it.gfn, it.level - 1, it.level - 1, fault.as_id, it.root.number, True, it.sptep),
        )
        await SetPrivate(page.nx_huge_page_disallowed, fault.huge_page_disallowed)
        return page

    async def unlink_page(self, sp: TablePage, shared: bool) -> None:
        """``tdp_mmu_unlink_sp``."""
        if not await Read(sp.nx_huge_page_disallowed):
            return
        await self.kvm.tdp_mmu_pages_lock.lock()
        await Write(sp.nx_huge_page_disallowed, False)
        await self.untrack_possible_nx_huge_page(sp)
        await self.kvm.tdp_mmu_pages_lock.unlock()

    async def track_possible_nx_huge_page(self, sp: TablePage) -> None:
        """``track_possible_nx_huge_page``, TDP MMU."""
        kvm = self.kvm
        if sp in await Read(kvm.possible_nx_tdp_pages):
            return
        await Add(kvm.nr_possible_nx_tdp, 1)
        await ListAdd(kvm.possible_nx_tdp_pages, sp, tail=True)
        header = await ReadHeader(sp)
        await Emit(NxPageAccounted(sp.name, header.gfn))

    async def untrack_possible_nx_huge_page(self, sp: TablePage) -> None:
        """``untrack_possible_nx_huge_page``, TDP MMU: quietly nothing if it is not on the list."""
        kvm = self.kvm
        if not await ListDel(kvm.possible_nx_tdp_pages, sp):
            return
        await Add(kvm.nr_possible_nx_tdp, -1)
        header = await ReadHeader(sp)
        await Emit(NxPageUnaccounted(sp.name, header.gfn))

    async def handle_changed_spte(self, old: int, new: int, level: int, shared: bool) -> None:
        """``handle_changed_spte``: a table goes when its entry becomes a leaf or non-present."""
        spte = self.kvm.format
        was_present = spte.is_shadow_present(old)
        is_present = spte.is_shadow_present(new)
        was_leaf = was_present and spte.is_last(old, level)
        is_leaf = is_present and spte.is_last(new, level)
        if was_leaf and is_leaf and spte.pfn(old) != spte.pfn(new):
            await Emit(Warned("BUG: a present leaf SPTE was replaced by one for another pfn"))
        if old == new:
            return
        if not was_present and not is_present:
            if not spte.is_frozen(new):
                await Emit(Warned("a non-present SPTE was replaced by another one"))
            return
        if was_present and not was_leaf and (is_leaf or not is_present):
            await self.handle_removed_page(self.kvm.page_of(old), shared)

    async def handle_removed_page(self, sp: TablePage, shared: bool) -> None:
        """``handle_removed_pt``: no flush of its own; that is the caller's business."""
        kvm = self.kvm
        header = await ReadHeader(sp)
        level = header.role_level
        await Emit(PageZapped(sp.name, header.gfn, level, False))
        await self.unlink_page(sp, shared)
        frozen = kvm.format.removed
        for i in range(kvm.geometry.fanout):
            sptep = sp.entries[i]
            if shared:
                while True:
                    old = await XchgSpte(sptep, frozen)
                    if not kvm.format.is_frozen(old):
                        break
            else:
                old = await ReadSpte(sptep)
                if not kvm.format.is_shadow_present(old):
                    continue
                await WriteSpte(sptep, frozen)
            await self.handle_changed_spte(old, frozen, level, shared)
        await kvm.rcu.call(sp)

    # --- roots ----------------------------------------------------------------------------------

    async def get_vcpu_root(self, pool: int, as_id: int) -> TablePage:
        """``kvm_tdp_mmu_alloc_root``: the TDP MMU keeps a reference of its own."""
        root = await super().get_vcpu_root(pool, as_id)
        await self.kvm.mmu_lock.write_lock()
        if await Read(root.root_count) == 1:
            await self.get_root(root)
        await self.kvm.mmu_lock.write_unlock()
        return root

    async def put_root(self, root: TablePage) -> None:
        """``kvm_tdp_mmu_put_root``: the last reference unlinks the root and frees it by RCU."""
        kvm = self.kvm
        new = await Add(root.root_count, -1)
        await Emit(Refcount(root.name, new + 1, new, "kvm_tdp_mmu_put_root"))
        if new == 0:
            await ListDel(kvm.tdp_mmu_roots, root)
            await kvm.rcu.call(root)

    # --- yielding and zapping -------------------------------------------------------------------

    async def iter_cond_resched(self, it: TdpIter, flush: bool) -> bool:
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
        await self.kvm.mmu_lock.cond_resched_write()
        await self.kvm.rcu.read_lock()
        await Emit(Yielded("tdp_mmu_iter_cond_resched"))
        it.yielded = True
        return True

    async def tdp_mmu_unmap(self, start: int, end: int) -> bool:
        """``kvm_tdp_mmu_unmap_gfn_range``: leaves only, and it may yield."""
        flush = False
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

    async def unmap_range(self, start: int, end: int) -> bool:
        """``kvm_unmap_gfn_range``: what the rmaps owe is handed on to the walk, which may yield."""
        flush = await self.unmap_rmap(start, end)
        root = await self.first_root()
        while root is not None:
            flush = await self.zap_leafs(root, start, end, True, flush)
            root = await self.next_root(root)
        return flush

    # --- page faults ----------------------------------------------------------------------------

    async def disallowed_by_child(self, fault: Fault, spte: int, level: int) -> bool:
        """``disallowed_hugepage_adjust``: only a table that is marked sends the fault below it."""
        spte_format = self.kvm.format
        if (
            level <= 1
            or level != fault.goal_level
            or not spte_format.is_shadow_present(spte)
            or spte_format.is_large(spte)
        ):
            return False
        child = self.kvm.page_of(spte)
        marked: bool = await Read(child.nx_huge_page_disallowed)
        return marked

    async def tdp_mmu_map(self, fault: Fault) -> str:
        """``kvm_tdp_mmu_map``."""
        kvm = self.kvm
        spte = kvm.format
        result = RET_PF_RETRY
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, kvm.hardware.page_by_number[fault.root], fault.gfn, fault.gfn + 1)
        while await it.next_pte():
            if await self.disallowed_by_child(fault, it.old_spte, it.level):
                fault.goal_level -= 1
            if spte.is_frozen(it.old_spte):
                break
            if it.level == fault.goal_level:
                result = await self.map_target_level(fault, it)
                break
            if spte.is_shadow_present(it.old_spte) and not spte.is_large(it.old_spte):
                continue
            if not await self.map_table(fault, it):
                break
        await kvm.rcu.read_unlock()
        return result

    async def map_table(self, fault: Fault, it: TdpIter) -> bool:
        """``tdp_mmu_link_sp``, or ``tdp_mmu_split_huge_page`` where a huge page is in the way."""
        kvm = self.kvm
        sp = await self.alloc_page(fault, it)
        if kvm.format.is_shadow_present(it.old_spte):
            for i in range(kvm.geometry.fanout):
                offset = i * kvm.geometry.pages(it.level - 1)
                child = kvm.format.split_child(it.old_spte, it.level - 1, offset)
                await SetPrivate(sp.entries[i], child)
        if not await self.set_spte_atomic(it, kvm.format.nonleaf(sp.pfn)):
            await FreeUnused(sp)
            return False
        await Emit(PageLinked(sp.name, it.gfn, it.level - 1))
        if fault.huge_page_disallowed and fault.req_level >= it.level:
            await kvm.tdp_mmu_pages_lock.lock()
            if await Read(sp.nx_huge_page_disallowed):
                await self.track_possible_nx_huge_page(sp)
            await kvm.tdp_mmu_pages_lock.unlock()
        return True

    async def map_target_level(self, fault: Fault, it: TdpIter) -> str:
        """``tdp_mmu_map_handle_target_level``: a leaf that replaces a table flushes at once."""
        kvm = self.kvm
        new = self.leaf_spte(fault, it.level, it.gfn)
        if new == it.old_spte:
            return RET_PF_SPURIOUS
        if not await self.set_spte_atomic(it, new):
            return RET_PF_RETRY
        if kvm.format.is_shadow_present(it.old_spte) and not kvm.format.is_last(
            it.old_spte, it.level
        ):
            await self.flush_remote_tlbs_with_address(it.gfn, kvm.geometry.pages(it.level))
        return RET_PF_FIXED

    # --- NX recovery ----------------------------------------------------------------------------

    async def recover_nx_lpages(self) -> None:
        """``kvm_nx_huge_page_recovery_worker``: the legacy MMU's pages, then the TDP MMU's."""
        await self.recover_shadow_pages()
        await self.recover_tdp_pages()

    async def recover_shadow_pages(self) -> None:
        """``kvm_recover_nx_huge_pages`` of the legacy MMU, under the write lock."""
        kvm = self.kvm
        await kvm.srcu.read_lock()
        await kvm.mmu_lock.write_lock()
        await kvm.rcu.read_lock()
        invalid_list = InvalidList()
        splits = await Read(kvm.nx_lpage_splits)
        to_zap = self.pages_to_zap(splits)
        while to_zap > 0:
            pages = await Read(kvm.lpage_disallowed_mmu_pages)
            if not pages:
                break
            sp = pages[0]
            await self.unaccount_huge_nx_page(sp)
            header = await ReadHeader(sp)
            await self.prepare_zap_page(sp, invalid_list)
            await Emit(NxPageRecovered(header.gfn, True))
            to_zap -= 1
            if await kvm.mmu_lock.needbreak():
                await self.remote_flush_or_zap(invalid_list, False)
                await kvm.rcu.read_unlock()
                await kvm.mmu_lock.cond_resched_write()
                await Emit(Yielded("kvm_recover_nx_huge_pages"))
                await kvm.rcu.read_lock()
        await self.remote_flush_or_zap(invalid_list, False)
        await kvm.rcu.read_unlock()
        await kvm.mmu_lock.write_unlock()
        await kvm.srcu.read_unlock()

    async def recover_tdp_pages(self) -> None:
        """``kvm_recover_nx_huge_pages`` of the TDP MMU, under the read lock."""
        kvm = self.kvm
        nr_pages = await Read(kvm.nr_possible_nx_tdp)
        to_zap = self.pages_to_zap(nr_pages)
        await kvm.srcu.read_lock()
        await kvm.mmu_lock.read_lock()
        await kvm.rcu.read_lock()
        flush = False
        while to_zap > 0:
            sp = await self.pick_nx_page()
            if sp is None:
                break
            zapped = await self.zap_possible_nx_huge_page(sp)
            flush = flush or zapped
            header = await ReadHeader(sp)
            await Emit(NxPageRecovered(header.gfn, zapped))
            to_zap -= 1
            if await kvm.mmu_lock.needbreak():
                if flush:
                    await self.flush_remote_tlbs()
                await kvm.rcu.read_unlock()
                await kvm.mmu_lock.cond_resched_read()
                await Emit(Yielded("kvm_recover_nx_huge_pages"))
                flush = False
                await kvm.rcu.read_lock()
        await self.recovery_ends(flush)
        await kvm.mmu_lock.read_unlock()
        await kvm.srcu.read_unlock()

    async def recovery_ends(self, flush: bool) -> None:
        """The flush that is still owed, and only then out of RCU."""
        if flush:
            await self.flush_remote_tlbs()
        await self.kvm.rcu.read_unlock()

    async def pick_nx_page(self) -> TablePage | None:
        """The first page of the list, unaccounted before the spinlock is let go."""
        kvm = self.kvm
        await kvm.tdp_mmu_pages_lock.lock()
        pages = await Read(kvm.possible_nx_tdp_pages)
        if not pages:
            await kvm.tdp_mmu_pages_lock.unlock()
            return None
        sp: TablePage = pages[0]
        if not await Read(sp.nx_huge_page_disallowed):
            await Emit(Warned("a page on the list to recover is not marked disallowed"))
        await Write(sp.nx_huge_page_disallowed, False)
        await self.untrack_possible_nx_huge_page(sp)
        await kvm.tdp_mmu_pages_lock.unlock()
        return sp

    def still_points_to(self, spte: int, level: int, sp: TablePage) -> bool:
        """Whether a parent SPTE refers to this very table: not frozen, no leaf, no other table."""
        spte_format = self.kvm.format
        return (
            spte_format.is_shadow_present(spte)
            and not spte_format.is_last(spte, level)
            and spte_format.pfn(spte) == sp.pfn
        )

    async def zap_possible_nx_huge_page(self, sp: TablePage) -> bool:
        """``kvm_tdp_mmu_zap_possible_nx_huge_page``: one cmpxchg; true: a flush is owed."""
        kvm = self.kvm
        header = await ReadHeader(sp)
        if header.parent is None:
            await Emit(Warned("recovery of a root"))
            return False
        level = header.level + 1
        it = TdpIter(kvm, kvm.hardware.page_by_number[header.root], header.gfn, header.gfn + 1)
        it.sptep = header.parent
        it.level = level
        it.gfn = header.gfn
        it.old_spte = await ReadSpte(header.parent)
        if not self.still_points_to(it.old_spte, level, sp):
            return False
        if not await self.set_spte_atomic(it, kvm.format.nonpresent):
            now = await ReadSpte(header.parent)
            if self.still_points_to(now, level, sp):
                await Emit(Warned("a lost cmpxchg, but the SPTE still points to the table"))
            return False
        return True

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
        # Invalidating the roots puts the TDP MMU's own references.
        await kvm.mmu_lock.read_lock()
        valid = await Read(kvm.tdp_mmu_roots)
        await kvm.mmu_lock.read_unlock()
        await self.put_vcpu_roots(valid)
        await kvm.rcu.barrier()
        await CountLeaks(kvm)
