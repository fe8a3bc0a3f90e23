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
from tdpmmu.arch.guest import GuestPaging, GuestTables
from tdpmmu.arch.spte import Access, SpteFormat
from tdpmmu.arch.table import Header, TablePage
from tdpmmu.events.records import (
    FlushLost,
    GuestAccess,
    GuestEntered,
    GuestLeft,
    PageMarkedDirty,
    SpteChanged,
    TlbFilled,
)
from tdpmmu.machine.op import BOTH, LEFT, NEITHER, Op, Step
from tdpmmu.machine.state import Cell, Guard, Layout

OUTSIDE, IN_GUEST, EXITING, READING_SPTES = "outside", "in guest", "exiting", "reading SPTEs"
"""``vcpu->mode``."""

Entry = tuple[int, int, int, int]
"""A held translation: root page number, first gfn, level, SPTE."""


class VcpuCells:
    """What other CPUs can see of a vCPU, and what its own CPU may hold.

    A *parked* vCPU will never enter the guest again but keeps its TLB and its roots.  ``pool`` is
    where it allocates page tables from, ``guest_mode`` says that it runs L2.  ``paging`` is set if
    its accesses go through page tables of the guest, which KVM shadows.
    """

    __slots__ = (
        "apic_access_addr",
        "apic_reload",
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
        "paging",
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
        self.paging: GuestPaging | None = None
        chunk = layout.chunk(f"vCPU{number}")
        name = f"vCPU{number}"
        self.parked = layout.cell(f"{name}.parked", parked, chunk=chunk)
        self.mode = layout.cell(f"{name}.mode", OUTSIDE, chunk=chunk)
        self.request = layout.cell(f"{name}.KVM_REQ_TLB_FLUSH", False, chunk=chunk)
        self.reload = layout.cell(f"{name}.KVM_REQ_MMU_FREE_OBSOLETE_ROOTS", False, chunk=chunk)
        self.apic_reload = layout.cell(f"{name}.KVM_REQ_APIC_PAGE_RELOAD", False, chunk=chunk)
        self.apic_access_addr = layout.cell(f"{name}.APIC_ACCESS_ADDR", -1, chunk=chunk)
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
        self.guest: GuestTables | None = None
        self.has_apic_page = False
        self.frame_gfn: Callable[[int], int] = lambda pfn: pfn
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

    def entries(self, step: Step, page: TablePage, address: int) -> Iterator[tuple[int, int, int]]:
        """``(address, level, spte)`` of every present entry of a table that is at ``address``.

        That is what the way to it says: one shadow page may be at several.
        """
        header: Header | None = step[page.header]
        if header is None:
            return
        size = self.geometry.pages(header.level)
        for cell in page.entries:
            spte = step[cell]
            if self.format.is_walkable(spte):
                yield address, header.level, spte
            address += size

    def _walkable(
        self,
        step: Step,
        root: int,
        page: TablePage,
        address: int,
        into: set[Entry],
        seen: set[tuple[int, int]],
    ) -> None:
        if (page.number, address) in seen:
            return
        seen.add((page.number, address))
        for at, level, spte in self.entries(step, page, address):
            into.add((root, at, level, spte))
            if not self.format.is_last(spte, level):
                child = self.page_by_pfn.get(self.format.pfn(spte))
                if child is not None:
                    self._walkable(step, root, child, at, into, seen)

    def reachable(self, step: Step, root: int) -> set[Entry]:
        """Every translation that a walk from ``root`` finds now."""
        found: set[Entry] = set()
        self._walkable(step, root, self.page_by_number[root], 0, found, set())
        return found

    def fill(self, step: Step, vcpu: VcpuCells) -> None:
        """Let the vCPU's CPU hold whatever it can walk to, from its root and from what it holds."""
        loaded = step[vcpu.loaded]
        if not loaded:
            return
        root = loaded[0]
        held = step[vcpu.held]
        found: set[Entry] = set()
        seen: set[tuple[int, int]] = set()
        self._walkable(step, root, self.page_by_number[root], 0, found, seen)
        for tag, address, level, spte in held:
            if tag == root and not self.format.is_last(spte, level):
                child = self.page_by_pfn.get(self.format.pfn(spte))
                if child is not None:
                    self._walkable(step, root, child, address, found, seen)
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
            if step[vcpu.in_guest] and self.may_be_below(step, vcpu, header.root):
                self.fill(step, vcpu)

    def may_be_below(self, step: Step, vcpu: VcpuCells, root: int) -> bool:
        """Whether a table with this root may hang below one that the vCPU has loaded.

        Of a shadow page only its parents know: it may if the vCPU runs on shadow pages.
        """
        loaded = step[vcpu.loaded]
        return root in loaded or (root < 0 and vcpu.paging is not None and bool(loaded))

    def may_walk(self, step: Step, page: TablePage) -> bool:
        """Whether some vCPU that may still enter the guest has loaded the root above ``page``."""
        header: Header | None = step[page.header]
        return header is not None and any(
            not step[vcpu.parked] and self.may_be_below(step, vcpu, header.root)
            for vcpu in self.vcpus
        )

    def usable(self, step: Step, vcpu: VcpuCells) -> Iterator[Entry]:
        """The held translations that the vCPU can still use without flushing first."""
        loaded = step[vcpu.loaded]
        if not loaded or (not step[vcpu.in_guest] and self.flush_due(step, vcpu)):
            return
        for entry in sorted(step[vcpu.held]):
            if entry[0] in loaded:
                yield entry

    def flush_due(self, step: Step, vcpu: VcpuCells) -> bool:
        """Whether the vCPU has to flush before its next entry.

        Giving an invalid root up is a flush, too.
        """
        if step[vcpu.request]:
            return True
        roots = step[vcpu.loaded] if step[vcpu.reload] else ()
        return any(step[self.page_by_number[number].invalid] for number in roots)

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

    It cannot use any of it: should it enter without that flush, ``FlushLost`` says so.
    """
    outside = step[vcpu.mode] == OUTSIDE and not step[vcpu.in_guest]
    if outside and hardware.flush_due(step, vcpu):
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

    ``gfn`` is the guest's address in pages; with guest paging it translates to another gfn, which
    is the one that the event names.  ``store`` (index, value) is what a write puts there.
    """

    hardware: Hardware
    vcpu: VcpuCells
    gfn: int
    kind: Access
    store: tuple[int, int] | None = None

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
            if self._stale_entry(step, root) is not None:
                outcomes.append((HIT, True))
            present = live is not None and spte_format.is_walkable(live[2])
            outcomes.append((FAULT_PRESENT if present else FAULT, False))
        return outcomes

    def _stale_entry(self, step: Step, root: int) -> Entry | None:
        """A held translation that allows the access although a fresh walk does not."""
        hardware = self.hardware
        spte_format = hardware.format
        for entry in sorted(step[self.vcpu.held]):
            if (
                entry[0] == root
                and covers(hardware.geometry, entry, self.gfn)
                and spte_format.is_last(entry[3], entry[2])
                and spte_format.allows(entry[3], self.kind)
                and (self.kind is not Access.WRITE or spte_format.is_dirty(entry[3]))
            ):
                return entry  # type: ignore[no-any-return]
        return None

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
        gfn = self._accessed_gfn(step, stale) if outcome == HIT else self.gfn
        if outcome != KICKED:
            step.emit(
                GuestAccess(self.vcpu.number, gfn, self.kind.name.lower(), outcome != HIT, stale)
            )
        if outcome == HIT and self.store is not None and self.hardware.guest is not None:
            self.hardware.guest.write(step, gfn, *self.store)
        return outcome

    def _accessed_gfn(self, step: Step, stale: bool) -> int:
        """The gfn that a hit reaches."""
        if self.vcpu.paging is None:
            return self.gfn
        hardware = self.hardware
        root = step[self.vcpu.loaded][0]
        if stale:
            entry = self._stale_entry(step, root)
            assert entry is not None
            _, address, _, spte = entry
        else:
            live = hardware.walk(step, root, self.gfn)
            assert live is not None
            _, level, spte = live
            address = hardware.geometry.round(self.gfn, level)
        return hardware.frame_gfn(hardware.format.pfn(spte)) + self.gfn - address

    def mover(self, step: Step) -> str:
        # Kicked, it does nothing, and will do nothing until it has left.
        return BOTH if step[self.vcpu.ipi] else NEITHER

    def describe(self) -> str:
        return f"guest {self.kind.name.lower()} of gfn {self.gfn:#x}"
