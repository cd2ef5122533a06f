// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): what the process does to the memory behind the
 * maps reaches every vCPU that has it mapped.
 */
#include "attr_util.h"
#include "gmap_guest.h"
#include "kvm_test_harness.h"

#define KSM		"/sys/kernel/mm/ksm/"

/* All map the same memory, each at another address. */
#define NR_VCPUS	3
#define NR_SEGMENTS	4

FIXTURE(memory)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[NR_VCPUS];
	u8 *mem;
};

#define test_data FIXTURE_DATA(memory)

static gpa_t gpa_of(int vcpu, u64 offset)
{
	return DATA_GPA + vcpu * SZ_16M + offset;
}

FIXTURE_SETUP(memory)
{
	int i;

	self->vm = gmap_vm_create();
	self->mem = segments_alloc(NR_SEGMENTS);
	for (i = 0; i < NR_VCPUS; i++) {
		self->vcpus[i] = gmap_guest_add(self->vm, i);
		gmap_map(self->vcpus[i], self->mem, gpa_of(i, 0),
			 NR_SEGMENTS * SEGMENT);
	}
}

FIXTURE_TEARDOWN(memory)
{
	kvm_vm_free(self->vm);
	munmap(self->mem, NR_SEGMENTS * SEGMENT);
}

static u64 *word(test_data *self, u64 offset)
{
	return (u64 *)(self->mem + offset);
}

static void all_read(test_data *self, u64 offset, u64 value)
{
	u64 seen;
	int i;

	for (i = 0; i < NR_VCPUS; i++) {
		seen = run_read(self->vcpus[i], gpa_of(i, offset));
		TEST_ASSERT(seen == value, "vCPU %d reads 0x%lx instead of 0x%lx", i,
			    seen, value);
	}
}

static void all_fail(test_data *self, u64 offset)
{
	int i;

	for (i = 0; i < NR_VCPUS; i++) {
		guest_set_call(self->vcpus[i], guest_read, gpa_of(i, offset), 0, 0);
		guest_run_fails(self->vcpus[i], EFAULT);
	}
}

TEST_F(memory, dont_need)
{
	run_write(self->vcpus[0], gpa_of(0, SEGMENT), 7);
	all_read(self, SEGMENT, 7);
	TEST_ASSERT(!madvise(self->mem, 2 * SEGMENT, MADV_DONTNEED), "errno %d", errno);
	all_read(self, SEGMENT, 0);
	*word(self, SEGMENT) = 8;
	all_read(self, SEGMENT, 8);
}

