// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vCPU synchronises a shadow page that another one has created from newer
 * memslots.
 *
 * Two page directory entries name the same page table.  It maps X, which has no
 * memslot at first, and Y, whose memory userfaultfd provides.  The first vCPU
 * accesses Y and waits for its memory.  Meanwhile X gets a memslot.  The second vCPU
 * accesses X and then writes to the page table, which leaves its shadow page out of
 * sync.  When Y's memory has come, the first vCPU reaches the shadow page through
 * the other directory entry and synchronises it, with an SPTE for X in a memslot
 * that did not exist when its page fault began.
 *
 * Needs a guest on shadow page tables, i.e. KVM without NPT or EPT.
 */
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/sizes.h>

#include "kselftest.h"
#include "kvm_util.h"
#include "page_table.h"
#include "processor.h"
#include "srcu_readers.h"
#include "test_util.h"
#include "ucall_common.h"
#include "uffd_page.h"

#define X_SLOT		10
#define Y_SLOT		11
#define X_GPA		0x100000000ul
#define Y_GPA		0x110000000ul
/* X and Y through one directory entry, through the other, and their page table. */
#define XY_GVA		0x200000000ul
#define ALIAS_GVA	(XY_GVA + SZ_2M)
#define TABLE_GVA	0x300000000ul

static struct kvm_vm *vm;
static u8 *x;
static pid_t creator_tid;

static void guest_access_y(void)
{
	READ_ONCE(*(u64 *)(ALIAS_GVA + PAGE_SIZE));
	GUEST_DONE();
}

static void guest_access_x(void)
{
	u64 *entry = (u64 *)TABLE_GVA;

	WRITE_ONCE(*(u64 *)XY_GVA, 1);
	/* This makes the page non-executable, so KVM must check the SPTE again. */
	WRITE_ONCE(*entry, READ_ONCE(*entry) | BIT_ULL(63));
	GUEST_DONE();
}

static void *run_until_done(void *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_DONE);
	return NULL;
}

static void *create_x(void *unused)
{
	WRITE_ONCE(creator_tid, syscall(__NR_gettid));
	vm_set_user_memory_region(vm, X_SLOT, 0, X_GPA, PAGE_SIZE, x);
	return NULL;
}

int main(void)
{
	static u8 contents[PAGE_SIZE];
	pthread_t waiter, creator;
	struct kvm_vcpu *vcpus[2];
	u64 unsync, *pde;
	int uffd;
	u8 *y;

	TEST_REQUIRE(!kvm_is_tdp_enabled());
	ksft_print_header();
	ksft_set_plan(1);

	vm = vm_create_with_vcpus(2, guest_access_y, vcpus);
	vcpu_arch_set_entry_point(vcpus[1], guest_access_x);
	x = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	y = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uffd = uffd_open(y, PAGE_SIZE);
	vm_set_user_memory_region(vm, Y_SLOT, 0, Y_GPA, PAGE_SIZE, y);
	virt_map(vm, XY_GVA, X_GPA, 1);
	virt_map(vm, XY_GVA + PAGE_SIZE, Y_GPA, 1);
	pde = vm_get_table_entry(vm, XY_GVA, PG_LEVEL_2M);
	*vm_get_table_entry(vm, ALIAS_GVA, PG_LEVEL_2M) = *pde;
	virt_map(vm, TABLE_GVA, *pde & PHYSICAL_PAGE_MASK, 1);

	kvm_pthread_create(&waiter, NULL, run_until_done, vcpus[0]);
	uffd_await_fault(uffd);
	kvm_pthread_create(&creator, NULL, create_x, NULL);
	while (!READ_ONCE(creator_tid) || !waits_for_readers(creator_tid))
		usleep(1000);

	run_until_done(vcpus[1]);
	unsync = vm_get_stat(vm, mmu_unsync);

	uffd_copy(uffd, y, contents);
	kvm_pthread_join(waiter, NULL);
	kvm_pthread_join(creator, NULL);

	/* Without an unsync shadow page, this would test nothing. */
	ksft_test_result(unsync && *x == 1,
			 "shadow page with an SPTE of a newer memslot\n");
	close(uffd);
	kvm_vm_free(vm);
	ksft_finished();
}
