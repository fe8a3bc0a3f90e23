"""What each condition of the compiled loop is for: a program in which it matters.

The conditions of the reduction are there twice, in plain Python (``test_reduction_conditions.py``)
and in compiled code.  Here that code runs in Python, with one condition changed, and must not find
what the plain loop finds, bit by bit.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

import pytest
from compiled_programs import OWN
from telling import GO_ROUND, PROGRAMS

from tdpmmu.worlds.explore import turn
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.reductions import ALL, BEGIN, NONE, URGENT, Reductions
from tdpmmu.worlds.explore.search import COMPILED, PLAIN, explore

pytest.importorskip("numba")

from plainly import Plainly, noticed
from test_compiled import same

from tdpmmu.worlds.explore.fast import choosing, control, learnt
from tdpmmu.worlds.explore.fast import compose as c
from tdpmmu.worlds.explore.fast import kernels as k
from tdpmmu.worlds.explore.fast import segments as s

MOST_PARTS = 10
"""Segments of a turn."""

MOST_CALLS = 1_000
"""How often the loop may come back from one of these programs."""

REMEMBERED = control.FACTS, control.WRITTEN, control.SEGMENTS, control.SEGMENT_WORDS

MACHINES = PROGRAMS | GO_ROUND | OWN


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is long after some operations."""
    monkeypatch.setattr(turn, "LONGEST_TURN", MOST_PARTS * turn.SEGMENT)
    monkeypatch.setattr(c, "MOST_PARTS", MOST_PARTS)


@cache
def plain(name: str, reduce: Reductions) -> Explorer:
    """What the plain loop finds."""
    found = explore(MACHINES[name](), loop=PLAIN, reduce=reduce)
    check_progress(found)
    return found


def compare(
    name: str, monkeypatch: pytest.MonkeyPatch, make: Plainly, reduce: Reductions = ALL
) -> list[int]:
    """Search by the compiled loop's code in Python: what was asked and remembered for it."""
    advance = make(k.advance)
    calls = count()

    def limited(*arguments: Any) -> int:
        assert next(calls) < MOST_CALLS, "it goes round for ever"
        code: int = advance(*arguments)
        return code

    with monkeypatch.context() as patched:
        patched.setattr(k, "advance", limited)
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of hashes
            found = explore(MACHINES[name](), loop=COMPILED, reduce=reduce)
    check_progress(found)
    same(plain(name, reduce), found)
    assert found.compiled is not None
    ctl = found.compiled.store.ctl
    return [len(found.compiled.journal), *(int(ctl[field]) for field in REMEMBERED)]


