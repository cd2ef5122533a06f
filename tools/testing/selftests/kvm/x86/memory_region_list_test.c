// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST: ABI, and errors that leave everything as it was.
 */
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <linux/sizes.h>

#include "region_list_fixture.h"

kvm_static_assert(KVM_SET_USER_MEMORY_REGION_LIST == 0x4008AE49);
kvm_static_assert(sizeof(struct kvm_userspace_memory_region_list) == 8);
kvm_static_assert(sizeof(struct region_entry) == 64);
kvm_static_assert(offsetof(struct region_entry, invalidate_slot) ==
		  sizeof(struct kvm_userspace_memory_region));
kvm_static_assert(offsetof(struct region_entry, pad1) == 33);
kvm_static_assert(offsetof(struct region_entry, guest_memfd) == 36);
kvm_static_assert(offsetof(struct region_entry, guest_memfd_offset) == 40);
kvm_static_assert(offsetof(struct region_entry, dirty_bitmap) == 48);
kvm_static_assert(offsetof(struct region_entry, pad2) == 56);

static struct region_entry invalidate(struct region_entry entry)
{
	entry.invalidate_slot = 1;
	return entry;
}

TEST_F(list, capability)
{
	struct list_test *test = &self->test;
	u32 max = kvm_check_cap(KVM_CAP_USER_MEMORY_REGION_LIST);

	TEST_ASSERT_EQ(max,
		       vm_check_cap(test->vm, KVM_CAP_USER_MEMORY_REGION_LIST));
	TEST_ASSERT(max >= 2 * kvm_check_cap(KVM_CAP_NR_MEMSLOTS),
		    "%u entries cannot replace all slots", max);
}

TEST_F(list, header)
{
	struct list_test *test = &self->test;
	u32 max = kvm_check_cap(KVM_CAP_USER_MEMORY_REGION_LIST);
	const u32 too_many[] = { max + 1, 2 * max, 1u << 26, 1u << 31, ~0u };
	struct kvm_userspace_memory_region_list list = {};
	int i, r;

	list_swaps(test, 0);

	for (i = 0; i < 32; i++) {
		list.flags = BIT(i);
		r = __vm_ioctl(test->vm, KVM_SET_USER_MEMORY_REGION_LIST,
			       &list);
		TEST_ASSERT(r && errno == EINVAL, "Header flag %d", i);
	}

	list.flags = 0;
	for (i = 0; i < ARRAY_SIZE(too_many); i++) {
		list.nent = too_many[i];
		r = __vm_ioctl(test->vm, KVM_SET_USER_MEMORY_REGION_LIST,
			       &list);
		TEST_ASSERT(r && errno == E2BIG, "nent %u: errno %d",
			    list.nent, errno);
	}
	check_map(test);
}

