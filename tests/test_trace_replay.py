"""The model held against recorded traces of real kernels."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tdpmmu.arch.guest import DIRTY
from tdpmmu.arch.table import TablePage
from tdpmmu.cli.main import app
from tdpmmu.conformance.replay.report import to_text
from tdpmmu.conformance.replay.result import Result
from tdpmmu.conformance.replay.run import replay_trace
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.trace.opening import open_trace
from tdpmmu.trace.records import TraceError
from tdpmmu.versions.linux_6_12 import Linux_6_12

TRACES = Path(__file__).parent / "data" / "traces"
LEVELS = "levels asked for (kvm_mmu_spte_requested)"


def replay(name: str, *patches: type[Any], kernel: str | None = None) -> Result:
    with open_trace(str(TRACES / name / "trace.txt.xz")) as reader:
        return replay_trace(reader, kernel=kernel, patches=patches)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The 6.12 trace up to the round of recovery that zaps several tables."""
    with lzma.open(TRACES / "6.12-tdp1" / "trace.txt.xz", "rt") as text:
        return [line for line in text if not line.startswith("#")][:960]


def replay_lines(tmp_path: Path, lines: list[str], *patches: type[Any]) -> Result:
    file = tmp_path / "trace.txt"
    file.write_text("".join(lines))
    with open_trace(str(file)) as reader:
        return replay_trace(reader, patches=patches)


def test_every_change_of_6_12_agrees() -> None:
    result = replay("6.12-tdp1")
    assert (result.agree, result.changes, result.prefix) == (36614, 36614, 36614)
    assert result.agrees
    assert result.kernel == "6.12"
    assert result.others == {LEVELS: (98, 98), "fast page faults": (23, 23)}
    # 39 splits, as many as kvm_mmu_split_huge_page says; none of their children is traced.
    assert result.untraced["children of split huge pages"] == 39 * 512
    assert to_text(result).endswith("\n36614 of 36614 SPTE changes agree")


def test_every_change_of_6_1_agrees() -> None:
    result = replay("6.1-tdp1")
    assert (result.agree, result.changes) == (30008, 30008)
    assert result.agrees
    # 6.1 traces the freeze, but not what ends it.
    assert set(result.untraced) == {
        "frozen to non-present",
        "children of split huge pages",
        "write access given back, which fast_page_fault traces",
    }


@pytest.mark.parametrize(("name", "changes"), [("6.12-slots", 4650), ("6.1-slots", 4648)])
def test_memslots_dirty_log_mprotect_and_mmio(name: str, changes: int) -> None:
    """Logged, deleted and made again; with the probes that tell of memslots and of the log."""
    result = replay(name)
    assert (result.agree, result.changes) == (changes, changes)
    assert result.agrees
    assert result.others["MMIO SPTEs marked"] == (1, 1)
    assert result.others["words of the dirty log armed again"] == (2, 2)
    assert result.inputs["memslot deleted"] == 1
    assert not any("memslot" in what for what in result.inferred)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        # The host splits a huge mapping, or gives it up, and logging that ends finds it small.
        ("6.1-partly-unmapped", 43),
        ("6.1-log-off", 1562),
        # An unmap yields to another one of the same range, and finds nothing left of it.
        ("6.1-unmap-yields", 2595),
        # The same, and the one that yielded begins first; its return is in the trace.
        ("6.1-unmap-returns", 2595),
        # The second vCPU loads its root while the first one is in a fault.
        ("6.1-second-root", 21),
        # Two vCPUs fault on a gfn without a slot; neither has seen the other's MMIO SPTE.
        ("6.1-two-mmio-faults", 2086),
        # A thread keeps an entry frozen, for its flush takes long: 192 faults find it so.
        ("6.1-frozen", 1215),
        # The same, where the freeze itself is not traced: 26 faults.
        ("6.12-frozen", 2418),
        # A round of recovery yields, and a memslot is deleted meanwhile.
        ("6.12-round-yields", 6714),
        # Two VMs; a table that a fetch lists shows that a memslot is not logged any more.
        ("6.1-listed", 5226),
        # A memslot is published before a fault, and its probe comes in the middle of that.
        ("6.1-slot-in-a-fault", 1588),
        # Two fetches of a page: the second finds the leaf, which only kvm_mmu_set_spte tells.
        ("6.1-spurious-fetch", 2089),
        # A fault lists its table, and is slow to map a page; another lists two tables meanwhile.
        ("6.1-list-order", 1128),
    ],
)
def test_what_random_steps_came_upon(name: str, changes: int) -> None:
    result = replay(name)
    assert not result.divergences
    assert (result.agree, result.changes) == (changes, changes)


