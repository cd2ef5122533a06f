// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY: memory that it fills with the contents of a source.
 */
#include "map_memory_fixture.h"

TEST_F(map, source)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	u8 *mem = new_mem(200), *source = new_pattern(200, 1000);
	int i;

	set_slot(vm, SLOT, 0, 0, 100, mem);
	set_slot(vm, OTHER_SLOT, 0, 100, 100, hva(mem, 100));
	fill(mem, 200, 1);

	/* Across the border between two chunks, and between two slots. */
	populate(vcpu, 50, 100, READ, source);
	check_pattern(mem, 50, 1);
	check_pattern(hva(mem, 50), 100, 1000);
	check_pattern(hva(mem, 150), 50, 151);
	check_pattern(source, 200, 1000);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 50, 100), 0);
	guest_sees(vcpu, 50, 100, 1000);

	populate(vcpu, 0, 200, WRITE, source);
	guest_sees(vcpu, 0, 200, 1000);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 200), 0);

	/* The source is the memory behind the slots itself. */
	fill(mem, 200, 1);
	populate(vcpu, 0, 200, WRITE, mem);
	guest_sees(vcpu, 0, 200, 1);
	/* The source of each page is the page above: all move down. */
	populate(vcpu, 0, 199, READ, hva(mem, 1));
	check_pattern(mem, 199, 2);
	check_pattern(hva(mem, 199), 1, 200);
	/* The source of each page is the page below, which has just been filled. */
	fill(mem, 200, 1);
	populate(vcpu, 1, 100, WRITE, mem);
	check_pattern(hva(mem, 0), 1, 1);
	check_pattern(hva(mem, 1), 1, 1);
	check_pattern(hva(mem, 100), 1, 1);
	check_pattern(hva(mem, 101), 99, 102);
	guest_sees(vcpu, 101, 99, 102);

	/* Down again, across pages that are the zero page. */
	fill(mem, 200, 1);
	madvise(hva(mem, 10), 5 * PAGE_SIZE, MADV_DONTNEED);
	for (i = 10; i < 15; i++)
		READ_ONCE(mem[i * PAGE_SIZE]);
	populate(vcpu, 0, 50, WRITE, hva(mem, 1));
	check_pattern(mem, 9, 2);
	for (i = 9; i < 14; i++)
		TEST_ASSERT(!*(u64 *)hva(mem, i), "Page %d is not zero", i);
	check_pattern(hva(mem, 14), 36, 16);
	guest_sees(vcpu, 14, 36, 16);
}

TEST_F(map, source_unreadable)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	u8 *mem = new_pattern(16, 1), *source = new_pattern(16, 100);
	const u64 kernel[] = {
		0x7ffffffff000, 0x800000000000, 0xffff800000000000,
		0xffffffff81000000,
	};
	int i;

	set_slot(vm, SLOT, 0, 0, 16, mem);
	mprotect(hva(source, 7), PAGE_SIZE, PROT_NONE);
	populate_fails(vcpu, 0, 16, READ, source, EFAULT, 7);
	check_pattern(mem, 7, 100);
	check_pattern(hva(mem, 7), 9, 8);

	munmap(hva(source, 7), PAGE_SIZE);
	fill(mem, 16, 1);
	populate_fails(vcpu, 2, 14, WRITE, source, EFAULT, 7);
	check_pattern(mem, 2, 1);
	check_pattern(hva(mem, 2), 7, 100);
	check_pattern(hva(mem, 9), 7, 10);
	guest_sees(vcpu, 9, 7, 10);
	populate_fails(vcpu, 9, 7, WRITE, hva(source, 7), EFAULT, 0);
	check_pattern(hva(mem, 9), 7, 10);

	fill(mem, 16, 1);
	for (i = 0; i < ARRAY_SIZE(kernel); i++)
		populate_fails(vcpu, 0, 1, WRITE, (void *)kernel[i], EFAULT, 0);
	check_pattern(mem, 16, 1);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
