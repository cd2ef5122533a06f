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

/* Where the operands are in smi_handler. */
#define SMI_MSR		2
#define SMI_EAX		8
#define SMI_EDX		14
#define SMI_PREFIX	18

/* KVM emulates the instruction after this. */
static const u8 emulation_prefix[] = { 0x0f, 0x0b, 'k', 'v', 'm' };

static const u8 smi_handler[] = {
	0x66, 0xb9, 0, 0, 0, 0,		/* mov $MSR, %ecx */
	0x66, 0xb8, 0, 0, 0, 0,		/* mov $low, %eax */
	0x66, 0xba, 0, 0, 0, 0,		/* mov $high, %edx */
	0x90, 0x90, 0x90, 0x90, 0x90,	/* nop, or KVM_FEP */
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

static void test_smm(bool emulate)
{
	struct kvm_vcpu *vcpu;
	struct area_test test;
	u8 *smm_mem, *handler;
	u32 half;

	area_init(&test, 1);
	vcpu = test.vcpu;
	enable_exits(test.vm, 1);
	setup_smram(test.vm, vcpu, SMRAM_GPA, smi_handler, sizeof(smi_handler));
	handler = addr_gpa2hva(test.vm, SMRAM_GPA) + 0x8000;
	half = (u32)DESC_GPA;
	memcpy(handler + SMI_EAX, &half, sizeof(half));
	half = DESC_GPA >> 32;
	memcpy(handler + SMI_EDX, &half, sizeof(half));
	if (emulate)
		memcpy(handler + SMI_PREFIX, emulation_prefix, sizeof(emulation_prefix));

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
	kvm_munmap(smm_mem, WINDOW_SIZE);
}

TEST(smm)
{
	if (!kvm_has_cap(KVM_CAP_X86_SMM))
		SKIP(return, "No SMM");
	test_smm(false);
}

TEST(smm_emulated)
{
	char saved[16];

	if (!kvm_has_cap(KVM_CAP_X86_SMM))
		SKIP(return, "No SMM");
	if (!set_param(FEP_PARAM, "1", saved, sizeof(saved)))
		SKIP(return, "Cannot force emulation");
	test_smm(true);
	write_attr(FEP_PARAM, saved);
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

static void l1_intercepting_code(struct svm_test_data *svm)
{
	generic_svm_setup(svm, l2_code);
	svm->vmcb->control.intercept |= BIT_ULL(INTERCEPT_MSR_PROT);
	/* All MSRs that the permission map does not have are intercepted. */
	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_ASSERT_EQ(svm->vmcb->control.exit_code, SVM_EXIT_MSR);
	GUEST_SYNC(0);
}

/* Where L1 intercepts the MSR, the exit is L1's, and nothing happens. */
TEST(nested_intercepted)
{
	static const u32 types[] = { STEAL_TIME, VMM_TYPE };
	struct area_test test;
	int i;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No SVM");

	for (i = 0; i < ARRAY_SIZE(types); i++) {
		area_init(&test, 1);
		enable_exits(test.vm, 1);
		vcpu_alloc_nested(test.vm, test.vcpu);
		vcpu_arch_set_entry_point(test.vcpu, l1_intercepting_code);
		set_desc_at(&test, DESC_GPA, STEAL_GPA, 64, types[i]);
		start_op(test.vcpu, true, false, REGISTER, DESC_GPA);
		guest_op(test.vcpu)->vector = 0;
		op_vector(test.vcpu);
		TEST_ASSERT_EQ(result_at(&test, DESC_GPA), NO_ANSWER);
		TEST_ASSERT_EQ(vcpu_get_msr(test.vcpu, MSR_KVM_STEAL_TIME), 0);
		area_free(&test);
	}
}

/* An entry of VMX's lists of MSRs to load. */
struct msr_entry {
	u32 index;
	u32 reserved;
	u64 value;
};

#define LIST_GPA	(DESC_GPA + 0x800)

static void l2_vmcall_code(void)
{
	vmcall();
}

static void l2_sync_code(void)
{
	GUEST_SYNC(0);
}

static void setup_vmx(struct vmx_pages *vmx, void *l2)
{
	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	GUEST_ASSERT(load_vmcs(vmx));
	prepare_vmcs(vmx, l2);
}

/* Has L2 entered with a command in the list. */
static void l1_entry_list_code(struct vmx_pages *vmx, u64 exit_reason)
{
	setup_vmx(vmx, l2_vmcall_code);
	GUEST_ASSERT(!vmwrite(VM_ENTRY_MSR_LOAD_ADDR, LIST_GPA));
	GUEST_ASSERT(!vmwrite(VM_ENTRY_MSR_LOAD_COUNT, 1));
	GUEST_ASSERT(!vmlaunch());
	GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), exit_reason);
	GUEST_SYNC(0);
}

