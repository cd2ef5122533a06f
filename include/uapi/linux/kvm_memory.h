/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * KVM guest memory: user interface of the memory core in rust/kvm/.
 *
 * Included by <linux/kvm.h>; include that one.  The meaning of every ioctl is
 * written down in Documentation/virt/kvm/memory/.
 */
#ifndef _UAPI_LINUX_KVM_MEMORY_H
#define _UAPI_LINUX_KVM_MEMORY_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * Capabilities.  Upstream counts up from 0 and has reached a few hundred; the
 * values here stay clear of it by a distance.
 */
#define KVM_CAP_USER_MEMORY_REGION_LIST	0x10001
#define KVM_CAP_MAP_MEMORY		0x10002

/**
 * struct kvm_userspace_memory_region_entry - one memslot update of a list
 * @slot: bits 0-15 the slot id, bits 16-31 the address space
 * @flags: KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY or 0
 * @guest_phys_addr: where the slot starts in guest physical memory, in bytes,
 *	page aligned
 * @memory_size: size of the slot in bytes, page aligned; 0 deletes the slot
 * @userspace_addr: start of the memory behind the slot, page aligned
 * @invalidate_slot: 1 says that the caller takes this entry for a deletion or
 *	a move (an error if it is neither), 0 says nothing
 * @padding: must be 0
 *
 * The first 32 bytes are a struct kvm_userspace_memory_region and mean the
 * same.
 */
struct kvm_userspace_memory_region_entry {
	__u32 slot;
	__u32 flags;
	__u64 guest_phys_addr;
	__u64 memory_size;
	__u64 userspace_addr;
	__u8 invalidate_slot;
	__u8 padding[31];
};

/**
 * struct kvm_userspace_memory_region_list - argument of
 *	KVM_SET_USER_MEMORY_REGION_LIST
 * @nent: number of entries, at most what KVM_CHECK_EXTENSION gives for
 *	KVM_CAP_USER_MEMORY_REGION_LIST
 * @flags: must be 0
 * @entries: the updates, in the order in which they take effect
 */
struct kvm_userspace_memory_region_list {
	__u32 nent;
	__u32 flags;
	struct kvm_userspace_memory_region_entry entries[];
};

/*
 * Available with KVM_CAP_USER_MEMORY_REGION_LIST.  The size in the number is
 * that of the header alone: _IOW(KVMIO, 0x49, 8 bytes) = 0x4008AE49.
 * KVM_SET_USER_MEMORY_REGION2 has the same nr and another size.
 */
#define KVM_SET_USER_MEMORY_REGION_LIST \
	_IOW(KVMIO, 0x49, struct kvm_userspace_memory_region_list)

/* The fault that KVM_MAP_MEMORY stands in for; a read, if there is none. */
#define KVM_MEMORY_MAPPING_FLAG_WRITE	(1ULL << 0)
#define KVM_MEMORY_MAPPING_FLAG_EXEC	(1ULL << 1)
#define KVM_MEMORY_MAPPING_FLAG_USER	(1ULL << 2)
#define KVM_MEMORY_MAPPING_FLAG_PRIVATE	(1ULL << 3)

/**
 * struct kvm_memory_mapping - argument of KVM_MAP_MEMORY
 * @base_gfn: first guest frame to populate
 * @nr_pages: number of frames to populate, not 0
 * @flags: KVM_MEMORY_MAPPING_FLAG_*
 * @source: where the contents of the memory are to be copied from, page
 *	aligned; 0 leaves them as they are
 *
 * On return, whatever the result, @base_gfn, @nr_pages and @source (unless it
 * is 0) describe what is left to do.
 */
struct kvm_memory_mapping {
	__u64 base_gfn;
	__u64 nr_pages;
	__u64 flags;
	__u64 source;
};

/*
 * Available with KVM_CAP_MAP_MEMORY.  KVM_PRE_FAULT_MEMORY has the same nr and
 * another size.
 */
#define KVM_MAP_MEMORY	_IOWR(KVMIO, 0xd5, struct kvm_memory_mapping)

#endif /* _UAPI_LINUX_KVM_MEMORY_H */
