// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): so many changes of one map that the generation of
 * the memslots, as far as it is in SPTEs, wraps around.  Another vCPU, whose map is
 * not changed, takes no fault for that.
 *
 *	gmap_swaps_test [CHANGES]
 *
 * The wrap takes 65536 changes.  Where each of them takes long, make fewer.
 */
#include <stdlib.h>

#include "gmap_guest.h"
#include "kselftest.h"

/*
 * The generation in an SPTE has 18 bits.  A swap counts it on by 2, and a map that
 * replaces another takes two swaps.
 */
#define WRAP_CHANGES	BIT(16)
#define DEFAULT_CHANGES	(WRAP_CHANGES + 1000)

#define NR_PAGES	64

static u64 guest_touch(u64 from, u64 nr_pages)
{
	u64 i;

	for (i = 0; i < nr_pages; i++)
		WRITE_ONCE(*(u64 *)(from + i * PAGE_SIZE), i);
	return 0;
}

int main(int argc, char *argv[])
{
	u64 nr = DEFAULT_CHANGES, i, swaps, faults, seen;
	struct kvm_vcpu *changed, *other;
	struct kvm_vm *vm;
	u8 *mem;

	TEST_REQUIRE(max_ucas_vcpus());
	if (argc > 1)
		nr = atoi_positive("Number of changes", argv[1]);

	ksft_print_header();
	ksft_set_plan(1);
	vm = gmap_vm_create();
	changed = gmap_guest_add(vm, 0);
	other = gmap_guest_add(vm, 1);
	mem = segments_alloc(3);
	for (i = 0; i < 3; i++)
		*(u64 *)(mem + i * SEGMENT) = i;
	gmap_map(changed, mem, DATA_GPA, SEGMENT);
	gmap_map(other, mem + 2 * SEGMENT, DATA_GPA, SEGMENT);

	guest_call(other, guest_touch, DATA_GPA, NR_PAGES, 0);
	faults = vcpu_get_stat(other, pf_taken);
	swaps = vm_get_stat(vm, memslot_swaps);
	for (i = 1; i <= nr; i++) {
		gmap_map(changed, mem + i % 2 * SEGMENT, DATA_GPA, SEGMENT);
		if (i % 511)
			continue;
		seen = run_read(changed, DATA_GPA);
		TEST_ASSERT(seen == i % 2, "Change %lu: the guest reads %lu", i, seen);
	}
	swaps = vm_get_stat(vm, memslot_swaps) - swaps;
	TEST_ASSERT(swaps >= nr, "%lu swaps", swaps);

	guest_call(other, guest_touch, DATA_GPA, NR_PAGES, 0);
	faults = vcpu_get_stat(other, pf_taken) - faults;
	TEST_ASSERT(!faults, "%lu faults of the other vCPU", faults);
	run_read_hole(changed, DATA_GPA + SEGMENT);
	run_read_hole(other, DATA_GPA + SEGMENT);
	ksft_test_result_pass("%lu changes, %lu swaps%s\n", nr, swaps,
			      nr < WRAP_CHANGES ? ", no wrap" : "");
	kvm_vm_free(vm);
	ksft_finished();
}
