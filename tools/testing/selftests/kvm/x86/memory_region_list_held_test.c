// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST beside readers that have found memslots from
 * before the list, or from between its two swaps.
 *
 * A vCPU that waits for memory from userfaultfd inside of kvm->srcu holds the list
 * up until everything is in place.
 */
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include <linux/sizes.h>

#include "held_update.h"
#include "hyperv.h"
#include "kvm_util.h"
#include "memory_region_list.h"
#include "nested_guest.h"
#include "page_table.h"
#include "processor.h"
#include "test_util.h"
#include "uffd_page.h"

/* Two pages that the vCPUs wait for. */
#define WAIT_GPA		0xc0000000ul
#define WAIT_SLOT		20
/* Each is in a page table of its own. */
#define WAIT_GVA(id)		(WAIT_GPA + (id) * SZ_2M)

/* The page tables that lists replace. */
#define TABLE_GPA		(WAIT_GPA + SZ_1M)
#define TABLE_SLOT		21
#define TABLE_GVA		0x140000000ul

#define PARK_GPA		0x100000000ul

/* Seconds after which a thread is stuck. */
#define PATIENCE		20

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpus[2];
/* 0, or the errno of KVM_RUN. */
static int run_err[2];
static struct held_update update;

/* The two pages. */
static u8 *mem;
static int uffd;
/* Not the zero page, which a write would replace at once. */
static u8 zeros[PAGE_SIZE];

static void guest_wait(gva_t gva)
{
	WRITE_ONCE(*(u64 *)gva, 1);
	GUEST_DONE();
}

static void sig_ipi(int sig)
{
}

static void set_slot(u32 slot, u32 flags, gpa_t gpa, void *page)
{
	vm_set_user_memory_region(vm, slot, flags, gpa, PAGE_SIZE, page);
}

static void create_waiting_guest(bool zap_all)
{
	int i;

	vm = vm_create_with_vcpus(2, guest_wait, vcpus);
	if (!zap_all)
		vm_enable_cap(vm, KVM_CAP_DISABLE_QUIRKS2,
			      KVM_X86_QUIRK_SLOT_ZAP_ALL);
	mem = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(vm, WAIT_SLOT, 0, WAIT_GPA, 2 * PAGE_SIZE, mem);
	for (i = 0; i < 2; i++) {
		virt_map(vm, WAIT_GVA(i), WAIT_GPA + i * PAGE_SIZE, 1);
		vcpu_args_set(vcpus[i], 1, WAIT_GVA(i));
	}
	uffd = uffd_open(mem, 2 * PAGE_SIZE);
	update = (struct held_update) { .vm = vm };
}

static void free_waiting_guest(void)
{
	close(uffd);
	kvm_vm_free(vm);
	kvm_munmap(mem, 2 * PAGE_SIZE);
}

static void *vcpu_thread(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	run_err[vcpu->id] = __vcpu_run(vcpu) ? errno : 0;
	return NULL;
}

/* Whether the guest has accessed its memory, and has ended. */
static bool is_done(int id)
{
	return !run_err[id] && get_ucall(vcpus[id], NULL) == UCALL_DONE;
}

/*
 * Has vCPU 0 wait for the first page, and so hold up the update.  Returns false if
 * the update does not wait for it.
 */
static bool start_held_update(pthread_t *holder)
{
	end_grace_periods(vm);
	kvm_pthread_create(holder, NULL, vcpu_thread, vcpus[0]);
	uffd_await_fault(uffd);

	held_update_start(&update);
	return held_update_await(&update, 0);
}

/* Returns false if vCPU 0, to which its page has come, did not end well. */
static bool end_held_update(pthread_t holder)
{
	kvm_pthread_join(update.thread, NULL);
	kvm_pthread_join(holder, NULL);
	return is_done(0);
}

/*
 * Runs @code from a moment between the two swaps of the update to one after the
 * second, in which it waits for the second page, with @contents.  Returns false if
 * it does not come to that.
 */
