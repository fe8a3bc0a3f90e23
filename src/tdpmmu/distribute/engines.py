"""Choosing an engine by name."""

from __future__ import annotations

from tdpmmu.distribute.executor import DistributeError, Executor

LOCAL, PROCESSES, DASK = "local", "processes", "dask"
ENGINES = (LOCAL, PROCESSES, DASK)

EXPECTED = "local, processes, dask, or the address of a Dask scheduler, as tcp://host:8786"

MOST_WORKERS = 1024
"""All of them begin at once, as processes of one machine."""


def require_engine(engine: str) -> None:
    """DistributeError if there is no engine of that name."""
    if engine not in ENGINES and "://" not in engine:
        raise DistributeError(f"{engine!r} is no engine: expected {EXPECTED}")


def open_executor(engine: str = PROCESSES, workers: int = 0) -> Executor:
    """An engine; close it, or use it in ``with``.

    ``engine``: ``local`` (this process), ``processes``, ``dask`` (an embedded cluster), or the
    address of a running Dask scheduler.  ``workers``: 0 is one for each core; a running cluster has
    the workers that it has.  DistributeError if it is not to be had.
    """
    if not 0 <= workers <= MOST_WORKERS:
        raise DistributeError(
            f"{workers} workers: expected 1 to {MOST_WORKERS}, or 0 for all cores"
        )
    if engine == LOCAL:
        from tdpmmu.distribute.local import LocalExecutor

        return LocalExecutor()
    if "://" in engine:
        from tdpmmu.distribute.cluster import running

        return running(engine)
    require_engine(engine)
    from tdpmmu.distribute.processes import cores

    workers = workers or cores()
    if engine == DASK:
        from tdpmmu.distribute.cluster import embedded

        return embedded(workers)
    if workers == 1:
        from tdpmmu.distribute.local import LocalExecutor

        return LocalExecutor()
    from tdpmmu.distribute.processes import processes

    return processes(workers)
