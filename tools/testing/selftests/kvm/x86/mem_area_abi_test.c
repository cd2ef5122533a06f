// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas: numbers, layouts, the capability, the ioctl, the feature bit, and
 * what a VMM sees that does not know of them.
 */
#include <stddef.h>
#include <sys/ioctl.h>

#include "mem_area_fixture.h"

kvm_static_assert(KVM_CAP_REGISTER_MEM_AREA == 0x10003);
kvm_static_assert(KVM_EXIT_X86_MSR_OP == 0x10001);
kvm_static_assert(KVM_USERSPACE_REGISTER_MEM_AREA == 0x4004AEA8);
kvm_static_assert(MSR_KVM_REGISTER_MEM_AREA == 0x4b564d80);
kvm_static_assert(MSR_KVM_UNREGISTER_MEM_AREA == 0x4b564d81);
kvm_static_assert(KVM_FEATURE_MEM_AREA == 23);

kvm_static_assert(sizeof(struct kvm_memory_area) == 24);
kvm_static_assert(offsetof(struct kvm_memory_area, base) == 0);
kvm_static_assert(offsetof(struct kvm_memory_area, size) == 8);
kvm_static_assert(offsetof(struct kvm_memory_area, type) == 12);
kvm_static_assert(offsetof(struct kvm_memory_area, result) == 16);
kvm_static_assert(offsetof(struct kvm_memory_area, pad) == 17);

kvm_static_assert(sizeof(struct kvm_x86_msr_op) == 32);
kvm_static_assert(offsetof(struct kvm_x86_msr_op, msr_data) == 0);
kvm_static_assert(offsetof(struct kvm_x86_msr_op, base) == 8);
kvm_static_assert(offsetof(struct kvm_x86_msr_op, size) == 16);
kvm_static_assert(offsetof(struct kvm_x86_msr_op, type) == 20);
kvm_static_assert(offsetof(struct kvm_x86_msr_op, index) == 24);
kvm_static_assert(offsetof(struct kvm_x86_msr_op, error) == 28);
kvm_static_assert(offsetof(struct kvm_x86_msr_op, result) == 29);
kvm_static_assert(offsetof(struct kvm_x86_msr_op, pad) == 30);

/* Where the other exits have their data. */
kvm_static_assert(offsetof(struct kvm_run, msr_op) == 32);
kvm_static_assert(offsetof(struct kvm_run, kvm_valid_regs) == 288);

TEST(capability)
{
	struct kvm_vm *vm = vm_create_barebones();

	TEST_ASSERT_EQ(kvm_check_cap(KVM_CAP_REGISTER_MEM_AREA), 1);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_REGISTER_MEM_AREA), 1);
	kvm_vm_free(vm);
}

TEST(ioctl_arguments)
{
	struct kvm_vm *vm = vm_create_barebones();
	struct kvm_area_info info;
	int i;

	for (i = 0; i < 256; i++) {
		int ret = __enable_exits(vm, i);

		TEST_ASSERT_EQ(ret, i < 2 ? 0 : -1);
		TEST_ASSERT(!ret || errno == EINVAL, "errno %d", errno);
	}
	for (i = 0; i < 24; i++) {
		info = (struct kvm_area_info) { .enabled = i % 2 };
		info.pad[i / 8] = BIT(i % 8);
		TEST_ASSERT(__vm_ioctl(vm, KVM_USERSPACE_REGISTER_MEM_AREA, &info) == -1 &&
			    errno == EINVAL, "Bit %d of pad: errno %d", i, errno);
	}
	TEST_ASSERT(ioctl(vm->fd, KVM_USERSPACE_REGISTER_MEM_AREA, NULL) == -1 &&
		    errno == EFAULT, "errno %d", errno);
	TEST_ASSERT(ioctl(vm->fd, KVM_USERSPACE_REGISTER_MEM_AREA, 1ul << 63) == -1 &&
		    errno == EFAULT, "errno %d", errno);
	kvm_vm_free(vm);
}

TEST(not_offered_by_default)
{
	const struct kvm_cpuid2 *cpuid = kvm_get_supported_cpuid();
	const struct kvm_msr_list *list = kvm_get_msr_index_list();
	int i;

	TEST_ASSERT(!kvm_cpu_has(X86_FEATURE_KVM_MEM_AREA),
		    "KVM_GET_SUPPORTED_CPUID has the feature");
	for (i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == KVM_CPUID_FEATURES)
			TEST_ASSERT(!(cpuid->entries[i].eax & BIT(23)),
				    "Leaf %d has the feature", i);
	for (i = 0; i < list->nmsrs; i++)
		TEST_ASSERT(list->indices[i] != REGISTER && list->indices[i] != UNREGISTER,
			    "MSR %#x is to be saved", list->indices[i]);
}

