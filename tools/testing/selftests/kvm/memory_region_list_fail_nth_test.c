// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memslot updates that run out of memory change nothing.
 *
 * Each update is tried with its first allocation failing, then with its second
 * one, and so on until it gets by without a failure.  In between, all must be
 * as it was: the slots, the dirty log, what a vCPU reads.
 *
 * The same for KVM_MAP_MEMORY, which must say what it has not done.
 *
 * Needs CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC, CONFIG_FAULT_INJECTION_DEBUG_FS.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <linux/sizes.h>

#include "held_update.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "memory_region_list.h"
#include "nested_guest.h"
#include "processor.h"
#include "test_util.h"

#define WINDOW_GPA	0xc0000000ul
#define WINDOW_PAGES	20
#define BACKING_PAGES	32
#define BACKING_VAL(i)	(0x1000ul + (i))
#define HOLE		(~0ul)

/* For slots that no vCPU looks at. */
#define ELSEWHERE_GPA	0x100000000ul

/* What the tests change; and the slots of the long list, which stay. */
#define FIRST_ID	10
#define NR_IDS		8
#define NR_MANY		290

#define LOG		KVM_MEM_LOG_DIRTY_PAGES

#define DEBUGFS		"/sys/kernel/debug/"

/* Guest and host, each with its own copy. */
static u64 guest_seen[WINDOW_PAGES];
static bool guest_to_write[WINDOW_PAGES];

