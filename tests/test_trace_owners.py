"""Several VMs in one trace: whose each record is, and what verification and replay make of it."""

from __future__ import annotations

import lzma
import re
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.main import app
from tdpmmu.conformance.replay.report import to_text
from tdpmmu.conformance.replay.result import Result
from tdpmmu.conformance.replay.run import replay_trace
from tdpmmu.trace.detect import Detector
from tdpmmu.trace.opening import open_trace
from tdpmmu.trace.owners import Owned, Vm, find_owners
from tdpmmu.trace.records import Lost, Record
from tdpmmu.trace.verify.findings import FULL
from tdpmmu.trace.verify.verifier import verify

TRACES = Path(__file__).parent / "data" / "traces"
KERNELS = ("6.1", "6.12")
SUMS = {"6.1": (6192, 6192), "6.12": (6712, 5163)}


@cache
def text_of(kernel: str) -> str:
    """Two copies of the lab's driver at once, which also set a parameter that is for all VMs."""
    with lzma.open(TRACES / f"{kernel}-two-vms" / "trace.txt.xz", "rt") as stream:
        return "".join(line for line in stream if not line.startswith("#"))


def replay(text: str, kernel: str, tmp_path: Path) -> Result:
    file = tmp_path / "trace.txt"
    file.write_text(text)
    with open_trace(str(file)) as reader:
        return replay_trace(reader, kernel=kernel, format_name="npt")


