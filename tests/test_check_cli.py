"""The command line of ``check`` and ``compare``, as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TDPMMU = str(Path(sys.executable).with_name("tdpmmu"))

SMALL = ["--levels", "2", "--roots", "1", "--legacy", "0", "--gfns", "1"]
SMALL_RC4 = ["nx-recovery", "-k", "5.12-rc4", *SMALL, "--no-unmap", "--flush", "ranged"]
BIG = ["nx-recovery", "-k", "6.18", "--vcpus", "2", "--fanout", "4"]

SYNTAX = """\
class Broken(
    pass
"""

AWAIT_IN_ARGUMENTS = """\
from tdpmmu.machine.op import Read, Write
from tdpmmu.mmu.notifier import Notifier


class Careless(Notifier):
    async def invalidate_range_end(self, start: int, end: int) -> None:
        await self.note(1, await Read(self.kvm.mmu_notifier_seq))
        await super().invalidate_range_end(start, end)

    async def note(self, one: int, seq: int) -> None:
        await Read(self.kvm.mmu_notifier_seq)
"""

RAISES = """\
from tdpmmu.mmu.notifier import Notifier


class Raises(Notifier):
    async def invalidate_range_end(self, start: int, end: int) -> None:
        raise KeyError("no such range")
"""

NEVER = """\
from dataclasses import dataclass
from typing import ClassVar

from tdpmmu.scenarios.nx_recovery import NxRecovery


@dataclass(frozen=True, slots=True)
class Vain(NxRecovery):
    name: ClassVar[str] = "vain"

    def sometimes(self):
        return {"pigs fly": lambda event, step: False}
"""


def run(*args: str, seed: str = "0") -> subprocess.CompletedProcess[str]:
    env = dict(os.environ, PYTHONHASHSEED=seed, NO_COLOR="1")
    return subprocess.run([TDPMMU, *args], capture_output=True, text=True, env=env, timeout=100)


def check_json(*args: str, seed: str = "0") -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run("check", *args, "--json", seed=seed).stdout)
    return answer


def refused(*args: str) -> str:
    """The one line that bad input gets."""
    done = run(*args)
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--time nan", "--time nan: expected a number that is not negative"),
        ("--memory -5", "--memory -5: expected a number that is not negative"),
        ("--memory 1", "MiB are taken before the search begins; expected more"),
        ("--memory 255 --loop compiled", "--memory 255: --loop compiled needs 256 at least"),
        ("--memory 255 --checkpoint x", "--memory 255: --checkpoint needs 256 at least"),
        ("--memory 511 --storage compact", "--memory 511: --storage compact needs 512 at least"),
        ("--width -5", "--width -5: at least 60"),
        ("--states -3", "--states -3: expected a number that is not negative"),
        ("--every nan", "--every nan: expected seconds that are not negative"),
        ("--mode pct --depth 1000000", "--depth 1000000: expected 1 to 100"),
        ("--storage bitstate --memory 999999999", "--memory 999999999: at most 16,777,216 MiB"),
        ("--profile-states --mode pct", "--mode takes no --profile-states"),
        ("--profile-states --checkpoint x", "--checkpoint takes no --profile-states"),
        ("--profile-states --json", "--json takes no --profile-states"),
    ],
)
def test_options_that_make_no_sense(options: str, said: str, tmp_path: Path) -> None:
    assert said in refused("check", "nx-recovery", *SMALL, *options.split())


# --- verdicts ---


def test_holds_is_0() -> None:
    done = run("check", "nx-recovery", *SMALL, "--no-unmap")
    assert done.returncode == 0
    assert "holds for every interleaving" in done.stdout
    assert "under sequential consistency" in done.stdout
    assert done.stderr == ""


def test_violated_is_1_with_an_interleaving_and_a_token() -> None:
    done = run("check", *SMALL_RC4)
    assert done.returncode == 1
    assert "violated: flush-owed (discipline)" in done.stdout
    assert "replay with: tdpmmu explain " in done.stdout


def test_a_budget_is_3_and_never_called_safe() -> None:
    done = run("check", "nx-recovery", "--states", "1000", "--vcpus", "2")
    assert done.returncode == 3
    assert "nothing found within the budget" in done.stdout
    assert "1,0" in done.stdout  # how many states were covered
    assert "safe" not in done.stdout
    assert "holds" not in done.stdout


def test_a_small_budget_of_memory_is_kept_to() -> None:
    """Compiled code would take all of it, and more, before it searches anything."""
    code = f"""
import subprocess, resource
subprocess.run({[TDPMMU, "check", *BIG, "--memory", "80"]!r})
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    *said, most = done.stdout.splitlines()
    assert any("the budget of 80 MiB is used up" in line for line in said), done
    assert int(most) < 90


def test_vacuous_is_4(tmp_path: Path) -> None:
    file = tmp_path / "vain.py"
    file.write_text(NEVER)
    done = run("check", str(file), *SMALL, "--no-unmap")
    assert done.returncode == 4, done
    assert "vacuous" in done.stdout
    assert "pigs fly" in done.stdout
    assert "holds" not in done.stdout


def test_ctrl_c_is_130_and_says_what_was_covered() -> None:
    process = subprocess.Popen(
        [TDPMMU, "check", *BIG, "--memory", "800"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "interrupted" in out + err
    assert "states" in out
    assert "holds" not in out
    assert "Traceback" not in err


def test_stats_tell_more() -> None:
    done = run("check", "nx-recovery", *SMALL, "--no-unmap", "--stats")
    assert done.returncode == 0
    assert "states without reduction: " in done.stdout
    assert "segments run" in done.stdout


# --- JSON and tokens ---


def test_json_and_its_token() -> None:
    answer = check_json(*SMALL_RC4)
    assert answer["verdict"] == "violated"
    assert answer["states"] > 0
    (found,) = answer["violations"]
    assert found["property"] == "flush-owed"
    done = run("explain", found["token"])
    assert done.returncode == 0, done
    assert " ".join(found["sentence"].split()) in " ".join(done.stdout.split())
    done = run("explain", found["token"], "--json")
    assert json.loads(done.stdout)["sentence"] == found["sentence"]


def test_the_same_twice_whatever_the_hash_seed() -> None:
    answers = [check_json(*SMALL_RC4, seed=seed) for seed in ("1", "1", "2")]
    for answer in answers:
        del answer["seconds"]
    assert answers[0] == answers[1] == answers[2]


def test_a_verdict_that_holds_is_the_same_whatever_the_hash_seed() -> None:
    answers = [
        check_json("nx-recovery", "-k", "6.18", *SMALL, "--no-unmap", seed=seed) for seed in "12"
    ]
    for answer in answers:
        del answer["seconds"]
    assert answers[0] == answers[1]


# --- bad input ---


def test_a_wrong_kernel() -> None:
    assert "; did you mean nx-recovery?" in refused("check", "nx-recovry")
    assert "; there are FILE.py, nx-recovery, script" in refused("check", "pigs")
    assert "; there are age-by-cmpxchg, " in refused("check", "nx-recovery", "-p", "pigs")
    assert "did you mean 5.12" in refused("check", "nx-recovery", "-k", "5.12-rc5")


def test_a_wrong_patch() -> None:
    said = refused("check", "nx-recovery", "-p", "flush-on-nx-zop")
    assert "unknown patch 'flush-on-nx-zop'" in said
    assert "flush-on-nx-zap" in said


def test_a_wrong_scenario() -> None:
    assert "nx-recovery" in refused("check", "nx-recovrey")


def test_an_impossible_combination() -> None:
    said = refused("check", "nx-recovery", "--nx-pages", "99")
    assert "--nx-pages 99" in said
    assert "hold only 4 huge pages" in said


def test_a_wrong_set_of_properties() -> None:
    assert "harm, discipline or all" in refused("check", "nx-recovery", "--properties", "none")


def test_a_missing_file() -> None:
    assert "no-such.py" in refused("check", "no-such.py")


def test_a_syntax_error(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(SYNTAX)
    said = refused("check", "nx-recovery", "-p", str(file))
    assert f"{file}:1" in said or f"{file}:2" in said


def test_an_await_inside_call_arguments(tmp_path: Path) -> None:
    file = tmp_path / "careless.py"
    file.write_text(AWAIT_IN_ARGUMENTS)
    said = refused("check", "nx-recovery", "-p", str(file), *SMALL)
    assert f"{file}:7" in said or f"{file.name}:7" in said


def test_a_patch_that_raises_is_a_verdict(tmp_path: Path) -> None:
    file = tmp_path / "raises.py"
    file.write_text(RAISES)
    answer = check_json(str(file), *SMALL)
    (found,) = answer["violations"]
    assert found["property"] == "exception"
    assert "no such range" in found["sentence"]
    assert found["token"]
    done = run("check", str(file), *SMALL)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr


# --- compare ---


SETS = [f"--set={one}" for one in ("levels=2", "roots=1", "legacy=0", "gfns=1", "unmap=false")]


def test_compare_equal() -> None:
    done = run("compare", "5.12", "5.12", *SETS)
    assert done.returncode == 0, done
    assert done.stdout.startswith("equal")


def test_compare_different() -> None:
    done = run("compare", "5.12", "6.18", *SETS)
    assert done.returncode == 1, done
    assert done.stdout.startswith("different")


def test_compare_out_of_budget() -> None:
    done = run("compare", "5.12", "5.12", "--states", "10")
    assert done.returncode == 3, done
    assert done.stdout.startswith("unknown")


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("5.12", "5.13-rc9"), "unknown kernel"),
        (("5.12", "5.12", "--set", "levels"), "NAME=VALUE"),
        (("5.12", "5.12", "--set", "levles=2"), "levles"),
    ],
)
def test_compare_refuses(args: tuple[str, ...], reason: str) -> None:
    assert reason in refused("compare", *args)
