"""Kernels that are broken on purpose, each in one place, and what must be said of each.

A mutation is a patch of 5.12 or 6.18, with the smallest scenario that shows it and the exact set of
properties that it breaks there.  Where that set has more than one member the mutation breaks a
discipline and does the harm that the discipline is there to prevent, or harms twice with one act.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tdpmmu.arch.hardware import IN_GUEST, OUTSIDE, VcpuCells, VmEnter
from tdpmmu.arch.requests import (
    ExitRequested,
    FlushOwnTlb,
    NeedsIpi,
    RequestFlush,
    SendIpi,
    SetMode,
    TestAndClearRequest,
)
from tdpmmu.arch.table import FreeNow, ReadHeader, TablePage, WriteSpte
from tdpmmu.kernel.locks import Sleep
from tdpmmu.machine.op import ListDel, SetAdd
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.flush import Flush
from tdpmmu.mmu.notifier import Notifier
from tdpmmu.mmu.nx_recovery import NxRecovery as Recovery
from tdpmmu.mmu.page_fault import PageFault
from tdpmmu.mmu.roots import Roots
from tdpmmu.mmu.shadow import InvalidList, ShadowMmu
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.mmu.tdp_map import TdpMap
from tdpmmu.mmu.tdp_mmu import TdpMmu
from tdpmmu.mmu.tdp_zap import TdpZap
from tdpmmu.mmu.vcpu import Vcpu
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.question import Question
from tdpmmu.versions.linux_6_18 import Linux_6_18
from tdpmmu.versions.patches import NoForwardProgress
from tdpmmu.versions.registry import apply, kernel_class

TINY = NxRecovery(levels=2, fanout=2, vcpus=1, roots=1, nx_pages=1, legacy=0, gfns=1)
"""One table on the list, one vCPU that accesses one gfn once, one unmap."""

QUIET = replace(TINY, unmap=False)
"""The same without the unmap."""

EMPTY = replace(TINY, nx_pages=0)
"""Nothing to recover."""

HOST = replace(TINY, vcpus=0)
"""Recovery and the unmap alone; the vCPU that ran in the root is parked."""

PAIR = replace(QUIET, nx_pages=0, vcpus=2)
"""Two vCPUs that access the same gfn."""

LEGACY = replace(TINY, vcpus=0, nx_pages=0, legacy=1, victim="legacy")
"""One legacy table on the list, which the host takes back; nobody runs in the guest."""


# --- stale-translation ---


class IgnoresInvalidation(PageFault):
    """A fault maps the page that it looked up even if the host has taken it back since."""

    async def notifier_retry(self, fault: Fault) -> bool:
        return False


class UnmapWithoutFlush(Linux_6_18):
    """The notifier zaps and returns without the flush."""

    async def unmap_gfn_range(self, as_id: int, start: int, end: int) -> bool:
        await super().unmap_gfn_range(as_id, start, end)
        return False


class UnmapsNothing(Notifier):
    """The notifier returns at once: the SPTEs stay."""

    async def unmap_gfn_range(self, as_id: int, start: int, end: int) -> bool:
        return False


# --- freed-table ---


class FreesBeforeFlush(ShadowMmu):
    """``kvm_mmu_commit_zap_page`` the wrong way round."""

    async def commit_zap_page(self, invalid_list: InvalidList) -> None:
        if not invalid_list.pages:
            return
        while invalid_list.pages:
            await FreeNow(invalid_list.pages.pop(0))
        await self.flush_remote_tlbs()


class RemovesWithoutFlush(TdpZap):
    """5.12 without the flush that a removed table does by itself."""

    async def flush_removed_page(self, gfn: int, level: int) -> None:
        return


# --- multihit ---


class ExecutableHugePages(TdpMap):
    """The NX workaround is forgotten where leaves are made."""

    def leaf_spte(self, fault: Fault, level: int, gfn: int) -> int:
        first = self.kvm.geometry.round(gfn, level)
        return self.kvm.format.leaf(
            fault.pfn - (fault.gfn - first), level, write=True, execute=True
        )


# --- leak ---


class ForgetsToFreeRoot(Roots):
    """The last reference takes the root off the list, and that is all."""

    async def free_root(self, root: TablePage) -> None:
        await ListDel(self.kvm.tdp_mmu_roots, root)
        await self.zap_gfn_range(root, 0, self.kvm.geometry.max_gfn, False)


class LosesPut(TdpMmu):
    """A walk over the roots takes one reference too many."""

    async def first_root(self) -> TablePage | None:
        root = await super().first_root()
        if root is not None:
            await self.get_root(root)
        return root


# --- use-after-free ---


class LooksAfterFree(ShadowMmu):
    """``sp->gfn`` is read, as for a tracepoint, after the page was freed."""

    async def commit_zap_page(self, invalid_list: InvalidList) -> None:
        if not invalid_list.pages:
            return
        await self.flush_remote_tlbs()
        while invalid_list.pages:
            sp = invalid_list.pages.pop(0)
            await FreeNow(sp)
            await ReadHeader(sp)


class LeavesRcuBeforeZap(Linux_6_18):
    """Recovery lets RCU go between picking a page and zapping it."""

    async def pick_nx_page(self) -> TablePage | None:
        sp = await super().pick_nx_page()
        await self.kvm.rcu.read_unlock()
        await self.kvm.rcu.read_lock()
        return sp


# --- refcount ---


class PutsTwice(Linux_6_18):
    """Every reference is put twice."""

    async def put_root(self, root: TablePage) -> None:
        await super().put_root(root)
        await super().put_root(root)


class FreesHeldRoot(Roots):
    """The end of the VM frees the roots without putting the vCPUs' references."""

    async def put_vcpu_roots(self, roots: tuple[TablePage, ...]) -> None:
        await self.kvm.mmu_lock.write_lock()
        for root in roots:
            await self.free_root(root)
        await self.kvm.mmu_lock.write_unlock()


