// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY: arguments, errors, what is mapped and copied, what is left,
 * and memslots that change meanwhile.
 *
 * That memory is populated is seen in that a guest which uses it takes no
 * fault.  For that, all that the guest has besides is populated as well.
 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

#include <linux/bitmap.h>
#include <linux/memfd.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>

#include <asm/barrier.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "memory_region_list.h"
#include "nested_guest.h"
#include "processor.h"
#include "test_util.h"
#include "userfaultfd_util.h"

/* Where the guest looks, and where it does not. */
#define WINDOW_GPA	0xc0000000ul
#define WINDOW_PAGES	1024
#define ELSEWHERE_GPA	0x100000000ul
#define HUGE_PAGES	(SZ_2M / PAGE_SIZE)

/* Slot 0 is the guest's own memory. */
#define SLOT		10
#define OTHER_SLOT	11
#define SMM		BIT(16)

#define READ		0
#define WRITE		KVM_MEMORY_MAPPING_FLAG_WRITE
#define EXEC		KVM_MEMORY_MAPPING_FLAG_EXEC
#define USER		KVM_MEMORY_MAPPING_FLAG_USER
#define PRIVATE		KVM_MEMORY_MAPPING_FLAG_PRIVATE

#define LOG		KVM_MEM_LOG_DIRTY_PAGES

#define ALL		(~0ul)

/* What a call does at most, and between two looks at what else there is. */
#define CALL_PAGES	(SZ_256M / PAGE_SIZE)
#define CHUNK_PAGES	64

#define RING_ENTRIES	1024

#define PM_PFN		GENMASK_ULL(54, 0)
#define PM_FILE		BIT_ULL(61)
#define PM_PRESENT	BIT_ULL(63)

#define NX_HUGE_PAGES	"/sys/module/kvm/parameters/nx_huge_pages"
#define KSM_RUN		"/sys/kernel/mm/ksm/run"

kvm_static_assert(KVM_MAP_MEMORY == 0xC020AED5);
kvm_static_assert(sizeof(struct kvm_memory_mapping) == 32);
kvm_static_assert(offsetof(struct kvm_memory_mapping, base_gfn) == 0);
kvm_static_assert(offsetof(struct kvm_memory_mapping, nr_pages) == 8);
kvm_static_assert(offsetof(struct kvm_memory_mapping, flags) == 16);
kvm_static_assert(offsetof(struct kvm_memory_mapping, source) == 24);
kvm_static_assert(WRITE == 1 && EXEC == 2 && USER == 4 && PRIVATE == 8);

enum guest_op {
	GUEST_READ,
	GUEST_WRITE,
	GUEST_CALL,
	GUEST_CHECK,
};

/* Guest and host, each with its own copy; see guest_ptr(). */
static struct {
	enum guest_op op;
	u64 gva, nr_pages, tag;
} guest_todo;

#define guest_ptr(vm, var) ((typeof(var) *)addr_gva2hva(vm, (gva_t)&(var)))

/* The contents of a page. */
static u64 pattern(u64 tag, int word)
{
	return tag << 16 | word;
}

static void guest_check(u64 *page, u64 tag)
{
	int w;

	for (w = 0; w < PAGE_SIZE / sizeof(u64); w++)
		GUEST_ASSERT_EQ(page[w], pattern(tag, w));
}

static void guest_code(void)
{
	u64 *page;
	u64 i;

	for (;;) {
		for (i = 0; i < guest_todo.nr_pages; i++) {
			page = (u64 *)(guest_todo.gva + i * PAGE_SIZE);
			switch (guest_todo.op) {
			case GUEST_READ:
				READ_ONCE(*page);
				break;
			case GUEST_WRITE:
				WRITE_ONCE(*page, i);
				break;
			case GUEST_CALL:
				((void (*)(void))page)();
				break;
			case GUEST_CHECK:
				guest_check(page, guest_todo.tag + i);
				break;
			}
		}
		GUEST_SYNC(0);
	}
}

/* Each test has a process, and thus a copy of these, of its own. */
static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;

static struct kvm_memory_mapping mapping(gpa_t gpa, u64 nr_pages, u64 flags,
					 const void *source)
{
	return (struct kvm_memory_mapping) {
		.base_gfn = gpa >> PAGE_SHIFT,
		.nr_pages = nr_pages,
		.flags = flags,
		.source = (uintptr_t)source,
	};
}

/*
 * One call, which must say what is left of what it was given.  Returns 0 or the
 * errno.
 */
static int map_once(struct kvm_vcpu *vcpu, struct kvm_memory_mapping *m)
{
	struct kvm_memory_mapping was = *m;
	int err = __vcpu_ioctl(vcpu, KVM_MAP_MEMORY, m) ? errno : 0;
	u64 done = m->base_gfn - was.base_gfn;
	u64 source = was.source ? was.source + done * PAGE_SIZE : 0;

	TEST_ASSERT(done <= was.nr_pages && m->nr_pages == was.nr_pages - done,
		    "errno %d: 0x%llx + 0x%llx became 0x%llx + 0x%llx", err,
		    was.base_gfn, was.nr_pages, m->base_gfn, m->nr_pages);
	TEST_ASSERT(m->source == source,
		    "errno %d: after 0x%lx pages, source is 0x%llx, was 0x%llx",
		    err, done, m->source, was.source);
	TEST_ASSERT_EQ(m->flags, was.flags);
	TEST_ASSERT(!err == !m->nr_pages || !was.nr_pages,
		    "errno %d with %llu pages left", err, m->nr_pages);
	if (err == EINVAL || err == EOPNOTSUPP)
		TEST_ASSERT(!done, "errno %d after 0x%lx pages", err, done);
	return err;
}

static int map_all(struct kvm_vcpu *vcpu, struct kvm_memory_mapping *m)
{
	int err;

	do {
		err = map_once(vcpu, m);
	} while (err == EAGAIN || err == EINTR);
	return err;
}

/* @done: the pages that are, or ALL */
static void expect_map(int line, gpa_t gpa, u64 nr_pages, u64 flags,
		       const void *source, int want, u64 done)
{
	struct kvm_memory_mapping m = mapping(gpa, nr_pages, flags, source);
	int err = map_all(vcpu, &m);

	if (done == ALL)
		done = nr_pages;
	TEST_ASSERT(err == want, "line %d: errno %d (%s) after %llu pages",
		    line, err, strerror(err), nr_pages - m.nr_pages);
	TEST_ASSERT(nr_pages - m.nr_pages == done,
		    "line %d: %llu pages done instead of %lu", line,
		    nr_pages - m.nr_pages, done);
}

static gpa_t gpa(u64 page)
{
	return WINDOW_GPA + page * PAGE_SIZE;
}

/* Pages of the window. */
#define map(page, nr, flags, source)					\
	expect_map(__LINE__, gpa(page), nr, flags, source, 0, ALL)
#define map_fails(page, nr, flags, source, err, done)			\
	expect_map(__LINE__, gpa(page), nr, flags, source, err, done)

/* The number of faults that it takes. */
static u64 run_guest_op(enum guest_op op, u64 page, u64 nr, u64 tag)
{
	typeof(guest_todo) *todo = guest_ptr(vm, guest_todo);
	u64 faults = vcpu_get_stat(vcpu, pf_taken);
	struct ucall uc;

	todo->op = op;
	todo->gva = gpa(page);
	todo->nr_pages = nr;
	todo->tag = tag;

	vcpu_run(vcpu);
	switch (get_ucall(vcpu, &uc)) {
	case UCALL_SYNC:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected exit: %s",
			  exit_reason_str(vcpu->run->exit_reason));
	}
	return vcpu_get_stat(vcpu, pf_taken) - faults;
}

static void expect_faults(int line, u64 want, enum guest_op op, u64 page,
			  u64 nr)
{
	u64 faults = run_guest_op(op, page, nr, 0);

	TEST_ASSERT(faults == want, "line %d: %lu faults instead of %lu", line,
		    faults, want);
}

/* How often a guest faults that writes to @nr pages which are clean in the log. */
static u64 faults_of_log(u64 nr)
{
	return host_cpu_is_intel && get_kvm_intel_param_bool("pml") ? 0 : nr;
}

#define guest_faults(want, op, page, nr)				\
	expect_faults(__LINE__, want, op, page, nr)
static void guest_sees(u64 page, u64 nr, u64 tag)
{
	run_guest_op(GUEST_CHECK, page, nr, tag);
}

/* All of it that the guest ever uses, it uses even if it has nothing to do. */
static void populate_guests_own(void)
{
	struct userspace_mem_region *own = memslot2region(vm, 0);

	expect_map(__LINE__, own->region.guest_phys_addr,
		   own->region.memory_size / PAGE_SIZE, WRITE, NULL, 0, ALL);
	guest_faults(0, GUEST_READ, 0, 0);
}

static void set_up_guest(void)
{
	virt_map(vm, WINDOW_GPA, WINDOW_GPA, WINDOW_PAGES);
	populate_guests_own();
}

static void set_slot(u32 slot, u32 flags, u64 page, u64 nr, void *hva)
{
	vm_set_user_memory_region(vm, slot, flags, gpa(page), nr * PAGE_SIZE,
				  hva);
}

static void *hva(void *mem, u64 page)
{
	return mem + page * PAGE_SIZE;
}

/* Aligned, so that huge pages are possible. */
static void *reserve(u64 nr_pages)
{
	void *mem = kvm_mmap(nr_pages * PAGE_SIZE + SZ_2M, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);

	return align_ptr_up(mem, SZ_2M);
}

static void *map_at(void *at, u64 nr_pages, int prot, int flags, int fd)
{
	void *mem = mmap(at, nr_pages * PAGE_SIZE, prot, flags | MAP_FIXED, fd,
			 0);

	TEST_ASSERT(mem == at, "mmap() failed, errno %d", errno);
	return mem;
}

static void *new_mem(u64 nr_pages)
{
	return map_at(reserve(nr_pages), nr_pages, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}

static void fill(void *mem, u64 nr_pages, u64 tag)
{
	u64 *words = mem;
	u64 i;
	int w;

	for (i = 0; i < nr_pages; i++)
		for (w = 0; w < PAGE_SIZE / sizeof(u64); w++)
			*words++ = pattern(tag + i, w);
}

static void check_mem(int line, const void *mem, u64 nr_pages, u64 tag)
{
	const u64 *words = mem;
	u64 i;
	int w;

	for (i = 0; i < nr_pages; i++)
		for (w = 0; w < PAGE_SIZE / sizeof(u64); w++, words++)
			TEST_ASSERT(*words == pattern(tag + i, w),
				    "line %d: page %lu: word %d is 0x%lx", line,
				    i, w, *words);
}

#define mem_is(mem, nr, tag) check_mem(__LINE__, mem, nr, tag)

/* Memory with contents. */
static void *new_pattern(u64 nr_pages, u64 tag)
{
	void *mem = new_mem(nr_pages);

	fill(mem, nr_pages, tag);
	return mem;
}

static u64 pagemap_entry(const void *addr)
{
	int fd = open_path_or_exit("/proc/self/pagemap", O_RDONLY);
	u64 entry;

	TEST_ASSERT(pread(fd, &entry, sizeof(entry),
			  (uintptr_t)addr / PAGE_SIZE * sizeof(entry)) ==
		    sizeof(entry), "Cannot read pagemap, errno %d", errno);
	close(fd);
	return entry;
}

static u64 pfn(const void *addr)
{
	u64 entry = pagemap_entry(addr);

	return entry & PM_PRESENT ? entry & PM_PFN : 0;
}

static bool write_attr(const char *name, const char *val)
{
	int fd = open(name, O_WRONLY);
	bool written;

	if (fd < 0)
		return false;
	written = write(fd, val, strlen(val)) == strlen(val);
	close(fd);
	return written;
}

static bool read_attr(const char *name, char *buf, size_t size)
{
	int fd = open(name, O_RDONLY);
	ssize_t len;

	if (fd < 0)
		return false;
	len = read(fd, buf, size - 1);
	close(fd);
	if (len <= 0)
		return false;
	buf[len] = 0;
	return true;
}

static void *try_hugetlb(u64 nr_pages)
{
	void *mem = mmap(NULL, nr_pages * PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
			 MAP_HUGE_2MB, -1, 0);

	return mem == MAP_FAILED ? NULL : mem;
}

/* NULL if not all of it is huge. */
static void *try_thp(u64 nr_pages)
{
	void *mem = new_mem(nr_pages);
	char line[256];
	u64 kb, huge = 0;
	FILE *f;

	if (madvise(mem, nr_pages * PAGE_SIZE, MADV_HUGEPAGE))
		return NULL;
	memset(mem, 1, nr_pages * PAGE_SIZE);

	f = fopen("/proc/self/smaps", "r");
	TEST_ASSERT(f, "Cannot read smaps, errno %d", errno);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "AnonHugePages: %lu kB", &kb) == 1)
			huge += kb;
	fclose(f);
	return huge * SZ_1K >= nr_pages * PAGE_SIZE ? mem : NULL;
}

