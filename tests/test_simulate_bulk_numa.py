"""Whole tables that are on other nodes: at once and step by step, to the last nanosecond."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpmmu.machine.op import Op
from tdpmmu.simulation import machine
from tdpmmu.simulation.bulk import BulkOps, ClearEntries, RemoveEntries
from tdpmmu.simulation.guest import (
    EXEC,
    MODES,
    READ,
    WRITE,
    DirtyLog,
    GetDirtyLog,
    Guest,
    HostEvent,
    Knobs,
    Touches,
    Unmap,
)
from tdpmmu.simulation.machine import Simulation
from tdpmmu.simulation.result import Result
from tdpmmu.worlds.simulate.costs import load_costs
from tdpmmu.worlds.simulate.thread import SimThread

COSTS = load_costs()
REGIONS = 8
UNTIL_NS = 4_000_000


class Apart:
    """vCPUs touch their own parts of memory, or all of it; the host does something now and then.

    Nothing is done at once that takes longer than what is left to the next sample: few are taken.
    """

    def __init__(
        self, seed: int, kinds: list[int], count: int, own: bool, host: list[tuple[int, HostEvent]]
    ) -> None:
        self.seed, self.kinds, self.count, self.own, self.host = seed, kinds, count, own, host
        self.vcpus = 1

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        rng = np.random.default_rng([self.seed, vcpu])
        pages = REGIONS * 512
        share = pages // self.vcpus
        for access in self.kinds:
            gfn = rng.integers(0, share if self.own else pages, self.count)
            yield Touches(
                rng.integers(0, UNTIL_NS // self.count // len(self.kinds), self.count),
                gfn + vcpu * share * self.own,
                np.full(self.count, access, dtype=np.uint8),
            )

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        yield from sorted(self.host, key=lambda event: event[0])


def compared(kernel: str, guest: Guest, knobs: Knobs, work: Apart, samples: int) -> list[Result]:
    """Step by step, and at once."""
    work.vcpus = guest.vcpus
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(machine, "SAMPLES", samples)
        return [
            Simulation(kernel, guest, knobs, COSTS, work, 1, bulk=bulk).run(UNTIL_NS)
            for bulk in (False, True)
        ]


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[type[Op], bool]]:
    """How often something was done at once with a table, by whether that is far away."""
    seen: Counter[tuple[type[Op], bool]] = Counter()
    for name in ("_remove", "_clear"):
        plain = getattr(BulkOps, name)

        def counting(self: Any, thread: SimThread, op: Any, plain: Any = plain) -> bool:
            complete = self._clock.complete

            def completing(thread: SimThread, result: Any, price: int) -> None:
                if price:
                    far = self._simulation.numa.far_spte(thread, op.page) > 0
                    seen[op.__class__, far] += 1
                complete(thread, result, price)

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(self._clock, "complete", completing)
                return bool(plain(self, thread, op))

        monkeypatch.setattr(BulkOps, name, counting)
    return seen


@pytest.mark.parametrize("kernel", ["5.13", "6.1", "6.12", "6.18"])
@pytest.mark.parametrize(
    ("backing", "kinds", "kind"),
    [
        ("2M", [READ, WRITE], RemoveEntries),
        ("1G", [EXEC, EXEC], RemoveEntries),
        ("2M", [EXEC, READ], ClearEntries),
        ("2M", [EXEC, WRITE], ClearEntries),
    ],
    ids=["collapse", "recover", "protect", "clear-dirty"],
)
@pytest.mark.parametrize("nodes", [2, 8])
def test_far_tables_are_done_at_once(
    kernel: str,
    backing: str,
    kinds: list[int],
    kind: type[Op],
    nodes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host's threads go through tables of vCPUs on other nodes, which split huge pages.

    In one folio of 1 GiB marking pages dirty takes the same time for all of a table.
    """
    seen = counted(monkeypatch)
    log: list[tuple[int, HostEvent]] = [
        (1_000_000, DirtyLog(True)),
        (2_000_000, GetDirtyLog()),
        (2_500_000, DirtyLog(False)),
    ]
    log = [] if backing == "1G" else log
    pml = kinds == [EXEC, WRITE]
    knobs = Knobs(ratio=1, period_ms=1, eager_split=False, pml=pml, nodes=nodes)
    work = Apart(1, kinds, 60, True, log)
    steps, bulk = compared(kernel, Guest(REGIONS << 21, 2, backing), knobs, work, 5)
    assert steps.same_as(bulk) == []
    assert seen[kind, True]


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_each_small_page_has_a_line_of_its_own(kernel: str) -> None:
    """The host has all but those that a vCPU has had mapped again since."""
    events: list[HostEvent] = [DirtyLog(True), Unmap(1, 500), DirtyLog(False), DirtyLog(True)]
    times = [500_000, 1_000_000, 2_500_000, 2_600_000]
    knobs = Knobs(ratio=0, eager_split=False, pml=True, nodes=2)
    work = Apart(1, [WRITE, WRITE], 400, True, list(zip(times, events, strict=True)))
    steps, bulk = compared(kernel, Guest(REGIONS << 21, 2, "4K"), knobs, work, 5)
    assert steps.same_as(bulk) == []
    assert steps.counts["PfnMarkedDirty"] > REGIONS * 512


