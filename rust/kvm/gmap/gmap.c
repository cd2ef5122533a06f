// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs: where they are, when they are made and freed.
 *
 * A VM has a table of them, or none.  The table is made before the VM has a
 * vCPU, and a vCPU's address space before the vCPU can be reached.  Neither is
 * freed or replaced before the VM is, so that finding them takes no lock.
 */
#include <linux/kvm_memory_core.h>
#include <linux/nospec.h>

struct kvm_memslots __rcu **kvm_gmap_memslots(struct kvm *kvm, int as_id)
{
	struct kvm_gmaps *gmaps = READ_ONCE(kvm->gmaps);
	int i = as_id - KVM_MAX_NR_ADDRESS_SPACES;
	int nr;

	/* Fail closed: the VM's own address spaces contain nothing. */
	if (WARN_ON_ONCE(!gmaps))
		return &kvm->memslots[0];

	/* Pairs with kvm_create_gmap(). */
	nr = smp_load_acquire(&gmaps->nr);
	if (WARN_ON_ONCE(i >= nr))
		return &kvm->memslots[0];

	return gmaps->gmaps[array_index_nospec(i, nr)]->active;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmap_memslots);

int kvm_gmap_nr_as_ids(struct kvm *kvm)
{
	/* Pairs with kvm_create_gmap(). */
	return KVM_MAX_NR_ADDRESS_SPACES + smp_load_acquire(&kvm->gmaps->nr);
}

/*
 * Give the vCPUs that will be created address spaces of their own.  The caller
 * has made sure that the VM has neither vCPUs nor memslots.
 */
int kvm_enable_gmaps(struct kvm *kvm, int max_vcpus)
{
	struct kvm_gmaps *gmaps;

	lockdep_assert_held(&kvm->lock);
	lockdep_assert_held(&kvm->slots_lock);

	if (kvm->gmaps)
		return 0;

	gmaps = kvzalloc_flex(*gmaps, gmaps, max_vcpus, GFP_KERNEL_ACCOUNT);
	if (!gmaps)
		return -ENOMEM;

	kvm->max_vcpus = min(kvm->max_vcpus, max_vcpus);
	/* Anything that sees the table, e.g. an mmu_notifier, sees it empty. */
	smp_store_release(&kvm->gmaps, gmaps);
	return 0;
}

/*
 * Give @vcpu, which nobody can reach yet, its address space.  That belongs to the
 * VM: if creating the vCPU fails, the next one gets it, still empty.
 * Returns the number of the address space, 0 if vCPUs have none of their own, or
 * an error.
 */
int kvm_create_gmap(struct kvm_vcpu *vcpu)
{
	struct kvm *kvm = vcpu->kvm;
	int i = atomic_read(&kvm->online_vcpus);
	struct kvm_gmaps *gmaps = kvm->gmaps;
	struct kvm_gmap *gmap;
	int j;

	lockdep_assert_held(&kvm->lock);

	if (!gmaps)
		return 0;

	if (i == gmaps->nr) {
		gmap = kvzalloc_obj(*gmap, GFP_KERNEL_ACCOUNT);
		if (!gmap)
			return -ENOMEM;

		kvm_init_memslots(gmap->memslots, 0);
		rcu_assign_pointer(gmap->active[0], &gmap->memslots[0]);
		for (j = 1; j < KVM_MAX_NR_ADDRESS_SPACES; j++)
			rcu_assign_pointer(gmap->active[j],
					   &kvm->__memslots[j][0]);

		gmaps->gmaps[i] = gmap;
		/* An mmu_notifier that sees the number sees @gmap, too. */
		smp_store_release(&gmaps->nr, i + 1);
	}

	vcpu->memslots = gmaps->gmaps[i]->active;
	return KVM_MAX_NR_ADDRESS_SPACES + i;
}

static struct kvm_gmap *to_gmap(struct kvm *kvm, int as_id)
{
	return kvm->gmaps->gmaps[as_id - KVM_MAX_NR_ADDRESS_SPACES];
}

/* Returns the lowest free slot id of at least @from, or -1. */
int kvm_gmap_free_id(struct kvm *kvm, int as_id, int from)
{
	unsigned long *ids = to_gmap(kvm, as_id)->ids;
	int id;

	lockdep_assert_held(&kvm->slots_lock);

	id = find_next_zero_bit(ids, KVM_USER_MEM_SLOTS, from);
	return id < KVM_USER_MEM_SLOTS ? id : -1;
}

void kvm_gmap_set_id(struct kvm *kvm, int as_id, int id, bool used)
{
	unsigned long *ids = to_gmap(kvm, as_id)->ids;

	lockdep_assert_held(&kvm->slots_lock);

	__assign_bit(id, ids, used);
}

void kvm_destroy_gmaps(struct kvm *kvm)
{
	struct kvm_gmaps *gmaps = kvm->gmaps;
	int i, j;

	if (!gmaps)
		return;

	for (i = 0; i < gmaps->nr; i++) {
		for (j = 0; j < 2; j++)
			kvm_free_memslots(kvm, &gmaps->gmaps[i]->memslots[j]);
		kvfree(gmaps->gmaps[i]);
	}
	kvfree(gmaps);
}
