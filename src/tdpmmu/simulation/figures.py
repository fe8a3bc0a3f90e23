"""The figures of a result that people ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tdpmmu.simulation.result import Result
from tdpmmu.worlds.simulate.histogram import Histogram


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All counted as one."""
    whole = Histogram.empty()
    for one in histograms:
        for edge, count in one.counts.items():
            whole.counts[edge] = whole.counts.get(edge, 0) + count
        whole.largest = max(whole.largest, one.largest)
        whole.total += one.total
    return whole


def faults(result: Result) -> Histogram:
    """Latencies of all faults, whatever their tag."""
    return merged(result.fault_latency.values())


@dataclass(frozen=True)
class Figures:
    """One row of the table; times in ns.

    ``stalled`` is the part of the vCPUs' time in which they did not run their guest, and ``waited``
    the part of it that went to waiting for locks.  ``hold`` is the longest of ``mmu_lock`` for
    write.  ``huge`` is the part of mapped memory that huge pages map, on the average of the run.
    """

    faults: int
    p50: int
    p99: int
    p999: int
    longest: int
    stalled: float
    waited: float
    hold: int
    flushes: int
    recovered: int
    huge: float
    tables: int


def figures(result: Result) -> Figures:
    """The row of a result."""
    latency = faults(result)
    vcpu_ns = result.virtual_ns * result.guest.vcpus
    write = [h.largest for (lock, mode, _), h in result.lock_holds.items() if is_write(lock, mode)]
    huge, small = result.coverage[:, 1].sum(), result.coverage[:, 2].sum()
    return Figures(
        faults=latency.count,
        p50=latency.percentile(50),
        p99=latency.percentile(99),
        p999=latency.percentile(99.9),
        longest=latency.largest,
        stalled=sum(result.stall_ns.values()) / vcpu_ns,
        waited=result.stall_ns.get("lock wait", 0) / vcpu_ns,
        hold=max(write, default=0),
        flushes=result.flushes,
        recovered=result.counts.get("NxPageRecovered", 0),
        huge=float(huge / max(1, huge + small)),
        tables=int(result.table_bytes[:, 1].max(initial=0)),
    )


def is_write(lock: str, mode: str) -> bool:
    """Whether a hold is one of ``mmu_lock`` that shuts page faults out."""
    return lock == "mmu_lock" and mode == "write"
