"""Tracks for vCPUs and KVM's locks, from events that the MMU's reader has no use for."""

from __future__ import annotations

import re

from tdpmmu.timeline.builder import Timeline
from tdpmmu.timeline.locks import LockTracks
from tdpmmu.trace.records import Record

_VCPU = re.compile(r"vcpu (\d{1,6})\b,?(.*)")
_LOCK = re.compile(r"[0-9a-fx]+ (?:try )?(read )?(\S.*)")
_LOCKS = (
    "mmu_lock",
    "tdp_mmu_pages_lock",
    "mmu_unsync_pages_lock",
    "slots_lock",
    "mn_invalidate_lock",
)
"""KVM's locks, by the end of what lockdep calls them."""


class GuestTracks:
    """When vCPUs run (``kvm_entry``, ``kvm_exit``) and fault, and who holds which lock.

    Of the lock events ``lock_acquire`` says for reading or not, ``lock_contended`` that it is not
    free, ``lock_acquired`` and ``lock_release`` when it is held.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._room = timeline.track("vCPUs")
        self._vcpus: dict[int, int] = {}
        self._locks = LockTracks(timeline)
        self._modes: dict[tuple[int, str], str] = {}

    def take(self, record: Record, now: int) -> None:
        """Look at a record; nothing if it is none of these events."""
        event = record.event
        if event in ("kvm_entry", "kvm_exit", "kvm_page_fault"):
            if match := _VCPU.match(record.text):
                self._vcpu(int(match[1]), event, match[2].strip(), now)
        elif event.startswith("lock_"):
            match = _LOCK.fullmatch(record.text)
            if match and match[2].endswith(_LOCKS):
                self._lock(match[2], "read" if match[1] else "", record, now)

    def _vcpu(self, number: int, event: str, text: str, now: int) -> None:
        track = self._vcpus.get(number)
        if track is None:
            track = self._vcpus[number] = self._timeline.track(f"vCPU{number}", self._room)
        if event == "kvm_entry":
            self._timeline.state(track, now, "in the guest")
        elif event == "kvm_exit":
            self._timeline.state(track, now, "")
            self._timeline.instant(track, now, "exit", {"fields": text})
        else:
            self._timeline.instant(track, now, "page fault", {"fields": text})

    def _lock(self, lock: str, read: str, record: Record, now: int) -> None:
        who = f"{record.task}-{record.pid}"
        key = (record.pid, lock)
        mode = self._modes.get(key, "held")
        if record.event == "lock_acquire":
            self._modes[key] = read or "write"
        elif record.event == "lock_contended":
            self._locks.waits(lock, who, mode, now)
        elif record.event == "lock_acquired":
            self._locks.taken(lock, who, mode, now)
        elif record.event == "lock_release":
            self._locks.released(lock, who, now)
