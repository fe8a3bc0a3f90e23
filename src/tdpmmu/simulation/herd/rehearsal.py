"""What a vCPU does that is kicked out of its guest to flush its TLB, seen once, alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.events.records import Event
from tdpmmu.simulation.guest import Guest, Knobs, Touches
from tdpmmu.simulation.tables import SimKvm
from tdpmmu.simulation.vcpu import StepGuest, run_vcpu
from tdpmmu.worlds.simulate.clock import Clock
from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.ledger import Ledger
from tdpmmu.worlds.simulate.ops import SleepUntil
from tdpmmu.worlds.simulate.thread import SimThread

if TYPE_CHECKING:
    from tdpmmu.simulation.machine import Simulation

SECOND = 10**9


@dataclass(frozen=True, slots=True)
class Bounce:
    """From the IPI's arrival to the next entry: how long, which events, and what stalled."""

    ns: int
    counts: dict[str, int]
    stalls: dict[str, int]


class Watched(StepGuest):
    """A guest that touches nothing for a long time, and notes when it is left and entered."""

    def __init__(
        self, kvm: SimKvm, vcpu: VcpuCells, thread: SimThread, costs: Costs, ledger: Ledger
    ) -> None:
        super().__init__(kvm, vcpu, thread, costs, ledger)
        self.left_at = self.back_at = -1
        self.stalls: Counter[str] = Counter()
        page = np.zeros(1, dtype=np.int64)
        self.start(iter([Touches(page + 10 * SECOND, page, page.astype(np.uint8))]))

    def enter(self, now: int) -> int:
        if self.left_at >= 0 > self.back_at:
            self.back_at = now
            self.stalls = self.ledger.stalls - self.stalls
        return super().enter(now)

    def kick(self, now: int) -> str:
        self.left_at = now
        self.stalls = self.ledger.stalls.copy()
        return super().kick(now)


def rehearse(run: Simulation, alone: Simulation) -> Bounce:
    """The kernel of ``run``, in ``alone``, which has one vCPU and has not begun."""
    counts: Counter[str] = Counter()

    def hear(thread: SimThread, event: Event) -> None:
        if thread is vcpu and guest.left_at >= 0 > guest.back_at:
            counts[event.__class__.__name__] += 1

    ledger = Ledger(10 * SECOND)
    clock = Clock(alone.memory, run.costs, ledger, preemption=run.knobs.preemption, hear=hear)
    vcpu, other = clock.thread("vcpu"), clock.thread("host")
    guest = Watched(alone.kvm, alone.kvm.vcpus[0], vcpu, run.costs, ledger)
    clock.start(vcpu, run_vcpu(alone.mmu, guest, alone.what))
    clock.start(other, _flush(alone.mmu))
    clock.run(2 * SECOND)
    for thread in clock.threads:
        if thread.body is not None:
            thread.body.close()
    return Bounce(guest.back_at - guest.left_at, dict(counts), dict(guest.stalls))


async def _flush(mmu: Any) -> None:
    await SleepUntil(SECOND)
    await mmu.make_all_cpus_request()
    await SleepUntil(5 * SECOND)


def small(run: Simulation) -> tuple[Guest, Knobs]:
    """A guest for that, and knobs under which nothing else happens."""
    knobs = replace(run.knobs, ratio=0, host_cpus=0, tick_hz=0, noise=False)
    return Guest(2 << 20, 1, cpu=run.guest.cpu), knobs
