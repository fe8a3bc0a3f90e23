"""Cells: everything that more than one CPU can see, as one hashable value.

A :class:`Layout` is drawn up once by a scenario.  It groups :class:`Cell` s into *chunks* (a page
table page, a vCPU, the VM's locks); a state is the tuple of the chunks, a chunk the tuple of its
cells' values.  States that differ in one page table share all the others.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdpmmu.machine.op import Step

State = tuple[tuple[Any, ...], ...]


class Guard:
    """What keeps rivals away from a cell: a lock, or one of several.

    Exploration relies on guards to leave interleavings out.  One that a thread does not keep to
    loses its trust, and the search starts again without it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.trusted = True

    def parts(self) -> Iterator[Guard]:
        """Itself and the guards that it relies on."""
        yield self
        for value in vars(self).values():
            if isinstance(value, Guard):
                yield from value.parts()

    def nobody_writes(self, step: Step) -> bool:
        """Whether, as locks stand, no other thread can change the cell."""
        return False

    def nobody_looks(self, step: Step) -> bool:
        """Whether, as locks stand, no other thread can even read it."""
        return False

    def allows(self, step: Step, write: bool) -> bool:
        """Whether the running thread may touch it."""
        return True


class Cell:
    """One memory location.  Threads pass it around as the kernel passes a pointer.

    ``guard`` says which lock keeps rivals away, ``page`` is the
    page table page that the location is part of, if any.
    """

    __slots__ = ("chunk", "guard", "key", "name", "offset", "page")

    def __init__(
        self, name: str, chunk: int, offset: int, guard: Guard | None = None, page: Any = None
    ) -> None:
        self.name = name
        self.chunk = chunk
        self.offset = offset
        self.guard = guard
        self.page = page
        self.key = (chunk, offset)

    def position_key(self) -> Hashable:
        """What tells this cell from another in the key of a position."""
        return ("cell", self.key)

    def __repr__(self) -> str:
        return self.name


class Layout:
    """The cells of a machine and their first values."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []
        self.chunks: list[str] = []
        self._initial: list[list[Any]] = []
        self.locks: list[Any] = []
        self.assumptions: list[Guard] = []
        self.lock_order = self.assumption("locks nest in one order only")
        self.urgency = self.assumption("what nobody can see comes to an end")

    def assumption(self, name: str) -> Guard:
        """What exploration relies on besides the guards of cells."""
        self.assumptions.append(Guard(name))
        return self.assumptions[-1]

    def distrust(self, names: Collection[str]) -> None:
        """Do not rely on the guards and assumptions of these names."""
        guards = [*self.assumptions, *(cell.guard for cell in self.cells if cell.guard)]
        for guard in guards:
            for part in guard.parts():
                if part.name in names:
                    part.trusted = False

    def chunk(self, name: str) -> int:
        """Start a new group of cells; return its number."""
        self.chunks.append(name)
        self._initial.append([])
        return len(self.chunks) - 1

    def cell(
        self,
        name: str,
        initial: Hashable,
        *,
        chunk: int | None = None,
        guard: Guard | None = None,
        page: Any = None,
    ) -> Cell:
        """Add a cell to ``chunk`` (a chunk of its own without one)."""
        if chunk is None:
            chunk = self.chunk(name)
        values = self._initial[chunk]
        cell = Cell(name, chunk, len(values), guard, page)
        values.append(initial)
        self.cells.append(cell)
        return cell

    def memory(self) -> list[list[Any]]:
        """The values themselves, by chunk: who changes them lives in the first state.

        Cells that are made later appear in it.
        """
        return self._initial

    def initial(self) -> State:
        """The state before anything ran."""
        return tuple(tuple(values) for values in self._initial)


def changed(layout: Layout, before: State, after: State) -> list[tuple[Cell, Any, Any]]:
    """The cells in which two states differ, with both values."""
    out = []
    for cell in layout.cells:
        old, new = before[cell.chunk], after[cell.chunk]
        if old is not new and old[cell.offset] != new[cell.offset]:
            out.append((cell, old[cell.offset], new[cell.offset]))
    return out
