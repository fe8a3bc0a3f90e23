"""Operations: the steps that another CPU can see, and what applying one means.

A thread is a coroutine; awaiting an :class:`Op` hands it to the world which drives the thread.
``apply`` is the only thing that ever changes a state, in every world.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tdpmmu.events.records import Event, FreedPageTouched, UnguardedAccess
from tdpmmu.machine.state import Cell, Guard, State

if TYPE_CHECKING:
    from tdpmmu.machine.ghost import Ghost

FREE, USED, QUEUED, FREED = "free", "used", "queued", "freed"
"""The life of a page: in the allocator, in use, waiting for a grace period, given back."""

RIGHT, BOTH, LEFT, NEITHER = "right", "both", "left", "neither"
"""How an operation commutes with the operations of other threads (Lipton's movers).

``RIGHT``: doing it later, after what others do, loses nothing (acquisitions).  ``LEFT``: doing it
earlier loses nothing (releases).  ``BOTH``: nobody else can see it.  ``NEITHER``: order matters.
"""


MutableChunks = list[tuple[Any, ...]] | dict[int, tuple[Any, ...]]
"""A state under change, by chunk number."""


class Step:
    """One thread's turn at the state: operations read and write cells through it.

    ``looked`` are the chunks that the outcome depends on.
    """

    __slots__ = (
        "broken",
        "chunks",
        "events",
        "ghosts",
        "looked",
        "nested",
        "thread",
        "violations",
    )

    def __init__(
        self, state: State, thread: int, ghosts: dict[type[Event], list[Ghost]] | None = None
    ) -> None:
        self.chunks: MutableChunks = list(state)
        self.thread = thread
        self.ghosts = ghosts
        self.events: list[Event] = []
        self.violations: list[tuple[Ghost, str]] = []
        self.looked: set[int] = set()
        self.broken: list[Guard] = []
        self.nested: list[tuple[str, str, Guard]] = []

    def __getitem__(self, cell: Cell) -> Any:
        chunk = cell.chunk
        self.looked.add(chunk)
        return self.chunks[chunk][cell.offset]

    def __setitem__(self, cell: Cell, value: Any) -> None:
        self.looked.add(cell.chunk)
        chunk = self.chunks[cell.chunk]
        offset = cell.offset
        self.chunks[cell.chunk] = (*chunk[:offset], value, *chunk[offset + 1 :])

    def emit(self, event: Event) -> None:
        """Say what happened; the ghosts that listen take their step now."""
        self.events.append(event)
        if self.ghosts is not None:
            for ghost in self.ghosts.get(type(event), ()):
                ghost.observe(self, event)

    def touch(self, cell: Cell, write: bool) -> None:
        """Report an access which the memory's owner or the cell's guard does not allow."""
        page = cell.page
        if page is not None and self[page.state] == FREED:
            self.emit(FreedPageTouched(page.name, cell.name))
        guard = cell.guard
        if guard is not None and not guard.allows(self, write):
            self.broken.append(guard)
            self.emit(UnguardedAccess(cell.name, guard.name, write))

    def violate(self, ghost: Ghost, sentence: str) -> None:
        """Called by a ghost which sees its property broken; ``sentence`` says how."""
        self.violations.append((ghost, sentence))

    @property
    def state(self) -> State:
        """The state as it stands after this step."""
        assert isinstance(self.chunks, list)
        return tuple(self.chunks)


class Op:
    """Base of all operations: a frozen record that knows how to apply itself."""

    __slots__ = ()

    @property
    def waits_in_line_for(self) -> str | None:
        """The fair lock for which a thread queues here, if it does."""
        return None

    @property
    def may_block(self) -> bool:
        """Whether a thread can come to wait here for something that is not a lock.

        What it has taken by then others must see it with, or deadlocks are lost.  Locks may be
        taken unseen, one inside the other, as long as all nest in one order
        (``Layout.lock_order``).
        """
        return self.waits_in_line_for is None and type(self).alternatives is not Op.alternatives

    def __await__(self) -> Generator[Op, Any, Any]:
        return (yield self)

    def alternatives(self, step: Step) -> int:
        """How many outcomes there are now: 0 blocks the thread, more than 1 is a choice."""
        return 1

    def apply(self, step: Step, alternative: int) -> Any:
        """Do it; the result is what the thread's ``await`` evaluates to."""
        raise TypeError(f"{type(self).__name__} has no apply()")

    def mover(self, step: Step) -> str:
        """How it commutes, in this state."""
        return NEITHER

    def urgent(self, step: Step) -> bool:
        """Whether nobody can tell when the turn that begins here happens: then it happens now."""
        return False

    def waits_for_kick(self, step: Step) -> int | None:
        """The thread whose next turn nobody else can hinder or notice, and which this one awaits.

        Until it has moved no other order need be looked at.
        """
        return None

    def describe(self) -> str:
        """A few words for a column of an interleaving."""
        return repr(self)


def reading(cell: Cell, step: Step) -> str:
    """The mover of a read of ``cell`` by the running thread."""
    guard = cell.guard
    return BOTH if guard is not None and guard.trusted and guard.nobody_writes(step) else NEITHER


def writing(cell: Cell, step: Step) -> str:
    """The mover of a write to ``cell`` by the running thread."""
    guard = cell.guard
    return BOTH if guard is not None and guard.trusted and guard.nobody_looks(step) else NEITHER


@dataclass(frozen=True, slots=True)
class Read(Op):
    """``READ_ONCE``."""

    cell: Cell

    def apply(self, step: Step, alternative: int) -> Any:
        step.touch(self.cell, write=False)
        return step[self.cell]

    def mover(self, step: Step) -> str:
        return reading(self.cell, step)

    def describe(self) -> str:
        return f"read {self.cell.name}"


@dataclass(frozen=True, slots=True)
class Write(Op):
    """``WRITE_ONCE``."""

    cell: Cell
    value: Hashable

    def apply(self, step: Step, alternative: int) -> None:
        step.touch(self.cell, write=True)
        step[self.cell] = self.value

    def mover(self, step: Step) -> str:
        return writing(self.cell, step)

    def describe(self) -> str:
        return f"write {self.cell.name} = {self.value}"


@dataclass(frozen=True, slots=True)
class CmpXchg(Op):
    """``try_cmpxchg``: true if the cell held ``old`` and now holds ``new``."""

    cell: Cell
    old: Hashable
    new: Hashable

    def apply(self, step: Step, alternative: int) -> bool:
        step.touch(self.cell, write=True)
        if step[self.cell] != self.old:
            return False
        step[self.cell] = self.new
        return True

    def mover(self, step: Step) -> str:
        return writing(self.cell, step)

    def describe(self) -> str:
        return f"cmpxchg {self.cell.name} {self.old} -> {self.new}"


@dataclass(frozen=True, slots=True)
class Xchg(Op):
    """``xchg``: the old value."""

    cell: Cell
    value: Hashable

    def apply(self, step: Step, alternative: int) -> Any:
        step.touch(self.cell, write=True)
        old = step[self.cell]
        step[self.cell] = self.value
        return old

    def mover(self, step: Step) -> str:
        return writing(self.cell, step)

    def describe(self) -> str:
        return f"xchg {self.cell.name} = {self.value}"


@dataclass(frozen=True, slots=True)
class Add(Op):
    """An atomic addition; the new value."""

    cell: Cell
    amount: int

    def apply(self, step: Step, alternative: int) -> int:
        step.touch(self.cell, write=True)
        new: int = step[self.cell] + self.amount
        step[self.cell] = new
        return new

    def mover(self, step: Step) -> str:
        return writing(self.cell, step)

    def describe(self) -> str:
        return f"{self.cell.name} += {self.amount}"


@dataclass(frozen=True, slots=True)
class ListAdd(Op):
    """``list_add`` or, with ``tail``, ``list_add_tail`` on a list kept as a tuple."""

    cell: Cell
    item: Hashable
    tail: bool = False

    def apply(self, step: Step, alternative: int) -> None:
        step.touch(self.cell, write=True)
        items = step[self.cell]
        step[self.cell] = (*items, self.item) if self.tail else (self.item, *items)

    def mover(self, step: Step) -> str:
        return writing(self.cell, step)

    def describe(self) -> str:
        return f"list_add{'_tail' if self.tail else ''} {self.item} to {self.cell.name}"


@dataclass(frozen=True, slots=True)
class ListDel(Op):
    """``list_del``; false if the item was not there."""

    cell: Cell
    item: Hashable

    def apply(self, step: Step, alternative: int) -> bool:
        step.touch(self.cell, write=True)
        items = step[self.cell]
        if self.item not in items:
            return False
        step[self.cell] = tuple(item for item in items if item != self.item)
        return True

    def mover(self, step: Step) -> str:
        return writing(self.cell, step)

    def describe(self) -> str:
        return f"list_del {self.item} from {self.cell.name}"


@dataclass(frozen=True, slots=True)
class SetAdd(Op):
    """``list_add`` on a list whose order nobody looks at, kept as a frozenset."""

    cell: Cell
    item: Hashable

    def apply(self, step: Step, alternative: int) -> None:
        step.touch(self.cell, write=True)
        step[self.cell] = step[self.cell] | {self.item}

    def mover(self, step: Step) -> str:
        return writing(self.cell, step)

    def describe(self) -> str:
        return f"list_add {self.item} to {self.cell.name}"


@dataclass(frozen=True, slots=True)
class SetDel(Op):
    """``list_del`` from such a list; false if the item was not there."""

    cell: Cell
    item: Hashable

    def apply(self, step: Step, alternative: int) -> bool:
        step.touch(self.cell, write=True)
        items = step[self.cell]
        if self.item not in items:
            return False
        step[self.cell] = items - {self.item}
        return True

    def mover(self, step: Step) -> str:
        return writing(self.cell, step)

    def describe(self) -> str:
        return f"list_del {self.item} from {self.cell.name}"


@dataclass(frozen=True, slots=True)
class Choose(Op):
    """A choice of the world; the result is one of ``options``."""

    what: str
    options: tuple[Hashable, ...]

    @property
    def may_block(self) -> bool:
        return False

    def alternatives(self, step: Step) -> int:
        return len(self.options)

    def apply(self, step: Step, alternative: int) -> Any:
        return self.options[alternative]

    def mover(self, step: Step) -> str:
        # Made as late as possible, it multiplies the fewest states.
        return RIGHT

    def describe(self) -> str:
        return f"{self.what}?"


@dataclass(frozen=True, slots=True)
class WaitUntil(Op):
    """Block until ``cell`` holds ``value``."""

    cell: Cell
    value: Hashable

    def alternatives(self, step: Step) -> int:
        return 1 if step[self.cell] == self.value else 0

    def apply(self, step: Step, alternative: int) -> None:
        return None

    def describe(self) -> str:
        return f"wait for {self.cell.name} == {self.value}"


@dataclass(frozen=True, slots=True)
class Emit(Op):
    """Report something that changes no cell (a ``WARN_ON``, a tracepoint)."""

    event: Event

    def apply(self, step: Step, alternative: int) -> None:
        step.emit(self.event)

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return repr(self.event)


Body = Callable[[], Any]
"""Makes the coroutine of a thread."""
