// SPDX-License-Identifier: GPL-2.0-only
/*
 * Dirty logging of L2's page tables when KVM sets accessed and dirty bits in them.
 *
 * When KVM emulates an instruction of L2, it walks L2's page tables and sets
 * accessed and dirty bits as the CPU would.  KVM must log the page table that it
 * writes to by its gfn in L1, which the memslots go by, not by its gfn in L2.
 */
#include <linux/bitmap.h>
#include <linux/bitops.h>

#include "kvm_util.h"
#include "processor.h"
#include "svm_util.h"
#include "test_util.h"
#include "vmx.h"

/* In a page table of its own, and used by nothing but L2's string instructions. */
#define TEST_GVA		0xc0000000ul
#define TEST_PORT		0x2000

#define OUT_BYTE		0x5a
#define IN_BYTE			0xa5

/* L0 emulates both.  L1 does not intercept I/O. */
static void l2_guest_code(void)
{
	void *buf = (void *)TEST_GVA;

	asm volatile("outsb" : "+S"(buf) : "d"((u16)TEST_PORT) : "memory");

	buf = (void *)TEST_GVA;
	asm volatile("insb" : "+D"(buf) : "d"((u16)TEST_PORT) : "memory");

	/* Exit to L1 and never come back.  */
	vmcall();
}

static void l1_vmx_code(struct vmx_pages *vmx)
{
	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	GUEST_ASSERT(load_vmcs(vmx));

	prepare_vmcs(vmx, l2_guest_code);

	GUEST_ASSERT(!vmlaunch());
	GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), EXIT_REASON_VMCALL);
	GUEST_DONE();
}

static void l1_svm_code(struct svm_test_data *svm)
{
	generic_svm_setup(svm, l2_guest_code);

	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_ASSERT_EQ(svm->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	GUEST_DONE();
}

static void l1_guest_code(void *data)
{
	if (this_cpu_has(X86_FEATURE_VMX))
		l1_vmx_code(data);
	else
		l1_svm_code(data);
}

/*
 * L1 and L2 use the same page tables at the same gpas, except for the page table
 * that maps TEST_GVA.  L2 has a copy of that one at the same L2 gpa, but at another
 * L1 gpa.  Nothing writes to the original, because L1 does not use TEST_GVA.
 */
static struct page_table {
	gpa_t l1_gpa;
	gpa_t l2_gpa;
	u64 *pte;
} table;

/* The page at TEST_GVA. */
static u8 *data;

static struct kvm_vm *create_vm(struct kvm_vcpu **vcpu)
{
	gva_t nested_gva, data_gva;
	struct kvm_vm *vm;
	u64 *pte, *tdp_pte;

	vm = vm_create_with_one_vcpu(vcpu, l1_guest_code);
	vm_enable_tdp(vm);

	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(vm, &nested_gva);
	else
		vcpu_alloc_svm(vm, &nested_gva);
	vcpu_args_set(*vcpu, 1, nested_gva);

	data_gva = vm_alloc_page(vm);
	data = addr_gva2hva(vm, data_gva);
	virt_map(vm, TEST_GVA, addr_gva2gpa(vm, data_gva), 1);

	pte = vm_get_pte(vm, TEST_GVA);
	*pte &= ~(PTE_ACCESSED_MASK(&vm->mmu) | PTE_DIRTY_MASK(&vm->mmu));
	table.l2_gpa = align_down(addr_hva2gpa(vm, pte), PAGE_SIZE);
	table.l1_gpa = vm_alloc_page_table(vm);
	table.pte = addr_gpa2hva(vm, table.l1_gpa) + (uintptr_t)pte % PAGE_SIZE;
	memcpy(addr_gpa2hva(vm, table.l1_gpa), addr_gpa2hva(vm, table.l2_gpa),
	       PAGE_SIZE);

	tdp_identity_map_default_memslots(vm);
	tdp_pte = tdp_get_pte(vm, table.l2_gpa);
	*tdp_pte = (*tdp_pte & ~PHYSICAL_PAGE_MASK) | table.l1_gpa;

	vm_mem_region_set_flags(vm, 0, KVM_MEM_LOG_DIRTY_PAGES);
	return vm;
}

static u8 *run_until_io(struct kvm_vcpu *vcpu, int direction)
{
	struct kvm_run *run = vcpu->run;
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);

	TEST_ASSERT_EQ(run->io.port, TEST_PORT);
	TEST_ASSERT_EQ(run->io.direction, direction);
	TEST_ASSERT_EQ(run->io.size, 1);
	TEST_ASSERT_EQ(run->io.count, 1);
	return (u8 *)run + run->io.data_offset;
}

static void run_until_done(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	switch (get_ucall(vcpu, &uc)) {
	case UCALL_DONE:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		/* NOT REACHED */
	default:
		TEST_FAIL("Unknown ucall %lu", uc.cmd);
	}
}

static void check_pte(struct kvm_vm *vm, bool accessed, bool dirty)
{
	TEST_ASSERT_EQ(!!(*table.pte & PTE_ACCESSED_MASK(&vm->mmu)), accessed);
	TEST_ASSERT_EQ(!!(*table.pte & PTE_DIRTY_MASK(&vm->mmu)), dirty);
}

static void check_dirty_log(struct kvm_vm *vm, const char *bit)
{
	struct userspace_mem_region *region = memslot2region(vm, 0);
	gpa_t base = region->region.guest_phys_addr;
	bool l1_dirty, l2_dirty;
	unsigned long *bmap;

	bmap = bitmap_zalloc(region->region.memory_size / PAGE_SIZE);
	kvm_vm_get_dirty_log(vm, 0, bmap);
	l1_dirty = test_bit((table.l1_gpa - base) / PAGE_SIZE, bmap);
	l2_dirty = test_bit((table.l2_gpa - base) / PAGE_SIZE, bmap);
	free(bmap);

	TEST_ASSERT(l1_dirty && !l2_dirty,
		    "KVM set the %s bit: L1's gfn is %s, L2's gfn is %s", bit,
		    l1_dirty ? "dirty" : "incorrectly clean",
		    l2_dirty ? "incorrectly dirty" : "clean");
}

int main(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u8 *io;

	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM));
	TEST_REQUIRE(kvm_cpu_has_tdp());

	vm = create_vm(&vcpu);
	check_pte(vm, false, false);

	*data = OUT_BYTE;
	io = run_until_io(vcpu, KVM_EXIT_IO_OUT);
	TEST_ASSERT_EQ(*io, OUT_BYTE);
	check_pte(vm, true, false);
	check_dirty_log(vm, "accessed");

	/* KVM writes to memory only once it has the byte. */
	io = run_until_io(vcpu, KVM_EXIT_IO_IN);
	*io = IN_BYTE;
	check_pte(vm, true, false);

	run_until_done(vcpu);
	TEST_ASSERT_EQ(*data, IN_BYTE);
	check_pte(vm, true, true);
	check_dirty_log(vm, "dirty");

	kvm_vm_free(vm);
	return 0;
}
