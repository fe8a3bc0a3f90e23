"""Compiled: what a thread's next turn does, put together from its operations; entries made of it.

The same as :meth:`tdpmmu.worlds.explore.turn.Turns.choices` does, with the same outcomes in the
same order, where operations and the positions after them are known (see
:mod:`~tdpmmu.worlds.explore.fast.learnt`).  It comes back to Python for what is not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import compiled
from tdpmmu.worlds.explore.fast.control import (
    ASK,
    BLOCKED,
    CHUNKS,
    COMPOSED,
    ENTRIES,
    FACTS,
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
    REDUCE,
    REPORTED,
    SEQUENCES,
    SHARED,
    URGENT,
    USED,
    WRITTEN,
    Words,
)
from tdpmmu.worlds.explore.fast.facts import (
    entry_key,
    find_key,
    hash_value,
    intern_candidate,
    put_entry,
)
from tdpmmu.worlds.explore.fast.learnt import (
    ACTS,
    ALONE,
    CHOOSES,
    ENDED,
    FAILED,
    HARM,
    LEFT,
    MAY_BLOCK,
    MOVES,
    NEITHER,
    ORDERS,
    PROGRESS,
    QUESTIONS,
    RAISED,
    RIGHT,
    UNKNOWN,
    VCPU,
    add_fact,
    add_view,
    answer,
    one_more,
)
from tdpmmu.worlds.explore.turn import LONGEST_TURN, SEGMENT

# Columns of pending ways and of visits.
POSITION, AFTER, IDLE, STEPS, PARTS, EVENTS, VIOLATIONS, GETS_ON, HARMS, WAY, HASH = range(11)
COLUMNS = 11

MOST_PARTS = LONGEST_TURN // SEGMENT

_GOES, _ENDS, _STUCK, _DROPPED = range(4)


class Scratch(NamedTuple):
    """Room to work in: ``row`` is the shared state as it is on the way."""

    row: Words
    looked: Words
    pending_rows: Words
    pending: Words
    visit_rows: Words
    visits: Words
    out: Words


@compiled
def _visited(work, number, row_hash, position, after, idle):
    """Whether a visit was at that point."""
    visit = work.visits[number]
    if (
        visit[HASH] != row_hash
        or visit[POSITION] != position
        or visit[AFTER] != after
        or visit[IDLE] != idle
    ):
        return False
    row = work.row
    same = True
    for i in range(row.shape[0]):
        if work.visit_rows[number, i] != row[i]:
            same = False
            break
    return same


@compiled
def _save(rows, table, number, row, values):
    """Keep a way, or a visit."""
    for i in range(row.shape[0]):
        rows[number, i] = row[i]
    for i in range(COLUMNS):
        table[number, i] = values[i]


@compiled
def compose(ctl, learnt, work, values, hashes, shared, thread, start):
    """Make the fact of a turn that is missing: ``MADE``, or what stands in the way."""
    ops, turns = learnt.ops, learnt.turns
    facts = ops.words
    chunks = ctl[CHUNKS]
    base = shared * chunks
    row, looked, out = work.row, work.looked, work.out
    ctl[MISSED_THREAD] = thread
    ctl[MISSED_POSITION] = start
    outcomes = used = np.int64(0)
    waits = True
    kind = np.int64(FREE)
    looked[:] = False
    first = np.int64(learnt.deeds[thread << 18 | start])
    if first < 0:
        kind = np.int64(GONE)
    pending = np.int64(0)
    now = np.zeros(COLUMNS, np.int64)
    now[POSITION], now[IDLE], now[WAY] = start, 1, -1
    for i in range(chunks):
        row[i] = values[base + i]
    hashed = uint64(hashes[shared])
    now[HASH] = np.int64(hashed)
    _save(work.visit_rows, work.visits, 0, row, now)
    now[WAY] = 0
    visits = np.int64(1)
    while first >= 0:
        position, after, idle = now[POSITION], now[AFTER], now[IDLE]
        steps, parts, way = now[STEPS], now[PARTS], now[WAY]
        events, violations = now[EVENTS], now[VIOLATIONS]
        gets_on, harms = now[GETS_ON], now[HARMS]
        hashed = uint64(now[HASH])
        state = _GOES
        while state == _GOES:
            deed = np.int64(learnt.deeds[thread << 18 | position])
            if deed == RAISED:
                return ASK
            ctl[MISSED_POSITION], ctl[MISSED_AFTER], ctl[MISSED_IDLE] = position, after, idle
            if deed == UNKNOWN:
                return MISSED_OPERATION
            if deed == ENDED or harms:
                state = _ENDS
                break
            deed -= 1
            about = learnt.flags[deed]
            if steps and (steps >= SEGMENT or about & VCPU):
                steps = 0
                parts += 1
                if parts > MOST_PARTS:
                    state = _ENDS
                    break
                visit = way
                while visit >= 0:
                    if _visited(work, visit, np.int64(hashed), position, after, idle):
                        state = _ENDS  # it goes round: let others in between
                        break
                    visit = work.visits[visit, WAY]
                if state != _GOES:
                    break
                for visit in range(visits):
                    if (
                        work.visits[visit, EVENTS] == events
                        and work.visits[visit, VIOLATIONS] == violations
                        and _visited(work, visit, np.int64(hashed), position, after, idle)
                    ):
                        state = _DROPPED  # whatever comes now has come before
                        break
                if state != _GOES:
                    break
                if visits == work.visits.shape[0]:
                    return FULL_WAYS
                now[POSITION], now[AFTER], now[IDLE], now[WAY] = position, after, idle, way
                now[EVENTS], now[VIOLATIONS], now[HASH] = events, violations, np.int64(hashed)
                _save(work.visit_rows, work.visits, visits, row, now)
                way = visits
                visits += 1
            at = answer(ops, deed * QUESTIONS + MOVES, row, 0, looked)
            if at < 0:
                return MISSED_OPERATION
            mover = np.int64(facts[at])
            if after and mover in (NEITHER, RIGHT):
                state = _ENDS
                break
            if about & MAY_BLOCK and not (after or idle or about & ALONE):
                # Whoever has taken something must be seen with it, or deadlocks are lost.
                state = _ENDS
                break
            at = answer(ops, deed * QUESTIONS + ACTS, row, 0, looked)
            if at < 0:
                return MISSED_OPERATION
            count = np.int64(facts[at])
            if count == 0:
                state = _STUCK if idle else _ENDS
                break
            if mover in (NEITHER, LEFT):
                after = 1
            if not about & CHOOSES:
                idle = 0
            steps += 1
            if pending + count > work.pending.shape[0]:
                return FULL_WAYS
            for which in range(count - 1, -1, -1):
                # An outcome is [result, about it, events, violations, changes, ...].
                act = at + np.int64(facts[at + 1 + which])
                what = np.int64(facts[act + 1])
                if what & FAILED:
                    return ASK
                target = find_key(
                    learnt.after_keys,
                    learnt.after,
                    (thread << 18 | position) << 32 | (np.int64(facts[act]) + 1),
                )
                if target < 0:
                    return MISSED_OPERATION
                now[POSITION], now[AFTER], now[IDLE] = target, after, idle
                now[STEPS], now[PARTS], now[WAY] = steps, parts, way
                now[GETS_ON] = gets_on | (what & PROGRESS)
                now[HARMS] = harms | (what & HARM)
                heard, broken = np.int64(facts[act + 2]), np.int64(facts[act + 3])
                changed = np.int64(facts[act + 4])
                if ctl[SEQUENCES] + heard + broken + 1 > learnt.sequences.shape[0] // 3 * 2:
                    return FULL_FACTS
                act += 5
                sequence = events
                for i in range(act, act + heard):
                    sequence = one_more(ctl, learnt, sequence, np.int64(facts[i]))
                now[EVENTS] = sequence
                act += heard
                sequence = violations
                for i in range(act, act + broken):
                    # The number of its property is in the low bits.
                    if not ctl[REPORTED] >> (np.int64(facts[i]) & 63) & 1:
                        return ASK
                    sequence = one_more(ctl, learnt, sequence, np.int64(facts[i]))
                now[VIOLATIONS] = sequence
                act += broken
                if which:
                    for i in range(chunks):
                        work.pending_rows[pending, i] = row[i]
                    into = work.pending_rows[pending]
                else:
                    into = row
                after_hash = hashed
                for i in range(act, act + 2 * changed, 2):
                    chunk, value = facts[i], facts[i + 1]
                    after_hash -= hash_value(chunk, into[chunk])
                    after_hash += hash_value(chunk, value)
                    into[chunk] = value
                now[HASH] = np.int64(after_hash)
                if which:
                    for i in range(COLUMNS):
                        work.pending[pending, i] = now[i]
                    pending += 1
            position, events, violations = now[POSITION], now[EVENTS], now[VIOLATIONS]
            gets_on, harms, hashed = now[GETS_ON], now[HARMS], uint64(now[HASH])
        if state == _ENDS:
            waits = False
        if state != _DROPPED and not harms:
            if used + 2 + 2 * chunks > out.shape[0]:
                return FULL_WAYS
            out[used] = (np.int64(1 if gets_on else 0) << 31) | position
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
    if first >= 0:
        if waits:
            outcomes = used = above = np.int64(0)  # whatever it chooses, it has to wait
        if ctl[REDUCE] and learnt.flags[first - 1] & VCPU:
            ctl[MISSED_POSITION] = start
            question = (first - 1) * QUESTIONS + ORDERS
            at = answer(ops, question, values, base, looked)
            if at < 0:
                return MISSED_ORDER
            if waits:
                if facts[at + 1]:
                    kind = np.int64(BLOCKED)
                    above = np.int64(facts[at + 1]) - 1
            elif facts[at]:
                kind = np.int64(URGENT)
    if ctl[FACTS] + 1 > turns.slots.shape[0] // 3 * 2:
        return FULL_FACTS
    if (
        ctl[WRITTEN] + 2 * chunks + 4 + used > turns.words.shape[0]
        or used + 1 + chunks > out.shape[0]
    ):
        return FULL_FACTS if used + 1 + chunks <= out.shape[0] else FULL_WAYS
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
        code = compose(ctl, learnt, work, values, hashes, shared, thread, position)
        if code != MADE:
            return code
        at = ctl[COMPOSED]
    head = np.int64(facts[at])
    turns = head >> 2
    if head & 3 == BLOCKED or head & 3 == GONE:
        turns = np.int64(0)
    if ctl[ENTRIES] + 1 > table.keys.shape[0] // 3 * 2 or ctl[USED] + turns + 2 > pool.shape[0]:
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
    put_entry(table.keys, table.offsets, pool[offset - 1], offset)
    ctl[ENTRIES] += 1
    ctl[USED] = offset + turns + 1
    return MADE
