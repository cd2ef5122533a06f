// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY: the pages that it maps.  The guest takes no fault on them, and the
 * host allocates and copies no more of them than the guest's access needs.
 */
#include <sys/wait.h>

#include "map_memory_fixture.h"

#define KSM_RUN		"/sys/kernel/mm/ksm/run"

/* A range that ends beyond a multiple of the size of a huge page. */
TEST_F(map, first_proposal)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	const u64 nr = HUGE_PAGES + 1;

	TEST_ASSERT_EQ(WINDOW_GPA, 3ul * SZ_1G);
	set_slot(vm, SLOT, 0, 0, nr, new_mem(nr));

	populate(vcpu, 0, HUGE_PAGES, READ, NULL);
	populate(vcpu, HUGE_PAGES, 1, READ, NULL);
	populate_fails(vcpu, nr, 1, READ, NULL, ENOENT, 0);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, nr), 0);

	populate(vcpu, 0, HUGE_PAGES, WRITE, NULL);
	populate(vcpu, HUGE_PAGES, 1, WRITE, NULL);
	populate_fails(vcpu, nr, 1, WRITE, NULL, ENOENT, 0);
	populate_fails(vcpu, HUGE_PAGES, 2, WRITE, NULL, ENOENT, 1);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, nr), 0);
}

TEST_F(map, no_faults)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	const u64 nr = 200;
	u64 pages;

	set_slot(vm, SLOT, 0, 0, 5 * nr, new_mem(5 * nr));
	pages = vm_get_stat(vm, pages_4k);

	/* Without populating, the guest takes a fault on each page. */
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, nr), nr);

	populate(vcpu, nr, nr, READ, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + 2 * nr);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, nr, nr), 0);

	populate(vcpu, 2 * nr, nr, WRITE, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 2 * nr, nr), 0);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 2 * nr, nr), 0);

	populate(vcpu, 3 * nr, nr, USER, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 3 * nr, nr), 0);

	populate(vcpu, 4 * nr, nr, WRITE | EXEC | USER, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 4 * nr, nr), 0);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + 5 * nr);

	/* Populating again does nothing. */
	populate(vcpu, 0, 5 * nr, WRITE, NULL);
	populate(vcpu, 0, 5 * nr, READ, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + 5 * nr);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 5 * nr), 0);
}

/* Populating for a write replaces a mapping that only allows reads. */
TEST_F(map, write_after_read)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	void *mem = new_mem(64);
	unsigned long log = 0;

	set_slot(vm, SLOT, 0, 0, 64, mem);

	/* The zero page. */
	populate(vcpu, 0, 32, READ, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 32), 0);
	TEST_ASSERT(guest_faults(vcpu, GUEST_WRITE, 16, 16) >= 16,
		    "The guest can write to the zero page");
	populate(vcpu, 0, 32, WRITE, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 32), 0);

	/* Memory that has been used. */
	memset(hva(mem, 32), 1, 32 * PAGE_SIZE);
	populate(vcpu, 32, 32, READ, NULL);
	populate(vcpu, 32, 32, WRITE, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 32, 32), 0);

	/* Write protection by the dirty log. */
	set_slot(vm, SLOT, LOG, 0, 64, mem);
	kvm_vm_get_dirty_log(vm, SLOT, &log);
	populate(vcpu, 0, 64, READ, NULL);
	kvm_vm_get_dirty_log(vm, SLOT, &log);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 1), faults_of_log(1));
	populate(vcpu, 0, 64, WRITE, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 64), 0);
	kvm_vm_get_dirty_log(vm, SLOT, &log);
	TEST_ASSERT_EQ(log, ~0ul);
}

/* Reading allocates no memory. */
TEST_F(map, zero_page)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	u8 *mem = new_mem(4);
	int i;

	if (!pfn(&i))
		SKIP(return, "No PFNs in pagemap");

	set_slot(vm, SLOT, 0, 0, 4, mem);
	populate(vcpu, 0, 4, READ, NULL);
	for (i = 1; i < 4; i++)
		TEST_ASSERT(pfn(mem) && pfn(mem) == pfn(hva(mem, i)),
			    "Memory was allocated for page 0 or %d", i);
	populate(vcpu, 0, 4, EXEC | USER, NULL);
	TEST_ASSERT_EQ(pfn(mem), pfn(hva(mem, 3)));

	populate(vcpu, 0, 4, WRITE, NULL);
	for (i = 1; i < 4; i++)
		TEST_ASSERT(pfn(mem) != pfn(hva(mem, i)),
			    "Pages 0 and %d are the same", i);
}

/* A private mapping of a file gets pages of its own when it is written. */
TEST_F(map, private_file)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	int fd = kvm_memfd_alloc(8 * PAGE_SIZE, false), i;
	u8 *file = kvm_mmap(8 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			    fd);
	u8 *mem = mmap_at(reserve(8), 8, PROT_READ | PROT_WRITE, MAP_PRIVATE,
			  fd);

	fill(file, 8, 1);
	set_slot(vm, SLOT, 0, 0, 8, mem);

	populate(vcpu, 0, 8, READ, NULL);
	for (i = 0; i < 8; i++)
		TEST_ASSERT(pagemap_entry(hva(mem, i)) & PM_FILE,
			    "Page %d is not the file's", i);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 8), 0);
	fill(file, 8, 100);
	guest_sees(vcpu, 0, 8, 100);

	populate(vcpu, 0, 4, WRITE, NULL);
	for (i = 0; i < 8; i++)
		TEST_ASSERT(!(pagemap_entry(hva(mem, i)) & PM_FILE) == (i < 4),
			    "Page %d is %sthe file's", i, i < 4 ? "" : "not ");
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 4), 0);
	check_pattern(file, 8, 100);
}

