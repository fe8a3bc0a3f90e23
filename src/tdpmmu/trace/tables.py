"""Rebuild the page tables of the TDP MMU from ``kvm_tdp_mmu_spte_changed``.

The tracepoint sits in ``handle_changed_spte`` (``__handle_changed_spte`` up to 6.3) and says as_id,
gfn, level, old and new value of an entry; it names no table and no root.  What the kernel changes
*without* tracing it there, and what is done about it here:

- **The children of an in-place split** (``tdp_mmu_split_huge_page``, from 5.18): the 512 entries of
  the new table are written before it is linked.  Only the link is traced, as a leaf replaced by a
  non-leaf, then ``kvm_mmu_split_huge_page``; the page statistics rise by 512 in one go.  Here: a
  leaf that turns into a non-leaf gets a full table (``make_huge_page_split_spte``).  Up to 6.1 an
  NX split is not in place: the leaf is zapped first, and 4 KiB pages come back by faults.
- **What ends a freeze**: ``tdp_mmu_zap_spte_atomic`` up to 6.9 traces present -> frozen, flushes,
  and writes the non-present value with a raw store.  Later kernels trace neither the freeze nor the
  raw store, but one change present -> non-present after the flush.  Here: a frozen entry may be
  found non-present.
- **Entries of a removed table** (``handle_removed_pt``): all present ones are traced, by the thread
  that removed the table, right after the change that unlinked it, in order of their index.  Under
  the exclusive lock non-present and MMIO entries are passed over; under the shared lock every entry
  becomes frozen with an event of its own.  Here: an unlinked table stays with its thread, so that
  these events do not hit a new table which another thread has put in the same place.  A table
  leaves nothing behind: its free (RCU) has no event.
- **Roots**: ``kvm_mmu_get_page`` tells of a new one, no event of the end of one, and after
  ``kvm_tdp_mmu_invalidate_all_roots`` an old and a new root of one as_id live side by side.  Here:
  the value an entry had tells them apart.
- **A table that lost the race** for its place: ``kvm_mmu_get_page`` says "new", no link follows.
- **Accessed and dirty bits** that the hardware sets, and writes of ``fast_page_fault``, which has
  an event of its own.  Here: old values are compared without these bits.

One trace should hold one VM: the tracepoint does not name it, so several VMs add up.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from tdpmmu.arch.spte import ACC_TRACK_SAVED_MASK, PT_WRITABLE_MASK, SpteFormat
from tdpmmu.trace.fields import SpteChange

ENTRIES = 512
_INDEX_BITS = 9
MAX_PROBLEMS = 100


def same_entry(fmt: SpteFormat, rebuilt: int, old: int) -> bool:
    """Whether two values are equal, or different only in what changes without an event."""
    difference = rebuilt ^ old
    if not difference:
        return True
    if not (fmt.is_shadow_present(rebuilt) and fmt.is_shadow_present(old)):
        return False
    allowed = fmt.accessed | fmt.dirty
    if rebuilt & old & fmt.mmu_writable:
        allowed |= PT_WRITABLE_MASK
    if not fmt.ad_enabled(old):
        allowed |= fmt.acc_track | ACC_TRACK_SAVED_MASK
    return not difference & ~allowed


class Table:
    """One page table page at ``level``; ``gfn`` is the first that it covers.

    ``nx`` says that it counts as an NX huge page split, ``nx_once`` that it did.  ``partial``
    tables were not seen from their first entry on.  ``removed_to`` is the last entry that
    ``handle_removed_pt`` has reported.
    """

    __slots__ = ("children", "entries", "gfn", "level", "nx", "nx_once", "partial", "removed_to")

    def __init__(self, level: int, gfn: int, fill: int, *, partial: bool = False) -> None:
        self.level = level
        self.gfn = gfn
        self.entries = array("Q", [fill]) * ENTRIES
        self.children: dict[int, Table] = {}
        self.nx = self.nx_once = False
        self.partial = partial
        self.removed_to = -1

    def index(self, gfn: int) -> int:
        """Which entry covers ``gfn``."""
        return gfn >> _INDEX_BITS * (self.level - 1) & ENTRIES - 1

    def covers(self, gfn: int) -> bool:
        """Does the table translate ``gfn``?"""
        return gfn >> _INDEX_BITS * self.level == self.gfn >> _INDEX_BITS * self.level


@dataclass(slots=True)
class Applied:
    """What a change did to the structure: tables linked or unlinked by it."""

    linked: Table | None = None
    replaced_leaf: bool = False
    unlinked: Table | None = None


class TdpTables:
    """The tables of one VM; ``pages[level]`` leaves live, as the kernel counts them.

    The counts follow the events alone, like ``kvm_update_page_stats``; the tables are the check on
    them (:meth:`count_leaves`).  ``problems`` collects (line, text) of what did not fit: an old
    value that differs from the one rebuilt, or tables which were there before the trace.  After
    the first :data:`MAX_PROBLEMS` they are only counted, in ``more_problems``.
    """

    def __init__(self, fmt: SpteFormat) -> None:
        self.fmt = fmt
        self.pages = [0] * 6
        self.problems: list[tuple[int, str]] = []
        self.more_problems = 0
        self.root_level = 4
        self._roots: dict[int, list[Table]] = {}
        self._removed: dict[int, list[Table]] = {}
        self._started_late = False

    def new_page(self, level: int) -> None:
        """``kvm_mmu_get_page``: a root is a table of the highest level."""
        self.root_level = max(self.root_level, level)

    def apply(self, change: SpteChange, pid: int, line: int) -> Applied:
        """Enter one ``kvm_tdp_mmu_spte_changed`` of thread ``pid`` from line ``line``."""
        fmt = self.fmt
        level, old, new = change.level, change.old, change.new
        was_present = fmt.is_shadow_present(old)
        is_present = fmt.is_shadow_present(new)
        was_leaf = was_present and fmt.is_last(old, level)
        is_leaf = is_present and fmt.is_last(new, level)
        if was_leaf != is_leaf:
            self.pages[level] += 1 if is_leaf else -1
        table = self._removed_table(change, pid)
        if table is not None:
            table.removed_to = table.index(change.gfn)
        else:
            self._finish_removal(pid, line)
            table = self._live_table(change, line, is_present)
        index = table.index(change.gfn)
        table.entries[index] = new
        applied = Applied()
        was_table = was_present and not was_leaf
        if was_table and not (is_present and not is_leaf and fmt.pfn(old) == fmt.pfn(new)):
            applied.unlinked = self._unlink(table, index, change, pid)
        if is_present and not is_leaf and not (was_table and applied.unlinked is None):
            applied.linked = self._link(table, index, change, was_leaf)
            applied.replaced_leaf = was_leaf
        return applied

    def fast_page_fault(self, gfn: int, old: int, new: int) -> None:
        """``fast_page_fault`` with ``fixed``: a leaf changed behind the other event's back."""
        for roots in self._roots.values():
            for table in roots:
                while (child := table.children.get(table.index(gfn))) is not None:
                    table = child
                index = table.index(gfn)
                if same_entry(self.fmt, table.entries[index], old):
                    table.entries[index] = new
                    return

    def count_leaves(self) -> list[int]:
        """Live leaves by level, counted in the tables: :attr:`pages`, if all was traced.

        Tables under removal take part with the entries which are not yet reported.
        """
        fmt = self.fmt
        counts = [0] * 6
        todo = [root for roots in self._roots.values() for root in roots]
        todo += [table for tables in self._removed.values() for table in tables]
        while todo:
            table = todo.pop()
            todo += table.children.values()
            for spte in table.entries:
                if fmt.is_shadow_present(spte) and fmt.is_last(spte, table.level):
                    counts[table.level] += 1
        return counts

    def finish(self, line: int) -> None:
        """The trace is over: complain about tables whose removal is not complete."""
        for pid in list(self._removed):
            self._finish_removal(pid, line)

    def _removed_table(self, change: SpteChange, pid: int) -> Table | None:
        if not self.fmt.is_frozen(change.new):
            return None
        for table in reversed(self._removed.get(pid, ())):
            if table.level == change.level and table.covers(change.gfn):
                index = table.index(change.gfn)
                if index <= table.removed_to:
                    continue
                if table.partial or same_entry(self.fmt, table.entries[index], change.old):
                    return table
        return None

    def _finish_removal(self, pid: int, line: int) -> None:
        for table in self._removed.pop(pid, ()):
            left = sum(map(self.fmt.is_shadow_present, table.entries))
            if left:
                what = f"level {table.level} table of gfn {table.gfn:#x}"
                self._complain(line, f"{left} present entries of the removed {what} not reported")

    def _complain(self, line: int, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append((line, text))
        else:
            self.more_problems += 1

    def _live_table(self, change: SpteChange, line: int, is_present: bool) -> Table:
        """The table that holds the changed entry; made up if the trace did not show its birth."""
        roots = self._roots.setdefault(change.as_id, [])
        if change.level > self.root_level:
            self._grow(change.level)
        best: Table | None = None
        best_rank = -1
        # Faults use the newest root; zaps of the same gfn in several roots go oldest first.
        for root in reversed(roots) if is_present else roots:
            table = self._walk(root, change)
            if table is not None:
                rank = self._rank(table.entries[table.index(change.gfn)], change.old)
                if rank > best_rank:
                    best, best_rank = table, rank
        old_is_nonpresent = change.old == self.fmt.nonpresent
        if best_rank < 1 and change.level == self.root_level and old_is_nonpresent:
            root = Table(self.root_level, 0, self.fmt.nonpresent)
            self._drop_empty(roots)
            roots.append(root)
            return root
        if best is None:
            return self._late(roots, change, line)
        if best_rank < 1:
            was = best.entries[best.index(change.gfn)]
            if best.partial:
                self._late(roots, change, line)
            else:
                entry = f"the level {change.level} entry of gfn {change.gfn:#x}"
                self._complain(
                    line, f"{entry} was {change.old:#x}, but the events before say {was:#x}"
                )
        return best

    def _walk(self, root: Table, change: SpteChange) -> Table | None:
        table: Table | None = root
        while table is not None and table.level > change.level:
            table = table.children.get(table.index(change.gfn))
        return table

    def _rank(self, rebuilt: int, old: int) -> int:
        """How well an entry fits the old value: 3 exactly, 0 not at all."""
        if rebuilt == old:
            return 3
        if same_entry(self.fmt, rebuilt, old):
            return 2
        if self.fmt.is_frozen(rebuilt) and old == self.fmt.nonpresent:
            return 1
        return 0

    def _late(self, roots: list[Table], change: SpteChange, line: int) -> Table:
        """Make up the tables above an entry which the trace did not show from the start."""
        if not self._started_late:
            self._started_late = True
            self._complain(
                line, "there were tables before the trace began: numbers are changes since then"
            )
        if not roots:
            roots.append(Table(self.root_level, 0, self.fmt.nonpresent, partial=True))
        table = roots[-1]
        while table.level > change.level:
            index = table.index(change.gfn)
            child = table.children.get(index)
            if child is None:
                size = _INDEX_BITS * (table.level - 1)
                base = change.gfn >> size << size
                child = Table(table.level - 1, base, self.fmt.nonpresent, partial=True)
                table.children[index] = child
            table = child
        return table

    def _grow(self, level: int) -> None:
        """The first sign of 5-level roots: put the tables so far under new roots."""
        self.root_level = level
        for roots in self._roots.values():
            for i, table in enumerate(roots):
                while table.level < level:
                    parent = Table(table.level + 1, 0, self.fmt.nonpresent, partial=True)
                    parent.children[0] = table
                    table = parent
                roots[i] = table

    def _drop_empty(self, roots: list[Table]) -> None:
        present = self.fmt.is_shadow_present
        roots[:] = [root for root in roots if any(map(present, root.entries)) or root.children]

    def _unlink(self, table: Table, index: int, change: SpteChange, pid: int) -> Table:
        child = table.children.pop(index, None)
        if child is None:
            child = Table(table.level - 1, change.gfn, self.fmt.nonpresent, partial=True)
        self._removed.setdefault(pid, []).append(child)
        return child

    def _link(self, table: Table, index: int, change: SpteChange, was_leaf: bool) -> Table:
        child = Table(table.level - 1, change.gfn, self.fmt.nonpresent)
        if was_leaf:
            step = 1 << _INDEX_BITS * (child.level - 1)
            for i in range(ENTRIES):
                child.entries[i] = self.fmt.split_child(change.old, child.level, i * step)
            self.pages[child.level] += ENTRIES
        table.children[index] = child
        return child
