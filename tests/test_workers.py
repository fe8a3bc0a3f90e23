"""Searches by several threads: what they leave is, to the last bit, what one leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toys import CHOICES, EVERYTHING, LOCKING, WITH_RCU, incr, mutex_incr, random_program

from tdpmmu.machine.thread import Machine
from tdpmmu.scenarios.question import ask
from tdpmmu.scenarios.zoo import entries
from tdpmmu.scenarios.zoo.run import BUG, FIXED, question
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.exploration import INTERRUPTED, Budget
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.search import COMPILED, explore
from tdpmmu.worlds.explore.storage import Storage

pytest.importorskip("numba")

from tdpmmu.worlds.explore.fast import control, crew, loop, store
from tdpmmu.worlds.explore.fast.checkpoint import Checkpoint
from tdpmmu.worlds.explore.fast.known import Known
from tdpmmu.worlds.explore.fast.store import Store

FIGURES = ("states", "transitions", "depth", "shared", "exhausted", "stopped", "liveness", "unseen")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few states, for searches of a few hundred."""
    monkeypatch.setattr(crew, "AT_ONCE", 8)
    monkeypatch.setattr(crew, "RING", 3)
    monkeypatch.setattr(crew, "MANY", 0)
    monkeypatch.setattr(loop, "SHARED_SLICE", 100)
    monkeypatch.setattr(loop, "SLICE", 100)


def told(explorer: Explorer) -> list[Any]:
    """Findings."""
    return [
        (
            *(found.prop, found.kind, found.sentence, found.state),
            [(t.thread, t.alternatives, t.shared, t.position, t.events) for t in found.turns],
        )
        for found in explorer.result.violations
    ]


def arrays(searched: loop.CompiledLoop) -> list[Any]:
    """What a search has filled."""
    known, ctl = searched.known, searched.store.ctl
    used, shared = int(ctl[control.USED]), int(ctl[control.SHARED])
    rows = known.values[: shared * known.chunks]
    exact = searched.explorer.storage is None  # or else states are given back, sooner or later
    order = searched.store.order if exact else ctl[: control.CURRENT + 1]
    return [order, searched.store.links(), known.pool[:used], rows]


def same(one: Explorer, two: Explorer) -> None:
    """Everything is equal, down to how states are packed."""
    assert one.compiled is not None
    assert two.compiled is not None
    for figure in FIGURES:
        assert getattr(two.result, figure) == getattr(one.result, figure), figure
    assert told(two) == told(one)
    assert two.compiled.journal == one.compiled.journal
    for mine, theirs in zip(arrays(one.compiled), arrays(two.compiled), strict=True):
        assert mine.tobytes() == theirs.tobytes()


def compare(make: Callable[[], Machine], workers: int = 2, **options: Any) -> Explorer:
    """Search with one and with several, and look for cycles, too."""
    one, many = (explore(make(), loop=COMPILED, workers=n, **options) for n in (1, workers))
    for explorer in (one, many):
        check_progress(explorer)
    same(one, many)
    return many


def together(explorer: Explorer) -> int:
    """How many batches the threads have shared."""
    assert explorer.compiled is not None
    assert explorer.compiled.crew is not None
    return explorer.compiled.crew.shared


def test_known_programs() -> None:
    for make in (lambda: incr(2, 3), lambda: incr(3, 2), lambda: mutex_incr(3, 2)):
        for workers in (2, 3, 5):
            assert together(compare(make, workers, reduce=False)) > 5
        compare(make)


@pytest.mark.parametrize("kinds", [CHOICES, LOCKING, EVERYTHING, WITH_RCU])
def test_random_programs(kinds: tuple[str, ...]) -> None:
    for seed in range(30):
        for options in ({}, {"first": True}, {"reduce": False}):
            compare(random_program(seed, kinds).build, 2 + seed % 2, **options)


ZOO = [one for one in entries() if one.id in ("z1", "z13b", "z16", "z20", "z33", "z61")]


@pytest.mark.parametrize("one", ZOO, ids=lambda one: one.id)
def test_zoo(one: Any) -> None:
    compare(lambda: question(one.id, BUG).build().machine, first=one.prop)
    for side in (BUG, FIXED):
        found = compare(lambda side=side: question(one.id, side).build().machine)
        if found.result.states > 500:
            assert together(found) > 5


@pytest.mark.parametrize("states", [700, 900])
def test_budgets_of_states(states: int) -> None:
    """They end a search at the same state, and before that two threads search."""
    found = compare(
        lambda: question("z1", FIXED).build().machine, budget=Budget(states=states), reduce=False
    )
    assert states < found.result.states < states + 20
    assert together(found) > 3


