/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VMs whose vCPUs have address spaces of their own (UCAS): the ioctls.
 */
#ifndef SELFTEST_KVM_GMAP_H
#define SELFTEST_KVM_GMAP_H

#include <string.h>
#include <sys/mman.h>

#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

/* What userspace maps and unmaps at once, on both sides. */
#define SEGMENT			SZ_1M
/* The program interruption code of an access to a segment that is not mapped. */
#define PGM_SEGMENT_TRANSLATION	0x10

static inline int max_ucas_vcpus(void)
{
	return kvm_check_cap(KVM_CAP_S390_UCONTROL);
}

static inline struct kvm_vm *gmap_vm_create(void)
{
	struct kvm_vm *vm = vm_create_barebones();

	vm_enable_cap(vm, KVM_CAP_S390_UCONTROL, 0);
	return vm;
}

/* These return 0 or the errno. */

static inline int __gmap_map(struct kvm_vcpu *vcpu, const void *user, gpa_t gpa,
			     u64 length)
{
	struct kvm_s390_ucas_mapping mapping = {
		.user_addr = (uintptr_t)user,
		.vcpu_addr = gpa,
		.length = length,
	};

	return __vcpu_ioctl(vcpu, KVM_S390_UCAS_MAP, &mapping) ? errno : 0;
}

static inline int __gmap_unmap(struct kvm_vcpu *vcpu, gpa_t gpa, u64 length)
{
	struct kvm_s390_ucas_mapping mapping = {
		.vcpu_addr = gpa,
		.length = length,
	};

	return __vcpu_ioctl(vcpu, KVM_S390_UCAS_UNMAP, &mapping) ? errno : 0;
}

static inline int __gmap_fault(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	/* The argument is no pointer, as __vcpu_ioctl() expects. */
	return ioctl(vcpu->fd, KVM_S390_VCPU_FAULT, gpa) ? errno : 0;
}

static inline void gmap_map(struct kvm_vcpu *vcpu, const void *user, gpa_t gpa,
			    u64 length)
{
	int err = __gmap_map(vcpu, user, gpa, length);

	TEST_ASSERT(!err, "Cannot map 0x%lx + 0x%lx to %p: errno %d", gpa, length,
		    user, err);
}

static inline void gmap_unmap(struct kvm_vcpu *vcpu, gpa_t gpa, u64 length)
{
	int err = __gmap_unmap(vcpu, gpa, length);

	TEST_ASSERT(!err, "Cannot unmap 0x%lx + 0x%lx: errno %d", gpa, length, err);
}

/*
 * Whether the page at @gpa is mapped.  The check makes memory that is mapped
 * present for reading.
 */
static inline bool gmap_is_mapped(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	int err = __gmap_fault(vcpu, gpa);

	TEST_ASSERT(!err || err == EREMOTE, "0x%lx: errno %d", gpa, err);
	return !err;
}

/* Checks that KVM has reported an access to @gpa, where nothing is mapped. */
static inline void assert_hole_exit(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	struct kvm_run *run = vcpu->run;

	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_S390_UCONTROL);
	TEST_ASSERT_EQ(run->s390_ucontrol.pgm_code, PGM_SEGMENT_TRANSLATION);
	TEST_ASSERT(run->s390_ucontrol.trans_exc_code == (gpa & PAGE_MASK),
		    "Exit for 0x%llx instead of 0x%llx",
		    run->s390_ucontrol.trans_exc_code, gpa & PAGE_MASK);
}

/* Memory for @nr segments, aligned such that huge pages are possible. */
static inline void *segments_alloc_flags(u64 nr, int prot, int flags, int fd)
{
	void *mem = kvm_mmap(nr * SEGMENT + SZ_2M, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	void *at = align_ptr_up(mem, SZ_2M);

	mem = mmap(at, nr * SEGMENT, prot, flags | MAP_FIXED | MAP_NORESERVE, fd, 0);
	TEST_ASSERT(mem == at, "mmap() failed, errno %d", errno);
	return mem;
}

static inline void *segments_alloc(u64 nr)
{
	return segments_alloc_flags(nr, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

/* Memory that can be mapped by segments_alias() a second time. */
static inline int segments_memfd(u64 nr)
{
	return kvm_memfd_alloc(nr * SEGMENT, false);
}

static inline void *segments_alias(int fd, u64 nr)
{
	return segments_alloc_flags(nr, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
}

#endif /* SELFTEST_KVM_GMAP_H */
