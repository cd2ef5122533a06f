// SPDX-License-Identifier: GPL-2.0-only
/*
 * Faulting in and filling the memory of guest frames: which pages are present,
 * which wait may block, and how pages are copied.  cursor.rs and fault.rs
 * decide when to do what.
 */
#include <linux/highmem.h>
#include <linux/kvm_dirty_ring.h>
#include <linux/kvm_memory_core.h>
#include <linux/sched.h>
#include <linux/uaccess.h>

/* The number of pages that are copied at a time. */
#define FILL_MAX	16

void kvm_memory_cond_resched(void)
{
	cond_resched();
}

bool kvm_memory_dirty_ring_is_full(struct kvm_vcpu *vcpu)
{
	return kvm_dirty_ring_check_request(vcpu);
}

/*
 * Fault in up to @npages pages at @hva.  @how is the FOLL_* flag that says how
 * to wait for them.  If the first page is present, the others probably are, too:
 * leave them alone.  Returns the number of pages known to be present, or an
 * error.
 */
static long fault_in(unsigned long hva, unsigned long npages, unsigned int foll,
		     unsigned int how)
{
	struct page *pages[KVM_MAP_PAGES_MAX];
	long n;

	n = get_user_pages_fast_only(hva, 1, foll, pages);
	if (n != 1)
		n = get_user_pages_unlocked(hva, min(npages, ARRAY_SIZE(pages)),
					    pages, foll | how);
	if (n > 0)
		release_pages(pages, n);
	return n;
}

/*
 * Fault in the memory of @npages frames at once, so that the page faults on them
 * need not do so page by page.  This never waits and reports no error: it is an
 * optimisation, and the fault on each page finds out what is wrong with it.
 */
void kvm_memory_fault_in(struct kvm_vcpu *vcpu, gfn_t gfn, unsigned long npages,
			 bool write)
{
	struct kvm_memory_slot *slot = kvm_vcpu_gfn_to_memslot(vcpu, gfn);

	/* With private memory, guest_memfd may provide the frame. */
	if (!slot || kvm_arch_has_private_mem(vcpu->kvm) ||
	    kvm_memslot_is_gmem_only(slot) ||
	    slot->flags & KVM_MEMSLOT_INVALID ||
	    (write && slot->flags & KVM_MEM_READONLY))
		return;

	fault_in(__gfn_to_hva_memslot(slot, gfn),
		 min(npages, slot->npages - (gfn - slot->base_gfn)),
		 write ? FOLL_WRITE : 0, FOLL_NOWAIT);
}

/*
 * Fault in the memory at @source, and wait for it as a fault of a vCPU does.
 * Called outside kvm->srcu, so that no memslot update waits as well.
 */
int kvm_memory_fault_in_source(u64 source, unsigned long npages)
{
	long n = fault_in(source, min(npages, FILL_MAX), 0, FOLL_INTERRUPTIBLE);

	if (n == -EINTR || n == -ENOMEM)
		return n;
	return n > 0 ? 0 : -EFAULT;
}

/* Get a reference to the page at @source.  Returns NULL if it is not present. */
static struct page *get_source(u64 source)
{
	struct page *page;

	if (get_user_pages_unlocked(source, 1, &page, FOLL_NOWAIT) != 1)
		return NULL;
	return page;
}

/* Leave a page alone that is its own source: the guest may be writing to it. */
static int copy_contents(struct page *to, struct page *from)
{
	if (to == from)
		return 0;

	/* If the source causes a machine check, only this call fails. */
	return copy_mc_highpage(to, from) ? -EFAULT : 0;
}

