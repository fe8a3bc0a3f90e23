"""Write a timeline: tracks with slices, instants, states and counters.

A timeline is a stream of ``TracePacket`` s, made with the proto builder of the ``perfetto`` package
(the extra ``tdpmmu[perfetto]``) and written as they come, so a long one needs little memory.  The
bytes depend on the calls alone: tracks are numbered in the order in which they are made.  Times are
in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

SEQUENCE = 1
"""``trusted_packet_sequence_id`` of every packet."""

ROOT = 1
"""The track of the process that all other tracks belong to."""

Details = Mapping[str, int | str]
"""What the UI shows of a slice or an instant besides its name."""


class PerfettoMissing(Exception):
    """The ``perfetto`` package is not installed; the message is one line."""


class Timeline:
    """Writes one timeline to ``file``; ``title`` is the name of the group of all its tracks.

    PerfettoMissing without the ``perfetto`` package.  No track goes back in time: what is earlier
    than the last packet of its track is put where that one is.
    """

    def __init__(self, file: IO[bytes], title: str) -> None:
        try:
            from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos
            from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder
        except ImportError:
            raise PerfettoMissing(
                "this needs the perfetto package: pip install 'tdpmmu[perfetto]'"
            ) from None
        self._builder = StreamingTraceProtoBuilder(file)
        self._event = protos.TrackEvent
        self._explicit = protos.TrackDescriptor.EXPLICIT
        self._cleared = protos.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        self._tracks = 0
        self._open: dict[int, list[tuple[str, Details | None]]] = {}
        self._last: dict[int, int] = {}
        self._counted: dict[int, int] = {}
        self._children: dict[int, int] = {}
        self._builder.write_packet(self._descriptor(title))

    def track(self, name: str, parent: int = ROOT) -> int:
        """A new track below ``parent``, after those that are there; its number."""
        self._builder.write_packet(self._descriptor(name, parent))
        return self._tracks

    def counter(self, name: str, unit: str, parent: int = ROOT) -> int:
        """A new track for :meth:`count`."""
        packet = self._descriptor(name, parent)
        packet.track_descriptor.counter.unit_name = unit
        self._builder.write_packet(packet)
        return self._tracks

    def begin(self, track: int, time: int, name: str, details: Details | None = None) -> None:
        """A slice begins, inside those of the track that are open."""
        self._open.setdefault(track, []).append((name, details))
        self._put(track, time, self._event.TYPE_SLICE_BEGIN, name, details)

    def end(self, track: int, time: int, details: Details | None = None) -> None:
        """The innermost open slice ends.  ValueError if there is none."""
        if not self._open.get(track):
            raise ValueError(f"no slice is open on track {track}")
        self._open[track].pop()
        self._put(track, time, self._event.TYPE_SLICE_END, "", details)

    def depth(self, track: int) -> int:
        """How many slices are open on a track."""
        return len(self._open.get(track, ()))

    def instant(self, track: int, time: int, name: str, details: Details | None = None) -> None:
        """Something without duration."""
        self._put(track, time, self._event.TYPE_INSTANT, name, details)

    def state(self, track: int, time: int, name: str, details: Details | None = None) -> None:
        """The track's only slice is ``name`` from here on, or none if that is empty."""
        if self._open.get(track, []) == ([(name, details)] if name else []):
            return
        if self._open.get(track):
            self.end(track, time)
        if name:
            self.begin(track, time, name, details)

    def count(self, track: int, time: int, value: int) -> None:
        """A counter has this value from here on."""
        if self._counted.get(track) != value:
            self._counted[track] = value
            packet = self._packet(track, time, self._event.TYPE_COUNTER)
            packet.track_event.counter_value = value
            self._builder.write_packet(packet)

    def close(self, time: int) -> None:
        """End everything that is open."""
        for track, slices in self._open.items():
            while slices:
                self.end(track, time)

    def _put(
        self, track: int, time: int, kind: int, name: str = "", details: Details | None = None
    ) -> None:
        packet = self._packet(track, time, kind)
        if name:
            packet.track_event.name = name
        for key, value in (details or {}).items():
            note = packet.track_event.debug_annotations.add()
            note.name = key
            if isinstance(value, str):
                note.string_value = value
            else:
                note.int_value = value
        self._builder.write_packet(packet)

    def _packet(self, track: int, time: int, kind: int) -> Any:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = SEQUENCE
        packet.timestamp = self._last[track] = max(time, self._last.get(track, 0))
        packet.track_event.track_uuid = track
        packet.track_event.type = kind
        return packet

    def _descriptor(self, name: str, parent: int = 0) -> Any:
        """The packet that announces the next track; without a parent it is that of the process."""
        self._tracks += 1
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = SEQUENCE
        descriptor = packet.track_descriptor
        descriptor.uuid = self._tracks
        descriptor.child_ordering = self._explicit
        if parent:
            descriptor.name = name
            descriptor.parent_uuid = parent
            self._children[parent] = rank = self._children.get(parent, 0) + 1
            descriptor.sibling_order_rank = rank
        else:
            packet.sequence_flags = self._cleared
            descriptor.process.pid = self._tracks
            descriptor.process.process_name = name
        return packet
