"""Searches that are killed, and go on from their file as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from toys import CHOICES, LOCKING, random_program

from tdpmmu.scenarios.question import BUDGET, ask
from tdpmmu.scenarios.zoo.run import BUG, FIXED, question
from tdpmmu.worlds.explore import progress
from tdpmmu.worlds.explore.exploration import INTERRUPTED, Budget
from tdpmmu.worlds.explore.search import PLAIN, explore

pytest.importorskip("numba")

import numpy as np
from test_compiled import same

from tdpmmu.worlds.explore.fast import checkpoint as module
from tdpmmu.worlds.explore.fast import loop
from tdpmmu.worlds.explore.fast.checkpoint import Checkpoint, CheckpointError
from tdpmmu.worlds.explore.fast.learner import Learner


class Killed(BaseException):
    """Stands for kill -9: nothing is done after it."""


def dying(path: Path, saves: int, *, resume: bool) -> Checkpoint:
    """A checkpoint at every slice; after some of them the process is gone."""
    keeper = Checkpoint(path, "x", resume=resume, every=0)
    real = keeper.save
    left = [saves]

    def save(one: Any) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        real(one)

    keeper.save = save  # type: ignore[method-assign]
    return keeper


@pytest.mark.parametrize("side", [BUG, FIXED])
@pytest.mark.parametrize("saves", [1, 4])
def test_killed_again_and_again(
    side: str, saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SLICE", 60)
    monkeypatch.setattr(module, "PIECE", 1000)
    build = question("z1", side).build
    plain = explore(build().machine, loop=PLAIN)
    path = tmp_path / "x"
    for attempt in range(100):
        try:
            keeper = dying(path, saves, resume=attempt > 0)
            found = explore(build().machine, keeper=keeper)
            break
        except Killed:
            keeper._db.close()
    assert attempt > 1
    same(plain, found)


def test_killed_with_guards_that_are_not_kept_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SLICE", 5)
    mistrusted = 0
    for seed in range(15):
        for kinds in (CHOICES, LOCKING):
            program = random_program(seed, kinds)
            plain = explore(program.build(), loop=PLAIN)
            path = tmp_path / f"{seed}{kinds is LOCKING}"
            for attempt in range(100):
                try:
                    keeper = dying(path, 2, resume=attempt > 0)
                    found = explore(program.build(), keeper=keeper)
                    break
                except Killed:
                    keeper._db.close()
            assert found.result.mistrusted == plain.result.mistrusted
            assert list(found.order) == list(plain.order)
            assert [v.prop for v in found.result.violations] == [
                v.prop for v in plain.result.violations
            ]
            mistrusted += bool(plain.result.mistrusted) and attempt > 0
    assert mistrusted >= 3


def test_a_budget_and_then_a_larger_one(tmp_path: Path) -> None:
    asked = question("z1", FIXED)
    path = tmp_path / "x"
    first = ask(
        asked, budget=Budget(states=700), keeper=Checkpoint(path, "x", resume=False)
    ).exploration
    assert first.stopped == "the budget of 700 states is used up"
    second = ask(asked, keeper=Checkpoint(path, "x", resume=True))
    assert second.exploration.exhausted
    assert second.sentence() == ask(asked).sentence()
    assert second.exploration.states == ask(asked).exploration.states


# --- from the command line --------------------------------------------------------------------

CHECK = [sys.executable, "-m", "tdpmmu.cli.main", "check", "nx-recovery", "--json"]
SIZE = ["--roots", "1", "--vcpus", "2", "--legacy", "0"]


def run(*more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CHECK, *SIZE, *more], capture_output=True, text=True)


def test_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "x"
    whole = json.loads(run().stdout)
    killed = 0
    for wait in (1.0, 1.5, 2.0, 60.0):
        option = "--resume" if path.exists() else "--checkpoint"
        process = subprocess.Popen(
            [*CHECK, *SIZE, option, str(path), "--every", "0"], stdout=subprocess.PIPE, text=True
        )
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < wait:
            time.sleep(0.02)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        out = process.communicate()[0]
    assert killed >= 1
    answer = json.loads(out)
    assert {**answer, "seconds": 0} == {**whole, "seconds": 0}


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert run("--vcpus", "0", "--checkpoint", str(path)).returncode == 4
    for more, what in (
        (["--checkpoint", str(path)], "is there already"),
        (["--resume", str(tmp_path / "no")], "no such file"),
        (["--resume", str(path)], "is of another question"),
        (["--resume", str(path), "--checkpoint", "y"], "leave --checkpoint out"),
        (["--checkpoint", str(tmp_path / "no" / "x")], "cannot be written"),
    ):
        done = run(*more)
        assert done.returncode == 2
        assert what in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The file of a finished search."""
    path = tmp_path / "x"
    explore(question("z1", FIXED).build().machine, keeper=Checkpoint(path, "x", resume=False))
    return path


