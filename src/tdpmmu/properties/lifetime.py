"""Page tables and their references: nothing leaks, nothing is used after its free."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.events.records import Event, FreedPageTouched, PageFreed, Refcount, TornDown
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property
from tdpmmu.properties.rules import LEAK


class Leak(Property):
    """When the VM is gone every page table page has been freed."""

    name: ClassVar[str] = LEAK.name
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = LEAK.meaning
    hears: ClassVar[tuple[type[Event], ...]] = (TornDown,)

    def observe(self, step: Step, event: Event) -> None:
        if isinstance(event, TornDown) and event.leaked:
            step.violate(self, f"the VM is gone but not {', '.join(event.leaked)}")


class UseAfterFree(Property):
    """Software does not touch a page table page, or its header, after it was freed."""

    name: ClassVar[str] = "use-after-free"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "software uses a page table page after its free"
    hears: ClassVar[tuple[type[Event], ...]] = (FreedPageTouched,)

    def observe(self, step: Step, event: Event) -> None:
        if isinstance(event, FreedPageTouched):
            step.violate(self, f"{event.what} is touched after {event.page} was freed")


class RefcountError(Property):
    """References are taken from a live root only, and never put twice."""

    name: ClassVar[str] = "refcount"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "a reference count is wrong"
    hears: ClassVar[tuple[type[Event], ...]] = (Refcount, PageFreed)

    def observe(self, step: Step, event: Event) -> None:
        if isinstance(event, Refcount):
            if event.new < 0:
                step.violate(self, f"{event.why} drops {event.page}'s count below zero")
            elif event.old <= 0 and event.new > event.old:
                step.violate(self, f"{event.why} revives {event.page}, whose count was zero")
        elif isinstance(event, PageFreed):
            page = self.hardware.page_by_pfn[event.pfn]
            count = step[page.root_count]
            if count > 0:
                step.violate(self, f"{event.page} is freed with {count} references left")