FIXTURE(map) {};

FIXTURE_SETUP(map)
{
	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	set_up_guest();
}

FIXTURE_TEARDOWN(map)
{
	kvm_vm_free(vm);
}

TEST_F(map, capability)
{
	TEST_ASSERT_EQ(kvm_check_cap(KVM_CAP_MAP_MEMORY), 1);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_MAP_MEMORY), 1);
}

TEST_F(map, arguments)
{
	const int bits = kvm_cpu_property(X86_PROPERTY_MAX_PHY_ADDR);
	const u64 nr_gfns = BIT_ULL(bits - PAGE_SHIFT);
	void *mem = new_mem(16), *source = new_pattern(16, 1);
	struct kvm_memory_mapping m, good = mapping(gpa(0), 16, 0, NULL);
	struct kvm_vcpu *no_cpuid;
	u64 pages;
	int i, err;

	set_slot(SLOT, 0, 0, 16, mem);
	pages = vm_get_stat(vm, pages_4k);

#define rejects(...)							\
do {									\
	m = good;							\
	__VA_ARGS__;							\
	err = map_once(vcpu, &m);					\
	TEST_ASSERT(err == EINVAL, "line %d: errno %d", __LINE__, err);	\
} while (0)

	for (i = 4; i < 64; i++) {
		m = good;
		m.flags = BIT_ULL(i);
		TEST_ASSERT_EQ(map_once(vcpu, &m), EINVAL);
		m.flags |= WRITE | EXEC | USER;
		TEST_ASSERT_EQ(map_once(vcpu, &m), EINVAL);
	}
	rejects(m.flags = PRIVATE);
	rejects(m.flags = PRIVATE, m.source = (uintptr_t)source);
	/* Also where nothing is. */
	rejects(m.flags = PRIVATE, m.base_gfn += 16);

	rejects(m.nr_pages = 0);
	rejects(m.nr_pages = 0, m.base_gfn = 0);
	rejects(m.nr_pages = 0, m.source = (uintptr_t)source);

	rejects(m.nr_pages = ~0ull);
	rejects(m.nr_pages = -m.base_gfn);
	rejects(m.nr_pages = -m.base_gfn + 16);
	rejects(m.nr_pages = 1ull << 52);
	rejects(m.base_gfn = ~0ull);
	rejects(m.base_gfn = ~0ull, m.nr_pages = 1);
	rejects(m.base_gfn = 1ull << 52);
	/* As bytes, this would be the slot. */
	rejects(m.base_gfn |= 1ull << 52);
	rejects(m.base_gfn |= 1ull << 63);

	rejects(m.base_gfn = nr_gfns);
	rejects(m.base_gfn = nr_gfns, m.nr_pages = 1);
	rejects(m.base_gfn = nr_gfns - 15);
	rejects(m.nr_pages = nr_gfns - m.base_gfn + 1);

	for (i = 1; i < PAGE_SIZE; i = 2 * i + 1)
		rejects(m.source = (uintptr_t)source + i);
	rejects(m.source = 1);
	rejects(m.source = -PAGE_SIZE, m.nr_pages = 2);
	rejects(m.source = -15 * PAGE_SIZE);
	rejects(m.source = PAGE_SIZE, m.base_gfn = 0, m.nr_pages = 1ull << 52);
#undef rejects

	/* None of this had an effect. */
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages);
	TEST_ASSERT(!(pagemap_entry(mem) & PM_PRESENT), "Memory was allocated");

	/* The highest frames are just not there. */
	m = good;
	m.base_gfn = nr_gfns - 1;
	m.nr_pages = 1;
	TEST_ASSERT_EQ(map_once(vcpu, &m), ENOENT);
	m.base_gfn = nr_gfns - 16;
	m.nr_pages = 16;
	TEST_ASSERT_EQ(map_once(vcpu, &m), ENOENT);
	/* Up to there, the size is no error. */
	m = good;
	m.nr_pages = nr_gfns - m.base_gfn;
	TEST_ASSERT_EQ(map_once(vcpu, &m), ENOENT);
	TEST_ASSERT_EQ(m.base_gfn, good.base_gfn + 16);

	/* A vCPU that has not been told otherwise has 36 bits. */
	no_cpuid = __vm_vcpu_add(vm, 1);
	m = good;
	TEST_ASSERT_EQ(map_once(no_cpuid, &m), 0);
	m = mapping(BIT_ULL(36) - PAGE_SIZE, 1, 0, NULL);
	TEST_ASSERT_EQ(map_once(no_cpuid, &m), ENOENT);
	m.nr_pages = 2;
	TEST_ASSERT_EQ(map_once(no_cpuid, &m), EINVAL);
	m = mapping(BIT_ULL(36), 1, 0, NULL);
	TEST_ASSERT_EQ(map_once(no_cpuid, &m), EINVAL);
}

TEST_F(map, argument_memory)
{
	struct kvm_memory_mapping *m, good = mapping(gpa(0), 16, WRITE, NULL);
	void *mem = new_mem(16);
	u8 *page = new_mem(2);

	set_slot(SLOT, 0, 0, 16, mem);

#define faults(ptr)							\
	TEST_ASSERT(__vcpu_ioctl(vcpu, KVM_MAP_MEMORY,			\
				 (struct kvm_memory_mapping *)(ptr)) &&	\
		    errno == EFAULT, "Errno %d", errno)

	munmap(page + PAGE_SIZE, PAGE_SIZE);
	faults(NULL);
	faults(-PAGE_SIZE);
	faults(page + PAGE_SIZE);
	/* It cannot be read to its end. */
	m = (void *)page + PAGE_SIZE - sizeof(*m) + 8;
	memcpy(m, &good, sizeof(good) - 8);
	faults(m);

	/* It cannot be written. */
	m = (void *)page;
	*m = good;
	mprotect(page, PAGE_SIZE, PROT_READ);
	faults(m);
	TEST_ASSERT(!memcmp(m, &good, sizeof(good)), "The struct has changed");
#undef faults

	/* It need not be aligned. */
	mprotect(page, PAGE_SIZE, PROT_READ | PROT_WRITE);
	m = (void *)page + 3;
	memcpy(m, &good, sizeof(good));
	TEST_ASSERT_EQ(__vcpu_ioctl(vcpu, KVM_MAP_MEMORY, m), 0);
	memcpy(&good, m, sizeof(good));
	TEST_ASSERT_EQ(good.nr_pages, 0);
	guest_faults(0, GUEST_WRITE, 0, 16);
}

/* The struct may lie in the memory that is populated. */
TEST_F(map, argument_in_guest_memory)
{
	struct kvm_memory_mapping *m;
	void *mem = new_mem(4);

	set_slot(SLOT, 0, 0, 4, mem);
	m = mem;
	*m = mapping(gpa(0), 4, 0, NULL);
	TEST_ASSERT_EQ(map_once(vcpu, m), 0);
	*m = mapping(gpa(0), 4, WRITE, new_pattern(4, 1));
	TEST_ASSERT(!__vcpu_ioctl(vcpu, KVM_MAP_MEMORY, m), "errno %d", errno);
	TEST_ASSERT_EQ(m->nr_pages, 0);
	TEST_ASSERT_EQ(m->base_gfn, gpa(4) >> PAGE_SHIFT);
	mem_is(hva(mem, 1), 3, 2);
}

/* What the test of the first proposal did. */
TEST_F(map, first_proposal)
{
	const u64 nr = HUGE_PAGES + 1;

	TEST_ASSERT_EQ(WINDOW_GPA, 3ul * SZ_1G);
	set_slot(SLOT, 0, 0, nr, new_mem(nr));

	map(0, HUGE_PAGES, READ, NULL);
	map(HUGE_PAGES, 1, READ, NULL);
	map_fails(nr, 1, READ, NULL, ENOENT, 0);
	guest_faults(0, GUEST_READ, 0, nr);

	map(0, HUGE_PAGES, WRITE, NULL);
	map(HUGE_PAGES, 1, WRITE, NULL);
	map_fails(nr, 1, WRITE, NULL, ENOENT, 0);
	map_fails(HUGE_PAGES, 2, WRITE, NULL, ENOENT, 1);
	guest_faults(0, GUEST_WRITE, 0, nr);
}

TEST_F(map, no_faults)
{
	const u64 nr = 200;
	u64 pages;

	set_slot(SLOT, 0, 0, 5 * nr, new_mem(5 * nr));
	pages = vm_get_stat(vm, pages_4k);

	/* That they would be seen. */
	guest_faults(nr, GUEST_WRITE, 0, nr);

	map(nr, nr, READ, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + 2 * nr);
	guest_faults(0, GUEST_READ, nr, nr);

	map(2 * nr, nr, WRITE, NULL);
	guest_faults(0, GUEST_READ, 2 * nr, nr);
	guest_faults(0, GUEST_WRITE, 2 * nr, nr);

	map(3 * nr, nr, USER, NULL);
	guest_faults(0, GUEST_READ, 3 * nr, nr);

	map(4 * nr, nr, WRITE | EXEC | USER, NULL);
	guest_faults(0, GUEST_WRITE, 4 * nr, nr);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + 5 * nr);

	/* Again, which does nothing. */
	map(0, 5 * nr, WRITE, NULL);
	map(0, 5 * nr, READ, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + 5 * nr);
	guest_faults(0, GUEST_WRITE, 0, 5 * nr);
}

/* A mapping that can only be read is not good enough for a write. */
TEST_F(map, write_after_read)
{
	void *mem = new_mem(64);
	unsigned long log = 0;

	set_slot(SLOT, 0, 0, 64, mem);

	/* The zero page. */
	map(0, 32, READ, NULL);
	guest_faults(0, GUEST_READ, 0, 32);
	TEST_ASSERT(run_guest_op(GUEST_WRITE, 16, 16, 0) >= 16,
		    "The guest can write to the zero page");
	map(0, 32, WRITE, NULL);
	guest_faults(0, GUEST_WRITE, 0, 32);

	/* Memory that has been used. */
	memset(hva(mem, 32), 1, 32 * PAGE_SIZE);
	map(32, 32, READ, NULL);
	map(32, 32, WRITE, NULL);
	guest_faults(0, GUEST_WRITE, 32, 32);

	/* Write protection by the dirty log. */
	set_slot(SLOT, LOG, 0, 64, mem);
	kvm_vm_get_dirty_log(vm, SLOT, &log);
	map(0, 64, READ, NULL);
	kvm_vm_get_dirty_log(vm, SLOT, &log);
	guest_faults(faults_of_log(1), GUEST_WRITE, 0, 1);
	map(0, 64, WRITE, NULL);
	guest_faults(0, GUEST_WRITE, 0, 64);
	kvm_vm_get_dirty_log(vm, SLOT, &log);
	TEST_ASSERT_EQ(log, ~0ul);
}

TEST_F(map, zero_page)
{
	u8 *mem = new_mem(4);
	int i;

	if (!pfn(&i))
		SKIP(return, "No PFNs in pagemap");

	set_slot(SLOT, 0, 0, 4, mem);
	map(0, 4, READ, NULL);
	for (i = 1; i < 4; i++)
		TEST_ASSERT(pfn(mem) && pfn(mem) == pfn(hva(mem, i)),
			    "Memory was allocated for page 0 or %d", i);
	map(0, 4, EXEC | USER, NULL);
	TEST_ASSERT_EQ(pfn(mem), pfn(hva(mem, 3)));

	map(0, 4, WRITE, NULL);
	for (i = 1; i < 4; i++)
		TEST_ASSERT(pfn(mem) != pfn(hva(mem, i)),
			    "Pages 0 and %d are the same", i);
}

TEST_F(map, private_file)
{
	int fd = kvm_memfd_alloc(8 * PAGE_SIZE, false), i;
	u8 *file = kvm_mmap(8 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			    fd);
	u8 *mem = map_at(reserve(8), 8, PROT_READ | PROT_WRITE, MAP_PRIVATE,
			 fd);

	fill(file, 8, 1);
	set_slot(SLOT, 0, 0, 8, mem);

	map(0, 8, READ, NULL);
	for (i = 0; i < 8; i++)
		TEST_ASSERT(pagemap_entry(hva(mem, i)) & PM_FILE,
			    "Page %d is not the file's", i);
	guest_faults(0, GUEST_READ, 0, 8);
	fill(file, 8, 100);
	guest_sees(0, 8, 100);

	map(0, 4, WRITE, NULL);
	for (i = 0; i < 8; i++)
		TEST_ASSERT(!(pagemap_entry(hva(mem, i)) & PM_FILE) == (i < 4),
			    "Page %d is %sthe file's", i, i < 4 ? "" : "not ");
	guest_faults(0, GUEST_WRITE, 0, 4);
	mem_is(file, 8, 100);
}

