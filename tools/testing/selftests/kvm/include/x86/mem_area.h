/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A guest that accesses MSRs as the host tells it, for tests of memory areas.
 *
 * Descriptors and areas are in a window of guest physical memory that only the
 * host and KVM access.
 */
#ifndef SELFTEST_KVM_MEM_AREA_H
#define SELFTEST_KVM_MEM_AREA_H

#include <string.h>

#include "attr_util.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

/* Needs the types of the above. */
#include <asm/pvclock-abi.h>

#define REGISTER	MSR_KVM_REGISTER_MEM_AREA
#define UNREGISTER	MSR_KVM_UNREGISTER_MEM_AREA

#define WALL_CLOCK	KVM_MEM_AREA_TYPE_WALL_CLOCK
#define SYSTEM_TIME	KVM_MEM_AREA_TYPE_SYSTEM_TIME
#define STEAL_TIME	KVM_MEM_AREA_TYPE_STEAL_TIME
#define VMM_TYPE	KVM_MEM_AREA_TYPE_VMM

#define NO_ANSWER	KVM_MEM_AREA_NO_ANSWER

#define X86_FEATURE_KVM_MEM_AREA \
	KVM_X86_CPU_FEATURE(0x40000001, 0, EAX, KVM_FEATURE_MEM_AREA)

#define X86_FEATURE_KVM_STEAL_TIME_BIT \
	KVM_X86_CPU_FEATURE(0x40000001, 0, EAX, KVM_FEATURE_STEAL_TIME)

#define X86_FEATURE_KVM_CLOCKSOURCE2_BIT \
	KVM_X86_CPU_FEATURE(0x40000001, 0, EAX, KVM_FEATURE_CLOCKSOURCE2)

#define FEP_PARAM	"/sys/module/kvm/parameters/force_emulation_prefix"
#define IGNORE_PARAM	"/sys/module/kvm/parameters/ignore_msrs"

/* The window, and what the tests have in it. */
#define AREA_SLOT	10
#define WINDOW_GPA	0x100000000ul
#define WINDOW_PAGES	1024ul
#define WINDOW_SIZE	(WINDOW_PAGES * PAGE_SIZE)
#define DESC_GPA	WINDOW_GPA
#define AREA_GPA	(WINDOW_GPA + 16 * PAGE_SIZE)
#define WALL_GPA	AREA_GPA
#define TIME_GPA	(AREA_GPA + 64)
#define STEAL_GPA	(AREA_GPA + 128)

#define MAX_AREA_VCPUS	4

struct guest_op {
	u64 value;
	u32 msr;
	bool write;
	/* Have KVM emulate the instruction. */
	bool emulate;
	/* The guest's answer: the exception, or 0. */
	u8 vector;
};

static struct guest_op guest_ops[MAX_AREA_VCPUS];

static inline u8 guest_do_op(struct guest_op *op)
{
	u64 value = op->value;

	if (!op->write)
		return op->emulate ? rdmsr_safe_fep(op->msr, &op->value) :
				     rdmsr_safe(op->msr, &op->value);
	if (op->emulate)
		return kvm_asm_safe_fep("wrmsr", "a"((u32)value),
					"d"(value >> 32), "c"(op->msr));
	return wrmsr_safe(op->msr, value);
}

static inline void guest_area_code(int id)
{
	struct guest_op *op = &guest_ops[id];

	for (;;) {
		op->vector = guest_do_op(op);
		GUEST_SYNC(0);
	}
}

struct area_test {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[MAX_AREA_VCPUS];
	struct kvm_vcpu *vcpu;
	/* The host's view of the window. */
	u8 *mem;
};

static inline struct guest_op *guest_op(struct kvm_vcpu *vcpu)
{
	struct guest_op *ops = addr_gva2hva(vcpu->vm, (gva_t)guest_ops);

	return &ops[vcpu->id];
}

static inline void *area_hva(struct area_test *test, gpa_t gpa)
{
	return test->mem + (gpa - WINDOW_GPA);
}

static inline void set_area_slot(struct area_test *test, u32 slot, u32 flags,
				 gpa_t gpa, u64 size)
{
	vm_set_user_memory_region(test->vm, slot, flags, gpa, size,
				  area_hva(test, gpa));
}

static inline void area_init(struct area_test *test, int nr_vcpus)
{
	int i;

	test->vm = vm_create_with_vcpus(nr_vcpus, guest_area_code, test->vcpus);
	test->vcpu = test->vcpus[0];
	for (i = 0; i < nr_vcpus; i++) {
		vcpu_args_set(test->vcpus[i], 1, i);
		vcpu_set_cpuid_feature(test->vcpus[i], X86_FEATURE_KVM_MEM_AREA);
	}
	test->mem = kvm_mmap(WINDOW_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, WINDOW_SIZE);
}

static inline void area_free(struct area_test *test)
{
	kvm_vm_free(test->vm);
	kvm_munmap(test->mem, WINDOW_SIZE);
}

static inline int __enable_exits(struct kvm_vm *vm, u8 enabled)
{
	struct kvm_area_info info = { .enabled = enabled };

	return __vm_ioctl(vm, KVM_USERSPACE_REGISTER_MEM_AREA, &info);
}

static inline void enable_exits(struct kvm_vm *vm, u8 enabled)
{
	int ret = __enable_exits(vm, enabled);

	TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_USERSPACE_REGISTER_MEM_AREA, ret, vm);
}

