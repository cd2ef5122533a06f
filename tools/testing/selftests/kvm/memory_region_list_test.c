// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST: ABI, errors, order, all or nothing, swaps.
 *
 * Every list that a test issues is followed by a look at all slots in all
 * address spaces: what userspace can tell about them, and what a vCPU reads
 * and writes through them.  A list that fails must leave all of it alone.
 */
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>

#include <linux/sizes.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "memory_region_list.h"
#include "processor.h"
#include "test_util.h"

/*
 * The guest physical pages that the tests play with, and the host memory
 * behind them.  Each host page starts with a value of its own.
 */
#define WINDOW_GPA	0xc0000000ul
#define WINDOW_PAGES	32
#define BACKING_PAGES	64
#define BACKING_VAL(i)	(0x1000ul + (i))
#define HOLE		(~0ul)

/* Slot 0 is the guest's own memory. */
#define FIRST_ID	10
#define NR_IDS		9
#define NR_AS		2
/* Added to a slot id: the address space of System Management Mode. */
#define SMM		BIT(16)

#define RANDOM_SEED	0x6d656d73
#define NR_RANDOM_LISTS	300
#define MAX_RANDOM_LIST	10

kvm_static_assert(KVM_SET_USER_MEMORY_REGION_LIST == 0x4008AE49);
kvm_static_assert(sizeof(struct kvm_userspace_memory_region_list) == 8);
kvm_static_assert(sizeof(struct region_entry) == 64);
kvm_static_assert(offsetof(struct region_entry, invalidate_slot) ==
		  sizeof(struct kvm_userspace_memory_region));
kvm_static_assert(offsetof(struct region_entry, padding) == 33);

/* Written by the guest. */
static u64 guest_seen[WINDOW_PAGES];

static void guest_code(void)
{
	u64 *page;
	int i;

	for (;;) {
		for (i = 0; i < WINDOW_PAGES; i++) {
			page = (u64 *)(WINDOW_GPA + i * PAGE_SIZE);
			guest_seen[i] = READ_ONCE(page[0]);
			WRITE_ONCE(page[1], guest_seen[i]);
		}
		GUEST_SYNC(0);
	}
}

/* What a slot is expected to be; size 0 if there is none. */
struct slot {
	u32 flags;
	gpa_t gpa;
	u64 size;
	u8 *hva;
};

/* Each test has a process, and thus a copy of these, of its own. */
static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static u8 *mem;
static int nr_as;
static struct slot slots[NR_AS][NR_IDS];

FIXTURE(list) {};

