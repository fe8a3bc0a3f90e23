"""A scenario in a file: two rounds of NX recovery, one right after the other.

    tdpmmu check examples/my_scenario.py
    tdpmmu check examples/my_scenario.py --kernel 6.18
    tdpmmu check examples/my_scenario.py --kernel 5.12-rc4

In ``nx-recovery`` the worker does one round.  Here it does ``rounds``: the second one meets the
page tables that vCPUs have made since the first, under the same faults and the same unmap.

A scenario is a frozen dataclass with a ``name`` and a ``build`` method.  Its fields are its
parameters: they are printed with a counterexample and kept in its token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from tdpmmu.events.records import Event, NxPageAccounted
from tdpmmu.machine.op import Step
from tdpmmu.machine.thread import Thread
from tdpmmu.scenarios.base import Built, MmuClass
from tdpmmu.scenarios.nx_recovery import NxRecovery, ThreadEnds


@dataclass(frozen=True, slots=True)
class TwoRounds(NxRecovery):
    """All parameters of ``nx-recovery`` (so its options work), and one more."""

    name: ClassVar[str] = "two-rounds"
    rounds: int = 2

    def build(self, mmu_class: MmuClass) -> Built:
        """The machine of ``nx-recovery`` with another body for its first thread.

        ``mmu_class`` is the kernel, patches and all.  A ``ValueError`` here is a usage error.
        """
        if self.rounds < 1:
            raise ValueError(f"rounds {self.rounds}: at least 1")
        # Not super().build(): a dataclass with slots is made anew, and super() means the old one.
        built = NxRecovery.build(self, mmu_class)
        threads = built.machine.threads
        assert threads[0].name == "nx recovery"
        threads[0] = Thread(threads[0].name, lambda: recover(built.kvm, built.mmu, self.rounds))
        return built

    def sometimes(self) -> dict[str, Callable[[Event, Step], bool]]:
        """What some run must show.  If none does, the verdict is "vacuous" (exit code 4)."""
        wanted = NxRecovery.sometimes(self)
        if self.vcpus and self.faults:
            wanted["a vCPU makes a table to recover"] = lambda event, step: isinstance(
                event, NxPageAccounted
            )
        return wanted


async def recover(kvm: Any, mmu: Any, rounds: int) -> None:
    """The worker's body: a coroutine, which awaits the MMU's functions and operations."""
    for _ in range(rounds):
        await mmu.recover_nx_lpages()
    # Teardown waits for everybody: the last thing a thread does is to say that it ends.
    await ThreadEnds(kvm)
