"""What a scenario is: a name, parameters, and a machine built from them and an MMU class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from tdpmmu.machine.thread import Machine


class MmuClass(Protocol):
    """A kernel version, patched or not."""

    version: str
    spte_kernel: str
    lockless_nx_flag: bool
    flush_before_rcu_unlock: bool

    def __call__(self, kvm: Any) -> Any:
        """An MMU that works on this VM's memory."""


@dataclass(frozen=True, slots=True)
class Built:
    """A machine ready to run, with what a report wants to know of it."""

    machine: Machine
    kvm: Any
    mmu: Any


class Scenario(Protocol):
    """Parameters as a frozen dataclass; ``build`` makes the machine."""

    name: ClassVar[str]

    def build(self, mmu_class: MmuClass) -> Built:
        """The machine for this kernel; ``ValueError`` (one line) if it is impossible."""
