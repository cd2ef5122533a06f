// SPDX-License-Identifier: GPL-2.0-only
/*
 * VMs whose vCPUs do not have address spaces of their own: the ioctls of UCAS fail
 * as they do in kernels that do not know them, and change nothing.
 */
#include "gmap.h"
#include "kvm_test_harness.h"

static void guest_code(void)
{
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST_SUITE(gmap_absent);

KVM_ONE_VCPU_TEST(gmap_absent, ioctls, guest_code)
{
	struct kvm_run *run = vcpu->run;
	u8 *mem = segments_alloc(1);
	struct ucall uc;

	TEST_ASSERT_EQ(__gmap_map(vcpu, mem, SZ_1G, SEGMENT), EINVAL);
	TEST_ASSERT_EQ(__gmap_map(vcpu, mem, 0, SEGMENT), EINVAL);
	TEST_ASSERT_EQ(__gmap_unmap(vcpu, SZ_1G, SEGMENT), EINVAL);
	/* Of the guest's own memory, too. */
	TEST_ASSERT_EQ(__gmap_unmap(vcpu, 0, SZ_1G), EINVAL);

	run->exit_reason = 0;
	TEST_ASSERT_EQ(__gmap_fault(vcpu, 0), EINVAL);
	TEST_ASSERT_EQ(__gmap_fault(vcpu, SZ_1G), EINVAL);
	TEST_ASSERT_EQ(run->exit_reason, 0);

	/* A bad pointer is not even looked at. */
	TEST_ASSERT_EQ(ioctl(vcpu->fd, KVM_S390_UCAS_MAP, NULL), -1);
	TEST_ASSERT_EQ(errno, EINVAL);
	TEST_ASSERT_EQ(ioctl(vcpu->fd, KVM_S390_UCAS_UNMAP, NULL), -1);
	TEST_ASSERT_EQ(errno, EINVAL);

	/* It is too late for this VM. */
	TEST_ASSERT(__vm_enable_cap(vcpu->vm, KVM_CAP_S390_UCONTROL, 0) == -1 &&
		    errno == EINVAL, "errno %d", errno);

	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_DONE);
}

KVM_ONE_VCPU_TEST(gmap_absent, memslots, guest_code)
{
	u8 *mem = segments_alloc(2);
	struct kvm_vcpu *other;

	/* All vCPUs see the same memory. */
	vm_set_user_memory_region(vcpu->vm, 10, 0, SZ_2G, SEGMENT, mem);
	other = vm_vcpu_add(vcpu->vm, 1, guest_code);
	TEST_ASSERT_EQ(__gmap_map(other, mem, SZ_2G + SEGMENT, SEGMENT), EINVAL);
	TEST_ASSERT_EQ(__gmap_unmap(other, SZ_2G, SEGMENT), EINVAL);
	vm_set_user_memory_region(vcpu->vm, 10, 0, 0, 0, NULL);
}

/* A KVM without the memory core does not have it at all. */
TEST(no_capability)
{
	struct kvm_vm *vm;

	if (kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST))
		SKIP(return, "The memory core is on");

	vm = vm_create_barebones();
	EXPECT_EQ(0, kvm_check_cap(KVM_CAP_S390_UCONTROL));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_S390_UCONTROL));
	EXPECT_EQ(-1, __vm_enable_cap(vm, KVM_CAP_S390_UCONTROL, 0));
	EXPECT_EQ(EINVAL, errno);
	kvm_vm_free(vm);
}

/* Nor does a kernel whose KVM does not use the TDP MMU. */
TEST(no_tdp_mmu)
{
	bool has_tdp_mmu = kvm_is_tdp_enabled() && get_kvm_param_bool("tdp_mmu");

	if (!kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST))
		SKIP(return, "The memory core is off");
	EXPECT_EQ(has_tdp_mmu, !!kvm_check_cap(KVM_CAP_S390_UCONTROL));
}

int main(int argc, char *argv[])
{
	return test_harness_run(argc, argv);
}
