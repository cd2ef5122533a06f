// SPDX-License-Identifier: GPL-2.0-only
/*
 * vCPUs with address spaces of their own: instructions that access memory more
 * than once, or in another way than by a word, in all modes of the processor, where
 * KVM emulates them and a segment is missing.
 *
 * Each is carried out with its memory mapped, which says what has to come of it,
 * and then with each split of its memory between a segment that is mapped and one
 * that is missing.
 */
#include <linux/kernel.h>

#include "attr_util.h"
#include "gmap_guest.h"
#include "kvm_test_harness.h"

#define FEP_PARAM	"/sys/module/kvm/parameters/force_emulation_prefix"

#define FEP_LEN		5

#define NR_SEGMENTS	3
#define HOLE_GPA	(DATA_GPA + SEGMENT)
/* The longest operand is that of FXSAVE. */
#define MAX_SIZE	288

/* In the guest's own segment. */
#define BOOT_PAE_PDPT	0x8000
/* At 0, where real mode can jump to. */
#define LOW_CODE	0x500
#define LOW_IDT		0
#define VECTOR		0x40

#define SEL_CODE32	0x28
#define SEL_TSS32	0x30
#define CODE32		0x00cf9b000000ffffull
/* Of which KVM sets the bit that says so when it loads it. */
#define DATA32_UNUSED	0x00cf92000000ffffull
#define TSS32_FREE	0x0000890000000067ull

/* Ends each function, in all modes. */
#define DONE		"0: outb %al, $0x80\n jmp 0b\n"

/* A function in code of @bits which forces KVM to emulate @insn. */
#define GUEST_INSN(name, bits, before, insn)			\
static __guest_asm void guest_##name(void)			\
{								\
	asm(".code" #bits "\n"					\
	    before "\n"						\
	    KVM_FEP insn "\n"					\
	    DONE						\
	    ".code64");						\
}

/* The operand is at di, and a stack that ends or begins there. */
#define STACK64(size)	"lea " #size "(%rdi), %rsp"
#define STACK32(size)	"lea " #size "(%edi), %esp"
#define STACK16(size)	"lea " #size "(%di), %sp"
/* What CMPXCHG8B finds there. */
#define COMPARED	"mov $0x03020100, %eax\n mov $0x07060504, %edx\n mov $1, %ebx\n mov $2, %ecx"

GUEST_INSN(enter64, 64, STACK64(8), "enter $16, $0")
GUEST_INSN(leave64, 64, "mov %rdi, %rbp", "leave")
GUEST_INSN(call64, 64, STACK64(8), "call *%rsi")
GUEST_INSN(call_mem64, 64, "", "call *(%rdi)")
GUEST_INSN(ret64, 64, STACK64(0), "ret")
GUEST_INSN(far_call64, 64, STACK64(16), "rex.w lcall *(far_pointer)")
GUEST_INSN(far_ret64, 64, STACK64(0), "lretq")
GUEST_INSN(push_mem64, 64, STACK64(8), "push (far_pointer)")
GUEST_INSN(pop_mem64, 64, STACK64(0), "pop (spare)")
GUEST_INSN(pushf64, 64, STACK64(8), "pushfq")
GUEST_INSN(cmpxchg8b64, 64, COMPARED, "cmpxchg8b (%rdi)")
GUEST_INSN(xadd64, 64, "", "lock xadd %rsi, (%rdi)")
GUEST_INSN(bts64, 64, "mov $0x20, %eax", "bts %rax, (%rdi)")
GUEST_INSN(load_fs64, 64, "", "mov %si, %fs")
GUEST_INSN(ltr64, 64, "", "ltr %si")
GUEST_INSN(lldt64, 64, "", "lldt %si")

