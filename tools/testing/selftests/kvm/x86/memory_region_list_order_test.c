// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST: an entry acts on what the entries before it leave,
 * and the list as a whole swaps memslots as rarely as it can.
 */
#include "region_list_fixture.h"

/* Makes a single ioctl, which must take @nr_swaps. */
static void single_swaps(struct list_test *test, int nr_swaps,
			 struct region_entry entry)
{
	u64 swaps = vm_get_stat(test->vm, memslot_swaps);
	int r = __vm_set_region_entry(test->vm, &entry);

	TEST_ASSERT(!r, "Slot 0x%x, errno %d", entry.slot, errno);
	TEST_ASSERT_EQ(vm_get_stat(test->vm, memslot_swaps), swaps + nr_swaps);
	expect(test, &entry);
}

TEST_F(list, order)
{
	struct list_test *test = &self->test;

	list_ok(test, set(10, 0, 0, 8, 0));

	/* Resize: the old slot must go before the new one comes. */
	list_fails(test, EINVAL, set(10, 0, 0, 6, 0));
	list_ok(test, region_delete(10), set(10, 0, 0, 6, 0));
	list_ok(test, region_delete(10), set(10, 0, 0, 8, 0));

	/* Split. */
	list_fails(test, EEXIST, set(11, 0, 4, 4, 4), region_delete(10),
		   set(10, 0, 0, 4, 0));
	list_ok(test, region_delete(10), set(10, 0, 0, 4, 0),
		set(11, 0, 4, 4, 4));

	/* Merge. */
	list_fails(test, EEXIST, region_delete(10), set(12, 0, 0, 8, 0),
		   region_delete(11));
	list_ok(test, region_delete(10), region_delete(11),
		set(12, 0, 0, 8, 0));

	/* An entry also clashes with entries before it. */
	list_fails(test, EEXIST, set(10, 0, 8, 4, 8), set(11, 0, 11, 4, 12));
	list_ok(test, set(10, 0, 8, 4, 8), region_delete(10),
		set(11, 0, 11, 4, 12));
}

TEST_F(list, same_slot_again)
{
	struct list_test *test = &self->test;
	const u32 log = KVM_MEM_LOG_DIRTY_PAGES;

	/* Created, re-flagged, moved and deleted by one list. */
	list_ok(test, set(10, 0, 0, 4, 0), set(10, log, 0, 4, 0));
	list_ok(test, set(11, log, 4, 4, 4), set(11, 0, 4, 4, 4),
		set(11, log, 4, 4, 4), set(11, log, 8, 4, 4));
	list_ok(test, set(12, 0, 16, 4, 8), region_delete(12));
	list_ok(test, set(12, 0, 16, 4, 8), set(12, 0, 20, 4, 8),
		region_delete(12), set(12, 0, 24, 2, 12));

	/* A slot that the list has created is like any other. */
	list_fails(test, EINVAL, set(13, 0, 16, 4, 8), set(13, 0, 16, 2, 8));
	list_fails(test, EINVAL, set(13, 0, 16, 4, 8), region_delete(13),
		   region_delete(13));

	/* Deleted, and created as a different slot, or as the same again. */
	list_ok(test, region_delete(12), set(12, KVM_MEM_READONLY, 28, 4, 20));
	list_ok(test, region_delete(12), set(12, KVM_MEM_READONLY, 28, 4, 20));
	list_ok(test, region_delete(12), set(12, 0, 16, 3, 30),
		region_delete(12), set(12, log, 17, 4, 40));

	/* Re-flagged and moved, and back again. */
	list_ok(test, set(10, 0, 0, 4, 0), set(10, log, 0, 4, 0));
	list_ok(test, set(10, log, 24, 4, 0), set(10, log, 0, 4, 0));
	/* Moved and re-flagged by one entry, as the single ioctl allows. */
	list_ok(test, set(10, 0, 1, 4, 0));
	list_ok(test, set(10, log, 0, 4, 0), set(10, 0, 0, 4, 0),
		region_delete(10));
}

TEST_F(list, no_change)
{
	struct list_test *test = &self->test;

	list_ok(test, set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4));

	list_swaps(test, 0, set(10, 0, 0, 4, 0));
	list_swaps(test, 0, set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4),
		   set(10, 0, 0, 4, 0));
	/* A no-op leaves the entries around it in force. */
	list_ok(test, region_delete(10), set(11, 0, 4, 4, 4),
		set(12, 0, 0, 2, 0));
	list_fails(test, EINVAL, set(11, 0, 4, 4, 4), region_delete(10));
}

