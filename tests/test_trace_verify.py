"""Traces of real kernels hold; each of them, damaged in one place, is found out."""

from __future__ import annotations

import heapq
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.main import app
from tdpmmu.trace.text import TraceReader
from tdpmmu.trace.verify.findings import FULL, NONE, PART, Result
from tdpmmu.trace.verify.verifier import verify

TRACES = Path(__file__).parent / "data" / "traces"
KERNELS = ("6.1-tdp1", "6.12-tdp1")


@cache
def lines_of(name: str) -> tuple[str, ...]:
    """A recorded trace without its header, which counts the entries."""
    text = lzma.decompress((TRACES / name / "trace.txt.xz").read_bytes()).decode()
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def check(lines: list[str] | tuple[str, ...]) -> Result:
    text = "".join(line + "\n" for line in lines)
    return verify(TraceReader(io.BytesIO(text.encode()), "trace"))


def broken(lines: list[str]) -> set[str]:
    return {one.prop for one in check(lines).violations}


def where(lines: list[str], what: str, start: int = 0) -> int:
    """The next line with ``what`` in it."""
    return next(i for i in range(start, len(lines)) if what in lines[i])


def rounds(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Where a worker zaps a table, and where it flushes."""
    for i, line in enumerate(lines):
        if " zap_sp: " in line:
            worker = line.split("[")[0]
            flush = where(lines, " flush: ", i)
            if lines[flush].startswith(worker) and lines[flush + 1].startswith(worker):
                yield i, flush


@pytest.mark.parametrize("name", [*KERNELS, "6.12-tdp0", "6.12-npt0", "6.12-shadow-nx-off"])
def test_what_real_kernels_did_holds(name: str) -> None:
    result = check(lines_of(name))
    assert result.violations == []
    assert result.problems == []
    assert result.ambiguous == 0


def test_what_was_checked_is_said() -> None:
    said = {one.prop: one.coverage for one in check(lines_of("6.1-tdp1")).checked}
    assert said == {
        "spte-transition": FULL,
        "nx-huge-page": FULL,
        "flush-owed": PART,
        "freed-table": PART,
        "page-accounting": FULL,
        "leak": FULL,
        "leftover": NONE,
    }
    said = {one.prop: one.coverage for one in check(lines_of("6.12-tdp1")).checked}
    assert said["leftover"] == PART
    said = {one.prop: one.coverage for one in check(lines_of("6.12-tdp0")).checked}
    assert {prop for prop, coverage in said.items() if coverage != NONE} == {"nx-huge-page"}


@pytest.mark.parametrize("name", KERNELS)
def test_a_dropped_flush_of_the_worker(name: str) -> None:
    """Where it is the only one that covers what the round has zapped."""
    lines = list(lines_of(name))
    found = list(rounds(lines))
    for zap, flush in (found[0], *found[-2:]):
        # The probe and the line of the function tracer.
        result = check([*lines[:flush], *lines[flush + 2 :]])
        # 6.1's worker is not seen between its rounds.
        owed = {"flush-owed"} if name == "6.12-tdp1" else set()
        assert {one.prop for one in result.violations} == {"freed-table"} | owed
        for one in result.violations:
            assert zap < one.evidence[0][0] <= flush
            assert "level 2 old_spte" in one.evidence[0][1]


def test_a_scheduled_out_worker_holds_no_lock() -> None:
    lines = list(lines_of("6.1-tdp1"))
    _, flush = next(rounds(lines))
    switch = "sched_switch: prev_comm=kvm-nx prev_pid=1 prev_prio=120 prev_state=S ==> next_comm=x"
    asleep = re.sub(r": flush: .*", f": {switch}", lines[flush])
    assert broken([*lines[: flush + 2], asleep, *lines[flush + 2 :]]) == set()
    assert "flush-owed" in broken([*lines[:flush], asleep, *lines[flush + 2 :]])


def test_a_free_that_only_the_function_tracer_saw() -> None:
    """A kprobe that hits while another one is handled is missed, and its address with it."""
    lines = list(lines_of("6.1-lab"))
    frees = [i for i, one in enumerate(lines) if " free_sp: " in one]
    assert all("tdp_mmu_free_sp_rcu_callback <-" in lines[free - 1] for free in frees)
    silent = [broken([*lines[:free], *lines[free + 1 :]]) for free in frees]
    gone = [broken([*lines[: free - 1], *lines[free + 1 :]]) for free in frees]
    assert set().union(*silent) == set()
    assert set().union(*gone) == {"page-accounting"}


def test_a_teardown_that_yields_goes_on() -> None:
    """The recovery worker is the last thread of its process, and preempted as it zaps all."""
    lines = list(lines_of("6.12-teardown"))
    begin = where(lines, "kvm_tdp_mmu_zap_all <-")
    preempted = where(lines, "prev_state=R", begin)
    result = check(lines)
    assert result.violations == []
    assert {one.prop: one.coverage for one in result.checked}["leak"] == FULL
    late = [one for one in lines[preempted:] if "kvm_tdp_mmu_spte_changed" not in one]
    assert "leak" in broken([*lines[:preempted], *late])


@pytest.mark.parametrize("name", KERNELS)
def test_a_flush_of_another_range_is_not_enough(name: str) -> None:
    lines = list(lines_of(name))
    *_, first = (i for i, line in enumerate(lines) if " flush_range: " in line)
    damaged = [line for i, line in enumerate(lines) if not first <= i < first + 4]
    whole = broken(damaged)
    moved = re.sub(r"gfn=\w+", "gfn=0x7000000", lines[first])
    assert "flush-owed" in whole
    assert "flush-owed" in broken([*lines[:first], moved, *damaged[first:]])


@pytest.mark.parametrize("name", KERNELS)
def test_a_free_before_its_flush(name: str) -> None:
    lines = list(lines_of(name))
    _, flush = next(rounds(lines))
    free = where(lines, " free_sp: ", flush)
    swapped = [*lines[:flush], lines[free], *lines[flush:free], *lines[free + 1 :]]
    assert broken(swapped) == {"freed-table"}


@pytest.mark.parametrize("name", KERNELS)
def test_a_free_before_its_unlinking(name: str) -> None:
    lines = list(lines_of(name))
    zap, flush = next(rounds(lines))
    free = where(lines, " free_sp: ", flush)
    swapped = [*lines[:zap], *lines[free : free + 2], *lines[zap:free], *lines[free + 2 :]]
    assert "page-accounting" in broken(swapped)


@pytest.mark.parametrize("name", KERNELS)
def test_a_table_that_is_never_freed(name: str) -> None:
    lines = list(lines_of(name))
    _, flush = next(rounds(lines))
    free = where(lines, " free_sp: ", flush)
    assert broken([*lines[:free], *lines[free + 2 :]]) == {"page-accounting"}
    assert broken([*lines[:free], *lines[free : free + 2], *lines[free:]]) == {"page-accounting"}


def test_a_leaf_left_when_its_range_is_unmapped() -> None:
    lines = list(lines_of("6.12-tdp1"))
    zap = where(lines, "kvm_tdp_mmu_spte_changed", where(lines, " zap_leafs: "))
    result = check([*lines[:zap], *lines[zap + 1 :]])
    assert {one.prop for one in result.violations} == {"leftover"}
    assert " unmap: " in result.violations[0].evidence[0][1]


@pytest.mark.parametrize("name", KERNELS)
def test_a_leaf_left_when_the_vm_is_gone(name: str) -> None:
    lines = list(lines_of(name))
    zap = where(lines, "level 2", where(lines, "kvm_tdp_mmu_zap_all <-"))
    if name == "6.12-tdp1":
        assert broken([*lines[:zap], *lines[zap + 1 :]]) == {"leak"}
    else:  # the whole table goes at once: what it does not report is counted as damage
        assert check([*lines[:zap], *lines[zap + 1 :]]).violations[0].prop == "leak"


def second_vm(lines: list[str], delay: float) -> list[str]:
    """The same run in another VM: other threads, CPUs, pointers and frames, and later."""

    def head(match: re.Match[str]) -> str:
        pid, cpu, time = int(match[2]), int(match[4]) + 2, float(match[6]) + delay
        return f"{match[1]}-{pid and pid + 1000}{match[3]}{cpu:03}{match[5]}{time:.6f}: "

    def spte(match: re.Match[str]) -> str:
        value = int(match[2], 16)
        return f"{match[1]}{value ^ (1 << 37 if value & 1 << 11 else 0):x}"

    def pointer(match: re.Match[str]) -> str:
        return f"{match[1]}{int(match[2], 16) ^ 1 << 30:x}"

    found = []
    for line in lines:
        line = re.sub(r"^(.{,40}?)-(\d+)(\s+\[)(\d+)(\] \S+ +)([\d.]+): ", head, line, count=1)
        line = re.sub(r"((?:kvm|sp|head|root)=0x)([0-9a-f]+)", pointer, line)
        found.append(re.sub(r"((?:old|new)_spte )([0-9a-f]+)", spte, line))
    return found


def merged(*traces: list[str]) -> list[str]:
    def time(line: str) -> float:
        return float(re.search(r"\] \S+ +([\d.]+): ", line)[1])  # type: ignore[index]

    return list(heapq.merge(*traces, key=time))


@pytest.mark.parametrize(("name", "delay"), [("6.1-tdp1", 0.3), ("6.12-tdp1", 0.003)])
def test_two_vms(name: str, delay: float) -> None:
    lines = list(lines_of(name))
    both = merged(lines, second_vm(lines, delay))
    result = check(both)
    assert (result.vms, result.roots) == (2, 2)
    assert (result.ambiguous, result.problems, result.violations) == (0, [], [])
    assert {one.prop: one.judged for one in result.checked}["leak"] == 2
    without_probes = check([line for line in both if not re.search(r": \(\w+\+0x", line)])
    assert (without_probes.problems, without_probes.violations) == ([], [])


def test_a_flush_of_another_vm_is_not_enough() -> None:
    lines = list(lines_of("6.12-tdp1"))
    _, flush = next(rounds(lines))
    damaged = merged([*lines[:flush], *lines[flush + 2 :]], second_vm(lines, 0.003))
    assert broken(damaged) == {"flush-owed", "freed-table"}


def changed(line: str, **values: int) -> str:
    for name, value in values.items():
        line = re.sub(rf"{name}_spte [0-9a-f]+", f"{name}_spte {value:x}", line)
    return line


def damage_pfn(line: str, old: int) -> str:
    return changed(line, new=old ^ 1 << 40)


def damage_frozen(line: str, old: int) -> str:
    return changed(line, old=0x80000000000005A0, new=old)


def damage_level(line: str, old: int) -> str:
    return line.replace("level 1", "level 4")


@pytest.mark.parametrize("damage", [damage_pfn, damage_frozen, damage_level])
def test_illegal_changes(damage: Callable[[str, int], str]) -> None:
    lines = list(lines_of("6.12-tdp1"))
    dirty = where(lines, "kvm_tdp_mmu_clear_dirty_pt_masked <-")
    at = where(lines, "level 1 old_spte", dirty)
    old = int(re.search(r"old_spte (\w+)", lines[at])[1], 16)  # type: ignore[index]
    lines[at] = damage(lines[at], old)
    result = check(lines)
    assert result.counts["spte-transition"] == 1
    assert result.violations[0].evidence[0][0] == at + 1


def test_an_executable_huge_leaf() -> None:
    lines = list(lines_of("6.12-tdp1"))
    huge = [
        i for i, one in enumerate(lines) if "level 2 old_spte 8000000000000000 new_spte 8" in one
    ]
    at = huge[len(huge) // 2]
    spte = int(re.search(r"new_spte (\w+)", lines[at])[1], 16) & ~(1 << 63)  # type: ignore[index]
    lines[at] = changed(lines[at], new=spte)
    assert "nx-huge-page" in broken(lines)


def test_a_huge_leaf_of_shadow_paging_that_differs() -> None:
    """The mitigation is switched off, and new roots are made for it: without those it is wrong."""
    lines = [one for one in lines_of("6.12-shadow-nx-off") if not re.search(r" l4 .* new$", one)]
    assert len(lines) == len(lines_of("6.12-shadow-nx-off")) - 3
    assert broken(lines) == {"nx-huge-page"}


def test_lost_events_lower_what_was_checked() -> None:
    lines = list(lines_of("6.12-tdp1"))
    _, flush = next(rounds(lines))
    lost = [*lines[:flush], "CPU:0 [LOST 2 EVENTS]", *lines[flush + 2 :]]
    result = check(lost)
    assert result.violations == []
    assert result.problems[0][0] == flush + 1
    assert FULL not in {one.coverage for one in result.checked}


def test_changes_of_two_cpus_in_the_wrong_order_are_put_right() -> None:
    lines = list(lines_of("6.1-tdp1"))
    # A fault's link overtakes the worker's zap of the same entry.
    zap = where(lines, "kvm_tdp_mmu_spte_changed", next(rounds(lines))[0])
    flush = where(lines, " flush: ", zap)
    entry = re.search(r"gfn 0 level 2 old_spte", lines[zap])
    assert entry
    link = where(lines, "gfn 0 level 2 old_spte 0 ", flush)
    lines.insert(zap, lines.pop(link))
    result = check(lines)
    assert result.violations == []
    assert result.problems == []


def test_the_middle_of_a_trace_is_read_with_reservations() -> None:
    lines = list(lines_of("6.12-tdp1"))
    result = check(lines[len(lines) // 2 :])
    assert result.violations == []
    assert result.problems


def test_command_line(tmp_path: Path) -> None:
    runner = CliRunner()
    path = TRACES / "6.12-tdp1" / "trace.txt.xz"
    done = runner.invoke(app, ["trace", "verify", str(path), "--kernel", "6.12"])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{path}: holds\n")
    lines = list(lines_of("6.12-tdp1"))
    _, flush = next(rounds(lines))
    damaged = tmp_path / "trace"
    damaged.write_text("\n".join([*lines[:flush], *lines[flush + 2 :]]) + "\n")
    done = runner.invoke(app, ["trace", "verify", str(damaged)])
    assert done.exit_code == 1
    assert "flush-owed: the 2M table of gfn 0x0 was taken away" in done.stdout
    done = runner.invoke(app, ["trace", "verify", str(damaged), "--json"])
    told = json.loads(done.stdout)
    assert told["verdict"] == "violated"
    assert told["violations"][0]["evidence"][0]["line"] > 1
    damaged.write_text("no trace\n")
    with pytest.raises(UsageError, match="line 1: expected tracefs text"):
        runner.invoke(app, ["trace", "verify", str(damaged)], catch_exceptions=False)
