"""Notebooks: what shows itself, worlds driven by hand, and the notebook that is shipped."""

from __future__ import annotations

import html
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from typer.testing import CliRunner

from tdpmmu.cli.main import app
from tdpmmu.notebook import check, trace, world
from tdpmmu.scenarios.by_hand import World
from tdpmmu.scenarios.token import decode, reproduce

ROOT = Path(__file__).parents[1]
TRACE = ROOT / "tests/data/traces/6.1-tdp1/trace.txt.xz"


@pytest.fixture
def rc4() -> World:
    return world(kernel="5.12-rc4", legacy=0)


def replayed(of: World, prop: str) -> World:
    """Moves that break a property, as the explorer finds them."""
    verdict = check(kernel="5.12-rc4", legacy=0)
    for run in decode(verdict.tokens[prop]).schedule:
        for alternative in run.alternatives:
            of.move(run.thread, alternative)
    return of


def test_a_verdict_shows_the_report() -> None:
    shown = check(kernel="5.12-rc4", legacy=0)._repr_html_()
    page = html.unescape(re.findall(r'srcdoc="([^"]*)"', shown)[0])
    assert page.startswith("<!doctype html>")
    assert "stale-translation" in page
    assert "flush-owed" in page
    assert "holds for every interleaving" in check(kernel="5.12", roots=1, legacy=0)._repr_html_()


def test_what_makes_no_sense_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"unknown kernel '5\.99'"):
        check(kernel="5.99")
    with pytest.raises(ValueError, match="is in no file"):
        check(patch=type("Made", (), {"__module__": "nowhere"}))


def test_a_world_is_moved_by_hand_and_taken_back(rc4: World) -> None:
    first = rc4.panels()
    movers = {one.name: one for one in rc4.threads}
    assert movers["nx recovery"].alternatives == 1
    assert movers["nx recovery"].chain == ("kvm_recover_nx_lpages",)
    record = rc4.move("nx recovery")
    assert (record.number, record.name) == (1, "nx recovery")
    assert rc4.run("nx recovery")[-1].op.describe() == "write_lock(mmu_lock)"
    waiting = next(one for one in rc4.threads if one.name == "host")
    assert waiting.alternatives == 1
    while next(one for one in rc4.threads if one.name == "host").alternatives:
        rc4.move("host")
    with pytest.raises(ValueError, match=r"host has to wait at write_lock\(mmu_lock\)"):
        rc4.move("host")
    with pytest.raises(ValueError, match="no thread somebody: there are nx recovery"):
        rc4.move("somebody")
    count = len(rc4.records)
    rc4.back()
    assert len(rc4.records) == count - 1
    rc4.back(1000)
    assert rc4.records == []
    assert rc4.panels() == first


def test_what_is_found_by_hand_has_a_token(rc4: World) -> None:
    with pytest.raises(ValueError, match="no property is broken yet"):
        rc4.token()
    replayed(rc4, "stale-translation")
    assert {one.prop for one in rc4.broken} == {"flush-owed", "stale-translation"}
    token = rc4.token("stale-translation").encode()
    assert reproduce(decode(token)).sentence == rc4.broken[-1].sentence
    done = CliRunner().invoke(app, ["explain", token])
    assert done.exit_code == 0
    assert "HARM stale-translation" in done.output
    assert rc4.token().prop == "flush-owed"
    rc4.back()
    assert {one.prop for one in rc4.broken} == {"flush-owed"}


def test_a_world_shows_who_can_move_and_the_state(rc4: World) -> None:
    shown = replayed(rc4, "stale-translation")._repr_html_()
    for text in ("nx recovery", "Page tables", "SP11[0]", "vCPU0", "mmu_lock", "STALE"):
        assert text in shown
    assert shown.count("<div") == shown.count("</div>")


def test_page_tables_are_a_tree(rc4: World) -> None:
    text = str(rc4.tables)
    assert re.search(r"^SP8  root of address space 0 ", text, re.MULTILINE)
    assert "\n    SP9[0]  gfn 0x0 2M: table SP10  (NX huge page disallowed)" in text
    shown = rc4.tables._repr_html_()
    assert "SP10[1]" in shown
    assert "root of address space 1" in shown


def test_a_trace_is_a_table() -> None:
    shown = trace(str(TRACE))._repr_html_()
    assert shown.count("<tr>") > 3
    assert "STEP w" in shown
    assert "exact" in shown


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(TRACE, tmp_path / "trace.txt.xz")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    kernel = tmp_path / "jupyter/kernels/python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    import json

    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "p"}))
    notebook: Any = nbformat.read(ROOT / "examples/tour.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [
        "".join(output["data"].values())
        for cell in notebook.cells if cell.cell_type == "code"
        for output in cell.outputs if output.output_type == "execute_result"
    ]  # fmt: skip
    assert len(shown) == 5
    assert "holds for every interleaving" in shown[0]
    assert "stale-translation" in shown[1]
    assert "may hold" in shown[2]
    assert "the host reuses the page" in shown[3]
    assert "<table>" in shown[4]


def test_the_notebook_is_shipped_without_output() -> None:
    notebook: Any = nbformat.read(ROOT / "examples/tour.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)
