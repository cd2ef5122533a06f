// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST leaves memory alone that stays where it is: the
 * guest takes no fault on it when its memslot is split, merged, grown or shrunk.
 */
#include "kvm_test_harness.h"
#include "map_memory.h"

#define NR_PAGES	1024
#define RING_ENTRIES	1024

FIXTURE(reshape)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *mem;
};

FIXTURE_VARIANT(reshape)
{
	int mmap_flags;
	int madvise;
};

FIXTURE_VARIANT_ADD(reshape, small_pages)
{
	.madvise = MADV_NOHUGEPAGE,
};

FIXTURE_VARIANT_ADD(reshape, thp)
{
	.madvise = MADV_HUGEPAGE,
};

FIXTURE_VARIANT_ADD(reshape, hugetlb)
{
	.mmap_flags = MAP_HUGETLB | MAP_HUGE_2MB,
};

static struct region_entry part(u32 slot, u32 flags, u8 *mem, u64 page, u64 nr)
{
	return region_set(slot, flags, window_gpa(page), nr * PAGE_SIZE,
			  hva(mem, page));
}

/* Slot @slot, which has 64 pages from page 700 of the memory on, moves to @page. */
static struct region_entry move(u32 slot, u8 *mem, u64 page)
{
	return region_set(slot, 0, window_gpa(page), 64 * PAGE_SIZE, hva(mem, 700));
}

/* Makes a list.  If pages go, it must take two swaps, and make INVALID slots. */
static void make_list(struct kvm_vm *vm, int swaps, u32 nent,
		      const struct region_entry *entries)
{
	u64 swaps_before = vm_get_stat(vm, memslot_swaps);
	u64 windows = vm_get_stat(vm, memslot_windows);
	u64 copies = vm_get_stat(vm, memslot_invalid_copies);

	vm_set_region_entries(vm, nent, entries);
	TEST_ASSERT_EQ(vm_get_stat(vm, memslot_swaps) - swaps_before, swaps);
	TEST_ASSERT_EQ(vm_get_stat(vm, memslot_windows) - windows, swaps - 1);
	TEST_ASSERT_EQ(vm_get_stat(vm, memslot_invalid_copies) > copies, swaps > 1);
}

#define reshape(self, swaps, ...)					\
do {									\
	const struct region_entry __e[] = { __VA_ARGS__ };		\
									\
	make_list((self)->vm, swaps, ARRAY_SIZE(__e), __e);		\
} while (0)

static void check_no_faults(struct kvm_vcpu *vcpu, enum guest_op op, u64 page,
			    u64 nr)
{
	u64 faults = guest_faults(vcpu, op, page, nr);

	TEST_ASSERT(!faults, "%lu faults on pages %lu..%lu, which stayed", faults,
		    page, page + nr);
}

#define no_faults(self, op, page, nr) check_no_faults((self)->vcpu, op, page, nr)

/* Runs the guest into an access to @page that memory does not answer. */
static void exits_at(struct kvm_vcpu *vcpu, enum guest_op op, u64 page)
{
	typeof(guest_todo) *todo = guest_ptr(vcpu->vm, guest_todo);
	struct kvm_run *run = vcpu->run;

	todo->op = op;
	todo->gva = window_gpa(page);
	todo->nr_pages = 1;
	vcpu_run(vcpu);
	TEST_ASSERT(run->exit_reason == KVM_EXIT_MMIO &&
		    run->mmio.phys_addr == window_gpa(page) &&
		    run->mmio.is_write == (op == GUEST_WRITE),
		    "Unexpected exit: %s", exit_reason_str(run->exit_reason));
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_SYNC);
}

FIXTURE_SETUP(reshape)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, guest_code);
	set_up_guest(self->vcpu);

	self->mem = mmap(NULL, NR_PAGES * PAGE_SIZE + SZ_2M,
			 PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | variant->mmap_flags, -1, 0);
	if (self->mem == MAP_FAILED)
		SKIP(return, "No such memory, errno %d", errno);
	self->mem = align_ptr_up(self->mem, SZ_2M);
	if (variant->madvise)
		TEST_ASSERT(!madvise(self->mem, NR_PAGES * PAGE_SIZE,
				     variant->madvise),
			    "madvise() failed, errno %d", errno);

	vm_set_user_memory_region(self->vm, 10, 0, window_gpa(0),
				  NR_PAGES * PAGE_SIZE, self->mem);
	populate(self->vcpu, 0, NR_PAGES, WRITE, NULL);
	TEST_ASSERT_EQ(guest_faults(self->vcpu, GUEST_WRITE, 0, NR_PAGES), 0);
}

