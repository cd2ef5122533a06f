// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY: memory, or a source, that a call has to wait for.
 *
 * userfaultfd provides it.  Meanwhile userspace updates memslots, and signals end
 * the wait, as they end that of KVM_RUN.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

#include "map_memory_fixture.h"
#include "map_memory_private_fixture.h"
#include "userfaultfd_util.h"

#define REPEAT_SECONDS	5
#define STUCK_SECONDS	20

/* Memory that userfaultfd provides, and what happens then. */
static struct {
	u8 *mem;
	/* That of the first page. */
	u64 tag;
	int nr_resolved;
	/* If not NULL, the VM whose memslots are updated first. */
	struct kvm_vm *vm;
	/* A fault at this page has a signal sent to this thread. */
	int kill_page;
	pid_t kill_tid;
	/* The first such fault is not resolved. */
	bool ignore_once;
} missing = { .kill_page = -1 };

static void update_memslots(struct kvm_vm *vm)
{
	vm_set_region_list(vm, region_set(OTHER_SLOT, 0, ELSEWHERE_GPA,
					  PAGE_SIZE, missing.mem));
	vm_set_region_list(vm, region_delete(OTHER_SLOT));
}

static int resolve(int mode, int uffd, struct uffd_msg *msg)
{
	u8 *at = (u8 *)(msg->arg.pagefault.address & PAGE_MASK);
	u64 page = (at - missing.mem) / PAGE_SIZE;
	struct uffdio_copy copy = {
		.dst = (uintptr_t)at,
		.len = PAGE_SIZE,
	};
	u64 contents[PAGE_SIZE / sizeof(u64)];

	if (page == missing.kill_page) {
		syscall(__NR_tgkill, getpid(), missing.kill_tid, SIGUSR1);
		if (missing.ignore_once) {
			missing.ignore_once = false;
			return 0;
		}
	}
	if (missing.vm)
		update_memslots(missing.vm);
	fill(contents, 1, missing.tag + page);
	copy.src = (uintptr_t)contents;
	/* The thread that waits may check the number before the ioctl returns. */
	WRITE_ONCE(missing.nr_resolved, missing.nr_resolved + 1);
	if (!ioctl(uffd, UFFDIO_COPY, &copy))
		return 0;
	WRITE_ONCE(missing.nr_resolved, missing.nr_resolved - 1);
	return errno == EEXIST ? 0 : -errno;
}

static struct uffd_desc *start_uffd(u8 *mem, u64 nr, u64 tag)
{
	missing.mem = mem;
	missing.tag = tag;
	missing.nr_resolved = 0;
	return uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0, mem,
					nr * PAGE_SIZE, 1, resolve);
}

/* A call waits for each page, and for the source of each page, once. */
TEST_F(map, userfaultfd)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	u8 *mem = new_mem(48), *source = new_pattern(16, 100);
	u8 *uffd_source = new_mem(16);
	struct uffd_desc *uffd;

	uffd = start_uffd(mem, 48, 1);
	set_slot(vm, SLOT, 0, 0, 48, mem);

	populate(vcpu, 0, 16, READ, NULL);
	TEST_ASSERT_EQ(READ_ONCE(missing.nr_resolved), 16);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 16), 0);
	guest_sees(vcpu, 0, 16, 1);

	populate(vcpu, 16, 16, WRITE, NULL);
	TEST_ASSERT_EQ(READ_ONCE(missing.nr_resolved), 32);
	guest_sees(vcpu, 16, 16, 17);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 16, 16), 0);

	populate(vcpu, 32, 16, WRITE, source);
	TEST_ASSERT_EQ(READ_ONCE(missing.nr_resolved), 48);
	guest_sees(vcpu, 32, 16, 100);
	uffd_stop_demand_paging(uffd);

	uffd = start_uffd(uffd_source, 16, 200);
	populate(vcpu, 0, 16, WRITE, uffd_source);
	TEST_ASSERT_EQ(READ_ONCE(missing.nr_resolved), 16);
	guest_sees(vcpu, 0, 16, 200);
	uffd_stop_demand_paging(uffd);
}

/* A signal ends a call at the next check, after at most one chunk. */
TEST_F(map, signal)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	u8 *mem = new_mem(512), *source = new_pattern(512, 1000);
	struct kvm_memory_mapping m;
	struct uffd_desc *uffd;
	u64 flags, done;
	int err;

	catch_signal(SIGUSR1);
	missing.kill_tid = syscall(__NR_gettid);
	missing.kill_page = 200;
	for (flags = 0; flags <= WRITE; flags += WRITE) {
		uffd = start_uffd(mem, 512, 1);
		set_slot(vm, SLOT, 0, 0, 512, mem);
		m = memory_mapping(window_gpa(0), 512, flags,
				   flags ? source : NULL);
		err = map_memory_once(vcpu, &m);
		done = 512 - m.nr_pages;
		TEST_ASSERT(err == EINTR, "errno %d", err);
		TEST_ASSERT(done >= 200 && done < 201 + CHUNK_PAGES,
			    "A signal at page 200 was seen after %lu pages",
			    done);

		TEST_ASSERT_EQ(map_memory(vcpu, &m), 0);
		guest_sees(vcpu, 0, 512, flags ? 1000 : 1);
		TEST_ASSERT_EQ(READ_ONCE(missing.nr_resolved), 512);

		uffd_stop_demand_paging(uffd);
		delete_slot(vm, SLOT);
		madvise(mem, 512 * PAGE_SIZE, MADV_DONTNEED);
		populate_guests_own(vcpu);
	}
}

