"""Read the text of a kernel trace: the tracefs file ``trace`` (or ``trace_pipe``), line by line.

No more than a line is held.  What is broken raises :class:`TraceError`, whose message is one line
with the file's name, the line's number and what was expected there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import IO

from tdpmmu.trace.fields import FunctionCall, fields_of_text
from tdpmmu.trace.records import (
    IN_INTERRUPT,
    LOST,
    UNKNOWN_DEPTH,
    Lost,
    Record,
    Row,
    Trace,
    TraceError,
    shorten,
)
from tdpmmu.trace.streams import BrokenStream

_LINE = re.compile(
    r"\s*(?P<task>\S.{0,15}?)-(?P<pid>\d{1,10})\s+(?:\((?P<tgid>[\s\d-]+)\)\s+)?\[(?P<cpu>\d{1,6})\]"
    r"\s+(?:(?P<flags>\S+)\s+)?(?P<time>\d{1,20}(?:\.\d{1,9})?):\s+(?P<rest>.*)"
)
_EVENT = re.compile(r"(?P<event>\w+):(?:\s+(?P<text>.*))?")
_FUNCTION = re.compile(r"(?P<function>[\w.]+)(?: \[\w+\])? <-(?P<caller>[\w.]+)(?: \[\w+\])?")
_STACK = {"<stack trace>": "kernel_stack", "<user stack trace>": "user_stack"}
_LOST = re.compile(r"CPU:\s*(?P<cpu>\d{1,6}) \[LOST (?:(?P<count>\d{1,20}) )?EVENTS\]")
_ENTRIES = re.compile(r"# entries-in-buffer/entries-written: (\d{1,20})/(\d{1,20})")

_HEX_DIGITS = frozenset("0123456789abcdef")

MAX_LINE = 1 << 16
"""Longest line in bytes; tracefs prints less than a page for each entry."""

EXPECTED = 'expected tracefs text, like "task-1 [000] ..... 1.000000: event: ..."'


class TraceReader(Trace):
    """Iterates over the records of open tracefs text; :class:`Trace` says how.

    After the header, ``entries_in_buffer`` and ``entries_written`` are its two numbers (None
    without a header, as in ``trace_pipe``).
    """

    expected = EXPECTED

    def __init__(self, stream: IO[bytes], name: str) -> None:
        super().__init__(name)
        self.entries_in_buffer: int | None = None
        self.entries_written: int | None = None
        self._stream = stream

    def rows(self, names: Collection[str] | None = None) -> Iterator[Row]:
        """The rows of these events (None: all)."""
        for raw in self._lines():
            if raw.startswith("#"):
                self._header(raw)
            elif raw.startswith(" => ") or not raw.strip():
                continue  # a frame of a stack trace
            elif match := _LOST.fullmatch(raw.strip()):
                cpu, count = int(match["cpu"]), match["count"]
                lost = Lost(self.line, cpu, int(count) if count else None)
                yield self.line, 0, cpu, 0, LOST, lost, None, self
            else:
                self.records += 1
                row = self._row(raw, names)
                if row is not None:
                    yield row
        self._check_end()

    def task_of(self, record: Record) -> str:
        """The name of a record's task."""
        return str(record.at[0])

    def text_of(self, record: Record) -> str:
        """The fields of a record as tracefs prints them."""
        return str(record.at[1])

    def depth_of(self, record: Record) -> int:
        """How many spinning locks the record's task held, by the columns before the time."""
        flags = record.at[2]
        if flags is None or len(flags) < 4:
            return UNKNOWN_DEPTH
        if flags[2] != ".":
            return IN_INTERRUPT
        return int(flags[3], 16) if flags[3] in _HEX_DIGITS else 0

    def tgid_of(self, record: Record) -> int | None:
        """The task's process, with the trace option ``record-tgid``."""
        tgid = (record.at[3] or "").strip()
        return int(tgid) if tgid.isdigit() else None

    def _lines(self) -> Iterator[str]:
        stream = self._stream
        while True:
            try:
                raw = stream.readline(MAX_LINE)
            except BrokenStream as error:
                self.line += 1
                self.fail(str(error))
            except OSError as error:
                self.line += 1
                self.fail(f"cannot read on: {error.strerror}")
            if not raw:
                return
            self.line += 1
            if b"\0" in raw:
                self.fail(f"binary data; {self.expected}")
            if not raw.endswith(b"\n"):
                what = "is longer than 64 KiB" if len(raw) == MAX_LINE else "has no end (truncated)"
                self.fail(f"the line {what}; {self.expected}")
            yield raw[:-1].decode("utf-8", "replace")

    def _header(self, line: str) -> None:
        if match := _ENTRIES.match(line):
            kept, written = int(match[1]), int(match[2])
            self.entries_in_buffer, self.entries_written = kept, written
            self.overwritten = max(written - kept, 0)

    def _row(self, line: str, names: Collection[str] | None) -> Row | None:
        match = _LINE.fullmatch(line)
        if not match:
            self.fail(f"{self.expected}; found {shorten(line)}")
        task, pid, tgid, cpu, flags, time, rest = match.groups()
        fields = None
        if event := _EVENT.fullmatch(rest):
            name, text = event["event"], event["text"] or ""
        elif found := _FUNCTION.fullmatch(rest):
            name, text = "function", rest
            fields = FunctionCall(found["function"], found["caller"])
        elif rest in _STACK:
            name, text = _STACK[rest], ""
        else:
            expected = '"event: fields" or "function <-caller"'
            self.fail(f"expected {expected} after the time; found {shorten(rest)}")
        if names is not None and name not in names:
            return None
        known = fields or fields_of_text(name, text, self.fail)
        ns = round(float(time) * 1e9)
        return self.line, ns, int(cpu), int(pid), name, known, (task, text, flags, tgid), self

    def _check_end(self) -> None:
        if not self.line:
            raise TraceError(f"{self.name}: line 1: empty file; {self.expected}")
        promised = self.entries_in_buffer
        if promised is not None and self.records < promised:
            self.line += 1
            self.fail(
                f"expected {promised} entries, as the header says, but the file ends after "
                f"{self.records} (truncated)"
            )