TEST_F(map, fork)
{
	u64 was[8];
	int i, quit[2];
	u8 *mem = new_pattern(8, 1);
	pid_t child;

	if (!pfn(mem))
		SKIP(return, "No PFNs in pagemap");

	set_slot(SLOT, 0, 0, 8, mem);
	TEST_ASSERT(!pipe(quit), "No pipe, errno %d", errno);
	child = fork();
	if (!child) {
		struct kvm_memory_mapping m = mapping(gpa(0), 8, WRITE, NULL);
		char c;

		/* The VM is its parent's. */
		TEST_ASSERT_EQ(map_once(vcpu, &m), EIO);
		close(quit[1]);
		TEST_ASSERT(!read(quit[0], &c, 1), "Not the end of the pipe");
		mem_is(mem, 8, 1);
		_exit(0);
	}
	for (i = 0; i < 8; i++)
		was[i] = pfn(hva(mem, i));
	/* It has become copy-on-write as well. */
	populate_guests_own();

	map(0, 8, READ, NULL);
	for (i = 0; i < 8; i++)
		TEST_ASSERT(pfn(hva(mem, i)) == was[i], "Page %d was copied",
			    i);
	guest_faults(0, GUEST_READ, 0, 8);

	map(0, 8, WRITE, NULL);
	for (i = 0; i < 8; i++)
		TEST_ASSERT(pfn(hva(mem, i)) != was[i], "Page %d is shared", i);
	guest_faults(0, GUEST_WRITE, 0, 8);

	close(quit[1]);
	TEST_ASSERT(waitpid(child, &i, 0) == child && !i, "Child: status %d",
		    i);
}

/* Each page is another case than the one before it. */
TEST_F(map, mixed_pages)
{
	const u64 nr = 100;
	u8 *mem = new_mem(nr);
	u64 i, pages, was[100];
	int quit[2], status;
	pid_t child;

	if (!pfn(&i))
		SKIP(return, "No PFNs in pagemap");

	for (i = 0; i < nr; i += 4)
		fill(hva(mem, i), 1, i);
	TEST_ASSERT(!pipe(quit), "No pipe, errno %d", errno);
	child = fork();
	if (!child) {
		char c;

		close(quit[1]);
		TEST_ASSERT(!read(quit[0], &c, 1), "Not the end of the pipe");
		for (i = 0; i < nr; i += 4)
			mem_is(hva(mem, i), 1, i);
		_exit(0);
	}
	populate_guests_own();

	/* 0: copy-on-write, 1: present, 2: the zero page, 3: none. */
	for (i = 1; i < nr; i += 4)
		fill(hva(mem, i), 1, i);
	for (i = 2; i < nr; i += 4)
		READ_ONCE(mem[i * PAGE_SIZE]);
	for (i = 0; i < nr; i++)
		was[i] = pfn(hva(mem, i));
	set_slot(SLOT, 0, 0, nr, mem);
	pages = vm_get_stat(vm, pages_4k);
	/* Some are mapped already. */
	for (i = 5; i < nr; i += 12)
		guest_faults(1, GUEST_READ, i, 1);

	map(0, nr, READ, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + nr);
	guest_faults(0, GUEST_READ, 0, nr);
	for (i = 0; i < nr; i++)
		TEST_ASSERT(i % 4 == 3 || pfn(hva(mem, i)) == was[i],
			    "Page %lu was copied", i);
	for (i = 0; i < nr; i++)
		if (i % 4 < 2)
			guest_sees(i, 1, i);

	map(0, nr, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + nr);
	for (i = 0; i < nr; i++)
		if (i % 4 < 2)
			guest_sees(i, 1, i);
	guest_faults(0, GUEST_WRITE, 0, nr);

	close(quit[1]);
	TEST_ASSERT(waitpid(child, &status, 0) == child && !status,
		    "Child: status %d", status);
}

TEST_F_TIMEOUT(map, ksm, 60)
{
	u8 *mem = new_mem(2);
	char was[16];
	int i;

	memset(mem, 0x5a, 2 * PAGE_SIZE);
	if (!pfn(mem) || !read_attr(KSM_RUN, was, sizeof(was)) ||
	    madvise(mem, 2 * PAGE_SIZE, MADV_MERGEABLE) ||
	    !write_attr(KSM_RUN, "1"))
		SKIP(return, "No KSM");
	for (i = 0; i < 2000 && pfn(mem) != pfn(hva(mem, 1)); i++)
		usleep(10000);
	write_attr(KSM_RUN, was);
	if (pfn(mem) != pfn(hva(mem, 1)))
		SKIP(return, "KSM does not merge");

	set_slot(SLOT, 0, 0, 2, mem);
	map(0, 2, READ, NULL);
	TEST_ASSERT(pfn(mem) == pfn(hva(mem, 1)), "A page was copied");
	guest_faults(0, GUEST_READ, 0, 2);
	map(0, 2, WRITE, NULL);
	TEST_ASSERT(pfn(mem) != pfn(hva(mem, 1)), "The page is shared");
	guest_faults(0, GUEST_WRITE, 0, 2);
}

static void check_huge_pages(u8 *mem)
{
	u64 huge = vm_get_stat(vm, pages_2m), small = vm_get_stat(vm, pages_4k);

	set_slot(SLOT, 0, 0, 2 * HUGE_PAGES, mem);

	/* From the middle of a huge page. */
	map(100, 1, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 1);
	guest_faults(0, GUEST_WRITE, 0, HUGE_PAGES);
	map(HUGE_PAGES - 3, 4, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 2);
	map(0, 2 * HUGE_PAGES, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 2);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), small);
	guest_faults(0, GUEST_WRITE, 0, 2 * HUGE_PAGES);

	/* What is mapped at once is not all that is to be filled. */
	map(10, HUGE_PAGES, WRITE, new_pattern(HUGE_PAGES, 7));
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 2);
	guest_sees(10, HUGE_PAGES, 7);
	mem_is(hva(mem, 10), HUGE_PAGES, 7);

	/* Not aligned like the memory: small. */
	vm_set_user_memory_region(vm, SLOT, 0, 0, 0, NULL);
	populate_guests_own();
	small = vm_get_stat(vm, pages_4k);
	set_slot(SLOT, 0, 1, HUGE_PAGES, mem);
	map(1, HUGE_PAGES, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), small + HUGE_PAGES);
	guest_faults(0, GUEST_WRITE, 1, HUGE_PAGES);

	/* A slot with a log: small. */
	vm_set_user_memory_region(vm, SLOT, 0, 0, 0, NULL);
	populate_guests_own();
	small = vm_get_stat(vm, pages_4k);
	set_slot(SLOT, LOG, 0, HUGE_PAGES, mem);
	map(0, HUGE_PAGES, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), small + HUGE_PAGES);
	guest_faults(0, GUEST_WRITE, 0, HUGE_PAGES);
}

TEST_F_TIMEOUT(map, hugetlb, 60)
{
	void *mem = try_hugetlb(2 * HUGE_PAGES);

	if (!mem)
		SKIP(return, "No huge pages");
	check_huge_pages(mem);
}

TEST_F_TIMEOUT(map, thp, 60)
{
	void *mem = try_thp(2 * HUGE_PAGES);

	if (!mem)
		SKIP(return, "No transparent huge pages");
	check_huge_pages(mem);
}

TEST_F_TIMEOUT(map, exec_nx_huge_pages, 60)
{
	void *mem = try_hugetlb(2 * HUGE_PAGES);
	u64 huge, small;
	char was[16];

	if (!mem)
		mem = try_thp(2 * HUGE_PAGES);
	if (!mem)
		SKIP(return, "No huge pages");
	if (!read_attr(NX_HUGE_PAGES, was, sizeof(was)) ||
	    !write_attr(NX_HUGE_PAGES, "force"))
		SKIP(return, "No nx_huge_pages");
	/* It was, or will be, zapped. */
	populate_guests_own();

	/* The instruction RET, all over. */
	memset(mem, 0xc3, 2 * SZ_2M);
	set_slot(SLOT, 0, 0, 2 * HUGE_PAGES, mem);
	huge = vm_get_stat(vm, pages_2m);
	small = vm_get_stat(vm, pages_4k);

	map(0, HUGE_PAGES, EXEC, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), small + HUGE_PAGES);
	guest_faults(0, GUEST_CALL, 0, HUGE_PAGES);

	/* Without EXEC it is huge, and good for data only. */
	map(HUGE_PAGES, HUGE_PAGES, READ, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 1);
	guest_faults(0, GUEST_READ, HUGE_PAGES, HUGE_PAGES);
	guest_faults(1, GUEST_CALL, HUGE_PAGES, 1);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge);
	map(HUGE_PAGES, HUGE_PAGES, EXEC, NULL);
	guest_faults(0, GUEST_CALL, HUGE_PAGES, HUGE_PAGES);

	TEST_ASSERT(write_attr(NX_HUGE_PAGES, "off"), "errno %d", errno);
	populate_guests_own();
	huge = vm_get_stat(vm, pages_2m);
	map(0, 2 * HUGE_PAGES, EXEC, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 2);
	guest_faults(0, GUEST_CALL, 0, 2 * HUGE_PAGES);
	TEST_ASSERT(write_attr(NX_HUGE_PAGES, was), "errno %d", errno);
}

static void check_log(int line, u64 first, u64 nr)
{
	DECLARE_BITMAP(log, 256);
	u64 i;

	bitmap_zero(log, 256);
	kvm_vm_get_dirty_log(vm, SLOT, log);
	for (i = 0; i < 256; i++)
		TEST_ASSERT(test_bit(i, log) == (i >= first && i < first + nr),
			    "line %d: page %lu is %s", line, i,
			    test_bit(i, log) ? "dirty" : "clean");
}

#define log_is(first, nr) check_log(__LINE__, first, nr)

TEST_F(map, dirty_log)
{
	void *mem = new_mem(256), *source = new_pattern(100, 1);

	set_slot(SLOT, LOG, 0, 256, mem);
	log_is(0, 0);
	/* The zero page is not writable, and thus not dirty. */
	map(0, 100, READ, NULL);
	log_is(0, 0);

	map(3, 130, WRITE, NULL);
	log_is(3, 130);
	log_is(0, 0);
	map(3, 130, WRITE, NULL);
	log_is(3, 130);

	map(60, 100, READ, source);
	log_is(60, 100);
	map(1, 1, EXEC | WRITE, source);
	log_is(1, 1);
	map(156, 100, WRITE, source);
	log_is(156, 100);
	guest_sees(156, 100, 1);

	/* Up to where it got. */
	map_fails(250, 10, WRITE, NULL, ENOENT, 6);
	log_is(250, 6);
	munmap(hva(source, 5), PAGE_SIZE);
	map_fails(10, 10, WRITE, source, EFAULT, 5);
	kvm_vm_get_dirty_log(vm, SLOT, hva(source, 10));

	/* None of it is lost on the guest. */
	map(20, 20, WRITE, NULL);
	guest_faults(0, GUEST_WRITE, 20, 20);
	log_is(20, 20);
	guest_faults(faults_of_log(20), GUEST_WRITE, 20, 20);
	log_is(20, 20);
}

