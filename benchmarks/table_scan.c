// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What it costs a CPU to go through a page table that is in none of its caches.
 *
 *     cc -O2 -o table_scan benchmarks/table_scan.c && ./table_scan [MiB of tables]
 *
 * Tables are 4 KiB, 512 entries in 64 lines, and are taken in random order from far more memory
 * than the last cache holds, in 2M pages, as the kernel maps its own.  Within a table entries are
 * taken in order, or line by line at random (what the CPU cannot foresee), and each is read; read
 * and written; or exchanged (`xchg`, which is locked).  "hot" is the same in a table that is in L1:
 * what the instructions take.  The chase is one line of each table, whose address the one before
 * it holds: the latency of memory.  Times are medians of single tables.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <x86intrin.h>

enum { ENTRIES = 512, LINE = 8, LINES = ENTRIES / LINE, SAMPLES = 20000 };

typedef volatile uint64_t entry;

static uint64_t seed = 88172645463325252u;

static uint64_t any(uint64_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % below;
}

static void shuffle(uint32_t *order, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		order[i] = i;
	for (uint32_t i = n - 1; i; i--) {
		uint32_t j = any(i + 1), other = order[j];

		order[j] = order[i];
		order[i] = other;
	}
}

static uint32_t lines[LINES];

#define SCAN(name, one)                                                   \
	static uint64_t name(entry *table)                                \
	{                                                                 \
		uint64_t found = 0;                                       \
		for (int line = 0; line < LINES; line++)                  \
			for (int i = 0; i < LINE; i++) {                  \
				entry *e = table + lines[line] * LINE + i; \
				one;                                      \
			}                                                 \
		return found;                                             \
	}

SCAN(reads, found += *e)
SCAN(writes, { found += *e; *e = 0x5a0; })
SCAN(exchanges, found += __atomic_exchange_n(e, 0x5a0, __ATOMIC_SEQ_CST))

static double ns_per_tick;

static void clock_rate(void)
{
	struct timespec from, to;
	uint64_t ticks;

	clock_gettime(CLOCK_MONOTONIC, &from);
	ticks = __rdtsc();
	do
		clock_gettime(CLOCK_MONOTONIC, &to);
	while (to.tv_sec - from.tv_sec + (to.tv_nsec - from.tv_nsec) / 1e9 < 0.5);
	ticks = __rdtsc() - ticks;
	ns_per_tick = ((to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec)) / ticks;
}

static int by_size(const void *a, const void *b)
{
	uint64_t one = *(const uint64_t *)a, other = *(const uint64_t *)b;

	return (one > other) - (one < other);
}

static uint64_t took[SAMPLES];

static double median(int n)
{
	qsort(took, n, sizeof(*took), by_size);
	return took[n / 2] * ns_per_tick;
}

static uint64_t sink;

/* One table after the other; the CPU may not begin with the next one before it is done. */
static double scan(uint64_t (*how)(entry *), entry *pool, uint32_t *order, uint32_t tables)
{
	static uint32_t next;

	for (int n = 0; n < SAMPLES; n++) {
		entry *table = pool + (uint64_t)order[next++ % tables] * ENTRIES;
		uint64_t from;

		_mm_mfence();
		_mm_lfence();
		from = __rdtsc();
		sink += how(table);
		_mm_lfence();
		took[n] = __rdtsc() - from;
	}
	return median(SAMPLES);
}

static double chase(entry *pool, uint32_t *order, uint32_t tables)
{
	enum { STEPS = 64 };
	uint64_t *at = malloc(tables * sizeof(*at)), here;
	int n;

	for (uint32_t i = 0; i < tables; i++)
		at[i] = (uint64_t)order[i] * ENTRIES + any(LINES) * LINE;
	for (uint32_t i = 0; i < tables; i++)
		pool[at[i]] = at[(i + 1) % tables];
	here = at[0];
	for (n = 0; n < SAMPLES && (uint64_t)(n + 1) * STEPS < tables; n++) {
		uint64_t from = __rdtsc();

		for (int i = 0; i < STEPS; i++)
			here = pool[here];
		sink += here;
		_mm_lfence();
		took[n] = (__rdtsc() - from) / STEPS;
	}
	free(at);
	return median(n);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		uint64_t (*how)(entry *);
	} kinds[] = { { "read", reads }, { "read, then write", writes }, { "xchg", exchanges } };
	uint64_t bytes = (argc > 1 ? strtoull(argv[1], NULL, 0) : 4096) << 20;
	uint32_t tables = bytes >> 12, *order = malloc(tables * sizeof(*order)), hot = 0;
	double first;
	entry *pool;

	pool = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!bytes || !order || pool == MAP_FAILED) {
		fprintf(stderr, "table_scan: no %llu MiB of memory\n", (unsigned long long)bytes >> 20);
		return 2;
	}
	madvise((void *)pool, bytes, MADV_HUGEPAGE);
	for (uint64_t i = 0; i < bytes / 8; i++)
		pool[i] = i | 1;
	shuffle(order, tables);
	clock_rate();
	first = chase(pool, order, tables);
	printf("one line of a random table, after the one before it: %.1f ns\n\n", first);
	printf("ns for each entry    hot   cold   of it lines   lines at random: cold   of it lines\n");
	for (unsigned k = 0; k < sizeof(kinds) / sizeof(*kinds); k++) {
		double ns[3];

		for (uint32_t i = 0; i < LINES; i++)
			lines[i] = i;
		ns[0] = scan(kinds[k].how, pool, &hot, 1) / ENTRIES;
		ns[1] = scan(kinds[k].how, pool, order, tables) / ENTRIES;
		shuffle(lines, LINES);
		ns[2] = scan(kinds[k].how, pool, order, tables) / ENTRIES;
		printf("%-18s %5.2f  %5.2f   %11.2f   %21.2f   %11.2f\n", kinds[k].name, ns[0],
		       ns[1], ns[1] - ns[0], ns[2], ns[2] - ns[0]);
	}
	return sink == 42;
}
