"""Z47: memslots are swapped between the start and the end of an invalidation."""

from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_1 import Linux_6_1


class SwapsAtAnyTime(Linux_6_1):
    """Nobody counts the invalidations under way."""

    async def invalidation_begins(self) -> None:
        return

    async def invalidation_ends(self) -> None:
        return

    async def block_invalidations(self) -> None:
        await self.kvm.mn_invalidate_lock.lock()


ENTRY = Entry(
    id="z47",
    title="KVM: Block memslot updates across range_start() and range_end()",
    commit="52ac8b358b0c",
    fixed="5.15",
    kernel="6.12",
    scenario=Script(threads="host: unmap:2; ioctl: slot-create:2-3", setup="w0", slots="0-1"),
    prop="kernel-warning",
    mechanism=(
        "An invalidation counts itself in progress only if a slot overlaps its range. With other "
        "slots at its end than at its start the count goes up without coming down, or down "
        "without having gone up."
    ),
    patch=SwapsAtAnyTime,
)
