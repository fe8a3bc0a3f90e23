/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The lab's guest driver: makes one VM with KVM's ioctls and carries out a
 * program, one line for each step, that tdpmmu.lab.steps has written:
 *
 *	LABEL access KIND VCPUS PAGE STRIDE COUNT BACKGROUND
 *	LABEL host KIND PAGE STRIDE COUNT
 *	LABEL sleep MS			LABEL stop			LABEL age MS
 *	LABEL slot FLAGS		(-1: delete)
 *	LABEL manual FLAGS		LABEL getlog		LABEL clearlog
 *	LABEL madvise ADVICE PAGE COUNT
 *	LABEL mprotect PROT PAGE COUNT
 *	LABEL param NAME VALUE
 *
 * Numbers are what strtoul() takes; pages are guest frame numbers; VCPUS is a
 * mask; KIND is r, w or x.  LABEL goes to the trace as "STEP LABEL" and "DONE
 * LABEL".  What cannot be done (a write to memory that mprotect() has made
 * read-only, say) is noted in the log and the program goes on.
 *
 * usage: driver BLOCKS BACKING VCPUS PAGING <program >log
 * (PAGING: 0 off, 1 long mode with pages of 2M, 2 of 4K; TRACE_MARKER in the
 * environment: where markers go)
 *
 * The VM: memslot 0 is the system block, GPA 0 to 2M, in 4K pages (code,
 * stacks, page tables).  Memslot 1 has BLOCKS blocks of 2M from GPA 2M on, the
 * data that steps are about.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	BLOCK = 2 << 20,
	BLOCK_PAGES = BLOCK / PAGE,
	MAX_VCPUS = 8,
	CODE = 0x1000,
	STACKS = 0x8000,	/* the stack of vCPU n ends n + 1 pages above */
	TABLES = 0x20000,	/* PML4, PDPT, four page directories */
	SMALL_TABLES = TABLES + 6 * PAGE,
	MAX_TABLES = (BLOCK - SMALL_TABLES) / PAGE,
	DONE_PORT = 0x80,
	RET = 0xc3,
};

/*
 * Guest code for each kind of access.  In: edi address, esi stride, ecx count.
 * The bytes mean the same in 32-bit and in 64-bit mode.  A write leaves a RET,
 * so that what was written can be executed.
 */
struct snippet {
	char kind;
	uint8_t bytes[15];
};

static const struct snippet snippets[] = {
	{ 'w', { 0xc6, 0x07, RET,		/* again: movb $RET, (%rdi) */
		 0x01, 0xf7, 0xff, 0xc9,	/* add %esi, %edi; dec %ecx */
		 0x75, 0xf7,			/* jnz again */
		 0xe6, DONE_PORT } },		/* out %al, $DONE_PORT */
	{ 'r', { 0x8a, 0x07,			/* again: mov (%rdi), %al */
		 0x01, 0xf7, 0xff, 0xc9, 0x75, 0xf8, 0xe6, DONE_PORT } },
	{ 'x', { 0xff, 0xd7,			/* again: call *%rdi */
		 0x01, 0xf7, 0xff, 0xc9, 0x75, 0xf8, 0xe6, DONE_PORT } },
};

struct access {
	int snippet;
	unsigned long page, stride, count;
	bool repeat;
};

struct vcpu {
	int number, fd;
	struct kvm_run *run;
	struct access todo;
	bool busy, stopping;
	unsigned long rounds, mmio;
	char trouble[160];
};

