/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fixture of tests of KVM_MAP_MEMORY: a guest that accesses the window.
 */
#ifndef SELFTEST_KVM_MAP_MEMORY_FIXTURE_H
#define SELFTEST_KVM_MAP_MEMORY_FIXTURE_H

#include "kvm_test_harness.h"
#include "map_memory.h"

FIXTURE(map)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
};

FIXTURE_SETUP(map)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, guest_code);
	set_up_guest(self->vcpu);
}

FIXTURE_TEARDOWN(map)
{
	kvm_vm_free(self->vm);
}

#endif /* SELFTEST_KVM_MAP_MEMORY_FIXTURE_H */
