"""The fields of the KVM tracepoints that the trace reader understands (mmutrace.h, trace.h)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from tdpmmu.trace.records import Record, Trace, shorten


class SpteChange(NamedTuple):
    """``kvm_tdp_mmu_spte_changed``: ``gfn`` is the first one that the entry maps."""

    as_id: int
    gfn: int
    level: int
    old: int
    new: int


class PageInfo(NamedTuple):
    """``kvm_mmu_get_page`` and ``kvm_mmu_prepare_zap_page``: a page table page."""

    gfn: int
    level: int
    direct: bool
    access: str


class PageFault(NamedTuple):
    """``kvm_page_fault``.

    ``error_code`` is the page fault error code for NPT, the exit qualification for EPT.
    """

    address: int
    error_code: int


class SpteRequested(NamedTuple):
    """``kvm_mmu_spte_requested``: the level is the one after ``kvm_mmu_hugepage_adjust``."""

    gfn: int
    pfn: int
    level: int


class SetSpte(NamedTuple):
    """``kvm_mmu_set_spte``: ``reading`` is the kernel's own, like ``rw-u``."""

    gfn: int
    spte: int
    reading: str
    level: int
    sptep: int


class FastPageFault(NamedTuple):
    """``fast_page_fault``: an SPTE changed, if ``fixed``, without ``mmu_lock``."""

    address: int
    old: int
    new: int
    fixed: bool


class SplitHugePage(NamedTuple):
    """``kvm_mmu_split_huge_page``: ``errno`` 0 means that the split took place."""

    gfn: int
    spte: int
    level: int
    errno: int


class Marker(NamedTuple):
    """Text written to ``trace_marker``."""

    text: str


class FunctionCall(NamedTuple):
    """A line of the function tracer."""

    function: str
    caller: str


class Probe(NamedTuple):
    """A probe on a function's entry: what is a number in ``arguments`` is one."""

    function: str
    arguments: dict[str, int | str]


class ProbeReturn(NamedTuple):
    """A probe on the return from ``function``."""

    function: str
    arguments: dict[str, int | str]


Fields = (
    SpteChange
    | PageInfo
    | PageFault
    | SpteRequested
    | SetSpte
    | FastPageFault
    | SplitHugePage
    | Marker
    | FunctionCall
    | Probe
    | ProbeReturn
)

_HEX = "([0-9a-f]{1,16})"
_PAGE = rf"sp gen \d+ gfn {_HEX} l(\d) \d+-byte q\d+( direct)? (\S+).*"


def _spte_changed(m: re.Match[str]) -> Fields:
    return SpteChange(int(m[1]), int(m[2], 16), int(m[3]), int(m[4], 16), int(m[5], 16))


def _page(m: re.Match[str]) -> Fields:
    return PageInfo(int(m[1], 16), int(m[2]), bool(m[3]), m[4])


def _page_fault(m: re.Match[str]) -> Fields:
    return PageFault(int(m[1], 16), int(m[2], 16))


def _requested(m: re.Match[str]) -> Fields:
    return SpteRequested(int(m[1], 16), int(m[2], 16), int(m[3]))


def _set_spte(m: re.Match[str]) -> Fields:
    return SetSpte(int(m[1], 16), int(m[2], 16), m[3], int(m[4]), int(m[5], 16))


def _fast_page_fault(m: re.Match[str]) -> Fields:
    return FastPageFault(int(m[1], 16), int(m[2], 16), int(m[3], 16), m[4] == "1")


def _split(m: re.Match[str]) -> Fields:
    return SplitHugePage(int(m[1], 16), int(m[2], 16), int(m[3]), int(m[4]))


def _marker(m: re.Match[str]) -> Fields:
    return Marker(m[0].strip())


