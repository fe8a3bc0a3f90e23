"""What verification says: violations with the lines that prove them, and what was checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tdpmmu.trace.records import Record

FULL, PART, NONE = "in full", "in part", "not at all"

MOST_SHOWN = 20
"""Violations of one property that are kept; the others are counted."""


@dataclass(frozen=True, slots=True)
class Violation:
    """``evidence``: (line of the trace, its text)."""

    prop: str
    sentence: str
    evidence: tuple[tuple[int, str], ...]


@dataclass(slots=True)
class Checked:
    """One property: how much of it was checked, and why not all; ``enable`` are events to record.

    ``judged`` counts what was held against it.
    """

    prop: str
    meaning: str
    coverage: str = FULL
    judged: int = 0
    why: list[str] = field(default_factory=list)
    enable: list[str] = field(default_factory=list)

    def lacks(self, coverage: str, why: str, *enable: str) -> None:
        """Lower the coverage, for a reason."""
        if coverage == NONE or self.coverage == FULL:
            self.coverage = coverage
        self.why.append(why)
        self.enable += [one for one in enable if one not in self.enable]


@dataclass(slots=True)
class Result:
    """``problems`` are places where the trace does not fit together, (line, what).

    There are ``more_problems`` which are only counted.
    """

    name: str
    format_name: str
    kernel_text: str
    events: int = 0
    changes: int = 0
    vms: int = 0
    roots: int = 0
    ambiguous: int = 0
    checked: list[Checked] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    more_problems: int = 0


class Findings:
    """Collects violations; ``counts`` are all, by property."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.counts: dict[str, int] = {}

    def violated(self, prop: str, sentence: str, proof: Sequence[Record]) -> None:
        """``proof`` are the records that show it, oldest first."""
        count = self.counts.get(prop, 0)
        self.counts[prop] = count + 1
        if count < MOST_SHOWN:
            lines = tuple((record.line, text_of(record)) for record in proof)
            self.violations.append(Violation(prop, sentence, lines))


def text_of(record: Record) -> str:
    """A record much as tracefs prints it."""
    head = f"{record.task}-{record.pid} [{record.cpu:03}] {record.time:.6f}: "
    if record.event == "function":
        return f"{head}{record.function} <-{record.caller}"
    return f"{head}{record.event}: {record.text}"
