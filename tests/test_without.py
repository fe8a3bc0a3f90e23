"""Kernels with one merged change taken out: it shows in what one thread does, nobody around."""

import pytest

from tdpmmu.events.records import FlushCompleted, LockTaken, NxPageRecovered, SpteChanged
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.scenarios.script import Script
from tdpmmu.versions.registry import UnknownName, named
from tdpmmu.worlds.sequential import run


def worker_alone(kernel):
    built = Script(threads="worker: recover", setup="x0").build(named(kernel))
    (number,) = [n for n, t in enumerate(built.machine.threads) if t.name == "worker"]
    return run(built.machine.threads[number].start(), built.machine.initial, number)[1]


@pytest.mark.parametrize(
    ("kernel", "mode"), [("6.18", "read"), ("6.18+recover-under-write-lock", "write")]
)
def test_which_lock_pages_are_recovered_under(kernel, mode):
    events = worker_alone(kernel)
    at = next(n for n, event in enumerate(events) if isinstance(event, NxPageRecovered))
    taken = [e for e in events[:at] if isinstance(e, LockTaken) and e.lock == "mmu_lock"]
    assert taken[-1].mode == mode
    assert any(isinstance(event, FlushCompleted) for event in events[at:])


@pytest.mark.parametrize(
    ("kernel", "first"),
    [("6.12", FlushCompleted), ("6.12+process-before-unfreezing", SpteChanged)],
)
def test_what_comes_first_after_an_entry_is_frozen(kernel, first):
    """The flush, or what hangs below the entry."""
    built = Script(threads="vcpu0: r0", setup="x0").build(named(kernel))
    mmu, kvm = built.mmu, built.kvm

    async def zap():
        await kvm.mmu_lock.read_lock()
        root = await mmu.first_root()
        it = TdpIter(kvm, root, 0, 1, min_level=2)
        while await it.next_pte():
            if it.level == 2:
                break
        assert await mmu.zap_spte_atomic(it)

    _, events = run(zap(), built.machine.initial, 0)
    frozen = kvm.format.removed
    at = next(n for n, e in enumerate(events) if isinstance(e, SpteChanged) and e.new == frozen)
    after = [e for e in events[at + 1 :] if isinstance(e, SpteChanged | FlushCompleted)]
    assert isinstance(after[0], first)


def test_a_patch_of_another_kernel_is_refused():
    with pytest.raises(UnknownName, match=r"is for kernel 6\.18, not 6\.12"):
        named("6.12+recover-under-write-lock")
    with pytest.raises(UnknownName, match=r"unknown patch 'no-such'"):
        named("6.12+no-such")
    assert named("6.18+recover-under-write-lock").version == "6.18"
