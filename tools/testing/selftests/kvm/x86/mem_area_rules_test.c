// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas: what a guest is told, and when it gets #GP.
 */
#include "mem_area_fixture.h"

/* Areas of the types that KVM serves, as the guest must describe them. */
static const struct {
	u32 type, size;
} good[] = {
	{ WALL_CLOCK, 12 },
	{ SYSTEM_TIME, 32 },
	{ STEAL_TIME, 64 },
};

/* Checks the result of registering, and that only 0 has registered something. */
static void check(struct area_test *test, bool emulate, u64 base, u32 size,
		  u32 type, u8 want)
{
	static const u32 msrs[] = {
		MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_STEAL_TIME,
	};
	u64 value, values[ARRAY_SIZE(msrs)];
	struct kvm_memory_area *desc, before;
	int i;

	for (i = 0; i < ARRAY_SIZE(msrs); i++)
		values[i] = vcpu_get_msr(test->vcpu, msrs[i]);

	desc = area_hva(test, DESC_GPA);
	set_desc_at(test, DESC_GPA, base, size, type);
	before = *desc;
	TEST_ASSERT_EQ(do_wrmsr(test->vcpu, emulate, REGISTER, DESC_GPA), 0);
	TEST_ASSERT(desc->result == want,
		    "base %#lx, size %u, type %#x: result %u, not %u", base,
		    size, type, desc->result, want);
	/* KVM writes nothing else. */
	before.result = want;
	TEST_ASSERT(!memcmp(desc, &before, sizeof(before)), "The descriptor changed");

	for (i = 0; want && i < ARRAY_SIZE(msrs); i++) {
		value = vcpu_get_msr(test->vcpu, msrs[i]);
		TEST_ASSERT(value == values[i], "MSR %#x is %#lx, not %#lx",
			    msrs[i], value, values[i]);
	}
}

TEST_F(area, sizes)
{
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;
	int i;

	enable_exits(test->vm, 1);
	check(test, emulate, AREA_GPA, 0, VMM_TYPE, KVM_MEM_AREA_BAD_SIZE);
	check(test, emulate, AREA_GPA, BIT(20) + 1, VMM_TYPE, KVM_MEM_AREA_BAD_SIZE);
	check(test, emulate, AREA_GPA, ~0u, VMM_TYPE, KVM_MEM_AREA_BAD_SIZE);
	check(test, emulate, ~0ull, 1, VMM_TYPE, KVM_MEM_AREA_BAD_SIZE);
	check(test, emulate, ~0ull, 4096, VMM_TYPE, KVM_MEM_AREA_BAD_SIZE);
	check(test, emulate, -4096ull, 4096, VMM_TYPE, KVM_MEM_AREA_BAD_SIZE);
	check(test, emulate, -4096ull, 4097, VMM_TYPE, KVM_MEM_AREA_BAD_SIZE);
	for (i = 0; i < ARRAY_SIZE(good); i++) {
		const u32 type = good[i].type, size = good[i].size;

		check(test, emulate, AREA_GPA, 0, type, KVM_MEM_AREA_BAD_SIZE);
		check(test, emulate, AREA_GPA, size - 1, type, KVM_MEM_AREA_BAD_SIZE);
		check(test, emulate, AREA_GPA, size + 1, type, KVM_MEM_AREA_BAD_SIZE);
		check(test, emulate, AREA_GPA, 4096, type, KVM_MEM_AREA_BAD_SIZE);
		check(test, emulate, -64ull, size, type,
		      size < 64 ? KVM_MEM_AREA_BAD_ADDRESS : KVM_MEM_AREA_BAD_SIZE);
		check(test, emulate, AREA_GPA, size, type, KVM_MEM_AREA_OK);
	}
}

