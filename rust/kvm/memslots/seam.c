// SPDX-License-Identifier: GPL-2.0-only
/*
 * Wrappers for changing memslots: of macros and inline functions, and of what
 * private headers declare, which Rust cannot call.  Rust decides when to call
 * them.
 */
#include <linux/hashtable.h>
#include <linux/kvm_memory_core.h>
#include <linux/pagemap.h>
#include <linux/rcuwait.h>

#include "../../../virt/kvm/guest_memfd.h"
#include "../../../virt/kvm/kvm_mm.h"

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/kvm_memory.h>

void kvm_memory_get_limits(struct kvm *kvm, struct kvm_memory_limits *limits)
{
	lockdep_assert_held(&kvm->slots_lock);

	limits->address_spaces = kvm_nr_memslot_as_ids(kvm);
	/*
	 * No vCPU sees memslots of another's address space: their generations may
	 * be equal.
	 */
	limits->generation_step = kvm_arch_nr_memslot_as_ids(kvm);
	limits->slots = KVM_MEM_SLOTS_NUM;
	limits->user_slots = KVM_USER_MEM_SLOTS;
	limits->max_user_pages = KVM_MEM_MAX_NR_PAGES;
	limits->flags = KVM_MEM_LOG_DIRTY_PAGES;
	if (kvm_arch_has_readonly_mem(kvm))
		limits->flags |= KVM_MEM_READONLY;
	if (IS_ENABLED(CONFIG_KVM_GUEST_MEMFD))
		limits->flags |= KVM_MEM_GUEST_MEMFD;
	limits->bitmaps = kvm_use_dirty_bitmap(kvm);
}

bool kvm_memory_is_user_range(u64 hva, u64 size)
{
	return hva == untagged_addr(hva) &&
	       access_ok((void __user *)(unsigned long)hva, size);
}

struct kvm_memslots *kvm_memory_active(struct kvm *kvm, int as_id)
{
	return __kvm_memslots(kvm, as_id);
}

/* The two sets of memslots of an address space are next to each other. */
struct kvm_memslots *kvm_memory_inactive(struct kvm *kvm, int as_id)
{
	struct kvm_memslots *active = __kvm_memslots(kvm, as_id);

	return active - active->node_idx + !active->node_idx;
}

struct kvm_memory_slot *kvm_memory_find_id(struct kvm_memslots *slots, int id)
{
	return id_to_memslot(slots, id);
}

/* Returns the lowest slot that overlaps [start, end), or NULL. */
struct kvm_memory_slot *kvm_memory_find_gfn(struct kvm_memslots *slots,
					    gfn_t start, gfn_t end)
{
	struct kvm_memslot_iter iter;

	kvm_memslot_iter_start(&iter, slots, start);
	return kvm_memslot_iter_is_valid(&iter, end) ? iter.slot : NULL;
}

bool kvm_memory_traces_batches(void)
{
	return trace_kvm_memslot_batch_enabled();
}

void kvm_memory_hash_add(struct kvm_memslots *slots,
			 struct kvm_memory_slot *slot)
{
	hash_add(slots->id_hash, &slot->id_node[slots->node_idx], slot->id);
}

void kvm_memory_hash_del(struct kvm_memslots *slots,
			 struct kvm_memory_slot *slot)
{
	hash_del(&slot->id_node[slots->node_idx]);
}

/* Make the inactive lists of address spaces [first, end) the active ones. */
void kvm_memory_publish(struct kvm *kvm, int first, int end)
{
	int i;

	/*
	 * Lists must not change during an mmu_notifier invalidation: whether it
	 * takes mmu_lock depends on the slots that it finds, and its start and
	 * its end must agree.
	 */
	spin_lock(&kvm->mn_invalidate_lock);
	prepare_to_rcuwait(&kvm->mn_memslots_update_rcuwait);
	while (kvm->mn_active_invalidate_count) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		spin_unlock(&kvm->mn_invalidate_lock);
		schedule();
		spin_lock(&kvm->mn_invalidate_lock);
	}
	finish_rcuwait(&kvm->mn_memslots_update_rcuwait);
	for (i = first; i < end; i++)
		rcu_assign_pointer(*kvm_active_memslots(kvm, i),
				   kvm_memory_inactive(kvm, i));
	spin_unlock(&kvm->mn_invalidate_lock);
}

/*
 * Wait until nobody reads the lists that kvm_memory_publish() has replaced.
 * vCPUs are outside of kvm->srcu while they are in the guest, so that there
 * seldom is anybody to wait for.
 */
void kvm_memory_wait_for_readers(struct kvm *kvm)
{
	if (!try_synchronize_srcu(&kvm->srcu))
		synchronize_srcu_expedited(&kvm->srcu);
}

