"""Engines: the same results in the same order, the same failure, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpmmu.distribute.engines import open_executor
from tdpmmu.distribute.executor import DistributeError, Executor, PoolExecutor
from tdpmmu.worlds.explore.fast.patience import Patience


def late(task: tuple[int, float]) -> int:
    """A task whose number says nothing of when it ends."""
    number, seconds = task
    time.sleep(seconds)
    return number * number


def refuse_odd(number: int) -> int:
    """Odd tasks fail, later ones sooner."""
    if number % 2:
        time.sleep(0.2 / number)
        raise ValueError(f"task {number}")
    return number


def pid(_: int) -> int:
    """Who did it."""
    time.sleep(0.05)
    return os.getpid()


def die(number: int) -> int:
    """As when the kernel is out of memory."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.fixture(scope="module", params=["local", "processes", "dask", "address"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param in ("dask", "address"):
        distributed = pytest.importorskip("distributed")
    if request.param == "address":
        with distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0", host="127.0.0.1"
        ) as cluster:
            assert cluster.scheduler_address.startswith("tcp://")
            with open_executor(cluster.scheduler_address) as opened:
                assert opened.workers == 2
                yield opened
        return
    with open_executor(request.param, 2) as opened:
        yield opened


def test_results_come_in_the_order_of_the_tasks(executor: Executor) -> None:
    tasks = [(number, 0.03 if number % 5 == 0 else 0.0) for number in range(20)]
    told: dict[int, int] = {}
    results = executor.map_unordered(late, tasks, told.__setitem__)
    assert results == [number * number for number in range(20)]
    assert told == dict(enumerate(results))


def test_the_first_failure_in_order_is_raised(executor: Executor) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match=r"task 1$"):
            executor.map_unordered(refuse_odd, [0, 2, 1, 3, 5, 7, 9, 11])


def test_tasks_are_not_read_far_ahead(executor: Executor) -> None:
    read = 0

    def tasks() -> Iterator[tuple[int, float]]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield (number, 0.0)

    def enough(index: int, result: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.map_unordered(late, tasks(), enough)
    assert read < 50
    assert executor.map_unordered(late, [(2, 0.0)]) == [4]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=30))
def test_any_tasks(numbers: list[int]) -> None:
    with open_executor("processes", 2) as executor:
        results = executor.map_unordered(late, [(n, n / 1e4) for n in numbers])
    assert results == [n * n for n in numbers]


def test_all_workers_work() -> None:
    with open_executor("processes", 2) as executor:
        found = set(executor.map_unordered(pid, range(12)))
    assert len(found) == 2
    assert os.getpid() not in found


class Gone(ThreadPoolExecutor):
    """What is left of a cluster whose scheduler was killed."""

    def submit(self, *_: object, **__: object) -> Future[int]:  # type: ignore[override]
        future: Future[int] = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future


def test_a_scheduler_that_is_killed_is_an_error_of_one_line() -> None:
    with pytest.raises(DistributeError, match=r"the workers are gone, or their scheduler is$"):
        PoolExecutor(Gone(), 1, ()).map_unordered(refuse_odd, [0, 2])


def end_myself(number: int) -> int:
    """As a search that would give what it has found until then."""
    with Patience() as patience:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        patience.heed()
    return number


def test_a_worker_that_is_asked_to_end_gives_no_half_result() -> None:
    died = pytest.raises(DistributeError, match="a worker died")
    with open_executor("processes", 2) as executor, died:
        executor.map_unordered(end_myself, range(4))


@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_a_dead_worker_is_an_error_of_one_line(engine: str) -> None:
    if engine == "dask":
        pytest.importorskip("distributed")
    with open_executor(engine, 2) as executor, pytest.raises(DistributeError) as found:
        executor.map_unordered(die, range(8))
    assert str(found.value).startswith("a worker died")
    assert "\n" not in str(found.value)


def test_nobody_waits_for_workers_after_ctrl_c() -> None:
    def interrupt(index: int, result: object) -> None:
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), open_executor("processes", 2) as executor:
        executor.map_unordered(time.sleep, [0, 300, 300], interrupt)
    assert time.monotonic() - begun < 60


def test_workers_end_with_a_parent_that_is_killed() -> None:
    script = (
        "import sys; sys.path.insert(0, 'tests'); import test_distribute as t\n"
        "pool = t.open_executor('processes', 2)\n"
        "print(*set(pool.map_unordered(t.pid, range(12))), flush=True)\n"
        "pool.map_unordered(t.late, [(1, 60.0)] * 4)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    deadline = time.monotonic() + 10
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, workers))


def _alive(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("engine", "workers", "expected"),
    [
        ("ray", 0, "'ray' is no engine: expected local, processes, dask, or the address"),
        ("processes", -1, "-1 workers: expected 1 to 1024, or 0 for all cores"),
        ("processes", 100_000, "100000 workers: expected 1 to 1024, or 0 for all cores"),
        ("nonsense://x", 0, "no Dask scheduler at nonsense://x"),
    ],
)
def test_bad_engines(engine: str, workers: int, expected: str) -> None:
    if "://" in engine:
        pytest.importorskip("distributed")
    with pytest.raises(DistributeError) as found:
        open_executor(engine, workers)
    assert str(found.value).startswith(expected)
    assert "\n" not in str(found.value)


def test_dask_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DistributeError, match=r"pip install 'tdpmmu\[dask\]'"):
        open_executor("dask")


def test_other_sources_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    from tdpmmu.distribute import cluster as ours

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1"
    ) as cluster:
        monkeypatch.setattr(ours, "sources", lambda: f"of process {os.getpid()}")
        with pytest.raises(DistributeError, match="another version of tdpmmu"):
            ours.running(cluster.scheduler_address)
