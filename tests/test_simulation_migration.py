"""Migrations: passes until little is left, or until it is given up."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tdpmmu.cli.main import main
from tdpmmu.simulation.files import read_experiment
from tdpmmu.simulation.guest import MODES, WRITE, Guest, Knobs, Migrate, Touches
from tdpmmu.simulation.machine import Simulation
from tdpmmu.simulation.result import Result
from tdpmmu.simulation.workloads.host import MigrationWork
from tdpmmu.worlds.simulate.costs import load_costs

COSTS = load_costs()
MIB, MS = 1 << 20, 1_000_000
GUEST = Guest(4 * MIB, 1)


class Writes:
    """One page after the other of the first ``pages``, over and over."""

    def __init__(self, pages: int, think_ns: int, plan: Migrate) -> None:
        self.pages, self.think_ns, self.plan = pages, think_ns, plan

    def touches(self, vcpu, rng):
        while True:
            yield Touches(
                np.full(self.pages, self.think_ns, dtype=np.int64),
                np.arange(self.pages, dtype=np.int64),
                np.full(self.pages, WRITE, dtype=np.uint8),
            )

    def host_events(self, rng):
        yield 2 * MS, self.plan


def migrated(
    pages: int, think_ns: int, plan: Migrate, knobs: Knobs | None = None, bulk: bool = True
) -> Result:
    work = Writes(pages, think_ns, plan)
    knobs = knobs or Knobs(ratio=0)
    return Simulation("6.12", GUEST, knobs, COSTS, work, 1, bulk=bulk).run(1000 * MS)


def test_one_that_converges() -> None:
    """Ten pages are written over and over: they are what is left after the first pass."""
    result = migrated(10, 100_000, Migrate(bandwidth=100 * MIB, stop_below=40 << 10))
    done = result.migrated
    assert done is not None
    assert done.converged
    assert [one.pages for one in done.passes] == [1024]
    assert done.passes[0].ns == 40 * MS
    assert done.pending == 10
    assert done.downtime_ns == 40 * 1024 * 10**9 // (100 * MIB)
    # The run ends with it, at the moment that the log has been read.
    assert 42 * MS < result.virtual_ns < 43 * MS
    assert done.total_ns == 40 * MS + done.downtime_ns


def test_one_that_does_not() -> None:
    """Pages are written faster than they are sent: each pass has as many as fit into it."""
    plan = Migrate(bandwidth=10 * MIB, stop_below=64 << 10, max_passes=4)
    result = migrated(200, 250_000, plan)
    done = result.migrated
    assert done is not None
    assert not done.converged
    assert [one.pages for one in done.passes] == [1024, 200, 200, 200]
    assert done.pending == 200
    # Logging has been switched off again.
    assert result.counts["DirtyLogChanged"] == 2


def test_it_converges_when_passes_get_shorter() -> None:
    """What was written in a pass is in proportion to how long it takes."""
    plan = Migrate(bandwidth=40 * MIB, stop_below=8 << 10)
    done = migrated(1024, 350_000, plan).migrated
    assert done is not None
    assert done.converged
    sent = [one.pages for one in done.passes]
    assert sent[0] == 1024
    assert sent == sorted(sent, reverse=True)
    assert sent[1] == pytest.approx(done.passes[0].ns / 350_000, abs=3)
    assert len(sent) > 2


def command(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tdpmmu", "simulate", "migration", *options])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pml", [False, True])
def test_however_writes_are_logged_and_however_it_is_run(mode: str, pml: bool) -> None:
    plan = Migrate(bandwidth=200 * MIB, stop_below=16 << 10, max_passes=3)
    knobs = Knobs(ratio=0, dirty_log=mode, pml=pml)
    pages, think = (600, 20_000) if pml else (40, 90_000)
    bulk, steps = (migrated(pages, think, plan, knobs, bulk) for bulk in (True, False))
    assert bulk.same_as(steps) == []
    done = bulk.migrated
    assert done is not None
    assert done.passes[0].pages == 1024
    # What is still in a CPU's own log, of 512 entries, is for the next time; an exit empties it.
    assert done.passes[1].pages in (range(512, 530) if pml else (40,))


FILE = """
[guest]
memory = "4M"
[[host]]
event = "migration"
at = "1ms"
bandwidth = "100M"
max_passes = 5
"""


def test_from_a_file(tmp_path) -> None:
    path = tmp_path / "guest.toml"
    path.write_text(FILE)
    (work,) = read_experiment(str(path)).workload.host
    assert work == MigrationWork(Migrate(100 * MIB, 30 * MIB, 5), MS)


def test_the_command(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--memory 32M --vcpus 2 --bandwidth 4M,64M --downtime 1ms --max-passes 2"
    assert command(monkeypatch, *options.split(), "--engine", "local") == 0
    out = capsys.readouterr().out
    slow, fast = (line for line in out.splitlines() if line.startswith("6.12    bitmap"))
    assert " no " in slow
    assert "4M/s" in slow
    assert "64M/s" in fast


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--bandwidth", "fast"), "--bandwidth: expected a size"),
        (("--bandwidth", "0"), "--bandwidth: 0 a second send all memory in more than a day"),
        (("--downtime", "now"), "--downtime: expected a time"),
        (("--stop-below", "-1"), "--stop-below: expected a size"),
        (("--mode", "ring"), "--mode: expected bitmap, manual, initially-set"),
        (("--guest", "udp-windows"), "its workload is a whole measurement"),
    ],
)
def test_what_is_wrong_is_said(
    monkeypatch, options, said, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *options) == 2
    assert said in capsys.readouterr().err


def test_pictures_and_a_table_of_passes(
    monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table says what ``--json`` says; drawn again, a picture is the same."""
    pytest.importorskip("matplotlib")
    pq = pytest.importorskip("pyarrow.parquet")
    options = "--memory 32M --vcpus 2 --bandwidth 4M,64M --downtime 1ms --max-passes 2 --json"
    files = [tmp_path / name for name in ("a.svg", "b.svg", "a.parquet")]
    plots = ("--plot", str(files[0]), "--plot", str(files[1]))
    engine = ("--engine", "local", "--parquet", str(files[2]))
    assert command(monkeypatch, *options.split(), *plots, *engine) == 0
    drawn = files[0].read_text()
    assert drawn == files[1].read_text()
    for name in (
        "sent in each pass",
        "page fault latency",
        "6.12 bitmap 4M/s",
        "6.12 bitmap 64M/s",
    ):
        assert f"<!-- {name}" in drawn
    table = pq.read_table(files[2]).to_pylist()
    for one in json.loads(capsys.readouterr().out):
        moved = one["migrated"]
        mine = [row for row in table if row["bandwidth"] == moved["bandwidth"]]
        sent = [r["value"] for r in mine if (r["series"], r["key"]) == ("pass", "bytes")]
        assert sent == [each["pages"] * 4096 for each in moved["passes"]]
        ended = {row["key"]: row["value"] for row in mine if row["series"] == "migration"}
        assert ended["left"] == moved["pending"] * 4096
        assert ended["converged"] == moved["converged"]


def test_what_cannot_be_drawn_is_refused_first(
    monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--guest", "migrate-1t", "--plot", "a.gif") == 2
    assert "--plot: expected a file that ends with png, svg, pdf" in capsys.readouterr().err
