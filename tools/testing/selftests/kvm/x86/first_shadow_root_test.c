// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page aging beside a VM's first shadow root.
 *
 * When a VM gets its first shadow root, here that of a nested guest, KVM gives rmaps
 * to all memslots in the lists.  A memslot whose flags are being changed has left the
 * lists and never gets rmaps, but a reader that found it earlier still uses it.  One
 * such reader is the aging of pages, which takes no lock of KVM.  A KVM without a
 * check for missing rmaps dereferences NULL.
 *
 * Many memslots map the page that is aged, so that aging spends most of its time
 * walking them.  The memslot whose flags change comes last.  The walk cannot be
 * preempted, but it can be interrupted: thousands of timers that expire at once hold
 * up its CPU, while everything else happens on another CPU.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <linux/sizes.h>

#include "kselftest.h"
#include "kvm_util.h"
#include "nested_guest.h"
#include "processor.h"
#include "srcu_readers.h"
#include "test_util.h"
#include "two_cpus.h"

#define NR_HELD		3
#define MAX_TRIALS	12
#define MAX_SECONDS	15
#define PATIENCE_S	60

#define NR_SLOTS	300
#define FIRST_SLOT	10
#define FLAGS_SLOT	(FIRST_SLOT + NR_SLOTS)
#define SLOT_GPA(i)	(0x100000000ul + (i) * 0x10000ul)

/*
 * Aging holds the lock of the host's page table, so no other memory may be in there.
 * So many pages fill the batches that hold pages before they get to the LRU lists.
 */
#define MEM_SIZE	SZ_2M
/* The slots map it and the page before it.  The last slot maps it alone. */
#define AGED_PAGE	1

#define MIN_TIMERS	4000
#define MAX_TIMERS	64000

static struct kvm_vm *vm;
static u8 *mem;
static int idle_fd;
static u64 aged_pfn;
/* For the walk, and for everything else. */
static int cpus[2];

static timer_t timers[MAX_TIMERS];
static int nr_timers;

static struct {
	pthread_t thread;
	sem_t ready;
	struct timespec interrupt;
	u64 walks;
	bool stop;
} ager;

static struct {
	pthread_t thread;
	pid_t tid;
	sem_t go;
	bool done;
} updater;

static void l1_code(void *data)
{
	GUEST_SYNC(0);
	nested_guest_code(data);
}

static void add_timers(int nr)
{
	struct sigevent ev = {
		.sigev_notify = SIGEV_SIGNAL,
		.sigev_signo = SIGRTMIN,
	};

	for (; nr_timers < nr; nr_timers++)
		TEST_ASSERT(!timer_create(CLOCK_MONOTONIC, &ev, &timers[nr_timers]),
			    "timer_create() failed, errno %d", errno);
}

/* Sets all timers to expire at the same time, on this CPU. */
static struct timespec set_timers(void)
{
	struct itimerspec at = {};
	struct timespec now;
	s64 lead_ns;
	int i;

	for (lead_ns = NSEC_PER_SEC / 50;; lead_ns *= 2) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		at.it_value = timespec_add_ns(now, lead_ns);
		for (i = 0; i < nr_timers; i++)
			TEST_ASSERT(!timer_settime(timers[i], TIMER_ABSTIME, &at, NULL),
				    "timer_settime() failed, errno %d", errno);

		/* There must be time left to begin the walks. */
		if (timespec_to_ns(timespec_elapsed(now)) < lead_ns / 2)
			return at.it_value;
	}
}

static void mark_idle(void)
{
	u64 bit = BIT(aged_pfn % 64);

	TEST_ASSERT(pwrite(idle_fd, &bit, 8, aged_pfn / 64 * 8) == 8,
		    "Cannot mark PFN 0x%lx idle, errno %d", aged_pfn, errno);
}

static bool is_idle(void)
{
	u64 bits;

	TEST_ASSERT(pread(idle_fd, &bits, 8, aged_pfn / 64 * 8) == 8,
		    "Cannot read page_idle, errno %d", errno);
	return bits & BIT(aged_pfn % 64);
}

static void *age(void *unused)
{
	pin_self_to_cpu(cpus[0]);
	ager.interrupt = set_timers();
	sem_post(&ager.ready);

	while (!READ_ONCE(ager.stop)) {
		mark_idle();
		WRITE_ONCE(ager.walks, ager.walks + 1);
	}
	return NULL;
}

static void set_flags_slot(u32 flags)
{
	vm_set_user_memory_region(vm, FLAGS_SLOT, flags, SLOT_GPA(NR_SLOTS),
				  PAGE_SIZE, mem + AGED_PAGE * PAGE_SIZE);
}

static void *update(void *unused)
{
	WRITE_ONCE(updater.tid, syscall(SYS_gettid));
	sem_wait(&updater.go);
	set_flags_slot(KVM_MEM_LOG_DIRTY_PAGES);
	WRITE_ONCE(updater.done, true);
	return NULL;
}

