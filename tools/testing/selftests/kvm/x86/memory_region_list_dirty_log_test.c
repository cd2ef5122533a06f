// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST carries dirty bits when slots that are logged
 * change their shape.
 *
 * A page that a deleted or moved slot has logged stays dirty if a slot that the
 * same list creates logs it at the same guest physical and host address.
 */
#include <string.h>

#include <asm/barrier.h>
#include <linux/bitmap.h>

#include "dirty_log_writes.h"

#define PARK_GPA	0xd0000000ul

#define RING_ENTRIES	4096

static struct region_entry park(struct region_entry entry)
{
	entry.guest_phys_addr += PARK_GPA - WINDOW_GPA;
	return entry;
}

/* @new_nr pages from @new_first on have not been logged before. */
static void check_log(struct dirty_log_test *test, u32 slot, int nr,
		      int new_first, int new_nr, const int *pages)
{
	bool initially_set = test->manual_protect & KVM_DIRTY_LOG_INITIALLY_SET;
	DECLARE_BITMAP(want, NR_PAGES);
	DECLARE_BITMAP(log, NR_PAGES);
	int i;

	bitmap_zero(want, NR_PAGES);
	for (; *pages != NONE; pages++)
		__set_bit(*pages, want);
	for (i = new_first; initially_set && i < new_first + new_nr; i++)
		__set_bit(i, want);

	harvest(test, slot, nr, log);
	for (i = 0; i < nr; i++)
		TEST_ASSERT(test_bit(i, log) == test_bit(i, want),
			    "Slot %u, page %d is %s", slot, i,
			    test_bit(i, log) ? "dirty" : "clean");
}

/*
 * Checks which pages of the slot are dirty, and clears its log.  Depending on the
 * mode, pages that have not been logged before are dirty, too: all pages of the slot,
 * or @new_nr pages from @new_first on.
 */
#define log_is(test, slot, nr, ...)					\
	grown_log_is(test, slot, nr, 0, 0, __VA_ARGS__)
#define new_log_is(test, slot, nr, ...)					\
	grown_log_is(test, slot, nr, 0, NR_PAGES, __VA_ARGS__)
#define grown_log_is(test, slot, nr, new_first, new_nr, ...)		\
	check_log(test, slot, nr, new_first, new_nr,			\
		  (const int []) { __VA_ARGS__, NONE })

static void not_logged(struct dirty_log_test *test, u32 slot)
{
	DECLARE_BITMAP(log, NR_PAGES);
	struct kvm_dirty_log args = { .slot = slot, .dirty_bitmap = log };
	int r = __vm_ioctl(test->vm, KVM_GET_DIRTY_LOG, &args);

	TEST_ASSERT(r && errno == ENOENT, "Slot %u is logged", slot);
}

TEST_F(dirty_log, resize)
{
	struct dirty_log_test *test = &self->test;

	vm_set_region_list(test->vm, log_set(10, 0, 16));
	new_log_is(test, 10, 16, NONE);
	guest_writes(test->vcpus[0], 1, 5, 12, 15);

	vm_set_region_list(test->vm, region_delete(10), log_set(10, 0, 8));
	log_is(test, 10, 8, 1, 5);

	/* The log of what the slot has lost is gone. */
	guest_writes(test->vcpus[0], 2);
	vm_set_region_list(test->vm, region_delete(10), log_set(10, 0, 16));
	grown_log_is(test, 10, 16, 8, 8, 2);

	/* Logging continues, of pages that were dirty and of others. */
	guest_writes(test->vcpus[0], 2, 12);
	log_is(test, 10, 16, 2, 12);
	log_is(test, 10, 16, NONE);

	/* At the front. */
	guest_writes(test->vcpus[0], 0, 3, 15);
	vm_set_region_list(test->vm, region_delete(10), log_set(10, 3, 13));
	log_is(test, 10, 13, 0, 12);
	guest_writes(test->vcpus[0], 4);
	vm_set_region_list(test->vm, region_delete(10), log_set(10, 1, 15));
	grown_log_is(test, 10, 15, 0, 2, 3);
}