@pytest.mark.parametrize("kind", ["compact", "bitstate"])
def test_sets_that_leave_states_out(kind: str) -> None:
    for name in ("z1", "z33"):
        for side in (BUG, FIXED):
            found = compare(
                lambda name=name, side=side: question(name, side).build().machine,
                storage=Storage(kind, 1 << 20),
            )
            assert together(found) > 3


def test_tokens() -> None:
    one, two = (ask(question("z1", BUG), workers=n, loop=COMPILED) for n in (1, 2))
    assert one.tokens == two.tokens != {}
    assert one.sentence() == two.sentence()


def test_arrays_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything begins with next to no room; states are packed anew while two threads search."""
    monkeypatch.setattr(loop, "Store", lambda ctl: Store(ctl, states=8))
    monkeypatch.setattr(loop, "Known", lambda ctl, chunks: Known(ctl, chunks, shared=4))
    monkeypatch.setattr(store, "MANY", 0)
    monkeypatch.setattr(store, "tight_bits", store.least_bits)
    assert together(compare(lambda: question("z1", FIXED).build().machine)) > 5
    assert together(compare(lambda: incr(3, 2), reduce=False)) > 5


def test_what_found_no_room_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no memory in the middle: what was not added is not lost for whoever goes on."""
    build = question("z1", FIXED).build
    whole = explore(build().machine, loop=COMPILED)
    monkeypatch.setattr(loop, "Store", lambda ctl: Store(ctl, states=300))
    keeper = Checkpoint(tmp_path / "x", "x", resume=False)
    with monkeypatch.context() as patched:
        patched.setattr(loop.CompiledLoop, "more_states", lambda self, narrow=False: False)
        stopped = explore(build().machine, keeper=keeper, workers=2, budget=Budget(memory=1 << 20))
    assert stopped.result.stopped == "the budget of 1,048,576 MiB is used up"
    assert together(stopped) > 5
    assert 100 < stopped.result.states < whole.result.states
    keeper._db.close()
    again = explore(build().machine, keeper=Checkpoint(tmp_path / "x", "x", resume=True), workers=2)
    for figure in ("states", "transitions", "depth", "exhausted"):
        assert getattr(again.result, figure) == getattr(whole.result, figure)
    assert [again.order[n] for n in range(50)] == [whole.order[n] for n in range(50)]


def test_ctrl_c_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = crew.Crew._lead

    def interrupted(self: crew.Crew, end: int) -> int:
        if self._loop.store.ctl[control.CURRENT] > 400:
            raise KeyboardInterrupt
        return real(self, end)

    monkeypatch.setattr(crew.Crew, "_lead", interrupted)
    found = explore(question("z1", FIXED).build().machine, workers=2, loop=COMPILED)
    assert found.result.stopped == INTERRUPTED
    assert found.compiled is not None
    whole = explore(question("z1", FIXED).build().machine, loop=COMPILED)
    assert [whole.order[n] for n in range(len(found.order))] == list(found.order)


def test_a_lost_state_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests rest on: threads that lose a state do not pass."""
    real = crew.Crew._lead

    def forgetful(self: crew.Crew, end: int) -> int:
        self._loop.store.ctl[control.CURRENT] += not self._under_way()
        return real(self, end)

    monkeypatch.setattr(crew.Crew, "_lead", forgetful)
    with pytest.raises(AssertionError):
        compare(lambda: incr(3, 2), reduce=False)


def test_the_command(tmp_path: Path) -> None:
    def run(*more: str) -> tuple[int, Any, str]:
        command = [sys.executable, "-m", "tdpmmu.cli.main", "check", "nx-recovery"]
        command += ["--vcpus", "1", "--kernel", "5.12-rc4", "--json", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout or "null"), done.stderr

    code, one, _ = run()
    assert code == 1
    for more in (["--workers", "2"], ["--workers", "0", "--checkpoint", str(tmp_path / "x")]):
        again, many, _ = run(*more)
        assert again == code
        one["seconds"] = many["seconds"] = 0
        assert many == one
    for wrong in (["--workers", "-1"], ["--workers", "2", "--loop", "plain"]):
        code, _, error = run(*wrong)
        assert code == 2
        assert error.startswith("tdpmmu: --workers: ")
    code, _, error = run("--workers", "2", "--mode", "pct")
    assert code == 2