GUEST_INSN(store32, 32, "", "mov %esi, (%edi)")
GUEST_INSN(add32, 32, "", "add %esi, (%edi)")
GUEST_INSN(push32, 32, STACK32(4), "push %esi")
GUEST_INSN(push_cs32, 32, STACK32(4), "push %cs")
GUEST_INSN(pusha32, 32, STACK32(32), "pusha")
GUEST_INSN(popa32, 32, STACK32(0), "popa")
GUEST_INSN(popf32, 32, STACK32(0), "popf")
GUEST_INSN(enter32, 32, STACK32(4), "enter $16, $0")
GUEST_INSN(far_call32, 32, STACK32(8), "lcall *(far_pointer)")
GUEST_INSN(far_call_mem32, 32, "", "lcall *(%edi)")
GUEST_INSN(far_ret32, 32, STACK32(0), "lret")
GUEST_INSN(lfs32, 32, "", "lfs (%edi), %eax")
GUEST_INSN(load_fs32, 32, "", "mov %si, %fs")
GUEST_INSN(ltr32, 32, "", "ltr %si")
GUEST_INSN(cmpxchg8b32, 32, COMPARED, "cmpxchg8b (%edi)")
GUEST_INSN(fxsave32, 32, "", "fxsave (%edi)")
GUEST_INSN(fxrstor32, 32, "", "fxrstor (%edi)")
GUEST_INSN(fnstcw32, 32, "", "fnstcw (%edi)")
GUEST_INSN(sgdt32, 32, "", "sgdt (%edi)")
GUEST_INSN(lidt32, 32, "", "lidt (%edi)")
GUEST_INSN(movs32, 32, "mov $far_pointer, %esi", "movsl")

GUEST_INSN(store16, 16, "", "mov %si, (%di)")
GUEST_INSN(push16, 16, STACK16(2), "push %si")
GUEST_INSN(pusha16, 16, STACK16(16), "pusha")
GUEST_INSN(popa16, 16, STACK16(0), "popa")
GUEST_INSN(enter16, 16, STACK16(2), "enter $16, $0")
GUEST_INSN(far_call16, 16, STACK16(4), "lcall $0, $0x500")
GUEST_INSN(far_ret16, 16, STACK16(0), "lret")
GUEST_INSN(int16, 16, STACK16(6), "int $0x40")
GUEST_INSN(int_vector16, 16, "", "int $0x40")
GUEST_INSN(iret16, 16, STACK16(0), "iret")

static __guest_asm void guest_done(void)
{
	asm(DONE);
}

/* What instructions read of memory that is always there. */
struct {
	u32 offset;
	u32 offset_high;
	u16 selector;
} __packed far_pointer;
u64 spare;

enum place {
	AT_DI,		/* the operand is where di points to */
	IN_GDT,		/* it is descriptor 1 of the GDT */
	IN_IVT,		/* it is the vector of INT */
};

/* An instruction that accesses @size bytes from that place on. */
struct insn {
	const char *name;
	void *fn;
	int size;
	int align;
	enum place place;
	/* Where the operand is not just a pattern. */
	u64 operand[2];
	/* Has it written a part, which it writes again, when a part is missing? */
	bool writes_again;
};

#define INSN(name, size, ...)	{ #name, guest_##name, size, 1, ##__VA_ARGS__ }
#define DONE_AT			((uintptr_t)guest_done)
static const struct insn insns64[] = {
	INSN(enter64, 8),
	INSN(leave64, 8),
	INSN(call64, 8),
	INSN(call_mem64, 8, .operand = { DONE_AT }),
	INSN(ret64, 8, .operand = { DONE_AT }),
	INSN(far_call64, 16, .writes_again = true),
	INSN(far_ret64, 16, .operand = { DONE_AT, SEL_CODE }),
	INSN(push_mem64, 8),
	INSN(pop_mem64, 8),
	INSN(pushf64, 8),
	INSN(cmpxchg8b64, 8),
	INSN(xadd64, 8),
	INSN(bts64, 8),
	INSN(load_fs64, 8, .place = IN_GDT, .operand = { DATA32_UNUSED }),
	/* The last word of these descriptors is reserved, and KVM does not read it. */
	INSN(ltr64, 12, .place = IN_GDT, .operand = { TSS32_FREE }),
	INSN(lldt64, 12, .place = IN_GDT, .operand = { 0x0000820000000067ull }),
	{},
};

static const struct insn insns32[] = {
	INSN(store32, 4),
	INSN(add32, 4),
	INSN(push32, 4),
	/* Takes four bytes, and writes two. */
	INSN(push_cs32, 2),
	INSN(pusha32, 32, .writes_again = true),
	INSN(popa32, 32),
	INSN(popf32, 4, .operand = { X86_EFLAGS_FIXED | X86_EFLAGS_CF }),
	INSN(enter32, 4),
	INSN(far_call32, 8, .writes_again = true),
	INSN(far_call_mem32, 6, .operand = { DONE_AT + ((u64)SEL_CODE32 << 32) }),
	INSN(far_ret32, 8, .operand = { DONE_AT + ((u64)SEL_CODE32 << 32) }),
	INSN(lfs32, 6, .operand = { (u64)SEL_DATA << 32 }),
	INSN(load_fs32, 8, .place = IN_GDT, .operand = { DATA32_UNUSED }),
	INSN(ltr32, 8, .place = IN_GDT, .operand = { TSS32_FREE }),
	INSN(cmpxchg8b32, 8),
	{ "fxsave32", guest_fxsave32, MAX_SIZE, 16 },
	{ "fxrstor32", guest_fxrstor32, MAX_SIZE, 16, .operand = { 0x37f } },
	INSN(fnstcw32, 2),
	INSN(sgdt32, 6),
	INSN(lidt32, 6),
	INSN(movs32, 4),
	{},
};