static struct vcpu vcpus[MAX_VCPUS];
static unsigned long n_vcpus, n_blocks, first_page = BLOCK_PAGES, n_pages;
static enum { FLAT, LONG, LONG_4K } paging;
static int kvm, vm, marker;
static uint8_t *sysmem, *data;
static uint8_t *has_ret, *read_only;	/* for each page of the data */
static uint64_t *dirty;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void fail(const char *what)
{
	printf("driver: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double since_start(void)
{
	static struct timespec start;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (!start.tv_sec)
		start = now;
	return (now.tv_sec - start.tv_sec) * 1e3 + (now.tv_nsec - start.tv_nsec) / 1e6;
}

static void mark(const char *what, const char *label)
{
	char text[200];
	int length = snprintf(text, sizeof(text), "%s%s", what, label);

	if (marker >= 0 && write(marker, text, length) != length)
		marker = -1;
	printf("[%9.1f ms] %s\n", since_start(), text);
}

static int check(int result, const char *what)
{
	if (result < 0)
		fail(what);
	return result;
}

/* ---- the VM --------------------------------------------------------------- */

static int set_slot(int slot, uint64_t gpa, uint64_t size, void *hva, int flags)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .flags = flags, .guest_phys_addr = gpa,
		.memory_size = size, .userspace_addr = (uintptr_t)hva,
	};

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static uint8_t *aligned_memory(size_t size, int flags)
{
	uint8_t *p = mmap(NULL, size + BLOCK, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);

	if (p == MAP_FAILED)
		fail("mmap of guest memory");
	return (uint8_t *)(((uintptr_t)p + BLOCK - 1) & -(uintptr_t)BLOCK);
}

static void make_memory(const char *backing)
{
	bool hugetlb = !strcmp(backing, "hugetlb");

	sysmem = aligned_memory(BLOCK, 0);
	check(madvise(sysmem, BLOCK, MADV_NOHUGEPAGE), "madvise");
	data = aligned_memory(n_blocks * BLOCK, hugetlb ? MAP_HUGETLB : 0);
	if (!hugetlb)
		check(madvise(data, n_blocks * BLOCK,
			      strcmp(backing, "thp") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE),
		      "madvise");
	n_pages = n_blocks * BLOCK_PAGES;
	has_ret = calloc(n_pages, 1);
	read_only = calloc(n_pages, 1);
	dirty = calloc(n_pages / 64, 8);
	if (!has_ret || !read_only || !dirty)
		fail("calloc");
	for (unsigned i = 0; i < sizeof(snippets) / sizeof(snippets[0]); i++)
		memcpy(sysmem + CODE + i * sizeof(snippets[i].bytes), snippets[i].bytes,
		       sizeof(snippets[i].bytes));
	/* 4G of guest-virtual addresses, each mapped to itself, by 2M pages */
	uint64_t *table = (uint64_t *)(sysmem + TABLES);
	table[0] = (TABLES + PAGE) | 7;
	for (int i = 0; i < 4; i++)
		table[512 + i] = (TABLES + (2 + i) * PAGE) | 7;
	for (uint64_t i = 0; i < 4 * 512; i++)
		table[1024 + i] = i * BLOCK | 0x87;
	/* or by 4K pages, as far as there is room for tables */
	for (uint64_t i = 0; paging == LONG_4K && i <= n_blocks && i < MAX_TABLES; i++) {
		table[1024 + i] = (SMALL_TABLES + i * PAGE) | 7;
		for (uint64_t j = 0; j < BLOCK_PAGES; j++)
			table[512 * (6 + i) + j] = (i * BLOCK_PAGES + j) * PAGE | 7;
	}
	check(set_slot(0, 0, BLOCK, sysmem, 0), "memslot 0");
	check(set_slot(1, BLOCK, n_blocks * BLOCK, data, 0), "memslot 1");
}

static struct kvm_segment segment(unsigned selector, unsigned type)
{
	return (struct kvm_segment){
		.limit = 0xffffffff, .selector = selector, .type = type, .present = 1,
		.s = 1, .g = 1, .db = !(paging && type & 8), .l = paging && type & 8,
	};
}

static void make_vcpu(struct vcpu *vcpu)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[256];
	} cpuid = { .head.nent = 256 };
	struct kvm_sregs sregs;
	int size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");

	vcpu->fd = check(ioctl(vm, KVM_CREATE_VCPU, vcpu->number), "KVM_CREATE_VCPU");
	vcpu->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED)
		fail("mmap of a vCPU");
	check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	check(ioctl(vcpu->fd, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
	check(ioctl(vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = segment(8, 11);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment(16, 3);
	sregs.cr0 |= 1;				/* PE */
	if (paging) {
		sregs.cr3 = TABLES;
		sregs.cr4 |= 1 << 5;		/* PAE */
		sregs.efer |= 1 << 8 | 1 << 10;	/* LME, LMA */
		sregs.cr0 |= 1u << 31;		/* PG */
	}
	check(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
}

/* ---- vCPU threads: they neither map memory nor print, both shows in traces -- */

/* Run one snippet to its end; false: it came to no good end. */
static bool run_snippet(struct vcpu *vcpu, const struct access *a)
{
	struct kvm_regs regs = {
		.rip = CODE + a->snippet * sizeof(snippets[0].bytes), .rflags = 2,
		.rsp = STACKS + (vcpu->number + 1) * PAGE,
		.rdi = a->page * PAGE, .rsi = a->stride * PAGE, .rcx = a->count,
	};
	struct kvm_run *run = vcpu->run;

	if (ioctl(vcpu->fd, KVM_SET_REGS, &regs) < 0)
		goto trouble;
	for (;;) {
		if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
			if (errno == EINTR || errno == EAGAIN)
				continue;
			goto trouble;
		}
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == DONE_PORT)
			return true;
		if (run->exit_reason != KVM_EXIT_MMIO)
			break;
		vcpu->mmio++;
	}
	errno = 0;
trouble:
	ioctl(vcpu->fd, KVM_GET_REGS, &regs);
	snprintf(vcpu->trouble, sizeof(vcpu->trouble),
		 "vCPU %d stopped at page %#llx: %s, exit reason %u", vcpu->number,
		 (unsigned long long)regs.rdi / PAGE, errno ? strerror(errno) : "no error",
		 run->exit_reason);
	return false;
}

static void *vcpu_thread(void *argument)
{
	struct vcpu *vcpu = argument;
	char name[16];
	bool again;

	snprintf(name, sizeof(name), "vcpu%d", vcpu->number);
	pthread_setname_np(pthread_self(), name);
	pthread_mutex_lock(&lock);
	for (;;) {
		while (!vcpu->busy)
			pthread_cond_wait(&changed, &lock);
		do {
			pthread_mutex_unlock(&lock);
			again = run_snippet(vcpu, &vcpu->todo) && vcpu->todo.repeat;
			pthread_mutex_lock(&lock);
			vcpu->rounds++;
		} while (again && !vcpu->stopping);
		vcpu->busy = false;
		pthread_cond_broadcast(&changed);
	}
	return NULL;
}

static bool background(void)
{
	for (unsigned i = 0; i < n_vcpus; i++)
		if (vcpus[i].busy)
			return true;
	return false;
}

/* Wait for these vCPUs, and say what they have to say. */
static bool wait_for(unsigned long mask)
{
	bool well = true;

	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < n_vcpus; i++) {
		struct vcpu *vcpu = &vcpus[i];

		if (!(mask & 1ul << i))
			continue;
		while (vcpu->busy)
			pthread_cond_wait(&changed, &lock);
		if (vcpu->todo.repeat && vcpu->rounds)
			printf("  vCPU %u: %lu rounds\n", i, vcpu->rounds);
		if (vcpu->mmio)
			printf("  vCPU %u: %lu MMIO exits\n", i, vcpu->mmio);
		if (*vcpu->trouble) {
			printf("  %s\n", vcpu->trouble);
			well = false;
		}
		*vcpu->trouble = 0;
		vcpu->rounds = vcpu->mmio = vcpu->todo.repeat = 0;
	}
	pthread_mutex_unlock(&lock);
	return well;
}

static void stop(unsigned long mask)
{
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < n_vcpus; i++)
		vcpus[i].stopping = mask >> i & 1;
	pthread_mutex_unlock(&lock);
	wait_for(mask);
}

