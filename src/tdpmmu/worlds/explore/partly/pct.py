"""Probabilistic concurrency testing (Burckhardt, Kothari, Musuvathi, Nagarakatte, 2010).

Each run gives the threads random priorities and always lets the highest that can move take its
turn; at ``depth - 1`` random moments whoever has just moved drops below all others.  A bug that
``depth`` ordering constraints suffice for is then found by a run of ``n`` threads and at most
``k`` turns with probability at least ``1 / (n * k ** (depth - 1))``.

That is about the order of threads alone.  Where a turn has several outcomes one is drawn, so the
guarantee is for a run whose draws fall as the bug needs: at least one in the product of their
numbers.  A thread that comes back to where it was while nobody else moved waits for somebody by
going round; it drops below all others, which loses nothing but rounds without effect.

``k`` is measured: the turns of the longest of all runs, of which the first ones only measure.  What
is said counts the runs that began with that ``k``.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field

from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.exploration import INTERRUPTED, Budget
from tdpmmu.worlds.explore.partly.situations import (
    Findings,
    PartialExploration,
    Situation,
    Situations,
    Taken,
)
from tdpmmu.worlds.explore.reductions import Reduce

PILOTS = 20
"""Runs that only measure ``k``."""

LONGEST = 20_000
"""Turns after which a run is given up."""


def guarantee(threads: int, turns: int, depth: int) -> float:
    """``1 / (n * k ** (d - 1))``: the least probability that a run finds a bug of this depth."""
    ways: int = max(1, threads) * max(1, turns) ** (depth - 1)
    return 1 / ways


@dataclass(slots=True)
class _Runs:
    graph: Situations
    depth: int
    dice: random.Random
    findings: Findings
    longest: int = 0
    bits: float = 0.0
    too_long: int = 0
    turns: int = 0
    seen: set[Situation] = field(default_factory=set)

    def one(self, changes: int) -> None:
        """One run with so many changes of priority among its first ``longest`` turns."""
        graph = self.graph
        threads = list(graph.regular)
        self.dice.shuffle(threads)
        priority = {t: changes + 1 + place for place, t in enumerate(threads)}
        priority |= dict.fromkeys(graph.alone, 0)
        moments = {self.dice.randint(1, max(1, self.longest)): i for i in range(changes, 0, -1)}
        now = graph.start
        way: list[Taken] = []
        bits = 0.0
        lowest = 0
        round_of, been = -1, set[Situation]()
        while True:
            self.seen.add(now)
            enabled = graph.enabled(now)
            if not enabled:
                stuck = graph.deadlock(now)
                if stuck is not None:
                    self.findings.add((("deadlock", HARM, stuck),), lambda: way)
                break
            thread = max(enabled, key=lambda t: priority[t])
            outcomes = graph.outcomes(now, thread)
            outcome = self.dice.choice(outcomes) if len(outcomes) > 1 else outcomes[0]
            bits += math.log2(len(outcomes))
            way.append(outcome.taken)
            if outcome.violations:
                self.findings.add(outcome.violations, lambda: list(way))
            if outcome.harmed:
                break
            if len(way) == LONGEST:
                self.too_long += 1
                break
            if thread != round_of:
                round_of, been = thread, {now}
            if outcome.after in been:
                lowest -= 1
                priority[thread] = lowest
                been.clear()
            been.add(outcome.after)
            now = outcome.after
            if len(way) in moments:
                priority[thread] = min(priority[thread], moments[len(way)])
        self.turns += len(way)
        self.longest = max(self.longest, len(way))
        self.bits = max(self.bits, bits)


def pct(
    machine: Machine,
    reduce: Reduce,
    budget: Budget,
    first: bool | str,
    *,
    depth: int,
    runs: int,
    seed: int,
) -> PartialExploration:
    """``runs`` random runs for bugs of this depth; the same ``seed`` gives the same ones."""
    began = time.monotonic()
    result = PartialExploration()
    graph = Situations(machine, reduce=reduce)
    trial = _Runs(graph, depth, random.Random(seed), Findings(result))
    done = counted = 0
    interrupted = False
    try:
        for _ in range(PILOTS):
            trial.one(0)
        while done < runs and not trial.findings.stops(first):
            known = trial.longest
            trial.one(depth - 1)
            done += 1
            counted = counted + 1 if trial.longest == known else 0
            if budget.seconds and time.monotonic() - began > budget.seconds:
                break
            if budget.states and len(trial.seen) >= budget.states:
                break
    except KeyboardInterrupt:
        interrupted = True
    threads = len(graph.regular)
    chance = guarantee(threads, trial.longest, depth)
    result.states = len(trial.seen)
    result.transitions = trial.turns
    result.depth = trial.longest
    result.unseen = tuple(graph.turns.unseen)
    result.seconds = time.monotonic() - began
    result.bound = {
        "mode": "pct",
        "depth": depth,
        "runs": done,
        "runs_counted": counted,
        "seed": seed,
        "threads": threads,
        "turns": trial.longest,
        "probability": chance,
        "bits_drawn": trial.bits,
        "given_up": trial.too_long,
    }
    result.stopped = INTERRUPTED if interrupted else _sentence(done, counted, depth, threads, trial)
    return result


def _sentence(done: int, counted: int, depth: int, threads: int, trial: _Runs) -> str:
    one_in = threads * trial.longest ** (depth - 1)
    power = "" if depth == 1 else f" * {trial.longest}" + (f"^{depth - 1}" if depth > 2 else "")
    which = "each of which" if counted == done else f"the last {counted:,} of which each"
    text = (
        f"{done:,} random runs, {which} finds a bug of depth {depth} with probability at least "
        f"1/({threads}{power}) = 1/{one_in:,}"
    )
    if trial.bits:
        text += f" if its choices fall as the bug needs (up to 2^{trial.bits:.0f} ways in a run)"
    if trial.too_long:
        text += f"; {trial.too_long} given up after {LONGEST:,} turns"
    return text
