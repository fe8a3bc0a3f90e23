"""What else a host's CPUs do: how much time it takes, and that it makes vCPUs wait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tdpmmu.machine.state import Layout
from tdpmmu.simulation.guest import READ, WRITE, Guest, HostEvent, Knobs, Touches
from tdpmmu.simulation.machine import Simulation
from tdpmmu.simulation.result import Result
from tdpmmu.worlds.simulate.clock import Clock
from tdpmmu.worlds.simulate.costs import load_costs
from tdpmmu.worlds.simulate.ledger import Ledger
from tdpmmu.worlds.simulate.noise import SECOND, Noise
from tdpmmu.worlds.simulate.ops import Spend

COSTS = load_costs()
CPUS = 40


def worked(*, tick_hz: int, rare: bool, seed: int = 1) -> tuple[list[int], list[int]]:
    """When threads that have a second of work are done, and all interruptions."""
    clock = Clock(
        Layout().memory(), COSTS, Ledger(SECOND), preemption=False, hear=lambda thread, event: None
    )
    stolen: list[int] = []
    steal = clock.cpus.steal

    def listening(cpu, now, ns):  # type: ignore[no-untyped-def]
        if cpu.runs is not None:
            stolen.append(ns)
        steal(cpu, now, ns)

    clock.cpus.steal = listening  # type: ignore[method-assign]

    async def work() -> None:
        for _ in range(1000):
            await Spend(SECOND // 1000)

    threads = [clock.thread("busy") for _ in range(CPUS)]
    Noise(clock, COSTS, seed, tick_hz=tick_hz, rare=rare)
    for thread in threads:
        clock.start(thread, work())
    clock.run(2 * SECOND)
    return [thread.now for thread in threads], stolen


def test_ticks_take_their_time() -> None:
    ends, stolen = worked(tick_hz=100, rare=False)
    assert set(stolen) == {COSTS.tick}
    # The last millisecond begins with the thread and ends without it.
    assert all(99 * COSTS.tick <= end - SECOND <= 101 * COSTS.tick for end in ends)


def test_rare_interruptions_are_as_measured() -> None:
    """The figures of osnoise-tracer.rst: how many, the longest of a second, and their sum."""
    ends, stolen = worked(tick_hz=0, rare=True)
    assert len(stolen) == pytest.approx(CPUS * COSTS.noise_per_s, rel=0.1)
    assert COSTS.noise_shortest <= min(stolen) < max(stolen) <= COSTS.noise_longest
    drawn = np.sort(np.random.default_rng(1).choice(stolen, (2000, COSTS.noise_per_s)).max(axis=1))
    assert drawn[1000] == pytest.approx(COSTS.noise_usual, rel=0.35)
    # The sums there are 109 to 7816 us, 460 on the median.
    assert 300_000 < np.median(np.array(ends) - SECOND) < 800_000


def test_the_seed_decides() -> None:
    assert worked(tick_hz=0, rare=True) == worked(tick_hz=0, rare=True)
    assert worked(tick_hz=0, rare=True)[0] != worked(tick_hz=0, rare=True, seed=2)[0]


class Timed:
    """Reads of mapped pages, and with ``tag`` they are timed."""

    def __init__(self, tag: int) -> None:
        self.tag = tag

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        while True:
            gfn = np.arange(512, dtype=np.int64)
            yield Touches(
                np.full(512, 1000),
                gfn,
                np.full(512, WRITE if vcpu else READ, dtype=np.uint8),
                np.full(512, self.tag, dtype=np.uint8),
            )

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        return iter(())


def run(tag: int, *, noise: bool, tick_hz: int, bulk: bool = True) -> Result:
    guest, knobs = Guest(4 << 20, 2), Knobs(noise=noise, tick_hz=tick_hz)
    costs = replace(COSTS, noise_per_s=2000)
    return Simulation("6.12", guest, knobs, costs, Timed(tag), 1, bulk=bulk).run(20_000_000)


def test_a_timed_touch_that_is_interrupted_counts() -> None:
    assert run(1, noise=False, tick_hz=0).fault_latency == {}
    quiet = run(0, noise=True, tick_hz=1000)
    assert quiet.fault_latency == {}
    assert quiet.stall_ns["host noise"] > 40 * COSTS.tick
    latency = run(1, noise=True, tick_hz=1000).fault_latency[1]
    assert latency.count > 60
    assert latency.largest > 10_000


def test_noise_in_bulk_is_noise_step_by_step() -> None:
    runs = [run(1, noise=True, tick_hz=1000, bulk=bulk) for bulk in (False, True)]
    assert runs[0].same_as(runs[1]) == []
