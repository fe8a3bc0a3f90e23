"""CPUs in guest mode: the walker, the TLBs, and VM entry and exit.

The TLB is an adversary.  ``held`` is the set of translations that a vCPU's CPU *may* hold: all that
it could have walked at any moment since its last flush, from the roots it has loaded and from the
paging-structure caches.  Held entries are tagged by root; they can be *used* while that root is
loaded, in guest mode or after the next entry, unless a flush is due before that entry.

Every vCPU keeps its physical CPU (no migration).  A held leaf is ``(root, gfn, level, spte)``; a
held non-leaf, as the paging-structure caches keep it, is the same with a non-leaf SPTE.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from tdpmmu.arch.geometry import Geometry
from tdpmmu.arch.spte import Access, SpteFormat
from tdpmmu.arch.table import Header, TablePage
from tdpmmu.events.records import (
    FlushCompleted,
    FlushLost,
    FlushRequested,
    GuestAccess,
    GuestEntered,
    GuestLeft,
    PageMarkedDirty,
    SpteChanged,
    TlbFilled,
    VcpuFlushed,
)
from tdpmmu.machine.op import BOTH, LEFT, NEITHER, RIGHT, Op, Step
from tdpmmu.machine.state import Cell, Guard, Layout

OUTSIDE, IN_GUEST, EXITING, READING_SPTES = "outside", "in guest", "exiting", "reading SPTEs"
"""``vcpu->mode``."""

Entry = tuple[int, int, int, int]
"""A held translation: root page number, first gfn, level, SPTE."""


class VcpuCells:
    """What other CPUs can see of a vCPU, and what its own CPU may hold.

    A *parked* vCPU will never enter the guest again but keeps its TLB and its roots.  ``pool`` is
    where it allocates page tables from, ``guest_mode`` says that it runs L2.
    """

    __slots__ = (
        "checked",
        "faulting",
        "guest_mode",
        "held",
        "in_guest",
        "ipi",
        "loaded",
        "mode",
        "number",
        "owes",
        "parked",
        "pml",
        "pml_on",
        "pool",
        "reload",
        "request",
        "thread",
    )

    def __init__(self, layout: Layout, number: int, *, parked: bool) -> None:
        self.number = number
        self.thread: int | None = None
        self.pool = 0
        self.guest_mode = False
        chunk = layout.chunk(f"vCPU{number}")
        name = f"vCPU{number}"
        self.parked = layout.cell(f"{name}.parked", parked, chunk=chunk)
        self.mode = layout.cell(f"{name}.mode", OUTSIDE, chunk=chunk)
        self.request = layout.cell(f"{name}.KVM_REQ_TLB_FLUSH", False, chunk=chunk)
        self.reload = layout.cell(f"{name}.KVM_REQ_MMU_FREE_OBSOLETE_ROOTS", False, chunk=chunk)
        self.ipi = layout.cell(f"{name}.ipi", False, chunk=chunk)
        self.faulting = layout.cell(f"{name}.faulting", False, chunk=chunk)
        self.checked = layout.cell(f"{name}.checked", False, chunk=chunk)
        self.owes = layout.cell(f"{name}.owes_flush", False, chunk=chunk)
        self.pml_on = layout.cell(f"{name}.pml_enabled", False, chunk=chunk)
        self.pml = layout.cell(f"{name}.pml", frozenset(), chunk=chunk)
        self.in_guest = layout.cell(f"{name}.in_guest", False, chunk=chunk)
        self.loaded = layout.cell(f"{name}.roots", (), chunk=layout.chunk(f"{name}.cr3"))
        self.held = layout.cell(f"{name}.may_hold", frozenset(), chunk=layout.chunk(f"{name}.tlb"))

    def position_key(self) -> Hashable:
        return self.number


class Hardware:
    """All CPUs that run vCPUs, and the page tables they walk."""

    def __init__(self, geometry: Geometry, spte_format: SpteFormat) -> None:
        self.geometry = geometry
        self.format = spte_format
        self.vcpus: list[VcpuCells] = []
        self.page_by_pfn: dict[int, TablePage] = {}
        self.page_by_number: dict[int, TablePage] = {}
        self.entry_index: dict[Hashable, int] = {}
        self.protects: Callable[[Step], bool] = lambda step: False
        self.entry_protocol = Guard("a vCPU looks for requests after it has set its mode")
        self.exclusive: Callable[[Step], bool] = lambda step: False

    def position_key(self) -> str:
        return "hardware"

    def add_vcpu(self, layout: Layout, *, parked: bool = False) -> VcpuCells:
        """A new vCPU."""
        vcpu = VcpuCells(layout, len(self.vcpus), parked=parked)
        self.vcpus.append(vcpu)
        return vcpu

    # --- what hardware may hold ---------------------------------------------------------------

    def entries(self, step: Step, page: TablePage) -> Iterator[tuple[int, int, int]]:
        """``(gfn, level, spte)`` of every present entry of a table."""
        header: Header | None = step[page.header]
        if header is None:
            return
        size = self.geometry.pages(header.level)
        gfn = header.gfn
        for cell in page.entries:
            spte = step[cell]
            if self.format.is_shadow_present(spte):
                yield gfn, header.level, spte
            gfn += size

    def _walkable(
        self, step: Step, root: int, page: TablePage, into: set[Entry], seen: set[int]
    ) -> None:
        if page.number in seen:
            return
        seen.add(page.number)
        for gfn, level, spte in self.entries(step, page):
            into.add((root, gfn, level, spte))
            if not self.format.is_last(spte, level):
                child = self.page_by_pfn.get(self.format.pfn(spte))
                if child is not None:
                    self._walkable(step, root, child, into, seen)

    def reachable(self, step: Step, root: int) -> set[Entry]:
        """Every translation that a walk from ``root`` finds now."""
        found: set[Entry] = set()
        self._walkable(step, root, self.page_by_number[root], found, set())
        return found

    def fill(self, step: Step, vcpu: VcpuCells) -> None:
        """Let the vCPU's CPU hold whatever it can walk to, from its root and from what it holds."""
        loaded = step[vcpu.loaded]
        if not loaded:
            return
        root = loaded[0]
        held = step[vcpu.held]
        found: set[Entry] = set()
        seen: set[int] = set()
        self._walkable(step, root, self.page_by_number[root], found, seen)
        for tag, _, level, spte in held:
            if tag == root and not self.format.is_last(spte, level):
                child = self.page_by_pfn.get(self.format.pfn(spte))
                if child is not None:
                    self._walkable(step, root, child, found, seen)
        if not found <= held:
            step[vcpu.held] = held | found
            step.emit(TlbFilled(vcpu.number))

    def entry_written(
        self, step: Step, page: TablePage, header: Header, gfn: int, spte: int
    ) -> None:
        """Called for every change of an entry: vCPUs in guest mode may walk it at once."""
        if not self.format.is_shadow_present(spte):
            return
        for vcpu in self.vcpus:
            if header.root in step[vcpu.loaded] and step[vcpu.in_guest]:
                self.fill(step, vcpu)

    def may_walk(self, step: Step, page: TablePage) -> bool:
        """Whether some vCPU that may still enter the guest has loaded the root above ``page``."""
        header: Header | None = step[page.header]
        return header is not None and any(
            header.root in step[vcpu.loaded] and not step[vcpu.parked] for vcpu in self.vcpus
        )

    def usable(self, step: Step, vcpu: VcpuCells) -> Iterator[Entry]:
        """The held translations that the vCPU can still use without flushing first."""
        loaded = step[vcpu.loaded]
        if not loaded or (step[vcpu.request] and not step[vcpu.in_guest]):
            return
        for entry in sorted(step[vcpu.held]):
            if entry[0] in loaded:
                yield entry

    def walk(self, step: Step, root: int, gfn: int) -> tuple[Cell, int, int] | None:
        """The present leaf that a walk finds for ``gfn``: its address, level and SPTE."""
        page = self.page_by_number[root]
        while True:
            header: Header | None = step[page.header]
            if header is None:
                return None
            cell = page.entries[self.geometry.index(gfn, header.level)]
            spte = step[cell]
            if not self.format.is_shadow_present(spte):
                return None
            if self.format.is_last(spte, header.level):
                return cell, header.level, spte
            child = self.page_by_pfn.get(self.format.pfn(spte))
            if child is None:
                return None
            page = child


