"""Many changes at once have to end as they do one by one, whatever is wrong with them."""

from __future__ import annotations

import io
import lzma
import struct
from collections.abc import Collection, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from dat_files import DatFile
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpmmu.trace.dat.files import read_container
from tdpmmu.trace.dat.reader import DatReader
from tdpmmu.trace.detect import Detector
from tdpmmu.trace.records import Row, Run, TraceError
from tdpmmu.trace.verify import follow
from tdpmmu.trace.verify.findings import Result
from tdpmmu.trace.verify.verifier import verify

TRACES = Path(__file__).parent / "data" / "traces"
TDP = ("6.1-tdp1", "6.12-tdp1")
FIELDS = {"gfn": 8, "old": 16, "new": 24, "level": 32, "as_id": 33}
"""Offsets in ``kvm_tdp_mmu_spte_changed``, of both kernels."""


class RowByRow(DatReader):
    """Without runs."""

    def runs(self, names: Collection[str] | None = None) -> Iterator[Row | Run]:
        return self.rows(names)


@cache
def whole(name: str, most: int = 1 << 30) -> tuple[bytes, tuple[int, ...]]:
    """A recorded file, up to so many pages of a CPU, and where the payloads of its changes are."""
    data = lzma.decompress((TRACES / name / "trace.dat.xz").read_bytes())
    found = read_container(io.BytesIO(data), name)
    pages = [b"".join(page for _, _, page in islice(found.pages(cpu), most)) for cpu in found.cpus]
    file = DatFile(found.formats, pages, kallsyms=found.kallsyms(), cmdlines=found.cmdlines)
    data = file.version_6()
    found = read_container(io.BytesIO(data), name)
    places = {page: place for cpu in found.cpus for _, place, page in found.pages(cpu)}
    changes = []
    for row in DatReader(io.BytesIO(data), name).rows({"kvm_tdp_mmu_spte_changed"}):
        changes.append(places[row[7].data] + row[6])  # type: ignore[attr-defined]
    return data, tuple(changes)


def outcome(reader: DatReader, kernel: str) -> Result | str:
    try:
        return verify(reader, Detector("npt", kernel))
    except TraceError as error:
        return str(error)


def both(data: bytes, name: str) -> tuple[Result | str, Result | str]:
    kernel = name.partition("-")[0]
    return (
        outcome(DatReader(io.BytesIO(data), name), kernel),
        outcome(RowByRow(io.BytesIO(data), name), kernel),
    )


@pytest.mark.parametrize("name", TDP)
def test_recorded_runs_are_the_same_either_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = []
    sweep = follow.sweep

    def counting(columns, *rest):  # type: ignore[no-untyped-def]
        takes = sweep(columns, *rest)
        swept.append(len(columns[0]) if takes is not None else 0)
        return takes

    monkeypatch.setattr(follow, "sweep", counting)
    data, changes = whole(name)
    one, other = both(data, name)
    assert one == other
    assert isinstance(one, Result)
    assert not one.violations
    assert sum(swept) > 0.9 * len(changes)


@pytest.mark.parametrize("name", TDP)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_wrong_changes_are_the_same_either_way(name: str, data: st.DataObject) -> None:
    file, changes = whole(name, 60)
    damaged = bytearray(file)
    start = data.draw(st.integers(0, len(changes) - 1))
    for _ in range(data.draw(st.integers(1, 6))):
        place = changes[min(start + data.draw(st.integers(0, 700)), len(changes) - 1)]
        field, value = data.draw(
            st.tuples(st.sampled_from(["level", "as_id"]), st.integers(0, 5))
            | st.tuples(st.sampled_from(["gfn", "old", "new"]), st.integers(0, (1 << 64) - 1))
            | st.tuples(st.sampled_from(["old", "new"]), st.sampled_from([0, 0x5A0, 1 << 63]))
            | st.tuples(st.sampled_from(["flip old", "flip new"]), st.integers(0, 63))
        )
        if field.startswith("flip"):
            at = place + FIELDS[field[5:]]
            (before,) = struct.unpack_from("<Q", damaged, at)
            struct.pack_into("<Q", damaged, at, before ^ 1 << value)
        elif field in ("level", "as_id"):
            damaged[place + FIELDS[field]] = value
        else:
            struct.pack_into("<Q", damaged, place + FIELDS[field], value)
    one, other = both(bytes(damaged), name)
    assert one == other
