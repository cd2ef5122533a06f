// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas and guest memory: private memory, the dirty log and the dirty ring,
 * userfaultfd, memory that is not present.
 */
#include <pthread.h>

#include <linux/bitmap.h>

#include <asm/barrier.h>

#include "mem_area_fixture.h"
#include "uffd_page.h"

#define RING_ENTRIES	1024

/* Memory attributes decide what is shared. */
TEST(private)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	struct area_test test = {};
	struct kvm_x86_msr_op *op;
	struct kvm_vcpu *vcpu;
	u32 msr;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "No VM with private memory");

	test.vm = vm_create_shape_with_one_vcpu(shape, &test.vcpu, guest_area_code);
	vcpu = test.vcpu;
	vcpu_args_set(vcpu, 1, 0);
	vcpu_set_cpuid_feature(vcpu, X86_FEATURE_KVM_MEM_AREA);
	vm_userspace_mem_region_add(test.vm, VM_MEM_SRC_ANONYMOUS, WINDOW_GPA, AREA_SLOT,
				    WINDOW_PAGES, KVM_MEM_GUEST_MEMFD);
	test.mem = addr_gpa2hva(test.vm, WINDOW_GPA);
	enable_exits(test.vm, 1);

	/* The descriptor. */
	vm_mem_set_private(test.vm, DESC_GPA, PAGE_SIZE);
	for (msr = REGISTER; msr <= UNREGISTER; msr++) {
		set_desc_at(&test, DESC_GPA, STEAL_GPA, 64, STEAL_TIME);
		TEST_ASSERT_EQ(do_wrmsr(vcpu, false, msr, DESC_GPA), GP_VECTOR);
		TEST_ASSERT_EQ(result_at(&test, DESC_GPA), NO_ANSWER);
	}
	vm_mem_set_shared(test.vm, DESC_GPA, PAGE_SIZE);
	TEST_ASSERT_EQ(area_command(&test, false, REGISTER, STEAL_GPA, 64, STEAL_TIME), 0);

	/* The area, and one page of it. */
	vm_mem_set_private(test.vm, AREA_GPA, PAGE_SIZE);
	TEST_ASSERT_EQ(area_command(&test, false, REGISTER, STEAL_GPA, 64, STEAL_TIME),
		       KVM_MEM_AREA_BAD_ADDRESS);
	TEST_ASSERT_EQ(area_command(&test, false, REGISTER, AREA_GPA - 3 * PAGE_SIZE,
				    BIT(20), VMM_TYPE), KVM_MEM_AREA_BAD_ADDRESS);
	TEST_ASSERT_EQ(area_command(&test, false, REGISTER, AREA_GPA - PAGE_SIZE,
				    PAGE_SIZE + 1, VMM_TYPE), KVM_MEM_AREA_BAD_ADDRESS);
	op = start_command(&test, false, REGISTER, AREA_GPA - PAGE_SIZE, PAGE_SIZE, VMM_TYPE);
	op->result = 0;
	TEST_ASSERT_EQ(finish_command(vcpu), 0);
	/* It can be taken back. */
	TEST_ASSERT_EQ(area_command(&test, false, UNREGISTER, STEAL_GPA, 64, STEAL_TIME), 0);

	/* The descriptor becomes private while the VMM is asked. */
	op = start_command(&test, false, UNREGISTER, AREA_GPA, PAGE_SIZE, VMM_TYPE);
	op->result = 0;
	vm_mem_set_private(test.vm, DESC_GPA, PAGE_SIZE);
	TEST_ASSERT_EQ(finish_command(vcpu), GP_VECTOR);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), NO_ANSWER);
	kvm_vm_free(test.vm);
}

static bool is_dirty(struct area_test *test, gpa_t gpa)
{
	unsigned long *log = bitmap_zalloc(WINDOW_PAGES);
	bool dirty;

	kvm_vm_get_dirty_log(test->vm, AREA_SLOT, log);
	dirty = test_bit((gpa - WINDOW_GPA) / PAGE_SIZE, log);
	free(log);
	return dirty;
}