static const struct insn insns16[] = {
	INSN(store16, 2),
	INSN(push16, 2),
	INSN(pusha16, 16, .writes_again = true),
	INSN(popa16, 16),
	INSN(enter16, 2),
	INSN(far_call16, 4, .writes_again = true),
	INSN(far_ret16, 4, .operand = { LOW_CODE }),
	INSN(int16, 6, .writes_again = true),
	INSN(int_vector16, 4, .place = IN_IVT, .operand = { LOW_CODE }),
	INSN(iret16, 6, .operand = { LOW_CODE | (u64)X86_EFLAGS_FIXED << 32 }),
	{},
};

FIXTURE(emulate_modes)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *mem, *boot;
	struct kvm_sregs sregs;
};

#define test_data FIXTURE_DATA(emulate_modes)
#define test_variant FIXTURE_VARIANT(emulate_modes)

FIXTURE_VARIANT(emulate_modes)
{
	const struct insn *insns;
	int bits;
	bool paging;
};

FIXTURE_VARIANT_ADD(emulate_modes, long_mode)
{
	.insns = insns64,
	.bits = 64,
	.paging = true,
};

FIXTURE_VARIANT_ADD(emulate_modes, pae)
{
	.insns = insns32,
	.bits = 32,
	.paging = true,
};

FIXTURE_VARIANT_ADD(emulate_modes, protected_mode)
{
	.insns = insns32,
	.bits = 32,
};

FIXTURE_VARIANT_ADD(emulate_modes, real_mode)
{
	.insns = insns16,
	.bits = 16,
};

static void set_descriptor(u8 *gdt, int selector, u64 descriptor)
{
	boot_write(gdt, 0, selector / 8, descriptor);
}

static void set_mode(test_data *self, const test_variant *variant)
{
	struct kvm_sregs *s = &self->sregs;

	vcpu_sregs_get(self->vcpu, s);
	/* As the processor would set it. */
	s->cr0 |= X86_CR0_ET;
	s->gdt.limit = PAGE_SIZE - 1;
	if (variant->bits == 64)
		return;

	s->efer &= ~(u64)(EFER_LME | EFER_LMA);
	s->cr3 = BOOT_GPA + BOOT_PAE_PDPT;
	if (!variant->paging) {
		s->cr0 &= ~X86_CR0_PG;
		s->cr3 = 0;
	}
	s->cs.selector = SEL_CODE32;
	s->cs.l = 0;
	s->cs.db = 1;
	if (variant->bits == 32)
		return;

	s->cr0 &= ~X86_CR0_PE;
	s->cs.limit = 0xffff;
	s->cs.g = 0;
	s->cs.db = 0;
	s->cs.type = 3;
	s->ds.selector = 0;
	s->ds.limit = 0xffff;
	s->ds.g = 0;
	s->ds.db = 0;
	s->es = s->ds;
	s->fs = s->ds;
	s->gs = s->ds;
	s->ss = s->ds;
}

FIXTURE_SETUP(emulate_modes)
{
	u8 *low, *gdt;
	int i;

	if (!write_attr(FEP_PARAM, "1"))
		SKIP(return, "Cannot force emulation");
	self->vm = gmap_vm_create();
	self->vcpu = gmap_vcpu_add(self->vm, 0);
	self->boot = gmap_boot_map(self->vcpu);
	self->mem = segments_alloc(NR_SEGMENTS);
	gmap_map(self->vcpu, self->mem, DATA_GPA, NR_SEGMENTS * SEGMENT);
	low = segments_alloc(1);
	memcpy(low + LOW_CODE, guest_done, 16);
	((u32 *)(low + LOW_IDT))[VECTOR] = LOW_CODE;
	gmap_map(self->vcpu, low, 0, SEGMENT);

	gdt = self->boot + BOOT_GDT;
	set_descriptor(gdt, SEL_CODE32, CODE32);
	/* Unlike other page tables, this one knows no bit but that it is present. */
	for (i = 0; i < 4; i++)
		boot_write(self->boot, BOOT_PAE_PDPT, i,
			   (BOOT_GPA + BOOT_PD + i * PAGE_SIZE) | 1);

	far_pointer.offset = (uintptr_t)guest_done;
	far_pointer.offset_high = variant->bits == 64 ? 0 : SEL_CODE32;
	far_pointer.selector = SEL_CODE;
	set_mode(self, variant);
}

