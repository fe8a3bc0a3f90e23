"""Running zoo entries: the bug side, the fixed side, and the other kernels that have the fix."""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.scenarios.question import HOLDS, Question, Verdict, ask, heeded
from tdpmmu.scenarios.zoo import entry
from tdpmmu.versions.registry import kernel_class
from tdpmmu.worlds.explore.exploration import Budget

BUG, FIXED = "bug", "fixed"


@dataclass(frozen=True, slots=True)
class Answer:
    """What exploration said of one side.  ``properties`` are those broken, in order of depth."""

    id: str
    side: str
    kernel: str
    right: bool
    status: str
    states: int
    seconds: float
    properties: tuple[str, ...]
    sentence: str
    token: str


def sides(name: str) -> tuple[str, ...]:
    """The sides of an entry: ``bug``, ``fixed``, and a kernel for each further one."""
    return (BUG, FIXED, *entry(name).clean_kernels())


def question(name: str, side: str) -> Question:
    """What is asked of one side."""
    one = entry(name)
    if side == BUG:
        patches = (one.id,) if one.patch is not None else ()
        return Question(one.scenario, one.bug_side(), one.kernel, patches)
    if side == FIXED:
        patches = (f"{one.id}-fix",) if one.fix is not None else ()
        return Question(one.scenario, one.fixed_side(), one.kernel, patches)
    return Question(one.scenario, kernel_class(side), side)


def explore_side(name: str, side: str, budget: Budget | None = None) -> tuple[Answer, Verdict]:
    """Ask it.  The bug side stops at the first violation of the property that it is about."""
    one = entry(name)
    asked = question(name, side)
    verdict = heeded(ask(asked, budget=budget, first=one.prop if side == BUG else False))
    broken = tuple(found.prop for found in verdict.exploration.violations)
    right = one.prop in broken if side == BUG else verdict.status == HOLDS
    answer = Answer(
        one.id,
        side,
        asked.kernel,
        right,
        verdict.status,
        verdict.exploration.states,
        verdict.exploration.seconds,
        broken,
        verdict.sentence(),
        verdict.tokens.get(one.prop, "") if side == BUG else "",
    )
    return answer, verdict


def answer(name: str, side: str, budget: Budget | None = None) -> Answer:
    """The answer alone: what a worker process sends back."""
    return explore_side(name, side, budget)[0]
