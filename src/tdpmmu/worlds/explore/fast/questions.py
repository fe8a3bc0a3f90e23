"""Questions to the threads' code, put many at a time, and answered beside the search if wanted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.worlds.explore.fast import ahead
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import kernels as k
from tdpmmu.worlds.explore.fast.control import Words

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.fast.loop import CompiledLoop

SWITCH = 0.0002
"""Seconds until a thread that waits for the interpreter gets it: compiled code needs it briefly."""


class Questions:
    """Searches on with entries made ahead; ``beside``: by a thread of its own.

    The states found and their order are the same as without, and as long as the search ends with
    all seen, so is all that is known of the threads, but for the order in which it was learnt.
    """

    def __init__(self, loop: CompiledLoop, beside: bool) -> None:
        self._loop = loop
        self._waiting = ahead.new_waiting(len(loop.learner.deeds), loop.known.chunks)
        self._beside = ThreadPoolExecutor(1) if beside else None
        self._batch = k.new_batch(loop.store.threads, 1)
        ctl = loop.store.ctl
        ctl[c.AHEAD], ctl[c.HELD] = ctl[c.CURRENT], ahead.NONE

    @contextmanager
    def open(self) -> Iterator[None]:
        """While it searches."""
        if self._beside is None:
            yield
            return
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH)
        try:
            with self._beside:
                yield
        finally:
            sys.setswitchinterval(before)

    def proceed(self) -> int:
        """Search on, until what :meth:`CompiledLoop.run` has to deal with."""
        ctl, waiting = self._loop.store.ctl, self._waiting
        while True:
            states = waiting.states[: ctl[c.WAITING]].copy()
            questions = waiting.questions[: ctl[c.ASKED]].tolist()
            starts = waiting.starts[: ctl[c.ASKED]].copy()
            ctl[c.WAITING] = ctl[c.ASKED] = 0
            ctl[c.HELD] = states.min(initial=ahead.NONE)
            if self._beside is None:
                self._answer(questions)
                self._retry(states, starts)
                code = self._search()
            else:
                search = self._beside.submit(self._search)
                try:
                    self._answer(questions)
                finally:
                    ctl[c.STOP] = len(questions) > 0
                    code = search.result()
                    ctl[c.STOP] = 0
                self._retry(states, starts)
            if code != c.WANTING:
                return code

    def _answer(self, questions: list[list[int]]) -> None:
        loop = self._loop
        loop.ahead = True
        for question in questions:
            loop.answer(tuple(question))
        loop.ahead = False

    def _retry(self, states: Words, starts: Words) -> None:
        """The answers are there for states that have waited."""
        ctl, waiting = self._loop.store.ctl, self._waiting
        ctl[c.HELD] = ahead.NONE
        if not len(states):
            return
        self._loop.pass_on()
        waiting.asked[starts] = False
        all_of_them = np.concatenate((waiting.retry[: ctl[c.RETRY]], states))
        all_of_them[::-1].sort()
        ctl[c.RETRY] = len(all_of_them)
        waiting.retry[: len(all_of_them)] = all_of_them

    def _search(self) -> int:
        loop = self._loop
        code: int = ahead.proceed(
            loop.store.ctl,
            loop.store.packed(),
            loop.known.table(),
            loop.learner.learnt(),
            loop.learner.work,
            self._batches(),
            loop.lanes,
            loop.alone,
            loop.ended,
            self._waiting,
        )
        return code

    def _batches(self) -> tuple[k.Batch, k.Batch]:
        """One to search with, and one to look ahead with."""
        batch = self._loop.room_for_batch()
        words = len(self._loop.store.fields.shape)
        if len(self._batch.states) < (k.AT_ONCE + 1) * words:
            self._batch = k.new_batch(self._loop.store.threads, words)
        return batch, self._batch
