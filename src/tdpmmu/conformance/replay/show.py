"""Events of kernel and model for people."""

from __future__ import annotations

from typing import Any

from tdpmmu.conformance.replay.calls import Armed, MmioMarked, PageGot, PageZap, Seen
from tdpmmu.conformance.replay.names import Names
from tdpmmu.conformance.replay.traced import (
    Arms,
    Changed,
    Fixed,
    Gets,
    Requested,
    Sets,
    What,
    Zaps,
)
from tdpmmu.trace.fields import FastPageFault, SetSpte, SpteChange


def show(seen: Seen, names: Names) -> str:
    """What the kernel did; tables by the names of the model's pages."""
    if isinstance(seen, SpteChange):
        old, new = names.show(seen.old, seen.level), names.show(seen.new, seen.level)
        return f"gfn {seen.gfn:#x} level {seen.level}: {old} -> {new}"
    if isinstance(seen, FastPageFault):
        return f"fast page fault of gfn {seen.address >> 12:#x}: {seen.old:#x} -> {seen.new:#x}"
    if isinstance(seen, Armed):
        return f"arms {_gfns(seen.gfns)}"
    if isinstance(seen, MmioMarked):
        return f"marks gfn {seen.gfn:#x} as MMIO of generation {seen.generation:#x}"
    if isinstance(seen, SetSpte):
        return f"sets gfn {seen.gfn:#x} level {seen.level}: {seen.spte:#x}"
    if isinstance(seen, PageGot):
        return f"{_NEW[seen.new]} a page for gfn {seen.gfn:#x} level {seen.level}"
    if isinstance(seen, PageZap):
        return f"zaps the page of gfn {seen.gfn:#x} level {seen.level}"
    return f"asks for gfn {seen.gfn:#x} at level {seen.level}"


def show_model(what: What) -> str:
    """What the model did."""
    if isinstance(what, Changed):
        return f"gfn {what.gfn:#x} level {what.level}: {what.old:#x} -> {what.new:#x}"
    if isinstance(what, Fixed):
        return f"fast page fault of gfn {what.gfn:#x}: {what.old:#x} -> {what.new:#x}"
    if isinstance(what, Arms):
        return f"arms {_gfns(what.gfns)}"
    if isinstance(what, Requested):
        return f"asks for gfn {what.gfn:#x} at level {what.level}"
    if isinstance(what, Sets):
        return f"sets gfn {what.gfn:#x} level {what.level}: {what.spte:#x}"
    if isinstance(what, Gets):
        return f"{_NEW[what.new]} a page for gfn {what.gfn:#x} level {what.level}"
    if isinstance(what, Zaps):
        return f"zaps the page of gfn {what.gfn:#x} level {what.level}"
    return f"marks gfn {what.gfn:#x} as MMIO of generation {what.generation:#x}"


_NEW = {True: "makes", False: "finds"}


def value(found: Any) -> str:
    """The result of an operation."""
    return f"{found:#x}" if isinstance(found, int) and not isinstance(found, bool) else repr(found)


def _gfns(gfns: tuple[int, ...]) -> str:
    return "gfns " + " ".join(f"{gfn:#x}" for gfn in gfns)