/* The map stays, and means whatever memory is there. */
TEST_F(memory, munmap)
{
	*word(self, SEGMENT) = 7;
	all_read(self, SEGMENT, 7);
	kvm_munmap(self->mem + SEGMENT, SEGMENT);
	all_fail(self, SEGMENT);
	all_fail(self, 2 * SEGMENT - 8);
	TEST_ASSERT(mmap(self->mem + SEGMENT, SEGMENT, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
		    self->mem + SEGMENT, "errno %d", errno);
	all_read(self, SEGMENT, 0);
}

TEST_F(memory, no_access)
{
	*word(self, 0) = 7;
	all_read(self, 0, 7);
	TEST_ASSERT(!mprotect(self->mem, SEGMENT, PROT_NONE), "errno %d", errno);
	all_fail(self, 0);
	TEST_ASSERT(!mprotect(self->mem, SEGMENT, PROT_READ), "errno %d", errno);
	all_read(self, 0, 7);
}

/* Writes to memory that the process may only read. */
TEST_F(memory, read_only)
{
	struct kvm_regs before, after;
	u64 *mem = word(self, 0);
	int i;

	*mem = 7;
	for (i = 0; i < NR_VCPUS; i++)
		run_write(self->vcpus[i], gpa_of(i, 0), 7);
	TEST_ASSERT(!mprotect(mem, SEGMENT, PROT_READ), "errno %d", errno);
	for (i = 0; i < NR_VCPUS; i++) {
		guest_set_call(self->vcpus[i], guest_write, gpa_of(i, 0), 100 + i, 0);
		vcpu_regs_get(self->vcpus[i], &before);
		guest_run_fails(self->vcpus[i], EFAULT);
		guest_run_fails(self->vcpus[i], EFAULT);
		vcpu_regs_get(self->vcpus[i], &after);
		EXPECT_EQ(before.rsi, after.rsi);
		EXPECT_EQ(7, *mem);
	}
	all_read(self, 0, 7);

	/* They can go on when the process may write there. */
	TEST_ASSERT(!mprotect(mem, SEGMENT, PROT_READ | PROT_WRITE), "errno %d", errno);
	for (i = 0; i < NR_VCPUS; i++) {
		run_write(self->vcpus[i], gpa_of(i, 0), 100 + i);
		EXPECT_EQ(100 + i, *mem);
	}
}

/* A file that is mapped for reading only, from the start. */
TEST_F(memory, read_only_file)
{
	int fd = segments_memfd(1);
	u8 *mem = segments_alias(fd, 1), *only;
	struct kvm_vcpu *vcpu = self->vcpus[0];
	gpa_t gpa = gpa_of(0, 8 * SEGMENT);

	only = segments_alloc_flags(1, PROT_READ, MAP_SHARED, fd);
	*(u64 *)mem = 9;
	gmap_map(vcpu, only, gpa, SEGMENT);
	EXPECT_EQ(9, run_read(vcpu, gpa));
	guest_set_call(vcpu, guest_write, gpa, 10, 0);
	guest_run_fails(vcpu, EFAULT);
	EXPECT_EQ(9, *(u64 *)mem);

	/* The other mapping of it may be written. */
	gmap_map(vcpu, mem, gpa, SEGMENT);
	EXPECT_EQ(10, guest_run(vcpu));
	EXPECT_EQ(10, *(u64 *)only);
	close(fd);
}

/* The process's private copy of a page, made by a write of the process. */
TEST_F(memory, copy_on_write)
{
	int fd = segments_memfd(NR_SEGMENTS);
	u8 *shared = segments_alias(fd, NR_SEGMENTS);

	*(u64 *)shared = 11;
	TEST_ASSERT(mmap(self->mem, NR_SEGMENTS * SEGMENT, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_FIXED, fd, 0) == self->mem,
		    "errno %d", errno);
	all_read(self, 0, 11);
	*word(self, 0) = 12;
	all_read(self, 0, 12);
	EXPECT_EQ(11, *(u64 *)shared);

	/* And by a write of the guest. */
	*(u64 *)(shared + SEGMENT) = 13;
	all_read(self, SEGMENT, 13);
	run_write(self->vcpus[2], gpa_of(2, SEGMENT), 14);
	all_read(self, SEGMENT, 14);
	EXPECT_EQ(13, *(u64 *)(shared + SEGMENT));
	close(fd);
}

/* Small pages become a huge one, under the same addresses. */
TEST_F(memory, collapse)
{
	u64 i, huge;

	madvise(self->mem, NR_SEGMENTS * SEGMENT, MADV_NOHUGEPAGE);
	for (i = 0; i < SZ_2M; i += PAGE_SIZE)
		*word(self, i) = i + 1;
	for (i = 0; i < SZ_2M; i += 16 * PAGE_SIZE)
		all_read(self, i, i + 1);
	EXPECT_EQ(0, vm_get_stat(self->vm, pages_2m));

	madvise(self->mem, NR_SEGMENTS * SEGMENT, MADV_HUGEPAGE);
	if (madvise(self->mem, SZ_2M, MADV_COLLAPSE))
		SKIP(return, "Cannot collapse pages, errno %d", errno);
	for (i = 0; i < SZ_2M; i += 16 * PAGE_SIZE) {
		*word(self, i) = i + 2;
		all_read(self, i, i + 2);
	}
	/* One for each vCPU. */
	huge = vm_get_stat(self->vm, pages_2m);
	EXPECT_GE(huge, NR_VCPUS);

	/* A new edge through it concerns the vCPU that has it. */
	gmap_unmap(self->vcpus[0], gpa_of(0, SEGMENT), SEGMENT);
	EXPECT_EQ(huge - 1, vm_get_stat(self->vm, pages_2m));
	EXPECT_EQ(2, run_read(self->vcpus[0], gpa_of(0, 0)));
	run_read_hole(self->vcpus[0], gpa_of(0, SEGMENT));
	EXPECT_EQ(2, run_read(self->vcpus[1], gpa_of(1, 0)));

	/* A huge page that is split again. */
	TEST_ASSERT(!madvise(self->mem, PAGE_SIZE, MADV_DONTNEED), "errno %d", errno);
	all_read(self, 0, 0);
	all_read(self, 16 * PAGE_SIZE, 16 * PAGE_SIZE + 2);
}

static bool await_ksm(void)
{
	char buf[32];
	int i;

	for (i = 0; i < 100; i++, usleep(100000))
		if (read_attr(KSM "pages_shared", buf, sizeof(buf)) && atoi(buf) > 0)
			return true;
	return false;
}

/* Pages with the same contents become one; a write takes them apart. */
TEST_F(memory, ksm)
{
	u64 *first, *second;
	bool merged;

	madvise(self->mem, NR_SEGMENTS * SEGMENT, MADV_NOHUGEPAGE);
	first = word(self, 0);
	second = word(self, SEGMENT);
	*first = 0x1dea1;
	*second = 0x1dea1;
	all_read(self, 0, 0x1dea1);
	all_read(self, SEGMENT, 0x1dea1);
	if (madvise(self->mem, NR_SEGMENTS * SEGMENT, MADV_MERGEABLE) ||
	    !write_attr(KSM "pages_to_scan", "2000") ||
	    !write_attr(KSM "run", "1"))
		SKIP(return, "No KSM");
	merged = await_ksm();
	write_attr(KSM "run", "0");
	if (!merged)
		SKIP(goto out, "KSM has merged nothing");

	all_read(self, 0, 0x1dea1);
	all_read(self, SEGMENT, 0x1dea1);
	run_write(self->vcpus[1], gpa_of(1, 0), 5);
	all_read(self, 0, 5);
	all_read(self, SEGMENT, 0x1dea1);
	*second = 6;
	all_read(self, 0, 5);
	all_read(self, SEGMENT, 6);
out:
	write_attr(KSM "run", "2");
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());

	return test_harness_run(argc, argv);
}
