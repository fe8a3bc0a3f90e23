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

from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Choose, Emit, Read, WaitUntil, Write
from tdpmmu.machine.state import Layout
from tdpmmu.machine.thread import Machine
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.versions.registry import apply, kernel_class, patch_class
from tdpmmu.worlds.explore import progress
from tdpmmu.worlds.explore.engine import Budget, Counterexample, Explorer, explore
from tdpmmu.worlds.explore.progress import check_progress, components
from tdpmmu.worlds.explore.reference import replay
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


def test_the_walk_around_is_no_longer_than_need_be() -> None:
    """Of a big knot of states, a fair walk needs a few."""
    layout = Layout()
    cells = [layout.cell(f"c{i}", 0) for i in range(6)]
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
    kernel = apply(kernel_class("5.12"), *patches)
    scenario = NxRecovery(vcpus=0, unmap=False, roots=1, legacy=0)
    found = livelock(scenario.build(kernel).machine, reduce=reduce)
    assert (found is not None) == patched
    if found is not None:
        assert "nx recovery at " in found.sentence
        assert "tdp_" in found.sentence


# --- the other way round --------------------------------------------------------------------------


def reach(edges: set[tuple[int, int]]) -> dict[int, set[int]]:
    """For each node where its edges lead, in one step or more."""
    ahead: dict[int, set[int]] = {}
    for tail, head in edges:
        ahead.setdefault(tail, set()).add(head)
    found = {}
    for node in ahead:
        seen: set[int] = set()
        todo = list(ahead[node])
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += ahead.get(one, ())
        found[node] = seen
    return found


def somebody_goes_round(explorer: Explorer) -> bool:
    """Whether there is a state to which some set of threads can return, all of them moving.

    And each of the others must be unable to move somewhere on the way.
    """
    threads = range(len(explorer.machine.threads))
    edges: dict[tuple[int, int], set[int]] = {}
    for key in explorer.order:
        number, positions = explorer.unpack(key)
        for thread in threads:
            where = (explorer.shared[number], thread, positions[thread])
            for turn in explorer.turns.take(*where):
                after = list(positions)
                after[thread] = turn.position
                target = explorer.intern(turn.shared) << explorer.shift
                for i, position in enumerate(after):
                    target |= position << explorer.bits * i
                if not turn.progress and target in explorer.number:
                    edges.setdefault((key, target), set()).add(thread)
    for size in range(1, len(threads) + 1):
        for movers in combinations(threads, size):
            mine = {edge for edge, by in edges.items() if by & set(movers)}
            ahead = reach(mine)
            for start in ahead:
                if start not in ahead[start]:
                    continue
                knot = {n for n in ahead[start] if start in ahead.get(n, ())}
                inside = [by for edge, by in edges.items() if knot.issuperset(edge)]
                if all(
                    any(t in by for by in inside)
                    if t in movers
                    else any(not moves(explorer, key, t) for key in knot)
                    for t in threads
                ):
                    return True
    return False


def test_random_rounds() -> None:
    met: Counter[bool] = Counter()
    for seed in range(300):
        machine = random_rounds(seed)
        explorer = explore(machine, reduce=False, budget=Budget(states=150))
        if not explorer.result.exhausted:
            continue
        expected = somebody_goes_round(explorer)
        met[expected] += 1
        assert (livelock(machine, reduce=False) is not None) == expected, seed
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
