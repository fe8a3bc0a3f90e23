"""When a sleep for some jiffies ends, and which fault pays for a vCPU's stock of page tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdpmmu.simulation.guest import WRITE, Guest, HostEvent, Knobs, Touches
from tdpmmu.simulation.jiffies import Jiffies, wheel
from tdpmmu.simulation.machine import Simulation
from tdpmmu.simulation.memory_caches import CAPACITY, LEAST
from tdpmmu.worlds.simulate.costs import load_costs

COSTS = load_costs()
MS = 1_000_000


@pytest.mark.parametrize(
    ("now", "expires", "fires"),
    [
        (0, 1, 2),
        (0, 62, 63),
        (0, 63, 64),
        (8, 8 + 100, 8 + 104),
        (5, 5 + 100, 112),
        (4096, 4096 + 60_000, 4096 + 61_440),
    ],
)
def test_the_wheel_is_as_coarse_as_the_sleep_is_long(now: int, expires: int, fires: int) -> None:
    assert wheel(now, expires) == fires


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 29))
def test_no_timer_is_early_and_none_is_an_eighth_late(now: int, sleep: int) -> None:
    late = wheel(now, now + sleep) - now - sleep
    assert 1 <= late <= max(1, sleep // 7)


@pytest.mark.parametrize("hz", [250, 1000])
def test_a_period_of_100_ms_is_one_of_104(hz: int) -> None:
    jiffies = Jiffies(hz, since=123_456_789)
    first = jiffies.wakes(0, 100)
    assert 100 * MS <= first <= 108 * MS
    # The round takes a while.
    second = jiffies.wakes(first + 2 * MS, 100)
    assert second - first == 104 * MS


class Regions:
    """Writes to pages of each 2M of memory that the host has as 4K pages: the first needs a table.

    ``each``: how many pages.
    """

    def __init__(self, regions: int, each: int) -> None:
        self.regions, self.each = regions, each

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        first = np.arange(self.regions, dtype=np.int64) * 512
        gfn = (first[:, None] + np.arange(self.each)).reshape(-1)
        think = np.full(len(gfn), 100_000, dtype=np.int64)
        yield Touches(think, gfn, np.full(len(gfn), WRITE, dtype=np.uint8))

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        return iter(())


@pytest.mark.parametrize("bulk", [False, True])
def test_one_fault_pays_for_many_tables(bulk: bool) -> None:
    regions = 3 * CAPACITY
    guest = Guest(regions << 21, 1, "4K", mapped=False)
    work = Regions(regions, 1)
    paying = []
    for seed in range(1, 5):
        run = Simulation("6.18", guest, Knobs(ratio=0), COSTS, work, seed, bulk=bulk)
        result = run.run(regions * 110_000)
        topup = (CAPACITY - LEAST + 1) * COSTS.table_alloc
        dear = sorted(one.gfn // 512 for one in result.worst if one.ns > topup)
        assert 3 <= len(dear) <= 4
        assert {later - earlier for earlier, later in itertools.pairwise(dear)} <= {36, 35}
        rest = [one.ns for one in result.worst if one.ns <= topup]
        assert max(rest) < topup // 10
        paying.append(dear[0])
    # How many there are at first is the seed's.
    assert len(set(paying)) > 1


def test_a_fault_that_needs_none_pays_as_well() -> None:
    """Whoever comes next fills up; the compiled loop's faults of a known sort never do."""
    regions = 3 * CAPACITY
    guest, work = Guest(regions << 21, 1, "4K", mapped=False), Regions(regions, 2)
    made = [
        Simulation("6.12", guest, Knobs(ratio=0), COSTS, work, 1, bulk=bulk).run(regions * 220_000)
        for bulk in (False, True)
    ]
    assert made[0].same_as(made[1]) == []
    dear = [one.gfn for one in made[0].worst if one.ns > 30 * COSTS.table_alloc]
    assert len(dear) == 3
    assert {gfn & 511 for gfn in dear} == {1}
