"""What every reader of traces yields, whatever the file looks like.

A :class:`Trace` is iterated over once and yields :class:`Record` and :class:`Lost` in the order of
time.  ``trace.events(names)`` yields the same, but only the events of these names (and everything
that was lost), and ``trace.rows(names)`` the same as plain tuples, which is faster.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple, NoReturn, Protocol

IN_INTERRUPT, UNKNOWN_DEPTH = -1, -2


class TraceError(Exception):
    """The input is not the trace it should be; the message is one line."""


class Source(Protocol):
    """Where a record comes from: what is asked for rarely is made on demand."""

    def task_of(self, record: Record) -> str:
        """The name of the record's task."""

    def text_of(self, record: Record) -> str:
        """The record's fields as tracefs prints them."""

    def depth_of(self, record: Record) -> int:
        """See :attr:`Record.depth`."""

    def tgid_of(self, record: Record) -> int | None:
        """See :attr:`Record.tgid`."""


class Record(NamedTuple):
    """One entry of the ring buffer.

    ``line`` is its place in the trace, from 1 (``Trace.unit`` says of what).  ``time_ns`` is in
    nanoseconds for the trace clocks that count time; others count in units of a billion.
    ``fields`` are typed (:mod:`tdpmmu.trace.fields`), None for events that mean nothing to the
    reader.  ``at`` and ``source`` belong to the reader.
    """

    line: int
    time_ns: int
    cpu: int
    pid: int
    event: str
    fields: Any
    at: Any
    source: Source

    @property
    def time(self) -> float:
        """In seconds."""
        return self.time_ns / 1e9

    @property
    def task(self) -> str:
        """The name of the task, ``<...>`` if nobody knows."""
        return self.source.task_of(self)

    @property
    def text(self) -> str:
        """The fields as tracefs prints them."""
        return self.source.text_of(self)

    @property
    def depth(self) -> int:
        """How deeply preemption was disabled: at least 1 for who holds a spinning lock.

        :data:`IN_INTERRUPT` for what an interrupt did on top of the task, :data:`UNKNOWN_DEPTH` if
        the file does not say.
        """
        return self.source.depth_of(self)

    @property
    def tgid(self) -> int | None:
        """The process that the task is a thread of; None if the file does not say."""
        return self.source.tgid_of(self)

    @property
    def function(self) -> str:
        """What a line of the function tracer (event ``function``) is about; "" for others."""
        return str(self.fields.function) if self.event == "function" else ""

    @property
    def caller(self) -> str:
        """Who called :attr:`function`."""
        return str(self.fields.caller) if self.event == "function" else ""


@dataclass(frozen=True, slots=True)
class Lost:
    """``CPU:1 [LOST 42 EVENTS]``: the ring buffer of ``cpu`` overran; ``count`` None: unknown."""

    line: int
    cpu: int
    count: int | None


Row = tuple[int, int, int, int, str, Any, Any, Source]
"""A record as a plain tuple, which is cheaper to make and to take apart."""


class Run(NamedTuple):
    """Many rows of one event, which one thread made one after the other, as columns.

    Row ``i`` has line ``line + i`` and the time ``times[i]``; ``columns`` are the typed fields', in
    their order, and ``make`` makes typed fields of one value of each.
    """

    start: int
    line: int
    cpu: int
    pid: int
    event: str
    times: tuple[int, ...]
    columns: tuple[tuple[Any, ...], ...]
    make: Callable[[tuple[Any, ...]], Any]
    places: range
    source: Source

    def split(self, count: int) -> tuple[Run, Run]:
        """The first ``count`` rows, and the rest."""
        first, rest = (
            self._replace(
                start=self.times[part.start or 0],
                line=self.line + (part.start or 0),
                times=self.times[part],
                columns=tuple([column[part] for column in self.columns]),
                places=self.places[part],
            )
            for part in (slice(None, count), slice(count, None))
        )
        return first, rest

    def rows(self) -> Iterator[Row]:
        """The same as rows."""
        return zip(
            itertools.count(self.line),
            self.times,
            repeat(self.cpu),
            repeat(self.pid),
            repeat(self.event),
            map(self.make, zip(*self.columns, strict=True)),
            self.places,
            repeat(self.source),
            strict=False,
        )


LOST = "LOST"
"""In place of an event's name, in a row, where events are missing: ``fields`` is a Lost."""

as_record: Callable[[Row], Record] = partial(tuple.__new__, Record)
"""The record of a row."""


class Trace(ABC):
    """An open trace.

    ``records`` is how many were read, whether asked for or not, and ``line`` the place of the last
    one; while a binary file is read both may be ahead by what is in memory.  ``overwritten``
    entries are gone, since the ring buffer was full: None if the file does not say.  ``notices``
    are (line, text) of what the reader passed over, not knowing it.
    """

    unit = "line"

    def __init__(self, name: str) -> None:
        self.name = name
        self.records = 0
        self.line = 0
        self.overwritten: int | None = None
        self.notices: list[tuple[int, str]] = []

    @abstractmethod
    def rows(self, names: Collection[str] | None = None) -> Iterator[Row]:
        """The rows of these events (None: all); TraceError where the file is broken.

        The fastest way through a big file: events that are not asked for are hardly looked at,
        and those that are come with their typed fields::

            for line, ns, cpu, pid, event, fields, _, _ in trace.rows({"kvm_page_fault"}): ...
        """

    def runs(self, names: Collection[str] | None = None) -> Iterator[Row | Run]:
        """The same, with many rows as one :class:`Run` where a binary file has them so."""
        return self.rows(names)

    def events(self, names: Collection[str] | None = None) -> Iterator[Record | Lost]:
        """The same as records."""
        for row in self.rows(names):
            yield row[5] if row[4] is LOST else as_record(row)

    def __iter__(self) -> Iterator[Record | Lost]:
        return self.events()

    @property
    def doubts(self) -> list[tuple[int, str]]:
        """(line, text) of what the trace lacks, besides :class:`Lost` events."""
        if self.overwritten:
            return [(1, f"the ring buffer overwrote {self.overwritten} entries"), *self.notices]
        return self.notices

    def notice(self, what: str) -> None:
        """Take down something that is passed over, but that a verdict has to name."""
        self.notices.append((self.line + 1, what))

    def fail(self, what: str, line: int | None = None) -> NoReturn:
        """Raise :class:`TraceError` for ``line`` (default: the one read last)."""
        raise TraceError(f"{self.name}: {self.unit} {line or self.line}: {what}")


def printable(text: str) -> str:
    """``text`` with escapes for all that a terminal might take amiss."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isascii() and c.isprintable() else ascii(c)[1:-1] for c in text)


def shorten(text: str) -> str:
    """``text`` quoted for an error message: ASCII, of at most 60 characters."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")
