"""Searches by several processes: states, their order, findings and tokens are those of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from toys import CHOICES, EVERYTHING, LOCKING, WITH_RCU, incr, mutex_incr, random_program

from tdpmmu.distribute.executor import DistributeError
from tdpmmu.machine.thread import Machine
from tdpmmu.scenarios.question import ask
from tdpmmu.scenarios.zoo import entries
from tdpmmu.scenarios.zoo.run import BUG, FIXED, question
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.exploration import INTERRUPTED, Budget
from tdpmmu.worlds.explore.position.refusal import UnsupportedPosition
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.search import PLAIN, explore
from tdpmmu.worlds.explore.turn import Turn

pytest.importorskip("numba")

from tdpmmu.worlds.explore.parallel import kernels, worker
from tdpmmu.worlds.explore.parallel.naming import Constants, Names
from tdpmmu.worlds.explore.parallel.search import explore_on

FIGURES = ("states", "transitions", "depth", "shared", "exhausted", "stopped", "liveness")


def contents(explorer: Explorer, numbers: range) -> list[Any]:
    """States as what they are, whoever has numbered what is in them."""
    found = []
    names = Names()
    for number in numbers:
        shared_number, positions = explorer.unpack(explorer.order[number])
        shared = explorer.shared[shared_number]
        tables = explorer.positions
        keys = [names.digest(t._keys[at]) for t, at in zip(tables, positions, strict=True)]
        found.append((plain(explorer.chunks.state(shared)), keys))
    return found


def plain(value: Any) -> Any:
    """A value of one machine as that of another would be written."""
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def broken(turn: Turn) -> list[tuple[str, str]]:
    """What a turn breaks."""
    return [(ghost.name, text) for ghost, text in turn.violations]


def told(explorer: Explorer) -> list[Any]:
    """Findings, without what has numbers or is an object of one process."""
    return [
        (
            found.prop,
            found.kind,
            found.sentence,
            found.state,
            [
                (turn.thread, turn.alternatives, turn.events, turn.failure, broken(turn))
                for turn in found.turns
            ],
        )
        for found in explorer.result.violations
    ]


def same(one: Explorer, many: Explorer) -> None:
    """Everything that can be told from two searches is equal."""
    for figure in (*FIGURES, "mistrusted", "unseen"):
        wanted = getattr(one.result, figure)
        assert getattr(many.result, figure) == wanted or not one.result.exhausted, figure
    for figure in ("states", "transitions", "depth", "stopped", "unseen"):
        assert getattr(many.result, figure) == getattr(one.result, figure), figure
    assert told(many) == told(one)
    assert len(many.order) == len(one.order)
    some = range(0, len(one.order), 1 + len(one.order) // 200)
    assert contents(many, some) == contents(one, some)
    assert [many.parents[n] for n in some] == [one.parents[n] for n in some]


def compare(make: Callable[[], Machine], workers: int, **options: Any) -> Explorer:
    """Search alone and together."""
    one = explore(make(), loop=PLAIN, **options)
    many = explore_on(make(), workers, **options)
    for explorer in (one, many):
        check_progress(explorer)
    same(one, many)
    return many


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_known_programs(workers: int) -> None:
    for make in (lambda: incr(2, 3), lambda: mutex_incr(3, 2)):
        for reduce in (True, False):
            compare(make, workers, reduce=reduce)


@pytest.mark.parametrize("kinds", [CHOICES, LOCKING, EVERYTHING, WITH_RCU])
def test_random_programs(kinds: tuple[str, ...]) -> None:
    for seed in range(12):
        options = [{}, {"first": True}, {"reduce": False}][seed % 3]
        compare(random_program(seed, kinds).build, 2 + seed % 2, **options)


ZOO = [one for one in entries() if one.id in ("z1", "z4", "z6", "z13", "z20", "z33", "z61")]


@pytest.mark.parametrize("one", ZOO, ids=lambda one: one.id)
def test_zoo(one: Any) -> None:
    budget = Budget(states=3_000)
    compare(lambda: question(one.id, BUG).build().machine, 2, budget=budget, first=one.prop)
    compare(lambda: question(one.id, FIXED).build().machine, 2, budget=budget)


@pytest.mark.parametrize("name", ["z1", "z2"])
def test_tokens(name: str) -> None:
    asked = question(name, BUG)
    one, two, three = (ask(asked, workers=workers) for workers in (1, 2, 3))
    assert one.tokens == two.tokens == three.tokens != {}
    assert one.sentence() == two.sentence() == three.sentence()


def test_arrays_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything begins with next to no room."""
    store, known = worker.Store, worker.Known
    monkeypatch.setattr(worker, "Store", lambda ctl, states: store(ctl, states=8))
    monkeypatch.setattr(worker, "Known", lambda ctl, chunks: known(ctl, chunks, shared=4))
    monkeypatch.setattr(worker, "CANDIDATES", 8)
    compare(lambda: question("z1", FIXED).build().machine, 2)


