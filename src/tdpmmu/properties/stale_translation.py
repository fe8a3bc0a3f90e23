"""A guest reaches a page that the host has given to somebody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tdpmmu.arch.hardware import Entry
from tdpmmu.events.records import Event, HostPageReused, SpteChanged
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property
from tdpmmu.properties.view import by_address, maps, tell, usable_leaves


class StaleTranslation(Property):
    """When the host reuses a frame no vCPU may hold, and no SPTE may contain, a way to it."""

    name: ClassVar[str] = "stale-translation"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "a stale translation reaches a page the host has reused"
    hears: ClassVar[tuple[type[Event], ...]] = (HostPageReused, SpteChanged)
    initial: ClassVar[object] = ()

    def observe(self, step: Step, event: Event) -> None:
        assert self.cell is not None
        hardware = self.hardware
        if isinstance(event, HostPageReused):
            step[self.cell] = (*step[self.cell], (event.pfn, event.pages))
            for vcpu, entry in usable_leaves(hardware, step):
                if maps(hardware, entry, event.pfn, event.pages):
                    step.violate(
                        self,
                        f"the host reuses the page of gfn {event.gfn:#x} while vCPU{vcpu.number} "
                        f"may still use {tell(hardware, entry)}",
                    )
                    return
            for entry in self._live(step, event.gfn, event.pages):
                if hardware.format.is_last(entry[3], entry[2]) and maps(
                    hardware, entry, event.pfn, event.pages
                ):
                    step.violate(
                        self,
                        f"the host reuses the page of gfn {event.gfn:#x} while the page tables "
                        f"still have {tell(hardware, entry)}",
                    )
                    return
        elif isinstance(event, SpteChanged) and step[self.cell]:
            entry = (event.root, event.gfn, event.level, event.new)
            if hardware.format.is_shadow_present(event.new) and hardware.format.is_last(
                event.new, event.level
            ):
                for pfn, pages in step[self.cell]:
                    if maps(hardware, entry, pfn, pages):
                        step.violate(
                            self,
                            f"{tell(hardware, entry)} was installed after the host reused the page",
                        )
                        return

    def _live(self, step: Step, start: int, pages: int) -> Iterator[Entry]:
        """The leaves that map gfns of a range in the roots that vCPUs have loaded."""
        hardware = self.hardware
        roots = {root for vcpu in hardware.vcpus for root in step[vcpu.loaded]}
        for root in sorted(roots):
            if by_address(hardware, step, root):
                # Any address may lead to the gfns.
                yield from sorted(hardware.reachable(step, root))
                continue
            for gfn in range(start, start + pages):
                found = hardware.walk(step, root, gfn)
                if found is not None:
                    yield (root, hardware.geometry.round(gfn, found[1]), found[1], found[2])
