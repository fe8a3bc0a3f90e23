"""The compiled loop over all guests that run: whose touch is next, and does it hit?

It does what ``StepGuest`` does, on arrays, and in addition faults whose *pattern* is known
(``patterns.py``), if nothing else can happen before their end: those that install a leaf, and
writes to a leaf that some bits are missing from.  It stops where Python has to look.
"""

from __future__ import annotations

import numpy as np

from tdpmmu.arch.spte import BASE_ADDR_MASK, PAGE_SHIFT
from tdpmmu.arch.table import TABLE_PFN
from tdpmmu.kernel.mm import FIRST_PFN
from tdpmmu.simulation.guest import WRITE
from tdpmmu.simulation.regions import ABSENT_SHIFT, LOST, SMALL_HOST, SWAPPED
from tdpmmu.worlds.explore.fast.compiling import compiled
from tdpmmu.worlds.simulate.ops import FOREVER

# What is known of each guest: columns of ``cpus``.
COLUMNS = 13
DUE, KICKED, RUNS, AT, END, SINCE, ROOT, EPOCH, HELD, BUSY, FULL, NUMBER, IPI = range(COLUMNS)
"""When it touches and when an IPI arrives; whether it runs; its place among its touches, and how
many there are; since when the touch has been tried (-1: it has not); its root; how often its TLB
was flushed, and how much is in it; what somebody has asked of it; whether its
page-modification log is full after this touch; its thread's number; whether an IPI was sent here.
The last row is who sends IPIs: it runs while it does, and ``DUE`` is the next one."""

NOTHING, FLUSH, OTHERS = range(3)
"""``BUSY``: a flush and nothing else is one that needs no looking at."""

# A touch: ``THINK`` ns before it, and gfn, access and tag in one number.
THINK, WHAT = range(2)
ACCESS_SHIFT, TAG_SHIFT = 40, 44
GFN_MASK = (1 << ACCESS_SHIFT) - 1

# The numbers of ``control``: what the loop is told, then what it says.
CONTROL = 42
LIMIT, LIMIT_NUMBER, UNTIL, SAMPLE, OPEN, LINE_OWNER, LINE_FREE = range(7)
LEVELS, ACCESS_NS, REFILL, PAGES, HUGE_LEVEL, BLOCK, STRIDE, ENTRIES = 7, 8, 8, 12, 13, 14, 15, 16
"""``REFILL`` + level is the price of a walk to a leaf of that level."""
WHO, WHEN, NEXT, AFTER, TOUCHED, PATTERN, LEVEL, CELL = range(17, 25)
"""Whose turn it is and when, the same for the one after it; when the last touch was; of a fault
that nothing is known of: its pattern, and the level and the number of the entry."""
ACCESSES, REFILLED, REFAULTED, FAULTED, SMALL, HUGE, APPLIED, LOGGED = range(25, 33)
CALM, BOUNCE, SENT_SO_FAR, SENDS, SEND_NS, DELIVER_NS, IPIS, BOUNCED, BOUNCES = range(33, 42)
"""Whether kicked guests may *bounce* (leave, flush and enter again in one step, which takes
``BOUNCE`` ns); the IPIs that are being sent and how long each takes; how many are on their way;
how many have bounced in this run of the loop, and in all."""

# Encodings: numbers of ``masks``.
PRESENT, LARGE, NONPRESENT, REMOVED, MMIO_MASK, MMIO_VALUE, NEED, SHUT = 0, 1, 2, 3, 4, 5, 6, 9

# A pattern of faults.
STATE, TAKES, BITS, LOCK_AT, LOCK_NS, LINE_AT, TIMES, MARKS, KIND, BEFORE = range(10)
PATTERN_COLUMNS = 10
"""``BITS`` of the leaf that is installed, or those that a leaf gets; ``LOCK_NS`` is -1 if the lock
is not taken, ``LINE_AT`` if its line stays where it is; ``MARKS``: the page is marked dirty.  Of a
leaf that is there: ``BEFORE``, its bits, and ``KIND``, 0 of a row that is free."""
UNKNOWN, SIMPLE, OTHERWISE = range(3)
INSTALLS = 2 * 3 * 2 * 4 * 2 * 2
PATTERNS = INSTALLS + 64
"""After those that install a leaf come those that change one, as they are met."""

# What is written down of a fault: ``H_NS`` is -1 if it was not done here.
L_NS, L_SINCE, L_VCPU, L_GFN, L_TAG, H_AT, H_NS, LOG_COLUMNS = range(8)
LOG = 4096

# Why the loop stops.
DONE, SAMPLES, DRAIN, KICK, LOOK, PASSED, SEND, SENT = range(8)

