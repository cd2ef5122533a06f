// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memslot updates that run out of memory change nothing.
 *
 * Each update is tried with its first allocation failing, then with its second
 * one, and so on until no allocation fails.  After each failure, everything must be
 * as before: the slots, the dirty log, what a vCPU reads.
 */
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <linux/sizes.h>

#include "fail_nth.h"
#include "nested_guest.h"
#include "srcu_readers.h"
#include "uffd_page.h"

/* Checks that the log is that of the base state, as it is after a failure. */
static void check_dirty_log(struct fail_nth_test *test, const char *when)
{
	unsigned long log;
	int i;

	for (i = 0; i < ARRAY_SIZE(dirty); i++) {
		log = 0;
		kvm_vm_get_dirty_log(test->vm, dirty[i].slot, &log);
		TEST_ASSERT(log == dirty[i].log,
			    "%s: the log of slot %u is 0x%lx instead of 0x%lx",
			    when, dirty[i].slot, log, dirty[i].log);
	}
}

/*
 * Fails each allocation of an update of the base state.  Where the update copes
 * with a failure, it must be complete.
 *
 * Returns how often the update failed.
 */
static int sweep_once(struct fail_nth_test *test, const char *name,
		      unsigned long cmd, void *arg, u32 nent,
		      const struct region_entry *entries)
{
	int i, r, nr_failed = 0, nr_survived = 0;
	unsigned int nth;
	char when[64];
	bool failed;
	u64 swaps;

	for (nth = 1, failed = true; failed; nth++) {
		snprintf(when, sizeof(when), "%s, failure %u", name, nth);
		swaps = vm_get_stat(test->vm, memslot_swaps);
		r = ioctl_fail_nth(nth, test->vm->fd, cmd, arg, &failed);
		if (r) {
			TEST_ASSERT(failed && errno == ENOMEM,
				    "%s: errno %d (%s)%s", when, errno,
				    strerror(errno),
				    failed ? "" : ", and nothing failed");
			TEST_ASSERT(vm_get_stat(test->vm, memslot_swaps) ==
				    swaps, "%s: a list was swapped", when);
			check_dirty_log(test, when);
			check_slots(test, when);
			check_guest_view(test, when);
			nr_failed++;
			continue;
		}

		for (i = 0; i < nent; i++)
			expect(test, &entries[i]);
		check_slots(test, when);
		check_guest_view(test, when);
		nr_survived += failed;
		reset_slots(test);
	}

	ksft_print_msg("%s: failed %d times, managed without %d times\n", name,
		       nr_failed, nr_survived);
	return nr_failed;
}

/*
 * The update must fail with @min of its allocations.  Tries again, as one can be
 * missed when the slab allocator makes an allocation of its own.
 */
static void sweep(struct fail_nth_test *test, const char *name, int min,
		  unsigned long cmd, void *arg, u32 nent,
		  const struct region_entry *entries)
{
	int round, nr_failed = 0;

	for (round = 0; round < 3 && nr_failed < min; round++)
		nr_failed += sweep_once(test, name, cmd, arg, nent, entries);
	TEST_ASSERT(nr_failed >= min, "%s: failed only %d times, not %d", name,
		    nr_failed, min);
}

static void sweep_list(struct fail_nth_test *test, const char *name, int min,
		       u32 nent, const struct region_entry *entries)
{
	struct kvm_userspace_memory_region_list *list;

	list = alloc_region_list(nent, entries);
	sweep(test, name, min, KVM_SET_USER_MEMORY_REGION_LIST, list, nent,
	      entries);
	free(list);
}

#define list_sweep(test, min, ...)					\
do {									\
	const struct region_entry __e[] = { __VA_ARGS__ };		\
									\
	sweep_list(test, "list", min, ARRAY_SIZE(__e), __e);		\
} while (0)

