"""Z29: invalidated roots are left to a worker for which the memslot update does not wait."""

from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_1 import Linux_6_1


class LeavesRootsToAWorker(Linux_6_1):
    """The worker has not come yet when the update returns; here it comes when the VM ends."""

    async def zap_all_fast(self) -> None:
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        await self.invalidate_all_roots()
        await self.reload_remote_mmus()
        await self.zap_all_shadow_pages()
        await kvm.mmu_lock.write_unlock()


ENTRY = Entry(
    id="z29",
    title="KVM: x86/mmu: Stop zapping invalidated TDP MMU roots asynchronously",
    commit="0df9dab891ff",
    fixed="6.6",
    kernel="6.12",
    scenario=Script(threads="vcpu0: r2; ioctl: slot-delete:0", setup="w0", slots="0-1 2-3"),
    prop="leftover",
    mechanism=(
        "Invalidated roots were queued to an unbound worker that zaps them later. Unless the "
        "memslot update waits for it, the update returns while SPTEs still map the slot's pages."
    ),
    patch=LeavesRootsToAWorker,
)
