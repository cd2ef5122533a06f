/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The page tables of a guest, as a test changes them.
 */
#ifndef SELFTEST_KVM_PAGE_TABLE_H
#define SELFTEST_KVM_PAGE_TABLE_H

#include "kvm_util.h"
#include "processor.h"

/* Returns the entry for @gva in the guest's page table of @level. */
static inline u64 *vm_get_table_entry(struct kvm_vm *vm, gva_t gva, int level)
{
	const int nr_entries = PAGE_SIZE / sizeof(u64);
	u64 *entry = &vm->mmu.pgd;
	int l;

	for (l = vm->mmu.pgtable_levels; l >= level; l--)
		entry = (u64 *)addr_gpa2hva(vm, *entry & PHYSICAL_PAGE_MASK) +
			(gva >> PG_LEVEL_SHIFT(l)) % nr_entries;
	return entry;
}

/* Has an entry name another frame, with the same permissions. */
static inline void point_to(u64 *entry, gpa_t gpa)
{
	*entry = gpa | (*entry & ~PHYSICAL_PAGE_MASK);
}

/* Returns the page that @p points into, such as an entry's page table. */
static inline u8 *page_of(void *p)
{
	return (u8 *)((uintptr_t)p & PAGE_MASK);
}

#endif /* SELFTEST_KVM_PAGE_TABLE_H */
