"""What each event of a file is, and what its bytes say: as typed fields, and as text."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

from tdpmmu.trace.dat.bindings import BINDINGS, page_text
from tdpmmu.trace.dat.container import Container
from tdpmmu.trace.dat.formats import Field, Format, Formats
from tdpmmu.trace.dat.layouts import SKIPPED, Fail, Kind
from tdpmmu.trace.dat.symbols import Symbols
from tdpmmu.trace.dat.values import EventValues, text_of
from tdpmmu.trace.fields import KNOWN_EVENTS, FunctionCall, Probe, ProbeReturn, fields_of_text
from tdpmmu.trace.records import IN_INTERRUPT, UNKNOWN_DEPTH, Record, Trace

_PRINT = "print"
"""ftrace's event for what is written to ``trace_marker``; text has the writing function's name."""

_INTERRUPT = 0x58
"""``TRACE_FLAG_HARDIRQ``, ``_SOFTIRQ`` and ``_NMI``."""

_PAGE_EVENTS = frozenset(
    {
        "kvm_mmu_get_page",
        "kvm_mmu_prepare_zap_page",
        "kvm_mmu_sync_page",
        "kvm_mmu_unsync_page",
    }
)


class Page(NamedTuple):
    """A page of the ring buffer: the :class:`tdpmmu.trace.records.Source` of its records."""

    data: bytes
    kinds: Kinds

    def task_of(self, record: Record) -> str:
        """The name of the record's task."""
        return self.kinds.task(record.pid)

    def text_of(self, record: Record) -> str:
        """The record's fields as tracefs prints them."""
        return self.kinds.text(self, record.at)

    def depth_of(self, record: Record) -> int:
        """How deeply preemption was disabled."""
        return self.kinds.depth(self, record.at)

    def tgid_of(self, record: Record) -> int | None:
        """Records do not have it."""
        return None


