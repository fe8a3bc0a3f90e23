"""The replaying world: what it reports of each operation, and schedules that do not fit."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any, ClassVar

import pytest

from tdpmmu.events.records import Event, Warned
from tdpmmu.kernel.locks import RwLock
from tdpmmu.machine.ghost import HARM, Ghost
from tdpmmu.machine.op import Add, Choose, Emit, Read, Step, Write
from tdpmmu.machine.state import Layout
from tdpmmu.machine.thread import Machine, Thread
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.versions.registry import kernel_class
from tdpmmu.worlds.explore.search import explore
from tdpmmu.worlds.replay import (
    Place,
    Replay,
    ReplayError,
    Run,
    cut,
    loop_of,
    replay,
    run_of,
    schedule_of,
)

Start = Callable[[], Coroutine[Any, Any, Any]]


def machine(layout: Layout, *threads: Start, ghosts: tuple[Ghost, ...] = ()) -> Machine:
    named = [Thread(f"T{i}", start) for i, start in enumerate(threads)]
    return Machine(layout, named, list(ghosts), layout.initial())


class NoWarning(Ghost):
    name: ClassVar[str] = "no-warning"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "a warning"
    hears: ClassVar[tuple[type[Event], ...]] = (Warned,)

    def observe(self, step: Step, event: Event) -> None:
        step.violate(self, repr(event))


def test_a_record_says_what_the_operation_did() -> None:
    layout = Layout()
    x = layout.cell("x", 1)

    async def bump() -> None:
        await Add(x, 2)

    async def thread() -> None:
        await bump()
        await Emit(Warned("now"))

    ghost = NoWarning()
    first, second = replay(machine(layout, thread, ghosts=(ghost,)), [Run(0, 2)])
    assert (first.number, first.run, first.thread, first.name) == (1, 0, 0, "T0")
    assert first.op == Add(x, 2)
    assert first.result == 3
    assert first.before == ((1,),)
    assert first.after == ((3,),)
    assert first.events == ()
    assert second.before is first.after
    assert second.events == (Warned("now"),)
    assert second.violations == ((ghost, "Warned(what='now')"),)


def test_calls_of_one_function_are_told_apart() -> None:
    layout = Layout()
    x = layout.cell("x", 1)

    async def bump(amount: int) -> None:
        amount = await Add(x, amount)
        await Add(x, amount)

    async def thread() -> None:
        await bump(2)
        await bump(3)

    inner = [record.place[-1] for record in replay(machine(layout, thread), [Run(0, 4)])]
    assert [place.arguments for place in inner] == [(("amount", 2),)] * 2 + [(("amount", 3),)] * 2
    calls = [place.call for place in inner]
    assert calls[0] == calls[1] != calls[2] == calls[3]
    assert inner[0] == inner[2]  # the same place, whoever calls


def test_a_record_says_where_the_thread_stands() -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def inner() -> None:
        await Read(x)

    async def outer() -> None:
        await inner()

    (record,) = replay(machine(layout, outer), [Run(0, 1)])
    line = inner.__code__.co_firstlineno + 1
    functions = [place.function.rpartition(".")[2] for place in record.place]
    assert functions == ["outer", "inner"]
    assert record.place[-1] == Place(inner.__qualname__, __file__, line)


def test_choices_take_the_alternative_of_the_schedule() -> None:
    layout = Layout()
    x = layout.cell("x", None)

    async def thread() -> None:
        await Read(x)
        await Write(x, await Choose("which", ("a", "b", "c")))

    built = machine(layout, thread)
    for alternative, option in enumerate("abc"):
        records = list(replay(built, [run_of(0, (0, alternative, 0))]))
        assert records[-1].after == ((option,),)
        assert (records[1].alternative, records[1].alternatives) == (alternative, 3)


def two_writers() -> tuple[Machine, RwLock]:
    layout = Layout()
    lock = RwLock(layout, "mmu_lock", chunk=layout.chunk("locks"))

    async def thread() -> None:
        await lock.write_lock()
        await lock.write_unlock()

    return machine(layout, thread, thread), lock


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            [Run(0, 1), Run(1, 1)],
            "operation 2: T1 is blocked at write_lock(mmu_lock), but the schedule lets it run",
        ),
        (
            [Run(0, 3)],
            "operation 3: T0 has come to its end, but the schedule goes on with it",
        ),
        (
            [Run(0, 2, ((1, 4),))],
            "operation 2: T0 at write_unlock(mmu_lock) has 1 alternatives, so there is no number 4",
        ),
        ([Run(2, 1)], "run 1 is of thread 2, but there are only 2 threads"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(schedule: list[Run], message: str) -> None:
    built, _ = two_writers()
    with pytest.raises(ReplayError) as caught:
        list(replay(built, schedule))
    assert str(caught.value) == message


def test_what_came_before_the_misfit_is_still_told() -> None:
    built, _ = two_writers()
    records = replay(built, [Run(0, 1), Run(1, 1)])
    assert next(records).number == 1
    with pytest.raises(ReplayError):
        next(records)


def test_waiting_threads_are_a_deadlock_only_if_nobody_can_move() -> None:
    built, lock = two_writers()
    run = Replay(built, [Run(0, 1)])
    list(run)
    assert run.waiting() == []

    layout = Layout()
    lock = RwLock(layout, "mmu_lock", chunk=layout.chunk("locks"))

    async def twice() -> None:
        await lock.write_lock()
        await lock.write_lock()

    run = Replay(machine(layout, twice), [Run(0, 1)])
    list(run)
    assert [(who, op.describe()) for who, op in run.waiting()] == [(0, "write_lock(mmu_lock)")]
    run.close()


def test_an_exception_ends_the_thread_in_the_explorers_words() -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def thread() -> None:
        await Read(x)
        raise KeyError("gone")

    built = machine(layout, thread)
    (found,) = explore(built).result.violations
    (record,) = replay(built, schedule_of(found.turns))
    assert found.prop == "exception"
    assert record.failure == found.sentence
    assert str(thread.__code__.co_firstlineno + 2) in found.sentence


def test_turns_in_a_row_become_one_run() -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def thread() -> None:
        for _ in range(4):
            await Add(x, 1)

    explorer = explore(machine(layout, thread, thread), reduce=False)
    turns = explorer.path(len(explorer.order) - 1)
    schedule = schedule_of(turns)
    assert len(turns) == 8
    assert sum(run.operations for run in schedule) == 8
    assert all(one.thread != two.thread for one, two in pairwise(schedule))


def test_cutting_a_schedule() -> None:
    schedule = (run_of(0, (0, 1, 0)), run_of(1, (0, 2)))
    assert cut(schedule, 5) == schedule
    assert cut(schedule, 4) == (schedule[0], Run(1, 1))
    assert cut(schedule, 2) == (Run(0, 2, ((1, 1),)),)
    assert cut(schedule, 0) == ()


def test_a_run_that_comes_back_is_a_loop() -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def thread() -> None:
        await Write(x, 1)
        while True:
            await Write(x, 2)
            await Write(x, 1)

    built = machine(layout, thread)
    run = Replay(built, [Run(0, 5)])
    records = list(run)
    assert loop_of(records, run.standing()) == 4
    run.close()

    run = Replay(built, [Run(0, 2)])
    records = list(run)
    assert loop_of(records, run.standing()) is None
    run.close()


@pytest.mark.parametrize("reduce", [True, False])
def test_replays_of_the_explorers_paths_end_in_the_explorers_states(reduce: bool) -> None:
    scenario = NxRecovery(legacy=0, roots=1, vcpus=1)
    built = scenario.build(kernel_class("5.12"))
    explorer = explore(built.machine, reduce=reduce)
    pick = random.Random(7)
    for number in pick.sample(range(len(explorer.order)), 25):
        run = Replay(built.machine, schedule_of(explorer.path(number)))
        for _ in run:
            pass
        shared, positions = explorer.unpack(explorer.order[number])
        assert explorer.chunks.intern(run.state) == explorer.shared[shared]
        ops = [table.op(pos) for table, pos in zip(explorer.positions, positions, strict=True)]
        assert [op for _, op in run.standing()] == ops
        run.close()