FIXTURE_SETUP(list)
{
	struct userspace_mem_region *region;
	int i;

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	virt_map(vm, WINDOW_GPA, WINDOW_GPA, WINDOW_PAGES);

	mem = kvm_mmap(BACKING_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (i = 0; i < BACKING_PAGES; i++)
		*(u64 *)(mem + i * PAGE_SIZE) = BACKING_VAL(i);

	nr_as = 1;
	if (kvm_has_cap(KVM_CAP_X86_SMM)) {
		nr_as = NR_AS;

		/* Lets guest_code() run in SMM as it does outside of it. */
		region = memslot2region(vm, 0);
		vm_set_user_memory_region(vm, SMM, 0,
					  region->region.guest_phys_addr,
					  region->region.memory_size,
					  region->host_mem);
	}
}

FIXTURE_TEARDOWN(list)
{
	kvm_vm_free(vm);
	kvm_munmap(mem, BACKING_PAGES * PAGE_SIZE);
}

static gpa_t gpa(int page)
{
	return WINDOW_GPA + page * PAGE_SIZE;
}

static u8 *hva(int page)
{
	return mem + page * PAGE_SIZE;
}

/* A slot of @nr pages at page @at of the window, backed from page @from on. */
static struct region_entry set(u32 slot, u32 flags, int at, int nr, int from)
{
	return region_set(slot, flags, gpa(at), nr * PAGE_SIZE, hva(from));
}

static struct region_entry invalidate(struct region_entry entry)
{
	entry.invalidate_slot = 1;
	return entry;
}

static struct slot *slot_of(const struct region_entry *entry)
{
	u32 as = entry->slot >> 16, id = (u16)entry->slot;

	TEST_ASSERT(as < NR_AS && id >= FIRST_ID && id < FIRST_ID + NR_IDS,
		    "Slot 0x%x is not the test's", entry->slot);
	return &slots[as][id - FIRST_ID];
}

/* Note what an update that succeeded means. */
static void expect(const struct region_entry *entry)
{
	*slot_of(entry) = (struct slot) {
		.flags = entry->flags,
		.gpa = entry->guest_phys_addr,
		.size = entry->memory_size,
		.hva = (u8 *)entry->userspace_addr,
	};
}

static const struct slot *slot_at(int as, gpa_t gpa)
{
	struct slot *slot;
	int i;

	for (i = 0; i < NR_IDS; i++) {
		slot = &slots[as][i];
		if (gpa >= slot->gpa && gpa < slot->gpa + slot->size)
			return slot;
	}
	return NULL;
}

static void check_guest_view(int as, int line)
{
	struct kvm_run *run = vcpu->run;
	bool write_exits[WINDOW_PAGES] = {};
	bool written[BACKING_PAGES] = {};
	struct kvm_vcpu_events events;
	u64 *seen, want, val;
	const struct slot *slot;
	u8 *backing;
	int i;

	for (i = 0; i < BACKING_PAGES; i++)
		((u64 *)hva(i))[1] = 0;

	vcpu_events_get(vcpu, &events);
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = as;
	vcpu_events_set(vcpu, &events);

	for (;;) {
		vcpu_run(vcpu);
		if (run->exit_reason != KVM_EXIT_MMIO)
			break;

		i = (run->mmio.phys_addr - WINDOW_GPA) / PAGE_SIZE;
		TEST_ASSERT(i >= 0 && i < WINDOW_PAGES && run->mmio.len == 8,
			    "line %d: stray MMIO at 0x%llx", line,
			    run->mmio.phys_addr);
		if (run->mmio.is_write)
			write_exits[i] = true;
		else
			memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	}
	TEST_ASSERT(get_ucall(vcpu, NULL) == UCALL_SYNC,
		    "line %d: unexpected exit %u (%s)", line, run->exit_reason,
		    exit_reason_str(run->exit_reason));

	seen = addr_gva2hva(vm, (gva_t)guest_seen);
	for (i = 0; i < WINDOW_PAGES; i++) {
		slot = slot_at(as, gpa(i));
		backing = slot ? slot->hva + (gpa(i) - slot->gpa) : NULL;
		want = backing ? *(u64 *)backing : HOLE;

		TEST_ASSERT(seen[i] == want,
			    "line %d: address space %d, page %d: the guest sees 0x%lx instead of 0x%lx",
			    line, as, i, seen[i], want);
		TEST_ASSERT(write_exits[i] ==
			    (!slot || (slot->flags & KVM_MEM_READONLY)),
			    "line %d: address space %d, page %d: a write %s",
			    line, as, i, write_exits[i] ? "exits" : "goes through");
		if (slot && !write_exits[i])
			written[(backing - mem) / PAGE_SIZE] = true;
	}

	for (i = 0; i < BACKING_PAGES; i++) {
		want = written[i] ? BACKING_VAL(i) : 0;
		val = ((u64 *)hva(i))[1];
		TEST_ASSERT(val == want,
			    "line %d: backing page %d holds 0x%lx instead of 0x%lx",
			    line, i, val, want);
	}
}

/*
 * Asks for each expected slot once more, which must succeed and do nothing,
 * and for the deletion of each slot that must not exist.
 */
static void check_slots(int line)
{
	u64 swaps = vm_get_stat(vm, memslot_swaps);
	struct slot *slot;
	int as, i, r;
	u32 id;

	for (as = 0; as < nr_as; as++) {
		for (i = 0; i < NR_IDS; i++) {
			slot = &slots[as][i];
			id = as << 16 | (FIRST_ID + i);
			r = __vm_set_user_memory_region(vm, id,
							slot->flags, slot->gpa,
							slot->size, slot->hva);
			if (slot->size)
				TEST_ASSERT(!r, "line %d: slot 0x%x is not as expected, errno %d",
					    line, id, errno);
			else
				TEST_ASSERT(r && errno == EINVAL,
					    "line %d: slot 0x%x should not exist",
					    line, id);
		}
	}
	TEST_ASSERT(vm_get_stat(vm, memslot_swaps) == swaps,
		    "line %d: a slot is not as expected", line);
}

static void check_map(int line)
{
	int as;

	check_slots(line);
	for (as = 0; as < nr_as; as++)
		check_guest_view(as, line);
}

/* @nr_swaps < 0: any number. */
static void do_list(int line, int want_errno, int nr_swaps, u32 nent,
		    const struct region_entry *entries)
{
	u64 swaps = vm_get_stat(vm, memslot_swaps);
	u64 calls = vm_get_stat(vm, memslot_list_calls);
	u64 nr_entries = vm_get_stat(vm, memslot_list_entries);
	int r, i;

	r = __vm_set_region_list(vm, nent, entries);
	TEST_ASSERT(want_errno ? r == -1 && errno == want_errno : !r,
		    "line %d: the list should give errno %d (%s), gives %d, errno %d (%s)",
		    line, want_errno, strerror(want_errno), r, errno,
		    strerror(errno));

	swaps = vm_get_stat(vm, memslot_swaps) - swaps;
	TEST_ASSERT(nr_swaps < 0 || swaps == nr_swaps,
		    "line %d: %lu swaps instead of %d", line, swaps, nr_swaps);
	TEST_ASSERT(vm_get_stat(vm, memslot_list_calls) == calls + !!nent,
		    "line %d: the call is not counted", line);
	if (!want_errno) {
		nr_entries = vm_get_stat(vm, memslot_list_entries) - nr_entries;
		TEST_ASSERT(nr_entries == nent, "line %d: %lu entries counted, not %u",
			    line, nr_entries, nent);
		for (i = 0; i < nent; i++)
			expect(&entries[i]);
	}

	check_map(line);
}

#define __list(err, swaps, ...)						\
do {									\
	const struct region_entry __e[] = { __VA_ARGS__ };		\
									\
	do_list(__LINE__, err, swaps, ARRAY_SIZE(__e), __e);		\
} while (0)

#define list_ok(...)		__list(0, -1, __VA_ARGS__)
#define list_fails(err, ...)	__list(err, 0, __VA_ARGS__)
#define list_swaps(swaps, ...)	__list(0, swaps, __VA_ARGS__)

static void single_swaps(int nr_swaps, struct region_entry entry)
{
	u64 swaps = vm_get_stat(vm, memslot_swaps);
	int r = __vm_set_region_entry(vm, &entry);

	TEST_ASSERT(!r, "Slot 0x%x, errno %d", entry.slot, errno);
	TEST_ASSERT_EQ(vm_get_stat(vm, memslot_swaps), swaps + nr_swaps);
	expect(&entry);
}

TEST_F(list, capability)
{
	u32 max = kvm_check_cap(KVM_CAP_USER_MEMORY_REGION_LIST);

	TEST_ASSERT_EQ(max, vm_check_cap(vm, KVM_CAP_USER_MEMORY_REGION_LIST));
	TEST_ASSERT(max >= 2 * kvm_check_cap(KVM_CAP_NR_MEMSLOTS),
		    "%u entries cannot replace all slots", max);
}

TEST_F(list, header)
{
	u32 max = kvm_check_cap(KVM_CAP_USER_MEMORY_REGION_LIST);
	const u32 too_many[] = { max + 1, 2 * max, 1u << 26, 1u << 31, ~0u };
	struct kvm_userspace_memory_region_list list = {};
	int i, r;

	list_swaps(0);

	for (i = 0; i < 32; i++) {
		list.flags = BIT(i);
		r = __vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION_LIST, &list);
		TEST_ASSERT(r && errno == EINVAL, "Header flag %d", i);
	}

	list.flags = 0;
	for (i = 0; i < ARRAY_SIZE(too_many); i++) {
		list.nent = too_many[i];
		r = __vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION_LIST, &list);
		TEST_ASSERT(r && errno == E2BIG, "nent %u: errno %d",
			    list.nent, errno);
	}
	check_map(__LINE__);
}

