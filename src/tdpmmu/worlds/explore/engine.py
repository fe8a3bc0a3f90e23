"""The explorer: every order of the threads' operations, as table look-ups.

What a thread can do next depends on its position and the shared state alone, so one table per
thread, filled on first use, holds the *differences* that its turns add to the packed key of a state
(:mod:`~tdpmmu.worlds.explore.graph`).  The search itself is additions and look-ups, breadth first.

A turn is a run of operations between two points at which the order matters (see
:mod:`~tdpmmu.worlds.explore.turn`).
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.chunks import Shared
from tdpmmu.worlds.explore.exploration import Budget, Counterexample, Exploration
from tdpmmu.worlds.explore.graph import POSITION_BITS, Entry, Graph
from tdpmmu.worlds.explore.memory import most_resident
from tdpmmu.worlds.explore.reductions import Reduce
from tdpmmu.worlds.explore.storage import Storage
from tdpmmu.worlds.explore.turn import Choices, Segment, Turn

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.fast.checkpoint import Checkpoint


@contextmanager
def no_collection() -> Iterator[None]:
    """Without the cyclic garbage collector: the tables only grow, and hold no cycles."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            # All of it is old now, or the next collection would go through it as if it were new.
            gc.freeze()
            gc.unfreeze()
            gc.enable()


LOOK_EVERY = 1 << 12
"""States between two looks at budgets."""

Progress = Callable[["Explorer"], None]


