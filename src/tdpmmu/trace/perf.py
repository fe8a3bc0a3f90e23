"""Read what ``perf script`` prints of ``perf record -e 'kvmmmu:*' ...``, line by line.

perf formats events with libtraceevent, as trace-cmd does, so some are not as tracefs has them:
where that does not understand an event's ``print fmt``, it lists the fields.  Callers (``-g``) are
passed over.  There are no markers in perf.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import IO, Any

from tdpmmu.trace.dat.bindings import BINDINGS
from tdpmmu.trace.fields import Probe, ProbeReturn, fields_of_text, probe_arguments
from tdpmmu.trace.records import LOST, Lost, Row, TraceError, shorten
from tdpmmu.trace.text import TraceReader

_LINE = re.compile(
    r"\s*(?P<task>\S.{0,15}?)\s+(?:(?P<tgid>\d+)/)?(?P<pid>-?\d{1,10})\s+(?:(?!\d+\s)\S+\s+)?\[(?P<cpu>\d{1,6})\]"
    r"\s+(?P<time>\d{1,20}\.\d{6,9}):\s+(?:\d+\s+)?"
    r"(?:(?P<system>[\w-]+):(?P<event>\w+):\s*|(?=PERF_RECORD_))(?P<text>.*)"
)
_LOST = re.compile(r"PERF_RECORD_LOST(?:_SAMPLES)? lost (\d{1,20})")
_CALLER = re.compile(r"\s+[0-9a-f]+ .*\(.*\)")
_PROBE = re.compile(r"\([0-9a-f]+( <- [0-9a-f]+)?\)")
_BY_PLUGIN = frozenset({"kvm_mmu_get_page", "kvm_mmu_prepare_zap_page"})
_UNFORMATTED = "[FAILED TO PARSE]"
_FIELD = re.compile(r"(\w+)=(-?\d{1,20}|0x[0-9a-f]{1,16})(?=\s|$)")

EXPECTED = 'expected perf script text, like "task 1 [000] 1.000000: kvmmmu:event: ..."'


def is_perf(start: bytes) -> bool:
    """Does a file that starts like this look like what perf prints?"""
    lines = start.decode("utf-8", "replace").splitlines()
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    return _LINE.fullmatch(first) is not None


class PerfReader(TraceReader):
    """Iterates over the records of open ``perf script`` text; :class:`Trace` says how."""

    expected = EXPECTED

    def __init__(self, stream: IO[bytes], name: str) -> None:
        super().__init__(stream, name)
        self._noticed: set[str] = set()

    def rows(self, names: Collection[str] | None = None) -> Iterator[Row]:
        """The rows of these events (None: all)."""
        for raw in self._lines():
            if raw.startswith("#") or not raw.strip() or _CALLER.fullmatch(raw):
                continue
            match = _LINE.fullmatch(raw)
            if match is None:
                self.fail(f"{EXPECTED}; found {shorten(raw)}")
            cpu, text = int(match["cpu"]), match["text"]
            ns = round(float(match["time"]) * 1e9)
            if match["event"] is None:
                if lost := _LOST.match(text):
                    count = Lost(self.line, cpu, int(lost[1]))
                    yield self.line, ns, cpu, 0, LOST, count, None, self
                continue
            self.records += 1
            name = match["event"]
            if names is None or name in names:
                fields = self._fields(name, text)
                at = (match["task"], text, None, match["tgid"])
                yield self.line, ns, cpu, int(match["pid"]), name, fields, at, self
        self._check_end()

    def _fields(self, event: str, text: str) -> Any:
        if text.startswith(_UNFORMATTED):
            found = {name: int(value, 0) for name, value in _FIELD.findall(text)}
            binding = BINDINGS.get(event)
            if binding is None or not found.keys() >= set(binding.fields):
                return None
            for name, (low, high) in binding.limits.items():
                if not low <= found[name] <= high:
                    self.fail(f"{event}: expected {name} {low} to {high}; found {found[name]}")
            return binding.make(tuple(found[name] for name in binding.fields))
        if match := _PROBE.match(text):
            arguments = probe_arguments(text[match.end() :])
            of = ProbeReturn if match[1] else Probe
            return of(event.removesuffix("__return"), arguments)
        try:
            return fields_of_text(event, text, self.fail)
        except TraceError:
            if event not in _BY_PLUGIN:
                raise
        if event not in self._noticed:
            self._noticed.add(event)
            self.notice(f"{event} is in the words of libtraceevent's plugin, which are not read")
        return None
