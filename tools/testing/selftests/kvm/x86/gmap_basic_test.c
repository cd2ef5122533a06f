// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): mapping, unmapping, making present.
 *
 * The cases whose names begin with uc_ do what upstream's s390/ucontrol_test.c
 * does.
 */
#include "gmap_guest.h"
#include "kvm_test_harness.h"
#include "memory_region_list.h"

FIXTURE(uc_kvm)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *mem;
};

FIXTURE_SETUP(uc_kvm)
{
	self->vm = gmap_vm_with_guest(&self->vcpu);
	self->mem = segments_alloc(4);
	gmap_map(self->vcpu, self->mem, DATA_GPA, 4 * SEGMENT);
}

FIXTURE_TEARDOWN(uc_kvm)
{
	kvm_vm_free(self->vm);
}

TEST_F(uc_kvm, uc_no_dirty_log)
{
	struct kvm_dirty_log dlog = {};

	EXPECT_EQ(-1, __vm_ioctl(self->vm, KVM_GET_DIRTY_LOG, &dlog));
	EXPECT_EQ(EINVAL, errno);
}

TEST_F(uc_kvm, uc_no_user_region)
{
	struct kvm_userspace_memory_region region = {
		.slot = 1,
		.guest_phys_addr = DATA_GPA + SZ_256M,
		.memory_size = SEGMENT,
		.userspace_addr = (uintptr_t)self->mem,
	};
	struct kvm_userspace_memory_region2 region2 = {
		.slot = 1,
		.guest_phys_addr = DATA_GPA + SZ_256M,
		.memory_size = SEGMENT,
		.userspace_addr = (uintptr_t)self->mem,
	};

	EXPECT_EQ(-1, __vm_ioctl(self->vm, KVM_SET_USER_MEMORY_REGION, &region));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, __vm_ioctl(self->vm, KVM_SET_USER_MEMORY_REGION2, &region2));
	EXPECT_EQ(EINVAL, errno);
}

static u64 guest_write_and_read(u64 *addr, u64 value)
{
	WRITE_ONCE(*addr, value);
	guest_sync(0);
	return READ_ONCE(*addr);
}

/*
 * A store to a segment that is not mapped exits, and is executed when userspace
 * has mapped the segment.
 */
TEST_F(uc_kvm, uc_map_unmap)
{
	const u64 disp = 0x3a48;
	const gpa_t gpa = DATA_GPA + 16 * SEGMENT;
	u8 *mem = segments_alloc(2);
	u64 *word = (u64 *)(mem + disp);

	guest_set_call(self->vcpu, guest_write_and_read, gpa + disp, 0x1234567, 0);
	guest_run_to_hole(self->vcpu, gpa + disp);
	/* Nothing changes if userspace only runs the vCPU again. */
	guest_run_to_hole(self->vcpu, gpa + disp);

	/* A mapping that is not aligned fails, and maps nothing. */
	EXPECT_EQ(EINVAL, __gmap_map(self->vcpu, mem + PAGE_SIZE, gpa, SEGMENT));
	EXPECT_EQ(EINVAL, __gmap_map(self->vcpu, mem, gpa, SEGMENT - 1));
	guest_run_to_hole(self->vcpu, gpa + disp);

	gmap_map(self->vcpu, mem, gpa, SEGMENT);
	EXPECT_EQ(0, guest_run(self->vcpu));
	EXPECT_EQ(0x1234567, *word);

	/* The load that follows the store. */
	gmap_unmap(self->vcpu, gpa, SEGMENT);
	guest_run_to_hole(self->vcpu, gpa + disp);
	*word = 0xabcdef;
	gmap_map(self->vcpu, mem, gpa, SEGMENT);
	EXPECT_EQ(0xabcdef, guest_run(self->vcpu));

	/* The segment after it was never mapped. */
	run_read_hole(self->vcpu, gpa + SEGMENT);
}

/* Loads numbers into registers, and counts rounds. */
static __guest_asm void test_gprs_asm(void)
{
	asm("	xor	%rax, %rax\n"
	    "	mov	$1, %rbx\n"
	    "	mov	$2, %rcx\n"
	    "	mov	$3, %rdx\n"
	    "	mov	$4, %rsi\n"
	    "	mov	$5, %rdi\n"
	    "	mov	$6, %r8\n"
	    "	mov	$7, %r15\n"
	    "0:\n"
	    "	outb	%al, $0x80\n"
	    "	add	$1, %rax\n"
	    "	jmp	0b\n");
}

