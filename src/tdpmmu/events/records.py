"""The vocabulary: what can be observed of an MMU, whoever runs it.

Where the kernel has a tracepoint for it the record carries its name and fields
(``kvm_tdp_mmu_spte_changed``, ``kvm_mmu_get_page``, ...); the rest is what the kernel lacks: locks,
TLB flushes, freed pages, guest accesses.  Units: gfn and pfn count 4 KiB pages, level 1 is 4 KiB.

Events carry no thread: whoever delivers one says who caused it.
"""

from __future__ import annotations

from dataclasses import dataclass


class Event:
    """Base of every record."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SpteChanged(Event):
    """``kvm_tdp_mmu_spte_changed``, and the same for a shadow page: an entry took another value.

    ``table`` names the page table page, ``index`` the entry in it.
    """

    table: str
    index: int
    root: int
    as_id: int
    gfn: int
    level: int
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class PageLinked(Event):
    """``kvm_mmu_get_page``: a new page table became reachable; ``nx``: for a fetch."""

    page: str
    gfn: int
    level: int
    nx: bool = False


@dataclass(frozen=True, slots=True)
class PageZapped(Event):
    """``kvm_mmu_prepare_zap_page``: a page table was taken out of the paging structure."""

    page: str
    gfn: int
    level: int
    legacy: bool


@dataclass(frozen=True, slots=True)
class PageFreed(Event):
    """The memory of a page table went back to the allocator (after RCU, or at a commit)."""

    page: str
    pfn: int
    root: int


@dataclass(frozen=True, slots=True)
class FreedPageTouched(Event):
    """Software read or wrote a page table page, or its ``struct kvm_mmu_page``, after its free."""

    page: str
    what: str


@dataclass(frozen=True, slots=True)
class UnguardedAccess(Event):
    """A cell was touched without the lock that guards it."""

    cell: str
    guard: str
    write: bool


@dataclass(frozen=True, slots=True)
class LockTaken(Event):
    """A lock was acquired; ``mode`` is ``read``, ``write``, ``spin``, ``rcu`` or ``srcu``."""

    lock: str
    mode: str


@dataclass(frozen=True, slots=True)
class LockReleased(Event):
    """The opposite of :class:`LockTaken`; ``held`` is what is left of it in this thread."""

    lock: str
    mode: str


@dataclass(frozen=True, slots=True)
class BadUnlock(Event):
    """A lock was released by a thread which did not hold it."""

    lock: str
    mode: str


@dataclass(frozen=True, slots=True)
class LockNotHeld(Event):
    """A ``lockdep_assert_held*`` failed."""

    lock: str
    mode: str


@dataclass(frozen=True, slots=True)
class MightSleep(Event):
    """The thread reached a point where it may sleep (``might_sleep``, ``cond_resched``)."""

    where: str


@dataclass(frozen=True, slots=True)
class Yielded(Event):
    """A walk or a worker gave its lock away and got it back."""

    where: str


@dataclass(frozen=True, slots=True)
class Refcount(Event):
    """A reference count changed from ``old`` to ``new``; ``why`` is the kernel's function."""

    page: str
    old: int
    new: int
    why: str


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """A ``WARN_ON`` or ``BUG`` of the kernel fired."""

    what: str


@dataclass(frozen=True, slots=True)
class FlushRequested(Event):
    """``KVM_REQ_TLB_FLUSH`` was set for a vCPU."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class FlushCompleted(Event):
    """A remote TLB flush returned: no vCPU can use what it covers any more.

    ``start`` and ``end`` are gfns, ``end`` exclusive and -1 for "everything".
    """

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FlushDeferred(Event):
    """What this thread owes was written down for others to flush (``kvm->tlbs_dirty``)."""


@dataclass(frozen=True, slots=True)
class VcpuFlushed(Event):
    """A vCPU's own TLB was emptied (``kvm_vcpu_flush_tlb_all`` and its like)."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class FlushLost(Event):
    """A vCPU entered the guest although a flush was requested while it was outside."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class GuestEntered(Event):
    """VM entry: hardware may walk the loaded root from now on."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class GuestLeft(Event):
    """VM exit."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class GuestAccess(Event):
    """A guest access ended: it went through (``fault`` false) or faulted (``kvm_page_fault``)."""

    vcpu: int
    gfn: int
    kind: str
    fault: bool
    stale: bool


@dataclass(frozen=True, slots=True)
class TlbFilled(Event):
    """Hardware may hold new translations of a vCPU's root from here on."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class FaultFixed(Event):
    """A page fault handler returned; ``result`` is the kernel's ``RET_PF_*`` name."""

    vcpu: int
    gfn: int
    result: str


@dataclass(frozen=True, slots=True)
class HostPageReused(Event):
    """The host gave the frames ``[pfn, pfn + pages)`` to somebody else."""

    gfn: int
    pfn: int
    pages: int


