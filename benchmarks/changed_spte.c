// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the kernel's own `handle_changed_spte()` takes for each entry of a table that is zapped.
 *
 * Debian's 6.12 module is linked into a program, and the function called as `handle_removed_pt()`
 * does (the loop here is ours): with the write lock each entry is read, looked at, and written; with
 * the read lock exchanged.  Pages are not marked dirty and accessed, which 6.13 and later do not:
 * the two functions that do so return at once.
 *
 *     objcopy --globalize-symbol=handle_changed_spte --weaken-symbol=kvm_set_pfn_dirty \
 *             --weaken-symbol=kvm_set_pfn_accessed kvm.ko kvm.o
 *     cc -O2 -static -no-pie -o changed_spte benchmarks/changed_spte.c kvm.o \
 *             -Wl,--unresolved-symbols=ignore-all
 *     ./changed_spte [MiB of tables]
 *
 * Offsets in struct kvm are those of 6.12.117+deb12-cloud-amd64.  Tables are as in table_scan.c.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <x86intrin.h>

enum { ENTRIES = 512, SAMPLES = 4000, MMIO_VALUE = 0x1300, PAGES_4K = 0x1268 };

/* What the kernel patches away on a CPU that needs neither. */
__asm__(".globl __fentry__, __x86_return_thunk, kvm_set_pfn_dirty, kvm_set_pfn_accessed\n"
	"__fentry__: __x86_return_thunk: kvm_set_pfn_dirty: kvm_set_pfn_accessed: ret\n");

void handle_changed_spte(void *kvm, int as_id, uint64_t gfn, uint64_t old_spte, uint64_t new_spte,
			 int level, bool shared);
bool spte_has_volatile_bits(uint64_t spte);
extern uint64_t shadow_mmio_mask, shadow_dirty_mask, shadow_accessed_mask;
extern uint64_t shadow_mmu_writable_mask, shadow_host_writable_mask;
uint64_t physical_mask = (1ull << 46) - 1;

static const uint64_t FROZEN = 0x80000000000005a0, PRESENT = 0x800;
static const uint64_t LEAF = 0x0600000000000b77; /* EPT, 4K, rwx, accessed, dirty, writable */

static char kvm[0x4000] __attribute__((aligned(64)));
static uint64_t took[SAMPLES];

static int by_size(const void *a, const void *b)
{
	uint64_t one = *(const uint64_t *)a, other = *(const uint64_t *)b;

	return (one > other) - (one < other);
}

static double median(void)
{
	qsort(took, SAMPLES, sizeof(*took), by_size);
	return took[SAMPLES / 2];
}

static uint64_t leaf(int i)
{
	return LEAF | (uint64_t)(i + ENTRIES) << 12;
}

static void zap(volatile uint64_t *table, bool shared)
{
	for (int i = 0; i < ENTRIES; i++) {
		uint64_t old;

		if (shared) {
			old = __atomic_exchange_n(table + i, FROZEN, __ATOMIC_SEQ_CST);
		} else {
			old = table[i];
			if (!(old & PRESENT))
				continue;
			if (spte_has_volatile_bits(old))
				old = __atomic_exchange_n(table + i, FROZEN, __ATOMIC_SEQ_CST);
			else
				table[i] = FROZEN;
		}
		handle_changed_spte(kvm, 0, ENTRIES + i, old, FROZEN, 1, shared);
	}
}

static double cycles_per_tick(void)
{
	for (int n = 0; n < SAMPLES; n++) {
		uint64_t from = __rdtsc(), x = from;

		for (int i = 0; i < 1000; i++)
			__asm__ volatile("add $1, %0" : "+r"(x));
		took[n] = __rdtsc() - from;
	}
	return 1000 / median();
}

static double ticks_per_ns(void)
{
	struct timespec from, to;
	uint64_t ticks;
	double ns;

	clock_gettime(CLOCK_MONOTONIC, &from);
	ticks = __rdtsc();
	do {
		clock_gettime(CLOCK_MONOTONIC, &to);
		ns = (to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec);
	} while (ns < 2e8);
	return (__rdtsc() - ticks) / ns;
}

int main(int argc, char **argv)
{
	uint64_t bytes = (argc > 1 ? strtoull(argv[1], NULL, 0) : 2048) << 20, tables = bytes >> 12;
	uint64_t *pool = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			      0);
	double cycles = cycles_per_tick(), rate = ticks_per_ns();
	uint64_t seed = 88172645463325252u, zapped = 0;

	if (!tables || pool == MAP_FAILED) {
		fprintf(stderr, "changed_spte: no %llu MiB of memory\n",
			(unsigned long long)bytes >> 20);
		return 2;
	}
	madvise(pool, bytes, MADV_HUGEPAGE);
	shadow_dirty_mask = 1 << 9;
	shadow_accessed_mask = 1 << 8;
	shadow_mmu_writable_mask = 1ull << 58;
	shadow_host_writable_mask = 1ull << 57;
	shadow_mmio_mask = 7;
	*(uint64_t *)(kvm + MMIO_VALUE) = 6;
	for (uint64_t i = 0; i < bytes / 8; i++)
		pool[i] = leaf(i % ENTRIES);
	for (int cold = 0; cold < 2; cold++)
		for (int shared = 0; shared < 2; shared++) {
			for (int n = 0; n < SAMPLES; n++) {
				uint64_t *table = pool, from;

				seed ^= seed << 13;
				seed ^= seed >> 7;
				seed ^= seed << 17;
				if (cold)
					table += seed % tables * ENTRIES;
				_mm_mfence();
				_mm_lfence();
				from = __rdtsc();
				zap(table, shared);
				_mm_lfence();
				took[n] = __rdtsc() - from;
				for (int i = 0; i < ENTRIES; i++)
					table[i] = leaf(i);
				zapped += ENTRIES;
			}
			printf("%s, %s lock: %5.2f ns an entry, %.1f cycles\n",
			       cold ? "from memory" : "in L1      ", shared ? "read " : "write",
			       median() / ENTRIES / rate, median() / ENTRIES * cycles);
		}
	/* The function has counted each page that went, so it was all there. */
	return *(uint64_t *)(kvm + PAGES_4K) != -zapped;
}
