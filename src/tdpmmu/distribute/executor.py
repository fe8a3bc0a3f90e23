"""What every engine does: tasks in, results out in the order of the tasks.

Tasks end in whatever order they like; nothing that is returned shows it.  If tasks fail, the
exception is that of the first of them in order, whoever failed first in time: so a run with one
worker and a run with a hundred say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from concurrent.futures import Executor as Pool
from itertools import islice
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Tasks handed out per worker: enough to keep it busy, few enough to be rid of on Ctrl-C."""


class DistributeError(Exception):
    """An engine is missing, cannot be reached or has died: one line that says so."""


class Executor(Protocol):
    """Where tasks run."""

    workers: int
    """How many tasks run at once."""

    def map_unordered(
        self,
        function: Callable[[T], R],
        tasks: Iterable[T],
        done: Callable[[int, R], None] | None = None,
    ) -> list[R]:
        """``function(task)`` for each task; the results, in the order of the tasks.

        ``function`` is a module's own, tasks and results can be pickled.  ``tasks`` is read no
        further ahead than workers need.  ``done(index, result)`` is called here, one call at a
        time, as soon as each has ended.  Raises what the first task in order raised that failed;
        later ones may then never begin.
        """

    def close(self) -> None:
        """Give everything back; tasks that still run are not waited for."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class PoolExecutor:
    """An engine made of one of Python's executors.  ``deaths``: what it raises when workers die.

    ``give_up`` ends what still runs, when an exception (Ctrl-C, say) has made it useless.
    """

    def __init__(
        self,
        pool: Pool,
        workers: int,
        deaths: tuple[type[Exception], ...],
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.workers = workers
        self._pool = pool
        self._deaths = deaths
        self._give_up = give_up

    def map_unordered(
        self,
        function: Callable[[T], R],
        tasks: Iterable[T],
        done: Callable[[int, R], None] | None = None,
    ) -> list[R]:
        """See :class:`Executor`."""
        results: dict[int, R] = {}
        failures: dict[int, BaseException] = {}
        running: dict[Future[R], int] = {}
        todo = enumerate(tasks)
        try:
            while True:
                if not failures:
                    for index, task in islice(todo, AHEAD * self.workers - len(running)):
                        running[self._pool.submit(function, task)] = index
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    error = future.exception()
                    if error is not None:
                        failures[index] = error
                        continue
                    results[index] = future.result()
                    if done is not None:
                        done(index, results[index])
                if failures:
                    # Only an earlier one can still matter.
                    first = min(failures)
                    for future, index in [*running.items()]:
                        if index > first:
                            future.cancel()
                            del running[future]
        except CancelledError:  # and not by us
            raise DistributeError("the workers are gone, or their scheduler is") from None
        except self._deaths as error:  # even to hand a task out takes a pool that lives
            raise DistributeError(_death(error)) from None
        finally:
            for future in running:
                future.cancel()
        if failures:
            failure = failures[min(failures)]
            if isinstance(failure, self._deaths):
                raise DistributeError(_death(failure)) from None
            raise failure
        return [results[index] for index in range(len(results))]

    def close(self) -> None:
        """Give the workers back."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            self._give_up()
        self.close()


def _death(error: BaseException) -> str:
    told = (str(error) or type(error).__name__).splitlines()[0]
    return f"a worker died (killed, or out of memory): {told}"