TEST_F(list, bad_pointers)
{
	struct kvm_userspace_memory_region_list *list;
	const size_t hole_at = 4 * PAGE_SIZE;
	size_t offset;
	u8 *buf;
	int r, i;

	list_ok(set(10, 0, 0, 4, 0));

	r = __vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION_LIST,
		       (struct kvm_userspace_memory_region_list *)NULL);
	TEST_ASSERT(r && errno == EFAULT, "No header at all");

	buf = kvm_mmap(hole_at + PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	r = mprotect(buf + hole_at, PAGE_SIZE, PROT_NONE);
	TEST_ASSERT(!r, "mprotect() failed, errno %d", errno);

	/*
	 * Four entries; the hole moves from the middle of the header to the
	 * last byte of the last entry.  Without it the list would succeed.
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

		r = __vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION_LIST, list);
		TEST_ASSERT(r && errno == EFAULT,
			    "Hole at byte %zu: returns %d, errno %d",
			    offset, r, errno);
	}
	check_map(__LINE__);

	/* At the hole's very edge all is well. */
	list = (void *)(buf + hole_at - sizeof(*list) - 2 * sizeof(struct region_entry));
	list->nent = 2;
	list->flags = 0;
	list->entries[0] = region_delete(10);
	list->entries[1] = set(11, 0, 0, 2, 0);
	vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION_LIST, list);
	for (i = 0; i < 2; i++)
		expect(&list->entries[i]);
	check_map(__LINE__);

	kvm_munmap(buf, hole_at + PAGE_SIZE);
}

/* The memory that slots are about is that of the process that made the VM. */
TEST_F(list, other_process)
{
	struct region_entry entry = region_delete(10);
	int status;
	pid_t child;

	child = fork();
	if (!child) {
		TEST_ASSERT(__vm_set_region_list(vm, 1, &entry) == -1 &&
			    errno == EIO, "errno %d", errno);
		TEST_ASSERT(ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION_LIST,
				  NULL) == -1 && errno == EIO, "errno %d", errno);
		_exit(0);
	}
	TEST_ASSERT(waitpid(child, &status, 0) == child && !status,
		    "Child: status %d", status);
	check_map(__LINE__);
}

