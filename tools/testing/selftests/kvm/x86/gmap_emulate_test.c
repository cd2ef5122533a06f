// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): accesses that KVM makes for the guest, as it
 * emulates an instruction, to segments that are not mapped.
 *
 * Such an access exits before it has changed anything, and the guest executes the
 * instruction again when userspace has mapped the segment.
 */
#include "attr_util.h"
#include "gmap_guest.h"
#include "hyperv.h"
#include "kvm_test_harness.h"

#define FEP_PARAM	"/sys/module/kvm/parameters/force_emulation_prefix"

/* The guest has the segments around it. */
#define HOLE_GPA	(DATA_GPA + SEGMENT)
#define NR_SEGMENTS	3

#define BEFORE		0x0123456789abcdeful
#define VALUE		0x1111222233334444ul

#define STRING_PORT	0x81
#define FEP_LEN		5

FIXTURE(emulate)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *mem;
};

#define test_data FIXTURE_DATA(emulate)

FIXTURE_SETUP(emulate)
{
	if (!write_attr(FEP_PARAM, "1"))
		SKIP(return, "Cannot force emulation");
	self->vm = gmap_vm_with_guest(&self->vcpu);
	self->mem = segments_alloc(NR_SEGMENTS);
	gmap_map(self->vcpu, self->mem, DATA_GPA, NR_SEGMENTS * SEGMENT);
	gmap_unmap(self->vcpu, HOLE_GPA, SEGMENT);
}

FIXTURE_TEARDOWN(emulate)
{
	kvm_vm_free(self->vm);
	write_attr(FEP_PARAM, "0");
}

static void map_hole(test_data *self)
{
	gmap_map(self->vcpu, self->mem + SEGMENT, HOLE_GPA, SEGMENT);
}

static void unmap_hole(test_data *self)
{
	gmap_unmap(self->vcpu, HOLE_GPA, SEGMENT);
}

static u8 *mem_at(test_data *self, gpa_t gpa)
{
	return self->mem + (gpa - DATA_GPA);
}

static u64 word_at(test_data *self, gpa_t gpa)
{
	u64 word;

	memcpy(&word, mem_at(self, gpa), sizeof(word));
	return word;
}

static void set_word(test_data *self, gpa_t gpa, u64 word)
{
	memcpy(mem_at(self, gpa), &word, sizeof(word));
}

/* Functions whose instruction after FEP accesses the word at rdi; rsi has VALUE. */
/* Where guest_cmpxchg() finds what to compare with. */
u64 expected = BEFORE;

static __guest_asm void guest_load(void)
{
	asm(KVM_FEP "mov (%rdi), %rax\n"
	    "ret");
}

static __guest_asm void guest_store(void)
{
	asm(KVM_FEP "mov %rsi, (%rdi)\n"
	    "ret");
}

static __guest_asm void guest_add(void)
{
	asm(KVM_FEP "add %rsi, (%rdi)\n"
	    "ret");
}

static __guest_asm void guest_xchg(void)
{
	asm("mov %rsi, %rax\n"
	    KVM_FEP "xchg %rax, (%rdi)\n"
	    "ret");
}

static __guest_asm void guest_cmpxchg(void)
{
	asm("mov (expected), %rax\n"
	    KVM_FEP "lock cmpxchg %rsi, (%rdi)\n"
	    "ret");
}

static __guest_asm void guest_push(void)
{
	asm("mov %rsp, %rdx\n"
	    "lea 8(%rdi), %rsp\n"
	    KVM_FEP "push %rsi\n"
	    "mov %rsp, %rax\n"
	    "sub %rdi, %rax\n"
	    "mov %rdx, %rsp\n"
	    "ret");
}

static __guest_asm void guest_pop(void)
{
	asm("mov %rsp, %rdx\n"
	    "mov %rdi, %rsp\n"
	    KVM_FEP "pop %rax\n"
	    "mov %rdx, %rsp\n"
	    "ret");
}

static __guest_asm void guest_stos(void)
{
	asm("mov %rsi, %rax\n"
	    "mov %rdi, %rdx\n"
	    KVM_FEP "stosq\n"
	    "sub %rdx, %rdi\n"
	    "mov %rdi, %rax\n"
	    "ret");
}