def covers(geometry: Geometry, entry: Entry, gfn: int) -> bool:
    """Whether a held entry translates ``gfn``."""
    return entry[1] <= gfn < entry[1] + geometry.pages(entry[2])


def forget(step: Step, hardware: Hardware, vcpu: VcpuCells) -> None:
    """Drop what a vCPU outside the guest holds when a flush is due before its next entry.

    Giving an invalid root up is a flush, too.  It cannot use any of it: should it enter without
    that flush, ``FlushLost`` says so.
    """
    due = step[vcpu.request] or (
        step[vcpu.reload]
        and any(step[hardware.page_by_number[n].invalid] for n in step[vcpu.loaded])
    )
    if due and step[vcpu.mode] == OUTSIDE and not step[vcpu.in_guest]:
        step[vcpu.owes] = True
        if step[vcpu.held]:
            step[vcpu.held] = frozenset()


HIT, FAULT, FAULT_PRESENT, KICKED = "hit", "fault", "fault on a present page", "kicked"


@dataclass(frozen=True, slots=True)
class VmEnter(Op):
    """VM entry: from here on hardware walks and fills."""

    hardware: Hardware
    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        if step[self.vcpu.owes]:
            step[self.vcpu.owes] = False
            step.emit(FlushLost(self.vcpu.number))
        if step[self.vcpu.checked]:
            step[self.vcpu.checked] = False
        else:
            step.broken.append(self.hardware.entry_protocol)
        step[self.vcpu.in_guest] = True
        self.hardware.fill(step, self.vcpu)
        step.emit(GuestEntered(self.vcpu.number))

    def mover(self, step: Step) -> str:
        # The sooner hardware may walk, the more it may hold.
        return LEFT

    def describe(self) -> str:
        return "VM entry"