@pytest.mark.parametrize(("name", "changes"), [("6.12-two-vcpus", 10336), ("6.1-two-vcpus", 7768)])
def test_two_vcpus_write_while_logging_is_switched(name: str, changes: int) -> None:
    result = replay(name)
    assert (result.agree, result.changes) == (changes, changes)
    assert result.agrees


def test_writes_before_their_tracepoints_and_slots_before_their_probe() -> None:
    """What 6.1 with two vCPUs shows, and what it comes to without looking for it."""
    result = replay("6.1-two-vcpus")
    assert result.inputs["writes seen before they were traced"] == 1
    assert result.inferred["memslot published before its probe"] == 1


def test_every_event_of_the_legacy_mmu_agrees() -> None:
    """Without the TDP MMU the kernel traces leaves that it sets, and pages found, made, zapped."""
    result = replay("6.12-tdp0")
    assert (result.agree, result.changes) == (262, 262)
    assert result.agrees
    assert result.others == {
        "shadow pages found or made": (29, 29),
        "shadow pages zapped": (30, 30),
        LEVELS: (94, 94),
        "fast page faults": (31, 31),
    }


@pytest.mark.parametrize(("name", "changes"), [("6.12-legacy", 59), ("6.1-legacy", 80)])
def test_legacy_roots_are_given_up_and_made_again(name: str, changes: int) -> None:
    """Memslots deleted and created, logging, recovery, mprotect, MMIO, with ``tdp_mmu=0``."""
    result = replay(name, kernel=name.split("-")[0])
    assert (result.agree, result.changes) == (changes, changes)
    assert result.agrees
    assert result.others["shadow pages zapped"] == (18, 18)
    assert result.inputs["root loaded"] == 2


def test_a_fault_with_nothing_to_change_does_not_say_what_is_writable() -> None:
    """Two vCPUs read a page that the host has mapped read-only; the second finds the leaf there."""
    result = replay("6.12-spurious", kernel="6.12")
    assert result.agrees
    assert (result.agree, result.changes) == (53, 53)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        # A vCPU that never faults loads its root, gives it up, and loads another one.
        ("6.1-never-faults", 38),
        # mprotect leaves pages that are prefetched before it and not after it.
        ("6.1-readonly", 32),
        # Prefetching shows that a memslot is no longer logged, before its probe does.
        ("6.12-prefetch", 102),
    ],
)
def test_what_random_steps_came_upon_in_the_legacy_mmu(name: str, changes: int) -> None:
    result = replay(name, kernel=name.split("-")[0])
    assert not result.divergences
    assert (result.agree, result.changes) == (changes, changes)
    assert all(agree == of for agree, of in result.others.values())


@pytest.mark.parametrize(("name", "changes"), [("6.12-manual", 8230), ("6.1-manual", 7720)])
def test_manual_protect(name: str, changes: int) -> None:
    """``KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`` with 1, then with 3: initially all set."""
    result = replay(name)
    assert (result.agree, result.changes) == (changes, changes)
    assert result.agrees
    assert result.inputs["clear dirty log"] == 3
    assert result.others["words of the dirty log armed again"] == (35, 35)


def test_an_mmio_spte_counts_as_a_writable_leaf() -> None:
    """Where a memslot came to be, a leaf replaces an MMIO SPTE, whose W bit is an access."""
    result = replay("6.12-mmio")
    assert (result.agree, result.changes) == (3118, 3118)
    assert result.agrees


def test_every_event_of_shadow_paging_agrees() -> None:
    """The guest's entries are inputs, as KVM walks them; so is its dirty bit, with all it means."""
    result = replay("6.12-npt0")
    assert result.format_name == "shadow"
    assert (result.agree, result.changes) == (229, 229)
    assert result.agrees
    assert result.others == {
        "shadow pages found or made": (27, 27),
        "shadow pages zapped": (28, 28),
        LEVELS: (117, 117),
    }


