"""Lines of a page table that is gone through in order are fetched ahead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tdpmmu.arch.table import ReadSpte, TablePage, XchgSpte
from tdpmmu.simulation.guest import Guest, Knobs
from tdpmmu.simulation.machine import Simulation
from tdpmmu.worlds.simulate.clock import Clock
from tdpmmu.worlds.simulate.costs import CostsError, load_costs
from tdpmmu.worlds.simulate.ledger import Ledger
from tdpmmu.worlds.simulate.scan import Scan

COSTS = load_costs()
SAVED = COSTS.spte_read - COSTS.spte_ahead


class Nothing:
    """No touches, no host."""

    def touches(self, vcpu: int, rng: object) -> tuple[()]:
        return ()

    def host_events(self, rng: object) -> tuple[()]:
        return ()


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return Simulation("6.18", Guest(8 << 20, 1), Knobs(ratio=0), COSTS, Nothing(), 1)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tables(simulation: Simulation) -> list[TablePage]:
    """A root and what hangs below it."""
    return sorted(simulation.kvm.hardware.page_by_number.values(), key=lambda page: page.number)


def takes(
    simulation: Simulation, accesses: Sequence[tuple[TablePage, int]], op: type = ReadSpte
) -> int:
    """How long a thread takes that goes to these entries."""
    clock = Clock(
        simulation.memory,
        COSTS,
        Ledger(10**9),
        preemption=False,
        hear=lambda thread, event: None,
    )

    async def body() -> None:
        for page, index in accesses:
            cell = page.entries[index]
            await (ReadSpte(cell) if op is ReadSpte else XchgSpte(cell, 0))

    thread = clock.thread("host")
    clock.start(thread, body())
    clock.run(10**9)
    return thread.now


def test_the_first_line_comes_from_memory_and_the_others_are_fetched_ahead(
    simulation: Simulation, tables: list[TablePage]
) -> None:
    page = tables[0]
    whole = [(page, index) for index in range(512)]
    assert takes(simulation, whole) == 8 * COSTS.spte_read + 504 * COSTS.spte_ahead
    atomics = takes(simulation, whole, XchgSpte)
    assert atomics == 512 * COSTS.spte_atomic - 504 * SAVED
    # Lines, not entries, are what is fetched: three that begin in the middle of one.
    part = [(page, index) for index in range(13, 27)]
    assert takes(simulation, part) == 3 * COSTS.spte_read + 11 * COSTS.spte_ahead


@pytest.mark.parametrize(
    "order",
    [
        list(range(511, -1, -1)),
        [index * 16 % 512 for index in range(32)],
        [0, 1, 2, 3, 4, 5, 6, 7] * 4,
    ],
)
def test_any_other_order_is_not_foreseen(
    simulation: Simulation, tables: list[TablePage], order: list[int]
) -> None:
    accesses = [(tables[0], index) for index in order]
    assert takes(simulation, accesses) == len(order) * COSTS.spte_read


def test_another_table_begins_anew(simulation: Simulation, tables: list[TablePage]) -> None:
    one, other = tables[:2]
    walk = [(one, 0), (other, 8), (one, 8), (other, 16)]
    assert takes(simulation, walk) == 4 * COSTS.spte_read
    scans = [(page, index) for page in (one, other) for index in range(16)]
    assert takes(simulation, scans) == 16 * COSTS.spte_read + 16 * COSTS.spte_ahead


@pytest.mark.parametrize("before", [None, 2, 19, 24])
@pytest.mark.parametrize(("first", "last"), [(0, 511), (21, 21), (21, 23), (21, 24), (24, 40)])
def test_all_at_once_is_one_by_one(
    tables: list[TablePage], before: int | None, first: int, last: int
) -> None:
    entries = tables[0].entries
    single, whole = Scan(), Scan()
    for scan in (single, whole):
        if before is not None:
            scan.at(entries[0])
            for index in range(before + 1):
                scan.at(entries[index])
    one_by_one = [single.at(entries[index]) for index in range(first, last + 1)]
    dear = whole.dear(entries[first])
    assert one_by_one == [n >= dear for n in range(last - first + 1)]
    whole.through(entries[first], entries[last])
    for index in (last, min(last + 8, 511)):
        assert whole.at(entries[index]) == single.at(entries[index])


def test_a_line_that_was_foreseen_is_no_dearer_than_any(tmp_path: Path) -> None:
    path = tmp_path / "costs.toml"
    path.write_text("spte_ahead = 13\n")
    with pytest.raises(CostsError, match="spte_ahead <= spte_read <= spte_atomic"):
        load_costs(path)
