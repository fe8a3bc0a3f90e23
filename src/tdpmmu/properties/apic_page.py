"""The APIC access page is where the host has it no more."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.events.records import Event, GuestEntered, HostPageReused
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property


class StaleApicPage(Property):
    """No CPU is in guest mode with an APIC access page that the host has given to somebody else.

    The ghost: the frames that the host has reused, in VMs that have such a page.
    """

    name: ClassVar[str] = "stale-apic-page"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "a guest's APIC accesses reach a page that the host has reused"
    hears: ClassVar[tuple[type[Event], ...]] = (HostPageReused, GuestEntered)
    initial: ClassVar[object] = frozenset()

    def observe(self, step: Step, event: Event) -> None:
        assert self.cell is not None
        hardware = self.hardware
        if not hardware.has_apic_page:
            return
        if isinstance(event, HostPageReused):
            step[self.cell] = step[self.cell] | set(range(event.pfn, event.pfn + event.pages))
        for vcpu in hardware.vcpus:
            if isinstance(event, GuestEntered) and event.vcpu != vcpu.number:
                continue
            addr = step[vcpu.apic_access_addr]
            if step[vcpu.in_guest] and addr in step[self.cell]:
                step.violate(
                    self,
                    f"vCPU{vcpu.number} runs with its APIC access page at pfn {addr:#x}, which the "
                    "host has given to somebody else",
                )
                return