# --- lock-context ---


class SleepsUnderPagesLock(TdpMap):
    """An allocation that may sleep, inside the spinlock."""

    async def account_huge_nx_page(self, sp: TablePage) -> None:
        await Sleep("kmalloc(GFP_KERNEL)")
        await super().account_huge_nx_page(sp)


class TakesLocksInWrongOrder(Notifier):
    """``tdp_mmu_pages_lock`` before ``mmu_lock``."""

    async def invalidate_range_end(self, start: int, end: int) -> None:
        await self.kvm.tdp_mmu_pages_lock.lock()
        await super().invalidate_range_end(start, end)
        await self.kvm.tdp_mmu_pages_lock.unlock()


# --- kernel-warning ---


class UnlinksTwice(TdpZap):
    """A removed table is taken off its list twice."""

    async def unlink_page(self, sp: TablePage, shared: bool) -> None:
        await super().unlink_page(sp, shared)
        await super().unlink_page(sp, shared)


# --- flush-request-lost, and what the explorer takes on trust of vCPUs and flushes ---


class ClearsRequestWithoutFlush(Vcpu):
    """``kvm_check_request`` without ``kvm_vcpu_flush_tlb``."""

    async def enter_guest(self, vcpu: VcpuCells) -> bool:
        await TestAndClearRequest(vcpu)
        await SetMode(self.kvm.hardware, vcpu, IN_GUEST)
        await self.kvm.srcu.read_unlock()
        if await ExitRequested(vcpu):
            await SetMode(self.kvm.hardware, vcpu, OUTSIDE)
            await self.kvm.srcu.read_lock()
            return False
        await VmEnter(self.kvm.hardware, vcpu)
        return True


class SkipsExitRequested(Vcpu):
    """A vCPU that enters without looking for requests made in the window before it."""

    async def enter_guest(self, vcpu: VcpuCells) -> bool:
        if await TestAndClearRequest(vcpu):
            await FlushOwnTlb(vcpu)
        await SetMode(self.kvm.hardware, vcpu, IN_GUEST)
        await self.kvm.srcu.read_unlock()
        await VmEnter(self.kvm.hardware, vcpu)
        return True


