"""A run as a sequence diagram, in SVG."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree import ElementTree as xml

from tdpmmu.arch.requests import SendIpi
from tdpmmu.events.records import FlushRequested
from tdpmmu.render.interleaving import Scene, Violation, summary
from tdpmmu.render.names import KernelNames
from tdpmmu.render.record import RecordLike
from tdpmmu.render.stale import StaleEntry, moments
from tdpmmu.render.story import CALL, Entry, numbered, story
from tdpmmu.render.words import ALARM, Words

WIDTH = 960
_MARGIN, _NUMBERS, _ROW, _CHARACTER, _ARROW, _TURN = 16, 44, 17, 7.25, 9, 10
_NARROWEST = 430
"""Pixels: margins, step numbers, a line of text, a character, an arrow, the gap between turns."""

_STYLE = """
svg { color-scheme: light dark; --ink: light-dark(#1d1f21, #e6e4df); --back: light-dark(#fff, #1d2024);
  --soft: light-dark(#5f656c, #a5abb3); --line: light-dark(#c9c4ba, #454c54);
  --alarm: light-dark(#a4122a, #ff8f93); --held: light-dark(#0b62b0, #66b0ff);
  --lock: light-dark(#7a3e8f, #d3a4e6); --flush: light-dark(#00694a, #5fd0a5); }
.back { fill: var(--back); } text { font: 12px ui-monospace, Consolas, "DejaVu Sans Mono", monospace; fill: var(--ink); }
.name { font-weight: 700; font-size: 13px; } .title { font-weight: 700; fill: var(--alarm); }
.number, .call { fill: var(--soft); } .lock { fill: var(--lock); } .flush { fill: var(--flush); }
.guest { fill: var(--held); } .alarm, .note { fill: var(--alarm); font-weight: 700; }
.life { stroke: var(--line); stroke-width: 1.5; } .turn { fill: var(--soft); }
.box { fill: var(--back); stroke: var(--soft); } .arrow { stroke: var(--flush); stroke-width: 1.5; fill: none; }
.head { fill: var(--flush); stroke: none; }
.held { fill: var(--held); } .stale { fill: var(--alarm); }
"""  # noqa: E501


def diagram(records: Sequence[RecordLike], violation: Violation, scene: Scene) -> str:
    """The diagram as an SVG document; nothing is drawn of a run without operations.

    Bars on a lifeline are turns; beside a vCPU's, what its TLB may hold, and from where it is
    stale.  Arrows are flush requests and IPIs.
    """
    words = Words(scene.hardware, scene.layout, prop=violation.prop, sentence=violation.sentence)
    found = moments(records, scene.hardware, violation.sentence)
    entries = story(records, words, KernelNames(scene.mmu_class), scene.hardware, found.notes)
    entries += [Entry(who, 1, f"waits for ever: {what}", ALARM) for who, what in scene.waiting]
    shown = numbered(entries)
    drawing = _Drawing(shown, scene, _arrows(records, shown, scene))
    drawing.title(summary(violation))
    drawing.lives()
    for stale in found.entries:
        drawing.held(stale)
    drawing.turns()
    return drawing.text()


def _arrows(
    records: Sequence[RecordLike], entries: Sequence[Entry], scene: Scene
) -> dict[int, tuple[int, list[int]]]:
    """Who asks whom: the thread, and threads of vCPUs, by the number of the line that says it."""
    found: dict[int, tuple[int, list[int]]] = {}
    said = [entry.number for entry in entries if entry.about != CALL and entry.number is not None]
    vcpus = scene.hardware.vcpus
    for record in records:
        asked = [event.vcpu for event in record.events if isinstance(event, FlushRequested)]
        if isinstance(record.op, SendIpi):
            asked.append(record.op.vcpu.number)
        threads = [vcpus[number].thread for number in asked]
        to = [one for one in threads if one is not None and one != record.thread]
        # Requests in a row are one line, which has the number of the first.
        line = max((number for number in said if number <= record.number), default=0)
        if to:
            found.setdefault(line, (record.thread, []))[1].extend(to)
    return found


def _pretty(text: str) -> str:
    return re.sub(r"(^| )->(?= |$)", "\\1\u2192", text)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of text at ``y``; ``step`` is the operation it belongs to."""

    entry: Entry
    text: str
    style: str
    y: float
    first: bool


class _Drawing:
    def __init__(
        self, entries: Sequence[Entry], scene: Scene, arrows: dict[int, tuple[int, list[int]]]
    ) -> None:
        self._entries = entries
        self._scene = scene
        self._arrows = arrows
        self._threads = list(dict.fromkeys(entry.thread for entry in entries))
        room = WIDTH - 2 * _MARGIN - _NUMBERS
        gap = min(240.0, (room - _NARROWEST) / max(1, len(self._threads) - 1))
        self._x = {
            thread: _MARGIN + _NUMBERS + 6 + i * gap for i, thread in enumerate(self._threads)
        }
        self._gap = gap
        self._y: dict[int, tuple[float, float]] = {}
        self._svg = xml.Element("svg", xmlns="http://www.w3.org/2000/svg", width=str(WIDTH))
        xml.SubElement(self._svg, "style").text = _STYLE
        self._ground = self._add("rect", "back", x=0, y=0, width=WIDTH, height=0)
        self._bottom = float(_MARGIN)

    def _add(self, tag: str, style: str, **attributes: float | str) -> xml.Element:
        named = {
            key: f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
            for key, value in attributes.items()
        }
        return xml.SubElement(self._svg, tag, {"class": style, **named})

    def _text(self, style: str, x: float, y: float, text: str, **more: str) -> None:
        self._add("text", style, x=x, y=y, **more).text = text

    def title(self, text: str) -> None:
        """What is wrong, on top."""
        for line in textwrap.wrap(_pretty(text), int((WIDTH - 2 * _MARGIN) / _CHARACTER)):
            self._bottom += _ROW
            self._text("title", _MARGIN, self._bottom, line)
        self._bottom += _ROW

    def lives(self) -> None:
        """Lifelines with names, down to where the last line of text will be."""
        names = self._scene.threads
        stairs = any(len(names[thread]) * 8 + 20 > self._gap for thread in self._threads[:-1])
        tops = {}
        for thread in self._threads:
            tops[thread] = self._bottom
            if stairs:
                self._bottom += _ROW + 8
        if not stairs:
            self._bottom += _ROW + 8
        self._lines = self._layout()
        end = self._bottom + 6
        for thread in self._threads:
            x = self._x[thread]
            self._add("line", "life", x1=x, x2=x, y1=tops[thread], y2=end)
        for thread in self._threads:
            width = len(names[thread]) * 8 + 12
            x, y = self._x[thread] - 6, tops[thread]
            self._add("rect", "box", x=x, y=y, width=width, height=_ROW + 4, rx=4)
            self._text("name", x + 6, y + 15, names[thread])
        self._bottom = end

    def _layout(self) -> list[_Line]:
        lines: list[_Line] = []
        y = self._bottom + 4
        for thread, turn in groupby(self._entries, lambda entry: entry.thread):
            y += _TURN
            for entry in turn:
                top = y
                room = int((WIDTH - _MARGIN - self._left(thread, entry)) / _CHARACTER)
                texts = [(one, entry.about) for one in textwrap.wrap(_pretty(entry.text), room)]
                for note in entry.notes:
                    texts += [(one, "note") for one in textwrap.wrap(f"\u25c4 {note}", room)]
                for i, (text, style) in enumerate(texts):
                    y += _ROW
                    lines.append(_Line(entry, text, style, y, i == 0))
                if entry.number in self._arrows and entry.about != CALL:
                    y += _ARROW
                if entry.number is not None and entry.about != CALL:
                    first = self._y.get(entry.number, (top, top))[0]
                    self._y[entry.number] = (first, y + 4)
        self._bottom = y + 4
        return lines

    def _left(self, thread: int, entry: Entry) -> float:
        return self._x[thread] + 12 + 10 * min(entry.depth, 8)

    def turns(self) -> None:
        """Bars where a thread runs, arrows, and the text over everything."""
        for thread, turn in groupby(self._lines, lambda line: line.entry.thread):
            lines = list(turn)
            top, end = lines[0].y - 13, lines[-1].y + 5
            self._add("rect", "turn", x=self._x[thread] - 3, y=top, width=6, height=end - top)
        said = None
        for line in self._lines:
            entry = line.entry
            left = self._left(entry.thread, entry)
            self._add("rect", "back", x=left - 2, y=line.y - 12, height=16,
                      width=len(line.text) * _CHARACTER + 4)  # fmt: skip
            self._text(line.style, left, line.y, line.text)
            if line.first and entry.about != CALL and entry.number not in (None, said):
                said = entry.number
                right = float(_MARGIN + _NUMBERS - 14)
                self._text("number", right, line.y, str(said), **{"text-anchor": "end"})
        for number, (thread, to) in self._arrows.items():
            if number in self._y:
                self._arrow(thread, to, self._y[number][1] - 4)

    def _arrow(self, thread: int, to: Sequence[int], y: float) -> None:
        start = self._x[thread]
        for other in to:
            if other in self._x:
                end = self._x[other]
                way = 1 if end > start else -1
                tip = end - way * 4
                self._add("path", "arrow", d=f"M{start:.1f} {y:.1f}H{tip - way * 5:.1f}")
                points = f"{tip:.1f},{y:.1f} {tip - way * 7:.1f},{y - 4:.1f} "
                self._add("polygon", "head", points=f"{points}{tip - way * 7:.1f},{y + 4:.1f}")

    def held(self, stale: StaleEntry) -> None:
        """A bar beside a vCPU's lifeline: from where its TLB may hold an entry, and stale since."""
        thread = self._scene.hardware.vcpus[stale.vcpu].thread
        x = self._x.get(thread) if thread is not None else None
        if x is None:
            return
        top = self._y.get(stale.held_since, (self._lines[0].y - 13, 0.0))[0] + 4
        middle = self._y.get(stale.stale_since, (top, top))[0] + 4
        self._add("rect", "held", x=x - 9, y=top, width=3, height=max(middle - top, 0.0))
        end = self._bottom
        self._add("rect", "stale", x=x - 9, y=middle, width=3, height=end - middle)

    def text(self) -> str:
        """The whole document."""
        height = f"{self._bottom + _MARGIN:.0f}"
        self._svg.set("height", height)
        self._svg.set("viewBox", f"0 0 {WIDTH} {height}")
        self._ground.set("height", height)
        xml.indent(self._svg)
        return xml.tostring(self._svg, encoding="unicode") + "\n"