@dataclass(frozen=True, slots=True)
class VmExit(Op):
    """VM exit; a pending IPI is taken as soon as interrupts are on."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.in_guest] = False
        if step[self.vcpu.ipi]:
            step[self.vcpu.ipi] = False
        step.emit(GuestLeft(self.vcpu.number))

    def mover(self, step: Step) -> str:
        # A fault is an exit.  After a hit the guest may as well have waited before it.
        return LEFT

    def describe(self) -> str:
        return "VM exit"


@dataclass(frozen=True, slots=True)
class AccessMemory(Op):
    """The guest touches ``gfn``.

    ``hit``: some translation that the CPU may hold (every live one among them) allows it.
    ``fault``: a fresh walk does not.  Where both can happen the world chooses.  ``kicked``: an
    IPI came first.

    A write through a leaf without the dirty bit sets it in the page table, in one step, and has
    the gfn put into the page-modification log if that is on.  A held translation that has the bit
    writes without a trace; one that lacks it is of no use for a write once the page table differs.
    """

    hardware: Hardware
    vcpu: VcpuCells
    gfn: int
    kind: Access

    def _outcomes(self, step: Step) -> list[tuple[str, bool]]:
        vcpu, hardware = self.vcpu, self.hardware
        if step[vcpu.ipi]:
            return [(KICKED, False)]
        spte_format = hardware.format
        root = step[vcpu.loaded][0]
        live = hardware.walk(step, root, self.gfn)
        allowed = live is not None and spte_format.allows(live[2], self.kind)
        outcomes: list[tuple[str, bool]] = []
        if allowed:
            outcomes.append((HIT, False))
        else:
            for entry in step[vcpu.held]:
                if (
                    entry[0] == root
                    and covers(hardware.geometry, entry, self.gfn)
                    and spte_format.is_last(entry[3], entry[2])
                    and spte_format.allows(entry[3], self.kind)
                    and (self.kind is not Access.WRITE or spte_format.is_dirty(entry[3]))
                ):
                    outcomes.append((HIT, True))
                    break
            outcomes.append((FAULT if live is None else FAULT_PRESENT, False))
        return outcomes

    def _set_dirty(self, step: Step) -> None:
        """What a write through a live leaf without the dirty bit does to memory."""
        vcpu, hardware = self.vcpu, self.hardware
        live = hardware.walk(step, step[vcpu.loaded][0], self.gfn)
        assert live is not None
        sptep, level, spte = live
        spte_format = hardware.format
        if spte_format.is_dirty(spte):
            return
        page: TablePage = sptep.page
        header: Header | None = step[page.header]
        assert header is not None
        new = spte | spte_format.dirty | spte_format.accessed
        step[sptep] = new
        gfn = hardware.geometry.round(self.gfn, level)
        index = hardware.entry_index[sptep.key]
        step.emit(SpteChanged(page.name, index, header.root, header.as_id, gfn, level, spte, new))
        if step[vcpu.pml_on]:
            step[vcpu.pml] = step[vcpu.pml] | {self.gfn}
            step.emit(PageMarkedDirty(header.as_id, self.gfn))
        hardware.entry_written(step, page, header, gfn, new)

    def alternatives(self, step: Step) -> int:
        return len(self._outcomes(step))

    def apply(self, step: Step, alternative: int) -> str:
        outcome, stale = self._outcomes(step)[alternative]
        if outcome in (FAULT, FAULT_PRESENT):
            step[self.vcpu.faulting] = True
        elif outcome == HIT and self.kind is Access.WRITE and not stale:
            self._set_dirty(step)
        if outcome != KICKED:
            step.emit(
                GuestAccess(
                    self.vcpu.number, self.gfn, self.kind.name.lower(), outcome != HIT, stale
                )
            )
        return outcome

    def mover(self, step: Step) -> str:
        return NEITHER

    def describe(self) -> str:
        return f"guest {self.kind.name.lower()} of gfn {self.gfn:#x}"


@dataclass(frozen=True, slots=True)
class FlushOwnTlb(Op):
    """``kvm_vcpu_flush_tlb_all`` / ``_current``: this CPU forgets what it holds."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.owes] = False
        if step[self.vcpu.held]:
            step[self.vcpu.held] = frozenset()
        step.emit(VcpuFlushed(self.vcpu.number))

    def mover(self, step: Step) -> str:
        # Outside guest mode nothing refills it.  If a flush is due it is of no use to anybody.
        return BOTH if step[self.vcpu.owes] or not step[self.vcpu.held] else RIGHT

    def describe(self) -> str:
        return "flush own TLB"


