"""NUMA nodes: which one a CPU belongs to, how far apart they are, and lines that CPUs fight over.

CPUs are divided evenly among the nodes, in order.  Up to four nodes each is linked to each other
one; of more (eight sockets with three links each) some are two links away.
"""

from __future__ import annotations

from collections.abc import Hashable

from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.thread import SimThread

FULLY_LINKED = 4
FARTHEST = 2


class Nodes:
    """The host's nodes, and where lines are that more than one CPU writes to."""

    def __init__(
        self, count: int, cpus: int, costs: Costs, near_wait: int = 0, far_wait: int = 0
    ) -> None:
        """``cpus``: how many there are; what is beyond belongs to the last node.

        ``near_wait``, ``far_wait``: ns that a line from the own node, and one that comes over
        links, waits for others that want lines, too.
        """
        self.count = count
        self._cpus = cpus
        self._costs = costs
        self._near_wait, self._far_wait = near_wait, far_wait
        self._lines: dict[Hashable, tuple[int, int, int]] = {}

    def of(self, thread: SimThread) -> int:
        """The node that a thread runs on."""
        return min(thread.last_cpu, self._cpus - 1) * self.count // self._cpus

    def hops(self, one: int, other: int) -> int:
        """How many links are between two nodes."""
        if one == other:
            return 0
        if self.count <= FULLY_LINKED:
            return 1
        return min(FARTHEST, (one ^ other).bit_count())

    def far(self, thread: SimThread, node: int) -> int:
        """What a line of a node's memory costs a thread more than an idle one of its own node's."""
        hops = self.hops(self.of(thread), node)
        return hops * self._costs.hop + (self._far_wait if hops else self._near_wait)

    # --- lines ----------------------------------------------------------------------------------

    def owns(self, thread: SimThread, line: Hashable) -> bool:
        """Whether the line was last written by that thread."""
        found = self._lines.get(line)
        return found is not None and found[0] == thread.number

    def fetch(self, thread: SimThread, line: Hashable) -> int:
        """What it costs to write to it: it comes from its last writer, to one after the other."""
        mine = self.of(thread)
        found = self._lines.get(line)
        if found is None:
            self._lines[line] = thread.number, mine, thread.now
            return 0
        owner, node, free = found
        if owner == thread.number:
            return 0
        free = max(free, thread.now) + self._transfer(node, mine)
        self._lines[line] = thread.number, mine, free
        return free - thread.now

    def _transfer(self, node: int, mine: int) -> int:
        """What it takes a line to come from one CPU to another."""
        hops = self.hops(node, mine)
        if not hops:
            return self._costs.reader_bounce
        return self._costs.lock_handover + (hops - 1) * self._costs.hop + self._far_wait

    def at_leisure(self, thread: SimThread, line: Hashable) -> int | None:
        """What ``fetch`` will cost, now or later; None if that depends on when."""
        owner, node, free = self._lines.get(line, (thread.number, 0, 0))
        if owner == thread.number:
            return 0
        return None if free > thread.now else self._transfer(node, self.of(thread))

    def taken(self, thread: SimThread, line: Hashable, free: int) -> None:
        """The thread has fetched it, no later than ``free``, which is nobody else's time yet."""
        if not self.owns(thread, line):
            self._lines[line] = thread.number, self.of(thread), free