_PARSERS: dict[str, tuple[re.Pattern[str], Callable[[re.Match[str]], Fields], str]] = {
    name: (re.compile(pattern), build, expected)
    for name, pattern, build, expected in (
        (
            "kvm_tdp_mmu_spte_changed",
            rf"as id ([01]) gfn {_HEX} level ([1-5]) old_spte {_HEX} new_spte {_HEX}",
            _spte_changed,
            "as id A gfn G level L old_spte O new_spte N",
        ),
        ("kvm_mmu_get_page", _PAGE, _page, "sp gen N gfn G lL ..."),
        ("kvm_mmu_prepare_zap_page", _PAGE, _page, "sp gen N gfn G lL ..."),
        (
            "kvm_page_fault",
            rf"(?:vcpu \d+ rip \S+ )?address (?:0x)?{_HEX} error_code (?:0x)?{_HEX}",
            _page_fault,
            "vcpu V rip R address A error_code E",
        ),
        (
            "kvm_mmu_spte_requested",
            rf"gfn {_HEX} pfn {_HEX} level (\d)",
            _requested,
            "gfn G pfn P level L",
        ),
        (
            "kvm_mmu_set_spte",
            rf"gfn {_HEX} spte {_HEX} \(([-rwxu]+)\) level (\d) at {_HEX}",
            _set_spte,
            "gfn G spte S (rwxu) level L at A",
        ),
        (
            "fast_page_fault",
            rf"vcpu \d+ [gc]\w+ {_HEX} error_code \S* ?sptep \S+ old (?:0x)?{_HEX} new {_HEX} "
            r"spurious [01] fixed ([01])",
            _fast_page_fault,
            "vcpu V gva A error_code E sptep P old O new N spurious S fixed F",
        ),
        (
            "kvm_mmu_split_huge_page",
            rf"gfn {_HEX} spte {_HEX} level (\d) errno (-?\d{{1,4}})",
            _split,
            "gfn G spte S level L errno E",
        ),
        ("tracing_mark_write", r".*", _marker, "any text"),
    )
}

KNOWN_EVENTS = frozenset(_PARSERS)
"""The events that :func:`parse_fields` understands."""

_PROBE = re.compile(r"\(([\w.]+)\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\w+\])?(?: <- ([\w.]+))?\)(.*)")
_NUMBER = re.compile(r"-?(?:0x[0-9a-f]{1,16}|\d{1,20})")
_ARGUMENT = re.compile(r"(?<!\w)(\w+)=(\S+)")


def fields_of_text(event: str, text: str, fail: Callable[[str], NoReturn]) -> Fields | None:
    """The fields of an event from its text; None for events that mean nothing to the reader.

    ``fail`` raises TraceError; it is called if a known event does not have its fields.
    """
    known = _PARSERS.get(event)
    if known is not None:
        pattern, build, expected = known
        match = pattern.fullmatch(text)
        if match is None:
            fail(f'{event}: expected "{expected}"; found {shorten(text)}')
        return build(match)
    if text.startswith("(") and (probe := _PROBE.match(text)):
        values = probe_arguments(probe[3])
        return ProbeReturn(probe[2], values) if probe[2] else Probe(probe[1], values)
    return None


def probe_arguments(text: str) -> dict[str, int | str]:
    """The arguments that a probe prints behind its function."""
    return {name: probe_value(value) for name, value in _ARGUMENT.findall(text)}


def probe_value(text: str) -> int | str:
    """An argument of a probe: a number, or what is none."""
    if not _NUMBER.fullmatch(text):
        return text
    return int(text, 16 if "x" in text else 10)


def parse_fields(record: Record, reader: Trace) -> Fields | None:
    """The fields of a record; None for functions, and for what means nothing to the reader."""
    fields: Fields | None = record.fields
    return None if isinstance(fields, FunctionCall | Probe | ProbeReturn) else fields


def probed_function(record: Record) -> tuple[str, dict[str, str]] | None:
    """Function name and arguments, as text, of a probe on a function's entry; None for others."""
    if not isinstance(record.fields, Probe):
        return None
    return record.fields.function, dict(_ARGUMENT.findall(record.text.partition(")")[2]))


def probe_number(record: Record, name: str, reader: Trace) -> int:
    """The argument ``name`` of a probe as a number; TraceError if it is none."""
    value = record.fields.arguments[name]
    if isinstance(value, str):
        what = f"{record.event}: expected a number in {name}; found {shorten(value)}"
        reader.fail(what, record.line)
    return int(value)
