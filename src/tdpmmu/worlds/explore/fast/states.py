"""Compiled: the set of states, and the order in which they were found.

A slot of the set has a state's number in its low bits, and as many bits of its hash above as there
is room for, so that a look at the state itself is seldom in vain.  Slots are at most 7/8 full.  A
line of them is looked at in one step; what finds no room in it is in the next.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import allocating, compiled, inlined
from tdpmmu.worlds.explore.fast.control import COUNT, LINE, LOW, NUMBER_BITS, WIDTH, line_of, mix
from tdpmmu.worlds.explore.fast.intrinsics import (
    alike,
    claim,
    load_word,
    lowest,
    prefetch,
    store_word,
)

_TIMES = np.uint64(0xD6E8FEB86659FD93)
_S3, _S6 = np.uint64(3), np.uint64(6)
_ONE, _SEVEN, _BYTE, _SIXTY_THREE = np.uint64(1), np.uint64(7), np.uint64(255), np.uint64(63)

AT_ONCE = 32
"""States for whose slots memory is asked before they are added."""


# --- states as words ----------------------------------------------------------------------------


@inlined
def load_state(packed, width, number, words, at):
    """A state's words."""
    for i in range(len(packed.shape)):
        words[at + i] = load_word(packed.order, number * width + 8 * i) & packed.kept[i]


@inlined
def store_state(packed, width, number, words, at):
    """Add a state behind the last one: what comes after it is written over."""
    for i in range(len(packed.shape)):
        if packed.kept[i]:
            store_word(packed.order, number * width + 8 * i, words[at + i])


@inlined
def append_state(packed, width, number, words, at, source):
    """Add a state behind the last one, and link it to the one that it was found from."""
    store_state(packed, width, number, words, at)
    link = uint64(number - 1 + source)
    packed.links[link >> _S6] |= _ONE << (link & _SIXTY_THREE)


@inlined
def is_state(packed, width, number, words, at):
    """Whether these are a state's words."""
    same = True
    for i in range(len(packed.shape)):
        there = load_word(packed.order, number * width + 8 * i) & packed.kept[i]
        same = same and there == words[at + i]
    return same


@inlined
def field_of(packed, words, at, field):
    """One number out of a state."""
    word = words[at + packed.word[field]]
    return np.int64((word >> packed.shift[field]) & packed.mask[field])


@inlined
def put_field(packed, words, at, field, value):
    """Put a number where none is."""
    words[at + packed.word[field]] |= uint64(value) << packed.shift[field]


@inlined
def clear_field(packed, words, at, field):
    """Take a number out."""
    words[at + packed.word[field]] &= ~(packed.mask[field] << packed.shift[field])


@inlined
def hash_state(packed, words, at):
    """The hash of a state's words."""
    hashed = uint64(0)
    for i in range(len(packed.shape)):
        hashed = (hashed ^ words[at + i]) * _TIMES
    return mix(hashed)


@inlined
def ones(word):
    """How many bits are set."""
    word -= (word >> _ONE) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + (
        (word >> np.uint64(2)) & np.uint64(0x3333333333333333)
    )
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


# --- the set --------------------------------------------------------------------------------------


@inlined
def tag_of(hashed, mask):
    """What a slot has above the number."""
    return np.int64(hashed & LOW) & ~mask


@compiled
def find_state(packed, width, bits, words, at):
    """The number of a state, or -1."""
    slots = packed.slots
    capacity = slots.shape[0]
    hashed = hash_state(packed, words, at)
    mask = (np.int64(1) << bits) - 1
    tag = tag_of(hashed, mask)
    line = line_of(hashed, capacity)
    while True:
        those = alike(slots, line, ~mask, tag)
        while those:
            number = (np.int64(slots[line + lowest(those)]) & mask) - 1
            if number >= 0 and is_state(packed, width, number, words, at):
                return number
            those &= those - 1
        if alike(slots, line, -1, 0):
            return np.int64(-1)
        line += LINE
        if line == capacity:
            line = 0


