"""The model held against recorded traces of real kernels."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tdpmmu.cli.main import app
from tdpmmu.conformance.replay.report import to_text
from tdpmmu.conformance.replay.result import Result
from tdpmmu.conformance.replay.run import replay_trace
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.trace.text import TraceError, open_trace
from tdpmmu.versions.linux_6_12 import Linux_6_12

TRACES = Path(__file__).parent / "data" / "traces"


def replay(name: str, *patches: type[Any], **options: Any) -> Result:
    with open_trace(str(TRACES / name / "trace.txt.xz")) as reader:
        return replay_trace(reader, patches=patches, **options)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The 6.12 trace up to the first round of recovery that zaps several tables."""
    text = lzma.open(TRACES / "6.12-tdp1" / "trace.txt.xz", "rt").read().splitlines(True)
    return [line for line in text if not line.startswith("#")][:700]


def replay_text(tmp_path: Path, lines: list[str], *patches: type[Any]) -> Result:
    file = tmp_path / "trace.txt"
    file.write_text("".join(lines))
    with open_trace(str(file)) as reader:
        return replay_trace(reader, patches=patches)


def test_every_change_of_6_12_agrees() -> None:
    result = replay("6.12-tdp1")
    assert (result.agree, result.changes, result.prefix) == (36614, 36614, 36614)
    assert result.agrees
    assert result.kernel == "6.12"
    assert result.others["fast page faults"] == (23, 23)
    assert result.others["levels asked for (kvm_mmu_spte_requested)"] == (98, 98)
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


class NoSplit(Linux_6_12):
    """A split page whose 4K leaves stay without execute permission."""

    async def make_spte(self, fault: Fault, it: TdpIter) -> int:
        spte = await super().make_spte(fault, it)
        return spte | self.kvm.format.nx if fault.execute else spte


class ForgetsDirty(Linux_6_12):
    """Recovery that leaves pages on its list."""

    async def untrack_possible_nx_huge_page(self, sp: Any) -> None:
        return None


def test_a_wrong_bit_is_found(tmp_path: Path, lines: list[str]) -> None:
    result = replay_text(tmp_path, lines, NoSplit)
    assert result.agree < result.changes
    first = result.divergences[0]
    # The first fetch, of gfn 1, gets an executable page from the kernel.
    assert result.prefix == 3
    assert first.kernel == "gfn 0x1 level 1: 0x8000000000000000 -> 0xcc01e67"
    assert first.model == "gfn 0x1 level 1: 0x8000000000000000 -> 0x800000000cc01e67"
    assert any("NoSplit" in name or "map_target_level" in name for name in first.where)