@dataclass(frozen=True, slots=True)
class Park(Op):
    """This vCPU has done its part."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.parked] = True
        if step[self.vcpu.request]:
            step[self.vcpu.request] = False
            step[self.vcpu.owes] = False
            step[self.vcpu.held] = frozenset()

    def mover(self, step: Step) -> str:
        return LEFT

    def describe(self) -> str:
        return "done with its accesses"


@dataclass(frozen=True, slots=True)
class LoadRoot(Op):
    """Point the CPU at a root (``kvm_mmu_load_pgd``)."""

    vcpu: VcpuCells
    roots: tuple[int, ...]

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.loaded] = self.roots

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return f"load root {self.roots}"


@dataclass(frozen=True, slots=True)
class RequestFlush(Op):
    """``kvm_make_request(KVM_REQ_TLB_FLUSH, vcpu)``."""

    hardware: Hardware
    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        if step[self.vcpu.parked]:
            # It would have to flush before its next entry, and there is none.
            if step[self.vcpu.held]:
                step[self.vcpu.held] = frozenset()
        else:
            step[self.vcpu.request] = True
            forget(step, self.hardware, self.vcpu)
        step.emit(FlushRequested(self.vcpu.number))

    def mover(self, step: Step) -> str:
        # Setting it later only keeps the entries usable longer.  See also NeedsIpi.
        return BOTH if self.hardware.exclusive(step) else RIGHT

    def describe(self) -> str:
        return f"KVM_REQ_TLB_FLUSH for vCPU{self.vcpu.number}"


@dataclass(frozen=True, slots=True)
class TestAndClearRequest(Op):
    """``kvm_check_request(KVM_REQ_TLB_FLUSH, vcpu)``."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> bool:
        if not step[self.vcpu.request]:
            return False
        step[self.vcpu.request] = False
        return True

    def mover(self, step: Step) -> str:
        # Only this vCPU clears it: what is not set was not set before.  What is set may be taken
        # at once, since its TLB is of no use until it has flushed.
        return LEFT

    def describe(self) -> str:
        return "kvm_check_request(KVM_REQ_TLB_FLUSH)"


