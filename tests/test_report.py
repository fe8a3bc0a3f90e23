"""The report's data: panels of a state, lines and steps, and the file that ``--html`` writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_render import found
from typer.testing import CliRunner

from tdpmmu.cli.main import app
from tdpmmu.render.report import cpus
from tdpmmu.render.report.page import page, strip
from tdpmmu.render.report.run import PANELS, run_data
from tdpmmu.render.report.tables import TableView
from tdpmmu.scenarios.showing import report, scene_of, told
from tdpmmu.scenarios.token import Reproduction

RC4 = ["check", "nx-recovery", "--kernel", "5.12-rc4", "--legacy", "0"]


@pytest.fixture(scope="module")
def stale() -> Reproduction:
    return found("stale-translation", "5.12-rc4", legacy=0)


@pytest.fixture(scope="module")
def data(stale: Reproduction) -> dict[str, Any]:
    return run_data(stale.records, told(stale), scene_of(stale), "meaning")


def panel(data: dict[str, Any], step: int, name: str) -> list[tuple[Any, ...]]:
    number = data["states"][step][PANELS.index(name)]
    return [data["rows"][row] for row in data["panels"][number]]


def texts(data: dict[str, Any], step: int, name: str) -> list[str]:
    return [f"{row[2]}: {row[3]}" for row in panel(data, step, name)]


def the_zap(data: dict[str, Any]) -> int:
    return next(int(step) for step, notes in data["marks"].items() if "stale from here" in notes[0])


def test_there_is_a_state_before_and_after_every_operation(
    data: dict[str, Any], stale: Reproduction
) -> None:
    assert len(data["states"]) == len(stale.records) + 1 == len(data["steps"]) + 1
    assert data["meaning"] == "meaning"
    assert data["sentence"] == stale.sentence


def test_the_tree_shows_each_table_below_the_entry_that_links_it(data: dict[str, Any]) -> None:
    rows = panel(data, 0, "tables")
    by_name = {row[2]: i for i, row in enumerate(rows)}
    for i, row in enumerate(rows):
        linked = re.search(r"table (SP\d+)", row[3])
        if linked:
            assert by_name[f"{linked[1]}[0]"] == i + 1
            assert rows[i + 1][1] == row[1] + 1
    assert sum(row[4] == "root" for row in rows) == 2


def test_every_used_table_is_in_the_tree_in_every_state(stale: Reproduction) -> None:
    hardware = stale.subject.built.kvm.hardware
    view = TableView(hardware)
    for record in stale.records:
        labels = {row.label for row in view.rows(record.after)}
        for one in hardware.page_by_number.values():
            state = record.after[one.state.chunk][one.state.offset]
            if state in ("used", "queued"):
                assert f"{one.name}[0]" in labels, (record.number, one.name, state)


def test_a_zap_shows_where_it_happens_and_makes_the_held_entry_stale(data: dict[str, Any]) -> None:
    zap = the_zap(data)
    before, after = panel(data, zap - 1, "tables"), panel(data, zap, "tables")
    old = {row[0]: row[3] for row in before}
    differing = [row for row in after if old[row[0]] != row[3]]
    assert len(differing) == 1
    assert "none" in differing[0][3]
    assert "pfn" in old[differing[0][0]]
    assert not [row for row in panel(data, zap - 1, "cpus") if row[4] == "stale"]
    assert [row[5] for row in panel(data, zap, "cpus") if row[4] == "stale"] == ["STALE"]
    assert panel(data, zap - 1, "owed")[0][4] == "idle"
    owed = panel(data, zap, "owed")
    assert [(row[2], row[4]) for row in owed] == [("vCPU0", "stale")]
    assert owed[0][5] == f"stale since step {zap}, by nx recovery"
    assert panel(data, len(data["steps"]), "owed")[0][5] == owed[0][5]


def test_a_flush_empties_the_may_hold_set_and_the_request_shows(data: dict[str, Any]) -> None:
    pending = [
        step for step in range(len(data["states"]))
        if any("KVM_REQ_TLB_FLUSH" in one for one in texts(data, step, "cpus"))
    ]  # fmt: skip
    assert pending
    asked, done = pending[0], pending[-1]
    assert "may hold: nothing" not in texts(data, 0, "cpus")
    assert texts(data, asked, "cpus").count("may hold: nothing") >= 1
    assert texts(data, done, "cpus").count("may hold: nothing") == 2


def test_locks_show_holders_and_those_never_taken_do_not(data: dict[str, Any]) -> None:
    shown = {row[2] for step in range(len(data["states"])) for row in panel(data, step, "locks")}
    assert "mmu_lock" in shown
    assert "slots_lock" not in shown
    assert texts(data, 0, "locks")[0] == "mmu_lock: free"
    taken = next(i for i, one in enumerate(data["steps"], 1) if one["op"] == "write_lock(mmu_lock)")
    assert texts(data, taken, "locks")[0] == "mmu_lock: nx recovery (write)"


def test_a_split_page_is_old_but_not_stale(stale: Reproduction) -> None:
    hardware = stale.subject.built.kvm.hardware
    kinds = {
        (one.live, one.backed, one.usable)
        for record in stale.records
        for one in cpus.held(hardware, record.after)
    }
    assert (True, True, True) in kinds
    assert (False, False, True) in kinds
    assert not any(live and not is_backed for live, is_backed, _ in kinds)


def test_every_line_belongs_to_a_step(data: dict[str, Any]) -> None:
    for lines in data["lines"].values():
        steps = [line["step"] for line in lines]
        assert steps == sorted(steps)
        assert steps[0] >= 1
        assert steps[-1] == len(data["steps"])
    assert len(data["lines"]["some"]) < len(data["lines"]["all"])


def test_functions_come_with_the_source_of_the_line_that_runs(data: dict[str, Any]) -> None:
    at = [place for step in data["steps"] for place in step["stack"]]
    assert at
    for number, line in at:
        function = data["functions"][number]
        source = function["source"].splitlines()
        assert source[0].startswith(("async def ", "@"))
        assert "await" in source[line - function["first"]]
        assert function["file"].startswith("tdpmmu/")
    names = [piece for line in data["lines"]["some"] for piece in line["text"]
             if isinstance(piece, list)]  # fmt: skip
    assert {"kvm_recover_nx_lpages", "zap_gfn_range"} <= {name for name, _ in names}
    for name, numbers in names:
        assert {data["functions"][number]["name"] for number in numbers} == {name}


def test_bars_cover_the_run(data: dict[str, Any]) -> None:
    bars = strip(data)
    assert sum(bar["length"] for bar in bars) == len(data["steps"])
    assert len(bars) == 4


def test_nothing_in_a_report_can_become_markup(data: dict[str, Any]) -> None:
    evil = "</script><img src=x onerror=alert(1)>&amp;"
    text = page([{**data, "sentence": evil, "token": evil, "text": evil}], evil)
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert text.count("\\u003c/script\\u003e\\u003cimg") == 1


def embedded(path: Path) -> Any:
    found = re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_check_writes_all_runs_and_explain_the_same_run(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    done = CliRunner().invoke(app, [*RC4, "--no-explain", "--html", str(file)])
    assert done.exit_code == 1, done.output
    runs = embedded(file)
    assert [run["prop"] for run in runs] == ["stale-translation", "flush-owed"]
    token = re.findall(r"tdpmmu1-\S+", done.output)[0]
    single = tmp_path / "one.html"
    done = CliRunner().invoke(app, ["explain", token, "--html", str(single)])
    assert (done.exit_code, done.output) == (0, "")
    assert embedded(single) == runs[:1]
    assert token in single.read_text()


def test_what_holds_has_a_page_too(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    command = ["check", "nx-recovery", "--roots", "1", "--legacy", "0", "--html", str(file)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert embedded(file) == []
    assert "holds for every interleaving of this scenario" in file.read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*RC4, "--html", "/nowhere/at/all.html"], "/nowhere/at/all.html: "),
        (["check", "--html", "report.html"], "--html is for one scenario on one kernel"),
        ([*RC4, "--all-kernels", "--html", "x.html"], "--html is for one scenario"),
    ],
)
def test_what_cannot_be_written_is_said_in_a_line(command: list[str], message: str) -> None:
    from tdpmmu.cli.errors import UsageError

    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


def test_the_report_is_deterministic(stale: Reproduction) -> None:
    again = found("stale-translation", "5.12-rc4", legacy=0)
    assert report([stale]) == report([again])


def test_parameters_that_are_empty_say_nothing(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    command = ["check", "script", "--kernel", "6.12", "--html", str(file)]
    assert CliRunner().invoke(app, command).exit_code == 0
    found = re.search(r"Parameters: ([^<]*)\.</p>", file.read_text())
    assert found is not None
    assert found[1].startswith("threads vcpu0: w0; host: unmap:0, levels 2, fanout 2,")
    assert not re.search(r"\b(setup|slots|cr3|options) *(,|$)", found[1])