TEST_F(list, bad_pointers)
{
	struct list_test *test = &self->test;
	struct kvm_userspace_memory_region_list *list;
	const size_t hole_at = 4 * PAGE_SIZE;
	size_t offset;
	u8 *buf;
	int r, i;

	list_ok(test, set(10, 0, 0, 4, 0));

	r = __vm_ioctl(test->vm, KVM_SET_USER_MEMORY_REGION_LIST,
		       (struct kvm_userspace_memory_region_list *)NULL);
	TEST_ASSERT(r && errno == EFAULT, "No header at all");

	buf = kvm_mmap(hole_at + PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	r = mprotect(buf + hole_at, PAGE_SIZE, PROT_NONE);
	TEST_ASSERT(!r, "mprotect() failed, errno %d", errno);

	/*
	 * The list has four entries.  The hole moves from the middle of the
	 * header to the last byte of the last entry.  Without the hole, the
	 * list would succeed.
	 */
	for (offset = 4; offset < sizeof(*list) + 4 * sizeof(struct region_entry);
	     offset += 4) {
		struct kvm_userspace_memory_region_list header = { .nent = 4 };
		struct region_entry entries[] = {
			region_delete(10),
			set(11, 0, 0, 2, 0),
			set(12, 0, 2, 2, 2),
			set(13, 0, 4, 2, 4),
		};

		list = (void *)(buf + hole_at - offset);
		memcpy(list, &header, min_t(size_t, sizeof(header), offset));
		if (offset > sizeof(header))
			memcpy(list->entries, entries,
			       min_t(size_t, sizeof(entries), offset - sizeof(header)));

		r = __vm_ioctl(test->vm, KVM_SET_USER_MEMORY_REGION_LIST, list);
		TEST_ASSERT(r && errno == EFAULT,
			    "Hole at byte %zu: returns %d, errno %d",
			    offset, r, errno);
	}
	check_map(test);

	/* A list that ends just before the hole succeeds. */
	list = (void *)(buf + hole_at - sizeof(*list) - 2 * sizeof(struct region_entry));
	list->nent = 2;
	list->flags = 0;
	list->entries[0] = region_delete(10);
	list->entries[1] = set(11, 0, 0, 2, 0);
	vm_ioctl(test->vm, KVM_SET_USER_MEMORY_REGION_LIST, list);
	for (i = 0; i < 2; i++)
		expect(test, &list->entries[i]);
	check_map(test);

	kvm_munmap(buf, hole_at + PAGE_SIZE);
}

/* Slots map the memory of the process that created the VM. */
TEST_F(list, other_process)
{
	struct list_test *test = &self->test;
	struct region_entry entry = region_delete(10);
	int status;
	pid_t child;

	child = fork();
	if (!child) {
		TEST_ASSERT(__vm_set_region_list(test->vm, 1, &entry) == -1 &&
			    errno == EIO, "errno %d", errno);
		TEST_ASSERT(ioctl(test->vm->fd, KVM_SET_USER_MEMORY_REGION_LIST,
				  NULL) == -1 && errno == EIO, "errno %d",
			    errno);
		_exit(0);
	}
	TEST_ASSERT(waitpid(child, &status, 0) == child && !status,
		    "Child: status %d", status);
	check_map(test);
}

TEST_F(list, strict_entries)
{
	struct list_test *test = &self->test;
	const u32 good_flags = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY |
			       KVM_MEM_GUEST_MEMFD;
	struct region_entry entry;
	u8 *bytes = (u8 *)&entry;
	int i;

	list_ok(test, set(10, 0, 0, 4, 0));

	/* Of an entry that creates an ordinary slot, all of this is padding. */
	for (i = offsetof(struct region_entry, pad1); i < sizeof(entry); i++) {
		entry = set(12, 0, 8, 4, 8);
		bytes[i] = 1 << (i % 8);
		list_fails(test, EINVAL, set(11, 0, 4, 4, 4), entry);
	}

	/* KVM checks the padding of no-ops and deletions as well. */
	entry = set(10, 0, 0, 4, 0);
	entry.pad2[7] = 0x80;
	list_fails(test, EINVAL, entry);
	entry = region_delete(10);
	entry.pad1[0] = 1;
	list_fails(test, EINVAL, entry);

	for (i = 0; i < 32; i++) {
		if (BIT(i) & good_flags)
			continue;
		list_fails(test, EINVAL, set(11, 0, 4, 4, 4),
			   set(12, BIT(i), 8, 4, 8));
		list_fails(test, EINVAL, set(10, BIT(i), 0, 4, 0));
	}
	for (i = 2; i < 256; i++) {
		entry = region_delete(10);
		entry.invalidate_slot = i;
		/* Checking the guest's view for each value would take too long. */
		if (is_power_of_2(i) || i == 255) {
			list_fails(test, EINVAL, set(11, 0, 4, 4, 4), entry);
			continue;
		}
		TEST_ASSERT(__vm_set_region_list(test->vm, 1, &entry) &&
			    errno == EINVAL, "invalidate_slot %d", i);
	}
	check_map(test);
}

TEST_F(list, invalidate_slot)
{
	struct list_test *test = &self->test;

	list_ok(test, set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4));

	/* Only for a deletion or a move: not to create, re-flag, or change nothing. */
	list_fails(test, EINVAL, invalidate(set(12, 0, 8, 4, 8)));
	list_fails(test, EINVAL,
		   invalidate(set(10, KVM_MEM_LOG_DIRTY_PAGES, 0, 4, 0)));
	list_fails(test, EINVAL, invalidate(set(10, 0, 0, 4, 0)));
	list_fails(test, EINVAL, region_delete(10),
		   invalidate(set(10, 0, 8, 4, 0)));

	/* The entries before an entry decide what it does. */
	list_fails(test, EINVAL, set(10, 0, 8, 4, 0),
		   invalidate(set(10, 0, 8, 4, 0)));
	list_ok(test, set(12, 0, 8, 4, 8), invalidate(set(12, 0, 12, 4, 8)),
		invalidate(region_delete(12)));

	list_ok(test, invalidate(set(10, 0, 8, 4, 0)));
	list_ok(test, invalidate(region_delete(10)));
	/* 0 asserts nothing. */
	list_ok(test, set(11, 0, 12, 4, 4), region_delete(11));
}

