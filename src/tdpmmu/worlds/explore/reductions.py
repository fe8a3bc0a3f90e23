"""Which orders the search leaves out, by name, so that each can be switched off.

``movers``: operations that nobody else can see come with the one before or after them (turns).
``urgent``: a thread whose next operations nobody else can see takes them first; ``begin``: also one
that has not begun, which makes for fewer states, and for longer runs.  ``waits``: of a thread that
waits for a kicked vCPU, only that vCPU is looked at.  Why each is sound, and what each saves, is in
docs/reductions.md.
"""

from __future__ import annotations

MOVERS, URGENT, BEGIN, WAITS = "movers", "urgent", "begin", "waits"

Reductions = frozenset[str]

ALL: Reductions = frozenset({MOVERS, URGENT, BEGIN, WAITS})
USUAL: Reductions = ALL - {BEGIN}
NONE: Reductions = frozenset()

Reduce = bool | Reductions
"""The usual ones, none, or those."""


def reductions(reduce: Reduce) -> Reductions:
    """The reductions that are meant."""
    if isinstance(reduce, frozenset):
        return reduce
    return USUAL if reduce else NONE


def named(text: str) -> Reductions:
    """``all``, ``none``, or names with commas between; ValueError with what there is."""
    if text in ("all", "none"):
        return ALL if text == "all" else NONE
    found = frozenset(name.strip() for name in text.split(","))
    if not found <= ALL:
        unknown = ", ".join(sorted(found - ALL))
        known = ", ".join(sorted(ALL))
        raise ValueError(f"expected all, none, or some of {known}; not {unknown!r}")
    return found
