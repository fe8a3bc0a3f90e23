"""Compiled: what a thread's next turn does, put together from its segments; entries made of it.

The same as :meth:`tdpmmu.worlds.explore.turn.Turns.choices` does, with the same outcomes in the
same order, out of segments (:mod:`~tdpmmu.worlds.explore.fast.segments`), where operations and the
positions after them are known (:mod:`~tdpmmu.worlds.explore.fast.learnt`).  It comes back to Python
for what is not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tdpmmu.worlds.explore.fast.compiling import compiled
from tdpmmu.worlds.explore.fast.control import (
    ASK,
    BLOCKED,
    CHUNKS,
    COMPOSED,
    EARLY,
    ENTRIES,
    FACTS,
    FOUND,
    FREE,
    FULL_ENTRIES,
    FULL_FACTS,
    FULL_SHARED,
    FULL_WAYS,
    GONE,
    MADE,
    MISSED_AFTER,
    MISSED_IDLE,
    MISSED_OPERATION,
    MISSED_ORDER,
    MISSED_POSITION,
    MISSED_THREAD,
    ORDERED,
    SEQUENCES,
    SHARED,
    URGENT,
    USED,
    WRITTEN,
    Words,
    mix,
)
from tdpmmu.worlds.explore.fast.facts import (
    entry_key,
    hash_value,
    intern_candidate,
    put_entry,
)
from tdpmmu.worlds.explore.fast.learnt import (
    ALONE,
    BOTH,
    LEFT,
    MOVES,
    ORDERS,
    QUESTIONS,
    VCPU,
    add_fact,
    add_view,
    answer,
    one_more,
)
from tdpmmu.worlds.explore.fast.segments import (
    AFTER,
    ENDS,
    GETS_ON,
    GOES,
    HARMS,
    HEAD,
    IDLE,
    Bench,
    new_bench,
    point,
    run_segment,
)
from tdpmmu.worlds.explore.turn import LONGEST_TURN, SEGMENT

# Columns of pending ways and of visits.
POSITION, ABOUT, PARTS, EVENTS, VIOLATIONS, WAY = range(6)
COLUMNS = 6

MOST_PARTS = LONGEST_TURN // SEGMENT

MOST_HEARD = 1 << 12
"""Events of one segment, in all its outcomes, beyond which Python has to put it together."""

STARTS = 3
"""``MISSED_IDLE`` where a turn starts: not even a choice was made."""

_DROPPED = 3


class Scratch(NamedTuple):
    """Room to work in: ``row`` is the shared state as it is on the way that is at ``now``."""

    row: Words
    now: Words
    looked: Words
    pending_rows: Words
    pending: Words
    visit_rows: Words
    visits: Words
    out: Words
    bench: Bench


def new_scratch(chunks: int, room: int) -> Scratch:
    """For so many ways at a time."""
    return Scratch(
        np.zeros(chunks, np.uint32),
        np.zeros(COLUMNS, np.int64),
        np.zeros(chunks, np.bool_),
        np.zeros((room, chunks), np.uint32),
        np.zeros((room, COLUMNS), np.int64),
        np.zeros((room, chunks), np.uint32),
        np.zeros((room, COLUMNS), np.int64),
        np.zeros(4 * room + 4 * chunks, np.int64),
        new_bench(chunks, room),
    )


@compiled
def _visited(work, number, now):
    """Whether a visit was at that point, with the same shared state."""
    visit = work.visits[number]
    same = visit[POSITION] == now[POSITION] and (visit[ABOUT] ^ now[ABOUT]) & (AFTER | IDLE) == 0
    if same:
        for i in range(work.row.shape[0]):
            if work.visit_rows[number, i] != work.row[i]:
                same = False
                break
    return same


@compiled
def _been_here(work, visits, now):
    """``GOES``, or ``ENDS`` if the way goes round, or ``_DROPPED`` if others did the same."""
    visit = now[WAY]
    while visit >= 0:
        if _visited(work, visit, now):
            return np.int64(ENDS)  # let others in between
        visit = work.visits[visit, WAY]
    for visit in range(visits):
        if (
            work.visits[visit, EVENTS] == now[EVENTS]
            and work.visits[visit, VIOLATIONS] == now[VIOLATIONS]
            and _visited(work, visit, now)
        ):
            return np.int64(_DROPPED)  # whatever comes now has come before
    return np.int64(GOES)


@compiled
def _go_on(ctl, learnt, now, words, at, row):
    """Take one outcome of a segment: what happened, and what it changes, added to a way."""
    about = np.int64(words[at + 1])
    now[POSITION] = words[at]
    now[ABOUT] = about | (now[ABOUT] & GETS_ON)
    events, violations = np.int64(words[at + 2]), np.int64(words[at + 3])
    changes = np.int64(words[at + 4])
    at += HEAD
    for i in range(at, at + events):
        now[EVENTS] = one_more(ctl, learnt, now[EVENTS], np.int64(words[i]))
    at += events
    for i in range(at, at + violations):
        now[VIOLATIONS] = one_more(ctl, learnt, now[VIOLATIONS], np.int64(words[i]))
    at += violations
    for i in range(at, at + 2 * changes, 2):
        row[words[i]] = words[i + 1]


@compiled
def _heard(words, at):
    """Events and violations in all outcomes of a segment."""
    total = np.int64(0)
    for which in range(words[at]):
        begin = at + np.int64(words[at + 1 + which])
        total += np.int64(words[begin + 2]) + np.int64(words[begin + 3])
    return total


@compiled
def _segment(ctl, learnt, work, thread, now):
    """Find what a way's next segment leads to, or run it; where it is, in ``FOUND``."""
    after = np.int64(now[ABOUT] & AFTER != 0)
    idle = np.int64(now[ABOUT] & IDLE != 0)
    position = now[POSITION]
    question = point(thread, position, after, idle)
    at = answer(learnt.segments, question, work.row, 0, work.looked)
    if at >= 0:
        ctl[FOUND] = at
        return np.int64(MADE)
    bench = work.bench
    for i in range(work.row.shape[0]):
        bench.row[i] = work.row[i]
    code = run_segment(ctl, learnt, bench, thread, position, after, idle)
    if code == MADE:
        for i in range(work.row.shape[0]):
            if bench.looked[i]:
                work.looked[i] = True
    return code


