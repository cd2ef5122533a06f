// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST creates slots that are bound to a guest_memfd.
 *
 * The rules are those of KVM_SET_USER_MEMORY_REGION2, applied entry by entry: what
 * a slot is bound to is free for the entries after the one that deletes it.  If an
 * entry fails, no slot has been bound or unbound.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "memory_region_list.h"
#include "processor.h"
#include "test_util.h"

#define WINDOW_GPA	0xc0000000ul
#define FILE_PAGES	32
#define FLAGS		(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

/* The host tells the guest which page of the window it wants to know. */
static void guest_code(void)
{
	for (;;)
		GUEST_SYNC1(READ_ONCE(*(u64 *)(WINDOW_GPA + READ_ONCE(*(u64 *)WINDOW_GPA))));
}

FIXTURE(memfd)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	/* Ordinary memory, the first page of the window. */
	u64 *mem;
	u64 *contents;
	int fd;
};

FIXTURE_SETUP(memfd)
{
	int i;

	self->vm = vm_create_with_one_vcpu(&self->vcpu, guest_code);
	virt_map(self->vm, WINDOW_GPA, WINDOW_GPA, 1 + 2 * FILE_PAGES);
	self->mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_region_list(self->vm, region_set(9, 0, WINDOW_GPA, PAGE_SIZE,
						self->mem));

	self->fd = vm_create_guest_memfd(self->vm, FILE_PAGES * PAGE_SIZE, FLAGS);
	self->contents = kvm_mmap(FILE_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
				  MAP_SHARED, self->fd);
	for (i = 0; i < FILE_PAGES; i++)
		self->contents[i * PAGE_SIZE / 8] = 1000 + i;
}

FIXTURE_TEARDOWN(memfd)
{
	kvm_munmap(self->contents, FILE_PAGES * PAGE_SIZE);
	close(self->fd);
	kvm_vm_free(self->vm);
	kvm_munmap(self->mem, PAGE_SIZE);
}

/* @nr pages from page @at of the window on, bound from page @page of the file on. */
static struct region_entry bound(u32 slot, int fd, int at, int nr, int page)
{
	struct region_entry entry;

	entry = region_set(slot, KVM_MEM_GUEST_MEMFD,
			   WINDOW_GPA + (1 + at) * PAGE_SIZE, nr * PAGE_SIZE,
			   NULL);
	entry.guest_memfd = fd;
	entry.guest_memfd_offset = (u64)page * PAGE_SIZE;
	return entry;
}

#define UNMAPPED	~0ul

/* The page of the file that the guest finds at page @at of the window. */
static void check_page(struct kvm_vcpu *vcpu, u64 *mem, int at, u64 want)
{
	struct kvm_run *run = vcpu->run;
	struct ucall uc;
	u64 val;

	mem[0] = (1 + at) * PAGE_SIZE;
	vcpu_run(vcpu);
	if (run->exit_reason == KVM_EXIT_MMIO) {
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		vcpu_run(vcpu);
	}
	TEST_ASSERT(get_ucall(vcpu, &uc) == UCALL_SYNC, "Unexpected exit: %s",
		    exit_reason_str(run->exit_reason));
	val = uc.args[0];
	TEST_ASSERT(val == want, "Page %d of the window is %lu, not %lu", at, val,
		    want);
}

/* Page @at of the window is page @page of the file. */
#define is_page(at, page)	check_page(self->vcpu, self->mem, at, 1000 + (page))
#define is_hole(at)		check_page(self->vcpu, self->mem, at, UNMAPPED)
#define is_empty_page(at)	check_page(self->vcpu, self->mem, at, 0)

#define list_fails(err, ...)						\
do {									\
	const struct region_entry __e[] = { __VA_ARGS__ };		\
	int __r = __vm_set_region_list(self->vm, ARRAY_SIZE(__e), __e);	\
	int __err = (err);						\
									\
	TEST_ASSERT(__r == -1 && errno == __err,			\
		    "Wanted errno %d, got %d, errno %d", __err, __r, errno); \
} while (0)

