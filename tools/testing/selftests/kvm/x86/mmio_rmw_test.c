// SPDX-License-Identifier: GPL-2.0-only
/*
 * Read-modify-write instructions on MMIO whose memslots change halfway.
 *
 * KVM emulates such an instruction, and exits to userspace for its read.  Before it
 * returns, userspace may give the guest another page table, by replacing the memslot
 * that the page table is in, and may create a memslot where the MMIO was.  The write
 * must go where the new page table points, and not to the frame that was read.
 * Whether that is memory or MMIO depends on the new memslots.
 */
#include <string.h>

#include "kselftest.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

#define PT_SLOT		10
#define X_SLOT		11
#define Y_SLOT		12

/* The page tables that map TEST_GVA to X_GPA or to Y_GPA. */
#define PT_GPA		0x100000000ul
#define PT_PAGES	4
#define X_GPA		0x110000000ul
#define Y_GPA		0x120000000ul
/* Uses no page table of any other address. */
#define TEST_GVA	0x140000000ul
#define OFFSET		0x128

#define OLD_VALUE	0x00008f4000a10035ul
#define UNTOUCHED	0x5a5a5a5a5a5a5a5aul

struct insn {
	const char *name;
	void (*execute)(void *p);
	u64 (*result)(u64 old);
	int size;
};

#define DEFINE_INSN(id, text, expr)					\
static void execute_##id(void *p)					\
{									\
	u64 val = 0x1001;						\
									\
	asm volatile(text : "+m"(*(u64 *)p), "+r"(val) : : "cc");	\
}									\
									\
static u64 result_##id(u64 old)						\
{									\
	return expr;							\
}

DEFINE_INSN(addl, "addl $1, %0", old + 1)
DEFINE_INSN(lock_addl, "lock addl $1, %0", old + 1)
DEFINE_INSN(addq, "addq %1, %0", old + 0x1001)
DEFINE_INSN(xorl, "xorl $0xff00ff, %0", old ^ 0xff00ff)
DEFINE_INSN(lock_xorl, "lock xorl $0xff00ff, %0", old ^ 0xff00ff)
DEFINE_INSN(notl, "notl %0", ~old)
DEFINE_INSN(orb, "orb $0x42, %0", old | 0x42)
DEFINE_INSN(lock_orw, "lock orw $0x142, %0", old | 0x142)
DEFINE_INSN(btsl, "btsl $7, %0", old | BIT(7))
DEFINE_INSN(lock_btrl, "lock btrl $5, %0", old & ~BIT(5))
DEFINE_INSN(incw, "incw %0", old + 1)
DEFINE_INSN(shll, "shll $3, %0", old << 3)
DEFINE_INSN(xchgq, "xchgq %1, %0", 0x1001)
DEFINE_INSN(xaddl, "xaddl %k1, %0", old + 0x1001)

#define INSN(id, bytes)							\
{									\
	.name = #id,							\
	.execute = execute_##id,					\
	.result = result_##id,						\
	.size = bytes,							\
}

static const struct insn insns[] = {
	INSN(addl, 4),
	INSN(lock_addl, 4),
	INSN(addq, 8),
	INSN(xorl, 4),
	INSN(lock_xorl, 4),
	INSN(notl, 4),
	INSN(orb, 1),
	INSN(lock_orw, 2),
	INSN(btsl, 4),
	INSN(lock_btrl, 4),
	INSN(incw, 2),
	INSN(shll, 4),
	INSN(xchgq, 8),
	INSN(xaddl, 4),
};

struct change {
	const char *name;
	/* Userspace replaces the page tables. */
	bool new_table;
	/* They map the other frame. */
	bool moves;
	/* Which frames are in a memslot when the instruction continues. */
	bool x_is_memory;
	bool y_is_memory;
};

static const struct change changes[] = {
	{ "nothing changes" },
	{ "same page table elsewhere", .new_table = true },
	{ "MMIO becomes memory", .x_is_memory = true },
	{ "other MMIO", .new_table = true, .moves = true },
	{ "other MMIO, old one becomes memory",
	  .new_table = true, .moves = true, .x_is_memory = true },
	{ "memory", .new_table = true, .moves = true, .y_is_memory = true },
	{ "memory, old MMIO becomes memory",
	  .new_table = true, .moves = true, .x_is_memory = true,
	  .y_is_memory = true },
};

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
/* Two sets of page tables, and the memory of both frames. */
static u8 *old_table, *new_table;
static u64 *x, *y;

static void guest_code(int first)
{
	void *p = (void *)TEST_GVA + OFFSET;
	int i;

	for (i = first; i < ARRAY_SIZE(insns); i++) {
		insns[i].execute(p);
		GUEST_SYNC(READ_ONCE(*(u64 *)p));
	}
}

static void set_slot(u32 slot, gpa_t gpa, u64 size, void *hva)
{
	vm_set_user_memory_region(vm, slot, 0, gpa, size, hva);
}

static void set_table(void *table)
{
	set_slot(PT_SLOT, PT_GPA, 0, NULL);
	set_slot(PT_SLOT, PT_GPA, PT_PAGES * PAGE_SIZE, table);
}

/* Has the page tables at @table, which are a copy, map @gpa. */
static void redirect(u8 *table, gpa_t gpa)
{
	u64 *pte = vm_get_pte(vm, TEST_GVA);
	u64 *copy = (void *)table + ((u8 *)pte - old_table);

	TEST_ASSERT((*copy & PHYSICAL_PAGE_MASK) == X_GPA,
		    "Not the page table of 0x%lx: 0x%lx", TEST_GVA, *copy);
	*copy = (*copy & ~PHYSICAL_PAGE_MASK) | gpa;
}

