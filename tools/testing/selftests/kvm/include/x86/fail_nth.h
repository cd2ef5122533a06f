/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Ioctls whose nth allocation fails, in a VM with some slots.
 *
 * Needs CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC, CONFIG_FAULT_INJECTION_DEBUG_FS.
 */
#ifndef SELFTEST_KVM_FAIL_NTH_H
#define SELFTEST_KVM_FAIL_NTH_H

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "attr_util.h"
#include "kvm_test_harness.h"
#include "slot_window.h"

/* Guest physical memory that no vCPU accesses. */
#define ELSEWHERE_GPA	0x100000000ul

/* The slots that the tests change, and those of a long list, which stay. */
#define NR_IDS		8
#define NR_MANY		290

#define LOG		KVM_MEM_LOG_DIRTY_PAGES

#define DEBUGFS		"/sys/kernel/debug/"

/* Of the test's main thread. */
static int fail_nth_fd;

static inline void set_fail_nth(unsigned int nth)
{
	char buf[16];
	int len = snprintf(buf, sizeof(buf), "%u", nth);

	TEST_ASSERT(pwrite(fail_nth_fd, buf, len, 0) == len,
		    "Cannot write to fail-nth, errno %d", errno);
}

/* Returns whether an allocation has failed since set_fail_nth(). */
static inline bool has_failed(void)
{
	char buf[16] = {};

	TEST_ASSERT(pread(fail_nth_fd, buf, sizeof(buf) - 1, 0) > 0,
		    "Cannot read fail-nth, errno %d", errno);
	return !atoi(buf);
}

/* Calls the ioctl @cmd, whose @nth allocation fails if it makes that many. */
static inline int ioctl_fail_nth(unsigned int nth, int fd, unsigned long cmd,
				 void *arg, bool *failed)
{
	int r, saved_errno;

	set_fail_nth(nth);
	r = ioctl(fd, cmd, arg);
	saved_errno = errno;
	*failed = has_failed();
	set_fail_nth(0);
	errno = saved_errno;
	return r;
}

/*
 * Whether allocations of pages fail as well, and count.  The slab allocator
 * allocates pages every now and then, which would change the number of each
 * allocation after that.
 */
static inline bool fail_pages(bool fail)
{
	const char *ignore = fail ? "N" : "Y";

	return write_attr(DEBUGFS "fail_page_alloc/ignore-gfp-wait", ignore) &&
	       write_attr(DEBUGFS "fail_page_alloc/ignore-gfp-highmem", ignore);
}

/* The attributes only concern tasks that write to their fail-nth. */
static inline bool have_fault_injection(void)
{
	fail_nth_fd = open("/proc/thread-self/fail-nth", O_RDWR);
	return fail_nth_fd >= 0 &&
	       write_attr(DEBUGFS "failslab/ignore-gfp-wait", "N") &&
	       write_attr(DEBUGFS "failslab/cache-filter", "N") &&
	       write_attr(DEBUGFS "failslab/verbose", "0") &&
	       fail_pages(false) &&
	       write_attr(DEBUGFS "fail_page_alloc/min-order", "0") &&
	       write_attr(DEBUGFS "fail_page_alloc/verbose", "0");
}

struct fail_nth_test {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	int nr_ids;
	struct slot slots[NR_IDS + NR_MANY];
};

FIXTURE(fail_nth)
{
	struct fail_nth_test test;
};

/* Notes what an update that succeeded means for its slot. */
static inline void expect(struct fail_nth_test *test, const struct region_entry *entry)
{
	TEST_ASSERT(entry->slot >= FIRST_ID && entry->slot < FIRST_ID + test->nr_ids,
		    "Slot %u is not the test's", entry->slot);
	test->slots[entry->slot - FIRST_ID] = slot_from_entry(entry);
}

static inline void do_list(struct fail_nth_test *test, u32 nent,
			   const struct region_entry *entries)
{
	int i;

	vm_set_region_entries(test->vm, nent, entries);
	for (i = 0; i < nent; i++)
		expect(test, &entries[i]);
}

#define set_list(test, ...)						\
do {									\
	const struct region_entry __e[] = { __VA_ARGS__ };		\
									\
	do_list(test, ARRAY_SIZE(__e), __e);				\
} while (0)

/* The slots that are logged in the base state, and what their logs hold. */
static const struct {
	u32 slot;
	unsigned long log;
} dirty[] = {
	{ 10, BIT(1) | BIT(2) },
	{ 12, BIT(0) },
};

/* Gives the VM the base state again: some slots, and dirty pages. */
static inline void reset_slots(struct fail_nth_test *test)
{
	bool *to_write = *guest_ptr(test->vm, guest_to_write);
	int i, page;

	for (i = 0; i < NR_IDS; i++)
		if (test->slots[i].size)
			set_list(test, region_delete(FIRST_ID + i));

	/*
	 * The first access to a page that is logged makes it dirty, even if the
	 * access is a read.  Have all pages mapped before.
	 */
	set_list(test, set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4),
		 set(12, 0, 8, 4, 8), set(13, 0, 12, 2, 12));
	run_over_window(test->vcpu, NULL);
	set_list(test, set(10, LOG, 0, 4, 0), set(12, LOG, 8, 4, 8));

	for (i = 0; i < ARRAY_SIZE(dirty); i++) {
		page = (test->slots[dirty[i].slot - FIRST_ID].gpa - WINDOW_GPA) /
		       PAGE_SIZE;
		to_write[page] = dirty[i].log & BIT(0);
		to_write[page + 1] = dirty[i].log & BIT(1);
		to_write[page + 2] = dirty[i].log & BIT(2);
	}
	run_over_window(test->vcpu, NULL);
	memset(to_write, 0, sizeof(guest_to_write));
}

FIXTURE_SETUP(fail_nth)
{
	struct fail_nth_test *test = &self->test;

	if (!have_fault_injection())
		SKIP(return, "No fault injection");

	test->nr_ids = NR_IDS;
	test->vm = vm_create_with_one_vcpu(&test->vcpu, guest_code);
	virt_map(test->vm, WINDOW_GPA, WINDOW_GPA, WINDOW_PAGES);
	/* Getting the log then does not clear it. */
	vm_enable_cap(test->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	create_backing();
	reset_slots(test);
}

FIXTURE_TEARDOWN(fail_nth)
{
	kvm_vm_free(self->test.vm);
	free_backing();
	close(fail_nth_fd);
}

static inline void check_slots(struct fail_nth_test *test, const char *when)
{
	vm_check_slots(test->vm, FIRST_ID, test->slots, test->nr_ids, when);
}

static inline void check_guest_view(struct fail_nth_test *test, const char *when)
{
	run_over_window(test->vcpu, NULL);
	check_window_reads(test->vm, test->slots, test->nr_ids, when);
}

#endif /* SELFTEST_KVM_FAIL_NTH_H */
