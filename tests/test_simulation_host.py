"""What the host does to its huge pages shows in what faults map afterwards."""

from collections.abc import Iterator

import numpy as np
import pytest

from tdpmmu.simulation.guest import (
    READ,
    Collapse,
    Guest,
    HostEvent,
    Knobs,
    SplitHuge,
    SwapOut,
    Touches,
    Unmap,
)
from tdpmmu.simulation.machine import Simulation
from tdpmmu.worlds.simulate.costs import load_costs

COSTS = load_costs()
MIB = 1 << 20
MS = 1_000_000
REGION = 512


class Reads:
    """A vCPU reads all pages of the second region, once in each round."""

    def __init__(self, rounds: int, *events: tuple[int, HostEvent]) -> None:
        self.rounds, self.events = rounds, events

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        for _ in range(self.rounds):
            think = np.full(REGION, 100, dtype=np.int64)
            think[0] = 6 * MS
            pages = REGION + np.arange(REGION, dtype=np.int64)
            yield Touches(think, pages, np.full(REGION, READ, dtype=np.uint8))

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        return iter(self.events)


def run(rounds: int, *events: tuple[int, HostEvent], backing: str = "2M", ms: int = 15):
    guest = Guest(8 * MIB, 1, backing)
    work = Reads(rounds, *events)
    return Simulation("6.12", guest, Knobs(ratio=0), COSTS, work, 1).run(rounds * ms * MS)


def test_a_split_huge_page_is_mapped_small_until_khugepaged_has_been_there() -> None:
    split = run(1, (MS, SplitHuge(REGION, REGION)))
    assert split.counts["FaultFixed"] == REGION
    assert split.coverage[-1].tolist()[1:] == [6 * MIB, 2 * MIB]
    again = run(2, (MS, SplitHuge(REGION, REGION)), (12 * MS, Collapse(REGION)))
    assert again.counts["FaultFixed"] == REGION + 1
    assert again.coverage[-1].tolist()[1:] == [8 * MIB, 0]


def test_what_is_swapped_out_comes_back_as_4k_pages() -> None:
    result = run(1, (MS, SwapOut(REGION + 8, 4)))
    assert result.counts["FaultFixed"] == REGION
    slow = [one.gfn for one in result.worst if one.ns > 1.2 * COSTS.host_fault_4k]
    assert set(slow) >= {REGION + page for page in (8, 9, 10, 11)}
    assert result.worst[0].ns < COSTS.host_fault_2m


def test_memory_with_swapped_pages_is_not_collapsed() -> None:
    out = (MS, SwapOut(REGION, REGION)), (2 * MS, Collapse(REGION))
    assert run(1, *out).coverage[-1].tolist()[1:] == [6 * MIB, 2 * MIB]


def test_other_frames_of_the_same_size() -> None:
    result = run(1, (MS, Unmap(REGION, REGION)))
    assert result.counts["FaultFixed"] == 1
    assert result.worst[0].ns > COSTS.host_fault_2m
    assert result.coverage[-1].tolist()[1:] == [8 * MIB, 0]


@pytest.mark.parametrize("backing", ["1G", "4K"])
def test_pages_that_are_not_transparent_stay_what_they_are(backing: str) -> None:
    events = (MS, SplitHuge(REGION, REGION)), (MS, Collapse(REGION)), (MS, SwapOut(REGION, 1))
    assert run(1, *events, backing=backing, ms=100).counts["FaultFixed"] == 1
