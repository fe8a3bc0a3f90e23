"""The compiled loop against the plain one: the same states in the same order, the same findings."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from time import sleep
from typing import Any

import numpy as np
import pytest
from toys import CHOICES, EVERYTHING, LOCKING, WITH_RCU, incr, mutex_incr, random_program

from tdpmmu.machine.thread import Machine
from tdpmmu.scenarios.question import BUDGET, ask
from tdpmmu.scenarios.zoo import entries
from tdpmmu.scenarios.zoo.run import BUG, FIXED, question
from tdpmmu.worlds.explore import engine, search
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.exploration import Budget, Counterexample
from tdpmmu.worlds.explore.progress import NO_MEMORY, check_progress, edges_on_cycles
from tdpmmu.worlds.explore.search import COMPILED, PLAIN, explore
from tdpmmu.worlds.explore.storage import COMPACT, Storage

pytest.importorskip("numba")

from tdpmmu.worlds.explore.fast import control, handover, kept, kernels, loop, on_cycles, store
from tdpmmu.worlds.explore.fast.arrays import Search
from tdpmmu.worlds.explore.fast.fairness import MOVERS
from tdpmmu.worlds.explore.fast.known import Known
from tdpmmu.worlds.explore.fast.learner import Learner
from tdpmmu.worlds.explore.fast.packing import Fields, least_bits, roomy_bits, tight_bits
from tdpmmu.worlds.explore.fast.room import Room
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


NOT_REACHED = (1 << 18) - 1
"""A position that no state of a search has, which was cut short or did not follow some turns."""


class Naming:
    """The numbers that a search gave to positions and chunks, as another search numbers them.

    Both must have found the same states in the same order.
    """

    def __init__(self, explorer: Explorer, like: Explorer) -> None:
        self.explorer = explorer
        self.shared: dict[int, int] = {}
        self.positions: list[dict[int, int]] = [{} for _ in explorer.positions]
        for key, other in zip(explorer.order, like.order, strict=True):
            (shared, here), (number, there) = explorer.unpack(key), like.unpack(other)
            assert self.shared.setdefault(shared, number) == number
            for names, position, name in zip(self.positions, here, there, strict=True):
                assert names.setdefault(position, name) == name
        self.chunks: list[dict[int, int]] = [{} for _ in explorer.machine.initial]
        assert len(explorer.shared) == len(like.shared)
        for shared, number in self.shared.items():
            pair = explorer.shared[shared], like.shared[number]
            for names, value, name in zip(self.chunks, *pair, strict=True):
                assert names.setdefault(value, name) == name
        assert all(len(set(names.values())) == len(names) for names in self.chunks)
        for thread, names in enumerate(self.positions):
            assert len(set(names.values())) == len(names)
            for position, name in names.items():
                assert self.stands(thread, position) == Naming.stands_at(like, thread, name)

    @staticmethod
    def stands_at(explorer: Explorer, thread: int, position: int) -> Any:
        """Where a thread stands, and what it is about to do."""
        table = explorer.positions[thread]
        op = table.op(position)
        return table.line(position), op and op.describe(), repr(table.raised(position))

    def stands(self, thread: int, position: int) -> Any:
        return self.stands_at(self.explorer, thread, position)

    def state(self, key: int) -> int:
        """A packed state, with the numbers of the other search."""
        explorer = self.explorer
        shared, positions = explorer.unpack(key)
        packed = self.shared.get(shared, NOT_REACHED) << explorer.shift
        for thread, position in enumerate(positions):
            name = self.positions[thread].get(position, NOT_REACHED)
            packed |= name << explorer.bits * thread
        return packed

    def successors(self, key: int) -> list[tuple[int, int, bool]]:
        found = self.explorer.successors(key)
        return [(thread, self.state(state), progress) for thread, state, progress in found]

    def table(self, thread: int) -> dict[int, Any]:
        """What a thread can do, likewise."""
        explorer, numbers = self.explorer, self.positions[thread]
        mask, lane = (1 << explorer.bits) - 1, explorer.bits * thread
        table: dict[int, Any] = {}
        for lookup, entry in explorer._tables[thread].items():
            number, position = lookup >> explorer.bits, lookup & mask
            if explorer.positions[thread].op(position) is None:
                continue  # it has ended; that is asked once, in whichever state comes first
            turns: Any = entry
            if not isinstance(entry, int):
                turns = type(entry)(
                    (
                        # A shared state that no state has, since another turn was urgent: None.
                        self.shared.get(
                            ((number << explorer.shift) + (position << lane) + delta)
                            >> explorer.shift
                        ),
                        numbers.get(((position << lane) + delta) >> lane & mask, NOT_REACHED),
                    )
                    for delta in entry
                )
            flags = explorer._progress[thread].get(lookup, 0)
            table[self.shared[number] << explorer.bits | numbers[position]] = turns, flags
        return table

    def told(self, found: Counterexample) -> tuple[Any, ...]:
        """A counterexample without the ghosts themselves."""
        turns = [
            (
                *(t.thread, t.alternatives),
                [names.get(n) for names, n in zip(self.chunks, t.shared, strict=True)],
                *(self.stands(t.thread, t.position), t.events, t.failure),
            )
            for t in found.turns
        ]
        broken = [(ghost.name, text) for turn in found.turns for ghost, text in turn.violations]
        return found.prop, found.kind, found.sentence, turns, broken, found.state


def same(plain: Explorer, compiled: Explorer) -> None:
    """Everything that can be told from two searches is equal."""
    assert compiled.compiled is not None
    assert plain.compiled is None
    one, other = plain.result, compiled.result
    for figure in (*FIGURES, "mistrusted", "liveness"):
        assert getattr(other, figure) == getattr(one, figure), figure
    there, here = Naming(compiled, plain), Naming(plain, plain)
    assert [there.told(found) for found in other.violations] == [
        here.told(found) for found in one.violations
    ]
    assert [there.state(key) for key in compiled.order] == list(plain.order)
    some = range(0, len(plain.order), 1 + len(plain.order) // 100)
    assert [compiled.parents[n] for n in some] == [plain.parents[n] for n in some]
    for number in some:
        key = compiled.order[number]
        assert compiled.number[key] == plain.number[plain.order[number]] == number
        assert there.successors(key) == here.successors(plain.order[number])
    for thread in range(len(plain.positions)):
        assert there.table(thread) == here.table(thread)
    if one.exhausted:
        edges = compiled.compiled.edges_on_cycles()
        assert list(map(tuple, edges[:, :MOVERS].tolist())) == edges_on_cycles(plain)


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


@pytest.mark.parametrize(
    "options", [{}, {"workers": 2}, {"storage": Storage(COMPACT, 8 << 20)}], ids=str
)
def test_what_a_search_took_is_given_back(options: dict[str, Any]) -> None:
    found = explore(mutex_incr(3, 2), loop=COMPILED, **options)
    check_progress(found)
    still_there = weakref.ref(found.compiled)
    gc.disable()
    try:
        del found
        assert still_there() is None
    finally:
        gc.enable()


def test_budgets_of_states() -> None:
    """The last state that is looked at is the plain loop's, and so is what is filled in for it."""
    for states in (*range(1, 20), 50, 100, 150):
        both(lambda: mutex_incr(3, 2), budget=Budget(states=states), reduce=False)