@pytest.mark.parametrize(("name", "changes"), [("6.12-shadow", 86), ("6.1-shadow", 121)])
def test_shadow_paging_with_mmio_slots_and_two_vcpus(name: str, changes: int) -> None:
    """``tdpmmu lab run --mmu shadow``: a guest in long mode, its memslot deleted and made again."""
    result = replay(name, kernel=name.split("-")[0])
    assert not result.divergences
    assert (result.agree, result.changes) == (changes, changes)
    assert result.others["MMIO SPTEs marked"] == (5, 5)
    assert result.others["shadow pages zapped"] == (26, 26)
    assert result.inputs["root loaded"] == 4


def test_roots_of_shadow_paging_that_nobody_faults_on() -> None:
    """vCPU 0 gives up a root as its last user, loads another, and is not heard again."""
    result = replay("6.1-shadow-roots", kernel="6.1")
    assert not result.divergences
    assert result.inputs["root loaded"] == 4
    assert result.agree == result.changes == 14


@pytest.mark.parametrize("kernel", ["6.12", "6.1"])
def test_guest_tables_of_4k_pages_and_what_is_prefetched_from_them(kernel: str) -> None:
    """``lab run --mmu shadow --guest long-4k``: 220 leaves, 70 of them prefetched."""
    result = replay(f"{kernel}-shadow-4k", kernel=kernel)
    assert not result.divergences
    assert result.agree == result.changes == 220
    assert result.inferred["frames that are prefetched"] == 70
    assert result.inputs["accessed or dirty bits set in the guest's entries"] == 163


class PrefetchesDirect(Linux_6_12):
    """Nothing is prefetched from the guest's own tables."""

    async def prefetch_gpte(self, as_id: int, sptep: Any, gpte: int) -> bool:
        return False


class PrefetchesWritable(Linux_6_12):
    """The first write after a prefetch is not seen."""

    async def prefetch_gpte(self, as_id: int, sptep: Any, gpte: int) -> bool:
        return await super().prefetch_gpte(as_id, sptep, gpte | DIRTY)


@pytest.mark.parametrize("patch", [PrefetchesDirect, PrefetchesWritable])
def test_a_wrong_prefetch_of_guest_entries_is_found(patch: type[Any]) -> None:
    assert not replay("6.12-shadow-4k", patch, kernel="6.12").agrees


def test_huge_pages_as_logging_ends_are_told_by_later_faults() -> None:
    """Zapped small leaves leave no event without the TDP MMU; the next fault asks for 2 MiB."""
    result = replay("6.1-shadow-log-off", kernel="6.1")
    assert not result.divergences
    assert result.agree == result.changes == 25
    assert result.inferred["host mapping level 2 at log-off, by a later fault"] == 2


class LeavesTdpYoung(Linux_6_12):
    """The TDP MMU does not age."""

    async def tdp_mmu_age_gfn_range(self, as_id: int, start: int, end: int) -> bool:
        return False


class LeavesShadowYoung(Linux_6_12):
    """Leaves of shadow pages do not age."""

    async def rmap_age_gfn_range(self, start: int, end: int) -> bool:
        return False


def test_pages_that_damon_makes_old() -> None:
    """Of the TDP MMU each change is traced; hardware makes some pages young again in between."""
    result = replay("6.12-age")
    assert not result.divergences
    assert result.agree == result.changes == 3065
    assert result.inputs["ageing"] == 74
    assert result.explained == {"accessed and dirty bits set by hardware": 22}
    first = replay("6.12-age", LeavesTdpYoung).divergences[0]
    assert first.call.startswith("ageing of kdamond.0")
    assert first.model == "returns without another change"


def test_ageing_by_rmap_shows_in_fast_page_faults() -> None:
    result = replay("6.12-legacy-age", kernel="6.12")
    assert not result.divergences
    assert result.inputs["ageing"] == 251
    assert result.others["fast page faults"] == (16, 16)
    first = replay("6.12-legacy-age", LeavesShadowYoung, kernel="6.12").divergences[0]
    assert first.kernel == "fast page fault of gfn 0x205: 0x7c05e45 -> 0x7c05e47"
    assert first.model == "fast page fault of gfn 0x205: 0x7c05e65 -> 0x7c05e67"