/* Returns how many entries were collected. */
static u32 collect_ring(u32 *next, u64 nr, unsigned long *dirty)
{
	struct kvm_dirty_gfn *gfns = vcpu_map_dirty_ring(vcpu), *gfn;
	u32 n;

	for (n = 0; ; n++) {
		gfn = &gfns[(*next)++ % RING_ENTRIES];
		/* KVM sets this last ... */
		if (smp_load_acquire(&gfn->flags) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		TEST_ASSERT(gfn->slot == SLOT && gfn->offset < nr,
			    "Slot %u, page %llu", gfn->slot, gfn->offset);
		__set_bit(gfn->offset, dirty);
		/* ... and reads it first. */
		smp_store_release(&gfn->flags, KVM_DIRTY_GFN_F_RESET);
	}
	--*next;
	TEST_ASSERT_EQ(kvm_vm_reset_dirty_ring(vm), n);
	return n;
}

TEST(dirty_ring)
{
	const u64 nr = 3 * RING_ENTRIES;
	struct kvm_memory_mapping m;
	unsigned long *dirty = bitmap_zalloc(nr);
	void *source = new_pattern(nr, 1), *mem = new_mem(nr);
	int round, i, err, nr_full;
	u32 next = 0;
	u64 left;

	if (!kvm_has_cap(KVM_CAP_DIRTY_LOG_RING) &&
	    !kvm_has_cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		SKIP(return, "No dirty ring");

	vm = vm_create(1);
	vm_enable_dirty_ring(vm, RING_ENTRIES * sizeof(struct kvm_dirty_gfn));
	vcpu = vm_vcpu_add(vm, 0, guest_code);
	set_up_guest();
	set_slot(SLOT, LOG, 0, nr, mem);

	for (round = 0; round < 4; round++) {
		bitmap_zero(dirty, nr);
		nr_full = 0;
		/* Without WRITE, the pages may be in the ring once or twice. */
		m = mapping(gpa(0), nr, round % 2 ? 0 : WRITE,
			    round ? source : NULL);
		while ((err = map_once(vcpu, &m))) {
			TEST_ASSERT(err == ENOSPC, "errno %d", err);
			TEST_ASSERT_EQ(vcpu->run->exit_reason,
				       KVM_EXIT_DIRTY_RING_FULL);
			left = m.nr_pages;
			vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
			TEST_ASSERT_EQ(map_once(vcpu, &m), ENOSPC);
			TEST_ASSERT_EQ(vcpu->run->exit_reason,
				       KVM_EXIT_DIRTY_RING_FULL);
			TEST_ASSERT_EQ(m.nr_pages, left);

			TEST_ASSERT(collect_ring(&next, nr, dirty),
				    "The full ring is empty");
			for (i = 0; i < nr - left; i++)
				TEST_ASSERT(test_bit(i, dirty),
					    "Page %d is not in the ring", i);
			nr_full++;
		}
		collect_ring(&next, nr, dirty);
		for (i = 0; i < nr; i++)
			TEST_ASSERT(test_bit(i, dirty),
				    "Page %d was not in the ring", i);
		TEST_ASSERT(nr_full >= 2, "Full only %d times", nr_full);
		if (round)
			mem_is(mem, nr, 1);
		memset(mem, 0, nr * PAGE_SIZE);
	}

	/* The vCPU itself goes on, too. */
	guest_faults(0, GUEST_READ, 0, 0);
	bitmap_free(dirty);
	kvm_vm_free(vm);
}

TEST_F(map, hole)
{
	u8 *mem = new_pattern(32, 1), *source = new_pattern(32, 100);
	u64 flags;

	map_fails(0, 32, READ, NULL, ENOENT, 0);
	set_slot(SLOT, 0, 0, 12, mem);
	set_slot(OTHER_SLOT, 0, 20, 12, hva(mem, 20));

	for (flags = 0; flags <= (WRITE | EXEC | USER); flags++) {
		map_fails(0, 32, flags, NULL, ENOENT, 12);
		map_fails(12, 20, flags, NULL, ENOENT, 0);
		map_fails(19, 2, flags, NULL, ENOENT, 0);
		map(20, 12, flags, NULL);
	}
	guest_faults(0, GUEST_WRITE, 20, 12);

	fill(mem, 32, 1);
	map_fails(4, 28, 0, source, ENOENT, 8);
	mem_is(mem, 4, 1);
	mem_is(hva(mem, 4), 8, 100);
	mem_is(hva(mem, 12), 20, 13);
	map(20, 12, WRITE, hva(source, 16));
	mem_is(hva(mem, 20), 12, 116);

	/* From one slot into the next is no hole. */
	vm_set_user_memory_region(vm, OTHER_SLOT, 0, 0, 0, NULL);
	set_slot(OTHER_SLOT, 0, 12, 20, hva(mem, 12));
	populate_guests_own();
	map(0, 32, WRITE, source);
	guest_sees(0, 32, 100);
	guest_faults(0, GUEST_WRITE, 0, 32);

	/* What once was a hole is one no more. */
	map_fails(32, 1, READ, NULL, ENOENT, 0);
	set_slot(SLOT + 2, 0, 32, 1, new_mem(1));
	map(32, 1, WRITE, NULL);
	guest_faults(0, GUEST_WRITE, 32, 1);
}

/* With nothing that page tables could be made for. */
TEST(no_memslot)
{
	u8 *source = new_pattern(16, 100);
	u64 flags;

	vm = vm_create_barebones();
	vcpu = __vm_vcpu_add(vm, 0);
	for (flags = 0; flags <= (WRITE | EXEC | USER); flags++) {
		map_fails(0, 16, flags, NULL, ENOENT, 0);
		map_fails(0, 16, flags, source, ENOENT, 0);
		expect_map(__LINE__, 0, 1, flags, NULL, ENOENT, 0);
	}
	kvm_vm_free(vm);
}

TEST_F(map, read_only_slot)
{
	u8 *mem = new_pattern(16, 1), *source = new_pattern(32, 100);

	set_slot(SLOT, KVM_MEM_READONLY, 0, 16, mem);
	map(0, 16, READ, NULL);
	map(0, 16, EXEC | USER, NULL);
	guest_faults(0, GUEST_READ, 0, 16);
	map_fails(0, 16, WRITE, NULL, ENOENT, 0);
	map_fails(0, 16, WRITE | EXEC, NULL, ENOENT, 0);
	map_fails(0, 16, READ, source, ENOENT, 0);
	map_fails(0, 16, WRITE, source, ENOENT, 0);
	mem_is(mem, 16, 1);
	guest_sees(0, 16, 1);

	/* Next to one that is not. */
	set_slot(OTHER_SLOT, 0, 16, 16, new_mem(16));
	populate_guests_own();
	map(0, 32, READ, NULL);
	map_fails(12, 20, WRITE, NULL, ENOENT, 0);
	map(16, 16, WRITE, source);
	guest_sees(16, 16, 100);
}

TEST_F(map, host_mappings)
{
	u8 *mem = new_pattern(16, 1), *source = new_pattern(16, 100);
	void *sources[] = { NULL, source };
	int i;

	set_slot(SLOT, 0, 0, 16, mem);

	mprotect(hva(mem, 5), PAGE_SIZE, PROT_NONE);
	for (i = 0; i < 2; i++) {
		map_fails(0, 16, READ, sources[i], EFAULT, 5);
		map_fails(0, 16, WRITE, sources[i], EFAULT, 5);
		map_fails(5, 1, EXEC, sources[i], EFAULT, 0);
	}

	mprotect(hva(mem, 5), PAGE_SIZE, PROT_READ);
	map(0, 16, READ, NULL);
	map(0, 16, EXEC, NULL);
	guest_faults(0, GUEST_READ, 0, 16);
	map_fails(0, 16, WRITE, NULL, EFAULT, 5);
	map_fails(0, 16, READ, source, EFAULT, 5);
	map_fails(0, 16, WRITE, source, EFAULT, 5);
	mem_is(hva(mem, 5), 1, 6);

	munmap(hva(mem, 5), PAGE_SIZE);
	for (i = 0; i < 2; i++) {
		map_fails(0, 16, READ, sources[i], EFAULT, 5);
		map_fails(0, 16, WRITE, sources[i], EFAULT, 5);
	}
	/* To call again meets it again. */
	map_fails(5, 11, READ, NULL, EFAULT, 0);
	map(6, 10, WRITE, source);
	mem_is(hva(mem, 6), 10, 100);

	/* There is something again. */
	map_at(hva(mem, 5), 1, PROT_READ | PROT_WRITE,
	       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	map(0, 16, WRITE, source);
	guest_sees(0, 16, 100);
	guest_faults(0, GUEST_WRITE, 0, 16);
}

TEST_F(map, end_of_file)
{
	int i, fd = kvm_memfd_alloc(4 * PAGE_SIZE, false);
	u8 *mem, *source = new_pattern(8, 100);

	for (i = 0; i < 2; i++) {
		mem = map_at(reserve(8), 8, PROT_READ | PROT_WRITE,
			     i ? MAP_PRIVATE : MAP_SHARED, fd);
		set_slot(SLOT + i, 0, 8 * i, 8, mem);
		map_fails(8 * i, 8, READ, NULL, EFAULT, 4);
		map_fails(8 * i, 8, WRITE, NULL, EFAULT, 4);
		map_fails(8 * i, 8, READ, source, EFAULT, 4);
		guest_faults(0, GUEST_WRITE, 8 * i, 4);
		fill(mem, 4, 1);
	}

	/* The same of a source. */
	set_slot(SLOT + 2, 0, 16, 8, source);
	map_fails(16, 8, WRITE, mem, EFAULT, 4);
	mem_is(source, 4, 1);
	mem_is(hva(source, 4), 4, 104);

	TEST_ASSERT(!ftruncate(fd, 8 * PAGE_SIZE), "errno %d", errno);
	map(0, 16, WRITE, NULL);
	guest_faults(0, GUEST_WRITE, 0, 16);
	TEST_ASSERT(!ftruncate(fd, 2 * PAGE_SIZE), "errno %d", errno);
	map_fails(0, 8, READ, NULL, EFAULT, 2);
}

static u8 *uffd_mem;
static u64 uffd_tag;
static int nr_uffd;
/* The thread that is sent a signal at the fault at this page. */
static int uffd_kill_page = -1;
static pid_t uffd_kill_tid;
/* The first of these is not resolved. */
static bool uffd_ignore;
/* Called before a fault is resolved. */
static void (*uffd_hook)(void);

static int resolve(int mode, int uffd, struct uffd_msg *msg)
{
	u8 *at = (u8 *)(msg->arg.pagefault.address & PAGE_MASK);
	u64 page = (at - uffd_mem) / PAGE_SIZE;
	struct uffdio_copy copy = {
		.dst = (uintptr_t)at,
		.len = PAGE_SIZE,
	};
	u64 contents[PAGE_SIZE / sizeof(u64)];

	if (page == uffd_kill_page) {
		syscall(__NR_tgkill, getpid(), uffd_kill_tid, SIGUSR1);
		if (uffd_ignore) {
			uffd_ignore = false;
			return 0;
		}
	}
	if (uffd_hook)
		uffd_hook();
	fill(contents, 1, uffd_tag + page);
	copy.src = (uintptr_t)contents;
	/* Who waits for the page may go on, and look, before this returns. */
	WRITE_ONCE(nr_uffd, nr_uffd + 1);
	if (!ioctl(uffd, UFFDIO_COPY, &copy))
		return 0;
	WRITE_ONCE(nr_uffd, nr_uffd - 1);
	return errno == EEXIST ? 0 : -errno;
}

static struct uffd_desc *start_uffd(u8 *mem, u64 nr, u64 tag)
{
	uffd_mem = mem;
	uffd_tag = tag;
	nr_uffd = 0;
	return uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0, mem,
					nr * PAGE_SIZE, 1, resolve);
}

TEST_F(map, userfaultfd)
{
	u8 *mem = new_mem(48), *source = new_pattern(16, 100);
	u8 *uffd_source = new_mem(16);
	struct uffd_desc *uffd;

	uffd = start_uffd(mem, 48, 1);
	set_slot(SLOT, 0, 0, 48, mem);

	map(0, 16, READ, NULL);
	TEST_ASSERT_EQ(READ_ONCE(nr_uffd), 16);
	guest_faults(0, GUEST_READ, 0, 16);
	guest_sees(0, 16, 1);

	map(16, 16, WRITE, NULL);
	TEST_ASSERT_EQ(READ_ONCE(nr_uffd), 32);
	guest_sees(16, 16, 17);
	guest_faults(0, GUEST_WRITE, 16, 16);

	map(32, 16, WRITE, source);
	TEST_ASSERT_EQ(READ_ONCE(nr_uffd), 48);
	guest_sees(32, 16, 100);
	uffd_stop_demand_paging(uffd);

	uffd = start_uffd(uffd_source, 16, 200);
	map(0, 16, WRITE, uffd_source);
	TEST_ASSERT_EQ(READ_ONCE(nr_uffd), 16);
	guest_sees(0, 16, 200);
	uffd_stop_demand_paging(uffd);
}

static int nr_sigbus;

static void on_sigbus(int sig)
{
	nr_sigbus++;
}

TEST_F(map, hwpoison)
{
	struct sigaction sa = { .sa_handler = on_sigbus };
	u8 *mem = new_pattern(16, 1), *source = new_pattern(16, 100);
	u64 flags;

	sigaction(SIGBUS, &sa, NULL);
	/* The one that is populated and the one that is not. */
	set_slot(SLOT, 0, 0, 16, mem);
	map(0, 8, WRITE, NULL);
	if (madvise(hva(mem, 5), PAGE_SIZE, MADV_HWPOISON) ||
	    madvise(hva(mem, 10), PAGE_SIZE, MADV_HWPOISON))
		SKIP(return, "Cannot poison memory");
	/* The poisoner itself gets some. */
	nr_sigbus = 0;

	for (flags = 0; flags <= (WRITE | EXEC | USER); flags++) {
		map_fails(0, 16, flags, NULL, EHWPOISON, 5);
		map_fails(0, 16, flags, source, EHWPOISON, 5);
		map_fails(6, 10, flags, NULL, EHWPOISON, 4);
		map_fails(6, 10, flags, source, EHWPOISON, 4);
		map_fails(10, 1, flags, NULL, EHWPOISON, 0);
	}
	guest_faults(0, GUEST_READ, 0, 5);
	TEST_ASSERT_EQ(nr_sigbus, 0);

	/* A source cannot be read there. */
	set_slot(OTHER_SLOT, 0, 16, 16, source);
	populate_guests_own();
	map_fails(16, 16, WRITE, mem, EFAULT, 5);
	mem_is(hva(source, 5), 11, 105);
	TEST_ASSERT_EQ(nr_sigbus, 0);
}

/* The registers of the I/O APIC, which nobody touches here. */
TEST_F(map, device_memory)
{
	int fd = open("/dev/mem", O_RDWR);
	void *mem = MAP_FAILED;

	if (fd >= 0)
		mem = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			   fd, 0xfec00000);
	if (mem == MAP_FAILED)
		SKIP(return, "No device memory");

	set_slot(SLOT, 0, 0, 1, mem);
	map(0, 1, READ, NULL);
	map(0, 1, WRITE, NULL);
	map_fails(0, 1, WRITE, new_mem(1), EFAULT, 0);

	/* That the host itself cannot write to. */
	TEST_ASSERT(!mprotect(mem, PAGE_SIZE, PROT_READ), "errno %d", errno);
	map(0, 1, READ, NULL);
	map_fails(0, 1, WRITE, NULL, EFAULT, 0);
}

/* The page of the local APIC, if KVM has a slot there. */
TEST_F(map, internal_slot)
{
	struct kvm_memory_mapping m = mapping(APIC_DEFAULT_GPA, 1, WRITE, NULL);
	int err;

	err = map_once(vcpu, &m);
	TEST_ASSERT(!err || err == ENOENT, "errno %d", err);
	expect_map(__LINE__, APIC_DEFAULT_GPA, 1, WRITE, new_mem(1), ENOENT, 0);
}

TEST_F(map, smm)
{
	struct kvm_vcpu_events events;
	u8 *mem = new_mem(2);

	if (!kvm_has_cap(KVM_CAP_X86_SMM))
		SKIP(return, "No SMM");

	set_slot(SLOT, 0, 0, 1, mem);
	set_slot(SMM | SLOT, 0, 1, 1, hva(mem, 1));
	map_fails(0, 2, WRITE, NULL, ENOENT, 1);

	vcpu_events_get(vcpu, &events);
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = 1;
	vcpu_events_set(vcpu, &events);
	map_fails(0, 2, WRITE, NULL, ENOENT, 0);
	map(1, 1, WRITE, new_pattern(1, 7));
	mem_is(hva(mem, 1), 1, 7);
}

TEST_F(map, source)
{
	u8 *mem = new_mem(200), *source = new_pattern(200, 1000);
	int i;

	set_slot(SLOT, 0, 0, 100, mem);
	set_slot(OTHER_SLOT, 0, 100, 100, hva(mem, 100));
	fill(mem, 200, 1);

	/* Over the border of two chunks and of two slots. */
	map(50, 100, READ, source);
	mem_is(mem, 50, 1);
	mem_is(hva(mem, 50), 100, 1000);
	mem_is(hva(mem, 150), 50, 151);
	mem_is(source, 200, 1000);
	guest_faults(0, GUEST_READ, 50, 100);
	guest_sees(50, 100, 1000);

	map(0, 200, WRITE, source);
	guest_sees(0, 200, 1000);
	guest_faults(0, GUEST_WRITE, 0, 200);

	/* The memory behind the slots itself. */
	fill(mem, 200, 1);
	map(0, 200, WRITE, mem);
	guest_sees(0, 200, 1);
	/* Each page from the one above: all move down. */
	map(0, 199, READ, hva(mem, 1));
	mem_is(mem, 199, 2);
	mem_is(hva(mem, 199), 1, 200);
	/* Each page from the one below, which has been written to already. */
	fill(mem, 200, 1);
	map(1, 100, WRITE, mem);
	mem_is(hva(mem, 0), 1, 1);
	mem_is(hva(mem, 1), 1, 1);
	mem_is(hva(mem, 100), 1, 1);
	mem_is(hva(mem, 101), 99, 102);
	guest_sees(101, 99, 102);

	/* Down again, over pages that are shared until they are written to. */
	fill(mem, 200, 1);
	madvise(hva(mem, 10), 5 * PAGE_SIZE, MADV_DONTNEED);
	for (i = 10; i < 15; i++)
		READ_ONCE(mem[i * PAGE_SIZE]);
	map(0, 50, WRITE, hva(mem, 1));
	mem_is(mem, 9, 2);
	for (i = 9; i < 14; i++)
		TEST_ASSERT(!*(u64 *)hva(mem, i), "Page %d is not zero", i);
	mem_is(hva(mem, 14), 36, 16);
	guest_sees(14, 36, 16);
}

TEST_F(map, source_unreadable)
{
	u8 *mem = new_pattern(16, 1), *source = new_pattern(16, 100);
	const u64 kernel[] = {
		0x7ffffffff000, 0x800000000000, 0xffff800000000000,
		0xffffffff81000000,
	};
	int i;

	set_slot(SLOT, 0, 0, 16, mem);
	mprotect(hva(source, 7), PAGE_SIZE, PROT_NONE);
	map_fails(0, 16, READ, source, EFAULT, 7);
	mem_is(mem, 7, 100);
	mem_is(hva(mem, 7), 9, 8);

	munmap(hva(source, 7), PAGE_SIZE);
	fill(mem, 16, 1);
	map_fails(2, 14, WRITE, source, EFAULT, 7);
	mem_is(mem, 2, 1);
	mem_is(hva(mem, 2), 7, 100);
	mem_is(hva(mem, 9), 7, 10);
	guest_sees(9, 7, 10);
	map_fails(9, 7, WRITE, hva(source, 7), EFAULT, 0);
	mem_is(hva(mem, 9), 7, 10);

	fill(mem, 16, 1);
	for (i = 0; i < ARRAY_SIZE(kernel); i++)
		map_fails(0, 1, WRITE, (void *)kernel[i], EFAULT, 0);
	mem_is(mem, 16, 1);
}

static void on_signal(int sig)
{
}

TEST_F(map, signal)
{
	struct sigaction sa = { .sa_handler = on_signal };
	u8 *mem = new_mem(512), *source = new_pattern(512, 1000);
	struct kvm_memory_mapping m;
	struct uffd_desc *uffd;
	u64 flags, done;
	int err;

	sigaction(SIGUSR1, &sa, NULL);
	uffd_kill_tid = syscall(__NR_gettid);
	uffd_kill_page = 200;
	for (flags = 0; flags <= WRITE; flags += WRITE) {
		/* It comes when the 200th page is being populated. */
		uffd = start_uffd(mem, 512, 1);
		set_slot(SLOT, 0, 0, 512, mem);
		m = mapping(gpa(0), 512, flags, flags ? source : NULL);
		err = map_once(vcpu, &m);
		done = 512 - m.nr_pages;
		TEST_ASSERT(err == EINTR, "errno %d", err);
		TEST_ASSERT(done >= 200 && done < 201 + CHUNK_PAGES,
			    "A signal at page 200 was seen after %lu pages",
			    done);

		TEST_ASSERT_EQ(map_all(vcpu, &m), 0);
		guest_sees(0, 512, flags ? 1000 : 1);
		TEST_ASSERT_EQ(READ_ONCE(nr_uffd), 512);

		uffd_stop_demand_paging(uffd);
		vm_set_user_memory_region(vm, SLOT, 0, 0, 0, NULL);
		madvise(mem, 512 * PAGE_SIZE, MADV_DONTNEED);
		populate_guests_own();
	}
}

/* As KVM_RUN does, it stops waiting for memory. */
TEST_F(map, signal_while_waiting)
{
	struct sigaction sa = { .sa_handler = on_signal };
	struct kvm_memory_mapping m;
	struct uffd_desc *uffd;
	u8 *mem, *source;
	int i, err;

	sigaction(SIGUSR1, &sa, NULL);
	uffd_kill_tid = syscall(__NR_gettid);
	uffd_kill_page = 40;
	/* For the page, for the page that is to have contents, for these. */
	for (i = 0; i < 3; i++) {
		mem = new_mem(64);
		source = i == 0 ? NULL :
			 i == 1 ? new_pattern(64, 1000) : new_mem(64);
		uffd_ignore = true;
		uffd = start_uffd(i == 2 ? source : mem, 64, 1);
		set_slot(SLOT, 0, 0, 64, mem);

		m = mapping(gpa(0), 64, WRITE, source);
		err = map_once(vcpu, &m);
		TEST_ASSERT(err == EINTR, "%d: errno %d", i, err);
		TEST_ASSERT(m.nr_pages == 64 - 40, "%d: %llu pages are left", i,
			    m.nr_pages);
		TEST_ASSERT_EQ(map_all(vcpu, &m), 0);
		guest_sees(0, 64, i == 1 ? 1000 : 1);

		uffd_stop_demand_paging(uffd);
		vm_set_user_memory_region(vm, SLOT, 0, 0, 0, NULL);
		populate_guests_own();
	}
}

TEST_F_TIMEOUT(map, signals, 120)
{
	struct itimerval timer = {
		.it_interval.tv_usec = 2000,
		.it_value.tv_usec = 2000,
	};
	struct sigaction sa = { .sa_handler = on_signal };
	u8 *mem = new_mem(WINDOW_PAGES), *source = new_mem(WINDOW_PAGES);
	int round, err, nr_signals = 0;
	struct kvm_memory_mapping m;

	sigaction(SIGALRM, &sa, NULL);
	set_slot(SLOT, 0, 0, WINDOW_PAGES, mem);
	for (round = 0; round < 200 && nr_signals < 5; round++) {
		fill(source, WINDOW_PAGES, round);
		setitimer(ITIMER_REAL, &timer, NULL);
		m = mapping(gpa(0), WINDOW_PAGES, WRITE, source);
		while ((err = map_once(vcpu, &m))) {
			TEST_ASSERT(err == EINTR, "errno %d", err);
			nr_signals++;
		}
		setitimer(ITIMER_REAL, &(struct itimerval){}, NULL);
		mem_is(mem, WINDOW_PAGES, round);
	}
	TEST_ASSERT(nr_signals, "No signal was seen");
}

/* A signal that is blocked is none. */
TEST_F(map, blocked_signal)
{
	sigset_t set;

	set_slot(SLOT, 0, 0, 100, new_mem(100));
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	raise(SIGUSR1);
	map(0, 100, WRITE, NULL);
}

TEST_F_TIMEOUT(map, bounded_small, 240)
{
	const u64 nr = CALL_PAGES + 100;
	u64 pages = vm_get_stat(vm, pages_4k);
	struct kvm_memory_mapping m;

	/* The zero page costs nothing. */
	vm_set_user_memory_region(vm, SLOT, 0, ELSEWHERE_GPA, nr * PAGE_SIZE,
				  new_mem(nr));
	m = mapping(ELSEWHERE_GPA, nr, READ, NULL);
	TEST_ASSERT_EQ(map_once(vcpu, &m), EAGAIN);
	TEST_ASSERT(m.nr_pages >= 100 && m.nr_pages < nr, "%llu pages left",
		    m.nr_pages);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + nr - m.nr_pages);
	TEST_ASSERT_EQ(map_all(vcpu, &m), 0);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + nr);
}

