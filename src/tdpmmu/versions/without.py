"""Kernels with one merged change taken out again: what was measured before it."""

from __future__ import annotations

from tdpmmu.arch.table import ReadHeader
from tdpmmu.events.records import NxPageRecovered, Yielded
from tdpmmu.machine.op import Emit, Read, Write
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.mmu.tdp_zap import TdpZap
from tdpmmu.versions.linux_6_12 import Linux_6_12
from tdpmmu.versions.linux_6_18 import Linux_6_18


class RecoverUnderWriteLock(Linux_6_18):
    """Takes a57750909580 (v6.18) out: TDP pages are recovered under ``mmu_lock`` for write."""

    async def recover_tdp_pages(self) -> None:
        """``kvm_recover_nx_huge_pages`` of the TDP MMU, up to 6.17."""
        kvm = self.kvm
        await kvm.srcu.read_lock()
        await kvm.mmu_lock.write_lock()
        await kvm.rcu.read_lock()
        flush = False
        nr_pages = await Read(kvm.nr_possible_nx_tdp)
        to_zap = self.pages_to_zap(nr_pages)
        while to_zap > 0:
            pages = await Read(kvm.possible_nx_tdp_pages)
            if not pages:
                break
            sp = pages[0]
            header = await ReadHeader(sp)
            zapped = False
            if await self.slot_is_logged(header):
                await Write(sp.nx_huge_page_disallowed, False)
                await self.untrack_possible_nx_huge_page(sp)
            else:
                zapped = await self.zap_sp(sp)
            flush = flush or zapped
            await Emit(NxPageRecovered(header.gfn, zapped))
            to_zap -= 1
            if await kvm.mmu_lock.needbreak():
                if flush:
                    await self.flush_remote_tlbs()
                await kvm.rcu.read_unlock()
                await kvm.mmu_lock.cond_resched_write()
                await Emit(Yielded("kvm_recover_nx_huge_pages"))
                flush = False
                await kvm.rcu.read_lock()
        await self.tdp_recovery_ends(flush)
        await kvm.mmu_lock.write_unlock()
        await kvm.srcu.read_unlock()


class ProcessBeforeUnfreezing(Linux_6_12):
    """Takes aca48556c592 (v6.10) out: an entry stays frozen until all below it is dealt with."""

    async def zap_spte_atomic(self, it: TdpIter) -> bool:
        """``tdp_mmu_zap_spte_atomic``, up to 6.9."""
        return await TdpZap.zap_spte_atomic(self, it)
