"""Compiled: one worker's part of a level.

What the threads can do in a state is chosen as :func:`tdpmmu.worlds.explore.fast.kernels.advance`
does, but here all that is missing in a level is found first, and states are added in the order in
which a single loop would have met them: each has a *key*, made of the number of the state that it
was found from and of the turn's place among that state's turns.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import compiled
from tdpmmu.worlds.explore.fast.control import (
    BLOCKED,
    CHUNKS,
    COUNT,
    FREE,
    FULL_ENTRIES,
    FULL_PLACES,
    FULL_SHARED,
    FULL_STATES,
    GONE,
    HALTED,
    LOW,
    NUMBER_BITS,
    PLACE_BITS,
    PLACES,
    POSITION_MASK,
    S32,
    SHARED,
    THREADS,
    URGENT,
    mix,
    slot_of,
)
from tdpmmu.worlds.explore.fast.facts import entry_key, find_entry, intern_row
from tdpmmu.worlds.explore.fast.kernels import find_places, find_state
from tdpmmu.worlds.explore.parallel.facts import FILLED, MISSED, fill

TURN_BITS = 17
"""Room for a turn's place among a state's turns: 64 threads with 1,023 each."""

ENOUGH = 100
"""There is no room for more questions, or candidates."""

ENDED = 101
"""All threads have ended."""

AT, LEFT, ASKED, FOUND, WRITTEN, FACTS = range(6)
"""Fields of a pass: where it is, states left over, questions, candidates; and of the facts."""


@compiled
def choose(
    ctl,
    values,
    hashes,
    shared_slots,
    keys,
    offsets,
    pool,
    first_view,
    facts,
    fact_slots,
    rows,
    steady,
    lanes,
    alone,
    state,
    chosen,
    movers,
    missing,
):
    """``(code, how many)``: the entries whose turns are followed from a state, or what is missing.

    All that is missing and certain to be needed: after a position that may turn out urgent, or to
    wait for one thread, nothing is.
    """
    shared = np.int64(state >> S32)
    base = np.int64(state & LOW) * ctl[THREADS]
    found = 0
    misses = 0
    ended = True
    rival = np.int64(-1)
    for late in range(2):
        those = alone if late else lanes
        lane = 0
        while lane < those.shape[0]:
            thread = those[lane] if rival < 0 else rival
            position = np.int64(rows[base + thread])
            offset = find_entry(keys, offsets, shared, thread, position)
            if offset < 0:
                code = fill(
                    ctl,
                    values,
                    hashes,
                    shared_slots,
                    keys,
                    offsets,
                    pool,
                    first_view,
                    facts,
                    fact_slots,
                    shared,
                    thread,
                    position,
                )
                if code == FILLED:
                    continue
                if code != MISSED:
                    return code, 0
                missing[misses] = thread
                misses += 1
                ended = False
                if rival >= 0 or not (late or steady[thread, position]):
                    break
                lane += 1
                continue
            head = pool[offset]
            kind = head & 3
            count = head >> 2 if kind in (FREE, URGENT) else np.int64(0)
            if misses == 0 and (rival >= 0 or (kind == URGENT and not late)):
                chosen[0] = offset
                movers[0] = thread
                return np.int64(FILLED), 1
            if rival >= 0 or (kind == URGENT and not late):
                break
            if kind == BLOCKED and not late:
                rival = head >> 2
                ended = False
                continue
            ended = ended and kind == GONE
            if count:
                chosen[found] = offset
                movers[found] = thread
                found += 1
            lane += 1
        if misses:
            return np.int64(MISSED), misses
        if found:
            return np.int64(FILLED), found
        if not ended:
            return np.int64(HALTED), 0
    return np.int64(ENDED if ended else HALTED), 0


@compiled
def resolve(
    ctl,
    values,
    hashes,
    shared_slots,
    keys,
    offsets,
    pool,
    first_view,
    facts,
    fact_slots,
    order,
    rows,
    steady,
    common,
    lanes,
    alone,
    steps,
    todo,
    questions,
    marks,
    seen,
):
    """Look for what is missing in the states of ``todo``; those that lack it move to its front.

    A question is ``(thread, position, shared, state)``.  Of those which are likely to have the same
    answer, since they agree on all that answers from there have depended on, one is asked.  Who is
    to answer is told by the chunks on which all answers have depended: so no answer, and little of
    the way to it, is worked out twice.
    """
    threads = ctl[THREADS]
    chunks = ctl[CHUNKS]
    chosen = np.empty(threads, np.int64)
    movers = np.empty(threads, np.int64)
    missing = np.empty(threads, np.int64)
    while steps[AT] < todo.shape[0]:
        number = todo[steps[AT]]
        state = order[number]
        code, misses = choose(
            ctl,
            values,
            hashes,
            shared_slots,
            keys,
            offsets,
            pool,
            first_view,
            facts,
            fact_slots,
            rows,
            steady,
            lanes,
            alone,
            state,
            chosen,
            movers,
            missing,
        )
        if code in (FULL_ENTRIES, FULL_SHARED):
            return code
        steps[AT] += 1
        if code != MISSED:
            continue
        todo[steps[LEFT]] = number
        steps[LEFT] += 1
        shared = np.int64(state >> S32)
        base = np.int64(state & LOW) * threads
        for i in range(misses):
            thread = missing[i]
            position = np.int64(rows[base + thread])
            mark = mix((uint64(thread) << S32) | uint64(position))
            where = mark
            view = first_view[thread, position]
            if view == 0:
                # Nothing is known of it yet: ask a few.
                mark = mix(mark ^ uint64(shared & 3))
            else:
                always = common[thread, position]
                for j in range(facts[always]):
                    value = values[shared * chunks + facts[always + 2 + j]]
                    where = mix(where ^ uint64(value))
                while view != 0:
                    for j in range(facts[view]):
                        value = values[shared * chunks + facts[view + 2 + j]]
                        mark = mix(mark ^ uint64(value))
                    view = facts[view + 1]
            capacity = seen.shape[0]
            slot = slot_of(mark, capacity)
            while seen[slot] != 0 and seen[slot] != mark:
                slot += 1
                if slot == capacity:
                    slot = 0
            if seen[slot] == mark:
                continue
            if steps[ASKED] == questions.shape[0]:
                # It stays to be done: asked in the next round.
                continue
            seen[slot] = mark
            questions[steps[ASKED], 0] = thread
            questions[steps[ASKED], 1] = position
            questions[steps[ASKED], 2] = shared
            questions[steps[ASKED], 3] = number
            marks[steps[ASKED]] = where
            steps[ASKED] += 1
    return np.int64(FILLED)


@compiled
def add_facts(steps, facts, fact_slots, first_view, common, words):
    """Put answers in; there has to be room.

    ``common``: for each position the chunks that are in all its views, as a view.  An answer is
    ``[thread, position, chunks, chunk..., value..., words, head, turn...]``.
    """
    at = 0
    capacity = fact_slots.shape[0]
    while at < words.shape[0]:
        thread, position, count = words[at], words[at + 1], words[at + 2]
        chunks = at + 3
        body = chunks + 2 * count
        length = words[body]
        at = body + 1 + length
        view = first_view[thread, position]
        last = np.int64(0)
        while view != 0:
            same = facts[view] == count
            for i in range(count if same else 0):
                if facts[view + 2 + i] != words[chunks + i]:
                    same = False
                    break
            if same:
                break
            last = view
            view = facts[view + 1]
        if view == 0:
            view = steps[WRITTEN]
            facts[view], facts[view + 1] = count, 0
            for i in range(count):
                facts[view + 2 + i] = words[chunks + i]
            steps[WRITTEN] += 2 + count
            if last == 0:
                first_view[thread, position] = view
                common[thread, position] = view
            else:
                facts[last + 1] = view
                before = common[thread, position]
                always = steps[WRITTEN]
                both = 0
                for i in range(facts[before]):
                    for j in range(count):
                        if facts[before + 2 + i] == words[chunks + j]:
                            facts[always + 2 + both] = words[chunks + j]
                            both += 1
                facts[always], facts[always + 1] = both, 0
                steps[WRITTEN] += 2 + both
                common[thread, position] = always
        hashed = mix(view)
        for i in range(count):
            hashed = mix(hashed ^ uint64(words[chunks + count + i]))
        slot = slot_of(hashed, capacity)
        known = False
        while fact_slots[slot] != 0:
            there = fact_slots[slot]
            if facts[there] == view:
                known = True
                for i in range(count):
                    if facts[there + 1 + i] != words[chunks + count + i]:
                        known = False
                        break
                if known:
                    break
            slot += 1
            if slot == capacity:
                slot = 0
        if known:
            continue
        fact = steps[WRITTEN]
        fact_slots[slot] = fact
        facts[fact] = view
        for i in range(count):
            facts[fact + 1 + i] = words[chunks + count + i]
        for i in range(length):
            facts[fact + 1 + count + i] = words[body + 1 + i]
        steps[WRITTEN] += 1 + count + length
        steps[FACTS] += 1


@compiled
def expand(
    ctl,
    values,
    hashes,
    shared_slots,
    keys,
    offsets,
    pool,
    first_view,
    facts,
    fact_slots,
    order,
    rows,
    row_slots,
    steady,
    lanes,
    alone,
    steps,
    end,
    ranks,
    candidates,
    halted,
):
    """What the turns of the states up to ``end`` lead to: ``(key, shared state, places)``."""
    threads = ctl[THREADS]
    chosen = np.empty(threads, np.int64)
    movers = np.empty(threads, np.int64)
    missing = np.empty(threads, np.int64)
    place_bits = ctl[PLACE_BITS]
    most_places = min(rows.shape[0] // threads, row_slots.shape[0] // 5 * 4)
    while steps[AT] < end:
        state = order[steps[AT]]
        code, found = choose(
            ctl,
            values,
            hashes,
            shared_slots,
            keys,
            offsets,
            pool,
            first_view,
            facts,
            fact_slots,
            rows,
            steady,
            lanes,
            alone,
            state,
            chosen,
            movers,
            missing,
        )
        if code == HALTED:
            halted[steps[LEFT]] = steps[AT]
            steps[LEFT] += 1
        total = np.int64(0)
        for which in range(found):
            head = pool[chosen[which]]
            if head & 3 == FREE or head & 3 == URGENT:
                total += head >> 2
        if steps[FOUND] + total > candidates.shape[1]:
            return np.int64(ENOUGH)
        if ctl[PLACES] + total > most_places:
            return np.int64(FULL_PLACES)
        places = np.int64(state & LOW)
        base = places * threads
        turn = np.int64(0)
        key = np.int64(ranks[steps[AT]]) << TURN_BITS
        for which in range(found if total else 0):
            offset = chosen[which]
            mover = movers[which]
            for at in range(offset + 1, offset + 1 + (pool[offset] >> 2)):
                word = pool[at]
                position = word & POSITION_MASK
                target = places
                if position != rows[base + mover]:
                    target, slot, tag = find_places(
                        rows, row_slots, place_bits, rows, base, threads, mover, position
                    )
                    if target < 0:
                        target = ctl[PLACES]
                        ctl[PLACES] = target + 1
                        row_slots[slot] = tag | (target + 1)
                        for thread in range(threads):
                            rows[target * threads + thread] = rows[base + thread]
                        rows[target * threads + mover] = position
                candidates[0, steps[FOUND]] = key + turn
                candidates[1, steps[FOUND]] = word >> 32
                candidates[2, steps[FOUND]] = target
                steps[FOUND] += 1
                turn += 1
        steps[AT] += 1
    return np.int64(FILLED)


@compiled
def renumber(numbers, sent, fresh, next_number):
    """Numbers as the receiver knows them; what was not sent yet is noted in ``fresh``."""
    count = 0
    for i in range(numbers.shape[0]):
        there = np.int64(sent[numbers[i]])
        if there == 0:
            fresh[count] = numbers[i]
            count += 1
            there = next_number + count
            sent[numbers[i]] = there
        numbers[i] = there - 1
    return count


@compiled
def intern_places(ctl, rows, row_slots, new, numbers):
    """The numbers of rows of places; there has to be room."""
    threads = ctl[THREADS]
    for i in range(numbers.shape[0]):
        number, slot, tag = find_places(
            rows, row_slots, ctl[PLACE_BITS], new, i * threads, threads, -1, 0
        )
        if number < 0:
            number = ctl[PLACES]
            ctl[PLACES] = number + 1
            row_slots[slot] = tag | (number + 1)
            for thread in range(threads):
                rows[number * threads + thread] = new[i * threads + thread]
        numbers[i] = number


@compiled
def intern_rows(ctl, values, hashes, slots, new, numbers):
    """The numbers of shared states; there has to be room."""
    chunks = ctl[CHUNKS]
    for i in range(numbers.shape[0]):
        base = ctl[SHARED] * chunks
        for chunk in range(chunks):
            values[base + chunk] = new[i * chunks + chunk]
        numbers[i] = intern_row(ctl, values, hashes, slots)


@compiled
def move_pool(pool, numbers, moved):
    """Entries with shared states numbered anew; how many there are."""
    at = 0
    entries = 0
    while at < pool.shape[0]:
        key = pool[at] - 1
        moved[at] = entry_key(numbers[key >> 24], key >> 18 & 63, key & ((1 << 18) - 1))
        head = pool[at + 1]
        moved[at + 1] = head
        at += 2
        entries += 1
        if head & 3 == FREE or head & 3 == URGENT:
            for at_turn in range(at, at + (head >> 2)):
                word = pool[at_turn]
                moved[at_turn] = (numbers[word >> 32] << 32) | np.int64(uint64(word) & LOW)
            at += head >> 2
    return entries


@compiled
def insert(ctl, order, slots, keys, states, heads, ends, new_keys):
    """Add states in the order of their keys, which is that of each worker's part of them."""
    most = min(order.shape[0], slots.shape[0] // 5 * 4)
    found = ctl[COUNT]
    first = found
    while True:
        best = -1
        for source in range(heads.shape[0]):
            if heads[source] < ends[source] and (
                best < 0 or keys[heads[source]] < keys[heads[best]]
            ):
                best = source
        if best < 0:
            break
        if found == most:
            ctl[COUNT] = found
            return np.int64(FULL_STATES), found - first
        at = heads[best]
        number, slot, tag = find_state(order, slots, ctl[NUMBER_BITS], states[at])
        if number < 0:
            slots[slot] = tag | (found + 1)
            order[found] = states[at]
            new_keys[found - first] = keys[at]
            found += 1
        heads[best] += 1
    ctl[COUNT] = found
    return np.int64(FILLED), found - first
