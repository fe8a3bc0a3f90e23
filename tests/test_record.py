"""``tdpmmu record``: on its own in part, and as it is in the lab's guest."""

from __future__ import annotations

import io
import os
import re
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from guest_python import files_for
from lab_tools import kernel_or_skip
from typer.testing import CliRunner

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.main import app
from tdpmmu.lab.boot import boot
from tdpmmu.lab.initramfs import job
from tdpmmu.lab.kernels import KERNELS
from tdpmmu.lab.vm import VmSetup
from tdpmmu.record import wanted
from tdpmmu.record.btf import offsets
from tdpmmu.record.errors import RecordError
from tdpmmu.record.recorder import record, stop_on_signals
from tdpmmu.record.session import Session, process_name, remove_left_behind
from tdpmmu.record.tracefs import Tracefs, find_tracefs
from tdpmmu.trace.opening import open_trace
from tdpmmu.trace.prog import read_prog
from tdpmmu.trace.stats import compare, trace_stats

# --- probes and BTF -------------------------------------------------------------------------------


def btf(types: bytes, strings: bytes) -> bytes:
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return head + types + strings


def structure(name: int, members: list[tuple[int, int]], flag: int = 0) -> bytes:
    body = b"".join(struct.pack("<III", one, 1, bits) for one, bits in members)
    return struct.pack("<III", name, flag << 31 | 4 << 24 | len(members), 64) + body


BASE = b"\0gfn\0int\0"
SPLIT = b"\0kvm_mmu_page\0role\0other\0"
PAGE, ROLE, OTHER = (len(BASE) + SPLIT.index(name) for name in (b"kvm_m", b"role", b"other"))
GFN = 1
WANTED = [("kvm_mmu_page", "role"), ("kvm_mmu_page", "gfn"), ("kvm_mmu_page", "nx")]


def test_offsets_of_a_module_with_names_in_both_string_tables() -> None:
    integer = struct.pack("<IIII", 5, 1 << 24, 4, 32)
    enum = struct.pack("<III", 0, 6 << 24 | 2, 4) + bytes(16)
    other = structure(OTHER, [(ROLE, 8)])
    page = structure(PAGE, [(ROLE, 288), (GFN, 320)])
    data = btf(integer + enum + other + page, SPLIT)
    assert offsets(btf(integer, BASE), data, WANTED) == {"role": 36, "gfn": 40}


def test_bit_fields_have_no_offset_and_their_neighbours_do() -> None:
    page = structure(PAGE, [(ROLE, 1 << 24 | 8), (GFN, 64)], flag=1)
    assert offsets(btf(b"", BASE), btf(page, SPLIT), WANTED) == {"gfn": 8}


def test_offsets_of_what_is_built_in() -> None:
    strings = b"\0kvm_mmu_page\0role\0"
    data = btf(structure(1, [(14, 96)]), strings)
    assert offsets(data, data, WANTED) == {"role": 12}


@pytest.mark.parametrize("data", [b"", b"no BTF at all, but long enough", btf(b"", BASE)[:-1]])
def test_what_is_no_btf(data: bytes) -> None:
    with pytest.raises(ValueError, match="BTF"):
        offsets(data, data, WANTED)
    page = structure(PAGE, [(ROLE, 288)])
    with pytest.raises(ValueError, match="BTF ends too early"):
        offsets(btf(b"", BASE), btf(page[:-4], SPLIT), WANTED)


def test_probes_as_the_kernel_takes_them() -> None:
    probe = next(one for one in wanted.PROBES if one.event == "zap_sp")
    assert wanted.kprobe(probe, {"gfn": 40}) == (
        "p:tdpmmu/zap_sp kvm_tdp_mmu_zap_sp kvm=%di:x64 sp=%si:x64 gfn=+40(%si):x64"
    )
    assert wanted.fprobe(probe).startswith("f:tdpmmu/zap_sp kvm_tdp_mmu_zap_sp kvm=kvm:x64 ")
    fault = next(one for one in wanted.PROBES if one.event == "fault")
    assert wanted.kprobe(fault, {"kvm": 0}) == "p:tdpmmu/fault kvm_tdp_page_fault kvm=+0(%di):x64"
    assert wanted.fprobe(fault) == "f:tdpmmu/fault kvm_tdp_page_fault kvm=vcpu->kvm:x64"
    assert ("kvm_mmu_page", "role") in wanted.MEMBERS
    assert len({member for _, member in wanted.MEMBERS}) == len(wanted.MEMBERS)