def pointers(text: str) -> list[str]:
    return sorted(set(re.findall(r"kvm=(0x\w+)", text)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_vm_is_replayed_for_itself(kernel: str, tmp_path: Path) -> None:
    result = replay(text_of(kernel), kernel, tmp_path)
    assert result.agrees
    assert tuple(vm.agree for vm in result.vms) == SUMS[kernel]
    assert (result.agree, result.changes) == (sum(SUMS[kernel]), sum(SUMS[kernel]))
    assert (result.ambiguous, result.doubts) == (0, [])
    # Each driver switches the mitigation off and on again, which zaps the other's VM, too.
    assert all(vm.inputs["module parameter set"] == 4 for vm in result.vms)
    assert to_text(result).endswith(f"2 VMs\n{result.agree} of {result.changes} SPTE changes agree")


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_vm_is_verified(kernel: str) -> None:
    with open_trace(str(TRACES / f"{kernel}-two-vms" / "trace.txt.xz")) as reader:
        result = verify(reader, Detector("npt", kernel))
    assert (result.violations, result.problems) == ([], [])
    assert (result.vms, result.ambiguous) == (2, 0)
    judged = {one.prop: (one.coverage, one.judged) for one in result.checked}
    assert judged["leak"] == (FULL, 2)
    # The recovery worker is scheduled out before its first round, and the trace has that.
    assert judged["flush-owed"][0] == FULL


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_vms_taken_for_one_do_not_agree(kernel: str, tmp_path: Path) -> None:
    """So it is the pointers that tell them apart."""
    one, other = pointers(text_of(kernel))
    result = replay(text_of(kernel).replace(other, one), kernel, tmp_path)
    assert not result.vms
    assert not result.agrees


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_unmap_of_the_other_vm_is_found(kernel: str, tmp_path: Path) -> None:
    """A change that is given to the other VM is one too many there, and missing here."""
    text = text_of(kernel)
    one, other = pointers(text)
    lines = text.splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if "unmap: (" in line and one in line)
    lines[at] = lines[at].replace(one, other)
    result = replay("".join(lines), kernel, tmp_path)
    assert [bool(vm.divergences) for vm in result.vms] == [True, True]


def without_probes(text: str) -> str:
    return re.sub(r".* (\w+: \(\w+\+0x.*|\w+_ret: \(.*)\n", "", text)


def test_nothing_tells_two_vms_apart(tmp_path: Path) -> None:
    """No probes and no processes: two threads run vCPU 0, and that is all one knows."""
    bare = re.sub(r"\( *[\d-]+\) \[", "[", without_probes(text_of("6.12")))
    assert "kvm=" not in bare
    file = tmp_path / "trace.txt"
    file.write_text(bare)
    result = CliRunner().invoke(app, ["trace", "replay", str(file)])
    assert isinstance(result.exception, UsageError)
    message = str(result.exception)
    assert "ambiguous: vCPU 0 runs in vcpu0-" in message
    assert "expected what tells whose each SPTE is" in message


# --- whose a record is ----------------------------------------------------------------------------


def owned(tmp_path: Path, *lines: str) -> tuple[Owned, dict[Vm, list[str]]]:
    """Lines are "task-pid event: text", or with a tgid "task-pid(tgid) event: text"."""
    text = ""
    for number, line in enumerate(lines):
        if line.startswith("CPU:"):
            text += line + "\n"
            continue
        who, _, what = line.partition(" ")
        task, _, tgid = who.partition("(")
        process = f" ( {tgid} " if tgid else ""
        text += f"  {task}{process} [000] ...1. 1.{number:06}: {what}\n"
    file = tmp_path / "trace.txt"
    file.write_text(text)
    with open_trace(str(file)) as reader:
        records = list(reader)
    found = find_owners(records)
    shown = {
        vm: ["lost" if isinstance(one, Lost) else f"{one.pid} {one.event}" for one in its]
        for vm, its in found.vms.items()
    }
    assert all(isinstance(one, Record | Lost) for its in found.vms.values() for one in its)
    return found, shown


def fault(vcpu: int) -> str:
    return f"kvm_page_fault: vcpu {vcpu} rip 0x1 address 0x0000000000001000 error_code 0x4"


CHANGED = "kvm_tdp_mmu_spte_changed: as id 0 gfn 1 level 1 old_spte 0 new_spte 1827"
UNMAPS = "kvm_unmap_hva_range: mmu notifier unmap range: 0x1000 -- 0x2000"
OTHER = "vcpu0-9 fault: (kvm_tdp_page_fault+0x4/0x30 [kvm]) kvm=0xb000"


def probe(function: str, kvm: int, more: str = "") -> str:
    return f"p: ({function}+0x4/0x30 [kvm]) kvm={kvm:#x}{more}"


def test_an_unmap_in_a_foreign_thread_is_for_whom_its_probe_names(tmp_path: Path) -> None:
    unmapped = "r: (kvm_unmap_gfn_range+0x9/0x30 [kvm] <- kvm_tdp_mmu_unmap_gfn_range) ret=1"
    found, shown = owned(
        tmp_path,
        OTHER,
        f"vcpu0-1 {fault(0)}",
        f"vcpu0-1 {probe('kvm_tdp_page_fault', 0xA000)}",
        f"vcpu0-1 {CHANGED}",
        f"vcpu0-1 {UNMAPS}",
        f"vcpu0-1 {probe('kvm_tdp_mmu_unmap_gfn_range', 0xB000)}",
        f"vcpu0-1 {CHANGED}",
        f"vcpu0-1 {unmapped}",
        f"vcpu0-1 {CHANGED}",
        f"kswapd0-5 {UNMAPS}",
        f"kswapd0-5 {probe('kvm_tdp_mmu_unmap_gfn_range', 0xA000)}",
        f"kswapd0-5 {CHANGED}",
        f"kswapd0-5 {UNMAPS}",
        f"kswapd0-5 {CHANGED}",
    )
    changed = "kvm_tdp_mmu_spte_changed"
    assert shown[Vm(0xA000)] == [
        *("1 kvm_page_fault", "1 p", f"1 {changed}", f"1 {changed}"),
        *("5 kvm_unmap_hva_range", "5 p", f"5 {changed}"),
    ]
    assert shown[Vm(0xB000)] == [
        *("9 fault", "1 kvm_unmap_hva_range", "1 p", f"1 {changed}", "1 r"),
    ]
    # The last one has no probe, and the thread is nobody's.
    assert found.ambiguous == [14]


def test_a_pointer_that_is_used_again_is_another_vm(tmp_path: Path) -> None:
    _, shown = owned(
        tmp_path,
        f"vcpu0-1 {probe('kvm_tdp_page_fault', 0xA000)}",
        f"vcpu0-1 {CHANGED}",
        "CPU:0 [LOST 3 EVENTS]",
        f"vmm-2 {probe('kvm_arch_flush_shadow_all', 0xA000)}",
        f"vmm-2 {CHANGED}",
        f"vmm-3 {probe('kvm_arch_commit_memory_region', 0xA000, ' change=0')}",
        f"vmm-3 {CHANGED}",
        "vmm-3 tracing_mark_write: hello",
    )
    first, second = Vm(0xA000), Vm(0xA000, 1)
    assert [line.split()[0] for line in shown[first]] == ["1", "1", "lost", "2", "2", "3"]
    assert [line.split()[0] for line in shown[second]] == ["lost", "3", "3", "3"]
    assert str(second) == "VM 0xa000 (number 2 there)"


def test_threads_of_a_process_have_its_vm(tmp_path: Path) -> None:
    found, shown = owned(
        tmp_path,
        f"KVM0-1(10) {fault(0)}",
        f"KVM0-2(20) {fault(0)}",
        f"KVM1-3(10) {CHANGED}",
        f"KVM0-1(10) {fault(0)}",
        f"kswapd0-7(7) {CHANGED}",
    )
    faults = "kvm_page_fault"
    assert shown == {
        Vm(10, process=True): [f"1 {faults}", "3 kvm_tdp_mmu_spte_changed", f"1 {faults}"],
        Vm(20, process=True): [f"2 {faults}"],
    }
    assert found.ambiguous == [5]
    assert str(Vm(10, process=True)) == "VM of process 10"


def test_one_vm_is_left_alone(tmp_path: Path) -> None:
    """Whatever the threads: a pointer, a process, or one vCPU of each id at a time."""
    for lines in (
        (OTHER, f"who-3 {CHANGED}"),
        (f"KVM0-1(10) {fault(0)}", f"KVM1-2(10) {fault(1)}", f"who-3(3) {CHANGED}"),
        (f"KVM0-1 {fault(0)}", f"KVM1-2 {fault(1)}", f"KVM0-1 {fault(0)}", f"KVM0-3 {fault(0)}"),
    ):
        assert owned(tmp_path, *lines)[0] == Owned()
