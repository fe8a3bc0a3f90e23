"""Z13: what the move of NX recovery under the read lock had to get right, one by one."""

from tdpmmu.arch.table import TablePage
from tdpmmu.machine.op import Read, Write
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_18 import Linux_6_18


class UnaccountsAfterUnlock(Linux_6_18):
    """The page leaves the list after ``tdp_mmu_pages_lock`` was dropped."""

    async def pick_nx_page(self) -> TablePage | None:
        kvm = self.kvm
        await kvm.tdp_mmu_pages_lock.lock()
        pages = await Read(kvm.possible_nx_tdp_pages)
        await kvm.tdp_mmu_pages_lock.unlock()
        if not pages:
            return None
        sp: TablePage = pages[0]
        await Write(sp.nx_huge_page_disallowed, False)
        await self.untrack_possible_nx_huge_page(sp)
        return sp


class LeavesRcuBeforeTheFlush(Linux_6_18):
    """``rcu_read_unlock`` first, then the flush that is owed."""

    async def tdp_recovery_ends(self, flush: bool) -> None:
        await self.kvm.rcu.read_unlock()
        if flush:
            await self.flush_remote_tlbs()


class NeverFlushes(Linux_6_18):
    """The caller takes the zap to be one that freezes and flushes, as others are."""

    async def tdp_recovery_ends(self, flush: bool) -> None:
        await self.kvm.rcu.read_unlock()


class BreaksTheWriteLock(Linux_6_18):
    """The lock break of the old worker, as in version 2 of the series."""

    async def break_recovery_lock(self) -> None:
        await self.kvm.mmu_lock.cond_resched_write()


TITLE = "KVM: x86/mmu: Recover TDP MMU NX huge pages using MMU read lock"
COMMIT = "a57750909580"
FAULT = Script(threads="vcpu0: x1; worker: recover", setup="x0")

ENTRIES = (
    Entry(
        id="z13a",
        title=TITLE,
        commit=COMMIT,
        fixed="6.18",
        kernel="6.18",
        scenario=FAULT,
        prop="guard",
        mechanism=(
            "The page has to leave the list before tdp_mmu_pages_lock is dropped. Outside the "
            "lock a fault that links a table changes the same list at the same time."
        ),
        patch=UnaccountsAfterUnlock,
    ),
    Entry(
        id="z13b",
        title=TITLE,
        commit=COMMIT,
        fixed="6.18",
        kernel="6.18",
        scenario=FAULT,
        prop="freed-table",
        mechanism=(
            "Zapped tables are freed after a grace period that only the worker's own RCU section "
            "holds up. If it ends before the flush, a vCPU walks a freed table."
        ),
        patch=LeavesRcuBeforeTheFlush,
    ),
    Entry(
        id="z13c",
        title=TITLE,
        commit=COMMIT,
        fixed="6.18",
        kernel="6.18",
        scenario=FAULT,
        prop="flush-owed",
        mechanism=(
            "The zap is one cmpxchg straight to non-present, not freeze, flush, clear. A caller "
            "that takes the flush to be done releases mmu_lock with old translations in use."
        ),
        patch=NeverFlushes,
    ),
    Entry(
        id="z13d",
        title=TITLE,
        commit=COMMIT,
        fixed="6.18",
        kernel="6.18",
        scenario=FAULT,
        prop="lock-context",
        mechanism=(
            "The worker holds mmu_lock for read when it recovers TDP pages. Breaking the lock "
            "with the write flavour releases a lock that it does not hold."
        ),
        patch=BreaksTheWriteLock,
    ),
)
