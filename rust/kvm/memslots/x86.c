// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reshaping memslots in place on x86: what becomes of the SPTEs of frames that
 * stay where they are, and of those that go.
 */
#include <linux/kvm_memory_core.h>

#include "gmap.h"
#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/page_track.h"
#include "mmu/tdp_mmu.h"

bool kvm_arch_can_reshape_memslots(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->slots_arch_lock);

	/*
	 * Rmaps, write tracking and the accounting of shadow pages are keyed by
	 * memslot.  Other types of VM have private memory, which hardware may
	 * not let KVM split, or which loses its contents if it is zapped.
	 */
	return kvm->arch.vm_type == KVM_X86_DEFAULT_VM &&
	       !kvm_memslots_have_rmaps(kvm) &&
	       !kvm_page_track_write_tracking_enabled(kvm);
}

static bool take_gfn_range(struct kvm *kvm, struct kvm_gfn_range *range,
			   bool flush)
{
	flush = kvm_tdp_mmu_unmap_gfn_range(kvm, range, flush);
	return kvm_tdp_mmu_zap_empty_tables(kvm, range->slot->as_id,
					    range->start, range->end, flush);
}

void kvm_arch_take_gfns(struct kvm *kvm, const struct kvm_memory_gfns *gfns,
			unsigned long n)
{
	struct kvm_memory_slot slot = {};
	struct kvm_gfn_range range = {
		.slot = &slot,
		.may_block = true,
		.attr_filter = KVM_FILTER_PRIVATE | KVM_FILTER_SHARED,
	};
	bool flush = false, zapped = false;
	unsigned long i;

	lockdep_assert_held(&kvm->slots_lock);

	write_lock(&kvm->mmu_lock);

	for (i = 0; i < n; i++) {
		slot.as_id = gfns[i].as_id;
		range.start = gfns[i].start;
		range.end = gfns[i].end;
		if (gfns[i].keep)
			flush = kvm_tdp_mmu_write_protect_gfns(kvm, slot.as_id,
							       range.start,
							       range.end, flush);
		else
			flush = take_gfn_range(kvm, &range, flush);
		zapped |= !gfns[i].keep;

		if (need_resched() || rwlock_needbreak(&kvm->mmu_lock)) {
			/* MMU notifiers do not find what was zapped. */
			if (flush)
				kvm_flush_remote_tlbs_as(kvm, slot.as_id);
			flush = false;
			cond_resched_rwlock_write(&kvm->mmu_lock);
		}
	}
	/* All vCPUs use the VM's address spaces; a batch changes one of others. */
	if (flush)
		kvm_flush_remote_tlbs_as(kvm, slot.as_id);

	write_unlock(&kvm->mmu_lock);

	if (zapped)
		kvm_arch_guest_memory_reclaimed(kvm);
}

void kvm_arch_split_at(struct kvm *kvm, int as_id, gfn_t gfn)
{
	int level;

	for (level = KVM_MAX_HUGEPAGE_LEVEL; level > PG_LEVEL_4K; level--) {
		if (IS_ALIGNED(gfn, KVM_PAGES_PER_HPAGE(level)))
			continue;

		write_lock(&kvm->mmu_lock);
		kvm_tdp_mmu_split_or_zap(kvm, as_id, gfn, level - 1);
		write_unlock(&kvm->mmu_lock);
	}
}

void kvm_arch_join_at(struct kvm *kvm, const struct kvm_memory_slot *slot,
		      gfn_t gfn)
{
	int level;

	/* Huge pages are made of smaller ones that are huge. */
	for (level = PG_LEVEL_2M; level <= KVM_MAX_HUGEPAGE_LEVEL; level++) {
		if (IS_ALIGNED(gfn, KVM_PAGES_PER_HPAGE(level)))
			continue;

		write_lock(&kvm->mmu_lock);
		kvm_tdp_mmu_join_huge_page(kvm, slot, gfn, level);
		write_unlock(&kvm->mmu_lock);
	}
}

void kvm_arch_recover_huge_pages(struct kvm *kvm,
				 const struct kvm_memory_slot *slot)
{
	kvm_mmu_recover_huge_pages(kvm, slot);
}

void kvm_arch_start_logging(struct kvm *kvm, const struct kvm_memory_slot *slot,
			    gfn_t start, gfn_t end)
{
	struct kvm_memory_slot new = {
		.as_id = slot->as_id,
		.id = slot->id,
		.flags = slot->flags,
		.base_gfn = start,
		.npages = end - start,
	};
	struct kvm_memory_slot old = new;

	/*
	 * To these gfns, it is as if they had been a memslot all the time.  It
	 * has no rmaps: should a vCPU have loaded the first shadow root by now,
	 * no shadow page was made from the memslots that these gfns were in.
	 */
	old.flags &= ~KVM_MEM_LOG_DIRTY_PAGES;
	kvm_arch_commit_memory_region(kvm, &old, &new, KVM_MR_FLAGS_ONLY);
}

bool kvm_arch_logs_late(struct kvm *kvm)
{
	return kvm->arch.cpu_dirty_log_size;
}

void kvm_arch_drain_dirty_log(struct kvm *kvm)
{
	if (!kvm_arch_logs_late(kvm))
		return;

	/*
	 * vCPUs log what hardware has logged when they exit, inside of kvm->srcu.
	 * They enter it before they enable preemption.
	 */
	kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE);
	synchronize_rcu_expedited();
}
