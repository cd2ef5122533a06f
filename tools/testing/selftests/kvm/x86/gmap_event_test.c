// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): exceptions and interrupts that the processor
 * cannot deliver, as the IDT, the stack or the handler is in a segment that is not
 * mapped.  Each is delivered once, when userspace has mapped the segment.
 */
#include "gmap_guest.h"
#include "kvm_test_harness.h"

#define IDT_GPA		0x50000000ul
#define STACK_GPA	0x50200000ul
#define HANDLER_GPA	0x50400000ul

#define IRQ_VECTOR	0x40
#define SOFT_VECTOR	0x41

/* Offsets in the segment with the handler. */
#define COUNT		0x8
#define SAVED_RIP	0x10

FIXTURE(event)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *idt, *stack, *handler;
	u64 nr_events;
};

#define test_data FIXTURE_DATA(event)

/* Counts, saves the address to return to, and returns to the one in rdi. */
static __guest_asm void guest_handler(void)
{
	asm("lock incq	0x50400008\n"
	    "mov	(%rsp), %rax\n"
	    "mov	%rax, 0x50400010\n"
	    "mov	%rdi, (%rsp)\n"
	    "iretq\n");
}

#define HANDLER_SIZE	0x40

static void set_gate(u8 *idt, int vector)
{
	u64 handler = HANDLER_GPA + 0x100;

	/* An interrupt gate.  The handler has no interrupts; the stack is IST 1. */
	boot_write(idt, 0, 2 * vector,
		   (handler & 0xffff) | SEL_CODE << 16 | 1ull << 32 | 0x8eull << 40 |
		   (handler >> 16 & 0xffff) << 48);
	boot_write(idt, 0, 2 * vector + 1, handler >> 32);
}

FIXTURE_SETUP(event)
{
	struct kvm_sregs sregs;
	u8 *boot;

	self->vm = gmap_vm_create();
	self->vcpu = gmap_vcpu_add(self->vm, 0);
	boot = gmap_boot_map(self->vcpu);
	/* IST 1 of the TSS. */
	*(u64 *)(boot + BOOT_TSS + 0x24) = STACK_GPA + SEGMENT;

	self->idt = segments_alloc(1);
	self->stack = segments_alloc(1);
	self->handler = segments_alloc(1);
	set_gate(self->idt, UD_VECTOR);
	set_gate(self->idt, BP_VECTOR);
	set_gate(self->idt, NMI_VECTOR);
	set_gate(self->idt, DE_VECTOR);
	set_gate(self->idt, IRQ_VECTOR);
	set_gate(self->idt, SOFT_VECTOR);
	memcpy(self->handler + 0x100, guest_handler, HANDLER_SIZE);

	vcpu_sregs_get(self->vcpu, &sregs);
	sregs.idt.base = IDT_GPA;
	sregs.idt.limit = 0xfff;
	vcpu_sregs_set(self->vcpu, &sregs);
}

FIXTURE_TEARDOWN(event)
{
	kvm_vm_free(self->vm);
}

/*
 * Runs the vCPU, which has an event of @vector to deliver: it needs its gate, the
 * stack and the handler, none of which is there.  The handler must return to @rip.
 */
static void run_event(test_data *self, int vector, u64 rip)
{
	exit_and_map(self->vcpu, IDT_GPA + 16 * vector, self->idt);
	exit_and_map(self->vcpu, STACK_GPA + SEGMENT - 8, self->stack);
	exit_and_map(self->vcpu, HANDLER_GPA + 0x100, self->handler);

	TEST_ASSERT_EQ(guest_run(self->vcpu), 0xd0e);
	self->nr_events++;
	TEST_ASSERT_EQ(*(u64 *)(self->handler + COUNT), self->nr_events);
	TEST_ASSERT_EQ(*(u64 *)(self->handler + SAVED_RIP), rip);

	gmap_unmap(self->vcpu, IDT_GPA, SEGMENT);
	gmap_unmap(self->vcpu, STACK_GPA, SEGMENT);
	gmap_unmap(self->vcpu, HANDLER_GPA, SEGMENT);
}

static __guest_asm void guest_done(void)
{
	asm("mov $0xd0e, %eax\n"
	    "ret");
}

static __guest_asm void guest_ud(void)
{
	asm("ud2");
}

static __guest_asm void guest_de(void)
{
	asm("div %cl");
}

static __guest_asm void guest_bp(void)
{
	asm("int3");
}

static __guest_asm void guest_soft(void)
{
	asm("int $0x41");
}

static __guest_asm void guest_spin(void)
{
	asm("0: pause\n"
	    "jmp 0b");
}

static __guest_asm void guest_open_window(void)
{
	asm("sti\n"
	    "0: pause\n"
	    "jmp 0b");
}

