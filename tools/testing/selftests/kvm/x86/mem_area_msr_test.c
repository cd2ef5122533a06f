// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas and what a VMM can have KVM do about any MSR: filters, and the exits
 * of KVM_CAP_X86_USER_SPACE_MSR.
 */
#include "mem_area_fixture.h"

static void expect_msr_exit(struct kvm_vcpu *vcpu, u32 exit, u32 reason, u32 msr)
{
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, exit);
	TEST_ASSERT_EQ(vcpu->run->msr.reason, reason);
	TEST_ASSERT_EQ(vcpu->run->msr.index, msr);
}

/* Has the guest write an MSR, which must leave for the VMM with @reason. */
static void start_denied_write(struct kvm_vcpu *vcpu, bool emulate, u32 msr, u64 value,
			       u32 reason)
{
	start_op(vcpu, true, emulate, msr, value);
	expect_msr_exit(vcpu, KVM_EXIT_X86_WRMSR, reason, msr);
	TEST_ASSERT_EQ(vcpu->run->msr.data, value);
}

/* The exit and the MSR exits do not get into each other's way. */
TEST_F(area, other_exits)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	bool emulate = variant->emulate;
	struct kvm_x86_msr_op *op;
	int i;

	vm_enable_cap(test->vm, KVM_CAP_X86_USER_SPACE_MSR,
		      KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN);
	enable_exits(test->vm, 1);
	for (i = 0; i < 3; i++) {
		op = start_command(test, emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
		op->result = i;
		TEST_ASSERT_EQ(finish_command(vcpu), 0);
		TEST_ASSERT_EQ(result_at(test, DESC_GPA), i);

		start_denied_write(vcpu, emulate, 0x4b564d7f, 1, KVM_MSR_EXIT_REASON_UNKNOWN);
		vcpu->run->msr.error = i % 2;
		TEST_ASSERT_EQ(finish_command(vcpu), i % 2 ? GP_VECTOR : 0);

		/* Where the guest would get #GP. */
		start_denied_write(vcpu, emulate, REGISTER, DESC_GPA + 1,
				   KVM_MSR_EXIT_REASON_INVAL);
		vcpu->run->msr.error = i % 2;
		TEST_ASSERT_EQ(finish_command(vcpu), i % 2 ? GP_VECTOR : 0);

		/* The VMM's own #GP does not come back to it. */
		op = start_command(test, emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
		op->error = 1;
		TEST_ASSERT_EQ(finish_command(vcpu), GP_VECTOR);
	}
}

/* Nor does that of a descriptor that has gone meanwhile. */
TEST_F(area, descriptor_gone)
{
	struct area_test *test = &self->test;
	struct kvm_x86_msr_op *op;

	vm_enable_cap(test->vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL);
	enable_exits(test->vm, 1);
	op = start_command(test, variant->emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
	op->result = 0;
	set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, 0);
	TEST_ASSERT_EQ(finish_command(test->vcpu), GP_VECTOR);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), NO_ANSWER);
}

static void check_reasons(struct area_test *test, bool emulate, u32 reason)
{
	struct kvm_vcpu *vcpu = test->vcpu;
	u32 msr;

	vm_enable_cap(test->vm, KVM_CAP_X86_USER_SPACE_MSR,
		      KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN);
	enable_exits(test->vm, 1);
	for (msr = REGISTER; msr <= UNREGISTER; msr++) {
		start_denied_write(vcpu, emulate, msr, DESC_GPA + 1, reason);
		TEST_ASSERT_EQ(finish_command(vcpu), 0);
		start_op(vcpu, false, emulate, msr, 0);
		expect_msr_exit(vcpu, KVM_EXIT_X86_RDMSR, reason, msr);
		TEST_ASSERT_EQ(finish_command(vcpu), 0);
	}
}

/* KVM knows the MSRs, but not this value. */
TEST_F(area, reason_with_feature)
{
	check_reasons(&self->test, variant->emulate, KVM_MSR_EXIT_REASON_INVAL);
}

