/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Memory areas that a guest shares with its hypervisor: the guest's interface.
 *
 * A guest includes this file by itself, a VMM gets it from <linux/kvm.h>.  See
 * Documentation/virt/kvm/memory/areas.rst for who writes what, and when.
 */
#ifndef _UAPI_LINUX_KVM_MEMORY_AREA_H
#define _UAPI_LINUX_KVM_MEMORY_AREA_H

#include <linux/types.h>

/* Bit of EAX in the leaf KVM_CPUID_FEATURES.  Without it both MSRs give #GP. */
#define KVM_FEATURE_MEM_AREA		23

/*
 * Commands.  The value is the guest physical address of a struct
 * kvm_memory_area; 0 in the second MSR takes back all areas.
 */
#define MSR_KVM_REGISTER_MEM_AREA	0x4b564d80
#define MSR_KVM_UNREGISTER_MEM_AREA	0x4b564d81

/* The descriptor's alignment, so that it never crosses a page. */
#define KVM_MEM_AREA_DESC_ALIGN		32

/* The largest area, in bytes. */
#define KVM_MEM_AREA_MAX_SIZE		(1U << 20)

/* Types that KVM serves: the area is what the MSR of that name points to. */
#define KVM_MEM_AREA_TYPE_WALL_CLOCK	1U	/* MSR_KVM_WALL_CLOCK_NEW */
#define KVM_MEM_AREA_TYPE_SYSTEM_TIME	2U	/* MSR_KVM_SYSTEM_TIME_NEW */
#define KVM_MEM_AREA_TYPE_STEAL_TIME	3U	/* MSR_KVM_STEAL_TIME */

/* The first of the types that the VMM serves.  Those below are KVM's. */
#define KVM_MEM_AREA_TYPE_VMM		0x80000000U

/* Results.  Those below 0x80 without a name are reserved for KVM. */
#define KVM_MEM_AREA_OK			0
#define KVM_MEM_AREA_UNKNOWN_TYPE	1	/* nobody serves the type */
#define KVM_MEM_AREA_BAD_ADDRESS	2	/* no usable memory there */
#define KVM_MEM_AREA_BAD_SIZE		3
#define KVM_MEM_AREA_BAD_ALIGNMENT	4
#define KVM_MEM_AREA_BAD_PAD		5	/* pad is not 0 */
#define KVM_MEM_AREA_NOT_REGISTERED	6
#define KVM_MEM_AREA_DENIED		7	/* the VMM does not allow the type */
#define KVM_MEM_AREA_VMM_FIRST		0x80	/* what these mean, the VMM says */
#define KVM_MEM_AREA_VMM_LAST		0xfe
#define KVM_MEM_AREA_NO_ANSWER		0xff	/* preset by the guest */

/**
 * struct kvm_memory_area - describes an area to the hypervisor
 * @base: guest physical address of the area, in bytes
 * @size: size of the area in bytes, not 0
 * @type: KVM_MEM_AREA_TYPE_*
 * @result: KVM_MEM_AREA_*; the guest must preset it to
 *	KVM_MEM_AREA_NO_ANSWER, and the hypervisor writes it
 * @pad: must be 0
 *
 * The guest must align it to KVM_MEM_AREA_DESC_ALIGN.  It is needed during the
 * WRMSR only.
 */
struct kvm_memory_area {
	__u64 base;
	__u32 size;
	__u32 type;
	__u8 result;
	__u8 pad[7];
};

#endif /* _UAPI_LINUX_KVM_MEMORY_AREA_H */
