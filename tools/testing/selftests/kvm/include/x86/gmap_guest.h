/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Guests in address spaces of their own.
 *
 * A guest runs the functions of the test itself: the image of the process is
 * mapped into the guest at the same addresses, so that guest and host share all
 * global variables, and pointers to these mean the same to both.  Besides,
 * each guest has a segment of its own with page tables, which map the first 4 GiB
 * of guest physical memory one to one, a GDT, a TSS and a stack.  There is no IDT:
 * an exception ends the guest.
 */
#ifndef SELFTEST_KVM_GMAP_GUEST_H
#define SELFTEST_KVM_GMAP_GUEST_H

#include "gmap.h"

/* Of the guest's own segment. */
#define BOOT_GPA	0x0fe00000ul
#define BOOT_PML4	0x0000
#define BOOT_PDPT	0x1000
#define BOOT_PD		0x2000
#define BOOT_GDT	0x6000
#define BOOT_TSS	0x7000
#define BOOT_STACK	0x10000

/* Where the tests map memory. */
#define DATA_GPA	0x40000000ul

#define GUEST_PORT	0x80

#define PTE_BITS	0x63ull /* present, writable, accessed, dirty */
#define PTE_HUGE	BIT_ULL(7)

/* Guest functions use these selectors. */
#define SEL_CODE	0x08
#define SEL_DATA	0x10
#define SEL_TSS		0x18

extern char __executable_start[], _end[];

/* A guest function that is assembly language only. */
#define __guest_asm	__attribute__((naked, unused))

/* Tells the host a value.  The host lets the guest run on. */
static inline void guest_sync(u64 value)
{
	asm volatile("outb %%al, %0" : : "N"(GUEST_PORT), "a"(value) : "memory");
}

/* Where guest functions return to: tells the host their result. */
static __guest_asm void guest_return(void)
{
	asm("0:	outb %al, $0x80\n"
	    "	jmp 0b\n");
}

static inline gpa_t image_gpa(void)
{
	return (uintptr_t)__executable_start & ~(SEGMENT - 1ul);
}

static inline u64 image_size(void)
{
	return align_up((uintptr_t)_end, SEGMENT) - image_gpa();
}

static inline void boot_write(u8 *boot, u64 offset, int index, u64 value)
{
	((u64 *)(boot + offset))[index] = value;
}

/* Fills a guest's own segment. */
static inline void boot_fill(u8 *boot)
{
	int i;

	boot_write(boot, BOOT_PML4, 0, (BOOT_GPA + BOOT_PDPT) | PTE_BITS);
	for (i = 0; i < 4; i++)
		boot_write(boot, BOOT_PDPT, i,
			   (BOOT_GPA + BOOT_PD + i * PAGE_SIZE) | PTE_BITS);
	for (i = 0; i < 4 * 512; i++)
		boot_write(boot, BOOT_PD, i, i * (u64)SZ_2M | PTE_BITS | PTE_HUGE);

	boot_write(boot, BOOT_GDT, SEL_CODE / 8, 0x00af9b000000ffffull);
	boot_write(boot, BOOT_GDT, SEL_DATA / 8, 0x00cf93000000ffffull);
	boot_write(boot, BOOT_GDT, SEL_TSS / 8,
		   0x00008b0000000067ull | (BOOT_GPA + BOOT_TSS) << 16 |
		   ((BOOT_GPA + BOOT_TSS) >> 24) << 56);

	/* A function's address to return to stays on the stack when it does so. */
	boot_write(boot, BOOT_STACK, -1, (uintptr_t)guest_return);
}

static inline void __boot_segment(struct kvm_segment *segment, u16 selector, u8 type)
{
	*segment = (struct kvm_segment) {
		.limit = 0xffffffff,
		.selector = selector,
		.type = type,
		.present = 1,
		.s = 1,
		.g = 1,
		.l = selector == SEL_CODE,
		.db = selector != SEL_CODE,
	};
}

static inline void boot_set_sregs(struct kvm_vcpu *vcpu)
{
	struct kvm_sregs sregs;

	vcpu_sregs_get(vcpu, &sregs);
	__boot_segment(&sregs.cs, SEL_CODE, 11);
	__boot_segment(&sregs.ds, SEL_DATA, 3);
	sregs.es = sregs.ds;
	sregs.ss = sregs.ds;
	sregs.fs = sregs.ds;
	sregs.gs = sregs.ds;
	sregs.tr = (struct kvm_segment) {
		.base = BOOT_GPA + BOOT_TSS,
		.limit = 0x67,
		.selector = SEL_TSS,
		.type = 11,
		.present = 1,
	};
	sregs.gdt.base = BOOT_GPA + BOOT_GDT;
	sregs.gdt.limit = SEL_TSS + 16 - 1;
	sregs.idt.limit = 0;
	sregs.cr0 = X86_CR0_PE | X86_CR0_NE | X86_CR0_PG | X86_CR0_WP | X86_CR0_MP;
	sregs.cr3 = BOOT_GPA + BOOT_PML4;
	sregs.cr4 = X86_CR4_PAE | X86_CR4_OSFXSR;
	sregs.efer |= EFER_LME | EFER_LMA | EFER_NX;
	vcpu_sregs_set(vcpu, &sregs);
}

/* Adds a vCPU without any memory. */
static inline struct kvm_vcpu *gmap_vcpu_add(struct kvm_vm *vm, u32 id)
{
	struct kvm_vcpu *vcpu = __vm_vcpu_add(vm, id);

	vcpu_init_cpuid(vcpu, kvm_get_supported_cpuid());
	boot_set_sregs(vcpu);
	return vcpu;
}

