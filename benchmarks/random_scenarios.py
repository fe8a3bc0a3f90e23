"""Hold random scenarios to every property: python benchmarks/random_scenarios.py --count 1000.

Each is explored exhaustively within a budget of states; what breaks a property is shrunk and
printed with its token; what docs/findings.md explains is only counted.  Workers draw with different
seeds; the same seed gives the same scenarios.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import one_of

from tdpmmu.arch.table import PoolExhausted
from tdpmmu.scenarios.question import Verdict, ask
from tdpmmu.scenarios.random_findings import finding
from tdpmmu.scenarios.random_scripts import question, scripts
from tdpmmu.scenarios.random_shadow import shadow_scripts
from tdpmmu.scenarios.script import Script
from tdpmmu.worlds.explore.engine import Budget


@dataclass
class Report:
    """What one worker has seen."""

    verdicts: Counter[str] = field(default_factory=Counter)
    states: int = 0
    largest: int = 0
    found: list[tuple[str, str, str, str]] = field(default_factory=list)


def campaign(kernel: str, count: int, number: int, states: int) -> Report:
    """Draw ``count`` scripts; a property that is broken ends the draw after it was shrunk."""
    report = Report()
    known: set[str] = set()
    drawn = 0

    while drawn < count:
        failed: list[tuple[Script, Verdict]] = []

        @seed(number * 1000 + len(report.found))
        @settings(
            max_examples=count - drawn,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(one_of(scripts(), shadow_scripts()))
        def hold(script: Script) -> None:
            nonlocal drawn
            drawn += not failed  # noqa: B023
            try:
                verdict = ask(question(script, kernel), budget=Budget(states=states))
            except PoolExhausted:
                report.verdicts["pool too small"] += 1
                return
            new = [v for v in verdict.violations if finding(script, v.prop) is None]
            status = f"explained: {verdict.violations[0].prop}" if verdict.violations else ""
            report.verdicts[verdict.status if new or not status else status] += 1
            report.states += verdict.exploration.states
            report.largest = max(report.largest, verdict.exploration.states)
            new = [v for v in new if v.prop not in known]
            if new:
                failed.append((script, verdict))  # noqa: B023
                raise AssertionError(new[0].sentence)

        try:
            hold()
        except AssertionError:
            script, verdict = failed[-1]
            for violation in verdict.violations:
                if violation.prop not in known and finding(script, violation.prop) is None:
                    known.add(violation.prop)
                    report.found.append(
                        (
                            violation.prop,
                            violation.sentence,
                            repr(script),
                            verdict.tokens[violation.prop],
                        )
                    )
        else:
            break
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--kernel", default="6.12,6.18")
    parser.add_argument("--states", type=int, default=200_000, help="budget of one scenario")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    for kernel in options.kernel.split(","):
        began = time.monotonic()
        share = -(-options.count // options.workers)
        with ProcessPoolExecutor(options.workers) as pool:
            futures = [
                pool.submit(campaign, kernel, share, options.seed + n, options.states)
                for n in range(options.workers)
            ]
            reports = [future.result() for future in futures]
        verdicts: Counter[str] = sum((r.verdicts for r in reports), Counter())
        print(
            f"{kernel}: {sum(verdicts.values()):,} explorations in "
            f"{time.monotonic() - began:.0f} s, {sum(r.states for r in reports):,} states, "
            f"largest {max(r.largest for r in reports):,}; {dict(verdicts)}"
        )
        for report in reports:
            for prop, sentence, script, token in report.found:
                print(f"  {prop}: {sentence}\n    {script}\n    tdpmmu explain {token}")


if __name__ == "__main__":
    main()