TEST_F(list, strict_entries)
{
	const u32 good_flags = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
	struct region_entry entry;
	int i;

	list_ok(set(10, 0, 0, 4, 0));

	for (i = 0; i < ARRAY_SIZE(entry.padding); i++) {
		entry = set(12, 0, 8, 4, 8);
		entry.padding[i] = 1 << (i % 8);
		list_fails(EINVAL, set(11, 0, 4, 4, 4), entry);
	}

	/* A no-op and a deletion are looked at just the same. */
	entry = set(10, 0, 0, 4, 0);
	entry.padding[30] = 0x80;
	list_fails(EINVAL, entry);
	entry = region_delete(10);
	entry.padding[0] = 1;
	list_fails(EINVAL, entry);

	/* KVM_MEM_GUEST_MEMFD is one of the flags an entry cannot carry. */
	for (i = 0; i < 32; i++) {
		if (BIT(i) & good_flags)
			continue;
		list_fails(EINVAL, set(11, 0, 4, 4, 4),
			   set(12, BIT(i), 8, 4, 8));
		list_fails(EINVAL, set(10, BIT(i), 0, 4, 0));
	}
	list_fails(EINVAL, set(12, KVM_MEM_GUEST_MEMFD, 8, 4, 8));

	for (i = 2; i < 256; i++) {
		entry = region_delete(10);
		entry.invalidate_slot = i;
		/* All values; the guest's view only for some. */
		if (is_power_of_2(i) || i == 255) {
			list_fails(EINVAL, set(11, 0, 4, 4, 4), entry);
			continue;
		}
		TEST_ASSERT(__vm_set_region_list(vm, 1, &entry) &&
			    errno == EINVAL, "invalidate_slot %d", i);
	}
	check_map(__LINE__);
}

TEST_F(list, invalidate_slot)
{
	list_ok(set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4));

	/* Neither deleted nor moved: created, re-flagged, left alone. */
	list_fails(EINVAL, invalidate(set(12, 0, 8, 4, 8)));
	list_fails(EINVAL,
		   invalidate(set(10, KVM_MEM_LOG_DIRTY_PAGES, 0, 4, 0)));
	list_fails(EINVAL, invalidate(set(10, 0, 0, 4, 0)));
	list_fails(EINVAL, region_delete(10),
		   invalidate(set(10, 0, 8, 4, 0)));

	/* What an entry is depends on the entries before it. */
	list_fails(EINVAL, set(10, 0, 8, 4, 0),
		   invalidate(set(10, 0, 8, 4, 0)));
	list_ok(set(12, 0, 8, 4, 8),
		invalidate(set(12, 0, 12, 4, 8)),
		invalidate(region_delete(12)));

	list_ok(invalidate(set(10, 0, 8, 4, 0)));
	list_ok(invalidate(region_delete(10)));
	/* 0 says nothing. */
	list_ok(set(11, 0, 12, 4, 4), region_delete(11));
}

/* One entry that fails, among entries that would not, in each position. */
TEST_F(list, all_or_nothing)
{
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
		{ "slot id of KVM's own",
		  set(nr_slots, 0, 28, 1, 0), EINVAL },
		{ "largest slot id", set(0xffff, 0, 28, 1, 0), EINVAL },
		{ "first address space that is not",
		  set(nr_as << 16 | 17, 0, 28, 1, 0), EINVAL },
		{ "last address space that is not",
		  set(0xffff0000 | 17, 0, 28, 1, 0), EINVAL },
		{ "deletion of a slot of KVM's own",
		  region_delete(nr_slots), EINVAL },
		{ "deletion in an address space that is not",
		  region_delete(2 << 16), EINVAL },
		{ "deletion of what does not exist", region_delete(17), EINVAL },
		{ "address not on a page",
		  region_set(17, 0, gpa(28) + 1, PAGE_SIZE, hva(0)), EINVAL },
		{ "size not of pages",
		  region_set(17, 0, gpa(28), PAGE_SIZE + 8, hva(0)), EINVAL },
		{ "host address not on a page",
		  region_set(17, 0, gpa(28), PAGE_SIZE, hva(0) + 512), EINVAL },
		{ "host address of the kernel",
		  region_set(17, 0, gpa(28), PAGE_SIZE,
			     (void *)0xffff888000000000ul), EINVAL },
		{ "host range that wraps around",
		  region_set(17, 0, gpa(28), 2 * PAGE_SIZE,
			     (void *)-PAGE_SIZE), EINVAL },
		{ "guest range that wraps around",
		  region_set(17, 0, -PAGE_SIZE, 2 * PAGE_SIZE, hva(0)), EINVAL },
		{ "guest range beyond the guest's",
		  region_set(17, 0, 1ul << 52, PAGE_SIZE, hva(0)), EINVAL },
		{ "too many pages",
		  region_set(17, 0, 1ul << 44, 1ul << 43, (void *)SZ_1G), EINVAL },
		{ "no size, bad address",
		  region_set(13, 0, gpa(28) + 1, 0, NULL), EINVAL },
		{ "no size, unknown flag",
		  region_set(13, BIT(4), gpa(28), 0, NULL), EINVAL },
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

	list_ok(set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4),
		set(12, 0, 8, 2, 8), set(13, 0, 20, 4, 12),
		set(16, 0, 28, 4, 60), set(18, KVM_MEM_READONLY, 16, 1, 16));

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		r = __vm_set_region_entry(vm, &bad[i].entry);
		TEST_ASSERT(r && errno == bad[i].err,
			    "%s: the single ioctl gives %d, errno %d",
			    bad[i].what, r, errno);

		for (pos = 0; pos <= ARRAY_SIZE(good); pos++) {
			u64 swaps = vm_get_stat(vm, memslot_swaps);

			memcpy(entries, good, pos * sizeof(good[0]));
			entries[pos] = bad[i].entry;
			memcpy(&entries[pos + 1], &good[pos],
			       (ARRAY_SIZE(good) - pos) * sizeof(good[0]));

			r = __vm_set_region_list(vm, ARRAY_SIZE(entries),
						 entries);
			TEST_ASSERT(r && errno == bad[i].err,
				    "%s, entry %d: the list gives %d, errno %d",
				    bad[i].what, pos, r, errno);
			TEST_ASSERT_EQ(vm_get_stat(vm, memslot_swaps), swaps);
			check_slots(__LINE__);
		}
		check_map(__LINE__);
	}

	/* The rest of those lists was good indeed. */
	do_list(__LINE__, 0, -1, ARRAY_SIZE(good), good);
}