/* ---- steps ------------------------------------------------------------------ */

static uint8_t *page_of_data(unsigned long page)
{
	return data + (page - first_page) * PAGE;
}

static bool is_data(unsigned long page)
{
	return page >= first_page && page - first_page < n_pages;
}

/* Put a RET where x finds none, from the host. */
static void make_executable(const struct access *a)
{
	for (unsigned long i = 0; i < a->count; i++) {
		unsigned long page = a->page + i * a->stride;

		if (!is_data(page) || has_ret[page - first_page])
			continue;
		if (read_only[page - first_page]) {
			printf("  page %#lx: nothing to execute, and it cannot be put there\n", page);
			continue;
		}
		*page_of_data(page) = RET;
		has_ret[page - first_page] = 1;
	}
}

static void do_access(char kind, unsigned long mask, struct access a)
{
	a.snippet = kind == 'w' ? 0 : kind == 'r' ? 1 : 2;
	if (mask >> n_vcpus || !mask) {
		printf("driver: vCPU mask %#lx\n", mask);
		exit(2);
	}
	stop(mask);
	if (kind == 'x')
		make_executable(&a);
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < n_vcpus; i++)
		if (mask & 1ul << i) {
			vcpus[i].todo = a;
			vcpus[i].stopping = false;
			vcpus[i].busy = true;
		}
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	if (a.repeat)
		return;
	if (wait_for(mask) && kind == 'w')
		for (unsigned long i = 0; i < a.count; i++)
			if (is_data(a.page + i * a.stride))
				has_ret[a.page + i * a.stride - first_page] = 1;
}