@compiled
def compose(ctl, learnt, work, values, shared, thread, start):
    """Make the fact of a turn that is missing: ``MADE``, or what stands in the way."""
    turns, segments = learnt.turns, learnt.segments
    chunks = ctl[CHUNKS]
    base = shared * chunks
    row, looked, out = work.row, work.looked, work.out
    ctl[MISSED_THREAD] = thread
    outcomes = used = pending = visits = np.int64(0)
    waits = True
    kind = np.int64(FREE)
    looked[:] = False
    first = np.int64(learnt.deeds[thread << 18 | start])
    if first < 0:
        kind = np.int64(GONE)
    now = work.now
    now[:] = 0
    now[POSITION], now[ABOUT], now[WAY] = start, IDLE, -1
    for i in range(chunks):
        row[i] = values[base + i]
    early = rounds = False
    begun = start > 0 or ctl[EARLY] > 1
    if first > 0 and ctl[EARLY] and begun and not learnt.flags[first - 1] & ALONE:
        at = answer(learnt.ops, (first - 1) * QUESTIONS + MOVES, values, base, looked)
        if at < 0:
            ctl[MISSED_POSITION], ctl[MISSED_AFTER], ctl[MISSED_IDLE] = start, 0, STARTS
            for i in range(chunks):
                work.bench.row[i] = row[i]
            return MISSED_OPERATION
        mover = np.int64(learnt.ops.words[at])
        early = mover in (LEFT, BOTH)
        if early:
            now[ABOUT] |= AFTER
    while kind == FREE:
        state = now[ABOUT] & 3
        if state == GOES:
            state = np.int64(ENDS)
            if now[PARTS] <= MOST_PARTS:
                state = _been_here(work, visits, now)
            if state == ENDS:
                rounds = True
        if state == GOES:
            if visits == work.visits.shape[0]:
                return FULL_WAYS
            for i in range(chunks):
                work.visit_rows[visits, i] = row[i]
            for i in range(COLUMNS):
                work.visits[visits, i] = now[i]
            now[WAY] = visits
            visits += 1
            code = _segment(ctl, learnt, work, thread, now)
            if code != MADE:
                return code
            at = ctl[FOUND]
            count = np.int64(segments.words[at])
            if pending + count > work.pending.shape[0]:
                return FULL_WAYS
            if _heard(segments.words, at) > MOST_HEARD:
                return ASK
            if ctl[SEQUENCES] + MOST_HEARD > learnt.sequences.shape[0] // 3 * 2:
                return FULL_FACTS
            now[PARTS] += 1
            for which in range(count - 1, 0, -1):
                into, way = work.pending_rows[pending], work.pending[pending]
                for i in range(chunks):
                    into[i] = row[i]
                for i in range(COLUMNS):
                    way[i] = now[i]
                begin = at + np.int64(segments.words[at + 1 + which])
                _go_on(ctl, learnt, way, segments.words, begin, into)
                pending += 1
            begin = at + np.int64(segments.words[at + 1])
            _go_on(ctl, learnt, now, segments.words, begin, row)
            continue
        if state == ENDS:
            waits = False
        if state != _DROPPED and not now[ABOUT] & HARMS:
            if used + 2 + 2 * chunks > out.shape[0]:
                return FULL_WAYS
            out[used] = (np.int64(now[ABOUT] & GETS_ON != 0) << 31) | now[POSITION]
            mark = used + 1
            used += 2
            for i in range(chunks):
                if row[i] != values[base + i]:
                    out[used] = i
                    out[used + 1] = row[i]
                    used += 2
            out[mark] = (used - mark - 1) // 2
            outcomes += 1
        if pending == 0:
            break
        pending -= 1
        for i in range(chunks):
            row[i] = work.pending_rows[pending, i]
        for i in range(COLUMNS):
            now[i] = work.pending[pending, i]
    above = outcomes
    if kind == FREE:
        if waits:
            outcomes = used = above = np.int64(0)  # whatever it chooses, it has to wait
        if early and not waits and not rounds:
            kind = np.int64(URGENT)
        if ctl[ORDERED] and learnt.flags[first - 1] & VCPU:
            question = (first - 1) * QUESTIONS + ORDERS
            at = answer(learnt.ops, question, values, base, looked)
            if at < 0:
                return MISSED_ORDER
            urgent, rival = np.int64(learnt.ops.words[at]), np.int64(learnt.ops.words[at + 1])
            if waits and rival:
                kind = np.int64(BLOCKED)
                above = rival - 1
            elif not waits and urgent:
                kind = np.int64(URGENT)
    if ctl[FACTS] + 1 > turns.slots.shape[0] // 3 * 2:
        return FULL_FACTS
    if used + 1 + chunks > out.shape[0]:
        return FULL_WAYS
    if ctl[WRITTEN] + 2 * chunks + 4 + used > turns.words.shape[0]:
        return FULL_FACTS
    count = np.int64(0)
    for i in range(chunks):
        if looked[i]:
            out[used + 1 + count] = i
            count += 1
    question = thread << 18 | start
    view, written = add_view(turns, ctl[WRITTEN], question, out[used + 1 :], count)
    for i in range(used, 0, -1):
        out[i] = out[i - 1]
    out[0] = above << 2 | kind
    ctl[COMPOSED] = add_fact(turns, written, view, values, base, out, used + 1)
    ctl[WRITTEN] = ctl[COMPOSED] + used + 1
    ctl[FACTS] += 1
    return MADE


