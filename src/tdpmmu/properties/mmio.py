"""Guest accesses that are taken for MMIO although there is memory."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.events.records import (
    Event,
    GuestAccess,
    MemslotCreated,
    MemslotGone,
    MmioEmulated,
)
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property


class StaleMmio(Property):
    """An access that began after a slot's creation returned is not emulated as MMIO.

    The ghost: gfns with a slot that userspace knows of, and the vCPUs' faults that began since.
    """

    name: ClassVar[str] = "stale-mmio"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "memory is taken for MMIO because of a stale MMIO SPTE"
    hears: ClassVar[tuple[type[Event], ...]] = (
        MemslotCreated,
        MemslotGone,
        GuestAccess,
        MmioEmulated,
    )
    initial: ClassVar[object] = (frozenset(), frozenset())

    def observe(self, step: Step, event: Event) -> None:
        assert self.cell is not None
        there, late = step[self.cell]
        if isinstance(event, (MemslotCreated, MemslotGone)):
            gfns = {(event.as_id, event.gfn + i) for i in range(event.pages)}
            there = there | gfns if isinstance(event, MemslotCreated) else there - gfns
        elif isinstance(event, GuestAccess):
            late = late - {event.vcpu}
            if event.fault and any(gfn == event.gfn for _, gfn in there):
                late = late | {event.vcpu}
        else:
            assert isinstance(event, MmioEmulated)
            known = (event.as_id, event.gfn) in there
            if event.vcpu in late and known:
                step.violate(
                    self, f"vCPU{event.vcpu} takes gfn {event.gfn:#x} for MMIO; it has a slot"
                )
        if (there, late) != step[self.cell]:
            step[self.cell] = (there, late)
