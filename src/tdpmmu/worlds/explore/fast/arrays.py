"""The arrays of a search, as compiled code is handed them: all at once.

A compiled function is given each array in seven words, which every call copies.  So what is called
for each state is put in place instead (``@inlined``), or given the few arrays that it needs.
"""

from __future__ import annotations

from typing import NamedTuple

from tdpmmu.worlds.explore.fast.compose import Scratch
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.facts import Table
from tdpmmu.worlds.explore.fast.learnt import Learnt
from tdpmmu.worlds.explore.fast.packing import Packed


class Search(NamedTuple):
    """What is found and known so far, and how far the search is."""

    ctl: Words
    """The control block: see :mod:`~tdpmmu.worlds.explore.fast.control`."""
    packed: Packed
    """The states that were found, and their set."""
    table: Table
    """What threads can do, entry by entry, and the shared states."""
    learnt: Learnt
    """What is known of operations and turns, of which entries are made."""
    work: Scratch
    """Room to make them."""
    lanes: Words
    """The threads that move whenever they can."""
    alone: Words
    """The threads that move once no other does any more."""
    ended: Words
    """For each thread, a position at which it has ended, or -1."""
