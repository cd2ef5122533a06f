/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * KVM guest memory: user interface of the memory core in rust/kvm/.
 *
 * <linux/kvm.h> includes this file; include that one.  See
 * Documentation/virt/kvm/memory/ for what the ioctls do.
 */
#ifndef _UAPI_LINUX_KVM_MEMORY_H
#define _UAPI_LINUX_KVM_MEMORY_H

#include <linux/ioctl.h>
#include <linux/kvm_memory_area.h>
#include <linux/types.h>

/* Capabilities, numbered far above those in <linux/kvm.h>. */
#define KVM_CAP_USER_MEMORY_REGION_LIST	0x10001
#define KVM_CAP_MAP_MEMORY		0x10002
#define KVM_CAP_REGISTER_MEM_AREA	0x10003
#define KVM_CAP_USER_MEMORY_REGION_LIST_FIELDS	0x10004

/* Exit reasons, numbered as the capabilities are. */
#define KVM_EXIT_X86_MSR_OP		0x10001

/*
 * KVM_CHECK_EXTENSION returns for KVM_CAP_USER_MEMORY_REGION_LIST_FIELDS which
 * fields of an entry KVM knows that were padding at first.
 */
#define KVM_MEMORY_REGION_LIST_DIRTY_BITMAP	(1U << 0)
#define KVM_MEMORY_REGION_LIST_GUEST_MEMFD	(1U << 1)

/**
 * struct kvm_userspace_memory_region_entry - one memslot update of a list
 * @slot: slot id in bits 0-15, address space in bits 16-31
 * @flags: any of KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_READONLY; or
 *	KVM_MEM_GUEST_MEMFD
 * @guest_phys_addr: guest physical address of the slot, in bytes, page aligned
 * @memory_size: size of the slot in bytes, page aligned; 0 deletes the slot
 * @userspace_addr: user address of the slot's memory, page aligned
 * @invalidate_slot: 1 asserts that the entry deletes or moves the slot, and
 *	fails with EINVAL if it does neither; 0 asserts nothing
 * @pad1: must be 0
 * @guest_memfd: file descriptor of the guest_memfd that the slot is bound to;
 *	must be 0 without KVM_MEM_GUEST_MEMFD
 * @guest_memfd_offset: offset in the guest_memfd in bytes, page aligned; must
 *	be 0 without KVM_MEM_GUEST_MEMFD
 * @dirty_bitmap: user address that receives what KVM_GET_DIRTY_LOG would give
 *	of a slot that the entry deletes, when nothing writes to its log any
 *	more; 0 if not wanted; must be 0 unless the entry deletes a slot that
 *	logs
 * @pad2: must be 0
 *
 * The first 32 bytes have the layout and the meaning of struct
 * kvm_userspace_memory_region.
 */
struct kvm_userspace_memory_region_entry {
	__u32 slot;
	__u32 flags;
	__u64 guest_phys_addr;
	__u64 memory_size;
	__u64 userspace_addr;
	__u8 invalidate_slot;
	__u8 pad1[3];
	__u32 guest_memfd;
	__u64 guest_memfd_offset;
	__u64 dirty_bitmap;
	__u8 pad2[8];
};

/**
 * struct kvm_userspace_memory_region_list - argument of
 *	KVM_SET_USER_MEMORY_REGION_LIST
 * @nent: number of entries, at most what KVM_CHECK_EXTENSION returns for
 *	KVM_CAP_USER_MEMORY_REGION_LIST
 * @flags: must be 0
 * @entries: the updates; each one applies to the result of those before it
 */
struct kvm_userspace_memory_region_list {
	__u32 nent;
	__u32 flags;
	struct kvm_userspace_memory_region_entry entries[];
};

/*
 * Available with KVM_CAP_USER_MEMORY_REGION_LIST.  The ioctl number encodes the
 * size of the struct without entries, 8 bytes: 0x4008AE49.
 * KVM_SET_USER_MEMORY_REGION2 has the same nr with another size.
 */