/* A signal ends the wait for memory that does not come. */
TEST_F(map, signal_while_waiting)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	struct kvm_memory_mapping m;
	struct uffd_desc *uffd;
	u8 *mem, *source;
	int i, err;

	catch_signal(SIGUSR1);
	missing.kill_tid = syscall(__NR_gettid);
	missing.kill_page = 40;
	/* The call waits for the page, for the page that it fills, or for its source. */
	for (i = 0; i < 3; i++) {
		mem = new_mem(64);
		source = i == 0 ? NULL :
			 i == 1 ? new_pattern(64, 1000) : new_mem(64);
		missing.ignore_once = true;
		uffd = start_uffd(i == 2 ? source : mem, 64, 1);
		set_slot(vm, SLOT, 0, 0, 64, mem);

		m = memory_mapping(window_gpa(0), 64, WRITE, source);
		vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
		err = map_memory_once(vcpu, &m);
		TEST_ASSERT(err == EINTR, "%d: errno %d", i, err);
		TEST_ASSERT_EQ(vcpu->run->exit_reason, KVM_EXIT_UNKNOWN);
		TEST_ASSERT(m.nr_pages == 64 - 40, "%d: %llu pages are left", i,
			    m.nr_pages);
		TEST_ASSERT_EQ(map_memory(vcpu, &m), 0);
		guest_sees(vcpu, 0, 64, i == 1 ? 1000 : 1);

		uffd_stop_demand_paging(uffd);
		delete_slot(vm, SLOT);
		populate_guests_own(vcpu);
	}
}

/* Userspace can update memslots while a call waits for the source. */
static void populate_from_missing(struct kvm_vcpu *vcpu, u64 flags)
{
	struct uffd_desc *uffd;

	missing.vm = vcpu->vm;
	uffd = start_uffd(new_mem(PRIVATE_PAGES), PRIVATE_PAGES, 1);
	populate(vcpu, 0, PRIVATE_PAGES, flags, missing.mem);
	uffd_stop_demand_paging(uffd);
	missing.vm = NULL;
	TEST_ASSERT_EQ(missing.nr_resolved, PRIVATE_PAGES);
	guest_sees(vcpu, 0, PRIVATE_PAGES, 1);
}

TEST_F(map, source_not_present)
{
	set_slot(self->vm, SLOT, 0, 0, PRIVATE_PAGES, new_mem(PRIVATE_PAGES));
	populate_from_missing(self->vcpu, WRITE);
}

TEST_F(private, source_not_present)
{
	populate_from_missing(self->vcpu, WRITE);
	set_private(self->vm, 0, PRIVATE_PAGES);
	populate_from_missing(self->vcpu, PRIVATE | WRITE);
}

/* A call that a thread repeats. */
static struct {
	struct kvm_vcpu *vcpu;
	struct kvm_memory_mapping m;
	bool may_fault;
	pid_t tid;
	u64 nr_calls, nr_signals;
	bool ended;
} repeated;

static void *repeat_call_thread(void *unused)
{
	struct kvm_memory_mapping m;
	struct timespec start;
	int err;

	repeated.tid = syscall(__NR_gettid);
	clock_gettime(CLOCK_MONOTONIC, &start);
	while (timespec_elapsed(start).tv_sec < REPEAT_SECONDS) {
		m = repeated.m;
		err = map_memory_once(repeated.vcpu, &m);
		TEST_ASSERT(!err || err == EINTR ||
			    (err == EFAULT && repeated.may_fault), "errno %d", err);
		repeated.nr_signals += err == EINTR;
		WRITE_ONCE(repeated.nr_calls, repeated.nr_calls + 1);
	}
	WRITE_ONCE(repeated.ended, true);
	return NULL;
}

static void await_end_of_call(bool interrupt)
{
	u64 calls = READ_ONCE(repeated.nr_calls);

	while (READ_ONCE(repeated.nr_calls) == calls &&
	       !READ_ONCE(repeated.ended)) {
		/* A signal that comes just before the call does not end it. */
		if (interrupt)
			syscall(__NR_tgkill, getpid(), repeated.tid, SIGUSR1);
		sched_yield();
	}
}

