// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What it costs a kernel to allocate a page for a page table: zeroed, and charged to a cgroup.
 *
 *     cc -O2 -o table_alloc benchmarks/table_alloc.c && ./table_alloc [PAGES]
 *
 * Pages are touched for the first time, so many in each 2 MiB: one, then each fault needs a page
 * table of its own; or 512, then nearly none does.  The difference is the table: allocated with the
 * same flags as KVM's are, linked, and its lock made.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, REGION = 512 * PAGE, ROUNDS = 15 };

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
	double one = *(const double *)a, other = *(const double *)b;

	return (one > other) - (one < other);
}

/* The median over rounds of a first touch. */
static double touch(uint64_t pages, uint64_t stride)
{
	double took[ROUNDS];

	for (int round = 0; round < ROUNDS; round++) {
		uint64_t bytes = pages * stride + REGION;
		char *pool = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		double from;

		if (pool == MAP_FAILED) {
			fprintf(stderr, "table_alloc: no %llu MiB of addresses\n",
				(unsigned long long)bytes >> 20);
			exit(2);
		}
		madvise(pool, bytes, MADV_NOHUGEPAGE);
		from = now();
		for (uint64_t i = 0; i < pages; i++)
			*(volatile char *)(pool + i * stride) = 1;
		took[round] = (now() - from) / pages;
		munmap(pool, bytes);
	}
	qsort(took, ROUNDS, sizeof(*took), by_size);
	return took[ROUNDS / 2];
}

int main(int argc, char **argv)
{
	uint64_t pages = argc > 1 ? strtoull(argv[1], NULL, 0) : 8192;
	double alone, together;

	if (!pages) {
		fprintf(stderr, "table_alloc: PAGES must be a number above 0\n");
		return 2;
	}
	alone = touch(pages, REGION);
	together = touch(pages, PAGE);
	printf("ns of a fault with a table of its own %8.0f\n", alone);
	printf("ns of one without                     %8.0f\n", together);
	printf("ns of a table                         %8.0f\n", alone - together);
	return 0;
}
