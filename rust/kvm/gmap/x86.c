// SPDX-License-Identifier: GPL-2.0-only
/*
 * vCPUs with address spaces of their own, on x86: how KVM exits where nothing is
 * mapped, and what a VM of such vCPUs cannot do.
 */
#include <linux/kvm_memory_core.h>

#include "gmap.h"
#include "irq.h"
#include "mmu.h"
#include "x86.h"
#include "mmu/mmu_internal.h"

/* s390's code of the exception that a missing segment would raise. */
#define PGM_SEGMENT_TRANSLATION	0x10

int kvm_gmap_vcpu_create(struct kvm_vcpu *vcpu)
{
	int r = kvm_create_gmap(vcpu);

	if (r > 0)
		vcpu->arch.as_id = r;
	return r;
}

void kvm_gmap_prepare_exit(struct kvm_vcpu *vcpu, gfn_t gfn)
{
	vcpu->run->exit_reason = KVM_EXIT_S390_UCONTROL;
	vcpu->run->s390_ucontrol.trans_exc_code = gfn_to_gpa(gfn);
	vcpu->run->s390_ucontrol.pgm_code = PGM_SEGMENT_TRANSLATION;
}

int kvm_arch_vcpu_gmap(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.as_id;
}

void kvm_arch_gmap_missing(struct kvm_vcpu *vcpu, gfn_t gfn)
{
	kvm_gmap_prepare_exit(vcpu, gfn);
}

void kvm_arch_gmap_miss_gfn(struct kvm_vcpu *vcpu, gfn_t gfn)
{
	/* The first miss is where the instruction has stopped. */
	if (vcpu->arch.gmap_missed != KVM_GMAP_NOTHING_MISSED)
		return;

	vcpu->arch.gmap_missed = KVM_GMAP_MISSED_GFN;
	vcpu->arch.gmap_missed_gfn = gfn;
}

/* An access has failed.  If that was not because of a missing gfn, say so. */
void kvm_gmap_miss_memory(struct kvm_vcpu *vcpu)
{
	if (kvm_vcpu_has_gmap(vcpu) &&
	    vcpu->arch.gmap_missed == KVM_GMAP_NOTHING_MISSED)
		vcpu->arch.gmap_missed = KVM_GMAP_MISSED_MEMORY;
}

/*
 * Exit instead of completing an instruction, which has no effect yet.  Returns
 * what the handler of a VM-Exit returns.
 */
int kvm_gmap_exit(struct kvm_vcpu *vcpu, int emulation_type)
{
	if (vcpu->arch.gmap_missed == KVM_GMAP_MISSED_GFN) {
		kvm_gmap_prepare_exit(vcpu, vcpu->arch.gmap_missed_gfn);
		return 0;
	}

	/* A caller that skips an instruction takes errors for success. */
	if (emulation_type & EMULTYPE_SKIP) {
		kvm_prepare_emulation_failure_exit(vcpu);
		return 0;
	}

	return -EFAULT;
}

static int complete_skip(struct kvm_vcpu *vcpu)
{
	/* Userspace may have had it continue elsewhere. */
	if (!kvm_is_linear_rip(vcpu, vcpu->arch.gmap_skip_rip))
		return 1;

	return kvm_skip_emulated_instruction(vcpu);
}

/*
 * An instruction has been carried out, but could not be skipped, because that
 * takes decoding it again if the CPU does not say how long it is.  Skip it before
 * the vCPU runs again: its effects must not happen twice.
 */
int kvm_gmap_skip_later(struct kvm_vcpu *vcpu)
{
	if (kvm_gmap_must_exit(vcpu) && !vcpu->arch.complete_userspace_io) {
		vcpu->arch.gmap_skip_rip = kvm_get_linear_rip(vcpu);
		vcpu->arch.complete_userspace_io = complete_skip;
	}
	return 0;
}

/*
 * Flush the TLB of the one vCPU that uses the address space.  The others run on:
 * they have roots of their own, and nothing of this address space in their TLBs.
 */
