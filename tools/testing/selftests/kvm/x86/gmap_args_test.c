// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): the arguments of the ioctls.
 */
#include <stddef.h>

#include "gmap_guest.h"
#include "kvm_test_harness.h"

kvm_static_assert(KVM_S390_UCAS_MAP == 0x4018AE50);
kvm_static_assert(KVM_S390_UCAS_UNMAP == 0x4018AE51);
kvm_static_assert(KVM_S390_VCPU_FAULT == 0x4008AE52);
kvm_static_assert(KVM_CAP_S390_UCONTROL == 73);
kvm_static_assert(sizeof(struct kvm_s390_ucas_mapping) == 24);
kvm_static_assert(offsetof(struct kvm_s390_ucas_mapping, user_addr) == 0);
kvm_static_assert(offsetof(struct kvm_s390_ucas_mapping, vcpu_addr) == 8);
kvm_static_assert(offsetof(struct kvm_s390_ucas_mapping, length) == 16);

#define NR_SEGMENTS	16

FIXTURE(args)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	/* The vCPU has the even segments of it at DATA_GPA, and holes between. */
	u8 *mem;
	u64 swaps;
};

FIXTURE_SETUP(args)
{
	u64 i;

	self->vm = gmap_vm_with_guest(&self->vcpu);
	self->mem = segments_alloc(NR_SEGMENTS);
	for (i = 0; i < NR_SEGMENTS; i += 2) {
		*(u64 *)(self->mem + i * SEGMENT) = i + 1;
		gmap_map(self->vcpu, self->mem + i * SEGMENT, DATA_GPA + i * SEGMENT,
			 SEGMENT);
	}
	self->swaps = vm_get_stat(self->vm, memslot_swaps);
}

/* No error has changed anything. */
FIXTURE_TEARDOWN(args)
{
	u64 i;

	EXPECT_EQ(self->swaps, vm_get_stat(self->vm, memslot_swaps));
	for (i = 0; i < NR_SEGMENTS; i++) {
		if (i & 1)
			run_read_hole(self->vcpu, DATA_GPA + i * SEGMENT);
		else
			EXPECT_EQ(i + 1, run_read(self->vcpu, DATA_GPA + i * SEGMENT));
	}
	kvm_vm_free(self->vm);
}

