"""The engine ``dask``: an embedded cluster on this machine, or a scheduler that is running.

Dask was chosen over Ray because it is pure Python (one wheel for every platform and release) and
because its embedded cluster starts in a second and is the same code as one of many machines.
"""

from __future__ import annotations

import logging
from typing import Any

from tdpmmu.distribute.executor import DistributeError, PoolExecutor
from tdpmmu.distribute.sources import sources

MISSING = "Dask is needed for that: pip install 'tdpmmu[dask]'"

PATIENCE = 20
"""Seconds to wait for a scheduler, and for its first worker."""


class DaskExecutor(PoolExecutor):
    """A Dask cluster."""

    def __init__(self, library: Any, client: Any, cluster: Any, workers: int) -> None:
        deaths = (library.KilledWorker, library.comm.CommClosedError)
        super().__init__(client.get_executor(pure=False), workers, deaths)
        self._client = client
        self._cluster = cluster

    def close(self) -> None:
        """Leave the cluster; end it, too, if it is our own."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def embedded(workers: int) -> DaskExecutor:
    """So many worker processes here, which end with this one.  Needs no server and no network."""
    distributed = _library()
    cluster = distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        host="127.0.0.1",
        silence_logs=logging.CRITICAL,
    )
    return DaskExecutor(distributed, distributed.Client(cluster), cluster, workers)


def running(address: str) -> DaskExecutor:
    """The workers of a running scheduler, which must have these very sources."""
    distributed = _library()
    try:
        client = distributed.Client(address, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise DistributeError(f"no Dask scheduler at {address}: {_line(error)}") from None
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
        theirs = client.run(sources)
        slots = sum(client.nthreads().values())
    except TimeoutError:
        client.close()
        raise DistributeError(f"the Dask scheduler at {address} has no workers") from None
    except ImportError as error:
        client.close()
        raise DistributeError(f"a worker of {address} cannot run tdpmmu: {error}") from None
    ours = sources()
    for worker, digest in sorted(theirs.items()):
        if digest != ours:
            client.close()
            raise DistributeError(
                f"{worker} has another version of tdpmmu or of Python; "
                "install the same one on all machines"
            )
    return DaskExecutor(distributed, client, None, slots)


def _library() -> Any:
    try:
        import distributed
    except ImportError:
        raise DistributeError(MISSING) from None
    # What goes wrong is raised; a log beside it would only tear the progress line.
    for name in ("distributed", "distributed.client"):  # each has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return distributed


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
