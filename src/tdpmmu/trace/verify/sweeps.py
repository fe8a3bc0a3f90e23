"""Changes of many entries of one table in a row, taken in all at once.

``handle_removed_pt`` freezes the 512 entries of a removed table, and write protection, aging and
dirty logging go through live ones: most of the changes in any trace.  What is not that simple goes
the ordinary way, change by change.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from functools import cache, partial
from typing import NamedTuple

from tdpmmu.arch.spte import BASE_ADDR_MASK
from tdpmmu.trace.fields import SpteChange
from tdpmmu.trace.tables import same_entry
from tdpmmu.trace.verify.forest import Forest
from tdpmmu.trace.verify.kinds import Kind, Kinds
from tdpmmu.trace.verify.nodes import ENTRIES, Node
from tdpmmu.trace.verify.threads import TEARDOWN, UNKNOWN, Thread

_FLAGS = (1 << 64) - 1 & ~BASE_ADDR_MASK

Columns = tuple[tuple[int, ...], ...]
"""Of :class:`SpteChange`."""


class _Sum(NamedTuple):
    """``leaves``: by how much there are more; ``takes``: how many take something from vCPUs."""

    leaves: int
    takes: int


def in_first_table(columns: Columns) -> int:
    """How many of the changes, from the first on, are in a row in one table."""
    as_ids, gfns, levels, _, _ = columns
    count, level = len(gfns), levels[0]
    size = 1 << 9 * (level - 1)
    if as_ids.count(as_ids[0]) != count or levels.count(level) != count or gfns[0] % size:
        return 0
    if gfns != tuple(range(gfns[0], gfns[0] + count * size, size)):
        return 0
    return min(count, ENTRIES - (gfns[0] // size & ENTRIES - 1))


def sweep(columns: Columns, forest: Forest, kinds: Kinds, thread: Thread) -> int | None:
    """Take in the changes of a row in one table, which a thread made.

    Returns how many of a live table took something away; None, and nothing done, if it is not
    that simple.
    """
    as_ids, gfns, levels, olds, news = columns
    count, level = len(gfns), levels[0]
    index = gfns[0] >> 9 * (level - 1) & ENTRIES - 1
    table, removed = _table(as_ids[0], gfns[0], level, forest, thread)
    if table is None or table.partial:
        return None
    # A removed table's entries are frozen; a live one's only until the freezer clears them.
    frozen = news.count(forest.fmt.removed)
    if frozen != (count if removed else 0) or (removed and index <= table.removed_to):
        return None
    rebuilt = table.entries[index : index + count]
    before, after = array("Q", olds), array("Q", news)
    if rebuilt != before and not all(map(partial(same_entry, forest.fmt), rebuilt, olds)):
        return None
    first = kinds.of(level, olds[0], news[0])
    total = _sum(level, before, after, forest, kinds)
    if total is None or not _simple(first):
        return None
    if not removed and total.takes and thread.context not in (UNKNOWN, TEARDOWN):
        return None  # each of them owes a flush
    change = SpteChange(as_ids[0], gfns[0], level, olds[0], news[0])
    forest.enter(change, first, table, thread)
    table.entries[index : index + count] = after
    forest.pages[level] += total.leaves - first.leaves
    if removed:
        table.removed_to = index + count - 1
    return 0 if removed else total.takes


def _table(
    as_id: int, gfn: int, level: int, forest: Forest, thread: Thread
) -> tuple[Node | None, bool]:
    """The table that ``gfn`` is in, if nothing else could be meant, and if it is removed."""
    removed = [
        one
        for one in thread.removed
        if one.level == level and one.gfn >> 9 * level == gfn >> 9 * level
    ]
    if removed:
        return (removed[0] if len(removed) == 1 else None), True
    live = []
    for root in forest.roots.get(as_id, ()):
        table: Node | None = root
        above = root.level
        while above > level and table is not None:
            above -= 1
            table = table.children.get(gfn >> 9 * above & ENTRIES - 1)
        if table is not None and level < root.level:
            live.append(table)
    return (live[0] if len(live) == 1 else None), False


def _sum(
    level: int, olds: array[int], news: array[int], forest: Forest, kinds: Kinds
) -> _Sum | None:
    """The changes by their kinds; None if one is not simple.

    Frames matter only where both values are present: they have to be the same.
    """
    present = forest.fmt.mmu_present
    was, now = _lanes(olds), _lanes(news)
    moved = (was ^ now) & _every(BASE_ADDR_MASK, len(olds))
    leaves = takes = 0
    for (old, new), count in _pairs(olds, news, was, now, present).items():
        kind = kinds.of(level, old, new)
        if not _simple(kind) or (moved and old & present and new & present):
            return None
        leaves += kind.leaves * count
        takes += kind.takes * count
    return _Sum(leaves, takes)


def _pairs(
    olds: array[int], news: array[int], was: int, now: int, present: int
) -> dict[tuple[int, int], int]:
    """How many changes there are of each old to each new value, without frames where present."""
    count = len(olds)
    old, new = olds[0], news[0]
    flags = _every(_FLAGS, count)
    if old & present and was & flags == _every(old & _FLAGS, count):
        if new & present:
            if now & flags == _every(new & _FLAGS, count):
                return {(old & _FLAGS, new & _FLAGS): count}
        elif now == _every(new, count):
            return {(old & _FLAGS, new): count}
    return Counter(
        (old & _FLAGS if old & present else old, new & _FLAGS if new & present else new)
        for old, new in zip(olds, news, strict=True)
    )


def _lanes(values: array[int]) -> int:
    """All values side by side in one number: most questions to them are one operation then."""
    return int.from_bytes(values.tobytes(), sys.byteorder)


@cache
def _ones(count: int) -> int:
    return _lanes(array("Q", [1]) * count)


def _every(value: int, count: int) -> int:
    """``count`` times the same value, side by side."""
    return _ones(count) * value


def _simple(kind: Kind) -> bool:
    """No rule is broken, and no table or huge page comes or goes."""
    return kind.wrong is None and not (kind.links or kind.unlinks) and kind.huge is None
