"""Columns: one lifeline a thread, time downwards.

Only one thread acts in each line, so its text may run over the lifelines to its right.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tdpmmu.render.lines import Line
from tdpmmu.render.story import Entry

MARGIN = 6
"""Room for the numbers of operations."""

NARROWEST = 50
"""The least room for text in the last column; lifelines move together to leave it."""

LANE = "│"


def columns(entries: Sequence[Entry], names: Sequence[str], width: int) -> list[Line]:
    """Entries as lines, the thread that comes first on the left; ``names`` are by thread."""
    threads = list(dict.fromkeys(entry.thread for entry in entries))
    starts = _starts(len(threads), width)
    lanes = dict(zip(threads, starts, strict=True))
    lines = _header([names[thread] for thread in threads], starts)
    running = None
    for entry in entries:
        if running != entry.thread:
            lines.append(_line(starts, None, "", "", width, width))
            running = entry.thread
        lines += _entry(entry, lanes[entry.thread], starts, width)
    return lines


def _starts(count: int, width: int) -> list[int]:
    """Where the lifelines stand."""
    room = width - MARGIN
    step = room // count
    if count > 1 and step < NARROWEST:
        step = max(4, (room - NARROWEST) // (count - 1))
    return [MARGIN + i * step for i in range(count)]


def _header(names: Sequence[str], starts: Sequence[int]) -> list[Line]:
    """The threads' names above their lifelines: side by side, or as stairs if there is no room."""
    fits = all(
        start + len(name) < after
        for name, start, after in zip(names, starts, starts[1:], strict=False)
    )
    if not fits:
        return [_step(name, starts[: i + 1]) for i, name in enumerate(names)]
    text = ""
    for name, start in zip(names, starts, strict=True):
        text = text.ljust(start) + name
    return [[(text, "title")]]


def _step(name: str, starts: Sequence[int]) -> Line:
    """A name above the last of these lifelines, to the right of those that have begun."""
    lanes = "".join(LANE if i in starts[:-1] else " " for i in range(starts[-1]))
    return [(lanes, "lane"), (name, "title")]


def _entry(entry: Entry, start: int, starts: Sequence[int], width: int) -> list[Line]:
    indent = start + 2 + 2 * min(entry.depth, 6) + max(entry.depth - 6, 0)
    lanes = [one for one in starts if one <= start or one >= indent]
    lines = []
    for i, text in enumerate(_wrap(entry.text, width - indent)):
        number = entry.number if not i else None
        hang = "" if not i else "  "
        lines.append(_line(lanes, number, hang + text, entry.about, indent, width))
    for note in entry.notes:
        for i, text in enumerate(_wrap(f"<-- {note}", width - indent)):
            hang = "" if not i else "    "
            lines.append(_line(lanes, None, hang + text, "note", indent, width))
    return lines


def _wrap(text: str, room: int) -> list[str]:
    """Lines of at most ``room``, the later ones leaving place for a hanging indent."""
    return textwrap.wrap(text, max(room - 4, 12), break_on_hyphens=False) or [""]


def _line(
    lanes: Sequence[int], number: int | None, text: str, style: str, indent: int, width: int
) -> Line:
    """One line: number, lifelines, and the text over them."""
    drawn = [" "] * width
    for lane in lanes:
        drawn[lane] = LANE
    end = indent + len(text)
    after = "".join(drawn[end:])
    if after.startswith(LANE):
        after = " " + after[1:]
    return [
        (f"{number:>4}  " if number is not None else " " * MARGIN, "number"),
        ("".join(drawn[MARGIN:indent]), "lane"),
        (text, style),
        (after.rstrip(), "lane"),
    ]