class Explorer(Graph):
    """One search over one machine."""

    def __init__(
        self,
        machine: Machine,
        *,
        reduce: Reduce = True,
        budget: Budget | None = None,
        first: bool | str = False,
        progress: Progress | None = None,
        compile_after: int | None = None,
        keeper: Checkpoint | None = None,
        storage: Storage | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__(machine, reduce=reduce)
        self.keeper = keeper
        self.storage = storage
        self.workers = workers
        self.compile_after = compile_after
        self.budget = budget or Budget()
        self.first = first
        self.progress = progress
        self.doing = ""  # what takes a while now, for ``progress``
        self.result = Exploration()
        self.reported: set[str] = set()

    # --- searching ------------------------------------------------------------------------------

    def run(self) -> Exploration:
        """Search breadth first until everything is seen, or the budget is used up."""
        began = time.monotonic()
        result = self.result
        try:
            with no_collection():
                self._search(began)
        finally:
            result.states = len(self.order)
            result.shared = len(self.shared)
            result.positions = [len(p) for p in self.positions]
            result.replays = sum(p.replays for p in self.positions)
            result.segments_run = self.turns.segments_run
            result.unseen = tuple(self.turns.unseen)
            if not result.exhausted and self.storage is None:
                result.within = result.depth
            result.seconds = time.monotonic() - began
        return result

    def _start(self) -> int:
        key = self.intern(self.chunks.intern(self.machine.initial)) << self.shift
        for i, table in enumerate(self.positions):
            key |= table.initial << POSITION_BITS * i
        return key

    def _search(self, began: float) -> None:
        number: dict[int, int] = {}
        order: list[int] = []
        parents = array("I")
        self.number, self.order, self.parents = number, order, parents
        start = self._start()
        number[start] = 0
        order.append(start)
        parents.append(0)
        shift, bits, mask = self.shift, POSITION_BITS, self._mask
        lanes = [
            (t, self._tables[t].get, bits * t)
            for t, thread in enumerate(self.machine.threads)
            if not thread.alone
        ]
        alone = [t for t, thread in enumerate(self.machine.threads) if thread.alone]
        result = self.result
        ended = [-1] * len(self.positions)
        current = 0
        transitions = 0
        end_of_level = 1
        next_look = LOOK_EVERY if self.compile_after else 0
        while current < len(order):
            if current == end_of_level:
                result.depth += 1
                end_of_level = len(order)
            if current >= next_look:
                next_look = current + LOOK_EVERY
                result.transitions = transitions
                if self.budget_used(began):
                    return
                if self.compile_after is not None and len(order) >= self.compile_after:
                    from tdpmmu.worlds.explore.fast.handover import go_on

                    go_on(self, began, current, transitions, end_of_level, ended)
                    return
            key = order[current]
            shared = key >> shift << bits
            moves: list[Sequence[int]] = []
            for thread, table, lane in lanes:
                position = key >> lane & mask
                if position == ended[thread]:
                    continue
                lookup = shared | position
                deltas = table(lookup)
                if deltas is None:
                    deltas = self._miss(thread, lookup, current)
                    if self.out_of_time(began):
                        next_look = current + 1
                    if not deltas and self.positions[thread].op(position) is None:
                        ended[thread] = position
                if type(deltas) is tuple:  # far the commonest, so asked first
                    if deltas:
                        moves.append(deltas)
                    continue
                if isinstance(deltas, int):
                    # This one waits for a kick to be taken: nothing else matters until then.
                    moves = [self._entry(deltas, key, current)]
                    break
                moves = [deltas]
                break
            if not moves:
                for thread in alone if self._ended(key) else ():
                    late = self._entry(thread, key, current)
                    if late:
                        moves.append(late)
                if not moves:
                    self._halted(current, key)
            for move in moves:
                for delta in move:
                    transitions += 1
                    successor = key + delta
                    if successor not in number:
                        number[successor] = len(order)
                        order.append(successor)
                        parents.append(current)
            current += 1
            if self.first and self.found_first():
                result.transitions = transitions
                return
            if self.budget.states and len(order) > self.budget.states:
                result.transitions = transitions
                self.stopped_by_states()
                return
        result.transitions = transitions
        result.exhausted = True

    def _ended(self, key: int) -> bool:
        """Whether all threads have ended but those that run alone: now is their time."""
        return all(
            thread.alone or table.op(position) is None
            for thread, table, position in zip(
                self.machine.threads, self.positions, self.unpack(key)[1], strict=True
            )
        )

    def found_first(self) -> bool:
        """Whether the violation that was looked for is there."""
        if not any(self.first in (True, found.prop) for found in self.result.violations):
            return False
        self.result.stopped = "at the first violation"
        if self.first is not True:
            self.result.stopped += f" of {self.first}"
        return True

    def stopped_by_states(self) -> None:
        """Say so."""
        self.result.stopped = f"the budget of {self.budget.states:,} states is used up"

    def budget_used(self, began: float) -> bool:
        """Show progress; whether time or memory is used up, which the result then says."""
        if self.progress is not None:
            self.result.states = len(self.order)
            self.progress(self)
        budget = self.budget
        if self.out_of_time(began):
            self.result.stopped = f"the budget of {budget.seconds:g} seconds is used up"
        elif budget.memory and most_resident() > budget.memory << 20:
            self.result.stopped = f"the budget of {budget.memory:,} MiB is used up"
        return bool(self.result.stopped)

    def out_of_time(self, began: float) -> bool:
        """Whether the budget of seconds is used up: to be looked at wherever time goes."""
        return 0 < self.budget.seconds < time.monotonic() - began

    def _entry(self, thread: int, key: int, current: int) -> Sequence[int]:
        lookup = key >> self.shift << POSITION_BITS | key >> POSITION_BITS * thread & self._mask
        entry = self._tables[thread].get(lookup)
        if entry is None:
            entry = self._miss(thread, lookup, current)
        return () if isinstance(entry, int) else entry

    def _miss(self, thread: int, lookup: int, current: int) -> Entry:
        """Fill in what the thread's turns change from here."""
        number, position = lookup >> POSITION_BITS, lookup & self._mask
        lane = POSITION_BITS * thread
        shared = self.shared[number]
        choices, outcomes = self.choices_from(thread, shared, position, current)
        deltas: list[int] = []
        flags = 0
        for outcome in outcomes:
            flags |= outcome.progress << len(deltas)
            chunks = list(shared)
            for index, chunk in outcome.chunks:
                chunks[index] = chunk
            after = self.intern(tuple(chunks))
            deltas.append(
                ((after - number) << self.shift) + ((outcome.position - position) << lane)
            )
        entry: Entry = tuple(deltas)
        if choices.rival is not None:
            entry = choices.rival
        elif choices.urgent:
            entry = deltas
        if flags:
            self._progress[thread][lookup] = flags  # type: ignore[index]
        self._tables[thread][lookup] = entry  # type: ignore[index]
        return entry

    def choices_from(
        self, thread: int, shared: Shared, position: int, current: int
    ) -> tuple[Choices, list[Segment]]:
        """What the thread can do, and how it ends, but for what harms, which ends the search there.

        What it breaks is reported as reached from state ``current``.
        """
        outcomes: list[Segment] = []
        choices = self.turns.choices(shared, thread, position)
        for outcome in choices.outcomes:
            if outcome.violations or outcome.failure:
                turn = next(
                    turn
                    for turn in self.turns.take(shared, thread, position)
                    if turn.alternatives == outcome.alternatives
                )
                if self._harmed(turn, current):
                    continue
            if outcome.position > self._mask:
                raise OverflowError("too many positions in one thread")
            outcomes.append(outcome)
        return choices, outcomes

    def _harmed(self, turn: Turn, current: int) -> bool:
        """Report what a turn breaks; whether there is no point in going on from there."""
        harmed = False
        for ghost, sentence in turn.violations:
            self._report(ghost.name, ghost.kind, sentence, current, turn)
            harmed = harmed or ghost.kind == HARM
        if turn.failure is not None:
            self._report("exception", HARM, turn.failure, current, turn)
            harmed = True
        return harmed

    # --- reporting ------------------------------------------------------------------------------

    def _halted(self, current: int, key: int) -> None:
        """No thread can move: that is the end of all, or a deadlock."""
        number, positions = self.unpack(key)
        late = self._ended(key)
        waiting = [
            (i, op)
            for i, (thread, table) in enumerate(
                zip(self.machine.threads, self.positions, strict=True)
            )
            if (op := table.op(positions[i])) is not None and (late or not thread.alone)
        ]
        if not waiting:
            return
        shared = self.shared[number]
        if any(self.turns.can_move(shared, i, positions[i]) for i, _ in waiting):
            return  # a harm cut the search off here
        who = [f"{self.machine.threads[i].name} at {op.describe()}" for i, op in waiting]
        self._report("deadlock", HARM, "everybody waits: " + "; ".join(who), current, None)

    def _report(self, prop: str, kind: str, sentence: str, current: int, turn: Turn | None) -> None:
        if prop in self.reported:
            return
        self.reported.add(prop)
        turns = self.path(current)
        if turn is not None:
            turns.append(turn)
        self.result.violations.append(Counterexample(prop, kind, sentence, turns, current))

    def report(self, found: Counterexample) -> None:
        """Add a violation that was found on the graph rather than on the way."""
        if found.prop not in self.reported:
            self.reported.add(found.prop)
            self.result.violations.append(found)
