"""All properties, and which of them bind a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tdpmmu.arch.hardware import Hardware
from tdpmmu.machine.ghost import DISCIPLINE, HARM
from tdpmmu.machine.op import Step
from tdpmmu.machine.thread import Machine
from tdpmmu.properties.apic_page import StaleApicPage
from tdpmmu.properties.base import Property
from tdpmmu.properties.context import ArrayBounds, Guarded, KernelWarning, LockContext
from tdpmmu.properties.dirty_log import DirtyLogComplete, TrackedWrite
from tdpmmu.properties.flush_owed import FlushBeforeRcuUnlock, FlushOwed, FlushRequestLost
from tdpmmu.properties.freed_table import FreedTable
from tdpmmu.properties.guest_translation import GuestTranslation
from tdpmmu.properties.leftover import Leftover
from tdpmmu.properties.lifetime import Leak, RefcountError, UseAfterFree
from tdpmmu.properties.lost_dirty import LostDirtyBit
from tdpmmu.properties.mixed import MixedHugePage
from tdpmmu.properties.mmio import StaleMmio
from tdpmmu.properties.multihit import Multihit
from tdpmmu.properties.nx_tag import NxUntagged
from tdpmmu.properties.spte_transition import SpteTransition
from tdpmmu.properties.stale_translation import StaleTranslation

WATCHERS: tuple[type[Property], ...] = (
    StaleTranslation,
    StaleApicPage,
    FreedTable,
    Leftover,
    DirtyLogComplete,
    TrackedWrite,
    LostDirtyBit,
    MixedHugePage,
    StaleMmio,
    GuestTranslation,
    Multihit,
    Leak,
    UseAfterFree,
    RefcountError,
    LockContext,
    KernelWarning,
    ArrayBounds,
    SpteTransition,
    FlushRequestLost,
    FlushOwed,
    FlushBeforeRcuUnlock,
    NxUntagged,
    Guarded,
)
"""Properties that watch events."""


@dataclass(frozen=True, slots=True)
class GraphProperty:
    """A property of the graph of states, which the explorer itself checks."""

    name: str
    kind: str
    meaning: str


GRAPH: tuple[GraphProperty, ...] = (
    GraphProperty("deadlock", HARM, "nobody can move"),
    GraphProperty("no-progress", HARM, "a cycle in which everybody steps and nothing gets done"),
    GraphProperty("exception", HARM, "MMU code raises a Python exception"),
)


def meaning(name: str) -> str:
    """What a property is about, in words; nothing of one that is not listed."""
    known: tuple[Any, ...] = (*WATCHERS, *GRAPH)
    return next((str(one.meaning) for one in known if one.name == name), "")


def wanted(kinds: str) -> tuple[str, ...]:
    """The kinds that ``--properties`` asks for: ``harm``, ``discipline`` or ``all``."""
    table = {"harm": (HARM,), "discipline": (DISCIPLINE,), "all": (HARM, DISCIPLINE)}
    if kinds not in table:
        raise ValueError(f"--properties {kinds}: harm, discipline or all")
    return table[kinds]


def attach(
    machine: Machine,
    hardware: Hardware,
    locks: dict[str, Any],
    *,
    kinds: str = "all",
    flush_before_rcu_unlock: bool = False,
) -> None:
    """Let the properties that bind this kernel watch the machine."""
    allowed = wanted(kinds)
    for cls in WATCHERS:
        if cls.kind not in allowed:
            continue
        if cls is FlushBeforeRcuUnlock and not flush_before_rcu_unlock:
            continue
        ghost = cls(hardware, locks)
        if ghost.initial is not None:
            ghost.cell = machine.layout.cell(f"ghost {ghost.name}", ghost.initial)
            machine.initial = (*machine.initial, (ghost.initial,))
        step = Step(machine.initial, 0)
        if ghost.history:
            for event in machine.prologue:
                if type(event) in ghost.hears:
                    ghost.observe(step, event)
        ghost.begin(step)
        machine.initial = step.state
        machine.ghosts.append(ghost)
