"""The legacy MMU with nested paging: direct roots and faults under the write lock (v6.12).

What a VM does with ``kvm.tdp_mmu=0``: shadow pages, none of which shadows a guest table.
"""

from __future__ import annotations

from tdpmmu.arch.guest import ACC_ALL, ACC_WRITE, gpte_access, gpte_gfn, is_accessed_gpte
from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import CurrentRoot, LoadRoot
from tdpmmu.arch.table import ReadHeader, ReadSpte, TablePage
from tdpmmu.machine.op import Add, Read
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.fault import RET_PF_RETRY, RET_PF_SPURIOUS, Fault
from tdpmmu.mmu.guest_walk import GuestWalker, protect_clean_gpte
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.shadow_pages import Role
from tdpmmu.mmu.shadow_roots import ShadowRoots

PTE_PREFETCH_NUM = 8


class DirectMap(ShadowRoots):
    """``direct_map`` and its roots."""

    def has_legacy_root(self, vcpu: VcpuCells) -> bool:
        """Whether the vCPU runs on direct shadow pages."""
        return vcpu.paging is None and not self.tdp_mmu_enabled()

    # --- roots ----------------------------------------------------------------------------------

    async def mmu_load(self, vcpu: VcpuCells, as_id: int) -> TablePage:
        """``kvm_mmu_load``: ``mmu_alloc_direct_roots`` without the TDP MMU."""
        if not self.has_legacy_root(vcpu):
            return await super().mmu_load(vcpu, as_id)
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        await self.make_mmu_pages_available()
        role = Role(kvm.geometry.levels, True, ACC_ALL, as_id, vcpu.guest_mode)
        root = await self.get_shadow_page(vcpu, 0, role)
        await Add(root.root_count, 1)
        await kvm.mmu_lock.write_unlock()
        await self.load_root(vcpu, root)
        return root

    async def reload_root(self, vcpu: VcpuCells) -> None:
        """``kvm_mmu_free_obsolete_roots`` and ``kvm_mmu_load``."""
        if not self.has_legacy_root(vcpu):
            await super().reload_root(vcpu)
            return
        root = self.kvm.hardware.page_by_number[await CurrentRoot(vcpu)]
        await self.kvm.mmu_lock.read_lock()
        obsolete = await Read(root.invalid)
        await self.kvm.mmu_lock.read_unlock()
        if not obsolete:
            return
        header = await ReadHeader(root)
        await LoadRoot(vcpu, ())
        await self.free_shadow_root(root)
        await self.mmu_load(vcpu, header.as_id)

    async def unload_root(self, vcpu: VcpuCells) -> None:
        """``kvm_mmu_unload``."""
        if not self.has_legacy_root(vcpu):
            await super().unload_root(vcpu)
            return
        number = await CurrentRoot(vcpu)
        if number >= 0:
            await LoadRoot(vcpu, ())
            await self.free_shadow_root(self.kvm.hardware.page_by_number[number])

    # --- faults ---------------------------------------------------------------------------------

    async def map_under_lock(self, vcpu: VcpuCells, fault: Fault) -> str:
        """The end of ``direct_page_fault`` without the TDP MMU: under the write lock."""
        if self.tdp_mmu_enabled():
            return await super().map_under_lock(vcpu, fault)
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        result = RET_PF_RETRY
        if await self.ready_to_map(vcpu, fault):
            result = await self.direct_map(vcpu, fault)
        await kvm.mmu_lock.write_unlock()
        return result

    async def direct_map(self, vcpu: VcpuCells, fault: Fault) -> str:
        """``direct_map``: tables on the way to the level that is wanted, then the leaf."""
        kvm = self.kvm
        await self.hugepage_adjust(fault)
        level = kvm.geometry.levels
        root = kvm.hardware.page_by_number[fault.root]
        sptep: Cell = root.entries[kvm.geometry.index(fault.gfn, level)]
        while True:
            spte = await ReadSpte(sptep)
            if kvm.config.nx_huge_pages:
                await self.adjust_for_table(fault, spte, level)
            if level == fault.goal_level:
                break
            base = kvm.geometry.round(fault.gfn, level)
            sp = await self.get_child_sp(vcpu, sptep, base, True, ACC_ALL)
            if sp is not None:
                await self.link_shadow_page(sptep, sp)
                if fault.huge_page_disallowed:
                    await self.account_nx_huge_page(sp, fault.req_level >= level)
            sptep = await self.next_sptep(sptep, fault.gfn, level)
            level -= 1
        result = await self.mmu_set_spte(fault, sptep, level, ACC_ALL)
        if result != RET_PF_SPURIOUS and level == 1:
            await self.direct_pte_prefetch(fault, sptep)
        return result

    # --- prefetch -------------------------------------------------------------------------------

    def prefetch_num(self) -> int:
        """Beside the TDP MMU shadow pages are for exploring only."""
        return 1 if self.tdp_mmu_enabled() else min(PTE_PREFETCH_NUM, self.kvm.geometry.fanout)

    async def pte_prefetch(self, fault: Fault, sptep: Cell, walker: GuestWalker) -> None:
        """``pte_prefetch`` of ``paging_tmpl.h``: up to an entry that is not to be had."""
        sp: TablePage = sptep.page
        header = await ReadHeader(sp)
        if self.prefetch_num() == 1 or header.level > 1:
            return
        if header.direct:
            await self.direct_pte_prefetch(fault, sptep)
            return
        if await Read(self.kvm.mmu_notifier_count):
            return
        first = self.spte_index(sptep) // self.prefetch_num() * self.prefetch_num()
        for index, gpte in enumerate(walker.prefetch_ptes, first):
            cell = sp.entries[index]
            spte = await ReadSpte(cell)
            if cell is sptep or self.kvm.format.is_shadow_present(spte):
                continue
            if not await self.prefetch_gpte(fault.as_id, cell, gpte):
                return

    async def prefetch_gpte(self, as_id: int, sptep: Cell, gpte: int) -> bool:
        """``prefetch_gpte``: only what the guest has accessed, and not into a logged slot."""
        if not is_accessed_gpte(gpte):
            await self.drop_spte(sptep)
            return False
        header = await ReadHeader(sptep.page)
        gfn = gpte_gfn(gpte)
        access = protect_clean_gpte(header.access & gpte_access(gpte), gpte)
        slots = await Read(self.kvm.memslots[as_id])
        slot = slots.find(gfn)
        if slot is None or slot.invalid or (slot.log and access & ACC_WRITE):
            return False
        pfns = await self.gfn_to_page_many(slot, gfn, 1)
        for pfn in pfns:
            await self.prefetch_spte(slot, sptep, gfn, pfn, access)
        return bool(pfns)

    async def direct_pte_prefetch(self, fault: Fault, sptep: Cell) -> None:
        """``direct_pte_prefetch``: the eight entries around, each run of empty ones in one go."""
        kvm = self.kvm
        if await Read(kvm.mmu_notifier_count):
            return
        sp: TablePage = sptep.page
        number = self.prefetch_num()
        first = self.spte_index(sptep) // number * number
        run: list[Cell] = []
        for cell in sp.entries[first : first + number]:
            spte = await ReadSpte(cell)
            if cell is not sptep and not kvm.format.is_shadow_present(spte):
                run.append(cell)
                continue
            if run and not await self.prefetch_many(fault, tuple(run)):
                return
            run = []
        if run:
            await self.prefetch_many(fault, tuple(run))

    async def prefetch_many(self, fault: Fault, sptes: tuple[Cell, ...]) -> bool:
        """``direct_pte_prefetch_many``: as many as the host has; false: none, or a logged slot."""
        gfn = await self.page_gfn(sptes[0])
        slots = await Read(self.kvm.memslots[fault.as_id])
        slot = slots.find(gfn)
        header = await ReadHeader(sptes[0].page)
        write = bool(header.access & ACC_WRITE)
        if slot is None or slot.invalid or (slot.log and write):
            return False
        pfns = await self.gfn_to_page_many(slot, gfn, len(sptes))
        for sptep, pfn in zip(sptes, pfns, strict=False):
            await self.prefetch_spte(slot, sptep, gfn, pfn, header.access)
            gfn += 1
        return bool(pfns)

    async def gfn_to_page_many(self, slot: Memslot, gfn: int, pages: int) -> tuple[int, ...]:
        """``gfn_to_page_many_atomic``: what is there and writable, from the first on."""
        pfns = []
        for one in range(gfn, gfn + pages):
            if not slot.covers(one):
                break
            page = slot.hva + one - slot.base_gfn
            pfn = await self.kvm.memory.get_user_page(page)
            pfns.append(pfn)
        return tuple(pfns)

    async def prefetch_spte(
        self, slot: Memslot, sptep: Cell, gfn: int, pfn: int, access: int
    ) -> None:
        """``mmu_set_spte`` without a fault: not accessed yet."""
        old = await ReadSpte(sptep)
        new = await self.make_shadow_spte(
            slot, gfn, pfn, 1, access, True, old=old, prefetch=True, can_unsync=True
        )
        await self.update_spte(sptep, new)
        await self.trace_set_spte(sptep, gfn, new, 1)
        await self.rmap_add(sptep, gfn, access)
