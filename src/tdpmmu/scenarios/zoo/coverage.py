"""Which properties of harm the zoo has bugs for, and why some have fewer than two."""

from __future__ import annotations

from tdpmmu.machine.ghost import HARM
from tdpmmu.properties.catalogue import GRAPH, WATCHERS
from tdpmmu.scenarios.zoo import entries

ENOUGH = 2

FEW: dict[str, str] = {
    "mixed-huge-page": (
        "z50 is the only upstream bug known to us that maps gfns of different attributes by one "
        "huge page."
    ),
    "stale-mmio": (
        "Of the three fixes of 5.1 one is z51, one (ddfd1730fd82) is about a cache in the vCPU "
        "that is not modelled, and one (152482580a1b) cannot be told from what it fixed: some of "
        "the window is left (docs/findings.md)."
    ),
    "multihit": (
        "With the workaround on no modelled kernel makes an executable huge page, and no upstream "
        "bug known to us did; tests break it by a mutation."
    ),
    "refcount": (
        "Where a count or the lack of one was wrong, most bugs show by what follows first: z23 and "
        "z25 leak, z65 uses a freed root."
    ),
    "spte-transition": (
        "Of most such changes KVM's own WARN comes first (z10). What the model found itself has no "
        "fix upstream (docs/findings.md, ageing without the lock)."
    ),
    "flush-request-lost": (
        "Of the sibling of z38 in nVMX only the subject is known to us, and the flushes of z39 are "
        "the guest's own."
    ),
    "deadlock": ("The other upstream bugs that hang a VM spin, which is no-progress: z16, z49."),
    "exception": "MMU code of the model failed: a fault of the model, not a bug of a kernel.",
}
"""A reason for each property of harm that fewer than ``ENOUGH`` entries are expected to break."""


def harm_properties() -> tuple[tuple[str, str], ...]:
    """Name and meaning of each, in the order of the catalogue."""
    watched = [(one.name, one.meaning, one.kind) for one in WATCHERS]
    watched += [(one.name, one.meaning, one.kind) for one in GRAPH]
    return tuple((name, meaning) for name, meaning, kind in watched if kind == HARM)


def covered_by(prop: str) -> tuple[str, ...]:
    """The entries that are expected to break a property."""
    return tuple(entry.id for entry in entries() if entry.prop == prop)


def table() -> str:
    """The table of docs/zoo.md."""
    lines = ["| harm | entries |", "| --- | --- |"]
    for name, _ in harm_properties():
        cells = [", ".join(covered_by(name)), FEW.get(name, "")]
        lines.append(f"| `{name}` | {'. '.join(cell for cell in cells if cell)} |")
    return "\n".join(lines) + "\n"