/* Has the guest run code that an event ends. */
static void set_code(test_data *self, void *code)
{
	guest_set_call(self->vcpu, code, (uintptr_t)guest_done, 0, 0);
}

/* Faults return to the instruction. */
TEST_F(event, fault)
{
	int i;

	for (i = 0; i < 2; i++) {
		set_code(self, guest_ud);
		run_event(self, UD_VECTOR, (uintptr_t)guest_ud);
		set_code(self, guest_de);
		run_event(self, DE_VECTOR, (uintptr_t)guest_de);
	}
}

/* Traps return to the next one. */
TEST_F(event, trap)
{
	int i;

	for (i = 0; i < 2; i++) {
		set_code(self, guest_bp);
		run_event(self, BP_VECTOR, (uintptr_t)guest_bp + 1);
		set_code(self, guest_soft);
		run_event(self, SOFT_VECTOR, (uintptr_t)guest_soft + 2);
	}
}

TEST_F(event, nmi)
{
	set_code(self, guest_spin);
	vcpu_ioctl(self->vcpu, KVM_NMI, NULL);
	run_event(self, NMI_VECTOR, (uintptr_t)guest_spin);
}

/* An interrupt of userspace's interrupt controller. */
TEST_F(event, interrupt)
{
	struct kvm_interrupt irq = { .irq = IRQ_VECTOR };
	struct kvm_regs regs;

	set_code(self, guest_spin);
	vcpu_regs_get(self->vcpu, &regs);
	regs.rflags |= X86_EFLAGS_IF;
	vcpu_regs_set(self->vcpu, &regs);
	vcpu_ioctl(self->vcpu, KVM_INTERRUPT, &irq);
	run_event(self, IRQ_VECTOR, (uintptr_t)guest_spin);
}

/* As above, but the guest opens the window for it. */
TEST_F(event, interrupt_window)
{
	struct kvm_interrupt irq = { .irq = IRQ_VECTOR };
	struct kvm_run *run = self->vcpu->run;

	set_code(self, guest_open_window);
	run->request_interrupt_window = 1;
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IRQ_WINDOW_OPEN);
	run->request_interrupt_window = 0;
	vcpu_ioctl(self->vcpu, KVM_INTERRUPT, &irq);

	exit_and_map(self->vcpu, IDT_GPA + 16 * IRQ_VECTOR, self->idt);
	exit_and_map(self->vcpu, STACK_GPA + SEGMENT - 8, self->stack);
	exit_and_map(self->vcpu, HANDLER_GPA + 0x100, self->handler);
	TEST_ASSERT_EQ(guest_run(self->vcpu), 0xd0e);
	TEST_ASSERT_EQ(*(u64 *)(self->handler + COUNT), 1);
}

/* The TSS names the stack. */
TEST_F(event, task_state)
{
	u8 *boot = segments_alloc(1);
	const gpa_t tss = 0x50800000;
	struct kvm_sregs sregs;

	*(u64 *)(boot + 0x24) = STACK_GPA + SEGMENT;
	vcpu_sregs_get(self->vcpu, &sregs);
	sregs.tr.base = tss;
	vcpu_sregs_set(self->vcpu, &sregs);

	set_code(self, guest_ud);
	exit_and_map(self->vcpu, IDT_GPA + 16 * UD_VECTOR, self->idt);
	exit_and_map(self->vcpu, tss + 0x24, boot);
	exit_and_map(self->vcpu, STACK_GPA + SEGMENT - 8, self->stack);
	exit_and_map(self->vcpu, HANDLER_GPA + 0x100, self->handler);
	TEST_ASSERT_EQ(guest_run(self->vcpu), 0xd0e);
	TEST_ASSERT_EQ(*(u64 *)(self->handler + COUNT), 1);
}

/* The GDT has the handler's code segment. */
TEST_F(event, descriptor_table)
{
	u8 *boot = segments_alloc(1);
	const gpa_t gdt = 0x50800000;
	struct kvm_sregs sregs;

	boot_fill(boot);
	vcpu_sregs_get(self->vcpu, &sregs);
	sregs.gdt.base = gdt + BOOT_GDT;
	vcpu_sregs_set(self->vcpu, &sregs);

	set_code(self, guest_ud);
	exit_and_map(self->vcpu, IDT_GPA + 16 * UD_VECTOR, self->idt);
	exit_and_map(self->vcpu, gdt + BOOT_GDT + SEL_CODE, boot);
	exit_and_map(self->vcpu, STACK_GPA + SEGMENT - 8, self->stack);
	exit_and_map(self->vcpu, HANDLER_GPA + 0x100, self->handler);
	TEST_ASSERT_EQ(guest_run(self->vcpu), 0xd0e);
	TEST_ASSERT_EQ(*(u64 *)(self->handler + COUNT), 1);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());

	return test_harness_run(argc, argv);
}