/* Without the feature bit, both are MSRs like any that KVM does not know. */
TEST_F(area, off)
{
	static const u32 msrs[] = { REGISTER, UNREGISTER, 0x4b564d7f };
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	bool emulate = variant->emulate;
	char saved[16];
	u64 value;
	int i;

	vcpu_clear_cpuid_feature(vcpu, X86_FEATURE_KVM_MEM_AREA);
	for (i = 0; i < 2 * ARRAY_SIZE(msrs); i++) {
		u32 msr = msrs[i / 2];

		/* Even if the VMM serves areas. */
		enable_exits(test->vm, i % 2);
		set_desc_at(test, DESC_GPA, AREA_GPA, 64, STEAL_TIME);
		TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, msr, DESC_GPA), GP_VECTOR);
		TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, msr, 0), GP_VECTOR);
		TEST_ASSERT_EQ(do_rdmsr(vcpu, emulate, msr, &value), GP_VECTOR);
		TEST_ASSERT_EQ(result_at(test, DESC_GPA), NO_ANSWER);
		TEST_ASSERT_EQ(_vcpu_set_msr(vcpu, msr, DESC_GPA), 0);
	}

	if (!set_param(IGNORE_PARAM, "1", saved, sizeof(saved)))
		SKIP(return, "Cannot ignore MSRs");
	for (i = 0; i < ARRAY_SIZE(msrs); i++) {
		u8 vector = do_wrmsr(vcpu, emulate, msrs[i], DESC_GPA);

		if (vector || result_at(test, DESC_GPA) != NO_ANSWER)
			break;
	}
	write_attr(IGNORE_PARAM, saved);
	TEST_ASSERT_EQ(i, ARRAY_SIZE(msrs));
}

/* ignore_msrs does not turn failures into success where the feature is on. */
TEST_F(area, ignore_msrs)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	bool emulate = variant->emulate;
	u8 result, write, read, all;
	int host_write, host_read;
	char saved[16];
	u64 value;

	vcpu_enable_cap(vcpu, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1);
	vcpu_clear_cpuid_feature(vcpu, X86_FEATURE_KVM_STEAL_TIME_BIT);
	if (!set_param(IGNORE_PARAM, "1", saved, sizeof(saved)))
		SKIP(return, "Cannot ignore MSRs");
	write = do_wrmsr(vcpu, emulate, REGISTER, DESC_GPA + 8);
	read = do_rdmsr(vcpu, emulate, REGISTER, &value);
	result = area_command(test, emulate, REGISTER, AREA_GPA, 64, STEAL_TIME);
	all = do_wrmsr(vcpu, emulate, UNREGISTER, 0);
	host_write = _vcpu_set_msr(vcpu, REGISTER, DESC_GPA);
	host_read = try_get_msr(vcpu, REGISTER);
	write_attr(IGNORE_PARAM, saved);

	TEST_ASSERT_EQ(write, GP_VECTOR);
	TEST_ASSERT_EQ(read, GP_VECTOR);
	TEST_ASSERT_EQ(result, KVM_MEM_AREA_DENIED);
	TEST_ASSERT_EQ(all, 0);
	TEST_ASSERT_EQ(host_write, 0);
	TEST_ASSERT_EQ(host_read, 0);
}

/* Commands, not state: nobody reads them, and the host cannot write them. */
TEST_F(area, commands_are_not_state)
{
	static const u64 values[] = { 0, DESC_GPA, DESC_GPA + 1, ~0ull };
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	u64 value;
	u32 msr;
	int i;

	for (msr = REGISTER; msr <= UNREGISTER; msr++) {
		TEST_ASSERT_EQ(do_rdmsr(vcpu, variant->emulate, msr, &value), GP_VECTOR);
		TEST_ASSERT_EQ(try_get_msr(vcpu, msr), 0);
		for (i = 0; i < ARRAY_SIZE(values); i++) {
			set_desc_at(test, DESC_GPA, AREA_GPA, 64, STEAL_TIME);
			TEST_ASSERT_EQ(_vcpu_set_msr(vcpu, msr, values[i]), 0);
			TEST_ASSERT_EQ(result_at(test, DESC_GPA), NO_ANSWER);
		}
	}
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_STEAL_TIME), 0);
}

