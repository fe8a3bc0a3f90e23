"""The driver of the compiled loop: it answers what the loop does not know, and judges budgets.

The search is the plain loop's, state by state: look-ups that miss are filled in the same order by
the same code, so both find the same states in the same order, with the same counterexamples.
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.worlds.explore.chunks import Shared
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import kernels as k
from tdpmmu.worlds.explore.fast import on_cycles
from tdpmmu.worlds.explore.fast.arrays import Search
from tdpmmu.worlds.explore.fast.batches import Looking, forget, new_batches, new_looking
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.crew import SLICE as SHARED_SLICE
from tdpmmu.worlds.explore.fast.crew import Crew
from tdpmmu.worlds.explore.fast.fairness import perhaps_fair
from tdpmmu.worlds.explore.fast.known import Known
from tdpmmu.worlds.explore.fast.learner import Learner
from tdpmmu.worlds.explore.fast.patience import Patience
from tdpmmu.worlds.explore.fast.store import Store
from tdpmmu.worlds.explore.memory import most_resident

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.engine import Explorer

SLICE = 1 << 16
"""States between two looks at budgets and at Ctrl-C."""

ASKS = (c.ASK, c.MISSED_OPERATION, c.MISSED_ORDER)

SPARE = 8 << 20
"""Bytes of a budget of memory that are taken between two looks at it, at most."""

WRITING = 12 << 20
"""Bytes that it takes to write a checkpoint, at most."""

NO_END = 1 << 62

LEAST_GROWTH = 64
"""If there is no memory for so small a part of the states there are, it is used up."""

QUESTION = 5
"""Words of a question to the threads' code, before the shared state that it is about."""