/* KVM logs the result, when it writes it. */
TEST_F(area, dirty_log)
{
	struct area_test *test = &self->test;
	struct kvm_x86_msr_op *op;

	enable_exits(test->vm, 1);
	set_area_slot(test, AREA_SLOT, KVM_MEM_LOG_DIRTY_PAGES, WINDOW_GPA, WINDOW_SIZE);
	is_dirty(test, DESC_GPA);
	TEST_ASSERT_EQ(area_command(test, variant->emulate, REGISTER, AREA_GPA, 1, 99), 1);
	TEST_ASSERT(is_dirty(test, DESC_GPA), "The result is not logged");
	TEST_ASSERT(!is_dirty(test, DESC_GPA), "It is logged twice");

	op = start_command(test, variant->emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
	op->result = 0;
	TEST_ASSERT(!is_dirty(test, DESC_GPA), "It is logged before it is written");
	TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
	TEST_ASSERT(is_dirty(test, DESC_GPA), "The VMM's result is not logged");

	TEST_ASSERT_EQ(area_command(test, variant->emulate, REGISTER, AREA_GPA, 12,
				    WALL_CLOCK), 0);
	TEST_ASSERT(is_dirty(test, AREA_GPA), "The wall clock is not logged");

	/* #GP writes nothing. */
	is_dirty(test, DESC_GPA);
	TEST_ASSERT_EQ(do_wrmsr(test->vcpu, variant->emulate, REGISTER, DESC_GPA + 8), GP_VECTOR);
	TEST_ASSERT(!is_dirty(test, DESC_GPA), "#GP is logged");
}

/* Returns whether the ring has the page with the descriptor, and empties it. */
static bool ring_has(struct kvm_vcpu *vcpu)
{
	struct kvm_dirty_gfn *gfns = vcpu_map_dirty_ring(vcpu);
	static u32 next;
	bool found = false;
	u32 n = 0;

	for (;; n++) {
		struct kvm_dirty_gfn *gfn = &gfns[next % RING_ENTRIES];

		/* Pairs with KVM's store, after it has written the entry. */
		if (smp_load_acquire(&gfn->flags) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		if (gfn->slot == AREA_SLOT && gfn->offset == 0)
			found = true;
		/* KVM may reuse the entry only after it has been read. */
		smp_store_release(&gfn->flags, KVM_DIRTY_GFN_F_RESET);
		next++;
	}
	TEST_ASSERT_EQ(kvm_vm_reset_dirty_ring(vcpu->vm), n);
	return found;
}

TEST(dirty_ring)
{
	struct area_test test = {};
	struct kvm_x86_msr_op *op;

	if (!kvm_has_cap(KVM_CAP_DIRTY_LOG_RING))
		SKIP(return, "No dirty ring");

	test.vm = vm_create(1);
	vm_enable_dirty_ring(test.vm, RING_ENTRIES * sizeof(struct kvm_dirty_gfn));
	test.vcpu = vm_vcpu_add(test.vm, 0, guest_area_code);
	vcpu_args_set(test.vcpu, 1, 0);
	kvm_arch_vm_finalize_vcpus(test.vm);
	vcpu_set_cpuid_feature(test.vcpu, X86_FEATURE_KVM_MEM_AREA);
	test.mem = kvm_mmap(WINDOW_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1);
	set_area_slot(&test, AREA_SLOT, KVM_MEM_LOG_DIRTY_PAGES, WINDOW_GPA, WINDOW_SIZE);
	enable_exits(test.vm, 1);

	TEST_ASSERT_EQ(area_command(&test, false, REGISTER, AREA_GPA, 1, 99), 1);
	TEST_ASSERT(ring_has(test.vcpu), "The result is not in the ring");
	op = start_command(&test, false, REGISTER, AREA_GPA, 4096, VMM_TYPE);
	op->result = 0;
	TEST_ASSERT(!ring_has(test.vcpu), "It is in the ring before it is written");
	TEST_ASSERT_EQ(finish_command(test.vcpu), 0);
	TEST_ASSERT(ring_has(test.vcpu), "The VMM's result is not in the ring");
	area_free(&test);
}

/* Memory that is not present comes in, as for any access of KVM. */
TEST_F(area, not_present)
{
	struct area_test *test = &self->test;
	int i;

	for (i = 0; i < 4; i++) {
		madvise(area_hva(test, AREA_GPA), PAGE_SIZE, MADV_DONTNEED);
		TEST_ASSERT_EQ(area_command(test, variant->emulate, REGISTER, STEAL_GPA, 64,
					    STEAL_TIME), 0);
		/* Zeroes are a descriptor of no size. */
		madvise(test->mem, PAGE_SIZE, MADV_DONTNEED);
		TEST_ASSERT_EQ(do_wrmsr(test->vcpu, variant->emulate, REGISTER, DESC_GPA), 0);
		TEST_ASSERT_EQ(result_at(test, DESC_GPA), KVM_MEM_AREA_BAD_SIZE);
	}
}

static void *run_wrmsr(void *arg)
{
	struct area_test *test = arg;

	TEST_ASSERT_EQ(do_wrmsr(test->vcpu, false, REGISTER, DESC_GPA), 0);
	return NULL;
}

/* KVM waits for the descriptor, and reads what arrives. */
TEST(userfaultfd)
{
	struct kvm_memory_area *desc;
	struct area_test test;
	pthread_t thread;
	void *page;
	int uffd;

	area_init(&test, 1);
	page = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uffd = uffd_open(test.mem, PAGE_SIZE);
	pthread_create(&thread, NULL, run_wrmsr, &test);
	uffd_await_fault(uffd);
	desc = page;
	*desc = (struct kvm_memory_area) { STEAL_GPA, 64, STEAL_TIME, NO_ANSWER };
	uffd_copy(uffd, test.mem, page);
	pthread_join(thread, NULL);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), 0);
	TEST_ASSERT_EQ(vcpu_get_msr(test.vcpu, MSR_KVM_STEAL_TIME), STEAL_GPA | 1);
	close(uffd);
	area_free(&test);
}

