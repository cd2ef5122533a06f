// SPDX-License-Identifier: GPL-2.0-only
/*
 * Macros and inline functions that every part of the memory core needs.  Rust
 * can call neither.
 */
#include <linux/kvm_memory_core.h>
#include <linux/sched.h>

void kvm_memory_srcu_lock(struct kvm_vcpu *vcpu)
{
	kvm_vcpu_srcu_read_lock(vcpu);
}

void kvm_memory_srcu_unlock(struct kvm_vcpu *vcpu)
{
	kvm_vcpu_srcu_read_unlock(vcpu);
}

void kvm_memory_cond_resched(void)
{
	cond_resched();
}
