/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A window of guest memory, of which the test knows the memslots and a vCPU
 * accesses each page.
 */
#ifndef SELFTEST_KVM_SLOT_WINDOW_H
#define SELFTEST_KVM_SLOT_WINDOW_H

#include <sys/mman.h>

#include "kvm_util.h"
#include "memory_region_list.h"
#include "processor.h"
#include "test_util.h"

#define WINDOW_GPA	0xc0000000ul
#define WINDOW_PAGES	32
/* What the vCPU reads where there is no memslot. */
#define HOLE		(~0ul)

/* The host memory behind the slots.  Each page begins with a value of its own. */
#define BACKING_PAGES	64
#define BACKING_VAL(i)	(0x1000ul + (i))

static u8 *backing;

/* Slot 0 is the guest's own memory. */
#define FIRST_ID	10

/* The host accesses the guest's copies. */
static u64 guest_seen[WINDOW_PAGES];
static bool guest_to_write[WINDOW_PAGES];

static inline void guest_code(void)
{
	u64 *page;
	int i;

	for (;;) {
		for (i = 0; i < WINDOW_PAGES; i++) {
			page = (u64 *)(WINDOW_GPA + i * PAGE_SIZE);
			guest_seen[i] = READ_ONCE(page[0]);
			if (guest_to_write[i])
				WRITE_ONCE(page[1], guest_seen[i]);
		}
		GUEST_SYNC(0);
	}
}

static inline gpa_t window_gpa(int page)
{
	return WINDOW_GPA + page * PAGE_SIZE;
}

static inline u8 *backing_page(int page)
{
	return backing + page * PAGE_SIZE;
}

static inline void create_backing(void)
{
	int i;

	backing = kvm_mmap(BACKING_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (i = 0; i < BACKING_PAGES; i++)
		*(u64 *)backing_page(i) = BACKING_VAL(i);
}

static inline void free_backing(void)
{
	kvm_munmap(backing, BACKING_PAGES * PAGE_SIZE);
}

/* A slot of @nr pages at page @at of the window, backed from page @from on. */
static inline struct region_entry set(u32 slot, u32 flags, int at, int nr, int from)
{
	return region_set(slot, flags, window_gpa(at), nr * PAGE_SIZE,
			  backing_page(from));
}

/* What the test expects a slot to be; size 0 if there must be none. */
struct slot {
	u32 flags;
	gpa_t gpa;
	u64 size;
	u8 *hva;
};

static inline struct slot slot_from_entry(const struct region_entry *entry)
{
	return (struct slot) {
		.flags = entry->flags,
		.gpa = entry->guest_phys_addr,
		.size = entry->memory_size,
		.hva = (u8 *)entry->userspace_addr,
	};
}

static inline const struct slot *slot_at(const struct slot *slots, int nr, gpa_t gpa)
{
	int i;

	for (i = 0; i < nr; i++)
		if (gpa >= slots[i].gpa && gpa < slots[i].gpa + slots[i].size)
			return &slots[i];
	return NULL;
}

/*
 * Checks that @nr slots from @first_id on are as expected.  Userspace can tell by
 * asking for each slot again, which does nothing if the slot is like that, and
 * for the deletion of each slot that must not exist.
 */
static inline void vm_check_slots(struct kvm_vm *vm, u32 first_id,
				  const struct slot *slots, int nr, const char *when)
{
	u64 swaps = vm_get_stat(vm, memslot_swaps);
	const struct slot *slot;
	int i, r;

	for (i = 0; i < nr; i++) {
		slot = &slots[i];
		r = __vm_set_user_memory_region(vm, first_id + i, slot->flags,
						slot->gpa, slot->size, slot->hva);
		if (slot->size)
			TEST_ASSERT(!r, "%s: slot 0x%x is not as expected, errno %d",
				    when, first_id + i, errno);
		else
			TEST_ASSERT(r && errno == EINVAL,
				    "%s: slot 0x%x should not exist", when,
				    first_id + i);
	}
	TEST_ASSERT(vm_get_stat(vm, memslot_swaps) == swaps,
		    "%s: a slot is not as expected", when);
}

/*
 * Runs the vCPU once over the window.  In a hole, it reads HOLE.  @write_exits, if
 * not NULL, tells the pages where a write exits to userspace.
 */
static inline void run_over_window(struct kvm_vcpu *vcpu, bool *write_exits)
{
	struct kvm_run *run = vcpu->run;
	u64 page;

	for (;;) {
		vcpu_run(vcpu);
		if (run->exit_reason != KVM_EXIT_MMIO)
			break;

		page = (run->mmio.phys_addr - WINDOW_GPA) / PAGE_SIZE;
		TEST_ASSERT(page < WINDOW_PAGES && run->mmio.len == 8,
			    "Stray MMIO at 0x%llx", run->mmio.phys_addr);
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		else if (write_exits)
			write_exits[page] = true;
	}
	TEST_ASSERT(get_ucall(vcpu, NULL) == UCALL_SYNC, "Unexpected exit: %s",
		    exit_reason_str(run->exit_reason));
}

/* Checks what the vCPU has read from the window. */
static inline void check_window_reads(struct kvm_vm *vm, const struct slot *slots,
				      int nr, const char *when)
{
	u64 *seen = *guest_ptr(vm, guest_seen), want;
	const struct slot *slot;
	gpa_t gpa;
	int i;

	for (i = 0; i < WINDOW_PAGES; i++) {
		gpa = window_gpa(i);
		slot = slot_at(slots, nr, gpa);
		want = slot ? *(u64 *)(slot->hva + (gpa - slot->gpa)) : HOLE;
		TEST_ASSERT(seen[i] == want,
			    "%s: page %d: the guest sees 0x%lx instead of 0x%lx",
			    when, i, seen[i], want);
	}
}

#endif /* SELFTEST_KVM_SLOT_WINDOW_H */