TEST_F(uc_kvm, uc_gprs)
{
	struct kvm_regs regs;
	int i;

	guest_set_call(self->vcpu, test_gprs_asm, 0, 0, 0);
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(i, guest_run(self->vcpu));
		vcpu_regs_get(self->vcpu, &regs);
		EXPECT_EQ(1, regs.rbx);
		EXPECT_EQ(2, regs.rcx);
		EXPECT_EQ(3, regs.rdx);
		EXPECT_EQ(4, regs.rsi);
		EXPECT_EQ(5, regs.rdi);
		EXPECT_EQ(6, regs.r8);
		EXPECT_EQ(7, regs.r15);
	}

	/* Registers that userspace sets take effect. */
	regs.rax = 100;
	vcpu_regs_set(self->vcpu, &regs);
	EXPECT_EQ(101, guest_run(self->vcpu));
}

/* Each page of the memory, its number in the first word. */
static void number_pages(u8 *mem, u64 nr_segments, u64 first)
{
	u64 i;

	for (i = 0; i < nr_segments * SEGMENT / PAGE_SIZE; i++)
		*(u64 *)(mem + i * PAGE_SIZE) = first + i;
}

/* A mapping over a mapping replaces it; the rest of that stays. */
TEST_F(uc_kvm, map_replaces)
{
	u8 *other = segments_alloc(3);
	gpa_t gpa = DATA_GPA;
	u64 i;

	number_pages(self->mem, 4, 0x10000);
	number_pages(other, 3, 0x20000);
	for (i = 0; i < 4; i++)
		EXPECT_EQ(0x10000 + i * 256, run_read(self->vcpu, gpa + i * SEGMENT));

	gmap_map(self->vcpu, other + SEGMENT, gpa + SEGMENT, 2 * SEGMENT);
	EXPECT_EQ(0x10000, run_read(self->vcpu, gpa));
	EXPECT_EQ(0x20000 + 256, run_read(self->vcpu, gpa + SEGMENT));
	EXPECT_EQ(0x20000 + 512, run_read(self->vcpu, gpa + 2 * SEGMENT));
	EXPECT_EQ(0x10000 + 768, run_read(self->vcpu, gpa + 3 * SEGMENT));
	EXPECT_EQ(0x10000 + 255, run_read(self->vcpu, gpa + SEGMENT - PAGE_SIZE));
	EXPECT_EQ(0x20000 + 767,
		  run_read(self->vcpu, gpa + 3 * SEGMENT - PAGE_SIZE));

	run_write(self->vcpu, gpa + SEGMENT, 5);
	EXPECT_EQ(5, *(u64 *)(other + SEGMENT));
	EXPECT_EQ(0x10000 + 256, *(u64 *)(self->mem + SEGMENT));

	/* A hole in the middle of it. */
	gmap_unmap(self->vcpu, gpa + SEGMENT, SEGMENT);
	run_read_hole(self->vcpu, gpa + SEGMENT);
	run_read_hole(self->vcpu, gpa + 2 * SEGMENT - 8);
	EXPECT_EQ(0x10000 + 255, run_read(self->vcpu, gpa + SEGMENT - PAGE_SIZE));
	EXPECT_EQ(0x20000 + 512, run_read(self->vcpu, gpa + 2 * SEGMENT));

	/* One mapping over a hole and several mappings. */
	gmap_map(self->vcpu, self->mem, gpa, 4 * SEGMENT);
	for (i = 0; i < 4; i++)
		EXPECT_EQ(0x10000 + i * 256, run_read(self->vcpu, gpa + i * SEGMENT));
}

/* The same memory may be mapped several times, in any order. */
TEST_F(uc_kvm, map_aliases)
{
	u64 i;

	number_pages(self->mem, 4, 0x10000);
	for (i = 0; i < 4; i++)
		gmap_map(self->vcpu, self->mem + i * SEGMENT,
			 DATA_GPA + (10 - i) * SEGMENT, SEGMENT);
	for (i = 0; i < 4; i++)
		EXPECT_EQ(0x10000 + i * 256,
			  run_read(self->vcpu, DATA_GPA + (10 - i) * SEGMENT));
	run_write(self->vcpu, DATA_GPA + 10 * SEGMENT, 77);
	EXPECT_EQ(77, run_read(self->vcpu, DATA_GPA));
}