class BelievesNoMmio(Linux_6_12):
    """As without ``mmio_caching``."""

    async def handle_noslot_fault(self, vcpu: Any, fault: Fault) -> str:
        return "RET_PF_EMULATE"


def test_mmio_sptes_of_shadow_pages_are_compared() -> None:
    first = replay("6.12-shadow", BelievesNoMmio, kernel="6.12").divergences[0]
    assert first.kernel == "makes a page for gfn 0x25 level 2"
    assert first.model == "returns without another change"


class WritableIfClean(Linux_6_12):
    """Pages that the guest has not written may be mapped writable, unseen by its dirty bit."""

    async def make_shadow_spte(self, slot: Any, gfn: int, *args: Any, **options: Any) -> int:
        pfn, level, access, writable = args
        spte = await super().make_shadow_spte(
            slot, gfn, pfn, level, access | 2, writable, **options
        )
        return spte


def test_a_guest_dirty_bit_that_is_passed_over_is_found() -> None:
    first = replay("6.12-npt0", WritableIfClean).divergences[0]
    assert first.kernel == "sets gfn 0x1 level 1: 0xb601a25"
    assert first.model == "sets gfn 0x1 level 1: 0xb601e67"


class NotMarked(Linux_6_12):
    """Tables for a fetch are marked only if they are listed."""

    async def account_nx_huge_page(self, sp: TablePage, possible: bool) -> None:
        if possible:
            await super().account_nx_huge_page(sp, possible)


def test_a_wrong_mark_of_the_legacy_mmu_is_found() -> None:
    """The table of gfn 0x2800 was made under dirty logging, so it is marked but not listed."""
    first = replay("6.12-tdp0", NotMarked).divergences[0]
    assert first.kernel == "sets gfn 0x2800 level 1: 0xf000e67"
    assert first.model == "sets gfn 0x2800 level 2: 0x800000000f000ee7"


def test_a_kernel_is_not_another(lines: list[str], tmp_path: Path) -> None:
    """6.18 recovers under the read lock, where every entry of the table is frozen."""
    file = tmp_path / "trace.txt"
    file.write_text("".join(lines))
    with open_trace(str(file)) as reader:
        result = replay_trace(reader, kernel="6.18")
    first = result.divergences[0]
    assert first.kernel == "gfn 0x1 level 1: 0xcc01e67 -> 0x80000000000005a0"
    assert first.model == "gfn 0x0 level 1: 0x8000000000000000 -> 0x80000000000005a0"


# --- a model that is broken in one place is found out ---------------------------------------------


class FetchWithoutExecute(Linux_6_12):
    """Leaves for a fetch are not executable."""

    async def make_spte(self, fault: Fault, it: TdpIter) -> int:
        spte = await super().make_spte(fault, it)
        return spte | self.kvm.format.nx if fault.execute else spte


class NeverListed(Linux_6_12):
    """Tables that stand where a huge page could are not put on the list to recover."""

    async def track_new_page(self, sp: TablePage) -> None:
        return None


class MarkedForNobody(Linux_6_12):
    """A table that is marked does not send faults below it."""

    async def disallowed_by_child(self, fault: Fault, spte: int, level: int) -> bool:
        return False


def test_a_wrong_bit_is_found(tmp_path: Path, lines: list[str]) -> None:
    result = replay_lines(tmp_path, lines, FetchWithoutExecute)
    first = result.divergences[0]
    # The first fetch, of gfn 1, after three links.
    assert result.prefix == 3
    assert first.kernel == "gfn 0x1 level 1: 0x8000000000000000 -> 0xcc01e67"
    assert first.model == "gfn 0x1 level 1: 0x8000000000000000 -> 0x800000000cc01e67"
    assert any("map_target_level" in name for name in first.where)
    # Each fetch that maps a page diverges, and nothing else does.
    fetches = len(result.divergences) + result.more_divergences
    assert fetches == 10
    assert result.changes - result.agree == fetches
    text = to_text(result)
    assert "first divergence at line 34, in guest fault" in text
    assert "the first 3 SPTE changes agree" in text
    assert text.endswith(f"\n{result.agree} of {result.changes} SPTE changes agree")


def test_a_page_that_is_not_recovered_is_found(tmp_path: Path, lines: list[str]) -> None:
    result = replay_lines(tmp_path, lines, NeverListed)
    first = result.divergences[0]
    assert first.call.startswith("NX recovery")
    assert first.kernel.startswith("gfn 0x0 level 2: 0x350d827 (SP3) -> 0x8000000000000000")
    assert first.model == "returns without another change"