TEST_F(area, alignment)
{
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;
	int i;

	for (i = 1; i < 64; i++) {
		check(test, emulate, AREA_GPA + i, 12, WALL_CLOCK,
		      i % 4 ? KVM_MEM_AREA_BAD_ALIGNMENT : KVM_MEM_AREA_OK);
		check(test, emulate, AREA_GPA + i, 32, SYSTEM_TIME,
		      i % 4 ? KVM_MEM_AREA_BAD_ALIGNMENT : KVM_MEM_AREA_OK);
		check(test, emulate, AREA_GPA + i, 64, STEAL_TIME,
		      KVM_MEM_AREA_BAD_ALIGNMENT);
	}
	/* System time must not cross a page, the wall clock may. */
	check(test, emulate, AREA_GPA + PAGE_SIZE - 28, 32, SYSTEM_TIME,
	      KVM_MEM_AREA_BAD_ALIGNMENT);
	check(test, emulate, AREA_GPA + PAGE_SIZE - 32, 32, SYSTEM_TIME,
	      KVM_MEM_AREA_OK);
	check(test, emulate, AREA_GPA + PAGE_SIZE - 8, 12, WALL_CLOCK,
	      KVM_MEM_AREA_OK);
}

TEST_F(area, pad)
{
	struct area_test *test = &self->test;
	struct kvm_memory_area *desc = area_hva(test, DESC_GPA);
	int i;

	for (i = 0; i < 8 * sizeof(desc->pad); i++) {
		set_desc_at(test, DESC_GPA, AREA_GPA, 64, STEAL_TIME);
		desc->pad[i / 8] = BIT(i % 8);
		TEST_ASSERT_EQ(do_wrmsr(test->vcpu, variant->emulate,
					REGISTER + i % 2, DESC_GPA), 0);
		TEST_ASSERT_EQ(desc->result, KVM_MEM_AREA_BAD_PAD);
		TEST_ASSERT_EQ(desc->pad[i / 8], BIT(i % 8));
	}
}

TEST_F(area, unknown_types)
{
	static const u32 types[] = { 0, 4, 5, 99, 0x7fffffff };
	static const u32 vmm_types[] = { 0x80000000, 0x80000001, 0xffffffff };
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;
	int i, enabled;
	u32 msr;

	for (msr = REGISTER; msr <= UNREGISTER; msr++) {
		for (enabled = 0; enabled < 2; enabled++) {
			enable_exits(test->vm, enabled);
			for (i = 0; i < ARRAY_SIZE(types); i++)
				TEST_ASSERT_EQ(area_command(test, emulate, msr, AREA_GPA,
							    4096, types[i]),
					       KVM_MEM_AREA_UNKNOWN_TYPE);
		}
		enable_exits(test->vm, 0);
		for (i = 0; i < ARRAY_SIZE(vmm_types); i++)
			TEST_ASSERT_EQ(area_command(test, emulate, msr, AREA_GPA,
						    4096, vmm_types[i]),
				       KVM_MEM_AREA_UNKNOWN_TYPE);
	}
}

/* Areas without memory, with a hole, read-only, or where the descriptor is. */
TEST_F(area, addresses)
{
	const int bits = kvm_cpu_property(X86_PROPERTY_MAX_PHY_ADDR);
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;
	const gpa_t end = WINDOW_GPA + WINDOW_SIZE, ro = end + 0x10000;
	const u64 bad[] = {
		end, ro, BIT_ULL(bits), BIT_ULL(bits) - 64, BIT_ULL(62), 0xfee00000,
		1ull << 63,
	};
	int i, j;

	enable_exits(test->vm, 1);
	vm_set_user_memory_region(test->vm, AREA_SLOT + 1, KVM_MEM_READONLY, ro,
				  PAGE_SIZE, test->mem);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		for (j = 0; j < ARRAY_SIZE(good); j++)
			check(test, emulate, bad[i], good[j].size, good[j].type,
			      KVM_MEM_AREA_BAD_ADDRESS);
		check(test, emulate, bad[i], 1, VMM_TYPE, KVM_MEM_AREA_BAD_ADDRESS);
		check(test, emulate, bad[i] - 1, 2, VMM_TYPE, KVM_MEM_AREA_BAD_ADDRESS);
	}
	check(test, emulate, end - PAGE_SIZE, PAGE_SIZE + 1, VMM_TYPE,
	      KVM_MEM_AREA_BAD_ADDRESS);

	/* Over the descriptor. */
	check(test, emulate, DESC_GPA, 24, VMM_TYPE, KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, DESC_GPA, 64, STEAL_TIME, KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, DESC_GPA + 23, 1, VMM_TYPE, KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, DESC_GPA, WINDOW_SIZE / 4, VMM_TYPE, KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, DESC_GPA + 24, 12, WALL_CLOCK, KVM_MEM_AREA_OK);

	/* A hole, and then a read-only slot, in the middle. */
	set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, 0);
	set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, 0x20000);
	set_area_slot(test, AREA_SLOT + 2, 0, WINDOW_GPA + 0x21000, 0x20000);
	check(test, emulate, WINDOW_GPA + 0x1f000, 0x3000, VMM_TYPE, KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, WINDOW_GPA + 0x20000 - 8, 12, WALL_CLOCK, KVM_MEM_AREA_BAD_ADDRESS);
	set_area_slot(test, AREA_SLOT + 3, KVM_MEM_READONLY, WINDOW_GPA + 0x20000, 0x1000);
	check(test, emulate, WINDOW_GPA + 0x1f000, 0x3000, VMM_TYPE, KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, WINDOW_GPA + 0x20000 - 8, 12, WALL_CLOCK, KVM_MEM_AREA_BAD_ADDRESS);
	set_area_slot(test, AREA_SLOT + 3, 0, WINDOW_GPA + 0x20000, 0);
	set_area_slot(test, AREA_SLOT + 3, 0, WINDOW_GPA + 0x20000, 0x1000);
	check(test, emulate, WINDOW_GPA + 0x20000 - 8, 12, WALL_CLOCK, KVM_MEM_AREA_OK);
	start_command(test, emulate, REGISTER, WINDOW_GPA + 0x1f000, 0x3000, VMM_TYPE);
	TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
}

