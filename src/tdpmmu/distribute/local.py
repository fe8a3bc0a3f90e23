"""The engine ``local``: one task after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

from tdpmmu.distribute.executor import R, T


class LocalExecutor:
    """Needs nothing, and shows tracebacks, profiles and debuggers as they are."""

    workers = 1

    def map_unordered(
        self,
        function: Callable[[T], R],
        tasks: Iterable[T],
        done: Callable[[int, R], None] | None = None,
    ) -> list[R]:
        """See :class:`~tdpmmu.distribute.executor.Executor`."""
        results = []
        for index, task in enumerate(tasks):
            result = function(task)
            results.append(result)
            if done is not None:
                done(index, result)
        return results

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
