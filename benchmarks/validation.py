"""Published measurements beside what the simulator predicts: the tables of docs/validation.md.

    python benchmarks/validation.py                all of it
    python benchmarks/validation.py --only nx      one table: nx, pace, udp or frozen

The tables go between their marks; the words around them are written by hand.

Costs are the shipped table: nothing here is fitted to what it is compared with.
"""

from __future__ import annotations

import argparse
import bisect
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tdpmmu.simulation.files import read_experiment
from tdpmmu.simulation.result import Result
from tdpmmu.simulation.sweep import Run, sweep
from tdpmmu.simulation.units import show_ns
from tdpmmu.simulation.workloads.published import (
    GIB_PAGES,
    TIMED,
    DisableDirtyLogging,
    NxHugePagesPerfTest,
)
from tdpmmu.worlds.simulate.costs import Costs, load_costs

DOCUMENT = Path(__file__).parent.parent / "docs" / "validation.md"

BEFORE, AFTER = "6.18+recover-under-write-lock", "6.18"


@dataclass(frozen=True)
class Published:
    """Figures of two runs before and after."""

    name: str
    preset: str
    before: tuple[int, ...]
    after: tuple[int, ...]


NX = (
    Published("hugetlb 1G", "nx-perf-test-1g", (8_496_724, 8_404_426), (49_418, 51_948)),
    Published("hugetlb 2M", "nx-perf-test-2m", (5_320_740, 5_384_554), (50_052, 103_774)),
    Published("THP", "nx-perf-test-2m", (7_625_022, 6_339_934), (107_976, 108_386)),
    Published("plain 4K", "nx-perf-test-4k", (143_036, 287_444), (274_626, 303_984)),
)
"""Maximum fault latency in cycles (Houghton, 20250707224720.4016504-1-jthoughton@google.com)."""

