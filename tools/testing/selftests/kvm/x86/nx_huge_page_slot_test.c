// SPDX-License-Identifier: GPL-2.0-only
/*
 * Recovery of an NX huge page whose memslot is gone.
 *
 * If nx_huge_pages is on, KVM splits a huge page that a guest executes from.  The
 * recovery thread later zaps the page table, so that KVM can map the huge page
 * again.  Without KVM_X86_QUIRK_SLOT_ZAP_ALL, deleting the memslot zaps only the
 * leaf SPTEs.  The page table stays, and the recovery thread must cope with not
 * finding a memslot for it.  It looks for one if any memslot is logged.
 */
#include <stdlib.h>
#include <string.h>

#include "attr_util.h"
#include "kmsg.h"
#include "kselftest.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

#define HPAGE_SLOT	10
#define LOGGED_SLOT	11
#define HPAGE_GPA	(4ul << 30)
#define LOGGED_GPA	(5ul << 30)
#define HPAGE_SIZE	PG_SIZE_2M
#define RETURN_OPCODE	0xc3

#define PARAM_DIR	"/sys/module/kvm/parameters/"

static struct param {
	const char *path;
	const char *value;
	char saved[32];
	bool set;
} params[] = {
	/* No recovery before the memslot is gone. */
	{ .path = PARAM_DIR "nx_huge_pages_recovery_ratio", .value = "0" },
	{ .path = PARAM_DIR "nx_huge_pages_recovery_period_ms", .value = "10" },
	{ .path = PARAM_DIR "nx_huge_pages", .value = "force" },
};

static void restore_params(void)
{
	struct param *param;

	for (param = params; param < params + ARRAY_SIZE(params); param++)
		if (param->set)
			write_attr(param->path, param->saved);
}

static void set_params(void)
{
	struct param *param;

	atexit(restore_params);
	for (param = params; param < params + ARRAY_SIZE(params); param++) {
		__TEST_REQUIRE(read_attr(param->path, param->saved,
					 sizeof(param->saved)),
			       "Cannot read %s", param->path);
		__TEST_REQUIRE(write_attr(param->path, param->value),
			       "Cannot set %s, errno %d", param->path, errno);
		param->set = true;
	}
}

static void guest_code(void)
{
	((void (*)(void))HPAGE_GPA)();
	GUEST_DONE();
}

int main(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int kmsg, i;

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL);
	TEST_REQUIRE(thp_configured());

	ksft_print_header();
	kmsg = kmsg_open();
	set_params();
	ksft_set_plan(1);

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	vm_enable_cap(vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL);

	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, LOGGED_GPA,
				    LOGGED_SLOT, 1, KVM_MEM_LOG_DIRTY_PAGES);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS_THP, HPAGE_GPA,
				    HPAGE_SLOT, HPAGE_SIZE / PAGE_SIZE, 0);
	/* Shadow paging maps huge pages only where the guest does. */
	virt_map_level(vm, HPAGE_GPA, HPAGE_GPA, HPAGE_SIZE, PG_LEVEL_2M);
	memset(addr_gpa2hva(vm, HPAGE_GPA), RETURN_OPCODE, HPAGE_SIZE);

	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_DONE);
	__TEST_REQUIRE(vm_get_stat(vm, nx_lpage_splits), "Got no huge page");

	vm_mem_region_delete(vm, HPAGE_SLOT);

	TEST_ASSERT(write_attr(params[0].path, "1"),
		    "Cannot start the recovery, errno %d", errno);
	for (i = 0; i < 30000 && vm_get_stat(vm, nx_lpage_splits); i++)
		usleep(1000);
	TEST_ASSERT_EQ(vm_get_stat(vm, nx_lpage_splits), 0);

	/* The recovery holds kvm->srcu, so that this update waits for it. */
	vm_mem_region_delete(vm, LOGGED_SLOT);
	ksft_test_result(!kmsg_has_kvm_warning(kmsg), "recovery without a memslot\n");

	kvm_vm_free(vm);
	ksft_finished();
}
