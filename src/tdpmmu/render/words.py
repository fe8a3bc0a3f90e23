"""Operations in the words of a kernel developer, and which of them are worth a line.

What is left out: reads without effect, lists and counters that only keep accounts, lock assertions,
and everything else that changed nothing another CPU could notice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tdpmmu.arch import hardware as hw
from tdpmmu.arch import requests as req
from tdpmmu.arch.hardware import Hardware
from tdpmmu.arch.table import Allocate, CmpXchgSpte, ReadHeader, Spte
from tdpmmu.events import records as ev
from tdpmmu.events.records import Event
from tdpmmu.kernel import locks, mm, rcu
from tdpmmu.machine import op as ops
from tdpmmu.machine.op import Step
from tdpmmu.machine.state import Layout, changed
from tdpmmu.render import spte
from tdpmmu.render.record import RecordLike

PLAIN, SPTE, LOCK, FLUSH, GUEST, MEMORY, ALARM = (
    "plain",
    "spte",
    "lock",
    "flush",
    "guest",
    "memory",
    "alarm",
)
"""What a phrase is about."""

_ACCOUNTS = (
    "ghost ",
    "nx_lpage_splits",
    "lpage_disallowed_mmu_pages",
    "possible_nx_huge_pages",
    "active_mmu_pages",
    "tdp_mmu_pages",
    "mmu_page_hash[",
    "n_used_mmu_pages",
    "gfn_write_track[",
    "rmap[",
    "mmu_notifier_range",
    "threads alive",
)
"""Cells that only keep accounts, by the start of their name."""

_ACCOUNT_FIELDS = (
    ".root_count",
    ".nx_huge_page_disallowed",
    ".state",
    ".header",
    ".parent_ptes",
    ".shadowed_translation",
    ".unsync_child_bitmap",
)
"""The same, by the end of their name."""

_SILENT = (
    ops.Read,
    ops.WaitUntil,
    ReadHeader,
    Allocate,
    locks.AssertHeld,
    req.Park,
    req.LoadRoot,
)
"""Operations that are never worth a line if they caused no event."""


_BASICS = tuple(f"tdpmmu.{room}." for room in ("arch", "kernel", "machine", "scenarios"))
"""Where the operations come from that every kernel needs."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """A few words on one operation.

    Phrases in a row that start the same, as ``stem`` says, make one line.
    """

    text: str
    about: str = PLAIN
    stem: str = ""


class Words:
    """Puts the operations of one run into words.

    ``every`` leaves nothing out.  What the sentence of the violation names is never left out.
    """

    def __init__(
        self,
        hardware: Hardware,
        layout: Layout,
        *,
        prop: str = "",
        sentence: str = "",
        every: bool = False,
    ) -> None:
        self._hardware = hardware
        self._layout = layout
        self._sentence = sentence
        self._every = every
        self._modes = every or prop == "flush-request-lost"
        self._counts = prop in ("refcount", "leak", "use-after-free")
        self._srcu = every
        self._unguarded: set[tuple[int, str]] = set()

    def prepare(self, records: Iterable[RecordLike]) -> None:
        """Look through the run for what makes small things matter: somebody waits for SRCU."""
        waits = (rcu.Call, rcu.Snapshot, rcu.Barrier)
        if any(isinstance(one.op, waits) and one.op.rcu.mode == "srcu" for one in records):
            self._srcu = True

    def phrases(self, record: RecordLike) -> list[Phrase]:
        """What one operation is worth saying, in the order in which it happened."""
        # Hardware fills its TLB as part of the entry, but that reads better the other way round.
        events = sorted(record.events, key=lambda event: isinstance(event, ev.TlbFilled))
        told = [self.event(event, record) for event in events]
        found = [phrase for phrase in told if phrase is not None]
        phrase = None if record.events else self._operation(record)
        if not found and phrase is None and self._every:
            phrase = Phrase(_with_result(record))
        if phrase is not None:
            found.append(phrase)
        if record.failure is not None:
            found.append(Phrase(record.failure, ALARM))
        return found

    def event(self, event: Event, record: RecordLike) -> Phrase | None:
        """What one event of an operation is worth saying, if anything."""
        match event:
            case ev.SpteChanged():
                return Phrase(spte.change(self._hardware, event), SPTE)
            case ev.PageZapped(page, gfn, level, legacy):
                kind = "legacy table" if legacy else "table"
                what = f"zap {kind} {page} (gfn {gfn:#x}, {spte.size(level)} entries)"
                return Phrase(what, MEMORY)
            case ev.PageFreed(page):
                return Phrase(f"{page} is freed", MEMORY)
            case ev.FreedPageTouched(page, what):
                return Phrase(f"touches {what} after {page} was freed", ALARM)
            case ev.UnguardedAccess(cell, guard, write):
                return self._without_guard(cell, guard, write, record.thread)
            case ev.LockTaken(lock, mode):
                return self._lock(lock, mode, "lock")
            case ev.LockReleased(lock, mode):
                return self._lock(lock, mode, "unlock")
            case ev.BadUnlock(lock, mode):
                return Phrase(f"releases {lock} ({mode}) without holding it", ALARM)
            case ev.LockNotHeld(lock, mode):
                return Phrase(f"lockdep: {lock} is not held for {mode}", ALARM)
            case ev.MightSleep(where):
                worth = self._every or where in self._sentence
                return Phrase(f"may sleep: {where}") if worth else None
            case ev.Refcount(page, old, new):
                counts = self._every or (self._counts and self._named(page))
                worth = counts or new <= 0 or old <= 0
                return Phrase(f"{page} root_count {old} -> {new}", MEMORY) if worth else None
            case ev.Warned(what):
                return Phrase(f"WARN: {what}", ALARM)
            case ev.FlushRequested(vcpu):
                parked = self._before(record)[self._hardware.vcpus[vcpu].parked]
                stem = "KVM_REQ_TLB_FLUSH for "
                return Phrase(f"{stem}vCPU{vcpu}{' (parked)' if parked else ''}", FLUSH, stem)
            case ev.FlushCompleted(start, end):
                what = "" if end < 0 else f" of gfns [{start:#x}, {end:#x})"
                return Phrase(f"flush{what} is complete", FLUSH)
            case ev.VcpuFlushed(vcpu):
                return Phrase(f"flush the TLB of vCPU{vcpu}", FLUSH)
            case ev.FlushLost():
                return Phrase("enters without the flush it was asked for", ALARM)
            case ev.GuestEntered():
                return Phrase("VM entry", GUEST)
            case ev.GuestLeft():
                return Phrase("VM exit", GUEST)
            case ev.GuestAccess(_, gfn, kind, fault, stale):
                how = "fault" if fault else "hit, through a STALE entry" if stale else "hit"
                return Phrase(f"guest {kind} of gfn {gfn:#x}: {how}", GUEST)
            case ev.TlbFilled(vcpu):
                return self._filled(vcpu, record)
            case ev.FaultFixed(_, gfn, result):
                return Phrase(f"fault on gfn {gfn:#x}: {result}", GUEST)
            case ev.HostPageReused(gfn, pfn, pages):
                frames = f"{pfn:#x}" if pages == 1 else f"{pfn:#x}-{pfn + pages - 1:#x}"
                what = f"the host gives pfn {frames} (gfn {gfn:#x}) to somebody else"
                return Phrase(what, MEMORY)
            case ev.NxPageRecovered(gfn, zapped):
                owed = "a flush is owed" if zapped else "nothing to flush"
                return Phrase(f"gfn {gfn:#x} recovered: {owed}", SPTE)
            case ev.MemslotGone(as_id, gfn, pages):
                where = f"gfns {gfn:#x}-{gfn + pages - 1:#x} of address space {as_id}"
                return Phrase(f"the slot of {where} is flushed", MEMORY)
            case ev.RangeZapped(gfn, pages):
                return Phrase(f"gfns {gfn:#x}-{gfn + pages - 1:#x} are zapped", MEMORY)
            case ev.DirtyLogChanged(as_id, gfn, pages, on):
                where = f"gfns {gfn:#x}-{gfn + pages - 1:#x} of address space {as_id}"
                return Phrase(f"dirty logging is {'on' if on else 'off'} for {where}", MEMORY)
            case ev.OutOfBounds(array, index, length):
                return Phrase(f"{array}[{index}] of {length} is touched", ALARM)
            case ev.HugePageRecovered(page, gfn, level):
                return Phrase(f"a level {level} page at gfn {gfn:#x} is to replace {page}", SPTE)
            case ev.PageMarkedDirty(_, gfn):
                return Phrase(f"gfn {gfn:#x} is logged as dirty", MEMORY)
            case ev.DirtyRingHarvested(_, gfn, (vcpu, index)):
                return Phrase(f"gfn {gfn:#x} is entry {index} of vCPU{vcpu}'s dirty ring", MEMORY)
            case ev.DirtyRingForged(_, gfn):
                return Phrase(
                    f"userspace writes over the dirty ring's entry of gfn {gfn:#x}", ALARM
                )
            case ev.DirtyRingReset(tickets):
                return Phrase(f"{len(tickets)} entries of dirty rings are reset", MEMORY)
            case ev.DirtyLogTaken(_, gfns):
                which = ", ".join(f"{gfn:#x}" for gfn in gfns) or "none"
                return Phrase(f"gfns taken out of the dirty bitmap: {which}", MEMORY)
            case ev.DirtyLogReturned(_):
                return Phrase("the dirty log is returned to userspace", MEMORY)
            case ev.EmulatedWrite(_, _, gfn):
                return Phrase(f"KVM writes gfn {gfn:#x} for the guest", GUEST)
            case ev.GfnTracked(_, gfn):
                return Phrase(f"gfn {gfn:#x} is write-tracked", MEMORY)
            case ev.GfnUntracked(_, gfn):
                return Phrase(f"gfn {gfn:#x} may be written by the guest", MEMORY)
            case ev.GuestPteWritten(gfn, index, old, new):
                old_text, new_text = spte.guest(old), spte.guest(new)
                return Phrase(f"guest PTE {gfn:#x}[{index}]: {old_text} -> {new_text}", GUEST)
            case ev.GuestFlushed(_, address):
                what = f"INVLPG {address:#x}" if address >= 0 else "a TLB flush"
                return Phrase(f"the guest does {what}", GUEST)
            case ev.FlushDeferred():
                return Phrase("kvm->tlbs_dirty++: the flush is left to others", FLUSH)
            case ev.PfnMarkedDirty(pfn):
                return Phrase(f"kvm_set_pfn_dirty({pfn:#x})") if self._every else None
            case ev.AttributesChanged(private):
                which = ", ".join(f"{gfn:#x}" for gfn in private) or "none"
                return Phrase(f"private gfns are now: {which}", MEMORY)
            case ev.MmioEmulated(_, _, gfn):
                return Phrase(f"gfn {gfn:#x} is emulated as MMIO", GUEST)
            case ev.MemslotCreated(as_id, gfn, pages):
                where = f"gfns {gfn:#x}-{gfn + pages - 1:#x} of address space {as_id}"
                return Phrase(f"a slot for {where} is there", MEMORY)
            case ev.TornDown(leaked):
                left = f" but not {', '.join(leaked)}" if leaked else ""
                return Phrase(f"the VM is gone{left}", ALARM if left else MEMORY)
            case _ if isinstance(event, _ACCOUNT_EVENTS) and not self._every:
                return None
        return Phrase(repr(event))

    def _lock(self, lock: str, mode: str, what: str) -> Phrase | None:
        if mode == "srcu" and not self._srcu:
            return None
        if mode in ("rcu", "srcu"):
            return Phrase(f"{mode}_read_{what}()", LOCK)
        return Phrase(f"{mode}_{what}({lock})", LOCK)

    def _without_guard(self, cell: str, guard: str, write: bool, thread: int) -> Phrase | None:
        """Once for each thread and lock, and where the violation is about it."""
        if (thread, guard) in self._unguarded and not (self._every or self._named(cell)):
            return None
        self._unguarded.add((thread, guard))
        return Phrase(f"{'writes' if write else 'reads'} {cell} without {guard}", ALARM)

    def _filled(self, number: int, record: RecordLike) -> Phrase | None:
        """What a vCPU's CPU may hold since this operation; leaves only."""
        vcpu = self._hardware.vcpus[number]
        after = Step(record.after, record.thread)
        new = after[vcpu.held] - self._before(record)[vcpu.held]
        leaves = sorted(one for one in new if self._hardware.format.is_last(one[3], one[2]))
        if not leaves:
            return None
        some = ", ".join(spte.held(self._hardware, one) for one in leaves[:2])
        more = f" and {len(leaves) - 2} more" if len(leaves) > 2 else ""
        return Phrase(f"vCPU{number}'s TLB may hold {some}{more}", GUEST)

    def _named(self, name: str) -> bool:
        """Whether the violation's sentence names this."""
        return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self._sentence))

    def _before(self, record: RecordLike) -> Step:
        return Step(record.before, record.thread)

    def _operation(self, record: RecordLike) -> Phrase | None:
        """An operation without an event that is worth a line."""
        result = record.result
        match record.op:
            case ops.Choose(what):
                # What is chosen shows in what comes next, but for a yes.
                return Phrase(f"{what}: yes") if result is True else None
            case locks.NeedBreak() as op:
                return Phrase(f"{op.describe()}: yes") if result else None
            case CmpXchgSpte() | ops.CmpXchg() as op if result is False:
                return Phrase(f"{op.describe()} fails: somebody was first", SPTE)
            case req.NeedsIpi(_, vcpu):
                return (
                    Phrase(f"vCPU{vcpu.number} is in the guest: kick it", FLUSH) if result else None
                )
            case req.SendIpi(vcpu):
                return Phrase(f"IPI to vCPU{vcpu.number}", FLUSH)
            case req.WaitIpi(_, vcpu):
                return Phrase(f"vCPU{vcpu.number} has left the guest", FLUSH)
            case req.TestAndClearRequest():
                return Phrase("kvm_check_request(): a flush is due", FLUSH) if result else None
            case req.ExitRequested():
                return Phrase("kvm_vcpu_exit_request(): turn back", GUEST) if result else None
            case req.SetMode() as op:
                return Phrase(op.describe(), GUEST) if self._modes else None
            case hw.AccessMemory() as op:
                return Phrase(f"{op.describe()}: kicked", GUEST)
            case mm.GetUserPage(_, gfn):
                return Phrase(f"host page of gfn {gfn:#x} is pfn {result:#x}", MEMORY)
            case rcu.Call() as op:
                return Phrase(op.describe(), MEMORY)
            case locks.Acquire() as op if result is False:
                return Phrase(f"waits for {op.describe()}", LOCK)
            case op if isinstance(op, _SILENT):
                return None
        return self._changes(record)

    def _changes(self, record: RecordLike) -> Phrase | None:
        """Anything else is worth a line if it changed a cell that does not only keep accounts."""
        cells = [
            (cell.name, old, new)
            for cell, old, new in changed(self._layout, record.before, record.after)
            if not self._only_accounts(cell.name)
        ]
        if not cells:
            # What KVM itself makes an operation of is worth its answer.
            known = type(record.op).__module__.startswith(_BASICS)
            told = None if record.result in (None, ()) or known else _with_result(record)
            return Phrase(told) if told else None
        if len(cells) == 1 and isinstance(record.op, (ops.Write, ops.Add, ops.Xchg, ops.CmpXchg)):
            name, old, new = cells[0]
            return Phrase(f"{name} {old} -> {new}")
        return Phrase(record.op.describe())

    def _only_accounts(self, name: str) -> bool:
        if self._named(name):
            return False
        return name.startswith(_ACCOUNTS) or name.endswith(_ACCOUNT_FIELDS)


_ACCOUNT_EVENTS = (
    ev.PageLinked,
    ev.NxPageAccounted,
    ev.NxPageUnaccounted,
    ev.Yielded,
    ev.ThreadDone,
)
"""Events that say again what others say."""


def _with_result(record: RecordLike) -> str:
    text = record.op.describe()
    if record.result is None or isinstance(record.op, ReadHeader):
        return text
    if isinstance(record.op, Spte) and type(record.result) is int:
        return f"{text}: {record.result:#x}"
    return f"{text}: {record.result}"
