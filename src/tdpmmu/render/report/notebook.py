"""Panels of a state for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tdpmmu.render.report.rows import STALE, Row


@dataclass(frozen=True, slots=True)
class PageTables:
    """The page tables of one state as a tree."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        return "\n".join(
            f"{'  ' * row.depth}{row.label}  {row.text}{f'  ({row.note})' if row.note else ''}"
            for row in self.rows
        )

    def _repr_html_(self) -> str:
        """For notebooks."""
        return rows_html("Page tables", self.rows)


def rows_html(title: str, rows: Sequence[Row]) -> str:
    """A panel for a notebook."""
    lines = "".join(
        f'<div style="padding-left: {row.depth * 1.4:.1f}em">'
        f"<b>{escape(row.label)}</b> "
        + (f"<strong>&#9650; {escape(row.text)}</strong>" if row.kind == STALE
           else escape(row.text))
        + (f" <i>{escape(row.note)}</i>" if row.note else "")
        + "</div>"
        for row in rows
    )  # fmt: skip
    return (
        f'<details open><summary>{escape(title)}</summary><div style="font-family: monospace">'
        f"{lines}</div></details>"
    )