static __guest_asm void guest_movs_to(void)
{
	asm("push %rsi\n"
	    "mov %rsp, %rsi\n"
	    "mov %rdi, %rdx\n"
	    KVM_FEP "movsq\n"
	    "pop %rax\n"
	    "sub %rdx, %rdi\n"
	    "mov %rdi, %rax\n"
	    "ret");
}

static __guest_asm void guest_movs_from(void)
{
	asm("mov %rdi, %rsi\n"
	    "lea -0x80(%rsp), %rdi\n"
	    KVM_FEP "movsq\n"
	    "mov -0x80(%rsp), %rax\n"
	    "ret");
}

static __guest_asm void guest_cmp(void)
{
	asm("xor %eax, %eax\n"
	    KVM_FEP "cmp %rsi, (%rdi)\n"
	    "setb %al\n"
	    "ret");
}

static const struct access {
	const char *name;
	void *fn;
	u64 after, result;
} accesses[] = {
	{ "load", guest_load, BEFORE, BEFORE },
	{ "store", guest_store, VALUE, 0 },
	{ "add", guest_add, BEFORE + VALUE, 0 },
	{ "xchg", guest_xchg, VALUE, BEFORE },
	{ "cmpxchg", guest_cmpxchg, VALUE, BEFORE },
	{ "push", guest_push, VALUE, 0 },
	{ "pop", guest_pop, BEFORE, BEFORE },
	{ "stos", guest_stos, VALUE, 8 },
	{ "movs to", guest_movs_to, VALUE, 8 },
	{ "movs from", guest_movs_from, BEFORE, BEFORE },
	{ "cmp", guest_cmp, BEFORE, 1 },
};

static void check_word(test_data *self, const struct access *access,
		       gpa_t gpa, u64 want, const char *when)
{
	TEST_ASSERT(word_at(self, gpa) == want,
		    "%s at 0x%lx, %s: the word is 0x%lx instead of 0x%lx",
		    access->name, gpa, when, word_at(self, gpa), want);
}

/* The access, to a word of which the page of @missing is in the hole. */
static void test_access(test_data *self, const struct access *access,
			gpa_t gpa, gpa_t missing, bool again)
{
	struct kvm_regs first, second;
	u64 result;

	unmap_hole(self);
	set_word(self, gpa, BEFORE);
	guest_set_call(self->vcpu, access->fn, gpa, VALUE, 0);
	guest_run_to_hole(self->vcpu, missing);
	check_word(self, access, gpa, BEFORE, "exit");
	vcpu_regs_get(self->vcpu, &first);

	if (again) {
		guest_set_call(self->vcpu, access->fn, gpa, VALUE, 0);
		self->vcpu->run->exit_reason = 0;
		guest_run_to_hole(self->vcpu, missing);
		check_word(self, access, gpa, BEFORE, "second exit");
		vcpu_regs_get(self->vcpu, &second);
		TEST_ASSERT(!memcmp(&first, &second, sizeof(first)),
			    "%s at 0x%lx: registers differ", access->name, gpa);
	}

	map_hole(self);
	check_word(self, access, gpa, BEFORE, "mapped");
	result = guest_run(self->vcpu);
	check_word(self, access, gpa, access->after, "done");
	TEST_ASSERT(result == access->result || access->fn == guest_store ||
		    access->fn == guest_add, "%s at 0x%lx: result 0x%lx",
		    access->name, gpa, result);

	/* And as KVM emulates it, with nothing missing. */
	set_word(self, gpa, BEFORE);
	guest_call(self->vcpu, access->fn, gpa, VALUE, 0);
	check_word(self, access, gpa, access->after, "emulated");
}

TEST_F(emulate, inside)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(accesses); i++) {
		test_access(self, &accesses[i], HOLE_GPA + 0x5558,
			    HOLE_GPA + 0x5558, false);
		test_access(self, &accesses[i], HOLE_GPA, HOLE_GPA, true);
	}
}

/* The other half of the word is in memory, and must not change alone. */
TEST_F(emulate, into_hole)
{
	int i, bytes;

	for (i = 0; i < ARRAY_SIZE(accesses); i++)
		for (bytes = 1; bytes < 8; bytes += 3)
			test_access(self, &accesses[i], HOLE_GPA - bytes, HOLE_GPA,
				    bytes == 4);
}

