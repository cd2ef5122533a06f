// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page faults where there is no memslot, beside the creation of one there.
 *
 * A vCPU that has found no memslot goes on to install an MMIO SPTE.  By then,
 * userspace may have created a memslot there, and another vCPU may have mapped its
 * memory.  The first vCPU then finds a present SPTE, which it must leave alone and
 * fault again.  A KVM that does not expect this warns, or overwrites the SPTE.
 *
 * To stop the first vCPU at the right place, a thread of higher priority on the same
 * CPU preempts it again and again at random, does everything else, and then deletes
 * the memslot.
 */
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kmsg.h"
#include "kselftest.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "two_cpus.h"

#define HOLE_SLOT	10
#define HOLE_GPA	0x100000000ul
#define NR_PAGES	64
#define HOLE_SIZE	(NR_PAGES * PAGE_SIZE)

#define MAX_ROUNDS	60
#define MAX_SECONDS	5

struct test {
	const char *name;
	/* Has the first vCPU access the hole at least once. */
	void (*fault)(void);
	bool write;
	u32 flags;
};

static struct kvm_vm *vm;
/* The one in the hole, and the one that maps the memory. */
static struct kvm_vcpu *faulter, *mapper;
static u8 *mem;
static int cpus[2];

static const struct test *test;
static sem_t ready, create, created;
static bool stop;
static pid_t faulter_tid;

static void guest_code(bool write)
{
	u64 *p;
	int i;

	for (;;) {
		for (i = 0; i < NR_PAGES; i++) {
			p = (u64 *)(HOLE_GPA + i * PAGE_SIZE);
			if (write)
				WRITE_ONCE(*p, i);
			else
				READ_ONCE(*p);
		}
	}
}

/* While there is a hole, each access exits. */
static void fault_in_guest(void)
{
	struct kvm_run *run = faulter->run;

	vcpu_run(faulter);
	TEST_ASSERT_KVM_EXIT_REASON(faulter, KVM_EXIT_MMIO);
	TEST_ASSERT(run->mmio.phys_addr - HOLE_GPA < HOLE_SIZE,
		    "MMIO at 0x%llx", run->mmio.phys_addr);
}

static void pre_fault(void)
{
	static u64 page;
	struct kvm_pre_fault_memory range = {
		.gpa = HOLE_GPA + page * PAGE_SIZE,
		.size = PAGE_SIZE,
	};
	int r;

	page = (page + 1) % NR_PAGES;
	r = __vcpu_ioctl(faulter, KVM_PRE_FAULT_MEMORY, &range);
	TEST_ASSERT(!r || errno == ENOENT || errno == EAGAIN,
		    "KVM_PRE_FAULT_MEMORY failed, errno %d", errno);
}

static void *run_faulter(void *unused)
{
	struct sched_param param = {};

	/* Leave the CPU to the kworkers that updates wait for. */
	TEST_ASSERT(!sched_setscheduler(0, SCHED_IDLE, &param),
		    "sched_setscheduler() failed, errno %d", errno);
	faulter_tid = syscall(SYS_gettid);
	sem_post(&ready);
	while (!READ_ONCE(stop))
		test->fault();
	return NULL;
}

static void *run_creator(void *unused)
{
	pin_self_to_cpu(cpus[1]);
	sem_post(&ready);
	for (;;) {
		sem_wait(&create);
		if (READ_ONCE(stop))
			return NULL;
		vm_set_user_memory_region(vm, HOLE_SLOT, test->flags, HOLE_GPA,
					  HOLE_SIZE, mem);
		sem_post(&created);
	}
}

/* Whether the faulter has been stopped in a page fault, if its stack tells. */
static bool is_in_fault(void)
{
	char name[64], stack[4096];
	ssize_t len;
	int fd;

	snprintf(name, sizeof(name), "/proc/self/task/%d/stack", faulter_tid);
	fd = open(name, O_RDONLY);
	if (fd < 0)
		return true;
	len = read(fd, stack, sizeof(stack) - 1);
	close(fd);
	stack[len < 0 ? 0 : len] = '\0';
	return strstr(stack, "kvm_tdp_page_fault");
}

/* Tries to stop the faulter in a page fault.  It then still takes some luck. */
static void stop_faulter(void)
{
	int i;

	for (i = 0; i < 100; i++) {
		/* The faulter runs while this thread sleeps. */
		usleep(kvm_random_u32_in_range(&kvm_rng, 0, 300));
		if (is_in_fault())
			return;
	}
}

