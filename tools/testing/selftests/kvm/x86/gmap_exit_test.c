// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): accesses of the guest to segments that are not
 * mapped.  Each exits, exits again if userspace maps nothing, and is carried out
 * once, as a whole, when userspace has mapped the segment.
 *
 * The processor makes these accesses; see gmap_emulate_test.c for those that KVM
 * makes.
 */
#include "gmap_guest.h"
#include "kvm_test_harness.h"

/* The guest has the segment below this address. */
#define HOLE_GPA	(DATA_GPA + SEGMENT)

FIXTURE(hole)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	/* Two segments, of which the first is mapped at DATA_GPA. */
	u8 *mem;
};

FIXTURE_SETUP(hole)
{
	self->vm = gmap_vm_with_guest(&self->vcpu);
	self->mem = segments_alloc(2);
	gmap_map(self->vcpu, self->mem, DATA_GPA, SEGMENT);
}

FIXTURE_TEARDOWN(hole)
{
	kvm_vm_free(self->vm);
}

TEST_F(hole, read)
{
	u64 *word = (u64 *)(self->mem + SEGMENT + 0x2340);

	*word = 0x123456789abcdef0;
	guest_set_call(self->vcpu, guest_read, HOLE_GPA + 0x2340, 0, 0);
	exit_and_map(self->vcpu, HOLE_GPA + 0x2340, self->mem + SEGMENT);
	EXPECT_EQ(*word, guest_run(self->vcpu));
}

TEST_F(hole, write)
{
	u64 *word = (u64 *)(self->mem + 2 * SEGMENT - 8);

	guest_set_call(self->vcpu, guest_write, HOLE_GPA + SEGMENT - 8, 42, 0);
	exit_and_map(self->vcpu, HOLE_GPA + SEGMENT - 8, self->mem + SEGMENT);
	EXPECT_EQ(0, *word);
	EXPECT_EQ(42, guest_run(self->vcpu));
	EXPECT_EQ(42, *word);
}

static u64 guest_add(u64 *addr, u64 value)
{
	return __sync_fetch_and_add(addr, value);
}

TEST_F(hole, read_modify_write)
{
	u64 *word = (u64 *)(self->mem + SEGMENT);

	*word = 1000;
	guest_set_call(self->vcpu, guest_add, HOLE_GPA, 7, 0);
	exit_and_map(self->vcpu, HOLE_GPA, self->mem + SEGMENT);
	EXPECT_EQ(1000, guest_run(self->vcpu));
	EXPECT_EQ(1007, *word);
}

/* The address is that of the half which is missing. */
TEST_F(hole, write_across)
{
	u32 *half = (u32 *)(self->mem + SEGMENT - 4);

	guest_set_call(self->vcpu, guest_write, HOLE_GPA - 4, 0x1111111122222222, 0);
	guest_run_to_hole(self->vcpu, HOLE_GPA);
	EXPECT_EQ(0, half[0]);
	exit_and_map(self->vcpu, HOLE_GPA, self->mem + SEGMENT);
	EXPECT_EQ(0, half[0]);
	guest_run(self->vcpu);
	EXPECT_EQ(0x22222222, half[0]);
	EXPECT_EQ(0x11111111, half[1]);

	/* Into a hole below. */
	gmap_unmap(self->vcpu, DATA_GPA, SEGMENT);
	guest_set_call(self->vcpu, guest_write, HOLE_GPA - 4, 0x3333333344444444, 0);
	guest_run_to_hole(self->vcpu, HOLE_GPA - 4);
	EXPECT_EQ(0x22222222, half[0]);
	EXPECT_EQ(0x11111111, half[1]);
	exit_and_map(self->vcpu, HOLE_GPA - 4, self->mem);
	guest_run(self->vcpu);
	EXPECT_EQ(0x44444444, half[0]);
	EXPECT_EQ(0x33333333, half[1]);
}

TEST_F(hole, fetch)
{
	put_function(self->mem + SEGMENT + 0x100, 0xc0de);
	guest_set_call(self->vcpu, guest_call_at, HOLE_GPA + 0x100, 0, 0);
	exit_and_map(self->vcpu, HOLE_GPA + 0x100, self->mem + SEGMENT);
	EXPECT_EQ(0xc0de, guest_run(self->vcpu));
}

/* An instruction that begins in memory and ends in a hole. */
TEST_F(hole, fetch_across)
{
	int i;

	for (i = 1; i < 6; i++) {
		put_function(self->mem + SEGMENT - i, 0xc0de + i);
		guest_set_call(self->vcpu, guest_call_at, HOLE_GPA - i, 0, 0);
		exit_and_map(self->vcpu, HOLE_GPA, self->mem + SEGMENT);
		EXPECT_EQ(0xc0de + i, guest_run(self->vcpu));
		gmap_unmap(self->vcpu, HOLE_GPA, SEGMENT);
	}
}

/* The last instruction in memory needs nothing of the hole after it. */
TEST_F(hole, fetch_before_hole)
{
	put_function(self->mem + SEGMENT - 6, 0xc0de);
	EXPECT_EQ(0xc0de, guest_call(self->vcpu, guest_call_at, HOLE_GPA - 6, 0, 0));
}

/* Pushes @value where @rsp says, and returns the stack pointer's offset. */
static __guest_asm void guest_push(void)
{
	asm("	mov	%rsp, %rdx\n"
	    "	mov	%rdi, %rsp\n"
	    "	push	%rsi\n"
	    "	mov	%rsp, %rax\n"
	    "	mov	%rdx, %rsp\n"
	    "	ret\n");
}