@dataclass(frozen=True, slots=True)
class ExitRequested(Op):
    """``kvm_vcpu_exit_request``: was a request made since the last check?

    A mode of ``exiting`` says the same: it is set only after a request.
    """

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> bool:
        vcpu = self.vcpu
        requested = bool(step[vcpu.request] or step[vcpu.reload] or step[vcpu.mode] == EXITING)
        step[self.vcpu.checked] = not requested
        return requested

    def mover(self, step: Step) -> str:
        # Only this vCPU clears a request: none now is none before, one now stays.
        return LEFT

    def describe(self) -> str:
        return "kvm_vcpu_exit_request()"


@dataclass(frozen=True, slots=True)
class RequestReload(Op):
    """``kvm_make_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, vcpu)`` (``..._RELOAD`` to 5.17)."""

    hardware: Hardware
    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.reload] = True
        forget(step, self.hardware, self.vcpu)

    def describe(self) -> str:
        return f"KVM_REQ_MMU_FREE_OBSOLETE_ROOTS for vCPU{self.vcpu.number}"


@dataclass(frozen=True, slots=True)
class TestAndClearReload(Op):
    """``kvm_check_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, vcpu)``."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> bool:
        if not step[self.vcpu.reload]:
            return False
        step[self.vcpu.reload] = False
        return True

    def mover(self, step: Step) -> str:
        # Only this vCPU clears it: what is not set was not set before.
        return NEITHER if step[self.vcpu.reload] else LEFT

    def describe(self) -> str:
        return "kvm_check_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)"


@dataclass(frozen=True, slots=True)
class CurrentRoot(Op):
    """``vcpu->arch.mmu->root.hpa``, by page number; -1 without a root."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> int:
        loaded = step[self.vcpu.loaded]
        return loaded[0] if loaded else -1

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return "vcpu->arch.mmu->root"


@dataclass(frozen=True, slots=True)
class SetMode(Op):
    """``vcpu->mode = ...``."""

    hardware: Hardware
    vcpu: VcpuCells
    mode: str

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.mode] = self.mode
        step[self.vcpu.checked] = False
        if self.mode == OUTSIDE:
            if step[self.vcpu.ipi]:
                step[self.vcpu.ipi] = False
            forget(step, self.hardware, self.vcpu)

    def mover(self, step: Step) -> str:
        # The sooner it enters, the more it may hold; a flush that would have found it outside then
        # kicks it.  That is so only if it looks for requests before it enters (see VmEnter).
        if self.mode == IN_GUEST and not self.hardware.entry_protocol.trusted:
            return RIGHT
        return LEFT

    def urgent(self, step: Step) -> bool:
        # A request is pending: all it can do is look at it and turn back.
        return self.mode == IN_GUEST and step[self.vcpu.owes] and step[self.vcpu.request]

    def describe(self) -> str:
        return f"vcpu->mode = {self.mode}"