/*
 * Copy up to @npages pages, as far as those of the guest and of the source are
 * present.  Copy only one if a page of the guest is also a page of the source at
 * another offset: the caller may have to repeat the copy, so that it must not
 * have overwritten its source.  Returns the number of pages, or an error if the
 * first copy failed.
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

	/*
	 * Look up the source after pinning: until then, copy-on-write may
	 * replace pages that the guest's memory and the source share.
	 */
	nr_from = get_user_pages_fast_only(source, nr_to, 0, from);
	nr_from = max(nr_from, 0);

	n = nr_from;
	for (i = 0; i < nr_from; i++)
		for (j = 0; j < nr_from; j++)
			if (i != j && from[i] == to[j])
				n = 1;

	for (i = 0; i < n && !r; i++) {
		r = copy_contents(to[i], from[i]);
		/* Mark it even after an error: part of it may have been copied. */
		mark_page_dirty_in_slot(kvm, slot, gfn + i);
	}
	release_pages(from, nr_from);
	unpin_user_pages_dirty_lock(to, i, true);
	unpin_user_pages(to + i, nr_to - i);

	/* Do not count the page that failed: the next call returns its error. */
	if (r)
		return i > 1 ? i - 1 : r;
	return i;
}

/*
 * Copy one page, and wait for the guest's page until a signal arrives.  Nothing
 * else waits for user memory in a read section.  Returns 1, an error, or 0 if
 * the source is not present.
 */
static long fill_waiting(struct kvm *kvm, struct kvm_memory_slot *slot,
			 gfn_t gfn, u64 source)
{
	struct page *from, *to;
	long r;

	/* Memory without struct pages cannot be pinned: -EFAULT. */
	r = pin_user_pages_unlocked(__gfn_to_hva_memslot(slot, gfn), 1, &to,
				    FOLL_WRITE | FOLL_INTERRUPTIBLE | FOLL_HWPOISON);
	if (r != 1)
		return r == -EINTR || r == -EHWPOISON ? r : -EFAULT;

	/* As in fill_present(), look up the source after pinning. */
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

/* Returns 0 if @gfn in @slot, which may be NULL, can be filled, or an error. */
static int check_fill(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
		      gfn_t gfn)
{
	if (!slot || slot->id >= KVM_USER_MEM_SLOTS)
		return -ENOENT;
	if (slot->flags & KVM_MEMSLOT_INVALID)
		return -EAGAIN;
	if (slot->flags & KVM_MEM_READONLY)
		return -ENOENT;

	if (kvm_mem_is_private(vcpu->kvm, gfn)) {
		kvm_prepare_memory_fault_exit(vcpu, gfn_to_gpa(gfn), PAGE_SIZE,
					      true, false, false);
		return -EFAULT;
	}
	return 0;
}

/*
 * Copy up to @npages pages from @source to the frames from @gfn, and mark these
 * dirty.  Do not use copy_from_user(), which may stop in the middle of a page.
 * Returns the number of pages copied, 0 if the source is not present, or an
 * error.
 */
long kvm_memory_fill(struct kvm_vcpu *vcpu, gfn_t gfn, u64 source,
		     unsigned long npages)
{
	struct kvm_memory_slot *slot = kvm_vcpu_gfn_to_memslot(vcpu, gfn);
	struct kvm *kvm = vcpu->kvm;
	struct page *from;
	long r;

	r = check_fill(vcpu, slot, gfn);
	if (r)
		return r;

	/* Attributes and room in the dirty ring must be checked for each page. */
	if (kvm_arch_has_private_mem(kvm) || kvm->dirty_ring_size)
		npages = 1;
	npages = min3(npages, slot->npages - (gfn - slot->base_gfn), FILL_MAX);

	r = fill_present(kvm, slot, gfn, source, npages);
	if (r)
		return r;

	/* Do not wait for the guest's page if the source is missing. */
	from = get_source(source);
	if (!from)
		return 0;
	put_page(from);

	kvm_memory_fault_in(vcpu, gfn, npages, true);
	r = fill_present(kvm, slot, gfn, source, npages);
	return r ?: fill_waiting(kvm, slot, gfn, source);
}

#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE
static int copy_to_gmem(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
			struct page *unused, void *from)
{
	return copy_contents(pfn_to_page(pfn), from);
}

/*
 * Do what kvm_memory_fill() does, for one page of private memory, which
 * guest_memfd provides.
 */
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

	/* Pass the page, not its address: looking it up again might wait. */
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
