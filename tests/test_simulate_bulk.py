"""What is done at once is what is done step by step: the same to the last nanosecond."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpmmu.simulation import machine
from tdpmmu.simulation.guest import Guest, HostEvent, Knobs, Touches, Unmap
from tdpmmu.simulation.machine import Simulation
from tdpmmu.simulation.result import Result
from tdpmmu.worlds.simulate.costs import load_costs
from tdpmmu.worlds.simulate.thread import SimThread

COSTS = load_costs()
REGIONS = 6


class Some:
    """Touches of a few regions; how close together they come differs from part to part."""

    def __init__(
        self, seed: int, parts: list[tuple[int, int]], unmaps: list[tuple[int, int, int]]
    ) -> None:
        self.seed, self.parts, self.unmaps = seed, parts, unmaps

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        rng = np.random.default_rng([self.seed, vcpu])
        for think, count in self.parts:
            region = rng.integers(0, REGIONS, count) if think % 2 else np.full(count, 1)
            page = rng.integers(0, 512 if think % 3 else 8, count)
            yield Touches(
                rng.integers(0, think + 1, count),
                region * 512 + page,
                rng.integers(0, 3, count).astype(np.uint8),
                rng.integers(0, 2, count).astype(np.uint8),
            )

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        for at, gfn, pages in sorted(self.unmaps):
            yield at, Unmap(gfn, pages)


def both(
    kernel: str, guest: Guest, knobs: Knobs, work: Some, until: int = 3_000_000
) -> tuple[Result, Result]:
    return tuple(  # type: ignore[return-value]
        Simulation(kernel, guest, knobs, COSTS, work, 1, bulk=bulk).run(until)
        for bulk in (False, True)
    )


PARTS = st.lists(
    st.tuples(st.sampled_from([50, 999, 4001, 30000, 200_003]), st.integers(1, 60)),
    min_size=1,
    max_size=4,
)
UNMAPS = st.lists(
    st.tuples(
        st.integers(0, 2_000_000),
        st.integers(0, REGIONS - 1).map(lambda region: region * 512),
        st.sampled_from([1, 512, 1024]),
    ),
    max_size=4,
)


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.sampled_from(["5.13", "6.1", "6.12", "6.18"]),
    vcpus=st.integers(1, 4),
    backing=st.sampled_from(["2M", "2M", "4K"]),
    mapped=st.booleans(),
    cpu=st.sampled_from(["ept", "npt"]),
    ratio=st.sampled_from([1, 2, 5]),
    preemption=st.booleans(),
    seed=st.integers(0, 1000),
    parts=PARTS,
    unmaps=UNMAPS,
)
def test_bulk_is_step_by_step(
    kernel: str,
    vcpus: int,
    backing: str,
    mapped: bool,
    cpu: str,
    ratio: int,
    preemption: bool,
    seed: int,
    parts: list[tuple[int, int]],
    unmaps: list[tuple[int, int, int]],
) -> None:
    guest = Guest(REGIONS << 21, vcpus, backing, mapped=mapped, cpu=cpu)
    knobs = Knobs(ratio=ratio, period_ms=1, preemption=preemption)
    steps, bulk = both(kernel, guest, knobs, Some(seed, parts, unmaps))
    assert steps.same_as(bulk) == []


class Sweep:
    """One vCPU executes all small pages in order, twice as recovery goes on."""

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        pages = REGIONS * 512
        for _ in range(2):
            yield Touches(
                np.full(pages, 900, dtype=np.int64),
                np.arange(pages),
                np.full(pages, 2, dtype=np.uint8),
            )

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        return iter(())


@pytest.mark.parametrize("kernel", ["5.13", "6.12"])
def test_bulk_does_less(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would show nothing."""
    sent = 0
    send = SimThread.send

    def counting(self: SimThread, result: object) -> None:
        nonlocal sent
        sent += 1
        send(self, result)

    monkeypatch.setattr(SimThread, "send", counting)
    # Nothing is done at once across a sample, and in so short a run these are close together.
    monkeypatch.setattr(machine, "SAMPLES", 10)
    operations, results = [], []
    for bulk in (False, True):
        sent = 0
        guest, knobs = Guest(REGIONS << 21, 1), Knobs(ratio=2, period_ms=2)
        run = Simulation(kernel, guest, knobs, COSTS, Sweep(), 1, bulk=bulk)
        results.append(run.run(6_000_000))
        operations.append(sent)
    assert results[0].same_as(results[1]) == []
    assert results[0].counts["NxPageRecovered"] > 1
    assert operations[0] > 20 * operations[1]