/* Both ioctls on the whole window, apart from what the statements change. */
#define EXPECT_BOTH_EINVAL(...)						\
do {									\
	struct kvm_s390_ucas_mapping m = {				\
		.user_addr = (uintptr_t)self->mem,			\
		.vcpu_addr = DATA_GPA,					\
		.length = NR_SEGMENTS * SEGMENT,			\
	};								\
									\
	__VA_ARGS__;							\
	EXPECT_EQ(EINVAL, __gmap_map(self->vcpu, (void *)m.user_addr,	\
				     m.vcpu_addr, m.length))		\
		TH_LOG("map: %s", #__VA_ARGS__);			\
	EXPECT_EQ(EINVAL, __gmap_unmap(self->vcpu, m.vcpu_addr, m.length)) \
		TH_LOG("unmap: %s", #__VA_ARGS__);			\
} while (0)

#define EXPECT_MAP_EINVAL(user)						\
	EXPECT_EQ(EINVAL, __gmap_map(self->vcpu, (void *)(user), DATA_GPA, \
				     NR_SEGMENTS * SEGMENT))

TEST_F(args, alignment)
{
	int bit;

	for (bit = 0; bit < 20; bit++) {
		EXPECT_BOTH_EINVAL(m.vcpu_addr += BIT(bit));
		EXPECT_BOTH_EINVAL(m.vcpu_addr -= BIT(bit));
		EXPECT_BOTH_EINVAL(m.length += BIT(bit));
		EXPECT_BOTH_EINVAL(m.length -= BIT(bit));
		EXPECT_MAP_EINVAL(self->mem + BIT(bit));
		EXPECT_MAP_EINVAL(self->mem - BIT(bit));
	}
	/* The same misalignment on both sides is no better. */
	EXPECT_BOTH_EINVAL(m.vcpu_addr += PAGE_SIZE, m.user_addr += PAGE_SIZE,
			   m.length -= SEGMENT);
	EXPECT_BOTH_EINVAL(m.length = PAGE_SIZE);
}

TEST_F(args, length_0)
{
	EXPECT_BOTH_EINVAL(m.length = 0);
	EXPECT_BOTH_EINVAL(m.length = 0, m.vcpu_addr = 0);
	EXPECT_BOTH_EINVAL(m.length = 0, m.vcpu_addr = DATA_GPA + SEGMENT);
}

TEST_F(args, wrap_around)
{
	EXPECT_BOTH_EINVAL(m.length = -m.vcpu_addr);
	EXPECT_BOTH_EINVAL(m.length = -m.vcpu_addr + SEGMENT);
	EXPECT_BOTH_EINVAL(m.length = -SEGMENT);
	EXPECT_BOTH_EINVAL(m.vcpu_addr = -SEGMENT, m.length = SEGMENT);
	EXPECT_BOTH_EINVAL(m.vcpu_addr = -SEGMENT, m.length = 2 * SEGMENT);
	EXPECT_BOTH_EINVAL(m.vcpu_addr = -SEGMENT,
			   m.length = DATA_GPA + NR_SEGMENTS * SEGMENT + SEGMENT);
	EXPECT_BOTH_EINVAL(m.vcpu_addr = BIT_ULL(63), m.length = BIT_ULL(63));
	EXPECT_BOTH_EINVAL(m.vcpu_addr = 0, m.user_addr = 0, m.length = -SEGMENT);
}

TEST_F(args, guest_range)
{
	const u64 end = BIT_ULL(kvm_cpu_property(X86_PROPERTY_MAX_PHY_ADDR));

	EXPECT_BOTH_EINVAL(m.vcpu_addr = end);
	EXPECT_BOTH_EINVAL(m.vcpu_addr = end, m.length = SEGMENT);
	EXPECT_BOTH_EINVAL(m.vcpu_addr = end - SEGMENT, m.length = 2 * SEGMENT);
	EXPECT_BOTH_EINVAL(m.vcpu_addr = 0, m.length = end + SEGMENT);
	/* These would be right if the high bits of the address got lost. */
	EXPECT_BOTH_EINVAL(m.vcpu_addr |= BIT_ULL(52));
	EXPECT_BOTH_EINVAL(m.vcpu_addr |= BIT_ULL(63));
	EXPECT_BOTH_EINVAL(m.length |= BIT_ULL(63));
}

/* The last segment that a guest can have is one like any other. */
TEST_F(args, last_segment)
{
	const u64 end = BIT_ULL(kvm_cpu_property(X86_PROPERTY_MAX_PHY_ADDR));

	gmap_map(self->vcpu, self->mem, end - SEGMENT, SEGMENT);
	EXPECT_TRUE(gmap_is_mapped(self->vcpu, end - PAGE_SIZE));
	EXPECT_FALSE(gmap_is_mapped(self->vcpu, end - SEGMENT - PAGE_SIZE));
	gmap_unmap(self->vcpu, end - SEGMENT, SEGMENT);
	EXPECT_FALSE(gmap_is_mapped(self->vcpu, end - PAGE_SIZE));
	self->swaps = vm_get_stat(self->vm, memslot_swaps);
}

TEST_F(args, user_range)
{
	/* The kernel's half of the address space, and what no address can be. */
	EXPECT_MAP_EINVAL(BIT_ULL(63));
	EXPECT_MAP_EINVAL(-BIT_ULL(47));
	EXPECT_MAP_EINVAL(-NR_SEGMENTS * SEGMENT);
	EXPECT_MAP_EINVAL(-SEGMENT);
	EXPECT_MAP_EINVAL(BIT_ULL(63) - SEGMENT);
	/* Only its end is wrong. */
	EXPECT_EQ(EINVAL, __gmap_map(self->vcpu, (void *)SEGMENT, DATA_GPA,
				     BIT_ULL(63)));
}

/* No memory has to be there when it is mapped, as long as it could be. */
TEST_F(args, user_range_without_memory)
{
	const gpa_t gpa = DATA_GPA + NR_SEGMENTS * SEGMENT;
	u8 *mem = segments_alloc(1);

	kvm_munmap(mem, SEGMENT);
	gmap_map(self->vcpu, mem, gpa, SEGMENT);
	guest_set_call(self->vcpu, guest_read, gpa, 0, 0);
	guest_run_fails(self->vcpu, EFAULT);

	TEST_ASSERT(mmap(mem, SEGMENT, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == mem,
		    "errno %d", errno);
	*(u64 *)mem = 99;
	EXPECT_EQ(99, guest_run(self->vcpu));
	gmap_unmap(self->vcpu, gpa, SEGMENT);
	self->swaps = vm_get_stat(self->vm, memslot_swaps);
}

/* The struct must be in memory that can be read; it need not be aligned. */
TEST_F(args, pointer)
{
	u8 *pages = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct kvm_s390_ucas_mapping mapping = {
		.user_addr = (uintptr_t)self->mem,
		.vcpu_addr = DATA_GPA,
		.length = SEGMENT,
	};
	const unsigned long ioctls[] = { KVM_S390_UCAS_MAP, KVM_S390_UCAS_UNMAP };
	u8 *bad[] = { NULL, (u8 *)-PAGE_SIZE, pages + PAGE_SIZE,
		      pages + PAGE_SIZE - sizeof(mapping) + 1 };
	int i, j;

	memcpy(bad[3], &mapping, sizeof(mapping) - 1);
	kvm_munmap(pages + PAGE_SIZE, PAGE_SIZE);
	for (i = 0; i < ARRAY_SIZE(ioctls); i++) {
		for (j = 0; j < ARRAY_SIZE(bad); j++) {
			EXPECT_EQ(-1, ioctl(self->vcpu->fd, ioctls[i], bad[j]));
			EXPECT_EQ(EFAULT, errno);
		}
	}

	/* Read-only and misaligned.  The memory is mapped already. */
	memcpy(pages + 3, &mapping, sizeof(mapping));
	TEST_ASSERT(!mprotect(pages, PAGE_SIZE, PROT_READ), "errno %d", errno);
	EXPECT_EQ(0, ioctl(self->vcpu->fd, KVM_S390_UCAS_MAP, pages + 3));
	self->swaps = vm_get_stat(self->vm, memslot_swaps);
}

/* Mapping what is mapped like that already, and unmapping a hole, change nothing. */
TEST_F(args, no_change)
{
	u64 i;

	for (i = 0; i < NR_SEGMENTS; i++) {
		if (i & 1)
			gmap_unmap(self->vcpu, DATA_GPA + i * SEGMENT, SEGMENT);
		else
			gmap_map(self->vcpu, self->mem + i * SEGMENT,
				 DATA_GPA + i * SEGMENT, SEGMENT);
	}
}

/* The ioctls are the vCPU's: the VM does not know them, nor has it another 0x50. */
TEST_F(args, not_the_vm)
{
	struct kvm_s390_ucas_mapping mapping = {
		.user_addr = (uintptr_t)self->mem,
		.vcpu_addr = DATA_GPA,
		.length = SEGMENT,
	};

	EXPECT_EQ(-1, ioctl(self->vm->fd, KVM_S390_UCAS_MAP, &mapping));
	EXPECT_EQ(ENOTTY, errno);
	EXPECT_EQ(-1, ioctl(self->vm->fd, KVM_S390_UCAS_UNMAP, &mapping));
	EXPECT_EQ(ENOTTY, errno);
}

TEST_F(args, fault_address)
{
	const u64 end = BIT_ULL(kvm_cpu_property(X86_PROPERTY_MAX_PHY_ADDR));

	/* Nothing is mapped there. */
	EXPECT_EQ(EREMOTE, __gmap_fault(self->vcpu, end - 1));
	assert_hole_exit(self->vcpu, end - PAGE_SIZE);
	EXPECT_EQ(EREMOTE, __gmap_fault(self->vcpu, DATA_GPA + 2 * SEGMENT - 1));
	assert_hole_exit(self->vcpu, DATA_GPA + 2 * SEGMENT - PAGE_SIZE);
	EXPECT_EQ(0, __gmap_fault(self->vcpu, DATA_GPA + SEGMENT - 1));
}

/* Userspace can map memory before it says what the vCPU can address. */
TEST_F(args, fault_beyond_vcpu)
{
	struct kvm_vcpu *vcpu = __vm_vcpu_add(self->vm, 1);
	const gpa_t gpa = BIT_ULL(36);

	EXPECT_EQ(0, __gmap_map(vcpu, self->mem, gpa, SEGMENT));
	self->swaps++;
	EXPECT_EQ(EINVAL, __gmap_fault(vcpu, gpa));
	EXPECT_EQ(EREMOTE, __gmap_fault(vcpu, gpa + SEGMENT));
	assert_hole_exit(vcpu, gpa + SEGMENT);
	vcpu_init_cpuid(vcpu, kvm_get_supported_cpuid());
	EXPECT_EQ(0, __gmap_fault(vcpu, gpa));
	EXPECT_EQ(EREMOTE, __gmap_fault(vcpu, gpa + SEGMENT));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());

	return test_harness_run(argc, argv);
}