static void do_host(char kind, unsigned long page, unsigned long stride, unsigned long count)
{
	for (; count--; page += stride) {
		volatile uint8_t *p = page_of_data(page);

		if (kind == 'r')
			(void)*p;
		else if (read_only[page - first_page])
			printf("  page %#lx: not written, it is read-only\n", page);
		else {
			*p = RET;
			has_ret[page - first_page] = 1;
		}
	}
}

static void do_slot(long flags)
{
	if (set_slot(1, BLOCK, flags < 0 ? 0 : n_blocks * BLOCK, data, flags < 0 ? 0 : flags) < 0)
		printf("  KVM_SET_USER_MEMORY_REGION: %s\n", strerror(errno));
}

static void get_log(void)
{
	struct kvm_dirty_log log = { .slot = 1, .dirty_bitmap = dirty };
	unsigned long count = 0;

	memset(dirty, 0, n_pages / 8);
	if (ioctl(vm, KVM_GET_DIRTY_LOG, &log) < 0) {
		printf("  KVM_GET_DIRTY_LOG: %s\n", strerror(errno));
		return;
	}
	printf("  dirty:");
	for (unsigned long i = 0; i < n_pages; i++)
		if (dirty[i / 64] >> i % 64 & 1 && count++ < 32)
			printf(" %lx", first_page + i);
	printf("%s (%lu pages)\n", count > 32 ? " ..." : "", count);
}

static void clear_log(void)
{
	struct kvm_clear_dirty_log log = { .slot = 1, .num_pages = n_pages, .dirty_bitmap = dirty };

	if (ioctl(vm, KVM_CLEAR_DIRTY_LOG, &log) < 0)
		printf("  KVM_CLEAR_DIRTY_LOG: %s\n", strerror(errno));
}

static void do_madvise(int advice, unsigned long page, unsigned long count)
{
	if (madvise(page_of_data(page), count * PAGE, advice) < 0)
		printf("  madvise: %s\n", strerror(errno));
	else if (advice == MADV_DONTNEED)
		memset(has_ret + page - first_page, 0, count);
}

static void do_mprotect(int prot, unsigned long page, unsigned long count)
{
	if (mprotect(page_of_data(page), count * PAGE, prot) < 0)
		printf("  mprotect: %s\n", strerror(errno));
	else
		memset(read_only + page - first_page, !(prot & PROT_WRITE), count);
}

static bool write_text(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);
	bool well = fd >= 0 && write(fd, value, strlen(value)) >= 0;

	if (!well)
		printf("  %s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return well;
}

static void set_param(const char *name, const char *value)
{
	char path[200];

	snprintf(path, sizeof(path), "/sys/module/kvm/parameters/%s", name);
	write_text(path, value);
}

static bool damon(const char *file, unsigned long number, const char *text)
{
	char path[200], value[32];

	snprintf(path, sizeof(path), "/sys/kernel/mm/damon/admin/kdamonds/%s", file);
	snprintf(value, sizeof(value), "%lu", number);
	return write_text(path, text ? text : value);
}

/* DAMON makes pages of the data old and looks which are young again. */
static void do_age(unsigned long ms)
{
	unsigned long start = (unsigned long)data;

	if (!damon("nr_kdamonds", 1, NULL))
		return;
	if (damon("0/contexts/nr_contexts", 1, NULL) &&
	    damon("0/contexts/0/operations", 0, "fvaddr") &&
	    damon("0/contexts/0/targets/nr_targets", 1, NULL) &&
	    damon("0/contexts/0/targets/0/pid_target", getpid(), NULL) &&
	    damon("0/contexts/0/targets/0/regions/nr_regions", 1, NULL) &&
	    damon("0/contexts/0/targets/0/regions/0/start", start, NULL) &&
	    damon("0/contexts/0/targets/0/regions/0/end", start + n_blocks * BLOCK, NULL) &&
	    damon("0/state", 0, "on")) {
		usleep(ms * 1000);
		damon("0/state", 0, "off");
	}
	damon("nr_kdamonds", 0, NULL);
}

static void set_manual(unsigned long flags)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args[0] = flags };

	if (ioctl(vm, KVM_ENABLE_CAP, &cap) < 0)
		printf("  KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: %s\n", strerror(errno));
}

struct text {
	char bytes[4096];
	size_t length;
};

