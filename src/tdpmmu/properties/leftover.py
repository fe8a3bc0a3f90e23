"""What userspace was told is gone, and is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tdpmmu.arch.hardware import Entry
from tdpmmu.arch.table import Header
from tdpmmu.events.records import Event, MemslotGone, RangeZapped
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import USED, Step
from tdpmmu.properties.base import Property
from tdpmmu.properties.rules import LEFTOVER
from tdpmmu.properties.view import first_gfn, tell, usable_leaves


class Leftover(Property):
    """When a memslot's or a range's removal returns, no root and no TLB maps its gfns.

    That holds for invalid roots, too: they are to be zapped before a memslot update completes.
    """

    name: ClassVar[str] = LEFTOVER.name
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = LEFTOVER.meaning
    hears: ClassVar[tuple[type[Event], ...]] = (MemslotGone, RangeZapped)

    def observe(self, step: Step, event: Event) -> None:
        as_id = -1
        if isinstance(event, MemslotGone):
            as_id = event.as_id
        elif not isinstance(event, RangeZapped):
            return
        hardware = self.hardware
        for entry in self._mapped(step, as_id):
            if self._overlaps(step, entry, event.gfn, event.pages):
                step.violate(self, f"the page tables still have {tell(hardware, entry)}")
                return
        for vcpu, entry in usable_leaves(hardware, step):
            header: Header | None = step[hardware.page_by_number[entry[0]].header]
            if header is None or as_id not in (-1, header.as_id):
                continue
            if self._overlaps(step, entry, event.gfn, event.pages):
                step.violate(self, f"vCPU{vcpu.number} may still use {tell(hardware, entry)}")
                return

    def _overlaps(self, step: Step, entry: Entry, gfn: int, pages: int) -> bool:
        first = first_gfn(self.hardware, step, entry)
        return first < gfn + pages and gfn < first + self.hardware.geometry.pages(entry[2])

    def _mapped(self, step: Step, as_id: int) -> Iterator[Entry]:
        """The leaves below all roots of an address space, valid or not."""
        hardware = self.hardware
        for number, page in sorted(hardware.page_by_number.items()):
            header: Header | None = step[page.header]
            if header is None or step[page.state] != USED:
                continue
            is_root = header.root == number if header.tdp else step[page.root_count] > 0
            if not is_root or as_id not in (-1, header.as_id):
                continue
            for entry in sorted(hardware.reachable(step, number)):
                if hardware.format.is_last(entry[3], entry[2]):
                    yield entry
