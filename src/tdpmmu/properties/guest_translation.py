"""A guest uses a translation that its own page tables do not give."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.guest import (
    ACC_ALL,
    ACC_EXEC,
    ACC_WRITE,
    GuestTables,
    Held,
    gpte_gfn,
    is_last_gpte,
)
from tdpmmu.arch.hardware import Entry, VcpuCells
from tdpmmu.events.records import Event, GuestEntered, GuestFlushed, GuestPteWritten, TlbFilled
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property
from tdpmmu.properties.view import tell

View = frozenset[Held]


class GuestTranslation(Property):
    """What a vCPU's CPU may hold, the guest may take its own TLB to hold.

    A TLB may keep whatever the guest's tables have said at any moment since the guest flushed it,
    on this vCPU; anything else is a translation that no hardware would have.  The ghost: that set
    for each vCPU whose tables KVM shadows.
    """

    name: ClassVar[str] = "guest-translation"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "a guest uses a translation that its page tables do not give"
    hears: ClassVar[tuple[type[Event], ...]] = (
        GuestPteWritten,
        GuestFlushed,
        GuestEntered,
        TlbFilled,
    )
    initial: ClassVar[object] = ()

    @property
    def _vcpus(self) -> list[VcpuCells]:
        return [vcpu for vcpu in self.hardware.vcpus if vcpu.paging is not None]

    def begin(self, step: Step) -> None:
        assert self.cell is not None
        step[self.cell] = tuple(self._filled(step, vcpu, frozenset()) for vcpu in self._vcpus)

    def observe(self, step: Step, event: Event) -> None:
        assert self.cell is not None
        vcpus = self._vcpus
        if not vcpus:
            return
        views: list[View] = list(step[self.cell])
        if isinstance(event, GuestPteWritten):
            # What the entry said before is still there: the set was filled when it was written.
            views = [
                self._filled(step, vcpu, view) for vcpu, view in zip(vcpus, views, strict=True)
            ]
        elif isinstance(event, GuestFlushed):
            views = [
                self._flushed(step, vcpu, view, event.address)
                if vcpu.number == event.vcpu
                else view
                for vcpu, view in zip(vcpus, views, strict=True)
            ]
        if tuple(views) != step[self.cell]:
            step[self.cell] = tuple(views)
        if isinstance(event, (GuestEntered, TlbFilled)):
            for vcpu, view in zip(vcpus, views, strict=True):
                if vcpu.number == event.vcpu and step[vcpu.in_guest]:
                    self._check(step, vcpu, view)

    def _filled(self, step: Step, vcpu: VcpuCells, view: View) -> View:
        tables = self._tables
        paging = vcpu.paging
        assert paging is not None
        found = set(tables.walk_from(step, paging.root_gfn, paging.levels, 0, ACC_ALL))
        for address, level, gpte, access in view:
            if not is_last_gpte(gpte, level):
                found |= set(tables.walk_from(step, gpte_gfn(gpte), level - 1, address, access))
        return view | found

    def _flushed(self, step: Step, vcpu: VcpuCells, view: View, address: int) -> View:
        geometry = self.hardware.geometry
        kept = frozenset(
            held
            for held in view
            if address >= 0
            and is_last_gpte(held[2], held[1])
            and not held[0] <= address < held[0] + geometry.pages(held[1])
        )
        return self._filled(step, vcpu, kept)

    def _check(self, step: Step, vcpu: VcpuCells, view: View) -> None:
        hardware = self.hardware
        for entry in hardware.usable(step, vcpu):
            if not hardware.format.is_last(entry[3], entry[2]):
                continue
            for offset in range(hardware.geometry.pages(entry[2])):
                if not self._given(view, entry, offset):
                    gfn = hardware.frame_gfn(hardware.format.pfn(entry[3])) + offset
                    step.violate(
                        self,
                        f"vCPU{vcpu.number} may use {tell(hardware, entry)} to reach gfn {gfn:#x}; "
                        "the guest's page tables have not said so since it flushed",
                    )
                    return

    def _given(self, view: View, entry: Entry, offset: int) -> bool:
        """Whether some guest entry gives page ``offset`` of a held leaf, with its permissions."""
        hardware = self.hardware
        address = entry[1] + offset
        gfn = hardware.frame_gfn(hardware.format.pfn(entry[3])) + offset
        needed = ACC_WRITE if hardware.format.is_writable(entry[3]) else 0
        needed |= ACC_EXEC if hardware.format.is_executable(entry[3]) else 0
        for start, level, gpte, access in view:
            inside = address - start
            if (
                is_last_gpte(gpte, level)
                and 0 <= inside < hardware.geometry.pages(level)
                and gpte_gfn(gpte) + inside == gfn
                and needed & ~access == 0
            ):
                return True
        return False

    @property
    def _tables(self) -> GuestTables:
        tables = self.hardware.guest
        assert tables is not None
        return tables
