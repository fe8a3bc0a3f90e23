"""Reading trace-cmd's ``trace.dat``: the recorded runs say the same in it as in their text."""

from __future__ import annotations

import gzip
import io
import lzma
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from dat_files import DatFile

from tdpmmu.trace.dat.container import Container
from tdpmmu.trace.dat.files import read_container
from tdpmmu.trace.dat.reader import DatReader
from tdpmmu.trace.opening import open_trace
from tdpmmu.trace.records import Lost, Record

TRACES = Path(__file__).parent / "data" / "traces"
RECORDED = ("6.1-tdp1", "6.12-npt0", "6.12-tdp0", "6.12-tdp1")


def read_file(path: Path) -> list[Record | Lost]:
    with open_trace(str(path)) as trace:
        return list(trace)


def read(data: bytes) -> list[Record | Lost]:
    return list(DatReader(io.BytesIO(data), "t"))


def said(records: list[Record | Lost]) -> list[tuple[object, ...]]:
    """What text and binary file can agree on: text rounds times, and hashes ``%p``."""
    found: list[tuple[object, ...]] = []
    for one in records:
        assert isinstance(one, Record)
        text = re.sub(r"sptep \S+", "sptep P", one.text)
        micros = (one.time_ns + 500) // 1000
        found.append((one.task, one.pid, one.cpu, micros, one.event, text, one.fields))
    return found


def unpack(name: str) -> Container:
    data = lzma.decompress((TRACES / name / "trace.dat.xz").read_bytes())
    return read_container(io.BytesIO(data), name)


def rewritten(found: Container) -> DatFile:
    """The same again, to be written in other ways."""
    return DatFile(
        found.formats,
        [b"".join(page for _, _, page in found.pages(cpu)) for cpu in found.cpus],
        header_page=found.header_page,
        kallsyms=found.kallsyms(),
        cmdlines=found.cmdlines,
    )


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_files_say_what_their_text_says(name: str) -> None:
    folder = TRACES / name
    binary = said(read_file(folder / "trace.dat.xz"))
    assert binary == said(read_file(folder / "trace.txt.xz"))
    assert len(binary) > 1000


def test_version_7_as_trace_cmd_writes_it() -> None:
    folder = TRACES / "6.12-tdp0"
    assert said(read_file(folder / "trace.v7.dat")) == said(read_file(folder / "trace.txt.xz"))


@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
def test_version_7_with_each_compression(compression: str) -> None:
    found = unpack("6.12-npt0")
    expected = said(read_file(TRACES / "6.12-npt0" / "trace.dat.xz"))
    compress = zstandard.ZstdCompressor().compress if compression == "zstd" else None
    assert said(read(rewritten(found).version_7(compression, compress))) == expected


def test_packed_files_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lzma.decompress((TRACES / "6.12-tdp0" / "trace.dat.xz").read_bytes())
    expected = said(read(plain))
    packed = tmp_path / "packed"
    for data in (plain, gzip.compress(plain), zstandard.ZstdCompressor().compress(plain)):
        packed.write_bytes(data)
        assert said(read_file(packed)) == expected
        with packed.open("rb") as stream:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
            assert said(read_file(Path("-"))) == expected


READ = """
import re, sys
from tdpmmu.trace.opening import open_trace
with open_trace(sys.argv[1]) as trace:
    for _ in trace.{how}():
        pass
with open("/proc/self/status") as status:  # ru_maxrss would be the parent's, if that had more
    print(trace.records, re.search(r"VmHWM:\\s*(\\d+)", status.read())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much it was")
@pytest.mark.parametrize("how", ["rows", "runs", "events"])
def test_memory_does_not_grow_with_the_file(how: str, tmp_path: Path) -> None:
    found = unpack("6.12-tdp1")
    pages = [[page for _, _, page in found.pages(cpu)] for cpu in found.cpus]
    peaks = []
    for times in (1, 12):
        file = rewritten(found)
        file.cpus = [
            b"".join(
                (int.from_bytes(page[:8], "little") + turn * 10**11).to_bytes(8, "little")
                + page[8:]
                for turn in range(times)
                for page in cpu
            )
            for cpu in pages
        ]
        path = tmp_path / "trace.dat"
        path.write_bytes(file.version_6())
        command = [sys.executable, "-c", READ.replace("{how}", how), str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(said[0]) == 38089 * times
        peaks.append(int(said[1]))
    assert peaks[1] < peaks[0] + 4096, peaks  # KiB; the file has 18 MiB more


def test_only_the_events_asked_for() -> None:
    names = {"kvm_mmu_set_spte", "tracing_mark_write"}
    path = TRACES / "6.12-tdp0"
    for file in ("trace.dat.xz", "trace.txt.xz"):
        everything = [one for one in read_file(path / file) if isinstance(one, Record)]
        with open_trace(str(path / file)) as trace:
            some = list(trace.events(names))
            assert trace.records == len(everything)
        assert [one[:6] for one in some] == [one[:6] for one in everything if one.event in names]
        assert {one.event for one in some if isinstance(one, Record)} == names
