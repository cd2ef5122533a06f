// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY: how much one call populates at most.
 */
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <linux/memfd.h>

#include "map_memory_fixture.h"

/* Calls that signals interrupt populate everything in the end. */
TEST_F_TIMEOUT(map, signals, 120)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	struct itimerval timer = {
		.it_interval.tv_usec = 2000,
		.it_value.tv_usec = 2000,
	};
	u8 *mem = new_mem(WINDOW_PAGES), *source = new_mem(WINDOW_PAGES);
	int round, err, nr_signals = 0;
	struct kvm_memory_mapping m;

	catch_signal(SIGALRM);
	set_slot(vm, SLOT, 0, 0, WINDOW_PAGES, mem);
	for (round = 0; round < 200 && nr_signals < 5; round++) {
		fill(source, WINDOW_PAGES, round);
		setitimer(ITIMER_REAL, &timer, NULL);
		m = memory_mapping(window_gpa(0), WINDOW_PAGES, WRITE, source);
		while ((err = map_memory_once(vcpu, &m))) {
			TEST_ASSERT(err == EINTR, "errno %d", err);
			nr_signals++;
		}
		setitimer(ITIMER_REAL, &(struct itimerval){}, NULL);
		check_pattern(mem, WINDOW_PAGES, round);
	}
	TEST_ASSERT(nr_signals, "No signal was seen");
}

/* A signal that is blocked does not end a call. */
TEST_F(map, blocked_signal)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	sigset_t set;

	set_slot(vm, SLOT, 0, 0, 100, new_mem(100));
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	raise(SIGUSR1);
	populate(vcpu, 0, 100, WRITE, NULL);
}

TEST_F_TIMEOUT(map, bounded_small, 240)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	const u64 nr = CALL_PAGES + 100;
	u64 pages = vm_get_stat(vm, pages_4k);
	struct kvm_memory_mapping m;

	/* Reading maps the zero page, so this needs no memory. */
	vm_set_user_memory_region(vm, SLOT, 0, ELSEWHERE_GPA, nr * PAGE_SIZE,
				  new_mem(nr));
	m = memory_mapping(ELSEWHERE_GPA, nr, READ, NULL);
	TEST_ASSERT_EQ(map_memory_once(vcpu, &m), EAGAIN);
	TEST_ASSERT(m.nr_pages >= 100 && m.nr_pages < nr, "%llu pages left",
		    m.nr_pages);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + nr - m.nr_pages);
	TEST_ASSERT_EQ(map_memory(vcpu, &m), 0);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + nr);
}

/* Returns memory that consists of one huge page, mapped over and over. */
static void *repeat_huge_page(u64 nr_pages)
{
	int fd = syscall(__NR_memfd_create, "huge", MFD_HUGETLB | MFD_HUGE_2MB);
	void *mem = reserve(nr_pages);
	u64 i;

	if (fd < 0 || ftruncate(fd, SZ_2M))
		return NULL;
	for (i = 0; i < nr_pages; i += HUGE_PAGES)
		if (mmap(hva(mem, i), SZ_2M, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			return NULL;
	return mem;
}

TEST_F_TIMEOUT(map, bounded_huge, 60)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	const u64 nr = SZ_1G / PAGE_SIZE;
	const u64 first[] = { 0, 1, HUGE_PAGES - 1, HUGE_PAGES + 17 };
	void *mem = repeat_huge_page(nr);
	struct kvm_memory_mapping m;
	int i, err, calls;
	u64 left;

	if (!mem)
		SKIP(return, "No huge pages");

	vm_set_user_memory_region(vm, SLOT, 0, ELSEWHERE_GPA, SZ_1G, mem);
	for (i = 0; i < ARRAY_SIZE(first); i++) {
		m = memory_mapping(ELSEWHERE_GPA + first[i] * PAGE_SIZE,
				   nr - first[i], WRITE, NULL);
		calls = 0;
		do {
			left = m.nr_pages;
			err = map_memory_once(vcpu, &m);
			TEST_ASSERT(!err ||
				    (err == EAGAIN && m.nr_pages < left),
				    "errno %d", err);
			/* A call may begin within a huge page, and ends at the end of one. */
			TEST_ASSERT(left - m.nr_pages <
				    CALL_PAGES + 5 * HUGE_PAGES,
				    "From 0x%lx on: %llu pages in call %d",
				    first[i], left - m.nr_pages, calls);
			calls++;
		} while (err);
		TEST_ASSERT(calls >= 4 && calls < 8, "%d calls", calls);
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), nr / HUGE_PAGES);
	}
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