PERIOD_NS = 100_000_000
BEGINS = tuple(PERIOD_NS * part // 8 for part in range(8))
"""When the guest begins its walk, within a period of recovery: nobody knows."""
FEW_BEGINS = BEGINS[::2]


def nx(costs: Costs, workers: int) -> str:
    """The selftest of the read-lock recovery series."""
    presets = sorted({one.preset for one in NX})
    wanted = [
        (preset, kernel, begin)
        for preset in presets
        for kernel in (BEFORE, AFTER)
        for begin in (FEW_BEGINS if "4k" in preset else BEGINS)
    ]
    found = sweep([perf_test(*one, costs) for one in wanted], workers=workers)
    longest: dict[tuple[str, str], list[int]] = defaultdict(list)
    for (preset, kernel, _), result in zip(wanted, found, strict=True):
        longest[preset, kernel].append(timed(result))
    rows = []
    for one in NX:
        before, after = longest[one.preset, BEFORE], longest[one.preset, AFTER]
        met = meeting(before, costs)
        gain = statistics.median(met or before) / statistics.median(after)
        said = statistics.mean(one.before) / statistics.mean(one.after)
        rows.append(
            [
                one.name,
                cycles(before, costs),
                f"{usual(met, costs):,}: {len(met)} of {len(before)} runs" if met else "-",
                numbers(one.before),
                cycles(after, costs),
                numbers(one.after),
                f"{gain:.1f}",
                f"{said:.1f}",
                f"{gain / said:.2f}",
            ]
        )
    return table(
        [
            "memory",
            "before: predicted",
            "where a round meets a fault",
            "published",
            "after: predicted",
            "published",
            "gain: predicted",
            "published",
            "predicted / published",
        ],
        rows,
    )


PACES = (130, 180, 240, 300, 360)
"""``code_ns``: around what was measured, from what had been estimated."""


def pace(costs: Costs, workers: int) -> str:
    """How much depends on the guest's own pace: 2M pages, before the change."""
    wanted = [(code_ns, begin) for code_ns in PACES for begin in FEW_BEGINS]
    runs = [
        perf_test("nx-perf-test-2m", BEFORE, begin, costs, code_ns) for code_ns, begin in wanted
    ]
    longest: dict[int, list[int]] = defaultdict(list)
    for (code_ns, _), result in zip(wanted, sweep(runs, workers=workers), strict=True):
        longest[code_ns].append(timed(result))
    rows = []
    for code_ns, times in longest.items():
        met = meeting(times, costs)
        waits = numbers(costs.cycles(ns) for ns in met) if met else "-"
        rows.append([f"{code_ns} ns", f"{len(met)} of {len(times)}", waits])
    return table(["executing a page", "runs that met a round", "longest wait"], rows)


def meeting(times: Sequence[int], costs: Costs) -> list[int]:
    """Those that are longer than any interruption of the host: a fault has waited for a round."""
    return [ns for ns in times if ns > costs.noise_longest + costs.tick]


def perf_test(
    preset: str, kernel: str, begin_ns: int, costs: Costs, code_ns: int | None = None
) -> Run:
    """One run of the test; of plain 4K pages with 2 GiB, since nothing is ever recovered there.

    ``code_ns``: another one than the preset's.
    """
    experiment = read_experiment(preset)
    small = experiment.guest.backing == "4K"
    guest = replace(experiment.guest, memory_bytes=2 << 30) if small else experiment.guest
    workload = experiment.workload
    assert isinstance(workload, NxHugePagesPerfTest)
    workload = replace(workload, guest=guest, begin_ns=begin_ns)
    if code_ns is not None:
        workload = replace(workload, code_ns=code_ns)
    # Two touches a page in half of memory, one in the other, faults, and waiting for recovery.
    each = (3 * workload.touch_ns + workload.code_ns) // 2 + (2500 if small else 100)
    seed = 1 + BEGINS.index(begin_ns)
    until = begin_ns + guest.pages * each
    return Run(kernel, guest, experiment.knobs, costs, workload, until, seed)


def timed(result: Result) -> int:
    """The longest fault among the touches that the test times."""
    histogram = result.fault_latency.get(TIMED)
    return histogram.largest if histogram else 0


UDP_RUNS = ((16, "6.12"), (32, "6.12"), (64, "6.12"), (64, "6.18"))
UDP_ROUNDS = 3
UDP_BINS = (1, 2, 5, 12)
"""Lower ends, in ms."""


def udp(costs: Costs, workers: int) -> str:
    """The histogram of round trips between Windows guests, for each round of recovery."""
    experiment = read_experiment("udp-windows")
    runs = []
    for gib, kernel in UDP_RUNS:
        guest = replace(experiment.guest, memory_bytes=gib << 30)
        workload = replace(experiment.workload, guest=guest)
        until = UDP_ROUNDS * 60 * 10**9 + 10**9
        runs.append(Run(kernel, guest, experiment.knobs, costs, workload, until, 1))
    rows = []
    for (gib, kernel), result in zip(UDP_RUNS, sweep(runs, workers=workers), strict=True):
        histogram = result.fault_latency[0]
        counts = binned(histogram.counts.items())
        longest = f"{histogram.largest / 1e6:.2f}"
        rows.append([f"predicted: {gib} GiB, {kernel}", *counts, longest])
    rows.append(["published, before", *per_round((14, 6, 0, 13)), "18 to 19"])
    rows.append(["published, after", *per_round((27, 1, 0, 0)), "2 to 3"])
    return table(["a round", "1-2 ms", "2-5 ms", "5-12 ms", "over 12 ms", "longest, ms"], rows)


def binned(counts: Iterable[tuple[int, int]]) -> list[str]:
    """How many in each bin, for each round."""
    totals = [0] * len(UDP_BINS)
    for ns, count in counts:
        bin_number = bisect.bisect(UDP_BINS, ns / 1e6) - 1
        if bin_number >= 0:
            totals[bin_number] += count
    return [f"{total / UDP_ROUNDS:.1f}" for total in totals]


def per_round(totals: Sequence[int]) -> list[str]:
    """10 million round trips of 70 us last 700 s: 11.7 rounds of a minute, in each of two VMs."""
    return [f"{total / (2 * 11.7):.1f}" for total in totals]


FROZEN = (("before", "6.12+process-before-unfreezing", 509.8), ("after", "6.12", 336.5))


def frozen(costs: Costs, workers: int) -> str:
    """A frozen 1G SPTE while logging is switched off: a few of the 416 vCPUs."""
    experiment = read_experiment("frozen-1g")
    workload = experiment.workload
    assert isinstance(workload, DisableDirtyLogging)
    until = experiment.until_ns
    runs = [
        Run(kernel, workload.guest, experiment.knobs, costs, workload, until, 1)
        for _, kernel, _ in FROZEN
    ]
    rows = []
    for (name, _, said), result in zip(FROZEN, sweep(runs, workers=workers), strict=True):
        zapped = result.counts["PfnMarkedDirty"] / GIB_PAGES
        region = (until - workload.off_ns) / zapped / 1e6
        published = said / 416 * 1e3
        longest = show_ns(result.worst[0].ns)
        rows.append([name, f"{region:.1f}", f"{published:.0f}", longest])
    return table(["", "ms for each 1G: predicted", "published", "longest fault: predicted"], rows)


# --- writing -----------------------------------------------------------------------------------


def usual(times: Sequence[int], costs: Costs) -> int:
    """The median, in cycles."""
    return statistics.median_low(costs.cycles(one) for one in times)


def cycles(times: Sequence[int], costs: Costs) -> str:
    """Median, and the range."""
    shown = [costs.cycles(one) for one in times]
    return f"{usual(times, costs):,} ({min(shown):,}-{max(shown):,})"


def numbers(values: Iterable[int]) -> str:
    return " / ".join(f"{value:,}" for value in values)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


SECTIONS: dict[str, Callable[[Costs, int], str]] = {
    "nx": nx,
    "pace": pace,
    "udp": udp,
    "frozen": frozen,
}


def put(text: str, section: str, content: str) -> str:
    """The document with what stands between a section's marks replaced."""
    begin, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Published measurements beside predictions.")
    parser.add_argument("--only", choices=sorted(SECTIONS), help="write one table only")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    costs = load_costs()
    for name in [options.only] if options.only else SECTIONS:
        found = SECTIONS[name](costs, options.workers)
        DOCUMENT.write_text(put(DOCUMENT.read_text(), name, found))
        print(found)


if __name__ == "__main__":
    main()
