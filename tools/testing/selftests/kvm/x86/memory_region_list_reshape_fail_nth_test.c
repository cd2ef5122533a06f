// SPDX-License-Identifier: GPL-2.0-only
/*
 * Lists that reshape memslots in place, and run out of memory.
 *
 * Each list is tried with its first allocation failing, then with its second one,
 * and so on until no allocation fails.  A list that fails changes nothing: neither
 * the slots nor their logs, nor the guest's mappings.  One that copes with the
 * failure does all that it must, though it may take mappings from the guest that it
 * would otherwise leave alone.
 */
#include <string.h>
#include <sys/mman.h>

#include <linux/sizes.h>

#include "fault_injection.h"
#include "slot_window.h"

#define LOG		KVM_MEM_LOG_DIRTY_PAGES

#define NR_PAGES	1024
#define NR_SLOTS	4
#define LOG_WORDS	(NR_PAGES / 64)

/* The pages that are dirty where they are logged: some on each side of a cut. */
static const int dirty_pages[] = { 3, 99, 100, 101, 310, 511, 512, 700, 899, 900 };

/* The host writes the guest's copy. */
static struct {
	bool write;
	int first, step, end;
	u64 val;
} guest_todo;

/* Reads, or writes to, each @step-th page. */
static void guest_walk(void)
{
	u64 *page;
	int i;

	for (;;) {
		for (i = guest_todo.first; i < guest_todo.end; i += guest_todo.step) {
			page = (u64 *)(WINDOW_GPA + i * PAGE_SIZE);
			if (guest_todo.write)
				WRITE_ONCE(page[1], guest_todo.val);
			else
				GUEST_ASSERT_EQ(READ_ONCE(page[0]), BACKING_VAL(i));
		}
		GUEST_SYNC(0);
	}
}

struct scenario {
	const char *name;
	/* Of slots from FIRST_ID on; at, number of pages, flags. */
	struct { int at, nr; u32 flags; } before[NR_SLOTS], after[NR_SLOTS];
	/* How many allocations the list cannot do without. */
	int min;
};

static const struct scenario scenarios[] = {
	{ "split", { { 0, 1024 } }, { { 0, 300 }, { 300, 724 } }, 2 * 3 },
	{ "merge", { { 0, 300 }, { 300, 724 } }, { { 0, 1024 } }, 3 },
	{ "shrink", { { 0, 1024 } }, { { 100, 800 } }, 1 + 3 },
	{ "hole", { { 0, 1024 } }, { { 0, 310 }, { 311, 713 } }, 1 + 2 * 3 },
	{ "read-only part", { { 0, 1024 } },
	  { { 0, 300 }, { 300, 100, KVM_MEM_READONLY }, { 400, 624 } }, 1 + 3 * 3 },
	{ "logging begins", { { 0, 1024 } }, { { 0, 300, LOG }, { 300, 724 } },
	  1 + 2 * 3 },
	{ "logging ends", { { 0, 300, LOG }, { 300, 724, LOG } }, { { 0, 1024 } }, 3 },
	{ "split of a log", { { 0, 1024, LOG } },
	  { { 0, 101, LOG }, { 101, 412, LOG }, { 513, 511, LOG } }, 3 * 4 },
	{ "shrink of a log", { { 0, 1024, LOG } }, { { 100, 413, LOG }, { 700, 200 } },
	  1 + 4 + 3 },
	{ "grow beside a log", { { 0, 600, LOG }, { 700, 200 } },
	  { { 0, 650, LOG }, { 650, 374 } }, 4 + 3 },
};

struct test {
	const struct scenario *scenario;
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *mem;
	struct slot slots[NR_SLOTS];
	unsigned long logs[NR_SLOTS][LOG_WORDS];
	u64 val;
};

static u64 *word(struct test *test, int page, int w)
{
	return (u64 *)(test->mem + page * PAGE_SIZE) + w;
}

static struct region_entry entry_of(struct test *test, int i, int at, int nr, u32 flags)
{
	return region_set(FIRST_ID + i, flags, window_gpa(at), nr * PAGE_SIZE,
			  test->mem + at * PAGE_SIZE);
}