def resumed(path: Path) -> Any:
    return explore(question("z1", FIXED).build().machine, keeper=Checkpoint(path, "x", resume=True))


def test_damage(saved: Path) -> None:
    resumed(saved)
    whole = saved.read_bytes()
    saved.write_bytes(whole[:5000])
    with pytest.raises(CheckpointError, match=r"x: (damaged|not a checkpoint)"):
        resumed(saved)
    saved.write_bytes(b"something else" * 1000)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        resumed(saved)
    for sql in (
        "UPDATE about SET value = CAST(value AS BLOB) WHERE key = 'state'",
        "UPDATE words SET data = 1 WHERE name = 'order'",
        "UPDATE words SET start = 'a' WHERE name = 'pool'",
        "DELETE FROM words WHERE name = 'journal'",
        "UPDATE words SET data = zeroblob(length(data)) WHERE name = 'order'",
        "DELETE FROM words WHERE name = 'pool'",
        "DELETE FROM about WHERE key = 'state'",
        "UPDATE about SET value = '{' WHERE key = 'state'",
        # One more state is said to have been searched.
        "UPDATE about SET value = '[{\"control\": [1' || substr(value, 15) WHERE key = 'state'",
        "UPDATE about SET value = replace(value, ', []]', ', [\"srcu\"]]') WHERE key = 'state'",
    ):
        saved.write_bytes(whole)
        with sqlite3.connect(saved) as db:
            db.execute(sql)
        db.close()
        with pytest.raises(CheckpointError, match="x: damaged"):
            resumed(saved)


