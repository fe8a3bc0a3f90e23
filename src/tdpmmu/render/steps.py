"""A run as plain data, for programs: every operation, nothing left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tdpmmu.arch.table import TablePage
from tdpmmu.events.records import Event, SpteChanged
from tdpmmu.machine.state import Cell, changed
from tdpmmu.render.interleaving import Scene
from tdpmmu.render.names import KernelNames
from tdpmmu.render.record import RecordLike
from tdpmmu.render.stale import moments

_EXACT = 1 << 53
"""Larger integers are not exact in every JSON reader."""


def steps(records: Sequence[RecordLike], sentence: str, scene: Scene) -> list[dict[str, Any]]:
    """One mapping for each operation; SPTEs are hexadecimal strings."""
    names = KernelNames(scene.mmu_class)
    notes = moments(records, scene.hardware, sentence).notes
    return [
        {
            "number": record.number,
            "thread": record.name,
            "functions": list(names.chain(record.place)),
            "operation": record.op.describe(),
            "result": _plain(record.result),
            "events": [_event(event) for event in record.events],
            "changed": {
                cell.name: [_value(cell, old), _value(cell, new)]
                for cell, old, new in changed(scene.layout, record.before, record.after)
            },
            "failure": record.failure,
            "notes": notes.get(record.number, []),
        }
        for record in records
    ]


def _event(event: Event) -> dict[str, Any]:
    fields = {name: _plain(value) for name, value in asdict(event).items()}  # type: ignore[call-overload]
    if isinstance(event, SpteChanged):
        fields |= {"old": f"{event.old:#x}", "new": f"{event.new:#x}"}
    return {"event": type(event).__name__, **fields}


def _value(cell: Cell, value: Any) -> Any:
    if isinstance(cell.page, TablePage) and cell in cell.page.entries:
        return f"{value:#x}"
    return _plain(value)


def _plain(value: Any) -> Any:
    """The value itself if JSON has its like, else its text."""
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) <= _EXACT else f"{value:#x}"
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    if isinstance(value, frozenset):
        return [_plain(one) for one in sorted(value, key=repr)]
    return str(value)
