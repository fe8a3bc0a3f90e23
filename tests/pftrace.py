"""Read a timeline back with the perfetto package's own protos, and hold it to its form."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

BEGIN, END = TrackEvent.TYPE_SLICE_BEGIN, TrackEvent.TYPE_SLICE_END
INSTANT, COUNTER = TrackEvent.TYPE_INSTANT, TrackEvent.TYPE_COUNTER


@dataclass
class Row:
    """One event of a track."""

    time: int
    kind: int
    event: TrackEvent

    @property
    def name(self) -> str:
        return str(self.event.name)

    @property
    def value(self) -> int:
        return int(self.event.counter_value)

    @property
    def notes(self) -> dict[str, object]:
        return {one.name: _value(one) for one in self.event.debug_annotations}


@dataclass
class Slice:
    """A slice; ``notes`` are those of its begin and of its end."""

    begin: int
    end: int
    name: str
    depth: int
    notes: dict[str, object]


@dataclass
class Track:
    """``path`` is made of the names above it, without the process, and its own."""

    path: str
    rows: list[Row] = field(default_factory=list)

    def slices(self) -> list[Slice]:
        """All slices, in the order of their ends; AssertionError if they are not balanced."""
        found = []
        stack: list[Row] = []
        for row in self.rows:
            if row.kind == BEGIN:
                stack.append(row)
            elif row.kind == END:
                assert stack, f"{self.path}: an end without a begin at {row.time}"
                begin = stack.pop()
                notes = begin.notes | row.notes
                found.append(Slice(begin.time, row.time, begin.name, len(stack), notes))
        assert not stack, f"{self.path}: {len(stack)} slices without an end"
        return found

    def instants(self) -> Iterator[Row]:
        return (row for row in self.rows if row.kind == INSTANT)

    def value_at(self, time: int) -> int:
        """A counter's last value at ``time``; 0 before the first."""
        at = bisect_right(self.rows, time, key=lambda row: row.time)
        return self.rows[at - 1].value if at else 0


def read(data: bytes) -> dict[str, Track]:
    """The tracks by path; AssertionError if the timeline is not well-formed."""
    trace = Trace()
    assert trace.ParseFromString(data) == len(data)
    tracks: dict[int, Track] = {}
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            found = packet.track_descriptor
            assert found.uuid not in tracks
            above = ""
            if found.parent_uuid:
                assert found.parent_uuid in tracks, "a track below one that is not there yet"
                above = tracks[found.parent_uuid].path
            tracks[found.uuid] = Track(f"{above}/{found.name}" if above else found.name)
            continue
        event = packet.track_event
        track = tracks[event.track_uuid]
        track.rows.append(Row(packet.timestamp, event.type, event))
    paths = [track.path for track in tracks.values()]
    assert len(set(paths)) == len(paths), "two tracks of one name are shown as one"
    for track in tracks.values():
        times = [row.time for row in track.rows]
        assert times == sorted(times), f"{track.path} goes back in time"
        track.slices()
    return {track.path: track for track in tracks.values()}


def _value(note: object) -> object:
    kind = note.WhichOneof("value")  # type: ignore[attr-defined]
    return getattr(note, kind)
