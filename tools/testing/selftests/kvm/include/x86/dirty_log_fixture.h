/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fixture of the tests of KVM_SET_USER_MEMORY_REGION_LIST and the dirty log.
 */
#ifndef SELFTEST_KVM_DIRTY_LOG_FIXTURE_H
#define SELFTEST_KVM_DIRTY_LOG_FIXTURE_H

#include <linux/bitmap.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "memory_region_list.h"
#include "processor.h"
#include "test_util.h"

#define WINDOW_GPA	0xc0000000ul
#define NR_PAGES	256
#define LOG		KVM_MEM_LOG_DIRTY_PAGES

#define NR_WRITERS	3

/* Each test has its own. */
static void guest_code(int id);

/* The memory behind the window. */
static u8 *mem;

struct dirty_log_test {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[NR_WRITERS];
	u64 manual_protect;
};

FIXTURE(dirty_log)
{
	struct dirty_log_test test;
};

FIXTURE_VARIANT(dirty_log)
{
	u64 manual_protect;
};

FIXTURE_VARIANT_ADD(dirty_log, get_and_clear)
{
	.manual_protect = 0,
};

FIXTURE_VARIANT_ADD(dirty_log, manual_protect)
{
	.manual_protect = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
};

FIXTURE_VARIANT_ADD(dirty_log, initially_set)
{
	.manual_protect = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
			  KVM_DIRTY_LOG_INITIALLY_SET,
};

FIXTURE_SETUP(dirty_log)
{
	struct dirty_log_test *test = &self->test;
	u64 caps = kvm_check_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);

	test->manual_protect = variant->manual_protect;
	if (test->manual_protect & ~caps)
		SKIP(return, "No such mode");

	test->vm = vm_create_with_vcpus(NR_WRITERS, guest_code, test->vcpus);
	virt_map(test->vm, WINDOW_GPA, WINDOW_GPA, NR_PAGES);
	if (test->manual_protect)
		vm_enable_cap(test->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
			      test->manual_protect);

	/* Twice the window, so that its pages can have other host addresses. */
	mem = kvm_mmap(2 * NR_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

FIXTURE_TEARDOWN(dirty_log)
{
	kvm_vm_free(self->test.vm);
	kvm_munmap(mem, 2 * NR_PAGES * PAGE_SIZE);
}

static inline struct region_entry set(u32 slot, u32 flags, int at, int nr, int from)
{
	return region_set(slot, flags, WINDOW_GPA + at * PAGE_SIZE,
			  nr * PAGE_SIZE, mem + from * PAGE_SIZE);
}

/* In most cases, page n of the memory is at page n of the window. */
static inline struct region_entry log_set(u32 slot, int at, int nr)
{
	return set(slot, LOG, at, nr, at);
}

/* Gets and clears the log. */
static inline void harvest(struct dirty_log_test *test, u32 slot, int nr,
			   unsigned long *log)
{
	bitmap_zero(log, NR_PAGES);
	kvm_vm_get_dirty_log(test->vm, slot, log);
	if (test->manual_protect)
		kvm_vm_clear_dirty_log(test->vm, slot, log, 0, nr);
}

#endif /* SELFTEST_KVM_DIRTY_LOG_FIXTURE_H */
