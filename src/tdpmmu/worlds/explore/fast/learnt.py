"""Compiled: what is known of operations and of turns, as facts.

What a thread can do depends on some chunks of the shared state only.  A *fact* is the answer to a
question for certain values of those chunks.  A *view* is a set of chunks that answers depend on; a
question has a few views, linked, the one that was of use last being first:
``[chunks, next view or 0, chunk, chunk, ...]``.  A fact is ``[view, value, value, ..., word, word,
...]``, the values being the view's.

Questions to an operation of a thread are how it moves (a word: the mover), what it does, and
whether its turn may come first (two words: that, and the rival or -1).  What it does is the number
of outcomes, where each begins (behind the fact's words), and for each ``[result, about it, events,
violations, changes, event ..., violation ..., chunk, value, ...]``.

A question to a position is what the thread's next turn does: a head, and for each turn the position
after it, with its progress in bit 31, how many chunks it changes, and ``chunk, value`` for each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import allocating, compiled, inlined
from tdpmmu.worlds.explore.fast.control import (
    CHUNKS,
    OP_FACTS,
    OP_WRITTEN,
    SEQUENCES,
    Words,
    mix,
    slot_of,
)
from tdpmmu.worlds.explore.fast.facts import find_key, put_key

MOVERS = RIGHT, BOTH, LEFT, NEITHER = range(4)

# What is known of a position: nothing, that the thread has ended there, or raised; or else one more
# than the number of its operation.
UNKNOWN, ENDED, RAISED = 0, -1, -2

# About an operation.
VCPU, MAY_BLOCK, CHOOSES, ALONE = 1, 2, 4, 8

# About an outcome of it.
HARM, FAILED, PROGRESS = 1, 2, 4

# Questions to an operation: numbers of its views.
MOVES, ACTS, ORDERS, QUESTIONS = 0, 1, 2, 3


class Facts(NamedTuple):
    """Facts and their views, one behind the other; where facts are; and the first view of each
    question.

    Those of operations are apart from those of turns, which are many more: so they stay in the
    cache while turns are put together from them.
    """

    words: Words
    slots: Words
    views: Words


class Learnt(NamedTuple):
    """What is known of operations, and of turns.

    Segments' questions go by points, turns' and ``deeds`` by thread and position, operations' by
    operation and question; ``after`` has positions by position and result, ``sequences`` tells one
    course of events from another.
    """

    ops: Facts
    segments: Facts
    turns: Facts
    deeds: Words
    flags: Words
    after_keys: Words
    after: Words
    sequences: Words
    sequence_ids: Words


AT = (np.int64(1) << 40) - 1
"""The part of a slot that says where the fact is; above it are bits of its hash."""

_TIMES = np.uint64(0xD6E8FEB86659FD93)


@inlined
def _and(hashed, value):
    """Hash one value more: quick, since facts depend on many, and mixed well only at the end."""
    return (hashed ^ uint64(value)) * _TIMES


@compiled
def find_fact(facts, view, row, base):
    """``(offset of the fact or -1, slot, tag)`` of what a view has for the row at ``base``."""
    words, slots = facts.words, facts.slots
    count = np.int64(words[view])
    hashed = uint64(view)
    for i in range(view + 2, view + 2 + count):
        hashed = _and(hashed, row[base + words[i]])
    hashed = mix(hashed)
    tag = np.int64(hashed) & ((np.int64(1) << 22) - 1)
    capacity = slots.shape[0]
    slot = slot_of(hashed, capacity)
    while True:
        there = slots[slot]
        if there == 0:
            return np.int64(-1), slot, tag
        at = there & AT
        if there >> 40 == tag and words[at] == view:
            same = True
            for i in range(count):
                if words[at + 1 + i] != row[base + words[view + 2 + i]]:
                    same = False
                    break
            if same:
                return at, slot, tag
        slot += 1
        if slot == capacity:
            slot = 0


@compiled
def move_facts(words, slots, new_slots):
    """All facts into a larger table."""
    capacity = new_slots.shape[0]
    for i in range(slots.shape[0]):
        there = slots[i]
        if there == 0:
            continue
        at = there & AT
        hashed = uint64(words[at])
        for j in range(np.int64(words[np.int64(words[at])])):
            hashed = _and(hashed, words[at + 1 + j])
        slot = slot_of(mix(hashed), capacity)
        while new_slots[slot] != 0:
            slot += 1
            if slot == capacity:
                slot = 0
        new_slots[slot] = there


@compiled
def one_more(ctl, learnt, sequence, what):
    """The number of a sequence that is one longer; 0 is the empty one."""
    key = (sequence << 32 | what) + 1
    found = find_key(learnt.sequences, learnt.sequence_ids, key)
    if found < 0:
        ctl[SEQUENCES] += 1
        found = ctl[SEQUENCES]
        put_key(learnt.sequences, learnt.sequence_ids, key, found)
    return found


@compiled
def answer(facts, question, row, base, looked):
    """Where the answer to a question is that holds for a shared state, or -1; what it rests on.

    The view that had it comes first from then on.
    """
    words, views = facts.words, facts.views
    before = np.int64(0)
    view = np.int64(views[question])
    while view != 0:
        at, _, _ = find_fact(facts, view, row, base)
        if at >= 0:
            if before:
                words[before + 1] = words[view + 1]
                words[view + 1] = views[question]
                views[question] = view
            count = np.int64(words[view])
            for i in range(view + 2, view + 2 + count):
                looked[words[i]] = True
            return at + 1 + count
        before = view
        view = np.int64(words[view + 1])
    return np.int64(-1)


@compiled
def add_view(facts, written, question, chunks, count):
    """The view of those chunks, which is the last one if it is new: ``(view, words written)``.

    There has to be room.
    """
    words = facts.words
    view = np.int64(facts.views[question])
    last = np.int64(0)
    while view != 0:
        if words[view] == count:
            same = True
            for i in range(count):
                if words[view + 2 + i] != chunks[i]:
                    same = False
                    break
            if same:
                return view, written
        last = view
        view = np.int64(words[view + 1])
    view = np.int64(written)
    words[view] = count
    words[view + 1] = 0
    for i in range(count):
        words[view + 2 + i] = chunks[i]
    if last:
        words[last + 1] = view
    else:
        facts.views[question] = view
    return view, view + 2 + count


@compiled
def add_fact(facts, written, view, row, base, answer, count):
    """What holds wherever the view's chunks are as in a row: where it begins behind the values."""
    words = facts.words
    chunks = np.int64(words[view])
    _, slot, tag = find_fact(facts, view, row, base)
    at = np.int64(written)
    facts.slots[slot] = tag << 40 | at
    words[at] = view
    for i in range(chunks):
        words[at + 1 + i] = row[base + words[view + 2 + i]]
    at += 1 + chunks
    for i in range(count):
        words[at + i] = answer[i]
    return at


@allocating
def learn(ctl, facts, batch):
    """Add what Python has found out of operations: there has to be room.

    ``[question, chunks, words, chunk ..., value ..., word ...]``, again and again.
    """
    at = 0
    row = np.zeros(ctl[CHUNKS], np.uint32)
    written = ctl[OP_WRITTEN]
    while at < batch.shape[0]:
        question, chunks, words = batch[at], batch[at + 1], batch[at + 2]
        at += 3
        view, written = add_view(facts, written, question, batch[at:], chunks)
        for i in range(chunks):
            row[batch[at + i]] = batch[at + chunks + i]
        at += 2 * chunks
        written = words + add_fact(facts, written, view, row, 0, batch[at:], words)
        ctl[OP_FACTS] += 1
        at += words
    ctl[OP_WRITTEN] = written


@compiled
def learn_positions(learnt, batch):
    """Add what is after positions: ``[position, result, position after]``, again and again."""
    for at in range(0, batch.shape[0], 3):
        key = batch[at] << 32 | (batch[at + 1] + 1)
        put_key(learnt.after_keys, learnt.after, key, batch[at + 2])