/* Memory that is copy-on-write is copied only to be written. */
TEST_F(map, fork)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	u64 was[8];
	int i, quit[2];
	u8 *mem = new_pattern(8, 1);
	pid_t child;

	if (!pfn(mem))
		SKIP(return, "No PFNs in pagemap");

	set_slot(vm, SLOT, 0, 0, 8, mem);
	TEST_ASSERT(!pipe(quit), "No pipe, errno %d", errno);
	child = fork();
	if (!child) {
		struct kvm_memory_mapping m =
			memory_mapping(window_gpa(0), 8, WRITE, NULL);
		char c;

		/* The VM belongs to the parent. */
		TEST_ASSERT_EQ(map_memory_once(vcpu, &m), EIO);
		close(quit[1]);
		TEST_ASSERT(!read(quit[0], &c, 1), "Not the end of the pipe");
		check_pattern(mem, 8, 1);
		_exit(0);
	}
	for (i = 0; i < 8; i++)
		was[i] = pfn(hva(mem, i));
	/* fork() has made it copy-on-write as well. */
	populate_guests_own(vcpu);

	populate(vcpu, 0, 8, READ, NULL);
	for (i = 0; i < 8; i++)
		TEST_ASSERT(pfn(hva(mem, i)) == was[i], "Page %d was copied",
			    i);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 8), 0);

	populate(vcpu, 0, 8, WRITE, NULL);
	for (i = 0; i < 8; i++)
		TEST_ASSERT(pfn(hva(mem, i)) != was[i], "Page %d is shared", i);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 8), 0);

	close(quit[1]);
	TEST_ASSERT(waitpid(child, &i, 0) == child && !i, "Child: status %d",
		    i);
}

/* Adjoining pages are in different states. */
TEST_F(map, mixed_pages)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	const u64 nr = 100;
	u8 *mem = new_mem(nr);
	u64 i, pages, was[100];
	int quit[2], status;
	pid_t child;

	if (!pfn(&i))
		SKIP(return, "No PFNs in pagemap");

	for (i = 0; i < nr; i += 4)
		fill(hva(mem, i), 1, i);
	TEST_ASSERT(!pipe(quit), "No pipe, errno %d", errno);
	child = fork();
	if (!child) {
		char c;

		close(quit[1]);
		TEST_ASSERT(!read(quit[0], &c, 1), "Not the end of the pipe");
		for (i = 0; i < nr; i += 4)
			check_pattern(hva(mem, i), 1, i);
		_exit(0);
	}
	populate_guests_own(vcpu);

	/* Modulo 4: copy-on-write, present, the zero page, not present. */
	for (i = 1; i < nr; i += 4)
		fill(hva(mem, i), 1, i);
	for (i = 2; i < nr; i += 4)
		READ_ONCE(mem[i * PAGE_SIZE]);
	for (i = 0; i < nr; i++)
		was[i] = pfn(hva(mem, i));
	set_slot(vm, SLOT, 0, 0, nr, mem);
	pages = vm_get_stat(vm, pages_4k);
	/* The guest has mapped some of them. */
	for (i = 5; i < nr; i += 12)
		TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, i, 1), 1);

	populate(vcpu, 0, nr, READ, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + nr);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, nr), 0);
	for (i = 0; i < nr; i++)
		TEST_ASSERT(i % 4 == 3 || pfn(hva(mem, i)) == was[i],
			    "Page %lu was copied", i);
	for (i = 0; i < nr; i++)
		if (i % 4 < 2)
			guest_sees(vcpu, i, 1, i);

	populate(vcpu, 0, nr, WRITE, NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + nr);
	for (i = 0; i < nr; i++)
		if (i % 4 < 2)
			guest_sees(vcpu, i, 1, i);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, nr), 0);

	close(quit[1]);
	TEST_ASSERT(waitpid(child, &status, 0) == child && !status,
		    "Child: status %d", status);
}

TEST_F_TIMEOUT(map, ksm, 60)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	u8 *mem = new_mem(2);
	char was[16];
	int i;

	memset(mem, 0x5a, 2 * PAGE_SIZE);
	if (!pfn(mem) || !read_attr(KSM_RUN, was, sizeof(was)) ||
	    madvise(mem, 2 * PAGE_SIZE, MADV_MERGEABLE) ||
	    !write_attr(KSM_RUN, "1"))
		SKIP(return, "No KSM");
	for (i = 0; i < 2000 && pfn(mem) != pfn(hva(mem, 1)); i++)
		usleep(10000);
	write_attr(KSM_RUN, was);
	if (pfn(mem) != pfn(hva(mem, 1)))
		SKIP(return, "KSM does not merge");

	set_slot(vm, SLOT, 0, 0, 2, mem);
	populate(vcpu, 0, 2, READ, NULL);
	TEST_ASSERT(pfn(mem) == pfn(hva(mem, 1)), "A page was copied");
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 2), 0);
	populate(vcpu, 0, 2, WRITE, NULL);
	TEST_ASSERT(pfn(mem) != pfn(hva(mem, 1)), "The page is shared");
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 2), 0);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
