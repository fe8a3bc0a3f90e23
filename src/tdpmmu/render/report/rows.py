"""A line in one of the report's panels."""

from __future__ import annotations

from dataclasses import dataclass

PLAIN, ROOT, TABLE, LEAF, NONE, BUSY, STALE, OLD, IDLE = (
    "plain",
    "root",
    "table",
    "leaf",
    "none",
    "busy",
    "stale",
    "old",
    "idle",
)
"""What a row is of; each has a look of its own, and words that say the same."""


@dataclass(frozen=True, slots=True)
class Row:
    """``key`` says what the row is about, so that a reader can be shown which rows differ.

    ``detail`` is for those who ask, such as the number behind an SPTE.
    """

    key: str
    depth: int
    label: str
    text: str
    kind: str = PLAIN
    note: str = ""
    detail: str = ""
