// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guest memory and MSRs, as memory areas need them on x86.
 *
 * Descriptors and areas are in address space 0, also for a vCPU in SMM: the MSRs
 * that areas stand for go there, too.
 */
#include <linux/kvm_memory_core.h>

#include "cpuid.h"
#include "gmap.h"
#include "msrs.h"
#include "xen.h"

/* The state that memory areas add to a vCPU. */
static_assert(sizeof_field(struct kvm_vcpu_arch, mem_area_op) <= 64);
static_assert(sizeof_field(struct kvm_run, msr_op) == 32);

static_assert(KVM_MEM_AREA_MSR_UNSUPPORTED == KVM_MSR_RET_UNSUPPORTED);
static_assert(KVM_MEM_AREA_MSR_ASK == KVM_MSR_RET_MEM_AREA);

/* Nothing crosses a page: a descriptor is aligned to more than its size. */
static_assert(sizeof(struct kvm_memory_area) <= KVM_MEM_AREA_DESC_ALIGN);

/*
 * Whether the vCPU does this in an ioctl that can have it access guest memory:
 * KVM_RUN, or one that makes it leave L2.  Those pin memslots, see
 * kvm_vcpu_srcu_read_lock().
 *
 * VMX loads L1's list of MSRs whenever a vCPU leaves L2, also when the vCPU is
 * destroyed.  Then nothing keeps memslots from going, and the current task can
 * be one of another process.
 */
bool kvm_mem_area_is_running(struct kvm_vcpu *vcpu)
{
	return vcpu->____memslots[0] && vcpu->kvm->mm == current->mm;
}

/*
 * All that a command looks up is in the memslots that the vCPU has pinned, so
 * that memory counts as there only if the same memslots have all of it.
 */
static struct kvm_memory_slot *area_memslot(struct kvm_vcpu *vcpu, gfn_t gfn)
{
	/* It has pinned its own address space.  There is nothing in number 0. */
	if (kvm_vcpu_has_gmap(vcpu))
		return NULL;

	return __gfn_to_memslot(vcpu->____memslots[0], gfn);
}

static bool is_writable(struct kvm_memory_slot *slot)
{
	return kvm_is_accessible_memslot(slot) &&
	       !(slot->flags & KVM_MEM_READONLY);
}

/*
 * The memslot of @gpa, if the guest has shared memory there and can write it, and
 * where in userspace the memory is.
 */
static struct kvm_memory_slot *shared_memslot(struct kvm_vcpu *vcpu, gpa_t gpa,
					      unsigned long *hva)
{
	gfn_t gfn = gpa_to_gfn(gpa);
	struct kvm_memory_slot *slot = area_memslot(vcpu, gfn);

	if (!is_writable(slot))
		return NULL;
	if (kvm_arch_has_private_mem(vcpu->kvm) &&
	    kvm_mem_is_private(vcpu->kvm, gfn))
		return NULL;

	*hva = __gfn_to_hva_memslot(slot, gfn) + offset_in_page(gpa);
	return slot;
}

/*
 * Whether userspace lets KVM write the byte at @hva.  Its value does not change,
 * also if the guest writes it meanwhile.
 *
 * Where memory is encrypted and caches are not coherent with that (SEV without
 * SME_COHERENT), the line is dirty in the cache without encryption afterwards,
 * as it is after any write of KVM: the guest must share what it registers.
 */
static bool can_write_byte(unsigned long hva)
{
	u8 old = 0;

	return __try_cmpxchg_user((u8 __user *)hva, &old, 0, efault) >= 0;
}

static bool can_write_gpa(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	gfn_t gfn = gpa_to_gfn(gpa);
	unsigned long hva = gfn_to_hva_memslot(area_memslot(vcpu, gfn), gfn);

	return !kvm_is_error_hva(hva) &&
	       can_write_byte(hva + offset_in_page(gpa));
}

/*
 * Whether KVM can write all of @size bytes, which may cross into a second page
 * and no further.
 */
bool kvm_mem_area_can_write(struct kvm_vcpu *vcpu, gpa_t gpa, u32 size)
{
	gpa_t last = gpa + size - 1;

	return can_write_gpa(vcpu, gpa) &&
	       (gpa_to_gfn(gpa) == gpa_to_gfn(last) || can_write_gpa(vcpu, last));
}

