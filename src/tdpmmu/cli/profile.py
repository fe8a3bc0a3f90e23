"""``tdpmmu check --profile-states``: what multiplies states without ever being read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Question
    from tdpmmu.worlds.explore.exploration import Budget
    from tdpmmu.worlds.explore.reductions import Reduce


def print_profile(question: Question, budget: Budget, *, reduce: Reduce, loop: str) -> None:
    """Search, and print what could be left out of states."""
    from tdpmmu.worlds.explore.profile import profile
    from tdpmmu.worlds.explore.search import explore

    explorer = explore(question.build().machine, reduce=reduce, budget=budget, loop=loop)
    found = profile(explorer)
    result = explorer.result
    print(f"{question.title()}: {result.states:,} states, {result.shared:,} shared states")
    if not result.exhausted:
        print(f"  {result.stopped}: what is said holds for what was searched")
    if found.states < result.states:
        print(f"  the first {found.states:,} states are counted")
    for kind, idle in (("cell", found.cells), ("local", found.locals)):
        for one in idle:
            times = found.states / one.left
            print(f"  {kind} {one.what}: {one.values} values, states times {times:.2f}")
    fewer = found.states / found.left
    print(f"  without all of these: {found.left:,} states, {fewer:.2f} times fewer")
