// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY: huge pages.  It maps a huge page as one if the guest would get it
 * as one.
 */
#include "map_memory_fixture.h"

static void *try_hugetlb(u64 nr_pages)
{
	void *mem = mmap(NULL, nr_pages * PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
			 MAP_HUGE_2MB, -1, 0);

	return mem == MAP_FAILED ? NULL : mem;
}

/* Returns NULL if not all of the memory is in huge pages. */
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

static void test_huge_pages(struct kvm_vcpu *vcpu, u8 *mem)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 huge = vm_get_stat(vm, pages_2m), small = vm_get_stat(vm, pages_4k);

	set_slot(vm, SLOT, 0, 0, 2 * HUGE_PAGES, mem);

	/* One page in the middle maps the huge page. */
	populate(vcpu, 100, 1, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 1);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, HUGE_PAGES), 0);
	populate(vcpu, HUGE_PAGES - 3, 4, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 2);
	populate(vcpu, 0, 2 * HUGE_PAGES, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 2);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), small);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 2 * HUGE_PAGES), 0);

	/* KVM maps a huge page at once, but fills it page by page. */
	populate(vcpu, 10, HUGE_PAGES, WRITE, new_pattern(HUGE_PAGES, 7));
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 2);
	guest_sees(vcpu, 10, HUGE_PAGES, 7);
	check_pattern(hva(mem, 10), HUGE_PAGES, 7);

	/* The slot is not aligned like the memory. */
	delete_slot(vm, SLOT);
	populate_guests_own(vcpu);
	small = vm_get_stat(vm, pages_4k);
	set_slot(vm, SLOT, 0, 1, HUGE_PAGES, mem);
	populate(vcpu, 1, HUGE_PAGES, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), small + HUGE_PAGES);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 1, HUGE_PAGES), 0);

	/* The slot has a dirty log. */
	delete_slot(vm, SLOT);
	populate_guests_own(vcpu);
	small = vm_get_stat(vm, pages_4k);
	set_slot(vm, SLOT, LOG, 0, HUGE_PAGES, mem);
	populate(vcpu, 0, HUGE_PAGES, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), small + HUGE_PAGES);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, HUGE_PAGES), 0);
}

TEST_F_TIMEOUT(map, hugetlb, 60)
{
	void *mem = try_hugetlb(2 * HUGE_PAGES);

	if (!mem)
		SKIP(return, "No huge pages");
	test_huge_pages(self->vcpu, mem);
}

TEST_F_TIMEOUT(map, thp, 60)
{
	void *mem = try_thp(2 * HUGE_PAGES);

	if (!mem)
		SKIP(return, "No transparent huge pages");
	test_huge_pages(self->vcpu, mem);
}

TEST_F_TIMEOUT(map, exec_nx_huge_pages, 60)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
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
	/* KVM has zapped all mappings, or is about to. */
	populate_guests_own(vcpu);

	/* RET instructions. */
	memset(mem, 0xc3, 2 * SZ_2M);
	set_slot(vm, SLOT, 0, 0, 2 * HUGE_PAGES, mem);
	huge = vm_get_stat(vm, pages_2m);
	small = vm_get_stat(vm, pages_4k);

	populate(vcpu, 0, HUGE_PAGES, EXEC, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), small + HUGE_PAGES);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_CALL, 0, HUGE_PAGES), 0);

	/* Without EXEC the page is huge, and the guest cannot execute it. */
	populate(vcpu, HUGE_PAGES, HUGE_PAGES, READ, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 1);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, HUGE_PAGES, HUGE_PAGES),
		       0);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_CALL, HUGE_PAGES, 1), 1);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge);
	populate(vcpu, HUGE_PAGES, HUGE_PAGES, EXEC, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_CALL, HUGE_PAGES, HUGE_PAGES),
		       0);

	TEST_ASSERT(write_attr(NX_HUGE_PAGES, "off"), "errno %d", errno);
	populate_guests_own(vcpu);
	huge = vm_get_stat(vm, pages_2m);
	populate(vcpu, 0, 2 * HUGE_PAGES, EXEC, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), huge + 2);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_CALL, 0, 2 * HUGE_PAGES), 0);
	TEST_ASSERT(write_attr(NX_HUGE_PAGES, was), "errno %d", errno);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
