// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas: registered in SMM, and by a nested guest.
 */
#include "mem_area.h"
#include "nested_guest.h"
#include "smm.h"

#define SMRAM_GPA	0x1000000
#define SMM_PORT	0x0e
#define AREA_SLOT_SMM	((1 << 16) | AREA_SLOT)

#define STEAL_GPA	(AREA_GPA + 128)

/* Where the operands are in smi_handler. */
#define SMI_MSR		2
#define SMI_EAX		8
#define SMI_EDX		14

static const u8 smi_handler[] = {
	0x66, 0xb9, 0, 0, 0, 0,		/* mov $MSR, %ecx */
	0x66, 0xb8, 0, 0, 0, 0,		/* mov $low, %eax */
	0x66, 0xba, 0, 0, 0, 0,		/* mov $high, %edx */
	0x0f, 0x30,			/* wrmsr */
	0xe4, SMM_PORT,			/* in $SMM_PORT, %al */
	0x0f, 0xaa,			/* rsm */
};

/* Runs the vCPU, which has an SMI pending, up to the end of the handler. */
static void await_handler(struct kvm_vcpu *vcpu)
{
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(vcpu->run->io.port, SMM_PORT);
	TEST_ASSERT(vcpu->run->flags & KVM_RUN_X86_SMM, "Not in SMM");
}

static void start_smi(struct area_test *test, u32 msr)
{
	u8 *handler = addr_gpa2hva(test->vm, SMRAM_GPA) + 0x8000;

	memcpy(handler + SMI_MSR, &msr, sizeof(msr));
	inject_smi(test->vcpu);
	vcpu_run(test->vcpu);
}

TEST(smm)
{
	struct kvm_vcpu *vcpu;
	struct area_test test;
	u8 *smm_mem, *handler;
	u32 half;

	if (!kvm_has_cap(KVM_CAP_X86_SMM))
		SKIP(return, "No SMM");

	area_init(&test, 1);
	vcpu = test.vcpu;
	enable_exits(test.vm, 1);
	setup_smram(test.vm, vcpu, SMRAM_GPA, smi_handler, sizeof(smi_handler));
	handler = addr_gpa2hva(test.vm, SMRAM_GPA) + 0x8000;
	half = (u32)DESC_GPA;
	memcpy(handler + SMI_EAX, &half, sizeof(half));
	half = DESC_GPA >> 32;
	memcpy(handler + SMI_EDX, &half, sizeof(half));

	/* In SMM, other memory is where the descriptor and the area are. */
	smm_mem = kvm_mmap(WINDOW_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(test.vm, AREA_SLOT_SMM, 0, WINDOW_GPA, WINDOW_SIZE,
				  smm_mem);
	TEST_ASSERT_EQ(do_wrmsr(vcpu, false, REGISTER, 1), GP_VECTOR);

	/* A type of KVM's. */
	set_desc_at(&test, DESC_GPA, STEAL_GPA, 64, STEAL_TIME);
	start_smi(&test, REGISTER);
	await_handler(vcpu);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), KVM_MEM_AREA_OK);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_STEAL_TIME), STEAL_GPA | 1);
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(op_vector(vcpu), GP_VECTOR);

	/* One of the VMM's. */
	set_desc_at(&test, DESC_GPA, AREA_GPA, 4096, VMM_TYPE);
	start_smi(&test, REGISTER);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_X86_MSR_OP);
	TEST_ASSERT_EQ(vcpu->run->msr_op.base, AREA_GPA);
	vcpu->run->msr_op.result = 0x90;
	vcpu_run(vcpu);
	await_handler(vcpu);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), 0x90);
	vcpu_run(vcpu);
	op_vector(vcpu);

	/* Only the memory of SMM is gone: no matter. */
	vm_set_user_memory_region(test.vm, AREA_SLOT_SMM, 0, WINDOW_GPA, 0, NULL);
	set_desc_at(&test, DESC_GPA, STEAL_GPA, 64, STEAL_TIME);
	start_smi(&test, UNREGISTER);
	await_handler(vcpu);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), KVM_MEM_AREA_OK);

	for (half = 0; half < WINDOW_SIZE; half += sizeof(u64))
		TEST_ASSERT(!*(u64 *)(smm_mem + half), "KVM wrote to the memory of SMM");
	area_free(&test);
}

static void l2_code(void)
{
	struct guest_op *op = &guest_ops[0];

	for (;;) {
		op->vector = 0;
		wrmsr(op->msr, op->value);
		GUEST_SYNC(0);
	}
}

static void l1_code(void *data)
{
	run_nested_guest(data, l2_code);
}

/* L2 acts as L1 where L1 does not intercept the MSR. */
TEST(nested)
{
	struct kvm_vcpu *vcpu;
	struct area_test test;
	struct kvm_x86_msr_op *op;
	int i;

	/* On VMX, MSRs of this range always exit to L1. */
	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No SVM");

	area_init(&test, 1);
	vcpu = test.vcpu;
	enable_exits(test.vm, 1);
	vcpu_alloc_nested(test.vm, vcpu);
	vcpu_arch_set_entry_point(vcpu, l1_code);

	for (i = 0; i < 3; i++) {
		TEST_ASSERT_EQ(area_command(&test, false, REGISTER, STEAL_GPA, 64,
					    STEAL_TIME), 0);
		TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_STEAL_TIME), STEAL_GPA | 1);
		op = start_command(&test, false, REGISTER, AREA_GPA, 4096, VMM_TYPE);
		op->result = 0x80 + i;
		TEST_ASSERT_EQ(finish_command(vcpu), 0);
		TEST_ASSERT_EQ(result_at(&test, DESC_GPA), 0x80 + i);
		TEST_ASSERT_EQ(area_command(&test, false, UNREGISTER, STEAL_GPA, 64,
					    STEAL_TIME), 0);
	}
	area_free(&test);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA));

	return test_harness_run(argc, argv);
}
