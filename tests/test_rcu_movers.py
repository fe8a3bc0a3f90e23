"""When nobody can tell that a read-side section began or ended, and what that rests on."""

from __future__ import annotations

from typing import Any

import pytest
from toys import WITH_RCU, make_machine, random_program

from tdpmmu.kernel.locks import RwLock, SpinLock
from tdpmmu.kernel.rcu import Rcu
from tdpmmu.machine.op import FREED, USED, Op, Read, Step, Write
from tdpmmu.machine.state import Layout
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.reductions import ALL, BEGIN, NONE, URGENT
from tdpmmu.worlds.explore.search import explore


class Memory:
    """Something that is freed after a grace period."""

    def __init__(self, layout: Layout) -> None:
        self.name = "memory"
        self.state = layout.cell("state", USED)

    def position_key(self) -> str:
        return self.name

    def grace_period_starts(self, step: Step) -> None:
        """It waits; that need not show."""

    def grace_period_over(self, step: Step) -> None:
        step[self.state] = FREED


class Touch(Op):
    """Use the memory."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def position_key(self) -> Any:
        return ("touch", self.memory.name)

    def apply(self, step: Step, alternative: int) -> None:
        assert step[self.memory.state] != FREED, "use after free"


def late_section(*, writer_locks: bool) -> Machine:
    """A reader looks at a pointer before its section begins; ``T1`` frees what it points to."""
    layout = Layout()
    lock = RwLock(layout, "lock", chunk=layout.chunk("lock"))
    rcu = Rcu(layout, "rcu", 2, chunk=layout.chunk("rcu"))
    rcu.nobody_calls, rcu.may_call = lock.held_write, lock.held
    memory = Memory(layout)
    pointer = layout.cell("pointer", True)

    async def reader() -> None:
        await lock.write_lock()
        there = await Read(pointer)
        await rcu.read_lock()
        if there:
            await Touch(memory)
        await rcu.read_unlock()
        await lock.write_unlock()

    async def frees() -> None:
        if writer_locks:
            await lock.read_lock()
        await Write(pointer, False)
        await rcu.call(memory)
        if writer_locks:
            await lock.read_unlock()

    return make_machine(layout, [reader, frees])


def section_that_is_waited_for() -> Machine:
    """``T0`` frees what ``T1`` uses when its section ends, in the middle of a turn."""
    layout = Layout()
    lock = RwLock(layout, "lock", chunk=layout.chunk("lock"))
    rcu = Rcu(layout, "rcu", 2, chunk=layout.chunk("rcu"))
    rcu.nobody_calls, rcu.may_call = lock.held_write, lock.held
    spin = SpinLock(layout, "spin", chunk=layout.chunk("spin"))
    memory = Memory(layout)

    async def owner() -> None:
        await lock.write_lock()
        await rcu.read_lock()
        await rcu.call(memory)
        await spin.lock()  # a turn begins
        await rcu.read_unlock()  # frees it, and may not be one moment with ...
        await Write(memory.state, USED)
        await spin.unlock()
        await lock.write_unlock()

    async def uses() -> None:
        await Touch(memory)

    return make_machine(layout, [owner, uses])


def broken(explorer: Explorer) -> set[str]:
    return {found.prop for found in explorer.result.violations}


@pytest.mark.parametrize("reduce", [True, False])
def test_a_grace_period_that_starts_without_the_lock(reduce: bool) -> None:
    found = explore(late_section(writer_locks=False), reduce=reduce)
    assert broken(found) == {"exception"}
    relied_on = "grace periods of rcu start under the lock that shuts others out of it"
    assert found.result.mistrusted == ((relied_on,) if reduce else ())


@pytest.mark.parametrize("reduce", [True, False])
def test_with_the_lock_nobody_can_tell_when_the_section_began(reduce: bool) -> None:
    found = explore(late_section(writer_locks=True), reduce=reduce)
    assert broken(found) == set()
    assert found.result.mistrusted == ()


@pytest.mark.parametrize("reduce", [True, False])
def test_the_end_of_a_section_that_a_callback_waits_for_is_seen(reduce: bool) -> None:
    assert broken(explore(section_that_is_waited_for(), reduce=reduce)) == {"exception"}


def test_deadlocks_of_random_programs() -> None:
    """With locks; three were lost once.  What is freed early may end the search before."""
    kinds = (*WITH_RCU, "spin0", "spin0", "wlock", "rcu", "synchronize", "barrier", "wait")
    met = 0
    for seed in (1586, 2010, 2458, *range(1000, 1100)):
        program = random_program(seed, kinds)
        full = broken(explore(program.build(), reduce=NONE))
        met += "deadlock" in full
        for reduce in (ALL, ALL - {URGENT, BEGIN}):
            found = broken(explore(program.build(), reduce=reduce))
            assert found <= full, program
            assert found == full or "never-then" in found, program
    assert met >= 30