/* It waits for the area, too, before it registers that. */
TEST(userfaultfd_area)
{
	struct area_test test;
	pthread_t thread;
	void *page;
	int uffd;

	area_init(&test, 1);
	page = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	set_desc_at(&test, DESC_GPA, STEAL_GPA, 64, STEAL_TIME);
	uffd = uffd_open(area_hva(&test, AREA_GPA), PAGE_SIZE);
	pthread_create(&thread, NULL, run_wrmsr, &test);
	uffd_await_fault(uffd);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), NO_ANSWER);
	uffd_copy(uffd, area_hva(&test, AREA_GPA), page);
	pthread_join(thread, NULL);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), 0);
	TEST_ASSERT_EQ(vcpu_get_msr(test.vcpu, MSR_KVM_STEAL_TIME), STEAL_GPA | 1);
	close(uffd);
	area_free(&test);
}

static void *run_finish(void *arg)
{
	struct area_test *test = arg;

	TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
	return NULL;
}

/* And for the place of the result, when the VMM has answered. */
TEST(userfaultfd_result)
{
	struct area_test test;
	pthread_t thread;
	void *page;
	int uffd;

	area_init(&test, 1);
	enable_exits(test.vm, 1);
	page = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	start_command(&test, false, REGISTER, AREA_GPA, 4096, VMM_TYPE)->result = 0x91;
	madvise(test.mem, PAGE_SIZE, MADV_DONTNEED);
	uffd = uffd_open(test.mem, PAGE_SIZE);
	pthread_create(&thread, NULL, run_finish, &test);
	uffd_await_fault(uffd);
	uffd_copy(uffd, test.mem, page);
	pthread_join(thread, NULL);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), 0x91);
	close(uffd);
	area_free(&test);
}

/* The same where only writes fault. */
TEST(userfaultfd_protected)
{
	struct area_test test;
	pthread_t thread;
	int uffd;

	if (!uffd_can_protect())
		SKIP(return, "No write protection");

	area_init(&test, 1);
	set_desc_at(&test, DESC_GPA, STEAL_GPA, 64, STEAL_TIME);
	uffd = uffd_open_protected(test.mem, PAGE_SIZE);
	pthread_create(&thread, NULL, run_wrmsr, &test);
	uffd_await_fault(uffd);
	/* Nothing is registered while it is open whether the result has a place. */
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), NO_ANSWER);
	uffd_unprotect(uffd, test.mem, PAGE_SIZE);
	pthread_join(thread, NULL);
	TEST_ASSERT_EQ(result_at(&test, DESC_GPA), 0);
	close(uffd);
	area_free(&test);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA));

	return test_harness_run(argc, argv);
}
