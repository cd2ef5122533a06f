/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fixture of tests of KVM_MAP_MEMORY with private memory: a slot with a
 * guest_memfd at the beginning of the window.
 */
#ifndef SELFTEST_KVM_MAP_MEMORY_PRIVATE_FIXTURE_H
#define SELFTEST_KVM_MAP_MEMORY_PRIVATE_FIXTURE_H

#include "kvm_test_harness.h"
#include "map_memory.h"

#define PRIVATE_PAGES	32

FIXTURE(private)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	/* The shared memory of the slot. */
	void *mem;
};

FIXTURE_SETUP(private)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "No VM with private memory");

	self->vm = vm_create_shape_with_one_vcpu(shape, &self->vcpu, guest_code);
	set_up_guest(self->vcpu);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, WINDOW_GPA,
				    SLOT, PRIVATE_PAGES, KVM_MEM_GUEST_MEMFD);
	self->mem = addr_gpa2hva(self->vm, WINDOW_GPA);
}

FIXTURE_TEARDOWN(private)
{
	kvm_vm_free(self->vm);
}

static inline void set_private(struct kvm_vm *vm, u64 page, u64 nr)
{
	vm_mem_set_private(vm, window_gpa(page), nr * PAGE_SIZE);
}

static inline void set_shared(struct kvm_vm *vm, u64 page, u64 nr)
{
	vm_mem_set_shared(vm, window_gpa(page), nr * PAGE_SIZE);
}

#endif /* SELFTEST_KVM_MAP_MEMORY_PRIVATE_FIXTURE_H */
