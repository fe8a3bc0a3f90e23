"""Searches of a part: what they find, what they miss, and what they say about it."""

from __future__ import annotations

import json
import math
from functools import partial
from itertools import permutations

import pytest
from toys import CHOICES, bounce, incr, make_machine, random_program, spin
from typer.testing import CliRunner

from tdpmmu.cli.main import app
from tdpmmu.cli.verdicts import exit_code
from tdpmmu.machine.op import Choose, Read, Write
from tdpmmu.machine.state import Layout
from tdpmmu.machine.thread import Machine
from tdpmmu.scenarios.partly import ask_partly, few_switches, random_runs
from tdpmmu.scenarios.question import BUDGET, VIOLATED, ask
from tdpmmu.scenarios.zoo.run import BUG, FIXED, question
from tdpmmu.worlds.explore.exploration import INTERRUPTED, Budget
from tdpmmu.worlds.explore.partly.bounded import context_bounded
from tdpmmu.worlds.explore.partly.pct import _Runs, guarantee, pct
from tdpmmu.worlds.explore.partly.situations import (
    Findings,
    Outcome,
    PartialExploration,
    Search,
    Situation,
    Situations,
    search_partly,
)
from tdpmmu.worlds.explore.reference import LONGEST, _Run
from tdpmmu.worlds.explore.search import explore

Z36 = ["check", "script", "-k", "6.1", "--no-explain"]
Z36 += ["--set", "threads=vcpu0: w0; apicv: zap-range:0-3", "--set", "setup=w0 w2"]


def bounded(machine: Machine, switches: int, reduce: bool = True) -> PartialExploration:
    """All executions with few preemptions."""
    return search_partly(machine, partial(context_bounded, switches=switches), reduce=reduce)


def randomly(machine: Machine, depth: int, runs: int, seed: int = 0) -> PartialExploration:
    """Random runs."""
    return search_partly(machine, partial(pct, depth=depth, runs=runs, seed=seed))


def violated(result: PartialExploration) -> set[str]:
    """The names of what is broken."""
    return {found.prop for found in result.violations}


def handshake(preemptions: int) -> Machine:
    """Thread 0 fails only if thread 1 steps in ``preemptions`` times, each in its own window."""
    layout = Layout()
    x = layout.cell("x", 0)

    async def counts() -> None:
        seen = []
        for _ in range(preemptions + 1):
            value = await Read(x)
            seen.append(value)
        assert seen != list(range(preemptions + 1))

    async def steps() -> None:
        for n in range(preemptions):
            await Write(x, n + 1)

    return make_machine(layout, [counts, steps])


def needs(machine: Machine) -> dict[str, int]:
    """For each property the fewest preemptions that break it, from every execution there is."""
    found: dict[str, int] = {}
    todo: list[tuple[tuple[int, int], ...]] = [()]
    while todo:
        schedule = todo.pop()
        assert len(schedule) < LONGEST
        run, used, last = _Run(machine), 0, -1
        for thread, alternative in schedule:
            used += thread != last and any(t == last for t, _ in run.moves())
            run.move(thread, alternative)
            last = thread
        broken = [one.prop for one in run.broken] + ["deadlock"] * run.stuck()
        for prop in broken:
            found[prop] = min(used, found.get(prop, used))
        todo += [(*schedule, move) for move in run.moves()]
        run.close()
    return found


# --- context-bounded ------------------------------------------------------------------------------


@pytest.mark.parametrize("preemptions", [1, 2, 3])
def test_a_bug_takes_as_many_switches_as_it_takes(preemptions: int) -> None:
    # The first switch away from thread 0 and each one back to it: the last read is for nothing.
    fewest = needs(handshake(preemptions))["exception"]
    assert fewest == 2 * preemptions - 1
    assert violated(bounded(handshake(preemptions), fewest - 1)) == set()
    assert violated(bounded(handshake(preemptions), fewest)) == {"exception"}


def test_every_property_is_found_at_the_bound_that_it_needs() -> None:
    broken = 0
    for seed in range(40):
        make = partial(random_program, seed, CHOICES, threads=2, operations=3)
        fewest = needs(make().build())
        broken += len(fewest)
        for switches in range(5):
            expected = {prop for prop, used in fewest.items() if used <= switches}
            assert violated(bounded(make().build(), switches, reduce=False)) == expected, seed
            assert violated(bounded(make().build(), switches)) >= expected, seed
    assert broken > 12


