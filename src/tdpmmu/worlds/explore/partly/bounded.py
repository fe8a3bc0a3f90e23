"""Context-bounded search: all executions with few preemptions (Musuvathi and Qadeer, 2007).

A preemption is a change to another thread while the last one could have taken another turn; a
change from one that waits, or has ended, is free.  Situations are searched in the order of the
preemptions that they take, so what is found takes the fewest possible.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial

from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.exploration import INTERRUPTED, Budget
from tdpmmu.worlds.explore.memory import most_resident
from tdpmmu.worlds.explore.partly.situations import (
    Findings,
    PartialExploration,
    Situation,
    Situations,
    Taken,
)
from tdpmmu.worlds.explore.reductions import Reduce

NOBODY = -1
LOOK_EVERY = 1 << 10
AT_FIRST = "at the first violation"

Node = tuple[Situation, int]
"""A situation, and who moved last."""


@dataclass(slots=True)
class _Search:
    """``level`` are nodes to be looked at, ``later`` those that take one preemption more."""

    graph: Situations
    switches: int
    budget: Budget
    first: bool | str
    result: PartialExploration = field(default_factory=PartialExploration)
    came_from: dict[Node, tuple[Node, Taken] | None] = field(default_factory=dict)
    level: deque[tuple[Node, int]] = field(default_factory=deque)
    later: list[tuple[Node, Node, Taken, int]] = field(default_factory=list)
    situations: set[Situation] = field(default_factory=set)
    used: int = 0
    cut: bool = False

    def run(self) -> PartialExploration:
        """Breadth first, preemptions counted before turns."""
        began = time.monotonic()
        result = self.result
        try:
            self._levels(began)
        except KeyboardInterrupt:
            result.stopped = INTERRUPTED
        self._say()
        result.states = len(self.situations)
        result.unseen = tuple(self.graph.turns.unseen)
        result.seconds = time.monotonic() - began
        return result

    def _levels(self, began: float) -> None:
        findings = Findings(self.result)
        self._reach((self.graph.start, NOBODY), None, 0)
        looked = 0
        while self.level:
            node, turns = self.level.popleft()
            self._look_at(node, turns, findings)
            looked += 1
            if findings.stops(self.first):
                self.result.stopped = AT_FIRST
                return
            if looked % LOOK_EVERY == 0 or self.budget.states:
                self.result.stopped = self._used_up(began)
                if self.result.stopped:
                    return
            if not self.level and self.later:
                self.used += 1
                for after, before, taken, turns in self.later:
                    self._reach(after, (before, taken), turns)
                self.later.clear()

    def _reach(self, node: Node, step: tuple[Node, Taken] | None, turns: int) -> None:
        """Put a node on the list, unless it is there with as few preemptions."""
        if node not in self.came_from:
            self.came_from[node] = step
            self.level.append((node, turns))

    def _look_at(self, node: Node, turns: int, findings: Findings) -> None:
        """Every turn from here."""
        situation, last = node
        self.situations.add(situation)
        self.result.depth = max(self.result.depth, turns)
        enabled = self.graph.enabled(situation)
        if not enabled and (stuck := self.graph.deadlock(situation)) is not None:
            findings.add((("deadlock", HARM, stuck),), partial(self._way, node, None))
        for thread in enabled:
            preempts = last in enabled and thread != last
            if preempts and self.used == self.switches:
                self.cut = True
                continue
            for outcome in self.graph.outcomes(situation, thread):
                self.result.transitions += 1
                if outcome.violations:
                    findings.add(outcome.violations, partial(self._way, node, outcome.taken))
                if outcome.harmed:
                    continue
                after: Node = (outcome.after, thread)
                if preempts:
                    self.later.append((after, node, outcome.taken, turns + 1))
                else:
                    self._reach(after, (node, outcome.taken), turns + 1)

    def _way(self, node: Node, last: Taken | None) -> list[Taken]:
        """The turns that lead to a node, and one more."""
        found = [] if last is None else [last]
        while (step := self.came_from[node]) is not None:
            node, taken = step
            found.append(taken)
        return found[::-1]

    def _used_up(self, began: float) -> str:
        budget = self.budget
        if budget.states and len(self.situations) >= budget.states:
            return f"the budget of {budget.states:,} states is used up"
        if budget.seconds and time.monotonic() - began > budget.seconds:
            return f"the budget of {budget.seconds:g} seconds is used up"
        if budget.memory and most_resident() > budget.memory << 20:
            return f"the budget of {budget.memory:,} MiB is used up"
        return ""

    def _say(self) -> None:
        """Which part was searched."""
        result = self.result
        complete = not result.stopped
        result.bound = {
            "mode": "context-bounded",
            "switches": self.switches,
            "complete": complete,
            "cut": self.cut or not complete,
        }
        if complete:
            result.stopped = (
                f"all executions with at most {self.switches} preemptive context switches"
            )
            if not self.cut:
                result.stopped += ", and none has more"
        elif result.stopped not in (AT_FIRST, INTERRUPTED):
            result.stopped += f"; {self.switches} preemptive context switches were allowed, "
            result.stopped += f"and {self.used} had been used"


def context_bounded(
    machine: Machine,
    reduce: Reduce,
    budget: Budget,
    first: bool | str,
    *,
    switches: int,
) -> PartialExploration:
    """All executions with at most ``switches`` preemptions between turns."""
    return _Search(Situations(machine, reduce=reduce), switches, budget, first).run()
