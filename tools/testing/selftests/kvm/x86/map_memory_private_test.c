// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY: private memory and guest_memfd.
 */
#include "map_memory_fixture.h"
#include "map_memory_private_fixture.h"

/* Fails with an exit for the page after @done, which is not as @flags say. */
static void populate_faults(struct kvm_vcpu *vcpu, u64 page, u64 nr, u64 flags,
			    const void *source, u64 done)
{
	struct kvm_run *run = vcpu->run;

	run->exit_reason = KVM_EXIT_UNKNOWN;
	populate_gpa(vcpu, window_gpa(page), nr, flags, source, EFAULT, done);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.gpa, window_gpa(page + done));
	TEST_ASSERT_EQ(run->memory_fault.size, PAGE_SIZE);
	TEST_ASSERT_EQ(run->memory_fault.flags,
		       flags & PRIVATE ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0);
}

/* Private memory is in the guest_memfd, shared memory is not. */
TEST_F(private, map)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	u64 flags;

	set_private(vm, 0, PRIVATE_PAGES);
	for (flags = PRIVATE; flags < 2 * PRIVATE; flags++)
		populate(vcpu, 2 * (flags - PRIVATE), 2, flags, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 16), 0);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 16), 0);
	TEST_ASSERT(!is_present(self->mem), "Private memory is shared");

	/* The same memory, when it is shared. */
	set_shared(vm, 0, PRIVATE_PAGES);
	populate(vcpu, 0, PRIVATE_PAGES, WRITE, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, PRIVATE_PAGES), 0);
	TEST_ASSERT(is_present(self->mem), "Nothing is shared");
}

/* Memory that is private to the VM and shared to the caller, or the reverse. */
TEST_F(private, mismatch)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	void *source = new_pattern(PRIVATE_PAGES, 1);

	fill(self->mem, PRIVATE_PAGES, 100);
	populate_faults(vcpu, 0, 4, PRIVATE, NULL, 0);
	populate_faults(vcpu, 0, 4, PRIVATE | WRITE, NULL, 0);
	populate_faults(vcpu, 0, 4, PRIVATE, source, 0);

	set_private(vm, 8, 8);
	populate_faults(vcpu, 8, 4, READ, NULL, 0);
	populate_faults(vcpu, 8, 4, WRITE, NULL, 0);
	populate_faults(vcpu, 8, 4, READ, source, 0);
	populate_faults(vcpu, 0, 16, READ, NULL, 8);
	populate_faults(vcpu, 10, 16, PRIVATE, NULL, 6);
	check_pattern(self->mem, PRIVATE_PAGES, 100);

	populate_faults(vcpu, 0, 16, WRITE, source, 8);
	check_pattern(self->mem, 8, 1);
	check_pattern(hva(self->mem, 8), 8, 108);
	populate_faults(vcpu, 10, 16, PRIVATE | WRITE, source, 6);
	guest_sees(vcpu, 10, 6, 1);
}

TEST_F(private, source)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	void *source = new_pattern(PRIVATE_PAGES, 1);
	void *second = new_pattern(PRIVATE_PAGES, 500);

	fill(self->mem, PRIVATE_PAGES, 100);
	set_private(vm, 0, PRIVATE_PAGES);
	populate(vcpu, 0, 16, PRIVATE, source);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 16), 0);
	guest_sees(vcpu, 0, 16, 1);
	/* On memory that has been populated. */
	populate(vcpu, 16, 16, PRIVATE | WRITE, NULL);
	populate(vcpu, 8, 24, PRIVATE | WRITE, second);
	guest_sees(vcpu, 0, 8, 1);
	guest_sees(vcpu, 8, 24, 500);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, PRIVATE_PAGES), 0);
	check_pattern(self->mem, PRIVATE_PAGES, 100);
	check_pattern(second, PRIVATE_PAGES, 500);

	/* A source that KVM cannot read. */
	populate(vcpu, 0, PRIVATE_PAGES, PRIVATE, source);
	munmap(hva(second, 7), PAGE_SIZE);
	populate_fails(vcpu, 0, 16, PRIVATE, second, EFAULT, 7);
	guest_sees(vcpu, 0, 7, 500);
	guest_sees(vcpu, 7, PRIVATE_PAGES - 7, 8);
}

/* A slot without a guest_memfd. */
TEST_F(private, shared_slot)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	void *source = new_pattern(8, 1);

	set_slot(vm, OTHER_SLOT, 0, PRIVATE_PAGES, 8, new_mem(8));
	set_private(vm, 0, PRIVATE_PAGES + 8);
	populate_faults(vcpu, PRIVATE_PAGES, 4, PRIVATE, NULL, 0);
	populate_faults(vcpu, PRIVATE_PAGES, 4, PRIVATE, source, 0);
	populate_faults(vcpu, PRIVATE_PAGES, 4, WRITE, NULL, 0);
	populate_faults(vcpu, PRIVATE_PAGES - 2, 4, PRIVATE, source, 2);
}

TEST_F(private, no_slot)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	void *source = new_pattern(8, 1);

	populate_fails(vcpu, PRIVATE_PAGES, 4, READ, NULL, ENOENT, 0);
	set_private(vm, 0, PRIVATE_PAGES + 8);
	populate_fails(vcpu, PRIVATE_PAGES, 4, PRIVATE, source, ENOENT, 0);
	populate_fails(vcpu, PRIVATE_PAGES - 2, 4, PRIVATE, source, ENOENT, 2);
	populate_fails(vcpu, PRIVATE_PAGES, 4, PRIVATE, NULL, ENOENT, 0);
	populate_fails(vcpu, PRIVATE_PAGES - 2, 4, PRIVATE, NULL, ENOENT, 2);
}

/* A guest_memfd whose memory is shared. */
TEST_F(map, shared_guest_memfd)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	const u64 flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	void *mem, *source = new_pattern(16, 1);
	int fd;

	if (!kvm_has_cap(KVM_CAP_GUEST_MEMFD) ||
	    (vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & flags) != flags)
		SKIP(return, "No guest_memfd that can be mapped");

	fd = vm_create_guest_memfd(vm, 16 * PAGE_SIZE, flags);
	mem = kvm_mmap(16 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	vm_set_user_memory_region2(vm, SLOT, KVM_MEM_GUEST_MEMFD, window_gpa(0),
				   16 * PAGE_SIZE, mem, fd, 0);
	populate(vcpu, 0, 16, WRITE, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 16), 0);
	populate(vcpu, 0, 16, READ, source);
	guest_sees(vcpu, 0, 16, 1);
	check_pattern(mem, 16, 1);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