class CompiledLoop:
    """Goes on with a search that the plain loop began."""

    def __init__(self, explorer: Explorer) -> None:
        # The explorer has the loop, and not the other way round: so the arrays are gone when the
        # explorer is, and do not wait for a collection of garbage that nobody has a reason to make.
        self.explorer: Explorer = weakref.proxy(explorer)
        threads = explorer.machine.threads
        ctl = np.zeros(c.FIELDS, np.int64)
        ctl[c.THREADS] = len(threads)
        self.store = self._new_store(ctl)
        self.known = Known(ctl, len(explorer.machine.initial))
        self.learner = Learner(ctl, self.explorer)
        self._lanes = np.array([t for t, one in enumerate(threads) if not one.alone], np.int64)
        self._alone = np.array([t for t, one in enumerate(threads) if one.alone], np.int64)
        self.ended = np.full(len(threads), -1, np.int64)
        self.journal = array("q")
        self.whole = True  # nothing is half done
        self._begin()
        self._slice = SLICE
        self.crew: Crew | None = None
        if explorer.workers > 1:
            self.crew = Crew(weakref.proxy(self), explorer.workers)
            self._slice = SHARED_SLICE
            self.store.before_repacking = self.crew.stop
            self.store.threads_at_work = self.known.threads_at_work = explorer.workers
        self.make_room()

    def _new_store(self, ctl: Words) -> Store:
        return Store(ctl)

    def _advance(self) -> int:
        return self.crew.advance() if self.crew is not None else self.advance_alone()

    def advance_alone(self) -> int:
        """Search on in this thread, until something comes up."""
        looking = self.looking
        code: int = k.advance(self.search(), looking, self._batches)
        if code == c.FULL_STATES:
            forget(looking)  # what was made last has not been added
        return code

    def search(self) -> Search:
        """The arrays as they are now, for compiled code."""
        return Search(
            self.store.ctl,
            self.store.packed(),
            self.known.table(),
            self.learner.learnt(),
            self.learner.work,
            self._lanes,
            self._alone,
            self.ended,
        )

    def _begin(self) -> None:
        """Have room for states as they are packed now."""
        self._fields = self.store.fields
        self._batches = new_batches(len(self._fields.shape))
        self._looking = self.new_looking()

    @property
    def looking(self) -> Looking:
        """Room for this thread to look at states."""
        if self._fields is not self.store.fields:
            self._begin()
        return self._looking

    def new_looking(self) -> Looking:
        """Room for another one."""
        return new_looking(self.store.threads, len(self.store.fields.shape))

    def run(self, began: float) -> None:
        """Search until everything is seen, or the explorer says that it is enough."""
        explorer, ctl = self.explorer, self.store.ctl
        budget = explorer.budget
        ctl[c.STATES] = budget.states or c.NO_LIMIT
        ctl[c.LIMIT] = ctl[c.CURRENT] + self._slice
        try:
            with Patience() as patience:
                while True:
                    code = self._advance()
                    if code in ASKS:
                        self._fill(code)
                        if explorer.out_of_time(began) and explorer.budget_used(began):
                            return
                    elif code == c.HALTED:
                        self._nobody_moves()
                    elif code == c.PAUSED:
                        if self._enough(began):
                            return
                    elif code == c.DONE:
                        explorer.result.exhausted = not explorer.found_first()
                        return
                    elif not self._grow(code):
                        return
                    patience.heed()
        finally:
            if self.crew is not None:
                self.crew.stop()
            explorer.result.transitions = int(ctl[c.TRANSITIONS])
            explorer.result.depth = int(ctl[c.DEPTH])
            explorer.result.memory = self.bytes_used()

    def bytes_used(self) -> dict[str, int]:
        """What the arrays take, by what they are for."""
        return {
            **self.store.bytes_used(),
            **self.known.bytes_used(),
            **self.learner.bytes_used(),
        }

    def _fill(self, code: int) -> None:
        """Run the thread's own code for a look-up that missed."""
        explorer, ctl = self.explorer, self.store.ctl
        thread, current = int(ctl[c.MISSED_THREAD]), int(ctl[c.CURRENT])
        if code == c.MISSED_OPERATION:
            about = int(ctl[c.MISSED_AFTER]) | int(ctl[c.MISSED_IDLE]) << 1
            position, row = int(ctl[c.MISSED_POSITION]), self.learner.work.bench.row.tolist()
        else:
            about = 0
            position, row = int(ctl[c.MISSED_START]), list(self._shared(int(ctl[c.MISSED_SHARED])))
        broken = len(explorer.result.violations)
        question = (code, thread, position, about, current, *row)
        self._put(question)
        if len(explorer.result.violations) > broken and explorer.first:
            ctl[c.LIMIT] = ctl[c.CURRENT] + 1

    def _shared(self, number: int) -> Shared:
        return self.known.shared(number)

    def _put(self, question: tuple[int, ...]) -> None:
        """Put a question to the threads' code, and pass the answer on."""
        code, thread, position, about, current, *row = question
        self.whole = False
        if code == c.ASK:
            self.learner.ask(thread, tuple(row), position, current)
        elif code == c.MISSED_ORDER:
            self.learner.order(thread, position, row)
        elif code == c.MISSED_OPERATION:
            self.learner.walk(thread, position, row, bool(about & 1), about >> 1)
        else:
            self.explorer._halted(current, self.explorer.order[current])
        self.learner.tell()
        self.make_room()
        self.journal.extend(question)
        self.whole = True

    def make_room(self) -> None:
        """Have fields for all positions, and for as many shared states as there is room for."""
        self.store.make_room_for(
            [len(table) for table in self.explorer.positions], len(self.known.hashes)
        )

    def repeat(self, journal: list[int]) -> None:
        """Put the same questions to the threads again."""
        self.learner.tell()
        size = QUESTION + self.known.chunks
        for at in range(0, len(journal), size):
            self._put(tuple(journal[at : at + size]))

    def _nobody_moves(self) -> None:
        """It is the end of all, or a deadlock."""
        ctl = self.store.ctl
        current = int(ctl[c.CURRENT])
        broken = len(self.explorer.result.violations)
        self._put((c.HALTED, 0, 0, 0, current, *[0] * self.known.chunks))
        if ctl[c.CURRENT] == current:  # all up to here has found room
            ctl[c.CURRENT] = current + 1
        if len(self.explorer.result.violations) > broken and self.explorer.first:
            ctl[c.LIMIT] = current + 1

    def _enough(self, began: float) -> bool:
        """At a pause: whether to stop here."""
        explorer, ctl = self.explorer, self.store.ctl
        if explorer.found_first():
            return True
        if ctl[c.COUNT] > ctl[c.STATES]:
            explorer.stopped_by_states()
            return True
        ctl[c.LIMIT] = ctl[c.CURRENT] + self._slice
        explorer.result.transitions = int(ctl[c.TRANSITIONS])
        explorer.result.depth = int(ctl[c.DEPTH])
        if explorer.keeper is not None and explorer.keeper.due():
            explorer.keeper.save(self)
        return explorer.budget_used(began) or (self.memory_left() < 0 and not self._no_memory())

    def _grow(self, code: int) -> bool:
        """Make room, if the budget of memory has any."""
        if self.crew is not None:
            self.crew.stop()  # it looks at the arrays as they are
        if code == c.FULL_STATES:
            return self.more_states(narrow=True) or self._no_memory()
        left = self.memory_left()
        takes, grow = {
            c.FULL_SHARED: (self.known.shared_slots.nbytes, self.known.grow_shared),
            c.FULL_ENTRIES: (self.known.places.nbytes, self.known.grow_entries),
            c.FULL_FACTS: (2 * self.learner.turns.nbytes, self.learner.grow_facts),
            c.FULL_WAYS: (0, self.learner.grow_scratch),
        }[code]
        if left < takes:
            return self._no_memory()
        grow()
        self.make_room()
        return True

    def more_states(self, *, narrow: bool = False) -> bool:
        """Make room for states, if there is memory; they may be packed in fewer bytes then."""
        left = self.memory_left()
        if left < self.store.bytes_for(len(self.store) // LEAST_GROWTH):
            return False
        self.store.grow_states(most=left, narrow=narrow)
        return True

    def memory_left(self) -> int:
        """Bytes that the budget has left, but for what may be taken before the next look.

        That is also a byte for each state that is kept, should their fields have to be widened.
        """
        memory = self.explorer.budget.memory
        if not memory:
            return NO_END
        spare = SPARE + len(self.store) - self.store.given_back
        if self.explorer.keeper is not None:
            spare += WRITING
        return (memory << 20) - most_resident() - spare

    def _no_memory(self) -> bool:
        memory = self.explorer.budget.memory
        self.explorer.result.stopped = f"the budget of {memory:,} MiB is used up"
        return False

    def states_of(self, numbers: Sequence[int]) -> list[int]:
        """Packed states, by ascending numbers."""
        return [self.explorer.order[number] for number in numbers]

    def urgent_turns_go_round(self) -> bool:
        """Whether there may be a cycle of urgent turns."""
        return bool(on_cycles.local_turns(self, urgent=True).shape[1])

    def edges_on_cycles(self) -> Words:
        """Turns that may be on a cycle without progress, as rows; none if all lead on."""
        return on_cycles.edges(self)

    def edges_to_look_at(self) -> list[tuple[int, int, int]]:
        """Those of them that may be on one which is fair."""
        edges = self.edges_on_cycles()
        return [(thread, tail, head) for thread, tail, head, *_ in perhaps_fair(edges).tolist()]