/* The wall clock's MSR takes 0 for no address; the others say so by a bit. */
TEST_F(area, address_0)
{
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;
	u32 size;
	u8 want;
	int i;

	/* The selftests' library has memory there. */
	for (i = 0; i < ARRAY_SIZE(good); i++) {
		size = good[i].size;
		want = good[i].type == WALL_CLOCK ? KVM_MEM_AREA_BAD_ADDRESS : 0;
		TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, 0, size,
					    good[i].type), want);
		TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, 0, size,
					    good[i].type), want);
	}
}

/* Nowhere to put a result. */
TEST_F(area, general_protection)
{
	const int bits = kvm_cpu_property(X86_PROPERTY_MAX_PHY_ADDR);
	struct area_test *test = &self->test;
	const gpa_t end = WINDOW_GPA + WINDOW_SIZE, ro = end + 0x10000;
	const gpa_t last = end - 32, prot = end + 0x20000, none = end + 0x30000;
	const u64 bad[] = {
		end, ro, prot, none, BIT_ULL(bits), BIT_ULL(62), 0xfee00000,
		1ull << 63, ~0ull, -32ull, -64ull,
	};
	bool emulate = variant->emulate;
	struct kvm_memory_area *desc;
	u8 *prot_mem;
	u32 msr;
	int i;

	enable_exits(test->vm, 1);
	vm_set_user_memory_region(test->vm, AREA_SLOT + 1, KVM_MEM_READONLY, ro,
				  PAGE_SIZE, test->mem);
	prot_mem = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1);
	desc = (void *)prot_mem;
	*desc = (struct kvm_memory_area) { AREA_GPA, 64, STEAL_TIME, NO_ANSWER };
	desc = (void *)(prot_mem + PAGE_SIZE);
	*desc = (struct kvm_memory_area) { AREA_GPA, 64, STEAL_TIME, NO_ANSWER };
	mprotect(prot_mem, PAGE_SIZE, PROT_READ);
	mprotect(prot_mem + PAGE_SIZE, PAGE_SIZE, PROT_NONE);
	vm_set_user_memory_region(test->vm, AREA_SLOT + 2, 0, prot, PAGE_SIZE,
				  prot_mem);
	vm_set_user_memory_region(test->vm, AREA_SLOT + 3, 0, none, PAGE_SIZE,
				  prot_mem + PAGE_SIZE);

	for (msr = REGISTER; msr <= UNREGISTER; msr++) {
		for (i = 0; i < ARRAY_SIZE(bad); i++) {
			set_desc_at(test, DESC_GPA, AREA_GPA, 64, STEAL_TIME);
			TEST_ASSERT(do_wrmsr(test->vcpu, emulate, msr, bad[i]) == GP_VECTOR,
				    "No #GP on %#lx", bad[i]);
		}
		for (i = 1; i < 32; i++) {
			set_desc_at(test, DESC_GPA + i, AREA_GPA, 64, STEAL_TIME);
			TEST_ASSERT_EQ(do_wrmsr(test->vcpu, emulate, msr, DESC_GPA + i),
				       GP_VECTOR);
			TEST_ASSERT_EQ(result_at(test, DESC_GPA + i), NO_ANSWER);
		}
		TEST_ASSERT_EQ(vcpu_get_msr(test->vcpu, MSR_KVM_STEAL_TIME), 0);
	}

	/* The last descriptor in the window. */
	set_desc_at(test, last, AREA_GPA, 64, STEAL_TIME);
	TEST_ASSERT_EQ(do_wrmsr(test->vcpu, emulate, REGISTER, last), 0);
	TEST_ASSERT_EQ(result_at(test, last), KVM_MEM_AREA_OK);
}

