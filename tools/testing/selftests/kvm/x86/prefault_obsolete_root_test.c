// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_PRE_FAULT_MEMORY beside the deletion of another memslot.
 *
 * With KVM_X86_QUIRK_SLOT_ZAP_ALL, deleting any memslot makes all roots obsolete.
 * KVM_PRE_FAULT_MEMORY retries a fault on an obsolete root, and must load a new
 * root first.  A KVM that keeps the obsolete root retries until a signal arrives.
 * The deletion is stuck for as long: it waits for all readers of the memslots, and
 * KVM_PRE_FAULT_MEMORY is one of them.
 */
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

/* So many pages that most of the time one of them is being prefaulted. */
#define PREFAULT_GPA		0x100000000ul
#define PREFAULT_SIZE		SZ_1M
#define PREFAULT_SLOT		10

#define OTHER_GPA		0x200000000ul
#define OTHER_SLOT		11

#define NR_DELETIONS		50
#define MIN_DELETIONS		5
#define MAX_SECONDS		5
/* KVM_PRE_FAULT_MEMORY takes far less, even on an emulated CPU. */
#define PATIENCE_S		10

static bool stuck;
static bool stop;
static u64 nr_deletions;

static void sigalrm_handler(int sig)
{
	stuck = true;
}

static void *delete_slot_worker(void *arg)
{
	struct kvm_vm *vm = arg;
	sigset_t set;
	void *mem;

	/* The thread that calls KVM_PRE_FAULT_MEMORY must get the signal. */
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &set, NULL);

	mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);

	while (!READ_ONCE(stop)) {
		vm_set_user_memory_region(vm, OTHER_SLOT, 0, OTHER_GPA,
					  PAGE_SIZE, mem);
		vm_set_user_memory_region(vm, OTHER_SLOT, 0, OTHER_GPA, 0, NULL);
		WRITE_ONCE(nr_deletions, nr_deletions + 1);
	}

	kvm_munmap(mem, PAGE_SIZE);
	return NULL;
}

static void prefault(struct kvm_vcpu *vcpu)
{
	struct kvm_pre_fault_memory range = {
		.gpa = PREFAULT_GPA,
		.size = PREFAULT_SIZE,
	};
	int r;

	alarm(PATIENCE_S);
	r = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	TEST_ASSERT(!READ_ONCE(stuck),
		    "KVM_PRE_FAULT_MEMORY is stuck with 0x%llx bytes left",
		    range.size);
	alarm(0);

	/* This memslot is never deleted. */
	TEST_ASSERT_VM_VCPU_IOCTL(!r, KVM_PRE_FAULT_MEMORY, r, vcpu->vm);
	TEST_ASSERT(!range.size, "KVM_PRE_FAULT_MEMORY left 0x%llx bytes", range.size);
}

int main(void)
{
	struct sigaction sa = { .sa_handler = sigalrm_handler };
	struct timespec start;
	struct kvm_vcpu *vcpu;
	pthread_t worker;
	struct kvm_vm *vm;
	void *mem;

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY));
	/* A KVM that has no such quirk does not zap all for one deletion. */
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) &
		     KVM_X86_QUIRK_SLOT_ZAP_ALL);

	sigaction(SIGALRM, &sa, NULL);

	vm = vm_create_with_one_vcpu(&vcpu, NULL);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, PREFAULT_GPA,
				    PREFAULT_SLOT, PREFAULT_SIZE / PAGE_SIZE, 0);
	/* A fault of its own for each page, and none that waits for the host's. */
	mem = addr_gpa2hva(vm, PREFAULT_GPA);
	madvise(mem, PREFAULT_SIZE, MADV_NOHUGEPAGE);
	memset(mem, 1, PREFAULT_SIZE);

	kvm_pthread_create(&worker, NULL, delete_slot_worker, vm);

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		prefault(vcpu);
	} while (READ_ONCE(nr_deletions) < NR_DELETIONS &&
		 timespec_elapsed(start).tv_sec < MAX_SECONDS);

	WRITE_ONCE(stop, true);
	kvm_pthread_join(worker, NULL);
	__TEST_REQUIRE(nr_deletions >= MIN_DELETIONS,
		       "Only %lu deletions in %u s", nr_deletions, MAX_SECONDS);
	pr_info("Not stuck beside %lu deletions\n", nr_deletions);

	kvm_vm_free(vm);
	return 0;
}
