// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY: the capability and the arguments.
 */
#include <stddef.h>

#include "map_memory_fixture.h"

kvm_static_assert(KVM_MAP_MEMORY == 0xC020AED5);
kvm_static_assert(sizeof(struct kvm_memory_mapping) == 32);
kvm_static_assert(offsetof(struct kvm_memory_mapping, base_gfn) == 0);
kvm_static_assert(offsetof(struct kvm_memory_mapping, nr_pages) == 8);
kvm_static_assert(offsetof(struct kvm_memory_mapping, flags) == 16);
kvm_static_assert(offsetof(struct kvm_memory_mapping, source) == 24);
kvm_static_assert(WRITE == 1 && EXEC == 2 && USER == 4 && PRIVATE == 8);

TEST_F(map, capability)
{
	TEST_ASSERT_EQ(kvm_check_cap(KVM_CAP_MAP_MEMORY), 1);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, KVM_CAP_MAP_MEMORY), 1);
}

TEST_F(map, arguments)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	const int bits = kvm_cpu_property(X86_PROPERTY_MAX_PHY_ADDR);
	const u64 nr_gfns = BIT_ULL(bits - PAGE_SHIFT);
	void *mem = new_mem(16), *source = new_pattern(16, 1);
	const struct kvm_memory_mapping good =
		memory_mapping(window_gpa(0), 16, 0, NULL);
	struct kvm_memory_mapping m;
	struct kvm_vcpu *no_cpuid;
	u64 pages;
	int i;

	set_slot(vm, SLOT, 0, 0, 16, mem);
	pages = vm_get_stat(vm, pages_4k);

/* Makes a call with good arguments, apart from what the statements change. */
#define ASSERT_EINVAL(...)						\
do {									\
	m = good;							\
	__VA_ARGS__;							\
	TEST_ASSERT_EQ(map_memory_once(vcpu, &m), EINVAL);		\
} while (0)

	for (i = 4; i < 64; i++) {
		m = good;
		m.flags = BIT_ULL(i);
		TEST_ASSERT_EQ(map_memory_once(vcpu, &m), EINVAL);
		m.flags |= WRITE | EXEC | USER;
		TEST_ASSERT_EQ(map_memory_once(vcpu, &m), EINVAL);
	}
	ASSERT_EINVAL(m.flags = PRIVATE);
	ASSERT_EINVAL(m.flags = PRIVATE, m.source = (uintptr_t)source);
	/* Also where there is no memslot. */
	ASSERT_EINVAL(m.flags = PRIVATE, m.base_gfn += 16);

	ASSERT_EINVAL(m.nr_pages = 0);
	ASSERT_EINVAL(m.nr_pages = 0, m.base_gfn = 0);
	ASSERT_EINVAL(m.nr_pages = 0, m.source = (uintptr_t)source);

	ASSERT_EINVAL(m.nr_pages = ~0ull);
	ASSERT_EINVAL(m.nr_pages = -m.base_gfn);
	ASSERT_EINVAL(m.nr_pages = -m.base_gfn + 16);
	ASSERT_EINVAL(m.nr_pages = 1ull << 52);
	ASSERT_EINVAL(m.base_gfn = ~0ull);
	ASSERT_EINVAL(m.base_gfn = ~0ull, m.nr_pages = 1);
	ASSERT_EINVAL(m.base_gfn = 1ull << 52);
	/* As bytes, these would wrap around to the slot. */
	ASSERT_EINVAL(m.base_gfn |= 1ull << 52);
	ASSERT_EINVAL(m.base_gfn |= 1ull << 63);

	ASSERT_EINVAL(m.base_gfn = nr_gfns);
	ASSERT_EINVAL(m.base_gfn = nr_gfns, m.nr_pages = 1);
	ASSERT_EINVAL(m.base_gfn = nr_gfns - 15);
	ASSERT_EINVAL(m.nr_pages = nr_gfns - m.base_gfn + 1);

	for (i = 1; i < PAGE_SIZE; i = 2 * i + 1)
		ASSERT_EINVAL(m.source = (uintptr_t)source + i);
	ASSERT_EINVAL(m.source = 1);
	ASSERT_EINVAL(m.source = -PAGE_SIZE, m.nr_pages = 2);
	ASSERT_EINVAL(m.source = -15 * PAGE_SIZE);
	ASSERT_EINVAL(m.source = PAGE_SIZE, m.base_gfn = 0, m.nr_pages = 1ull << 52);
