"""Z15, twice: the NX recovery worker is woken too early, or not at all."""

from tdpmmu.events.records import Warned
from tdpmmu.machine.op import Emit, Read
from tdpmmu.mmu.nx_worker import NxWorker
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_18 import Linux_6_18


class WakesWhoIsNotThere(Linux_6_18):
    """Every VM on the list is thought to have its worker."""

    async def wake_worker(self) -> None:
        if not await Read(self.kvm.nx_worker_created):
            await Emit(Warned("NULL pointer dereference in vhost_task_wake()"))
            return
        await super().wake_worker()


class ComparesRawPeriods(NxWorker):
    """0, the default, is taken for the shortest period there is."""

    def must_wake(self, old: int, new: int) -> bool:
        return new < old


ENTRIES = (
    Entry(
        id="z15a",
        title="KVM: x86/mmu: Ensure NX huge page recovery thread is alive before waking",
        commit="43fb96ae7855",
        fixed="6.14",
        kernel="6.18",
        scenario=Script(threads="vcpu0: first-run; admin: set-period:1000"),
        prop="kernel-warning",
        mechanism=(
            "The worker is made when a vCPU first runs, but its VM is on the list before. A write "
            "to the module's parameter in between wakes a thread that does not exist."
        ),
        patch=WakesWhoIsNotThere,
    ),
    Entry(
        id="z15b",
        title='KVM: x86/mmu: Handle "default" period when selectively waking kthread',
        commit="f47491d7f30b",
        fixed="5.16",
        kernel="6.12",
        scenario=Script(threads="vcpu0: first-run; worker: nx-sleep; admin: set-period:1000"),
        prop="deadlock",
        mechanism=(
            "A period of 0 stands for an hour divided by the ratio. Compared as it is, every new "
            "period is longer, so the worker sleeps on after the admin has asked for a shorter one."
        ),
        patch=ComparesRawPeriods,
        # In 6.18 a worker that is not there yet is not woken: it reads the period when it starts.
        kernels=("6.1",),
    ),
)
