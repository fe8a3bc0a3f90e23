"""Equal keys must mean equal futures: random threads under random results, and broken keys.

A false merge loses bugs without a word, so it is looked for in two ways.  Whenever two histories
end in one key: the same next result must lead both to one key and one operation, and driven on
with the same results for many steps they must do the same.  Then each ingredient is taken out of
the key in turn, and the same search must notice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import CoroutineType
from typing import Any

import pytest
from random_threads import Box, Color, Program

from tdpmmu.worlds.explore import liveness
from tdpmmu.worlds.explore.position import encoding, frames, functions, objects, values, visit
from tdpmmu.worlds.explore.position.frames import position_key
from tdpmmu.worlds.explore.position.table import Positions

# -- the search --------------------------------------------------------------------------------

Step = tuple[Any, Any]
"""What a thread does: its key and its operation, or how it ended twice."""


def step(coro: CoroutineType[Any, Any, Any], result: Any) -> Step | None:
    """Send a result; None if the thread ended (as two equal exceptions, or returns, do)."""
    try:
        op = coro.send(result)
    except StopIteration:
        return None
    except Exception as error:
        return ("raised", type(error)), str(error)
    return position_key(coro, op), op


def ended(at: Step | None) -> bool:
    return at is None or at[0][0] == "raised"


class FalseMerge(Exception):
    """Two histories with one key and different futures."""


class Search:
    """Histories of one program, and the keys that they lead to."""

    def __init__(self, program: Program, seed: int) -> None:
        self.program = program
        self.random = random.Random(seed)
        self.ops: dict[Any, Any] = {}
        self.after: dict[tuple[Any, str], Step | None] = {}
        self.histories: dict[Any, list[tuple[Any, ...]]] = {}

    def run(self, runs: int, length: int) -> None:
        for _ in range(runs):
            coro = self.program.start()
            at = step(coro, None)
            history: tuple[Any, ...] = ()
            while at is not None and not ended(at) and len(history) < length:
                self.note(at, history)
                result = self.random.choice(self.program.results)
                before, at = at, step(coro, result)
                # repr() tells all results apart, 0.0 from -0.0 too.
                if self.after.setdefault((before[0], repr(result)), at) != at:
                    raise FalseMerge(self.program.source)
                history += (result,)
            coro.close()

    def note(self, at: Step, history: tuple[Any, ...]) -> None:
        key, op = at
        if self.ops.setdefault(key, op) != op:
            raise FalseMerge(self.program.source)
        known = self.histories.setdefault(key, [])
        if len(known) < 3 and history not in known:
            known.append(history)

    def merged(self) -> Iterator[list[tuple[Any, ...]]]:
        return (known for known in self.histories.values() if len(known) > 1)

    def futures(self, length: int) -> int:
        """Drive merged histories on together; return how many were compared."""
        count = 0
        for first, *others in self.merged():
            for other in others:
                self.together(first, other, length)
                count += 1
        return count

    def together(self, one: tuple[Any, ...], two: tuple[Any, ...], length: int) -> None:
        first, second = self.at(one), self.at(two)
        for _ in range(length):
            result = self.random.choice(self.program.results)
            a, b = step(first, result), step(second, result)
            if a != b:
                raise FalseMerge(self.program.source)
            if ended(a):
                break
        first.close()
        second.close()

    def at(self, history: tuple[Any, ...]) -> CoroutineType[Any, Any, Any]:
        coro = self.program.start()
        coro.send(None)
        for result in history:
            coro.send(result)
        return coro


PROGRAMS = 12
"""Programs per chunk; the suite runs CHUNKS of them."""
CHUNKS = 8


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_equal_keys_have_equal_futures(chunk: int) -> None:
    compared = 0
    for seed in range(chunk * PROGRAMS, (chunk + 1) * PROGRAMS):
        search = Search(Program(seed), seed)
        search.run(runs=30, length=25)
        compared += search.futures(length=15)
    assert compared > 500  # the test says something


@pytest.mark.parametrize("limit", [0, 3, 4096])
def test_the_table_does_what_the_threads_do(limit: int) -> None:
    for seed in range(12):
        program = Program(seed)
        table = Positions(program.start, live_limit=limit)
        rnd = random.Random(seed)
        for _ in range(15):
            coro = program.start()
            op, pos = coro.send(None), table.initial
            for _ in range(15):
                assert table.op(pos) == op
                result = rnd.choice(program.results)
                pos = table.next(pos, result)
                failure: Exception | None = None
                try:
                    op = coro.send(result)
                except Exception as error:
                    failure = None if isinstance(error, StopIteration) else error
                    op = None
                assert str(table.raised(pos)) == str(failure)
                if op is None:
                    assert table.op(pos) is None
                    break
            coro.close()


# -- the search must notice a broken key ---------------------------------------------------------


def without_stack(patch: pytest.MonkeyPatch) -> None:
    whole = frames.frame_key

    def cut(coro: Any, awaited: Any, visit: Any) -> Any:
        parts = whole(coro, awaited, visit)
        depth = parts[0].site(parts[1]).depth  # type: ignore[attr-defined]
        return parts[: len(parts) - depth]

    patch.setattr(frames, "frame_key", cut)


def without_iterator_state(patch: pytest.MonkeyPatch) -> None:
    for kind in values.ITERATORS:
        patch.setitem(encoding.ENCODERS, kind, lambda value, visit: type(value))


def without_iterated(patch: pytest.MonkeyPatch) -> None:
    for kind in values.ITERATORS:
        patch.setitem(
            encoding.ENCODERS, kind, lambda value, visit: (type(value), *value.__reduce__()[2:])
        )


def without_sharing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(visit.Visit, "again", lambda self, value: None)


def sharing_within_one_frame_only(patch: pytest.MonkeyPatch) -> None:
    whole = frames.frame_key
    patch.setattr(
        frames, "frame_key", lambda coro, awaited, visit: whole(coro, awaited, encoding.visit())
    )


def part_of_frames(keep: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Any:
    def broken(patch: pytest.MonkeyPatch) -> None:
        whole = frames.frame_key
        patch.setattr(frames, "frame_key", lambda *args: keep(whole(*args)))

    return broken


def part_of_key(keep: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Any:
    def broken(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(globals(), "position_key", lambda coro, op: keep(position_key_(coro, op)))

    return broken


position_key_ = position_key


def encoded(kind: type, encode: Callable[[Any, Any], Any]) -> Any:
    def broken(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(encoding.ENCODERS, kind, encode)

    return broken


def without_unbound(patch: pytest.MonkeyPatch) -> None:
    for module in (frames, objects, functions):
        patch.setattr(module, "UNBOUND", None)


def without_cells(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frames, "_captured", lambda *args: None)


def without_captures_of_functions(patch: pytest.MonkeyPatch) -> None:
    for module in (frames, functions):
        patch.setattr(module, "encode_cell", lambda *args: None)


def flow(name: str, change: Callable[[Any], Any]) -> Any:
    """Break a method of the liveness analysis (whose results must then be worked out anew)."""

    def broken(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(liveness, "_FACTS", {})
        patch.setattr(liveness.CodeFacts, name, change(getattr(liveness.CodeFacts, name)))

    return broken


def nothing_used(whole: Any) -> Any:
    return lambda self, ins: (0, whole(self, ins)[1])


def every_third_use_forgotten(whole: Any) -> Any:
    def broken(self: Any, ins: Any) -> Any:
        uses, kills = whole(self, ins)
        return (0 if ins.offset % 3 == 0 else uses), kills

    return broken


def no_loops(whole: Any) -> Any:
    def broken(self: Any, index: int) -> Any:
        target = whole(self, index)
        return None if target is not None and target < index else target

    return broken


def no_branches(whole: Any) -> Any:
    def broken(self: Any, index: int) -> Any:
        out = whole(self, index)
        return out[-1:] if "IF" in self._ins[index].opname else out

    return broken


def deletions_unused(whole: Any) -> Any:
    return lambda self, ins: (0, 0) if ins.opname == "DELETE_FAST" else whole(self, ins)


BROKEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the value stack": without_stack,
    "the state of iterators": without_iterator_state,
    "what iterators iterate over": without_iterated,
    "sharing": without_sharing,
    "sharing between frames": sharing_within_one_frame_only,
    "all locals": part_of_frames(lambda parts: parts[:3]),
    "the first live local": part_of_frames(lambda parts: parts[:3] + parts[4:]),
    "the instruction": part_of_frames(lambda parts: parts[:1] + parts[2:]),
    "the pending operation": part_of_key(lambda key: key[:-1]),
    "the callers": part_of_key(lambda key: key[-2:]),
    "the callees": part_of_key(lambda key: (key[0], key[-1])),
    "bool is not int": encoded(bool, lambda value, visit: int(value)),
    "float is not int": encoded(float, lambda value, visit: int(value)),
    "0.0 is not -0.0": encoded(float, lambda value, visit: (float, value)),
    "an enum is not int": encoded(Color, lambda value, visit: int(value)),
    "the items of lists": encoded(list, lambda value, visit: visit.again(value) or list),
    "the items of dicts": encoded(dict, lambda value, visit: (dict, *map(repr, value))),
    "the order of dicts": encoded(
        dict, lambda value, visit: (dict, *sorted(map(repr, value.items())))
    ),
    "the fields of helpers": encoded(Box, lambda value, visit: visit.again(value) or Box),
    "the last field of helpers": encoded(
        Box,
        lambda value, visit: visit.again(value) or (Box, visit.encode(value.value)),
    ),
    "unbound is not None": without_unbound,
    "captured locals": without_cells,
    "what functions captured": without_captures_of_functions,
    "liveness: every use": flow("_uses_and_kills", nothing_used),
    "liveness: some uses": flow("_uses_and_kills", every_third_use_forgotten),
    "liveness: del": flow("_uses_and_kills", deletions_unused),
    "liveness: backward jumps": flow("_jump", no_loops),
    "liveness: one side of branches": flow("_successors", no_branches),
}


@pytest.mark.parametrize("ingredient", BROKEN)
def test_a_key_without_it_is_noticed(ingredient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[ingredient](monkeypatch)
    for seed in range(400):
        try:
            Search(Program(seed), seed).run(runs=30, length=25)
        except FalseMerge:
            return
    pytest.fail(f"nobody misses {ingredient}")
