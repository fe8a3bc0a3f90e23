"""Questions that cannot be exhausted: searches of a part of the executions, and what they say."""

from __future__ import annotations

from functools import partial

from tdpmmu.scenarios.question import Question, Verdict, judge
from tdpmmu.worlds.explore.engine import no_collection
from tdpmmu.worlds.explore.exploration import Budget
from tdpmmu.worlds.explore.partly.bounded import context_bounded
from tdpmmu.worlds.explore.partly.pct import pct
from tdpmmu.worlds.explore.partly.situations import Search, search_partly
from tdpmmu.worlds.explore.reductions import Reduce

MODES = EXHAUSTIVE, PCT, CONTEXT_BOUNDED = "exhaustive", "pct", "context-bounded"
"""How ``tdpmmu check`` searches."""

DEEPEST = 100
"""The largest depth: what is promised beyond is nothing."""


def random_runs(depth: int, runs: int, seed: int) -> Search:
    """Random runs with a guarantee (PCT) for bugs that ``depth`` ordering constraints make."""
    if not 1 <= depth <= DEEPEST:
        raise ValueError(f"--depth {depth}: expected 1 to {DEEPEST}")
    if runs < 1:
        raise ValueError(f"--runs {runs}: at least 1")
    if seed < 0:
        raise ValueError(f"--seed {seed}: at least 0")
    return partial(pct, depth=depth, runs=runs, seed=seed)


def few_switches(switches: int) -> Search:
    """All executions with at most so many preemptive context switches."""
    if switches < 0:
        raise ValueError(f"--switches {switches}: at least 0")
    return partial(context_bounded, switches=switches)


def ask_partly(
    question: Question,
    search: Search,
    *,
    budget: Budget | None = None,
    first: bool | str = False,
    reduce: Reduce = True,
) -> Verdict:
    """Search a part and judge: violated, or nothing found within what was searched."""
    with no_collection():
        result = search_partly(
            question.build().machine, search, reduce=reduce, budget=budget, first=first
        )
        result.liveness = "not checked: search not exhausted"
    return judge(question, result)
