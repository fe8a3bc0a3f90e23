"""Hardware walks a page table that was freed."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.table import Header, TablePage
from tdpmmu.events.records import Event, PageFreed
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import USED, Step
from tdpmmu.machine.state import Cell
from tdpmmu.properties.base import Property
from tdpmmu.properties.rules import FREED_TABLE
from tdpmmu.properties.view import tell


class FreedTable(Property):
    """When a table is freed no vCPU may hold, and no table may contain, an entry for it."""

    name: ClassVar[str] = FREED_TABLE.name
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = FREED_TABLE.meaning
    hears: ClassVar[tuple[type[Event], ...]] = (PageFreed,)

    def observe(self, step: Step, event: Event) -> None:
        if not isinstance(event, PageFreed):
            return
        hardware = self.hardware
        spte_format = hardware.format
        for vcpu in hardware.vcpus:
            loaded = step[vcpu.loaded]
            if hardware.page_by_pfn[event.pfn].number in loaded:
                step.violate(self, f"{event.page} is freed while it is vCPU{vcpu.number}'s root")
                return
            if not hardware.may_be_below(step, vcpu, event.root):
                continue
            for entry in hardware.usable(step, vcpu):
                if not spte_format.is_last(entry[3], entry[2]) and (
                    spte_format.pfn(entry[3]) == event.pfn
                ):
                    step.violate(
                        self,
                        f"{event.page} is freed while vCPU{vcpu.number} may still walk it through "
                        f"{tell(hardware, entry)}",
                    )
                    return
        page = hardware.page_by_pfn[event.pfn]
        header: Header | None = step[page.header]
        if header is None:
            return
        parents = (header.parent,) if header.tdp else step[page.parent_ptes]
        for parent in parents:
            if parent is not None and self._points_to(step, parent, event.pfn, header.level + 1):
                step.violate(
                    self, f"{event.page} is freed while {parent.page.name} still points to it"
                )
                return

    def _points_to(self, step: Step, sptep: Cell, pfn: int, level: int) -> bool:
        spte_format = self.hardware.format
        above: TablePage = sptep.page
        spte = step[sptep]
        return (
            step[above.state] == USED
            and spte_format.is_shadow_present(spte)
            and not spte_format.is_last(spte, level)
            and spte_format.pfn(spte) == pfn
        )