FIXTURE_TEARDOWN(reshape)
{
	if (self->vm)
		kvm_vm_free(self->vm);
}

TEST_F(reshape, split_and_merge)
{
	const int at[] = { 1, 100, 511, 512, 513, 1000 };
	u8 *mem = self->mem;
	u64 huge = vm_get_stat(self->vm, pages_2m);
	int i;

	for (i = 0; i < ARRAY_SIZE(at); i++) {
		reshape(self, 1, region_delete(10), part(10, 0, mem, 0, at[i]),
			part(11, 0, mem, at[i], NR_PAGES - at[i]));
		no_faults(self, GUEST_READ, 0, NR_PAGES);
		no_faults(self, GUEST_WRITE, 0, NR_PAGES);

		reshape(self, 1, region_delete(11), region_delete(10),
			part(10, 0, mem, 0, NR_PAGES));
		no_faults(self, GUEST_WRITE, 0, NR_PAGES);
		TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_2m), huge);
	}
}

TEST_F(reshape, grow_and_shrink)
{
	const int at[] = { 1, 100, 511, 512, 513, 1000 };
	u8 *mem = self->mem;
	int i, rest;

	for (i = 0; i < ARRAY_SIZE(at); i++) {
		rest = NR_PAGES - at[i];

		/* From the end, and from the start. */
		reshape(self, 2, region_delete(10), part(10, 0, mem, 0, at[i]));
		no_faults(self, GUEST_WRITE, 0, at[i]);
		exits_at(self->vcpu, GUEST_READ, at[i]);
		exits_at(self->vcpu, GUEST_WRITE, NR_PAGES - 1);
		reshape(self, 1, region_delete(10), part(10, 0, mem, 0, NR_PAGES));
		no_faults(self, GUEST_WRITE, 0, at[i]);
		guest_faults(self->vcpu, GUEST_WRITE, at[i], rest);

		reshape(self, 2, region_delete(10), part(10, 0, mem, at[i], rest));
		no_faults(self, GUEST_WRITE, at[i], rest);
		exits_at(self->vcpu, GUEST_WRITE, at[i] - 1);
		reshape(self, 1, region_delete(10), part(10, 0, mem, 0, NR_PAGES));
		no_faults(self, GUEST_WRITE, at[i], rest);
		guest_faults(self->vcpu, GUEST_WRITE, 0, at[i]);
	}
}

TEST_F(reshape, hole)
{
	u8 *mem = self->mem;

	reshape(self, 2, region_delete(10), part(10, 0, mem, 0, 300),
		part(11, 0, mem, 301, NR_PAGES - 301));
	no_faults(self, GUEST_WRITE, 0, 300);
	no_faults(self, GUEST_WRITE, 301, NR_PAGES - 301);
	exits_at(self->vcpu, GUEST_READ, 300);

	/* Other memory in the hole, while all around it stays. */
	reshape(self, 1, region_set(12, 0, window_gpa(300), PAGE_SIZE,
				    hva(mem, 0)));
	WRITE_ONCE(*(u64 *)mem, 4711);
	no_faults(self, GUEST_WRITE, 301, NR_PAGES - 301);
	TEST_ASSERT_EQ(guest_faults(self->vcpu, GUEST_WRITE, 300, 1), 1);
	TEST_ASSERT_EQ(READ_ONCE(*(u64 *)mem), 0);

	/* One of two slots goes elsewhere, the other one stays. */
	reshape(self, 2, region_delete(10), region_delete(11), region_delete(12),
		part(10, 0, mem, 0, 300), part(11, 0, mem, 301, 100));
	no_faults(self, GUEST_WRITE, 0, 300);
	no_faults(self, GUEST_WRITE, 301, 100);
	exits_at(self->vcpu, GUEST_WRITE, 401);
}

