"""iTLB multihit: one gfn, two executable translations of different size."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.events.records import Event, TlbFilled
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property
from tdpmmu.properties.view import tell


class Multihit(Property):
    """No vCPU may hold two executable translations of different size for one gfn of one root."""

    name: ClassVar[str] = "multihit"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "two executable translations of different size for one gfn"
    hears: ClassVar[tuple[type[Event], ...]] = (TlbFilled,)

    def observe(self, step: Step, event: Event) -> None:
        if not isinstance(event, TlbFilled):
            return
        hardware = self.hardware
        spte_format = hardware.format
        leaves = [
            entry
            for entry in hardware.usable(step, hardware.vcpus[event.vcpu])
            if spte_format.is_last(entry[3], entry[2]) and spte_format.is_executable(entry[3])
        ]
        for huge in leaves:
            pages = hardware.geometry.pages(huge[2])
            for small in leaves:
                if (
                    small[2] < huge[2]
                    and small[0] == huge[0]
                    and huge[1] <= small[1] < huge[1] + pages
                ):
                    step.violate(
                        self,
                        f"vCPU{event.vcpu} may execute both through {tell(hardware, huge)} "
                        f"and through {tell(hardware, small)}",
                    )
                    return