static void launch_with_exit_list(struct vmx_pages *vmx, void *l2)
{
	setup_vmx(vmx, l2);
	GUEST_ASSERT(!vmwrite(VM_EXIT_MSR_LOAD_ADDR, LIST_GPA));
	GUEST_ASSERT(!vmwrite(VM_EXIT_MSR_LOAD_COUNT, 1));
	GUEST_ASSERT(!vmlaunch());
}

/* Has L2 exit to L1 with a command in the list. */
static void l1_exit_list_code(struct vmx_pages *vmx, u64 exit_reason)
{
	launch_with_exit_list(vmx, l2_vmcall_code);
	GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), exit_reason);
	GUEST_SYNC(0);
}

/* Leaves L2 for the VMM, with a command in the list for the exit from L2. */
static void l1_pending_exit_list_code(struct vmx_pages *vmx)
{
	launch_with_exit_list(vmx, l2_sync_code);
}

static void init_list(struct area_test *test, void *l1, u32 type, u64 exit_reason)
{
	gva_t vmx;

	area_init(test, 1);
	enable_exits(test->vm, 1);
	set_desc_at(test, DESC_GPA, STEAL_GPA, 64, type);
	*(struct msr_entry *)area_hva(test, LIST_GPA) = (struct msr_entry) {
		.index = REGISTER,
		.value = DESC_GPA,
	};
	vcpu_alloc_vmx(test->vm, &vmx);
	vcpu_args_set(test->vcpu, 2, vmx, exit_reason);
	vcpu_arch_set_entry_point(test->vcpu, l1);
	vcpu_run(test->vcpu);
	guest_op(test->vcpu)->vector = 0;
}

/* KVM's types are served, the VMM's make the load fail. */
TEST(vmx_lists)
{
	struct area_test test;

	if (!kvm_cpu_has(X86_FEATURE_VMX))
		SKIP(return, "No VMX");

	init_list(&test, l1_entry_list_code, STEAL_TIME, EXIT_REASON_VMCALL);
	op_vector(test.vcpu);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), KVM_MEM_AREA_OK);
	TEST_ASSERT_EQ(vcpu_get_msr(test.vcpu, MSR_KVM_STEAL_TIME), STEAL_GPA | 1);
	area_free(&test);

	init_list(&test, l1_entry_list_code, VMM_TYPE, EXIT_REASON_MSR_LOAD_FAIL | BIT(31));
	op_vector(test.vcpu);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), NO_ANSWER);
	area_free(&test);

	init_list(&test, l1_exit_list_code, STEAL_TIME, EXIT_REASON_VMCALL);
	op_vector(test.vcpu);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), KVM_MEM_AREA_OK);
	check_msrs(test.vcpu, 0, 0, STEAL_GPA | 1);
	area_free(&test);

	/* L1 cannot be told that a load has failed on the way out of L2. */
	init_list(&test, l1_exit_list_code, VMM_TYPE, 0);
	TEST_ASSERT_KVM_EXIT_REASON(test.vcpu, KVM_EXIT_SHUTDOWN);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), NO_ANSWER);
	area_free(&test);
}

/* A vCPU that is destroyed in L2 leaves that, and gives no commands any more. */
TEST(vmx_list_of_destroyed_vcpu)
{
	struct area_test test;

	if (!kvm_cpu_has(X86_FEATURE_VMX))
		SKIP(return, "No VMX");

	init_list(&test, l1_pending_exit_list_code, STEAL_TIME, 0);
	op_vector(test.vcpu);
	kvm_vm_free(test.vm);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), NO_ANSWER);
	kvm_munmap(test.mem, WINDOW_SIZE);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA));

	return test_harness_run(argc, argv);
}