/* One huge page, over and over. */
static void *repeat_huge_page(u64 nr_pages)
{
	int fd = syscall(__NR_memfd_create, "huge", MFD_HUGETLB | MFD_HUGE_2MB);
	void *mem = reserve(nr_pages);
	u64 i;

	if (fd < 0 || ftruncate(fd, SZ_2M))
		return NULL;
	for (i = 0; i < nr_pages; i += HUGE_PAGES)
		if (mmap(hva(mem, i), SZ_2M, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			return NULL;
	return mem;
}

TEST_F_TIMEOUT(map, bounded_huge, 60)
{
	const u64 nr = SZ_1G / PAGE_SIZE;
	const u64 first[] = { 0, 1, HUGE_PAGES - 1, HUGE_PAGES + 17 };
	void *mem = repeat_huge_page(nr);
	struct kvm_memory_mapping m;
	int i, err, calls;
	u64 left;

	if (!mem)
		SKIP(return, "No huge pages");

	vm_set_user_memory_region(vm, SLOT, 0, ELSEWHERE_GPA, SZ_1G, mem);
	for (i = 0; i < ARRAY_SIZE(first); i++) {
		m = mapping(ELSEWHERE_GPA + first[i] * PAGE_SIZE, nr - first[i],
			    WRITE, NULL);
		calls = 0;
		do {
			left = m.nr_pages;
			err = map_once(vcpu, &m);
			TEST_ASSERT(!err ||
				    (err == EAGAIN && m.nr_pages < left),
				    "errno %d", err);
			/* It ends behind a huge page, and begins within one. */
			TEST_ASSERT(left - m.nr_pages <
				    CALL_PAGES + 5 * HUGE_PAGES,
				    "From 0x%lx on: %llu pages in call %d",
				    first[i], left - m.nr_pages, calls);
			calls++;
		} while (err);
		TEST_ASSERT(calls >= 4 && calls < 8, "%d calls", calls);
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), nr / HUGE_PAGES);
	}
}