@pytest.mark.parametrize("kernel", ["5.13", "6.12"])
def test_words_below_the_last_entry_of_a_line(kernel: str) -> None:
    """There is no table: the walk looks at the entry behind, which is in another line."""
    log: list[tuple[int, HostEvent]] = [(0, DirtyLog(True)), (0, GetDirtyLog())]
    knobs = Knobs(ratio=0, eager_split=False, dirty_log="initially-set")
    guest = Guest(REGIONS << 21, 2, "2M", mapped=False)
    steps, bulk = compared(kernel, guest, knobs, Apart(0, [READ], 10, False, log), 5)
    assert steps.same_as(bulk) == []


TIMES = st.integers(0, UNTIL_NS)
LOGGING = st.tuples(TIMES, TIMES, TIMES).map(
    lambda at: [
        (min(at), DirtyLog(True)),
        (sorted(at)[1], GetDirtyLog()),
        (max(at), DirtyLog(False)),
    ]
)
UNMAPS = st.lists(
    st.tuples(TIMES, st.integers(0, REGIONS - 1).map(lambda region: Unmap(region * 512, 512))),
    max_size=2,
)


@settings(max_examples=15, deadline=None)
@given(
    kernel=st.sampled_from(["5.13", "6.1", "6.12", "6.18"]),
    vcpus=st.integers(1, 4),
    nodes=st.sampled_from([2, 3, 8]),
    host_cpus=st.sampled_from([0, 0, 2]),
    backing=st.sampled_from(["2M", "1G", "4K"]),
    mapped=st.booleans(),
    cpu=st.sampled_from(["ept", "npt"]),
    preemption=st.booleans(),
    ratio=st.sampled_from([0, 1, 2]),
    log=st.sampled_from([*MODES, "pml"]),
    eager_split=st.booleans(),
    seed=st.integers(0, 1000),
    kinds=st.lists(st.sampled_from([READ, WRITE, EXEC]), min_size=1, max_size=3),
    count=st.sampled_from([10, 60, 200]),
    own=st.booleans(),
    host=st.one_of(LOGGING, LOGGING, UNMAPS),
    samples=st.sampled_from([5, 10, 500]),
)
def test_far_tables_at_once_are_step_by_step(
    kernel: str,
    vcpus: int,
    nodes: int,
    host_cpus: int,
    backing: str,
    mapped: bool,
    cpu: str,
    preemption: bool,
    ratio: int,
    log: str,
    eager_split: bool,
    seed: int,
    kinds: list[int],
    count: int,
    own: bool,
    host: list[tuple[int, HostEvent]],
    samples: int,
) -> None:
    knobs = Knobs(
        ratio=ratio,
        period_ms=1,
        preemption=preemption,
        eager_split=eager_split,
        dirty_log=log if log in MODES else MODES[0],
        pml=log == "pml" and cpu == "ept",
        host_cpus=host_cpus,
        nodes=nodes,
    )
    guest = Guest(REGIONS << 21, vcpus, backing, mapped=mapped, cpu=cpu)
    work = Apart(seed, kinds, count, own, host)
    steps, bulk = compared(kernel, guest, knobs, work, samples)
    assert steps.same_as(bulk) == []
