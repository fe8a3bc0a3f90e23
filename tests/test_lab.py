"""The lab: step lists, the guest's file system, and a real run of each kernel."""

from __future__ import annotations

import dataclasses
import io
import lzma
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_tools import kernel_or_skip
from typer.testing import CliRunner

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.lab import make_room
from tdpmmu.cli.main import app
from tdpmmu.lab import kernels
from tdpmmu.lab.binaries import trace_cmd
from tdpmmu.lab.boot import Recording, boot
from tdpmmu.lab.cases import Case, random_case
from tdpmmu.lab.checks import CHECKS, Outcome, replay, run_checks, statistics, verify
from tdpmmu.lab.cpio import CpioWriter
from tdpmmu.lab.errors import LabError, need
from tdpmmu.lab.from_script import translate
from tdpmmu.lab.fuzz import Fuzzer
from tdpmmu.lab.initramfs import Job, job
from tdpmmu.lab.kernels import Kernel, find_kernel
from tdpmmu.lab.modules import decompress, depends
from tdpmmu.lab.shrink import shrink
from tdpmmu.lab.steps import KINDS, describe, driver_program, parse
from tdpmmu.lab.vm import VmSetup
from tdpmmu.scenarios.script import Script
from tdpmmu.trace.opening import open_trace
from tdpmmu.trace.owners import find_owners
from tdpmmu.trace.prog import read_prog
from tdpmmu.trace.stats import compare, trace_stats
from tdpmmu.versions.registry import kernel_class

TWO = VmSetup(vcpus=2, blocks=8)


def program(text: str, setup: VmSetup = TWO) -> list[str]:
    return driver_program(parse(text, setup)).splitlines()


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ("w", "w access w 0x1 0x200 0x200 8 0"),
        ("x:3", "x:3 access x 0x1 0x600 0x200 1 0"),
        ("r@1:1-8/3&", "r@1:1-8/3& access r 0x2 0x200 0x600 3 1"),
        ("w@*:2.1-2.511/10", "w@*:2.1-2.511/10 access w 0x3 0x401 0xa 52 0"),
        ("mmio", "mmio access w 0x1 0xc0000 1 1 0"),
        ("host-w:8", "host-w:8 host w 0x1000 0x200 1"),
        ("dontneed:3-4", "dontneed:3-4 madvise 4 0x600 1024"),
        ("ro:3.7", "ro:3.7 mprotect 1 0x607 1"),
        ("rw", "rw mprotect 3 0x200 4096"),
        ("slot-", "slot- slot -1"),
        ("dlog+", "dlog+ slot 1"),
        ("manual:3", "manual:3 manual 3"),
        ("sleep:600", "sleep:600 sleep 600"),
        ("param:nx_huge_pages=off", "param:nx_huge_pages=off param nx_huge_pages off"),
    ],
)
def test_steps_in_the_drivers_words(step: str, line: str) -> None:
    assert program(step) == [line]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no steps"),
        ("w zzz", "step zzz: no such step; see tdpmmu lab steps"),
        ("dlog", "did you mean dlog- or dlog+?"),
        ("w:0", "step w:0: block 0: data blocks are 1 to 8"),
        ("w:1-9", "block 9: data blocks are 1 to 8"),
        ("w:5-4", "the range is empty"),
        ("w:1-4/0", "the range is empty"),
        ("w:1.512", "page 512: a block has pages 0 to 511"),
        ("w:1.0-2", "expected both ends in blocks, or both in pages"),
        ("w:x", "expected a range like 3"),
        ("w@2", "there are 2 vCPUs, from 0 on"),
        ("sleep@1:5", "@ and & are for accesses of the guest; expected sleep:MS"),
        ("getlog:3", "expected getlog"),
        ("sleep", "expected sleep:MS"),
        ("manual:2", "expected manual:N, one of 0, 1, 3"),
        ("param:tdp_mmu=1", "expected param:NAME=VALUE with one of nx_huge_pages"),
    ],
)
def test_steps_that_make_no_sense(text: str, complaint: str) -> None:
    with pytest.raises(LabError) as error:
        parse(text, TWO)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_every_step_is_documented() -> None:
    text = describe()
    for name, kind in KINDS.items():
        assert kind.usage.startswith(name)
        assert f"{kind.usage} " in text
    result = CliRunner().invoke(app, ["lab", "steps"])
    assert result.stdout.strip() == text.strip()


