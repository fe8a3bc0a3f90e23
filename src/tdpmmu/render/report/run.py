"""One run as plain data for the page: its lines, and what every state looks like.

States are mostly alike, so rows and panels are kept once each and named by number.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import astuple
from typing import Any

from tdpmmu.arch.table import TablePage
from tdpmmu.machine.state import Cell, State, changed
from tdpmmu.render import spte
from tdpmmu.render.interleaving import Scene, Violation, causes
from tdpmmu.render.names import KernelNames
from tdpmmu.render.record import RecordLike
from tdpmmu.render.report import cpus
from tdpmmu.render.report.rows import IDLE, STALE, Row
from tdpmmu.render.report.sources import Sources
from tdpmmu.render.report.sync import SyncView
from tdpmmu.render.report.tables import TableView
from tdpmmu.render.stale import Moments, moments
from tdpmmu.render.story import CALL, Entry, numbered, story
from tdpmmu.render.words import ALARM, Words

PANELS = ("tables", "cpus", "locks", "owed")

_SHOWN_OR_NOT_OF_CONCERN = (
    *(".may_hold", ".mode", ".in_guest", ".roots", ".parked", ".KVM_REQ_TLB_FLUSH", ".ipi"),
    *(".checked", ".faulting", ".owes_flush", ".header", ".state"),
    *(".writer", ".readers", ".waiters", ".owner", ".nesting", ".callbacks"),
)
"""Cells, by the end of their name, that a panel shows, or that no kernel has."""

_NAME = re.compile(r"([A-Za-z_]\w*)")


class Pool:
    """Numbers values, the same for the same."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def __getitem__(self, value: Hashable) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._numbers)


def run_data(
    records: Sequence[RecordLike], violation: Violation, scene: Scene, meaning: str = ""
) -> dict[str, Any]:
    """All that the page says of a run; ``meaning`` explains the property in words."""
    names = KernelNames(scene.mmu_class)
    sources = Sources(names)
    steps = [_step(record, sources, scene) for record in records]
    found = moments(records, scene.hardware, violation.sentence)
    if scene.loop is not None:
        found.note(scene.loop, "from here it goes round for ever")
    rows, panels = Pool(), Pool()
    states = [
        [panels[tuple(rows[astuple(row)] for row in panel)] for panel in state]
        for state in _without_idle(list(_states(records, scene)))
    ]
    return {
        "kind": violation.kind,
        "prop": violation.prop,
        "meaning": meaning,
        "sentence": violation.sentence,
        "causes": causes(found, records, scene),
        "facts": list(scene.facts),
        "end": scene.end,
        "loop": scene.loop,
        "threads": list(scene.threads),
        "order": list(dict.fromkeys(record.thread for record in records)),
        "lines": {
            "some": _lines(records, violation, scene, names, found, sources, every=False),
            "all": _lines(records, violation, scene, names, found, sources, every=True),
        },
        "marks": dict(sorted(found.notes.items())),
        "steps": steps,
        "rows": list(rows),
        "panels": list(panels),
        "states": states,
        "functions": sources.functions,
    }


def _step(record: RecordLike, sources: Sources, scene: Scene) -> dict[str, Any]:
    """One operation: who does what, where, and which cells outside page tables and TLBs change."""
    places = [(sources.number(place), place.line) for place in record.place]
    cells = changed(scene.layout, record.before, record.after)
    return {
        "thread": record.thread,
        "stack": [place for place in places if place[0] is not None],
        "op": record.op.describe(),
        "result": _text(record.result),
        "failure": record.failure,
        "changed": [
            [cell.name, _text(old), _text(new)] for cell, old, new in cells if not _panelled(cell)
        ],
    }


def _panelled(cell: Cell) -> bool:
    """Whether a change of a cell shows in a panel, or is of no concern to a reader."""
    if isinstance(cell.page, TablePage) and cell in cell.page.entries:
        return True
    return cell.name.startswith("ghost ") or cell.name.endswith(_SHOWN_OR_NOT_OF_CONCERN)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int) and abs(value) > 0xFFFF:
        return f"{value:#x}"
    if isinstance(value, frozenset):
        return _text(tuple(sorted(value, key=repr)))
    if isinstance(value, tuple):
        return f"({', '.join(_text(one) for one in value)})"
    return str(value)


def _states(records: Sequence[RecordLike], scene: Scene) -> Iterator[list[list[Row]]]:
    """The panels before the first operation and after each."""
    if not records:
        return
    tables = TableView(scene.hardware)
    sync = SyncView(scene.layout, scene.threads)
    owed = Owed(scene)
    after = [(None, records[0].before), *((record, record.after) for record in records)]
    for record, state in after:
        yield [
            tables.rows(state),
            list(cpus.rows(scene.hardware, state)),
            list(sync.rows(state)),
            owed.rows(record, state),
        ]


def _without_idle(states: list[list[list[Row]]]) -> list[list[list[Row]]]:
    """Leave the locks out that nobody ever takes."""
    locks = PANELS.index("locks")
    used = {row.key for state in states for row in state[locks] if row.kind != IDLE}
    for state in states:
        state[locks] = [row for row in state[locks] if row.key in used]
    return states


class Owed:
    """What vCPUs may still use although nothing backs it, and whose doing that is."""

    def __init__(self, scene: Scene) -> None:
        self._hardware = scene.hardware
        self._since: dict[tuple[int, Any], tuple[int, str]] = {}

    def rows(self, record: RecordLike | None, state: State) -> list[Row]:
        """Follow the run by one operation; None for the first state."""
        hardware = self._hardware
        stale = [one for one in cpus.held(hardware, state) if one.stale]
        who = (record.number, record.name) if record is not None else (0, "")
        self._since = {
            (one.vcpu.number, one.entry): self._since.get((one.vcpu.number, one.entry), who)
            for one in stale
        }
        found = []
        for (number, entry), (step, name) in self._since.items():
            by = f"stale since step {step}, by {name}" if step else "stale from the start"
            key = f"owed {number} {entry}"
            what = spte.held(hardware, entry)
            found.append(Row(key, 0, f"vCPU{number}", what, STALE, by, f"SPTE {entry[3]:#x}"))
        return found or [Row("owed", 0, "", "nothing: page tables and TLBs agree", IDLE)]


def _lines(
    records: Sequence[RecordLike],
    violation: Violation,
    scene: Scene,
    names: KernelNames,
    found: Moments,
    sources: Sources,
    *,
    every: bool,
) -> list[dict[str, Any]]:
    """The story; each line says to which operation it belongs."""
    words = Words(
        scene.hardware, scene.layout, prop=violation.prop, sentence=violation.sentence, every=every
    )
    entries = story(records, words, names, scene.hardware, found.notes)
    last = records[-1].number if records else 0
    entries += [
        Entry(who, 1, f"waits for ever: {what}", ALARM, last) for who, what in scene.waiting
    ]
    return [
        {
            "step": entry.number,
            "thread": entry.thread,
            "depth": entry.depth,
            "about": entry.about,
            "text": _pieces(entry, sources),
            "notes": list(entry.notes),
        }
        for entry in numbered(entries)
    ]


def _pieces(entry: Entry, sources: Sources) -> list[Any]:
    """The text; of calls, each function's name with the numbers of its functions."""
    if entry.about != CALL:
        return [entry.text]
    return [
        [piece, sources.named(piece)] if sources.named(piece) else piece
        for piece in _NAME.split(entry.text)
        if piece
    ]
