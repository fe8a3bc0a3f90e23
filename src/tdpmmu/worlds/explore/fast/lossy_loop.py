"""The compiled loop with a set that leaves states out (see :mod:`tdpmmu.worlds.explore.storage`).

States are given back once they have been searched, but not where they were found from, which takes
two bits for each.  So how a state was come to is known as numbers; what these states are is found
out by searching again, which leads to the same states in the same order, and to where the search
was left.  Cycles without progress are looked for in the same way, if there may be any: by 64 bits
of the states' hashes, in a second search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import cycles, fairness, loop, on_cycles
from tdpmmu.worlds.explore.fast.batches import forget
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.frontier import Frontier
from tdpmmu.worlds.explore.fast.store import Store
from tdpmmu.worlds.explore.fast.views import Kept


class LossyLoop(loop.CompiledLoop):
    """Like its parent; nothing that it does not find holds."""

    store: Frontier

    def _new_store(self, ctl: Words) -> Store:
        assert self.explorer.storage is not None
        return Frontier(ctl, self.explorer.storage)

    def run(self, began: float) -> None:
        """Search, and say what may have been left out."""
        result = self.explorer.result
        try:
            super().run(began)
        finally:
            result.left = self.store.left(result.exhausted)
            said = result.left.sentence()
            if result.exhausted:
                result.exhausted, result.stopped = False, said
            elif result.stopped and not self.explorer.found_first():
                result.stopped += f"; {said}"

    def _enough(self, began: float) -> bool:
        self.store.give_back()
        return super()._enough(began)

    def _grow(self, code: int) -> bool:
        if code == c.FULL_STATES and self.store.full():
            self.explorer.result.stopped = "the table of states is full"
            return False
        return super()._grow(code)

    def more_states(self, *, narrow: bool = False) -> bool:
        return not self.store.full() and super().more_states(narrow=narrow)

    def states_of(self, numbers: Sequence[int]) -> list[int]:
        """Packed states, by ascending numbers."""
        order = self.explorer.order
        if numbers[0] >= self.store.given_back:
            return super().states_of(numbers)
        found = []

        def search() -> None:
            for number in numbers:
                self._search_to(number)
                found.append(order[number])

        self._again(search)
        return found

    def _again(self, search: Callable[[], None]) -> None:
        """Search again from the first state on, and then up to where the search was left."""
        ctl = self.store.ctl
        if self.crew is not None:
            self.crew.stop()
        left = ctl.copy()
        try:
            self.store.begin_again()
            forget(self.looking)
            ctl[c.STATES] = c.NO_LIMIT
            search()
            self._search_to(int(left[c.CURRENT]))
            same = [c.COUNT, c.CURRENT, c.TRANSITIONS, c.TAKEN]
            if (ctl[same] != left[same]).any():
                raise RuntimeError("the search did not find the same states again")
        finally:
            ctl[:] = left

    def _search_to(self, number: int, look: Callable[[int], None] = lambda first: None) -> None:
        """Search again, up to a state that was reached before.

        ``look`` at the states from ``first`` on, before they are given back.
        """
        ctl = self.store.ctl
        while ctl[c.CURRENT] < number:
            ctl[c.LIMIT] = min(number, ctl[c.CURRENT] + loop.SLICE)
            code = self.advance_alone()
            if code == c.HALTED:
                ctl[c.CURRENT] += 1
            elif code != c.PAUSED and not (code == c.DONE and ctl[c.CURRENT] == number):
                raise RuntimeError(f"the search did not find the same states again: {code}")
            look(self.store.given_back)
            self.store.give_back()

    def edges_on_cycles(self) -> Words:
        """Turns on cycles without progress, found by searching again."""
        parts = [np.empty((0, len(fairness.COLUMNS)), np.int64)]
        marked = on_cycles.marks(self)
        if marked is None:
            return parts[0]

        def look(first: int) -> None:
            parts.append(on_cycles.marked_edges(self, marked, first, hashed=True).copy())
            if self.memory_left() < 0:
                raise MemoryError

        end = int(self.store.ctl[c.CURRENT])
        self._again(lambda: self._search_to(end, look))
        return _on_cycles(np.concatenate(parts))

    def edges_to_look_at(self) -> list[tuple[int, int, int]]:
        """Those that may be on a fair one, of which the explorer then has the states."""
        found = super().edges_to_look_at()
        numbers = sorted({number for _, *both in found for number in both})
        if numbers:
            states = dict(zip(numbers, self.states_of(numbers), strict=True))
            self.explorer.order = Kept(self.explorer.order, states)
        return found


def _on_cycles(edges: Words) -> Words:
    """The edges on cycles, with the numbers of the states that they lead to.

    All edges that lead on from a state are known.
    """
    _, places = np.unique(edges[:, (fairness.HASH, fairness.HEAD)], return_inverse=True)
    tails, heads = places.reshape(len(edges), 2).T
    count = int(places.max(initial=-1)) + 1
    of = cycles.components(count, tails, heads)
    number_of = np.zeros(count, np.int64)
    number_of[tails] = edges[:, fairness.TAIL]
    edges[:, fairness.HEAD] = number_of[heads]
    on: Words = edges[of[tails] == of[heads]]
    return on