@pytest.mark.parametrize("name", MACHINES)
def test_the_same_in_python(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(name, monkeypatch, Plainly())


# --- one condition taken away ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Without:
    """A compiled function with a piece of its source replaced, and the program that must notice."""

    program: str
    function: Any
    old: str
    new: str
    reduce: Reductions = ALL

    def __str__(self) -> str:
        what = f"{self.new}, not {self.old}" if self.new else f"no {self.old}"
        return f"{self.function.py_func.__name__}: {' '.join(what.split())}"

    def plainly(self) -> Plainly:
        """The loop without."""
        return Plainly((self.function, self.old, self.new))


VISITED, BEEN, GO_ON, FILL = c._visited, c._been_here, c._go_on, c.fill
SEGMENT, COMPOSE, RUN = c._segment, c.compose, s.run_segment
CHOSEN, ALL_ENDED = choosing.choose, choosing._all_ended

SAME = "work.visits[visit, EVENTS] == now[EVENTS]\n            and "
SAME_MOODS = "work.visits[visit, VIOLATIONS] == now[VIOLATIONS]\n            and "
EARLY = "if early and not waits and not rounds:"
ENDS = "if deed == ENDED or harms:"
CLOSES = "if after and mover in (NEITHER, RIGHT):"
CUTS = "if steps and (steps >= SEGMENT or about & VCPU):"
BLOCKS = "if about & MAY_BLOCK and not (after or idle or about & ALONE):"
GETS_ON = "gets_on = before_gets_on | (what & PROGRESS)"
REPORTED = "if not ctl[REPORTED] >> (np.int64(facts[i]) & 63) & 1:"
NEXT_LANE = "if found or late or not _all_ended(deeds, positions, base, lanes):"
SKIPS = "if position == ended[thread] and rival < 0:"
AT_ONCE = "if rival >= 0 or (kind == URGENT and not late):"
HALTS = "if found == 0 and not (late and _all_ended(deeds, positions, base, alone)):"

WRONG = [
    # Points of a turn.
    Without("one way chooses only", VISITED, "visit[POSITION] == now[POSITION] and ", ""),
    Without("one way is seen", VISITED, "(AFTER | IDLE)", "IDLE"),
    Without("one way chooses only", VISITED, "(AFTER | IDLE)", "AFTER"),
    Without("three ways", VISITED, "same = False", "pass"),
    Without("chooses for ever", BEEN, "while visit >= 0:", "while visit > 0:"),
    Without("goes round alone", BEEN, "return np.int64(ENDS)", "return np.int64(_DROPPED)"),
    Without("progress by one way", BEEN, "visit = work.visits[visit, WAY]", "visit -= 1"),
    Without("progress by one way", BEEN, SAME, ""),
    Without("moods in another order", BEEN, SAME_MOODS, ""),
    Without("progress by one way", BEEN, "return np.int64(_DROPPED)", "return np.int64(ENDS)"),
    Without("progress by one way", BEEN, "return np.int64(_DROPPED)", "return np.int64(GOES)"),
    # From one segment to the next.
    Without("progress by one way", GO_ON, "about | (now[ABOUT] & GETS_ON)", "about"),
    Without("one way chooses only", GO_ON, "(now[ABOUT] & GETS_ON)", "now[ABOUT]"),
    Without("moods in another order", SEGMENT, "now[ABOUT] & AFTER != 0", "0"),
    Without("one way chooses only", SEGMENT, "now[ABOUT] & IDLE != 0", "0"),
    Without("one way chooses only", SEGMENT, "if bench.looked[i]:", "if False:"),
    Without("one way chooses only", SEGMENT, "bench.row[i] = work.row[i]", "pass"),
    # A turn.
    Without("one way chooses only", COMPOSE, "if first < 0:", "if first == -2:"),
    Without("one way chooses only", COMPOSE, "start, IDLE, -1\n", "start, 0, -1\n"),
    Without("moods in another order", COMPOSE, "start > 0 or ctl[EARLY] > 1", "start > 0"),
    Without(
        "moods in another order", COMPOSE, "start > 0 or ctl[EARLY] > 1", "True", ALL - {BEGIN}
    ),
    Without("moods in another order", COMPOSE, "and ctl[EARLY] ", "", ALL - {URGENT}),
    Without("those alone", COMPOSE, " and not learnt.flags[first - 1] & ALONE", ""),
    Without("moods in another order", COMPOSE, "in (LEFT, BOTH)", "== LEFT"),
    Without("go round together", COMPOSE, "in (LEFT, BOTH)", "== BOTH"),
    Without("one way chooses only", COMPOSE, "in (LEFT, BOTH)", "in (LEFT, BOTH, 0)"),
    Without("one way chooses only", COMPOSE, "in (LEFT, BOTH)", "in (LEFT, BOTH, 3)"),
    Without("moods in another order", COMPOSE, "now[ABOUT] |= AFTER", "pass"),
    Without("never seen", COMPOSE, "if now[PARTS] <= MOST_PARTS:", "if True:"),
    Without("nearly too long", COMPOSE, "now[PARTS] <= MOST_PARTS", "now[PARTS] < MOST_PARTS"),
    Without("never seen", COMPOSE, "now[PARTS] += 1", "now[PARTS] = 1"),
    Without("goes round alone", COMPOSE, "                rounds = True", "                pass"),
    Without("goes round alone", COMPOSE, "now[WAY] = visits", "pass"),
    Without("three choices", COMPOSE, "range(count - 1, 0, -1)", "range(1, count)"),
    Without("goes round alone", COMPOSE, "            waits = False", "            pass"),
    Without(
        "one outcome waits",
        COMPOSE,
        "if state == ENDS:\n            waits",
        "if state != _DROPPED:\n            waits",
    ),
    Without("progress by one way", COMPOSE, "state != _DROPPED and ", ""),
    Without("harm is done twice", COMPOSE, " and not now[ABOUT] & HARMS", ""),
    Without("progress by one way", COMPOSE, "now[ABOUT] & GETS_ON != 0", "0"),
    Without("one outcome waits", COMPOSE, "if waits:\n", "if False:\n"),
    Without("one outcome waits", COMPOSE, EARLY, "if not waits and not rounds:"),
    Without("go round together", COMPOSE, EARLY, "if early and not rounds:"),
    Without("goes round alone", COMPOSE, EARLY, "if early and not waits:"),
    Without("a rival", COMPOSE, "if waits and rival:", "if rival:"),
    Without("nobody alone is awaited", COMPOSE, "if waits and rival:", "if waits:"),
    Without("a rival", COMPOSE, "above = rival - 1", "above = rival"),
    Without("a vcpu in a hurry waits", COMPOSE, "elif not waits and urgent:", "elif urgent:"),
    Without("a rival", COMPOSE, "elif not waits and urgent:", "elif not waits:"),
    Without("a vcpu in a hurry waits", COMPOSE, "elif not waits and urgent:", "elif False:"),
    Without("one outcome waits", COMPOSE, "if row[i] != values[base + i]:", "if True:"),
    # An entry.
    Without("a rival", FILL, "if head & 3 == BLOCKED:", "if False:"),
    Without("a rival", FILL, "(after << 32) | end", "(shared << 32) | end"),
    Without("two writes", FILL, "if changed:", "if False:"),
    # A segment.
    Without("raises", RUN, "if deed == RAISED:", "if False:"),
    Without("harm is done twice", RUN, ENDS, "if deed == ENDED:"),
    Without("a rival", RUN, ENDS, "if harms:"),
    Without("the same tale", RUN, CUTS, "if steps and about & VCPU:"),
    Without("a vcpu in a hurry waits", RUN, CUTS, "if steps >= SEGMENT or about & VCPU:"),
    Without("two writes", RUN, CLOSES, "if mover in (NEITHER, RIGHT):"),
    Without("before a section", RUN, CLOSES, "if after and mover == NEITHER:"),
    Without("two writes", RUN, CLOSES, "if after and mover == RIGHT:"),
    Without("waits in line with a lock", RUN, BLOCKS, "if not (after or idle or about & ALONE):"),
    Without("two moves that wait", RUN, "not (after or idle", "not (idle"),
    Without("one way chooses only", RUN, "not (after or idle", "not (after"),
    Without("those alone", RUN, "idle or about & ALONE)", "idle)"),
    Without("barrier under a lock", RUN, BLOCKS, "if False:"),
    Without("waits in line with a lock", RUN, "STUCK if idle else ENDS", "STUCK"),
    Without("one outcome waits", RUN, "STUCK if idle else ENDS", "ENDS"),
    Without("two sections", RUN, "if mover in (NEITHER, LEFT):", "if mover == NEITHER:"),
    Without("two writes", RUN, "if mover in (NEITHER, LEFT):", "if mover == LEFT:"),
    Without("the choice of a moment", RUN, "if mover in (NEITHER, LEFT):", "if mover != 1:"),
    Without("waits in line with a lock", RUN, "if not about & CHOOSES:", "if False:"),
    Without("one outcome waits", RUN, "if not about & CHOOSES:", "if True:"),
    Without("an operation fails", RUN, "if what & FAILED:", "if False:"),
    Without("progress by one way", RUN, GETS_ON, "gets_on = what & PROGRESS"),
    Without("one tale gets on", RUN, GETS_ON, "gets_on |= what & PROGRESS"),
    Without("progress by one way", RUN, GETS_ON, "gets_on = before_gets_on"),
    Without("harm is done twice", RUN, "harms = what & HARM", "pass"),
    Without("the same tale", RUN, "event, violation = before_event, before_violation", "pass"),
    Without("a breach is heard twice", RUN, REPORTED, "if False:"),
    Without("three ways", RUN, "if which:", "if True:"),
    Without("three choices", RUN, "position, steps = way[_POSITION], way", "steps = way"),
    Without("three tales", RUN, "event, violation = way[_EVENT], way[_VIOLATION]", "pass"),
    Without("one way is seen before", RUN, "np.int64(about_it & AFTER != 0), ", "after, "),
    Without("one way chooses only", RUN, "np.int64(about_it & IDLE != 0)", "idle"),
    Without("progress by one way", RUN, "gets_on = np.int64(about_it & GETS_ON != 0)", "pass"),
    Without("one tale does harm", RUN, "harms = np.int64(about_it & HARMS != 0)", "pass"),
    Without("three ways", RUN, "row[i] = bench.way_rows[ways, i]", "pass"),
    Without("three ways and two", RUN, "into[i] = row[i]", "pass"),
    # Whose turns are followed.
    Without("waits in line with a lock", ALL_ENDED, ">= 0", "== 0"),
    Without("a deadlock before those alone", CHOSEN, NEXT_LANE, "if found or late:"),
    Without("a rival who has ended", CHOSEN, SKIPS, "if position == ended[thread]:"),
    Without("those alone wait for ever", CHOSEN, "if kind == BLOCKED else", "if False else"),
    Without("a rival", CHOSEN, AT_ONCE, "if kind == URGENT and not late:"),
    Without("a vcpu in a hurry", CHOSEN, AT_ONCE, "if rival >= 0:"),
    Without("those alone", CHOSEN, AT_ONCE, "if rival >= 0 or kind == URGENT:"),
    Without("those alone wait for ever", CHOSEN, "kind == BLOCKED and not late", "kind == BLOCKED"),
    Without("a rival", CHOSEN, "if kind == BLOCKED and not late:", "if False:"),
    Without("those alone wait for ever", CHOSEN, HALTS, "if found == 0 and not late:"),
    Without("waits in line with a lock", CHOSEN, HALTS, "if False:"),
    # What is known.
    Without("two writes", learnt.answer, "looked[words[i]] = True", "pass"),
]

COSTS = [
    Without("moods in another order", SEGMENT, "if bench.looked[i]:", "if True:"),
    Without("one way chooses only", COMPOSE, "looked[:] = False", "pass"),
    Without("raises at once", COMPOSE, "if first < 0:", "if first == -1:"),
    Without("a rival", COMPOSE, "if ctl[ORDERED] and ", "if ", NONE),
    Without("goes round alone", COMPOSE, " and learnt.flags[first - 1] & VCPU", ""),
    Without("a rival", RUN, "looked[:] = False", "pass"),
    Without("a breach is heard twice", RUN, REPORTED, "if True:"),
]


@pytest.mark.parametrize("without", WRONG, ids=str)
def test_what_would_be_wrong(without: Without, monkeypatch: pytest.MonkeyPatch) -> None:
    plainly = without.plainly()
    compare(without.program, monkeypatch, Plainly(), without.reduce)
    assert noticed(lambda: compare(without.program, monkeypatch, plainly, without.reduce))


@pytest.mark.parametrize("without", COSTS, ids=str)
def test_what_would_cost_more(without: Without, monkeypatch: pytest.MonkeyPatch) -> None:
    least = compare(without.program, monkeypatch, Plainly(), without.reduce)
    assert compare(without.program, monkeypatch, without.plainly(), without.reduce) > least
