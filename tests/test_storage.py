"""Sets that leave states out: as in plain Python, never "holds", and what is found is real."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import pytest
from test_each_reduction import flipping
from toys import LOCKING, incr, random_program, random_rounds

from tdpmmu.scenarios.question import BUDGET, VIOLATED, Verdict, ask
from tdpmmu.scenarios.token import decode, reproduce
from tdpmmu.scenarios.zoo import entries
from tdpmmu.scenarios.zoo.run import BUG, FIXED, question
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.exploration import Budget
from tdpmmu.worlds.explore.memory import LEAST_COMPILED
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.reductions import ALL
from tdpmmu.worlds.explore.search import COMPILED, explore
from tdpmmu.worlds.explore.storage import (
    BITSTATE,
    COMPACT,
    Bits,
    Fingerprints,
    Left,
    Storage,
    mix,
    state_hash,
)

pytest.importorskip("numba")

from tdpmmu.worlds.explore.fast import loop, lossy, store

KINDS = [COMPACT, BITSTATE]


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """States are given back, and fields made narrow, though there are few."""
    monkeypatch.setattr(loop, "SLICE", 100)
    monkeypatch.setattr(store, "MANY", 300)


def reference(explorer: Explorer, kind: str) -> tuple[list[int], int, float]:
    """States, turns and what was left out, by a search in plain Python.

    It knows what the threads can do from a search with the same set, of which it takes the numbers.
    """
    assert explorer.storage is not None
    assert explorer.compiled is not None
    size = explorer.storage.size
    known: Fingerprints | Bits = Fingerprints(size // 4) if kind == COMPACT else Bits(size // 64)
    threads = explorer.machine.threads
    start = explorer.compiled.store
    start.begin_again()  # type: ignore[attr-defined]
    order = [explorer.order[0]]
    known.add(state_hash(*explorer.unpack(order[0])))
    turns = 0
    for key in order:
        found = explorer.successors(key)
        if not all(threads[thread].alone for thread, _, _ in found):
            found = [one for one in found if not threads[one[0]].alone]
        for _, successor, _ in found:
            turns += 1
            if known.add(state_hash(*explorer.unpack(successor))):
                order.append(successor)
    return order, turns, known.taken()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1 << 10, 1 << 13, 1 << 20])
def test_the_same_as_in_plain_python(kind: str, size: int) -> None:
    left_out = 0
    for make in (
        lambda: incr(3, 2),
        lambda: question("z1", FIXED).build().machine,
        lambda: random_program(3, LOCKING).build(),
    ):
        found = explore(make(), storage=Storage(kind, size))
        result, left = found.result, found.result.left
        assert left is not None
        if "full" in result.stopped:
            assert kind == COMPACT
            assert result.states <= size // 4 // 8 * 7
            continue
        order, turns, taken = reference(found, kind)
        assert (result.states, result.transitions) == (len(order), turns)
        assert left.taken == pytest.approx(taken, rel=1e-3, abs=1e-3)
        exact = explore(make(), loop=COMPILED).result
        left_out += exact.states - result.states
        if size == 1 << 20 and kind == COMPACT:
            assert (result.states, result.transitions) == (exact.states, exact.transitions)
    if size == 1 << 10 and kind == BITSTATE:
        assert left_out > 0


def test_hashes_are_those_of_plain_python() -> None:
    dice = random.Random(1)
    for _ in range(100):
        row = [dice.randrange(1 << 20) for _ in range(dice.randrange(1, 9))]
        hashed = int(lossy.hash_row(loop.np.array(row, "int64")))
        assert hashed == state_hash(row[-1], row[:-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("one", [e for e in entries() if e.id in ("z1", "z2", "z6", "z9", "z23")])
def test_bugs_of_the_zoo_are_found(kind: str, one: Any) -> None:
    """With the same token as without, since nothing was left out on the way there."""
    asked = question(one.id, BUG)
    found = ask(asked, first=one.prop, storage=Storage(kind, 1 << 22))
    assert found.status == VIOLATED
    exact = ask(asked, first=one.prop, loop=COMPILED)
    assert found.tokens[one.prop] == exact.tokens[one.prop]
    assert reproduce(decode(found.tokens[one.prop])).sentence


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_after_a_breach_as_if_nothing_had_been_searched_again(kind: str) -> None:
    asked = question("z2", BUG)
    found = ask(asked, storage=Storage(kind, 1 << 24))
    exact = ask(asked, loop=COMPILED)
    assert len(found.violations) >= 2
    others = [one.prop for one in exact.violations if one.prop != "no-progress"]
    assert [one.prop for one in found.violations] == others
    assert found.exploration.states == exact.exploration.states
    assert found.exploration.transitions == exact.exploration.transitions
    assert all(found.tokens[prop] == exact.tokens[prop] for prop in others)


def verdict(kind: str, size: int) -> tuple[Verdict, Left]:
    found = ask(question("z1", FIXED), storage=Storage(kind, size))
    assert found.exploration.left is not None
    return found, found.exploration.left


def test_it_never_holds() -> None:
    exact = ask(question("z1", FIXED)).exploration
    for kind in KINDS:
        found, left = verdict(kind, 1 << 24)
        assert found.status == BUDGET
        assert not found.exploration.exhausted
        assert found.exploration.states == exact.states
        assert found.exploration.liveness == "checked for the states visited"
        assert 0.999 < left.coverage <= 1
        assert f"{exact.states:,} states visited" in found.sentence()
        assert "states met estimated 99.99" in found.sentence().replace("more than ", "")
        assert "100 %" not in found.sentence()


def test_cycles_without_progress_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same token as without such a set, or none; and with the same way round."""
    for name, cyclic in (("z16", True), ("z49", True), ("z34", False), ("z12", False)):
        for side in (BUG, FIXED):
            exact = ask(question(name, side), loop=COMPILED)
            assert ("no-progress" in exact.tokens) == (cyclic and side == BUG)
            for kind in KINDS:
                found = ask(question(name, side), storage=Storage(kind, 1 << 24))
                assert found.exploration.liveness == "checked for the states visited"
                assert found.tokens == exact.tokens
    cycles = 0
    for seed in range(40):
        monkeypatch.setattr(loop, "SLICE", seed % 4 + 1)
        exact, found = (
            explore(random_rounds(seed), loop=COMPILED, storage=storage)
            for storage in (None, Storage(KINDS[seed % 2], 1 << 20))
        )
        for one in (exact, found):
            check_progress(one)
        assert [(one.prop, one.turns) for one in found.result.violations] == [
            (one.prop, one.turns) for one in exact.result.violations
        ]
        cycles += any(one.prop == "no-progress" for one in found.result.violations)
    assert 10 <= cycles <= 35


