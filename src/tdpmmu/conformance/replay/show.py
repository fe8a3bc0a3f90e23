"""Events of kernel and model for people."""

from __future__ import annotations

from typing import Any

from tdpmmu.conformance.replay.calls import Armed, MmioMarked, PageGot, PageZap, Seen
from tdpmmu.conformance.replay.names import Names
from tdpmmu.conformance.replay.traced import Changed, Fixed, Requested, Sets, What
from tdpmmu.trace.fields import FastPageFault, SetSpte, SpteChange, SpteRequested

_Alike = Armed | MmioMarked | PageGot | PageZap | SetSpte | Sets | SpteRequested | Requested


def show(seen: Seen, names: Names) -> str:
    """What the kernel did; tables by the names of the model's pages."""
    if isinstance(seen, SpteChange):
        old, new = names.show(seen.old, seen.level), names.show(seen.new, seen.level)
        return f"gfn {seen.gfn:#x} level {seen.level}: {old} -> {new}"
    if isinstance(seen, FastPageFault):
        return f"fast page fault of gfn {seen.address >> 12:#x}: {seen.old:#x} -> {seen.new:#x}"
    return _show(seen)


def show_model(what: What) -> str:
    """What the model did."""
    if isinstance(what, Changed):
        return f"gfn {what.gfn:#x} level {what.level}: {what.old:#x} -> {what.new:#x}"
    if isinstance(what, Fixed):
        return f"fast page fault of gfn {what.gfn:#x}: {what.old:#x} -> {what.new:#x}"
    return _show(what)


def _show(one: _Alike) -> str:
    """What both say in the same words."""
    if isinstance(one, Armed):
        return "arms gfns " + " ".join(f"{gfn:#x}" for gfn in one.gfns)
    if isinstance(one, MmioMarked):
        return f"marks gfn {one.gfn:#x} as MMIO of generation {one.generation:#x}"
    if isinstance(one, SetSpte | Sets):
        return f"sets gfn {one.gfn:#x} level {one.level}: {one.spte:#x}"
    if isinstance(one, PageGot):
        return f"{_NEW[one.new]} a page for gfn {one.gfn:#x} level {one.level}"
    if isinstance(one, PageZap):
        return f"zaps the page of gfn {one.gfn:#x} level {one.level}"
    return f"asks for gfn {one.gfn:#x} at level {one.level}"


_NEW = {True: "makes", False: "finds"}


def value(found: Any) -> str:
    """The result of an operation."""
    return f"{found:#x}" if isinstance(found, int) and not isinstance(found, bool) else repr(found)
