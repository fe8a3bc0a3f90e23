"""What a comparison of recovery settings comes to, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tdpmmu.simulation.figures import figures
from tdpmmu.simulation.result import Result
from tdpmmu.simulation.show import period_text
from tdpmmu.simulation.units import show_ns

ALIKE = 0.8
"""Holds of which the shorter is at least this part of the longer are the same to an operator."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What came of one ratio and period on a kernel, the worst of all seeds.

    ``hold_ns``: the longest of ``mmu_lock`` for write; ``fault_ns``: a fault that meets nobody;
    ``huge``: the part of mapped memory that huge pages map in the end.
    """

    ratio: int
    period: str
    period_ms: int
    hold_ns: int
    fault_ns: int
    huge: float

    @property
    def name(self) -> str:
        """As an operator would call it."""
        if self.period == "off":
            return "ratio 0"
        return f"ratio {self.ratio} every {self.period.split(' (')[0]}"


def answers(results: Sequence[Result]) -> Iterator[str]:
    """For each kernel that was run with more than one setting: what to set, and what it costs."""
    for kernel in dict.fromkeys(result.kernel for result in results):
        settings = _settings([result for result in results if result.kernel == kernel])
        if len(settings) > 1:
            yield from _of(kernel, settings)


def _settings(results: Sequence[Result]) -> list[Setting]:
    grouped: dict[tuple[int, int], list[Setting]] = {}
    for result in results:
        row = figures(result)
        _, huge, small = result.coverage[-1].tolist()
        knobs = result.knobs
        grouped.setdefault((knobs.ratio, knobs.period_ms), []).append(
            Setting(
                knobs.ratio,
                period_text(result),
                knobs.period_ms,
                row.hold,
                row.p50,
                huge / max(1, huge + small),
            )
        )
    return [max(same, key=lambda one: one.hold_ns) for same in grouped.values()]


def _of(kernel: str, settings: list[Setting]) -> Iterator[str]:
    longest = max(settings, key=lambda one: one.hold_ns)
    fault = max(one.fault_ns for one in settings)
    on = [one for one in settings if one.ratio]
    if longest.hold_ns <= fault:
        yield (
            f"{kernel}: no setting makes a vCPU wait. Recovery shuts faults out for "
            f"{show_ns(longest.hold_ns)} at most, and a fault takes {show_ns(fault)} anyway: "
            "leave it on."
        )
    else:
        holds = ", ".join(
            f"{show_ns(one.hold_ns)} with {one.name}" if one.hold_ns else f"not with {one.name}"
            for one in sorted(settings, key=lambda one: -one.hold_ns)
        )
        yield f"{kernel}: a vCPU that faults while recovery runs waits, up to {holds}."
        if on:
            best = min(on, key=lambda one: one.hold_ns)
            yield f"  Of those that recover anything, {best.name} makes it wait least."
        if _rarer(on):
            yield "  A longer period does not make the wait shorter, only rarer."
    huge = ", ".join(f"{one.huge:.1%} with {one.name}" for one in settings)
    yield f"  Mapped by huge pages in the end: {huge}."


def _rarer(on: list[Setting]) -> bool:
    """Whether all ratios that were tried with several periods have the same hold with each."""
    holds: dict[int, list[int]] = {}
    for one in on:
        holds.setdefault(one.ratio, []).append(one.hold_ns)
    several = [same for same in holds.values() if len(same) > 1]
    return bool(several) and all(min(same) >= ALIKE * max(same) for same in several)
