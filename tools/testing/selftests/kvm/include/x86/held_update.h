/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A list of memslot updates, in a thread of its own, that a reader of the
 * memslots holds up: the reader waits for memory inside of kvm->srcu.
 */
#ifndef SELFTEST_KVM_HELD_UPDATE_H
#define SELFTEST_KVM_HELD_UPDATE_H

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory_region_list.h"
#include "srcu_readers.h"

struct held_update {
	struct kvm_vm *vm;
	int nr_entries;
	struct region_entry entries[6];

	pthread_t thread;
	pid_t tid;
	/* The VM's swaps of memslots before the update. */
	u64 swaps;
};

static inline void held_update_add(struct held_update *update,
				   struct region_entry entry)
{
	TEST_ASSERT(update->nr_entries < ARRAY_SIZE(update->entries),
		    "Too many entries");
	update->entries[update->nr_entries++] = entry;
}

/*
 * Has grace periods of kvm->srcu end that are in progress, such as those of
 * devices on the VM's buses.  If one is when a reader begins, the update's grace
 * period comes after it, and its first swap then waits for later readers, too.
 */
static inline void end_grace_periods(struct kvm_vm *vm)
{
	struct kvm_msr_filter allow_all = {};

	vm_ioctl(vm, KVM_X86_SET_MSR_FILTER, &allow_all);
}

static inline void *__held_update_thread(void *arg)
{
	struct held_update *update = arg;

	WRITE_ONCE(update->tid, syscall(__NR_gettid));
	vm_set_region_entries(update->vm, update->nr_entries, update->entries);
	return NULL;
}

static inline void held_update_start(struct held_update *update)
{
	update->swaps = vm_get_stat(update->vm, memslot_swaps);
	update->tid = 0;
	kvm_pthread_create(&update->thread, NULL, __held_update_thread, update);
}

/*
 * Waits for the update to wait for readers after its swap number @nr, counted
 * from 0.  KVM counts a swap when it has no reader left.  Returns false if the
 * update does not come to wait.
 */
static inline bool held_update_await(struct held_update *update, int nr)
{
	int i;

	for (i = 0; i < 10000; i++, usleep(1000))
		if (READ_ONCE(update->tid) &&
		    vm_get_stat(update->vm, memslot_swaps) == update->swaps + nr &&
		    waits_for_readers(update->tid))
			return true;
	ksft_print_msg("the update does not wait after swap %d, but has made %lu\n",
		       nr, vm_get_stat(update->vm, memslot_swaps) - update->swaps);
	return false;
}

#endif /* SELFTEST_KVM_HELD_UPDATE_H */
