/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A nested guest, on Intel or AMD.
 */
#ifndef SELFTEST_KVM_NESTED_GUEST_H
#define SELFTEST_KVM_NESTED_GUEST_H

#include "kvm_util.h"
#include "processor.h"
#include "svm_util.h"
#include "vmx.h"

static inline bool kvm_has_nested(void)
{
	return kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM);
}

/* Whether a guest can use two-dimensional paging for a nested guest. */
static inline bool kvm_has_nested_tdp(void)
{
	return kvm_is_tdp_enabled() && kvm_has_nested() && kvm_cpu_has_tdp();
}

/* Passes what run_nested_guest() needs as the vCPU's first argument. */
static inline void vcpu_alloc_nested(struct kvm_vm *vm, struct kvm_vcpu *vcpu)
{
	gva_t nested_gva;

	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(vm, &nested_gva);
	else
		vcpu_alloc_svm(vm, &nested_gva);
	vcpu_args_set(vcpu, 1, nested_gva);
}

/* Runs in the guest; @data is the argument from vcpu_alloc_nested(). */
static inline void run_nested_guest(void *data, void *l2_code)
{
	if (this_cpu_has(X86_FEATURE_VMX)) {
		struct vmx_pages *vmx = data;

		GUEST_ASSERT(prepare_for_vmx_operation(vmx));
		GUEST_ASSERT(load_vmcs(vmx));
		prepare_vmcs(vmx, l2_code);
		GUEST_ASSERT(!vmlaunch());
	} else {
		struct svm_test_data *svm = data;

		generic_svm_setup(svm, l2_code);
		run_guest(svm->vmcb, svm->vmcb_gpa);
	}
}

static inline void nested_guest_exits(void)
{
	vmcall();
}

static inline void nested_guest_code(void *data)
{
	run_nested_guest(data, nested_guest_exits);
	GUEST_DONE();
}

/* Adds a vCPU that runs a nested guest once, with two-dimensional paging. */
static inline struct kvm_vcpu *vm_vcpu_add_nested(struct kvm_vm *vm, u32 id)
{
	struct kvm_vcpu *vcpu = vm_vcpu_add(vm, id, nested_guest_code);

	vm_enable_tdp(vm);
	vcpu_alloc_nested(vm, vcpu);
	tdp_identity_map_default_memslots(vm);
	return vcpu;
}

#endif /* SELFTEST_KVM_NESTED_GUEST_H */
