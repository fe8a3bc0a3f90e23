"""What random scripts are known to run into, so that a campaign can tell it from what is new.

Each is written up in docs/findings.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tdpmmu.scenarios.script import Program, Script, programs


@dataclass(frozen=True, slots=True)
class Finding:
    """``heading`` in docs/findings.md, the property it breaks, and which scripts can show it."""

    heading: str
    prop: str
    can_show: Callable[[tuple[Program, ...]], bool]


def _sync_meets_write(threads: tuple[Program, ...]) -> bool:
    writes = {p.name for p in threads if p.vcpu >= 0 and any(map(_writes, p.steps))}
    # A vCPU syncs what is below its root when it loads CR3, or a root in place of an obsolete one.
    reloads = any(step.startswith(("zap-all-fast", "slot-")) for p in threads for step in p.steps)
    return any(p.paging and (reloads or "cr3" in p.steps) and writes - {p.name} for p in threads)


def _writes(step: str) -> bool:
    return step.startswith(("w", "set:"))


def _written_from_outside(threads: tuple[Program, ...]) -> bool:
    return any(step.startswith("host-set:") for p in threads for step in p.steps)


FINDINGS = (
    Finding(
        "A sync of shadow pages and a write of L1 can chase each other",
        "no-progress",
        _sync_meets_write,
    ),
    Finding(
        "A guest table that is written from outside",
        "guest-translation",
        _written_from_outside,
    ),
)


def finding(script: Script, prop: str) -> Finding | None:
    """The finding that explains why ``prop`` is broken in ``script``; None: it is new."""
    threads = programs(script.threads)
    return next((one for one in FINDINGS if one.prop == prop and one.can_show(threads)), None)
