// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What it costs a CPU to write to each page of much memory, and to execute what it has written.
 *
 *     cc -O2 -o write_execute benchmarks/write_execute.c && ./write_execute [MiB]
 *
 * Pages of 4K, mapped as such, one after the other: a `ret` is written to the first byte of each
 * and, the second time, called.  Memory has been touched before, and the first line of each page is
 * flushed from caches before each round (of all pages together they would have room in a large
 * one).  A call of what is in the instruction cache, of what is in memory but was not just
 * written, and of what was just written and is in L1 tell apart what the call is, what the line's
 * way is, and what the CPU does because code has changed under it (it clears its pipeline).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, ROUNDS = 7 };

typedef void function(void);
typedef volatile unsigned char byte;

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

/* The median over rounds of the time for each page; of a hot loop it is always the same page. */
static double each(byte *pool, uint64_t pages, uint64_t stride, int write, int call)
{
	double took[ROUNDS];

	for (int round = 0; round < ROUNDS; round++) {
		double from;

		for (uint64_t i = 0; stride && i < pages; i++)
			asm volatile("clflush %0" : "+m"(pool[i * stride]));
		from = now();
		for (uint64_t i = 0; i < pages; i++) {
			byte *page = pool + i * stride;

			if (write)
				*page = 0xc3;
			if (call)
				((function *)page)();
		}
		took[round] = (now() - from) / pages;
	}
	qsort(took, ROUNDS, sizeof(*took), by_size);
	return took[ROUNDS / 2];
}

int main(int argc, char **argv)
{
	uint64_t bytes = (argc > 1 ? strtoull(argv[1], NULL, 0) : 4096) << 20;
	uint64_t pages = bytes / PAGE;
	byte *pool = mmap(NULL, bytes, PROT_READ | PROT_WRITE | PROT_EXEC,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	double write, both, call, hot_both, hot_call, hot_write;

	if (!bytes || pool == MAP_FAILED) {
		fprintf(stderr, "write_execute: no %llu MiB of memory\n",
			(unsigned long long)bytes >> 20);
		return 2;
	}
	madvise((void *)pool, bytes, MADV_NOHUGEPAGE);
	each(pool, pages, PAGE, 1, 0);
	write = each(pool, pages, PAGE, 1, 0);
	both = each(pool, pages, PAGE, 1, 1);
	call = each(pool, pages, PAGE, 0, 1);
	hot_write = each(pool, pages, 0, 1, 0);
	hot_both = each(pool, pages, 0, 1, 1);
	hot_call = each(pool, pages, 0, 0, 1);
	printf("ns for each page               in memory   in cache\n");
	printf("write                       %12.1f %10.1f\n", write, hot_write);
	printf("write, then call it         %12.1f %10.1f\n", both, hot_both);
	printf("call what is there          %12.1f %10.1f\n", call, hot_call);
	printf("the call of what is new     %12.1f %10.1f\n", both - write, hot_both - hot_write);
	return 0;
}
