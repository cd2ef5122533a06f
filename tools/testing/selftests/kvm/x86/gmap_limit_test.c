// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): how much can be mapped, and what it costs.
 */
#include "gmap_guest.h"
#include "kvm_test_harness.h"

/* More than any map can have as extents of their own. */
#define MAX_EXTENTS	BIT(15)

FIXTURE(limit)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *mem;
};

#define test_data FIXTURE_DATA(limit)

FIXTURE_SETUP(limit)
{
	self->vm = gmap_vm_with_guest(&self->vcpu);
	self->mem = segments_alloc(4);
}

FIXTURE_TEARDOWN(limit)
{
	kvm_vm_free(self->vm);
}

/* Two segments of memory in turn, so that no neighbours can be joined. */
static int map_alternating(test_data *self, u64 i)
{
	return __gmap_map(self->vcpu, self->mem + i % 2 * 2 * SEGMENT,
			  DATA_GPA + i * SEGMENT, SEGMENT);
}

TEST_F_TIMEOUT(limit, no_ids_left, 240)
{
	u64 i, n, swaps;
	int err = 0;

	*(u64 *)self->mem = 0x1000;
	*(u64 *)(self->mem + 2 * SEGMENT) = 0x1002;
	/* This one takes an id, and can be split. */
	gmap_map(self->vcpu, self->mem, SZ_512M, 3 * SEGMENT);

	for (n = 0; n < MAX_EXTENTS && !err; n++)
		err = map_alternating(self, n);
	n--;
	EXPECT_EQ(ENOSPC, err);
	TH_LOG("%lu extents", n);
	EXPECT_GE(n, 1000);

	/* Nothing has changed. */
	swaps = vm_get_stat(self->vm, memslot_swaps);
	EXPECT_EQ(ENOSPC, map_alternating(self, n));
	EXPECT_EQ(ENOSPC, map_alternating(self, n + 100));
	/* A hole in the middle of an extent needs an id more. */
	EXPECT_EQ(ENOSPC, __gmap_unmap(self->vcpu, SZ_512M + SEGMENT, SEGMENT));
	/* Other memory in the middle, two. */
	EXPECT_EQ(ENOSPC, __gmap_map(self->vcpu, self->mem, SZ_512M + SEGMENT, SEGMENT));
	EXPECT_EQ(swaps, vm_get_stat(self->vm, memslot_swaps));
	for (i = 0; i < 3; i++)
		EXPECT_TRUE(gmap_is_mapped(self->vcpu, SZ_512M + i * SEGMENT));
	EXPECT_FALSE(gmap_is_mapped(self->vcpu, DATA_GPA + n * SEGMENT));
	EXPECT_EQ(0x1002, run_read(self->vcpu, SZ_512M + 2 * SEGMENT));
	for (i = 0; i < n; i += n / 8)
		EXPECT_TRUE(gmap_is_mapped(self->vcpu, DATA_GPA + i * SEGMENT));
	for (i = 0; i < 1000; i += 99)
		EXPECT_EQ(0x1000 + i % 2 * 2,
			  run_read(self->vcpu, DATA_GPA + i * SEGMENT));

	/*
	 * What needs no id more is possible: other memory in place of an extent, a
	 * shorter extent, and one that grows.
	 */
	EXPECT_EQ(0, __gmap_map(self->vcpu, self->mem + 3 * SEGMENT, DATA_GPA, SEGMENT));
	EXPECT_EQ(0, run_read(self->vcpu, DATA_GPA));
	EXPECT_EQ(0, __gmap_unmap(self->vcpu, SZ_512M + 2 * SEGMENT, SEGMENT));
	EXPECT_EQ(0, __gmap_map(self->vcpu,
				self->mem + ((n - 1) % 2 * 2 + 1) * SEGMENT,
				DATA_GPA + n * SEGMENT, SEGMENT));
	EXPECT_TRUE(gmap_is_mapped(self->vcpu, DATA_GPA + n * SEGMENT));

	/* Another vCPU has its own ids. */
	gmap_map(gmap_guest_add(self->vm, 1), self->mem, DATA_GPA, SEGMENT);

	/* One that becomes free serves again. */
	gmap_unmap(self->vcpu, DATA_GPA + 7 * SEGMENT, SEGMENT);
	EXPECT_EQ(0, map_alternating(self, n));
	EXPECT_EQ(ENOSPC, map_alternating(self, n + 1));

	/* All at once. */
	gmap_unmap(self->vcpu, DATA_GPA, (n + 2) * SEGMENT);
	for (i = 0; i < 10; i++)
		EXPECT_EQ(0, map_alternating(self, i));
}