static bool is_mmio(gpa_t gpa, int size, bool write)
{
	struct kvm_run *run = vcpu->run;

	if (run->exit_reason != KVM_EXIT_MMIO) {
		ksft_print_msg("got %s\n", exit_reason_str(run->exit_reason));
		return false;
	}
	if (run->mmio.phys_addr != gpa + OFFSET || run->mmio.len != size ||
	    run->mmio.is_write != write) {
		ksft_print_msg("got MMIO %s of %u bytes at 0x%llx\n",
			       run->mmio.is_write ? "write" : "read",
			       run->mmio.len, run->mmio.phys_addr);
		return false;
	}
	return true;
}

static u64 bytes(u64 val, int size)
{
	return size == 8 ? val : val & (BIT(8 * size) - 1);
}

static bool test_insn(const struct insn *insn, const struct change *change)
{
	gpa_t gpa = change->moves ? Y_GPA : X_GPA;
	bool is_memory = change->moves ? change->y_is_memory : change->x_is_memory;
	u64 *target = change->moves ? y : x;
	u64 *other = change->moves ? x : y;
	u64 result = insn->result(OLD_VALUE);
	struct kvm_run *run = vcpu->run;
	struct ucall uc;
	u64 expected;

	/* The instruction leaves the other bytes alone. */
	expected = OLD_VALUE ^ bytes(OLD_VALUE ^ result, insn->size);

	vcpu_run(vcpu);
	if (!is_mmio(X_GPA, insn->size, false))
		return false;
	memset(run->mmio.data, 0, sizeof(run->mmio.data));
	memcpy(run->mmio.data, &(u64){ OLD_VALUE }, insn->size);

	/*
	 * With a lock prefix, KVM starts over unless the memory has the
	 * value that it has read.
	 */
	target[OFFSET / sizeof(u64)] = OLD_VALUE;
	other[OFFSET / sizeof(u64)] = UNTOUCHED;
	if (change->new_table) {
		memcpy(new_table, old_table, PT_PAGES * PAGE_SIZE);
		redirect(new_table, gpa);
		set_table(new_table);
	}
	if (change->x_is_memory)
		set_slot(X_SLOT, X_GPA, PAGE_SIZE, x);
	if (change->y_is_memory)
		set_slot(Y_SLOT, Y_GPA, PAGE_SIZE, y);

	vcpu_run(vcpu);
	if (!is_memory) {
		if (!is_mmio(gpa, insn->size, true))
			return false;
		if (memcmp(run->mmio.data, &result, insn->size)) {
			ksft_print_msg("wrote 0x%lx instead of 0x%lx\n",
				       bytes(*(u64 *)run->mmio.data, insn->size),
				       bytes(result, insn->size));
			return false;
		}

		/* The load that follows. */
		vcpu_run(vcpu);
		if (!is_mmio(gpa, sizeof(u64), false))
			return false;
		memcpy(run->mmio.data, &expected, sizeof(expected));
		vcpu_run(vcpu);
	}

	if (get_ucall(vcpu, &uc) != UCALL_SYNC) {
		ksft_print_msg("got %s\n", exit_reason_str(run->exit_reason));
		return false;
	}
	if (uc.args[1] != expected) {
		ksft_print_msg("guest loads 0x%lx instead of 0x%lx\n", uc.args[1],
			       expected);
		return false;
	}
	if (other[OFFSET / sizeof(u64)] != UNTOUCHED) {
		ksft_print_msg("wrote 0x%lx to the other frame\n",
			       other[OFFSET / sizeof(u64)]);
		return false;
	}
	return true;
}

static void restore_slots(const struct change *change)
{
	if (change->new_table)
		set_table(old_table);
	if (change->x_is_memory)
		set_slot(X_SLOT, X_GPA, 0, NULL);
	if (change->y_is_memory)
		set_slot(Y_SLOT, Y_GPA, 0, NULL);
}

static void set_up_vm(int first_insn)
{
	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	vcpu_args_set(vcpu, 1, first_insn);

	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, PT_GPA, PT_SLOT,
				    PT_PAGES, 0);
	vm->memslots[MEM_REGION_PT] = PT_SLOT;
	virt_map(vm, TEST_GVA, X_GPA, 1);
	vm->memslots[MEM_REGION_PT] = 0;
	old_table = addr_gpa2hva(vm, PT_GPA);
}

static void test_change(const struct change *change)
{
	bool good = true;
	int i;

	set_up_vm(0);
	for (i = 0; i < ARRAY_SIZE(insns); i++) {
		if (test_insn(&insns[i], change)) {
			restore_slots(change);
			continue;
		}

		/* The guest may be anywhere in the instruction. */
		ksft_print_msg("by %s\n", insns[i].name);
		good = false;
		kvm_vm_free(vm);
		set_up_vm(i + 1);
	}
	ksft_test_result(good, "%s\n", change->name);
	kvm_vm_free(vm);
}

int main(void)
{
	u8 *mem;
	int i;

	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(changes));

	mem = kvm_mmap((PT_PAGES + 2) * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	new_table = mem;
	x = (void *)mem + PT_PAGES * PAGE_SIZE;
	y = (void *)x + PAGE_SIZE;

	for (i = 0; i < ARRAY_SIZE(changes); i++)
		test_change(&changes[i]);

	kvm_munmap(mem, (PT_PAGES + 2) * PAGE_SIZE);
	ksft_finished();
}
