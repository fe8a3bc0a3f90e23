"""Damaged trace.dat files: one line with the place, or what can be read; never anything else."""

from __future__ import annotations

import io
import lzma
import re
from functools import cache
from pathlib import Path

import pytest
from dat_files import DatFile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.trace import trace_app
from tdpmmu.trace.dat.files import read_container
from tdpmmu.trace.dat.reader import DatReader
from tdpmmu.trace.records import Record, TraceError

TRACES = Path(__file__).parent / "data" / "traces"
FORMS = ("version 6", "version 7", "zlib", "zstd")


@cache
def whole(form: str) -> bytes:
    """The recorded run with the fewest events, in each form."""
    folder = TRACES / "6.12-tdp0"
    if form == "zstd":
        return (folder / "trace.v7.dat").read_bytes()
    data = lzma.decompress((folder / "trace.dat.xz").read_bytes())
    if form == "version 6":
        return data
    found = read_container(io.BytesIO(data), "t")
    pages = [b"".join(page for _, _, page in found.pages(cpu)) for cpu in found.cpus]
    file = DatFile(found.formats, pages, kallsyms=found.kallsyms(), cmdlines=found.cmdlines)
    return file.version_7("zlib" if form == "zlib" else "none")


def read(data: bytes) -> int:
    """Read all there is, as a consumer would; how many events there were."""
    trace = DatReader(io.BytesIO(data), "t")
    events = 0
    for one in trace:
        if isinstance(one, Record):
            assert one.text.isprintable() or one.text
            assert one.task
            events += 1
    return events


def read_or_fail(data: bytes) -> str:
    """Nothing, or the message, which has to be one printable line with the place."""
    try:
        read(data)
    except TraceError as error:
        message = str(error)
        assert re.match(r"t: offset 0x[0-9a-f]+(, unpacked byte 0x[0-9a-f]+)?: .*expected", message)
        assert message.isascii()
        assert message.isprintable()
        assert len(message) < 300
        return message
    return ""


@pytest.mark.parametrize("form", FORMS)
def test_whole_files_have_all_events(form: str) -> None:
    assert read(whole(form)) == 1306


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_flipped_bytes(form: str, data: st.DataObject) -> None:
    damaged = bytearray(whole(form))
    # Headers are at the start, options and events at the end; formats, in between, are text.
    near = st.integers(0, 1500) | st.integers(len(damaged) // 2, len(damaged) - 1)
    places = st.lists(near | st.integers(0, len(damaged) - 1), min_size=1, max_size=8)
    for place in data.draw(places):
        damaged[place] = data.draw(st.integers(0, 255))
    read_or_fail(bytes(damaged))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_truncated_files_lose_no_event_silently(form: str, data: st.DataObject) -> None:
    file = whole(form)
    size = data.draw(st.integers(0, len(file.rstrip(b"\0")) - 1))
    if not read_or_fail(file[:size]):
        # trace-cmd has the names of the sections at the end, which nobody needs.
        assert form == "zstd"
        assert read(file[:size]) == 1306


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_words_of_a_page_that_say_something_else(data: st.DataObject) -> None:
    """Headers of pages and of events: what is read are the events before, and then one line."""
    damaged = bytearray(whole("version 6"))
    start = damaged.rindex(b"flyrecord\0")
    pages = range(-(-start // 4096) * 4096, len(damaged), 4096)
    page = data.draw(st.sampled_from(pages))
    place = page + data.draw(st.integers(0, 64)) * 4
    damaged[place : place + 4] = data.draw(st.binary(min_size=4, max_size=4))
    read_or_fail(bytes(damaged))


@pytest.mark.parametrize("command", [["stats"], ["convert", "--perfetto", "-"]])
def test_commands_say_it_in_one_line(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.dat"
    path.write_bytes(whole("version 6")[:-5000])
    result = CliRunner().invoke(trace_app, [command[0], str(path), *command[1:]])
    assert isinstance(result.exception, UsageError)
    message = str(result.exception)
    assert re.fullmatch(
        r".*trace\.dat: offset 0x[0-9a-f]+: expected \d+ bytes of CPU \d's events; "
        r"\d+ are left \(truncated\?\)",
        message,
    )