static struct kvm_vcpu *set_up_vm(void)
{
	struct kvm_vcpu *vcpu;
	int i;

	vm = vm_create(1);
	vcpu = vm_vcpu_add_nested(vm, 0);
	vcpu_arch_set_entry_point(vcpu, l1_code);

	/* The walk goes by host address. */
	for (i = 0; i < NR_SLOTS; i++)
		vm_set_user_memory_region(vm, FIRST_SLOT + i, 0, SLOT_GPA(i),
					  (AGED_PAGE + 1) * PAGE_SIZE, mem);
	set_flags_slot(0);

	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_SYNC);
	return vcpu;
}

/* Returns whether a walk was held up for long enough. */
static bool run_trial(void)
{
	struct kvm_vcpu *vcpu = set_up_vm();
	struct timespec start;
	bool held;
	u64 walks;

	memset(&ager, 0, sizeof(ager));
	memset(&updater, 0, sizeof(updater));
	sem_init(&ager.ready, 0, 0);
	sem_init(&updater.go, 0, 0);
	kvm_pthread_create(&updater.thread, NULL, update, NULL);
	kvm_pthread_create(&ager.thread, NULL, age, NULL);
	sem_wait(&ager.ready);

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ager.interrupt, NULL);
	walks = READ_ONCE(ager.walks);
	sem_post(&updater.go);
	while (!READ_ONCE(updater.done) &&
	       (!READ_ONCE(updater.tid) || !waits_for_readers(updater.tid)))
		sched_yield();
	vcpu_run(vcpu);
	held = !READ_ONCE(updater.done) && READ_ONCE(ager.walks) == walks;
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_DONE);

	/* Wait for this walk, and for one that finds rmaps everywhere. */
	walks = READ_ONCE(ager.walks);
	clock_gettime(CLOCK_MONOTONIC, &start);
	while (READ_ONCE(ager.walks) < walks + 2) {
		TEST_ASSERT(timespec_elapsed(start).tv_sec < PATIENCE_S,
			    "The walk does not end");
		usleep(100);
	}

	WRITE_ONCE(ager.stop, true);
	kvm_pthread_join(ager.thread, NULL);
	kvm_pthread_join(updater.thread, NULL);
	kvm_vm_free(vm);
	return held;
}

static void find_page(void)
{
	const u64 pfn_mask = BIT(55) - 1;
	u64 entry;
	int fd;

	idle_fd = __open_path_or_exit("/sys/kernel/mm/page_idle/bitmap", O_RDWR,
				      "Is CONFIG_IDLE_PAGE_TRACKING enabled?");

	mem = kvm_mmap(2 * MEM_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	mem = align_ptr_up(mem, MEM_SIZE);
	/* Huge pages are tracked as a whole. */
	madvise(mem, MEM_SIZE, MADV_NOHUGEPAGE);
	memset(mem, 1, MEM_SIZE);

	fd = open_path_or_exit("/proc/self/pagemap", O_RDONLY);
	TEST_ASSERT(pread(fd, &entry, 8,
			  ((uintptr_t)mem / PAGE_SIZE + AGED_PAGE) * 8) == 8,
		    "Cannot read pagemap, errno %d", errno);
	close(fd);
	aged_pfn = entry & pfn_mask;
	__TEST_REQUIRE(aged_pfn, "Looking up PFNs requires CAP_SYS_ADMIN");

	mark_idle();
	__TEST_REQUIRE(is_idle(), "The page is not tracked");
}

int main(void)
{
	struct rlimit rlimit = { .rlim_cur = 2 * MAX_TIMERS, .rlim_max = 2 * MAX_TIMERS };
	int nr_trials = 0, nr_held = 0, nr = MIN_TIMERS;
	struct timespec start;

	/* Without the TDP MMU, all memslots have rmaps from the start. */
	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));
	TEST_REQUIRE(kvm_has_nested_tdp());
	__TEST_REQUIRE(!setrlimit(RLIMIT_SIGPENDING, &rlimit),
		       "Cannot have that many timers, errno %d", errno);
	signal(SIGRTMIN, SIG_IGN);

	ksft_print_header();
	find_page();
	find_two_cpus(cpus);
	pin_self_to_cpu(cpus[1]);
	ksft_set_plan(1);

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (; nr_trials < MAX_TRIALS && nr_held < NR_HELD; nr_trials++) {
		if (timespec_elapsed(start).tv_sec >= MAX_SECONDS)
			break;

		add_timers(nr);
		ksft_print_msg("trial %d with %d timers\n", nr_trials, nr_timers);
		if (run_trial())
			nr_held++;
		else
			nr = min(2 * nr, MAX_TIMERS);
	}

	ksft_print_msg("%d walks were held up in %d trials\n", nr_held, nr_trials);
	if (nr_held)
		ksft_test_result_pass("aging beside the first shadow root\n");
	else
		ksft_test_result_skip("aging: no walk could be held up\n");
	ksft_finished();
}
