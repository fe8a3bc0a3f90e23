"""The plain explorer against published numbers, and against itself done in another way.

Numbers: complete executions of ``incr``, ``mutex`` and ``lastzero`` as GenMC and Nidhugg report
them under sequential consistency; plain interleavings are multinomial coefficients.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from toys import (
    CHOICES,
    LOCKING,
    WITH_RCU,
    NeverAfter,
    NeverThen,
    Say,
    incr,
    lastzero,
    make_machine,
    mutex_incr,
    random_program,
)

from tdpmmu.kernel.locks import SpinLock
from tdpmmu.machine.ghost import DISCIPLINE
from tdpmmu.machine.op import Add, Choose, Read, WaitUntil, Write
from tdpmmu.machine.state import Layout
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.reference import (
    LONGEST,
    enumerate_executions,
    equivalence_classes,
    explore_histories,
    explore_plain,
    replay,
    trace,
)

# --- published numbers --------------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "times", "count"), [(2, 2, 70), (2, 3, 924), (3, 2, 34_650)])
def test_interleavings_of_incr(threads: int, times: int, count: int) -> None:
    assert sum(1 for _ in enumerate_executions(incr(threads, times))) == count
    assert explore_histories(incr(threads, times)).executions == count


@pytest.mark.parametrize(("threads", "times", "count"), [(2, 2, 34), (2, 3, 328), (3, 2, 7_134)])
def test_classes_of_incr(threads: int, times: int, count: int) -> None:
    assert equivalence_classes(incr(threads, times)) == count


@pytest.mark.parametrize(("threads", "count"), [(2, 6), (3, 90)])
def test_classes_of_increments_under_a_lock(threads: int, count: int) -> None:
    assert equivalence_classes(mutex_incr(threads, 2)) == count


def test_classes_of_lastzero() -> None:
    assert equivalence_classes(lastzero(5)) == 64


@pytest.mark.parametrize(
    "make", [lambda: incr(2, 3), lambda: mutex_incr(2, 2), lambda: lastzero(2)]
)
def test_classes_are_the_traces_of_the_executions(make: Callable[[], Machine]) -> None:
    traces = {trace(execution.operations) for execution in enumerate_executions(make())}
    assert len(traces) == equivalence_classes(make())


def test_lost_updates() -> None:
    def ends(machine: Machine) -> set[int]:
        x = next(cell for cell in machine.layout.cells if cell.name == "x")
        return {state[x.chunk][x.offset] for state in explore_plain(machine).final}

    # Of T times K increments as few as two can survive, whatever T and K are, if K > 1.
    assert ends(incr(2, 2)) == {2, 3, 4}
    assert ends(incr(2, 3)) == {2, 3, 4, 5, 6}
    assert ends(mutex_incr(2, 2)) == {4}


# --- what an execution is ------------------------------------------------------------------------


def test_deadlock_of_two_locks_in_both_orders() -> None:
    layout = Layout()
    locks = [SpinLock(layout, name, chunk=layout.chunk(name)) for name in "ab"]

    async def body(first: SpinLock, second: SpinLock) -> None:
        await first.lock()
        await second.lock()
        await second.unlock()
        await first.unlock()

    machine = make_machine(layout, [lambda: body(*locks), lambda: body(*locks[::-1])])
    result = explore_plain(machine)
    assert result.exhausted
    assert result.shortest == {"deadlock": 2}
    assert [[cell for chunk in state for cell in chunk] for state in result.deadlocks] == [[0, 1]]
    # Both have taken their first lock, in one order or the other.
    assert [e.deadlocked for e in enumerate_executions(machine)].count(True) == 2


def test_harm_ends_an_execution_and_a_breach_of_discipline_does_not() -> None:
    def machine(kind: str) -> Machine:
        layout = Layout()
        x = layout.cell("x", 0)
        ghost = NeverThen(x, 0)
        ghost.kind = kind  # type: ignore[misc]

        async def body() -> None:
            await Say(1)
            await Write(x, 2)

        return make_machine(layout, [body], ghosts=[ghost])

    [harmed] = enumerate_executions(machine("harm"))
    assert (len(harmed.operations), harmed.complete, harmed.harmed) == (1, False, True)
    [breached] = enumerate_executions(machine(DISCIPLINE))
    assert (len(breached.operations), breached.complete, breached.harmed) == (2, True, False)
    for kind, final in (("harm", set()), (DISCIPLINE, {((2,),)})):
        for explore in (explore_plain, explore_histories):
            result = explore(machine(kind))
            assert result.shortest == {"never-then": 1}
            assert result.final == final


def test_a_ghost_that_remembers_tells_orders_apart() -> None:
    layout = Layout()
    ghost = NeverAfter(layout, 1, 2)

    async def body(word: int) -> None:
        await Say(word)

    machine = make_machine(layout, [lambda: body(1), lambda: body(2)], ghosts=[ghost])
    assert [len(e.violations) for e in enumerate_executions(machine)] == [1, 0]


def test_who_runs_alone_waits_for_all_others_to_end() -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def body() -> None:
        await Add(x, 1)

    async def end() -> None:
        assert await Read(x) == 2
        await WaitUntil(x, 3)

    result = explore_plain(make_machine(layout, [body, body], alone=[end]))
    assert result.violated == {"deadlock"}
    assert result.executions == 2

    async def stays() -> None:
        await WaitUntil(x, 3)

    [execution] = enumerate_executions(make_machine(layout, [stays], alone=[end]))
    assert execution.deadlocked
    assert execution.operations == ()


def test_exceptions_are_harm_wherever_they_come_from() -> None:
    layout = Layout()
    x = layout.cell("x", "text")

    async def at_once() -> None:
        raise ValueError("at once")

    async def after_an_operation() -> None:
        await Read(x)
        raise ValueError("later")

    async def in_an_operation() -> None:
        await Read(x)
        await Add(x, 1)

    for body, length in ((at_once, 0), (after_an_operation, 1), (in_an_operation, 2)):
        [execution] = enumerate_executions(make_machine(layout, [body]))
        assert [v.prop for v in execution.violations] == ["exception"]
        assert len(execution.operations) == length
        for explore in (explore_plain, explore_histories):
            assert explore(make_machine(layout, [body])).shortest == {"exception": length}


def test_choices_are_tried_and_come_with_the_operation_after_them() -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def body() -> None:
        first = await Choose("first", (1, 2))
        second = await Choose("second", (10, 20, 30))
        await Write(x, first + second)
        assert first + second != 32
        await Choose("last", (1, 2))

    machine = make_machine(layout, [body])
    result = explore_plain(machine)
    assert result.executions == 11
    assert {state[0][0] for state in result.final} == {11, 21, 31, 12, 22}
    assert result.shortest == {"exception": 1}
    assert [max(e.cost(4) for e in enumerate_executions(machine))] == [2]


def test_limits() -> None:
    assert len(list(enumerate_executions(incr(2, 2), limit=5))) == 5
    assert not explore_plain(incr(2, 2), budget=69).exhausted
    assert explore_plain(incr(2, 2), budget=70).exhausted
    assert not explore_histories(incr(2, 2), budget=20).exhausted

    layout = Layout()
    x = layout.cell("x", 0)

    async def spins() -> None:
        while await Read(x) == 0:
            pass

    machine = make_machine(layout, [spins])
    [execution] = enumerate_executions(machine)
    assert len(execution.operations) == LONGEST
    assert (execution.deadlocked, execution.complete, execution.harmed) == (False,) * 3
    assert not explore_plain(machine).exhausted
    assert not explore_histories(machine).exhausted


def test_replay() -> None:
    execution = list(enumerate_executions(incr(2, 2)))[40]
    assert replay(incr(2, 2), execution.schedule).state == execution.state
    with pytest.raises(ValueError, match="move 4 of thread 0 is impossible"):
        replay(incr(2, 2), [(0, 0)] * 5)


# --- one way and the other -----------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [CHOICES, LOCKING, WITH_RCU])
def test_telling_histories_apart_loses_nothing(kinds: tuple[str, ...]) -> None:
    compared = 0
    for seed in range(60):
        program = random_program(seed, kinds, operations=3)
        plain = explore_plain(program.build(), budget=250)
        if not plain.exhausted:
            continue
        compared += 1
        clever = explore_histories(program.build())
        assert clever == plain, program
    assert compared >= 30