void kvm_gmap_flush_tlb(struct kvm *kvm, int as_id)
{
	DECLARE_BITMAP(vcpus, KVM_MAX_VCPUS) = {};

	/* Until the vCPU is online, it cannot have run. */
	__set_bit(as_id - KVM_MAX_NR_ADDRESS_SPACES, vcpus);

	++kvm->stat.generic.remote_tlb_flush_requests;

	/* Hyper-V, if KVM runs on it, flushes all roots. */
	if (!kvm_arch_flush_remote_tlbs(kvm) ||
	    kvm_make_vcpus_request_mask(kvm, KVM_REQ_TLB_FLUSH, vcpus))
		++kvm->stat.generic.remote_tlb_flush;
}

int kvm_gmap_max_vcpus(struct kvm *kvm)
{
	int nr_as_ids = BIT(KVM_MMU_AS_ID_BITS);

	if (!tdp_mmu_enabled || kvm_caps.has_real_mode_memslots ||
	    (kvm && kvm->arch.vm_type != KVM_X86_DEFAULT_VM))
		return 0;

	return min(nr_as_ids - KVM_MAX_NR_ADDRESS_SPACES, KVM_MAX_VCPUS);
}

int kvm_vm_ioctl_enable_gmaps(struct kvm *kvm, struct kvm_enable_cap *cap)
{
	int max_vcpus = kvm_gmap_max_vcpus(kvm);
	int i;

	if (!max_vcpus)
		return -EINVAL;

	for (i = 0; i < ARRAY_SIZE(cap->args); i++)
		if (cap->args[i])
			return -EINVAL;

	guard(mutex)(&kvm->lock);
	guard(mutex)(&kvm->slots_lock);

	if (kvm->created_vcpus || irqchip_in_kernel(kvm) ||
	    kvm->dirty_ring_size || !kvm_are_all_memslots_empty(kvm))
		return -EINVAL;

	return kvm_enable_gmaps(kvm, max_vcpus);
}

bool kvm_arch_gmap_lacks_cap(unsigned int cap)
{
	switch (cap) {
	/* Userspace maps memory to vCPUs, not to the VM. */
	case KVM_CAP_USER_MEMORY:
	case KVM_CAP_USER_MEMORY2:
	case KVM_CAP_USER_MEMORY_REGION_LIST:
	case KVM_CAP_USER_MEMORY_REGION_LIST_FIELDS:
	case KVM_CAP_READONLY_MEM:
	case KVM_CAP_GUEST_MEMFD:
	case KVM_CAP_GUEST_MEMFD_FLAGS:
	case KVM_CAP_MEMORY_ATTRIBUTES:
	/* Logs are read by memslot. */
	case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
	case KVM_CAP_DIRTY_LOG_RING:
	case KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
	case KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP:
	/* The local APIC is at the same address for all vCPUs. */
	case KVM_CAP_IRQCHIP:
	case KVM_CAP_SPLIT_IRQCHIP:
	case KVM_CAP_PIT:
	case KVM_CAP_PIT2:
	case KVM_CAP_PIT_STATE2:
	/* There is memory for the guest only, not for its nested guests. */
	case KVM_CAP_NESTED_STATE:
	case KVM_CAP_HYPERV_DIRECT_TLBFLUSH:
	case KVM_CAP_HYPERV_ENLIGHTENED_VMCS:
	/* Memory is encrypted for the VM. */
	case KVM_CAP_VM_COPY_ENC_CONTEXT_FROM:
	case KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM:
		return true;
	default:
		return false;
	}
}

bool kvm_arch_gmap_lacks_ioctl(unsigned int ioctl)
{
	switch (ioctl) {
	case KVM_SET_USER_MEMORY_REGION:
	case KVM_SET_USER_MEMORY_REGION2:
	case KVM_SET_USER_MEMORY_REGION_LIST:
	case KVM_CREATE_GUEST_MEMFD:
	case KVM_SET_MEMORY_ATTRIBUTES:
	case KVM_GET_DIRTY_LOG:
	case KVM_CLEAR_DIRTY_LOG:
	case KVM_RESET_DIRTY_RINGS:
	case KVM_CREATE_IRQCHIP:
	case KVM_CREATE_PIT:
	case KVM_CREATE_PIT2:
	case KVM_MEMORY_ENCRYPT_OP:
	case KVM_MEMORY_ENCRYPT_REG_REGION:
	case KVM_MEMORY_ENCRYPT_UNREG_REGION:
		return true;
	default:
		return false;
	}
}
