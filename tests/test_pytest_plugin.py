"""The pytest plugin, in the tests of somebody else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tdpmmu.cli.main import app

pytest_plugins = ["pytester"]

PATCH = """
import pytest
from tdpmmu.events.records import Yielded
from tdpmmu.machine.op import Emit
from tdpmmu.mmu.nx_recovery import NxRecovery

SMALL = {"kernel": "5.12", "legacy": 0, "roots": 1}


class FlushAfterLockBreak(NxRecovery):
    async def recovery_lock_break(self, invalid_list, flush):
        await self.kvm.mmu_lock.cond_resched_write()
        await self.remote_flush_or_zap(invalid_list, flush)
        await Emit(Yielded("kvm_recover_nx_lpages"))
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(body: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=PATCH + body)
        return pytester.runpytest("-p", "tdpmmu.pytest_plugin", *options)

    return run


def test_what_holds_passes(run) -> None:  # type: ignore[no-untyped-def]
    result = run("""
ran = []

@pytest.mark.tdpmmu(**SMALL)
def test_a():
    ran.append(1)

def test_b(tdpmmu):
    assert ran
    assert tdpmmu(**SMALL).exploration.states > 100
""")
    result.assert_outcomes(passed=2)


def test_a_failure_shows_the_run_and_a_token_that_replays_it(run, pytester) -> None:  # type: ignore[no-untyped-def]
    result = run(
        """
@pytest.mark.tdpmmu(patch=FlushAfterLockBreak, kernel="5.12")
def test_a():
    raise RuntimeError("does not come this far")
""",
        "--tdpmmu-html=pages",
    )
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "does not come this far" not in text
    assert "expected: holds" in text
    assert "HARM stale-translation" in text
    assert "stale from here: vCPU" in text
    assert "pytest_plugin.py" not in text
    token = re.findall(r"replay with: tdpmmu explain (\S+)", text)[0]
    done = CliRunner().invoke(app, ["explain", token])
    assert done.exit_code == 0, done.output
    assert "FlushAfterLockBreak" in done.output
    page = re.findall(r"to look at: (\S+)", text)[0]
    assert "stale-translation" in (Path(pytester.path) / page).read_text()


def test_bugs_can_be_kept_found(run) -> None:  # type: ignore[no-untyped-def]
    result = run("""
@pytest.mark.tdpmmu(patch=FlushAfterLockBreak, kernel="5.12", expect="stale-translation")
def test_found():
    pass

@pytest.mark.tdpmmu(**SMALL, expect=["flush-owed"])
def test_not_found():
    pass
""")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*holds for every*; expected: violated: flush-owed"])


def test_a_budget_that_runs_out_is_not_holds(run) -> None:  # type: ignore[no-untyped-def]
    result = run("""
@pytest.mark.tdpmmu(kernel="5.12", states=50)
def test_a():
    pass
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*nothing found within the budget*; expected: holds"])


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ('kernel="5.99"', "tdpmmu: unknown kernel '5.99'*"),
        ("vpcus=2", "tdpmmu: the scenario nx-recovery has no --vpcus"),
        ('patch="no-such"', "tdpmmu: *no-such*"),
        ('"6.12"', "@pytest.mark.tdpmmu takes keyword arguments only"),
    ],
)
def test_questions_without_sense_are_said_in_a_line(run, marker: str, message: str) -> None:  # type: ignore[no-untyped-def]
    result = run(f"""
@pytest.mark.tdpmmu({marker})
def test_a():
    pass
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])


def test_the_marker_is_known_and_named_as_an_entry_point(run) -> None:  # type: ignore[no-untyped-def]
    result = run("@pytest.mark.tdpmmu(**SMALL)\ndef test_a(): pass\n", "--strict-markers")
    result.assert_outcomes(passed=1)
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"tdpmmu": "tdpmmu.pytest_plugin"}
