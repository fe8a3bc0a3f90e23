"""Patches: each overrides a method or two of its kernel, and reads like the diff it stands for."""

from __future__ import annotations

from tdpmmu.arch.table import CmpXchgSpte, FreeUnused, ReadHeader, TablePage
from tdpmmu.events.records import PageLinked
from tdpmmu.machine.op import Emit, SetAdd
from tdpmmu.mmu.ageing import Ageing
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.notifier import GfnRange, Notifier
from tdpmmu.mmu.nx_recovery import NxRecovery
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.mmu.tdp_map import TdpMap
from tdpmmu.mmu.tdp_mmu import TdpMmu
from tdpmmu.mmu.tdp_zap import TdpZap


class FlushOnNxZap(NxRecovery):
    """048f49809c52 (v5.12): recovery flushes what the TDP zap says is owed."""

    def recovery_flush(self, pending: bool, zapped: bool) -> bool:
        return zapped


class FlushWhenYielding(TdpMmu):
    """a835429cda91 (v5.12): a flush owed to one root is threaded through the zap of the next."""

    async def tdp_mmu_zap_gfn_range(self, start: int, end: int, can_yield: bool = True) -> bool:
        flush = False
        root = await self.first_root()
        while root is not None:
            flush = await self.zap_gfn_range(root, start, end, can_yield, flush)
            root = await self.next_root(root)
        return flush


class NoYieldInZapSp(TdpMmu):
    """33a3164161fc (v5.12): recovery's zap of one page may not yield."""

    async def zap_sp(self, sp: TablePage) -> bool:
        await self.kvm.mmu_lock.assert_held_write()
        header = await ReadHeader(sp)
        end = header.gfn + self.kvm.geometry.pages(header.role_level)
        return await self.tdp_mmu_zap_gfn_range(header.gfn, end, False)


class PreservePendingFlush(NxRecovery):
    """315f02c60d94 (v5.12): ``flush |=`` in recovery, not ``flush =``."""

    def recovery_flush(self, pending: bool, zapped: bool) -> bool:
        return pending or zapped


class LinkUnderPagesLock(TdpMap):
    """Closes bugzilla 217562: a table is on its lists before anybody can find and zap it.

    Ours, not upstream's, which stopped keeping the list instead (d25ceb926436, v6.2).
    """

    async def map_table(self, fault: Fault, it: TdpIter) -> bool:
        pages_lock = self.kvm.tdp_mmu_pages_lock
        sp = await self.alloc_page(fault, it)
        await pages_lock.lock()
        linked = await self.set_spte_atomic(it, self.kvm.format.nonleaf(sp.pfn))
        if linked:
            await SetAdd(self.kvm.tdp_mmu_pages, sp)
            await Emit(PageLinked(sp.name, it.gfn, it.level - 1))
            if fault.huge_page_disallowed and fault.req_level >= it.level:
                await self.account_huge_nx_page(sp)
        await pages_lock.unlock()
        if not linked:
            await FreeUnused(sp)
        return linked


class FlushEachSlot(Notifier):
    """An invalidation flushes what the walk of one slot owes before it walks the next.

    Ours, not upstream's: closes the first of docs/findings.md.
    """

    async def unmap_ranges(self, ranges: tuple[GfnRange, ...]) -> bool:
        for one in ranges:
            if await super().unmap_ranges((one,)):
                await self.flush_remote_tlbs()
        return False


class AgeByCmpxchg(Ageing):
    """Accessed bits are cleared by a cmpxchg; who loses it calls the page young.

    Ours, not upstream's: an atomic AND without ``mmu_lock`` may hit a frozen entry
    (docs/findings.md).
    """

    async def clear_young_bits(self, it: TdpIter, mask: int) -> None:
        await CmpXchgSpte(it.sptep, it.old_spte, it.old_spte & ~mask)


class NoForwardProgress(TdpZap):
    """Takes away the rule that a walk has to get further before it yields again."""

    def may_yield_here(self, it: TdpIter) -> bool:
        return True
