"""Compiled: make entries for states before the search comes to them.

So questions to the threads' code are put many at a time, and can be answered while compiled code
goes on with other states.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tdpmmu.worlds.explore.fast.choose import choose
from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.control import (
    AHEAD,
    ASKED,
    CHUNKS,
    COUNT,
    CURRENT,
    FULL_ENTRIES,
    FULL_FACTS,
    FULL_SHARED,
    FULL_WAYS,
    HELD,
    LIMIT,
    MADE,
    MISSED_AFTER,
    MISSED_IDLE,
    MISSED_OPERATION,
    MISSED_ORDER,
    MISSED_POSITION,
    MISSED_SHARED,
    MISSED_START,
    MISSED_THREAD,
    PAUSED,
    RETRY,
    STATES,
    STOP,
    THREADS,
    WAITING,
    WANTING,
    Words,
)
from tdpmmu.worlds.explore.fast.kernels import AT_ONCE, advance, look_up
from tdpmmu.worlds.explore.fast.states import field_of

QUESTION = 5
"""Words of a question to the threads' code, before the shared state that it is about."""

SPAN = 1 << 10
"""States that are looked at in one go."""

QUESTIONS = 1 << 3
"""Questions that can wait for answers."""

WAITERS = 1 << 6
"""States that can wait for them."""

NONE = np.int64(1 << 62)


class Waiting(NamedTuple):
    """States by number, ascending: those to look at again (from the end), and those that wait.

    ``questions`` has the questions that they wait for, ``starts`` the turns that these are about,
    and ``asked`` says so of each turn: other states wait for the same answer, and need not ask.
    """

    retry: Words
    states: Words
    questions: Words
    starts: Words
    asked: Words


def new_waiting(turns: int, chunks: int) -> Waiting:
    """Room for them, with so many turns by thread and position."""
    return Waiting(
        np.empty(2 * WAITERS, np.int64),
        np.empty(WAITERS, np.int64),
        np.empty((QUESTIONS, QUESTION + chunks), np.int64),
        np.empty(QUESTIONS, np.int64),
        np.zeros(turns, np.bool_),
    )


@compiled
def _note(ctl, table, work, waiting, code, number):
    """Keep the question that stands in a state's way."""
    at = ctl[ASKED]
    question = waiting.questions[at]
    question[0], question[1], question[4] = code, ctl[MISSED_THREAD], number
    chunks = ctl[CHUNKS]
    if code == MISSED_OPERATION:
        question[2] = ctl[MISSED_POSITION]
        question[3] = ctl[MISSED_AFTER] | ctl[MISSED_IDLE] << 1
        for i in range(chunks):
            question[QUESTION + i] = work.bench.row[i]
    else:
        question[2], question[3] = ctl[MISSED_START], 0
        base = ctl[MISSED_SHARED] * chunks
        for i in range(chunks):
            question[QUESTION + i] = table.values[base + i]
    start = ctl[MISSED_THREAD] << 18 | ctl[MISSED_START]
    waiting.starts[at] = start
    waiting.asked[start] = True
    ctl[ASKED] = at + 1


@inlined
def _all_made(positions, offsets, base, lanes, ended):
    """Whether all entries of a state are there, without the cost of a call to :func:`choose`."""
    made = True
    for lane in range(lanes.shape[0]):
        thread = lanes[lane]
        if offsets[base + thread] < 0 and positions[base + thread] != ended[thread]:
            made = False
            break
    return made