TEST_F(reshape, readonly)
{
	u8 *mem = self->mem;
	int i;

	for (i = 0; i < 3; i++) {
		reshape(self, 2, region_delete(10), part(10, 0, mem, 0, 100),
			part(11, KVM_MEM_READONLY, mem, 100, 16),
			part(12, 0, mem, 116, NR_PAGES - 116));
		no_faults(self, GUEST_READ, 0, NR_PAGES);
		no_faults(self, GUEST_WRITE, 0, 100);
		no_faults(self, GUEST_WRITE, 116, NR_PAGES - 116);
		*(u64 *)hva(mem, 115) = 4711;
		exits_at(self->vcpu, GUEST_WRITE, 100);
		exits_at(self->vcpu, GUEST_WRITE, 115);
		TEST_ASSERT_EQ(*(u64 *)hva(mem, 115), 4711);

		reshape(self, 1, region_delete(10), region_delete(11),
			region_delete(12), part(10, 0, mem, 0, NR_PAGES));
		no_faults(self, GUEST_READ, 0, NR_PAGES);
		no_faults(self, GUEST_WRITE, 0, 100);
		guest_faults(self->vcpu, GUEST_WRITE, 100, 16);
		TEST_ASSERT_EQ(*(u64 *)hva(mem, 115), 15);
		no_faults(self, GUEST_WRITE, 0, NR_PAGES);
	}
}

/* The mitigation makes what is split executable, and huge pages not. */
TEST_F(reshape, nx_huge_pages)
{
	char was[16];
	u64 huge;

	if (!read_attr(NX_HUGE_PAGES, was, sizeof(was)) ||
	    !write_attr(NX_HUGE_PAGES, "force"))
		SKIP(return, "No nx_huge_pages");
	/* KVM has zapped all mappings, or is about to. */
	populate_guests_own(self->vcpu);
	populate(self->vcpu, 0, NR_PAGES, WRITE, NULL);
	huge = vm_get_stat(self->vm, pages_2m);

	reshape(self, 1, region_delete(10), part(10, 0, self->mem, 0, 100),
		part(11, 0, self->mem, 100, NR_PAGES - 100));
	no_faults(self, GUEST_WRITE, 0, NR_PAGES);
	reshape(self, 1, region_delete(11), region_delete(10),
		part(10, 0, self->mem, 0, NR_PAGES));
	no_faults(self, GUEST_WRITE, 0, NR_PAGES);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_2m), huge);

	TEST_ASSERT(write_attr(NX_HUGE_PAGES, was), "errno %d", errno);
}

static long page_tables_kb(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	char line[128];
	long kb = -1;

	TEST_ASSERT(f, "Cannot read meminfo, errno %d", errno);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "SecPageTables: %ld kB", &kb) == 1)
			break;
	fclose(f);
	return kb;
}

/* A page of memory goes through the guest's address space. */
TEST_F(reshape, page_tables_are_freed)
{
	gpa_t gpa = ELSEWHERE_GPA;
	long before;
	int i;

	vm_set_user_memory_region(self->vm, 20, 0, gpa, PAGE_SIZE, self->mem);
	populate_gpa(self->vcpu, gpa, 1, WRITE, NULL, 0, 1);
	before = page_tables_kb();
	for (i = 0; i < 400; i++) {
		gpa += SZ_2M;
		reshape(self, 2, region_delete(20),
			region_set(20, 0, gpa, PAGE_SIZE, self->mem));
		populate_gpa(self->vcpu, gpa, 1, WRITE, NULL, 0, 1);
	}
	TEST_ASSERT(page_tables_kb() - before < 400,
		    "Page tables take %ld kB more", page_tables_kb() - before);
}

/* Checks that the log of @slot has @nr pages from @first on, and clears it. */
static void check_log(struct kvm_vm *vm, u32 slot, int first, int nr)
{
	unsigned long log[NR_PAGES / 64] = {};
	int i;

	kvm_vm_get_dirty_log(vm, slot, log);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT(!!(log[i / 64] & BIT(i % 64)) ==
			    (i >= first && i < first + nr),
			    "Slot %u, page %d is %s", slot, i,
			    log[i / 64] & BIT(i % 64) ? "dirty" : "clean");
}