/* Without the feature bit, it does not know the MSRs. */
TEST_F(area, reason_without_feature)
{
	const u32 reason = KVM_MSR_EXIT_REASON_UNKNOWN;
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;

	vcpu_clear_cpuid_feature(vcpu, X86_FEATURE_KVM_MEM_AREA);
	check_reasons(test, variant->emulate, reason);
	/* Also of what would have been a command. */
	set_desc_at(test, DESC_GPA, AREA_GPA, 4096, VMM_TYPE);
	start_denied_write(vcpu, variant->emulate, REGISTER, DESC_GPA, reason);
	TEST_ASSERT_EQ(finish_command(vcpu), 0);
	start_denied_write(vcpu, variant->emulate, UNREGISTER, 0, reason);
	TEST_ASSERT_EQ(finish_command(vcpu), 0);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), NO_ANSWER);
}

static void deny_writes(struct kvm_vm *vm, u32 msr)
{
	static u8 deny;
	struct kvm_msr_filter filter = {
		.flags = KVM_MSR_FILTER_DEFAULT_ALLOW,
		.ranges[0] = {
			.flags = KVM_MSR_FILTER_WRITE,
			.nmsrs = 1,
			.base = msr,
			.bitmap = &deny,
		},
	};

	vm_ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter);
}

/* The filter comes first, and filters one of the two MSRs. */
TEST_F(area, filter)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	bool emulate = variant->emulate;
	struct kvm_x86_msr_op *op;
	u32 msr, other;

	for (msr = REGISTER; msr <= UNREGISTER; msr++) {
		other = msr == REGISTER ? UNREGISTER : REGISTER;
		enable_exits(test->vm, 1);
		vm_enable_cap(test->vm, KVM_CAP_X86_USER_SPACE_MSR, 0);
		deny_writes(test->vm, msr);
		set_desc_at(test, DESC_GPA, AREA_GPA, 4096, VMM_TYPE);
		TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, msr, DESC_GPA), GP_VECTOR);
		TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, msr, 0), GP_VECTOR);
		TEST_ASSERT_EQ(result_at(test, DESC_GPA), NO_ANSWER);

		vm_enable_cap(test->vm, KVM_CAP_X86_USER_SPACE_MSR,
			      KVM_MSR_EXIT_REASON_FILTER);
		start_denied_write(vcpu, emulate, msr, DESC_GPA, KVM_MSR_EXIT_REASON_FILTER);
		TEST_ASSERT_EQ(finish_command(vcpu), 0);
		TEST_ASSERT_EQ(result_at(test, DESC_GPA), NO_ANSWER);

		op = start_command(test, emulate, other, AREA_GPA, 4096, VMM_TYPE);
		op->result = 0;
		TEST_ASSERT_EQ(finish_command(vcpu), 0);
	}

	/* The guest has no way back from what it may register. */
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, STEAL_GPA, 64, STEAL_TIME), 0);
	set_desc_at(test, DESC_GPA, STEAL_GPA, 64, STEAL_TIME);
	start_denied_write(vcpu, emulate, UNREGISTER, DESC_GPA, KVM_MSR_EXIT_REASON_FILTER);
	TEST_ASSERT_EQ(finish_command(vcpu), 0);
	start_denied_write(vcpu, emulate, UNREGISTER, 0, KVM_MSR_EXIT_REASON_FILTER);
	TEST_ASSERT_EQ(finish_command(vcpu), 0);
	check_msrs(vcpu, 0, 0, STEAL_GPA | 1);
}

/* A filter of a type's MSR: the guest is told, and the VMM is not asked. */
TEST_F(area, filter_of_type)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	bool emulate = variant->emulate;

	vm_enable_cap(test->vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER);
	register_areas(test, emulate);
	deny_writes(test->vm, MSR_KVM_STEAL_TIME);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, STEAL_GPA + 64, 64, STEAL_TIME),
		       KVM_MEM_AREA_DENIED);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA, 64, STEAL_TIME),
		       KVM_MEM_AREA_DENIED);
	check_msrs(vcpu, WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);

	/* All the others are taken back, and #GP says that not all were. */
	TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, UNREGISTER, 0), GP_VECTOR);
	check_msrs(vcpu, 0, 0, STEAL_GPA | 1);

	/* Or the VMM gets the exit for that. */
	vm_enable_cap(test->vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, TIME_GPA, 32, SYSTEM_TIME), 0);
	start_denied_write(vcpu, emulate, UNREGISTER, 0, KVM_MSR_EXIT_REASON_INVAL);
	check_msrs(vcpu, 0, 0, STEAL_GPA | 1);
	TEST_ASSERT_EQ(finish_command(vcpu), 0);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA));

	return test_harness_run(argc, argv);
}