/* Unmapping ranges that are mapped in part, or not at all. */
TEST_F(uc_kvm, unmap)
{
	u64 i;

	gmap_unmap(self->vcpu, DATA_GPA + 100 * SEGMENT, 7 * SEGMENT);
	gmap_unmap(self->vcpu, DATA_GPA + 3 * SEGMENT, 7 * SEGMENT);
	gmap_unmap(self->vcpu, DATA_GPA - 9 * SEGMENT, 10 * SEGMENT);
	for (i = 0; i < 4; i++)
		EXPECT_EQ(i == 1 || i == 2,
			  gmap_is_mapped(self->vcpu, DATA_GPA + i * SEGMENT));
	gmap_unmap(self->vcpu, DATA_GPA, SZ_1G);
	for (i = 0; i < 4; i++)
		EXPECT_FALSE(gmap_is_mapped(self->vcpu, DATA_GPA + i * SEGMENT));

	/* Everything, the guest's own memory included. */
	guest_set_call(self->vcpu, guest_read, DATA_GPA, 0, 0);
	gmap_unmap(self->vcpu, 0, BIT_ULL(self->vm->pa_bits));
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_S390_UCONTROL);
	EXPECT_FALSE(gmap_is_mapped(self->vcpu, BOOT_GPA));
	EXPECT_FALSE(gmap_is_mapped(self->vcpu, image_gpa()));
}

/* UNMAP ignores user_addr. */
TEST_F(uc_kvm, unmap_user_addr)
{
	struct kvm_s390_ucas_mapping mapping = {
		.user_addr = 0xdeadbeefdeadbeef,
		.vcpu_addr = DATA_GPA,
		.length = SEGMENT,
	};

	EXPECT_EQ(0, __vcpu_ioctl(self->vcpu, KVM_S390_UCAS_UNMAP, &mapping));
	EXPECT_FALSE(gmap_is_mapped(self->vcpu, DATA_GPA));
	EXPECT_TRUE(gmap_is_mapped(self->vcpu, DATA_GPA + SEGMENT));
}

static bool is_resident(void *mem)
{
	u8 vec;

	TEST_ASSERT(!mincore(mem, PAGE_SIZE, &vec), "errno %d", errno);
	return vec & 1;
}

/* Mapping alone brings nothing in, neither on the host nor for the guest. */
TEST_F(uc_kvm, map_is_lazy)
{
	int fd = segments_memfd(2);
	u8 *mem = segments_alias(fd, 2);
	u64 pages = vm_get_stat(self->vm, pages_4k);
	gpa_t gpa = DATA_GPA + 8 * SEGMENT;

	gmap_map(self->vcpu, mem, gpa, 2 * SEGMENT);
	EXPECT_FALSE(is_resident(mem));
	EXPECT_FALSE(is_resident(mem + SEGMENT));
	EXPECT_EQ(pages, vm_get_stat(self->vm, pages_4k));

	run_write(self->vcpu, gpa + PAGE_SIZE, 1);
	EXPECT_TRUE(is_resident(mem + PAGE_SIZE));
	EXPECT_FALSE(is_resident(mem + SEGMENT));
	close(fd);
}

