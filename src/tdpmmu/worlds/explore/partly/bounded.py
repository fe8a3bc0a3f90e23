"""Context-bounded search: all executions with few preemptions (Musuvathi and Qadeer, 2007).

A preemption is a change to another thread while the last one could have taken another turn; a
change from one that waits, or has ended, is free.  Situations are searched in the order of the
preemptions that they take, so what is found takes the fewest possible.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from resource import RUSAGE_SELF, getrusage

from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.engine import Budget
from tdpmmu.worlds.explore.partly.situations import (
    Findings,
    PartialExploration,
    Situation,
    Situations,
    Taken,
)

NOBODY = -1
LOOK_EVERY = 1 << 10

Node = tuple[Situation, int]
"""A situation, and who moved last."""


@dataclass(slots=True)
class _Search:
    graph: Situations
    switches: int
    budget: Budget
    first: bool | str

    def run(self) -> PartialExploration:
        """Breadth first, preemptions counted before turns."""
        began = time.monotonic()
        result = PartialExploration()
        findings = Findings(result)
        start: Node = (self.graph.start, NOBODY)
        came_from: dict[Node, tuple[Node, Taken] | None] = {start: None}
        level = deque([(start, 0)])
        later: list[tuple[Node, Node, Taken, int]] = []
        situations: set[Situation] = set()
        used = looked = 0
        cut = False

        def way(node: Node, last: Taken | None) -> list[Taken]:
            found = [] if last is None else [last]
            while (step := came_from[node]) is not None:
                node, taken = step
                found.append(taken)
            return found[::-1]

        while True:
            while level:
                node, turns = level.popleft()
                looked += 1
                result.depth = max(result.depth, turns)
                situation, last = node
                situations.add(situation)
                enabled = self.graph.enabled(situation)
                if not enabled:
                    stuck = self.graph.deadlock(situation)
                    if stuck is not None:
                        findings.add((("deadlock", HARM, stuck),), partial(way, node, None))
                for thread in enabled:
                    preempts = last in enabled and thread != last
                    if preempts and used == self.switches:
                        cut = True
                        continue
                    for outcome in self.graph.outcomes(situation, thread):
                        result.transitions += 1
                        if outcome.violations:
                            findings.add(outcome.violations, partial(way, node, outcome.taken))
                        if outcome.harmed:
                            continue
                        after: Node = (outcome.after, thread)
                        if preempts:
                            later.append((after, node, outcome.taken, turns + 1))
                        elif after not in came_from:
                            came_from[after] = (node, outcome.taken)
                            level.append((after, turns + 1))
                if findings.stops(self.first):
                    result.stopped = "at the first violation"
                    break
                if looked % LOOK_EVERY == 0 or self.budget.states:
                    result.stopped = self._used_up(len(situations), began)
                    if result.stopped:
                        break
            if result.stopped or not later:
                break
            used += 1
            for after, node, taken, turns in later:
                if after not in came_from:
                    came_from[after] = (node, taken)
                    level.append((after, turns))
            later.clear()
        self._say(result, used, cut)
        result.states = len(situations)
        result.unseen = tuple(self.graph.turns.unseen)
        result.seconds = time.monotonic() - began
        return result

    def _used_up(self, states: int, began: float) -> str:
        budget = self.budget
        if budget.states and states >= budget.states:
            return f"the budget of {budget.states:,} states is used up"
        if budget.seconds and time.monotonic() - began > budget.seconds:
            return f"the budget of {budget.seconds:g} seconds is used up"
        if budget.memory and getrusage(RUSAGE_SELF).ru_maxrss / 1024 > budget.memory:
            return f"the budget of {budget.memory:,} MiB is used up"
        return ""

    def _say(self, result: PartialExploration, used: int, cut: bool) -> None:
        """Which part was searched."""
        complete = not result.stopped
        result.bound = {
            "mode": "context-bounded",
            "switches": self.switches,
            "complete": complete,
            "cut": cut or not complete,
        }
        if complete:
            result.stopped = (
                f"all executions with at most {self.switches} preemptive context switches"
            )
            if not cut:
                result.stopped += ", and none has more"
        elif result.stopped != "at the first violation":
            result.stopped += (
                f", with {used} of {self.switches} preemptive context switches searched in part"
            )


def context_bounded(
    machine: Machine,
    reduce: bool,
    budget: Budget,
    first: bool | str,
    *,
    switches: int,
) -> PartialExploration:
    """All executions with at most ``switches`` preemptions between turns."""
    return _Search(Situations(machine, reduce=reduce), switches, budget, first).run()
