"""NUMA: what is far away costs more, and a line that two CPUs write to goes to and fro."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tdpmmu.machine.state import Layout
from tdpmmu.simulation.guest import WRITE, DirtyLog, Guest, HostEvent, Knobs, Touches
from tdpmmu.simulation.machine import Simulation
from tdpmmu.simulation.result import Result
from tdpmmu.worlds.simulate.clock import Clock
from tdpmmu.worlds.simulate.costs import load_costs
from tdpmmu.worlds.simulate.ledger import Ledger
from tdpmmu.worlds.simulate.nodes import Nodes

COSTS = load_costs()
OFF_NS = 4_000_000


def test_nodes_are_as_far_apart_as_their_links() -> None:
    four, eight = Nodes(4, 4, COSTS), Nodes(8, 8, COSTS)
    assert [four.hops(0, other) for other in range(4)] == [0, 1, 1, 1]
    assert [eight.hops(0, other) for other in range(8)] == [0, 1, 1, 2, 1, 2, 2, 2]
    assert all(eight.hops(a, b) == eight.hops(b, a) for a in range(8) for b in range(8))


def test_a_line_goes_to_who_writes_to_it() -> None:
    clock = Clock(
        Layout().memory(), COSTS, Ledger(1), preemption=False, hear=lambda thread, event: None
    )
    near, neighbour, far = (clock.thread("t") for _ in range(3))
    nodes = Nodes(2, 4, COSTS)
    assert [nodes.of(thread) for thread in (near, neighbour, far)] == [0, 0, 1]
    for thread in (near, neighbour, far):
        thread.now = 1000
    assert nodes.fetch(near, "line") == 0
    assert nodes.fetch(near, "line") == 0
    assert nodes.fetch(far, "line") == COSTS.lock_handover
    # It is still on its way to the other node.
    assert nodes.fetch(near, "line") == 2 * COSTS.lock_handover
    near.now = neighbour.now = 9000
    assert nodes.fetch(neighbour, "line") == COSTS.reader_bounce
    assert nodes.owns(neighbour, "line")
    assert not nodes.owns(near, "line")


def test_busy_memory_and_links_are_waited_for() -> None:
    clock = Clock(
        Layout().memory(), COSTS, Ledger(1), preemption=False, hear=lambda thread, event: None
    )
    thread, other = clock.thread("t"), clock.thread("t")
    nodes = Nodes(8, 8, COSTS, near_wait=201, far_wait=137)
    thread.last_cpu, other.last_cpu = 0, 3
    far = [nodes.far(thread, node) for node in (0, 1, 3)]
    assert far == [201, COSTS.hop + 137, 2 * COSTS.hop + 137]
    nodes.fetch(other, "line")
    assert nodes.fetch(thread, "line") == COSTS.lock_handover + COSTS.hop + 137


class Writers:
    """Each vCPU writes to its own part of memory; logging goes on, and off again."""

    def __init__(self, pages: int, vcpus: int) -> None:
        self.share = pages // vcpus

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        gfn = vcpu * self.share + np.arange(self.share, dtype=np.int64)
        while True:
            yield Touches(np.full(len(gfn), 2000), gfn, np.full(len(gfn), WRITE, dtype=np.uint8))

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        yield 0, DirtyLog(True)
        yield OFF_NS, DirtyLog(False)


def ended(
    kernel: str, nodes: int, near: int = 0, far: int = 0, *, bulk: bool = True
) -> tuple[int, Result]:
    """How long the end of logging takes."""
    guest = Guest(8 << 20, 2)
    knobs = Knobs(
        nx_huge_pages=False, preemption=False, nodes=nodes, near_wait_ns=near, far_wait_ns=far
    )
    work = Writers(guest.pages, guest.vcpus)
    run = Simulation(kernel, guest, knobs, COSTS, work, 1, bulk=bulk)
    result = run.run(OFF_NS + 600_000)
    ends = [hold.at + hold.ns for hold in result.lock_timeline if hold.kind == "host"]
    return max(ends) - OFF_NS, result


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, int], tuple[int, Result]]:
    kernels = ("6.12", "6.12+process-before-unfreezing")
    return {(kernel, nodes): ended(kernel, nodes) for kernel in kernels for nodes in (0, 1, 2)}


def test_memory_of_another_node_takes_longer(
    runs: dict[tuple[str, int], tuple[int, Result]],
) -> None:
    """The host's thread is on the last node; half of memory is not."""
    assert runs["6.12", 1][0] == pytest.approx(runs["6.12", 0][0], rel=0.05)
    assert runs["6.12", 2][0] - runs["6.12", 1][0] > 0.8 * 1024 * COSTS.hop


def test_a_vcpu_that_spins_slows_down_who_zaps(
    runs: dict[tuple[str, int], tuple[int, Result]],
) -> None:
    """It takes references to the folio whose flags the zapping thread writes."""
    before, after = "6.12+process-before-unfreezing", "6.12"
    slower = [runs[before, nodes][0] / runs[after, nodes][0] for nodes in (0, 1, 2)]
    assert slower[2] > 1.1
    assert slower[2] > slower[1] > slower[0] + 0.03


def test_waits_are_for_each_page_that_is_zapped(
    runs: dict[tuple[str, int], tuple[int, Result]],
) -> None:
    """Half of the pages' ``struct page`` is on the thread's own node."""
    idle = runs["6.12", 2][0]
    assert ended("6.12", 2, 0, 137)[0] - idle == pytest.approx(1024 * 137, rel=0.3)
    assert ended("6.12", 2, 201, 0)[0] - idle == pytest.approx(1024 * 201, rel=0.3)


@pytest.mark.parametrize(("near", "far"), [(0, 0), (201, 137)])
@pytest.mark.parametrize("kernel", ["6.12", "6.12+process-before-unfreezing", "6.18"])
def test_at_once_is_step_by_step(kernel: str, near: int, far: int) -> None:
    steps = ended(kernel, 2, near, far, bulk=False)[1]
    bulk = ended(kernel, 2, near, far)[1]
    assert steps.same_as(bulk) == []
