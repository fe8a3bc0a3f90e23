"""A counterexample as text that people paste into a mail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tdpmmu.arch.hardware import Hardware
from tdpmmu.arch.table import Header
from tdpmmu.events.records import SpteChanged
from tdpmmu.machine.op import USED, Step
from tdpmmu.machine.state import Layout, State
from tdpmmu.render import spte
from tdpmmu.render.columns import columns
from tdpmmu.render.lines import Line, ascii_only, paragraph, plain
from tdpmmu.render.names import KernelNames
from tdpmmu.render.record import RecordLike
from tdpmmu.render.stale import Moments, StaleEntry, moments
from tdpmmu.render.story import Entry, story
from tdpmmu.render.words import ALARM, Words

_MOST_TABLES = 12
"""Lines about the page tables at the start."""


class Violation(Protocol):
    """What is wrong: a property, its kind and a sentence."""

    @property
    def prop(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def sentence(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Scene:
    """What a run is about.  ``threads`` are all threads of the machine, by number.

    ``facts`` are paragraphs for the top (scenario, kernel).  ``waiting`` are the threads that a
    deadlock leaves, with what each waits for, ``loop`` is the operation that a run without progress
    comes back to.  ``end`` is what to say at the end instead of the violation, if it did not come.
    """

    hardware: Hardware
    layout: Layout
    threads: Sequence[str]
    mmu_class: type[Any] = object
    facts: Sequence[str] = ()
    waiting: Sequence[tuple[int, str]] = ()
    loop: int | None = None
    end: str = ""


def summary(violation: Violation) -> str:
    """One causal sentence: what kind of violation, of what, and how."""
    return f"{violation.kind.upper()} {violation.prop}: {violation.sentence}"


def interleaving(
    records: Sequence[RecordLike],
    violation: Violation,
    scene: Scene,
    *,
    width: int = 80,
    ascii: bool = False,
    every: bool = False,
) -> str:
    """The run as text of ``width`` columns; ``every`` operation, or those that matter."""
    return plain(lines(records, violation, scene, width=width, ascii=ascii, every=every))


def lines(
    records: Sequence[RecordLike],
    violation: Violation,
    scene: Scene,
    *,
    width: int = 80,
    ascii: bool = False,
    every: bool = False,
) -> list[Line]:
    """The same as lines with styles."""
    words = Words(
        scene.hardware,
        scene.layout,
        prop=violation.prop,
        sentence=violation.sentence,
        every=every,
    )
    found = moments(records, scene.hardware, violation.sentence)
    if scene.loop is not None:
        found.note(scene.loop, "from here it goes round for ever")
    out = paragraph(summary(violation), width, "alarm")
    for cause in causes(found, records, scene):
        out += paragraph(cause, width, "note", "  ")
    out.append([])
    for fact in scene.facts:
        out += paragraph(fact, width, "", "", "  ")
    if scene.facts:
        out.append([])
    if records:
        out += _start(records[0].before, scene, width)
        out.append([])
        names = KernelNames(scene.mmu_class)
        entries = story(records, words, names, scene.hardware, found.notes)
        entries += [Entry(who, 1, f"waits for ever: {what}", ALARM) for who, what in scene.waiting]
        out += columns(entries, scene.threads, width)
    out += _end(violation, records, scene, width)
    return ascii_only(out) if ascii else out


def causes(found: Moments, records: Sequence[RecordLike], scene: Scene) -> list[str]:
    """How what does harm at the end came to be: at most three sentences."""
    return [_cause(stale, records, scene) for stale in found.entries[:3]]


def _cause(stale: StaleEntry, records: Sequence[RecordLike], scene: Scene) -> str:
    """How an entry came to be held and stale, as one sentence."""
    held = f"since step {stale.held_since}" if stale.held_since else "from the start"
    text = f"vCPU{stale.vcpu} may hold {spte.held(scene.hardware, stale.entry)} {held}"
    if stale.stale_since > stale.held_since:
        record = next(one for one in records if one.number == stale.stale_since)
        text += f"; {record.name} {_deed(record, stale, scene)} in step {record.number}"
    elif stale.stale_since:
        text += ", read from a table that is no longer linked"
    return f"{text}; no flush reaches vCPU{stale.vcpu} after that."


def _deed(record: RecordLike, stale: StaleEntry, scene: Scene) -> str:
    """What an operation did to the SPTE that a stale entry was read from."""
    for event in record.events:
        if isinstance(event, SpteChanged) and event.old == stale.entry[3]:
            return "changes it" if scene.hardware.format.is_shadow_present(event.new) else "zaps it"
    return "takes away the table it is in"


def _start(state: State, scene: Scene, width: int) -> list[Line]:
    """The page tables before the first operation: each root, who uses it, what it maps."""
    hardware = scene.hardware
    step = Step(state, 0)
    found: list[Line] = []
    for page in hardware.page_by_number.values():
        header: Header | None = step[page.header]
        if step[page.state] != USED or header is None or header.root != page.number:
            continue
        users = [
            f"vCPU{vcpu.number}{' (parked)' if step[vcpu.parked] else ''}"
            for vcpu in hardware.vcpus
            if page.number in step[vcpu.loaded]
        ]
        kind = f"address space {header.as_id}" if header.tdp else "legacy"
        maps = spte.mappings(hardware, hardware.reachable(step, page.number))
        text = f"root {page.name} ({kind}; {', '.join(users) or 'unused'}): "
        found += paragraph(text + (", ".join(maps) or "empty"), width, "", "  ", "    ")
    if len(found) > _MOST_TABLES:
        found[_MOST_TABLES:] = [[(f"  ... and {len(found) - _MOST_TABLES} more lines", "")]]
    return [[("At the start:", "")], *found] if found else []


def _end(
    violation: Violation, records: Sequence[RecordLike], scene: Scene, width: int
) -> list[Line]:
    if scene.end:
        return paragraph(f"*** {scene.end}", width, "note", "", "    ")
    when = "after" if scene.waiting or scene.loop is not None else "in"
    step = f" {when} step {records[-1].number}" if records else ""
    text = f"*** {violation.kind.upper()}{step}: {violation.sentence}"
    if scene.loop is not None:
        text += f"; everything is as it was before step {scene.loop}"
    return paragraph(text, width, "alarm", "", "    ")
