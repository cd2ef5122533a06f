/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fixture of the tests of the rules of KVM_SET_USER_MEMORY_REGION_LIST.
 *
 * After every list, a test checks all slots in all address spaces: what userspace
 * can tell about them, and what a vCPU reads and writes through them.  A list that
 * fails must have changed none of that.
 */
#ifndef SELFTEST_KVM_REGION_LIST_FIXTURE_H
#define SELFTEST_KVM_REGION_LIST_FIXTURE_H

#include "kvm_test_harness.h"
#include "slot_window.h"

#define NR_IDS		9
#define NR_AS		2
/* Added to a slot id: the address space of System Management Mode. */
#define SMM		BIT(16)

#define ANY_SWAPS	-1

struct list_test {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	int nr_as;
	struct slot slots[NR_AS][NR_IDS];
};

FIXTURE(list)
{
	struct list_test test;
};

FIXTURE_SETUP(list)
{
	struct list_test *test = &self->test;
	struct userspace_mem_region *region;

	test->vm = vm_create_with_one_vcpu(&test->vcpu, guest_code);
	virt_map(test->vm, WINDOW_GPA, WINDOW_GPA, WINDOW_PAGES);
	memset(guest_ptr(test->vm, guest_to_write), true, sizeof(guest_to_write));
	create_backing();

	test->nr_as = 1;
	if (kvm_has_cap(KVM_CAP_X86_SMM)) {
		test->nr_as = NR_AS;

		/* Lets guest_code() run in SMM as it does outside of it. */
		region = memslot2region(test->vm, 0);
		vm_set_user_memory_region(test->vm, SMM, 0,
					  region->region.guest_phys_addr,
					  region->region.memory_size,
					  region->host_mem);
	}
}

FIXTURE_TEARDOWN(list)
{
	kvm_vm_free(self->test.vm);
	free_backing();
}

static inline struct slot *slot_of(struct list_test *test,
				   const struct region_entry *entry)
{
	u32 as = entry->slot >> 16, id = (u16)entry->slot;

	TEST_ASSERT(as < NR_AS && id >= FIRST_ID && id < FIRST_ID + NR_IDS,
		    "Slot 0x%x is not the test's", entry->slot);
	return &test->slots[as][id - FIRST_ID];
}

/* Notes what an update that succeeded means for its slot. */
static inline void expect(struct list_test *test, const struct region_entry *entry)
{
	*slot_of(test, entry) = slot_from_entry(entry);
}

static inline void check_guest_view(struct list_test *test, int as)
{
	const struct slot *slots = test->slots[as];
	bool write_exits[WINDOW_PAGES] = {};
	bool written[BACKING_PAGES] = {};
	struct kvm_vcpu_events events;
	const struct slot *slot;
	char when[32];
	u64 want, val;
	u8 *page;
	int i;

	for (i = 0; i < BACKING_PAGES; i++)
		((u64 *)backing_page(i))[1] = 0;

	vcpu_events_get(test->vcpu, &events);
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = as;
	vcpu_events_set(test->vcpu, &events);

	run_over_window(test->vcpu, write_exits);
	snprintf(when, sizeof(when), "Address space %d", as);
	check_window_reads(test->vm, slots, NR_IDS, when);

	for (i = 0; i < WINDOW_PAGES; i++) {
		slot = slot_at(slots, NR_IDS, window_gpa(i));
		TEST_ASSERT(write_exits[i] ==
			    (!slot || (slot->flags & KVM_MEM_READONLY)),
			    "%s, page %d: a write %s", when, i,
			    write_exits[i] ? "exits" : "goes through");
		if (slot && !write_exits[i]) {
			page = slot->hva + (window_gpa(i) - slot->gpa);
			written[(page - backing) / PAGE_SIZE] = true;
		}
	}

	for (i = 0; i < BACKING_PAGES; i++) {
		want = written[i] ? BACKING_VAL(i) : 0;
		val = ((u64 *)backing_page(i))[1];
		TEST_ASSERT(val == want,
			    "%s: backing page %d holds 0x%lx instead of 0x%lx",
			    when, i, val, want);
	}
}

static inline void check_slots(struct list_test *test)
{
	int as;

	for (as = 0; as < test->nr_as; as++)
		vm_check_slots(test->vm, as << 16 | FIRST_ID, test->slots[as],
			       NR_IDS, "After the list");
}

static inline void check_map(struct list_test *test)
{
	int as;

	check_slots(test);
	for (as = 0; as < test->nr_as; as++)
		check_guest_view(test, as);
}

/* Makes a list, which must fail with @err, 0 if it must not fail, and @nr_swaps. */
static inline void do_list(struct list_test *test, int err, int nr_swaps, u32 nent,
			   const struct region_entry *entries)
{
	u64 swaps = vm_get_stat(test->vm, memslot_swaps);
	u64 calls = vm_get_stat(test->vm, memslot_list_calls);
	u64 nr_entries = vm_get_stat(test->vm, memslot_list_entries);
	int r, i;

	r = __vm_set_region_list(test->vm, nent, entries);
	TEST_ASSERT(err ? r == -1 && errno == err : !r,
		    "Wanted errno %d (%s), got %d, errno %d (%s)", err,
		    strerror(err), r, errno, strerror(errno));

	swaps = vm_get_stat(test->vm, memslot_swaps) - swaps;
	TEST_ASSERT(nr_swaps == ANY_SWAPS || swaps == nr_swaps,
		    "%lu swaps instead of %d", swaps, nr_swaps);
	TEST_ASSERT(vm_get_stat(test->vm, memslot_list_calls) == calls + !!nent,
		    "The call is not counted");
	if (!err) {
		nr_entries = vm_get_stat(test->vm, memslot_list_entries) - nr_entries;
		TEST_ASSERT(nr_entries == nent, "%lu entries counted, not %u",
			    nr_entries, nent);
		for (i = 0; i < nent; i++)
			expect(test, &entries[i]);
	}

	check_map(test);
}

#define __list(test, err, swaps, ...)					\
do {									\
	const struct region_entry __e[] = { __VA_ARGS__ };		\
									\
	do_list(test, err, swaps, ARRAY_SIZE(__e), __e);		\
} while (0)

#define list_ok(test, ...)		__list(test, 0, ANY_SWAPS, __VA_ARGS__)
#define list_fails(test, err, ...)	__list(test, err, 0, __VA_ARGS__)
#define list_swaps(test, swaps, ...)	__list(test, 0, swaps, __VA_ARGS__)

#endif /* SELFTEST_KVM_REGION_LIST_FIXTURE_H */
