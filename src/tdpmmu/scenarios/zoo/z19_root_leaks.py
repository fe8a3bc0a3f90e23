"""Z19: a walk over the roots drops the last reference to one and does not free it."""

from tdpmmu.arch.table import TablePage
from tdpmmu.machine.op import Add, Read
from tdpmmu.mmu.roots import Roots
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class PutsWithoutFreeing(Roots):
    """The walk's own reference is put by a bare decrement."""

    async def next_root(self, root: TablePage) -> TablePage | None:
        roots = await Read(self.kvm.tdp_mmu_roots)
        after = roots.index(root) + 1 if root in roots else len(roots)
        await Add(root.root_count, -1)
        if after >= len(roots):
            return None
        await self.get_root(roots[after])
        found: TablePage = roots[after]
        return found


ENTRY = Entry(
    id="z19",
    title="KVM: x86/mmu: Ensure TDP MMU roots are freed after yield",
    commit="a889ea54b3da",
    fixed="5.11",
    kernel="5.12",
    scenario=Script(threads="vcpu0: unload; mtrr: zap-range:0-3", setup="w0"),
    prop="refcount",
    mechanism=(
        "A zap that may yield takes a reference to the root it walks. If the last vCPU gives the "
        "root up while the lock is away, the zap holds the last reference and drops it without "
        "freeing anything: the root stays on the list with a count of zero."
    ),
    patch=PutsWithoutFreeing,
    kernels=("5.13", "6.1", "6.12", "6.18"),
)