/* KVM_S390_VCPU_FAULT takes the address itself, and makes its page present. */
TEST_F(uc_kvm, vcpu_fault)
{
	struct kvm_run *run = self->vcpu->run;
	u8 *hole;
	u64 faults;

	/* The guest has run before: no other page is missing. */
	run_read(self->vcpu, DATA_GPA + SEGMENT);
	EXPECT_EQ(0, __gmap_fault(self->vcpu, DATA_GPA + 5 * PAGE_SIZE));
	faults = vcpu_get_stat(self->vcpu, pf_taken);
	EXPECT_EQ(0, run_read(self->vcpu, DATA_GPA + 5 * PAGE_SIZE));
	EXPECT_EQ(faults, vcpu_get_stat(self->vcpu, pf_taken));
	run_read(self->vcpu, DATA_GPA + 6 * PAGE_SIZE);
	EXPECT_NE(faults, vcpu_get_stat(self->vcpu, pf_taken));

	/* Any address of the page will do. */
	EXPECT_EQ(0, __gmap_fault(self->vcpu, DATA_GPA + 7 * PAGE_SIZE + 0x123));
	faults = vcpu_get_stat(self->vcpu, pf_taken);
	run_read(self->vcpu, DATA_GPA + 7 * PAGE_SIZE);
	EXPECT_EQ(faults, vcpu_get_stat(self->vcpu, pf_taken));

	memset(&run->s390_ucontrol, 0xff, sizeof(run->s390_ucontrol));
	run->exit_reason = 0;
	EXPECT_EQ(EREMOTE, __gmap_fault(self->vcpu,
					DATA_GPA + 4 * SEGMENT + 0x3333));
	assert_hole_exit(self->vcpu, DATA_GPA + 4 * SEGMENT + 0x3000);

	/* Nothing behind the mapping. */
	hole = segments_alloc_flags(1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	gmap_map(self->vcpu, hole, DATA_GPA + 8 * SEGMENT, SEGMENT);
	EXPECT_EQ(EFAULT, __gmap_fault(self->vcpu, DATA_GPA + 8 * SEGMENT));
	kvm_munmap(hole, SEGMENT);
	EXPECT_EQ(EFAULT, __gmap_fault(self->vcpu, DATA_GPA + 8 * SEGMENT));
}

/* The access is a read: memory that was never written stays as it is. */
TEST_F(uc_kvm, vcpu_fault_reads)
{
	u8 *mem = segments_alloc_flags(1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	gmap_map(self->vcpu, mem, DATA_GPA, SEGMENT);
	EXPECT_EQ(0, __gmap_fault(self->vcpu, DATA_GPA));
	EXPECT_EQ(0, run_read(self->vcpu, DATA_GPA));
}

static int map_memory(struct kvm_vcpu *vcpu, gpa_t gpa, u64 nr_pages, u64 flags,
		      u64 *left)
{
	struct kvm_memory_mapping m = {
		.base_gfn = gpa >> PAGE_SHIFT,
		.nr_pages = nr_pages,
		.flags = flags,
	};
	int err;

	do {
		err = __vcpu_ioctl(vcpu, KVM_MAP_MEMORY, &m) ? errno : 0;
	} while (err == EAGAIN || err == EINTR);
	*left = m.nr_pages;
	return err;
}

/* KVM_MAP_MEMORY populates the vCPU's own map, and stops at a hole. */
TEST_F(uc_kvm, map_memory)
{
	const u64 nr_pages = 4 * SEGMENT / PAGE_SIZE;
	struct kvm_vcpu *other = gmap_guest_add(self->vm, 1);
	struct kvm_run *run = self->vcpu->run;
	u64 left, faults, i;

	/* The guest's own memory is present before. */
	run_write(self->vcpu, DATA_GPA, 0);
	EXPECT_EQ(0, map_memory(self->vcpu, DATA_GPA, nr_pages,
				KVM_MEMORY_MAPPING_FLAG_WRITE, &left));
	EXPECT_EQ(0, left);
	faults = vcpu_get_stat(self->vcpu, pf_taken);
	for (i = 0; i < nr_pages; i += 37)
		run_write(self->vcpu, DATA_GPA + i * PAGE_SIZE, i);
	EXPECT_EQ(faults, vcpu_get_stat(self->vcpu, pf_taken));

	/* The hole is no exit. */
	run->exit_reason = 0;
	run->s390_ucontrol.trans_exc_code = 0x5a5a;
	EXPECT_EQ(ENOENT, map_memory(self->vcpu, DATA_GPA + 3 * SEGMENT, 300, 0,
				     &left));
	EXPECT_EQ(300 - 256, left);
	EXPECT_EQ(ENOENT, map_memory(self->vcpu, DATA_GPA + 4 * SEGMENT, 1, 0, &left));
	EXPECT_EQ(0, run->exit_reason);
	EXPECT_EQ(0x5a5a, run->s390_ucontrol.trans_exc_code);

	/* Another vCPU's map is another map. */
	EXPECT_EQ(ENOENT, map_memory(other, DATA_GPA, 1, 0, &left));
	EXPECT_EQ(1, left);
}

/* The same for upstream's KVM_PRE_FAULT_MEMORY. */
TEST_F(uc_kvm, pre_fault_memory)
{
	struct kvm_pre_fault_memory range = {
		.gpa = DATA_GPA,
		.size = 5 * SEGMENT,
	};
	u64 faults;
	int r;

	run_read(self->vcpu, DATA_GPA);
	/* It hides errors after progress. */
	do {
		r = __vcpu_ioctl(self->vcpu, KVM_PRE_FAULT_MEMORY, &range);
	} while (r ? errno == EAGAIN || errno == EINTR : range.size);
	EXPECT_EQ(-1, r);
	EXPECT_EQ(ENOENT, errno);
	EXPECT_EQ(DATA_GPA + 4 * SEGMENT, range.gpa);
	EXPECT_EQ(SEGMENT, range.size);
	faults = vcpu_get_stat(self->vcpu, pf_taken);
	run_read(self->vcpu, DATA_GPA + 3 * SEGMENT);
	EXPECT_EQ(faults, vcpu_get_stat(self->vcpu, pf_taken));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());

	return test_harness_run(argc, argv);
}
