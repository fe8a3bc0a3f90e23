"""Two threads that search together: one finds what states lead to, the other adds it to the set.

States are found and added in the order in which one thread would, in batches that go from one to
the other, so what comes of it is the same to the last bit.  Within a level of the breadth-first
search neither has to wait for the other's results: only for room in a batch.  The thread that finds
states runs the threads' code, too, when the loop has questions; the one that adds them has no
use for Python, so that both run at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import mailbox as m
from tdpmmu.worlds.explore.fast.adding import BATCH, TURNS, add_batches
from tdpmmu.worlds.explore.fast.kernels import NEAR
from tdpmmu.worlds.explore.fast.store import MANY

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.fast.loop import CompiledLoop

AT_ONCE = 1 << 12
"""States of a batch."""

AHEAD = 16
"""Batches that one thread may be ahead of the other."""

SLICE = 1 << 20
"""States between two looks at budgets: before each, one thread has to wait for the other."""


class Pair:
    """Goes on with a search as :func:`~tdpmmu.worlds.explore.fast.kernels.advance` does.

    ``make_room`` makes room for more states; False if there is no memory.
    """

    def __init__(self, loop: CompiledLoop, make_room: Callable[[], bool]) -> None:
        self._loop = loop
        self._make_room = make_room
        self._batches, self._fields = loop.new_batch(AHEAD), loop.store.fields
        self._mailbox = np.zeros(m.FIELDS, np.int64)
        self._ends = np.zeros(AHEAD, np.int64)
        self._turns = np.zeros(AHEAD, np.int64)
        self._began = [(0, 0)] * AHEAD
        self._adder: Thread | None = None
        self._error: BaseException | None = None
        self.posted = 0
        """Batches of states that were found by one thread, to be added by the other."""

    # --- the thread that finds states -------------------------------------------------------------

    def advance(self) -> int:
        """Search on: why it came back, as one thread would say."""
        ctl = self._loop.store.ctl
        limit = int(ctl[c.LIMIT])
        while True:
            if self._wide(limit):
                code = self._find(min(limit, int(ctl[c.LEVEL_ENDS])))
            elif not self._settle():
                code = c.FULL_STATES
            else:
                code = self._alone(limit)
            if code not in (c.MADE, c.NO_ROOM):
                return code

    def _wide(self, limit: int) -> bool:
        """Whether the rest of this level is worth the while of two, and no budget ends in it.

        Nor while few states take more room than many will.
        """
        ctl = self._loop.store.ctl
        left = min(limit, int(ctl[c.LEVEL_ENDS])) - int(ctl[c.CURRENT])
        # All that is being added may be as much as there is room for.
        most = int(ctl[c.COUNT]) + (AHEAD + 1) * TURNS + NEAR
        store = self._loop.store
        return left >= AT_ONCE and most < min(ctl[c.STATES], store.most) and store.capacity > MANY

    def _alone(self, limit: int) -> int:
        ctl = self._loop.store.ctl
        ctl[c.LIMIT] = min(limit, int(ctl[c.CURRENT]) + AT_ONCE)
        code = self._loop.advance_alone()
        paused = code == c.PAUSED and ctl[c.CURRENT] < limit and ctl[c.COUNT] <= ctl[c.STATES]
        ctl[c.LIMIT] = limit
        return c.MADE if paused else code

    def _find(self, end: int) -> int:
        loop, ctl = self._loop, self._loop.store.ctl
        if not self._settle(but=AHEAD - 1):
            return c.FULL_STATES
        if self._adder is None:
            self._start()
        which = self.posted % AHEAD
        begin, first = which * BATCH, int(ctl[c.CURRENT])
        code, searched, found, turns = loop.look(
            self._batches, begin, first, min(first + AT_ONCE, end)
        )
        if found > begin:
            self._began[which] = first, int(ctl[c.TRANSITIONS])
            self._ends[which], self._turns[which] = found, turns
            self.posted += 1
            m.post(self._mailbox, m.POSTED, self.posted)
        ctl[c.CURRENT] = searched
        ctl[c.TRANSITIONS] += turns
        return int(code)

    # --- the thread that adds them ----------------------------------------------------------------

    def _start(self) -> None:
        """Have another thread add batches, until there is no room or all is over."""
        loop, mailbox = self._loop, self._mailbox
        store = loop.store
        if self._fields is not store.fields:  # all was added before states were packed anew
            self._batches, self._fields = loop.new_batch(AHEAD), store.fields
        mailbox[[m.OVER, m.FULL]] = 0
        batches = (self._batches, self._ends, self._turns)
        pool = loop.known.pool
        add = (store.ctl, store.packed(), pool, *batches, loop.new_window(), mailbox)
        self._adder = Thread(target=self._add, args=add, name="adder", daemon=True)
        self._adder.start()

    def _add(self, *arguments: object) -> None:
        try:
            add_batches(*arguments)
        except BaseException as error:  # the other thread is not to wait for ever
            self._error = error
            m.post(self._mailbox, m.FULL, 1)

    def _settle(self, but: int = 0) -> bool:
        """Wait until all batches (``but`` some) have been added: False if there is no room.

        Then those that have not been added are taken back, as if they had not been searched.
        """
        while not m.wait_until_done(self._mailbox, but):
            self._join()
            if not self._make_room():
                ctl = self._loop.store.ctl
                done = int(self._mailbox[m.DONE])
                ctl[c.CURRENT], ctl[c.TRANSITIONS] = self._began[done % AHEAD]
                self._mailbox[:] = self.posted = 0
                return False
            self._start()
        return True

    def stop(self) -> None:
        """Add all that was found, and end the thread."""
        self._settle()
        if self._adder is not None:
            m.post(self._mailbox, m.OVER, 1)
            self._join()

    def _join(self) -> None:
        assert self._adder is not None
        self._adder.join()
        self._adder = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
