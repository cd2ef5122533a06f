// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST hands out the last dirty bits of slots that it
 * deletes, to entries that name a buffer.
 *
 * Nothing is missing from these bits: a vCPU that writes while the list is
 * carried out either finds the slot gone, or its write is in the bits.
 */
#include <string.h>
#include <sys/mman.h>

#include <linux/bitmap.h>

#include "dirty_log_writes.h"
#include "held_update.h"
#include "uffd_page.h"

#define RING_ENTRIES	4096
#define NR_ROUNDS	40
#define LOG_WORDS	(NR_PAGES / 64)
#define UNTOUCHED	0x5a5a5a5a5a5a5a5aull

/* What the lists' entries name, and a word that they must leave alone. */
static u64 bits[LOG_WORDS + 1];

static struct region_entry fetch(u32 slot, void *buf)
{
	struct region_entry entry = region_delete(slot);

	entry.dirty_bitmap = (uintptr_t)buf;
	return entry;
}

static void forget_bits(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(bits); i++)
		bits[i] = UNTOUCHED;
}

static void check_bits(const u64 *log, int nr, bool all, const int *pages)
{
	DECLARE_BITMAP(want, NR_PAGES + 64);
	int i;

	bitmap_zero(want, NR_PAGES + 64);
	for (i = 0; all && i < nr; i++)
		__set_bit(i, want);
	for (; *pages != NONE; pages++)
		__set_bit(*pages, want);

	for (i = 0; i < DIV_ROUND_UP(nr, 64); i++)
		TEST_ASSERT(log[i] == want[i], "Word %d is 0x%lx, not 0x%lx", i,
			    log[i], want[i]);
	TEST_ASSERT(log[i] == UNTOUCHED, "KVM has written beyond the bits");
}

/* Checks which pages are dirty according to @bits. */
#define bits_are(nr, ...)						\
	check_bits(bits, nr, false, (const int []) { __VA_ARGS__, NONE })
/* The same for a log that has been started in the same list. */
#define started_bits_are(test, nr)					\
	check_bits(bits, nr,						\
		   (test)->manual_protect & KVM_DIRTY_LOG_INITIALLY_SET,\
		   (const int []) { NONE })

static void expect_error(struct dirty_log_test *test, int err, u32 nent,
			 const struct region_entry *entries)
{
	u64 swaps = vm_get_stat(test->vm, memslot_swaps);
	int r;

	forget_bits();
	r = __vm_set_region_list(test->vm, nent, entries);
	TEST_ASSERT(r == -1 && errno == err, "Wanted errno %d, got %d, errno %d",
		    err, r, errno);
	TEST_ASSERT(vm_get_stat(test->vm, memslot_swaps) == swaps,
		    "A list that failed has swapped");
	check_bits(bits, 0, false, (const int []) { NONE });
}

#define list_fails(test, err, ...)					\
do {									\
	const struct region_entry __e[] = { __VA_ARGS__ };		\
									\
	expect_error(test, err, ARRAY_SIZE(__e), __e);			\
} while (0)

static void set_up(struct dirty_log_test *test, int nr)
{
	DECLARE_BITMAP(log, NR_PAGES);

	vm_set_region_list(test->vm, log_set(10, 0, nr));
	harvest(test, 10, nr, log);
	forget_bits();
}

TEST_F(dirty_log, capability)
{
	u32 fields = kvm_check_cap(KVM_CAP_USER_MEMORY_REGION_LIST_FIELDS);

	TEST_ASSERT(fields & KVM_MEMORY_REGION_LIST_DIRTY_BITMAP,
		    "The fields are 0x%x", fields);
	TEST_ASSERT(!(fields & ~(KVM_MEMORY_REGION_LIST_DIRTY_BITMAP |
				 KVM_MEMORY_REGION_LIST_GUEST_MEMFD)),
		    "The fields are 0x%x", fields);
}

TEST_F(dirty_log, last_bits)
{
	struct dirty_log_test *test = &self->test;
	const int sizes[] = { 1, 63, 64, 65, 200, NR_PAGES };
	int i, nr;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		nr = sizes[i];
		set_up(test, nr);
		vm_set_region_list(test->vm, fetch(10, bits));
		bits_are(nr, NONE);

		set_up(test, nr);
		guest_writes(test->vcpus[0], 0, nr / 2, nr - 1);
		vm_set_region_list(test->vm, fetch(10, bits));
		bits_are(nr, 0, nr / 2, nr - 1);
	}

	/* The buffer need not be aligned. */
	set_up(test, 8);
	guest_writes(test->vcpus[0], 3);
	vm_set_region_list(test->vm, fetch(10, (u8 *)bits + 3));
	TEST_ASSERT(((u8 *)bits)[2] == 0x5a && ((u8 *)bits)[3] == 8 &&
		    !((u8 *)bits)[10] && ((u8 *)bits)[11] == 0x5a,
		    "The bits are not where they should be");
}

