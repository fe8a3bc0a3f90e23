"""Many tasks: campaigns, sweeps and the zoo, on every engine, killed and resumed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tdpmmu.cli.sweep import answer as sweep_answer
from tdpmmu.cli.zoo import _ask as zoo_ask
from tdpmmu.distribute.engines import open_executor
from tdpmmu.distribute.journal import Journal, JournalError, map_kept
from tdpmmu.distribute.local import LocalExecutor
from tdpmmu.scenarios import campaign
from tdpmmu.scenarios.campaign import batches, run_batch, summarize
from tdpmmu.scenarios.question import Question
from tdpmmu.scenarios.random_scripts import scripts
from tdpmmu.scenarios.random_shadow import shadow_scripts
from tdpmmu.scenarios.script import Script, programs
from tdpmmu.scenarios.zoo import entry
from tdpmmu.worlds.explore import progress

CAMPAIGN = ["campaign", "--kernel", "6.12", "--count", "100", "--states", "150", "--json"]


def tdpmmu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tdpmmu.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_batches_do_not_depend_on_who_draws_them() -> None:
    tasks = batches("6.12", 7, 12, 4, 150)
    assert [task.scripts for task in tasks] == [4, 4, 4]
    one = [run_batch(task) for task in tasks]
    with open_executor("processes", 2) as executor:
        assert executor.map_unordered(run_batch, tasks) == one
    drawn = [sum(result["verdicts"].values()) for result in one]
    assert all(number >= 4 for number in drawn)
    assert one[0] != one[1] != one[2]


def test_a_property_that_breaks_is_shrunk_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel with a real bug put back."""
    bug = entry("z25")

    def with_bug(script: Script, kernel: str) -> Question:
        return Question(script, bug.bug_side(), kernel, (bug.id,))

    monkeypatch.setattr(campaign, "question", with_bug)
    result = run_batch(batches("6.12", 1, 12, 12, 200)[0])
    assert [found["property"] for found in result["found"]] == [bug.prop]
    assert len(programs(eval(result["found"][0]["script"]).threads)) == 2
    done = tdpmmu("explain", result["found"][0]["token"])
    assert done.returncode == 0, done.stderr
    longer = {**result, "found": [{**result["found"][0], "script": "x" * 1000}]}
    summary = summarize([longer, result])[0]
    assert summary.found == result["found"]
    assert summary.explorations == 2 * sum(result["verdicts"].values())


def test_others_may_draw_numbers_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """As threads of Dask do; results do not depend on them, and nobody has to be told."""
    one = batches("6.12", 7, 2, 2, 50)[0]
    alone = run_batch(one)
    monkeypatch.setattr(campaign, "scripts", lambda: scripts().map(_after_a_number))
    monkeypatch.setattr(campaign, "shadow_scripts", lambda: shadow_scripts().map(_after_a_number))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert run_batch(one) == alone
    assert not told


def _after_a_number(script: Script) -> Script:
    random.random()
    return script


def test_what_ctrl_c_cuts_short_is_no_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(explorer: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "_report_cycle", interrupted)
    journal = Journal(tmp_path / "kept", "x", resume=False)
    setting = ["slots=0-3"]
    for function, task in [
        (zoo_ask, ["z12", "fixed", 0]),
        (sweep_answer, ["script", "6.12", [], setting, "all", 0, 0]),
        (run_batch, batches("6.12", 7, 5, 5, 2000)[0]),
    ]:
        with pytest.raises(KeyboardInterrupt):
            map_kept(LocalExecutor(), function, [task], journal)
    assert not journal.results


def test_every_engine_says_the_same() -> None:
    """Searches as tasks on a cluster of this machine: verdicts, counterexamples and tokens."""
    pytest.importorskip("distributed")
    said = []
    for engine in ("local", "processes", "dask"):
        done = tdpmmu("zoo", "z1", "--json", "--engine", engine, "--workers", "2")
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout)
        for answer in answers:
            answer["seconds"] = 0
        said.append(answers)
    assert said[0] == said[1] == said[2]
    assert said[0][0]["token"].startswith("tdpmmu1-")


def test_sweep() -> None:
    done = tdpmmu(
        *["sweep", "nx-recovery", "-k", "5.12-rc4,5.12", "--set", "vcpus=1", "--json"],
        *["--set", "legacy=0", "--set", "roots=1", "--set", "flush=bare-metal,ranged"],
        *["--states", "2000"],
    )
    answers = json.loads(done.stdout)
    assert [(one["kernel"], one["parameters"]["flush"]) for one in answers] == [
        (kernel, flush) for kernel in ("5.12-rc4", "5.12") for flush in ("bare-metal", "ranged")
    ]
    assert done.returncode == {"holds": 0, "violated": 1}.get(
        max(one["verdict"] for one in answers), 3
    )
    assert tdpmmu("sweep", "nx-recovery", "--set", "vcpus=0", "--set", "levels=2").returncode == 4
    for words, expected in [
        (["--set", "vcpus"], "--set: expected NAME=VALUE,VALUE,..., not 'vcpus'"),
        (["--set", "vcpus=1", "--set", "vcpus=2"], "--set vcpus: is there already"),
        (["--time", "nan"], "--time nan: expected a number that is not negative"),
        (["--engine", "ray"], "'ray' is no engine"),
        (["-k", "5.12,5.99"], "5.99"),
        (["--resume", "/nonexistent/x"], "/nonexistent/x: no such file to resume from"),
        (["--checkpoint", "/nonexistent/x"], "/nonexistent/x: cannot be written"),
    ]:
        done = tdpmmu("sweep", "nx-recovery", *words)
        assert done.returncode == 2
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1


