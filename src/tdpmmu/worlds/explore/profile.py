"""What multiplies states without ever being read: cells, and locals of threads.

Looked for after a search, in what it has found out.  A cell counts as read if a mover, a condition,
an order, or another effect of an operation depends on it; not if an operation reads it only to put
it back changed, and gives a result that no thread acts on.  Two positions of a thread are *alike*
if all that is known to come after them is the same, whatever the results; where locals differ
between positions that are alike, nobody reads them.

It says where states could be saved, as far as the search went; it saves none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from tdpmmu.machine.op import Step
from tdpmmu.machine.state import Cell
from tdpmmu.worlds.explore.acts import ACTS, MOVES, Act, Acts, Fact
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.position.table import Positions

MOST_STATES = 200_000
"""States that are counted; of more, the first."""


@dataclass(frozen=True, slots=True)
class Idle:
    """A cell or locals that nobody reads; ``left``: the states that there would be without it."""

    what: str
    values: int
    left: int


@dataclass(frozen=True, slots=True)
class Profile:
    """``states`` were looked at; without everything that is idle there would be ``left``."""

    states: int
    left: int
    cells: tuple[Idle, ...]
    locals: tuple[Idle, ...]


class _Watch(Step):
    """A step that notes which cells are read and written."""

    __slots__ = ("read", "written")

    read: set[Cell]
    written: set[Cell]

    def __getitem__(self, cell: Cell) -> Any:
        self.read.add(cell)
        return Step.__getitem__(self, cell)

    def __setitem__(self, cell: Cell, value: Any) -> None:
        self.written.add(cell)
        Step.__setitem__(self, cell, value)


def profile(explorer: Explorer) -> Profile:
    """Look through a search that has ended."""
    keys = [explorer.unpack(key) for key in islice(iter(explorer.order), MOST_STATES)]
    classes = [_alike(table) for table in explorer.positions]
    idle_cells = _idle_cells(explorer)
    cells, locals_ = [], []
    for cell, values in idle_cells:
        same = _without(explorer, [cell])
        left = len({(same[number], *places) for number, places in keys})
        if left < len(keys):
            cells.append(Idle(cell.name, values, left))
    for thread, of in enumerate(classes):
        left = len({(n, *p[:thread], of[p[thread]], *p[thread + 1 :]) for n, p in keys})
        if left < len(keys):
            name = explorer.machine.threads[thread].name
            table = explorer.positions[thread]
            for what, count in _differ(table, of).most_common():
                locals_.append(Idle(f"{name}: {what}", count, left))
    same = _without(explorer, [cell for cell, _ in idle_cells])
    together = {
        (same[n], *[of[position] for of, position in zip(classes, p, strict=True)]) for n, p in keys
    }
    cells.sort(key=lambda one: one.left)
    locals_.sort(key=lambda one: one.left)
    return Profile(len(keys), len(together), tuple(cells), tuple(locals_))


def _without(explorer: Explorer, cells: Iterable[Cell]) -> list[Hashable]:
    """For each shared state what tells it from others when those cells are not looked at."""
    left_out: dict[int, set[int]] = defaultdict(set)
    for cell in cells:
        left_out[cell.chunk].add(cell.offset)
    table = explorer.chunks
    names: dict[int, list[Hashable]] = {
        chunk: [
            tuple([v for i, v in enumerate(value) if i not in offsets])
            for value in table.values_of(chunk)
        ]
        for chunk, offsets in left_out.items()
    }
    found: list[Hashable] = []
    for row in explorer.shared:
        kept = list[Hashable](row)
        for chunk, of in names.items():
            kept[chunk] = of[row[chunk]]
        found.append(tuple(kept))
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(one, len(numbers)) for one in found]


# --- cells ----------------------------------------------------------------------------------------


def _idle_cells(explorer: Explorer) -> list[tuple[Cell, int]]:
    """Cells that take several values and that nobody reads."""
    acts, chunks = explorer.turns.acts, explorer.chunks
    acted_on = _acted_on(explorer)
    read: set[Cell] = set()
    for fact in acts.log:
        read |= _read_by(acts, explorer, fact, acted_on)
    found = []
    for cell in explorer.machine.layout.cells:
        if cell not in read and cell.chunk < len(explorer.machine.initial):
            values = {value[cell.offset] for value in chunks.values_of(cell.chunk)}
            if len(values) > 1:
                found.append((cell, len(values)))
    return found


def _acted_on(explorer: Explorer) -> set[int]:
    """The operations on whose results it depends what a thread does next."""
    found: set[int] = set()
    for thread, table in enumerate(explorer.positions):
        ends: dict[int, set[int]] = defaultdict(set)
        for position, _, after in table.steps:
            ends[position].add(after)
        for position, different in ends.items():
            deed = explorer.turns.acts.at(thread, position)
            if deed is not None and len(different) > 1:
                found.add(deed.number)
    return found


def _read_by(acts: Acts, explorer: Explorer, fact: Fact, acted_on: set[int]) -> set[Cell]:
    number, question, chunks, values, answer = fact
    deed = acts.deeds[number]

    def watch() -> _Watch:
        step = _Watch((), deed.thread, explorer.machine.listeners())
        step.chunks = {
            chunk: explorer.chunks.values_of(chunk)[value]
            for chunk, value in zip(chunks, values, strict=True)
        }
        step.read, step.written = set(), set()
        return step

    step = watch()
    if question == MOVES:
        if not deed.alone:
            deed.op.mover(step)
        return step.read
    if question != ACTS:
        deed.op.urgent(step)
        deed.op.waits_for_kick(step)
        return step.read
    deed.op.alternatives(step)
    read = step.read
    for which, act in enumerate(cast(tuple[Act, ...], answer)):
        if act.failure is not None:
            continue
        step = watch()
        deed.op.apply(step, which)
        read |= step.read if number in acted_on else step.read - step.written
    return read


# --- locals ---------------------------------------------------------------------------------------


def _alike(table: Positions) -> list[int]:
    """The class of each position: those from which all that is known goes on the same way."""
    steps: dict[int, list[tuple[Hashable, int]]] = defaultdict(list)
    for position, result, after in table.steps:
        steps[position].append((result, after))
    names: dict[Hashable, int] = {}
    of = []
    for position in range(len(table)):
        ended = table.op(position) is None
        what: Hashable = (ended, repr(table.raised(position)))
        if not ended:
            results = frozenset(result for result, _ in steps[position])
            what = (table.op_number(position), results)
            if not results:
                what = ("not known", position)
        of.append(names.setdefault(what, len(names)))
    count = 0
    while len(names) > count:
        count = len(names)
        names = {}
        of = [
            names.setdefault(
                (of[position], frozenset((r, of[after]) for r, after in steps[position])),
                len(names),
            )
            for position in range(len(table))
        ]
    return of


def _differ(table: Positions, of: list[int]) -> Counter[str]:
    """What differs between positions that are alike, and in how many of them."""
    members: dict[int, list[int]] = defaultdict(list)
    for position, name in enumerate(of):
        members[name].append(position)
    found: Counter[str] = Counter()
    for positions in members.values():
        if len(positions) == 1:
            continue
        frames = [table.frames(position) for position in positions]
        if len({tuple([where for where, _ in one]) for one in frames}) > 1:
            found["different lines, from which all goes on alike"] += len(positions)
            continue
        for together in zip(*frames, strict=True):
            function = together[0][0]
            for name in together[0][1]:
                if len({one[1][name] for one in together}) > 1:
                    found[f"{name} in {function[0]}"] += len(positions)
    return found
