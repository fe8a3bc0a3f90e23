"""A track for each lock, with who holds it as its state."""

from __future__ import annotations

from tdpmmu.timeline.builder import Timeline


class LockTracks:
    """Tracks are made when their lock is first used, below one for all locks."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._room = timeline.track("locks")
        self._tracks: dict[str, int] = {}
        self._holders: dict[str, list[tuple[str, str]]] = {}

    def waits(self, lock: str, who: str, mode: str, time: int) -> None:
        """Somebody has to wait for it."""
        self._timeline.instant(self._track(lock), time, f"{who} waits ({mode})")

    def taken(self, lock: str, who: str, mode: str, time: int) -> None:
        """Somebody has it."""
        self._holders.setdefault(lock, []).append((who, mode))
        self._show(lock, time)

    def released(self, lock: str, who: str, time: int) -> None:
        """It is given back; nothing if nobody saw that it was taken."""
        holders = self._holders.get(lock, [])
        for i in reversed(range(len(holders))):
            if holders[i][0] == who:
                del holders[i]
                self._show(lock, time)
                return

    def _show(self, lock: str, time: int) -> None:
        holders = self._holders[lock]
        names = ", ".join(dict.fromkeys(who for who, _ in holders))
        state = f"{holders[0][1]}: {names}" if holders else ""
        self._timeline.state(self._track(lock), time, state)

    def _track(self, lock: str) -> int:
        if lock not in self._tracks:
            self._tracks[lock] = self._timeline.track(lock, self._room)
        return self._tracks[lock]