/* The same update through the single ioctl. */
#define single_sweep(test, min, ...)					\
do {									\
	struct region_entry __e = __VA_ARGS__;				\
									\
	/* An entry starts with a struct kvm_userspace_memory_region. */ \
	sweep(test, "single", min, KVM_SET_USER_MEMORY_REGION, &__e, 1, \
	      &__e);							\
} while (0)

/*
 * These count the allocations without which each kind of change fails.  The arrays
 * for the list itself are not among them: KVM tries again if kmalloc() fails.
 */
TEST_F_TIMEOUT(fail_nth, create, 60)
{
	struct fail_nth_test *test = &self->test;

	/* The slot, and its two arrays for huge pages. */
	list_sweep(test, 3, set(14, 0, 16, 2, 16));
	single_sweep(test, 3, set(14, 0, 16, 2, 16));
}

TEST_F_TIMEOUT(fail_nth, create_logged, 60)
{
	struct fail_nth_test *test = &self->test;

	/* Its dirty bitmap, too. */
	list_sweep(test, 4, set(14, LOG, 16, 2, 16));
	single_sweep(test, 4, set(14, LOG, 16, 2, 16));
}

TEST_F_TIMEOUT(fail_nth, delete, 60)
{
	struct fail_nth_test *test = &self->test;

	/* The INVALID copy. */
	list_sweep(test, 1, region_delete(10));
	single_sweep(test, 1, region_delete(10));
}

TEST_F_TIMEOUT(fail_nth, move, 60)
{
	struct fail_nth_test *test = &self->test;

	list_sweep(test, 1 + 3, set(10, LOG, 16, 4, 0));
	single_sweep(test, 1 + 3, set(10, LOG, 16, 4, 0));
}

TEST_F_TIMEOUT(fail_nth, log_on, 60)
{
	struct fail_nth_test *test = &self->test;

	list_sweep(test, 2, set(11, LOG, 4, 4, 4));
	single_sweep(test, 2, set(11, LOG, 4, 4, 4));
}

TEST_F_TIMEOUT(fail_nth, log_off, 60)
{
	struct fail_nth_test *test = &self->test;

	list_sweep(test, 1, set(10, 0, 0, 4, 0));
	single_sweep(test, 1, set(10, 0, 0, 4, 0));
}

TEST_F_TIMEOUT(fail_nth, replace, 60)
{
	struct fail_nth_test *test = &self->test;

	list_sweep(test, 1 + 1 + 4, region_delete(10), region_delete(11),
		   set(10, LOG, 0, 6, 16));
}

/* An update that changes nothing needs no memory. */
TEST_F(fail_nth, no_change)
{
	struct fail_nth_test *test = &self->test;
	struct region_entry same = set(11, 0, 4, 4, 4);
	bool failed;
	int r;

	r = ioctl_fail_nth(1, test->vm->fd, KVM_SET_USER_MEMORY_REGION, &same,
			   &failed);
	TEST_ASSERT(!r, "Errno %d", errno);
}

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
	struct fail_nth_test *test = &self->test;
	struct region_entry entries[NR_MIXED];

	mix(entries);
	sweep_list(test, "list", MIN_MIXED, NR_MIXED, entries);
}

/* The list is so long that KVM makes an index of the slots. */
TEST_F_TIMEOUT(fail_nth, long_list, 120)
{
	struct fail_nth_test *test = &self->test;
	struct region_entry entries[NR_MANY + NR_MIXED];
	int i;

	test->nr_ids = NR_IDS + NR_MANY;
	for (i = 0; i < NR_MANY; i++)
		entries[i] = region_set(FIRST_ID + NR_IDS + i, 0,
					ELSEWHERE_GPA + i * PAGE_SIZE,
					PAGE_SIZE, backing);
	do_list(test, NR_MANY, entries);
	/* The first entries then change nothing. */
	mix(entries + NR_MANY);
	sweep_list(test, "long list", MIN_MIXED, ARRAY_SIZE(entries), entries);
}

