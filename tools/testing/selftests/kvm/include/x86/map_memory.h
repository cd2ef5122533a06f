/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Helpers for tests of KVM_MAP_MEMORY.
 *
 * Memory counts as populated if the guest then takes no fault on it.  The
 * helpers populate the memory that the guest needs for itself beforehand, so
 * that it takes no fault on that either.
 */
#ifndef SELFTEST_KVM_MAP_MEMORY_H
#define SELFTEST_KVM_MAP_MEMORY_H

#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include <linux/sizes.h>

#include "attr_util.h"
#include "kvm_util.h"
#include "memory_region_list.h"
#include "processor.h"
#include "test_util.h"

/* The guest physical and virtual memory that the tests populate. */
#define WINDOW_GPA	0xc0000000ul
#define WINDOW_PAGES	1024
/* Guest physical memory that the guest does not access. */
#define ELSEWHERE_GPA	0x100000000ul
#define HUGE_PAGES	(SZ_2M / PAGE_SIZE)

/* Slot 0 is the guest's own memory. */
#define SLOT		10
#define OTHER_SLOT	11

#define READ		0
#define WRITE		KVM_MEMORY_MAPPING_FLAG_WRITE
#define EXEC		KVM_MEMORY_MAPPING_FLAG_EXEC
#define USER		KVM_MEMORY_MAPPING_FLAG_USER
#define PRIVATE		KVM_MEMORY_MAPPING_FLAG_PRIVATE

#define LOG		KVM_MEM_LOG_DIRTY_PAGES

/* How much one call populates at most, and how much between checks for signals. */
#define CALL_PAGES	(SZ_256M / PAGE_SIZE)
#define CHUNK_PAGES	64

#define NX_HUGE_PAGES	"/sys/module/kvm/parameters/nx_huge_pages"

#define PM_PFN		GENMASK_ULL(54, 0)
#define PM_FILE		BIT_ULL(61)
#define PM_PRESENT	BIT_ULL(63)

enum guest_op {
	GUEST_READ,
	GUEST_WRITE,
	GUEST_CALL,
	GUEST_CHECK,
};

/* The host writes the guest's copy. */
static struct {
	enum guest_op op;
	u64 gva, nr_pages, tag;
} guest_todo;

/* Contents that tell a page by its tag. */
static inline u64 pattern(u64 tag, int word)
{
	return tag << 16 | word;
}

static inline void guest_check(u64 *page, u64 tag)
{
	int w;

	for (w = 0; w < PAGE_SIZE / sizeof(u64); w++)
		GUEST_ASSERT_EQ(page[w], pattern(tag, w));
}

static inline void guest_code(void)
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

static inline gpa_t window_gpa(u64 page)
{
	return WINDOW_GPA + page * PAGE_SIZE;
}

static inline struct kvm_memory_mapping memory_mapping(gpa_t gpa, u64 nr_pages,
						       u64 flags,
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
 * Makes one call, and checks that it leaves in @m what it has not populated.
 * Returns 0 or the errno.
 */
static inline int map_memory_once(struct kvm_vcpu *vcpu,
				  struct kvm_memory_mapping *m)
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

/* Makes calls until nothing is left, or until retrying would not help. */
static inline int map_memory(struct kvm_vcpu *vcpu, struct kvm_memory_mapping *m)
{
	int err;

	do {
		err = map_memory_once(vcpu, m);
	} while (err == EAGAIN || err == EINTR);
	return err;
}

/* Populates memory, which must fail with @err after @done pages; 0 is success. */
static inline void populate_gpa(struct kvm_vcpu *vcpu, gpa_t gpa, u64 nr_pages,
				u64 flags, const void *source, int err, u64 done)
{
	struct kvm_memory_mapping m = memory_mapping(gpa, nr_pages, flags, source);
	int ret = map_memory(vcpu, &m);

	TEST_ASSERT(ret == err, "Wanted errno %d, got %d (%s) after %llu pages",
		    err, ret, strerror(ret), nr_pages - m.nr_pages);
	TEST_ASSERT(nr_pages - m.nr_pages == done,
		    "%llu pages populated instead of %lu", nr_pages - m.nr_pages,
		    done);
}

/* Both populate pages of the window. */
static inline void populate(struct kvm_vcpu *vcpu, u64 page, u64 nr, u64 flags,
			    const void *source)
{
	populate_gpa(vcpu, window_gpa(page), nr, flags, source, 0, nr);
}

static inline void populate_fails(struct kvm_vcpu *vcpu, u64 page, u64 nr,
				  u64 flags, const void *source, int err, u64 done)
{
	populate_gpa(vcpu, window_gpa(page), nr, flags, source, err, done);
}

static inline u64 run_guest_op(struct kvm_vcpu *vcpu, enum guest_op op, u64 page,
			       u64 nr, u64 tag)
{
	typeof(guest_todo) *todo = guest_ptr(vcpu->vm, guest_todo);
	u64 faults = vcpu_get_stat(vcpu, pf_taken);
	struct ucall uc;

	todo->op = op;
	todo->gva = window_gpa(page);
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

/* Returns how many faults the guest takes on pages of the window. */
static inline u64 guest_faults(struct kvm_vcpu *vcpu, enum guest_op op, u64 page,
			       u64 nr)
{
	return run_guest_op(vcpu, op, page, nr, 0);
}

/* Checks that pages of the window have the pattern of @tag and the following. */
static inline void guest_sees(struct kvm_vcpu *vcpu, u64 page, u64 nr, u64 tag)
{
	run_guest_op(vcpu, GUEST_CHECK, page, nr, tag);
}

/* Returns how many faults the guest takes on writes to @nr pages that are clean. */
static inline u64 faults_of_log(u64 nr)
{
	return host_cpu_is_intel && get_kvm_intel_param_bool("pml") ? 0 : nr;
}

/*
 * Populates the guest's own memory, after KVM or the host has dropped mappings
 * of it.  A guest without anything to do then takes no faults.
 */
static inline void populate_guests_own(struct kvm_vcpu *vcpu)
{
	struct userspace_mem_region *own = memslot2region(vcpu->vm, 0);
	u64 nr = own->region.memory_size / PAGE_SIZE;

	populate_gpa(vcpu, own->region.guest_phys_addr, nr, WRITE, NULL, 0, nr);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 0), 0);
}