/* The error is that of the first entry that fails. */
TEST_F(list, first_error)
{
	list_ok(set(10, 0, 0, 4, 0));

	list_fails(EEXIST, set(11, 0, 2, 4, 4), region_delete(17));
	list_fails(EINVAL, region_delete(17), set(11, 0, 2, 4, 4));
	list_fails(EINVAL, region_delete(10), region_delete(10),
		   set(10, 0, 0, 4, 0), set(11, 0, 2, 4, 4));
}

TEST_F(list, order)
{
	list_ok(set(10, 0, 0, 8, 0));

	/* Resize: the old slot goes before the new one comes. */
	list_fails(EINVAL, set(10, 0, 0, 6, 0));
	list_ok(region_delete(10), set(10, 0, 0, 6, 0));
	list_ok(region_delete(10), set(10, 0, 0, 8, 0));

	/* Split. */
	list_fails(EEXIST, set(11, 0, 4, 4, 4), region_delete(10),
		   set(10, 0, 0, 4, 0));
	list_ok(region_delete(10), set(10, 0, 0, 4, 0),
		set(11, 0, 4, 4, 4));

	/* Merge. */
	list_fails(EEXIST, region_delete(10), set(12, 0, 0, 8, 0),
		   region_delete(11));
	list_ok(region_delete(10), region_delete(11),
		set(12, 0, 0, 8, 0));

	/* An entry clashes with those before it in the list, too. */
	list_fails(EEXIST, set(10, 0, 8, 4, 8),
		   set(11, 0, 11, 4, 12));
	list_ok(set(10, 0, 8, 4, 8), region_delete(10),
		set(11, 0, 11, 4, 12));
}

TEST_F(list, same_slot_again)
{
	const u32 log = KVM_MEM_LOG_DIRTY_PAGES;

	/* Created, re-flagged, moved, deleted, all in one. */
	list_ok(set(10, 0, 0, 4, 0), set(10, log, 0, 4, 0));
	list_ok(set(11, log, 4, 4, 4), set(11, 0, 4, 4, 4),
		set(11, log, 4, 4, 4), set(11, log, 8, 4, 4));
	list_ok(set(12, 0, 16, 4, 8), region_delete(12));
	list_ok(set(12, 0, 16, 4, 8), set(12, 0, 20, 4, 8),
		region_delete(12), set(12, 0, 24, 2, 12));

	/* What has just been created is a slot like any other. */
	list_fails(EINVAL, set(13, 0, 16, 4, 8),
		   set(13, 0, 16, 2, 8));
	list_fails(EINVAL, set(13, 0, 16, 4, 8), region_delete(13),
		   region_delete(13));

	/* Deleted and created as something else, and as the same. */
	list_ok(region_delete(12), set(12, KVM_MEM_READONLY, 28, 4, 20));
	list_ok(region_delete(12), set(12, KVM_MEM_READONLY, 28, 4, 20));
	list_ok(region_delete(12), set(12, 0, 16, 3, 30),
		region_delete(12), set(12, log, 17, 4, 40));

	/* Re-flagged there and back, moved there and back. */
	list_ok(set(10, 0, 0, 4, 0), set(10, log, 0, 4, 0));
	list_ok(set(10, log, 24, 4, 0), set(10, log, 0, 4, 0));
	/* Moved and re-flagged by one entry, as the single ioctl allows. */
	list_ok(set(10, 0, 1, 4, 0));
	list_ok(set(10, log, 0, 4, 0), set(10, 0, 0, 4, 0),
		region_delete(10));
}

TEST_F(list, no_change)
{
	list_ok(set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4));

	list_swaps(0, set(10, 0, 0, 4, 0));
	list_swaps(0, set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4),
		   set(10, 0, 0, 4, 0));
	/* The entries around it are not lost. */
	list_ok(region_delete(10), set(11, 0, 4, 4, 4),
		set(12, 0, 0, 2, 0));
	list_fails(EINVAL, set(11, 0, 4, 4, 4), region_delete(10));
}