class SetsModeAfterCheck(Vcpu):
    """A vCPU that looks for requests before it says that it is in the guest."""

    async def enter_guest(self, vcpu: VcpuCells) -> bool:
        if await TestAndClearRequest(vcpu):
            await FlushOwnTlb(vcpu)
        if await ExitRequested(vcpu):
            return False
        await SetMode(self.kvm.hardware, vcpu, IN_GUEST)
        await self.kvm.srcu.read_unlock()
        await VmEnter(self.kvm.hardware, vcpu)
        return True


class SkipsIpi(Flush):
    """A flush that asks but does not kick."""

    async def make_all_cpus_request(self) -> None:
        for vcpu in self.kvm.vcpus_to_ask:
            await RequestFlush(self.kvm.hardware, vcpu)


class DoesNotWait(Flush):
    """A flush that kicks but returns before the vCPUs have left the guest."""

    async def make_all_cpus_request(self) -> None:
        hardware = self.kvm.hardware
        kick = []
        for vcpu in self.kvm.vcpus_to_ask:
            await RequestFlush(hardware, vcpu)
            if await NeedsIpi(hardware, vcpu):
                kick.append(vcpu)
        for vcpu in tuple(kick):
            await SendIpi(vcpu)


# --- flush-owed ---


class BreaksBeforeFlush(Recovery):
    """Recovery lets the lock go first and flushes when it has it again."""

    async def recovery_lock_break(self, invalid_list: InvalidList, flush: bool) -> None:
        await self.kvm.mmu_lock.cond_resched_write()
        await self.remote_flush_or_zap(invalid_list, flush)


# --- flush-before-rcu-unlock ---


class UnlocksRcuBeforeFlush(Linux_6_18):
    """The end of recovery with its two steps swapped."""

    async def tdp_recovery_ends(self, flush: bool) -> None:
        await self.kvm.rcu.read_unlock()
        if flush:
            await self.flush_remote_tlbs()


# --- spte-transition ---


class ClearsToMmio(TdpZap):
    """What was frozen becomes an MMIO entry, over which a fault may map at once."""

    async def zap_spte_atomic(self, it: TdpIter) -> bool:
        if not await self.set_spte_atomic(it, self.kvm.format.removed):
            return False
        await self.flush_remote_tlbs_with_address(it.gfn, self.kvm.geometry.pages(it.level))
        await WriteSpte(it.sptep, self.kvm.format.mmio(it.gfn))
        return True


# --- guard ---


class LinksWithoutLock(TdpMap):
    """A new table goes on its lists under the read lock alone."""

    async def link_page(self, sp: TablePage, shared: bool, account_nx: bool) -> None:
        await SetAdd(self.kvm.tdp_mmu_pages, sp)
        if account_nx:
            await self.account_huge_nx_page(sp)


# --- deadlock ---


class LocksTwice(TdpMmu):
    """``mmu_lock`` is taken again by who has it."""

    async def zap_sp(self, sp: TablePage) -> bool:
        await self.kvm.mmu_lock.write_lock()
        flush = await super().zap_sp(sp)
        await self.kvm.mmu_lock.write_unlock()
        return flush


# --- exception ---


class Raises(Notifier):
    """Python code that fails."""

    async def invalidate_range_end(self, start: int, end: int) -> None:
        raise KeyError("no such range")


# --- the table ---


@dataclass(frozen=True, slots=True)
class Mutation:
    """A patch, where it shows, and all that it breaks there.

    ``small``: where it can be searched without reduction too, if that is not ``scenario``.
    """

    cls: type
    kernel: str
    scenario: NxRecovery
    breaks: frozenset[str]
    small: NxRecovery | None = None

    def question(self, scenario: NxRecovery | None = None) -> Question:
        """Ask it of the mutated kernel."""
        mmu_class = apply(kernel_class(self.kernel), self.cls)
        return Question(
            self.scenario if scenario is None else scenario,
            mmu_class,
            self.kernel,
            (f"{__file__}:{self.cls.__name__}",),
        )


