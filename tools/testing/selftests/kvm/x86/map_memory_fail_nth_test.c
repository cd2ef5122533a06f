// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY says what it has not populated when it runs out of memory.
 *
 * Each call is made with its first allocation failing, then with its second one, and
 * so on until no allocation fails.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "fail_nth.h"

/* The pages of the base state's slots, which are backed one to one. */
#define NR_MAPPED	14
#define SOURCE_VAL(i)	(0x2000ul + (i))

/* Of @source, if there is one, for the first @nr_done pages. */
static void check_contents(const char *when, const u8 *source, int nr_done)
{
	u64 val, want;
	int i;

	for (i = 0; i < NR_MAPPED; i++) {
		val = *(u64 *)backing_page(i);
		want = source && i < nr_done ? SOURCE_VAL(i) : BACKING_VAL(i);
		/* KVM fills several pages before it maps them. */
		if (source && i >= nr_done && val == SOURCE_VAL(i))
			continue;
		TEST_ASSERT(val == want,
			    "%s: page %d has 0x%lx instead of 0x%lx", when, i,
			    val, want);
	}
}

/*
 * Fails each allocation of a call, which must fail @min times.  @host_err, if not
 * 0, is the error if the host has no memory for the slot's pages.
 */
static void sweep(struct fail_nth_test *test, const char *name, int min,
		  u64 flags, u8 *source, int host_err)
{
	int i, r, err, nr_failed = 0, nr_survived = 0;
	struct kvm_memory_mapping m;
	struct kvm_vcpu *fresh;
	unsigned int nth;
	char when[64];
	bool failed;

	for (nth = 1, failed = true; failed; nth++) {
		snprintf(when, sizeof(when), "%s, failure %u", name, nth);
		/* An old vCPU has memory in its caches. */
		fresh = __vm_vcpu_add(test->vm, nth);
		/* A deletion drops all mappings. */
		set_list(test, set(14, 0, 16, 4, 16));
		set_list(test, region_delete(14));
		if (host_err)
			madvise(backing, NR_MAPPED * PAGE_SIZE, MADV_DONTNEED);
		for (i = 0; !host_err && i < NR_MAPPED; i++)
			*(u64 *)backing_page(i) = BACKING_VAL(i);

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
		check_guest_view(test, when);
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

/* A call needs at least one page table for each level. */
TEST_F_TIMEOUT(fail_nth, map_memory, 240)
{
	sweep(&self->test, "map for write", 4, KVM_MEMORY_MAPPING_FLAG_WRITE, NULL, 0);
}

TEST_F_TIMEOUT(fail_nth, map_memory_source, 240)
{
	sweep(&self->test, "map with source", 4, 0, create_source(), 0);
}

TEST_F_TIMEOUT(fail_nth, map_memory_pages, 480)
{
	struct fail_nth_test *test = &self->test;

	TEST_ASSERT(fail_pages(true), "Cannot make pages fail");
	sweep(test, "map, pages fail", 4, KVM_MEMORY_MAPPING_FLAG_WRITE,
	      create_source(), EFAULT);
}

TEST_F_TIMEOUT(fail_nth, map_memory_private, 240)
{
	struct fail_nth_test *test = &self->test;
	const size_t size = NR_MAPPED * PAGE_SIZE;
	u64 flags = KVM_MEMORY_MAPPING_FLAG_PRIVATE;
	struct kvm_memory_mapping m;
	u8 *source = create_source();
	struct kvm_vcpu *fresh;
	int fd, i, r, nr_failed;
	unsigned int nth;
	bool failed;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "No private memory");

	for (i = 0; i < 2; i++) {
		kvm_vm_free(test->vm);
		test->vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
		fd = vm_create_guest_memfd(test->vm, size, 0);
		vm_set_user_memory_region2(test->vm, FIRST_ID,
					   KVM_MEM_GUEST_MEMFD, WINDOW_GPA,
					   size, backing, fd, 0);
		vm_mem_set_private(test->vm, WINDOW_GPA, size);

		nr_failed = 0;
		for (nth = 1, failed = true; failed; nth++) {
			fresh = __vm_vcpu_add(test->vm, nth);
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
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));
	TEST_REQUIRE(have_fault_injection());

	return test_harness_run(argc, argv);
}
