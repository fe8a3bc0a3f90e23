"""Page faults of vCPUs whose page tables KVM shadows (``paging_tmpl.h``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import CurrentRoot
from tdpmmu.arch.spte import Access
from tdpmmu.arch.table import ReadHeader, ReadSpte, TablePage
from tdpmmu.events.records import FaultFixed
from tdpmmu.kernel.locks import Sleep
from tdpmmu.machine.op import Emit, Read
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.fault import (
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    Fault,
)
from tdpmmu.mmu.guest_walk import GuestWalker, gpte_changed, walk_addr
from tdpmmu.mmu.page_fault import SnapshotSeq
from tdpmmu.mmu.shadow import InvalidList
from tdpmmu.mmu.shadow_log import ShadowLog

GUEST_FAULT = "guest page fault"
"""The guest's own tables do not allow the access: the fault is the guest's to handle."""


class ShadowFault(ShadowLog):
    """Walk the guest's tables, then build the same way with shadow pages."""

    async def page_fault(
        self,
        vcpu: VcpuCells,
        address: int,
        access: Access,
        as_id: int,
        pool: int,
        present: bool = False,
    ) -> str:
        """``vcpu->arch.mmu->page_fault``."""
        if vcpu.paging is None:
            return await self.direct_page_fault(vcpu, address, access, as_id, pool, present)
        return await self.paging_page_fault(vcpu, address, access, as_id, present)

    async def paging_page_fault(
        self, vcpu: VcpuCells, address: int, access: Access, as_id: int, present: bool
    ) -> str:
        """``page_fault`` of ``paging_tmpl.h``."""
        assert vcpu.paging is not None
        root = await CurrentRoot(vcpu)
        if self.reserved_bit_reported(vcpu):
            page = self.kvm.hardware.page_by_number[root]
            if await self.shadow_mmio_spte_says_so(page, address, as_id):
                return RET_PF_EMULATE
        walker = await walk_addr(self.kvm, vcpu.paging, as_id, address, access)
        if walker is None:
            return GUEST_FAULT
        fault = Fault(walker.gfn, access, root, as_id, vcpu.pool)
        fault.present = present
        fault.guest_mode = vcpu.guest_mode
        result = RET_PF_EMULATE
        if not await self.page_fault_handle_page_track(fault):
            result = await self.fault_in_and_fetch(vcpu, address, fault, walker)
        await Emit(FaultFixed(vcpu.number, walker.gfn, result))
        return result

    async def fault_in_and_fetch(
        self, vcpu: VcpuCells, address: int, fault: Fault, walker: GuestWalker
    ) -> str:
        """The host's page, outside the lock; then the shadow pages, under it."""
        kvm = self.kvm
        await Sleep("mmu_topup_memory_caches")
        fault.mmu_seq = await SnapshotSeq(kvm, vcpu.faulting)
        result = await self.faultin_pfn(vcpu, fault)
        if result:
            return result
        await kvm.mmu_lock.write_lock()
        result = RET_PF_RETRY
        if await self.ready_to_map(vcpu, fault):
            result = await self.fetch(vcpu, address, fault, walker)
        await kvm.mmu_lock.write_unlock()
        return result

    async def ready_to_map(self, vcpu: VcpuCells, fault: Fault) -> bool:
        """Reclaim first: it may zap the very root; then look whether the fault is stale."""
        await self.make_mmu_pages_available()
        return not await self.is_page_fault_stale(vcpu, fault)

    async def shadow_mmio_spte_says_so(self, root: TablePage, address: int, as_id: int) -> bool:
        """``handle_mmio_page_fault``: an MMIO SPTE of this generation is believed."""
        kvm = self.kvm
        level = kvm.geometry.levels
        sptep: Cell = root.entries[kvm.geometry.index(address, level)]
        while True:
            spte = await ReadSpte(sptep)
            if kvm.format.is_mmio(spte):
                slots = await Read(kvm.memslots[as_id])
                return self.generation_is_current(spte, slots)
            if not kvm.format.is_shadow_present(spte) or kvm.format.is_last(spte, level):
                return False
            level -= 1
            sptep = kvm.page_of(spte).entries[kvm.geometry.index(address, level)]

    # --- the quota ------------------------------------------------------------------------------

    async def make_mmu_pages_available(self) -> None:
        """``make_mmu_pages_available``: what one fault may need, by zapping the oldest pages."""
        kvm = self.kvm
        quota = kvm.config.mmu_pages
        needed = kvm.geometry.levels - 1
        if not quota:
            return
        used = await Read(kvm.n_used_mmu_pages)
        if quota - used < needed:
            await self.zap_oldest_mmu_pages(needed - (quota - used))

    async def zap_oldest_mmu_pages(self, nr_to_zap: int) -> None:
        """``kvm_mmu_zap_oldest_mmu_pages``: from the tail of the list, roots in use excepted."""
        invalid_list = InvalidList()
        while len(invalid_list.pages) < nr_to_zap:
            if not await self.zap_oldest_page(invalid_list):
                break
        await self.commit_zap_page(invalid_list)

    async def zap_oldest_page(self, invalid_list: InvalidList) -> bool:
        """The oldest page that is no root in use; false if there is none."""
        pages = await Read(self.kvm.active_mmu_pages)
        for sp in pages[::-1]:
            if await Read(sp.root_count):
                continue
            await self.prepare_zap_page(sp, invalid_list)
            return True
        return False

    # --- mapping --------------------------------------------------------------------------------

    async def fetch(self, vcpu: VcpuCells, address: int, fault: Fault, walker: GuestWalker) -> str:
        """``fetch``: a shadow page for each guest table on the way, then the leaf."""
        kvm = self.kvm
        if await gpte_changed(kvm, walker, fault.as_id, address, walker.top):
            return RET_PF_RETRY
        root = kvm.hardware.page_by_number[fault.root]
        sptep: Cell = root.entries[kvm.geometry.index(address, walker.top)]
        level = walker.top
        while level > walker.level:
            table_gfn = walker.table_at(level - 1)
            access = self.table_access(walker, level - 1)
            sp = await self.get_child_sp(vcpu, sptep, table_gfn, False, access)
            if sp is not None and not await self.sync_before_linking(vcpu, sp):
                return RET_PF_RETRY
            together = self.prefetch_num()
            if await gpte_changed(kvm, walker, fault.as_id, address, level - 1, together):
                return RET_PF_RETRY
            if sp is not None:
                await self.link_shadow_page(sptep, sp)
            sptep = await self.next_sptep(sptep, address, level)
            level -= 1
        fault.max_level = walker.level
        await self.hugepage_adjust(fault)
        while True:
            if kvm.config.nx_huge_pages and level > 1:
                spte = await ReadSpte(sptep)
                await self.adjust_for_table(fault, spte, level)
            if level == fault.goal_level:
                break
            await self.validate_direct_spte(sptep, walker.pte_access)
            base = kvm.geometry.round(fault.gfn, level)
            sp = await self.get_child_sp(vcpu, sptep, base, True, walker.pte_access)
            if sp is not None:
                await self.link_shadow_page(sptep, sp)
                if fault.huge_page_disallowed:
                    await self.account_nx_huge_page(sp, fault.req_level >= level)
            # Below a large guest page the tables are by gfn.
            sptep = await self.next_sptep(sptep, fault.gfn, level)
            level -= 1
        result = await self.mmu_set_spte(fault, sptep, level, walker.pte_access)
        if result != RET_PF_SPURIOUS:
            await self.pte_prefetch(fault, sptep, walker)
        return result

    async def adjust_for_table(self, fault: Fault, spte: int, level: int) -> None:
        """``disallowed_hugepage_adjust``."""
        self.disallowed_hugepage_adjust(fault, spte, level)

    def prefetch_num(self) -> int:
        """``PTE_PREFETCH_NUM``; 1: nothing is prefetched, as where shadow pages are explored."""
        return 1

    async def pte_prefetch(self, fault: Fault, sptep: Cell, walker: GuestWalker) -> None:
        """``pte_prefetch``: neighbouring entries."""

    def table_access(self, walker: GuestWalker, level: int) -> int:
        """The access of the role of a table: what all entries above it allow."""
        return walker.access_of(level)

    async def sync_before_linking(self, vcpu: VcpuCells, sp: TablePage) -> bool:
        """A page that was not linked may be stale below; false: the lock is wanted elsewhere.

        The guest need not flush for what was not present, so nobody else would sync it.
        """
        if not await Read(sp.unsync_children):
            return True
        return await self.sync_children(vcpu, sp, False)

    async def next_sptep(self, sptep: Cell, address: int, level: int) -> Cell:
        """``shadow_walk_next``: the entry for ``address`` in the table that ``sptep`` points to."""
        spte = await ReadSpte(sptep)
        child = self.kvm.page_of(spte)
        return child.entries[self.kvm.geometry.index(address, level - 1)]

    async def validate_direct_spte(self, sptep: Cell, access: int) -> None:
        """``validate_direct_spte``: a direct page of another access is unlinked, and flushed."""
        kvm = self.kvm
        spte = await ReadSpte(sptep)
        if not kvm.format.is_shadow_present(spte) or kvm.format.is_large(spte):
            return
        child = kvm.page_of(spte)
        header = await ReadHeader(child)
        if header.access != access:
            await self.drop_parent_pte(child, sptep)
            await self.flush_remote_tlbs()

    async def trace_set_spte(self, sptep: Cell, gfn: int, spte: int, level: int) -> None:
        """``trace_kvm_mmu_set_spte``: for whoever holds the model against a kernel."""

    async def mmu_set_spte(self, fault: Fault, sptep: Cell, level: int, access: int) -> str:
        """``mmu_set_spte``: the leaf and its rmap entry."""
        kvm = self.kvm
        spte_format = kvm.format
        base = kvm.geometry.round(fault.gfn, level)
        pfn = fault.pfn - (fault.gfn - base)
        old = await ReadSpte(sptep)
        flush = was_rmapped = False
        if spte_format.is_shadow_present(old):
            was_rmapped = (
                fault.slot is not None
                and spte_format.is_last(old, level)
                and spte_format.pfn(old) == pfn
            )
            if not spte_format.is_last(old, level):
                await self.drop_parent_pte(kvm.page_of(old), sptep)
            elif not was_rmapped:
                await self.drop_spte(sptep)
            if not was_rmapped:
                old = spte_format.nonpresent
                flush = True
        if fault.slot is None:
            await self.mark_mmio_spte(fault.as_id, sptep, base, access)
            if flush:
                await self.flush_remote_tlbs_with_address(base, kvm.geometry.pages(level))
            return RET_PF_EMULATE
        new = await self.make_shadow_spte(
            fault.slot, base, pfn, level, access, fault.map_writable, old=old, can_unsync=True
        )
        result = RET_PF_FIXED
        if was_rmapped and new == old:
            result = RET_PF_SPURIOUS
        else:
            changed = await self.update_spte(sptep, new)
            flush = flush or changed
            await self.trace_set_spte(sptep, base, new, level)
        if fault.write and not spte_format.is_writable(new):
            result = RET_PF_EMULATE
        if flush:
            await self.flush_remote_tlbs_with_address(base, kvm.geometry.pages(level))
        if was_rmapped:
            await self.set_page_translation(sptep, base, access)
        else:
            await self.rmap_add(sptep, base, access)
        return result
