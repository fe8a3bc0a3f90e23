"""Campaigns: random scripts, held to every property, a batch of them at a time.

A batch is drawn from its own seed, so what is drawn does not depend on who draws it, nor on how
many workers there are.  Needs Hypothesis.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisDeprecationWarning
from hypothesis.strategies import one_of

from tdpmmu.arch.table import PoolExhausted
from tdpmmu.scenarios.question import Verdict, ask, heeded
from tdpmmu.scenarios.random_findings import finding
from tdpmmu.scenarios.random_scripts import question, scripts
from tdpmmu.scenarios.random_shadow import shadow_scripts
from tdpmmu.scenarios.script import Script
from tdpmmu.worlds.explore.exploration import Budget


class Batch(NamedTuple):
    """``scripts`` drawn from ``number``; each is explored up to ``states`` states."""

    kernel: str
    number: int
    scripts: int
    states: int


def batches(kernel: str, first: int, count: int, each: int, states: int) -> list[Batch]:
    """So many scripts in batches of ``each``, numbered from ``first``."""
    return [
        Batch(kernel, first + number, min(each, count - start), states)
        for number, start in enumerate(range(0, count, each))
    ]


def run_batch(batch: Batch) -> dict[str, Any]:
    """What one batch has shown, as JSON has it.

    ``verdicts`` counts them; ``found`` are violations that docs/findings.md does not explain, each
    property once, shrunk, with the token that replays it.
    """
    kernel, number, count, states = batch
    verdicts: Counter[str] = Counter()
    found: list[dict[str, str]] = []
    known: set[str] = set()
    total = largest = drawn = 0

    while drawn < count:
        failed: list[tuple[Script, Verdict]] = []

        @seed(number * 1000 + len(found))
        @settings(
            max_examples=count - drawn,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(one_of(scripts(), shadow_scripts()))
        def hold(script: Script) -> None:
            nonlocal drawn, total, largest
            drawn += not failed  # noqa: B023
            try:
                verdict = heeded(ask(question(script, kernel), budget=Budget(states=states)))
            except PoolExhausted:
                verdicts["pool too small"] += 1
                return
            new = [v for v in verdict.violations if finding(script, v.prop) is None]
            status = f"explained: {verdict.violations[0].prop}" if verdict.violations else ""
            verdicts[verdict.status if new or not status else status] += 1
            total += verdict.exploration.states
            largest = max(largest, verdict.exploration.states)
            new = [v for v in new if v.prop not in known]
            if new:
                failed.append((script, verdict))  # noqa: B023
                raise AssertionError(new[0].sentence)

        try:
            with warnings.catch_warnings():
                # Threads that are none of ours (Dask's) draw numbers of their own meanwhile.
                warnings.simplefilter("ignore", HypothesisDeprecationWarning)
                hold()
        except AssertionError:
            script, verdict = failed[-1]
            for violation in verdict.violations:
                if violation.prop not in known and finding(script, violation.prop) is None:
                    known.add(violation.prop)
                    found.append(
                        {
                            "property": violation.prop,
                            "sentence": violation.sentence,
                            "script": repr(script),
                            "token": verdict.tokens[violation.prop],
                        }
                    )
        else:
            break
    return {
        "kernel": kernel,
        "verdicts": dict(verdicts),
        "states": total,
        "largest": largest,
        "found": found,
    }


@dataclass
class Summary:
    """All batches of one kernel together."""

    kernel: str
    verdicts: Counter[str] = field(default_factory=Counter)
    states: int = 0
    largest: int = 0
    found: list[dict[str, str]] = field(default_factory=list)

    @property
    def explorations(self) -> int:
        """How many scripts were explored, those on the way to a smaller one included."""
        return self.verdicts.total()


def summarize(results: Iterable[dict[str, Any]]) -> list[Summary]:
    """By kernel, in the order given; of what breaks a property, the first that is the shortest."""
    summaries: dict[str, Summary] = {}
    for one in results:
        summary = summaries.setdefault(one["kernel"], Summary(one["kernel"]))
        summary.verdicts.update(one["verdicts"])
        summary.states += one["states"]
        summary.largest = max(summary.largest, one["largest"])
        summary.found += one["found"]
    for summary in summaries.values():
        best: dict[str, dict[str, str]] = {}
        for found in summary.found:
            there = best.get(found["property"])
            if there is None or len(found["script"]) < len(there["script"]):
                best[found["property"]] = found
        summary.found = list(best.values())
    return list(summaries.values())