@compiled
def fill(ctl, table, learnt, work, shared, thread, position):
    """Make the entry that is missing: ``MADE``, or what stands in the way."""
    values, hashes, pool = table.values, table.hashes, table.pool
    chunks = ctl[CHUNKS]
    base = shared * chunks
    facts = learnt.turns.words
    at = answer(learnt.turns, thread << 18 | position, values, base, work.looked)
    if at < 0:
        code = compose(ctl, learnt, work, values, shared, thread, position)
        if code != MADE:
            return code
        at = ctl[COMPOSED]
    head = np.int64(facts[at])
    turns = head >> 2
    if head & 3 == BLOCKED:
        turns = np.int64(0)
    if ctl[ENTRIES] + 1 > table.places.shape[0] // 3 * 2 or ctl[USED] + turns + 2 > pool.shape[0]:
        return FULL_ENTRIES
    if ctl[SHARED] + turns + 1 > min(values.shape[0] // chunks, table.slots.shape[0] // 5 * 4):
        return FULL_SHARED
    offset = ctl[USED] + 1
    pool[offset - 1] = entry_key(shared, thread, position)
    pool[offset] = head
    at += 1
    for turn in range(turns):
        end, changed = np.int64(facts[at]), np.int64(facts[at + 1])
        at += 2
        after = shared
        if changed:
            hashed = hashes[shared]
            candidate = ctl[SHARED] * chunks
            for i in range(chunks):
                values[candidate + i] = values[base + i]
            for i in range(at, at + 2 * changed, 2):
                chunk, value = facts[i], facts[i + 1]
                hashed -= hash_value(chunk, values[candidate + chunk])
                hashed += hash_value(chunk, value)
                values[candidate + chunk] = value
            after = intern_candidate(ctl, values, hashes, table.slots, hashed)
            at += 2 * changed
        pool[offset + 1 + turn] = (after << 32) | end
    put_entry(table.places, mix(pool[offset - 1]), offset)
    ctl[ENTRIES] += 1
    ctl[USED] = offset + turns + 1
    return MADE