def test_setups_that_make_no_sense() -> None:
    for arguments, complaint in (
        ({"mmu": "ept"}, "mmu ept: expected tdp, legacy, shadow"),
        ({"vcpus": 9}, "vcpus 9: expected 1 to 8"),
        ({"blocks": 512}, "blocks 512: expected 1 to 511"),
        ({"vms": 0}, "vms 0: expected 1 to 8"),
        ({"backing": "1g"}, "backing 1g: expected thp, 4k, hugetlb"),
    ):
        with pytest.raises(LabError, match=complaint):
            VmSetup(**arguments)  # type: ignore[arg-type]
    with pytest.raises(LabError, match=r"kernel 5\.10: expected one of 6\.1, 6\.12"):
        find_kernel("5.10")


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(LabError, match=r"qemu-x is not installed: apt-get install qemu"):
        need("qemu-x", "qemu")
    result = CliRunner().invoke(app, ["lab", "run", "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, UsageError)
    assert "apt-get is not installed" in str(result.exception)


def test_the_newest_package(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "linux-image-6.12.9+deb13-cloud-amd64\nlinux-image-6.12.117+deb12-cloud-amd64\n"
        "linux-image-6.12.118+deb12-amd64\nlinux-image-6.12-cloud-amd64\n"
        "linux-image-6.12.119+deb12-cloud-amd64-dbg\n"
    )
    monkeypatch.setattr(kernels, "_run", lambda command, cwd=None: names)
    monkeypatch.setattr(kernels, "need", lambda tool, package: tool)
    assert kernels.newest_package("6.12") == "linux-image-6.12.117+deb12-cloud-amd64"
    with pytest.raises(LabError, match="apt knows no package linux-image-6"):
        kernels.newest_package("6.1")


def test_modules() -> None:
    assert depends(b"\0license=GPL\0depends=kvm,irq-bypass\0x\0") == ["kvm", "irq_bypass"]
    assert depends(b"\0depends=\0") == []
    with pytest.raises(LabError, match="expected a module as"):
        decompress("kvm.ko.gz", b"")


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_archives_are_read_by_others(tmp_path: Path) -> None:
    out = io.BytesIO()
    writer = CpioWriter(out)
    writer.file("bin/sh", b"#!", executable=True)
    writer.file("lab/jobs/0/program", b"w\n")
    writer.symlink("bin/ash", "sh")
    writer.close()
    command = ["busybox", "cpio", "-idm"]
    subprocess.run(command, input=out.getvalue(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "lab/jobs/0/program").read_bytes() == b"w\n"
    assert os.access(tmp_path / "bin/sh", os.X_OK)
    assert os.readlink(tmp_path / "bin/ash") == "sh"


def test_only_what_a_run_left_is_replaced(tmp_path: Path) -> None:
    make_room(tmp_path / "new")
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="not from an earlier run"):
        make_room(tmp_path)
    old = tmp_path / "old"
    old.mkdir()
    (old / "console.txt").touch()
    make_room(old)
    assert not old.exists()


DATA = Path(__file__).parent / "data/traces/6.1-lab"


def recorded(directory: Path, mmu: str = "tdp", drop: str = "") -> Recording:
    """The recorded run as one of the lab's; ``drop``: the first line with that is left out."""
    text = lzma.decompress((DATA / "trace.txt.xz").read_bytes()).decode()
    lines = text.splitlines(keepends=True)[11:]  # without the header, which counts entries
    if drop:
        del lines[next(i for i, line in enumerate(lines) if drop in line)]
    (directory / "trace.txt").write_text("".join(lines))
    shutil.copy(DATA / "prog.txt", directory)
    kernel = Kernel("6.1", "linux-image", directory, (), False)
    return Recording(directory, kernel, job(VmSetup(mmu), "w"))


def test_the_statistics_check(tmp_path: Path) -> None:
    good = statistics(recorded(tmp_path))
    assert good is not None
    assert good.good
    assert "20 of 20 numbers are the kernel's own" in good.summary
    bad = statistics(recorded(tmp_path, drop="kvm_tdp_mmu_spte_changed: as id 0 gfn 200 "))
    assert bad is not None
    assert bad.kind == "numbers"
    assert statistics(recorded(tmp_path, mmu="shadow")) is None


def test_checks_are_a_list_of_functions(tmp_path: Path) -> None:
    recording = recorded(tmp_path)

    def silent(recording: Recording) -> None:
        return None

    def bad(recording: Recording) -> Outcome:
        return Outcome("mine", "odd", str(recording.trace.exists()))

    def broken(recording: Recording) -> Outcome:
        raise ValueError("pfn")

    (outcome,) = run_checks(recording, (broken,))
    assert (outcome.check, outcome.kind) == ("broken", "exception")
    assert outcome.summary == "ValueError in broken: pfn"
    assert run_checks(recording, (silent, bad)) == [Outcome("mine", "odd", "True")]
    assert (statistics, replay, verify) == CHECKS


def test_random_cases_make_sense_and_depend_on_seed_and_number_only() -> None:
    for mmu in ("tdp", "legacy", "shadow"):
        cases = [random_case(3, number, mmu) for number in range(300)]
        assert all(case.valid for case in cases)
        assert cases[200] == random_case(3, 200, mmu)
        assert cases[200] != random_case(4, 200, mmu)
        assert len(set(cases)) == len(cases)
        names = {parse(word, case.setup)[0].name for case in cases for word in case.steps}
        assert names == set(KINDS)


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_shrinking_keeps_what_fails(seed: int) -> None:
    """A failure that takes a getlog after a dlog+ on a VM with two vCPUs."""
    case = random_case(seed, 0, "tdp")
    case = dataclasses.replace(
        case,
        setup=dataclasses.replace(case.setup, vcpus=2),
        steps=("dlog+", *case.steps, "getlog", "w@*:2&"),
    )

    def one_fails(one: Case) -> bool:
        names = [step.partition(":")[0] for step in one.steps]
        return (
            one.setup.vcpus == 2 and "dlog+" in names and "getlog" in names[names.index("dlog+") :]
        )

    def fails(cases: list[Case]) -> list[bool]:
        assert len(cases) <= 20
        assert all(one.valid for one in cases)
        return [one_fails(one) for one in cases]

    smallest = shrink(case, fails, rounds=100)
    assert smallest.steps == ("dlog+", "getlog")
    assert smallest.setup == VmSetup(vcpus=2, blocks=1, guest="flat")
    assert shrink(smallest, fails) == smallest


def test_the_command_of_a_case_runs_it() -> None:
    case = random_case(0, 1, "tdp")
    words = shlex.split(case.command("6.1"))
    assert words[:5] == ["tdpmmu", "lab", "run", "--kernel", "6.1"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--steps"] == case.text
    assert options["--blocks"] == str(case.setup.blocks)
    assert "--vms" not in options
    two = random_case(0, 1, "tdp", 2)
    assert two.steps == case.steps
    assert two.command("6.1") == case.command("6.1").replace(" --steps", " --vms 2 --steps")


def test_fuzzing_keeps_and_shrinks_divergences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a boot that records nothing, and a check that finds every x bad."""
    boots = []

    def no_boot(kernel: Kernel, jobs: list[Job], out: Path, timeout: float) -> list[Recording]:
        boots.append(len(jobs))
        out.mkdir(parents=True)
        if any("collapse" in one.steps for one in jobs):
            raise LabError("the guest was not done")
        found = []
        for number, one in enumerate(jobs):
            (out / str(number)).mkdir(parents=True)
            (out / str(number) / "steps.txt").write_text(one.steps)
            found.append(Recording(out / str(number), kernel, one))
        return found

    def no_x(recording: Recording) -> Outcome | None:
        bad = any(step.name == "x" for step in parse(recording.job.steps, recording.job.setup))
        return Outcome("no-x", "x" if bad else "", "")

    monkeypatch.setattr("tdpmmu.lab.fuzz.boot", no_boot)
    kernel = Kernel("6.1", "linux-image", tmp_path, (), False)
    said: list[str] = []
    fuzzer = Fuzzer(kernel, tmp_path, 10, 1.0, (no_x,), said.append)
    results = list(fuzzer.fuzz("tdp", 5, 30))
    assert [one.case for one in results] == [random_case(5, number, "tdp") for number in range(30)]
    assert max(boots) > 1
    assert 1 in boots  # one by one, after a boot that failed
    ran = [one for one in results if not any(o.check == "boot" for o in one.outcomes)]
    for number, one in enumerate(results):
        kept = tmp_path / f"divergence-{number}"
        assert kept.exists() == bool(one.bad)
        if one in ran and one.bad:
            assert (kept / "steps.txt").read_text() == one.case.text
            assert one.case.command("6.1") in (kept / "outcome.txt").read_text()
            shrunk = (kept / "shrunk" / "steps.txt").read_text()
            assert re.fullmatch(r"x(:\d+(\.\d+)?)?", shrunk), shrunk
    assert ran


SCRIPT = "vcpu0: w0 wx2-3; vcpu1: r1; ioctl: log-on:0 get-log:0; host: unmap:1 recover"


def test_a_script_of_the_model_as_steps() -> None:
    made = translate(SCRIPT, "w0 x2")
    assert made.steps == (
        "w:1.0 x:2.0 w:1.0& r@1:1.1& dlog+ dontneed:1.1 w:2.0& getlog sleep:300 stop"
    )
    assert (made.vcpus, made.blocks) == (2, 2)
    parse(made.steps, VmSetup(vcpus=2, blocks=2))
    assert translate("vcpu0: w7\nhost: slot-delete:0/6 slot-create:0/0-7", fanout=4).steps == (
        "w:2.3& slot- slot+ stop"
    )
    Script(threads=SCRIPT, setup="w0 x2").build(kernel_class("6.12"))  # and in the model's world


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("vcpu0: w0; host: zap-range:0-1", "step zap-range:0-1: a real run cannot do that"),
        ("smm0: w0", "thread smm0: the lab has no SMM"),
        ("shadow0: w0", "thread shadow0: the lab has no SMM and no nested guests"),
        ("host: unmap:1/0x", "step unmap:1/0x: "),
        ("host: unmap:one", "step unmap:one: 'one' is no gfn"),
        ("vcpu0 w0", "expected NAME: STEP STEP"),
    ],
)
def test_scripts_that_no_real_run_can_do(script: str, complaint: str) -> None:
    with pytest.raises(LabError) as error:
        translate(script)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


# --- real runs ------------------------------------------------------------------------------------

PLAIN = "w x:1-4 w sleep:300 w r dontneed:2-3 w:1-4 x:6 sleep:300"
STEPS = (
    "w x:1-4 w sleep:300 r@1:1-8& w dlog+ getlog w:1-8/3 x:7 stop getlog w:1.0-1.511/64 dlog- r "
    "mmio slot- w:2 slot+ w@1 ro:3-5 r:3-5 w:4 rw w manual:3 dlog+ clearlog w:5 getlog clearlog "
    "dlog- dontneed:2-3 r:1-4 host-w:3 x@*:2-6"
)


PAIR = "w x:1 w@1 dlog+ w getlog dlog- sleep:300 r dontneed:2 w@*"


@pytest.mark.parametrize("version", kernels.KERNELS)
def test_a_real_kernel(version: str, tmp_path: Path) -> None:
    """Lists in one boot: one that all checks are good for, one with everything in it, two VMs."""
    kernel = kernel_or_skip(version)
    jobs = [job(VmSetup(blocks=8), PLAIN), job(VmSetup(vcpus=2, blocks=8), STEPS)]
    jobs.append(job(VmSetup(vcpus=2, blocks=2, vms=2), PAIR))
    extra = trace_cmd() if shutil.which("trace-cmd") else None
    plain, recording, pair = boot(kernel, jobs, tmp_path / "out", 120, extra=extra)
    if extra:
        with open_trace(str(plain.directory / "trace.dat")) as binary:
            stats = trace_stats(binary)
        assert stats.exact
        assert not compare(stats, read_prog(str(plain.prog)), "prog.txt")[1]
    outcomes = run_checks(plain)
    assert [outcome.check for outcome in outcomes] == ["stats", "replay", "verify"]
    for outcome in (*outcomes, statistics(recording)):
        assert outcome is not None
        assert outcome.good, outcome
    outcomes = run_checks(pair)
    assert [outcome.check for outcome in outcomes] == ["replay", "verify"]
    assert all(outcome.good for outcome in outcomes), outcomes
    with open_trace(str(pair.trace)) as reader:
        assert len(find_owners(list(reader)).vms) == 2
    assert (pair.directory / "prog-1.txt").read_text().count("DONE") == len(PAIR.split())
    log = recording.prog.read_text()
    assert "vCPU 0: 1 MMIO exits" in log
    assert "vCPU 0 stopped at page 0x800: Bad address" in log
    assert "rounds" in log
    text = recording.trace.read_text()
    for event in ("zap_sp:", "zap_sp_ret:", "flush:", "zap_leafs:", "free_sp:", "kvm_page_fault:"):
        assert event in text, event
    assert (
        "account_nx_huge_page" in text
        or "account_huge_nx_page" in text
        or ("track_possible_nx_huge_page" in text)
    )
