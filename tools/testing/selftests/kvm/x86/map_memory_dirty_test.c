// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY: the dirty log and the dirty ring.  A page is dirty if it got
 * contents, or a mapping that the guest can write through.
 */
#include <linux/bitmap.h>

#include <asm/barrier.h>

#include "map_memory_fixture.h"

#define RING_ENTRIES	1024

#define NR_PAGES	256

/* Checks that exactly @nr pages from @first on are dirty, and clears the log. */
static void check_log(struct kvm_vm *vm, u64 first, u64 nr)
{
	DECLARE_BITMAP(log, NR_PAGES);
	u64 i;

	bitmap_zero(log, NR_PAGES);
	kvm_vm_get_dirty_log(vm, SLOT, log);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT(test_bit(i, log) == (i >= first && i < first + nr),
			    "Page %lu is %s", i,
			    test_bit(i, log) ? "dirty" : "clean");
}

TEST_F(map, dirty_log)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	void *mem = new_mem(NR_PAGES), *source = new_pattern(100, 1);

	set_slot(vm, SLOT, LOG, 0, NR_PAGES, mem);
	check_log(vm, 0, 0);
	/* The guest cannot write to the zero page, so it stays clean. */
	populate(vcpu, 0, 100, READ, NULL);
	check_log(vm, 0, 0);

	populate(vcpu, 3, 130, WRITE, NULL);
	check_log(vm, 3, 130);
	check_log(vm, 0, 0);
	populate(vcpu, 3, 130, WRITE, NULL);
	check_log(vm, 3, 130);

	populate(vcpu, 60, 100, READ, source);
	check_log(vm, 60, 100);
	populate(vcpu, 1, 1, EXEC | WRITE, source);
	check_log(vm, 1, 1);
	populate(vcpu, 156, 100, WRITE, source);
	check_log(vm, 156, 100);
	guest_sees(vcpu, 156, 100, 1);

	/* A call that fails logs the pages that it has populated. */
	populate_fails(vcpu, 250, 10, WRITE, NULL, ENOENT, 6);
	check_log(vm, 250, 6);
	munmap(hva(source, 5), PAGE_SIZE);
	populate_fails(vcpu, 10, 10, WRITE, source, EFAULT, 5);
	kvm_vm_get_dirty_log(vm, SLOT, hva(source, 10));

	/* The log sees what the guest writes to populated pages. */
	populate(vcpu, 20, 20, WRITE, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 20, 20), 0);
	check_log(vm, 20, 20);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 20, 20),
		       faults_of_log(20));
	check_log(vm, 20, 20);
}

/* Moves the entries of the ring to @dirty, and returns how many there were. */
static u32 collect_ring(struct kvm_vcpu *vcpu, u32 *next, u64 nr, unsigned long *dirty)
{
	struct kvm_dirty_gfn *gfns = vcpu_map_dirty_ring(vcpu), *gfn;
	u32 n;

	for (n = 0; ; n++) {
		gfn = &gfns[(*next)++ % RING_ENTRIES];
		/* KVM sets the flag after the rest of the entry ... */
		if (smp_load_acquire(&gfn->flags) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		TEST_ASSERT(gfn->slot == SLOT && gfn->offset < nr,
			    "Slot %u, page %llu", gfn->slot, gfn->offset);
		__set_bit(gfn->offset, dirty);
		/* ... and reads it before it uses the entry again. */
		smp_store_release(&gfn->flags, KVM_DIRTY_GFN_F_RESET);
	}
	--*next;
	TEST_ASSERT_EQ(kvm_vm_reset_dirty_ring(vcpu->vm), n);
	return n;
}

/* A full ring ends a call, which succeeds after userspace has reset the ring. */
TEST(dirty_ring)
{
	const u64 nr = 3 * RING_ENTRIES;
	struct kvm_memory_mapping m;
	unsigned long *dirty = bitmap_zalloc(nr);
	void *source = new_pattern(nr, 1), *mem = new_mem(nr);
	int round, i, err, nr_full;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u32 next = 0;
	u64 left;

	if (!kvm_has_cap(KVM_CAP_DIRTY_LOG_RING) &&
	    !kvm_has_cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		SKIP(return, "No dirty ring");

	vm = vm_create(1);
	vm_enable_dirty_ring(vm, RING_ENTRIES * sizeof(struct kvm_dirty_gfn));
	vcpu = vm_vcpu_add(vm, 0, guest_code);
	set_up_guest(vcpu);
	set_slot(vm, SLOT, LOG, 0, nr, mem);

	for (round = 0; round < 4; round++) {
		bitmap_zero(dirty, nr);
		nr_full = 0;
		/* Without WRITE, a page may be in the ring once or twice. */
		m = memory_mapping(window_gpa(0), nr, round % 2 ? 0 : WRITE,
				   round ? source : NULL);
		while ((err = map_memory_once(vcpu, &m))) {
			TEST_ASSERT(err == ENOSPC, "errno %d", err);
			TEST_ASSERT_EQ(vcpu->run->exit_reason,
				       KVM_EXIT_DIRTY_RING_FULL);
			left = m.nr_pages;
			vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
			TEST_ASSERT_EQ(map_memory_once(vcpu, &m), ENOSPC);
			TEST_ASSERT_EQ(vcpu->run->exit_reason,
				       KVM_EXIT_DIRTY_RING_FULL);
			TEST_ASSERT_EQ(m.nr_pages, left);

			TEST_ASSERT(collect_ring(vcpu, &next, nr, dirty),
				    "The full ring is empty");
			for (i = 0; i < nr - left; i++)
				TEST_ASSERT(test_bit(i, dirty),
					    "Page %d is not in the ring", i);
			nr_full++;
		}
		collect_ring(vcpu, &next, nr, dirty);
		for (i = 0; i < nr; i++)
			TEST_ASSERT(test_bit(i, dirty),
				    "Page %d was not in the ring", i);
		TEST_ASSERT(nr_full >= 2, "Full only %d times", nr_full);
		if (round)
			check_pattern(mem, nr, 1);
		memset(mem, 0, nr * PAGE_SIZE);
	}

	/* The vCPU can run. */
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 0), 0);
	bitmap_free(dirty);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