/* An entry that fails, in each position among entries that would succeed. */
TEST_F(list, all_or_nothing)
{
	struct list_test *test = &self->test;
	const u16 nr_slots = kvm_check_cap(KVM_CAP_NR_MEMSLOTS);
	const struct region_entry good[] = {
		region_delete(10),
		set(11, KVM_MEM_LOG_DIRTY_PAGES, 4, 4, 4),
		set(14, 0, 24, 4, 40),
		set(12, 0, 17, 2, 8),
		set(15, KVM_MEM_READONLY, 0, 4, 50),
	};
	const struct {
		const char *what;
		struct region_entry entry;
		int err;
	} bad[] = {
		{ "slot id of an internal slot",
		  set(nr_slots, 0, 28, 1, 0), EINVAL },
		{ "largest slot id", set(0xffff, 0, 28, 1, 0), EINVAL },
		{ "first address space that does not exist",
		  set(test->nr_as << 16 | 17, 0, 28, 1, 0), EINVAL },
		{ "last address space that does not exist",
		  set(0xffff0000 | 17, 0, 28, 1, 0), EINVAL },
		{ "deletion of an internal slot",
		  region_delete(nr_slots), EINVAL },
		{ "deletion in an address space that does not exist",
		  region_delete(2 << 16), EINVAL },
		{ "deletion of no slot", region_delete(17), EINVAL },
		{ "unaligned address",
		  region_set(17, 0, window_gpa(28) + 1, PAGE_SIZE,
			     backing_page(0)), EINVAL },
		{ "unaligned size",
		  region_set(17, 0, window_gpa(28), PAGE_SIZE + 8,
			     backing_page(0)), EINVAL },
		{ "unaligned host address",
		  region_set(17, 0, window_gpa(28), PAGE_SIZE,
			     backing_page(0) + 512), EINVAL },
		{ "host address of the kernel",
		  region_set(17, 0, window_gpa(28), PAGE_SIZE,
			     (void *)0xffff888000000000ul), EINVAL },
		{ "host range that wraps around",
		  region_set(17, 0, window_gpa(28), 2 * PAGE_SIZE,
			     (void *)-PAGE_SIZE), EINVAL },
		{ "guest range that wraps around",
		  region_set(17, 0, -PAGE_SIZE, 2 * PAGE_SIZE, backing_page(0)),
			EINVAL },
		{ "guest range beyond the guest's",
		  region_set(17, 0, 1ul << 52, PAGE_SIZE, backing_page(0)),
			EINVAL },
		{ "too many pages",
		  region_set(17, 0, 1ul << 44, 1ul << 43, (void *)SZ_1G), EINVAL },
		{ "no size, bad address",
		  region_set(13, 0, window_gpa(28) + 1, 0, NULL), EINVAL },
		{ "no size, unknown flag",
		  region_set(13, BIT(4), window_gpa(28), 0, NULL), EINVAL },
		{ "another size", set(13, 0, 20, 3, 12), EINVAL },
		{ "another host address", set(13, 0, 20, 4, 13), EINVAL },
		{ "read-only switched on",
		  set(13, KVM_MEM_READONLY, 20, 4, 12), EINVAL },
		{ "read-only switched off", set(18, 0, 16, 1, 16), EINVAL },
		{ "overlap from below", set(17, 0, 18, 3, 0), EEXIST },
		{ "overlap from above", set(17, 0, 23, 1, 0), EEXIST },
		{ "overlap of all", set(17, 0, 19, 6, 0), EEXIST },
		{ "overlap within", set(17, 0, 21, 1, 0), EEXIST },
		{ "move onto another slot", set(16, 0, 21, 4, 60), EEXIST },
	};
	struct region_entry entries[ARRAY_SIZE(good) + 1];
	int i, pos, r;

	list_ok(test, set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4),
		set(12, 0, 8, 2, 8), set(13, 0, 20, 4, 12),
		set(16, 0, 28, 4, 60), set(18, KVM_MEM_READONLY, 16, 1, 16));

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		r = __vm_set_region_entry(test->vm, &bad[i].entry);
		TEST_ASSERT(r && errno == bad[i].err,
			    "%s: the single ioctl gives %d, errno %d",
			    bad[i].what, r, errno);

		for (pos = 0; pos <= ARRAY_SIZE(good); pos++) {
			u64 swaps = vm_get_stat(test->vm, memslot_swaps);

			memcpy(entries, good, pos * sizeof(good[0]));
			entries[pos] = bad[i].entry;
			memcpy(&entries[pos + 1], &good[pos],
			       (ARRAY_SIZE(good) - pos) * sizeof(good[0]));

			r = __vm_set_region_list(test->vm, ARRAY_SIZE(entries),
						 entries);
			TEST_ASSERT(r && errno == bad[i].err,
				    "%s, entry %d: the list gives %d, errno %d",
				    bad[i].what, pos, r, errno);
			TEST_ASSERT_EQ(vm_get_stat(test->vm, memslot_swaps),
				       swaps);
			check_slots(test);
		}
		check_map(test);
	}

	/* Without the bad entry, the list succeeds. */
	do_list(test, 0, ANY_SWAPS, ARRAY_SIZE(good), good);
}