TEST_F(emulate, out_of_hole)
{
	int i, bytes;

	for (i = 0; i < ARRAY_SIZE(accesses); i++)
		for (bytes = 1; bytes < 8; bytes += 3)
			test_access(self, &accesses[i], HOLE_GPA + SEGMENT - bytes,
				    HOLE_GPA + SEGMENT - bytes, bytes == 4);
}

/* Instructions with operands that are longer than a word. */
#define DESCRIPTOR_SIZE	10

static __guest_asm void guest_sgdt(void)
{
	asm(KVM_FEP "sgdt (%rdi)\n"
	    "ret");
}

static __guest_asm void guest_lgdt(void)
{
	asm(KVM_FEP "lgdt (%rdi)\n"
	    "ret");
}

static __guest_asm void guest_sidt(void)
{
	asm(KVM_FEP "sidt (%rdi)\n"
	    "ret");
}

static void test_long_store(test_data *self, void *fn, int first)
{
	u8 *mem = mem_at(self, HOLE_GPA - first);
	int i;

	unmap_hole(self);
	memset(mem, 0x5a, DESCRIPTOR_SIZE);
	guest_set_call(self->vcpu, fn, HOLE_GPA - first, VALUE, 0);
	guest_run_to_hole(self->vcpu, HOLE_GPA);
	for (i = 0; i < DESCRIPTOR_SIZE; i++)
		TEST_ASSERT(mem[i] == 0x5a, "Byte %d has been written", i);
	map_hole(self);
	guest_run(self->vcpu);
	TEST_ASSERT(mem[0] != 0x5a, "Not written");
	/* The upper half of a base address is 0. */
	TEST_ASSERT(!mem[DESCRIPTOR_SIZE - 1], "Not written as a whole");
}

TEST_F(emulate, long_store)
{
	int first;

	for (first = 1; first < DESCRIPTOR_SIZE; first++) {
		test_long_store(self, guest_sgdt, first);
		test_long_store(self, guest_sidt, first);
	}
}

TEST_F(emulate, long_load)
{
	struct kvm_sregs before, after;
	int first;

	vcpu_sregs_get(self->vcpu, &before);
	for (first = 1; first < DESCRIPTOR_SIZE; first++) {
		/* What the GDT is already, with another limit. */
		map_hole(self);
		guest_call(self->vcpu, guest_sgdt, HOLE_GPA - first, 0, 0);
		*mem_at(self, HOLE_GPA - first) += 8;
		unmap_hole(self);
		guest_set_call(self->vcpu, guest_lgdt, HOLE_GPA - first, 0, 0);
		guest_run_to_hole(self->vcpu, HOLE_GPA);
		vcpu_sregs_get(self->vcpu, &after);
		EXPECT_EQ(before.gdt.limit + 8 * (first - 1), after.gdt.limit);
		map_hole(self);
		guest_run(self->vcpu);
		vcpu_sregs_get(self->vcpu, &after);
		EXPECT_EQ(before.gdt.base, after.gdt.base);
		EXPECT_EQ(before.gdt.limit + 8 * first, after.gdt.limit);
	}
}

/* "mov $value, %eax; ret" for KVM to emulate. */
static void put_emulated_function(u8 *code, u32 value)
{
	memcpy(code, "\x0f\x0bkvm", FEP_LEN);
	put_function(code + FEP_LEN, value);
}

/* The instruction begins in the hole, or ends there. */
TEST_F(emulate, fetch)
{
	int i;

	for (i = 0; i < 5; i++) {
		unmap_hole(self);
		put_emulated_function(mem_at(self, HOLE_GPA) - FEP_LEN - i, 0xfe7c4 + i);
		guest_set_call(self->vcpu, guest_call_at, HOLE_GPA - FEP_LEN - i, 0, 0);
		exit_and_map(self->vcpu, HOLE_GPA, self->mem + SEGMENT);
		EXPECT_EQ(0xfe7c4 + i, guest_run(self->vcpu));
	}
}

