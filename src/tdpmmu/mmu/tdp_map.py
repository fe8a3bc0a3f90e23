"""Mapping a page for a fault (``kvm_tdp_mmu_map``, ``tdp_mmu.c``, v5.12)."""

from __future__ import annotations

from tdpmmu.arch.table import Allocate, FreeUnused, Header, ReadSpte, SetPrivate, TablePage
from tdpmmu.events.records import PageLinked
from tdpmmu.machine.op import Emit
from tdpmmu.mmu.fault import (
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    Fault,
)
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.mmu.tdp_mmu import TdpMmu


class TdpMap(TdpMmu):
    """Tables are linked, huge pages split and leaves installed by cmpxchg, under the read lock."""

    async def alloc_page(self, fault: Fault, it: TdpIter) -> TablePage:
        """``alloc_tdp_mmu_page``: a table to hang below the entry at ``it``.

        Up to 5.13 its ``role.level`` is the level of that entry, one more than the table's own.
        """
        page: TablePage = await Allocate(
            self.kvm.pools[fault.pool],
            Header(
                it.gfn,
                it.level - 1,
                it.level,
                fault.as_id,
                it.root.number,
                True,
                it.sptep,
                fault.guest_mode,
            ),
        )
        return page

    def leaf_spte(self, fault: Fault, level: int, gfn: int) -> int:
        """``make_spte``: huge pages are not executable while the NX workaround is on."""
        first = self.kvm.geometry.round(gfn, level)
        execute = level == 1 or not self.kvm.config.nx_huge_pages
        return self.kvm.format.leaf(
            fault.pfn - (fault.gfn - first),
            level,
            write=fault.map_writable,
            execute=execute,
            host_writable=fault.map_writable,
        )

    async def make_spte(self, fault: Fault, it: TdpIter) -> int:
        """``make_spte`` / ``make_mmio_spte``: the SPTE for ``it``; may set ``fault.wrprot``."""
        if fault.slot is None:
            return self.kvm.format.mmio(it.gfn, fault.generation)
        return self.leaf_spte(fault, it.level, it.gfn)

    def disallowed_hugepage_adjust(self, fault: Fault, spte: int, level: int) -> None:
        """``disallowed_hugepage_adjust``: a table is where a huge page was wanted: go below."""
        spte_format = self.kvm.format
        if (
            level > 1
            and level == fault.goal_level
            and spte_format.is_shadow_present(spte)
            and not spte_format.is_large(spte)
        ):
            fault.goal_level -= 1

    async def tdp_mmu_map(self, fault: Fault) -> str:
        """``kvm_tdp_mmu_map``: install tables and a leaf, with ``mmu_lock`` held for read."""
        kvm = self.kvm
        spte = kvm.format
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, kvm.hardware.page_by_number[fault.root], fault.gfn, fault.gfn + 1)
        while await it.next_pte():
            if kvm.config.nx_huge_pages:
                self.disallowed_hugepage_adjust(fault, it.old_spte, it.level)
            if it.level == fault.goal_level:
                break
            if spte.is_shadow_present(it.old_spte) and spte.is_large(it.old_spte):
                if not await self.zap_spte_atomic(it):
                    break
                it.old_spte = await ReadSpte(it.sptep)
            if not spte.is_shadow_present(it.old_spte) and not await self.map_table(fault, it):
                break
        if it.level != fault.goal_level:
            await kvm.rcu.read_unlock()
            return RET_PF_RETRY
        result = await self.map_target_level(fault, it)
        await kvm.rcu.read_unlock()
        return result

    async def map_table(self, fault: Fault, it: TdpIter) -> bool:
        """Hang a new table below the entry at ``it``; false if somebody was first."""
        sp = await self.alloc_page(fault, it)
        if not await self.set_spte_atomic(it, self.kvm.format.nonleaf(sp.pfn)):
            await FreeUnused(sp)
            return False
        await Emit(PageLinked(sp.name, it.gfn, it.level - 1, fault.huge_page_disallowed))
        account_nx = fault.huge_page_disallowed and fault.req_level >= it.level
        await self.link_page(sp, True, account_nx)
        return True

    async def fill_split_table(self, sp: TablePage, huge: int, level: int) -> None:
        """``tdp_mmu_split_huge_page``'s loop: the parts of ``huge``, in a table nobody sees yet."""
        kvm = self.kvm
        for i in range(kvm.geometry.fanout):
            offset = i * kvm.geometry.pages(level)
            await SetPrivate(sp.entries[i], kvm.format.split_child(huge, level, offset))

    async def map_target_level(self, fault: Fault, it: TdpIter) -> str:
        """``tdp_mmu_map_handle_target_level``: the leaf itself."""
        new = await self.make_spte(fault, it)
        if new == it.old_spte:
            return self.map_result(fault, RET_PF_SPURIOUS)
        if not await self.set_spte_atomic(it, new):
            return RET_PF_RETRY
        return self.map_result(fault, RET_PF_FIXED)

    def map_result(self, fault: Fault, result: str) -> str:
        """What the fault handler returns once the SPTE is as it should be."""
        if fault.slot is None or (fault.wrprot and fault.write):
            return RET_PF_EMULATE
        return result
