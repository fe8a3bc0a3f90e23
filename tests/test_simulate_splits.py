"""Eager splitting of many huge pages at once is that of one after the other, to the nanosecond."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpmmu.simulation.guest import (
    DirtyLog,
    GetDirtyLog,
    Guest,
    HostEvent,
    Knobs,
    SplitHuge,
    Touches,
    Unmap,
)
from tdpmmu.simulation.machine import Simulation
from tdpmmu.worlds.simulate.costs import load_costs
from tdpmmu.worlds.simulate.thread import SimThread

COSTS = load_costs()
REGIONS = 12
ON_NS = 300_000


class Logged:
    """vCPUs touch anything; logging goes on, off and on again; the host does ``events``."""

    def __init__(self, seed: int, think_ns: int, events: list[tuple[int, HostEvent]]) -> None:
        self.seed, self.think_ns, self.events = seed, think_ns, events

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        rng = np.random.default_rng([self.seed, vcpu])
        count = min(3_000_000 // self.think_ns, 400)
        yield Touches(
            rng.integers(0, 2 * self.think_ns, count),
            rng.integers(0, REGIONS * 512, count),
            rng.integers(0, 3, count).astype(np.uint8),
        )

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        log: list[tuple[int, HostEvent]] = [
            (ON_NS, DirtyLog(True)),
            (1_500_000, DirtyLog(False)),
            (2_300_000, DirtyLog(True)),
            (2_800_000, GetDirtyLog()),
        ]
        yield from sorted([*log, *self.events], key=lambda event: event[0])


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3_000_000),
        st.sampled_from([SplitHuge, Unmap]).flatmap(
            lambda kind: st.integers(0, REGIONS - 1).map(lambda region: kind(region * 512, 512))
        ),
    ),
    max_size=3,
)


@settings(max_examples=12, deadline=None)
@given(
    kernel=st.sampled_from(["6.1", "6.12", "6.12", "6.18"]),
    vcpus=st.integers(1, 4),
    backing=st.sampled_from(["2M", "2M", "1G"]),
    mapped=st.sampled_from([True, True, False]),
    cpu=st.sampled_from(["ept", "npt"]),
    preemption=st.booleans(),
    pml=st.booleans(),
    nx=st.booleans(),
    host_cpus=st.sampled_from([0, 0, 0, 2]),
    noise=st.booleans(),
    nodes=st.sampled_from([0, 0, 0, 2]),
    seed=st.integers(0, 1000),
    think=st.sampled_from([500, 5000, 50_000, 400_000]),
    events=EVENTS,
    until=st.integers(1_000_000, 3_300_000),
)
def test_many_at_once_are_one_after_the_other(
    kernel: str,
    vcpus: int,
    backing: str,
    mapped: bool,
    cpu: str,
    preemption: bool,
    pml: bool,
    nx: bool,
    host_cpus: int,
    noise: bool,
    nodes: int,
    seed: int,
    think: int,
    events: list[tuple[int, HostEvent]],
    until: int,
) -> None:
    knobs = Knobs(
        nx_huge_pages=nx,
        ratio=1,
        period_ms=1,
        preemption=preemption,
        pml=pml and cpu == "ept",
        host_cpus=host_cpus,
        tick_hz=1000 if noise else 0,
        noise=noise,
        nodes=nodes,
    )
    guest = Guest(REGIONS << 21, vcpus, backing, mapped=mapped, cpu=cpu)
    costs = replace(COSTS, sched_slice=100_000, noise_per_s=3000)
    work = Logged(seed, think, events)
    steps, bulk = (
        Simulation(kernel, guest, knobs, costs, work, 1, bulk=b).run(until) for b in (False, True)
    )
    assert steps.same_as(bulk) == []


@pytest.mark.parametrize("kernel", ["6.12", "6.18"])
def test_splits_are_one_step(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of what the host's thread does until all is split is gone."""
    sent = 0
    send = SimThread.send

    def counting(self: SimThread, result: object) -> None:
        nonlocal sent
        sent += self.kind == "host"
        send(self, result)

    monkeypatch.setattr(SimThread, "send", counting)
    operations, results = [], []
    # Long enough for samples to be far apart; that logging ends is after it.
    work = Logged(1, 400_000, [])
    monkeypatch.setattr(Logged, "host_events", lambda self, rng: iter([(ON_NS, DirtyLog(True))]))
    for bulk in (False, True):
        sent = 0
        guest = Guest(4 * REGIONS << 21, 1)
        run = Simulation(kernel, guest, Knobs(ratio=0, pml=True), COSTS, work, 1, bulk=bulk)
        results.append(run.run(20_000_000))
        operations.append(sent)
    assert results[0].same_as(results[1]) == []
    assert results[0].counts["PageLinked"] >= REGIONS
    assert operations[0] > 8 * operations[1], operations