static void clear_log(struct kvm_vm *vm, u32 slot)
{
	unsigned long log[NR_PAGES / 64];

	kvm_vm_get_dirty_log(vm, slot, log);
	kvm_vm_clear_dirty_log(vm, slot, log, 0, NR_PAGES);
}

TEST_F(reshape, dirty_log)
{
	u8 *mem = self->mem;

	/* Logging begins with the list. */
	reshape(self, 1, region_delete(10), part(10, LOG, mem, 0, 700),
		part(11, 0, mem, 700, NR_PAGES - 700));
	no_faults(self, GUEST_READ, 0, NR_PAGES);
	no_faults(self, GUEST_WRITE, 701, NR_PAGES - 701);
	check_log(self->vm, 10, 0, 0);
	TEST_ASSERT_EQ(guest_faults(self->vcpu, GUEST_WRITE, 600, 20),
		       faults_of_log(20));

	/* Pages that are dirty stay writable, clean ones are logged. */
	reshape(self, 1, region_delete(10), part(10, LOG, mem, 0, 610),
		part(12, LOG, mem, 610, 90));
	no_faults(self, GUEST_READ, 0, NR_PAGES);
	no_faults(self, GUEST_WRITE, 600, 20);
	check_log(self->vm, 10, 600, 10);
	TEST_ASSERT_EQ(guest_faults(self->vcpu, GUEST_WRITE, 608, 4),
		       faults_of_log(2));
	check_log(self->vm, 12, 0, 10);
	check_log(self->vm, 10, 608, 2);

	/* Logging ends with the list. */
	reshape(self, 1, region_delete(10), region_delete(11), region_delete(12),
		part(10, 0, mem, 0, NR_PAGES));
	no_faults(self, GUEST_READ, 0, NR_PAGES);
	guest_faults(self->vcpu, GUEST_WRITE, 0, NR_PAGES);
	no_faults(self, GUEST_WRITE, 0, NR_PAGES);
}

/* A slot that moves to memory that is mapped brings a log that says it is clean. */
TEST_F(reshape, moved_log)
{
	vm_enable_cap(self->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
		      KVM_DIRTY_LOG_INITIALLY_SET);
	vm_set_user_memory_region(self->vm, 11, LOG, ELSEWHERE_GPA,
				  NR_PAGES * PAGE_SIZE, self->mem);
	clear_log(self->vm, 11);

	vm_set_region_list(self->vm, region_delete(10),
			   part(11, LOG, self->mem, 0, NR_PAGES));
	check_log(self->vm, 11, 0, 0);
	guest_faults(self->vcpu, GUEST_WRITE, 0, 64);
	check_log(self->vm, 11, 0, 64);
}

/* Nothing but the ring tells of writes, whatever the mode of bitmaps. */
TEST(ring_of_new_log)
{
	struct kvm_dirty_gfn *gfns;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int i, nr = 0;
	u8 *mem;

	if (!kvm_has_cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		SKIP(return, "No dirty ring");

	vm = vm_create(1);
	vm_enable_dirty_ring(vm, RING_ENTRIES * sizeof(*gfns));
	vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
		      KVM_DIRTY_LOG_INITIALLY_SET);
	vcpu = vm_vcpu_add(vm, 0, guest_code);
	set_up_guest(vcpu);
	gfns = vcpu_map_dirty_ring(vcpu);

	mem = new_mem(64);
	set_slot(vm, 10, 0, 0, 64, mem);
	guest_faults(vcpu, GUEST_WRITE, 0, 64);
	vm_set_region_list(vm, region_delete(10), part(11, LOG, mem, 0, 64));
	guest_faults(vcpu, GUEST_WRITE, 0, 64);
	for (i = 0; i < RING_ENTRIES; i++)
		nr += gfns[i].flags == KVM_DIRTY_GFN_F_DIRTY && gfns[i].slot == 11;
	TEST_ASSERT_EQ(nr, 64);
	kvm_vm_free(vm);
}