/* A memslot beyond the guest's physical addresses is none of the guest's memory. */
TEST_F(area, maxphyaddr)
{
	const gpa_t limit = BIT_ULL(36), half = WINDOW_SIZE / 2;
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	bool emulate = variant->emulate;
	u32 msr;

	if (kvm_cpu_property(X86_PROPERTY_MAX_PHY_ADDR) <= 36)
		SKIP(return, "KVM has no addresses beyond the guest's");

	vcpu_set_cpuid_property(vcpu, X86_PROPERTY_MAX_PHY_ADDR, 36);
	/* The window's memory again, half of it on each side of the limit. */
	vm_set_user_memory_region(test->vm, AREA_SLOT + 1, 0, limit - half, WINDOW_SIZE,
				  test->mem);
	enable_exits(test->vm, 1);

	/* The area: beyond the limit, across it, and at its end. */
	check(test, emulate, limit, 1, VMM_TYPE, KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, limit + half - 1, 1, VMM_TYPE, KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, limit, 64, STEAL_TIME, KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, limit - 1, 2, VMM_TYPE, KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, limit - PAGE_SIZE, 2 * PAGE_SIZE, VMM_TYPE,
	      KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, limit - 8, 12, WALL_CLOCK, KVM_MEM_AREA_BAD_ADDRESS);
	check(test, emulate, limit - 64, 64, STEAL_TIME, KVM_MEM_AREA_OK);
	start_command(test, emulate, REGISTER, limit - PAGE_SIZE, PAGE_SIZE, VMM_TYPE);
	TEST_ASSERT_EQ(finish_command(vcpu), 0);

	/* The descriptor. */
	for (msr = REGISTER; msr <= UNREGISTER; msr++) {
		set_desc_at(test, WINDOW_GPA + half, STEAL_GPA, 64, STEAL_TIME);
		TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, msr, limit), GP_VECTOR);
		TEST_ASSERT_EQ(result_at(test, WINDOW_GPA + half), NO_ANSWER);
		set_desc_at(test, WINDOW_GPA + half - 32, STEAL_GPA, 64, STEAL_TIME);
		TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, msr, limit - 32), 0);
		TEST_ASSERT_EQ(result_at(test, WINDOW_GPA + half - 32), KVM_MEM_AREA_OK);
	}
}

/* Area without memory that the host lets KVM write to. */
TEST_F(area, protected_area)
{
	struct area_test *test = &self->test;
	int i;

	mprotect(area_hva(test, AREA_GPA), PAGE_SIZE, PROT_READ);
	for (i = 0; i < ARRAY_SIZE(good); i++)
		check(test, variant->emulate, AREA_GPA, good[i].size, good[i].type,
		      KVM_MEM_AREA_BAD_ADDRESS);
	check(test, variant->emulate, AREA_GPA - 4, 12, WALL_CLOCK, KVM_MEM_AREA_BAD_ADDRESS);
	mprotect(area_hva(test, AREA_GPA), PAGE_SIZE, PROT_READ | PROT_WRITE);
	check(test, variant->emulate, AREA_GPA - 4, 12, WALL_CLOCK, KVM_MEM_AREA_OK);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA));

	return test_harness_run(argc, argv);
}