_KEY_BITS, _LEVEL_SHIFT = 38, 36
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ADDRESS = np.uint64(BASE_ADDR_MASK)
_PAGE_SHIFT = np.uint64(PAGE_SHIFT)


@compiled
def is_present(masks, entry):
    """``is_shadow_present_pte``."""
    if masks[PRESENT]:
        return entry & masks[PRESENT] != 0
    if entry == 0 or entry == masks[REMOVED]:
        return False
    return entry & masks[MMIO_MASK] != masks[MMIO_VALUE]


@compiled
def walk(masks, rows, levels, root, gfn):
    """The level at which a walk ends, the row it is in there, and the entry."""
    row, level = root, levels
    while True:
        entry = rows[row, gfn >> 9 * (level - 1) & 511]
        if level == 1 or not is_present(masks, entry) or entry & masks[LARGE]:
            return level, row, entry
        row = np.int64((entry & _ADDRESS) >> _PAGE_SHIFT) - TABLE_PFN
        level -= 1


@compiled
def hits(masks, entry, access):
    """Whether the hardware allows it, and it leaves no trace in the entry."""
    if not is_present(masks, entry):
        return False
    need = masks[NEED + access]
    return entry & need == need and not entry & masks[SHUT + access]


@compiled
def event(cpus, v):
    """When a guest has to be looked at next."""
    return min(cpus[v, DUE], cpus[v, KICKED])


@compiled
def before(cpus, a, b):
    """Whether guest a's turn is before guest b's: equal times go by number."""
    first, second = event(cpus, a), event(cpus, b)
    return first < second or (first == second and cpus[a, NUMBER] < cpus[b, NUMBER])


