"""Follow a trace, record by record, and hold it against every rule that its events allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.properties.rules import SPTE_TRANSITION
from tdpmmu.trace.fields import PageInfo, SetSpte, SpteChange
from tdpmmu.trace.records import IN_INTERRUPT, LOST, Lost, Record, Row, Run, Trace, as_record
from tdpmmu.trace.verify.calls import Calls
from tdpmmu.trace.verify.coverage import Facts, checked
from tdpmmu.trace.verify.findings import Findings, Result
from tdpmmu.trace.verify.flushes import Flushes
from tdpmmu.trace.verify.forest import Forest
from tdpmmu.trace.verify.huge import HugeLeaves
from tdpmmu.trace.verify.kinds import Kinds
from tdpmmu.trace.verify.pages import Pages
from tdpmmu.trace.verify.sweeps import in_first_table, sweep
from tdpmmu.trace.verify.threads import UNKNOWN, Thread

CHANGED = "kvm_tdp_mmu_spte_changed"

_PREEMPTED = "prev_state=R"
"""It goes on where it was: in ``cond_resched``, say."""

PATIENCE = 2000
"""How many records a change waits for the one that it follows to show up."""

MOST_PROBLEMS = 100

SURE = 100
"""After how many changes it is clear whether preempt depths tell of spinning locks."""

_ROOT = 4
"""The least level of roots of 64-bit guests.  Without the TDP MMU, roots are told apart by age."""


class Follower:
    """Takes the records in their order."""

    def __init__(self, reader: Trace, fmt: SpteFormat) -> None:
        self._reader = reader
        self._fmt = fmt
        self._kinds = Kinds(fmt)
        self._findings = Findings()
        self._forest = Forest(fmt)
        self._flushes = Flushes(fmt, self._findings)
        self._pages = Pages(self._forest, self._findings)
        self._huge = HugeLeaves(self._findings)
        self._threads: dict[int, Thread] = {}
        self._waiting: list[Thread] = []
        self._facts = Facts()
        self._calls = Calls(self._facts, self._flushes, self._pages)
        self._problems: list[tuple[int, str]] = []
        self._more_problems = 0
        self._changes = 0
        self._depth: bool | None = None
        self._shadow_roots = 0
        self._handlers: dict[str, Callable[[Record, Thread], None]] = {
            "kvm_mmu_get_page": self._get_page,
            "kvm_mmu_set_spte": self._set_spte,
            "sched_switch": self._switched,
        }

    def run(self, rows: Iterable[Row | Run]) -> None:
        """The next rows of the trace."""
        threads = self._threads
        for row in rows:
            if isinstance(row, Run):
                self._run(row)
                continue
            event, pid = row[4], row[3]
            if event != CHANGED:
                if event is LOST:
                    self._lost(row[5])
                    continue
                record = as_record(row)
                if record.depth == IN_INTERRUPT:
                    self._calls.in_interrupt(record, not self._waiting)
                    continue
            thread = threads.get(pid)
            if thread is None:
                thread = threads[pid] = Thread()
            if thread.held:
                thread.held.append(row)
            elif not (
                self._spte_changed(row, thread)
                if event == CHANGED
                else self._other(as_record(row), thread)
            ):
                thread.held.append(row)
                self._waiting.append(thread)
            if self._waiting:
                self._resume(row[0])

    def _run(self, run: Run) -> None:
        """Table by table, if these are changes; else row by row."""
        rest: Run | None = run
        while rest is not None:
            part = in_first_table(rest.columns) if run.event == CHANGED else 0
            here, rest = rest.split(part) if 0 < part < len(rest.times) else (rest, None)
            if not part or not self._sweep(here):
                self.run(here.rows())

    def finish(self, result: Result) -> None:
        """The trace is over: what is left of it, and the result."""
        self._resume(self._reader.line + PATIENCE + 1)
        for thread in self._threads.values():
            self._forest.finish_removal(thread)
        self._huge.finish()
        self._pages.finish()
        reader, facts, forest, flushes = self._reader, self._facts, self._forest, self._flushes
        facts.lost = facts.lost or bool(reader.overwritten)
        for line, what in reader.doubts:
            self._problem(line, what)
        if forest.unreported:
            text = f"{forest.unreported} present entries of removed tables were not reported"
            self._problem(reader.line, text)
        facts.changes = self._changes
        facts.late = forest.late
        facts.several = forest.several or len(self._calls.kvms) > 1
        facts.ambiguous = forest.ambiguous
        facts.flushes_first = self._fmt.nonpresent != 0
        facts.depth = bool(self._depth)
        facts.count(flushes, self._pages, self._huge)
        result.events = reader.records
        result.changes = facts.changes
        result.vms = len(self._calls.kvms)
        result.roots = forest.roots_made if facts.changes else 0
        result.ambiguous = forest.ambiguous
        result.checked = checked(facts)
        result.violations = sorted(self._findings.violations, key=lambda one: one.evidence[-1][0])
        result.counts = self._findings.counts
        result.problems = sorted(self._problems)
        result.more_problems = self._more_problems

    # --- one record -------------------------------------------------------------------------------

    def _other(self, record: Record, thread: Thread) -> bool:
        """Anything but a change."""
        if self._depth and not record.depth:
            self._without_lock(record, thread)
        handler = self._handlers.get(record.event)
        if handler is not None:
            handler(record, thread)
        elif record.fields is not None:
            self._calls.take(record, thread, not self._waiting)
        return True

    def _resume(self, line: int) -> None:
        """Let threads go on whose change fits by now, or has waited too long."""
        progress = True
        while progress and self._waiting:
            progress = False
            for thread in list(self._waiting):
                done = 0
                waited = thread.held
                first = waited[0]
                if line - first[0] > PATIENCE:
                    self._problem(first[0], f"no table has an entry {first[5].old:#x} here")
                    self._spte_changed(first, thread, force=True)
                    done = 1
                for row in waited[done:]:
                    if row[4] != CHANGED:
                        self._other(as_record(row), thread)
                    elif not self._spte_changed(row, thread):
                        break
                    done += 1
                if done:
                    progress = True
                    del waited[:done]
                    if not waited:
                        self._waiting.remove(thread)

    def _without_lock(self, record: Record, thread: Thread) -> None:
        """A thread shows itself where it holds no spinning lock."""
        self._yields(record, thread)
        if thread.context != UNKNOWN:
            thread.context = UNKNOWN
        if thread.torn is not None:
            self._pages.torn_down(thread, record)

    def _yields(self, record: Record, thread: Thread) -> None:
        """A thread has let go of its locks, but may go on with what it does."""
        thread.rested = True
        if thread.debts:
            self._flushes.let_go(thread, record)
        if thread.flushed:
            thread.flushed = []

    def _switched(self, record: Record, thread: Thread) -> None:
        """Who holds a spinning lock is not scheduled out."""
        if self._depth is not False:
            preempted = _PREEMPTED in record.text
            (self._yields if preempted else self._without_lock)(record, thread)

    def _spte_changed(self, row: Row, thread: Thread, *, force: bool = False) -> bool:
        """False: it does not fit yet."""
        change: SpteChange = row[5]
        forest = self._forest
        table = forest.find(change, thread)
        if table is None:
            if not (force or forest.late or not forest.roots.get(change.as_id)):
                return False
            if not force and not forest.late:
                self._problem(row[0], "there were tables before the trace began")
            table = forest.find_anyway(change, thread)
        self._changes += 1
        if self._changes < SURE and self._depth is not False:
            self._depth = as_record(row).depth > 0
        _, gfn, level, old, new = change
        kind = self._kinds.of(level, old, new)
        if kind.wrong is not None or gfn & (1 << 9 * (level - 1)) - 1:
            what = kind.wrong or f"gfn {gfn:#x} is not the first of an entry at level {level}"
            self._findings.violated(SPTE_TRANSITION.name, what, (as_record(row),))
        removal = forest.enter(change, kind, table, thread)
        if kind.takes:
            if not removal:
                self._flushes.taken(change, kind, as_record(row), thread)
                if thread.zap_sp is not None and kind.unlinks:
                    self._pages.zapped(thread.zap_sp, as_record(row))
                    thread.zap_sp = None
        elif kind.huge is not None:
            self._huge.installed(table.root, kind.huge, as_record(row))
        if thread.flushed:
            thread.flushed = []
        return True

    def _sweep(self, run: Run) -> bool:
        """Take in changes of one table in a row; False if that cannot be done all at once."""
        thread = self._threads.get(run.pid)
        if thread is None or thread.held or self._waiting or self._changes < SURE:
            return False
        takes = sweep(run.columns, self._forest, self._kinds, thread)
        if takes is None:
            return False
        if thread.context == UNKNOWN:
            self._flushes.unknown += takes
        self._changes += len(run.times)
        thread.flushed = []
        return True

    def _get_page(self, record: Record, thread: Thread) -> None:
        page: PageInfo = record.fields
        self._shadow_roots += page.level >= _ROOT and record.text.endswith("new")
        if page.direct:
            roots = self._forest.roots_made
            self._forest.new_page(page.level, thread)
            if self._forest.roots_made > roots:
                self._huge.new_root()

    def _set_spte(self, record: Record, thread: Thread) -> None:
        if not self._changes:
            # The TDP MMU's are known from their changes.
            spte: SetSpte = record.fields
            if spte.level > 1 and self._fmt.is_large(spte.spte):
                self._huge.installed(self._shadow_roots, "x" in spte.reading, record)

    # --- what is missing --------------------------------------------------------------------------

    def _lost(self, record: Lost) -> None:
        count = "an unknown number of" if record.count is None else str(record.count)
        self._problem(record.line, f"CPU {record.cpu} lost {count} events")
        self._facts.lost = True
        self._resume(record.line + PATIENCE + 1)
        self._flushes.forget_all()
        self._pages.lost()
        for thread in self._threads.values():
            thread.debts, thread.unmap, thread.torn, thread.zap_sp = [], None, None, None
            thread.context = UNKNOWN

    def _problem(self, line: int, what: str) -> None:
        self._more_problems += len(self._problems) >= MOST_PROBLEMS
        if len(self._problems) < MOST_PROBLEMS:
            self._problems.append((line, what))
        self._pages.lost()