def test_killed_again_and_again(tmp_path: Path) -> None:
    """kill -9 at any moment: what was done is not done again, and the answer is the same."""
    path = tmp_path / "kept"
    whole = tdpmmu(*CAMPAIGN, "--workers", "1")
    assert whole.returncode in (0, 1), whole.stderr
    assert sum(json.loads(whole.stdout)[0]["verdicts"].values()) >= 100
    option = "--checkpoint"
    kept: dict[int, str] = {}
    for _ in range(3):
        command = [sys.executable, "-m", "tdpmmu.cli.main", *CAMPAIGN, option, str(path)]
        with subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.PIPE) as process:
            deadline = time.monotonic() + 60
            while _so_far(path) <= len(kept) and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
        now = _rows(path)
        assert kept.items() <= now.items()
        kept, option = now, "--resume"
    assert len(kept) > 0
    resumed = tdpmmu(*CAMPAIGN, "--resume", str(path), "--workers", "2")
    assert resumed.stdout == whole.stdout
    assert kept.items() <= _rows(path).items()
    assert len(_rows(path)) == 5


def _rows(path: Path) -> dict[int, str]:
    """The results in a file that nobody has."""
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT task, result FROM results").fetchall())


def _so_far(path: Path) -> int:
    """How many there are in one that somebody has: in a copy, which need not be whole."""
    copy = path.with_suffix(".copy")
    try:
        shutil.copy(path, copy)
        return len(_rows(copy))
    except (sqlite3.Error, FileNotFoundError):  # not made yet
        return 0


def noted(task: list[Any]) -> int:
    """A task that leaves a line in a file each time it is done."""
    path, number = task
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return int(number)


def test_only_what_was_running_is_repeated(tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "kept"
    tasks = [[str(log), number] for number in range(20)]
    journal = Journal(path, "x", resume=False)

    def stop(index: int, result: Any) -> None:
        if index == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_kept(LocalExecutor(), noted, tasks, journal, stop)
    journal.close()
    journal = Journal(path, "x", resume=True)
    assert map_kept(LocalExecutor(), noted, tasks, journal) == list(range(20))
    assert log.read_text().split() == [str(number) for number in range(20)]


def test_disk_full(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    journal = Journal(path, "x", resume=False)
    journal.add(0, "a" * 100)
    journal._db.execute("PRAGMA max_page_count = 6")
    with pytest.raises(JournalError, match=r"not written: database or disk is full") as found:
        journal.add(1, "b" * 100_000)
    assert "\n" not in str(found.value)
    journal.close()
    assert Journal(path, "x", resume=True).results == {0: "a" * 100}


def test_damaged_and_other_files(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    journal = Journal(path, "x", resume=False)
    journal.add(0, [1, 2])
    journal.close()
    with pytest.raises(JournalError, match="is there already"):
        Journal(path, "x", resume=False)
    with pytest.raises(JournalError, match="is of other tasks"):
        Journal(path, "y", resume=True)
    whole = path.read_bytes()
    for sql, task in (
        ("UPDATE results SET result = '[1, 3]'", 0),
        ("UPDATE results SET task = 3", 3),
    ):
        path.write_bytes(whole)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(sql)
        with pytest.raises(JournalError, match=f"damaged: the result of task {task}"):
            Journal(path, "x", resume=True)
    for text in (b"table\xa6esultsresults", b"table\nesultsresults"):
        path.write_bytes(whole.replace(b"tableresultsresults", text))
        with pytest.raises(JournalError, match=r"not a journal, or damaged") as found:
            Journal(path, "x", resume=True)
        assert "\n" not in str(found.value)
    path.write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    with pytest.raises(JournalError, match="not a journal, or damaged"):
        Journal(path, "x", resume=True)
    other = tmp_path / "other"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE journal (key TEXT, value TEXT)")
    with pytest.raises(JournalError, match="format unknown, expected 2"):
        Journal(other, "x", resume=True)


def test_killed_before_anything_was_written(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.touch()
    journal = Journal(path, "x", resume=True)
    journal.add(0, 1)
    journal.close()
    assert Journal(path, "x", resume=True).results == {0: 1}


def test_one_campaign_in_a_file_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    first = Journal(path, "x", resume=False)
    with pytest.raises(JournalError, match="kept: another process keeps results in it"):
        Journal(path, "x", resume=True)
    first.close()
    Journal(path, "x", resume=True).close()


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    journal = Journal(path, "x", resume=False)
    path.rename(tmp_path / "other")
    with pytest.raises(JournalError, match="kept: not written: No such file or directory"):
        journal.add(0, 1)
    path.touch()
    with pytest.raises(JournalError, match="kept: not written: another file is in its place"):
        journal.add(0, 1)


def test_a_worker_that_is_killed_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    command = [sys.executable, "-m", "tdpmmu.cli.main", *CAMPAIGN, "--checkpoint", str(path)]
    with subprocess.Popen(
        [*command, "--workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not (children := _children(process.pid)) or not _so_far(path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(children[0], signal.SIGKILL)
        _, error = process.communicate()
    assert process.returncode == 2
    assert error.startswith("tdpmmu: a worker died")
    assert error.endswith(f"; go on with --resume {path}\n")
    assert error.count("\n") == 1


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(word) for word in found]