/* A slot so large that its bitmap and its arrays come from vmalloc. */
TEST_F_TIMEOUT(fail_nth, large_slot, 120)
{
	struct fail_nth_test *test = &self->test;
	void *large = kvm_mmap(4ul * SZ_1G, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);

	TEST_ASSERT(fail_pages(true), "Cannot make pages fail");
	list_sweep(test, 4,
		   region_set(14, LOG, ELSEWHERE_GPA, 4ul * SZ_1G, large));
	kvm_munmap(large, 4ul * SZ_1G);
}

TEST_F_TIMEOUT(fail_nth, guest_memfd, 60)
{
	struct fail_nth_test *test = &self->test;
	const size_t size = 100 * PAGE_SIZE;
	struct kvm_userspace_memory_region2 region = {
		.slot = FIRST_ID,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = WINDOW_GPA,
		.memory_size = size,
		.userspace_addr = (uintptr_t)backing,
	};
	int r, nr_failed = 0;
	unsigned int nth;
	bool failed;
	u64 swaps;

	kvm_vm_free(test->vm);
	if (kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM))
		test->vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	else
		test->vm = vm_create_barebones();
	if (!vm_check_cap(test->vm, KVM_CAP_GUEST_MEMFD))
		SKIP(return, "No guest_memfd");
	region.guest_memfd = vm_create_guest_memfd(test->vm, size, 0);

	for (nth = 1; ; nth++) {
		swaps = vm_get_stat(test->vm, memslot_swaps);
		r = ioctl_fail_nth(nth, test->vm->fd,
				   KVM_SET_USER_MEMORY_REGION2, &region,
				   &failed);
		if (!r && !failed)
			break;
		if (r) {
			/*
			 * EEXIST would mean that the file is still bound to a
			 * slot of an earlier round.
			 */
			TEST_ASSERT(failed && errno == ENOMEM,
				    "Failure %u: errno %d", nth, errno);
			TEST_ASSERT_EQ(vm_get_stat(test->vm, memslot_swaps),
				       swaps);
			nr_failed++;
		}
		swaps = __vm_set_user_memory_region(test->vm, FIRST_ID, 0, 0, 0,
						    NULL);
		TEST_ASSERT(!swaps == !r, "Failure %u: slot is %s", nth,
			    r ? "there" : "missing");
	}
	TH_LOG("failed %d of %u times", nr_failed, nth - 1);
	TEST_ASSERT(nr_failed >= 3, "Failed only %d times", nr_failed);
	close(region.guest_memfd);
}

/*
 * One allocation can fail after the first swap.  Between the swaps, a vCPU makes
 * the VM's first shadow root, which gives rmaps to all slots that are in a list.
 * The new slots are not in a list yet.  The update makes up for that, and puts the
 * old slots back if it fails to.
 *
 * Another vCPU, which waits for a page from userfaultfd inside of kvm->srcu, draws
 * out the time between the swaps.
 */
static struct {
	/* Runs run_over_window(), and waits for the page. */
	pthread_t waiter;
	struct kvm_vcpu *waiting_vcpu;
	int uffd;
	u8 *page;

	pid_t updater_tid;
	struct kvm_vcpu *nested_vcpu;
	unsigned int fail_nth;
} rollback;

static void *waiter_thread(void *unused)
{
	run_over_window(rollback.waiting_vcpu, NULL);
	return NULL;
}

static void *make_shadow_root_thread(void *unused)
{
	struct uffdio_zeropage zeropage = {
		.range = { .start = (uintptr_t)rollback.page, .len = PAGE_SIZE },
	};
	struct kvm_vcpu *nested_vcpu = rollback.nested_vcpu;

	while (!waits_for_readers(rollback.updater_tid))
		usleep(1000);

	vcpu_run(nested_vcpu);
	TEST_ASSERT(get_ucall(nested_vcpu, NULL) == UCALL_DONE,
		    "Unexpected exit: %s",
		    exit_reason_str(nested_vcpu->run->exit_reason));

	set_fail_nth(rollback.fail_nth);
	TEST_ASSERT(!ioctl(rollback.uffd, UFFDIO_ZEROPAGE, &zeropage),
		    "UFFDIO_ZEROPAGE failed, errno %d", errno);
	return NULL;
}

