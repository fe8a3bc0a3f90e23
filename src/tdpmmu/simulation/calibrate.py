"""What the timestamps of a real trace tell about costs, and what they cannot.

Only what one task did between two of its own events is measured, so that no other task's work, no
wait and no guest is in it.  Tracing itself always is.
"""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from tdpmmu.trace.fields import (
    FastPageFault,
    PageFault,
    PageInfo,
    Probe,
    SetSpte,
    SplitHugePage,
    SpteChange,
)
from tdpmmu.trace.records import IN_INTERRUPT, Lost, Record, Trace

_FLUSHES = frozenset({"kvm_flush_remote_tlbs", "kvm_flush_remote_tlbs_range"})
_FREE = "tdp_mmu_free_sp_rcu_callback"
_SHORTEST_RUN = 16
"""SPTE changes in a row from which a run is long enough for timestamps of a microsecond."""


@dataclass(frozen=True)
class Measure:
    """One cost: ``ns`` is None if the trace does not tell, and ``what`` then says why."""

    name: str
    what: str
    how: str = ""
    ns: float | None = None
    spread_ns: float = 0.0
    count: int = 0


@dataclass
class _Task:
    """What one task is in the middle of; times in ns."""

    fault_at: int | None = None
    tables: int = 0
    split_at: int | None = None
    flush_at: int | None = None
    run_at: int | None = None
    run: int = 0
    last: int = 0


@dataclass
class _Samples:
    faults: list[tuple[int, int]] = field(default_factory=list)
    fast: list[int] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    flushes: list[int] = field(default_factory=list)
    runs: list[tuple[int, int]] = field(default_factory=list)
    grace: list[int] = field(default_factory=list)


def calibrate(trace: Trace) -> list[Measure]:
    """Read a whole trace; TraceError if it is broken."""
    return list(_measures(_samples(trace)))


def _samples(trace: Trace) -> _Samples:
    samples = _Samples()
    tasks: dict[int, _Task] = defaultdict(_Task)
    zapped: deque[int] = deque()
    for record in trace:
        if isinstance(record, Lost):
            tasks.clear()
            zapped.clear()
            continue
        if isinstance(record.fields, PageInfo) and record.event == "kvm_mmu_prepare_zap_page":
            zapped.append(record.time_ns)
        if _is(record, _FREE):
            if zapped:
                samples.grace.append(record.time_ns - zapped.popleft())
            continue
        if record.depth != IN_INTERRUPT:
            _feed(tasks[record.pid], record, samples)
    return samples


def _is(record: Record, function: str) -> bool:
    return record.function == function


def _flushes(record: Record) -> bool:
    fields = record.fields
    probed = fields.function if isinstance(fields, Probe) else record.function
    return probed in _FLUSHES


def _feed(task: _Task, record: Record, samples: _Samples) -> None:
    fields, now = record.fields, record.time_ns
    if _flushes(record):
        task.flush_at = now
    elif task.flush_at is not None:
        samples.flushes.append(now - task.flush_at)
        task.flush_at = None
    if isinstance(fields, SpteChange) and fields.level == 1 and fields.new & 7 == 0:
        if task.run_at is None:
            task.run_at, task.run = now, 0
        else:
            task.run += 1
    else:
        if task.run_at is not None and task.run >= _SHORTEST_RUN:
            samples.runs.append((task.run, task.last - task.run_at))
        task.run_at = None
    if isinstance(fields, PageFault):
        task.fault_at, task.tables = now, 0
    elif isinstance(fields, PageInfo) and record.event == "kvm_mmu_get_page":
        task.tables += 1
    elif isinstance(fields, SplitHugePage):
        if task.split_at is not None and fields.errno == 0:
            samples.splits.append(now - task.split_at)
        # A fault that splits is not the cost of a table.
        task.split_at = task.fault_at = None
    elif _is(record, "tdp_mmu_split_huge_page"):
        task.split_at = now
    elif isinstance(fields, FastPageFault):
        if task.fault_at is not None and fields.fixed:
            samples.fast.append(now - task.fault_at)
        task.fault_at = None
    elif isinstance(fields, SetSpte) and task.fault_at is not None:
        samples.faults.append((task.tables, now - task.fault_at))
        task.fault_at = None
    task.last = now


def _measures(samples: _Samples) -> Iterator[Measure]:
    yield from _faults(samples.faults)
    yield _median("fast page fault", "from the exit to the SPTE made writable", samples.fast)
    yield _median("split of a huge page", "a table filled and linked, in a fault", samples.splits)
    yield _runs(samples.runs)
    yield _median("TLB flush", "from its start to the task's next event", samples.flushes)
    yield _median("RCU grace period", "from the zap of a table to its free", samples.grace)
    for name, why in (
        ("VM exit and entry", "no event marks the guest's side (kvm:kvm_exit is not read)"),
        ("lock hand-over", "mmu_lock is not traced"),
        ("IPI for each vCPU", "a flush is seen as a whole, for one number of vCPUs"),
        ("TLB refill", "hardware walks are in no trace"),
        ("atomic, cache line", "shorter than what the clock tells apart"),
        ("page fault of the host", "the host's mm is not traced"),
        ("context switch", "the scheduler is not traced"),
    ):
        yield Measure(name, f"not told: {why}")


def _faults(faults: list[tuple[int, int]]) -> Iterator[Measure]:
    """Least squares of a fault's time over the tables that it had to make."""
    name, table = "page fault", "page table made in a fault"
    if len({tables for tables, _ in faults}) < 2:
        yield _median(name, "from the exit to the SPTE set", [time for _, time in faults])
        yield Measure(table, "not told: no faults with different numbers of tables")
        return
    # Outliers (the first of a kind, a preempted task) would rule the squares.
    limit = 5 * statistics.median(time for _, time in faults)
    kept = [(tables, time) for tables, time in faults if time <= limit]
    if len({tables for tables, _ in kept}) < 2:
        kept = faults
    fit = statistics.linear_regression(*zip(*kept, strict=True))
    off = statistics.median(abs(t - fit.slope * n - fit.intercept) for n, t in kept)
    how = "least squares"
    yield Measure(name, "from the exit to the SPTE set", how, fit.intercept, off, len(kept))
    yield Measure(table, "each one more", how, fit.slope, off, sum(n for n, _ in kept))


def _runs(runs: list[tuple[int, int]]) -> Measure:
    """The slope of runs of changes over their length, through the origin: each of them."""
    name, what = "SPTE of a table that goes", "each of a run of level 1 changes"
    if not runs:
        return Measure(name, f"not told: no run of {_SHORTEST_RUN} or more level 1 zaps")
    each = [time / changes for changes, time in runs]
    middle = statistics.median(each)
    spread = statistics.median(abs(one - middle) for one in each)
    return Measure(name, what, "median of runs", middle, spread, sum(count for count, _ in runs))


def _median(name: str, what: str, times: list[int]) -> Measure:
    if not times:
        return Measure(name, "not told: no such events in the trace")
    middle = statistics.median(times)
    spread = statistics.median(abs(one - middle) for one in times)
    return Measure(name, what, "median", middle, spread, len(times))