/* Repeats a call for a while.  Fails if one of the calls does not end. */
static void repeat_call(struct kvm_vcpu *vcpu, struct kvm_memory_mapping m,
			bool may_fault)
{
	struct timespec deadline;
	pthread_t caller;

	catch_signal(SIGUSR1);
	memset(&repeated, 0, sizeof(repeated));
	repeated.vcpu = vcpu;
	repeated.m = m;
	repeated.may_fault = may_fault;
	kvm_pthread_create(&caller, NULL, repeat_call_thread, NULL);

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += REPEAT_SECONDS + STUCK_SECONDS;
	TEST_ASSERT(!pthread_timedjoin_np(caller, NULL, &deadline),
		    "Stuck in call %lu", repeated.nr_calls);
	ksft_print_msg("%lu calls, %lu signals\n", repeated.nr_calls,
		       repeated.nr_signals);
}

/* A source that is there for a moment. */
static struct {
	void *contents;
	/* A signal ends the call first; otherwise memslots are updated. */
	bool interrupt;
} vanishing;

/* Provides the source, and drops it again at some moment of a call. */
static int resolve_for_a_moment(int mode, int uffd, struct uffd_msg *msg)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)missing.mem,
		.src = (uintptr_t)vanishing.contents,
		.len = PRIVATE_PAGES * PAGE_SIZE,
	};
	int i;

	if (vanishing.interrupt)
		await_end_of_call(true);
	else
		update_memslots(repeated.vcpu->vm);

	if (ioctl(uffd, UFFDIO_COPY, &copy))
		return errno == EEXIST ? 0 : -errno;

	await_end_of_call(false);
	for (i = missing.nr_resolved++ % 100 * 10; i > 0; i--)
		cpu_relax();
	madvise(missing.mem, PRIVATE_PAGES * PAGE_SIZE, MADV_DONTNEED);
	return 0;
}

/*
 * The source is there when a call looks for it, and gone when it copies from it.
 * Every call must end all the same.
 */
static void populate_from_vanishing(struct kvm_vcpu *vcpu, u64 flags,
				    bool interrupt)
{
	struct uffd_desc *uffd;

	vanishing.interrupt = interrupt;
	vanishing.contents = new_pattern(PRIVATE_PAGES, 1);
	missing.nr_resolved = 0;
	missing.mem = new_mem(PRIVATE_PAGES);
	uffd = uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0,
					missing.mem, PRIVATE_PAGES * PAGE_SIZE,
					1, resolve_for_a_moment);
	repeat_call(vcpu, memory_mapping(window_gpa(0), PRIVATE_PAGES, flags,
					 missing.mem), false);
	uffd_stop_demand_paging(uffd);
	populate(vcpu, 0, PRIVATE_PAGES, flags, new_pattern(PRIVATE_PAGES, 100));
	guest_sees(vcpu, 0, PRIVATE_PAGES, 100);
}

TEST_F_TIMEOUT(map, source_vanishes, 120)
{
	set_slot(self->vm, SLOT, 0, 0, PRIVATE_PAGES, new_mem(PRIVATE_PAGES));
	populate_from_vanishing(self->vcpu, WRITE, false);
	populate_from_vanishing(self->vcpu, WRITE, true);
}

TEST_F_TIMEOUT(private, source_vanishes, 60)
{
	set_private(self->vm, 0, PRIVATE_PAGES);
	populate_from_vanishing(self->vcpu, PRIVATE, false);
}

TEST_F_TIMEOUT(private, source_vanishes_signal, 60)
{
	set_private(self->vm, 0, PRIVATE_PAGES);
	populate_from_vanishing(self->vcpu, PRIVATE, true);
}

static void *toggle_access_thread(void *mem)
{
	int i, round;

	for (round = 0; !READ_ONCE(repeated.ended); round++) {
		mprotect(mem, PAGE_SIZE,
			 round % 2 ? PROT_READ | PROT_WRITE : PROT_NONE);
		for (i = round * 7 % 1000; i > 0; i--)
			cpu_relax();
	}
	return NULL;
}

static int interrupt_call(int mode, int uffd, struct uffd_msg *msg)
{
	await_end_of_call(true);
	return 0;
}

/*
 * The host allows no access to the memory when a call looks for it, and allows it
 * when the call looks again.  The memory is then missing, and a signal ends the
 * wait.
 */
TEST_F_TIMEOUT(map, memory_appears, 60)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	void *mem = new_mem(1), *source = new_pattern(1, 1);
	struct uffd_desc *uffd;
	pthread_t toggler;

	set_slot(vm, SLOT, 0, 0, 1, mem);
	uffd = uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0, mem,
					PAGE_SIZE, 1, interrupt_call);
	repeated.ended = false;
	kvm_pthread_create(&toggler, NULL, toggle_access_thread, mem);
	repeat_call(vcpu, memory_mapping(window_gpa(0), 1, WRITE, source), true);
	kvm_pthread_join(toggler, NULL);
	uffd_stop_demand_paging(uffd);
	mprotect(mem, PAGE_SIZE, PROT_READ | PROT_WRITE);
	populate(vcpu, 0, 1, WRITE, source);
	guest_sees(vcpu, 0, 1, 1);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