# --- refusals -------------------------------------------------------------------------------------


def refused(tracefs: Path, tmp_path: Path) -> str:
    arguments = ["record", "--tracefs", str(tracefs), "--duration", "0"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "trace.txt")])
    assert isinstance(result.exception, UsageError)
    assert not (tmp_path / "trace.txt").exists()
    return str(result.exception)


def test_refuses_without_tracefs_or_kvm(tmp_path: Path) -> None:
    assert refused(tmp_path / "no", tmp_path) == f"{tmp_path}/no/events: No such file or directory"
    (tmp_path / "events").mkdir()
    assert "expected a kernel with KVM's module kvm loaded" in refused(tmp_path, tmp_path)
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\n")
    with pytest.raises(RecordError, match="tracefs is not mounted: as root, mount -t tracefs"):
        find_tracefs(str(mounts))
    mounts.write_text("nodev /sys/kernel/tracing tracefs rw 0 0\n")
    assert find_tracefs(str(mounts)) == Path("/sys/kernel/tracing")


def test_refuses_politely_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, *arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "events/kvmmmu").mkdir(parents=True)
    (tmp_path / "instances").mkdir()
    monkeypatch.setattr(Path, "mkdir", denied)
    assert "Permission denied; expected to be root" in refused(tmp_path, tmp_path)


# --- names ----------------------------------------------------------------------------------------


def test_names_tell_the_living_from_the_dead(tmp_path: Path) -> None:
    alive = process_name(os.getpid())
    assert alive is not None
    with subprocess.Popen(["sleep", "60"]) as child:
        dead = process_name(child.pid)
        child.kill()
    reused = f"tdpmmu_{os.getpid()}_1"
    instances = tmp_path / "instances"
    for name in (alive, dead, reused, "somebody_else", "tdpmmu"):
        (instances / str(name)).mkdir(parents=True)
    events = f"p:{dead}/flush x\np:kprobes/mine y\nr8:{reused}/ret z\nf:tdpmmu/flush a\n"
    (tmp_path / "dynamic_events").write_text(events)
    assert sorted(remove_left_behind(Tracefs(tmp_path))) == sorted((str(dead), reused))
    assert sorted(os.listdir(instances)) == sorted((alive, "somebody_else", "tdpmmu"))
    added = (tmp_path / "dynamic_events").read_text().removeprefix(events).splitlines()
    assert sorted(added) == sorted((f"-:{dead}/flush", f"-:{reused}/ret"))


# --- the loop -------------------------------------------------------------------------------------


@pytest.fixture
def session(tmp_path: Path) -> Session:
    os.mkfifo(tmp_path / "trace_pipe")
    (tmp_path / "tracing_on").touch()
    root = Tracefs(tmp_path)
    return Session(root, "tdpmmu_1_1", root, missing=["event kvm/nothing"])


def test_ends_after_its_duration(session: Session) -> None:
    out = io.BytesIO()
    with stop_on_signals() as stop, open(session.root.path / "trace_pipe", "r+b", 0) as pipe:
        pipe.write(b"line 1\n")
        started = time.monotonic()
        written = record(session, out, stop, 0.3)
        assert 0.3 <= time.monotonic() - started < 3
    lines = out.getvalue().decode().splitlines()
    assert written == 7
    assert lines[0].startswith("# recorded by tdpmmu on Linux ")
    assert lines[-2:] == ["# not there: event kvm/nothing", "line 1"]
    assert session.instance.read("tracing_on") == "0"


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ends_at_a_signal_and_keeps_what_came_before(session: Session, which: int) -> None:
    out = io.BytesIO()
    before = signal.getsignal(which)
    with stop_on_signals() as stop, open(session.root.path / "trace_pipe", "r+b", 0) as pipe:
        pipe.write(b"line 1\n")
        timer = threading.Timer(0.1, os.kill, (os.getpid(), which))
        timer.start()
        assert record(session, out, stop, 30) == 7
        timer.join()
    assert out.getvalue().endswith(b"line 1\n")
    assert signal.getsignal(which) == before