def test_growing_bounds_come_to_what_the_explorer_says() -> None:
    for seed in range(40):
        make = partial(random_program, seed, CHOICES)
        everything = {found.prop for found in explore(make().build()).result.violations}
        union: set[str] = set()
        for switches in range(40):
            result = bounded(make().build(), switches)
            assert union <= violated(result) <= everything
            union = violated(result)
            if not result.bound["cut"]:
                break
        assert union == everything, seed


@pytest.mark.parametrize("side", [BUG, FIXED])
@pytest.mark.parametrize("entry", ["z36", "z10", "z1"])
def test_growing_bounds_come_to_the_verdict_on_the_zoo(entry: str, side: str) -> None:
    asked = question(entry, side)
    everything = set(ask(asked).tokens)
    for switches in (0, 1, 2, 4, 32):
        verdict = ask_partly(asked, few_switches(switches))
        assert set(verdict.tokens) <= everything
        assert verdict.status == (VIOLATED if verdict.tokens else BUDGET)
        if not verdict.exploration.bound["cut"]:
            break
    assert set(verdict.tokens) == everything
    assert verdict.exploration.bound["complete"]


def test_a_budget_that_ran_out_is_not_the_bound() -> None:
    asked = question("z2", FIXED)
    verdict = ask_partly(asked, few_switches(2), budget=Budget(states=100))
    assert verdict.status == BUDGET
    assert "the budget of 100 states is used up" in verdict.sentence()
    assert "all executions" not in verdict.sentence()
    assert not verdict.exploration.bound["complete"]


def test_a_deadlock_is_found() -> None:
    assert violated(bounded(bounce(partner="ends"), 0)) == {"deadlock"}


# --- PCT ------------------------------------------------------------------------------------------


def test_the_guarantee_is_the_papers() -> None:
    assert guarantee(4, 20, 1) == 1 / 4
    assert guarantee(4, 20, 3) == 1 / 1600


def test_runs_keep_the_guarantee() -> None:
    # Lost updates take depth 2.  Over many seeds the frequency must reach what is promised.
    result = randomly(incr(2, 1), 2, 1)
    bound = result.bound
    assert (bound["threads"], bound["turns"]) == (2, 4)
    promised = guarantee(2, 4, 2)
    seeds = 400
    machine = handshake(1)
    hits = sum("exception" in violated(one_run(machine, seed)) for seed in range(seeds))
    spread = 3 * math.sqrt(promised * (1 - promised) / seeds)
    assert hits / seeds >= promised - spread


def one_run(machine: Machine, seed: int) -> PartialExploration:
    """One run of depth 2, after the pilots, which have depth 1 and cannot find it."""
    assert violated(randomly(machine, 1, 50, seed)) == set()
    return randomly(machine, 2, 1, seed)


class Loaded:
    """Dice that fall as they are told, and say how probable that was."""

    def __init__(self, order: list[int], moment: int, picks: tuple[int, ...]) -> None:
        self.order, self.moment, self.picks = order, moment, picks
        self.sizes: list[int] = []

    def shuffle(self, threads: list[int]) -> None:
        threads[:] = self.order

    def randint(self, least: int, most: int) -> int:
        assert least <= self.moment <= most
        return self.moment

    def choice(self, outcomes: list[Outcome]) -> Outcome:
        at = len(self.sizes)
        self.sizes.append(len(outcomes))
        return outcomes[self.picks[at] if at < len(self.picks) else 0]


def test_the_chance_of_a_run_is_what_is_promised() -> None:
    """Added up over all that a run of depth 2 can draw; one in two is a choice of the threads."""
    graph = Situations(question("z36", BUG).build().machine)
    turns = randomly(question("z36", BUG).build().machine, 2, 200).bound["turns"]
    threads = [*graph.regular]
    chance = 0.0
    for order in permutations(threads):
        for moment in range(1, turns + 1):
            todo: list[tuple[int, ...]] = [()]
            while todo:
                dice = Loaded([*order], moment, todo.pop())
                findings = Findings(PartialExploration())
                run = _Runs(graph, 2, dice, findings, longest=turns)  # type: ignore[arg-type]
                run.one(1)
                for at in range(len(dice.picks), len(dice.sizes)):
                    known = (*dice.picks, *(0,) * (at - len(dice.picks)))
                    todo += [(*known, other) for other in range(1, dice.sizes[at])]
                if "leftover" in violated(findings.result):
                    chance += 1 / (math.factorial(len(threads)) * turns * math.prod(dice.sizes))
    assert chance == pytest.approx(guarantee(len(threads), turns, 2) / 2)