static void l2_guest_code(void)
{
	GUEST_SYNC(2);
	vmcall();
}

static void l1_guest_code(void *data)
{
	GUEST_SYNC(1);
	run_nested_guest(data, l2_guest_code);
	GUEST_SYNC(3);
}

static void run_to_stage(u64 stage)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT(get_ucall(vcpu, &uc) == UCALL_SYNC && uc.args[1] == stage,
		    "Unexpected exit: %s",
		    exit_reason_str(vcpu->run->exit_reason));
}

static void check_nested(bool tdp)
{
	u8 *mem = new_mem(16), *source = new_pattern(16, 100);

	vm = vm_create_with_one_vcpu(&vcpu, l1_guest_code);
	if (tdp)
		vm_enable_tdp(vm);
	vcpu_alloc_nested(vm, vcpu);
	if (tdp)
		tdp_identity_map_default_memslots(vm);
	set_slot(SLOT, 0, 0, 16, mem);

	run_to_stage(1);
	map(0, 8, WRITE, source);
	run_to_stage(2);
	map_fails(0, 16, WRITE, NULL, EOPNOTSUPP, 0);
	map_fails(8, 8, WRITE, source, EOPNOTSUPP, 0);
	TEST_ASSERT(!(pagemap_entry(hva(mem, 8)) & PM_PRESENT),
		    "Memory was filled");
	run_to_stage(3);
	map(0, 16, WRITE, source);
	mem_is(mem, 16, 100);
	kvm_vm_free(vm);
}

TEST(nested)
{
	if (!kvm_cpu_has(X86_FEATURE_VMX) && !kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No nested virtualization");
	if (!kvm_cpu_has_tdp())
		SKIP(return, "No nested two-dimensional paging");
	check_nested(true);
}

TEST(nested_shadow)
{
	if (!kvm_cpu_has(X86_FEATURE_VMX) && !kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No nested virtualization");
	check_nested(false);
}

#define MAX_TABLES	4
#define TABLES_GVA	WINDOW_GPA

static void l1_writes_table_code(void *data)
{
	u64 *entry = (u64 *)TABLES_GVA;

	run_nested_guest(data, nested_guest_exits);
	GUEST_SYNC(1);
	WRITE_ONCE(*entry, READ_ONCE(*entry));
	GUEST_SYNC(2);
}

/*
 * L1's page tables for what L2 executes, without the last level, which KVM need not
 * write-protect.  Returns how many there are.
 */
static int find_nested_tables(gpa_t *tables)
{
	gpa_t l2_gpa = addr_gva2gpa(vm, (gva_t)nested_guest_exits);
	u64 entry = vm->stage2_mmu.pgd;
	int level, nr = 0;

	for (level = vm->stage2_mmu.pgtable_levels; level > PG_LEVEL_4K; level--) {
		tables[nr] = entry & PHYSICAL_PAGE_MASK;
		entry = ((u64 *)addr_gpa2hva(vm, tables[nr++]))
			[l2_gpa >> PG_LEVEL_SHIFT(level) & 511];
	}
	return nr;
}

static void check_nested_tables(int line, u64 flags, bool dirty)
{
	struct userspace_mem_region *own = memslot2region(vm, 0);
	u64 nr_pages = own->region.memory_size / PAGE_SIZE;
	unsigned long *log = bitmap_zalloc(nr_pages);
	gpa_t tables[MAX_TABLES];
	int i, nr = find_nested_tables(tables);

	/* What there is so far does not count. */
	kvm_vm_get_dirty_log(vm, 0, log);
	for (i = 0; i < nr; i++)
		expect_map(line, tables[i], 1, flags, NULL, 0, ALL);

	bitmap_zero(log, nr_pages);
	kvm_vm_get_dirty_log(vm, 0, log);
	for (i = 0; i < nr; i++)
		TEST_ASSERT(test_bit(tables[i] >> PAGE_SHIFT, log) == dirty,
			    "line %d: table %d is %s", line, i,
			    dirty ? "clean" : "dirty");
	bitmap_free(log);
}

#define tables_are(flags, dirty)					\
	check_nested_tables(__LINE__, flags, dirty)

/*
 * The page tables that KVM shadows stay read-only, whatever is asked for.  A page
 * that is to be written is dirty all the same.
 */
TEST(nested_tables)
{
	gpa_t tables[MAX_TABLES];
	bool read_first;
	u64 faults;

	if (!kvm_cpu_has(X86_FEATURE_VMX) && !kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No nested virtualization");
	if (!kvm_cpu_has_tdp())
		SKIP(return, "No nested two-dimensional paging");

	for (read_first = false; ; read_first = true) {
		vm = vm_create_with_one_vcpu(&vcpu, l1_writes_table_code);
		vm_enable_tdp(vm);
		vcpu_alloc_nested(vm, vcpu);
		virt_map(vm, TABLES_GVA, vm->stage2_mmu.pgd, 1);
		tdp_identity_map_default_memslots(vm);
		TEST_ASSERT(find_nested_tables(tables) <= MAX_TABLES, "Too many");
		run_to_stage(1);
		vm_mem_region_set_flags(vm, 0, LOG);

		if (read_first)
			tables_are(READ, false);
		tables_are(WRITE, true);
		/* They are mapped already. */
		tables_are(WRITE, true);
		tables_are(READ, false);

		faults = vcpu_get_stat(vcpu, pf_taken);
		run_to_stage(2);
		TEST_ASSERT(vcpu_get_stat(vcpu, pf_taken) > faults,
			    "The guest can write to a page table");
		kvm_vm_free(vm);
		if (read_first)
			break;
	}
}

FIXTURE(private) {};

#define PRIVATE_PAGES	32

static void *private_mem;

FIXTURE_SETUP(private)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "No VM with private memory");

	vm = vm_create_shape_with_one_vcpu(shape, &vcpu, guest_code);
	set_up_guest();
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, WINDOW_GPA, SLOT,
				    PRIVATE_PAGES, KVM_MEM_GUEST_MEMFD);
	private_mem = addr_gpa2hva(vm, WINDOW_GPA);
}

FIXTURE_TEARDOWN(private)
{
	kvm_vm_free(vm);
}

static void set_private(u64 page, u64 nr)
{
	vm_mem_set_private(vm, gpa(page), nr * PAGE_SIZE);
}

static void set_shared(u64 page, u64 nr)
{
	vm_mem_set_shared(vm, gpa(page), nr * PAGE_SIZE);
}

static void expect_map_faults(int line, u64 page, u64 nr, u64 flags,
			      const void *source, u64 done)
{
	struct kvm_run *run = vcpu->run;

	run->exit_reason = KVM_EXIT_UNKNOWN;
	expect_map(line, gpa(page), nr, flags, source, EFAULT, done);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.gpa, gpa(page + done));
	TEST_ASSERT_EQ(run->memory_fault.size, PAGE_SIZE);
	TEST_ASSERT_EQ(run->memory_fault.flags,
		       flags & PRIVATE ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0);
}

#define map_faults(page, nr, flags, source, done)			\
	expect_map_faults(__LINE__, page, nr, flags, source, done)

TEST_F(private, map)
{
	u64 flags;

	set_private(0, PRIVATE_PAGES);
	for (flags = PRIVATE; flags < 2 * PRIVATE; flags++)
		map(2 * (flags - PRIVATE), 2, flags, NULL);
	guest_faults(0, GUEST_READ, 0, 16);
	guest_faults(0, GUEST_WRITE, 0, 16);
	TEST_ASSERT(!(pagemap_entry(private_mem) & PM_PRESENT),
		    "Private memory is shared");

	/* Shared memory of the same VM. */
	set_shared(0, PRIVATE_PAGES);
	map(0, PRIVATE_PAGES, WRITE, NULL);
	guest_faults(0, GUEST_WRITE, 0, PRIVATE_PAGES);
	TEST_ASSERT(pagemap_entry(private_mem) & PM_PRESENT,
		    "Nothing is shared");
}

TEST_F(private, mismatch)
{
	void *source = new_pattern(PRIVATE_PAGES, 1);

	fill(private_mem, PRIVATE_PAGES, 100);
	map_faults(0, 4, PRIVATE, NULL, 0);
	map_faults(0, 4, PRIVATE | WRITE, NULL, 0);
	map_faults(0, 4, PRIVATE, source, 0);

	set_private(8, 8);
	map_faults(8, 4, READ, NULL, 0);
	map_faults(8, 4, WRITE, NULL, 0);
	map_faults(8, 4, READ, source, 0);
	map_faults(0, 16, READ, NULL, 8);
	map_faults(10, 16, PRIVATE, NULL, 6);
	mem_is(private_mem, PRIVATE_PAGES, 100);

	map_faults(0, 16, WRITE, source, 8);
	mem_is(private_mem, 8, 1);
	mem_is(hva(private_mem, 8), 8, 108);
	map_faults(10, 16, PRIVATE | WRITE, source, 6);
	guest_sees(10, 6, 1);
}

TEST_F(private, source)
{
	void *source = new_pattern(PRIVATE_PAGES, 1);
	void *second = new_pattern(PRIVATE_PAGES, 500);

	fill(private_mem, PRIVATE_PAGES, 100);
	set_private(0, PRIVATE_PAGES);
	map(0, 16, PRIVATE, source);
	guest_faults(0, GUEST_READ, 0, 16);
	guest_sees(0, 16, 1);
	/* On memory that is in use. */
	map(16, 16, PRIVATE | WRITE, NULL);
	map(8, 24, PRIVATE | WRITE, second);
	guest_sees(0, 8, 1);
	guest_sees(8, 24, 500);
	guest_faults(0, GUEST_WRITE, 0, PRIVATE_PAGES);
	mem_is(private_mem, PRIVATE_PAGES, 100);
	mem_is(second, PRIVATE_PAGES, 500);

	/* A source that cannot be read. */
	map(0, PRIVATE_PAGES, PRIVATE, source);
	munmap(hva(second, 7), PAGE_SIZE);
	map_fails(0, 16, PRIVATE, second, EFAULT, 7);
	guest_sees(0, 7, 500);
	guest_sees(7, PRIVATE_PAGES - 7, 8);
}

TEST_F(private, shared_slot)
{
	void *source = new_pattern(8, 1);

	set_slot(OTHER_SLOT, 0, PRIVATE_PAGES, 8, new_mem(8));
	set_private(0, PRIVATE_PAGES + 8);
	map_faults(PRIVATE_PAGES, 4, PRIVATE, NULL, 0);
	map_faults(PRIVATE_PAGES, 4, PRIVATE, source, 0);
	map_faults(PRIVATE_PAGES, 4, WRITE, NULL, 0);
	map_faults(PRIVATE_PAGES - 2, 4, PRIVATE, source, 2);
}

TEST_F(private, no_slot)
{
	void *source = new_pattern(8, 1);

	map_fails(PRIVATE_PAGES, 4, READ, NULL, ENOENT, 0);
	set_private(0, PRIVATE_PAGES + 8);
	map_fails(PRIVATE_PAGES, 4, PRIVATE, source, ENOENT, 0);
	map_fails(PRIVATE_PAGES - 2, 4, PRIVATE, source, ENOENT, 2);
	map_fails(PRIVATE_PAGES, 4, PRIVATE, NULL, ENOENT, 0);
	map_fails(PRIVATE_PAGES - 2, 4, PRIVATE, NULL, ENOENT, 2);
}

