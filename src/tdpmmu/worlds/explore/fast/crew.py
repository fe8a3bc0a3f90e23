"""Several threads that search together.

They share the states of a level of the breadth-first search (see
:mod:`~tdpmmu.worlds.explore.fast.helping`): all look at states and make those that their turns lead
to, one at a time adds these.  The table is filled, and states are added, in the order in which one
thread would do it, so what comes of it is the same to the last bit.  The thread that leads runs the
threads' code when there are questions; the others go on meanwhile, as they have no use for Python.
"""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import helping as h
from tdpmmu.worlds.explore.fast.batches import (
    ABOUT,
    MADE_TO,
    MOST_TURNS,
    Batches,
    Looking,
    forget,
    new_batches,
)
from tdpmmu.worlds.explore.fast.store import MANY

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.fast.loop import CompiledLoop

AT_ONCE = 1 << 10
"""States of a batch."""

RING = 32
"""Batches that there is room for."""

SLICE = 1 << 20
"""States between two looks at budgets: before each, all threads have to wait for the last one."""


class Crew:
    """Goes on with a search as :func:`~tdpmmu.worlds.explore.fast.kernels.advance` does."""

    def __init__(self, loop: CompiledLoop, threads: int) -> None:
        self._loop = loop
        self._helpers = threads - 1
        self._begin()
        self._mailbox = np.zeros(h.WORDS, np.int64)
        self._threads: list[Thread] = []
        self._errors: list[BaseException] = []

    def _begin(self) -> None:
        """Have room for states as they are packed now."""
        self._fields = self._loop.store.fields
        self._batches: Batches = new_batches(len(self._fields.shape), RING)
        self._lookings: list[Looking] = [self._loop.new_looking() for _ in range(self._helpers)]

    @property
    def shared(self) -> int:
        """How many batches have been shared."""
        return int(self._mailbox[h.ADDED])

    def advance(self) -> int:
        """Search on: why it came back, as one thread would say."""
        ctl, mailbox = self._loop.store.ctl, self._mailbox
        limit = int(ctl[c.LIMIT])
        while True:
            if self._under_way() and mailbox[h.UPTO] > limit:
                self.stop()
            if self._under_way() or self._wide(limit):
                code = self._lead(min(limit, int(ctl[c.LEVEL_ENDS])))
            else:
                code = self._alone(limit)
            if code == c.NO_ROOM:
                self.stop()
                code = self._alone(limit)
            if code != c.MADE:
                return code

    def _under_way(self) -> bool:
        return bool(self._mailbox[h.ADDED] < self._mailbox[h.DEALT])

    def _wide(self, limit: int) -> bool:
        """Whether the rest of this level is worth the while of several.

        It is not while few states take more room than many will.
        """
        store = self._loop.store
        left = min(limit, int(store.ctl[c.LEVEL_ENDS])) - int(store.ctl[c.CURRENT])
        return left >= AT_ONCE and store.capacity > MANY

    def _alone(self, limit: int) -> int:
        ctl = self._loop.store.ctl
        ctl[c.LIMIT] = min(limit, int(ctl[c.CURRENT]) + AT_ONCE)
        code = self._loop.advance_alone()
        paused = code == c.PAUSED and ctl[c.CURRENT] < limit and ctl[c.COUNT] <= ctl[c.STATES]
        ctl[c.LIMIT] = limit
        return c.MADE if paused else code

    def _lead(self, end: int) -> int:
        """Search to a state of this level, with the others."""
        loop, mailbox = self._loop, self._mailbox
        if not self._under_way():
            mailbox[h.UPTO] = loop.store.ctl[c.CURRENT]
        if not self._threads:
            self._start()
        code: int = h.lead(loop.search(), loop.looking, self._batches, mailbox, AT_ONCE, end)
        if code != c.FULL_STATES:
            return code
        self._end()
        if self._has_room():
            return c.NO_ROOM  # in the budget
        if self._loop.more_states():
            return c.MADE
        self.stop()
        return c.FULL_STATES

    def _has_room(self) -> bool:
        """Whether there is room for what the next batch leads to."""
        ctl, which = self._loop.store.ctl, int(self._mailbox[h.ADDED]) % RING
        turns = self._batches.about[which * ABOUT + MADE_TO] - which * MOST_TURNS
        return bool(ctl[c.COUNT] + turns <= ctl[c.ROOM])

    # --- the other threads ------------------------------------------------------------------------

    def _start(self) -> None:
        loop = self._loop
        if self._fields is not loop.store.fields:  # all was added before states were packed anew
            self._begin()
        for looking in self._lookings:
            arguments = (loop.search(), looking, self._batches, self._mailbox)
            thread = Thread(target=self._help, args=arguments, name="helper", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _help(self, *arguments: object) -> None:
        try:
            h.help_out(*arguments)
        except BaseException as error:  # the leader is not to wait for ever
            self._errors.append(error)
            h.post(self._mailbox, h.FULL, 1)

    def _end(self) -> None:
        """Have the others end; batches stay as they are."""
        h.post(self._mailbox, h.OVER, 1)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._mailbox[[h.OVER, h.FULL]] = 0
        if self._errors:
            raise self._errors.pop()

    def stop(self) -> None:
        """Have the others end; add what was dealt with, and forget all that lies ahead."""
        self._end()
        if not self._under_way():
            return
        loop, mailbox = self._loop, self._mailbox
        while h.add_rest(loop.search(), self._batches, mailbox) != c.MADE:
            mailbox[h.FULL] = 0
            if self._has_room() or not self._loop.more_states():
                break
        mailbox[[h.DEALT, h.TAKEN, h.WHOLE]] = mailbox[h.ADDED]
        mailbox[h.FULL] = 0
        for looking in (loop.looking, *self._lookings):
            forget(looking)
