// SPDX-License-Identifier: GPL-2.0-only
/*
 * Read sections of a loaded vCPU, for vcpu.rs: Rust cannot call the inline
 * functions.
 */
#include <linux/kvm_memory_core.h>

void kvm_memory_srcu_lock(struct kvm_vcpu *vcpu)
{
	kvm_vcpu_srcu_read_lock(vcpu);
}

void kvm_memory_srcu_unlock(struct kvm_vcpu *vcpu)
{
	kvm_vcpu_srcu_read_unlock(vcpu);
}