TEST_F(memfd, create_and_delete)
{
	u32 fields = kvm_check_cap(KVM_CAP_USER_MEMORY_REGION_LIST_FIELDS);

	TEST_ASSERT(fields & KVM_MEMORY_REGION_LIST_GUEST_MEMFD,
		    "The fields are 0x%x", fields);

	vm_set_region_list(self->vm, bound(10, self->fd, 0, 4, 0),
			   bound(11, self->fd, 4, 4, 8));
	is_page(0, 0);
	is_page(3, 3);
	is_page(4, 8);
	is_page(7, 11);
	is_hole(8);

	vm_set_region_list(self->vm, region_delete(10));
	is_hole(0);
	is_page(4, 8);
	/* A deletion may say what the slot is bound to. */
	list_fails(EINVAL, bound(11, self->fd, 4, 4, 8));
	vm_set_region_list(self->vm, bound(11, self->fd, 4, 0, 8));
	is_hole(4);
}

TEST_F(memfd, bad_arguments)
{
	struct region_entry entry;
	struct kvm_vm *other;
	int i, fd, closed;

	/* Without the flag, the fields must be 0. */
	entry = region_set(10, 0, WINDOW_GPA + PAGE_SIZE, 0, NULL);
	entry.memory_size = PAGE_SIZE;
	entry.userspace_addr = (uintptr_t)self->mem;
	entry.guest_memfd = self->fd;
	list_fails(EINVAL, entry);
	entry.guest_memfd = 0;
	entry.guest_memfd_offset = PAGE_SIZE;
	list_fails(EINVAL, entry);

	entry = bound(10, self->fd, 0, 4, 0);
	for (i = 1; i < PAGE_SIZE; i <<= 1) {
		entry.guest_memfd_offset = i;
		list_fails(EINVAL, entry);
	}
	entry.guest_memfd_offset = -4 * PAGE_SIZE;
	list_fails(EINVAL, entry);
	list_fails(EINVAL, bound(10, self->fd, 0, 4, FILE_PAGES - 3));
	list_fails(EINVAL, bound(10, self->fd, 0, FILE_PAGES + 1, 0));

	entry = bound(10, self->fd, 0, 4, 0);
	entry.flags |= KVM_MEM_LOG_DIRTY_PAGES;
	list_fails(EINVAL, entry);
	entry.flags = KVM_MEM_GUEST_MEMFD | KVM_MEM_READONLY;
	list_fails(EINVAL, entry);

	closed = dup(self->fd);
	close(closed);
	list_fails(EBADF, bound(10, closed, 0, 4, 0));
	list_fails(EBADF, bound(10, -1, 0, 4, 0));

	fd = open("/dev/null", O_RDWR);
	list_fails(EINVAL, bound(10, fd, 0, 4, 0));
	close(fd);

	other = vm_create_barebones();
	fd = vm_create_guest_memfd(other, FILE_PAGES * PAGE_SIZE, FLAGS);
	list_fails(EINVAL, bound(10, fd, 0, 4, 0));
	close(fd);
	kvm_vm_free(other);

	/* The first entry that fails counts. */
	list_fails(EBADF, bound(10, closed, 0, 4, 0),
		   bound(11, self->fd, -1, 4, 0));
	list_fails(EEXIST, bound(11, self->fd, -1, 4, 0),
		   bound(10, closed, 0, 4, 0));
	list_fails(EBADF, bound(10, closed, 0, 4, 0), region_delete(10));
	is_hole(0);
}

TEST_F(memfd, bound_already)
{
	int fd;

	vm_set_region_list(self->vm, bound(10, self->fd, 0, 4, 4));

	list_fails(EEXIST, bound(11, self->fd, 8, 4, 7));
	list_fails(EEXIST, bound(11, self->fd, 8, 4, 1));
	list_fails(EEXIST, bound(11, self->fd, 8, 12, 0));
	list_fails(EEXIST, bound(11, self->fd, 8, 1, 5));
	vm_set_region_list(self->vm, bound(11, self->fd, 8, 4, 8),
			   bound(12, self->fd, 12, 4, 0));

	/* By an earlier entry of the list, which may be gone. */
	list_fails(EEXIST, bound(13, self->fd, 16, 4, 16),
		   bound(14, self->fd, 20, 4, 19));
	list_fails(EEXIST, bound(13, self->fd, 16, 4, 16),
		   bound(14, self->fd, 20, 1, 18), region_delete(13));
	vm_set_region_list(self->vm, bound(13, self->fd, 16, 4, 16),
			   region_delete(13), bound(14, self->fd, 20, 4, 18));
	is_hole(16);
	is_page(20, 18);

	/* Before and after the slot is deleted. */
	list_fails(EEXIST, bound(13, self->fd, 16, 4, 4), region_delete(10));
	is_page(0, 4);
	vm_set_region_list(self->vm, region_delete(10),
			   bound(13, self->fd, 16, 4, 4));
	is_hole(0);
	is_page(16, 4);

	/* The same pages of another file. */
	fd = vm_create_guest_memfd(self->vm, FILE_PAGES * PAGE_SIZE, FLAGS);
	vm_set_region_list(self->vm, bound(10, fd, 0, 4, 4));
	is_empty_page(0);
	vm_set_region_list(self->vm, region_delete(10));
	close(fd);
}

