"""Results for further work: JSON, and one long Parquet table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import IO, Any

from tdpmmu.simulation.figures import figures
from tdpmmu.simulation.migration import PAGE
from tdpmmu.simulation.result import Result


def to_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Plain data; times in ns, memory in bytes.  ``wall_s`` is left out: it is never the same."""
    return [_plain(result) for result in results]


def _plain(result: Result) -> dict[str, Any]:
    return {
        "kernel": result.kernel,
        "guest": asdict(result.guest),
        "knobs": asdict(result.knobs),
        "seed": result.seed,
        "virtual_ns": result.virtual_ns,
        "figures": asdict(figures(result)),
        "fault_latency": {
            str(tag): {"edges": edges.tolist(), "counts": counts.tolist(), "max": one.largest}
            for tag, one in result.fault_latency.items()
            for edges, counts in [one.arrays()]
        },
        "worst": [asdict(one) for one in result.worst],
        "stall_ns": result.stall_ns,
        "wait_ns": {f"{kind}: {cause}": ns for (kind, cause), ns in result.wait_ns.items()},
        "lock_holds": [
            {
                "lock": lock,
                "mode": mode,
                "kind": kind,
                "edges": edges.tolist(),
                "counts": counts.tolist(),
                "max": one.largest,
            }
            for (lock, mode, kind), one in result.lock_holds.items()
            for edges, counts in [one.arrays()]
        ],
        "lock_timeline": [asdict(one) for one in result.lock_timeline],
        "counts": result.counts,
        "flushes": result.flushes,
        "coverage": result.coverage.tolist(),
        "table_bytes": result.table_bytes.tolist(),
        "migrated": None if result.migrated is None else asdict(result.migrated),
    }


Row = tuple[str, int, int, int, str, bool, bool, int, str, str, int, int]
COLUMNS = (
    "kernel",
    "ratio",
    "period_ms",
    "seed",
    "dirty_log",
    "pml",
    "eager_split",
    "bandwidth",
    "series",
    "key",
    "at_ns",
    "value",
)


def rows(result: Result) -> Iterator[Row]:
    """The result as rows of ``(series, key, at_ns, value)`` behind what was run.

    ``fault_latency`` and ``lock_hold``: ``at_ns`` is the lower edge of a bucket, ``value`` a count.
    ``coverage`` and ``table_bytes``: a moment, and bytes.  ``stall``, ``wait``, ``count``: totals.
    ``pass``: when it began, and what it sent, in bytes, or took, in ns.
    ``migration``: how it ended.  ``bandwidth`` is 0 where nothing was migrated.
    """
    knobs, moved = result.knobs, result.migrated
    run = (
        *(result.kernel, knobs.ratio, knobs.period_ms, result.seed),
        *(knobs.dirty_log, knobs.pml, knobs.eager_split),
        moved.bandwidth if moved is not None else 0,
    )
    for tag, histogram in result.fault_latency.items():
        for edge, count in sorted(histogram.counts.items()):
            yield (*run, "fault_latency", str(tag), edge, count)
    for (lock, mode, kind), histogram in result.lock_holds.items():
        for edge, count in sorted(histogram.counts.items()):
            yield (*run, "lock_hold", f"{lock} {mode} {kind}", edge, count)
    for at, huge, small in result.coverage.tolist():
        yield (*run, "coverage", "huge", at, huge)
        yield (*run, "coverage", "4K", at, small)
    for at, size in result.table_bytes.tolist():
        yield (*run, "table_bytes", "", at, size)
    for cause, ns in result.stall_ns.items():
        yield (*run, "stall", cause, 0, ns)
    for (kind, cause), ns in result.wait_ns.items():
        yield (*run, "wait", f"{kind} {cause}", 0, ns)
    for kind, count in result.counts.items():
        yield (*run, "count", kind, 0, count)
    if moved is None:
        return
    for each in moved.passes:
        yield (*run, "pass", "bytes", each.at_ns, each.pages * PAGE)
        yield (*run, "pass", "ns", each.at_ns, each.ns)
    yield (*run, "migration", "converged", 0, int(moved.converged))
    yield (*run, "migration", "left", 0, moved.pending * PAGE)
    yield (*run, "migration", "downtime_ns", 0, moved.downtime_ns if moved.converged else 0)
    yield (*run, "migration", "total_ns", 0, moved.total_ns)


def write_parquet(results: Sequence[Result], file: IO[bytes]) -> None:
    """All rows as a Parquet file.  ImportError without pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = zip(*(row for result in results for row in rows(result)), strict=True)
    pq.write_table(pa.table(dict(zip(COLUMNS, map(list, columns), strict=True))), file)