/* The VM's statistics that are not 0; histograms are left out. */
static void read_stats(struct text *text)
{
	static struct kvm_stats_header header;
	static char descriptors[1 << 16];
	size_t size;
	int fd = ioctl(vm, KVM_GET_STATS_FD, 0);

	text->length = 0;
	*text->bytes = 0;
	if (fd < 0 || pread(fd, &header, sizeof(header), 0) != sizeof(header))
		return;
	size = sizeof(struct kvm_stats_desc) + header.name_size;
	if (size * header.num_desc > sizeof(descriptors) ||
	    pread(fd, descriptors, size * header.num_desc, header.desc_offset) < 0)
		return;
	for (unsigned i = 0; i < header.num_desc; i++) {
		struct kvm_stats_desc *one = (void *)(descriptors + i * size);
		size_t room = sizeof(text->bytes) - text->length;
		uint64_t value;

		if (one->size == 1 && room > header.name_size + 24 &&
		    pread(fd, &value, 8, header.data_offset + one->offset) == 8 && value)
			text->length += snprintf(text->bytes + text->length, room, " %s=%llu",
						 one->name, (unsigned long long)value);
	}
	close(fd);
}

/*
 * Marker and statistics are to be of one moment.  So there are none while vCPUs
 * run, and none if somebody else (the recovery worker) changes them meanwhile.
 */
static void mark_done(const char *label)
{
	static struct text before, after;
	bool still = !background();

	if (still) {
		read_stats(&before);
		usleep(2000);
	}
	mark("DONE ", label);
	if (!still)
		return;
	read_stats(&after);
	if (strcmp(before.bytes, after.bytes))
		printf("  the statistics are moving\n");
	else
		printf("  stats vm:%s\n", after.bytes);
}

static void do_step(char *line)
{
	char *word[9] = { 0 };
	unsigned long n[9];
	int words = 0;

	for (char *w = strtok(line, " \n"); w && words < 9; w = strtok(NULL, " \n")) {
		n[words] = strtoul(w, NULL, 0);
		word[words++] = w;
	}
	if (words < 2)
		return;
	mark("STEP ", word[0]);
	if (!strcmp(word[1], "access") && words == 8)
		do_access(*word[2], n[3], (struct access){ 0, n[4], n[5], n[6], n[7] });
	else if (!strcmp(word[1], "host") && words == 6)
		do_host(*word[2], n[3], n[4], n[5]);
	else if (!strcmp(word[1], "sleep") && words == 3)
		usleep(n[2] * 1000);
	else if (!strcmp(word[1], "age") && words == 3)
		do_age(n[2]);
	else if (!strcmp(word[1], "stop"))
		stop(-1ul);
	else if (!strcmp(word[1], "slot") && words == 3)
		do_slot(n[2]);
	else if (!strcmp(word[1], "manual") && words == 3)
		set_manual(n[2]);
	else if (!strcmp(word[1], "getlog"))
		get_log();
	else if (!strcmp(word[1], "clearlog"))
		clear_log();
	else if (!strcmp(word[1], "madvise") && words == 5)
		do_madvise(n[2], n[3], n[4]);
	else if (!strcmp(word[1], "mprotect") && words == 5)
		do_mprotect(n[2], n[3], n[4]);
	else if (!strcmp(word[1], "param") && words == 4)
		set_param(word[2], word[3]);
	else {
		printf("driver: no such step: %s\n", word[1]);
		exit(2);
	}
	mark_done(word[0]);
}

int main(int argc, char **argv)
{
	static char line[512];

	if (argc != 5) {
		fprintf(stderr, "usage: driver BLOCKS BACKING VCPUS PAGING <program >log\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 1 << 12);
	n_blocks = strtoul(argv[1], NULL, 0);
	n_vcpus = strtoul(argv[3], NULL, 0);
	paging = atoi(argv[4]);
	if (!n_blocks || n_blocks > 511 || !n_vcpus || n_vcpus > MAX_VCPUS) {
		fprintf(stderr, "driver: 1 to 511 blocks and 1 to %d vCPUs\n", MAX_VCPUS);
		return 2;
	}
	const char *path = getenv("TRACE_MARKER");
	marker = open(path ? path : "/sys/kernel/tracing/trace_marker", O_WRONLY);
	kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	make_memory(argv[2]);
	for (unsigned i = 0; i < n_vcpus; i++) {
		pthread_t thread;

		vcpus[i].number = i;
		make_vcpu(&vcpus[i]);
		if (pthread_create(&thread, NULL, vcpu_thread, &vcpus[i]))
			fail("pthread_create");
	}
	while (fgets(line, sizeof(line), stdin))
		do_step(line);
	stop(-1ul);
	mark("END", "");
	return 0;
}
