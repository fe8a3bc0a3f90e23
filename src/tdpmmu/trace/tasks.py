"""A track for each task of a trace: page faults and functions as slices inside each other."""

from __future__ import annotations

from tdpmmu.timeline.builder import Details, Timeline
from tdpmmu.trace.records import Record

_FAULT = ""
"""Stands for a page fault among the functions that a task is in."""


_MOST_LATER = 1000
"""How many instants a fault may wait for its next event before it counts as over."""


class _Task:
    """``later`` are instants since ``last``, of which it is not known if the fault goes on."""

    __slots__ = ("inside", "last", "later", "track")

    def __init__(self, track: int) -> None:
        self.track = track
        self.inside: list[str] = []
        self.last = 0
        self.later: list[tuple[int, str, Details]] = []


class TaskTracks:
    """Tracks are made when their task first does something.

    Tasks are told apart by pid, the idle tasks, which all have 0, by their CPU.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._room = timeline.track("tasks")
        self._tasks: dict[tuple[int, int], _Task] = {}

    def fault(self, record: Record, now: int, name: str, details: Details) -> None:
        """A page fault begins; the one before it is over."""
        self.end_fault(record)
        task = self._task(record)
        task.inside.append(_FAULT)
        self._goes_on(task, now)
        self._timeline.begin(task.track, now, name, details)

    def goes_on(self, record: Record, now: int) -> None:
        """If the task is in a page fault, this belongs to it."""
        task = self._tasks.get(_key(record))
        if task is not None:
            self._goes_on(task, now)

    def end_fault(self, record: Record) -> None:
        """The task's page fault, if any, was over with the last thing that belonged to it."""
        task = self._tasks.get(_key(record))
        if task is not None:
            self._end_fault(task)

    def enter(self, record: Record, now: int, function: str, details: Details) -> None:
        """A function begins."""
        task = self._task(record)
        self._goes_on(task, now)
        task.inside.append(function)
        self._timeline.begin(task.track, now, function, details)

    def leave(self, record: Record, now: int, function: str, details: Details) -> None:
        """It returns, and with it all that it called; nothing if nobody saw it begin."""
        task = self._tasks.get(_key(record))
        if task is not None and function in task.inside:
            self._goes_on(task, now)
            self._leave(task, function, now, details)

    def instant(self, record: Record, now: int, name: str, details: Details) -> None:
        """Something that the task does."""
        task = self._task(record)
        task.later.append((now, name, details))
        if _FAULT not in task.inside:
            self._show_later(task)
        elif len(task.later) > _MOST_LATER:
            self._end_fault(task)

    def finish(self) -> None:
        """The trace is over."""
        for task in self._tasks.values():
            self._end_fault(task)

    def _end_fault(self, task: _Task) -> None:
        if _FAULT in task.inside:
            self._leave(task, _FAULT, task.last, None)
            self._show_later(task)

    def _goes_on(self, task: _Task, now: int) -> None:
        self._show_later(task)
        task.last = now

    def _show_later(self, task: _Task) -> None:
        for time, name, details in task.later:
            self._timeline.instant(task.track, time, name, details)
        task.later.clear()

    def _leave(self, task: _Task, what: str, now: int, details: Details | None) -> None:
        while True:
            inner = task.inside.pop()
            self._timeline.end(task.track, now, details if inner == what else None)
            if inner == what:
                return

    def _task(self, record: Record) -> _Task:
        task = self._tasks.get(_key(record))
        if task is None:
            cpu = "" if record.pid else f" on CPU {record.cpu}"
            track = self._timeline.track(f"{record.task}-{record.pid}{cpu}", self._room)
            task = self._tasks[_key(record)] = _Task(track)
        return task


def _key(record: Record) -> tuple[int, int]:
    return record.pid, 0 if record.pid else record.cpu