/* Maps the memslot's memory as soon as there is a memslot. */
static void map_memory(void)
{
	struct kvm_pre_fault_memory range = {
		.gpa = HOLE_GPA,
		.size = HOLE_SIZE,
	};
	struct timespec start;
	int r;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (range.size) {
		r = __vcpu_ioctl(mapper, KVM_PRE_FAULT_MEMORY, &range);
		TEST_ASSERT(!r || errno == ENOENT || errno == EAGAIN || errno == EINTR,
			    "KVM_PRE_FAULT_MEMORY failed, errno %d", errno);
		/*
		 * The creator may wait for something that needs this CPU, for
		 * longer than it takes a slow CPU to wake this thread.
		 */
		if (timespec_to_ns(timespec_elapsed(start)) > NSEC_PER_SEC / 10)
			usleep(5000);
	}
}

static void set_up_vm(void)
{
	struct kvm_vcpu *vcpus[2];

	vm = vm_create_with_vcpus(2, guest_code, vcpus);
	faulter = vcpus[0];
	mapper = vcpus[1];
	virt_map(vm, HOLE_GPA, HOLE_GPA, NR_PAGES);
	vcpu_args_set(faulter, 1, test->write);
}

static void start_thread(pthread_t *thread, void *(*fn)(void *))
{
	kvm_pthread_create(thread, NULL, fn, NULL);
	sem_wait(&ready);
}

static void run_test(void)
{
	pthread_t faulter_thread, creator_thread;
	struct timespec start;
	int rounds = 0, nr_lost = 0, kmsg;
	u64 nr_mapped;
	bool warned;

	set_up_vm();
	kmsg = kmsg_open();
	stop = false;
	start_thread(&creator_thread, run_creator);
	start_thread(&faulter_thread, run_faulter);

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		stop_faulter();
		sem_post(&create);
		map_memory();
		sem_wait(&created);

		/* Everything is mapped, so mapping it again must change nothing. */
		nr_mapped = vm_get_stat(vm, pages_4k);
		map_memory();
		nr_lost += vm_get_stat(vm, pages_4k) - nr_mapped;

		vm_set_user_memory_region(vm, HOLE_SLOT, 0, HOLE_GPA, 0, NULL);
		rounds++;
		warned = kmsg_has_kvm_warning(kmsg);
	} while (!warned && !nr_lost && rounds < MAX_ROUNDS &&
		 timespec_elapsed(start).tv_sec < MAX_SECONDS);

	WRITE_ONCE(stop, true);
	sem_post(&create);
	kvm_pthread_join(faulter_thread, NULL);
	kvm_pthread_join(creator_thread, NULL);
	warned |= kmsg_has_kvm_warning(kmsg);
	close(kmsg);
	ksft_print_msg("%d rounds, %d SPTEs were overwritten\n", rounds, nr_lost);
	ksft_test_result(!warned && !nr_lost, "%s\n", test->name);
	kvm_vm_free(vm);
}

static void find_cpus(void)
{
	struct sched_param param = { .sched_priority = 1 };

	find_two_cpus(cpus);
	pin_self_to_cpu(cpus[0]);
	__TEST_REQUIRE(!sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &param),
		       "Cannot have a real-time priority, errno %d", errno);
}

static const struct test tests[] = {
	{ "KVM_PRE_FAULT_MEMORY", pre_fault },
	{ "guest reads", fault_in_guest },
	{ "guest writes", fault_in_guest, .write = true },
	{ "guest writes, read-only memslot", fault_in_guest, .write = true,
	  .flags = KVM_MEM_READONLY },
};

int main(void)
{
	int i;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_READONLY_MEM));
	TEST_REQUIRE(kvm_is_tdp_enabled());

	ksft_print_header();
	find_cpus();
	sem_init(&ready, 0, 0);
	sem_init(&create, 0, 0);
	sem_init(&created, 0, 0);

	mem = kvm_mmap(HOLE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	/* MMIO SPTEs are for single pages, so have the other SPTEs be, too. */
	madvise(mem, HOLE_SIZE, MADV_NOHUGEPAGE);
	memset(mem, 1, HOLE_SIZE);

	ksft_set_plan(ARRAY_SIZE(tests));
	for (i = 0; i < ARRAY_SIZE(tests); i++) {
		test = &tests[i];
		run_test();
	}

	kvm_munmap(mem, HOLE_SIZE);
	ksft_finished();
}