def _row(
    cls: type, kernel: str, scenario: NxRecovery, *breaks: str, small: NxRecovery | None = None
) -> Mutation:
    return Mutation(cls, kernel, scenario, frozenset(breaks), small)


MUTATIONS: tuple[Mutation, ...] = (
    _row(IgnoresInvalidation, "5.12", EMPTY, "stale-translation"),
    _row(IgnoresInvalidation, "6.18", EMPTY, "stale-translation"),
    # The harm and the discipline against it.
    _row(UnmapWithoutFlush, "6.18", EMPTY, "stale-translation", "flush-owed"),
    _row(UnmapsNothing, "6.18", EMPTY, "stale-translation"),
    _row(FreesBeforeFlush, "5.12", LEGACY, "freed-table"),
    _row(FreesBeforeFlush, "6.18", LEGACY, "freed-table"),
    _row(RemovesWithoutFlush, "5.12", QUIET, "freed-table"),
    _row(ExecutableHugePages, "6.18", PAIR, "multihit"),
    _row(ClearsToMmio, "5.12", PAIR, "spte-transition"),
    _row(ForgetsToFreeRoot, "5.12", QUIET, "leak"),
    # The kernel itself warns of a root that is left on the list of roots.
    _row(LosesPut, "5.12", QUIET, "leak", "kernel-warning"),
    _row(LooksAfterFree, "5.12", LEGACY, "use-after-free"),
    # What is read from the freed page is no header any more: the model's code cannot go on.
    _row(LeavesRcuBeforeZap, "6.18", TINY, "use-after-free", "exception"),
    # The second put touches a root that the first has freed, before the count goes below zero.
    _row(PutsTwice, "6.18", QUIET, "kernel-warning"),
    _row(FreesHeldRoot, "5.12", QUIET, "refcount"),
    _row(SleepsUnderPagesLock, "5.12", QUIET, "lock-context"),
    _row(TakesLocksInWrongOrder, "5.12", HOST, "lock-context"),
    _row(UnlinksTwice, "5.12", QUIET, "kernel-warning"),
    _row(ClearsRequestWithoutFlush, "5.12", QUIET, "flush-request-lost"),
    _row(ClearsRequestWithoutFlush, "6.18", QUIET, "flush-request-lost"),
    _row(SkipsExitRequested, "5.12", QUIET, "flush-request-lost"),
    _row(SkipsExitRequested, "6.18", QUIET, "flush-request-lost"),
    _row(SetsModeAfterCheck, "5.12", QUIET, "flush-request-lost"),
    _row(SetsModeAfterCheck, "6.18", QUIET, "flush-request-lost"),
    # In 5.12 a removed table is freed right after "its" flush, and that harm ends the run.
    _row(SkipsIpi, "5.12", QUIET, "freed-table"),
    _row(DoesNotWait, "5.12", QUIET, "freed-table"),
    # The discipline, and the harm at the same moment.
    _row(SkipsIpi, "6.18", QUIET, "freed-table", "flush-before-rcu-unlock"),
    _row(DoesNotWait, "6.18", QUIET, "freed-table", "flush-before-rcu-unlock"),
    _row(BreaksBeforeFlush, "5.12", replace(LEGACY, unmap=False), "flush-owed"),
    # What the discipline is there for: the host reuses the page while the lock is broken.
    _row(BreaksBeforeFlush, "5.12", LEGACY, "flush-owed", "stale-translation"),
    # The table is freed the moment the RCU section ends: the harm is never far.
    _row(UnlocksRcuBeforeFlush, "6.18", QUIET, "freed-table", "flush-before-rcu-unlock"),
    _row(LinksWithoutLock, "5.12", QUIET, "guard"),
    _row(LocksTwice, "5.12", QUIET, "deadlock"),
    _row(NoForwardProgress, "6.18", HOST, "no-progress"),
    _row(Raises, "5.12", EMPTY, "exception"),
)