def test_a_full_disk_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SLICE", 150)
    path = tmp_path / "x"
    keeper = Checkpoint(path, "x", resume=False, every=0)
    keeper._db.execute("PRAGMA max_page_count = 60")
    build = question("z1", FIXED).build
    with pytest.raises(CheckpointError, match="full; the last checkpoint in it is whole"):
        explore(build().machine, keeper=keeper)
    keeper._db.close()
    again = Checkpoint(path, "x", resume=True)
    assert again.state["control"][0] > 0
    same(explore(build().machine, loop=PLAIN), explore(build().machine, keeper=again))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_gone(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SLICE", 150)
    path = tmp_path / "x"
    keeper = Checkpoint(path, "x", resume=False, every=0)
    path.rename(tmp_path / "y")
    if replaced:
        path.touch()
    what = "another file is in its place" if replaced else "No such file or directory"
    with pytest.raises(CheckpointError, match=f"x: not written: {what}"):
        explore(question("z1", FIXED).build().machine, keeper=keeper)


def test_damage_that_shows_only_when_it_is_written(saved: Path) -> None:
    keeper = Checkpoint(saved, "x", resume=True)
    search = explore(question("z1", FIXED).build().machine, loop="compiled").compiled
    keeper._db.execute("PRAGMA writable_schema = ON")
    keeper._db.execute("UPDATE sqlite_master SET rootpage = 1 WHERE name = 'words'")
    keeper._db.execute("PRAGMA writable_schema = RESET")
    with pytest.raises(CheckpointError, match=r"x: damaged: .*malformed"):
        keeper.save(search)
    keeper.close()


def test_one_search_in_a_file_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x"
    first = Checkpoint(path, "x", resume=False)
    with pytest.raises(CheckpointError, match="x: another process keeps a search in it"):
        Checkpoint(path, "x", resume=True)
    first.close()
    Checkpoint(path, "x", resume=True).close()


def test_killed_before_anything_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    explore(question("z12", FIXED).build().machine, keeper=Checkpoint(path, "x", resume=True))
    again = Checkpoint(path, "x", resume=True)
    assert again.state["control"][0] > 0
    again.close()


@pytest.mark.parametrize("after", [1, 30])
@pytest.mark.parametrize("what", ["walk", "tell"])
def test_ctrl_c_in_the_middle_of_a_question(
    what: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    real = getattr(Learner, what)

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    build = question("z1", FIXED).build
    # Started in the background, it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patched:
        patched.setattr(Learner, what, interrupted)
        keeper = Checkpoint(tmp_path / "x", "x", resume=False)
        stopped = explore(build().machine, keeper=keeper).result.stopped
    signal.signal(signal.SIGINT, before)
    assert stopped == INTERRUPTED
    again = Checkpoint(tmp_path / "x", "x", resume=True)
    assert again.state["control"]
    same(explore(build().machine, loop=PLAIN), explore(build().machine, keeper=again))


def test_writing_takes_little_memory(tmp_path: Path) -> None:
    keeper = Checkpoint(tmp_path / "x", "x", resume=False)
    words = np.zeros(1 << 22, np.int64)
    tracemalloc.start()
    keeper._transaction({}, {"pool": words, "journal": words[:1000]}, [])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    keeper.close()
    assert most < loop.WRITING // 2


def test_what_is_half_known_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Learner.walk

    def fails(*arguments: Any) -> None:
        walk(*arguments)
        raise RuntimeError("half done")

    build = question("z1", FIXED).build
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "walk", fails)
        with pytest.raises(RuntimeError, match="half done"):
            explore(build().machine, keeper=Checkpoint(tmp_path / "x", "x", resume=False))
    again = Checkpoint(tmp_path / "x", "x", resume=True)
    assert not again.state
    same(explore(build().machine, loop=PLAIN), explore(build().machine, keeper=again))


def test_ctrl_c_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Checkpoint(tmp_path / "x", "x", resume=False)

    def interrupted(state: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(keeper, "_put_state", interrupted)
        found = explore(question("z1", FIXED).build().machine, keeper=keeper)
    assert found.result.stopped == INTERRUPTED
    again = Checkpoint(tmp_path / "x", "x", resume=True)
    assert not again.state
    again.close()


def test_ctrl_c_while_cycles_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(explorer: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "_report_cycle", interrupted)
    verdict = ask(question("z12", FIXED))
    assert (verdict.status, verdict.exploration.stopped) == (BUDGET, INTERRUPTED)


def test_code_that_does_something_else(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="the threads' code does not do what it did"):
        explore(question("z1", BUG).build().machine, keeper=Checkpoint(saved, "x", resume=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_was_found_is_kept_when_a_batch_system_ends_it(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Learner.walk
    build = question("z1", FIXED).build

    def ended(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return real(*arguments)

    before = signal.signal(number, signal.SIG_DFL)
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "walk", ended)
        keeper = Checkpoint(tmp_path / "x", "x", resume=False)
        stopped = explore(build().machine, keeper=keeper).result.stopped
    assert signal.getsignal(number) == signal.SIG_DFL
    signal.signal(number, before)
    assert stopped == INTERRUPTED
    same(explore(build().machine, loop=PLAIN), resumed(tmp_path / "x"))
