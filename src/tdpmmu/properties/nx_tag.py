"""Huge pages over tables that keep executable pages small."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.events.records import (
    Event,
    HugePageRecovered,
    NxPageAccounted,
    PageLinked,
    PageZapped,
    SpteChanged,
)
from tdpmmu.machine.ghost import DISCIPLINE
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property


class NxUntagged(Property):
    """No fault puts a huge page over a table that a fetch made and recovery has not let go.

    Otherwise the guest bounces between the two sizes.  Recovery lets a table go by taking its mark
    away; the end of dirty logging replaces tables on purpose, as it zapped them up to 6.12.

    The ghost: the tables that a fetch made, and those that were ever on the list.
    """

    name: ClassVar[str] = "nx-untagged"
    kind: ClassVar[str] = DISCIPLINE
    meaning: ClassVar[str] = "a huge page replaces a table that keeps executable pages small"
    hears: ClassVar[tuple[type[Event], ...]] = (
        PageLinked,
        NxPageAccounted,
        HugePageRecovered,
        PageZapped,
        SpteChanged,
    )
    initial: ClassVar[object] = (frozenset(), frozenset())
    history: ClassVar[bool] = True

    def observe(self, step: Step, event: Event) -> None:
        assert self.cell is not None
        made, listed = step[self.cell]
        if isinstance(event, PageLinked):
            if event.nx:
                step[self.cell] = (made | {event.page}, listed)
        elif isinstance(event, NxPageAccounted):
            step[self.cell] = (made, listed | {event.page})
        elif isinstance(event, PageZapped | HugePageRecovered):
            gone = {event.page}
            if event.page in made or event.page in listed:
                step[self.cell] = (made - gone, listed - gone)
        elif isinstance(event, SpteChanged):
            self._changed(step, event, made, listed)

    def _changed(
        self, step: Step, event: SpteChanged, made: frozenset[str], listed: frozenset[str]
    ) -> None:
        spte = self.hardware.format
        if not spte.is_shadow_present(event.old) or spte.is_last(event.old, event.level):
            return
        if not spte.is_shadow_present(event.new) or not spte.is_last(event.new, event.level):
            return
        table = self.hardware.page_by_pfn.get(spte.pfn(event.old))
        if table is None or table.name not in made:
            return
        if table.name in listed and not step[table.nx_huge_page_disallowed]:
            return
        step.violate(
            self,
            f"a huge page at gfn {event.gfn:#x} replaces {table.name}, which a fetch made and "
            "recovery has not let go",
        )