@compiled
def sift(cpus, order, size, at):
    """Let the guest at that place of the heap sink to where it belongs."""
    v = order[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and before(cpus, order[child + 1], order[child]):
            child += 1
        if not before(cpus, order[child], v):
            break
        order[at] = order[child]
        at = child
    order[at] = v


@compiled
def rise(cpus, order, size, v):
    """Let a guest that is earlier than it was rise to where it belongs."""
    at = 0
    while at < size and order[at] != v:
        at += 1
    while at and before(cpus, v, order[(at - 1) // 2]):
        order[at] = order[(at - 1) // 2]
        at = (at - 1) // 2
    order[at] = v


@compiled
def queue(cpus, order):
    """A heap of those that run."""
    size = 0
    for v in range(len(cpus)):
        if cpus[v, RUNS]:
            order[size] = v
            size += 1
    for at in range(size // 2 - 1, -1, -1):
        sift(cpus, order, size, at)
    return size


@compiled
def fill(cpus, tlb, v, entries, gfn, level):
    """Whether a touch needs a walk that the TLB remembers."""
    key = cpus[v, EPOCH] << _KEY_BITS | level << _LEVEL_SHIFT | gfn >> 9 * (level - 1)
    mask = tlb.shape[1] - 1
    slot = np.int64(np.uint64(key) * _GOLDEN >> np.uint64(40)) & mask
    while tlb[v, slot] >> _KEY_BITS == cpus[v, EPOCH]:
        if tlb[v, slot] == key:
            return False
        slot = slot + 1 & mask
    if cpus[v, HELD] >= entries:
        return False
    tlb[v, slot] = key
    cpus[v, HELD] += 1
    return True


@compiled
def quiet(control, masks, cpus, touches, rows, me, end, kicks):
    """Whether no other guest does anything before ``end`` but touch what hits.

    With ``kicks`` it may be kicked, and whoever sends IPIs may send them.
    """
    sender = len(touches)
    if not kicks and cpus[sender, RUNS] and cpus[sender, DUE] < end:
        return False
    for v in range(sender):
        if v == me or not cpus[v, RUNS]:
            continue
        if not kicks and cpus[v, KICKED] < end:
            return False
        when, at = cpus[v, DUE], cpus[v, AT]
        while when < end:
            what = touches[v, at, WHAT]
            _, _, entry = walk(masks, rows, control[LEVELS], cpus[v, ROOT], what & GFN_MASK)
            if cpus[v, FULL] or not hits(masks, entry, what >> ACCESS_SHIFT & 15):
                return False
            at += 1
            when += control[ACCESS_NS]
            if at == cpus[v, END]:
                if when < end:
                    return False
                break
            when += touches[v, at, THINK]
    return True


@compiled
def hits_until(control, masks, cpus, touches, rows, end):
    """Until when, up to ``end``, no guest does anything but touch what hits."""
    sender = len(touches)
    if cpus[sender, RUNS]:
        end = min(end, cpus[sender, DUE])
    for v in range(sender):
        if not cpus[v, RUNS]:
            continue
        end = min(end, cpus[v, KICKED])
        when, at = cpus[v, DUE], cpus[v, AT]
        while when < end:
            what = touches[v, at, WHAT]
            _, _, entry = walk(masks, rows, control[LEVELS], cpus[v, ROOT], what & GFN_MASK)
            hit = not cpus[v, FULL] and hits(masks, entry, what >> ACCESS_SHIFT & 15)
            at += 1
            if not hit or at == cpus[v, END]:
                end = when
                break
            when += control[ACCESS_NS] + touches[v, at, THINK]
    return end


@compiled
def pattern(control, disallowed, regions, v, gfn, access, level, row):
    """The number of a fault's pattern: all that what it does depends on."""
    host = 1 if regions[gfn >> 9] & SMALL_HOST else control[HUGE_LEVEL]
    tail = ((gfn >> 18) + 1 << 18) > control[PAGES]
    number = (level - 1) * 3 + access
    number = number * 2 + (disallowed[row] != 0)
    number = number * 4 + host
    return (number * 2 + tail) * 2 + (control[LINE_OWNER] == v)


@compiled
def changing(patterns, kind, bits):
    """The number of the pattern of a fault on a leaf with these bits; -1: there are too many."""
    for number in range(INSTALLS, PATTERNS):
        if not patterns[number, KIND]:
            patterns[number, KIND], patterns[number, BEFORE] = kind + 1, np.int64(bits)
            return number
        if patterns[number, KIND] == kind + 1 and patterns[number, BEFORE] == np.int64(bits):
            return number
    return -1


@compiled
def send(control, cpus, order, size, target, when):
    """An IPI to a guest that runs."""
    if not cpus[target, IPI]:
        cpus[target, IPI] = 1
        control[IPIS] += 1
    if cpus[target, KICKED] >= FOREVER:
        cpus[target, KICKED] = when + control[DELIVER_NS]
        rise(cpus, order, size, target)
    control[SENT_SO_FAR] += 1
    cpus[len(cpus) - 1, DUE] = when + control[SEND_NS]
    control[APPLIED] += 1


@compiled
def sends_until(control, cpus, sender):
    """When whoever sends IPIs is through with it; what is done before that is nobody else's."""
    if not cpus[sender, RUNS]:
        return FOREVER
    return cpus[sender, DUE] + (control[SENDS] - control[SENT_SO_FAR]) * control[SEND_NS]


@compiled
def bounce(control, cpus, bounced, v, when):
    """A guest that an IPI has reached leaves, flushes, and enters again."""
    cpus[v, DUE] += control[BOUNCE]
    cpus[v, KICKED] = FOREVER
    cpus[v, BUSY] = NOTHING
    cpus[v, HELD] = 0
    cpus[v, EPOCH] += 1
    if cpus[v, IPI]:
        cpus[v, IPI] = 0
        control[IPIS] -= 1
    bounced[control[BOUNCED]] = v
    control[BOUNCED] += 1
    control[BOUNCES] += 1
    control[APPLIED] += 1


@compiled
def say(control, cpus, order, size):
    """Whose turns are next."""
    control[WHO] = control[NEXT] = 0
    control[WHEN] = control[AFTER] = FOREVER
    if size:
        control[WHO], control[WHEN] = order[0], event(cpus, order[0])
    if size > 1:
        second = order[1]
        if size > 2 and before(cpus, order[2], second):
            second = order[2]
        control[NEXT], control[AFTER] = second, event(cpus, second)


@compiled
def run(
    control,
    masks,
    cpus,
    order,
    touches,
    tlb,
    rows,
    disallowed,
    regions,
    frame_rows,
    frames,
    patterns,
    dirty,
    log,
    sends,
    bounced,
):
    """Go on until Python is needed; the result says why, ``control`` who and when."""
    size = queue(cpus, order)
    levels = control[LEVELS]
    stop = DONE
    sender = len(touches)
    control[BOUNCED] = 0
    while size:
        v = order[0]
        when = event(cpus, v)
        if when > control[UNTIL] or when > control[LIMIT]:
            break
        if when == control[LIMIT] and cpus[v, NUMBER] > control[LIMIT_NUMBER]:
            break
        if when >= control[SAMPLE]:
            stop = SAMPLES
            break
        if control[LOGGED] == LOG or control[BOUNCED] == len(bounced):
            stop = DRAIN
            break
        if v == sender:
            if control[SENT_SO_FAR] == control[SENDS]:
                stop = SENT
                break
            target = sends[control[SENT_SO_FAR]]
            if not cpus[target, RUNS]:
                stop = SEND
                break
            send(control, cpus, order, size, target, when)
            sift(cpus, order, size, 0)
            continue
        if cpus[v, KICKED] <= when:
            end = when + control[BOUNCE] + 1
            if (
                not control[CALM]
                or cpus[v, BUSY] != FLUSH
                or cpus[v, DUE] >= FOREVER
                or end > min(control[LIMIT], control[UNTIL], sends_until(control, cpus, sender))
                or not quiet(control, masks, cpus, touches, rows, v, end, True)
            ):
                stop = KICK
                break
            bounce(control, cpus, bounced, v, when)
            sift(cpus, order, size, 0)
            continue
        at = cpus[v, AT]
        what = touches[v, at, WHAT]
        gfn, access, tag = what & GFN_MASK, what >> ACCESS_SHIFT & 15, what >> TAG_SHIFT
        level, row, entry = walk(masks, rows, levels, cpus[v, ROOT], gfn)
        now = when
        held_at, held_ns = np.int64(0), np.int64(-1)
        if not hits(masks, entry, access):
            control[PATTERN] = -1
            installs = entry == masks[NONPRESENT] and level <= 2
            changes = level == 1 and access == WRITE and is_present(masks, entry)
            if not (installs or changes) or not control[OPEN] or cpus[v, BUSY]:
                stop = LOOK
                break
            block = gfn // control[BLOCK]
            frame = frames[frame_rows[block // frames.shape[1]], block % frames.shape[1]]
            absent = regions[gfn >> 9] & SWAPPED or frame & 1 << ABSENT_SHIFT
            if absent or control[LINE_FREE] > when:
                stop = LOOK
                break
            known = pattern(control, disallowed, regions, v, gfn, access, level, row)
            index = gfn >> 9 * (level - 1) & 511
            if changes:
                known = changing(patterns, known, entry & ~_ADDRESS)
            if known < 0:
                stop = LOOK
                break
            if patterns[known, STATE] != SIMPLE:
                if patterns[known, STATE] == UNKNOWN:
                    control[PATTERN], control[LEVEL] = known, level
                    control[CELL] = row * 512 + index
                stop = LOOK
                break
            end = when + patterns[known, TAKES] + 1
            if (
                end > min(control[LIMIT], control[UNTIL], control[SAMPLE])
                or cpus[v, KICKED] < FOREVER
                or not quiet(control, masks, cpus, touches, rows, v, end, False)
            ):
                stop = LOOK
                break
            if installs:
                first = gfn >> 9 * (level - 1) << 9 * (level - 1)
                pfn = FIRST_PFN + (frame >> 1) * control[STRIDE] + first
                rows[row, index] = np.uint64(patterns[known, BITS]) | np.uint64(pfn) << _PAGE_SHIFT
                if level == 1:
                    control[SMALL] += 1
                else:
                    control[HUGE] += 1
            else:
                rows[row, index] = entry | np.uint64(patterns[known, BITS])
            if patterns[known, MARKS]:
                dirty[gfn] = True
            patterns[known, TIMES] += 1
            control[APPLIED] += 1
            control[ACCESSES] += 1
            ns = patterns[known, TAKES]
            if regions[gfn >> 9] & LOST:
                control[REFAULTED] += ns
            else:
                control[FAULTED] += ns
            if patterns[known, LINE_AT] >= 0:
                control[LINE_OWNER], control[LINE_FREE] = v, when + patterns[known, LINE_AT]
            held_at, held_ns = when + patterns[known, LOCK_AT], patterns[known, LOCK_NS]
            if cpus[v, SINCE] < 0:
                cpus[v, SINCE] = when
            now = when + ns
        control[ACCESSES] += 1
        control[TOUCHED] = now
        if cpus[v, SINCE] >= 0:
            line = log[control[LOGGED]]
            control[LOGGED] += 1
            line[L_NS], line[L_SINCE], line[L_VCPU] = now - cpus[v, SINCE], cpus[v, SINCE], v
            line[L_GFN], line[L_TAG], line[H_AT], line[H_NS] = gfn, tag, held_at, held_ns
            cpus[v, SINCE] = -1
        now += control[ACCESS_NS]
        if fill(cpus, tlb, v, control[ENTRIES], gfn, level):
            control[REFILLED] += control[REFILL + level]
            now += control[REFILL + level]
        cpus[v, AT] = at + 1
        if at + 1 == cpus[v, END] or cpus[v, FULL]:
            cpus[v, DUE] = now
            stop = PASSED
            break
        cpus[v, DUE] = min(FOREVER, now + touches[v, at + 1, THINK])
        sift(cpus, order, size, 0)
    say(control, cpus, order, size)
    return stop