/*
 * Copy the arch data of the INVALID copy @copy back to @slot.  A guest_memfd
 * that @slot is still bound to looks at it under mmu_lock.
 */
void kvm_memory_copy_arch_back(struct kvm *kvm, struct kvm_memory_slot *slot,
			       const struct kvm_memory_slot *copy)
{
	const bool bound = kvm_slot_has_gmem(slot);

	lockdep_assert_held(&kvm->slots_arch_lock);

	if (bound)
		KVM_MMU_LOCK(kvm);
	slot->arch = copy->arch;
	if (bound)
		KVM_MMU_UNLOCK(kvm);
}

/* The second half of the bitmap is the buffer of kvm_get_dirty_log_protect(). */
bool kvm_memory_alloc_dirty_bitmap(struct kvm *kvm,
				   struct kvm_memory_slot *slot)
{
	if (!kvm_use_dirty_bitmap(kvm))
		return true;

	slot->dirty_bitmap =
		kvm_memslot_calloc(2, kvm_dirty_bitmap_bytes(slot));
	if (!slot->dirty_bitmap)
		return false;

	if (kvm_dirty_log_manual_protect_and_init_set(kvm))
		bitmap_set(slot->dirty_bitmap, 0, slot->npages);
	return true;
}

int kvm_memory_gmem_prepare(struct kvm *kvm, struct kvm_memory_slot *slot,
			    unsigned int fd, u64 offset)
{
	return kvm_gmem_prepare_memory_region(kvm, slot, fd, offset);
}

int kvm_memory_gmem_bind(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	return kvm_gmem_commit_memory_region(kvm, slot);
}

void kvm_memory_gmem_unbind(struct kvm_memory_slot *slot)
{
	kvm_gmem_unbind(slot);
}

void kvm_memory_gmem_rebind(struct kvm_memory_slot *slot, struct file *file)
{
#ifdef CONFIG_KVM_GUEST_MEMFD
	kvm_gmem_rebind(slot, file);
#endif
}

/*
 * Returns the file that kvm_memory_gmem_prepare() took a reference to, or that
 * the memslot is bound to; NULL if that has been closed.
 */
struct file *kvm_memory_gmem_file(struct kvm_memory_slot *slot)
{
#ifdef CONFIG_KVM_GUEST_MEMFD
	return slot->gmem.file;
#else
	return NULL;
#endif
}

u64 kvm_memory_gmem_pgoff(struct kvm_memory_slot *slot)
{
#ifdef CONFIG_KVM_GUEST_MEMFD
	return slot->gmem.pgoff;
#else
	return 0;
#endif
}

/*
 * Look up the guest_memfd of a memslot of @npages pages to come, and take a
 * reference to its file.
 */
int kvm_memory_gmem_get(struct kvm *kvm, unsigned int fd, u64 offset,
			u64 npages, struct file **file)
{
	struct kvm_memory_slot slot = { .npages = npages };
	int r;

	r = kvm_gmem_prepare_memory_region(kvm, &slot, fd, offset);
	if (r)
		return r;
	*file = kvm_memory_gmem_file(&slot);
	return 0;
}

static unsigned long log_bytes(u64 npages)
{
	struct kvm_memory_slot slot = { .npages = npages };

	return kvm_dirty_bitmap_bytes(&slot);
}

/* Find out whether the log of @npages pages can be copied to @address. */
int kvm_memory_fault_in_log(u64 address, u64 npages)
{
	unsigned long bytes = log_bytes(npages);

	if (!access_ok(u64_to_user_ptr(address), bytes))
		return -EFAULT;
	return fault_in_safe_writeable(u64_to_user_ptr(address), bytes) ?
	       -EFAULT : 0;
}

int kvm_memory_copy_log(struct kvm_memory_slot *slot, u64 address)
{
	return copy_to_user(u64_to_user_ptr(address), slot->dirty_bitmap,
			    kvm_dirty_bitmap_bytes(slot)) ? -EFAULT : 0;
}

/* Copy the log of a memslot of @npages pages that nobody has written to. */
int kvm_memory_copy_started_log(struct kvm *kvm, u64 address, u64 npages)
{
	u64 __user *to = u64_to_user_ptr(address);
	u64 word;

	if (!kvm_dirty_log_manual_protect_and_init_set(kvm))
		return clear_user(to, log_bytes(npages)) ? -EFAULT : 0;

	for (; npages; npages -= min(npages, 64)) {
		word = npages < 64 ? (1ULL << npages) - 1 : U64_MAX;
		if (copy_to_user(to++, &word, sizeof(word)))
			return -EFAULT;
	}
	return 0;
}

int kvm_memory_lock_slots_interruptible(struct kvm *kvm)
{
	return mutex_lock_interruptible(&kvm->slots_lock);
}