/* Slots are split, merged, exchanged and moved by deleting and creating them. */
TEST_F(memfd, take_over)
{
	int i;

	vm_set_region_list(self->vm, bound(10, self->fd, 0, 16, 0));
	is_page(3, 3);
	is_page(12, 12);

	vm_set_region_list(self->vm, region_delete(10),
			   bound(10, self->fd, 0, 8, 0),
			   bound(11, self->fd, 8, 8, 8));
	for (i = 0; i < 16; i += 3)
		is_page(i, i);

	/* The halves change places. */
	vm_set_region_list(self->vm, region_delete(10), region_delete(11),
			   bound(11, self->fd, 0, 8, 8),
			   bound(10, self->fd, 8, 8, 0));
	for (i = 0; i < 16; i += 3)
		is_page(i, i ^ 8);

	/* One slot of parts of both, and of pages that nothing was bound to. */
	vm_set_region_list(self->vm, region_delete(10), region_delete(11),
			   bound(12, self->fd, 0, 16, 4));
	is_page(0, 4);
	is_page(15, 19);

	/* Through slots that exist only within the list. */
	vm_set_region_list(self->vm, region_delete(12),
			   bound(10, self->fd, 20, 16, 4), region_delete(10),
			   bound(12, self->fd, 1, 15, 4));
	is_page(1, 4);
	is_page(15, 18);
	is_hole(0);
	is_hole(20);

	/* It is as before for what comes after the lists. */
	list_fails(EEXIST, bound(13, self->fd, 30, 1, 4));
	vm_set_region_list(self->vm, bound(13, self->fd, 30, 1, 19));
	TEST_ASSERT(!fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       5 * PAGE_SIZE, PAGE_SIZE),
		    "fallocate() failed, errno %d", errno);
	is_empty_page(2);
	is_page(3, 6);
}

/* A list that fails has neither bound nor unbound anything. */
TEST_F(memfd, rollback)
{
	u64 swaps;

	vm_set_region_list(self->vm, bound(10, self->fd, 0, 4, 0));
	swaps = vm_get_stat(self->vm, memslot_swaps);

	list_fails(EEXIST, bound(11, self->fd, 4, 4, 4), bound(12, self->fd, 8, 4, 8),
		   bound(13, self->fd, 11, 4, 12));
	list_fails(EEXIST, region_delete(10), bound(11, self->fd, 4, 4, 0),
		   bound(12, self->fd, 8, 4, 3));
	list_fails(EBADF, region_delete(10), bound(11, self->fd, 4, 4, 0),
		   bound(12, -1, 8, 4, 8));
	TEST_ASSERT_EQ(vm_get_stat(self->vm, memslot_swaps), swaps);

	is_page(0, 0);
	is_hole(4);
	list_fails(EEXIST, bound(11, self->fd, 4, 4, 3));
	vm_set_region_list(self->vm, bound(11, self->fd, 4, 4, 4),
			   bound(12, self->fd, 8, 4, 8));
	is_page(11, 11);
}

/* A file that has been closed is not bound to anything, and a slot may go then. */
TEST_F(memfd, closed)
{
	int fd = vm_create_guest_memfd(self->vm, FILE_PAGES * PAGE_SIZE, FLAGS);

	vm_set_region_list(self->vm, bound(10, fd, 0, 4, 0),
			   bound(11, self->fd, 4, 4, 0));
	is_empty_page(0);
	close(fd);
	vm_set_region_list(self->vm, region_delete(10), region_delete(11),
			   bound(11, self->fd, 0, 4, 0));
	is_page(0, 0);
}

int main(int argc, char **argv)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_MMAP);
	return test_harness_run(argc, argv);
}