@pytest.mark.parametrize(("entry", "depth", "seed"), [("z36", 2, 0), ("z10", 3, 1), ("z2", 3, 0)])
def test_a_bug_of_small_depth_is_found_and_its_fix_is_not_flagged(
    entry: str, depth: int, seed: int
) -> None:
    found = ask_partly(question(entry, BUG), random_runs(depth, 300, seed))
    assert found.status == VIOLATED
    clean = ask_partly(question(entry, FIXED), random_runs(depth, 300, seed))
    assert clean.status == BUDGET
    assert "holds" not in clean.sentence()
    bound = clean.exploration.bound
    assert bound["probability"] == guarantee(bound["threads"], bound["turns"], depth)
    one_in = bound["threads"] * bound["turns"] ** (depth - 1)
    assert f"= 1/{one_in:,}" in clean.sentence()


def test_depth_1_does_not_find_what_takes_a_change() -> None:
    assert ask_partly(question("z36", BUG), random_runs(1, 300, 0)).status == BUDGET


def test_the_seed_determines_the_runs() -> None:
    def schedule(seed: int) -> list[tuple[int, tuple[int, ...]]]:
        found = search_partly(
            question("z2", BUG).build().machine, partial(pct, depth=3, runs=30, seed=seed)
        ).violations
        return [(turn.thread, turn.alternatives) for one in found for turn in one.turns]

    assert schedule(1) == schedule(1)
    assert len({tuple(schedule(seed)) for seed in range(4)}) > 1


def test_who_waits_by_going_round_lets_others_in() -> None:
    result = randomly(spin(owner="sets"), 2, 50)
    assert not result.violations
    assert result.bound["turns"] < 100
    assert not result.bound["given_up"]


def test_choices_are_counted() -> None:
    layout = Layout()

    async def chooses() -> None:
        for _ in range(3):
            await Choose("?", (0, 1))

    result = randomly(make_machine(layout, [chooses]), 1, 20)
    assert result.bound["bits_drawn"] == 3
    assert "up to 2^3 ways in a run" in result.stopped


@pytest.mark.parametrize("search", [random_runs(2, 300, 0), few_switches(2)])
def test_an_interrupted_search_keeps_what_it_found(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = question("z2", BUG)
    assert ask_partly(asked, search).tokens
    calls = 0
    outcomes = Situations.outcomes

    def then_interrupted(self: Situations, situation: Situation, thread: int) -> list[Outcome]:
        nonlocal calls
        calls += 1
        if calls == 2000:
            raise KeyboardInterrupt
        return outcomes(self, situation, thread)

    monkeypatch.setattr(Situations, "outcomes", then_interrupted)
    verdict = ask_partly(asked, search)
    assert calls == 2000
    assert verdict.exploration.stopped == INTERRUPTED
    assert exit_code(verdict) == 130
    assert "flush-owed" in verdict.tokens


# --- the command line -----------------------------------------------------------------------------


def test_verdicts_exit_codes_and_tokens() -> None:
    run = CliRunner().invoke
    bad = run(app, [*Z36, "--patch", "z36", "--mode", "context-bounded", "--switches", "1"])
    assert bad.exit_code == 1
    assert "violated: leftover (harm)" in bad.stdout
    token = bad.stdout.split("tdpmmu explain ")[1].split()[0]
    shown = run(app, ["explain", token])
    assert shown.exit_code in (0, 1)
    assert "leftover" in shown.stdout
    good = run(app, [*Z36, "--mode", "context-bounded", "--switches", "1"])
    assert good.exit_code == 3
    assert "nothing found within the budget: all executions with at most 1" in good.stdout
    as_json = run(app, [*Z36, "--mode", "pct", "--depth", "2", "--runs", "50", "--json"])
    assert as_json.exit_code == 3
    answer = json.loads(as_json.stdout)
    assert answer["verdict"] == "budget"
    assert answer["bound"]["mode"] == "pct"
    assert answer["bound"]["runs"] == 50


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mode", "random"], "--mode random: expected exhaustive, pct, context-bounded"),
        (["--runs", "5"], "--runs is of --mode pct"),
        (["--mode", "pct", "--switches", "1"], "--switches is of --mode context-bounded"),
        (["--mode", "pct", "--depth", "0"], "--depth 0: expected 1 to 100"),
        (["--mode", "pct", "--runs", "0"], "--runs 0: at least 1"),
        (["--mode", "pct", "--seed", "-1"], "--seed -1: at least 0"),
        (["--mode", "context-bounded", "--switches", "-1"], "--switches -1: at least 0"),
        (["--mode", "pct", "--workers", "2"], "--workers takes --mode exhaustive, not pct"),
    ],
)
def test_what_makes_no_sense_is_refused(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, [*Z36, *options])
    assert result.exit_code == 2 or said in str(result.exception)
    assert said in result.output or said in str(result.exception)
