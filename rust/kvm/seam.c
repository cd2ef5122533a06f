// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the memory core needs of KVM's macros and inline functions, none of
 * which Rust can call.  What is to be done is decided there, not here.
 */
#include <linux/file.h>
#include <linux/hashtable.h>
#include <linux/highmem.h>
#include <linux/kvm_dirty_ring.h>
#include <linux/kvm_memory_core.h>
#include <linux/rcuwait.h>
#include <linux/uaccess.h>

#include "../../virt/kvm/guest_memfd.h"

/* Pages that are copied at a time. */
#define FILL_MAX	16

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/kvm_memory.h>

void kvm_memory_get_limits(struct kvm *kvm, struct kvm_memory_limits *limits)
{
	lockdep_assert_held(&kvm->slots_lock);

	limits->address_spaces = kvm_arch_nr_memslot_as_ids(kvm);
	limits->slots = KVM_MEM_SLOTS_NUM;
	limits->user_slots = KVM_USER_MEM_SLOTS;
	limits->max_user_pages = KVM_MEM_MAX_NR_PAGES;
	limits->flags = KVM_MEM_LOG_DIRTY_PAGES;
	if (kvm_arch_has_readonly_mem(kvm))
		limits->flags |= KVM_MEM_READONLY;
	if (IS_ENABLED(CONFIG_KVM_GUEST_MEMFD))
		limits->flags |= KVM_MEM_GUEST_MEMFD;
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

struct kvm_memory_slot *kvm_memory_find_id(struct kvm_memslots *slots, int id)
{
	return id_to_memslot(slots, id);
}

/* The lowest slot that overlaps [start, end). */
struct kvm_memory_slot *kvm_memory_find_gfn(struct kvm_memslots *slots,
					    gfn_t start, gfn_t end)
{
	struct kvm_memslot_iter iter;

	kvm_memslot_iter_start(&iter, slots, start);
	return kvm_memslot_iter_is_valid(&iter, end) ? iter.slot : NULL;
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

/* Make the inactive lists of the address spaces in @as_mask the active ones. */
void kvm_memory_publish(struct kvm *kvm, unsigned long as_mask)
{
	struct kvm_memslots *slots;
	unsigned long i;

	/*
	 * Lists must not change while an mmu_notifier invalidation is under
	 * way: whether it takes mmu_lock depends on the slots that it finds,
	 * and must come out the same at its start and at its end.
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
	for_each_set_bit(i, &as_mask, KVM_MAX_NR_ADDRESS_SPACES) {
		slots = __kvm_memslots(kvm, i);
		slots = &kvm->__memslots[i][slots->node_idx ^ 1];
		rcu_assign_pointer(kvm->memslots[i], slots);
	}
	spin_unlock(&kvm->mn_invalidate_lock);
}

/* Twice the size of the log: see kvm_get_dirty_log_protect(). */
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

/* The file that kvm_memory_gmem_prepare() took a reference to. */
struct file *kvm_memory_gmem_file(struct kvm_memory_slot *slot)
{
#ifdef CONFIG_KVM_GUEST_MEMFD
	return slot->gmem.file;
#else
	return NULL;
#endif
}

void kvm_memory_srcu_lock(struct kvm_vcpu *vcpu)
{
	kvm_vcpu_srcu_read_lock(vcpu);
}

void kvm_memory_srcu_unlock(struct kvm_vcpu *vcpu)
{
	kvm_vcpu_srcu_read_unlock(vcpu);
}

int kvm_memory_lock_slots_interruptible(struct kvm *kvm)
{
	return mutex_lock_interruptible(&kvm->slots_lock);
}

void kvm_memory_cond_resched(void)
{
	cond_resched();
}

bool kvm_memory_dirty_ring_is_full(struct kvm_vcpu *vcpu)
{
	return kvm_dirty_ring_check_request(vcpu);
}

/*
 * Have the memory behind @npages frames present, so that the page faults to
 * come need not get it page by page.  As far as that takes no waiting, and as
 * far as it goes: what is wrong with a page is found by the fault on it.
 */
void kvm_memory_fault_in(struct kvm_vcpu *vcpu, gfn_t gfn, unsigned long npages,
			 bool write)
{
	struct kvm_memory_slot *slot = kvm_vcpu_gfn_to_memslot(vcpu, gfn);
	unsigned int foll = write ? FOLL_WRITE : 0;
	struct page *pages[64];
	unsigned long hva;
	long n;

	/* Behind private frames there is no other memory. */
	if (!slot || kvm_arch_has_private_mem(vcpu->kvm) ||
	    kvm_memslot_is_gmem_only(slot) ||
	    slot->flags & KVM_MEMSLOT_INVALID ||
	    (write && slot->flags & KVM_MEM_READONLY))
		return;

	hva = __gfn_to_hva_memslot(slot, gfn);
	npages = min3(npages, slot->npages - (gfn - slot->base_gfn),
		      ARRAY_SIZE(pages));

	/* Where the first page is present, the others are likely to be. */
	n = get_user_pages_fast_only(hva, 1, foll, pages);
	if (n != 1)
		n = get_user_pages_unlocked(hva, npages, pages,
					    foll | FOLL_NOWAIT);

	while (n > 0)
		put_page(pages[--n]);
}

/*
 * Have the memory at @source present, and wait for it as a vCPU does.  Outside
 * of SRCU, so that no memslot update waits as well.
 */
int kvm_memory_fault_in_source(u64 source, unsigned long npages)
{
	struct page *pages[FILL_MAX];
	long n;

	npages = min(npages, ARRAY_SIZE(pages));

	/* Where the first page is present, the others are likely to be. */
	n = get_user_pages_fast_only(source, 1, 0, pages);
	if (n != 1)
		n = get_user_pages_unlocked(source, npages, pages,
					    FOLL_INTERRUPTIBLE);
	if (n == -EINTR || n == -ENOMEM)
		return n;
	if (n <= 0)
		return -EFAULT;

	release_pages(pages, n);
	return 0;
}

/* The page at @source, if it is present. */
static struct page *get_source(u64 source)
{
	struct page *page;

	if (get_user_pages_unlocked(source, 1, &page, FOLL_NOWAIT) != 1)
		return NULL;
	return page;
}

/* Where both are the same, a guest may be writing, and nothing must be done. */
static int copy_contents(struct page *to, struct page *from)
{
	if (to == from)
		return 0;

	/* A machine check that the source causes is an error of the call only. */
	return copy_mc_highpage(to, from) ? -EFAULT : 0;
}

/*
 * Copy as many of @npages pages as are present here and there.  One, if the
 * guest's memory is, at another offset, the source: a page must not be
 * overwritten that may have to be copied again.
 */
static long fill_present(struct kvm *kvm, struct kvm_memory_slot *slot,
			 gfn_t gfn, u64 source, unsigned long npages)
{
	unsigned long hva = __gfn_to_hva_memslot(slot, gfn);
	struct page *from[FILL_MAX], *to[FILL_MAX];
	long nr_from, nr_to, n, i, j;
	int r = 0;

	nr_to = pin_user_pages_fast(hva, npages, FOLL_WRITE | FOLL_NOFAULT, to);
	if (nr_to <= 0)
		return 0;

	/* Only then: pages that are written to may have taken the place of others. */
	nr_from = get_user_pages_fast_only(source, nr_to, 0, from);
	nr_from = max(nr_from, 0);

	n = nr_from;
	for (i = 0; i < nr_from; i++)
		for (j = 0; j < nr_from; j++)
			if (i != j && from[i] == to[j])
				n = 1;

	for (i = 0; i < n && !r; i++) {
		r = copy_contents(to[i], from[i]);
		/* Also if that failed half way. */
		mark_page_dirty_in_slot(kvm, slot, gfn + i);
	}
	release_pages(from, nr_from);
	unpin_user_pages_dirty_lock(to, i, true);
	unpin_user_pages(to + i, nr_to - i);

	/* What failed is not done, and fails again when its turn comes. */
	if (r)
		return i > 1 ? i - 1 : r;
	return i;
}

/*
 * Copy up to @npages pages from @source to @gfn and what follows it, which then
 * are dirty; or leave @gfn as it is, hence no copy_from_user().  0 if the source
 * is not present.
 */
long kvm_memory_fill(struct kvm_vcpu *vcpu, gfn_t gfn, u64 source,
		     unsigned long npages)
{
	struct kvm_memory_slot *slot = kvm_vcpu_gfn_to_memslot(vcpu, gfn);
	struct kvm *kvm = vcpu->kvm;
	struct page *from, *to;
	long r;

	if (!slot || slot->id >= KVM_USER_MEM_SLOTS)
		return -ENOENT;
	if (slot->flags & KVM_MEMSLOT_INVALID)
		return -EAGAIN;
	if (slot->flags & KVM_MEM_READONLY)
		return -ENOENT;

	if (kvm_mem_is_private(kvm, gfn)) {
		kvm_prepare_memory_fault_exit(vcpu, gfn_to_gpa(gfn), PAGE_SIZE,
					      true, false, false);
		return -EFAULT;
	}

	/* What is to be looked at page by page: attributes, and the ring. */
	if (kvm_arch_has_private_mem(kvm) || kvm->dirty_ring_size)
		npages = 1;
	npages = min3(npages, slot->npages - (gfn - slot->base_gfn), FILL_MAX);

	r = fill_present(kvm, slot, gfn, source, npages);
	if (r)
		return r;

	/* Do not wait for the guest's page if the source is what is missing. */
	from = get_source(source);
	if (!from)
		return 0;
	put_page(from);

	kvm_memory_fault_in(vcpu, gfn, npages, true);
	r = fill_present(kvm, slot, gfn, source, npages);
	if (r)
		return r;

	/*
	 * Wait for the guest's page, up to a signal.  Here and nowhere else:
	 * memory that is not made of pages has no contents to fill.
	 */
	r = pin_user_pages_unlocked(__gfn_to_hva_memslot(slot, gfn), 1, &to,
				    FOLL_WRITE | FOLL_INTERRUPTIBLE | FOLL_HWPOISON);
	if (r != 1)
		return r == -EINTR || r == -EHWPOISON ? r : -EFAULT;

	/* Only now, as in fill_present(). */
	from = get_source(source);
	if (!from) {
		unpin_user_page(to);
		return 0;
	}

	r = copy_contents(to, from);
	mark_page_dirty_in_slot(kvm, slot, gfn);
	put_page(from);
	unpin_user_pages_dirty_lock(&to, 1, true);
	return r ?: 1;
}

#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE
static int copy_to_gmem(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
			struct page *unused, void *from)
{
	return copy_contents(pfn_to_page(pfn), from);
}

/* The same for private memory, which is one page of guest_memfd at a time. */
long kvm_memory_fill_private(struct kvm_vcpu *vcpu, gfn_t gfn, u64 source)
{
	struct kvm *kvm = vcpu->kvm;
	struct kvm_memory_slot *slot;
	struct page *from;
	long r;

	lockdep_assert_held(&kvm->slots_lock);

	slot = gfn_to_memslot(kvm, gfn);
	if (!slot)
		return -ENOENT;

	if (!kvm_slot_has_gmem(slot) || !kvm_mem_is_private(kvm, gfn)) {
		kvm_prepare_memory_fault_exit(vcpu, gfn_to_gpa(gfn), PAGE_SIZE,
					      true, false, true);
		return -EFAULT;
	}

	from = get_source(source);
	if (!from)
		return 0;

	/* Were the source looked up again, it might have to be waited for. */
	r = kvm_gmem_populate(kvm, gfn, NULL, 1, false, copy_to_gmem, from);
	put_page(from);
	return r;
}
#else
long kvm_memory_fill_private(struct kvm_vcpu *vcpu, gfn_t gfn, u64 source)
{
	return -EOPNOTSUPP;
}
#endif
