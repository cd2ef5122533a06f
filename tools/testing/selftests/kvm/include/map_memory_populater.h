/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Has KVM_MAP_MEMORY populate guest memory over and over, through a vCPU of its
 * own, while a test does something else.
 */
#ifndef SELFTEST_KVM_MAP_MEMORY_POPULATER_H
#define SELFTEST_KVM_MAP_MEMORY_POPULATER_H

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

/* How much one call populates, and how much is filled. */
#define MAX_POPULATE	200
#define SCRATCH_PAGES	16

static struct {
	/* NULL without KVM_MAP_MEMORY.  The vCPU never runs. */
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	bool stop;

	/* What is populated, and whether slots may be missing there. */
	gpa_t gpa;
	u64 pages;
	bool may_miss;

	/* Guest memory that the guest leaves alone. */
	gpa_t scratch_gpa;
	u64 *scratch;
} populater;

/* Populates everything, except for what has no slot if slots may be missing. */
static inline void __populater_call(struct kvm_memory_mapping *m)
{
	int r;

	do {
		r = __vcpu_ioctl(populater.vcpu, KVM_MAP_MEMORY, m);
	} while (r && (errno == EAGAIN || errno == EINTR));
	TEST_ASSERT(!r || (errno == ENOENT && populater.may_miss),
		    "KVM_MAP_MEMORY failed with errno %d, %llu pages left",
		    errno, m->nr_pages);
}

static inline void __populater_fill(u64 *source, u64 tag)
{
	struct kvm_memory_mapping m = {
		.base_gfn = populater.scratch_gpa >> PAGE_SHIFT,
		.nr_pages = SCRATCH_PAGES,
		.flags = tag % 8,
		.source = (uintptr_t)source,
	};
	int i;

	for (i = 0; i < SCRATCH_PAGES * PAGE_SIZE / sizeof(*source); i++)
		source[i] = tag << 32 | i;
	__populater_call(&m);
	TEST_ASSERT(!memcmp(populater.scratch, source,
			    (SCRATCH_PAGES - m.nr_pages) * PAGE_SIZE),
		    "KVM_MAP_MEMORY has not filled the memory");
}

static inline void *__populater_thread(void *unused)
{
	struct kvm_random_state rng = new_kvm_random_state(kvm_random_seed);
	struct kvm_memory_mapping m;
	u64 first, calls;
	void *source;

	source = kvm_mmap(SCRATCH_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1);

	for (calls = 0; !READ_ONCE(populater.stop); calls++) {
		if (calls % 8 == 0)
			__populater_fill(source, calls / 8);

		first = kvm_random_u64_in_range(&rng, 0, populater.pages - 1);
		m = (struct kvm_memory_mapping) {
			.base_gfn = (populater.gpa >> PAGE_SHIFT) + first,
			.nr_pages = min(kvm_random_u64_in_range(&rng, 1, MAX_POPULATE),
					populater.pages - first),
			.flags = kvm_random_u32_in_range(&rng, 0, 7),
		};
		__populater_call(&m);
	}
	kvm_munmap(source, SCRATCH_PAGES * PAGE_SIZE);
	return NULL;
}

static inline void populater_set_range(gpa_t gpa, u64 pages)
{
	populater.gpa = gpa;
	populater.pages = pages;
}

/* Adds the vCPU @id.  The default range is the guest's own memory, in slot 0. */
static inline void populater_create(struct kvm_vm *vm, u32 id, bool may_miss)
{
	struct userspace_mem_region *own = memslot2region(vm, 0);
	gva_t scratch;

	memset(&populater, 0, sizeof(populater));
	if (!kvm_has_cap(KVM_CAP_MAP_MEMORY))
		return;

	populater.vcpu = vm_vcpu_add(vm, id, NULL);
	populater.may_miss = may_miss;
	populater_set_range(own->region.guest_phys_addr,
			    own->region.memory_size / PAGE_SIZE);

	scratch = vm_alloc_pages(vm, SCRATCH_PAGES);
	populater.scratch_gpa = addr_gva2gpa(vm, scratch);
	populater.scratch = addr_gva2hva(vm, scratch);
}

static inline void populater_start(void)
{
	if (populater.vcpu)
		kvm_pthread_create(&populater.thread, NULL, __populater_thread,
				   NULL);
}

static inline void populater_stop(void)
{
	if (!populater.vcpu)
		return;

	WRITE_ONCE(populater.stop, true);
	kvm_pthread_join(populater.thread, NULL);
}

#endif /* SELFTEST_KVM_MAP_MEMORY_POPULATER_H */
