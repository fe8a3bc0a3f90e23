"""Threads that share CPUs: who runs, who waits, and what makes the MMU give way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tdpmmu.kernel.locks import RwLock, Sleep, SpinLock
from tdpmmu.machine.state import Layout
from tdpmmu.simulation.guest import EXEC, DirtyLog, Guest, HostEvent, Knobs, Touches
from tdpmmu.simulation.machine import Simulation
from tdpmmu.simulation.result import Result
from tdpmmu.worlds.simulate.clock import Clock
from tdpmmu.worlds.simulate.costs import load_costs
from tdpmmu.worlds.simulate.ledger import Ledger
from tdpmmu.worlds.simulate.ops import NeedResched, Now, SleepUntil, Spend

COSTS = load_costs()
SLICE = COSTS.sched_slice
MS = 1_000_000


class Host:
    """Some threads, some CPUs, some locks."""

    def __init__(self, cpus: int, *, preemption: bool = False) -> None:
        layout = Layout()
        chunk = layout.chunk("locks")
        self.rwlock = RwLock(layout, "rwlock", chunk=chunk, queued=True)
        self.spinlock = SpinLock(layout, "spinlock", chunk=chunk)
        self.mutex = SpinLock(layout, "slots_lock", chunk=chunk)
        self.clock = Clock(
            layout.memory(),
            COSTS,
            Ledger(10**9),
            preemption=preemption,
            hear=lambda thread, event: None,
            host_cpus=cpus,
        )
        self.done: dict[str, int] = {}

    def start(self, name: str, body) -> None:  # type: ignore[no-untyped-def]
        async def whole() -> None:
            await body
            self.done[name] = await Now()

        self.clock.start(self.clock.thread(name), whole())

    def run(self) -> dict[str, int]:
        self.clock.run(10**9)
        return self.done


async def work(ms: int, *, asks: bool = True) -> None:
    """So many milliseconds in steps of 0.1."""
    for _ in range(10 * ms):
        await Spend(MS // 10)
        if asks and await NeedResched():
            await Sleep("cond_resched")


def test_one_cpu_is_shared_in_equal_parts() -> None:
    host = Host(1)
    for name in ("a", "b", "c"):
        host.start(name, work(60))
    done = host.run()
    assert len(done) == 3
    assert max(done.values()) == pytest.approx(180 * MS, rel=0.05)
    assert min(done.values()) > 160 * MS
    assert host.clock.ledger.waits["a", "cpu wait"] > 100 * MS


def test_as_many_cpus_as_threads_are_as_good_as_one_each() -> None:
    for cpus in (0, 3):
        host = Host(cpus)
        for name in ("a", "b", "c"):
            host.start(name, work(20))
        assert set(host.run().values()) == {20 * MS}


def test_who_does_not_ask_keeps_the_cpu() -> None:
    for preemption, first in ((False, 40), (True, 60)):
        host = Host(1, preemption=preemption)
        host.start("rude", work(40, asks=False))
        host.start("other", work(20))
        done = host.run()
        assert done["rude"] == pytest.approx(first * MS, rel=0.1)


def test_a_lock_holder_is_not_preempted() -> None:
    host = Host(1, preemption=True)

    async def holder() -> None:
        await host.spinlock.lock()
        await work(20, asks=False)
        await host.spinlock.unlock()

    host.start("holder", holder())
    host.start("other", work(1))
    done = host.run()
    assert done["other"] > 21 * MS


@pytest.mark.parametrize("lock", ["rwlock", "spinlock", "mutex"])
def test_a_spinner_burns_its_cpu_and_a_sleeper_does_not(lock: str) -> None:
    host = Host(2)

    async def take() -> None:
        await (host.rwlock.write_lock() if lock == "rwlock" else getattr(host, lock).lock())

    async def give() -> None:
        await (host.rwlock.write_unlock() if lock == "rwlock" else getattr(host, lock).unlock())

    async def holder() -> None:
        await take()
        await work(20)
        await give()

    async def waiter() -> None:
        await SleepUntil(MS)
        await take()
        await give()

    async def third() -> None:
        await SleepUntil(2 * MS)
        await work(5)

    host.start("holder", holder())
    host.start("waiter", waiter())
    host.start("third", third())
    done = host.run()
    if lock == "mutex":
        assert done["third"] == pytest.approx(7 * MS, rel=0.05)
    else:
        # It shares the holder's CPU or waits for the spinner's.
        assert done["third"] > 9 * MS
    assert done["waiter"] >= 20 * MS


def test_an_idle_cpu_takes_who_waits_elsewhere() -> None:
    host = Host(2)
    for name, ms in (("a", 40), ("short", 10), ("b", 40)):
        host.start(name, work(ms))
    done = host.run()
    # 90 ms of work on two CPUs; a and b have shared one for the first 10.
    assert max(done.values()) < 47 * MS


# --- in the MMU -----------------------------------------------------------------------------------


class Busy:
    """vCPUs that execute all of their memory, over and over; logging comes on, if at all."""

    def __init__(self, logged: bool) -> None:
        self.logged = logged

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        pages = np.arange(0, 32 * 512, 64)
        while True:
            count = len(pages)
            yield Touches(np.full(count, 20_000), pages, np.full(count, EXEC, dtype=np.uint8))

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        if self.logged:
            yield 5 * MS, DirtyLog(True)


def busy(kernel: str, host_cpus: int, *, logged: bool) -> Result:
    guest = Guest(64 << 20, 2)
    knobs = Knobs(ratio=1, period_ms=10, preemption=False, host_cpus=host_cpus)
    costs = replace(COSTS, sched_slice=50_000)
    return Simulation(kernel, guest, knobs, costs, Busy(logged), 1).run(40 * MS)


@pytest.mark.parametrize("kernel", ["6.12", "6.18"])
def test_splitting_yields_because_of_the_run_queue(kernel: str) -> None:
    """Without preemption nobody breaks a lock for others: only need_resched makes it yield."""
    alone, shared = (busy(kernel, cpus, logged=True) for cpus in (0, 1))
    assert alone.counts.get("Yielded", 0) == 0
    assert shared.counts["Yielded"] > 0
    assert "cpu wait" not in alone.stall_ns
    # Two guests on one CPU get half of it each, or less while the host works.
    assert shared.stall_ns["cpu wait"] > 35 * MS
    assert alone.counts["GuestAccess"] > 1.8 * shared.counts["GuestAccess"]


@pytest.mark.parametrize(("kernel", "mode"), [("6.12", "write"), ("6.18", "read")])
def test_recovery_yields_because_of_the_run_queue(kernel: str, mode: str) -> None:
    rounds = []
    for cpus in (0, 1):
        result = busy(kernel, cpus, logged=False)
        assert result.counts["NxPageRecovered"] > 30
        rounds.append(result.lock_holds["mmu_lock", mode, "recovery"].count)
    assert rounds[1] > 1.5 * rounds[0]