TEST_F(dirty_log, split_and_merge)
{
	struct dirty_log_test *test = &self->test;

	vm_set_region_list(test->vm, log_set(10, 0, 200));
	new_log_is(test, 10, 200, NONE);
	guest_writes(test->vcpus[0], 0, 1, 62, 63, 64, 66, 67, 68, 127, 128,
		     130, 131, 199);

	/* Split the slot within words of its bitmap. */
	vm_set_region_list(test->vm, region_delete(10), log_set(10, 0, 67),
			   log_set(11, 67, 64), log_set(12, 131, 69));
	log_is(test, 10, 67, 0, 1, 62, 63, 64, 66);
	log_is(test, 11, 64, 0, 1, 60, 61, 63);
	log_is(test, 12, 69, 0, 68);

	guest_writes(test->vcpus[0], 66, 67, 130, 131, 199);
	vm_set_region_list(test->vm, region_delete(12), region_delete(10),
			   region_delete(11), log_set(13, 0, 200));
	log_is(test, 13, 200, 66, 67, 130, 131, 199);
}

/* A slot that is not logged has no dirty bits to carry. */
TEST_F(dirty_log, merge_with_unlogged)
{
	struct dirty_log_test *test = &self->test;

	vm_set_region_list(test->vm, log_set(10, 0, 8), set(11, 0, 8, 8, 8));
	new_log_is(test, 10, 8, NONE);
	guest_writes(test->vcpus[0], 3, 7, 8, 12);
	vm_set_region_list(test->vm, region_delete(10), region_delete(11),
			   log_set(12, 0, 24));
	grown_log_is(test, 12, 24, 8, 16, 3, 7);
}

/* Dirty bits are carried from one address space to another. */
TEST_F(dirty_log, address_spaces)
{
	struct dirty_log_test *test = &self->test;
	const u32 smm = 1 << 16;

	if (vm_check_cap(test->vm, KVM_CAP_MULTI_ADDRESS_SPACE) < 2)
		SKIP(return, "One address space");

	vm_set_region_list(test->vm, log_set(10, 0, 16));
	new_log_is(test, 10, 16, NONE);
	guest_writes(test->vcpus[0], 1, 5, 12);

	vm_set_region_list(test->vm, region_delete(10),
			   log_set(smm | 11, 4, 12));
	new_log_is(test, smm | 11, 12, 1, 8);

	/* Slots in both address spaces get them. */
	vm_set_region_list(test->vm, log_set(10, 0, 16));
	new_log_is(test, 10, 16, NONE);
	guest_writes(test->vcpus[0], 2, 6);
	vm_set_region_list(test->vm, region_delete(10), region_delete(smm | 11),
			   log_set(10, 0, 8), log_set(smm | 10, 0, 16));
	log_is(test, 10, 8, 2, 6);
	grown_log_is(test, smm | 10, 16, 0, 4, 2, 6);
}

/* With manual protection, getting the log leaves pages dirty. */
TEST_F(dirty_log, fetched_but_not_cleared)
{
	struct dirty_log_test *test = &self->test;
	DECLARE_BITMAP(log, NR_PAGES);

	vm_set_region_list(test->vm, log_set(10, 0, 16));
	new_log_is(test, 10, 16, NONE);
	guest_writes(test->vcpus[0], 1, 5);

	kvm_vm_get_dirty_log(test->vm, 10, log);
	guest_writes(test->vcpus[0], 6);
	vm_set_region_list(test->vm, region_delete(10), log_set(10, 0, 8));
	if (test->manual_protect)
		log_is(test, 10, 8, 1, 5, 6);
	else
		log_is(test, 10, 8, 6);
}