/* Returns how many faults the guest takes. */
static u64 walk(struct test *test, bool write, int first, int end, int step)
{
	typeof(guest_todo) *todo = guest_ptr(test->vm, guest_todo);
	u64 faults = vcpu_get_stat(test->vcpu, pf_taken);
	struct ucall uc;

	todo->write = write;
	todo->first = first;
	todo->step = step;
	todo->end = end;
	todo->val = test->val;
	vcpu_run(test->vcpu);
	if (get_ucall(test->vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT(uc.cmd == UCALL_SYNC, "Unexpected exit: %s",
		    exit_reason_str(test->vcpu->run->exit_reason));
	return vcpu_get_stat(test->vcpu, pf_taken) - faults;
}

static const struct slot *slot_of_page(struct test *test, int page)
{
	return slot_at(test->slots, NR_SLOTS, window_gpa(page));
}

/* Has the guest write to the pages that get dirty, as far as it may. */
static void write_dirty_pages(struct test *test)
{
	const struct slot *slot;
	int i, page;

	test->val++;
	for (i = 0; i < ARRAY_SIZE(dirty_pages); i++) {
		page = dirty_pages[i];
		slot = slot_of_page(test, page);
		if (!slot || (slot->flags & KVM_MEM_READONLY))
			continue;
		walk(test, true, page, page + 1, 1);
		TEST_ASSERT(*word(test, page, 1) == test->val,
			    "A write to page %d is lost", page);
	}
}

static void expect_log(struct test *test)
{
	const struct slot *slot;
	int i, page;

	memset(test->logs, 0, sizeof(test->logs));
	for (i = 0; i < ARRAY_SIZE(dirty_pages); i++) {
		slot = slot_of_page(test, dirty_pages[i]);
		if (!slot || !(slot->flags & LOG))
			continue;
		page = dirty_pages[i] - (slot->gpa - WINDOW_GPA) / PAGE_SIZE;
		test->logs[slot - test->slots][page / 64] |= BIT(page % 64);
	}
}

static void check_logs(struct test *test, const char *when)
{
	unsigned long log[LOG_WORDS];
	int i;

	for (i = 0; i < NR_SLOTS; i++) {
		if (!(test->slots[i].flags & LOG))
			continue;
		memset(log, 0, sizeof(log));
		kvm_vm_get_dirty_log(test->vm, FIRST_ID + i, log);
		TEST_ASSERT(!memcmp(log, test->logs[i], sizeof(log)),
			    "%s: the log of slot %d is not as expected", when,
			    FIRST_ID + i);
	}
}

static void check_contents(struct test *test, const char *when)
{
	int page;

	for (page = 0; page < NR_PAGES; page++)
		TEST_ASSERT(*word(test, page, 0) == BACKING_VAL(page),
			    "%s: page %d has 0x%lx", when, page,
			    *word(test, page, 0));
}

/* Has the guest read each part that is mapped.  Returns the number of faults. */
static u64 read_all(struct test *test)
{
	const struct slot *slot;
	u64 faults = 0;
	int first;

	for (slot = test->slots; slot < test->slots + NR_SLOTS; slot++) {
		if (!slot->size)
			continue;
		first = (slot->gpa - WINDOW_GPA) / PAGE_SIZE;
		faults += walk(test, false, first,
			       first + slot->size / PAGE_SIZE, 1);
	}
	return faults;
}

/*
 * Gives the VM the slots before the list, all of which the guest has mapped.  It
 * keeps what it has mapped already.
 */
static void reset(struct test *test)
{
	struct region_entry entries[2 * NR_SLOTS];
	int i, nr = 0;

	for (i = 0; i < NR_SLOTS; i++)
		if (test->slots[i].size)
			entries[nr++] = region_delete(FIRST_ID + i);
	memset(test->slots, 0, sizeof(test->slots));

	for (i = 0; i < NR_SLOTS; i++) {
		if (!test->scenario->before[i].nr)
			continue;
		entries[nr] = entry_of(test, i, test->scenario->before[i].at,
				       test->scenario->before[i].nr, 0);
		test->slots[i] = slot_from_entry(&entries[nr++]);
	}
	vm_set_region_entries(test->vm, nr, entries);
	/* Maps everything for writing, before the first access to it is logged. */
	read_all(test);
	write_dirty_pages(test);
	for (i = 0; i < NR_SLOTS; i++) {
		if (!(test->scenario->before[i].flags & LOG))
			continue;
		test->slots[i].flags |= LOG;
		vm_set_region_list(test->vm,
				   region_set(FIRST_ID + i, LOG, test->slots[i].gpa,
					      test->slots[i].size,
					      test->slots[i].hva));
	}
	write_dirty_pages(test);
	read_all(test);
	expect_log(test);
	check_logs(test, "at first");
}

static int make_list(struct test *test, struct region_entry *entries)
{
	int i, nr = 0;

	for (i = 0; i < NR_SLOTS; i++)
		if (test->scenario->before[i].nr)
			entries[nr++] = region_delete(FIRST_ID + i);
	for (i = 0; i < NR_SLOTS; i++)
		if (test->scenario->after[i].nr)
			entries[nr++] = entry_of(test, i, test->scenario->after[i].at,
						 test->scenario->after[i].nr,
						 test->scenario->after[i].flags);
	return nr;
}

/* Checks that the list has done what it must. */
static void check_success(struct test *test, int nr,
			  const struct region_entry *entries, const char *when)
{
	struct slot before[NR_SLOTS];
	const struct slot *old, *slot;
	int i, page;

	memcpy(before, test->slots, sizeof(before));
	for (i = 0; i < nr; i++)
		test->slots[entries[i].slot - FIRST_ID] =
			slot_from_entry(&entries[i]);

	/* Only what was logged before has bits. */
	memset(test->logs, 0, sizeof(test->logs));
	for (i = 0; i < ARRAY_SIZE(dirty_pages); i++) {
		old = slot_at(before, NR_SLOTS, window_gpa(dirty_pages[i]));
		slot = slot_of_page(test, dirty_pages[i]);
		if (!old || !(old->flags & LOG) || !slot || !(slot->flags & LOG))
			continue;
		page = dirty_pages[i] - (slot->gpa - WINDOW_GPA) / PAGE_SIZE;
		test->logs[slot - test->slots][page / 64] |= BIT(page % 64);
	}
	vm_check_slots(test->vm, FIRST_ID, test->slots, NR_SLOTS, when);
	check_logs(test, when);
	check_contents(test, when);

	/* Then each write to them is logged. */
	write_dirty_pages(test);
	expect_log(test);
	check_logs(test, when);
	read_all(test);
}

static int sweep(struct test *test)
{
	struct kvm_userspace_memory_region_list *list;
	struct region_entry entries[2 * NR_SLOTS];
	int r, nr, nr_failed = 0, nr_survived = 0;
	unsigned int nth;
	bool failed;
	char when[64];
	u64 faults;

	reset(test);
	for (nth = 1, failed = true; failed; nth++) {
		snprintf(when, sizeof(when), "%s, failure %u", test->scenario->name,
			 nth);
		nr = make_list(test, entries);
		list = alloc_region_list(nr, entries);
		r = ioctl_fail_nth(nth, test->vm->fd,
				   KVM_SET_USER_MEMORY_REGION_LIST, list, &failed);
		TEST_ASSERT(!r || (failed && errno == ENOMEM), "%s: errno %d", when,
			    errno);
		free(list);
		if (!r) {
			check_success(test, nr, entries, when);
			nr_survived += failed;
			reset(test);
			continue;
		}
		nr_failed++;
		faults = read_all(test);
		TEST_ASSERT(!faults, "%s: %lu faults on reading", when, faults);
		faults = vcpu_get_stat(test->vcpu, pf_taken);
		write_dirty_pages(test);
		faults = vcpu_get_stat(test->vcpu, pf_taken) - faults;
		TEST_ASSERT(!faults, "%s: %lu faults on writing", when, faults);
		vm_check_slots(test->vm, FIRST_ID, test->slots, NR_SLOTS, when);
		check_logs(test, when);
		check_contents(test, when);
	}
	ksft_print_msg("%s: failed %d times, managed without %d times\n",
		       test->scenario->name, nr_failed, nr_survived);
	return nr_failed;
}

static bool run_scenario(const struct scenario *scenario, int advice)
{
	const size_t size = NR_PAGES * PAGE_SIZE;
	struct test test = { .scenario = scenario };
	int i, round, nr_failed = 0;
	void *area;

	test.vm = vm_create_with_one_vcpu(&test.vcpu, guest_walk);
	virt_map(test.vm, WINDOW_GPA, WINDOW_GPA, NR_PAGES);
	/* Getting the log then does not clear it. */
	vm_enable_cap(test.vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	area = kvm_mmap(size + SZ_2M, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
	test.mem = align_ptr_up(area, SZ_2M);
	madvise(test.mem, size, advice);
	for (i = 0; i < NR_PAGES; i++)
		*word(&test, i, 0) = BACKING_VAL(i);

	/* Where pages are missed because the slab allocator takes some, try again. */
	for (round = 0; round < 3 && nr_failed < scenario->min; round++)
		nr_failed += sweep(&test);
	kvm_vm_free(test.vm);
	kvm_munmap(area, size + SZ_2M);
	return nr_failed >= scenario->min;
}

int main(int argc, char *argv[])
{
	int advice[] = { MADV_NOHUGEPAGE, MADV_HUGEPAGE }, i, j;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));
	TEST_REQUIRE(kvm_is_tdp_enabled());
	TEST_REQUIRE(have_fault_injection());

	ksft_print_header();
	ksft_set_plan(2 * ARRAY_SIZE(scenarios));
	for (i = 0; i < 2; i++) {
		/* Splitting a huge page takes pages for page tables. */
		TEST_ASSERT(fail_pages(i == 1), "Cannot make pages fail");
		for (j = 0; j < ARRAY_SIZE(scenarios); j++)
			ksft_test_result(run_scenario(&scenarios[j], advice[i]),
					 "%s, %s pages\n", scenarios[j].name,
					 i ? "huge" : "small");
	}
	ksft_finished();
}
