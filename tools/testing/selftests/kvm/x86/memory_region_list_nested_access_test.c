// SPDX-License-Identifier: GPL-2.0-only
/*
 * An access that KVM makes for a nested guest belongs as a whole to the memslots
 * before a list or to those after it.
 *
 * KVM walks L2's page tables, and L1's page tables for each of them.  Each step can
 * wait for memory, and a list can replace the memslots of both meanwhile.
 */
#include <string.h>

#include "list_access.h"
#include "nested_guest.h"

static struct area nested_tables = { 13, 0xc0600000ul, 8 };

struct test {
	const char *name;
	/* Wait for L2's page directory, not for its page table. */
	bool directory;
};

static const struct test tests[] = {
	{ "nested ins waits for a page directory", true },
	{ "nested ins waits for a page table", false },
};

static bool l2_is_done;

static void l2_guest_code(void)
{
	void *at = (void *)GVA;

	asm volatile("insl" : "+D"(at) : "d"((u16)PORT) : "memory");
	WRITE_ONCE(l2_is_done, true);
	vmcall();
}

static void l1_guest_code(void *data)
{
	run_nested_guest(data, l2_guest_code);
	GUEST_SYNC(READ_ONCE(l2_is_done));
}

/* The directory is the first page table that is allocated. */
static u64 *old_pde(int page)
{
	u64 *pde = (u64 *)tables.mem[OLD] +
		   ((GVA + page * PAGE_SIZE) / SZ_2M) % (PAGE_SIZE / sizeof(u64));

	TEST_ASSERT_EQ(*pde & PHYSICAL_PAGE_MASK,
		       addr_hva2gpa(vm, page_of(old_pte(page))));
	return pde;
}

static u64 *nested_pte(enum world world, gpa_t gpa)
{
	return in_world(&nested_tables, world, tdp_get_pte(vm, gpa));
}

/* Has L1's page tables map @old_gpa in the old world only, and @new_gpa in the new. */
static void set_up_nested_tables(gpa_t old_gpa, gpa_t new_gpa)
{
	tdp_identity_map_default_memslots(vm);
	add_area(&nested_tables);
	vm->memslots[MEM_REGION_PT] = nested_tables.slot;
	tdp_map(vm, tables.gpa, tables.gpa, tables.pages * PAGE_SIZE);
	tdp_map(vm, data.gpa, data.gpa, data.pages * PAGE_SIZE);
	vm->memslots[MEM_REGION_PT] = 0;
	copy_area(&nested_tables);
	*nested_pte(OLD, new_gpa) = 0;
	*nested_pte(NEW, old_gpa) = 0;
	will_replace(&nested_tables);
}

/*
 * The access waits for a page table of L2.  In each world it names a frame that only
 * L1's page tables of that world map.
 */
static enum result try_access(const struct test *test)
{
	const gpa_t spare = tables.gpa + (tables.pages - 1) * PAGE_SIZE;
	enum result result;
	struct ucall uc;
	u64 *entry;

	create_guest(l1_guest_code);
	vm_enable_tdp(vm);
	vcpu_alloc_nested(vm, vcpu);
	fill_data();

	entry = test->directory ? old_pde(0) : old_pte(0);
	if (test->directory) {
		memcpy(page(&tables, NEW, tables.pages - 1),
		       page_of(in_world(&tables, NEW, old_pte(0))), PAGE_SIZE);
		point_to(in_world(&tables, NEW, entry), spare);
	}
	set_up_nested_tables(*entry & PHYSICAL_PAGE_MASK,
			     *in_world(&tables, NEW, entry) & PHYSICAL_PAGE_MASK);

	run_to_ins();
	take_away(&waited, page_of(entry), false);
	result = run_between_swaps();
	if (result != GOOD)
		goto out;

	if (!exits_with(-EINTR, 0) || !check_written(false))
		result = BAD;
	vcpu->run->immediate_exit = 0;
	vcpu_run(vcpu);
	if (get_ucall(vcpu, &uc) != UCALL_SYNC || !uc.args[1]) {
		ksft_print_msg("L1 sees an exit that no memslots justify\n");
		result = BAD;
	}
out:
	close_guest();
	free_area(&nested_tables);
	return result;
}

int main(int argc, char *argv[])
{
	enum result result;
	const char *why;
	int i, n;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	why = kvm_has_nested_tdp() ? NULL : "no nested two-dimensional paging";
	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(tests));
	for (i = 0; i < ARRAY_SIZE(tests); i++) {
		result = EARLY;
		for (n = 0; !why && result == EARLY && n < MAX_ATTEMPTS; n++)
			result = try_access(&tests[i]);
		report_result(tests[i].name, result, why);
	}
	ksft_finished();
}