/*
 * Whether KVM can map all of @size bytes, which are within one page.  It cannot
 * map all that it can write to, e.g. memory of memfd_secret().
 */
bool kvm_mem_area_can_map(struct kvm_vcpu *vcpu, gpa_t gpa, u32 size)
{
	struct gfn_to_pfn_cache gpc = {};
	bool can_map;

	kvm_gpc_init(&gpc, vcpu->kvm);
	can_map = !kvm_gpc_activate(&gpc, gpa, size);
	kvm_gpc_deactivate(&gpc);
	return can_map;
}

/* Whether the guest has shared memory at all of @size bytes, and can write it. */
bool kvm_mem_area_is_memory(struct kvm_vcpu *vcpu, gpa_t gpa, u32 size)
{
	gpa_t last = gpa + size - 1;
	gfn_t gfn, end;

	/*
	 * Neither implies the other: the C-bit of an encrypted guest is no reserved
	 * bit, and may be above some that are.
	 */
	if (!kvm_vcpu_is_legal_gpa(vcpu, gpa) ||
	    !kvm_vcpu_is_legal_gpa(vcpu, last))
		return false;

	gfn = gpa_to_gfn(gpa);
	end = gpa_to_gfn(last) + 1;
	while (gfn < end) {
		struct kvm_memory_slot *slot = area_memslot(vcpu, gfn);
		gfn_t slot_end;

		if (!is_writable(slot))
			return false;

		slot_end = min(end, slot->base_gfn + slot->npages);
		if (!kvm_arch_has_private_mem(vcpu->kvm))
			gfn = slot_end;
		for (; gfn < slot_end; gfn++)
			if (kvm_mem_is_private(vcpu->kvm, gfn))
				return false;
	}
	return true;
}

/*
 * Copy the descriptor to @desc.  Fail if it is misaligned or not in memory that
 * guest and KVM can both read and write.
 */
bool kvm_mem_area_read_desc(struct kvm_vcpu *vcpu, gpa_t gpa, void *desc)
{
	unsigned long hva;

	return kvm_vcpu_is_legal_aligned_gpa(vcpu, gpa, KVM_MEM_AREA_DESC_ALIGN) &&
	       shared_memslot(vcpu, gpa, &hva) &&
	       can_write_byte(hva + offsetof(struct kvm_memory_area, result)) &&
	       !__copy_from_user(desc, (void __user *)hva,
				 sizeof(struct kvm_memory_area));
}

/* Since kvm_mem_area_read_desc(), userspace may have taken the memory away. */
bool kvm_mem_area_write_result(struct kvm_vcpu *vcpu, gpa_t gpa, u8 result)
{
	struct kvm_memory_slot *slot;
	unsigned long hva;

	gpa += offsetof(struct kvm_memory_area, result);
	if (!kvm_vcpu_is_legal_gpa(vcpu, gpa))
		return false;

	slot = shared_memslot(vcpu, gpa, &hva);
	if (!slot || __put_user(result, (u8 __user *)hva))
		return false;

	mark_page_dirty_in_slot(vcpu->kvm, slot, gpa_to_gfn(gpa));
	return true;
}

/* Fail if the vCPU does not have the MSR. */
bool kvm_mem_area_msr_read(struct kvm_vcpu *vcpu, u32 index, u64 *value)
{
	struct msr_data msr = { .index = index };

	if (kvm_x86_call(get_msr)(vcpu, &msr))
		return false;
	*value = msr.data;
	return true;
}

/*
 * Write as the guest's own WRMSR would, but fail where ignore_msrs would make it
 * look like a success, and where KVM never uses the value.
 */
bool kvm_mem_area_msr_write(struct kvm_vcpu *vcpu, u32 index, u64 value)
{
	struct msr_data msr = { .index = index, .data = value };

	/* Xen's runstate replaces steal time. */
	if (index == MSR_KVM_STEAL_TIME && value & KVM_MSR_ENABLED &&
	    kvm_xen_msr_enabled(vcpu->kvm))
		return false;

	return kvm_msr_allowed(vcpu, index, KVM_MSR_FILTER_WRITE) &&
	       !kvm_x86_call(set_msr)(vcpu, &msr);
}
