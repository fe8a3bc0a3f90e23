"""What the model traces, as the kernel's tracepoints do."""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.conformance.replay.calls import Armed, MmioMarked, PageGot, PageZap
from tdpmmu.machine.op import Op, Step
from tdpmmu.machine.state import Cell


@dataclass(frozen=True, slots=True)
class Changed:
    """``kvm_tdp_mmu_spte_changed`` of the model; its SPTEs hold the model's own table pfns."""

    as_id: int
    gfn: int
    level: int
    old: int
    new: int
    sptep: Cell


@dataclass(frozen=True, slots=True)
class Requested:
    """``kvm_mmu_spte_requested`` of the model."""

    gfn: int
    pfn: int
    level: int


@dataclass(frozen=True, slots=True)
class Fixed:
    """``fast_page_fault`` of the model, where it fixed one."""

    gfn: int
    old: int
    new: int
    sptep: Cell


@dataclass(frozen=True, slots=True)
class Sets:
    """``kvm_mmu_set_spte`` of the model's shadow MMU."""

    gfn: int
    level: int
    spte: int


What = Changed | Requested | Fixed | Sets | Armed | MmioMarked | PageGot | PageZap
"""The last four are what the kernel traces, too, bit for bit."""


@dataclass(frozen=True, slots=True)
class Traced(Op):
    """Where a tracepoint stands: a call rests here until what it says has been compared."""

    what: What

    def apply(self, step: Step, alternative: int) -> None:
        return None

    def describe(self) -> str:
        return f"tracepoint {self.what}"