TEST_F(list, moves)
{
	list_ok(set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4),
		set(12, 0, 8, 4, 8), set(13, 0, 12, 8, 12));

	/* A chain works from its head only. */
	list_fails(EEXIST, set(10, 0, 4, 4, 0),
		   set(11, 0, 8, 4, 4), set(12, 0, 20, 4, 8));
	list_ok(set(12, 0, 20, 4, 8), set(11, 0, 8, 4, 4),
		set(10, 0, 4, 4, 0));

	/* A slot is not in its own way. */
	list_ok(set(12, 0, 24, 4, 8));
	list_ok(set(12, 0, 26, 4, 8), set(12, 0, 25, 4, 8));
	list_ok(set(13, 0, 14, 8, 12), set(13, 0, 13, 8, 12));

	/* Two swap places, by way of a third, or by deleting one of them. */
	list_fails(EEXIST, set(10, 0, 8, 4, 0),
		   set(11, 0, 4, 4, 4));
	list_ok(set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4),
		set(10, 0, 8, 4, 0));
	list_ok(region_delete(10), set(11, 0, 8, 4, 4),
		set(10, 0, 4, 4, 0));

	/* One takes the place of another that goes, which comes back elsewhere. */
	list_ok(region_delete(13), set(12, 0, 13, 4, 8),
		set(13, 0, 17, 8, 30));
}

TEST_F(list, swap_counts)
{
	const u32 log = KVM_MEM_LOG_DIRTY_PAGES;

	/* Single ioctls. */
	single_swaps(1, set(10, 0, 0, 4, 0));
	single_swaps(1, set(10, log, 0, 4, 0));
	single_swaps(0, set(10, log, 0, 4, 0));
	single_swaps(2, set(10, log, 4, 4, 0));
	single_swaps(2, region_delete(10));

	/* Neither a deletion nor a move: one, however many entries. */
	list_swaps(1, set(10, 0, 0, 4, 0));
	list_swaps(1, set(11, 0, 4, 4, 4), set(12, 0, 8, 4, 8),
		   set(13, 0, 12, 4, 12), set(10, log, 0, 4, 0));
	list_swaps(1, set(10, 0, 0, 4, 0), set(11, log, 4, 4, 4),
		   set(12, 0, 8, 4, 8));

	/* Any number of those: two. */
	list_swaps(2, region_delete(13));
	list_swaps(2, set(12, 0, 20, 4, 8));
	list_swaps(2, set(12, 0, 24, 4, 8), set(11, 0, 8, 4, 4),
		   region_delete(10), set(10, log, 0, 3, 0),
		   set(13, 0, 3, 1, 3));
	list_swaps(2, region_delete(10), region_delete(11),
		   region_delete(12), region_delete(13));

	/* check_slots() has seen to it that there are none after an error. */
}

TEST_F(list, address_spaces)
{
	const u32 log = KVM_MEM_LOG_DIRTY_PAGES;

	if (nr_as == 1)
		SKIP(return, "No address space but one");

	/* The same place and id in both: no clash. */
	list_swaps(2, set(10, 0, 0, 4, 0),
		   set(SMM | 10, 0, 0, 4, 32),
		   set(SMM | 11, 0, 4, 4, 36));
	list_fails(EEXIST, set(11, 0, 4, 4, 4),
		   set(SMM | 12, 0, 7, 1, 8));

	/* Each has its own swaps. */
	list_swaps(1, set(SMM | 10, log, 0, 4, 32));
	list_swaps(2, set(SMM | 10, log, 8, 4, 32));
	list_swaps(3, region_delete(SMM | 10), set(12, 0, 20, 4, 20));
	list_swaps(3, set(12, log, 20, 4, 20), region_delete(SMM | 11));
	list_swaps(1, set(12, log, 20, 4, 20),
		   set(SMM | 10, 0, 28, 4, 28));
	list_swaps(4, set(SMM | 10, 0, 24, 4, 28),
		   set(10, 0, 28, 4, 0), region_delete(12),
		   set(SMM | 12, 0, 28, 4, 50));

	/* A mistake in one keeps the other from changing. */
	list_fails(EEXIST, region_delete(10), region_delete(SMM | 10),
		   set(SMM | 13, 0, 31, 1, 0));
	list_fails(EINVAL, region_delete(SMM | 12), region_delete(12));
	list_fails(EINVAL, region_delete(12), region_delete(SMM | 12));

	/* A slot changes sides. */
	list_swaps(4, region_delete(10), region_delete(SMM | 10),
		   set(11, 0, 24, 4, 28), set(SMM | 11, 0, 8, 4, 0));
}

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
				   size, mem, memfd, 0);

	/* It cannot be changed, only deleted. */
	entries[0] = region_set(slot, 0, WINDOW_GPA, size, mem);
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
					 2 * WINDOW_GPA, size, mem, memfd, 0);
	TEST_ASSERT(r && errno == EEXIST, "Binding lost, errno %d", errno);

	/* ... and one that succeeds frees it. */
	entries[1] = region_set(slot, 0, WINDOW_GPA, size, mem);
	r = __vm_set_region_list(gm_vm, 2, entries);
	TEST_ASSERT(!r, "Slot not replaced, errno %d", errno);
	vm_set_user_memory_region2(gm_vm, slot + 1, KVM_MEM_GUEST_MEMFD,
				   2 * WINDOW_GPA, size, mem, memfd, 0);

	/* Bound to a file that userspace has closed already. */
	close(memfd);
	entries[0] = region_delete(slot + 1);
	r = __vm_set_region_list(gm_vm, 2, entries);
	TEST_ASSERT(!r, "Slot with closed guest_memfd, errno %d", errno);

	kvm_vm_free(gm_vm);
}