#define KVM_SET_USER_MEMORY_REGION_LIST \
	_IOW(KVMIO, 0x49, struct kvm_userspace_memory_region_list)

/* The kind of access that KVM_MAP_MEMORY prepares for.  0 is a read. */
#define KVM_MEMORY_MAPPING_FLAG_WRITE	(1ULL << 0)
#define KVM_MEMORY_MAPPING_FLAG_EXEC	(1ULL << 1)
#define KVM_MEMORY_MAPPING_FLAG_USER	(1ULL << 2)
#define KVM_MEMORY_MAPPING_FLAG_PRIVATE	(1ULL << 3)

/**
 * struct kvm_memory_mapping - argument of KVM_MAP_MEMORY
 * @base_gfn: first guest frame to populate
 * @nr_pages: number of frames to populate, not 0
 * @flags: KVM_MEMORY_MAPPING_FLAG_*
 * @source: user address to copy the contents from, page aligned; 0 keeps the
 *	contents
 *
 * On return, after success or failure, @base_gfn, @nr_pages and @source (unless
 * it is 0) describe what is left to do.
 */
struct kvm_memory_mapping {
	__u64 base_gfn;
	__u64 nr_pages;
	__u64 flags;
	__u64 source;
};

/*
 * Available with KVM_CAP_MAP_MEMORY.  KVM_PRE_FAULT_MEMORY has the same nr with
 * another size.
 */
#define KVM_MAP_MEMORY	_IOWR(KVMIO, 0xd5, struct kvm_memory_mapping)

#ifndef __s390__ /* <asm/kvm.h> has it there. */
/**
 * struct kvm_s390_ucas_mapping - argument of KVM_S390_UCAS_MAP and
 *	KVM_S390_UCAS_UNMAP
 * @user_addr: user address of the memory; KVM_S390_UCAS_UNMAP ignores it
 * @vcpu_addr: guest physical address in the vCPU's address space
 * @length: size in bytes, not 0
 *
 * All of them are multiples of 1 MiB.
 */
struct kvm_s390_ucas_mapping {
	__u64 user_addr;
	__u64 vcpu_addr;
	__u64 length;
};
#endif

/* What the VMM must know of the areas in <linux/kvm_memory_area.h>. */

/**
 * struct kvm_area_info - argument of KVM_USERSPACE_REGISTER_MEM_AREA
 * @enabled: 1 if the VMM serves areas, 0 if it does not
 * @pad: must be 0
 */
struct kvm_area_info {
	__u8 enabled;
	__u8 pad[3];
};

/*
 * Available with KVM_CAP_REGISTER_MEM_AREA.  KVM_CREATE_SPAPR_TCE has the same
 * nr with another size.
 */
#define KVM_USERSPACE_REGISTER_MEM_AREA	_IOW(KVMIO, 0xa8, struct kvm_area_info)

/**
 * struct kvm_x86_msr_op - the guest registers or unregisters an area
 *	(KVM_EXIT_X86_MSR_OP)
 * @msr_data: what the guest wrote to the MSR: the guest physical address of the
 *	descriptor, or 0 to unregister all areas
 * @base: guest physical address of the area, in bytes
 * @size: size of the area in bytes
 * @type: its type, at least KVM_MEM_AREA_TYPE_VMM
 * @index: MSR_KVM_REGISTER_MEM_AREA or MSR_KVM_UNREGISTER_MEM_AREA
 * @error: answer: anything but 0 gives #GP in the guest; preset to 0
 * @result: answer: what the guest finds in the descriptor; preset to
 *	KVM_MEM_AREA_UNKNOWN_TYPE
 * @pad: 0
 *
 * @base, @size and @type are what KVM has read from the descriptor and checked;
 * all are 0 if the guest unregisters all areas.  That there is memory is checked
 * when the guest registers an area, not when it unregisters one.
 */
struct kvm_x86_msr_op {
	__u64 msr_data;
	__u64 base;
	__u32 size;
	__u32 type;
	__u32 index;
	__u8 error;
	__u8 result;
	__u8 pad[2];
};

#endif /* _UAPI_LINUX_KVM_MEMORY_H */
