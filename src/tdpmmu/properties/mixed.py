"""Huge pages over gfns of different attributes."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.events.records import AttributesChanged, Event, SpteChanged
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property


class MixedHugePage(Property):
    """Once attributes have changed no huge page spans private and shared gfns.

    The ghost: the private gfns, as userspace was told.
    """

    name: ClassVar[str] = "mixed-huge-page"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "a huge page maps private and shared gfns alike"
    hears: ClassVar[tuple[type[Event], ...]] = (AttributesChanged, SpteChanged)
    initial: ClassVar[object] = frozenset()
    history: ClassVar[bool] = True

    def observe(self, step: Step, event: Event) -> None:
        assert self.cell is not None
        hardware = self.hardware
        spte = hardware.format
        if isinstance(event, SpteChanged):
            huge = event.level > 1 and spte.is_last(event.new, event.level)
            if huge and spte.is_shadow_present(event.new):
                self._look(step, event.gfn, event.level, step[self.cell])
        elif isinstance(event, AttributesChanged):
            private = frozenset(event.private)
            if private != step[self.cell]:
                step[self.cell] = private
            roots = {root for vcpu in hardware.vcpus for root in step[vcpu.loaded]}
            for root in sorted(roots):
                for _, gfn, level, value in sorted(hardware.reachable(step, root)):
                    if level > 1 and spte.is_last(value, level):
                        self._look(step, gfn, level, private)

    def _look(self, step: Step, gfn: int, level: int, private: frozenset[int]) -> None:
        inside = [g in private for g in range(gfn, gfn + self.hardware.geometry.pages(level))]
        if any(inside) and not all(inside):
            step.violate(self, f"the huge page at gfn {gfn:#x} maps private and shared gfns")
