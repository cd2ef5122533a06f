// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY: vCPUs that run nested guests.
 */
#include <linux/bitmap.h>

#include "kvm_test_harness.h"
#include "map_memory.h"
#include "nested_guest.h"

static void l2_guest_code(void)
{
	GUEST_SYNC(2);
	vmcall();
}

static void l1_guest_code(void *data)
{
	GUEST_SYNC(1);
	run_nested_guest(data, l2_guest_code);
	GUEST_SYNC(3);
}

static void run_to_stage(struct kvm_vcpu *vcpu, u64 stage)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT(get_ucall(vcpu, &uc) == UCALL_SYNC && uc.args[1] == stage,
		    "Unexpected exit: %s",
		    exit_reason_str(vcpu->run->exit_reason));
}

/* KVM cannot populate memory while the vCPU is in the nested guest. */
static void test_nested(bool tdp)
{
	u8 *mem = new_mem(16), *source = new_pattern(16, 100);
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	vm = vm_create_with_one_vcpu(&vcpu, l1_guest_code);
	if (tdp)
		vm_enable_tdp(vm);
	vcpu_alloc_nested(vm, vcpu);
	if (tdp)
		tdp_identity_map_default_memslots(vm);
	set_slot(vm, SLOT, 0, 0, 16, mem);

	run_to_stage(vcpu, 1);
	populate(vcpu, 0, 8, WRITE, source);
	run_to_stage(vcpu, 2);
	populate_fails(vcpu, 0, 16, WRITE, NULL, EOPNOTSUPP, 0);
	populate_fails(vcpu, 8, 8, WRITE, source, EOPNOTSUPP, 0);
	TEST_ASSERT(!is_present(hva(mem, 8)), "Memory was filled");
	run_to_stage(vcpu, 3);
	populate(vcpu, 0, 16, WRITE, source);
	check_pattern(mem, 16, 100);
	kvm_vm_free(vm);
}

TEST(nested)
{
	if (!kvm_has_nested_tdp())
		SKIP(return, "No nested two-dimensional paging");
	test_nested(true);
}

TEST(nested_shadow)
{
	if (!kvm_has_nested())
		SKIP(return, "No nested virtualization");
	test_nested(false);
}

#define MAX_TABLES	4
#define TABLES_GVA	WINDOW_GPA

static void l1_writes_table_code(void *data)
{
	u64 *entry = (u64 *)TABLES_GVA;

	run_nested_guest(data, nested_guest_exits);
	GUEST_SYNC(1);
	WRITE_ONCE(*entry, READ_ONCE(*entry));
	GUEST_SYNC(2);
}

/*
 * Finds L1's page tables for the code that L2 executes, and returns how many
 * there are.  Leaves out the last level, which KVM need not write-protect.
 */
static int find_nested_tables(struct kvm_vm *vm, gpa_t *tables)
{
	gpa_t l2_gpa = addr_gva2gpa(vm, (gva_t)nested_guest_exits);
	u64 entry = vm->stage2_mmu.pgd;
	int level, nr = 0;

	for (level = vm->stage2_mmu.pgtable_levels; level > PG_LEVEL_4K; level--) {
		tables[nr] = entry & PHYSICAL_PAGE_MASK;
		entry = ((u64 *)addr_gpa2hva(vm, tables[nr++]))
			[l2_gpa >> PG_LEVEL_SHIFT(level) & 511];
	}
	return nr;
}

/* Populates L1's page tables for L2, and checks that the log then has them dirty. */
static void populate_tables(struct kvm_vcpu *vcpu, u64 flags, bool dirty)
{
	struct kvm_vm *vm = vcpu->vm;
	struct userspace_mem_region *own = memslot2region(vm, 0);
	u64 nr_pages = own->region.memory_size / PAGE_SIZE;
	unsigned long *log = bitmap_zalloc(nr_pages);
	gpa_t tables[MAX_TABLES];
	int i, nr = find_nested_tables(vm, tables);

	/* Clears the log. */
	kvm_vm_get_dirty_log(vm, 0, log);
	for (i = 0; i < nr; i++)
		populate_gpa(vcpu, tables[i], 1, flags, NULL, 0, 1);

	bitmap_zero(log, nr_pages);
	kvm_vm_get_dirty_log(vm, 0, log);
	for (i = 0; i < nr; i++)
		TEST_ASSERT(test_bit(tables[i] >> PAGE_SHIFT, log) == dirty,
			    "Table %d is %s", i, dirty ? "clean" : "dirty");
	bitmap_free(log);
}

/*
 * Page tables that KVM shadows stay read-only even if they are populated for a
 * write.  They become dirty all the same.
 */
TEST(nested_tables)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	gpa_t tables[MAX_TABLES];
	bool read_first;
	u64 faults;

	if (!kvm_has_nested_tdp())
		SKIP(return, "No nested two-dimensional paging");

	for (read_first = false; ; read_first = true) {
		vm = vm_create_with_one_vcpu(&vcpu, l1_writes_table_code);
		vm_enable_tdp(vm);
		vcpu_alloc_nested(vm, vcpu);
		virt_map(vm, TABLES_GVA, vm->stage2_mmu.pgd, 1);
		tdp_identity_map_default_memslots(vm);
		TEST_ASSERT(find_nested_tables(vm, tables) <= MAX_TABLES,
			    "Too many page tables");
		run_to_stage(vcpu, 1);
		vm_mem_region_set_flags(vm, 0, LOG);

		if (read_first)
			populate_tables(vcpu, READ, false);
		populate_tables(vcpu, WRITE, true);
		/* They are mapped already. */
		populate_tables(vcpu, WRITE, true);
		populate_tables(vcpu, READ, false);

		faults = vcpu_get_stat(vcpu, pf_taken);
		run_to_stage(vcpu, 2);
		TEST_ASSERT(vcpu_get_stat(vcpu, pf_taken) > faults,
			    "The guest can write to a page table");
		kvm_vm_free(vm);
		if (read_first)
			break;
	}
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