/* A guest_memfd that is not private. */
TEST_F(map, shared_guest_memfd)
{
	const u64 flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	void *mem, *source = new_pattern(16, 1);
	int fd;

	if (!kvm_has_cap(KVM_CAP_GUEST_MEMFD) ||
	    (vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & flags) != flags)
		SKIP(return, "No guest_memfd that can be mapped");

	fd = vm_create_guest_memfd(vm, 16 * PAGE_SIZE, flags);
	mem = kvm_mmap(16 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	vm_set_user_memory_region2(vm, SLOT, KVM_MEM_GUEST_MEMFD, gpa(0),
				   16 * PAGE_SIZE, mem, fd, 0);
	map(0, 16, WRITE, NULL);
	guest_faults(0, GUEST_WRITE, 0, 16);
	map(0, 16, READ, source);
	guest_sees(0, 16, 1);
	mem_is(mem, 16, 1);
}

#define NR_VCPUS	4

static struct kvm_vcpu *vcpus[NR_VCPUS];

struct portion {
	pthread_t thread;
	struct kvm_vcpu *vcpu;
	struct kvm_memory_mapping m;
	int err;
};

static void *populate_portion(void *arg)
{
	struct portion *p = arg;

	p->err = map_all(p->vcpu, &p->m);
	return NULL;
}

static void populate_portions(struct portion *portions)
{
	int i;

	for (i = 0; i < NR_VCPUS; i++) {
		portions[i].vcpu = vcpus[i];
		kvm_pthread_create(&portions[i].thread, NULL, populate_portion,
				   &portions[i]);
	}
	for (i = 0; i < NR_VCPUS; i++) {
		kvm_pthread_join(portions[i].thread, NULL);
		TEST_ASSERT(!portions[i].err, "vCPU %d: errno %d", i,
			    portions[i].err);
	}
}

TEST(several_vcpus)
{
	const u64 nr = WINDOW_PAGES / NR_VCPUS;
	void *source = new_pattern(WINDOW_PAGES, 1000);
	struct portion portions[NR_VCPUS];
	void *mem;
	u64 pages;
	int i, round;

	vm = vm_create_with_vcpus(NR_VCPUS, guest_code, vcpus);
	vcpu = vcpus[0];
	set_up_guest();
	pages = vm_get_stat(vm, pages_4k);

	for (round = 0; round < 20; round++) {
		mem = new_mem(WINDOW_PAGES);
		set_slot(SLOT, 0, 0, WINDOW_PAGES, mem);
		for (i = 0; i < NR_VCPUS; i++) {
			/* The same memory, or a part for each. */
			if (round & 1)
				portions[i].m = mapping(gpa(0), WINDOW_PAGES,
							WRITE, NULL);
			else
				portions[i].m = mapping(gpa(i * nr), nr, WRITE,
							NULL);
			if (round & 2)
				portions[i].m.source = (uintptr_t)source;
			if ((round & 3) == 2)
				portions[i].m.source += i * nr * PAGE_SIZE;
			if (round & 4)
				portions[i].m.flags = i % 2 ? WRITE : READ;
		}
		populate_portions(portions);
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + WINDOW_PAGES);
		if (round & 2)
			guest_sees(0, WINDOW_PAGES, 1000);
		if (!(round & 4))
			guest_faults(0, GUEST_WRITE, 0, WINDOW_PAGES);
		vm_set_user_memory_region(vm, SLOT, 0, 0, 0, NULL);
		populate_guests_own();
		munmap(mem, WINDOW_PAGES * PAGE_SIZE);
	}
	kvm_vm_free(vm);
}

FIXTURE(race) {};

FIXTURE_VARIANT(race)
{
	bool zap_all;
};

/* What KVM drops when a slot is deleted: all mappings, or those of the slot. */
FIXTURE_VARIANT_ADD(race, zap_all)
{
	.zap_all = true,
};

FIXTURE_VARIANT_ADD(race, zap_slot)
{
	.zap_all = false,
};

#define RACE_PAGES	256

static void *race_mem, *race_source;
static bool stop;
static u64 nr_updates;

FIXTURE_SETUP(race)
{
	if (!variant->zap_all &&
	    !(kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) &
	      KVM_X86_QUIRK_SLOT_ZAP_ALL))
		SKIP(return, "No such quirk");

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	if (!variant->zap_all)
		vm_enable_cap(vm, KVM_CAP_DISABLE_QUIRKS2,
			      KVM_X86_QUIRK_SLOT_ZAP_ALL);
	set_up_guest();
	race_mem = new_pattern(RACE_PAGES, 0);
	race_source = new_mem(RACE_PAGES);
	set_slot(SLOT, 0, 0, RACE_PAGES, race_mem);
}

FIXTURE_TEARDOWN(race)
{
	kvm_vm_free(vm);
}

static void single(struct region_entry entry)
{
	int r = __vm_set_region_entry(vm, &entry);

	TEST_ASSERT(!r, "Update failed, errno %d", errno);
}

static void run_list(u32 nent, const struct region_entry *entries)
{
	int r = __vm_set_region_list(vm, nent, entries);

	TEST_ASSERT(!r, "Update failed, errno %d", errno);
}

#define list(...)							\
do {									\
	const struct region_entry __e[] = { __VA_ARGS__ };		\
									\
	run_list(ARRAY_SIZE(__e), __e);					\
} while (0)

static struct region_entry piece(u32 slot, u32 flags, u64 page, u64 nr)
{
	return region_set(slot, flags, gpa(page), nr * PAGE_SIZE,
			  hva(race_mem, page));
}

static void count_update(void)
{
	WRITE_ONCE(nr_updates, nr_updates + 1);
}

/* There is a slot all the time. */
static void *replace_thread(void *unused)
{
	const u64 half = RACE_PAGES / 2, all = RACE_PAGES;

	while (!READ_ONCE(stop)) {
		list(region_delete(SLOT), piece(SLOT, 0, 0, all));
		count_update();
		list(region_delete(SLOT), piece(SLOT + 1, LOG, 0, all));
		count_update();
		list(region_delete(SLOT + 1), piece(SLOT, 0, 0, half),
		     piece(SLOT + 2, 0, half, half));
		count_update();
		/* Both go elsewhere for a moment that nobody sees. */
		list(region_set(SLOT + 2, 0, ELSEWHERE_GPA, half * PAGE_SIZE,
				hva(race_mem, half)),
		     region_delete(SLOT), piece(SLOT + 3, 0, 0, half),
		     piece(SLOT + 2, 0, half, half));
		count_update();
		list(region_delete(SLOT + 3), region_delete(SLOT + 2),
		     piece(SLOT, 0, 0, all));
		count_update();
	}
	return NULL;
}

static void race(void *(*thread)(void *), bool may_miss)
{
	const u64 flags[] = { READ, WRITE, EXEC, WRITE | USER };
	u64 i, was, nr_missed = 0;
	struct kvm_memory_mapping m;
	pthread_t updater;
	bool with_source;
	int err;

	stop = false;
	nr_updates = 0;
	kvm_pthread_create(&updater, NULL, thread, NULL);

	for (i = 0; i < 20 || READ_ONCE(nr_updates) < 100; i++) {
		with_source = i % 2;
		m = mapping(gpa(0), RACE_PAGES, flags[i / 2 % 4],
			    with_source ? race_source : NULL);
		if (with_source)
			fill(race_source, RACE_PAGES, i);
		while ((err = map_all(vcpu, &m))) {
			TEST_ASSERT(err == ENOENT && may_miss,
				    "errno %d after %llu pages, round %lu", err,
				    RACE_PAGES - m.nr_pages, i);
			nr_missed++;
			/* Not all the time between two of the updates. */
			was = READ_ONCE(nr_updates);
			while (READ_ONCE(nr_updates) == was)
				cpu_relax();
		}
		mem_is(race_mem, RACE_PAGES, with_source ? i : i ? i - 1 : 0);
	}

	WRITE_ONCE(stop, true);
	kvm_pthread_join(updater, NULL);
	ksft_print_msg("%lu rounds, %lu updates, no slot %lu times\n", i,
		       nr_updates, nr_missed);
	populate_guests_own();
	map(0, RACE_PAGES, WRITE, race_source);
	guest_sees(0, RACE_PAGES, *(u64 *)race_mem / pattern(1, 0));
	guest_faults(0, GUEST_WRITE, 0, RACE_PAGES);
}

TEST_F_TIMEOUT(race, replace, 120)
{
	race(replace_thread, false);
}

static void *recreate_single_thread(void *unused)
{
	while (!READ_ONCE(stop)) {
		single(region_delete(SLOT));
		single(piece(SLOT, 0, 0, RACE_PAGES));
		count_update();
	}
	return NULL;
}

TEST_F_TIMEOUT(race, recreate_single, 120)
{
	race(recreate_single_thread, true);
}

static void *recreate_list_thread(void *unused)
{
	while (!READ_ONCE(stop)) {
		list(region_delete(SLOT));
		list(piece(SLOT, 0, 0, RACE_PAGES));
		count_update();
	}
	return NULL;
}

TEST_F_TIMEOUT(race, recreate_list, 120)
{
	race(recreate_list_thread, true);
}

static void *move_thread(void *unused)
{
	const u64 size = RACE_PAGES * PAGE_SIZE;

	while (!READ_ONCE(stop)) {
		single(region_set(SLOT, 0, ELSEWHERE_GPA, size, race_mem));
		single(piece(SLOT, 0, 0, RACE_PAGES));
		count_update();
	}
	return NULL;
}

TEST_F_TIMEOUT(race, move, 120)
{
	race(move_thread, true);
}

/* Each deletion may make the root obsolete in which the vCPU populates. */
static void *other_slot_thread(void *unused)
{
	const struct region_entry other =
		region_set(OTHER_SLOT, 0, ELSEWHERE_GPA, PAGE_SIZE, new_mem(1));

	while (!READ_ONCE(stop)) {
		single(other);
		single(region_delete(OTHER_SLOT));
		count_update();
		list(other);
		list(region_delete(OTHER_SLOT), other);
		list(region_delete(OTHER_SLOT));
		count_update();
	}
	return NULL;
}

TEST_F_TIMEOUT(race, other_slot, 120)
{
	race(other_slot_thread, false);
}

static void *log_thread(void *unused)
{
	while (!READ_ONCE(stop)) {
		single(piece(SLOT, LOG, 0, RACE_PAGES));
		list(piece(SLOT, 0, 0, RACE_PAGES));
		count_update();
	}
	return NULL;
}

TEST_F_TIMEOUT(race, log, 120)
{
	race(log_thread, false);
}

static int nr_calls;