@pytest.mark.parametrize("name", ["z1", "z2"])
def test_tokens(name: str) -> None:
    asked = question(name, BUG)
    plain, compiled = (ask(asked, loop=which) for which in (PLAIN, COMPILED))
    assert compiled.tokens == plain.tokens != {}
    assert compiled.sentence() == plain.sentence()


@pytest.mark.parametrize("after", [1, 100, 500])
def test_going_on_in_the_middle(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain loop begins, and the compiled one goes on, at whichever state."""
    monkeypatch.setattr(search, "MANY", after)
    monkeypatch.setattr(kept, "KEPT", True)
    monkeypatch.setattr(engine, "LOOK_EVERY", 64)
    monkeypatch.setattr(loop, "SLICE", 100)
    machine = question("z1", FIXED).build
    plain = explore(machine().machine, loop=PLAIN)
    compiled = explore(machine().machine)
    assert len(plain.order) > 700
    same(plain, compiled)


def test_sets_that_grow_from_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Store", lambda ctl: Store(ctl, states=8))
    monkeypatch.setattr(loop, "Known", lambda ctl, chunks: Known(ctl, chunks, shared=4))
    monkeypatch.setattr(loop, "Learner", lambda ctl, explorer: Learner(ctl, explorer, facts=64))
    both(lambda: incr(3, 2), reduce=False)
    for kinds in (CHOICES, LOCKING, EVERYTHING, WITH_RCU):
        both(random_program(1, kinds).build)
    both(lambda: question("z1", FIXED).build().machine)


def test_fields_that_need_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields begin as narrow as can be, and are widened again and again."""
    widths = []

    def repack(store: Store, fields: Fields) -> None:
        real(store, fields)
        widths.append((len(store), fields.width))

    real = Store._repack
    monkeypatch.setattr(store, "MANY", 0)
    monkeypatch.setattr(store, "tight_bits", least_bits)
    monkeypatch.setattr(Store, "_repack", repack)
    both(lambda: question("z1", FIXED).build().machine)
    assert len({width for count, width in widths if count > 50}) > 1


def test_fields_that_become_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there are many states, each takes no more than it has to."""
    monkeypatch.setattr(store, "MANY", 500)
    monkeypatch.setattr(loop, "Store", lambda ctl: Store(ctl, states=8))
    built = question("z1", FIXED).build
    both(lambda: built().machine)
    found = explore(built().machine, loop=COMPILED).compiled
    assert found is not None
    bits = least_bits(found.store._positions, found.store._shared)
    assert found.store.fields.width == Fields(bits).width < 12


def test_states_of_more_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if positions took up to 60 bits: a word for each."""

    def wide(positions: Sequence[int], shared: int) -> list[int]:
        return [60 for _ in (*positions, shared)]

    monkeypatch.setattr(store, "roomy_bits", wide)
    both(lambda: mutex_incr(3, 2))
    both(lambda: incr(3, 2), reduce=False)


def test_fields() -> None:
    for bits in ([64], [1, 2, 3], [30, 40, 20, 30], [13, 10, 11, 10, 9, 17], [40, 40, 40, 5]):
        fields = Fields(bits)
        taken = [0] * len(fields.shape)
        for i, wide in enumerate(bits):
            field = int(fields.mask[i]) << int(fields.shift[i])
            assert int(fields.mask[i]) == (1 << wide) - 1
            assert field < 1 << 64
            assert taken[fields.word[i]] & field == 0
            taken[fields.word[i]] |= field
        assert all(one & ~int(kept) == 0 for one, kept in zip(taken, fields.kept, strict=True))
        assert fields.width == sum(int(kept).bit_length() for kept in fields.kept) // 8
        assert fields.width <= sum(bits) // 8 + 2 or bits[0] == 40  # one to a word
    for positions in ([1, 2, 300], [1 << 17] * 6):
        least, roomy = least_bits(positions, 77), roomy_bits(positions, 77)
        tight = tight_bits(positions, 77)
        assert all(a <= b for a, b in zip(least, tight, strict=True))
        assert all(a <= b for a, b in zip(least, roomy, strict=True))
        assert Fields(least).width == Fields(tight).width
        assert len(Fields(least).shape) == len(Fields(roomy).shape)


def test_more_slots() -> None:
    """All states are found again, and no others."""
    ctl = np.zeros(control.FIELDS, np.int64)
    ctl[control.THREADS] = 2
    many = Store(ctl, states=8)
    many.make_room_for([1 << 20, 1 << 20], 1 << 10)
    count = 60_000
    numbers = np.random.default_rng(1).permutation(1 << 20)[:count]
    rows = np.stack([numbers, numbers[::-1]], axis=1)
    many.fill(numbers & 1023, rows, np.zeros(count, np.int64), 0)
    for _ in range(4):
        many.grow_states()
        assert np.count_nonzero(many.slots) == count
        for number in range(0, count, 97):
            shared, row = int(numbers[number]) & 1023, rows[number].tolist()
            assert many.number(shared, row) == number
            assert many.number(shared ^ 1, row) == -1


def test_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where address space is short, an array moves when it grows."""
    real = Room._reserve

    def short(room: Room, items: int) -> Any:
        if items > 1 << 20:
            raise OSError("no room")
        return real(room, items)

    monkeypatch.setattr(Room, "_reserve", short)
    one = Room(np.uint32, 1 << 40, 100)
    one.array[:100] = range(100)
    assert len(one.grow(5000)) >= 5000
    assert one.array[:100].tolist() == list(range(100))
    assert not one.array[100:].any()
    both(lambda: question("z1", FIXED).build().machine)


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


def test_cycles_are_looked_for_only_within_the_budget_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = question("z49", BUG)
    enough = ask(asked, loop=COMPILED, budget=Budget(memory=1 << 16))
    assert list(enough.tokens) == ["no-progress"]
    monkeypatch.setattr(on_cycles, "EDGE_BYTES", 1 << 35)
    found = ask(asked, loop=COMPILED, budget=Budget(memory=1 << 16))
    assert found.status == BUDGET
    assert found.exploration.liveness == NO_MEMORY
    assert found.sentence().endswith("no memory is left to look for cycles without progress")


def test_a_short_search_is_no_reason_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LOOK_EVERY", 1)
    monkeypatch.setattr(search, "MANY", 10)
    monkeypatch.setattr(search, "MANY_TO_COMPILE", 100)
    for there in (True, False):
        monkeypatch.setattr(kept, "KEPT", there)
        for states, compiles in ((50, there), (200, True)):
            found = explore(mutex_incr(3, 2), reduce=False, budget=Budget(states=states))
            assert (found.compiled is not None) is compiles
        for seconds, compiles in ((59, there), (61, True)):
            found = explore(incr(3, 2), reduce=False, budget=Budget(seconds=seconds))
            assert (found.compiled is not None) is compiles


@pytest.mark.parametrize("which", [PLAIN, COMPILED])
def test_time_is_looked_at_where_it_goes(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few states that take long are no reason to go on."""
    real = Explorer.choices_from

    def slow(*arguments: Any) -> Any:
        sleep(0.01)
        return real(*arguments)

    def slow_walk(*arguments: Any) -> None:
        sleep(0.01)
        walk(*arguments)

    walk = Learner.walk
    monkeypatch.setattr(Explorer, "choices_from", slow)
    monkeypatch.setattr(Learner, "walk", slow_walk)
    found = explore(incr(3, 2), reduce=False, loop=which, budget=Budget(seconds=0.05))
    assert found.result.stopped == "the budget of 0.05 seconds is used up"
    assert found.result.states < 200


def test_that_it_compiles_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for there in (True, False):
        assert "compiling, once" not in said
        monkeypatch.setattr(handover, "KEPT", there)
        found = explore(incr(3, 2), loop=COMPILED, progress=lambda one: said.append(one.doing))
        assert found.doing == ""
    assert "compiling, once" in said


def test_a_broken_set_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests rest on: a loop that loses states does not pass."""
    real = kernels.advance

    def forgetful(search: Search, *rest: Any) -> int:
        code: int = real(search, *rest)
        ctl = search.ctl
        if code == control.DONE and ctl[control.COUNT] > 20:
            ctl[control.COUNT] -= 1
        return code

    monkeypatch.setattr(kernels, "advance", forgetful)
    with pytest.raises(AssertionError):
        both(lambda: incr(2, 3))