/* A slot that moves takes its own pages from the guest, and no others. */
TEST_F(reshape, move)
{
	u64 zapped, missing = guest_faults(self->vcpu, GUEST_READ, 0, 1);
	u8 *mem = self->mem;
	int round;

	TEST_ASSERT_EQ(missing, 0);
	reshape(self, 2, region_delete(10), part(10, 0, mem, 0, 600),
		part(20, 0, mem, 700, 64));
	for (round = 0; round < 3; round++) {
		guest_faults(self->vcpu, GUEST_WRITE, 700, 64);
		zapped = vm_get_stat(self->vm, memslot_zapped_pages);

		/* Alone, with a split, and with a slot that takes its place. */
		switch (round) {
		case 0:
			reshape(self, 2, move(20, mem, 800));
			break;
		case 1:
			reshape(self, 2, region_delete(10), part(10, 0, mem, 0, 300),
				part(11, 0, mem, 300, 300), move(20, mem, 800));
			break;
		case 2:
			reshape(self, 2, region_delete(11), region_delete(10),
				part(10, 0, mem, 0, 600), move(20, mem, 800),
				part(21, 0, mem, 700, 64));
			break;
		}
		TEST_ASSERT_EQ(vm_get_stat(self->vm, memslot_zapped_pages) - zapped, 64);
		no_faults(self, GUEST_WRITE, 0, 600);
		TEST_ASSERT(guest_faults(self->vcpu, GUEST_WRITE, 800, 64) > 0,
			    "The pages are where the slot has come to already");
		if (round == 2)
			break;

		exits_at(self->vcpu, GUEST_WRITE, 700);
		reshape(self, 2, move(20, mem, 700));
		no_faults(self, GUEST_WRITE, 0, 600);
		exits_at(self->vcpu, GUEST_READ, 863);
	}
}

/* So does a list that KVM does not carry out in place. */
TEST_F(reshape, ring)
{
	const u32 log = KVM_MEM_LOG_DIRTY_PAGES;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u8 *mem = self->mem;
	u64 zapped;

	if (!kvm_has_cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		SKIP(return, "No dirty ring");

	vm = vm_create(1);
	vm_enable_dirty_ring(vm, 65536);
	vcpu = vm_vcpu_add(vm, 0, guest_code);
	set_up_guest(vcpu);
	vm_set_user_memory_region(vm, 10, 0, window_gpa(0), 600 * PAGE_SIZE, mem);
	vm_set_user_memory_region(vm, 20, log, window_gpa(700), 64 * PAGE_SIZE,
				  hva(mem, 700));
	guest_faults(vcpu, GUEST_WRITE, 0, 600);
	guest_faults(vcpu, GUEST_WRITE, 700, 64);

	zapped = vm_get_stat(vm, memslot_zapped_pages);
	make_list(vm, 2, 2, (struct region_entry[]) {
		region_delete(20), part(21, log, mem, 700, 64) });
	TEST_ASSERT_EQ(vm_get_stat(vm, memslot_zapped_pages) - zapped, 64);
	check_no_faults(vcpu, GUEST_WRITE, 0, 600);
	kvm_vm_free(vm);
}

TEST_F(reshape, statistics)
{
	u64 kept = vm_get_stat(self->vm, memslot_kept_pages);
	u64 gone = vm_get_stat(self->vm, memslot_gone_pages);
	u64 zapped = vm_get_stat(self->vm, memslot_zapped_pages);
	u8 *mem = self->mem;

	reshape(self, 2, region_delete(10), part(10, 0, mem, 100, 500));
	TEST_ASSERT_EQ(vm_get_stat(self->vm, memslot_kept_pages) - kept, 500);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, memslot_gone_pages) - gone, 524);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, memslot_zapped_pages) - zapped, 524);

	reshape(self, 1, region_delete(10), part(11, 0, mem, 100, 200),
		part(10, 0, mem, 300, 400));
	TEST_ASSERT_EQ(vm_get_stat(self->vm, memslot_kept_pages) - kept, 1000);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, memslot_gone_pages) - gone, 524);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, memslot_zapped_pages) - zapped, 524);
}

int main(int argc, char **argv)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));
	TEST_REQUIRE(kvm_is_tdp_enabled());

	return test_harness_run(argc, argv);
}