static int random_int(struct kvm_random_state *rng, int min, int max)
{
	return kvm_random_u32_in_range(rng, min, max);
}

/* Something that may or may not work, given the slots as they are now. */
static struct region_entry random_entry(struct kvm_random_state *rng)
{
	int as = random_int(rng, 0, nr_as - 1);
	int id = random_int(rng, 0, NR_IDS - 1);
	const struct slot *old = &slots[as][id];
	u32 slot = as << 16 | (FIRST_ID + id);
	struct region_entry entry;
	int nr, at, tries = 0;

	if (!old->size) {
		nr = random_int(rng, 1, 4);
		/* Most of the time, where there is room. */
		do {
			at = random_int(rng, 0, WINDOW_PAGES - nr);
		} while (tries++ < 4 &&
			 (slot_at(as, gpa(at)) || slot_at(as, gpa(at + nr - 1))));
		entry = set(slot, random_int(rng, 0, 3), at, nr,
			    random_int(rng, 0, BACKING_PAGES - nr));
	} else {
		entry = region_set(slot, old->flags, old->gpa, old->size, old->hva);
		nr = old->size / PAGE_SIZE;
		switch (random_int(rng, 0, 7)) {
		case 0 ... 2:
			entry = region_delete(slot);
			break;
		case 3 ... 4:
			entry.guest_phys_addr =
				gpa(random_int(rng, 0, WINDOW_PAGES - nr));
			break;
		case 5 ... 6:
			entry.flags ^= KVM_MEM_LOG_DIRTY_PAGES;
			break;
		}
	}

	/* Now and then, one that is not likely to. */
	switch (random_int(rng, 0, 99)) {
	case 0:
		entry.flags |= BIT(random_int(rng, 2, 31));
		break;
	case 1:
		entry.guest_phys_addr += 1 << random_int(rng, 0, 11);
		break;
	case 2:
		entry.memory_size += 1 << random_int(rng, 0, 11);
		break;
	case 3:
		entry.userspace_addr += 1 << random_int(rng, 0, 11);
		break;
	case 4:
		entry.slot |= BIT(random_int(rng, 17, 31));
		break;
	case 5:
		entry = region_delete(slot);
		entry.slot |= 0x7ffc;
		break;
	case 6:
		entry.guest_phys_addr |= 1ul << 63;
		break;
	case 7:
		entry.flags ^= KVM_MEM_READONLY;
		break;
	}
	return entry;
}

/*
 * Random lists, next to a second VM that gets the same entries one by one from
 * the single ioctl.  Both must agree on the first error and on the slots that
 * result.
 */
TEST_F_TIMEOUT(list, like_single_ioctls, 120)
{
	struct kvm_random_state rng = new_kvm_random_state(RANDOM_SEED);
	struct slot before[NR_AS][NR_IDS], after[NR_AS][NR_IDS];
	struct region_entry entries[MAX_RANDOM_LIST];
	int round, nent, i, as, r, err, nr_failed = 0;
	struct kvm_vm *twin = vm_create_barebones();
	bool invalidates;
	struct slot *old;

	TH_LOG("seed 0x%x, %d lists", RANDOM_SEED, NR_RANDOM_LISTS);

	for (round = 0; round < NR_RANDOM_LISTS; round++) {
		memcpy(before, slots, sizeof(before));
		nent = random_int(&rng, 1, MAX_RANDOM_LIST);
		err = 0;

		for (i = 0; i < nent; i++) {
			entries[i] = random_entry(&rng);
			/* What comes after the first error must not matter. */
			if (err)
				continue;

			if (__vm_set_region_entry(twin, &entries[i])) {
				err = errno;
				continue;
			}
			old = slot_of(&entries[i]);
			invalidates = old->size &&
				      (!entries[i].memory_size ||
				       old->gpa != entries[i].guest_phys_addr);
			entries[i].invalidate_slot = invalidates &&
						     kvm_random_bool(&rng);
			expect(&entries[i]);
		}

		memcpy(after, slots, sizeof(after));
		memcpy(slots, before, sizeof(before));
		do_list(__LINE__, err, err ? 0 : -1, nent, entries);
		if (!err)
			continue;

		/* Take the other VM back to where the list has left this one. */
		nr_failed++;
		for (as = 0; as < nr_as; as++) {
			for (i = 0; i < NR_IDS; i++) {
				if (!after[as][i].size)
					continue;
				r = __vm_set_user_memory_region(twin, as << 16 | (FIRST_ID + i),
								0, 0, 0, NULL);
				TEST_ASSERT(!r, "Deletion failed, errno %d", errno);
			}
		}
		for (as = 0; as < nr_as; as++) {
			for (i = 0; i < NR_IDS; i++) {
				old = &before[as][i];
				if (old->size)
					vm_set_user_memory_region(twin, as << 16 | (FIRST_ID + i),
								  old->flags, old->gpa,
								  old->size, old->hva);
			}
		}
	}

	/* A generator that only makes one kind of list tests nothing. */
	TH_LOG("%d of them fail", nr_failed);
	TEST_ASSERT(nr_failed > NR_RANDOM_LISTS / 10 &&
		    nr_failed < NR_RANDOM_LISTS * 9 / 10, "Lopsided lists");
	kvm_vm_free(twin);
}