/* KVM needs nothing of the hole after the instruction that it emulates. */
TEST_F(emulate, fetch_before_hole)
{
	u8 *end = mem_at(self, HOLE_GPA);
	u8 ret[] = { 0xb8, 0xde, 0xc0, 0, 0, 0x0f, 0x0b, 'k', 'v', 'm', 0xc3 };
	u8 cpuid[] = { 0x31, 0xc0, 0x31, 0xc9, 0x0f, 0xa2 };
	u8 out[] = { 0xba, STRING_PORT, 0, 0, 0, 0x48, 0x89, 0xe6, 0x6e };
	struct kvm_regs regs;

	memcpy(end - sizeof(ret), ret, sizeof(ret));
	EXPECT_EQ(0xc0de, guest_call(self->vcpu, guest_call_at,
				     HOLE_GPA - sizeof(ret), 0, 0));

	/* The exit is for the instruction after it. */
	memcpy(end - sizeof(cpuid), cpuid, sizeof(cpuid));
	guest_set_call(self->vcpu, guest_call_at, HOLE_GPA - sizeof(cpuid), 0, 0);
	guest_run_to_hole(self->vcpu, HOLE_GPA);
	vcpu_regs_get(self->vcpu, &regs);
	EXPECT_EQ(HOLE_GPA, regs.rip);
	EXPECT_NE(0, regs.rax);

	memcpy(end - sizeof(out), out, sizeof(out));
	guest_set_call(self->vcpu, guest_call_at, HOLE_GPA - sizeof(out), 0, 0);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	guest_run_to_hole(self->vcpu, HOLE_GPA);
	vcpu_regs_get(self->vcpu, &regs);
	EXPECT_EQ(HOLE_GPA, regs.rip);
}

/* KVM walks the guest's page tables for an access that it makes. */
TEST_F(emulate, page_tables)
{
	u8 *table_mem[NR_LEVELS + 1];
	int level;

	set_word(self, DATA_GPA, 0x7ab1e);
	set_up_tables(self->vcpu, table_mem);
	/* The processor needs the root for the instruction. */
	gmap_map(self->vcpu, table_mem[4], TABLE_GPA(4), SEGMENT);
	for (level = NR_LEVELS - 1; level >= 1; level--) {
		guest_set_call(self->vcpu, guest_load, MAPPED_GVA, 0, 0);
		guest_run_to_hole(self->vcpu, TABLE_GPA(level));
		guest_set_call(self->vcpu, guest_store, MAPPED_GVA, VALUE, 0);
		guest_run_to_hole(self->vcpu, TABLE_GPA(level));
		gmap_map(self->vcpu, table_mem[level], TABLE_GPA(level), SEGMENT);
	}
	EXPECT_EQ(0x7ab1e, guest_call(self->vcpu, guest_load, MAPPED_GVA, 0, 0));

	/* A store across pages of which the second one's table is missing. */
	boot_write(table_mem[2], 0, 1, TABLE_GPA(5) | PTE_BITS);
	boot_write(table_mem[1], 0, 511, (DATA_GPA + 2 * SEGMENT) | PTE_BITS);
	set_word(self, DATA_GPA + 2 * SEGMENT + PAGE_SIZE - 8, BEFORE);
	guest_set_call(self->vcpu, guest_store, MAPPED_GVA + SZ_2M - 4, VALUE, 0);
	guest_run_to_hole(self->vcpu, TABLE_GPA(5));
	EXPECT_EQ(BEFORE, word_at(self, DATA_GPA + 2 * SEGMENT + PAGE_SIZE - 8));
}

/* Outputs 8 bytes. */
static __guest_asm void guest_outs(void)
{
	asm("mov %rdi, %rsi\n"
	    "mov $8, %ecx\n"
	    "mov $0x81, %edx\n"
	    "rep outsb\n"
	    "mov %rcx, %rax\n"
	    "ret");
}

/* Inputs 8 bytes. */
static __guest_asm void guest_ins(void)
{
	asm("mov $8, %ecx\n"
	    "mov $0x81, %edx\n"
	    "rep insb\n"
	    "mov %rcx, %rax\n"
	    "ret");
}

static bool is_string_io(struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_IO && run->io.port == STRING_PORT;
}