/* Creates a VM without a shadow root, a vCPU of which waits for the page. */
static void create_waiting_vm(struct fail_nth_test *test)
{
	memset(test->slots, 0, sizeof(test->slots));
	test->vm = vm_create_with_one_vcpu(&test->vcpu, guest_code);
	rollback.nested_vcpu = vm_vcpu_add_nested(test->vm, 1);
	virt_map(test->vm, WINDOW_GPA, WINDOW_GPA, WINDOW_PAGES);
	vm_enable_cap(test->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	reset_slots(test);

	rollback.page = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1);
	rollback.uffd = uffd_open(rollback.page, PAGE_SIZE);

	set_list(test, region_set(15, 0, window_gpa(19), PAGE_SIZE,
				  rollback.page));
	rollback.waiting_vcpu = test->vcpu;
	kvm_pthread_create(&rollback.waiter, NULL, waiter_thread, NULL);
	uffd_await_fault(rollback.uffd);
}

TEST_F_TIMEOUT(fail_nth, after_first_swap, 120)
{
	struct fail_nth_test *test = &self->test;
	const struct region_entry update[] = {
		region_delete(11),
		set(10, LOG, 4, 4, 0),
		set(14, 0, 0, 4, 16),
	};
	int i, r, err, nr_failed = 0, rounds = 0;
	unsigned int nth;
	pthread_t shadow_root;
	char when[32];
	bool failed;
	u64 swaps;

	if (!kvm_has_nested_tdp())
		SKIP(return, "No nested two-dimensional paging");

	rollback.updater_tid = syscall(__NR_gettid);
	/* Tries again, as sweep() does. */
	for (nth = 1; rounds < 3 && nr_failed < 8; nth++) {
		kvm_vm_free(test->vm);
		create_waiting_vm(test);
		snprintf(when, sizeof(when), "failure %u", nth);
		swaps = vm_get_stat(test->vm, memslot_swaps);

		rollback.fail_nth = nth;
		kvm_pthread_create(&shadow_root, NULL, make_shadow_root_thread,
				   NULL);
		r = __vm_set_region_list(test->vm, ARRAY_SIZE(update), update);
		err = errno;
		failed = has_failed();
		set_fail_nth(0);
		kvm_pthread_join(shadow_root, NULL);
		kvm_pthread_join(rollback.waiter, NULL);

		/* Whether it fails or not: one to INVALID slots, one from them. */
		TEST_ASSERT_EQ(vm_get_stat(test->vm, memslot_swaps), swaps + 2);
		if (r) {
			TEST_ASSERT(failed && err == ENOMEM, "%s: errno %d",
				    when, err);
			nr_failed++;
			check_dirty_log(test, when);
			check_slots(test, when);
			check_guest_view(test, when);
			do_list(test, ARRAY_SIZE(update), update);
		} else {
			for (i = 0; i < ARRAY_SIZE(update); i++)
				expect(test, &update[i]);
		}
		check_slots(test, when);
		check_guest_view(test, when);
		kvm_munmap(rollback.page, PAGE_SIZE);
		close(rollback.uffd);
		if (!failed) {
			TH_LOG("put back %d times, %u tries", nr_failed, nth);
			nth = 0;
			rounds++;
		}
	}

	/* Two new slots: three levels of rmaps and the page track of each. */
	TEST_ASSERT(nr_failed >= 8, "Put back only %d times", nr_failed);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));
	TEST_REQUIRE(have_fault_injection());

	return test_harness_run(argc, argv);
}
