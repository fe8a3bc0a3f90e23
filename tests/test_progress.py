"""Livelocks: found where there is one, fair, and told apart from mere waiting.

Small machines by hand, then random ones against a check that is written the other way round: it
looks at every set of threads that might be the ones to move for ever.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import pytest
from toys import PROGRESS, bounce, make_machine, mutex_incr, random_rounds, spin

from tdpmmu.events.records import LockTaken
from tdpmmu.kernel.locks import SpinLock
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Choose, Emit, Read, WaitUntil, Write
from tdpmmu.machine.state import Layout
from tdpmmu.machine.thread import Machine
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.versions.registry import apply, kernel_class, patch_class
from tdpmmu.worlds.explore import progress
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.exploration import Budget, Counterexample
from tdpmmu.worlds.explore.progress import check_progress, components
from tdpmmu.worlds.explore.reference import replay
from tdpmmu.worlds.explore.search import explore
from tdpmmu.worlds.explore.turn import is_progress

both = pytest.mark.parametrize("reduce", [True, False])


def livelock(machine: Machine, *, reduce: bool = True) -> Counterexample | None:
    """What the check finds; whatever it finds is held to be true first."""
    explorer = explore(machine, reduce=reduce)
    assert check_progress(explorer) == explorer.result.liveness == "checked"
    found = [one for one in explorer.result.violations if one.prop == "no-progress"]
    if not found:
        return None
    [one] = found
    assert one.kind == HARM
    assert_goes_round(explorer, one)
    return one


def assert_goes_round(explorer: Explorer, found: Counterexample) -> None:
    """The way to the cycle leads there; the cycle closes, is fair, and nobody gets on in it."""
    into = len(explorer.path(found.state))
    round_ = found.turns[into:]
    assert round_
    assert not any(is_progress(event) for turn in round_ for event in turn.events)
    states = [explorer.order[found.state]]
    for turn in round_:
        number, positions = explorer.unpack(states[-1])
        where = (explorer.shared[number], turn.thread, positions[turn.thread])
        assert turn in list(explorer.turns.take(*where))
        positions[turn.thread] = turn.position
        key = explorer.intern(turn.shared) << explorer.shift
        for thread, position in enumerate(positions):
            key |= position << explorer.bits * thread
        states.append(key)
    assert states[0] == states[-1]
    movers = {turn.thread for turn in round_}
    for thread, one in enumerate(explorer.machine.threads):
        if thread not in movers and not one.alone:
            assert any(not moves(explorer, key, thread) for key in states), one.name
    for thread, one in enumerate(explorer.machine.threads):
        assert (one.name in found.sentence.split("; waiting: ")[0]) == (thread in movers)
    # And it can be done, as often as one likes, by anybody who follows the schedule.
    schedule = [(turn.thread, which) for turn in found.turns for which in turn.alternatives]
    again = [(turn.thread, which) for turn in round_ for which in turn.alternatives]
    once = replay(explorer.machine, schedule).state
    assert replay(explorer.machine, schedule + again + again).state == once


def moves(explorer: Explorer, key: int, thread: int) -> bool:
    """Whether a thread is enabled in a state."""
    number, positions = explorer.unpack(key)
    return any(explorer.turns.take(explorer.shared[number], thread, positions[thread]))


# --- by hand --------------------------------------------------------------------------------------


@both
def test_a_flag_that_bounces_for_ever(reduce: bool) -> None:
    found = livelock(bounce(), reduce=reduce)
    assert found is not None
    assert [turn.thread for turn in found.turns] == [0, 0, 1, 1]
    assert found.sentence.startswith("this can go on for ever, and nobody gets on: T0 at wait for ")
    assert "T1 at wait for flag == 1 in " in found.sentence
    assert "(toys.py:" in found.sentence


@both
def test_a_cycle_with_progress_is_none(reduce: bool) -> None:
    assert livelock(bounce(progress=True), reduce=reduce) is None


@both
def test_spinning_is_fair_only_if_the_owner_cannot_move(reduce: bool) -> None:
    assert livelock(spin(owner="sets"), reduce=reduce) is None
    ended = livelock(spin(owner="ends"), reduce=reduce)
    assert ended is not None
    assert [turn.thread for turn in ended.turns] == [0, 1, 0]
    assert "waiting" not in ended.sentence
    blocked = livelock(spin(owner="waits"), reduce=reduce)
    assert blocked is not None
    assert "; waiting: T1 at wait for other == 1" in blocked.sentence


@both
def test_a_deadlock_is_no_livelock(reduce: bool) -> None:
    assert livelock(bounce(partner="ends"), reduce=reduce) is None


@both
def test_a_choice_may_always_go_the_same_way(reduce: bool) -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def again_and_again() -> None:
        while await Choose("again?", (True, False)):
            await Read(x)

    assert livelock(make_machine(layout, [again_and_again]), reduce=reduce) is not None


@both
def test_one_of_two_ways_between_the_same_states_is_progress(reduce: bool) -> None:
    """Two turns with one outcome: the cycle takes the one without progress."""
    layout = Layout()
    x = layout.cell("x", 0)

    async def body(ways: tuple[bool, ...]) -> None:
        while True:
            gets_on = await Choose("which?", ways)
            if gets_on:
                await Emit(PROGRESS)
            await Write(x, 0)

    assert livelock(make_machine(layout, [lambda: body((True, False))]), reduce=reduce) is not None
    assert livelock(make_machine(layout, [lambda: body((True, True))]), reduce=reduce) is None


@both
def test_who_runs_alone_can_go_round_too(reduce: bool) -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def ends() -> None:
        await Write(x, 1)
        await Read(x)

    async def spins() -> None:
        while await Read(x) == 1:
            pass

    found = livelock(make_machine(layout, [ends], alone=[spins]), reduce=reduce)
    assert found is not None
    assert found.turns[-1].thread == 1


@both
def test_who_runs_alone_at_the_end_cannot_help(reduce: bool) -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def spins() -> None:
        while await Read(x) == 0:
            pass

    async def end() -> None:
        await Write(x, 1)

    found = livelock(make_machine(layout, [spins], alone=[end]), reduce=reduce)
    assert found is not None
    assert "end0" not in found.sentence


@both
def test_who_was_cut_off_by_a_harm_could_have_moved(reduce: bool) -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def spins() -> None:
        while await Read(x) == 0:
            pass

    async def fails() -> None:
        await Write(x, 1)
        raise RuntimeError

    assert livelock(make_machine(layout, [spins, fails]), reduce=reduce) is None


def locking(*, leaves: bool) -> Machine:
    """One thread takes a lock again and again, another waits for it.

    The first ``leaves`` each time, or it may stay inside for as long as it likes.
    """
    layout = Layout()
    lock = SpinLock(layout, "lock", chunk=layout.chunk("lock"))
    x = layout.cell("x", 0)

    async def again_and_again() -> None:
        while True:
            await lock.lock()
            await Write(x, 1)
            if not leaves:
                while await Choose("stay?", (True, False)):
                    await Read(x)
            await Write(x, 0)
            await lock.unlock()

    async def waits() -> None:
        await lock.lock()
        await Read(x)
        await lock.unlock()
        await WaitUntil(x, 2)

    return make_machine(layout, [again_and_again, waits])


@both
def test_locks_are_queues(reduce: bool) -> None:
    """The other is not passed for ever, but it waits for ever for one that stays inside."""
    found = livelock(locking(leaves=True), reduce=reduce)
    assert found is not None
    assert "; waiting: T1 at wait for x == 2" in found.sentence
    found = livelock(locking(leaves=False), reduce=reduce)
    assert found is not None
    assert "; waiting: T1 at spin_lock(lock)" in found.sentence


def test_who_can_take_a_lock_at_any_time_does_not_wait_for_it() -> None:
    layout = Layout()
    lock = SpinLock(layout, "lock", chunk=layout.chunk("lock"))
    x = layout.cell("x", 0)

    async def spins() -> None:
        while await Read(x) == 0:
            pass

    async def owner() -> None:
        await lock.lock()
        await Write(x, 1)

    assert livelock(make_machine(layout, [spins, owner]), reduce=False) is None


def test_the_walk_around_is_no_longer_than_need_be() -> None:
    """Of a big knot of states, a fair walk needs a few."""
    layout = Layout()
    cells = tuple(layout.cell(f"c{i}", 0) for i in range(6))
    stop = layout.cell("stop", 0)

    async def flips() -> None:
        while True:
            which = await Choose("which?", tuple(range(6)))
            value = await Choose("to what?", (0, 1))
            await Write(cells[which], value)

    async def waits() -> None:
        await WaitUntil(stop, 1)

    found = livelock(make_machine(layout, [flips, waits]), reduce=False)
    assert found is not None
    assert len(found.turns) == 1


def test_a_search_cut_short_says_so() -> None:
    explorer = explore(bounce(), budget=Budget(states=1))
    assert check_progress(explorer) == "not checked: search not exhausted"
    assert explorer.result.liveness == "not checked: search not exhausted"
    assert explorer.result.violations == []


def test_nothing_goes_round_in_straight_code() -> None:
    assert livelock(mutex_incr(3, 2)) is None


# --- the review's patch ---------------------------------------------------------------------------


@both
@pytest.mark.parametrize("patched", [True, False])
def test_nx_recovery_that_may_yield_where_it_stands(reduce: bool, patched: bool) -> None:
    """Without the rule that a walk has to get on before it yields again, recovery need not end."""
    patches = [patch_class("no-forward-progress")] if patched else []
    kernel = apply(kernel_class("5.12-rc4"), *patches)
    scenario = NxRecovery(vcpus=0, unmap=False, roots=1, legacy=0)
    found = livelock(scenario.build(kernel).machine, reduce=reduce)
    assert (found is not None) == patched
    if found is not None:
        assert "nx recovery at " in found.sentence
        assert "tdp_" in found.sentence


# --- the other way round --------------------------------------------------------------------------


Graph = dict[tuple[int, int], list[tuple[int, frozenset[str]]]]
"""For two states, the turns between them: the thread, and the locks it takes."""


def graph_without_progress(explorer: Explorer) -> Graph:
    """Every turn anew, from every state."""
    graph: Graph = {}
    for key in explorer.order:
        number, positions = explorer.unpack(key)
        for thread in range(len(positions)):
            where = (explorer.shared[number], thread, positions[thread])
            for turn in explorer.turns.take(*where):
                after = list(positions)
                after[thread] = turn.position
                target = explorer.intern(turn.shared) << explorer.shift
                for i, position in enumerate(after):
                    target |= position << explorer.bits * i
                if not turn.progress and target in explorer.number:
                    taken = frozenset(e.lock for e in turn.events if isinstance(e, LockTaken))
                    graph.setdefault((key, target), []).append((thread, taken))
    return graph


def reached(start: int, edges: set[tuple[int, int]]) -> set[int]:
    """Where edges lead from a state, in one step or more."""
    ahead: dict[int, set[int]] = {}
    for tail, head in edges:
        ahead.setdefault(tail, set()).add(head)
    seen: set[int] = set()
    todo = list(ahead.get(start, ()))
    while todo:
        one = todo.pop()
        if one not in seen:
            seen.add(one)
            todo += ahead.get(one, ())
    return seen


def somebody_goes_round(explorer: Explorer) -> bool:
    """Whether there is a state to which some set of threads can return, all of them moving.

    Each of the others must be unable to move somewhere on the way, and if it is in line for a lock
    nobody may take that.
    """
    threads = set(range(len(explorer.machine.threads)))
    graph = graph_without_progress(explorer)
    for start in explorer.order:
        _, positions = explorer.unpack(start)
        ops = [explorer.positions[t].op(position) for t, position in enumerate(positions)]
        for size in range(1, len(threads) + 1):
            for movers in map(set, combinations(threads, size)):
                lines = {
                    op.waits_in_line_for for op in map(ops.__getitem__, threads - movers) if op
                }
                mine = {
                    edge: {t for t, taken in turns if t in movers and not taken & lines}
                    for edge, turns in graph.items()
                }
                edges = {edge for edge, by in mine.items() if by}
                backwards = {(head, tail) for tail, head in edges}
                knot = reached(start, edges) & reached(start, backwards)
                if start not in knot:
                    continue
                moving = {t for edge, by in mine.items() if knot.issuperset(edge) for t in by}
                if moving == movers and all(
                    any(not moves(explorer, key, t) for key in knot) for t in threads - movers
                ):
                    return True
    return False


def test_random_rounds() -> None:
    met: Counter[bool] = Counter()
    for seed in range(300):
        machine = random_rounds(seed)
        explorer = explore(machine, reduce=False, budget=Budget(states=60))
        if not explorer.result.exhausted:
            continue
        expected = somebody_goes_round(explorer)
        met[expected] += 1
        for reduce in (False, True):
            assert (livelock(random_rounds(seed), reduce=reduce) is not None) == expected, seed
    assert met[True] >= 60
    assert met[False] >= 60


# --- its parts ------------------------------------------------------------------------------------


def test_components() -> None:
    #  0 -> 1 -> 2 -> 0,  2 -> 3 -> 4 -> 3,  5 -> 5,  6 -> 0,  7
    edges = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 3), (5, 5), (6, 0)]
    of = components(8, [tail for tail, _ in edges], [head for _, head in edges])
    assert of[0] == of[1] == of[2]
    assert of[3] == of[4]
    assert len(set(of)) == 5
    assert list(components(0, [], [])) == []


def test_components_of_a_long_path_and_back() -> None:
    nodes = 20_000
    around = list(components(nodes, range(nodes), [*range(1, nodes), 0]))
    assert set(around) == {0}
    along = components(nodes, range(nodes - 1), range(1, nodes))
    assert len(set(along)) == nodes


def test_edges_are_thinned_out_before_states_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a state was looked at")

    monkeypatch.setattr(progress, "_searched", never)
    assert check_progress(explore(mutex_incr(3, 2))) == "checked"
    with pytest.raises(AssertionError, match="a state was looked at"):
        check_progress(explore(bounce()))