@dataclass(frozen=True, slots=True)
class NxPageAccounted(Event):
    """``account_huge_nx_page``: a page table went on the list of possible NX huge pages."""

    page: str
    gfn: int


@dataclass(frozen=True, slots=True)
class NxPageUnaccounted(Event):
    """``unaccount_huge_nx_page``: it left the list."""

    page: str
    gfn: int


@dataclass(frozen=True, slots=True)
class NxPageRecovered(Event):
    """The recovery worker zapped a page table; ``zapped`` is what its helper returned."""

    gfn: int
    zapped: bool


@dataclass(frozen=True, slots=True)
class ThreadDone(Event):
    """A thread ran to its end."""

    thread: str


@dataclass(frozen=True, slots=True)
class TornDown(Event):
    """The VM is gone; ``leaked`` are the page table pages nobody freed."""

    leaked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MemslotGone(Event):
    """``kvm_arch_flush_shadow_memslot`` returned for the slot at ``gfn``, ``pages`` long."""

    as_id: int
    gfn: int
    pages: int


@dataclass(frozen=True, slots=True)
class RangeZapped(Event):
    """``kvm_zap_gfn_range`` is about to return for gfns ``[gfn, gfn + pages)``."""

    gfn: int
    pages: int


@dataclass(frozen=True, slots=True)
class DirtyLogChanged(Event):
    """Dirty logging of these gfns: ``on`` when the ioctl returns, off when it begins."""

    as_id: int
    gfn: int
    pages: int
    on: bool


@dataclass(frozen=True, slots=True)
class OutOfBounds(Event):
    """Memory beyond the ends of an array of ``length`` entries was touched, at ``index``."""

    array: str
    index: int
    length: int


@dataclass(frozen=True, slots=True)
class HugePageRecovered(Event):
    """``recover_huge_pages_range`` (from 6.13) puts a huge page in the place of this table."""

    page: str
    gfn: int
    level: int


@dataclass(frozen=True, slots=True)
class PageMarkedDirty(Event):
    """``mark_page_dirty_in_slot``, or the CPU's page-modification log: a write is on record.

    ``ticket``: the vCPU whose dirty ring has it, and the index there.
    """

    as_id: int
    gfn: int
    ticket: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DirtyRingHarvested(Event):
    """Userspace has taken an entry out of a dirty ring; it is not reset yet."""

    as_id: int
    gfn: int
    ticket: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DirtyRingForged(Event):
    """Userspace has written over an entry: it has itself to blame for what becomes of this gfn."""

    as_id: int
    gfn: int


@dataclass(frozen=True, slots=True)
class DirtyRingReset(Event):
    """``KVM_RESET_DIRTY_RINGS`` returns: these entries are armed again."""

    tickets: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class DirtyLogTaken(Event):
    """``KVM_GET_DIRTY_LOG`` has taken these gfns out of the bitmap; it has not returned yet."""

    as_id: int
    gfns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DirtyLogReturned(Event):
    """``KVM_GET_DIRTY_LOG`` returns what was taken."""

    as_id: int


@dataclass(frozen=True, slots=True)
class EmulatedWrite(Event):
    """KVM wrote guest memory on behalf of the guest."""

    vcpu: int
    as_id: int
    gfn: int


@dataclass(frozen=True, slots=True)
class GfnTracked(Event):
    """A gfn is write-tracked from here on: it holds a page table that KVM shadows.

    ``page`` is the shadow page, if it is one that wants the gfn written by nobody unseen.
    """

    as_id: int
    gfn: int
    page: str = ""


@dataclass(frozen=True, slots=True)
class GfnUntracked(Event):
    """The opposite: the shadow page is gone, or became unsync, so that the guest may write."""

    as_id: int
    gfn: int
    page: str


@dataclass(frozen=True, slots=True)
class GuestPteWritten(Event):
    """An entry of a guest page table, the one in ``gfn``, took another value."""

    gfn: int
    index: int
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class GuestFlushed(Event):
    """The guest flushes its TLB on a vCPU: one ``address`` (in pages), or everything (-1)."""

    vcpu: int
    address: int


@dataclass(frozen=True, slots=True)
class PfnMarkedDirty(Event):
    """``kvm_set_pfn_dirty``: KVM tells the host that the guest has written a frame."""

    pfn: int
    pages: int


@dataclass(frozen=True, slots=True)
class AttributesChanged(Event):
    """``KVM_SET_MEMORY_ATTRIBUTES`` returned: these gfns are private, all others shared."""

    private: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MmioEmulated(Event):
    """A guest access was handed to userspace as MMIO."""

    vcpu: int
    as_id: int
    gfn: int


@dataclass(frozen=True, slots=True)
class MemslotCreated(Event):
    """``KVM_SET_USER_MEMORY_REGION`` returned for a new slot."""

    as_id: int
    gfn: int
    pages: int
