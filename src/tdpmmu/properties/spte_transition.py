"""Which changes an entry of a TDP page table may make."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.events.records import Event, SpteChanged
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property
from tdpmmu.properties.rules import SPTE_TRANSITION, illegal


class SpteTransition(Property):
    """A present leaf takes another pfn, and a table another place, by way of non-present only.

    An entry that points to a table is never changed in place.  What is frozen is cleared by its
    freezer before anybody else changes it.
    """

    name: ClassVar[str] = SPTE_TRANSITION.name
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = SPTE_TRANSITION.meaning
    hears: ClassVar[tuple[type[Event], ...]] = (SpteChanged,)

    def observe(self, step: Step, event: Event) -> None:
        # Entries of shadow pages may be overwritten: the caller flushes.
        if not isinstance(event, SpteChanged) or event.root < 0:
            return
        wrong = illegal(self.hardware.format, event.level, event.old, event.new)
        if wrong is not None:
            step.violate(
                self,
                f"{wrong}: {event.table}[{event.index}], level {event.level}, gfn {event.gfn:#x}, "
                f"{event.old:#x} to {event.new:#x}",
            )