@dataclass(frozen=True, slots=True)
class NeedsIpi(Op):
    """``kvm_request_needs_ipi`` for a request that is waited for: was the vCPU not outside?

    Asking one vCPU after the other is one moment if the asker shuts vCPUs out of the MMU: what a
    vCPU then does touches nothing but itself, so it can as well do it before or after all were
    asked.
    """

    hardware: Hardware
    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> bool:
        mode = step[self.vcpu.mode]
        if mode == IN_GUEST:
            step[self.vcpu.mode] = EXITING
        return bool(mode != OUTSIDE)

    def mover(self, step: Step) -> str:
        if step[self.vcpu.parked]:
            return BOTH
        hardware = self.hardware
        if not hardware.exclusive(step):
            return NEITHER
        first = next(vcpu for vcpu in hardware.vcpus if not step[vcpu.parked])
        return NEITHER if first is self.vcpu else LEFT

    def describe(self) -> str:
        return f"kvm_request_needs_ipi(vCPU{self.vcpu.number})"


@dataclass(frozen=True, slots=True)
class SendIpi(Op):
    """Half of ``smp_call_function_many``: the IPI is on its way, unless it is handled at once."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        if step[self.vcpu.mode] != OUTSIDE:
            step[self.vcpu.ipi] = True

    def mover(self, step: Step) -> str:
        # Sent earlier, it finds the vCPU where it was seen.
        return LEFT

    def describe(self) -> str:
        return f"IPI to vCPU{self.vcpu.number}"


@dataclass(frozen=True, slots=True)
class WaitIpi(Op):
    """The other half: wait until that CPU has taken it, so has left guest mode."""

    hardware: Hardware
    vcpu: VcpuCells

    def alternatives(self, step: Step) -> int:
        return 0 if step[self.vcpu.ipi] else 1

    def waits_for_kick(self, step: Step) -> int | None:
        # With vCPUs shut out of the MMU, all that the kicked one can do is leave the guest.
        if self.hardware.exclusive(step) and step[self.vcpu.in_guest] and step[self.vcpu.ipi]:
            return self.vcpu.thread
        return None

    def apply(self, step: Step, alternative: int) -> None:
        return None

    def mover(self, step: Step) -> str:
        return LEFT if self.hardware.exclusive(step) else RIGHT

    def urgent(self, step: Step) -> bool:
        return self.hardware.exclusive(step)

    def describe(self) -> str:
        return f"wait for vCPU{self.vcpu.number} to leave the guest"


@dataclass(frozen=True, slots=True)
class FlushDone(Op):
    """``kvm_flush_remote_tlbs`` returns."""

    start: int = 0
    end: int = -1

    def apply(self, step: Step, alternative: int) -> None:
        step.emit(FlushCompleted(self.start, self.end))

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return "flush completed"


@dataclass(frozen=True, slots=True)
class HypercallFlush(Op):
    """``HvFlushGuestPhysicalAddressList`` / ``...Space``: the hypervisor flushes all CPUs for us.

    It drops what translates any gfn of ``[start, end)``, non-leaves that lead there included;
    ``end`` -1 means everything.
    """

    hardware: Hardware
    start: int
    end: int

    def apply(self, step: Step, alternative: int) -> None:
        geometry = self.hardware.geometry
        for vcpu in self.hardware.vcpus:
            held = step[vcpu.held]
            if self.end < 0:
                left: frozenset[Entry] = frozenset()
            else:
                left = frozenset(
                    entry
                    for entry in held
                    if entry[1] >= self.end or entry[1] + geometry.pages(entry[2]) <= self.start
                )
            if left != held:
                step[vcpu.held] = left
            if step[vcpu.in_guest]:
                self.hardware.fill(step, vcpu)
            step.emit(VcpuFlushed(vcpu.number))
        step.emit(FlushCompleted(self.start, self.end))

    def describe(self) -> str:
        return (
            "hypercall: flush everything"
            if self.end < 0
            else f"hypercall: flush gfns [{self.start:#x}, {self.end:#x})"
        )
