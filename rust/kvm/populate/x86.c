// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mapping of guest frames on x86, as page faults of the guest would map them.
 */
#include <linux/kvm_memory_core.h>

#include "cpuid.h"
#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/tdp_mmu.h"

gfn_t kvm_arch_vcpu_max_gfn(struct kvm_vcpu *vcpu)
{
	/* Userspace can set CPUID to anything. */
	int bits = clamp(cpuid_maxphyaddr(vcpu), PAGE_SHIFT, 52);
	gfn_t max = min(BIT_ULL(bits - PAGE_SHIFT) - 1, kvm_mmu_max_gfn());

	/* The page tables may reach less far, and wrap around silently. */
	if (tdp_enabled)
		max = min(max, BIT_ULL(9 * vcpu->arch.root_mmu.root_role.level) - 1);

	/* The bit tells shared from private; it is not part of a frame number. */
	if (kvm_gfn_direct_bits(vcpu->kvm))
		max = min(max, kvm_gfn_direct_bits(vcpu->kvm) - 1);

	return max;
}

int kvm_arch_vcpu_may_map(struct kvm_vcpu *vcpu, u64 flags, bool fill)
{
	bool private = flags & KVM_MEMORY_MAPPING_FLAG_PRIVATE;
	struct kvm *kvm = vcpu->kvm;

	if (private && !kvm_arch_has_private_mem(kvm))
		return -EINVAL;

	/*
	 * Page faults have guest physical addresses with TDP only, and a nested
	 * guest has roots of its own.
	 */
	if (!tdp_enabled || is_guest_mode(vcpu))
		return -EOPNOTSUPP;

	if (!kvm->arch.pre_fault_allowed)
		return -EOPNOTSUPP;

	/* Hardware that encrypts private memory also wants to measure it. */
	if (private && fill && kvm->arch.vm_type != KVM_X86_SW_PROTECTED_VM)
		return -EOPNOTSUPP;

	return 0;
}

/*
 * Map the memory that is present behind @gfn, which has just been mapped with
 * a PTE of its own, and behind the gfns that follow it in the same page table.
 * There, and only for memory that the host can write to, a fault on each gfn
 * would find out nothing that the first one did not.  Returns the number of
 * gfns that are mapped.
 */
static int map_present(struct kvm_vcpu *vcpu, gfn_t gfn, unsigned long npages)
{
	struct kvm_memory_slot *slot = kvm_vcpu_gfn_to_memslot(vcpu, gfn);
	struct page *pages[KVM_MAP_PAGES_MAX];
	struct kvm *kvm = vcpu->kvm;
	unsigned long mmu_seq;
	int mapped = 0, n, i;

	/* Attributes and the dirty log may differ from gfn to gfn. */
	if (!tdp_mmu_enabled || kvm_arch_has_private_mem(kvm) ||
	    !slot || slot->flags & KVM_MEMSLOT_INVALID ||
	    kvm_memslot_is_gmem_only(slot) || kvm_slot_dirty_track_enabled(slot))
		return 1;

	npages = min3(npages, slot->base_gfn + slot->npages - gfn,
		      KVM_PAGES_PER_HPAGE(PG_LEVEL_2M) -
		      (gfn & (KVM_PAGES_PER_HPAGE(PG_LEVEL_2M) - 1)));
	npages = min(npages, ARRAY_SIZE(pages));
	if (npages == 1)
		return 1;

	mmu_seq = kvm->mmu_invalidate_seq;
	/* As for a fault: read mmu_invalidate_seq before looking up the pages. */
	smp_rmb();

	n = kvm_prefetch_pages(slot, gfn, pages, npages);
	if (n <= 0)
		return 1;

	read_lock(&kvm->mmu_lock);

	if (!kvm->mmu_invalidate_in_progress &&
	    kvm->mmu_invalidate_seq == mmu_seq)
		mapped = kvm_tdp_mmu_map_pages(vcpu, slot, gfn, pages, n);

	for (i = 0; i < n; i++)
		kvm_release_faultin_page(kvm, pages[i], i >= mapped, true);

	read_unlock(&kvm->mmu_lock);

	return max(mapped, 1);
}

static u64 error_code(u64 flags)
{
	u64 code = PFERR_GUEST_FINAL_MASK | PFERR_POPULATE;

	if (flags & KVM_MEMORY_MAPPING_FLAG_WRITE)
		code |= PFERR_WRITE_MASK;
	if (flags & KVM_MEMORY_MAPPING_FLAG_EXEC)
		code |= PFERR_FETCH_MASK;
	if (flags & KVM_MEMORY_MAPPING_FLAG_USER)
		code |= PFERR_USER_MASK;
	if (flags & KVM_MEMORY_MAPPING_FLAG_PRIVATE)
		code |= PFERR_PRIVATE_ACCESS;
	return code;
}

long kvm_arch_vcpu_map_gfns(struct kvm_vcpu *vcpu, gfn_t gfn,
			    unsigned long npages, u64 flags)
{
	bool write = flags & KVM_MEMORY_MAPPING_FLAG_WRITE;
	gfn_t direct_bits = 0;
	u8 level = PG_LEVEL_4K;
	bool dirty = false;
	int r;

	if (kvm_is_gfn_alias(vcpu->kvm, gfn))
		return -EINVAL;

	if (kvm_test_request(KVM_REQ_VM_DEAD, vcpu))
		return -EIO;

	/* A VM without memslots must not allocate anything. */
	if (!kvm_vcpu_gfn_to_memslot(vcpu, gfn))
		return -ENOENT;

	/* A memslot update may have made the root obsolete. */
	r = kvm_mmu_reload(vcpu);
	if (r)
		goto failed;

	if (!(flags & KVM_MEMORY_MAPPING_FLAG_PRIVATE))
		direct_bits = kvm_gfn_direct_bits(vcpu->kvm);

	r = kvm_mmu_do_page_fault(vcpu, gfn_to_gpa(gfn | direct_bits),
				  error_code(flags), false, NULL, &level);
	switch (r) {
	case RET_PF_FIXED:
		if (level == PG_LEVEL_4K)
			return map_present(vcpu, gfn, npages);
		break;
	case RET_PF_SPURIOUS:
		/*
		 * With PML, a page may be writable and yet clean in the log.  The
		 * CPU, which would log the guest's write, makes no access here.
		 */
		if (vcpu->kvm->arch.cpu_dirty_log_size)
			dirty = write;
		break;
	case RET_PF_WRITE_PROTECTED:
		/* KVM shadows the frame, and would emulate and log the write. */
		dirty = write;
		break;
	case RET_PF_RETRY:
		return 0;
	case RET_PF_EMULATE:
		return -ENOENT;
	default:
		goto failed;
	}

	if (dirty)
		kvm_vcpu_mark_page_dirty(vcpu, gfn);

	return KVM_PAGES_PER_HPAGE(level) -
	       (gfn & (KVM_PAGES_PER_HPAGE(level) - 1));

failed:
	/* No shadow page is left; ENOSPC would say that the dirty ring is full. */
	if (r == -ENOSPC)
		return -ENOMEM;

	WARN_ON_ONCE(r >= 0);
	return r < 0 ? r : -EIO;
}