TEST_F(dirty_log, no_successor)
{
	struct dirty_log_test *test = &self->test;

	vm_set_region_list(test->vm, log_set(10, 0, 16));
	new_log_is(test, 10, 16, NONE);

	/* The same pages at another host address. */
	guest_writes(test->vcpus[0], 2, 9);
	vm_set_region_list(test->vm, region_delete(10),
			   set(10, LOG, 0, 16, NR_PAGES));
	new_log_is(test, 10, 16, NONE);

	/* The same host address at another place. */
	guest_writes(test->vcpus[0], 2, 9);
	vm_set_region_list(test->vm, region_delete(10),
			   set(10, LOG, 1, 15, NR_PAGES));
	new_log_is(test, 10, 15, NONE);

	/* One slot at the same host address, one at another. */
	guest_writes(test->vcpus[0], 2, 9);
	vm_set_region_list(test->vm, region_delete(10),
			   set(10, LOG, 1, 4, NR_PAGES),
			   set(11, LOG, 5, 11, NR_PAGES + 5));
	log_is(test, 10, 4, 1);
	new_log_is(test, 11, 11, NONE);

	/* Without logging, and logged again later. */
	guest_writes(test->vcpus[0], 5, 6);
	vm_set_region_list(test->vm, region_delete(11),
			   set(11, 0, 5, 11, NR_PAGES + 5));
	not_logged(test, 11);
	vm_set_region_list(test->vm, set(11, LOG, 5, 11, NR_PAGES + 5));
	new_log_is(test, 11, 11, NONE);

	/* Only in the next list. */
	guest_writes(test->vcpus[0], 5, 6);
	vm_set_region_list(test->vm, region_delete(11));
	vm_set_region_list(test->vm, set(11, LOG, 5, 11, NR_PAGES + 5));
	new_log_is(test, 11, 11, NONE);
}

TEST_F(dirty_log, moves)
{
	struct dirty_log_test *test = &self->test;

	vm_set_region_list(test->vm, log_set(10, 0, 16));
	new_log_is(test, 10, 16, NONE);

	/* A slot that moves takes its log along ... */
	guest_writes(test->vcpus[0], 1, 15);
	vm_set_region_list(test->vm, log_set(11, 20, 4),
			   park(log_set(10, 0, 16)), log_set(10, 0, 16),
			   park(log_set(10, 0, 16)));
	log_is(test, 10, 16, 1, 15);
	vm_set_region_list(test->vm, log_set(10, 0, 16));

	/* ... and slots that take its place get a copy of it. */
	guest_writes(test->vcpus[0], 1, 15);
	vm_set_region_list(test->vm, park(log_set(10, 0, 16)),
			   log_set(12, 0, 8), log_set(13, 8, 8));
	log_is(test, 12, 8, 1);
	log_is(test, 13, 8, 7);
	log_is(test, 10, 16, 1, 15);

	/* The slot moves back. */
	vm_set_region_list(test->vm, region_delete(12), region_delete(13),
			   log_set(10, 0, 16));
	guest_writes(test->vcpus[0], 3);
	log_is(test, 10, 16, 3);
}

/* Dirty bits are carried through slots that exist only within the list. */
TEST_F(dirty_log, within_a_list)
{
	struct dirty_log_test *test = &self->test;

	vm_set_region_list(test->vm, log_set(10, 0, 16));
	new_log_is(test, 10, 16, NONE);

	guest_writes(test->vcpus[0], 1, 14);
	vm_set_region_list(test->vm, region_delete(10), log_set(11, 0, 16),
			   region_delete(11), log_set(10, 0, 15));
	log_is(test, 10, 15, 1, 14);

	/* Logging comes with a second entry. */
	guest_writes(test->vcpus[0], 1, 14);
	vm_set_region_list(test->vm, region_delete(10), set(12, 0, 0, 16, 0),
			   log_set(12, 0, 16));
	grown_log_is(test, 12, 16, 15, 1, 1, 14);

	/* The new slot moves to its place. */
	guest_writes(test->vcpus[0], 1, 14);
	vm_set_region_list(test->vm, park(log_set(13, 0, 16)),
			   region_delete(12), log_set(13, 0, 16));
	log_is(test, 13, 16, 1, 14);

	/* Logging is switched off and on again, which clears the log. */
	guest_writes(test->vcpus[0], 1, 14);
	vm_set_region_list(test->vm, set(13, 0, 0, 16, 0), log_set(13, 0, 16));
	new_log_is(test, 13, 16, NONE);
}

/* The log is read once, after many lists. */
TEST_F(dirty_log, many_lists)
{
	struct dirty_log_test *test = &self->test;

	vm_set_region_list(test->vm, log_set(10, 0, 128));
	new_log_is(test, 10, 128, NONE);

	guest_writes(test->vcpus[0], 0, 50, 100);
	vm_set_region_list(test->vm, region_delete(10), log_set(10, 0, 51),
			   log_set(11, 51, 77));
	guest_writes(test->vcpus[0], 1, 51, 101);
	vm_set_region_list(test->vm, region_delete(10), log_set(12, 0, 30),
			   log_set(13, 30, 21));
	guest_writes(test->vcpus[0], 2, 52, 102);
	vm_set_region_list(test->vm, region_delete(11), log_set(10, 51, 60),
			   log_set(11, 111, 17));
	vm_set_region_list(test->vm, region_delete(10), region_delete(11),
			   region_delete(12), region_delete(13),
			   log_set(14, 0, 128));
	guest_writes(test->vcpus[0], 127);
	log_is(test, 14, 128, 0, 1, 2, 50, 51, 52, 100, 101, 102, 127);
}