def test_a_huge_page_over_a_table_is_found(tmp_path: Path, lines: list[str]) -> None:
    result = replay_lines(tmp_path, lines, MarkedForNobody)
    first = result.divergences[0]
    # The write to gfn 0xf, next to the page that was executed.
    assert first.kernel == "gfn 0xf level 1: 0x8000000000000000 -> 0xcc0fe67"
    assert first.model.startswith("gfn 0x0 level 2:")


# --- a trace that is changed in one place is found out --------------------------------------------


def changed(lines: list[str], at: str, old: str, new: str) -> list[str]:
    """The trace with one line changed, which must be there."""
    found = [number for number, line in enumerate(lines) if at in line and old in line]
    copy = list(lines)
    copy[found[0]] = copy[found[0]].replace(old, new)
    return copy


@pytest.mark.parametrize(
    ("at", "old", "new"),
    [
        ("gfn 600 level 2", "new_spte 800000000d200ee7", "new_spte 800000000d200ee5"),
        ("gfn 600 level 2", "as id 0", "as id 1"),
        ("gfn 400 level 2 old_spte 800000000d000ee7", "new_spte c822827", "new_spte c821827"),
        ("gfn 3a5 level 1", "old_spte cfa5e67", "old_spte cfa5e65"),
    ],
)
def test_a_changed_trace_is_found(
    tmp_path: Path, lines: list[str], at: str, old: str, new: str
) -> None:
    result = replay_lines(tmp_path, changed(lines, at, old, new))
    assert not result.agrees


def test_only_hardware_may_set_accessed_and_dirty_bits(tmp_path: Path, lines: list[str]) -> None:
    """A leaf that a fetch left without D may be found with it, and is not less with it."""
    once = changed(lines, "gfn 203 level 1 old_spte ce03e27", "ce03e27", "ce03e67")
    result = replay_lines(tmp_path, once)
    assert result.agrees
    assert result.explained == {"accessed and dirty bits set by hardware": 1}
    less = changed(lines, "gfn 200 level 1", "old_spte ce00e67", "old_spte ce00e27")
    assert not replay_lines(tmp_path, less).agrees


def test_a_missing_change_is_found(tmp_path: Path, lines: list[str]) -> None:
    copy = [line for line in lines if "gfn 2f0 level 1" not in line]
    assert len(copy) == len(lines) - 1
    assert replay_lines(tmp_path, copy).divergences[0].kernel.startswith("gfn 0x2f1 level 1")


# --- the command ----------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, lines: list[str]) -> None:
    file = tmp_path / "trace.txt"
    file.write_text("".join(lines))
    runner = CliRunner()
    result = runner.invoke(app, ["trace", "replay", str(file)])
    assert result.exit_code == 0
    assert re.search(r"(\d+) of \1 SPTE changes agree\n$", result.output)
    result = runner.invoke(app, ["trace", "replay", str(file), "--json"])
    data = json.loads(result.output)
    assert data["agrees"]
    assert data["agree"] == data["changes"]
    patch = tmp_path / "patch.py"
    patch.write_text(
        "from tdpmmu.versions.linux_6_12 import Linux_6_12\n"
        "class NoTable(Linux_6_12):\n"
        "    async def track_new_page(self, sp):\n"
        "        return None\n"
    )
    result = runner.invoke(app, ["trace", "replay", str(file), "--patch", str(patch)])
    assert result.exit_code == 1
    assert "first divergence at line" in result.output


def test_bad_input(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text("task-1 [000] ..... 1.000000: tracing_mark_write: hello\n")
    with open_trace(str(file)) as reader, pytest.raises(TraceError, match="expected one of them"):
        replay_trace(reader)
    result = CliRunner().invoke(app, ["trace", "replay", "missing", "--patch", "no-such"])
    assert "unknown patch 'no-such'" in str(result.exception)


def test_a_stale_mmio_spte_passes_for_a_writable_leaf() -> None:
    """The kernel maps the new slot's page without the dirty bit (docs/findings.md)."""
    result = replay("6.12-stale-mmio")
    assert result.agrees
    assert result.changes == 13
