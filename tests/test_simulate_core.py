"""The simulator: time, locks, and what runs of every kernel add up to."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tdpmmu
from tdpmmu.events.records import Event
from tdpmmu.kernel.locks import RwLock
from tdpmmu.machine.op import Op
from tdpmmu.machine.state import Layout
from tdpmmu.simulation.guest import EXEC, READ, WRITE, Guest, HostEvent, Knobs, Touches, Unmap
from tdpmmu.simulation.machine import Simulation
from tdpmmu.simulation.result import Result
from tdpmmu.worlds.simulate.clock import Clock, Deadlock
from tdpmmu.worlds.simulate.costs import CostsError, load_costs
from tdpmmu.worlds.simulate.histogram import Histogram, bucket_of
from tdpmmu.worlds.simulate.ledger import Ledger
from tdpmmu.worlds.simulate.ops import Now, SleepUntil, Spend
from tdpmmu.worlds.simulate.pricing import PRICES, NoPrice, PriceList
from tdpmmu.worlds.simulate.thread import SimThread

COSTS = load_costs()
KERNELS = ("5.13", "6.1", "6.12", "6.18")


class Random:
    """Touches anywhere, a third of them fetches."""

    def __init__(
        self,
        pages: int,
        touches: int,
        unmaps: tuple[tuple[int, HostEvent], ...] = (),
        think: int = 400_000,
    ) -> None:
        self.pages, self.count, self.unmaps, self.think = pages, touches, unmaps, think

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        n = self.count
        kinds = np.array([READ, WRITE, EXEC], dtype=np.uint8)
        think = rng.integers(self.think // 400, self.think, n)
        yield Touches(think, rng.integers(0, self.pages, n), kinds[rng.integers(0, 3, n)])

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        return iter(self.unmaps)


def run(kernel: str, *, seed: int = 1, touches: int = 300) -> Result:
    guest = Guest(32 << 20, 3)
    chosen = Knobs(ratio=2, period_ms=20)
    unmaps = ((30_000_000, Unmap(512, 512)), (31_000_000, Unmap(1024, 1024)))
    work = Random(guest.pages, touches, unmaps)
    return Simulation(kernel, guest, chosen, COSTS, work, seed, bulk=False).run(80_000_000)


@pytest.fixture(scope="module")
def runs() -> dict[str, Result]:
    return {kernel: run(kernel) for kernel in KERNELS}


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_run_adds_up(runs: dict[str, Result], kernel: str) -> None:
    result = runs[kernel]
    counts = result.counts
    assert counts["NxPageRecovered"] > 0
    assert counts["NxPageAccounted"] >= counts["NxPageUnaccounted"]
    assert counts["LockTaken"] - counts["LockReleased"] <= 2 * (result.guest.vcpus + 2)
    faults = sum(histogram.count for histogram in result.fault_latency.values())
    assert 0 < faults <= counts["FaultFixed"]
    assert result.flushes == counts["FlushCompleted"] > 0
    assert result.stall_ns["refault"] > 0
    assert result.stall_ns["split"] > 0
    assert "Warned" not in counts
    assert "LockNotHeld" not in counts
    assert (result.coverage[:, 1:] >= 0).all()
    assert (result.coverage[:, 1:].sum(axis=1) <= result.guest.memory_bytes).all()
    assert (result.table_bytes[:, 1] >= 3 * 4096).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_coverage_is_what_the_tables_say(kernel: str) -> None:
    guest = Guest(32 << 20, 2)
    simulation = Simulation(
        kernel, guest, Knobs(period_ms=20), COSTS, Random(guest.pages, 200), 3, bulk=False
    )
    result = simulation.run(50_000_000)
    kvm, fmt = simulation.kvm, simulation.format
    mapped = {1: 0, 2: 0}
    step = kvm.layout.memory()
    for page in kvm.hardware.page_by_number.values():
        header = step[page.header.chunk][page.header.offset]
        if step[page.state.chunk][page.state.offset] != "used":
            continue
        for cell in page.entries:
            spte = step[cell.chunk][cell.offset]
            if fmt.is_shadow_present(spte) and fmt.is_last(spte, header.level):
                mapped[header.level] += kvm.geometry.pages(header.level) << 12
    assert result.coverage[-1, 1:].tolist() == [mapped[2], mapped[1]]
    assert result.table_bytes[-1, 1] == 4096 * len(kvm.hardware.page_by_number)


def test_the_same_seed_gives_the_same_result(runs: dict[str, Result]) -> None:
    assert runs["6.12"].same_as(run("6.12")) == []
    assert "fault_latency" in runs["6.12"].same_as(run("6.12", seed=2))


def test_recovery_under_the_read_lock_stalls_nobody() -> None:
    guest = Guest(32 << 20, 3)
    work = Random(guest.pages, 800, think=4000)
    waits: dict[tuple[str, bool], int] = {}
    for kernel in ("6.12", "6.18"):
        for preemption in (False, True):
            knobs = Knobs(ratio=1, period_ms=1, preemption=preemption)
            held = Simulation(kernel, guest, knobs, COSTS, work, 1).run(3_000_000)
            waits[kernel, preemption] = held.wait_ns.get(("vcpu", "lock wait"), 0)
            assert held.counts["NxPageRecovered"] > 10
    assert waits["6.12", False] > waits["6.12", True] > 20 * waits["6.18", True]


def test_the_longest_holds_are_kept(runs: dict[str, Result]) -> None:
    held = runs["6.12"]
    assert max(hold.ns for hold in held.lock_timeline) == max(
        histogram.largest for histogram in held.lock_holds.values()
    )


def test_without_recovery_nothing_is_recovered() -> None:
    guest = Guest(8 << 20, 1)
    work = Random(guest.pages, 50)
    for knobs in (Knobs(ratio=0), Knobs(nx_huge_pages=False, period_ms=1)):
        result = Simulation("6.12", guest, knobs, COSTS, work, 1).run(20_000_000)
        assert "NxPageRecovered" not in result.counts


@pytest.mark.parametrize(
    ("kernel", "ratio", "period_ms", "rounds"),
    [("5.13", 60, 0, 2), ("5.13", 120, 0, 2), ("6.1", 120, 0, 4), ("6.18", 60, 50_000, 2)],
)
def test_the_worker_comes_once_a_period(
    kernel: str, ratio: int, period_ms: int, rounds: int
) -> None:
    guest = Guest(4 << 20, 1)
    knobs = Knobs(ratio=ratio, period_ms=period_ms)
    run = Simulation(kernel, guest, knobs, COSTS, Random(guest.pages, 1), 1)
    result = run.run(125 * 10**9)
    held = result.lock_holds["mmu_lock", "write", "recovery"]
    assert held.count == rounds


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"memory_bytes": 3}, "multiple of 2 MiB"),
        ({"vcpus": 0}, "1 to 4096"),
        ({"backing": "3M"}, "backing must be"),
        ({"cpu": "arm"}, "ept or npt"),
    ],
)
def test_what_is_no_guest_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Guest(**({"memory_bytes": 2 << 20, "vcpus": 1} | values))  # type: ignore[arg-type]


# --- time and locks -------------------------------------------------------------------------------


def _clock(events: list[Event] | None = None) -> tuple[Clock, RwLock]:
    layout = Layout()
    lock = RwLock(layout, "lock", chunk=layout.chunk("lock"), queued=True)

    def hear(thread: SimThread, event: Event) -> None:
        if events is not None:
            events.append(event)

    clock = Clock(layout.memory(), COSTS, Ledger(10**9), preemption=True, hear=hear)
    return clock, lock


def test_a_lock_is_first_come_first_served() -> None:
    clock, lock = _clock()
    order: list[tuple[str, int]] = []

    async def holder(name: str, mode: str, at: int, ns: int) -> None:
        await SleepUntil(at)
        await (lock.write_lock() if mode == "write" else lock.read_lock())
        order.append((name, await Now()))
        await Spend(ns)
        await (lock.write_unlock() if mode == "write" else lock.read_unlock())

    # A reader holds it; a writer queues; a reader that comes later waits behind the writer.
    for name, mode, at, ns in (
        ("r1", "read", 0, 100_000),
        ("w", "write", 10_000, 50_000),
        ("r2", "read", 20_000, 10),
        ("r3", "read", 30_000, 10),
    ):
        clock.start(clock.thread(name), holder(name, mode, at, ns))
    clock.run(10**9)
    assert [name for name, _ in order] == ["r1", "w", "r2", "r3"]
    begun = dict(order)
    assert begun["w"] >= 100_000
    assert begun["r2"] >= begun["w"] + 50_000
    assert begun["r3"] - begun["r2"] < 1000  # together
    assert clock.ledger.waits["r2", "lock wait"] >= 120_000


def test_needbreak_is_true_when_somebody_queues() -> None:
    clock, lock = _clock()
    seen: list[bool] = []

    async def owner() -> None:
        await lock.write_lock()
        seen.append(await lock.needbreak())
        await Spend(50_000)
        seen.append(await lock.needbreak())
        await lock.write_unlock()

    async def other() -> None:
        await SleepUntil(10_000)
        await lock.read_lock()

    clock.start(clock.thread("owner"), owner())
    clock.start(clock.thread("other"), other())
    clock.run(10**6)
    assert seen == [False, True]


def test_a_deadlock_is_told() -> None:
    clock, lock = _clock()

    async def twice() -> None:
        await lock.write_lock()
        await lock.write_lock()

    clock.start(clock.thread("one"), twice())
    with pytest.raises(Deadlock, match="everybody waits: one 0"):
        clock.run(10**6)


# --- costs ----------------------------------------------------------------------------------------


def _operations() -> set[str]:
    rooms = ("machine", "kernel", "arch", "mmu")
    for room in rooms:
        package = importlib.import_module(f"tdpmmu.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"tdpmmu.{room}.{module.name}")
    found, todo = set(), [Op]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind.__module__ in NOT_SIMULATED:
            continue
        if kind.__module__.startswith(tuple(f"{tdpmmu.__name__}.{room}." for room in rooms)):
            found.add(kind.__name__)
    return found


HANDLED = {"Emit", "Acquire", "SpinAcquire", "Sleep", "AccessMemory", "Op", "Spte", "ForgeEntry"}
"""Priced by event or by how they went, or not met in a simulation."""
NOT_SIMULATED = ("tdpmmu.arch.guest", "tdpmmu.mmu.guest_walk")
"""Guests whose page tables KVM shadows."""


def test_every_operation_has_a_price() -> None:
    assert _operations() - set(PRICES) - HANDLED == set()
    assert set(PRICES) <= _operations()

    class Unheard(Op):
        """Of no room."""

    with pytest.raises(NoPrice, match="Unheard"):
        PriceList(COSTS)(Unheard())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vm_exot = 3", r"costs.toml:1: no cost is called 'vm_exot'; did you mean vm_exit\?"),
        ("\nread = -1", "costs.toml:2: read must be whole nanoseconds, not -1"),
        ("read = 1.5", "whole nanoseconds"),
        ("clock_mhz = 0", "must not be 0"),
        ("read =", "costs.toml: "),
    ],
)
def test_what_is_no_cost_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "costs.toml"
    path.write_text(text)
    with pytest.raises(CostsError, match=said):
        load_costs(path)


def test_a_file_changes_some_costs(tmp_path: Path) -> None:
    path = tmp_path / "costs.toml"
    path.write_text("vm_exit = 12345\n")
    costs = load_costs(path)
    assert costs.vm_exit == 12345
    assert costs.vm_entry == COSTS.vm_entry
    assert costs.cycles(1000) == costs.clock_mhz


def test_buckets_are_exact_to_a_hundredth() -> None:
    for value in [*range(300), *(3**n for n in range(6, 39))]:
        assert 0 <= value - bucket_of(value) <= value / 100
    histogram = Histogram.empty()
    for value in range(1, 101):
        histogram.add(value)
    assert (histogram.count, histogram.largest, histogram.total) == (100, 100, 5050)
    assert histogram.percentile(50) == 50
    edges, counts = histogram.arrays()
    assert edges.tolist() == list(range(1, 101))
    assert counts.sum() == 100
