"""From what a trace tells to entries of the cost table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import fields

from tdpmmu.simulation.calibrate import Measure
from tdpmmu.worlds.simulate.costs import Costs

EMULATED = 3.0
"""How many times slower than the shipped costs a real CPU with tracing on can well be."""


def expected(costs: Costs) -> dict[str, int]:
    """What the shipped costs make of the same things."""
    child = costs.spte_atomic - costs.saved_ahead + costs.zap_leaf
    fast = costs.fault + 4 * costs.spte_read + costs.spte_atomic
    return {
        "page fault": fast + costs.get_user_page + costs.read_lock,
        "page table made in a fault": costs.table_alloc + costs.spte_atomic,
        "fast page fault": fast,
        "split of a huge page": costs.table_alloc + 512 * costs.split_entry,
        "SPTE of a table that goes": child,
    }


def slowness(found: Sequence[Measure], costs: Costs) -> float | None:
    """How many times slower the trace's kernel is than the shipped costs, on the median."""
    usual = expected(costs)
    ratios = [one.ns / usual[one.name] for one in found if one.ns and one.name in usual]
    return statistics.median(ratios) if ratios else None


def fitted(found: Sequence[Measure], costs: Costs) -> dict[str, int]:
    """Entries of the cost table that a trace tells; what it cannot tell apart stays as it is."""
    told = {one.name: one.ns for one in found if one.ns is not None}
    usual = expected(costs)
    values: dict[str, int] = {}
    if "page fault" in told:
        rest = usual["page fault"] - costs.fault
        values["fault"] = round(told["page fault"]) - rest
    if "page table made in a fault" in told:
        values["table_alloc"] = round(told["page table made in a fault"]) - costs.spte_atomic
    if "split of a huge page" in told:
        alloc = values.get("table_alloc", costs.table_alloc)
        values["split_entry"] = round((told["split of a huge page"] - alloc) / 512)
    if "SPTE of a table that goes" in told:
        values["zap_leaf"] = round(told["SPTE of a table that goes"]) - (
            costs.spte_atomic - costs.saved_ahead
        )
    if "RCU grace period" in told:
        values["grace_period"] = round(told["RCU grace period"])
    known = [field.name for field in fields(Costs)]
    return {name: max(0, values[name]) for name in known if name in values}


def warning(slower: float | None) -> str:
    """What to think of such timestamps."""
    if slower is None:
        return "Nothing here can be compared with the shipped costs."
    much = f"{slower:.0f} times" if slower >= 10 else f"{slower:.1f} times"
    if slower <= EMULATED:
        return f"On the median {much} the shipped costs, tracing included."
    return (
        f"On the median {much} the shipped costs: so slow is a kernel on an emulated CPU (QEMU's "
        "TCG, as for the traces of the lab), or one that traces far more than this. Such costs are "
        "no forecast for real hardware."
    )


def to_toml(name: str, costs: dict[str, int], slower: float | None) -> str:
    """A file for ``--costs``."""
    lines = [f"# fitted to the timestamps of {name}", f"# {warning(slower)}", ""]
    return "\n".join(lines + [f"{key} = {value}" for key, value in costs.items()]) + "\n"
