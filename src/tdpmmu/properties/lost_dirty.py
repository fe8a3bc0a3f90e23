"""Frames that the host takes to be clean although the guest has written them."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.events.records import Event, HostPageReused, PfnMarkedDirty, SpteChanged
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property


class LostDirtyBit(Property):
    """Before the host takes a frame away it has heard of every dirty bit that the CPU set for it.

    The ghost: frames whose dirty bit the CPU has set and KVM has not passed on.
    """

    name: ClassVar[str] = "lost-dirty-bit"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "the host drops a page that the guest has written as if it were clean"
    hears: ClassVar[tuple[type[Event], ...]] = (SpteChanged, PfnMarkedDirty, HostPageReused)
    initial: ClassVar[object] = frozenset()

    def observe(self, step: Step, event: Event) -> None:
        assert self.cell is not None
        dirty: frozenset[int] = step[self.cell]
        spte = self.hardware.format
        if isinstance(event, SpteChanged):
            # Only the CPU sets the dirty bit of an entry and changes nothing else.
            if event.new & ~(spte.dirty | spte.accessed) != event.old & ~spte.accessed:
                return
            if not spte.is_shadow_present(event.old) or not spte.is_last(event.old, event.level):
                return
            if spte.is_dirty(event.new) and not spte.is_dirty(event.old):
                step[self.cell] = dirty | {spte.pfn(event.new)}
        elif isinstance(event, PfnMarkedDirty):
            left = frozenset(p for p in dirty if not event.pfn <= p < event.pfn + event.pages)
            if left != dirty:
                step[self.cell] = left
        elif isinstance(event, HostPageReused):
            for pfn in sorted(dirty):
                if event.pfn <= pfn < event.pfn + event.pages:
                    step.violate(
                        self,
                        f"the host takes pfn {pfn:#x} away; the guest has written it, and the "
                        "dirty bit that said so was lost",
                    )
                    return