/* Each byte comes out once. */
TEST_F(emulate, outs)
{
	struct kvm_run *run = self->vcpu->run;
	u8 out[8] = {}, *data = (u8 *)run;
	gpa_t gpa = HOLE_GPA - 3;
	int i, holes = 0, nr = 0;

	for (i = 0; i < 8; i++)
		*mem_at(self, gpa + i) = i + 1;
	guest_set_call(self->vcpu, guest_outs, gpa, 0, 0);
	for (;;) {
		vcpu_run(self->vcpu);
		if (is_guest_sync(self->vcpu))
			break;
		if (is_string_io(run)) {
			for (i = 0; i < run->io.count && nr < 8; i++)
				out[nr++] = data[run->io.data_offset + i];
			continue;
		}
		assert_hole_exit(self->vcpu, HOLE_GPA);
		EXPECT_EQ(3, nr);
		if (++holes == 2)
			map_hole(self);
	}
	EXPECT_EQ(2, holes);
	EXPECT_EQ(0, guest_rax(self->vcpu));
	for (i = 0; i < 8; i++)
		EXPECT_EQ(i + 1, out[i]);
}

/*
 * What the device has given for an address without memory is lost, as documented.
 * All bytes in memory are from the device, in order, and it has given none after
 * the last one.
 */
TEST_F(emulate, ins)
{
	struct kvm_run *run = self->vcpu->run;
	u8 *data = (u8 *)run, given = 0, last = 0, byte;
	gpa_t gpa = HOLE_GPA - 3;
	int i, holes = 0;

	guest_set_call(self->vcpu, guest_ins, gpa, 0, 0);
	for (;;) {
		vcpu_run(self->vcpu);
		if (is_guest_sync(self->vcpu))
			break;
		if (is_string_io(run)) {
			TEST_ASSERT(given < 100, "The guest does not get on");
			for (i = 0; i < run->io.count; i++)
				data[run->io.data_offset + i] = ++given;
			continue;
		}
		assert_hole_exit(self->vcpu, HOLE_GPA);
		for (i = 0; i < 3; i++)
			EXPECT_EQ(i + 1, *mem_at(self, gpa + i));
		EXPECT_EQ(0, *mem_at(self, gpa + 3));
		if (++holes == 2)
			map_hole(self);
	}
	EXPECT_EQ(2, holes);
	EXPECT_EQ(0, guest_rax(self->vcpu));
	for (i = 0; i < 8; i++) {
		byte = *mem_at(self, gpa + i);
		EXPECT_GT(byte, last);
		last = byte;
	}
	EXPECT_EQ(given, last);
}

/* Inputs 8 dwords, downwards if rsi is not 0. */
static __guest_asm void guest_insd(void)
{
	asm("test %rsi, %rsi\n"
	    "jz 0f\n"
	    "std\n"
	    "0: mov $8, %ecx\n"
	    "mov $0x81, %edx\n"
	    "rep insl\n"
	    "cld\n"
	    "mov %rcx, %rax\n"
	    "ret");
}

/* What the device gives is not lost where dwords reach into the hole. */
static void test_insd(test_data *self, gpa_t gpa, bool down)
{
	struct kvm_run *run = self->vcpu->run;
	u32 given = 0, dword, *data;
	int i, holes = 0;

	unmap_hole(self);
	guest_set_call(self->vcpu, guest_insd, gpa, down, 0);
	for (;;) {
		vcpu_run(self->vcpu);
		if (is_guest_sync(self->vcpu))
			break;
		if (is_string_io(run)) {
			data = (u32 *)((u8 *)run + run->io.data_offset);
			for (i = 0; i < run->io.count; i++)
				data[i] = ++given;
			continue;
		}
		TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_S390_UCONTROL);
		if (++holes == 2)
			map_hole(self);
	}
	TEST_ASSERT_EQ(holes, 2);
	TEST_ASSERT_EQ(given, 8);
	TEST_ASSERT_EQ(guest_rax(self->vcpu), 0);
	for (i = 0; i < 8; i++) {
		memcpy(&dword, mem_at(self, gpa + (down ? -4 : 4) * i), sizeof(dword));
		TEST_ASSERT(dword == i + 1, "Dword %d at 0x%lx%s is %u", i, gpa,
			    down ? ", downwards" : "", dword);
	}
}

TEST_F(emulate, insd)
{
	int i;

	for (i = 1; i < 28; i++) {
		test_insd(self, HOLE_GPA - i, false);
		test_insd(self, HOLE_GPA + SEGMENT - 4 + i, true);
	}
}

