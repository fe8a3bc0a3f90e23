"""Page table pages as a trace shows them."""

from __future__ import annotations

from array import array

from tdpmmu.arch.spte import SpteFormat

ENTRIES = 512


class Node:
    """A page table page at ``level``; ``gfn`` is the first that it covers.

    ``partial``: not seen from its first entry on.  ``removed_to`` is the last entry that
    ``handle_removed_pt`` has reported, -1 for none.
    """

    __slots__ = ("children", "entries", "gfn", "level", "partial", "removed_to", "root")

    def __init__(self, level: int, gfn: int, fill: int, root: Root | None, partial: bool) -> None:
        self.level = level
        self.gfn = gfn
        self.root = root
        self.entries = array("Q", [fill]) * ENTRIES
        self.children: dict[int, Node] = {}
        self.partial = partial
        self.removed_to = -1


class Root(Node):
    """A root: ``kvm`` is its VM, once known, ``successor`` the root that took its place."""

    __slots__ = ("as_id", "kvm", "successor")

    def __init__(self, level: int, fill: int, as_id: int, partial: bool) -> None:
        super().__init__(level, 0, fill, None, partial)
        self.root = self
        self.as_id = as_id
        self.kvm: int | None = None
        self.successor: Root | None = None

    def latest(self) -> Root:
        """The root that is used in its place now."""
        root = self
        while root.successor is not None:
            root = root.successor
        return root


def leaf_within(fmt: SpteFormat, roots: list[Root], start: int, end: int) -> tuple[int, int] | None:
    """The gfn and level of a leaf in ``[start, end)`` below these roots, if there is one."""
    todo: list[Node] = [*roots]
    while todo:
        table = todo.pop()
        size = 9 * (table.level - 1)
        first = max(start - table.gfn, 0) >> size
        last = min((end - table.gfn + (1 << size) - 1) >> size, ENTRIES)
        for index in range(first, last):
            spte = table.entries[index]
            if index in table.children:
                todo.append(table.children[index])
            elif fmt.is_shadow_present(spte) and fmt.is_last(spte, table.level):
                return table.gfn + (index << size), table.level
    return None