FIXTURE_TEARDOWN(emulate_modes)
{
	kvm_vm_free(self->vm);
	write_attr(FEP_PARAM, "0");
}

static u8 *mem_at(test_data *self, gpa_t gpa)
{
	return self->mem + (gpa - DATA_GPA);
}

static void map_hole(test_data *self)
{
	gmap_map(self->vcpu, mem_at(self, HOLE_GPA), HOLE_GPA, SEGMENT);
}

static void fill(const struct insn *insn, u8 *operand)
{
	int i;

	for (i = 0; i < insn->size; i++)
		operand[i] = insn->align > 1 ? 0 : i;
	if (insn->operand[0])
		memcpy(operand, insn->operand, min(insn->size, 16));
}

/* Has the guest execute the instruction next, with its operand at @gpa. */
static void set_insn(test_data *self, const struct insn *insn, gpa_t gpa)
{
	struct kvm_sregs sregs = self->sregs;
	u64 fn = (uintptr_t)insn->fn, offset = gpa;
	u64 selector = 8;

	if (!(sregs.cr0 & X86_CR0_PE)) {
		sregs.cs.base = fn & ~0xffful;
		sregs.cs.selector = 0x1000;
		fn &= 0xfff;
		sregs.ds.base = (gpa & ~0xffful) - 0x8000;
		sregs.ss.base = insn->place == AT_DI ? sregs.ds.base : BOOT_GPA;
		offset = gpa - sregs.ds.base;
		sregs.idt.base = LOW_IDT;
		sregs.idt.limit = 0x3ff;
	}
	if (insn->place == IN_GDT)
		sregs.gdt.base = gpa - selector;
	if (insn->place == IN_IVT)
		sregs.idt.base = gpa - VECTOR * 4;
	vcpu_sregs_set(self->vcpu, &sregs);
	guest_set_call(self->vcpu, (void *)fn, offset,
		       insn->place == IN_GDT ? selector : DONE_AT, 0);
	fill(insn, mem_at(self, gpa));
}

struct outcome {
	u8 operand[MAX_SIZE];
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	u64 spare;
};

static void run_insn(test_data *self, const struct insn *insn, gpa_t gpa,
		     struct outcome *outcome)
{
	memset(outcome, 0, sizeof(*outcome));
	spare = 0;
	guest_run(self->vcpu);
	memcpy(outcome->operand, mem_at(self, gpa), insn->size);
	vcpu_regs_get(self->vcpu, &outcome->regs);
	vcpu_sregs_get(self->vcpu, &outcome->sregs);
	outcome->spare = spare;
}

static void assert_same(const struct insn *insn, gpa_t gpa,
			const struct outcome *want, const struct outcome *got)
{
	const u64 *want_regs = (void *)&want->regs, *got_regs = (void *)&got->regs;
	int i;

	for (i = 0; i < insn->size; i++)
		TEST_ASSERT(want->operand[i] == got->operand[i],
			    "%s at 0x%lx: byte %d is 0x%x instead of 0x%x", insn->name,
			    gpa, i, got->operand[i], want->operand[i]);
	for (i = 0; i < sizeof(want->regs) / sizeof(u64); i++)
		TEST_ASSERT(want_regs[i] == got_regs[i],
			    "%s at 0x%lx: register %d is 0x%lx instead of 0x%lx",
			    insn->name, gpa, i, got_regs[i], want_regs[i]);
	TEST_ASSERT(!memcmp(&want->sregs, &got->sregs, sizeof(want->sregs)),
		    "%s at 0x%lx: special registers differ", insn->name, gpa);
	TEST_ASSERT_EQ(want->spare, got->spare);
}

