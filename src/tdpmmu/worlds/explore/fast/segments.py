"""Compiled: what a thread does in one segment of a turn, put together from its operations.

The same as ``Turns._run`` in :mod:`tdpmmu.worlds.explore.turn` does, with the same outcomes in the
same order.  A segment begins at a *point*: a position, whether the turn has already done what
others can see (``after``), and whether it has done nothing but choose (``idle``).

What it leads to is a fact: how many outcomes, where each begins (behind the fact's words), and for
each ``[position, about it, events, violations, changes, event ..., violation ..., chunk, value,
...]``, the changes being to the shared state at the point.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.control import (
    ASK,
    CHUNKS,
    FOUND,
    FULL_FACTS,
    FULL_WAYS,
    MADE,
    MISSED_AFTER,
    MISSED_IDLE,
    MISSED_OPERATION,
    MISSED_POSITION,
    REPORTED,
    SEGMENT_WORDS,
    SEGMENTS,
    Words,
)
from tdpmmu.worlds.explore.fast.facts import find_key
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
    PROGRESS,
    QUESTIONS,
    RAISED,
    RIGHT,
    VCPU,
    add_fact,
    add_view,
    answer,
)
from tdpmmu.worlds.explore.turn import SEGMENT

# About an outcome: what may follow, and bits.
GOES, ENDS, STUCK = range(3)
AFTER, IDLE, GETS_ON, HARMS = 4, 8, 16, 32

HEAD = 5
"""Words of an outcome before its events."""

# Columns of ways within a segment.  The last two: the newest event and violation on the way.
_POSITION, _ABOUT, _STEPS, _EVENT, _VIOLATION = range(5)
COLUMNS = 5


class Bench(NamedTuple):
    """Room to run a segment in: ``row`` is the shared state as it is on the way.

    ``heard``: events and violations, each with the one before it on its way, or 0; the first is not
    used.
    """

    row: Words
    looked: Words
    start: Words
    way_rows: Words
    ways: Words
    heard: Words
    out: Words
    begins: Words


def new_bench(chunks: int, room: int) -> Bench:
    """For so many ways at a time."""
    return Bench(
        np.zeros(chunks, np.uint32),
        np.zeros(chunks, np.bool_),
        np.zeros(chunks, np.uint32),
        np.zeros((room, chunks), np.uint32),
        np.zeros((room, COLUMNS), np.int64),
        np.zeros((16 * room, 2), np.int64),
        np.zeros((16 + 2 * chunks) * room, np.int64),
        np.zeros(room, np.int64),
    )


@inlined
def point(thread, position, after, idle):
    """The number of a point among a thread's, and all threads'."""
    return (thread << 18 | position) << 2 | after << 1 | idle


@compiled
def _close(bench, used, position, about, event, violation):
    """Write an outcome down: the words used then, or -1 if there is no room."""
    row, start, heard, out = bench.row, bench.start, bench.heard, bench.out
    events = violations = changes = np.int64(0)
    at = event
    while at:
        events += 1
        at = heard[at, 0]
    at = violation
    while at:
        violations += 1
        at = heard[at, 0]
    if used + HEAD + events + violations + 2 * row.shape[0] > out.shape[0]:
        return np.int64(-1)
    out[used], out[used + 1] = position, about
    out[used + 2], out[used + 3] = events, violations
    mark = used + 4
    used += HEAD + events
    to = used
    while event:
        to -= 1
        out[to] = heard[event, 1]
        event = heard[event, 0]
    used += violations
    to = used
    while violation:
        to -= 1
        out[to] = heard[violation, 1]
        violation = heard[violation, 0]
    for i in range(row.shape[0]):
        if row[i] != start[i]:
            out[used] = i
            out[used + 1] = row[i]
            used += 2
            changes += 1
    out[mark] = changes
    return used


@compiled
def _remember(ctl, facts, bench, question, outcomes, used):
    """Make a fact of the outcomes: ``MADE``, or ``FULL_FACTS``."""
    chunks = ctl[CHUNKS]
    needed = 2 * chunks + 4 + outcomes + used
    full = ctl[SEGMENTS] + 1 > facts.slots.shape[0] // 3 * 2
    if full or ctl[SEGMENT_WORDS] + needed > facts.words.shape[0]:
        return FULL_FACTS
    count = np.int64(0)
    view_chunks = bench.way_rows[0]
    for i in range(chunks):
        if bench.looked[i]:
            view_chunks[count] = i
            count += 1
    view, written = add_view(facts, ctl[SEGMENT_WORDS], question, view_chunks, count)
    at = add_fact(facts, written, view, bench.start, 0, bench.out, 0)
    facts.words[at] = outcomes
    for i in range(outcomes):
        facts.words[at + 1 + i] = 1 + outcomes + bench.begins[i]
    for i in range(used):
        facts.words[at + 1 + outcomes + i] = bench.out[i]
    ctl[SEGMENT_WORDS] = at + 1 + outcomes + used
    ctl[SEGMENTS] += 1
    ctl[FOUND] = at
    return np.int64(MADE)


@compiled
def run_segment(ctl, learnt, bench, thread, position, after, idle):
    """Make the fact of the segment that begins here in ``bench.row``; where it is, in ``FOUND``.

    ``MADE``, or what stands in the way; then ``bench.row`` is the shared state at that operation.
    """
    ops = learnt.ops
    facts = ops.words
    row, looked, heard = bench.row, bench.looked, bench.heard
    chunks = row.shape[0]
    question = point(thread, position, after, idle)
    looked[:] = False
    for i in range(chunks):
        bench.start[i] = row[i]
    outcomes = used = ways = np.int64(0)
    last = np.int64(0)
    steps = event = violation = gets_on = harms = np.int64(0)
    while True:
        state = np.int64(-1)
        while state < 0:
            deed = np.int64(learnt.deeds[thread << 18 | position])
            if deed == RAISED:
                return np.int64(ASK)
            ctl[MISSED_POSITION], ctl[MISSED_AFTER], ctl[MISSED_IDLE] = position, after, idle
            if deed == ENDED or harms:
                state = np.int64(ENDS)
                break
            deed -= 1
            about = learnt.flags[deed]
            if steps and (steps >= SEGMENT or about & VCPU):
                state = np.int64(GOES)
                break
            at = answer(ops, deed * QUESTIONS + MOVES, row, 0, looked)
            if at < 0:
                return np.int64(MISSED_OPERATION)
            mover = np.int64(facts[at])
            if after and mover in (NEITHER, RIGHT):
                state = np.int64(ENDS)
                break
            if about & MAY_BLOCK and not (after or idle or about & ALONE):
                # Whoever has taken something must be seen with it, or deadlocks are lost.
                state = np.int64(ENDS)
                break
            at = answer(ops, deed * QUESTIONS + ACTS, row, 0, looked)
            if at < 0:
                return np.int64(MISSED_OPERATION)
            count = np.int64(facts[at])
            if count == 0:
                state = np.int64(STUCK if idle else ENDS)
                break
            if mover in (NEITHER, LEFT):
                after = np.int64(1)
            if not about & CHOOSES:
                idle = np.int64(0)
            steps += 1
            if ways + count > bench.ways.shape[0]:
                return np.int64(FULL_WAYS)
            before, before_event, before_violation = position, event, violation
            before_gets_on = gets_on
            for which in range(count - 1, -1, -1):
                # An outcome is [result, about it, events, violations, changes, ...].
                act = at + np.int64(facts[at + 1 + which])
                what = np.int64(facts[act + 1])
                if what & FAILED:
                    return np.int64(ASK)
                position = find_key(
                    learnt.after_keys,
                    learnt.after,
                    (thread << 18 | before) << 32 | (np.int64(facts[act]) + 1),
                )
                if position < 0:
                    return np.int64(MISSED_OPERATION)
                gets_on = before_gets_on | (what & PROGRESS)
                harms = what & HARM
                events, violations = np.int64(facts[act + 2]), np.int64(facts[act + 3])
                changed = np.int64(facts[act + 4])
                if last + events + violations + 1 > heard.shape[0]:
                    return np.int64(FULL_WAYS)
                act += HEAD
                event, violation = before_event, before_violation
                for i in range(act, act + events):
                    last += 1
                    heard[last, 0], heard[last, 1] = event, facts[i]
                    event = last
                act += events
                for i in range(act, act + violations):
                    # The number of its property is in the low bits.
                    if not ctl[REPORTED] >> (np.int64(facts[i]) & 63) & 1:
                        return np.int64(ASK)
                    last += 1
                    heard[last, 0], heard[last, 1] = violation, facts[i]
                    violation = last
                act += violations
                into = row
                if which:
                    into = bench.way_rows[ways]
                    for i in range(chunks):
                        into[i] = row[i]
                    way = bench.ways[ways]
                    way[_POSITION], way[_STEPS] = position, steps
                    way[_ABOUT] = _about(after, idle, gets_on, harms)
                    way[_EVENT], way[_VIOLATION] = event, violation
                    ways += 1
                for i in range(act, act + 2 * changed, 2):
                    into[facts[i]] = facts[i + 1]
        if outcomes == bench.begins.shape[0]:
            return np.int64(FULL_WAYS)
        bench.begins[outcomes] = used
        about_it = state | _about(after, idle, gets_on, harms)
        used = _close(bench, used, position, about_it, event, violation)
        if used < 0:
            return np.int64(FULL_WAYS)
        outcomes += 1
        if ways == 0:
            break
        ways -= 1
        for i in range(chunks):
            row[i] = bench.way_rows[ways, i]
        way = bench.ways[ways]
        position, steps = way[_POSITION], way[_STEPS]
        event, violation = way[_EVENT], way[_VIOLATION]
        about_it = way[_ABOUT]
        after, idle = np.int64(about_it & AFTER != 0), np.int64(about_it & IDLE != 0)
        gets_on = np.int64(about_it & GETS_ON != 0)
        harms = np.int64(about_it & HARMS != 0)
    return _remember(ctl, learnt.segments, bench, question, outcomes, used)


@inlined
def _about(after, idle, gets_on, harms):
    about = np.int64(0)
    if after:
        about |= AFTER
    if idle:
        about |= IDLE
    if gets_on:
        about |= GETS_ON
    if harms:
        about |= HARMS
    return about