static void guest_code(void)
{
	u64 *page;
	int i;

	for (;;) {
		for (i = 0; i < WINDOW_PAGES; i++) {
			page = (u64 *)(WINDOW_GPA + i * PAGE_SIZE);
			guest_seen[i] = READ_ONCE(page[0]);
			if (guest_to_write[i])
				WRITE_ONCE(page[1], 1);
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
static struct slot slots[NR_IDS + NR_MANY];
static int nr_ids = NR_IDS;
static int fail_nth_fd;

static struct region_entry set(u32 slot, u32 flags, int at, int nr, int from)
{
	return region_set(slot, flags, WINDOW_GPA + at * PAGE_SIZE,
			  nr * PAGE_SIZE, mem + from * PAGE_SIZE);
}

/* Note what an update that succeeded means. */
static void expect(const struct region_entry *entry)
{
	TEST_ASSERT(entry->slot >= FIRST_ID && entry->slot < FIRST_ID + nr_ids,
		    "Slot %u is not the test's", entry->slot);
	slots[entry->slot - FIRST_ID] = (struct slot) {
		.flags = entry->flags,
		.gpa = entry->guest_phys_addr,
		.size = entry->memory_size,
		.hva = (u8 *)entry->userspace_addr,
	};
}

static void do_list(u32 nent, const struct region_entry *entries)
{
	int i, r;

	r = __vm_set_region_list(vm, nent, entries);
	TEST_ASSERT(!r, "errno %d", errno);
	for (i = 0; i < nent; i++)
		expect(&entries[i]);
}

#define list(...)							\
do {									\
	const struct region_entry __e[] = { __VA_ARGS__ };		\
									\
	do_list(ARRAY_SIZE(__e), __e);					\
} while (0)

static void run_guest_code(void)
{
	struct kvm_run *run = vcpu->run;

	for (;;) {
		vcpu_run(vcpu);
		if (run->exit_reason != KVM_EXIT_MMIO)
			break;
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	}
	TEST_ASSERT(get_ucall(vcpu, NULL) == UCALL_SYNC, "Unexpected exit: %s",
		    exit_reason_str(run->exit_reason));
}

/* What the log of two slots of the base state holds: see reset(). */
static const struct {
	u32 slot;
	unsigned long log;
} dirty[] = {
	{ 10, BIT(1) | BIT(2) },
	{ 12, BIT(0) },
};

/* Has the slots that the tests change be those of the base state. */
static void reset(void)
{
	bool *to_write = *(typeof(guest_to_write) *)
			 addr_gva2hva(vm, (gva_t)&guest_to_write);
	int i, page;

	for (i = 0; i < NR_IDS; i++)
		if (slots[i].size)
			list(region_delete(FIRST_ID + i));

	/*
	 * The first access to a page that is logged marks it as dirty, even if
	 * it is a read.  Have all pages mapped before.
	 */
	list(set(10, 0, 0, 4, 0), set(11, 0, 4, 4, 4),
	     set(12, 0, 8, 4, 8), set(13, 0, 12, 2, 12));
	run_guest_code();
	list(set(10, LOG, 0, 4, 0), set(12, LOG, 8, 4, 8));

	for (i = 0; i < ARRAY_SIZE(dirty); i++) {
		page = (slots[dirty[i].slot - FIRST_ID].gpa - WINDOW_GPA) / PAGE_SIZE;
		to_write[page] = dirty[i].log & BIT(0);
		to_write[page + 1] = dirty[i].log & BIT(1);
		to_write[page + 2] = dirty[i].log & BIT(2);
	}
	run_guest_code();
	memset(to_write, 0, sizeof(guest_to_write));
}

/* In the base state, that is, after an update that failed. */
static void check_dirty_log(const char *when)
{
	unsigned long log;
	int i;

	for (i = 0; i < ARRAY_SIZE(dirty); i++) {
		log = 0;
		kvm_vm_get_dirty_log(vm, dirty[i].slot, &log);
		TEST_ASSERT(log == dirty[i].log,
			    "%s: the log of slot %u is 0x%lx instead of 0x%lx",
			    when, dirty[i].slot, log, dirty[i].log);
	}
}

/*
 * Asks for each expected slot once more, which must succeed and do nothing,
 * and for the deletion of each slot that must not exist.
 */
static void check_slots(const char *when)
{
	u64 swaps = vm_get_stat(vm, memslot_swaps);
	struct slot *slot;
	int i, r;

	for (i = 0; i < nr_ids; i++) {
		slot = &slots[i];
		r = __vm_set_user_memory_region(vm, FIRST_ID + i, slot->flags,
						slot->gpa, slot->size, slot->hva);
		if (slot->size)
			TEST_ASSERT(!r, "%s: slot %d is not as expected, errno %d",
				    when, FIRST_ID + i, errno);
		else
			TEST_ASSERT(r && errno == EINVAL,
				    "%s: slot %d should not exist", when,
				    FIRST_ID + i);
	}
	TEST_ASSERT(vm_get_stat(vm, memslot_swaps) == swaps,
		    "%s: a slot is not as expected", when);
}

static void check_guest_view(const char *when)
{
	u64 *seen = addr_gva2hva(vm, (gva_t)guest_seen);
	u64 want[WINDOW_PAGES];
	struct slot *slot;
	gpa_t gpa;
	int i, j;

	for (i = 0; i < WINDOW_PAGES; i++) {
		gpa = WINDOW_GPA + i * PAGE_SIZE;
		want[i] = HOLE;
		for (j = 0; j < nr_ids; j++) {
			slot = &slots[j];
			if (gpa >= slot->gpa && gpa < slot->gpa + slot->size)
				want[i] = *(u64 *)(slot->hva + (gpa - slot->gpa));
		}
	}

	run_guest_code();
	for (i = 0; i < WINDOW_PAGES; i++)
		TEST_ASSERT(seen[i] == want[i],
			    "%s: page %d: the guest sees 0x%lx instead of 0x%lx",
			    when, i, seen[i], want[i]);
}

static void set_fail_nth(unsigned int nth)
{
	char buf[16];
	int len = snprintf(buf, sizeof(buf), "%u", nth);

	TEST_ASSERT(pwrite(fail_nth_fd, buf, len, 0) == len,
		    "Cannot write to fail-nth, errno %d", errno);
}

/* Whether an allocation has failed since set_fail_nth(). */
static bool has_failed(void)
{
	char buf[16] = {};

	TEST_ASSERT(pread(fail_nth_fd, buf, sizeof(buf) - 1, 0) > 0,
		    "Cannot read fail-nth, errno %d", errno);
	return !atoi(buf);
}

/* Calls the ioctl @cmd, whose @nth allocation is to fail. */
static int ioctl_fail_nth(unsigned int nth, int fd, unsigned long cmd,
			  void *arg, bool *failed)
{
	int r, saved_errno;

	set_fail_nth(nth);
	r = ioctl(fd, cmd, arg);
	saved_errno = errno;
	*failed = has_failed();
	set_fail_nth(0);
	errno = saved_errno;
	return r;
}

static bool write_attr(const char *name, const char *val)
{
	int fd = open(name, O_WRONLY);
	bool written;

	if (fd < 0)
		return false;
	written = write(fd, val, strlen(val)) == strlen(val);
	close(fd);
	return written;
}

/*
 * Pages are not counted except where they matter: the slab allocator takes some
 * now and then, which would change the number of each allocation after it.
 */
static bool fail_pages(bool fail)
{
	const char *ignore = fail ? "N" : "Y";

	return write_attr(DEBUGFS "fail_page_alloc/ignore-gfp-wait", ignore) &&
	       write_attr(DEBUGFS "fail_page_alloc/ignore-gfp-highmem", ignore);
}

/* None of this has an effect on tasks that do not write to their fail-nth. */
static bool have_fault_injection(void)
{
	fail_nth_fd = open("/proc/thread-self/fail-nth", O_RDWR);
	return fail_nth_fd >= 0 &&
	       write_attr(DEBUGFS "failslab/ignore-gfp-wait", "N") &&
	       write_attr(DEBUGFS "failslab/cache-filter", "N") &&
	       write_attr(DEBUGFS "failslab/verbose", "0") &&
	       fail_pages(false) &&
	       write_attr(DEBUGFS "fail_page_alloc/min-order", "0") &&
	       write_attr(DEBUGFS "fail_page_alloc/verbose", "0");
}

/*
 * Fails each allocation of an update of the base state.  Some an update can do
 * without: then it must be complete.
 *
 * Returns how often the update failed.
 */
static int sweep_once(const char *name, unsigned long cmd, void *arg,
		      u32 nent, const struct region_entry *entries)
{
	int i, r, nr_failed = 0, nr_survived = 0;
	unsigned int nth;
	char when[64];
	bool failed;
	u64 swaps;

	for (nth = 1, failed = true; failed; nth++) {
		snprintf(when, sizeof(when), "%s, failure %u", name, nth);
		swaps = vm_get_stat(vm, memslot_swaps);
		r = ioctl_fail_nth(nth, vm->fd, cmd, arg, &failed);
		if (r) {
			TEST_ASSERT(failed && errno == ENOMEM,
				    "%s: errno %d (%s)%s", when, errno,
				    strerror(errno),
				    failed ? "" : ", and nothing failed");
			TEST_ASSERT(vm_get_stat(vm, memslot_swaps) == swaps,
				    "%s: a list was swapped", when);
			check_dirty_log(when);
			check_slots(when);
			check_guest_view(when);
			nr_failed++;
			continue;
		}

		for (i = 0; i < nent; i++)
			expect(&entries[i]);
		check_slots(when);
		check_guest_view(when);
		nr_survived += failed;
		reset();
	}

	ksft_print_msg("%s: failed %d times, managed without %d times\n", name,
		       nr_failed, nr_survived);
	return nr_failed;
}

/*
 * @min: that many allocations the update cannot do without.  One can slip
 * through when the slab allocator makes one of its own, so try again.
 */
static void sweep(const char *name, int min, unsigned long cmd, void *arg,
		  u32 nent, const struct region_entry *entries)
{
	int round, nr_failed = 0;

	for (round = 0; round < 3 && nr_failed < min; round++)
		nr_failed += sweep_once(name, cmd, arg, nent, entries);
	TEST_ASSERT(nr_failed >= min, "%s: failed only %d times, not %d", name,
		    nr_failed, min);
}

static void sweep_list(const char *name, int min, u32 nent,
		       const struct region_entry *entries)
{
	struct kvm_userspace_memory_region_list *list;
	size_t size = nent * sizeof(*entries);

	list = malloc(sizeof(*list) + size);
	TEST_ASSERT(list, "Insufficient Memory");
	list->nent = nent;
	list->flags = 0;
	memcpy(list->entries, entries, size);
	sweep(name, min, KVM_SET_USER_MEMORY_REGION_LIST, list, nent, entries);
	free(list);
}

#define list_sweep(min, ...)						\
do {									\
	const struct region_entry __e[] = { __VA_ARGS__ };		\
									\
	sweep_list("list", min, ARRAY_SIZE(__e), __e);			\
} while (0)

/* The same update through the single ioctl. */
#define single_sweep(min, ...)						\
do {									\
	struct region_entry __e = __VA_ARGS__;				\
									\
	/* An entry starts with a struct kvm_userspace_memory_region. */ \
	sweep("single", min, KVM_SET_USER_MEMORY_REGION, &__e, 1, &__e); \
} while (0)

FIXTURE(fail_nth) {};

static void create_mem(void)
{
	int i;

	mem = kvm_mmap(BACKING_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (i = 0; i < BACKING_PAGES; i++)
		*(u64 *)(mem + i * PAGE_SIZE) = BACKING_VAL(i);
}

FIXTURE_SETUP(fail_nth)
{
	if (!have_fault_injection())
		SKIP(return, "No fault injection");

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	virt_map(vm, WINDOW_GPA, WINDOW_GPA, WINDOW_PAGES);
	/* Makes looking at the log not clear it. */
	vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	create_mem();
	reset();
}

FIXTURE_TEARDOWN(fail_nth)
{
	kvm_vm_free(vm);
	kvm_munmap(mem, BACKING_PAGES * PAGE_SIZE);
	close(fail_nth_fd);
}

/*
 * What each kind of change cannot do without.  The arrays that a list needs
 * besides are not among it: where kmalloc() fails for one, it gets another try.
 */
TEST_F_TIMEOUT(fail_nth, create, 60)
{
	/* The slot, its two arrays for huge pages. */
	list_sweep(3, set(14, 0, 16, 2, 16));
	single_sweep(3, set(14, 0, 16, 2, 16));
}

TEST_F_TIMEOUT(fail_nth, create_logged, 60)
{
	/* Its dirty bitmap, too. */
	list_sweep(4, set(14, LOG, 16, 2, 16));
	single_sweep(4, set(14, LOG, 16, 2, 16));
}

TEST_F_TIMEOUT(fail_nth, delete, 60)
{
	/* The INVALID copy. */
	list_sweep(1, region_delete(10));
	single_sweep(1, region_delete(10));
}

TEST_F_TIMEOUT(fail_nth, move, 60)
{
	list_sweep(1 + 3, set(10, LOG, 16, 4, 0));
	single_sweep(1 + 3, set(10, LOG, 16, 4, 0));
}

TEST_F_TIMEOUT(fail_nth, log_on, 60)
{
	list_sweep(2, set(11, LOG, 4, 4, 4));
	single_sweep(2, set(11, LOG, 4, 4, 4));
}

TEST_F_TIMEOUT(fail_nth, log_off, 60)
{
	list_sweep(1, set(10, 0, 0, 4, 0));
	single_sweep(1, set(10, 0, 0, 4, 0));
}

TEST_F_TIMEOUT(fail_nth, replace, 60)
{
	list_sweep(1 + 1 + 4, region_delete(10), region_delete(11),
		   set(10, LOG, 0, 6, 16));
}

/* What changes nothing needs no memory, and upstream's C takes none either. */
TEST_F(fail_nth, no_change)
{
	struct region_entry same = set(11, 0, 4, 4, 4);
	bool failed;
	int r;

	r = ioctl_fail_nth(1, vm->fd, KVM_SET_USER_MEMORY_REGION, &same, &failed);
	TEST_ASSERT(!r, "Errno %d", errno);
}

/* All kinds of changes at once. */
#define NR_MIXED	7
#define MIN_MIXED	(1 + 1 + 3 + 1 + 1 + 4 + 4 + 3)

static void mix(struct region_entry *entries)
{
	const struct region_entry mixed[NR_MIXED] = {
		region_delete(11),
		set(13, 0, 4, 2, 12),
		set(12, 0, 8, 4, 8),
		region_delete(10),
		set(10, LOG, 0, 2, 0),
		set(14, LOG, 2, 2, 2),
		set(15, KVM_MEM_READONLY, 16, 4, 20),
	};

	memcpy(entries, mixed, sizeof(mixed));
}

TEST_F_TIMEOUT(fail_nth, mixed, 60)
{
	struct region_entry entries[NR_MIXED];

	mix(entries);
	sweep_list("list", MIN_MIXED, NR_MIXED, entries);
}

/* So many entries that the kernel makes itself an index of the slots. */
TEST_F_TIMEOUT(fail_nth, long_list, 120)
{
	struct region_entry entries[NR_MANY + NR_MIXED];
	int i;

	nr_ids = NR_IDS + NR_MANY;
	for (i = 0; i < NR_MANY; i++)
		entries[i] = region_set(FIRST_ID + NR_IDS + i, 0,
					ELSEWHERE_GPA + i * PAGE_SIZE,
					PAGE_SIZE, mem);
	do_list(NR_MANY, entries);
	/* These find their slots as they want them. */
	mix(entries + NR_MANY);
	sweep_list("long list", MIN_MIXED, ARRAY_SIZE(entries), entries);
}

/* So large that its bitmap and its arrays come from vmalloc. */
TEST_F_TIMEOUT(fail_nth, large_slot, 120)
{
	void *large = kvm_mmap(4ul * SZ_1G, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);

	TEST_ASSERT(fail_pages(true), "Cannot make pages fail");
	list_sweep(4, region_set(14, LOG, ELSEWHERE_GPA, 4ul * SZ_1G, large));
	kvm_munmap(large, 4ul * SZ_1G);
}

TEST_F_TIMEOUT(fail_nth, guest_memfd, 60)
{
	const size_t size = 100 * PAGE_SIZE;
	struct kvm_userspace_memory_region2 region = {
		.slot = FIRST_ID,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = WINDOW_GPA,
		.memory_size = size,
		.userspace_addr = (uintptr_t)mem,
	};
	int r, nr_failed = 0;
	unsigned int nth;
	bool failed;
	u64 swaps;

	kvm_vm_free(vm);
	if (kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM))
		vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	else
		vm = vm_create_barebones();
	if (!vm_check_cap(vm, KVM_CAP_GUEST_MEMFD))
		SKIP(return, "No guest_memfd");
	region.guest_memfd = vm_create_guest_memfd(vm, size, 0);

	for (nth = 1; ; nth++) {
		swaps = vm_get_stat(vm, memslot_swaps);
		r = ioctl_fail_nth(nth, vm->fd, KVM_SET_USER_MEMORY_REGION2,
				   &region, &failed);
		if (!r && !failed)
			break;
		if (r) {
			/*
			 * EEXIST would mean that the file is still bound to a
			 * slot of an earlier round.
			 */
			TEST_ASSERT(failed && errno == ENOMEM,
				    "Failure %u: errno %d", nth, errno);
			TEST_ASSERT_EQ(vm_get_stat(vm, memslot_swaps), swaps);
			nr_failed++;
		}
		swaps = __vm_set_user_memory_region(vm, FIRST_ID, 0, 0, 0, NULL);
		TEST_ASSERT(!swaps == !r, "Failure %u: slot is %s", nth,
			    r ? "there" : "missing");
	}
	TH_LOG("failed %d of %u times", nr_failed, nth - 1);
	TEST_ASSERT(nr_failed >= 3, "Failed only %d times", nr_failed);
	close(region.guest_memfd);
}

/*
 * The one allocation that can fail after the first swap: between the swaps, a
 * vCPU makes the VM's first shadow root, and the slots that are not in a list
 * yet miss the rmaps that it gives to all that are.  The update makes up for
 * it, and if that fails, puts the old slots back.
 *
 * The time between the swaps is drawn out by a vCPU that waits for a page from
 * userfaultfd, inside kvm->srcu.
 */
static struct kvm_vcpu *nested_vcpu;
static unsigned int rollback_nth;
static pid_t updater_tid;
static int uffd;
static u8 *uffd_page;

static void *run_guest_code_thread(void *unused)
{
	run_guest_code();
	return NULL;
}

static void *make_shadow_root_thread(void *unused)
{
	struct uffdio_zeropage zeropage = {
		.range = { .start = (uintptr_t)uffd_page, .len = PAGE_SIZE },
	};

	while (!waits_for_readers(updater_tid))
		usleep(1000);

	vcpu_run(nested_vcpu);
	TEST_ASSERT(get_ucall(nested_vcpu, NULL) == UCALL_DONE,
		    "Unexpected exit: %s",
		    exit_reason_str(nested_vcpu->run->exit_reason));

	set_fail_nth(rollback_nth);
	TEST_ASSERT(!ioctl(uffd, UFFDIO_ZEROPAGE, &zeropage),
		    "UFFDIO_ZEROPAGE failed, errno %d", errno);
	return NULL;
}

/* A VM without a shadow root, a vCPU of which waits for the uffd_page. */
static void create_waiting_vm(pthread_t *waiter)
{
	memset(slots, 0, sizeof(slots));
	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	nested_vcpu = vm_vcpu_add_nested(vm, 1);
	virt_map(vm, WINDOW_GPA, WINDOW_GPA, WINDOW_PAGES);
	vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	reset();

	uffd_page = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uffd = uffd_open(uffd_page, PAGE_SIZE);

	list(region_set(15, 0, WINDOW_GPA + 19 * PAGE_SIZE, PAGE_SIZE,
			uffd_page));
	kvm_pthread_create(waiter, NULL, run_guest_code_thread, NULL);
	uffd_await_fault(uffd);
}

TEST_F_TIMEOUT(fail_nth, after_first_swap, 120)
{
	const struct region_entry update[] = {
		region_delete(11),
		set(10, LOG, 4, 4, 0),
		set(14, 0, 0, 4, 16),
	};
	pthread_t waiter, shadow_root;
	int i, r, nr_failed = 0, rounds = 0;
	char when[32];
	bool failed;
	u64 swaps;

	if (!kvm_is_tdp_enabled() || !kvm_cpu_has_tdp())
		SKIP(return, "No nested two-dimensional paging");

	updater_tid = syscall(__NR_gettid);
	/* As for sweep(). */
	for (rollback_nth = 1; rounds < 3 && nr_failed < 8; rollback_nth++) {
		kvm_vm_free(vm);
		create_waiting_vm(&waiter);
		snprintf(when, sizeof(when), "failure %u", rollback_nth);
		swaps = vm_get_stat(vm, memslot_swaps);

		kvm_pthread_create(&shadow_root, NULL, make_shadow_root_thread,
				   NULL);
		r = __vm_set_region_list(vm, ARRAY_SIZE(update), update);
		i = errno;
		failed = has_failed();
		set_fail_nth(0);
		kvm_pthread_join(shadow_root, NULL);
		kvm_pthread_join(waiter, NULL);

		/* In both cases, one swap to INVALID slots and one from them. */
		TEST_ASSERT_EQ(vm_get_stat(vm, memslot_swaps), swaps + 2);
		if (r) {
			TEST_ASSERT(failed && i == ENOMEM, "%s: errno %d",
				    when, i);
			nr_failed++;
			check_dirty_log(when);
			check_slots(when);
			check_guest_view(when);
			do_list(ARRAY_SIZE(update), update);
		} else {
			for (i = 0; i < ARRAY_SIZE(update); i++)
				expect(&update[i]);
		}
		check_slots(when);
		check_guest_view(when);
		kvm_munmap(uffd_page, PAGE_SIZE);
		close(uffd);
		if (!failed) {
			TH_LOG("put back %d times, %u tries", nr_failed,
			       rollback_nth);
			rollback_nth = 0;
			rounds++;
		}
	}

	/* Two new slots: three levels of rmaps and the page track of each. */
	TEST_ASSERT(nr_failed >= 8, "Put back only %d times", nr_failed);
}

/* The slots of the base state, which are backed one to one. */
#define NR_MAPPED	14
#define SOURCE_VAL(i)	(0x2000ul + (i))

static void check_contents(const char *when, const u8 *source, int nr_done)
{
	u64 val, want;
	int i;

	for (i = 0; i < NR_MAPPED; i++) {
		val = *(u64 *)(mem + i * PAGE_SIZE);
		want = source && i < nr_done ? SOURCE_VAL(i) : BACKING_VAL(i);
		/* Contents come in batches, ahead of the mappings. */
		if (source && i >= nr_done && val == SOURCE_VAL(i))
			continue;
		TEST_ASSERT(val == want,
			    "%s: page %d has 0x%lx instead of 0x%lx", when, i,
			    val, want);
	}
}

/* @host_err: what it means if there is no memory behind the slot */
static void map_sweep(const char *name, int min, u64 flags, u8 *source,
		      int host_err)
{
	int i, r, err, nr_failed = 0, nr_survived = 0;
	struct kvm_memory_mapping m;
	struct kvm_vcpu *fresh;
	unsigned int nth;
	char when[64];
	bool failed;

	if (!kvm_has_cap(KVM_CAP_MAP_MEMORY))
		return;

	for (nth = 1, failed = true; failed; nth++) {
		snprintf(when, sizeof(when), "%s, failure %u", name, nth);
		/* Each vCPU has memory of its own in stock. */
		fresh = __vm_vcpu_add(vm, nth);
		/* A deletion drops all mappings. */
		list(set(14, 0, 16, 4, 16));
		list(region_delete(14));
		if (host_err)
			madvise(mem, NR_MAPPED * PAGE_SIZE, MADV_DONTNEED);
		for (i = 0; !host_err && i < NR_MAPPED; i++)
			*(u64 *)(mem + i * PAGE_SIZE) = BACKING_VAL(i);

		m = (struct kvm_memory_mapping) {
			.base_gfn = WINDOW_GPA >> PAGE_SHIFT,
			.nr_pages = NR_MAPPED,
			.flags = flags,
			.source = (uintptr_t)source,
		};
		r = ioctl_fail_nth(nth, fresh->fd, KVM_MAP_MEMORY, &m, &failed);
		err = r ? errno : 0;
		TEST_ASSERT(!err ||
			    (failed && (err == ENOMEM || err == host_err)),
			    "%s: errno %d (%s)%s", when, err, strerror(err),
			    failed ? "" : ", and nothing failed");
		TEST_ASSERT(!err == !m.nr_pages &&
			    m.base_gfn + m.nr_pages ==
			    (WINDOW_GPA >> PAGE_SHIFT) + NR_MAPPED,
			    "%s: errno %d, and 0x%llx + 0x%llx left", when, err,
			    m.base_gfn, m.nr_pages);
		if (!host_err)
			check_contents(when, source, NR_MAPPED - m.nr_pages);

		if (err) {
			nr_failed++;
			r = __vcpu_ioctl(fresh, KVM_MAP_MEMORY, &m);
			TEST_ASSERT(!r, "%s: then errno %d", when, errno);
		} else {
			nr_survived += failed;
		}
		if (!host_err)
			check_contents(when, source, NR_MAPPED);
		check_guest_view(when);
	}

	ksft_print_msg("%s: failed %d times, managed without %d times\n", name,
		       nr_failed, nr_survived);
	TEST_ASSERT(nr_failed >= min, "%s: failed only %d times, not %d", name,
		    nr_failed, min);
}

static u8 *create_source(void)
{
	u8 *source = kvm_mmap(NR_MAPPED * PAGE_SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1);
	int i;

	for (i = 0; i < NR_MAPPED; i++)
		*(u64 *)(source + i * PAGE_SIZE) = SOURCE_VAL(i);
	return source;
}

/* At least one entry for each level of page tables. */
TEST_F_TIMEOUT(fail_nth, map_memory, 240)
{
	map_sweep("map for write", 4, KVM_MEMORY_MAPPING_FLAG_WRITE, NULL, 0);
}

TEST_F_TIMEOUT(fail_nth, map_memory_source, 240)
{
	map_sweep("map with source", 4, 0, create_source(), 0);
}

TEST_F_TIMEOUT(fail_nth, map_memory_pages, 480)
{
	TEST_ASSERT(fail_pages(true), "Cannot make pages fail");
	map_sweep("map, pages fail", 4, KVM_MEMORY_MAPPING_FLAG_WRITE,
		  create_source(), EFAULT);
}

TEST_F_TIMEOUT(fail_nth, map_memory_private, 240)
{
	const size_t size = NR_MAPPED * PAGE_SIZE;
	u64 flags = KVM_MEMORY_MAPPING_FLAG_PRIVATE;
	struct kvm_memory_mapping m;
	u8 *source = create_source();
	struct kvm_vcpu *fresh;
	int fd, i, r, nr_failed;
	unsigned int nth;
	bool failed;

	if (!kvm_has_cap(KVM_CAP_MAP_MEMORY) ||
	    !(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "No private memory");

	for (i = 0; i < 2; i++) {
		kvm_vm_free(vm);
		vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
		fd = vm_create_guest_memfd(vm, size, 0);
		vm_set_user_memory_region2(vm, FIRST_ID, KVM_MEM_GUEST_MEMFD,
					   WINDOW_GPA, size, mem, fd, 0);
		vm_mem_set_private(vm, WINDOW_GPA, size);

		nr_failed = 0;
		for (nth = 1, failed = true; failed; nth++) {
			fresh = __vm_vcpu_add(vm, nth);
			TEST_ASSERT(!fallocate(fd, FALLOC_FL_PUNCH_HOLE |
					       FALLOC_FL_KEEP_SIZE, 0, size),
				    "Cannot punch a hole, errno %d", errno);
			m = (struct kvm_memory_mapping) {
				.base_gfn = WINDOW_GPA >> PAGE_SHIFT,
				.nr_pages = NR_MAPPED,
				.flags = flags,
				.source = i ? (uintptr_t)source : 0,
			};
			r = ioctl_fail_nth(nth, fresh->fd, KVM_MAP_MEMORY, &m,
					   &failed);
			TEST_ASSERT(!r == !m.nr_pages, "Failure %u: %llu left",
				    nth, m.nr_pages);
			if (!r)
				continue;
			TEST_ASSERT(failed && errno == ENOMEM,
				    "Failure %u: errno %d", nth, errno);
			nr_failed++;
			r = __vcpu_ioctl(fresh, KVM_MAP_MEMORY, &m);
			TEST_ASSERT(!r, "Failure %u: then errno %d", nth,
				    errno);
		}
		TH_LOG("failed %d of %u times", nr_failed, nth - 1);
		TEST_ASSERT(nr_failed >= 4, "Failed only %d times", nr_failed);
		close(fd);
	}
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));
	TEST_REQUIRE(have_fault_injection());

	return test_harness_run(argc, argv);
}