static bool run_between_swaps(void *contents, void *(*code)(void *), void *arg)
{
	struct timespec deadline;
	pthread_t holder, thread;
	bool good;

	good = start_held_update(&holder);
	/* A reader that begins too early would hold up the first swap, too. */
	usleep(100000);
	kvm_pthread_create(&thread, NULL, code, arg);
	uffd_await_fault(uffd);

	uffd_copy(uffd, mem, zeros);
	good &= held_update_await(&update, 1);
	uffd_copy(uffd, mem + PAGE_SIZE, contents);

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += PATIENCE;
	if (pthread_timedjoin_np(thread, NULL, &deadline)) {
		ksft_print_msg("stuck\n");
		good = false;
		pthread_kill(thread, SIGUSR1);
		kvm_pthread_join(thread, NULL);
	}
	return end_held_update(holder) && good;
}

/*
 * A vCPU has walked through a page table in a slot that is being deleted.  When the
 * vCPU continues, the slot is gone, and KVM must not shadow the page table.
 */
static bool delete_page_table(bool zap_all)
{
	const gva_t gva = WAIT_GVA(1);
	bool good;
	u8 *table;

	create_waiting_guest(zap_all);
	table = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memcpy(table, page_of(vm_get_table_entry(vm, gva, PG_LEVEL_4K)), PAGE_SIZE);
	point_to(vm_get_table_entry(vm, gva, PG_LEVEL_2M), TABLE_GPA);
	set_slot(TABLE_SLOT, 0, TABLE_GPA, table);

	held_update_add(&update, region_delete(TABLE_SLOT));
	good = run_between_swaps(zeros, vcpu_thread, vcpus[1]);
	/* The guest cannot continue without its page table. */
	good &= !is_done(1);
	free_waiting_guest();
	kvm_munmap(table, PAGE_SIZE);
	return good;
}

/*
 * A vCPU reads a page table in a slot that is being replaced.  The page table that
 * the old entry names is gone after that, but the new entry names another one.
 */
static bool replace_page_tables(bool zap_all)
{
	static u8 old_directory[PAGE_SIZE] __aligned(PAGE_SIZE);
	static u8 directory[PAGE_SIZE] __aligned(PAGE_SIZE);
	static u8 old_table[PAGE_SIZE] __aligned(PAGE_SIZE);
	const gva_t gva = TABLE_GVA;
	bool good;
	u64 *pde;

	create_waiting_guest(zap_all);
	virt_map(vm, gva, addr_gva2gpa(vm, vm_alloc_page(vm)), 1);
	vcpu_args_set(vcpus[1], 1, gva);

	memcpy(old_table, page_of(vm_get_table_entry(vm, gva, PG_LEVEL_4K)),
	       PAGE_SIZE);
	pde = vm_get_table_entry(vm, gva, PG_LEVEL_2M);
	memcpy(directory, page_of(pde), PAGE_SIZE);
	point_to(pde, TABLE_GPA + PAGE_SIZE);
	memcpy(old_directory, page_of(pde), PAGE_SIZE);
	point_to(vm_get_table_entry(vm, gva, PG_LEVEL_1G), TABLE_GPA);
	set_slot(TABLE_SLOT, 0, TABLE_GPA, mem + PAGE_SIZE);
	set_slot(TABLE_SLOT + 1, 0, TABLE_GPA + PAGE_SIZE, old_table);

	held_update_add(&update, region_delete(TABLE_SLOT));
	held_update_add(&update, region_delete(TABLE_SLOT + 1));
	held_update_add(&update, region_set(TABLE_SLOT + 2, 0, TABLE_GPA,
					    PAGE_SIZE, directory));
	good = run_between_swaps(old_directory, vcpu_thread, vcpus[1]);
	if (!is_done(1))
		ksft_print_msg("vCPU 1 died: errno %d, %s\n", run_err[1],
			       exit_reason_str(vcpus[1]->run->exit_reason));
	good &= is_done(1);
	free_waiting_guest();
	return good;
}

static void *set_vp_assist_page(void *unused)
{
	/* Fails in the end, as KVM has no slot for its further accesses. */
	_vcpu_set_msr(vcpus[1], HV_X64_MSR_VP_ASSIST_PAGE,
		      TABLE_GPA | HV_X64_MSR_VP_ASSIST_PAGE_ENABLE);
	return NULL;
}

