"""A search by several worker processes on this machine.

The workers go through the levels of the breadth-first search together.  Each owns the states whose
shared state hashes to its number, and runs the threads' code for what they can do there.
States are numbered as one loop would number them, so what is found first is the same, and so are
verdict, counterexamples and tokens, for any number of workers.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import pickle
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tdpmmu.distribute.executor import DistributeError
from tdpmmu.distribute.processes import follow_parent
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.acts import Mistrust
from tdpmmu.worlds.explore.engine import Explorer, Progress, no_collection
from tdpmmu.worlds.explore.exploration import INTERRUPTED, Budget, Counterexample
from tdpmmu.worlds.explore.parallel.gather import gather
from tdpmmu.worlds.explore.parallel.naming import Constants
from tdpmmu.worlds.explore.parallel.peers import Peers
from tdpmmu.worlds.explore.parallel.worker import (
    Decision,
    Level,
    Moment,
    Part,
    Report,
    Worker,
)
from tdpmmu.worlds.explore.reductions import Reduce
from tdpmmu.worlds.explore.urgency import check_urgency

LOOK_EVERY = 0.2
"""Seconds between two looks at the clock."""


def explore_on(
    machine: Machine,
    workers: int,
    *,
    reduce: Reduce = True,
    budget: Budget | None = None,
    first: bool | str = False,
    progress: Progress | None = None,
) -> Explorer:
    """Search ``machine`` as :func:`tdpmmu.worlds.explore.search.explore` does, by ``workers``
    processes.  DistributeError if one of them dies.
    """
    mistrusted: list[str] = []
    while True:
        explorer = Explorer(machine, reduce=reduce, budget=budget, first=first, progress=progress)
        try:
            with no_collection():
                Search(explorer, workers).run()
                check_urgency(explorer)
        except Mistrust as found:
            mistrusted += [name for name in str(found).split(", ") if name not in mistrusted]
            machine.layout.distrust(mistrusted)
            continue
        explorer.result.mistrusted = tuple(mistrusted)
        return explorer


class Search:
    """The process that started the workers: it judges budgets and collects what is found."""

    def __init__(self, explorer: Explorer, workers: int) -> None:
        self.explorer = explorer
        self.workers = workers
        self.stop = mmap.mmap(-1, 1)
        self.found: dict[str, Report] = {}
        self.states = 1
        self.transitions = 0
        self.new = self.turns = 0
        self.unseen = set(explorer.machine.sometimes)
        self.ticked: dict[str, Moment] = {}
        self.lines: list[Connection] = []
        self.processes: list[BaseProcess] = []
        self.last: list[Level] = []
        self.cut = -1

    def run(self) -> None:
        """Search; what is found is in the explorer."""
        began = time.monotonic()
        explorer, result = self.explorer, self.explorer.result
        explorer.intern(explorer.chunks.intern(explorer.machine.initial))
        constants = Constants()
        Worker(
            Explorer(explorer.machine, reduce=explorer.turns.reduce),
            Peers(0, [None]),
            constants,
            bool,
        ).load()
        self._fork(constants)
        try:
            self._follow(began)
            parts = self._collect()
        finally:
            for process in self.processes:
                process.kill()
                process.join()
            for line in self.lines:
                line.close()
        gather(explorer, parts, self.states, constants)
        self._report()
        result.states = self.states
        result.transitions = self.transitions
        result.shared = len(explorer.shared)
        result.positions = [len(table) for table in explorer.positions]
        result.segments_run = sum(level.segments for level in self.last)
        self.unseen -= {
            label for label, when in self.ticked.items() if self.cut < 0 or when.state <= self.cut
        }
        sometimes = explorer.machine.sometimes
        result.unseen = tuple([label for label in sometimes if label in self.unseen])
        result.seconds = time.monotonic() - began

    # --- processes --------------------------------------------------------------------------------

    def _fork(self, constants: Constants) -> None:
        context = multiprocessing.get_context("fork")
        table: list[list[Connection | None]] = [[None] * self.workers for _ in range(self.workers)]
        for a in range(self.workers):
            for b in range(a + 1, self.workers):
                table[a][b], table[b][a] = context.Pipe()
        pairs = [context.Pipe() for _ in range(self.workers)]
        everybody = [line for row in table for line in row if line is not None]
        everybody += [line for pair in pairs for line in pair]
        gc.freeze()
        for number in range(self.workers):
            process = context.Process(
                target=_work,
                args=(
                    self.explorer,
                    Peers(number, table[number]),
                    pairs[number][1],
                    everybody,
                    constants,
                    self.stop,
                ),
                daemon=True,
            )
            process.start()
            self.processes.append(process)
        gc.unfreeze()
        self.lines = [pair[0] for pair in pairs]
        for line in everybody:
            if line not in self.lines:
                line.close()

    def _receive(self, began: float) -> list[Any]:
        """One message of each worker."""
        messages: dict[int, Any] = {}
        budget = self.explorer.budget
        while len(messages) < self.workers:
            waiting = [line for i, line in enumerate(self.lines) if i not in messages]
            try:
                ready = wait(waiting, LOOK_EVERY)
            except KeyboardInterrupt:
                self.explorer.result.stopped = INTERRUPTED
                self.stop[0] = 1
                continue
            if not ready and budget.seconds and time.monotonic() - began > budget.seconds:
                self.stop[0] = 1
            for line in ready:
                number = self.lines.index(line)  # type: ignore[arg-type]
                try:
                    messages[number] = pickle.loads(self.lines[number].recv_bytes())
                except (EOFError, ConnectionError):
                    raise DistributeError(self._death(number)) from None
                if isinstance(messages[number], Exception):
                    self._raise(messages[number], number)
        return [messages[number] for number in range(self.workers)]

    def _raise(self, error: Exception, number: int) -> None:
        if not isinstance(error, (EOFError, ConnectionError)):
            raise error
        # A worker misses another: that is the one to speak of.
        for other, process in enumerate(self.processes):
            process.join(0.5)
            if process.exitcode:
                raise DistributeError(self._death(other))
        raise DistributeError(self._death(number))

    def _death(self, number: int) -> str:
        self.processes[number].join(1)
        code = self.processes[number].exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"worker {number} of {self.workers} died: {how} (9 is also lack of memory)"

    # --- levels -----------------------------------------------------------------------------------

    def _follow(self, began: float) -> None:
        """Level by level, until all is seen or it is enough."""
        result = self.explorer.result
        while True:
            levels = self._receive(began)
            if levels[0] is None:  # stopped in the middle of a level
                result.stopped = result.stopped or self._out_of_time()
                return
            self._settle(levels)
            more = levels[0].more
            stop = self._enough(levels, began)
            reply = pickle.dumps(Decision(set(self.found), stop, self.cut))
            for line in self.lines:
                line.send_bytes(reply)
            if stop or not more:
                result.exhausted = not stop
                return

    def _settle(self, levels: list[Level]) -> None:
        result = self.explorer.result
        self.last = levels
        result.depth = levels[0].depth
        for level in levels:
            for report in level.found:
                known = self.found.get(report.prop)
                if known is None or report.when < known.when:
                    self.found[report.prop] = report
        ticked: dict[str, Moment] = {}
        for level in levels:
            for label, when in level.seen.items():
                ticked[label] = min(when, ticked.get(label, when))
        self.unseen -= self.ticked.keys()
        self.ticked = ticked
        self.new = sum(level.states for level in levels)
        self.turns = sum(level.transitions for level in levels)
        self.states += self.new
        self.transitions += self.turns

    def _enough(self, levels: list[Level], began: float) -> bool:
        explorer, budget = self.explorer, self.explorer.budget
        result = explorer.result
        wanted = [
            found[0].state for prop, found in self.found.items() if explorer.first in (True, prop)
        ]
        cut = levels[0].cut
        if explorer.first and wanted and (cut < 0 or min(wanted) <= cut):
            self.cut = min(wanted)
            result.stopped = "at the first violation"
            if explorer.first is not True:
                result.stopped += f" of {explorer.first}"
        elif cut >= 0:
            self.cut = cut
            explorer.stopped_by_states()
        elif result.stopped:
            pass  # interrupted
        elif budget.seconds and time.monotonic() - began > budget.seconds:
            result.stopped = self._out_of_time()
        elif budget.memory and sum(level.memory for level in levels) > budget.memory:
            result.stopped = f"the budget of {budget.memory:,} MiB is used up"
        if explorer.progress is not None:
            result.states = self.states
            explorer.order = range(self.states)
            try:
                explorer.progress(explorer)
            except KeyboardInterrupt:
                result.stopped = INTERRUPTED
        return bool(result.stopped)

    def _out_of_time(self) -> str:
        return f"the budget of {self.explorer.budget.seconds:g} seconds is used up"

    # --- the end ----------------------------------------------------------------------------------

    def _collect(self) -> list[Part]:
        """What the workers have; figures up to where one loop would have stopped."""
        parts: list[Part] = self._receive(time.monotonic())
        if self.cut >= 0:
            self.states += sum(part.new for part in parts) - self.new
            self.transitions += sum(part.turns for part in parts) - self.turns
        return parts

    def _report(self) -> None:
        """Counterexamples, in the order in which one loop would have come across them."""
        explorer = self.explorer
        for report in sorted(self.found.values()):
            when = report.when
            if 0 <= self.cut < when.state:
                continue
            turns = explorer.path(when.state)
            if report.thread >= 0:
                number, positions = explorer.unpack(explorer.order[when.state])
                thread = report.thread
                turns += [
                    turn
                    for turn in explorer.turns.take(
                        explorer.shared[number], thread, positions[thread]
                    )
                    if turn.alternatives == report.alternatives
                ][:1]
            explorer.report(
                Counterexample(report.prop, report.kind, report.sentence, turns, when.state)
            )


def _work(
    explorer: Explorer,
    peers: Peers,
    line: Connection,
    everybody: Sequence[Connection],
    constants: Constants,
    stop: mmap.mmap,
) -> None:
    """A worker process."""
    follow_parent()
    mine = [line, *peers.lines]
    for other in everybody:
        if other not in mine:
            other.close()
    gc.disable()

    def settle(level: Level) -> Decision:
        line.send_bytes(pickle.dumps(level))
        decision: Decision = pickle.loads(line.recv_bytes())
        return decision

    try:
        worker = Worker(explorer, peers, constants, lambda: stop[0] != 0)
        if not worker.run(settle):
            line.send_bytes(pickle.dumps(None))
        line.send_bytes(pickle.dumps(worker.part(), pickle.HIGHEST_PROTOCOL))
    except Exception as error:
        try:
            text = pickle.dumps(error)
            pickle.loads(text)
        except Exception:
            text = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
        line.send_bytes(text)
