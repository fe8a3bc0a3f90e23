"""A patch in a file: recovery that breaks the lock first and flushes afterwards.

    tdpmmu check examples/my_patch.py

It is wrong, and the check says so (exit code 1).  With the two lines in the kernel's order it
holds.

A patch is a class that derives from the layer of the MMU whose method it changes (here
``tdpmmu.mmu.nx_recovery``) and overrides that method.  It is laid over the kernel that ``--kernel``
names (5.12 unless told otherwise), together with any ``--patch``.  ``super()`` works.
"""

from tdpmmu.events.records import Yielded
from tdpmmu.machine.op import Emit
from tdpmmu.mmu.nx_recovery import NxRecovery
from tdpmmu.mmu.shadow import InvalidList


class FlushAfterLockBreak(NxRecovery):
    """Somebody waits for mmu_lock: let him have it before the slow flush."""

    async def recovery_lock_break(self, invalid_list: InvalidList, flush: bool) -> None:
        # The kernel has these two the other way round.  Every ``await`` is a place where another
        # CPU may come in between; here it comes in while a flush is owed and nobody holds the lock.
        await self.kvm.mmu_lock.cond_resched_write()
        await self.remote_flush_or_zap(invalid_list, flush)
        await Emit(Yielded("kvm_recover_nx_lpages"))
