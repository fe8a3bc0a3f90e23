"""The explorer against the plain one: the same properties break, the same ends are reached.

Random programs take locks, or forget to, wait for each other, choose, throw and use RCU.  For each
the plain explorer says what can come of it; the explorer must say the same, with reduction and
without, and without it no counterexample may be longer than need be.  At last the explorer is
broken on purpose, in one way after the other: the same comparison must notice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
from toys import (
    CHOICES,
    EVERYTHING,
    LOCKING,
    PLAIN,
    WITH_RCU,
    NeverThen,
    Program,
    Say,
    incr,
    lastzero,
    make_machine,
    mutex_incr,
    random_program,
    written,
)

from tdpmmu.kernel import locks
from tdpmmu.kernel.locks import RwLock, SpinLock, UnderSpin, UnderWriteLock
from tdpmmu.machine import op
from tdpmmu.machine.ghost import DISCIPLINE, HARM
from tdpmmu.machine.op import BOTH, LEFT, RIGHT, Choose, Read, WaitUntil, Write
from tdpmmu.machine.state import Layout, State
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore import search, turn
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.exploration import Budget, Counterexample
from tdpmmu.worlds.explore.reference import (
    PlainResult,
    explore_histories,
    replay,
)
from tdpmmu.worlds.explore.search import can_compile, explore

BUDGET = 4_000
"""Situations beyond which a program is too big to be compared."""


def final_states(explorer: Explorer) -> set[State]:
    """The states in which all threads have ended."""
    found = set()
    for key in explorer.order:
        number, positions = explorer.unpack(key)
        tables = zip(explorer.positions, positions, strict=True)
        if all(table.op(position) is None for table, position in tables):
            found.add(explorer.chunks.state(explorer.shared[number]))
    return found


def violated(explorer: Explorer) -> set[str]:
    """The names of the broken properties."""
    return {found.prop for found in explorer.result.violations}


def length(explorer: Explorer, found: Counterexample) -> int:
    """Turns: choices come with the operation after them, and what is done alone does not count."""
    threads = explorer.machine.threads
    return sum(not threads[turn.thread].alone for turn in found.turns)


def really_breaks(machine: Machine, found: Counterexample) -> bool:
    """Whether the schedule of a counterexample breaks that property on fresh coroutines."""
    schedule = [(turn.thread, which) for turn in found.turns for which in turn.alternatives]
    execution = replay(machine, schedule)
    if found.prop == "deadlock":
        # At a choice all of whose outcomes are blocked no turn is wasted on choosing.
        return execution.deadlocked or "?" in found.sentence
    return found.prop in {broken.prop for broken in execution.violations}


def differences(program: Program, plain: PlainResult, *, reduce: bool) -> list[str]:
    """In what the explorer disagrees with the plain one."""
    explorer = explore(program.build(), reduce=reduce)
    bad = []
    if not explorer.result.exhausted:
        bad.append("not exhausted")
    if violated(explorer) != plain.violated:
        bad.append(f"violated {violated(explorer)}, not {plain.violated}")
    if final_states(explorer) != plain.final:
        bad.append(f"{len(final_states(explorer))} final states, not {len(plain.final)}")
    for found in explorer.result.violations:
        if not really_breaks(program.build(), found):
            bad.append(f"the counterexample to {found.prop} is none")
        least = plain.shortest.get(found.prop, 0)
        # A thread may have to make its choice before it can be seen to wait.
        choices = str(program).count("Choose") + str(program).count("needbreak")
        most = least + (choices if found.prop == "deadlock" else 0)
        if not reduce and not least <= length(explorer, found) <= most:
            bad.append(f"{found.prop} takes {length(explorer, found)} turns, not {least}")
    return bad


LITMUS = (
    # Two increments under the read lock, where rivals may be.
    written(
        *["await rw.read_lock(); a = await Read(g_either); await Write(g_either, a + 1)"] * 2,
    ),
    # A reader without a lock between two writes.
    written(
        "await rw.write_lock(); await Write(g_published, 1); await Write(g_published, 2)",
        "a = await Read(g_published)",
    ),
    # The same where readers should hold a lock.
    written(
        "await spin0.lock(); await Write(g_spin, 1); await Write(g_spin, 2); await spin0.unlock()",
        "a = await Read(g_spin)",
    ),
    # What is done before the lock is taken can be seen before it is taken.
    written(
        "await Write(x, 1); await spin0.lock(); b = await Read(g_spin)",
        "a = await Read(x); await spin0.lock(); await Write(g_spin, 5); await spin0.unlock()",
    ),
    # What is done after the lock is given back can be seen later than that.
    written(
        "await spin0.lock(); await Write(g_spin, 5); await spin0.unlock(); await Write(x, 1)",
        "await spin0.lock(); a = await Read(g_spin); await spin0.unlock(); b = await Read(x)",
    ),
    # Two locks in both orders.
    written(
        "await spin0.lock(); await rw.write_lock(); await spin0.unlock()",
        "await rw.write_lock(); await spin0.lock(); await rw.write_unlock()",
    ),
    # A reader that waits behind a writer that waits behind a reader.
    written(
        "await rw.read_lock(); await WaitUntil(x, 1); await rw.read_unlock()",
        "await rw.write_lock(); await rw.write_unlock()",
        "await rw.read_lock(); await Write(x, 1); await rw.read_unlock()",
        queued=True,
    ),
    # Somebody comes to wait for the lock while it is held.
    written(
        "await rw.write_lock(); a = await rw.needbreak(); await rw.write_unlock()",
        "await rw.read_lock(); await rw.read_unlock()",
        queued=True,
    ),
)


@cache
def known(seed: int, kinds: Sequence[str]) -> tuple[Program, PlainResult]:
    """A program, and what can come of it."""
    program = random_program(seed, kinds)
    return program, explore_histories(program.build(), BUDGET)


def programs(kinds: Sequence[str], seeds: range) -> Iterator[tuple[Program, PlainResult]]:
    """A few known patterns, then random programs that are small enough to be compared."""
    for program in LITMUS:
        yield program, explore_histories(program.build())
    for seed in seeds:
        program, plain = known(seed, kinds)
        if plain.exhausted:
            yield program, plain


# --- programs whose numbers are published --------------------------------------------------------


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: incr(2, 2),
        lambda: incr(2, 3),
        lambda: incr(3, 2),
        lambda: mutex_incr(2, 2),
        lambda: mutex_incr(3, 2),
        lambda: lastzero(4),
    ],
    ids=["incr 2x2", "incr 2x3", "incr 3x2", "mutex 2x2", "mutex 3x2", "lastzero 4"],
)
def test_published_programs_end_alike(make: Callable[[], Machine], reduce: bool) -> None:
    explorer = explore(make(), reduce=reduce)
    plain = explore_histories(make())
    assert violated(explorer) == plain.violated == set()
    assert final_states(explorer) == plain.final


def test_reduction_reduces() -> None:
    assert explore(mutex_incr(3, 2)).result.states < 40
    assert explore(mutex_incr(3, 2), reduce=False).result.states > 100


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("number", range(len(LITMUS)))
def test_patterns(number: int, reduce: bool) -> None:
    program = LITMUS[number]
    assert differences(program, explore_histories(program.build()), reduce=reduce) == []


# --- random programs ------------------------------------------------------------------------------

FAMILIES = {
    "plain": (PLAIN, {"never-then": 10, "lockdep": 25}),
    "choices": (CHOICES, {"deadlock": 40, "exception": 4, "never-then": 10}),
    "locking": (LOCKING, {"deadlock": 20, "lockdep": 50, "never-then": 5}),
    "everything": (
        tuple(k for k in EVERYTHING if k not in WITH_RCU),
        {"deadlock": 40, "exception": 1},
    ),
}


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_programs(family: str, part: int) -> None:
    kinds, least = FAMILIES[family]
    met: Counter[str] = Counter()
    for program, plain in programs(kinds, range(1000 * part, 1000 * part + 200)):
        met.update(["program", *plain.violated])
        for reduce in (False, True):
            assert differences(program, plain, reduce=reduce) == [], program
    assert met["program"] >= 190
    for prop, count in least.items():
        assert met[prop] >= count, f"too few programs break {prop}: the test says little"


@pytest.mark.parametrize("part", [0, 1])
def test_random_programs_with_rcu(part: int) -> None:
    """With reduction RCU frees early: what it leaves out is tame, and what it reports is true."""
    met: Counter[str] = Counter()
    for program, plain in programs(WITH_RCU, range(1000 * part, 1000 * part + 200)):
        assert differences(program, plain, reduce=False) == [], program
        explorer = explore(program.build())
        assert violated(explorer) <= plain.violated, program
        assert final_states(explorer) <= plain.final, program
        if program.ghost[2] == "freed" and "never-then" in plain.violated:
            met["used after free"] += 1
            assert "never-then" in violated(explorer), program
    assert met["used after free"] >= 20


# --- what went wrong once -------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", [True, False])
def test_a_choice_that_blocks_though_another_does_not(reduce: bool) -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def body() -> None:
        if await Choose("wait?", (False, True)):
            await WaitUntil(x, 1)

    assert violated(explore(make_machine(layout, [body]), reduce=reduce)) == {"deadlock"}


@pytest.mark.parametrize("reduce", [True, False])
def test_who_runs_alone_does_not_start_in_a_deadlock_or_after_a_harm(reduce: bool) -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def stays() -> None:
        await WaitUntil(x, 1)

    async def harms() -> None:
        await Say(1)

    async def end() -> None:
        assert await Read(x) == 1

    found = explore(make_machine(layout, [stays], alone=[end]), reduce=reduce)
    assert violated(found) == {"deadlock"}
    machine = make_machine(layout, [harms], alone=[end], ghosts=[NeverThen(x, 0)])
    assert violated(explore(machine, reduce=reduce)) == {"never-then"}


@pytest.mark.parametrize("reduce", [True, False])
def test_who_runs_alone_and_never_ends_is_stuck(reduce: bool) -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def ends() -> None:
        await Write(x, 2)

    async def waits() -> None:
        await WaitUntil(x, 1)

    found = explore(make_machine(layout, [ends], alone=[waits]), reduce=reduce)
    assert violated(found) == {"deadlock"}


@pytest.mark.parametrize("reduce", [True, False])
def test_nothing_counts_after_a_harm(reduce: bool) -> None:
    layout = Layout()
    x = layout.cell("x", 0)
    spin = SpinLock(layout, "spin", chunk=layout.chunk("spin"))
    ghost, other = NeverThen(x, 0), NeverThen(x, 0)
    other.name = "another"  # type: ignore[misc]
    other.hears = (locks.BadUnlock,)  # type: ignore[misc]

    async def body() -> None:
        await Say(1)
        await spin.unlock()

    for kind, names in ((HARM, {"never-then"}), (DISCIPLINE, {"never-then", "another"})):
        ghost.kind = kind  # type: ignore[misc]
        machine = make_machine(layout, [body], ghosts=[ghost, other])
        assert violated(explore(machine, reduce=reduce)) == names


@pytest.mark.parametrize("reduce", [True, False])
def test_a_guard_that_is_not_kept_to(reduce: bool) -> None:
    layout = Layout()
    spin = SpinLock(layout, "spin", chunk=layout.chunk("spin"))
    x = layout.cell("x", 0, guard=UnderSpin(spin))

    async def keeps_to_it() -> None:
        await spin.lock()
        await Write(x, 1)
        await Write(x, 0)
        await spin.unlock()

    async def does_not() -> None:
        assert await Read(x) == 0

    found = explore(make_machine(layout, [keeps_to_it, does_not]), reduce=reduce)
    assert violated(found) == {"exception"}
    assert found.result.mistrusted == (("spin",) if reduce else ())


@pytest.mark.parametrize("reduce", [True, False])
def test_going_round_within_one_turn(reduce: bool) -> None:
    """Nobody can see what happens under the write lock, not even that it never ends."""
    layout = Layout()
    lock = RwLock(layout, "lock", chunk=layout.chunk("lock"))
    x = layout.cell("x", 0, guard=UnderWriteLock(lock))

    async def body() -> None:
        await lock.write_lock()
        while await Choose("again?", (True, False)):
            await Choose("left or right?", (0, 1))
            await Read(x)
        await Write(x, 1)

    found = explore(make_machine(layout, [body]), reduce=reduce)
    assert len(final_states(found)) == 1
    assert found.result.transitions < 100_000


# --- broken on purpose --------------------------------------------------------------------------


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *_: answer


def _copy(way: turn._Way) -> turn._Way:
    """The other outcomes of a choice see what the first one did."""
    other = COPY(way)
    other.row, other.changes = way.row, way.changes
    return other


COPY = turn._Way.copy

BROKEN: dict[str, tuple[Sequence[str], type[Any], str, Callable[..., Any]]] = {
    "reads in any order": (PLAIN, op.Read, "mover", _always(BOTH)),
    "writes in any order": (PLAIN, op.Write, "mover", _always(BOTH)),
    "writes that come with what follows": (PLAIN, op.Write, "mover", _always(RIGHT)),
    "a cmpxchg that comes with what precedes": (PLAIN, op.CmpXchg, "mover", _always(LEFT)),
    "waiting that nobody sees": (CHOICES, op.WaitUntil, "mover", _always(RIGHT)),
    "one outcome of each choice": (CHOICES, op.Choose, "alternatives", _always(1)),
    "outcomes that share a state": (CHOICES, turn._Way, "copy", _copy),
    "releases that wait": (LOCKING, locks.SpinRelease, "mover", _always(RIGHT)),
    "early acquisitions": (LOCKING, locks.SpinAcquire, "mover", _always(LEFT)),
    "a queue that nobody joins": (LOCKING, locks.NeedBreak, "mover", _always(BOTH)),
    "guards that see nothing": (LOCKING, locks.UnderSpin, "allows", _always(True)),
    "readers that exclude each other": (
        LOCKING,
        locks.UnderWriteLock,
        "nobody_looks",
        locks.UnderWriteLock.nobody_writes,
    ),
    "visitors without rivals": (LOCKING, locks.Visitors, "no_rivals", _always(True)),
    "deadlocks that nobody reports": (LOCKING, Explorer, "_halted", _always(None)),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_explorer_is_noticed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds, owner, name, broken = BROKEN[how]
    for program, plain in programs(kinds, range(200)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            explorer = explore(program.build())
            if violated(explorer) != plain.violated or final_states(explorer) != plain.final:
                return
    pytest.fail("nobody noticed")


@pytest.mark.parametrize("loop", [search.PLAIN, search.COMPILED])
@pytest.mark.parametrize("states", [1, 20, 100])
def test_cut_short_all_within_some_turns_was_seen(loop: str, states: int) -> None:
    if loop == search.COMPILED and not can_compile():
        pytest.skip("numba is not there")
    whole = explore(mutex_incr(3, 2), reduce=False)
    assert whole.result.within == 0
    part = explore(mutex_incr(3, 2), reduce=False, budget=Budget(states=states), loop=loop)
    away = [0] * len(whole.order)
    for number in range(1, len(whole.order)):
        away[number] = away[whole.parents[number]] + 1
    # Both meet the same states in the same order; those with successors of their own were searched.
    within, searched = part.result.within, max(part.parents[n] for n in range(len(part.order)))
    assert all(turns >= within for turns in away[searched + 1 :])
    first_missing = away[len(part.order)]
    assert first_missing - 2 <= within < first_missing
