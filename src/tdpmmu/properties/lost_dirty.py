"""Frames that the host takes to be clean although the guest has written them."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.events.records import (
    Event,
    GuestAccess,
    HostPageReused,
    PfnMarkedDirty,
    SpteChanged,
)
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property


class LostDirtyBit(Property):
    """Before the host takes a frame away it has heard that the guest has written it.

    With A/D bits: of every dirty bit that the CPU set.  Without: of every frame that was written
    through an SPTE, at the latest when that loses its W bit.  The ghost: frames that were written
    and not passed on, and without A/D bits those that the host knows of, which it will not take for
    clean any more.
    """

    name: ClassVar[str] = "lost-dirty-bit"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "the host drops a page that the guest has written as if it were clean"
    hears: ClassVar[tuple[type[Event], ...]] = (
        SpteChanged,
        GuestAccess,
        PfnMarkedDirty,
        HostPageReused,
    )
    initial: ClassVar[object] = (frozenset(), frozenset())
    history: ClassVar[bool] = True

    def observe(self, step: Step, event: Event) -> None:
        assert self.cell is not None
        dirty, known = step[self.cell]
        ad_bits = self.hardware.format.has_ad_bits
        if isinstance(event, SpteChanged):
            if ad_bits and self._set_by_cpu(event):
                dirty = dirty | {self.hardware.format.pfn(event.new)}
        elif isinstance(event, GuestAccess):
            if not ad_bits:
                dirty = dirty | (self._written(step, event) - known)
        elif isinstance(event, PfnMarkedDirty):
            told = frozenset(range(event.pfn, event.pfn + event.pages))
            dirty = dirty - told
            known = known if ad_bits else known | told
        elif isinstance(event, HostPageReused):
            for pfn in sorted(dirty):
                if event.pfn <= pfn < event.pfn + event.pages:
                    step.violate(
                        self,
                        f"the host takes pfn {pfn:#x} away; the guest has written it, and what "
                        "said so was lost",
                    )
                    return
        if (dirty, known) != step[self.cell]:
            step[self.cell] = (dirty, known)

    def _set_by_cpu(self, event: SpteChanged) -> bool:
        """Only the CPU sets the dirty bit of an entry and changes nothing else."""
        spte = self.hardware.format
        return (
            event.new & ~(spte.dirty | spte.accessed) == event.old & ~spte.accessed
            and spte.is_shadow_present(event.old)
            and spte.is_last(event.old, event.level)
            and spte.is_dirty(event.new)
            and not spte.is_dirty(event.old)
        )

    def _written(self, step: Step, event: GuestAccess) -> frozenset[int]:
        """The frame that a write has reached through the SPTE as it is."""
        hardware = self.hardware
        vcpu = hardware.vcpus[event.vcpu]
        if event.fault or event.stale or event.kind != "write" or vcpu.paging is not None:
            return frozenset()
        found = hardware.walk(step, step[vcpu.loaded][0], event.gfn)
        if found is None:
            return frozenset()
        _, level, spte = found
        offset = event.gfn % hardware.geometry.pages(level)
        return frozenset({hardware.format.pfn(spte) + offset})