/* Successors that log get the dirty bits as well. */
TEST_F(dirty_log, last_bits_and_successors)
{
	struct dirty_log_test *test = &self->test;
	DECLARE_BITMAP(log, NR_PAGES);
	u64 swaps, windows;

	set_up(test, 16);
	guest_writes(test->vcpus[0], 2, 9, 15);
	swaps = vm_get_stat(test->vm, memslot_swaps);
	windows = vm_get_stat(test->vm, memslot_windows);
	vm_set_region_list(test->vm, fetch(10, bits), log_set(11, 0, 8),
			   set(12, 0, 8, 8, 8));
	bits_are(16, 2, 9, 15);
	harvest(test, 11, 8, log);
	TEST_ASSERT(log[0] == BIT(2), "The log is 0x%lx", log[0]);
	if (!host_cpu_is_intel) {
		TEST_ASSERT_EQ(vm_get_stat(test->vm, memslot_swaps) - swaps, 1);
		TEST_ASSERT_EQ(vm_get_stat(test->vm, memslot_windows), windows);
	}

	/* Of several slots, and in the order of the list. */
	vm_set_region_list(test->vm, region_delete(12), log_set(12, 8, 8));
	harvest(test, 12, 8, log);
	guest_writes(test->vcpus[0], 1, 12);
	forget_bits();
	vm_set_region_list(test->vm, fetch(12, &bits[1]), fetch(11, &bits[0]));
	TEST_ASSERT(bits[0] == BIT(1) && bits[1] == BIT(4) &&
		    bits[2] == UNTOUCHED, "The bits are 0x%lx, 0x%lx", bits[0],
		    bits[1]);
}

/* What userspace has fetched and not cleared is dirty still. */
TEST_F(dirty_log, fetched_before)
{
	struct dirty_log_test *test = &self->test;
	DECLARE_BITMAP(log, NR_PAGES);

	set_up(test, 16);
	guest_writes(test->vcpus[0], 2, 9);
	kvm_vm_get_dirty_log(test->vm, 10, log);
	guest_writes(test->vcpus[0], 4);
	vm_set_region_list(test->vm, fetch(10, bits));
	if (test->manual_protect)
		bits_are(16, 2, 4, 9);
	else
		bits_are(16, 4);
}

/* A log that the list has started, or that a slot has taken along. */
TEST_F(dirty_log, within_a_list)
{
	struct dirty_log_test *test = &self->test;

	/* The slot never gets into the VM's memslots. */
	forget_bits();
	vm_set_region_list(test->vm, log_set(10, 0, 70), fetch(10, bits));
	started_bits_are(test, 70);

	forget_bits();
	vm_set_region_list(test->vm, set(10, 0, 0, 70, 0));
	guest_writes(test->vcpus[0], 3);
	vm_set_region_list(test->vm, log_set(10, 0, 70), fetch(10, bits));
	started_bits_are(test, 70);

	/* Logging goes off and on again. */
	set_up(test, 70);
	guest_writes(test->vcpus[0], 3);
	vm_set_region_list(test->vm, set(10, 0, 0, 70, 0), log_set(10, 0, 70),
			   fetch(10, bits));
	started_bits_are(test, 70);

	set_up(test, 70);
	guest_writes(test->vcpus[0], 3, 69);
	vm_set_region_list(test->vm, set(10, LOG, 80, 70, 0),
			   set(10, LOG, 80, 70, 0), fetch(10, bits));
	bits_are(70, 3, 69);

	/* Two slots that have the same id one after the other. */
	set_up(test, 70);
	guest_writes(test->vcpus[0], 3, 69);
	vm_set_region_list(test->vm, fetch(10, bits), log_set(10, 0, 64),
			   fetch(10, &bits[3]));
	TEST_ASSERT(bits[0] == BIT(3) && bits[1] == BIT(5) &&
		    bits[2] == UNTOUCHED, "The bits are 0x%lx, 0x%lx", bits[0],
		    bits[1]);
	memmove(bits, &bits[3], 2 * sizeof(*bits));
	started_bits_are(test, 64);
}

