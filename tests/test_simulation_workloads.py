"""What guests touch: patterns, phases, published measurements, the host's work."""

import numpy as np
import pytest

from tdpmmu.simulation.guest import (
    EXEC,
    WRITE,
    DirtyLog,
    GetDirtyLog,
    Guest,
    Touches,
    Unmap,
)
from tdpmmu.simulation.workloads.host import HostWork, merged
from tdpmmu.simulation.workloads.patterns import REGION, Pages, strew, zipf_ranks
from tdpmmu.simulation.workloads.phases import Phase, PhasedWorkload
from tdpmmu.simulation.workloads.published import TIMED, DisableDirtyLogging, NxHugePagesPerfTest

GUEST = Guest(1 << 30, 4)


def rng(seed=1):
    return np.random.default_rng(seed)


def gather(batches, count):
    """The first touches as columns."""
    taken = []
    while sum(len(one.gfn) for one in taken) < count:
        one = next(batches, None)
        if one is None:
            break
        taken.append(one)
    return Touches(
        *(np.concatenate([getattr(t, n) for t in taken]) for n in ("think_ns", "gfn", "access"))
    )


@pytest.mark.parametrize("count", [1, 2, 7, 512, 262_144])
def test_strewing_is_a_permutation(count):
    assert sorted(strew(np.arange(count, dtype=np.int64), count).tolist()) == list(range(count))


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_zipf_has_its_weights(exponent):
    """Ten times the rank has 10**-exponent of the weight."""
    ranks = zipf_ranks(rng().random(400_000), 1 << 20, exponent)
    assert 0 <= ranks.min() <= ranks.max() < 1 << 20
    near = np.count_nonzero((ranks >= 100) & (ranks < 200))
    far = np.count_nonzero((ranks >= 1000) & (ranks < 1100))
    assert near / far == pytest.approx(7.0**exponent, rel=0.35)


def test_uniform_and_sequential():
    uniform = Pages("uniform", 1000, 4).draw(rng(), 0, 0, 50_000)
    counts = np.bincount(uniform, minlength=1000)
    assert counts.min() > 20
    walk = Pages("sequential", 1000, 4).draw(rng(), 2, 240, 20)
    assert walk.tolist() == [*range(740, 750), *range(500, 510)]


def test_phases_follow_each_other_and_end():
    first = Phase(duration_ns=10**9, visits_per_s=2000, writes=1.0, executes=0.0)
    second = Phase(duration_ns=10**9, visits_per_s=500, writes=0.0, executes=1.0, executed=0.01)
    touches = gather(PhasedWorkload(GUEST, (first, second)).touches(0, rng()), 10**9)
    at = np.cumsum(touches.think_ns)
    assert at[-1] < 2.05e9
    early = at < 10**9
    assert np.count_nonzero(early) == pytest.approx(2000, rel=0.1)
    assert set(touches.access[early]) == {WRITE}
    assert np.count_nonzero(~early) == pytest.approx(500, rel=0.15)
    late = touches.access[np.searchsorted(at, 1.1e9) :]
    assert set(late) == {EXEC}


def test_code_stays_in_its_regions_and_drifts():
    still = Phase(executes=1.0, writes=0.0, executed=0.02, visits_per_s=1000)
    code = gather(PhasedWorkload(GUEST, (still,)).touches(0, rng()), 8000)
    regions = set((code.gfn // REGION).tolist())
    assert len(regions) == round(0.02 * GUEST.pages / REGION)
    moving = Phase(executes=1.0, writes=0.0, executed=0.02, visits_per_s=1, drift=1.0)
    later = gather(PhasedWorkload(GUEST, (moving,)).touches(0, rng()), 8000)
    hour = np.searchsorted(np.cumsum(later.think_ns), 3600 * 10**9)
    then = set((later.gfn[hour : hour + 600] // REGION).tolist())
    assert not then <= regions


def test_the_same_numbers_give_the_same_touches():
    made = [gather(PhasedWorkload(GUEST, (Phase(),)).touches(1, rng(7)), 5000) for _ in range(2)]
    assert (made[0].gfn == made[1].gfn).all()
    assert (made[0].think_ns == made[1].think_ns).all()


def test_the_perf_test_executes_even_and_times_odd_gigabytes():
    guest = Guest(2 << 30, 1)
    made = list(NxHugePagesPerfTest(guest, 30, 100, 80, 20).touches(0, rng()))
    pages = np.repeat(np.arange(1 << 19), 2)
    assert np.concatenate([one.gfn for one in made]).tolist() == pages.tolist()
    for one, kinds, think, tags in (
        (made[511], [WRITE, EXEC], [30, 100], [0, 0]),
        (made[512], [WRITE, WRITE], [80, 20], [TIMED, 0]),
    ):
        assert one.access.tolist() == 512 * kinds
        assert one.think_ns.tolist() == 512 * think
        assert one.tag.tolist() == 512 * tags


def test_each_2m_of_the_perf_test_begins_with_a_page_of_the_guests_own_tables():
    guest = Guest(2 << 30, 1, mapped=False, small_bytes=4 << 20)
    made = list(NxHugePagesPerfTest(guest, 30, 100, 80, 20).touches(0, rng()))
    for region, one in enumerate(made):
        assert one.gfn[:2].tolist() == [guest.main_pages + region, region * REGION]
        assert one.access[0] == WRITE
        timed = region >= 512
        assert one.think_ns[:4].tolist() == ([80, 0, 20, 80] if timed else [30, 0, 100, 30])
        assert one.tag[:4].tolist() == ([TIMED, TIMED, 0, TIMED] if timed else [0, 0, 0, 0])
    assert region == 1023


def test_vcpus_write_their_own_share_while_logging_ends():
    work = DisableDirtyLogging(GUEST, off_ns=10**9)
    share = GUEST.pages // 4
    touches = gather(work.touches(3, rng()), share + 10)
    assert touches.gfn[0] == 3 * share
    assert touches.gfn.min() == 3 * share
    assert touches.gfn.max() < 4 * share
    assert list(work.host_events(rng())) == [(0, DirtyLog(True)), (10**9, DirtyLog(False))]


def test_host_work_is_merged_by_time():
    work = (
        HostWork("numa-balancing", at_ns=5, every_ns=10, times=3),
        HostWork("dirty-log", at_ns=7, every_ns=10, times=2),
    )
    events = list(merged(GUEST, work, rng()))
    assert [at for at, _ in events] == [5, 7, 15, 17, 25, 27, 37]
    unmaps = [event for _, event in events if isinstance(event, Unmap)]
    assert all(one.gfn % REGION == 0 and one.pages == REGION for one in unmaps)
    logs = [event for _, event in events if not isinstance(event, Unmap)]
    assert logs == [DirtyLog(True), GetDirtyLog(), GetDirtyLog(), DirtyLog(False)]