/* Memory that is mapped a segment at a time has as many extents as if at once. */
TEST_F(limit, joined)
{
	const u64 nr = 2000;
	u8 *mem = segments_alloc(nr);
	u64 i;

	for (i = 0; i < nr; i++)
		gmap_map(self->vcpu, mem + i * SEGMENT, DATA_GPA + i * SEGMENT, SEGMENT);
	for (i = 0; i < nr; i += 99) {
		*(u64 *)(mem + i * SEGMENT) = i;
		EXPECT_EQ(i, run_read(self->vcpu, DATA_GPA + i * SEGMENT));
	}
	/* Taken apart from the middle, and put together again. */
	for (i = 0; i < nr; i += 2)
		gmap_unmap(self->vcpu, DATA_GPA + (i * 7 % nr) * SEGMENT, SEGMENT);
	for (i = 0; i < nr; i++)
		gmap_map(self->vcpu, mem + i * SEGMENT, DATA_GPA + i * SEGMENT, SEGMENT);
	for (i = 0; i < nr; i += 99)
		EXPECT_EQ(i, run_read(self->vcpu, DATA_GPA + i * SEGMENT));
}

static u64 guest_touch(u64 from, u64 nr_segments)
{
	u64 i;

	for (i = 0; i < nr_segments; i++)
		WRITE_ONCE(*(u64 *)(from + i * SEGMENT), i);
	return 0;
}

/*
 * A guest that walks through segments, each of which is mapped when it gets there,
 * takes a fault for the hole and one for the page.  Growing the extent costs none.
 */
TEST_F(limit, growing_costs_no_fault)
{
	const u64 nr = 64;
	u8 *mem = segments_alloc(nr + 1) + SEGMENT;
	u64 faults, i;

	run_read(self->vcpu, BOOT_GPA);
	guest_set_call(self->vcpu, guest_touch, DATA_GPA, nr, 0);
	faults = vcpu_get_stat(self->vcpu, pf_taken);
	for (i = 0; i < nr; i++) {
		guest_run_to_hole(self->vcpu, DATA_GPA + i * SEGMENT);
		gmap_map(self->vcpu, mem + i * SEGMENT, DATA_GPA + i * SEGMENT, SEGMENT);
	}
	guest_run(self->vcpu);
	/* Some for the page of guest_touch() itself. */
	EXPECT_LE(vcpu_get_stat(self->vcpu, pf_taken) - faults, 2 * nr + 4);

	faults = vcpu_get_stat(self->vcpu, pf_taken);
	guest_call(self->vcpu, guest_touch, DATA_GPA, nr, 0);
	EXPECT_EQ(faults, vcpu_get_stat(self->vcpu, pf_taken));

	/* The same downwards. */
	for (i = 0; i < nr; i += 2) {
		gmap_unmap(self->vcpu, DATA_GPA + i * SEGMENT, SEGMENT);
		gmap_map(self->vcpu, mem + i * SEGMENT, DATA_GPA + i * SEGMENT, SEGMENT);
	}
	faults = vcpu_get_stat(self->vcpu, pf_taken);
	guest_call(self->vcpu, guest_touch, DATA_GPA, nr, 0);
	EXPECT_EQ(nr / 2, vcpu_get_stat(self->vcpu, pf_taken) - faults);
}

/* Segments that are mapped one by one get huge pages, as they are joined. */
TEST_F(limit, joined_gets_huge)
{
	u8 *mem = segments_alloc(4);
	u64 i;

	if (madvise(mem, 4 * SEGMENT, MADV_HUGEPAGE))
		SKIP(return, "No huge pages");
	memset(mem, 1, 4 * SEGMENT);
	if (madvise(mem, 4 * SEGMENT, MADV_COLLAPSE))
		SKIP(return, "Cannot collapse, errno %d", errno);
	for (i = 0; i < 4; i++)
		gmap_map(self->vcpu, mem + i * SEGMENT, DATA_GPA + i * SEGMENT, SEGMENT);
	guest_call(self->vcpu, guest_touch, DATA_GPA, 4, 0);
	EXPECT_EQ(2, vm_get_stat(self->vm, pages_2m));
}

/* 512 GiB at once. */
TEST_F(limit, large)
{
	const u64 length = SZ_512M * 1024ul;
	u8 *mem;

	if (kvm_cpu_property(X86_PROPERTY_MAX_PHY_ADDR) < 40)
		SKIP(return, "Guests cannot have as much");
	mem = segments_alloc_flags(length / SEGMENT, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1);
	gmap_map(self->vcpu, mem, SZ_4G, length);
	*(u64 *)(mem + length - PAGE_SIZE) = 1;
	EXPECT_EQ(0, __gmap_fault(self->vcpu, SZ_4G + length - PAGE_SIZE));
	EXPECT_EQ(0, __gmap_fault(self->vcpu, SZ_4G + length / 2));
	EXPECT_EQ(EREMOTE, __gmap_fault(self->vcpu, SZ_4G + length));
	gmap_unmap(self->vcpu, SZ_4G + length / 2, SEGMENT);
	EXPECT_EQ(EREMOTE, __gmap_fault(self->vcpu, SZ_4G + length / 2));
	EXPECT_EQ(0, __gmap_fault(self->vcpu, SZ_4G + length - PAGE_SIZE));
	gmap_unmap(self->vcpu, SZ_4G, length);
	EXPECT_EQ(EREMOTE, __gmap_fault(self->vcpu, SZ_4G + length - PAGE_SIZE));
	kvm_munmap(mem, length);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());

	return test_harness_run(argc, argv);
}
