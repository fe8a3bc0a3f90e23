"""What is done at once is what is done step by step: the same to the last nanosecond."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tdpmmu.events.records import DirtyLogTaken, Event
from tdpmmu.simulation import machine
from tdpmmu.simulation.dirty import DirtyBits, Ints
from tdpmmu.simulation.guest import (
    MODES,
    READ,
    WRITE,
    Collapse,
    DirtyLog,
    GetDirtyLog,
    Guest,
    HostEvent,
    Knobs,
    SplitHuge,
    SwapOut,
    Touches,
    Unmap,
)
from tdpmmu.simulation.machine import Simulation
from tdpmmu.simulation.result import Result
from tdpmmu.worlds.simulate.costs import Costs, load_costs
from tdpmmu.worlds.simulate.thread import SimThread

COSTS = load_costs()
REGIONS = 6


class Some:
    """Touches of a few regions; how close together they come differs from part to part."""

    def __init__(
        self,
        seed: int,
        parts: list[tuple[int, int]],
        host: list[tuple[int, HostEvent]],
        logged: bool = False,
    ) -> None:
        self.seed, self.parts, self.host, self.logged = seed, parts, host, logged

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
        events = list(self.host)
        if self.logged:
            events += [(400_000, DirtyLog(True)), (1_900_000, DirtyLog(False))]
            events += [(at, GetDirtyLog()) for at in (700_000, 1_200_000)]
        yield from sorted(events, key=lambda event: event[0])


def both(
    kernel: str, guest: Guest, knobs: Knobs, work: Some, costs: Costs = COSTS
) -> tuple[Result, Result]:
    return tuple(  # type: ignore[return-value]
        Simulation(kernel, guest, knobs, costs, work, 1, bulk=bulk).run(3_000_000)
        for bulk in (False, True)
    )


PARTS = st.lists(
    st.tuples(st.sampled_from([50, 999, 4001, 30000, 200_003]), st.integers(1, 60)),
    min_size=1,
    max_size=4,
)
RANGES = st.tuples(
    st.integers(0, REGIONS - 1).map(lambda region: region * 512), st.sampled_from([1, 512, 1024])
)
HOST = st.lists(
    st.tuples(
        st.integers(0, 2_000_000),
        st.sampled_from([Unmap, SplitHuge, SplitHuge, SwapOut]).flatmap(
            lambda kind: RANGES.map(lambda where: kind(*where))
        )
        | st.just(Collapse(1024)),
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
    host=HOST,
    log=st.sampled_from(["", "", "bitmap", "manual", "initially-set", "pml"]),
    eager_split=st.booleans(),
    tlb_entries=st.sampled_from([0, 20, COSTS.tlb_entries]),
    host_cpus=st.integers(0, 3),
    noise=st.booleans(),
    nodes=st.sampled_from([0, 0, 3]),
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
    host: list[tuple[int, HostEvent]],
    log: str,
    eager_split: bool,
    tlb_entries: int,
    host_cpus: int,
    noise: bool,
    nodes: int,
) -> None:
    guest = Guest(REGIONS << 21, vcpus, backing, mapped=mapped, cpu=cpu)
    knobs = Knobs(
        ratio=ratio,
        period_ms=1,
        preemption=preemption,
        eager_split=eager_split,
        dirty_log=log if log in MODES else MODES[0],
        pml=log == "pml" and cpu == "ept",
        host_cpus=host_cpus,
        tick_hz=1000 if noise else 0,
        noise=noise,
        nodes=nodes,
    )
    costs = replace(COSTS, tlb_entries=tlb_entries, sched_slice=100_000, noise_per_s=3000)
    steps, bulk = both(kernel, guest, knobs, Some(seed, parts, host, bool(log)), costs)
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


class Writes:
    """Each vCPU writes to every eighth page, then reads all."""

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        written = np.arange(vcpu, REGIONS * 512, 8)
        think = np.full(len(written), 500, dtype=np.int64)
        think[0] = 1_000_000
        yield Touches(think, written, np.full(len(written), WRITE, dtype=np.uint8))
        pages = np.arange(REGIONS * 512)
        yield Touches(np.full(len(pages), 50), pages, np.full(len(pages), READ, dtype=np.uint8))

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        yield 500_000, DirtyLog(True)
        yield 4_000_000, GetDirtyLog()
        yield 5_000_000, GetDirtyLog()
        yield 6_000_000, DirtyLog(False)


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "6.18"])
@pytest.mark.parametrize("log", ["bitmap", "manual", "pml"])
def test_the_dirty_log_has_what_was_written(
    kernel: str, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    hear = Simulation._hear

    def listening(self: Simulation, thread: SimThread, event: Event) -> None:
        if isinstance(event, DirtyLogTaken):
            taken.extend(event.gfns)
        hear(self, thread, event)

    take = DirtyBits.take

    def taking(self: DirtyBits, gfns: Ints) -> None:
        taken.extend(gfns.tolist())
        take(self, gfns)

    monkeypatch.setattr(Simulation, "_hear", listening)
    monkeypatch.setattr(DirtyBits, "take", taking)
    guest = Guest(REGIONS << 21, 2)
    knobs = Knobs(dirty_log=log if log in MODES else MODES[0], pml=log == "pml", ratio=0)
    run = Simulation(kernel, guest, knobs, COSTS, Writes(), 1)
    result = run.run(8_000_000)
    written = {gfn for gfn in range(REGIONS * 512) if gfn % 8 < 2}
    assert len(taken) == len(set(taken))
    # Read faults make no page dirty, and the split is not one of the guest's.  A CPU's own log is
    # emptied when the bitmap is fetched, too late for this time but not for the next.
    assert not set(taken) ^ written
    # Logging has split everything; its end zaps the tables, from 6.13 it puts huge pages there.
    small = result.coverage[:, 2]
    assert small.max() == guest.memory_bytes
    assert result.coverage[-1].tolist()[1:] == [guest.memory_bytes * (kernel == "6.18"), 0]


class Idle:
    """vCPUs that write now and then, while the host takes other pages away."""

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        count = 40
        yield Touches(
            np.full(count, 90_000 + 777 * vcpu, dtype=np.int64),
            vcpu * 7 + np.arange(count),
            np.full(count, WRITE, dtype=np.uint8),
        )

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        for turn in range(1, 21):
            yield turn * 130_000, Unmap(turn * 512, 512)


@pytest.mark.parametrize("kernel", ["5.13", "6.1", "6.12", "6.18"])
def test_guests_are_kicked_in_one_step(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0
    send = SimThread.send

    def counting(self: SimThread, result: object) -> None:
        nonlocal sent
        sent += self.kind == "vcpu"
        send(self, result)

    monkeypatch.setattr(SimThread, "send", counting)
    operations, results = [], []
    for bulk in (False, True):
        sent = 0
        run = Simulation(kernel, Guest(24 << 21, 24), Knobs(ratio=0), COSTS, Idle(), 1, bulk=bulk)
        results.append(run.run(3_000_000))
        operations.append(sent)
    assert results[0].same_as(results[1]) == []
    assert results[0].counts["VcpuFlushed"] == 20 * 24
    assert operations[0] > 3 * operations[1], operations


class Rewrites:
    """vCPUs write to every ``apart``-th page, and the log is fetched now and then.

    Then there is some time in which nobody does anything.
    """

    def __init__(self, count: int = 2000, apart: int = 8, think_ns: int = 5000) -> None:
        self.count, self.apart, self.think_ns = count, apart, think_ns

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        for _ in range(3):
            think = rng.integers(self.think_ns // 4, 2 * self.think_ns, self.count)
            think[0] += 500_000
            yield Touches(
                think,
                rng.integers(0, REGIONS * 512, self.count) // self.apart * self.apart,
                rng.integers(READ, WRITE + 1, self.count).astype(np.uint8),
            )

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        yield 500_000, DirtyLog(True)
        for turn in range(1, 7):
            yield turn * 1_500_000, GetDirtyLog()


def operations_of(
    kinds: tuple[str, ...], run: Simulation, until: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, Result]:
    """How often threads of these kinds were asked for their next operation."""
    sent = 0
    send = SimThread.send

    def counting(self: SimThread, result: object) -> None:
        nonlocal sent
        sent += self.kind in kinds
        send(self, result)

    with monkeypatch.context() as patched:
        patched.setattr(SimThread, "send", counting)
        result = run.run(until)
    return sent, result


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "6.18"])
def test_write_faults_are_one_step(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, knobs = Guest(REGIONS << 21, 2), Knobs(ratio=0)
    runs = [Simulation(kernel, guest, knobs, COSTS, Rewrites(), 1, bulk=b) for b in (False, True)]
    (steps, slow), (bulk, fast) = (
        operations_of(("vcpu",), run, 10_000_000, monkeypatch) for run in runs
    )
    assert slow.same_as(fast) == []
    assert slow.counts["PageMarkedDirty"] > 1000
    assert steps > 4 * bulk, (steps, bulk)


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.sampled_from(["5.13", "6.1", "6.12", "6.18"]),
    vcpus=st.integers(1, 3),
    backing=st.sampled_from(["2M", "2M", "4K", "1G"]),
    mapped=st.booleans(),
    cpu=st.sampled_from(["ept", "npt"]),
    log=st.sampled_from(["bitmap", "manual", "initially-set", "pml"]),
    eager_split=st.booleans(),
    count=st.integers(10, 400),
    apart=st.sampled_from([1, 3, 8, 64, 512]),
    think=st.sampled_from([300, 5000, 20_000]),
    until=st.integers(3_000_000, 10_000_000),
    nodes=st.sampled_from([0, 0, 2, 3, 8]),
)
# The run ends a nanosecond after a word that begins a table, but no table above that one.
@example("6.1", 3, "2M", True, "ept", "initially-set", True, 10, 64, 5000, 3_005_728, 0)
def test_words_at_once_are_words_one_by_one(
    kernel: str,
    vcpus: int,
    backing: str,
    mapped: bool,
    cpu: str,
    log: str,
    eager_split: bool,
    count: int,
    apart: int,
    think: int,
    until: int,
    nodes: int,
) -> None:
    guest = Guest(REGIONS << 21, vcpus, backing, mapped=mapped, cpu=cpu)
    knobs = Knobs(
        ratio=0,
        eager_split=eager_split,
        dirty_log=log if log in MODES else MODES[0],
        pml=log == "pml" and cpu == "ept",
        nodes=nodes,
    )
    work = Rewrites(count, apart, think)
    steps, bulk = (
        Simulation(kernel, guest, knobs, COSTS, work, 1, bulk=b).run(until) for b in (False, True)
    )
    assert steps.same_as(bulk) == []


@pytest.mark.parametrize(
    ("kernel", "mode", "backing", "eager", "nodes"),
    [
        ("6.1", "bitmap", "2M", True, 0),
        ("6.12", "initially-set", "2M", True, 0),
        ("6.12", "initially-set", "2M", False, 0),
        ("6.18", "initially-set", "1G", False, 0),
        ("6.1", "bitmap", "2M", True, 3),
        ("6.12", "pml", "2M", True, 3),
        ("6.12", "initially-set", "1G", False, 2),
        ("6.18", "manual", "2M", True, 8),
    ],
)
def test_words_are_one_step(
    kernel: str, mode: str, backing: str, eager: bool, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = Guest(REGIONS << 21, 2, backing)
    log = mode if mode in MODES else MODES[0]
    knobs = Knobs(ratio=0, dirty_log=log, pml=mode == "pml", eager_split=eager, nodes=nodes)
    work = Rewrites(300, 2, 8000)
    runs = [Simulation(kernel, guest, knobs, COSTS, work, 1, bulk=b) for b in (False, True)]
    (steps, slow), (bulk, fast) = (
        operations_of(("host",), run, 10_000_000, monkeypatch) for run in runs
    )
    assert slow.same_as(fast) == []
    assert slow.counts["DirtyLogTaken"] > 100
    assert steps > 3 * bulk, (steps, bulk)
