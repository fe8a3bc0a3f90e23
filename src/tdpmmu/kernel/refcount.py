"""``refcount_t`` where a plain addition is not enough."""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.machine.op import Op, Step, writing
from tdpmmu.machine.state import Cell


@dataclass(frozen=True, slots=True)
class IncNotZero(Op):
    """``refcount_inc_not_zero``: the new count, 0 if there was none left to take."""

    cell: Cell

    def apply(self, step: Step, alternative: int) -> int:
        step.touch(self.cell, write=True)
        old: int = step[self.cell]
        if old > 0:
            step[self.cell] = old + 1
            return old + 1
        return 0

    def mover(self, step: Step) -> str:
        return writing(self.cell, step)

    def describe(self) -> str:
        return f"refcount_inc_not_zero({self.cell.name})"