class Kinds:
    """The events of one file.  ``symbols`` are its kernel's."""

    def __init__(self, trace: Trace, found: Container, formats: Formats) -> None:
        self._trace = trace
        self._formats = formats
        self._order = found.cursor.order
        self._known: dict[int, Format | None] = {}
        self._printers: dict[int, Callable[[EventValues], str]] = {}
        self._tasks = _task_names(found.cmdlines)
        self.symbols = Symbols(found.kallsyms)
        common = formats.any_fields()
        self._type = common.get("common_type")
        context = [common.get(name) for name in ("common_flags", "common_preempt_count")]
        bytes_at = tuple(one.offset for one in context if one is not None and one.size == 1)
        self._context = bytes_at if len(bytes_at) == 2 else None

    def chooser(self, names: Collection[str] | None) -> Callable[[int], Kind]:
        """How to read an event of some number, if only those of these names are wanted."""

        def choose(number: int) -> Kind:
            fmt = self._formats.get(number)
            if fmt is None:
                self._trace.notice(f"event {number} is unknown: the file has no format of it")
            elif fmt.system == "ftrace" and fmt.name == _PRINT and {"ip", "buf"} <= set(fmt.fields):
                return Kind(_PRINT, resolve=partial(self._print, names))
            name = f"unknown_{number}" if fmt is None else fmt.name
            if fmt is None or (names is not None and name not in names):
                return Kind(name if names is None or name in names else SKIPPED)
            return self._kind(fmt)

        return choose

    def _kind(self, fmt: Format) -> Kind:
        name, fields = fmt.name, fmt.fields
        if fmt.system == "ftrace" and name == "function" and {"ip", "parent_ip"} <= set(fields):
            return Kind(name, (fields["ip"], fields["parent_ip"]), self._function_call)
        binding = BINDINGS.get(name)
        if binding is not None and all(_plain(fields.get(one)) for one in binding.fields):
            wanted = tuple(fields[one] for one in binding.fields)
            return Kind(name, wanted, binding.make, limits=binding.limits)
        if name in KNOWN_EVENTS:
            return Kind(name, resolve=partial(self._by_text, name))
        for pointer, of in (("__probe_ip", Probe), ("__probe_func", ProbeReturn)):
            if pointer in fields:
                return self._probe(fmt, fields[pointer], of)
        return Kind(name)

    def _print(
        self, names: Collection[str] | None, page: Page, at: int, fail: Fail
    ) -> tuple[str, Any]:
        values = self._values(page, at)
        event = self.symbols.name(values.number("ip")) if values is not None else ""
        if names is not None and event not in names:
            return SKIPPED, None
        return event, fields_of_text(event, self.text(page, at), fail)

    def _by_text(self, event: str, page: Page, at: int, fail: Fail) -> tuple[str, Any]:
        return event, fields_of_text(event, self.text(page, at), fail)

    def _probe(self, fmt: Format, pointer: Field, of: type[Probe] | type[ProbeReturn]) -> Kind:
        own = [
            one for one in fmt.fields.values() if not one.name.startswith(("common_", "__probe_"))
        ]
        if not all(map(_plain, own)):
            return Kind(fmt.name, resolve=partial(self._by_text, fmt.name))
        names = [one.name for one in own]
        symbol = self.symbols.name

        def make(values: tuple[int, ...]) -> Probe | ProbeReturn:
            return of(symbol(values[0]), dict(zip(names, values[1:], strict=True)))

        return Kind(fmt.name, (pointer, *own), make)

    def task(self, pid: int) -> str:
        """The name of a task."""
        return self._tasks.get(pid) or ("<idle>" if pid == 0 else "<...>")

    def text(self, page: Page, at: int) -> str:
        """An event's fields as tracefs prints them; "" for an event without a format."""
        values = self._values(page, at)
        if values is None:
            return ""
        number = values.format.number
        if number not in self._printers:
            self._printers[number] = self._printer(values.format)
        return self._printers[number](values)

    def depth(self, page: Page, at: int) -> int:
        """``common_preempt_count``, unless ``common_flags`` tell of an interrupt."""
        if self._context is None:
            return UNKNOWN_DEPTH
        flags, count = self._context
        start = abs(at)
        if page.data[start + flags] & _INTERRUPT:
            return IN_INTERRUPT
        return page.data[start + count] & 15

    def _values(self, page: Page, at: int) -> EventValues | None:
        data = page.data
        if at < 0:  # the length is in a word of its own
            start = -at
            end = start + int.from_bytes(data[start - 4 : start], self._order) - 4
        else:
            word = int.from_bytes(data[at - 4 : at], self._order)
            start, end = at, at + 4 * (word & 31 if self._order == "little" else word >> 27)
        field = self._type
        if field is None:
            return None
        payload = data[start:end]
        number = int.from_bytes(payload[field.offset : field.offset + field.size], self._order)
        if number not in self._known:
            self._known[number] = self._formats.get(number)
        fmt = self._known[number]
        return EventValues(fmt, payload, self._order) if fmt else None

    def _printer(self, fmt: Format) -> Callable[[EventValues], str]:
        from tdpmmu.trace.dat.printfmt import printer  # seldom needed

        fields = fmt.fields
        plain = printer(fmt, self.symbols)
        name, place = self.symbols.name, self.symbols.place
        if fmt.system == "ftrace" and fmt.name == "function" and {"ip", "parent_ip"} <= set(fields):
            return lambda values: (
                f"{name(values.number('ip'))} <-{name(values.number('parent_ip'))}"
            )
        if fmt.system == "ftrace" and fmt.name == _PRINT and "buf" in fields:
            return lambda values: text_of(values.raw("buf")).rstrip("\n")
        if fmt.name in _PAGE_EVENTS and {"gfn", "role"} <= set(fields):
            return page_text
        if "__probe_ip" in fields:
            return lambda values: _probe(place(values.number("__probe_ip")), plain(values))
        if {"__probe_func", "__probe_ret_ip"} <= set(fields):
            return lambda values: _probe(
                place(values.number("__probe_ret_ip")),
                plain(values),
                " <- " + name(values.number("__probe_func")),
            )
        return plain

    def _function_call(self, values: tuple[int, int]) -> FunctionCall:
        name = self.symbols.name
        return FunctionCall(name(values[0]), name(values[1]))


def _plain(field: Field | None) -> bool:
    """Is there such a field, and is it a number?"""
    return field is not None and not field.array and field.size in (1, 2, 4, 8)


def _probe(where: str, printed: str, function: str = "") -> str:
    """What a probe prints, with its addresses replaced by names."""
    return f"({where}{function}){printed.partition(')')[2]}"


def _task_names(cmdlines: bytes) -> dict[int, str]:
    """``saved_cmdlines``: pid and name on each line."""
    names = {}
    for line in cmdlines.decode("utf-8", "replace").splitlines():
        pid, _, name = line.partition(" ")
        if pid.isdecimal() and name:
            names[int(pid)] = name
    return names
