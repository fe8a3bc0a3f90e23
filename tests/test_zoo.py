"""Every bug is found, every fix is clean, on every kernel that has it."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tdpmmu.mmu
from tdpmmu.scenarios.token import decode, reproduce
from tdpmmu.scenarios.zoo import entries, entry
from tdpmmu.scenarios.zoo.coverage import ENOUGH, FEW, covered_by, harm_properties, table
from tdpmmu.scenarios.zoo.entry import Entry, release
from tdpmmu.scenarios.zoo.not_expressed import NOT_EXPRESSED
from tdpmmu.scenarios.zoo.run import BUG, FIXED, explore_side, sides
from tdpmmu.versions.registry import KERNELS

SIDES = [(one.id, side) for one in entries() for side in sides(one.id)]


@pytest.mark.parametrize(("name", "side"), SIDES, ids=[f"{n}-{s}" for n, s in SIDES])
def test_side(name: str, side: str) -> None:
    answer, _ = explore_side(name, side)
    assert answer.right, answer.sentence
    if side == BUG and entry(name).prop not in ("no-progress", "deadlock"):
        done = reproduce(decode(answer.token))
        assert done is not None


@pytest.mark.parametrize("one", entries(), ids=lambda one: one.id)
def test_a_patch_is_small(one: Entry) -> None:
    for cls in (one.patch, one.fix):
        if cls is None:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        lines = ast.unparse(tree).splitlines()
        assert len([line for line in lines if line.strip()]) <= 30, cls.__name__


@pytest.mark.parametrize("one", entries(), ids=lambda one: one.id)
def test_an_entry_is_complete(one: Entry) -> None:
    one.check()
    assert one.commit == "" or (len(one.commit) == 12 and int(one.commit, 16))
    if one.patch is not None and one.fix is None and release(one.fixed) <= release("6.18"):
        assert release(one.kernel) >= release(one.fixed)
    assert (one.patch or one.fix).__doc__


def test_ids_are_unique_and_chains_lead_somewhere() -> None:
    ids = [one.id for one in entries()] + [one.id for one in NOT_EXPRESSED]
    assert len(set(ids)) == len(ids)
    for one in entries():
        assert one.fix_of is None or one.fix_of in ids
        assert one.fix_of != one.id


def test_kernels_past_the_fix_are_asked() -> None:
    z1 = entry("z1")
    assert sides("z1") == (BUG, FIXED, "5.13", "6.1", "6.12", "6.18")
    assert z1.kernel == "5.12"


def test_no_layer_asks_for_the_version() -> None:
    for path in Path(inspect.getfile(tdpmmu.mmu)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("version", "spte_kernel"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in KERNELS, f"{path}:{node.lineno}"


def test_every_harm_has_two_bugs_or_a_reason() -> None:
    for name, _ in harm_properties():
        few = len(covered_by(name)) < ENOUGH
        assert few == (name in FEW), f"{name}: {covered_by(name)}, reason: {FEW.get(name)}"
    assert set(FEW) <= {name for name, _ in harm_properties()}


def test_the_table_of_what_is_covered_is_in_the_docs() -> None:
    assert table() in (Path(__file__).parents[1] / "docs" / "zoo.md").read_text()


def test_releases_compare() -> None:
    assert release("5.12-rc4") < release("5.12") < release("5.13") < release("6.1")
    assert release("6.2") < release("6.12") < release("7.1")


def _zoo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("tdpmmu")), "zoo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_one_entry_on_the_command_line() -> None:
    done = _zoo("z10")
    assert done.returncode == 0
    assert "bug found: kernel-warning" in done.stdout
    assert "fix clean" in done.stdout
    assert "replay with: tdpmmu explain tdpmmu1-" in done.stdout


def test_an_entry_as_json() -> None:
    done = _zoo("z10", "--json")
    answers = json.loads(done.stdout)
    assert [answer["side"] for answer in answers][:2] == ["bug", "fixed"]
    assert all(answer["right"] for answer in answers)


def test_the_interleaving_of_an_entry() -> None:
    done = _zoo("z22", "--explain")
    assert done.returncode == 0
    assert "HARM freed-table" in done.stdout


def test_an_unknown_entry_is_one_line() -> None:
    done = _zoo("z999")
    assert done.returncode == 2
    assert done.stderr.startswith("tdpmmu: no zoo entry 'z999'; did you mean z")
    assert done.stderr.count("\n") == 1


def test_explain_needs_one_entry() -> None:
    done = _zoo("--explain")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_the_list_says_what_is_missing() -> None:
    done = _zoo("--list")
    assert done.returncode == 0
    assert f"{len(entries())} entries; {len(NOT_EXPRESSED)} bugs" in done.stdout