@compiled
def add_hashed(ctl, packed, queue, first, end, words, source, hashes):
    """Add the states in the queue's places ``first`` to ``end``, if they are new.

    They are found from those in ``source``.  In two rounds, so that what the second reads the first
    has asked for.
    """
    slots = packed.slots
    each = len(packed.shape)
    width, bits = ctl[WIDTH], ctl[NUMBER_BITS]
    capacity = slots.shape[0]
    mask = (np.int64(1) << bits) - 1
    for place in range(first, end):
        i = queue[place]
        line = line_of(hashes[i], capacity)
        those = alike(slots, line, ~mask, tag_of(hashes[i], mask))
        while those:
            there = np.int64(slots[line + lowest(those)]) & mask
            prefetch(packed.order, max(there - 1, 0) * width)
            those &= those - 1
        if not alike(slots, line, -1, 0):
            prefetch(slots, line + LINE if line + LINE < capacity else 0)
    found = ctl[COUNT]
    for place in range(first, end):
        i = queue[place]
        tag = tag_of(hashes[i], mask)
        line = line_of(hashes[i], capacity)
        while True:
            known = False
            those = alike(slots, line, ~mask, tag)
            while those:
                number = (np.int64(slots[line + lowest(those)]) & mask) - 1
                if number >= 0 and is_state(packed, width, number, words, i * each):
                    known = True
                    break
                those &= those - 1
            if known:
                break
            free = alike(slots, line, -1, 0)
            if free:
                slots[line + lowest(free)] = tag | (found + 1)
                append_state(packed, width, found, words, i * each, source[i])
                found += 1
                break
            line += LINE
            if line == capacity:
                line = 0
    ctl[COUNT] = found


@allocating
def index_states(ctl, packed, first, end):
    """Add states ``first`` to ``end`` to the slots, where they are not yet.

    Several threads can do this at once, each for some states.
    """
    each = len(packed.shape)
    slots = packed.slots
    capacity = slots.shape[0]
    words = np.empty(AT_ONCE * each, np.uint64)
    hashes = np.empty(AT_ONCE, np.uint64)
    width = ctl[WIDTH]
    mask = (np.int64(1) << ctl[NUMBER_BITS]) - 1
    for begin in range(first, end, AT_ONCE):
        some = min(AT_ONCE, end - begin)
        for i in range(some):
            load_state(packed, width, begin + i, words, i * each)
            hashes[i] = hash_state(packed, words, i * each)
            prefetch(slots, line_of(hashes[i], capacity))
        for i in range(some):
            line = line_of(hashes[i], capacity)
            there = tag_of(hashes[i], mask) | (begin + i + 1)
            while True:
                free = alike(slots, line, -1, 0)
                if free == 0:
                    line += LINE
                    if line == capacity:
                        line = 0
                elif claim(slots, line + lowest(free), there):
                    break


@allocating
def repack(first, count, width, packed, new_width, new):
    """Pack states with other fields, in place: from the first that is still there."""
    fields = packed.word.shape[0]
    words = np.empty(len(packed.shape), np.uint64)
    new_words = np.empty(len(new.shape), np.uint64)
    for i in range(count - first):
        number = first + i if new_width <= width else count - 1 - i
        load_state(packed, width, number, words, 0)
        new_words[:] = 0
        for field in range(fields):
            put_field(new, new_words, 0, field, field_of(packed, words, 0, field))
        for byte in range(new_width):
            shift = (uint64(byte) & _SEVEN) << _S3
            packed.order[number * new_width + byte] = (new_words[byte >> 3] >> shift) & _BYTE


@allocating
def put_states(packed, width, first, shared, rows):
    """Pack states from their numbers, behind the last one."""
    threads = rows.shape[1]
    words = np.empty(len(packed.shape), np.uint64)
    for i in range(shared.shape[0]):
        words[:] = 0
        for thread in range(threads):
            put_field(packed, words, 0, thread, rows[i, thread])
        put_field(packed, words, 0, threads, shared[i])
        store_state(packed, width, first + i, words, 0)


# --- where they were found from -------------------------------------------------------------------


@compiled
def put_links(links, first, parents):
    """Link states to those that they were found from: ``parents`` of state ``first`` and on."""
    for i in range(parents.shape[0]):
        link = uint64(first + i - 1 + parents[i])
        links[link >> _S6] |= _ONE << (link & _SIXTY_THREE)


@compiled
def parent_of(links, number):
    """The state that a state, which is not the first, was found from."""
    left = number
    at = 0
    while ones(links[at]) < left:
        left -= ones(links[at])
        at += 1
    word = links[at]
    for _ in range(left - 1):
        word &= word - _ONE
    below = ones((word & (~word + _ONE)) - _ONE)
    return 64 * at + below - (number - 1)


@compiled
def unpack_state(packed, width, number, words):
    """A state's words, for Python."""
    load_state(packed, width, number, words, 0)