/* Something is mapped where the instruction is, but there is no memory. */
TEST_F(emulate, fetch_without_memory)
{
	u8 *page = mem_at(self, DATA_GPA + PAGE_SIZE);

	put_emulated_function(page - FEP_LEN, 0x1234);
	TEST_ASSERT(!mprotect(page, PAGE_SIZE, PROT_NONE), "mprotect() failed");
	guest_set_call(self->vcpu, guest_call_at, DATA_GPA + PAGE_SIZE - FEP_LEN, 0, 0);
	guest_run_fails(self->vcpu, EFAULT);

	TEST_ASSERT(!mprotect(page, PAGE_SIZE, PROT_READ | PROT_WRITE),
		    "mprotect() failed");
	EXPECT_EQ(0x1234, guest_run(self->vcpu));
}

/* A store across pages of which the first one raises #PF does not get to the hole. */
TEST_F(emulate, page_fault_before_hole)
{
	u8 *table_mem[NR_LEVELS + 1];
	int level;

	set_up_tables(self->vcpu, table_mem);
	for (level = 1; level <= NR_LEVELS; level++)
		gmap_map(self->vcpu, table_mem[level], TABLE_GPA(level), SEGMENT);
	boot_write(table_mem[1], 0, 0, 0);
	boot_write(table_mem[1], 0, 1, HOLE_GPA | PTE_BITS);
	guest_set_call(self->vcpu, guest_store, MAPPED_GVA + PAGE_SIZE - 4, VALUE, 0);
	vcpu_run(self->vcpu);
	/* There is no IDT. */
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_SHUTDOWN);
}

/* The input of a hypercall is at rdi.  rsi tells which instruction calls. */
static __guest_asm void guest_hv_flush(void)
{
	asm("mov $2, %ecx\n"
	    "mov %rdi, %rdx\n"
	    "xor %r8d, %r8d\n"
	    "test %rsi, %rsi\n"
	    "jz 0f\n"
	    "vmcall\n"
	    "ret\n"
	    "0: vmmcall\n"
	    "ret");
}

/* The guest makes the hypercall again when its input is there. */
TEST_F(emulate, hyperv_input)
{
	const u64 input[] = { 0, 1 /* all processors */, 0 };

	if (!kvm_has_cap(KVM_CAP_HYPERV_CPUID))
		SKIP(return, "No Hyper-V");
	vcpu_set_hv_cpuid(self->vcpu);
	vcpu_set_msr(self->vcpu, HV_X64_MSR_GUEST_OS_ID, 0x5a);
	vcpu_set_msr(self->vcpu, HV_X64_MSR_HYPERCALL, DATA_GPA | 1);
	memcpy(mem_at(self, HOLE_GPA), input, sizeof(input));

	guest_set_call(self->vcpu, guest_hv_flush, HOLE_GPA, host_cpu_is_intel, 0);
	exit_and_map(self->vcpu, HOLE_GPA, self->mem + SEGMENT);
	EXPECT_EQ(0, guest_run(self->vcpu) & 0xffff);
}

static u64 guest_wrmsr(u32 msr, u64 value)
{
	wrmsr(msr, value);
	return 0;
}

/* Nor does a write of the MSR exit as one that userspace completes. */
TEST_F(emulate, hyperv_page)
{
	struct kvm_vcpu *vcpu = self->vcpu;

	if (!kvm_has_cap(KVM_CAP_HYPERV_CPUID) || !kvm_has_cap(KVM_CAP_X86_USER_SPACE_MSR))
		SKIP(return, "No Hyper-V");
	vm_enable_cap(self->vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL);
	vcpu_set_hv_cpuid(vcpu);
	vcpu_set_msr(vcpu, HV_X64_MSR_GUEST_OS_ID, 0x5a);

	guest_set_call(vcpu, guest_wrmsr, HV_X64_MSR_HYPERCALL, HOLE_GPA | 1, 0);
	exit_and_map(vcpu, HOLE_GPA, self->mem + SEGMENT);
	guest_run(vcpu);
	EXPECT_EQ(HOLE_GPA | 1, vcpu_get_msr(vcpu, HV_X64_MSR_HYPERCALL));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());
	TEST_REQUIRE(write_attr(FEP_PARAM, "0"));

	return test_harness_run(argc, argv);
}