TEST_F(dirty_log, refused)
{
	struct dirty_log_test *test = &self->test;
	struct region_entry entry;
	void *read_only;

	vm_set_region_list(test->vm, set(12, 0, 32, 8, 32));
	set_up(test, 16);
	guest_writes(test->vcpus[0], 5);

	list_fails(test, EINVAL, fetch(12, bits));
	list_fails(test, EINVAL, fetch(13, bits));
	list_fails(test, EINVAL, fetch(10, bits), fetch(10, bits));
	list_fails(test, EINVAL, set(10, 0, 0, 16, 0), fetch(10, bits));
	list_fails(test, EINVAL, fetch(10, bits), fetch(12, bits));
	entry = log_set(10, 0, 16);
	entry.dirty_bitmap = (uintptr_t)bits;
	list_fails(test, EINVAL, entry);
	entry.flags = 0;
	list_fails(test, EINVAL, entry);
	entry = set(10, LOG, 64, 16, 0);
	entry.dirty_bitmap = (uintptr_t)bits;
	list_fails(test, EINVAL, entry);
	entry = log_set(13, 64, 16);
	entry.dirty_bitmap = (uintptr_t)bits;
	list_fails(test, EINVAL, entry);

	read_only = kvm_mmap(2 * PAGE_SIZE, PROT_READ,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	list_fails(test, EFAULT, fetch(10, read_only));
	list_fails(test, EFAULT, fetch(10, (void *)8));
	list_fails(test, EFAULT, fetch(10, (void *)-4096ul));
	list_fails(test, EFAULT, fetch(10, (void *)(1ul << 63)));
	/* The bits would end on a page that cannot be written to. */
	TEST_ASSERT(!mprotect(read_only, PAGE_SIZE, PROT_READ | PROT_WRITE),
		    "mprotect() failed, errno %d", errno);
	list_fails(test, EFAULT, fetch(10, read_only + PAGE_SIZE - 4));
	list_fails(test, EFAULT, fetch(10, read_only + PAGE_SIZE - 4),
		   log_set(10, 0, 4));

	/* Nothing has changed. */
	vm_set_region_list(test->vm, fetch(10, read_only + PAGE_SIZE - 8));
	TEST_ASSERT(*(u64 *)(read_only + PAGE_SIZE - 8) == BIT(5),
		    "The bits are 0x%lx", *(u64 *)(read_only + PAGE_SIZE - 8));
	kvm_munmap(read_only, 2 * PAGE_SIZE);
}

/* With a dirty ring, there are no bits. */
TEST_F(dirty_log, ring)
{
	struct kvm_vm *vm;
	struct region_entry entry = fetch(10, bits);

	if (!kvm_has_cap(KVM_CAP_DIRTY_LOG_RING))
		SKIP(return, "No dirty ring");

	vm = vm_create(1);
	vm_enable_dirty_ring(vm, RING_ENTRIES * sizeof(struct kvm_dirty_gfn));
	vm_set_region_list(vm, log_set(10, 0, 16));
	TEST_ASSERT(__vm_set_region_list(vm, 1, &entry) && errno == ENXIO,
		    "errno %d", errno);
	vm_set_region_list(vm, region_delete(10));
	kvm_vm_free(vm);
}

static void *set_list(void *arg)
{
	struct held_update *update = arg;
	int r = __vm_set_region_list(update->vm, update->nr_entries,
				     update->entries);

	return (void *)(long)(r ? errno : 0);
}

/* A buffer that goes away late does not undo the list. */
TEST_F(dirty_log, buffer_goes_away)
{
	struct dirty_log_test *test = &self->test;
	struct held_update update = { .vm = test->vm };
	u64 swaps;
	void *buf, *result;
	pthread_t thread;
	int uffd, i;

	set_up(test, 16);
	guest_writes(test->vcpus[0], 5);
	buf = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);

	/*
	 * Finding out whether the second buffer can be written to takes until
	 * the first has gone.
	 */
	uffd = uffd_open(buf + PAGE_SIZE, PAGE_SIZE);
	vm_set_region_list(test->vm, log_set(11, 32, 8));
	held_update_add(&update, fetch(10, buf));
	held_update_add(&update, fetch(11, buf + PAGE_SIZE));
	swaps = vm_get_stat(test->vm, memslot_swaps);
	kvm_pthread_create(&thread, NULL, set_list, &update);
	uffd_await_fault(uffd);
	TEST_ASSERT_EQ(vm_get_stat(test->vm, memslot_swaps), swaps);
	kvm_munmap(buf, PAGE_SIZE);
	uffd_copy(uffd, buf + PAGE_SIZE, mem);
	kvm_pthread_join(thread, &result);

	TEST_ASSERT((long)result == EFAULT, "errno %ld", (long)result);
	for (i = 10; i <= 11; i++) {
		struct region_entry entry = region_delete(i);

		TEST_ASSERT(__vm_set_region_list(test->vm, 1, &entry) &&
			    errno == EINVAL, "Slot %d is there still", i);
	}
	close(uffd);
	kvm_munmap(buf + PAGE_SIZE, PAGE_SIZE);
}