/* The error is that of the first entry that fails. */
TEST_F(list, first_error)
{
	struct list_test *test = &self->test;

	list_ok(test, set(10, 0, 0, 4, 0));

	list_fails(test, EEXIST, set(11, 0, 2, 4, 4), region_delete(17));
	list_fails(test, EINVAL, region_delete(17), set(11, 0, 2, 4, 4));
	list_fails(test, EINVAL, region_delete(10), region_delete(10),
		   set(10, 0, 0, 4, 0), set(11, 0, 2, 4, 4));
}

/* Slots with a guest_memfd. */
TEST_F(list, guest_memfd)
{
	const u32 slot = FIRST_ID;
	const size_t size = 4 * PAGE_SIZE;
	struct kvm_vm *gm_vm;
	struct region_entry entries[2];
	int memfd, r;

	if (kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM))
		gm_vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	else
		gm_vm = vm_create_barebones();
	if (!vm_check_cap(gm_vm, KVM_CAP_GUEST_MEMFD))
		SKIP(return, "No guest_memfd");

	memfd = vm_create_guest_memfd(gm_vm, size, 0);
	vm_set_user_memory_region2(gm_vm, slot, KVM_MEM_GUEST_MEMFD, WINDOW_GPA,
				   size, backing, memfd, 0);

	/* A list can only delete such a slot. */
	entries[0] = region_set(slot, 0, WINDOW_GPA, size, backing);
	r = __vm_set_region_list(gm_vm, 1, entries);
	TEST_ASSERT(r && errno == EINVAL, "Slot lost its guest_memfd");
	entries[0].flags = KVM_MEM_GUEST_MEMFD;
	r = __vm_set_region_list(gm_vm, 1, entries);
	TEST_ASSERT(r && errno == EINVAL, "KVM_MEM_GUEST_MEMFD in an entry");

	/* A list that fails leaves the binding ... */
	entries[0] = region_delete(slot);
	entries[1] = region_delete(slot);
	r = __vm_set_region_list(gm_vm, 2, entries);
	TEST_ASSERT(r && errno == EINVAL, "Slot deleted twice");
	r = __vm_set_user_memory_region2(gm_vm, slot + 1, KVM_MEM_GUEST_MEMFD,
					 2 * WINDOW_GPA, size, backing, memfd,
					 0);
	TEST_ASSERT(r && errno == EEXIST, "Binding lost, errno %d", errno);

	/* ... and one that succeeds frees it. */
	entries[1] = region_set(slot, 0, WINDOW_GPA, size, backing);
	r = __vm_set_region_list(gm_vm, 2, entries);
	TEST_ASSERT(!r, "Slot not replaced, errno %d", errno);
	vm_set_user_memory_region2(gm_vm, slot + 1, KVM_MEM_GUEST_MEMFD,
				   2 * WINDOW_GPA, size, backing, memfd, 0);

	/* Userspace has closed the file that the slot is bound to. */
	close(memfd);
	entries[0] = region_delete(slot + 1);
	r = __vm_set_region_list(gm_vm, 2, entries);
	TEST_ASSERT(!r, "Slot with closed guest_memfd, errno %d", errno);

	kvm_vm_free(gm_vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	return test_harness_run(argc, argv);
}