@compiled
def _look_at(ctl, packed, table, learnt, work, batch, lanes, alone, ended, waiting, number, at):
    """Make the entries of one state, which is unpacked: ``MADE``, or what there is no room for."""
    threads = ctl[THREADS]
    each = len(packed.shape)
    shared = field_of(packed, batch.states, at * each, threads)
    code, _ = choose(
        ctl,
        table,
        learnt,
        work,
        lanes,
        alone,
        ended,
        waiting.asked,
        shared,
        batch.positions,
        at * threads,
        batch.chosen,
        batch.movers,
    )
    if code in (FULL_SHARED, FULL_ENTRIES, FULL_FACTS, FULL_WAYS):
        return code
    if code in (MISSED_OPERATION, MISSED_ORDER, WANTING):
        if code != WANTING:
            _note(ctl, table, work, waiting, code, number)
        waiting.states[ctl[WAITING]] = number
        ctl[WAITING] += 1
    return np.int64(MADE)


@compiled
def _no_room(ctl, waiting):
    return (
        ctl[STOP] != 0
        or ctl[ASKED] == waiting.questions.shape[0]
        or ctl[WAITING] == waiting.states.shape[0]
    )


@compiled
def look_ahead(ctl, packed, table, learnt, work, batch, lanes, alone, ended, waiting):
    """Make the entries of some states that are found: ``MADE``, or what there is no room for."""
    threads = ctl[THREADS]
    while ctl[RETRY] and not _no_room(ctl, waiting):
        number = waiting.retry[ctl[RETRY] - 1]
        look_up(ctl, packed, table, batch, ended, number, number + 1)
        code = _look_at(
            ctl, packed, table, learnt, work, batch, lanes, alone, ended, waiting, number, 0
        )
        if code != MADE:
            return code
        ctl[RETRY] -= 1
    last = min(ctl[COUNT], ctl[AHEAD] + SPAN)
    while ctl[AHEAD] < last and not ctl[RETRY] and not _no_room(ctl, waiting):
        first = ctl[AHEAD]
        end = min(first + AT_ONCE, last)
        look_up(ctl, packed, table, batch, ended, first, end)
        for number in range(first, end):
            at = number - first
            if not _all_made(batch.positions, batch.offsets, at * threads, lanes, ended):
                if _no_room(ctl, waiting):
                    break
                code = _look_at(
                    ctl,
                    packed,
                    table,
                    learnt,
                    work,
                    batch,
                    lanes,
                    alone,
                    ended,
                    waiting,
                    number,
                    at,
                )
                if code != MADE:
                    return code
            ctl[AHEAD] = number + 1
    return np.int64(MADE)


@compiled
def _first_held(ctl, waiting):
    """The first state whose entries are not there yet."""
    first = min(ctl[AHEAD], ctl[HELD])
    if ctl[RETRY]:
        first = min(first, waiting.retry[ctl[RETRY] - 1])
    if ctl[WAITING]:
        first = min(first, waiting.states[0])
    return first


@compiled
def proceed(ctl, packed, table, learnt, work, batches, lanes, alone, ended, waiting):
    """Look ahead and search on, in turns, until there is nothing left to do without answers.

    What it returns is what :func:`~tdpmmu.worlds.explore.fast.kernels.advance` does, or
    ``WANTING``; that also once it is told to stop.
    """
    limit = ctl[LIMIT]
    while True:
        code = look_ahead(
            ctl, packed, table, learnt, work, batches[1], lanes, alone, ended, waiting
        )
        if code != MADE:
            return code
        before, first = ctl[CURRENT], _first_held(ctl, waiting)
        if first > before or before == ctl[COUNT]:
            ctl[LIMIT] = min(limit, first)
            code = advance(ctl, packed, table, learnt, work, batches[0], lanes, alone, ended)
            ctl[LIMIT] = limit
            if code != PAUSED or ctl[CURRENT] >= limit or ctl[COUNT] > ctl[STATES]:
                return code
        if ctl[STOP] or (
            ctl[CURRENT] == before
            and (ctl[ASKED] or ctl[HELD] < NONE)
            and (
                ctl[ASKED] == waiting.questions.shape[0]
                or ctl[WAITING] == waiting.states.shape[0]
                or (ctl[AHEAD] == ctl[COUNT] and not ctl[RETRY])
            )
        ):
            return np.int64(WANTING)
