"""NX huge page recovery (``kvm_recover_nx_lpages``, ``mmu.c``, v5.12-rc4)."""

from __future__ import annotations

from tdpmmu.arch.table import ReadHeader
from tdpmmu.events.records import NxPageRecovered, Warned, Yielded
from tdpmmu.machine.op import Emit, Read
from tdpmmu.mmu.page_fault import PageFault
from tdpmmu.mmu.shadow import InvalidList


class NxRecovery(PageFault):
    """Zap pages that were split because the guest executed from them, so they can be huge again."""

    def pages_to_zap(self, splits: int) -> int:
        """``DIV_ROUND_UP(nx_lpage_splits, ratio)``, 0 if the ratio is 0."""
        ratio = self.kvm.config.recovery_ratio
        return -(-splits // ratio) if ratio else 0

    def recovery_flush(self, pending: bool, zapped: bool) -> bool:
        """What becomes of the flush that is owed when another TDP page is zapped: rc4 drops it."""
        return False

    async def recover_nx_lpages(self) -> None:
        """One round of the worker, under ``mmu_lock`` for write."""
        kvm = self.kvm
        await kvm.srcu.read_lock()
        await kvm.mmu_lock.write_lock()
        invalid_list = InvalidList()
        flush = False
        splits = await Read(kvm.nx_lpage_splits)
        to_zap = self.pages_to_zap(splits)
        while to_zap > 0:
            pages = await Read(kvm.lpage_disallowed_mmu_pages)
            if not pages:
                break
            sp = pages[0]
            if not await Read(sp.nx_huge_page_disallowed):
                await Emit(Warned("a page on the list to recover is not marked disallowed"))
            header = await ReadHeader(sp)
            if header.tdp:
                zapped = await self.zap_sp(sp)
                flush = self.recovery_flush(flush, zapped)
                await Emit(NxPageRecovered(header.gfn, zapped))
            else:
                await self.prepare_zap_page(sp, invalid_list)
                await Emit(NxPageRecovered(header.gfn, True))
            to_zap -= 1
            if await kvm.mmu_lock.needbreak():
                await self.recovery_lock_break(invalid_list, flush)
                flush = False
        await self.remote_flush_or_zap(invalid_list, flush)
        await kvm.mmu_lock.write_unlock()
        await kvm.srcu.read_unlock()

    async def recovery_lock_break(self, invalid_list: InvalidList, flush: bool) -> None:
        """Flush what is owed, strictly before the lock goes."""
        await self.remote_flush_or_zap(invalid_list, flush)
        await self.kvm.mmu_lock.cond_resched_write()
        await Emit(Yielded("kvm_recover_nx_lpages"))