#undef ASSERT_EINVAL

	/* None of these calls had an effect. */
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages);
	TEST_ASSERT(!is_present(mem), "Memory was allocated");

	/* The highest frames are valid, but have no memslot. */
	m = good;
	m.base_gfn = nr_gfns - 1;
	m.nr_pages = 1;
	TEST_ASSERT_EQ(map_memory_once(vcpu, &m), ENOENT);
	m.base_gfn = nr_gfns - 16;
	m.nr_pages = 16;
	TEST_ASSERT_EQ(map_memory_once(vcpu, &m), ENOENT);
	/* Memory up to there is not too large. */
	m = good;
	m.nr_pages = nr_gfns - m.base_gfn;
	TEST_ASSERT_EQ(map_memory_once(vcpu, &m), ENOENT);
	TEST_ASSERT_EQ(m.base_gfn, good.base_gfn + 16);

	/* Without CPUID entries, a vCPU has 36 physical address bits. */
	no_cpuid = __vm_vcpu_add(vm, 1);
	m = good;
	TEST_ASSERT_EQ(map_memory_once(no_cpuid, &m), 0);
	m = memory_mapping(BIT_ULL(36) - PAGE_SIZE, 1, 0, NULL);
	TEST_ASSERT_EQ(map_memory_once(no_cpuid, &m), ENOENT);
	m.nr_pages = 2;
	TEST_ASSERT_EQ(map_memory_once(no_cpuid, &m), EINVAL);
	m = memory_mapping(BIT_ULL(36), 1, 0, NULL);
	TEST_ASSERT_EQ(map_memory_once(no_cpuid, &m), EINVAL);
}

static void assert_efault(struct kvm_vcpu *vcpu, void *arg)
{
	struct kvm_memory_mapping *m = arg;

	TEST_ASSERT(__vcpu_ioctl(vcpu, KVM_MAP_MEMORY, m) && errno == EFAULT,
		    "errno %d", errno);
}

/* The struct must lie in memory that can be read and written. */
TEST_F(map, argument_memory)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	struct kvm_memory_mapping good =
		memory_mapping(window_gpa(0), 16, WRITE, NULL);
	struct kvm_memory_mapping *m;
	void *mem = new_mem(16);
	u8 *page = new_mem(2);

	set_slot(vm, SLOT, 0, 0, 16, mem);

	munmap(page + PAGE_SIZE, PAGE_SIZE);
	assert_efault(vcpu, NULL);
	assert_efault(vcpu, (void *)-PAGE_SIZE);
	assert_efault(vcpu, page + PAGE_SIZE);
	/* KVM can read the beginning only. */
	m = (void *)page + PAGE_SIZE - sizeof(*m) + 8;
	memcpy(m, &good, sizeof(good) - 8);
	assert_efault(vcpu, m);

	/* KVM can read it, but not write it. */
	m = (void *)page;
	*m = good;
	mprotect(page, PAGE_SIZE, PROT_READ);
	assert_efault(vcpu, m);
	TEST_ASSERT(!memcmp(m, &good, sizeof(good)), "The struct has changed");

	/* It need not be aligned. */
	mprotect(page, PAGE_SIZE, PROT_READ | PROT_WRITE);
	m = (void *)page + 3;
	memcpy(m, &good, sizeof(good));
	TEST_ASSERT_EQ(__vcpu_ioctl(vcpu, KVM_MAP_MEMORY, m), 0);
	memcpy(&good, m, sizeof(good));
	TEST_ASSERT_EQ(good.nr_pages, 0);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 16), 0);
}

/* The struct may lie in the memory that is populated. */
TEST_F(map, argument_in_guest_memory)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	struct kvm_memory_mapping *m;
	void *mem = new_mem(4);

	set_slot(vm, SLOT, 0, 0, 4, mem);
	m = mem;
	*m = memory_mapping(window_gpa(0), 4, 0, NULL);
	TEST_ASSERT_EQ(map_memory_once(vcpu, m), 0);
	*m = memory_mapping(window_gpa(0), 4, WRITE, new_pattern(4, 1));
	TEST_ASSERT(!__vcpu_ioctl(vcpu, KVM_MAP_MEMORY, m), "errno %d", errno);
	TEST_ASSERT_EQ(m->nr_pages, 0);
	TEST_ASSERT_EQ(m->base_gfn, window_gpa(4) >> PAGE_SHIFT);
	check_pattern(hva(mem, 1), 3, 2);
}

/* KVM has no second-level page tables to populate. */
static int test_no_tdp(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct kvm_memory_mapping m;
	int err;

	ksft_print_header();
	ksft_set_plan(2);
	ksft_test_result(!kvm_check_cap(KVM_CAP_MAP_MEMORY), "capability\n");
	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	set_slot(vm, SLOT, 0, 0, 16, new_mem(16));
	m = memory_mapping(window_gpa(0), 16, WRITE, NULL);
	err = map_memory_once(vcpu, &m);
	kvm_vm_free(vm);
	ksft_test_result(err == EOPNOTSUPP || err == ENOTTY, "errno %d\n", err);
	ksft_finished();
}

int main(int argc, char *argv[])
{
	if (!kvm_is_tdp_enabled() &&
	    kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST))
		return test_no_tdp();

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