def test_a_lost_state_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests rest on: workers that lose states do not pass."""
    real = kernels.insert

    def forgetful(ctl: Any, *rest: Any) -> Any:
        code, new = real(ctl, *rest)
        if new > 3:
            ctl[worker.c.COUNT] -= 1
            new -= 1
        return code, new

    monkeypatch.setattr(kernels, "insert", forgetful)
    with pytest.raises(AssertionError):
        compare(lambda: incr(2, 3), 2)


def test_a_report_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = worker.Worker._level

    def silent(self: Any) -> Any:
        level = real(self)
        if level is not None and self.peers.number == 1:
            level.found = []
        return level

    monkeypatch.setattr(worker.Worker, "_level", silent)

    def all_of_them() -> None:
        for name in ("z1", "z2", "z6"):
            asked = question(name, BUG)
            compare(lambda asked=asked: asked.build().machine, 2)

    with pytest.raises(AssertionError):
        all_of_them()


def test_a_dead_worker_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = worker.Worker._level

    def die(self: Any) -> Any:
        if self.depth == 5 and self.peers.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self)

    monkeypatch.setattr(worker.Worker, "_level", die)
    with pytest.raises(DistributeError, match=r"^worker 1 of 2 died: signal 9"):
        explore_on(question("z1", FIXED).build().machine, 2)


def test_code_that_cannot_be_explored_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, code: int) -> None:
        when = self._now().state
        if when >= 50:
            raise UnsupportedPosition(f"at state {when}")
        real(self, code)

    real = worker.Worker._fill
    monkeypatch.setattr(worker.Worker, "_fill", refuse)
    said = []
    for workers in (1, 2):
        with pytest.raises(UnsupportedPosition, match="at state") as found:
            explore_on(question("z1", FIXED).build().machine, workers)
        said.append(int(str(found.value).split()[-1]))
    assert said[1] <= said[0] + 50


def test_ctrl_c_keeps_what_was_found() -> None:
    def interrupt(explorer: Explorer) -> None:
        if explorer.result.states > 500 and not explorer.result.stopped:
            raise KeyboardInterrupt

    found = explore_on(question("z1", FIXED).build().machine, 2, progress=interrupt)
    assert found.result.stopped == INTERRUPTED
    assert not found.result.exhausted
    assert 500 < found.result.states < 4000


def test_values_of_many_kinds_travel() -> None:
    cell = incr(2, 1).layout
    constants = Constants()
    value = (1, None, "x", frozenset({2, 3}), (cell, len))
    again = constants.loads(constants.dumps(value))
    assert again == value
    assert again[4][0] is cell


def test_the_command() -> None:
    def run(*more: str) -> tuple[int, Any, str]:
        command = [sys.executable, "-m", "tdpmmu.cli.main", "check", "nx-recovery"]
        command += ["--vcpus", "1", "--kernel", "5.12-rc4", "--json", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout or "null"), done.stderr

    code, one, _ = run()
    assert code == 1
    for workers in ("2", "3"):
        again, many, _ = run("--workers", workers)
        assert again == code
        one["seconds"] = many["seconds"] = 0
        assert many == one
    code, _, error = run("--workers", "-1")
    assert code == 2
    assert error.startswith("tdpmmu: --workers: expected")
