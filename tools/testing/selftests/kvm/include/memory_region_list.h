/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Helpers for tests of KVM_SET_USER_MEMORY_REGION_LIST.
 */
#ifndef SELFTEST_KVM_MEMORY_REGION_LIST_H
#define SELFTEST_KVM_MEMORY_REGION_LIST_H

#include "kvm_util.h"

/* The uAPI's name is too long for a table of entries. */
#define region_entry kvm_userspace_memory_region_entry

/*
 * The guest's copy of a global variable, as the host accesses it while the guest
 * runs.  sync_global_to_guest() and its like copy the variable once.
 */
#define guest_ptr(vm, var) ((typeof(var) *)addr_gva2hva(vm, (gva_t)&(var)))

static inline struct region_entry region_set(u32 slot, u32 flags, gpa_t gpa,
					     u64 size, void *hva)
{
	return (struct region_entry) {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)hva,
	};
}

static inline struct region_entry region_delete(u32 slot)
{
	return (struct region_entry) { .slot = slot };
}

/* Makes the update that an entry asks for with the single ioctl. */
static inline int __vm_set_region_entry(struct kvm_vm *vm,
					const struct region_entry *entry)
{
	return __vm_set_user_memory_region(vm, entry->slot, entry->flags,
					   entry->guest_phys_addr,
					   entry->memory_size,
					   (void *)entry->userspace_addr);
}

static inline void vm_set_region_entry(struct kvm_vm *vm,
				       struct region_entry entry)
{
	int ret = __vm_set_region_entry(vm, &entry);

	TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_SET_USER_MEMORY_REGION, ret, vm);
}

static inline struct kvm_userspace_memory_region_list *
alloc_region_list(u32 nent, const struct region_entry *entries)
{
	struct kvm_userspace_memory_region_list *list;
	size_t size = nent * sizeof(*entries);

	list = malloc(sizeof(*list) + size);
	TEST_ASSERT(list, "Insufficient Memory");

	list->nent = nent;
	list->flags = 0;
	memcpy(list->entries, entries, size);
	return list;
}

static inline int __vm_set_region_list(struct kvm_vm *vm, u32 nent,
				       const struct region_entry *entries)
{
	struct kvm_userspace_memory_region_list *list;
	int ret, saved_errno;

	list = alloc_region_list(nent, entries);
	ret = __vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION_LIST, list);

	saved_errno = errno;
	free(list);
	errno = saved_errno;
	return ret;
}

static inline void vm_set_region_entries(struct kvm_vm *vm, u32 nent,
					 const struct region_entry *entries)
{
	int ret = __vm_set_region_list(vm, nent, entries);

	TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_SET_USER_MEMORY_REGION_LIST, ret, vm);
}

/* The list's entries are the further arguments. */
#define vm_set_region_list(vm, ...)					\
do {									\
	const struct region_entry __entries[] = { __VA_ARGS__ };	\
									\
	vm_set_region_entries(vm, ARRAY_SIZE(__entries), __entries);	\
} while (0)

#endif /* SELFTEST_KVM_MEMORY_REGION_LIST_H */