# --- for real -------------------------------------------------------------------------------------

COMMAND = """
import sys, encodings.ascii, encodings.latin_1
import tdpmmu.record.btf, tdpmmu.record.recorder, tdpmmu.record.session
from tdpmmu.cli.entry import main
sys.argv = ["tdpmmu", "record", "--tracefs", "/nonexistent", "--duration", "0"]
main()
"""
SCRIPT = """
export PYTHONHOME=/py
MAIN='from tdpmmu.cli.entry import main; main()'
T=/sys/kernel/tracing
state() { { ls $T/instances; cat $T/dynamic_events; } >/out/$1.state; }
start() {
	name=$1; shift
	python3 -c "$MAIN" record -o /out/$name.txt $* 2>/out/$name.err &
	pid=$!
	n=0
	until grep -q 'recording;' /out/$name.err || [ $((n = n + 1)) = 600 ]; do usleep 50000; done
}
finish() { kill -$2 $pid; wait $pid; echo $? >/out/$1.status; state $1; }
echo force >/sys/module/kvm/parameters/nx_huge_pages
echo 1 >/sys/module/kvm/parameters/nx_huge_pages_recovery_ratio
echo 200 >/sys/module/kvm/parameters/nx_huge_pages_recovery_period_ms
state before
start killed --no-functions
finish killed KILL
start whole
state during
export TRACE_MARKER=$(echo $T/instances/*/trace_marker)
driver $(cat /lab/jobs/0/options) </lab/jobs/0/program >/out/prog.txt
usleep 100000
finish whole INT
"""
MORE = """
start term --no-functions
finish term TERM
python3 -c "import os; os.setuid(1); $MAIN" \\
	record -o /out/user.txt 2>/out/user.err
echo $? >/out/user.status
"""


@pytest.mark.parametrize("version", KERNELS)
def test_records_a_real_kernel_and_leaves_nothing_behind(version: str, tmp_path: Path) -> None:
    """Killed, then interrupted; on the later kernel also terminated, and not as root."""
    more = version == KERNELS[-1]
    kernel = kernel_or_skip(version)
    out = tmp_path / "out"
    extra = {**files_for(COMMAND), "lab/script": (SCRIPT + MORE * more).encode()}
    boot(kernel, [job(VmSetup(blocks=4), "w x:1-2 sleep:300 r")], out, 240, extra=extra)

    def text(name: str) -> str:
        return (out / name).read_text()

    said = text("script.txt") + text("whole.err")
    clean = text("before.state")
    assert re.search(r"^tdpmmu_\d+_\d+$", text("killed.state"), re.MULTILINE), said
    assert re.search(r"^[pf]\d*:tdpmmu_\d+_\d+/flush ", text("killed.state"), re.MULTILINE), said
    assert "which a killed recording left" in text("whole.err")
    assert len(re.findall(r"^tdpmmu_", text("during.state"), re.MULTILINE)) == 1
    for name in ("whole", "term")[: 1 + more]:
        assert text(f"{name}.status") == "0\n", text(f"{name}.err")
        assert text(f"{name}.state") == clean
    with open_trace(str(out / "whole.txt")) as reader:
        stats = trace_stats(reader, accounting_traced=True)
    compared, differences = compare(stats, read_prog(str(out / "prog.txt")), "prog.txt")
    assert stats.exact, stats.doubts
    assert compared >= 8
    assert not differences
    for event in ("zap_sp: ", "flush: ", "free_sp: ", "kvm_tdp_mmu_map <-"):
        assert event in text("whole.txt"), event
    assert re.search(r"zap_sp: .* gfn=0x[24]00", text("whole.txt"))
    assert "# kvm.tdp_mmu=Y" in text("whole.txt")
    if more:
        assert " <-" not in text("term.txt")
        assert text("user.status") == "2\n"
        assert re.fullmatch(r"tdpmmu: .*; expected to be root.*\n", text("user.err"))
