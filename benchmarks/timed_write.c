// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What it takes to write to each page of much memory and to read the clock before and after.
 *
 *     cc -O2 -o timed_write benchmarks/timed_write.c && ./timed_write [MiB]
 *
 * Pages of 4K, mapped as such, one after the other.  They have been touched before, and what is
 * written to is flushed from caches before each round (one line of each page would have room in a
 * large one).  The clock is read between two fences, as KVM's selftests do it, so
 * a write waits for the walk of its page before the clock is read again.  Always the same page
 * tells what of that is the clock; a line of a random huge page, after another whose content says
 * where, tells how far memory is.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, ROUNDS = 7, CHASES = 1 << 20 };

typedef volatile unsigned char byte;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static inline uint64_t fenced_tsc(void)
{
	uint32_t low, high;

	asm volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static int by_size(const void *a, const void *b)
{
	double one = *(const double *)a, other = *(const double *)b;

	return (one > other) - (one < other);
}

static double median(double *took)
{
	qsort(took, ROUNDS, sizeof(*took), by_size);
	return took[ROUNDS / 2];
}

static byte *memory(uint64_t bytes, int advice)
{
	byte *pool = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!bytes || pool == MAP_FAILED) {
		fprintf(stderr, "timed_write: no %llu MiB of memory\n",
			(unsigned long long)bytes >> 20);
		exit(2);
	}
	madvise((void *)pool, bytes, advice);
	for (uint64_t i = 0; i < bytes; i += PAGE)
		pool[i] = 1;
	return pool;
}

static void out_of_caches(byte *line)
{
	asm volatile("clflush %0" : "+m"(*line));
}

/* Medians over rounds, for each page: the whole loop, and the part of it between two clocks. */
static double each(byte *pool, uint64_t pages, uint64_t stride, double *between)
{
	double loop[ROUNDS], window[ROUNDS];

	for (int round = 0; round < ROUNDS; round++) {
		uint64_t inside = 0, first, last;
		double from, took;

		for (uint64_t i = 0; stride && i < pages; i++)
			out_of_caches(pool + i * stride);
		first = fenced_tsc();
		from = now();

		for (uint64_t i = 0; i < pages; i++) {
			uint64_t before = fenced_tsc();

			pool[i * stride] = 0;
			inside += fenced_tsc() - before;
		}
		took = now() - from;
		last = fenced_tsc();
		loop[round] = took / pages;
		window[round] = took / (last - first) * inside / pages;
	}
	*between = median(window);
	return median(loop);
}

static double latency(uint64_t bytes)
{
	byte *pool = memory(bytes, MADV_HUGEPAGE);
	uint64_t lines = bytes / 64, state = 88172645463325252u, at = 0, *line;
	double from;

	/* One cycle through lines: each says which one is next. */
	for (uint64_t i = 0; i < CHASES; i++) {
		uint64_t next;

		state ^= state << 13, state ^= state >> 7, state ^= state << 17;
		next = state % lines;
		line = (uint64_t *)(pool + at * 64);
		*line = next;
		at = next;
	}
	for (uint64_t i = 0; i < lines; i++)
		out_of_caches(pool + i * 64);
	at = 0;
	from = now();
	for (uint64_t i = 0; i < CHASES; i++)
		at = *(volatile uint64_t *)(pool + at * 64) % lines;
	from = (now() - from) / CHASES;
	munmap((void *)pool, bytes);
	return from;
}

int main(int argc, char **argv)
{
	uint64_t bytes = (argc > 1 ? strtoull(argv[1], NULL, 0) : 4096) << 20;
	double loop, window, hot_loop, hot_window, far = latency(bytes);
	byte *pool = memory(bytes, MADV_NOHUGEPAGE);

	loop = each(pool, bytes / PAGE, PAGE, &window);
	hot_loop = each(pool, bytes / PAGE, 0, &hot_window);
	printf("ns for each page               in memory   in cache\n");
	printf("clock, write, clock         %12.1f %10.1f\n", loop, hot_loop);
	printf("of it between the clocks    %12.1f %10.1f\n", window, hot_window);
	printf("a line of memory            %12.1f\n", far);
	return 0;
}