/* The operand begins @first bytes before @border, at which memory is missing. */
static void test_split(test_data *self, const struct insn *insn, gpa_t border,
		       int first, gpa_t missing)
{
	struct outcome want, got;
	struct kvm_sregs before, after;
	struct kvm_regs regs;
	gpa_t gpa = border - first;
	u8 operand[MAX_SIZE];

	map_hole(self);
	set_insn(self, insn, gpa);
	run_insn(self, insn, gpa, &want);

	gmap_unmap(self->vcpu, HOLE_GPA, SEGMENT);
	set_insn(self, insn, gpa);
	memcpy(operand, mem_at(self, gpa), insn->size);
	vcpu_sregs_get(self->vcpu, &before);
	vcpu_run(self->vcpu);
	TEST_ASSERT(!is_guest_sync(self->vcpu), "%s at 0x%lx has ended", insn->name, gpa);
	assert_hole_exit(self->vcpu, missing);
	vcpu_sregs_get(self->vcpu, &after);
	TEST_ASSERT(!memcmp(&before, &after, sizeof(before)),
		    "%s at 0x%lx: special registers have changed", insn->name, gpa);
	TEST_ASSERT(insn->writes_again ||
		    !memcmp(operand, mem_at(self, gpa), insn->size),
		    "%s at 0x%lx: it has been written to", insn->name, gpa);

	/* KVM has skipped the prefix, and must emulate this one too. */
	vcpu_regs_get(self->vcpu, &regs);
	regs.rip -= FEP_LEN;
	vcpu_regs_set(self->vcpu, &regs);
	map_hole(self);
	run_insn(self, insn, gpa, &got);
	assert_same(insn, gpa, &want, &got);
}

TEST_F(emulate_modes, splits)
{
	const struct insn *insn;
	int first;

	for (insn = variant->insns; insn->fn; insn++) {
		for (first = 0; first < insn->size; first += insn->align)
			test_split(self, insn, HOLE_GPA, first, HOLE_GPA);
		for (first = insn->align; first <= insn->size; first += insn->align)
			test_split(self, insn, HOLE_GPA + SEGMENT, first,
				   HOLE_GPA + SEGMENT - 1);
	}
}

/* Task state of 32-bit code, as words. */
enum {
	TSS_CR3 = 7,
	TSS_EIP = 8,
	TSS_EFLAGS = 9,
	TSS_ESP = 14,
	TSS_ES = 18,
	TSS_CS,
	TSS_SS,
	TSS_DS,
	TSS_FS,
	TSS_GS,
};

static __guest_asm void guest_task_switch(void)
{
	asm(".code32\n"
	    "ljmp $0x30, $0\n"
	    ".code64");
}

static void set_task_switch(test_data *self, gpa_t tss_gpa)
{
	u8 *gdt = self->boot + BOOT_GDT;

	set_descriptor(gdt, SEL_TSS, TSS32_FREE | BIT_ULL(41) |
		       (BOOT_GPA + BOOT_TSS) << 16 | ((BOOT_GPA + BOOT_TSS) >> 24) << 56);
	set_descriptor(gdt, SEL_TSS32, TSS32_FREE | (tss_gpa & 0xffffff) << 16 |
		       (tss_gpa >> 24) << 56);
	vcpu_sregs_set(self->vcpu, &self->sregs);
	guest_set_call(self->vcpu, guest_task_switch, 0, 0, 0);
}

/*
 * The processor has nothing changed when it finds no task state.  KVM, where it
 * carries out the switch, gives up.
 */
TEST_F(emulate_modes, task_switch)
{
	struct kvm_run *run = self->vcpu->run;
	u32 *tss = (u32 *)mem_at(self, HOLE_GPA);
	struct kvm_sregs sregs;
	int i;

	if (variant->bits != 32)
		SKIP(return, "No task switches");

	tss[TSS_EIP] = DONE_AT;
	tss[TSS_EFLAGS] = X86_EFLAGS_FIXED;
	tss[TSS_ESP] = BOOT_GPA + BOOT_STACK;
	for (i = TSS_ES; i <= TSS_GS; i++)
		tss[i] = i == TSS_CS ? SEL_CODE32 : SEL_DATA;
	tss[TSS_CR3] = self->sregs.cr3;

	set_task_switch(self, HOLE_GPA);
	guest_run(self->vcpu);
	vcpu_sregs_get(self->vcpu, &sregs);
	EXPECT_EQ(SEL_TSS32, sregs.tr.selector);

	gmap_unmap(self->vcpu, HOLE_GPA, SEGMENT);
	set_task_switch(self, HOLE_GPA);
	vcpu_run(self->vcpu);
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
		EXPECT_EQ(KVM_INTERNAL_ERROR_EMULATION, run->internal.suberror);
		return;
	}
	assert_hole_exit(self->vcpu, HOLE_GPA);
	map_hole(self);
	guest_run(self->vcpu);
	vcpu_sregs_get(self->vcpu, &sregs);
	EXPECT_EQ(SEL_TSS32, sregs.tr.selector);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());
	TEST_REQUIRE(write_attr(FEP_PARAM, "0"));

	return test_harness_run(argc, argv);
}