/* Returns the guest's own segment as the host accesses it. */
static inline u8 *gmap_boot_map(struct kvm_vcpu *vcpu)
{
	u8 *boot = segments_alloc(1);

	boot_fill(boot);
	gmap_map(vcpu, boot, BOOT_GPA, SEGMENT);
	gmap_map(vcpu, (void *)image_gpa(), image_gpa(), image_size());
	return boot;
}

/* Adds a vCPU that can run guest functions. */
static inline struct kvm_vcpu *gmap_guest_add(struct kvm_vm *vm, u32 id)
{
	struct kvm_vcpu *vcpu = gmap_vcpu_add(vm, id);

	gmap_boot_map(vcpu);
	return vcpu;
}

static inline struct kvm_vm *gmap_vm_with_guest(struct kvm_vcpu **vcpu)
{
	struct kvm_vm *vm = gmap_vm_create();

	*vcpu = gmap_guest_add(vm, 0);
	return vm;
}

/* Has the guest call a function when it next runs. */
static inline void guest_set_call(struct kvm_vcpu *vcpu, void *fn, u64 a, u64 b, u64 c)
{
	struct kvm_regs regs = {
		.rip = (uintptr_t)fn,
		.rsp = BOOT_GPA + BOOT_STACK - 8,
		.rflags = X86_EFLAGS_FIXED,
		.rdi = a,
		.rsi = b,
		.rdx = c,
	};

	vcpu_regs_set(vcpu, &regs);
}

static inline u64 guest_rax(struct kvm_vcpu *vcpu)
{
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	return regs.rax;
}

static inline bool is_guest_sync(struct kvm_vcpu *vcpu)
{
	return vcpu->run->exit_reason == KVM_EXIT_IO &&
	       vcpu->run->io.port == GUEST_PORT;
}

/* Runs the guest to its next guest_sync() or return, and returns the value. */
static inline u64 guest_run(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT(is_guest_sync(vcpu), "Unexpected exit: %s, 0x%llx",
		    exit_reason_str(vcpu->run->exit_reason),
		    vcpu->run->s390_ucontrol.trans_exc_code);
	return guest_rax(vcpu);
}

/* Runs the guest to an access to @gpa, where nothing is mapped. */
static inline void guest_run_to_hole(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	vcpu_run(vcpu);
	assert_hole_exit(vcpu, gpa);
}

/* Runs the guest to an access that it must not make. */
static inline void guest_run_fails(struct kvm_vcpu *vcpu, int err)
{
	int r = __vcpu_run(vcpu);

	TEST_ASSERT(r == -1 && errno == err, "KVM_RUN gives %d, errno %d, exit %s", r,
		    errno, exit_reason_str(vcpu->run->exit_reason));
}

/* Has the guest call a function, and returns the result. */
static inline u64 guest_call(struct kvm_vcpu *vcpu, void *fn, u64 a, u64 b, u64 c)
{
	guest_set_call(vcpu, fn, a, b, c);
	return guest_run(vcpu);
}

/* Guest functions that most tests need. */

static inline u64 guest_read(u64 *addr)
{
	return READ_ONCE(*addr);
}

static inline u64 guest_write(u64 *addr, u64 value)
{
	WRITE_ONCE(*addr, value);
	return value;
}

static inline u64 guest_call_at(u64 addr)
{
	return ((u64 (*)(void))addr)();
}

static inline u64 run_read(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	return guest_call(vcpu, guest_read, gpa, 0, 0);
}

static inline void run_write(struct kvm_vcpu *vcpu, gpa_t gpa, u64 value)
{
	guest_call(vcpu, guest_write, gpa, value, 0);
}

static inline void run_read_hole(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	guest_set_call(vcpu, guest_read, gpa, 0, 0);
	guest_run_to_hole(vcpu, gpa);
}

/* Runs into the hole twice, and closes it. */
static inline void exit_and_map(struct kvm_vcpu *vcpu, gpa_t gpa, u8 *segment)
{
	guest_run_to_hole(vcpu, gpa);
	vcpu->run->exit_reason = 0;
	guest_run_to_hole(vcpu, gpa);
	gmap_map(vcpu, segment, gpa & ~(SEGMENT - 1ul), SEGMENT);
}

/*
 * Page tables of which each level has a segment of its own, which is not mapped at
 * first.  They map a page of memory at DATA_GPA, and what the guest runs on.
 */
#define TABLE_GPA(level)	(0x50000000ul + (level) * SZ_2M)
#define MAPPED_GVA		0x8000000000ul
#define NR_LEVELS		4

static inline void set_up_tables(struct kvm_vcpu *vcpu, u8 **table_mem)
{
	struct kvm_sregs sregs;
	int level;

	for (level = NR_LEVELS; level >= 1; level--)
		table_mem[level] = segments_alloc(1);
	boot_write(table_mem[4], 0, 0, (BOOT_GPA + BOOT_PDPT) | PTE_BITS);
	boot_write(table_mem[4], 0, 1, TABLE_GPA(3) | PTE_BITS);
	boot_write(table_mem[3], 0, 0, TABLE_GPA(2) | PTE_BITS);
	boot_write(table_mem[2], 0, 0, TABLE_GPA(1) | PTE_BITS);
	boot_write(table_mem[1], 0, 0, DATA_GPA | PTE_BITS);

	vcpu_sregs_get(vcpu, &sregs);
	sregs.cr3 = TABLE_GPA(4);
	vcpu_sregs_set(vcpu, &sregs);
}

/* Puts "mov $value, %eax; ret" at @code. */
static inline void put_function(void *code, u32 value)
{
	u8 insn[] = { 0xb8, 0, 0, 0, 0, 0xc3 };

	memcpy(insn + 1, &value, sizeof(value));
	memcpy(code, insn, sizeof(insn));
}

#endif /* SELFTEST_KVM_GMAP_GUEST_H */