static void ignore_signal(int sig)
{
}

TEST_F_TIMEOUT(list, largest_list, 120)
{
	/* KASAN, kmemleak and lockdep together make all slots take minutes. */
	const bool slow = !access("/sys/kernel/debug/kmemleak", F_OK);
	const u32 nr_slots = slow ? 2048 : kvm_check_cap(KVM_CAP_NR_MEMSLOTS);
	const u32 max = kvm_check_cap(KVM_CAP_USER_MEMORY_REGION_LIST);
	struct kvm_vm *big = vm_create_barebones();
	const struct itimerval every_ms = { { .tv_usec = 1000 }, { .tv_usec = 1000 } };
	const struct itimerval never = {};
	struct region_entry *entries;
	struct timespec start;
	u64 swaps;
	int i, r;

	entries = calloc(max, sizeof(*entries));
	TEST_ASSERT(entries, "Insufficient Memory");

	for (i = 0; i < nr_slots; i++)
		entries[i] = region_set(i, 0, 2 * i * PAGE_SIZE, PAGE_SIZE,
					mem);
	swaps = vm_get_stat(big, memslot_swaps);
	clock_gettime(CLOCK_MONOTONIC, &start);
	r = __vm_set_region_list(big, nr_slots, entries);
	TEST_ASSERT(!r, "Creating %u slots, errno %d", nr_slots, errno);
	TH_LOG("%u slots created in %lu us", nr_slots,
	       timespec_to_ns(timespec_elapsed(start)) / 1000);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 1);

	/* All of them replaced; then the same once more, with a last mistake. */
	for (i = 0; i < nr_slots; i++) {
		entries[i] = region_delete(i);
		entries[nr_slots + i] = region_set(nr_slots - 1 - i, 0,
						   (2 * i + 1) * PAGE_SIZE,
						   PAGE_SIZE, mem);
	}
	/* Signals tear nothing. */
	signal(SIGALRM, ignore_signal);
	setitimer(ITIMER_REAL, &every_ms, NULL);
	clock_gettime(CLOCK_MONOTONIC, &start);
	r = __vm_set_region_list(big, 2 * nr_slots, entries);
	TEST_ASSERT(!r, "Replacing %u slots, errno %d", nr_slots, errno);
	setitimer(ITIMER_REAL, &never, NULL);
	TH_LOG("%u slots replaced in %lu us", nr_slots,
	       timespec_to_ns(timespec_elapsed(start)) / 1000);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 3);

	entries[2 * nr_slots - 1].guest_phys_addr = PAGE_SIZE;
	r = __vm_set_region_list(big, 2 * nr_slots, entries);
	TEST_ASSERT(r && errno == EEXIST, "A clash, %d, errno %d", r, errno);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 3);
	for (i = 0; i < nr_slots; i++)
		vm_set_user_memory_region(big, nr_slots - 1 - i, 0,
					  (2 * i + 1) * PAGE_SIZE, PAGE_SIZE,
					  mem);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 3);

	/* Moved, in the only order that has no clash; deleted. */
	for (i = 0; i < nr_slots; i++)
		entries[i] = region_set(i, 0, 2 * (nr_slots - i) * PAGE_SIZE,
					PAGE_SIZE, mem);
	r = __vm_set_region_list(big, nr_slots, entries);
	TEST_ASSERT(!r, "Moving %u slots, errno %d", nr_slots, errno);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 5);

	for (i = 0; i < nr_slots; i++)
		entries[i] = region_delete(i);
	r = __vm_set_region_list(big, nr_slots, entries);
	TEST_ASSERT(!r, "Deleting %u slots, errno %d", nr_slots, errno);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 7);
	for (i = 0; i < nr_slots; i++) {
		r = __vm_set_region_entry(big, &entries[i]);
		TEST_ASSERT(r && errno == EINVAL, "Slot %d is still there", i);
	}

	free(entries);
	kvm_vm_free(big);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	return test_harness_run(argc, argv);
}