static inline void set_up_guest(struct kvm_vcpu *vcpu)
{
	virt_map(vcpu->vm, WINDOW_GPA, WINDOW_GPA, WINDOW_PAGES);
	populate_guests_own(vcpu);
}

static inline void set_slot(struct kvm_vm *vm, u32 slot, u32 flags, u64 page,
			    u64 nr, void *hva)
{
	vm_set_user_memory_region(vm, slot, flags, window_gpa(page),
				  nr * PAGE_SIZE, hva);
}

static inline void delete_slot(struct kvm_vm *vm, u32 slot)
{
	vm_set_user_memory_region(vm, slot, 0, 0, 0, NULL);
}

static inline void *hva(void *mem, u64 page)
{
	return mem + page * PAGE_SIZE;
}

/* Reserves address space, aligned such that huge pages are possible. */
static inline void *reserve(u64 nr_pages)
{
	void *mem = kvm_mmap(nr_pages * PAGE_SIZE + SZ_2M, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);

	return align_ptr_up(mem, SZ_2M);
}

static inline void *mmap_at(void *at, u64 nr_pages, int prot, int flags, int fd)
{
	void *mem = mmap(at, nr_pages * PAGE_SIZE, prot, flags | MAP_FIXED, fd,
			 0);

	TEST_ASSERT(mem == at, "mmap() failed, errno %d", errno);
	return mem;
}

static inline void *new_mem(u64 nr_pages)
{
	return mmap_at(reserve(nr_pages), nr_pages, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}

static inline void fill(void *mem, u64 nr_pages, u64 tag)
{
	u64 *words = mem;
	u64 i;
	int w;

	for (i = 0; i < nr_pages; i++)
		for (w = 0; w < PAGE_SIZE / sizeof(u64); w++)
			*words++ = pattern(tag + i, w);
}

/* Checks memory for the pattern of @tag and the following. */
static inline void check_pattern(const void *mem, u64 nr_pages, u64 tag)
{
	const u64 *words = mem;
	u64 i;
	int w;

	for (i = 0; i < nr_pages; i++)
		for (w = 0; w < PAGE_SIZE / sizeof(u64); w++, words++)
			TEST_ASSERT(*words == pattern(tag + i, w),
				    "Page %lu: word %d is 0x%lx", i, w, *words);
}

static inline void *new_pattern(u64 nr_pages, u64 tag)
{
	void *mem = new_mem(nr_pages);

	fill(mem, nr_pages, tag);
	return mem;
}

static inline u64 pagemap_entry(const void *addr)
{
	int fd = open_path_or_exit("/proc/self/pagemap", O_RDONLY);
	u64 entry;

	TEST_ASSERT(pread(fd, &entry, sizeof(entry),
			  (uintptr_t)addr / PAGE_SIZE * sizeof(entry)) ==
		    sizeof(entry), "Cannot read pagemap, errno %d", errno);
	close(fd);
	return entry;
}

static inline bool is_present(const void *addr)
{
	return pagemap_entry(addr) & PM_PRESENT;
}

/* Returns 0 if the page is not present, or if the host does not show PFNs. */
static inline u64 pfn(const void *addr)
{
	u64 entry = pagemap_entry(addr);

	return entry & PM_PRESENT ? entry & PM_PFN : 0;
}

static inline void __ignore_signal(int sig)
{
}

/* Has a signal end calls that wait, without any other effect. */
static inline void catch_signal(int sig)
{
	struct sigaction sa = { .sa_handler = __ignore_signal };

	sigaction(sig, &sa, NULL);
}

#endif /* SELFTEST_KVM_MAP_MEMORY_H */
