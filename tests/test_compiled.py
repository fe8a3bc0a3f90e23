"""The compiled loop against the plain one: the same states in the same order, the same findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from toys import CHOICES, EVERYTHING, LOCKING, WITH_RCU, incr, mutex_incr, random_program

from tdpmmu.machine.thread import Machine
from tdpmmu.scenarios.question import ask
from tdpmmu.scenarios.zoo import entries
from tdpmmu.scenarios.zoo.run import BUG, FIXED, question
from tdpmmu.worlds.explore import engine
from tdpmmu.worlds.explore.engine import COMPILED, PLAIN, Budget, Counterexample, Explorer, explore
from tdpmmu.worlds.explore.progress import check_progress, edges_on_cycles

pytest.importorskip("numba")

from tdpmmu.worlds.explore.fast import control, kernels, loop
from tdpmmu.worlds.explore.fast.known import Known
from tdpmmu.worlds.explore.fast.store import Store

FIGURES = (
    "states",
    "transitions",
    "depth",
    "shared",
    "positions",
    "exhausted",
    "stopped",
    "unseen",
)


def told(found: Counterexample) -> tuple[Any, ...]:
    """A counterexample without the ghosts themselves."""
    turns = [
        (t.thread, t.alternatives, t.shared, t.position, t.events, t.failure) for t in found.turns
    ]
    broken = [(ghost.name, text) for turn in found.turns for ghost, text in turn.violations]
    return found.prop, found.kind, found.sentence, turns, broken, found.state


def same(plain: Explorer, compiled: Explorer) -> None:
    """Everything that can be told from two searches is equal."""
    assert compiled.compiled is not None
    assert plain.compiled is None
    one, other = plain.result, compiled.result
    for figure in (*FIGURES, "mistrusted", "liveness", "segments_run"):
        assert getattr(other, figure) == getattr(one, figure), figure
    assert [told(found) for found in other.violations] == [told(found) for found in one.violations]
    assert list(compiled.order) == list(plain.order)
    parents = range(0, len(plain.order), 1 + len(plain.order) // 100)
    assert [compiled.parents[n] for n in parents] == [plain.parents[n] for n in parents]
    for key in plain.order[:: 1 + len(plain.order) // 100]:
        assert compiled.number[key] == plain.number[key]
        assert compiled.successors(key) == plain.successors(key)
    assert [dict(t) for t in compiled._tables] == [dict(t) for t in plain._tables]
    if one.exhausted:
        assert compiled.compiled.edges_on_cycles() == edges_on_cycles(plain)
    assert [dict(t) for t in compiled._progress] == [dict(t) for t in plain._progress]


def both(make: Callable[[], Machine], **options: Any) -> None:
    """Search with either loop, and compare; look for cycles, too."""
    found = [explore(make(), loop=which, **options) for which in (PLAIN, COMPILED)]
    for explorer in found:
        check_progress(explorer)
    same(*found)


@pytest.mark.parametrize("reduce", [True, False])
def test_known_programs(reduce: bool) -> None:
    for make in (lambda: incr(2, 3), lambda: incr(3, 2), lambda: mutex_incr(3, 2)):
        both(make, reduce=reduce)


@pytest.mark.parametrize("kinds", [CHOICES, LOCKING, EVERYTHING, WITH_RCU])
def test_random_programs(kinds: tuple[str, ...]) -> None:
    for seed in range(40):
        for options in ({}, {"first": True}, {"reduce": False}):
            both(random_program(seed, kinds).build, **options)


@pytest.mark.parametrize("one", entries(), ids=lambda one: one.id)
def test_zoo(one: Any) -> None:
    budget = Budget(states=3_000)
    both(lambda: question(one.id, BUG).build().machine, budget=budget, first=one.prop)
    both(lambda: question(one.id, FIXED).build().machine, budget=budget)


@pytest.mark.parametrize("name", ["z1", "z2"])
def test_tokens(name: str) -> None:
    asked = question(name, BUG)
    plain, compiled = (ask(asked, loop=which) for which in (PLAIN, COMPILED))
    assert compiled.tokens == plain.tokens != {}
    assert compiled.sentence() == plain.sentence()


@pytest.mark.parametrize("after", [1, 100, 1000])
def test_going_on_in_the_middle(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain loop begins, and the compiled one goes on, at whichever state."""
    monkeypatch.setattr(engine, "MANY", after)
    monkeypatch.setattr(engine, "LOOK_EVERY", 64)
    monkeypatch.setattr(loop, "SLICE", 100)
    machine = question("z1", FIXED).build
    plain = explore(machine().machine, loop=PLAIN)
    compiled = explore(machine().machine)
    assert len(plain.order) > 1500
    same(plain, compiled)


def test_sets_that_grow_from_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Store", lambda ctl: Store(ctl, states=8))
    monkeypatch.setattr(loop, "Known", lambda ctl, chunks: Known(ctl, chunks, shared=4))
    both(lambda: incr(3, 2), reduce=False)
    both(lambda: question("z1", FIXED).build().machine)


def test_numbers_that_need_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 16 bits were not enough for positions, nor 8 for the states found from one."""
    widened = []

    def widen(store: Store, position: int, turns: int) -> None:
        if len(store) > 50 and store.rows.itemsize == 2:
            widened.append(len(store))
            real(store, 1 << 16, 1 << 8)

    real = Store.make_room_for
    monkeypatch.setattr(Store, "make_room_for", widen)
    both(lambda: question("z1", FIXED).build().machine)
    assert widened


def test_room_is_made_when_it_is_needed() -> None:
    ctl = control.np.zeros(control.FIELDS, "int64")
    ctl[control.THREADS] = 3
    store = Store(ctl)
    store.make_room_for((1 << 16) - 1, 85)
    assert (store.rows.itemsize, store.children.itemsize) == (2, 1)
    store.make_room_for(1 << 16, 86)
    assert (store.rows.itemsize, store.children.itemsize) == (4, 2)


def test_parents() -> None:
    for seed in range(20):
        made = [explore(random_program(seed, LOCKING).build(), loop=w) for w in (PLAIN, COMPILED)]
        for number in range(len(made[0].order)):
            assert made[0].parents[number] == made[1].parents[number]


def test_memory_is_asked_for_only_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Store", lambda ctl: Store(ctl, states=8))
    found = explore(incr(3, 2), reduce=False, loop=COMPILED, budget=Budget(memory=1))
    assert found.result.stopped == "the budget of 1 MiB is used up"
    assert not found.result.exhausted


def test_a_broken_set_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests rest on: a loop that loses states does not pass."""
    real = kernels.advance

    def forgetful(ctl: Any, *rest: Any) -> int:
        code: int = real(ctl, *rest)
        if code == control.DONE and ctl[control.COUNT] > 20:
            ctl[control.COUNT] -= 1
        return code

    monkeypatch.setattr(kernels, "advance", forgetful)
    with pytest.raises(AssertionError):
        both(lambda: incr(2, 3))