def test_no_cycles_are_looked_for_in_what_was_cut_short() -> None:
    found = ask(question("z16", BUG), budget=Budget(states=10), storage=Storage(COMPACT, 1 << 20))
    assert found.exploration.liveness == "not checked: search not exhausted"
    assert not found.tokens


def test_memory_that_cycles_do_not_fit_into(monkeypatch: pytest.MonkeyPatch) -> None:
    found = explore(question("z16", BUG).build().machine, storage=Storage(COMPACT, 1 << 20))
    assert found.compiled is not None
    monkeypatch.setattr(type(found.compiled), "memory_left", lambda self: -1)
    assert check_progress(found) == "not checked: the budget of memory is used up"
    assert not found.result.violations


@pytest.mark.parametrize("kind", KINDS)
def test_urgent_turns_that_put_others_off_for_ever(kind: str) -> None:
    found = explore(flipping(), reduce=ALL, storage=Storage(kind, 1 << 20))
    assert [one.prop for one in found.result.violations] == ["never-then"]
    assert found.result.mistrusted == ("what nobody can see comes to an end",)


def test_tables_that_are_too_small() -> None:
    exact = ask(question("z1", FIXED)).exploration
    found, left = verdict(BITSTATE, 1 << 9)
    assert found.exploration.states < exact.states
    assert 0.5 < left.coverage < 0.99
    assert "kept as 3 bits each (bitstate) in 512 bytes" in found.sentence()
    found, left = verdict(COMPACT, 1 << 11)
    assert found.exploration.states <= (1 << 9) // 8 * 7
    assert "the table of states is full" in found.sentence()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_expected_is_what_happens(kind: str) -> None:
    """Of random hashes, so many are taken for others as the set says."""
    known = Bits(200) if kind == BITSTATE else Fingerprints(40_000)
    shorter = (1 << 64) - 1 if kind == BITSTATE else 0xFFFFFFFF000000FF  # tags of 8 bits
    count = 33_000
    new = sum(known.add(mix(i) & shorter) for i in range(count))
    taken = known.taken() * (1 if kind == BITSTATE else 0xFFFFFFFF / 255)
    assert count - new > 100
    assert taken == pytest.approx(count - new, rel=0.15)


def test_other_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    found = explore(incr(3, 2), storage=Storage(COMPACT, 1 << 16), budget=Budget(states=50))
    assert "the budget of 50 states is used up; " in found.result.stopped
    assert found.result.left is not None


def run(*more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tdpmmu.cli.main", "check", *more]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command() -> None:
    small = ["nx-recovery", "--roots", "1", "--legacy", "0", "--json"]
    done = run(*small, "--storage", "bitstate", "--memory", "2048")
    assert done.returncode == 3
    answer = json.loads(done.stdout)
    assert answer["storage"]["kind"] == "bitstate"
    assert answer["storage"]["bytes"] == 1 << 30
    assert answer["verdict"] == "budget"
    for more, what in (
        (["nx-recovery", "--storage", "x"], "expected exact, compact, bitstate"),
        (["nx-recovery", "--checkpoint", "x"], "--checkpoint takes --storage exact"),
        (["nx-recovery", "--mode", "pct"], "--mode takes --storage exact"),
        ([], "the table takes --storage exact"),
    ):
        done = run("--storage", "compact", *more)
        assert done.returncode == 2
        assert what in done.stderr
        assert len(done.stderr.splitlines()) == 1


WATCHED = """
import atexit, runpy, sys
from tdpmmu.worlds.explore.memory import most_resident
atexit.register(lambda: print(most_resident() >> 20, file=sys.stderr))
runpy.run_module("tdpmmu.cli.main", run_name="__main__")
"""


def peak(*more: str) -> tuple[dict[str, Any], float]:
    """What a search in a process of its own says, and the MiB that it took."""
    command = [sys.executable, "-c", WATCHED, "check", "nx-recovery", "--json"]
    command += ["--loop", "compiled", "-k", "5.12-rc4", "-p", "flush-on-nx-zap", *more]
    command += ["-p", "flush-when-yielding", "--fanout", "4", "--vcpus", "3", "--nx-pages", "3"]
    command += ["--legacy", "3", "--gfns", "4", "--faults", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    return json.loads(done.stdout), float(done.stderr.splitlines()[-1])


def test_a_budget_of_memory_is_kept_to() -> None:
    _, least = peak("--states", "5000")
    memory = max(int(least) + 40, LEAST_COMPILED)
    answer, most = peak("--memory", str(memory))
    assert answer["verdict"] == "budget"
    assert answer["stopped"] == f"the budget of {memory:,} MiB is used up"
    assert answer["states"] > 20_000
    assert least < most <= memory