/* The bit decides, whether CPUID bits are enforced or not. */
TEST_F(area, feature_bit)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	int i;

	for (i = 0; i < 2; i++) {
		TEST_ASSERT_EQ(area_command(test, variant->emulate, REGISTER,
					    AREA_GPA, 64, STEAL_TIME), KVM_MEM_AREA_OK);
		vcpu_enable_cap(vcpu, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1);
	}
}

/* Each vCPU has a bit of its own. */
TEST(feature_bit_of_vcpus)
{
	struct area_test test;
	int i;

	area_init(&test, 2);
	vcpu_clear_cpuid_feature(test.vcpus[1], X86_FEATURE_KVM_MEM_AREA);
	for (i = 0; i < 2; i++) {
		set_desc_at(&test, DESC_GPA, STEAL_GPA, 64, STEAL_TIME);
		TEST_ASSERT_EQ(do_wrmsr(test.vcpus[1], false, REGISTER, DESC_GPA), GP_VECTOR);
		TEST_ASSERT_EQ(result_at(&test, DESC_GPA), NO_ANSWER);
		TEST_ASSERT_EQ(area_command(&test, false, REGISTER, STEAL_GPA, 64,
					    STEAL_TIME), KVM_MEM_AREA_OK);
	}
	check_msrs(test.vcpus[0], 0, 0, STEAL_GPA | 1);
	check_msrs(test.vcpus[1], 0, 0, 0);
	area_free(&test);
}

/* KVM's leaves can be higher, e.g. after Hyper-V's. */
static void move_leaves(struct kvm_vcpu *vcpu, u32 features)
{
	struct kvm_cpuid_entry2 *signature, *leaf;

	/* Getting an entry gets all of them anew. */
	leaf = vcpu_get_cpuid_entry(vcpu, KVM_CPUID_FEATURES);
	signature = vcpu_get_cpuid_entry(vcpu, KVM_CPUID_SIGNATURE);
	signature->function |= 0x100;
	signature->eax |= 0x100;
	leaf->function = features;
	vcpu_set_cpuid(vcpu);
}

TEST_F(area, feature_bit_at_higher_base)
{
	struct area_test *test = &self->test;

	move_leaves(test->vcpu, KVM_CPUID_FEATURES | 0x100);
	TEST_ASSERT_EQ(area_command(test, variant->emulate, REGISTER, STEAL_GPA, 64,
				    STEAL_TIME), KVM_MEM_AREA_OK);
}

/* The leaf at the lower base is not KVM's then. */
TEST_F(area, feature_bit_below_base)
{
	struct area_test *test = &self->test;

	move_leaves(test->vcpu, KVM_CPUID_FEATURES);
	TEST_ASSERT_EQ(do_wrmsr(test->vcpu, variant->emulate, REGISTER, DESC_GPA), GP_VECTOR);
}

/* Without areas, the numbers are as unknown as any. */
static void test_absent(void)
{
	struct kvm_area_info info = { .enabled = 1 };
	struct area_test test;
	u64 value;
	u32 msr;

	area_init(&test, 1);
	TEST_ASSERT_EQ(vm_check_cap(test.vm, KVM_CAP_REGISTER_MEM_AREA), 0);
	TEST_ASSERT(__vm_ioctl(test.vm, KVM_USERSPACE_REGISTER_MEM_AREA, &info) == -1 &&
		    errno == ENOTTY, "errno %d", errno);
	for (msr = REGISTER; msr <= UNREGISTER; msr++) {
		set_desc_at(&test, DESC_GPA, AREA_GPA, 64, STEAL_TIME);
		TEST_ASSERT_EQ(do_wrmsr(test.vcpu, false, msr, DESC_GPA), GP_VECTOR);
		TEST_ASSERT_EQ(do_rdmsr(test.vcpu, false, msr, &value), GP_VECTOR);
		TEST_ASSERT_EQ(_vcpu_set_msr(test.vcpu, msr, DESC_GPA), 0);
		TEST_ASSERT_EQ(try_get_msr(test.vcpu, msr), 0);
		TEST_ASSERT_EQ(result_at(&test, DESC_GPA), NO_ANSWER);
	}
	area_free(&test);
}

int main(int argc, char *argv[])
{
	if (!kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA)) {
		ksft_print_header();
		ksft_set_plan(1);
		test_absent();
		ksft_test_result_pass("absent\n");
		ksft_finished();
	}
	return test_harness_run(argc, argv);
}