TEST_F(dirty_log, failure_keeps_the_log)
{
	struct dirty_log_test *test = &self->test;
	const struct region_entry entries[] = {
		region_delete(10), log_set(10, 0, 8), log_set(11, 8, 8),
		region_delete(17),
	};
	int r;

	vm_set_region_list(test->vm, log_set(10, 0, 16));
	new_log_is(test, 10, 16, NONE);
	guest_writes(test->vcpus[0], 1, 15);

	r = __vm_set_region_list(test->vm, ARRAY_SIZE(entries), entries);
	TEST_ASSERT(r && errno == EINVAL, "%d, errno %d", r, errno);
	guest_writes(test->vcpus[0], 3);
	log_is(test, 10, 16, 1, 3, 15);
}

/* Checks the next entry of the ring, and leaves it for KVM to reset. */
static void ring_is(struct kvm_vcpu *vcpu, u32 slot, u64 offset)
{
	struct kvm_dirty_gfn *gfns = vcpu_map_dirty_ring(vcpu), *gfn;

	gfn = &gfns[vcpu->fetch_index++ % vcpu->dirty_gfns_count];
	/* The rest of the entry is valid once KVM has set the flag. */
	TEST_ASSERT(smp_load_acquire(&gfn->flags) == KVM_DIRTY_GFN_F_DIRTY,
		    "No entry for slot %u, page %lu", slot, offset);
	TEST_ASSERT(gfn->slot == slot && gfn->offset == offset,
		    "Slot %u, page %llu instead of %u, %lu", gfn->slot,
		    gfn->offset, slot, offset);
	/* KVM may use the entry again as soon as it reads the flag. */
	smp_store_release(&gfn->flags, KVM_DIRTY_GFN_F_RESET);
}

/* Entries stay in the ring with the slots that they are for. */
TEST(dirty_ring)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	if (!kvm_has_cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		SKIP(return, "No dirty ring");

	vm = vm_create(1);
	vm_enable_dirty_ring(vm, RING_ENTRIES * sizeof(struct kvm_dirty_gfn));
	vcpu = vm_vcpu_add(vm, 0, guest_code);
	virt_map(vm, WINDOW_GPA, WINDOW_GPA, NR_PAGES);
	mem = kvm_mmap(NR_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);

	vm_set_region_list(vm, log_set(10, 0, 16));
	/* One by one, as hardware may log several in any order. */
	guest_writes(vcpu, 3);
	guest_writes(vcpu, 12);
	vm_set_region_list(vm, region_delete(10), log_set(11, 0, 8),
			   log_set(12, 8, 8));
	guest_writes(vcpu, 4);
	guest_writes(vcpu, 12);

	ring_is(vcpu, 10, 3);
	ring_is(vcpu, 10, 12);
	ring_is(vcpu, 11, 4);
	ring_is(vcpu, 12, 4);
	/* Two of the entries are for a slot that is gone. */
	TEST_ASSERT_EQ(kvm_vm_reset_dirty_ring(vm), 4);

	guest_writes(vcpu, 4);
	guest_writes(vcpu, 12);
	ring_is(vcpu, 11, 4);
	ring_is(vcpu, 12, 4);

	/* These slots go while their entries wait for the reset. */
	vm_set_region_list(vm, region_delete(11), region_delete(12),
			   log_set(13, 0, 16));
	TEST_ASSERT_EQ(kvm_vm_reset_dirty_ring(vm), 2);
	guest_writes(vcpu, 4);
	guest_writes(vcpu, 12);
	ring_is(vcpu, 13, 4);
	ring_is(vcpu, 13, 12);

	kvm_vm_free(vm);
	kvm_munmap(mem, NR_PAGES * PAGE_SIZE);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	return test_harness_run(argc, argv);
}
