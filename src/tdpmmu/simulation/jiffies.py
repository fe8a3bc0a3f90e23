"""When a thread wakes up that sleeps for some jiffies: ``schedule_timeout`` and the timer wheel."""

from __future__ import annotations

from tdpmmu.worlds.simulate.noise import SECOND

HZ = 1000
"""CONFIG_HZ, if nothing else is asked for."""

LEVEL_SHIFT = 3
"""``LVL_CLK_SHIFT``: each level of the wheel is eight times as coarse as the one before."""

LEVEL_SIZE, LEVELS = 64, 9


def wheel(now: int, expires: int) -> int:
    """``calc_wheel_index`` (4.8 and later), in jiffies: never early, up to an eighth late."""
    level = 0
    while level < LEVELS - 1 and expires - now >= LEVEL_SIZE - 1 << LEVEL_SHIFT * level:
        level += 1
    return (expires >> LEVEL_SHIFT * level) + 1 << LEVEL_SHIFT * level


class Jiffies:
    """The kernel's clock, which had gone on for ``since`` nanoseconds when virtual time began."""

    def __init__(self, hz: int, since: int) -> None:
        self._tick = SECOND // hz
        self._since = since

    def wakes(self, now: int, milliseconds: int) -> int:
        """When who goes to sleep now for that long wakes up, in nanoseconds."""
        jiffies = (now + self._since) // self._tick
        asked = -(-milliseconds * 1_000_000 // self._tick)
        return wheel(jiffies, jiffies + asked) * self._tick - self._since