static __guest_asm void guest_pop(void)
{
	asm("	mov	%rsp, %rdx\n"
	    "	mov	%rdi, %rsp\n"
	    "	pop	%rax\n"
	    "	mov	%rdx, %rsp\n"
	    "	ret\n");
}

TEST_F(hole, stack)
{
	u64 *word = (u64 *)(self->mem + 2 * SEGMENT - 8);

	guest_set_call(self->vcpu, guest_push, HOLE_GPA + SEGMENT, 0x57ac, 0);
	exit_and_map(self->vcpu, HOLE_GPA + SEGMENT - 8, self->mem + SEGMENT);
	EXPECT_EQ(HOLE_GPA + SEGMENT - 8, guest_run(self->vcpu));
	EXPECT_EQ(0x57ac, *word);

	gmap_unmap(self->vcpu, HOLE_GPA, SEGMENT);
	guest_set_call(self->vcpu, guest_pop, HOLE_GPA + SEGMENT - 8, 0, 0);
	exit_and_map(self->vcpu, HOLE_GPA + SEGMENT - 8, self->mem + SEGMENT);
	EXPECT_EQ(0x57ac, guest_run(self->vcpu));
}

/* Copies 1024 words, the last 512 of which are in the hole. */
static __guest_asm void guest_movs(void)
{
	asm("	mov	$1024, %ecx\n"
	    "	rep movsq\n"
	    "	mov	%rcx, %rax\n"
	    "	ret\n");
}

TEST_F(hole, string)
{
	u64 *to = (u64 *)(self->mem + SEGMENT - PAGE_SIZE), *from = (u64 *)self->mem;
	struct kvm_regs regs;
	int i;

	for (i = 0; i < 1024; i++)
		from[i] = i + 1;
	guest_set_call(self->vcpu, guest_movs, HOLE_GPA - PAGE_SIZE, DATA_GPA, 0);
	exit_and_map(self->vcpu, HOLE_GPA, self->mem + SEGMENT);
	vcpu_regs_get(self->vcpu, &regs);
	EXPECT_EQ(512, regs.rcx);
	EXPECT_EQ(HOLE_GPA, regs.rdi);
	EXPECT_EQ(0, guest_run(self->vcpu));
	for (i = 0; i < 1024; i++)
		EXPECT_EQ(i + 1, to[i]);
}

TEST_F(hole, page_tables)
{
	u8 *table_mem[NR_LEVELS + 1];
	int level;

	*(u64 *)self->mem = 0x7ab1e;
	set_up_tables(self->vcpu, table_mem);
	guest_set_call(self->vcpu, guest_read, MAPPED_GVA, 0, 0);
	for (level = NR_LEVELS; level >= 1; level--)
		exit_and_map(self->vcpu, TABLE_GPA(level), table_mem[level]);
	EXPECT_EQ(0x7ab1e, guest_run(self->vcpu));

	/* They may go again, and come with other contents. */
	boot_write(table_mem[1], 0, 0, HOLE_GPA | PTE_BITS);
	for (level = 1; level <= NR_LEVELS; level++) {
		gmap_unmap(self->vcpu, TABLE_GPA(level), SEGMENT);
		guest_set_call(self->vcpu, guest_read, MAPPED_GVA, 0, 0);
		exit_and_map(self->vcpu, TABLE_GPA(level), table_mem[level]);
	}
	exit_and_map(self->vcpu, HOLE_GPA, self->mem + SEGMENT);
	EXPECT_EQ(0, guest_run(self->vcpu));
}

static bool translates(struct kvm_vcpu *vcpu, gva_t gva, gpa_t *gpa)
{
	struct kvm_translation tr = { .linear_address = gva };

	vcpu_ioctl(vcpu, KVM_TRANSLATE, &tr);
	*gpa = tr.physical_address;
	return tr.valid;
}

/* Userspace that asks for a translation is not the guest, and causes no exit. */
TEST_F(hole, translate)
{
	u8 *table_mem[NR_LEVELS + 1];
	int level;
	gpa_t gpa;

	*(u64 *)self->mem = 0x7ab1e;
	set_up_tables(self->vcpu, table_mem);
	for (level = NR_LEVELS; level >= 1; level--) {
		EXPECT_FALSE(translates(self->vcpu, MAPPED_GVA, &gpa))
			TH_LOG("level %d", level);
		gmap_map(self->vcpu, table_mem[level], TABLE_GPA(level), SEGMENT);
	}
	EXPECT_TRUE(translates(self->vcpu, MAPPED_GVA, &gpa));
	EXPECT_EQ(DATA_GPA, gpa);

	/* What userspace has missed is not taken for what the guest misses. */
	gmap_unmap(self->vcpu, TABLE_GPA(1), SEGMENT);
	EXPECT_FALSE(translates(self->vcpu, MAPPED_GVA, &gpa));
	gmap_map(self->vcpu, table_mem[1], TABLE_GPA(1), SEGMENT);
	guest_set_call(self->vcpu, guest_read, MAPPED_GVA, 0, 0);
	EXPECT_EQ(0x7ab1e, guest_run(self->vcpu));
}

/* A page that the guest's tables do not map is the guest's own business. */
TEST_F(hole, not_present)
{
	u8 *table_mem[NR_LEVELS + 1];

	set_up_tables(self->vcpu, table_mem);
	gmap_map(self->vcpu, table_mem[4], TABLE_GPA(4), SEGMENT);
	guest_set_call(self->vcpu, guest_read, 2 * MAPPED_GVA, 0, 0);
	/* The #PF finds no IDT. */
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_SHUTDOWN);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());

	return test_harness_run(argc, argv);
}