static void *host_mapping_thread(void *unused)
{
	const size_t size = RACE_PAGES * PAGE_SIZE;
	int calls;

	while (!READ_ONCE(stop)) {
		madvise(race_mem, size, MADV_DONTNEED);
		mprotect(race_mem, size, PROT_READ);
		mprotect(race_mem, size, PROT_NONE);
		munmap(hva(race_mem, RACE_PAGES / 2), PAGE_SIZE);
		map_at(hva(race_mem, RACE_PAGES / 2), 1, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
		mprotect(race_mem, size, PROT_READ | PROT_WRITE);
		count_update();
		/* Now and then a call gets through. */
		calls = READ_ONCE(nr_calls);
		while (READ_ONCE(nr_calls) < calls + 2 && !READ_ONCE(stop))
			cpu_relax();
	}
	return NULL;
}

TEST_F_TIMEOUT(race, host_mapping, 120)
{
	struct kvm_memory_mapping m;
	int i, err, nr_faults = 0;
	pthread_t updater;

	stop = false;
	kvm_pthread_create(&updater, NULL, host_mapping_thread, NULL);
	for (i = 0; i < 200 || READ_ONCE(nr_updates) < 30; i++) {
		m = mapping(gpa(0), RACE_PAGES, i % 2 ? WRITE : READ,
			    i % 4 < 2 ? NULL : race_source);
		err = map_all(vcpu, &m);
		TEST_ASSERT(!err || err == EFAULT, "errno %d", err);
		nr_faults += !!err;
		WRITE_ONCE(nr_calls, i + 1);
	}
	WRITE_ONCE(stop, true);
	kvm_pthread_join(updater, NULL);
	TH_LOG("%d of %d calls failed", nr_faults, i);
	populate_guests_own();
	map(0, RACE_PAGES, WRITE, NULL);
	guest_faults(0, GUEST_WRITE, 0, RACE_PAGES);
}

static void *increment_thread(void *counter)
{
	while (!READ_ONCE(stop)) {
		__atomic_fetch_add((u64 *)counter, 1, __ATOMIC_RELAXED);
		nr_updates++;
	}
	return NULL;
}

/* What is the source of itself can be in use. */
TEST_F_TIMEOUT(race, source_is_the_memory, 60)
{
	u64 *counter = hva(race_mem, 8), before = *counter;
	pthread_t user;
	int i;

	stop = false;
	nr_updates = 0;
	kvm_pthread_create(&user, NULL, increment_thread, counter);
	for (i = 0; i < 20000; i++)
		map(8, 1, WRITE, counter);
	WRITE_ONCE(stop, true);
	kvm_pthread_join(user, NULL);
	TEST_ASSERT(*counter - before == nr_updates,
		    "%lu of %lu increments are left", *counter - before,
		    nr_updates);
}

static void update_memslots(void)
{
	list(region_set(OTHER_SLOT, 0, ELSEWHERE_GPA, PAGE_SIZE, uffd_mem));
	list(region_delete(OTHER_SLOT));
	count_update();
}

/* Memslots can be updated while the source is waited for. */
static void map_from_missing(u64 flags)
{
	struct uffd_desc *uffd;

	nr_updates = 0;
	uffd_hook = update_memslots;
	uffd = start_uffd(new_mem(PRIVATE_PAGES), PRIVATE_PAGES, 1);
	map(0, PRIVATE_PAGES, flags, uffd_mem);
	uffd_stop_demand_paging(uffd);
	uffd_hook = NULL;
	TEST_ASSERT_EQ(nr_updates, PRIVATE_PAGES);
	guest_sees(0, PRIVATE_PAGES, 1);
}

TEST_F(map, source_not_present)
{
	set_slot(SLOT, 0, 0, PRIVATE_PAGES, new_mem(PRIVATE_PAGES));
	map_from_missing(WRITE);
}

TEST_F(private, source_not_present)
{
	map_from_missing(WRITE);
	set_private(0, PRIVATE_PAGES);
	map_from_missing(PRIVATE | WRITE);
}

#define REPEAT_SECONDS	5
#define STUCK_SECONDS	20
#define VANISH_PAGES	PRIVATE_PAGES

/* A call that a thread makes over and over. */
static struct {
	struct kvm_memory_mapping m;
	bool may_fault;
	pid_t tid;
	u64 nr_calls, nr_signals;
	bool ended;
} repeated;

static void *repeat_call_thread(void *unused)
{
	struct kvm_memory_mapping m;
	struct timespec start;
	int err;

	repeated.tid = syscall(__NR_gettid);
	clock_gettime(CLOCK_MONOTONIC, &start);
	while (timespec_elapsed(start).tv_sec < REPEAT_SECONDS) {
		m = repeated.m;
		err = map_once(vcpu, &m);
		TEST_ASSERT(!err || err == EINTR ||
			    (err == EFAULT && repeated.may_fault), "errno %d", err);
		repeated.nr_signals += err == EINTR;
		WRITE_ONCE(repeated.nr_calls, repeated.nr_calls + 1);
	}
	WRITE_ONCE(repeated.ended, true);
	return NULL;
}

static void await_end_of_call(bool interrupt)
{
	u64 calls = READ_ONCE(repeated.nr_calls);

	while (READ_ONCE(repeated.nr_calls) == calls &&
	       !READ_ONCE(repeated.ended)) {
		/* Again, as one may come just before the call. */
		if (interrupt)
			syscall(__NR_tgkill, getpid(), repeated.tid, SIGUSR1);
		sched_yield();
	}
}

/* Fails if a call does not end. */
static void repeat_call(struct kvm_memory_mapping m, bool may_fault)
{
	struct sigaction sa = { .sa_handler = on_signal };
	struct timespec deadline;
	pthread_t caller;

	sigaction(SIGUSR1, &sa, NULL);
	memset(&repeated, 0, sizeof(repeated));
	repeated.m = m;
	repeated.may_fault = may_fault;
	kvm_pthread_create(&caller, NULL, repeat_call_thread, NULL);

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += REPEAT_SECONDS + STUCK_SECONDS;
	TEST_ASSERT(!pthread_timedjoin_np(caller, NULL, &deadline),
		    "Stuck in call %lu", repeated.nr_calls);
	ksft_print_msg("%lu calls, %lu signals\n", repeated.nr_calls,
		       repeated.nr_signals);
}

/* Must a signal end the call, before the source comes? */
static bool vanish_interrupts;
static void *vanish_contents;

/* Gives the source contents, and takes them away at some moment of a call. */
static int resolve_for_a_moment(int mode, int uffd, struct uffd_msg *msg)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)uffd_mem,
		.src = (uintptr_t)vanish_contents,
		.len = VANISH_PAGES * PAGE_SIZE,
	};
	int i;

	if (vanish_interrupts)
		await_end_of_call(true);
	else
		update_memslots();

	if (ioctl(uffd, UFFDIO_COPY, &copy))
		return errno == EEXIST ? 0 : -errno;

	await_end_of_call(false);
	for (i = nr_uffd++ % 100 * 10; i > 0; i--)
		cpu_relax();
	madvise(uffd_mem, VANISH_PAGES * PAGE_SIZE, MADV_DONTNEED);
	return 0;
}

/*
 * The source is there when a call looks for it, and gone when it copies it.  Who
 * brings it may update memslots before, and a signal ends the wait.
 */
static void map_from_vanishing(u64 flags, bool interrupt)
{
	struct uffd_desc *uffd;

	vanish_interrupts = interrupt;
	vanish_contents = new_pattern(VANISH_PAGES, 1);
	nr_uffd = 0;
	uffd_mem = new_mem(VANISH_PAGES);
	uffd = uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0, uffd_mem,
					VANISH_PAGES * PAGE_SIZE, 1,
					resolve_for_a_moment);
	repeat_call(mapping(gpa(0), VANISH_PAGES, flags, uffd_mem), false);
	uffd_stop_demand_paging(uffd);
	map(0, VANISH_PAGES, flags, new_pattern(VANISH_PAGES, 100));
	guest_sees(0, VANISH_PAGES, 100);
}

TEST_F_TIMEOUT(map, source_vanishes, 120)
{
	set_slot(SLOT, 0, 0, VANISH_PAGES, new_mem(VANISH_PAGES));
	map_from_vanishing(WRITE, false);
	map_from_vanishing(WRITE, true);
}

TEST_F_TIMEOUT(private, source_vanishes, 60)
{
	set_private(0, VANISH_PAGES);
	map_from_vanishing(PRIVATE, false);
}

TEST_F_TIMEOUT(private, source_vanishes_signal, 60)
{
	set_private(0, VANISH_PAGES);
	map_from_vanishing(PRIVATE, true);
}

static void *toggle_access_thread(void *mem)
{
	int i, round;

	for (round = 0; !READ_ONCE(repeated.ended); round++) {
		mprotect(mem, PAGE_SIZE,
			 round % 2 ? PROT_READ | PROT_WRITE : PROT_NONE);
		for (i = round * 7 % 1000; i > 0; i--)
			cpu_relax();
	}
	return NULL;
}

static int interrupt_call(int mode, int uffd, struct uffd_msg *msg)
{
	await_end_of_call(true);
	return 0;
}

/*
 * There is no access to the memory when a call looks for it, and there is when it
 * looks another time; then the memory is missing.  A signal ends the wait.
 */
TEST_F_TIMEOUT(map, memory_appears, 60)
{
	void *mem = new_mem(1), *source = new_pattern(1, 1);
	struct uffd_desc *uffd;
	pthread_t toggler;

	set_slot(SLOT, 0, 0, 1, mem);
	uffd = uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0, mem,
					PAGE_SIZE, 1, interrupt_call);
	repeated.ended = false;
	kvm_pthread_create(&toggler, NULL, toggle_access_thread, mem);
	repeat_call(mapping(gpa(0), 1, WRITE, source), true);
	kvm_pthread_join(toggler, NULL);
	uffd_stop_demand_paging(uffd);
	mprotect(mem, PAGE_SIZE, PROT_READ | PROT_WRITE);
	map(0, 1, WRITE, source);
	guest_sees(0, 1, 1);
}

static int source_round, source_delay;

static void *source_mapping_thread(void *unused)
{
	int round = 0, i;

	while (!READ_ONCE(stop)) {
		if (READ_ONCE(source_round) == round)
			continue;
		for (i = READ_ONCE(source_delay); i > 0; i--)
			cpu_relax();
		mprotect(race_source, CHUNK_PAGES * PAGE_SIZE, PROT_NONE);
		WRITE_ONCE(nr_updates, ++round);
	}
	return NULL;
}

/* A page is copied, or it is not, if the source vanishes meanwhile. */
TEST_F_TIMEOUT(race, source_mapping, 120)
{
	const size_t size = CHUNK_PAGES * PAGE_SIZE;
	struct kvm_memory_mapping m;
	int i, err, nr_faults = 0;
	pthread_t updater;
	u64 done;

	stop = false;
	fill(race_source, CHUNK_PAGES, 1);
	kvm_pthread_create(&updater, NULL, source_mapping_thread, NULL);
	for (i = 1; i <= 1000; i++) {
		fill(race_mem, CHUNK_PAGES, 1000);
		mprotect(race_source, size, PROT_READ | PROT_WRITE);
		m = mapping(gpa(0), CHUNK_PAGES, WRITE, race_source);

		WRITE_ONCE(source_round, i);
		err = map_all(vcpu, &m);
		TEST_ASSERT(!err || err == EFAULT, "errno %d", err);
		done = CHUNK_PAGES - m.nr_pages;
		mem_is(race_mem, done, 1);
		mem_is(hva(race_mem, done), m.nr_pages, 1000 + done);

		/* Aims at the middle. */
		nr_faults += !!err;
		WRITE_ONCE(source_delay,
			   source_delay + (done < CHUNK_PAGES / 2 ? 1 : -1));
		while (READ_ONCE(nr_updates) != i)
			cpu_relax();
	}
	WRITE_ONCE(stop, true);
	kvm_pthread_join(updater, NULL);
	TH_LOG("%d of %d calls failed", nr_faults, i - 1);
}

#define BIG_SLOT	(SLOT + 8)
#define BIG_PAGES	(SZ_1G / PAGE_SIZE)

static u64 call_seq;
static bool populated;

/* Odd while a call runs. */
static void *populate_big_thread(void *unused)
{
	struct kvm_memory_mapping m =
		mapping(ELSEWHERE_GPA, BIG_PAGES, READ, NULL);
	int err;

	do {
		WRITE_ONCE(call_seq, call_seq + 1);
		err = map_once(vcpu, &m);
		WRITE_ONCE(call_seq, call_seq + 1);
	} while (err == EAGAIN);
	/* The signal says that it is enough. */
	TEST_ASSERT(!err || err == EINTR, "errno %d", err);
	WRITE_ONCE(populated, true);
	return NULL;
}

/*
 * Updates of memslots begin and end while a call is at its work: with the first
 * page it does behind it and the last one before it.
 */
TEST_F_TIMEOUT(race, updates_during_call, 240)
{
	struct sigaction sa = { .sa_handler = on_signal };
	u64 start, before, after, seq, nr = 0, nr_tried = 0;
	void *big = new_mem(BIG_PAGES);
	pthread_t populater;
	int round;

	if (variant->zap_all)
		SKIP(return, "All pages go with a slot, and cannot be counted");

	sigaction(SIGUSR1, &sa, NULL);
	for (round = 0; round < 50 && nr < 5; round++) {
		single(region_set(BIG_SLOT, 0, ELSEWHERE_GPA,
				  BIG_PAGES * PAGE_SIZE, big));
		populated = false;
		call_seq = 0;
		start = vm_get_stat(vm, pages_4k);
		kvm_pthread_create(&populater, NULL, populate_big_thread, NULL);

		while (nr < 5 && !READ_ONCE(populated)) {
			seq = READ_ONCE(call_seq);
			before = vm_get_stat(vm, pages_4k) - start;
			if (!(seq % 2) || before % CALL_PAGES == 0)
				continue;
			/* What is replaced is mapped neither way. */
			list(region_delete(SLOT),
			     piece(SLOT, 0, 0, RACE_PAGES));
			after = vm_get_stat(vm, pages_4k) - start;
			nr_tried++;
			if (READ_ONCE(call_seq) == seq &&
			    before / CALL_PAGES == after / CALL_PAGES &&
			    after % CALL_PAGES < CALL_PAGES - CHUNK_PAGES)
				nr++;
		}
		pthread_kill(populater, SIGUSR1);
		kvm_pthread_join(populater, NULL);
		single(region_delete(BIG_SLOT));
	}
	TH_LOG("%lu of %lu updates during a call", nr, nr_tried);
	TEST_ASSERT(nr == 5, "Only %lu of %lu updates during a call", nr,
		    nr_tried);
}

/* Without second-level page tables, there is nothing to populate. */
static int test_no_tdp(void)
{
	struct kvm_memory_mapping m;
	int err;

	ksft_print_header();
	ksft_set_plan(2);
	ksft_test_result(!kvm_check_cap(KVM_CAP_MAP_MEMORY), "capability\n");
	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	set_slot(SLOT, 0, 0, 16, new_mem(16));
	m = mapping(gpa(0), 16, WRITE, NULL);
	err = map_once(vcpu, &m);
	kvm_vm_free(vm);
	ksft_test_result(err == EOPNOTSUPP || err == ENOTTY, "errno %d\n", err);
	ksft_finished();
}

int main(int argc, char *argv[])
{
	if (!kvm_is_tdp_enabled() &&
	    kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST))
		return test_no_tdp();

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