TEST_F(list, moves)
{
	struct list_test *test = &self->test;

	list_ok(test, set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4),
		set(12, 0, 8, 4, 8), set(13, 0, 12, 8, 12));

	/* A chain of slots can only move from its head on. */
	list_fails(test, EEXIST, set(10, 0, 4, 4, 0), set(11, 0, 8, 4, 4),
		   set(12, 0, 20, 4, 8));
	list_ok(test, set(12, 0, 20, 4, 8), set(11, 0, 8, 4, 4),
		set(10, 0, 4, 4, 0));

	/* A slot may overlap its own old place. */
	list_ok(test, set(12, 0, 24, 4, 8));
	list_ok(test, set(12, 0, 26, 4, 8), set(12, 0, 25, 4, 8));
	list_ok(test, set(13, 0, 14, 8, 12), set(13, 0, 13, 8, 12));

	/* Two slots swap places by way of a third place, or one is deleted. */
	list_fails(test, EEXIST, set(10, 0, 8, 4, 0), set(11, 0, 4, 4, 4));
	list_ok(test, set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4),
		set(10, 0, 8, 4, 0));
	list_ok(test, region_delete(10), set(11, 0, 8, 4, 4),
		set(10, 0, 4, 4, 0));

	/* A slot moves to the place of another one, which comes back elsewhere. */
	list_ok(test, region_delete(13), set(12, 0, 13, 4, 8),
		set(13, 0, 17, 8, 30));
}

TEST_F(list, swap_counts)
{
	struct list_test *test = &self->test;
	const u32 log = KVM_MEM_LOG_DIRTY_PAGES;

	/* Single ioctls. */
	single_swaps(test, 1, set(10, 0, 0, 4, 0));
	single_swaps(test, 1, set(10, log, 0, 4, 0));
	single_swaps(test, 0, set(10, log, 0, 4, 0));
	single_swaps(test, 2, set(10, log, 4, 4, 0));
	single_swaps(test, 2, region_delete(10));

	/* A list without deletions and moves takes one swap. */
	list_swaps(test, 1, set(10, 0, 0, 4, 0));
	list_swaps(test, 1, set(11, 0, 4, 4, 4), set(12, 0, 8, 4, 8),
		   set(13, 0, 12, 4, 12), set(10, log, 0, 4, 0));
	list_swaps(test, 1, set(10, 0, 0, 4, 0), set(11, log, 4, 4, 4),
		   set(12, 0, 8, 4, 8));

	/* A list with any number of them takes two. */
	list_swaps(test, 2, region_delete(13));
	list_swaps(test, 2, set(12, 0, 20, 4, 8));
	list_swaps(test, 2, set(12, 0, 24, 4, 8), set(11, 0, 8, 4, 4),
		   region_delete(10), set(10, log, 0, 3, 0),
		   set(13, 0, 3, 1, 3));
	list_swaps(test, 2, region_delete(10), region_delete(11),
		   region_delete(12), region_delete(13));
}

TEST_F(list, address_spaces)
{
	struct list_test *test = &self->test;
	const u32 log = KVM_MEM_LOG_DIRTY_PAGES;

	if (test->nr_as == 1)
		SKIP(return, "No address space but one");

	/* Slots with the same place and id in both do not clash. */
	list_swaps(test, 2, set(10, 0, 0, 4, 0), set(SMM | 10, 0, 0, 4, 32),
		   set(SMM | 11, 0, 4, 4, 36));
	list_fails(test, EEXIST, set(11, 0, 4, 4, 4),
		   set(SMM | 12, 0, 7, 1, 8));

	/* Each has its own swaps. */
	list_swaps(test, 1, set(SMM | 10, log, 0, 4, 32));
	list_swaps(test, 2, set(SMM | 10, log, 8, 4, 32));
	list_swaps(test, 3, region_delete(SMM | 10), set(12, 0, 20, 4, 20));
	list_swaps(test, 3, set(12, log, 20, 4, 20), region_delete(SMM | 11));
	list_swaps(test, 1, set(12, log, 20, 4, 20),
		   set(SMM | 10, 0, 28, 4, 28));
	list_swaps(test, 4, set(SMM | 10, 0, 24, 4, 28), set(10, 0, 28, 4, 0),
		   region_delete(12), set(SMM | 12, 0, 28, 4, 50));

	/* An error in one address space leaves the other alone. */
	list_fails(test, EEXIST, region_delete(10), region_delete(SMM | 10),
		   set(SMM | 13, 0, 31, 1, 0));
	list_fails(test, EINVAL, region_delete(SMM | 12), region_delete(12));
	list_fails(test, EINVAL, region_delete(12), region_delete(SMM | 12));

	/* A slot moves from one to the other. */
	list_swaps(test, 4, region_delete(10), region_delete(SMM | 10),
		   set(11, 0, 24, 4, 28), set(SMM | 11, 0, 8, 4, 0));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	return test_harness_run(argc, argv);
}
