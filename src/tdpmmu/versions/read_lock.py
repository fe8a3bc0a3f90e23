"""Recovery under ``mmu_lock`` held for read: the reviewer's wish of March 2021, done on v5.12.

Not a patch that was ever posted, but what one would write first.  Legacy pages cannot be zapped
under the read lock: they go in a pass of their own.  TDP pages are picked under
``tdp_mmu_pages_lock`` and zapped by gfn range in every root, as v5.12 does.
"""

from __future__ import annotations

from tdpmmu.arch.table import ReadHeader, ReadSpte, TablePage
from tdpmmu.events.records import NxPageRecovered, Yielded
from tdpmmu.machine.op import Add, Emit, Read
from tdpmmu.mmu.nx_recovery import NxRecovery
from tdpmmu.mmu.shadow import InvalidList
from tdpmmu.mmu.tdp_iter import TdpIter


class _ReadLockRecovery(NxRecovery):
    async def zap_spte_shared(self, it: TdpIter) -> bool:
        """Zap the entry at ``it``; false if somebody was first."""
        raise TypeError("one of the two ways to zap must be chosen")

    def owes_flush(self) -> bool:
        """Whether that leaves a flush to be done."""
        raise TypeError("one of the two ways to zap must be chosen")

    def zap_sp_may_yield(self) -> bool:
        """Before patch 3 the zap of one page may yield."""
        return True

    async def recover_nx_lpages(self) -> None:
        await self.kvm.srcu.read_lock()
        await self.recover_legacy_pages()
        await self.recover_tdp_pages()
        await self.kvm.srcu.read_unlock()

    async def first_page(self, tdp: bool) -> TablePage | None:
        """The first page of one kind on the list."""
        for sp in await Read(self.kvm.lpage_disallowed_mmu_pages):
            header = await ReadHeader(sp)
            if header.tdp == tdp:
                found: TablePage = sp
                return found
        return None

    async def recover_legacy_pages(self) -> None:
        """As ever, under the write lock."""
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        invalid_list = InvalidList()
        sp = await self.first_page(tdp=False)
        while sp is not None:
            await self.prepare_zap_page(sp, invalid_list)
            if await kvm.mmu_lock.needbreak():
                await self.recovery_lock_break(invalid_list, False)
            sp = await self.first_page(tdp=False)
        await self.commit_zap_page(invalid_list)
        await kvm.mmu_lock.write_unlock()

    async def recover_tdp_pages(self) -> None:
        """Under the read lock, in parallel with page faults."""
        kvm = self.kvm
        await kvm.mmu_lock.read_lock()
        flush = False
        await kvm.tdp_mmu_pages_lock.lock()
        splits = await Read(kvm.nx_lpage_splits)
        await kvm.tdp_mmu_pages_lock.unlock()
        to_zap = self.pages_to_zap(splits)
        while to_zap > 0:
            await kvm.tdp_mmu_pages_lock.lock()
            sp = await self.first_page(tdp=True)
            if sp is None:
                await kvm.tdp_mmu_pages_lock.unlock()
                break
            header = await ReadHeader(sp)
            await kvm.tdp_mmu_pages_lock.unlock()
            end = header.gfn + kvm.geometry.pages(header.role_level)
            zapped = await self.zap_range_shared(header.gfn, end, self.zap_sp_may_yield())
            flush = flush or zapped
            await Emit(NxPageRecovered(header.gfn, zapped))
            to_zap -= 1
            if await kvm.mmu_lock.needbreak():
                if flush:
                    await self.flush_remote_tlbs()
                await kvm.mmu_lock.cond_resched_read()
                await Emit(Yielded("kvm_recover_nx_lpages"))
                flush = False
        if flush:
            await self.flush_remote_tlbs()
        await kvm.mmu_lock.read_unlock()

    async def zap_range_shared(self, start: int, end: int, can_yield: bool) -> bool:
        """In every root; nobody frees a root while a reader holds a reference to it."""
        flush = False
        for root in await Read(self.kvm.tdp_mmu_roots):
            await Add(root.root_count, 1)
            flush = await self.zap_gfn_range_shared(root, start, end, can_yield, flush)
            await Add(root.root_count, -1)
        return flush

    async def zap_gfn_range_shared(
        self, root: TablePage, start: int, end: int, can_yield: bool, flush: bool
    ) -> bool:
        """``zap_gfn_range`` with ``shared``."""
        kvm = self.kvm
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, start, end)
        while await it.next_pte():
            while True:
                if can_yield and await self.iter_cond_resched(it, flush, True):
                    flush = False
                    break
                if not kvm.format.is_shadow_present(it.old_spte):
                    break
                outside = it.gfn < start or it.gfn + kvm.geometry.pages(it.level) > end
                if outside and not kvm.format.is_last(it.old_spte, it.level):
                    break
                if await self.zap_spte_shared(it):
                    flush = flush or self.owes_flush()
                    break
                it.old_spte = await ReadSpte(it.sptep)
        await kvm.rcu.read_unlock()
        return flush


class ReadLockFreeze(_ReadLockRecovery):
    """Recovery under the read lock, each entry zapped by freeze, flush, clear."""

    async def zap_spte_shared(self, it: TdpIter) -> bool:
        return await self.zap_spte_atomic(it)

    def owes_flush(self) -> bool:
        return False


class ReadLockCmpxchg(_ReadLockRecovery):
    """Recovery under the read lock, one cmpxchg straight to non-present, the flush deferred."""

    async def zap_spte_shared(self, it: TdpIter) -> bool:
        return await self.set_spte_atomic(it, self.kvm.format.nonpresent)

    def owes_flush(self) -> bool:
        return True


class NoYieldInSharedZap(_ReadLockRecovery):
    """Patch 3 carried over: the zap of one page may not yield."""

    def zap_sp_may_yield(self) -> bool:
        return False
