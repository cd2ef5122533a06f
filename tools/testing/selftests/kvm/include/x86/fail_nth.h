/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fixture of tests of ioctls whose nth allocation fails: a VM with some slots.
 */
#ifndef SELFTEST_KVM_FAIL_NTH_H
#define SELFTEST_KVM_FAIL_NTH_H

#include "fault_injection.h"
#include "kvm_test_harness.h"
#include "slot_window.h"

/* Guest physical memory that no vCPU accesses. */
#define ELSEWHERE_GPA	0x100000000ul

/* The slots that the tests change, and those of a long list, which stay. */
#define NR_IDS		8
#define NR_MANY		290

#define LOG		KVM_MEM_LOG_DIRTY_PAGES

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
