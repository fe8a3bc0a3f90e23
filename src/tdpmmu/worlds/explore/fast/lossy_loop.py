"""The compiled loop with a set that leaves states out (see :mod:`tdpmmu.worlds.explore.storage`).

States are given back once they have been searched, but not where they were found from, which takes
two bits for each.  So how a state was come to is known as numbers; what these states are is found
out by searching again, which leads to the same states in the same order, and to where the search
was left.
"""

from __future__ import annotations

from collections.abc import Sequence

from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import loop
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.frontier import Frontier
from tdpmmu.worlds.explore.fast.store import Store


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
            result.left = self.store.left()
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

    def states_of(self, numbers: Sequence[int]) -> list[int]:
        """Packed states, by ascending numbers."""
        order, ctl = self.explorer.order, self.store.ctl
        if numbers[0] >= self.store.given_back:
            return super().states_of(numbers)
        left = ctl.copy()
        found = []
        try:
            self.store.begin_again()
            ctl[c.STATES] = c.NO_LIMIT
            for number in numbers:
                self._search_to(number)
                found.append(order[number])
            self._search_to(int(left[c.CURRENT]))
            same = [c.COUNT, c.CURRENT, c.TRANSITIONS, c.TAKEN]
            if (ctl[same] != left[same]).any():
                raise RuntimeError("the search did not find the same states again")
        finally:
            ctl[:] = left
        return found

    def _search_to(self, number: int) -> None:
        """Search again, up to a state that was reached before."""
        ctl = self.store.ctl
        while ctl[c.CURRENT] < number:
            ctl[c.LIMIT] = min(number, ctl[c.CURRENT] + loop.SLICE)
            code = self._advance()
            if code == c.HALTED:
                ctl[c.CURRENT] += 1
            elif code != c.PAUSED:
                raise RuntimeError(f"the search did not find the same states again: {code}")
            self.store.give_back()