/* KVM writes to a slot that is being moved.  The log that moves along has that. */
static bool move_logged_slot(bool zap_all)
{
	const u32 flags = KVM_MEM_LOG_DIRTY_PAGES;
	unsigned long log = 0;
	bool good;

	create_waiting_guest(zap_all);
	set_slot(TABLE_SLOT, flags, TABLE_GPA, mem + PAGE_SIZE);
	held_update_add(&update, region_set(TABLE_SLOT, flags, PARK_GPA,
					    PAGE_SIZE, mem + PAGE_SIZE));
	good = run_between_swaps(zeros, set_vp_assist_page, NULL);
	kvm_vm_get_dirty_log(vm, TABLE_SLOT, &log);
	if (log != 1)
		ksft_print_msg("the log is 0x%lx\n", log);
	free_waiting_guest();
	return good && log == 1;
}

static void *prefault(void *err)
{
	struct kvm_pre_fault_memory range = {
		.gpa = WAIT_GPA + PAGE_SIZE,
		.size = PAGE_SIZE,
	};

	*(int *)err = __vcpu_ioctl(vcpus[1], KVM_PRE_FAULT_MEMORY, &range) ?
		      errno : 0;
	return NULL;
}

/* The deletion makes the page tables obsolete that are being prefaulted. */
static bool delete_beside_prefault(bool zap_all)
{
	int err = -1;
	bool good;

	create_waiting_guest(zap_all);
	set_slot(TABLE_SLOT, 0, TABLE_GPA, mem);
	held_update_add(&update, region_delete(TABLE_SLOT));
	good = run_between_swaps(zeros, prefault, &err);
	if (err)
		ksft_print_msg("KVM_PRE_FAULT_MEMORY: errno %d\n", err);
	free_waiting_guest();
	return good && !err;
}

/*
 * A vCPU has found a slot whose flags change, and waits.  The first shadow root of
 * the VM then gives rmaps to all slots in the lists, to which this one no longer
 * belongs.
 */
static bool change_flags_beside_first_shadow_root(bool zap_all)
{
	struct kvm_vcpu *nested;
	pthread_t holder;
	bool good;

	create_waiting_guest(zap_all);
	nested = vm_vcpu_add_nested(vm, ARRAY_SIZE(vcpus));
	held_update_add(&update, region_set(WAIT_SLOT, KVM_MEM_LOG_DIRTY_PAGES,
					    WAIT_GPA, 2 * PAGE_SIZE, mem));
	good = start_held_update(&holder);

	vcpu_run(nested);
	good &= get_ucall(nested, NULL) == UCALL_DONE;

	uffd_copy(uffd, mem, zeros);
	good &= end_held_update(holder);
	free_waiting_guest();
	return good;
}

/* Page tables are only shadowed without two-dimensional paging. */
static bool has_shadow_paging(void)
{
	return !kvm_is_tdp_enabled();
}

static bool has_tdp(void)
{
	return kvm_is_tdp_enabled();
}

static const struct test {
	const char *name;
	bool (*run)(bool zap_all);
	bool (*can_run)(void);
} tests[] = {
	{ "KVM writes to a logged slot that moves", move_logged_slot },
	{ "flags change beside the first shadow root",
	  change_flags_beside_first_shadow_root, kvm_has_nested_tdp },
	{ "deletion beside a prefault", delete_beside_prefault, has_tdp },
	{ "deletion of a page table", delete_page_table, has_shadow_paging },
	{ "replacement of page tables", replace_page_tables, has_shadow_paging },
};

int main(int argc, char *argv[])
{
	struct sigaction sa = { .sa_handler = sig_ipi };
	const struct test *test;
	int quirks, zap_all;
	const char *quirk;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	sigaction(SIGUSR1, &sa, NULL);
	quirks = kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL;

	ksft_print_header();
	ksft_set_plan((quirks ? 2 : 1) * ARRAY_SIZE(tests));

	for (zap_all = 1; zap_all >= (quirks ? 0 : 1); zap_all--) {
		quirk = zap_all ? "" : ", slot zap quirk disabled";
		for (test = tests; test < tests + ARRAY_SIZE(tests); test++) {
			if (test->can_run && !test->can_run())
				ksft_test_result_skip("%s%s\n", test->name, quirk);
			else
				ksft_test_result(test->run(zap_all), "%s%s\n",
						 test->name, quirk);
		}
	}

	ksft_finished();
}