static void *run_to_hole(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	do {
		vcpu_run(vcpu);
	} while (vcpu->run->exit_reason != KVM_EXIT_MMIO);
	return NULL;
}

/* The bits say which pages a vCPU has written to until it finds the slot gone. */
TEST_F(dirty_log, writer)
{
	struct dirty_log_test *test = &self->test;
	bool *to_write = *guest_ptr(test->vm, guest_to_write);
	int i, round, written, early, partial = 0;
	pthread_t thread;

	memset(to_write, true, sizeof(guest_to_write));
	for (round = 0; round < NR_ROUNDS; round++) {
		memset(mem, 0, NR_PAGES * PAGE_SIZE);
		set_up(test, NR_PAGES);
		kvm_pthread_create(&thread, NULL, run_to_hole, test->vcpus[0]);
		usleep(random() % 20000);
		if (round % 2)
			vm_set_region_list(test->vm, fetch(10, bits));
		else
			vm_set_region_list(test->vm, fetch(10, bits),
					   log_set(11, 0, 1));
		kvm_pthread_join(thread, NULL);

		for (i = 0, written = 0, early = 0; i < NR_PAGES; i++) {
			bool dirty = test_bit(i, (unsigned long *)bits);
			bool wrote = *(u64 *)(mem + i * PAGE_SIZE);

			/* The vCPU may have written to the page since. */
			if (i == 0 && round % 2 == 0)
				continue;
			TEST_ASSERT(dirty || !wrote, "Round %d: page %d is missing",
				    round, i);
			written += wrote;
			early += dirty && !wrote;
		}
		/* KVM marks a page dirty before it lets the vCPU write to it. */
		TEST_ASSERT(early <= 1, "Round %d: %d clean pages are dirty", round,
			    early);
		partial += written && written < NR_PAGES - 1;
		if (round % 2 == 0)
			vm_set_region_list(test->vm, region_delete(11));
	}
	ksft_print_msg("%d of %d lists met the vCPU half-way\n", partial,
		       NR_ROUNDS);
}

/* Writes to all pages, and then stays in the guest as long as the host wants. */
static bool guest_wait;

static void guest_write_and_wait(void)
{
	int i;

	for (;;) {
		for (i = 0; i < NR_PAGES; i++)
			WRITE_ONCE(*(u64 *)(WINDOW_GPA + i * PAGE_SIZE), i + 1);
		while (READ_ONCE(guest_wait))
			cpu_relax();
		GUEST_SYNC(0);
	}
}

static void *run_to_sync(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_SYNC);
	return NULL;
}

/*
 * Where all pages stay and the new slot logs as well, the bits have what was
 * written before the list, also if hardware has logged it in a buffer and the vCPU
 * has not left the guest since.
 */
TEST_F(dirty_log, writer_stays)
{
	struct dirty_log_test *test = &self->test;
	bool *wait = guest_ptr(test->vm, guest_wait);
	u64 *last = (u64 *)(mem + (NR_PAGES - 1) * PAGE_SIZE);
	struct kvm_vcpu *vcpu = test->vcpus[0];
	pthread_t thread;
	int i, round;

	vcpu_arch_set_entry_point(vcpu, guest_write_and_wait);
	for (round = 0; round < NR_ROUNDS / 4; round++) {
		memset(mem, 0, NR_PAGES * PAGE_SIZE);
		set_up(test, NR_PAGES);
		WRITE_ONCE(*wait, true);
		kvm_pthread_create(&thread, NULL, run_to_sync, vcpu);
		while (!READ_ONCE(*last))
			sched_yield();
		forget_bits();
		vm_set_region_list(test->vm, fetch(10, bits), log_set(10, 0, NR_PAGES));
		WRITE_ONCE(*wait, false);
		kvm_pthread_join(thread, NULL);
		for (i = 0; i < NR_PAGES; i++)
			TEST_ASSERT(test_bit(i, (unsigned long *)bits),
				    "Round %d: page %d is missing", round, i);
	}
}

int main(int argc, char **argv)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));
	return test_harness_run(argc, argv);
}