static inline void set_desc_at(struct area_test *test, gpa_t desc, u64 base,
			       u32 size, u32 type)
{
	*(struct kvm_memory_area *)area_hva(test, desc) = (struct kvm_memory_area) {
		.base = base,
		.size = size,
		.type = type,
		.result = NO_ANSWER,
	};
}

static inline u8 result_at(struct area_test *test, gpa_t desc)
{
	return READ_ONCE(((struct kvm_memory_area *)area_hva(test, desc))->result);
}

/* Lets the vCPU access an MSR, until the next exit. */
static inline void start_op(struct kvm_vcpu *vcpu, bool write, bool emulate,
			    u32 msr, u64 value)
{
	*guest_op(vcpu) = (struct guest_op) {
		.value = value,
		.msr = msr,
		.write = write,
		.emulate = emulate,
		.vector = 0xff,
	};
	vcpu_run(vcpu);
}

/* Returns the exception that the access has given, or 0. */
static inline u8 op_vector(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	TEST_ASSERT(guest_op(vcpu)->vector != 0xff, "The guest did nothing");
	return guest_op(vcpu)->vector;
}

static inline u8 do_wrmsr(struct kvm_vcpu *vcpu, bool emulate, u32 msr, u64 value)
{
	start_op(vcpu, true, emulate, msr, value);
	return op_vector(vcpu);
}

static inline u8 do_rdmsr(struct kvm_vcpu *vcpu, bool emulate, u32 msr, u64 *value)
{
	u8 vector;

	start_op(vcpu, false, emulate, msr, 0);
	vector = op_vector(vcpu);
	*value = guest_op(vcpu)->value;
	return vector;
}

/* Returns the number of MSRs that the host could read: 0 or 1. */
static inline int try_get_msr(struct kvm_vcpu *vcpu, u32 msr)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} buf = {
		.header.nmsrs = 1,
		.entry.index = msr,
	};

	return __vcpu_ioctl(vcpu, KVM_GET_MSRS, &buf.header);
}

/* Executes a command that does not exit, and returns its result. */
static inline u8 area_command(struct area_test *test, bool emulate, u32 msr,
			      u64 base, u32 size, u32 type)
{
	set_desc_at(test, DESC_GPA, base, size, type);
	TEST_ASSERT_EQ(do_wrmsr(test->vcpu, emulate, msr, DESC_GPA), 0);
	return result_at(test, DESC_GPA);
}

/* Registers an area of each type that KVM serves. */
static inline void register_areas(struct area_test *test, bool emulate)
{
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, WALL_GPA, 12, WALL_CLOCK), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, TIME_GPA, 32, SYSTEM_TIME), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, STEAL_GPA, 64, STEAL_TIME), 0);
}

static inline void check_msrs(struct kvm_vcpu *vcpu, u64 wall, u64 time, u64 steal)
{
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_WALL_CLOCK_NEW), wall);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_SYSTEM_TIME_NEW), time);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_STEAL_TIME), steal);
}

/* Starts a command that the VMM serves, and checks what it is told. */
static inline struct kvm_x86_msr_op *start_command(struct area_test *test,
						   bool emulate, u32 msr,
						   u64 base, u32 size, u32 type)
{
	struct kvm_x86_msr_op *op = &test->vcpu->run->msr_op;

	set_desc_at(test, DESC_GPA, base, size, type);
	memset(op, 0xaa, sizeof(*op));
	start_op(test->vcpu, true, emulate, msr, DESC_GPA);
	TEST_ASSERT_KVM_EXIT_REASON(test->vcpu, KVM_EXIT_X86_MSR_OP);
	TEST_ASSERT_EQ(op->msr_data, DESC_GPA);
	TEST_ASSERT_EQ(op->base, base);
	TEST_ASSERT_EQ(op->size, size);
	TEST_ASSERT_EQ(op->type, type);
	TEST_ASSERT_EQ(op->index, msr);
	TEST_ASSERT_EQ(op->error, 0);
	TEST_ASSERT_EQ(op->result, KVM_MEM_AREA_UNKNOWN_TYPE);
	TEST_ASSERT_EQ(op->pad[0], 0);
	TEST_ASSERT_EQ(op->pad[1], 0);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), NO_ANSWER);
	return op;
}

/* Starts the command to unregister everything, and checks what the VMM is told. */
static inline struct kvm_x86_msr_op *start_unregister_all(struct kvm_vcpu *vcpu,
							  bool emulate)
{
	struct kvm_x86_msr_op *op = &vcpu->run->msr_op;

	memset(op, 0xaa, sizeof(*op));
	start_op(vcpu, true, emulate, UNREGISTER, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_X86_MSR_OP);
	TEST_ASSERT_EQ(op->msr_data, 0);
	TEST_ASSERT_EQ(op->base, 0);
	TEST_ASSERT_EQ(op->size, 0);
	TEST_ASSERT_EQ(op->type, 0);
	TEST_ASSERT_EQ(op->index, UNREGISTER);
	TEST_ASSERT_EQ(op->error, 0);
	TEST_ASSERT_EQ(op->result, KVM_MEM_AREA_UNKNOWN_TYPE);
	return op;
}

/* Runs the vCPU again after an exit, and returns the guest's exception or 0. */
static inline u8 finish_command(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	return op_vector(vcpu);
}

/*
 * Sets a parameter of the kvm module while the test runs.  Returns whether it
 * could; @saved has the old value then.
 */
static inline bool set_param(const char *param, const char *value, char *saved,
			     size_t size)
{
	return read_attr(param, saved, size) && write_attr(param, value);
}

#endif /* SELFTEST_KVM_MEM_AREA_H */
