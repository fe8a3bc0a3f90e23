"""The page tables of all VMs of a trace, rebuilt from ``kvm_tdp_mmu_spte_changed``.

The event names an address space, a level and a gfn, but neither VM nor root.  What an entry was
before tells most candidates apart, for entries carry frame numbers.  Where that is not enough: the
VM of the thread, if probes with pointers have told it, then the root that the thread used last,
then the newest; without any of these the choice counts as ambiguous.

What the kernel changes without tracing it is said in :mod:`tdpmmu.trace.tables`.  Events follow the
write that they report, so those of two CPUs for one entry can come in the wrong order: a change
that does not fit yet (:meth:`Forest.find` says None) has to wait.
"""

from __future__ import annotations

from array import array
from collections import Counter

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.trace.fields import SpteChange
from tdpmmu.trace.tables import same_entry
from tdpmmu.trace.verify.kinds import Kind
from tdpmmu.trace.verify.nodes import ENTRIES, Node, Root
from tdpmmu.trace.verify.threads import TEARDOWN, Thread

_MOST_EMPTY = 8
"""How many roots without entries to keep: nobody says when one is freed."""


class Forest:
    """``pages[level]`` leaves live; ``linked`` and ``unlinked`` count tables.

    ``roots_made`` is how many roots there have been; ``ambiguous`` how many changes may belong to
    another root than the one they were given to.  ``late``: there were tables before the trace.
    ``several``: maybe there is more than one VM.  ``unreported`` counts present entries of removed
    tables of which no event told.
    """

    def __init__(self, fmt: SpteFormat) -> None:
        self.fmt = fmt
        self.pages = [0] * 6
        self.roots: dict[int, list[Root]] = {}
        self.roots_made = 0
        self.linked = self.unlinked = 0
        self.ambiguous = 0
        self.unreported = 0
        self.late = self.several = False
        self._level = 4
        self._unborn: list[Thread] = []

    def new_page(self, level: int, thread: Thread) -> None:
        """``kvm_mmu_get_page`` of the TDP MMU: a root is a table of the highest level."""
        if level > self._level:
            self._level = level
        if level == self._level:
            self.roots_made += 1
            self._unborn.append(thread)

    def find(self, change: SpteChange, thread: Thread) -> Node | None:
        """The table whose entry the change fits; None if there is none."""
        as_id, gfn, level, old, new = change
        if thread.removed and new == self.fmt.removed:
            removed = self._removed(thread, level, gfn, old)
            if removed is not None:
                return removed
        shift = 9 * (level - 1)
        index = gfn >> shift & 511
        roots = self.roots.get(as_id, ())
        found: list[Node] = []
        for root in roots:
            table: Node | None = root
            above = root.level
            while above > level and table is not None:
                above -= 1
                table = table.children.get(gfn >> 9 * above & 511)
            if table is not None:
                was = table.entries[index]
                if was == old or table.partial or same_entry(self.fmt, was, old):
                    found.append(table)
        if level == self._level and old == self.fmt.nonpresent and (self._unborn or not found):
            return self._birth(as_id, thread)
        if len(found) < 2:
            return found[0] if found else None
        return self._choose(found, change, thread)

    def find_anyway(self, change: SpteChange, thread: Thread) -> Node:
        """A table for a change that does not fit; made up if the trace did not show its birth."""
        level = change.level
        roots = self.roots.setdefault(change.as_id, [])
        if level > self._level:
            self._grow(level)
        if not roots:
            self.late = True
            self.roots_made += 1
            roots.append(Root(self._level, self.fmt.nonpresent, change.as_id, True))
        root = thread.roots.get(change.as_id)
        table: Node = roots[-1] if root is None else root.latest()
        while table.level > level:
            size = 9 * (table.level - 1)
            index = change.gfn >> size & 511
            child = table.children.get(index)
            if child is None:
                self.late = True
                base = change.gfn >> size << size
                child = Node(table.level - 1, base, self.fmt.nonpresent, table.root, True)
                table.children[index] = child
            table = child
        return table

    def enter(self, change: SpteChange, kind: Kind, table: Node, thread: Thread) -> bool:
        """Take in a change; whether ``handle_removed_pt`` reports an entry with it."""
        _, gfn, level, _, new = change
        index = gfn >> 9 * (level - 1) & 511
        removal = False
        if thread.removed:
            removal = table in thread.removed
            if removal:
                table.removed_to = index
            else:
                self.finish_removal(thread)
        # Of a live table only its freezer sees a frozen entry, and clears it without an event.
        frozen = new == self.fmt.removed and not removal
        table.entries[index] = self.fmt.nonpresent if frozen else new
        if kind.leaves:
            self.pages[level] += kind.leaves
        root = table.root
        if root is not None and thread.roots.get(root.as_id) is not root:
            thread.roots[root.as_id] = root
            if root.kvm is None:
                root.kvm = thread.kvm
        if kind.unlinks:
            self._unlink(table, index, change, thread)
        if kind.links:
            self._link(table, index, change, kind.was_leaf)
        return removal

    def finish_removal(self, thread: Thread) -> None:
        """A thread does something else: what it took out must be reported completely."""
        for table in thread.removed:
            if not table.partial:
                for spte, count in Counter(table.entries).items():
                    self.unreported += count * self.fmt.is_shadow_present(spte)
        thread.removed = []

    def roots_of(self, kvm: int | None) -> list[Root] | None:
        """The roots of one VM; None if the trace does not tell them from others."""
        roots = [root for roots in self.roots.values() for root in roots]
        if not self.several:
            return roots
        known = kvm is not None and all(root.kvm is not None or not root.children for root in roots)
        return [root for root in roots if root.kvm == kvm] if known else None

    def _removed(self, thread: Thread, level: int, gfn: int, old: int) -> Node | None:
        for table in reversed(thread.removed):
            if table.level == level and gfn >> 9 * level == table.gfn >> 9 * level:
                index = gfn >> 9 * (level - 1) & 511
                if index <= table.removed_to:
                    continue
                if table.partial or same_entry(self.fmt, table.entries[index], old):
                    return table
        return None

    @property
    def end(self) -> int:
        """The first gfn that no root can map."""
        return 1 << 9 * self._level

    def _choose(self, found: list[Node], change: SpteChange, thread: Thread) -> Node:
        """Among several tables that fit."""
        if thread.kvm is not None:
            of_vm = [one for one in found if one.root and one.root.kvm in (None, thread.kvm)]
            known = [one for one in of_vm if one.root and one.root.kvm is not None]
            found = known or of_vm or found
            if len(found) == 1:
                return found[0]
        exact = [one for one in found if one.entries[_index(change)] == change.old]
        if len(exact) == 1:
            return exact[0]
        found = exact or found
        if thread.context == TEARDOWN:
            return found[0]
        used = thread.roots.get(change.as_id)
        if used is not None:
            wanted = used.latest() if self.fmt.is_shadow_present(change.new) else used
            for one in found:
                if one.root is wanted:
                    return one
        self.ambiguous += 1
        return found[-1]

    def _birth(self, as_id: int, thread: Thread) -> Root:
        """A root shows itself by its first entry."""
        roots = self.roots.setdefault(as_id, [])
        if self._unborn:
            maker = thread if thread in self._unborn else self._unborn[0]
            self._unborn.remove(maker)
        else:
            maker = thread
            self.roots_made += 1
        root = Root(self._level, self.fmt.nonpresent, as_id, False)
        root.kvm = maker.kvm
        before = maker.roots.get(as_id)
        if before is not None:
            before.latest().successor = root
        elif any(one.children for one in roots):
            self.several = True
        empty = [one for one in roots if not one.children]
        for one in empty[:-_MOST_EMPTY]:
            roots.remove(one)
        roots.append(root)
        maker.roots[as_id] = root
        return root

    def _grow(self, level: int) -> None:
        """The first sign of 5-level roots: what there was is not known so high up."""
        self._level = level
        self.late = True
        for as_id in self.roots:
            self.roots[as_id].clear()

    def _unlink(self, table: Node, index: int, change: SpteChange, thread: Thread) -> None:
        child = table.children.pop(index, None)
        if child is None:
            child = Node(table.level - 1, change.gfn, self.fmt.nonpresent, table.root, True)
        thread.removed.append(child)
        self.unlinked += 1

    def _link(self, table: Node, index: int, change: SpteChange, was_leaf: bool) -> None:
        level = table.level - 1
        child = Node(level, change.gfn, self.fmt.nonpresent, table.root, False)
        if was_leaf:
            first = self.fmt.split_child(change.old, level, 0)
            step = self.fmt.split_child(change.old, level, 1 << 9 * (level - 1)) - first
            child.entries = array("Q", range(first, first + ENTRIES * step, step))
            self.pages[level] += ENTRIES
        table.children[index] = child
        self.linked += 1


def _index(change: SpteChange) -> int:
    return change.gfn >> 9 * (change.level - 1) & 511
