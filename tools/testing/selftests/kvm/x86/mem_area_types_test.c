// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas: the types that KVM serves are the MSRs of the same name.
 */
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>

#include "mem_area_fixture.h"

TEST_F(area, served)
{
	struct area_test *test = &self->test;
	struct pvclock_vcpu_time_info *clock = area_hva(test, TIME_GPA);
	struct pvclock_wall_clock *wall = area_hva(test, WALL_GPA);
	struct kvm_steal_time *steal = area_hva(test, STEAL_GPA);
	struct kvm_clock_data data = {};
	bool emulate = variant->emulate;

	register_areas(test, emulate);
	check_msrs(test->vcpu, WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);

	TEST_ASSERT(wall->version && !(wall->version & 1), "version %u", wall->version);
	TEST_ASSERT(llabs((s64)wall->sec - (s64)time(NULL)) < 3600, "sec %u", wall->sec);
	TEST_ASSERT(clock->version && !(clock->version & 1), "version %u", clock->version);
	TEST_ASSERT(clock->tsc_to_system_mul, "No factor");
	/* KVM has taken the update of the last area with it into the guest. */
	TEST_ASSERT(steal->version && !(steal->version & 1), "version %u", steal->version);

	/* KVM writes two of them again, without another command. */
	memset(area_hva(test, AREA_GPA), 0, PAGE_SIZE);
	vm_ioctl(test->vm, KVM_SET_CLOCK, &data);
	do_wrmsr(test->vcpu, emulate, UNREGISTER, DESC_GPA + 1);
	TEST_ASSERT(steal->version && !(steal->version & 1), "version %u", steal->version);
	TEST_ASSERT(clock->version && !(clock->version & 1), "version %u", clock->version);
	TEST_ASSERT(clock->tsc_to_system_mul, "No factor");
	TEST_ASSERT_EQ(wall->version, 0);
}

TEST_F(area, unregister)
{
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;
	struct pvclock_vcpu_time_info *clock = area_hva(test, TIME_GPA);
	int i;

	register_areas(test, emulate);
	/* What is not what the guest has registered. */
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, WALL_GPA + 4, 12, WALL_CLOCK),
		       KVM_MEM_AREA_NOT_REGISTERED);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, TIME_GPA + 4, 32, SYSTEM_TIME),
		       KVM_MEM_AREA_NOT_REGISTERED);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA + 64, 64, STEAL_TIME),
		       KVM_MEM_AREA_NOT_REGISTERED);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA, 32, STEAL_TIME),
		       KVM_MEM_AREA_BAD_SIZE);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA + 4, 64, STEAL_TIME),
		       KVM_MEM_AREA_BAD_ALIGNMENT);
	check_msrs(test->vcpu, WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);

	for (i = 0; i < 2; i++) {
		u8 want = i ? KVM_MEM_AREA_NOT_REGISTERED : KVM_MEM_AREA_OK;

		TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, WALL_GPA, 12,
					    WALL_CLOCK), want);
		TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, TIME_GPA, 32,
					    SYSTEM_TIME), want);
		TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA, 64,
					    STEAL_TIME), want);
		check_msrs(test->vcpu, 0, 0, 0);
	}

	/* KVM does not write to them any more. */
	memset(area_hva(test, AREA_GPA), 0, PAGE_SIZE);
	for (i = 0; i < 3; i++)
		do_wrmsr(test->vcpu, emulate, UNREGISTER, DESC_GPA + 1);
	for (i = 0; i < PAGE_SIZE; i++)
		TEST_ASSERT(!((u8 *)area_hva(test, AREA_GPA))[i], "Byte %d", i);
	TEST_ASSERT_EQ(clock->version, 0);
}

/* Memory that KVM can write to, but not map, is no place for a clock. */
TEST_F(area, secret_memory)
{
	const gpa_t gpa = WINDOW_GPA + WINDOW_SIZE + 0x10000;
	struct area_test *test = &self->test;
	struct pvclock_vcpu_time_info *clock;
	bool emulate = variant->emulate;
	void *secret;
	int fd;

	fd = syscall(__NR_memfd_secret, 0);
	if (fd < 0)
		SKIP(return, "No memfd_secret");
	TEST_ASSERT(!ftruncate(fd, PAGE_SIZE), "errno %d", errno);
	secret = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	vm_set_user_memory_region(test->vm, AREA_SLOT + 1, 0, gpa, PAGE_SIZE, secret);

	register_areas(test, emulate);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, gpa, 32, SYSTEM_TIME),
		       KVM_MEM_AREA_BAD_ADDRESS);
	/* The clock that the guest has goes on. */
	check_msrs(test->vcpu, WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);
	clock = area_hva(test, TIME_GPA);
	memset(clock, 0, sizeof(*clock));
	vm_ioctl(test->vm, KVM_SET_CLOCK, &(struct kvm_clock_data) {});
	do_wrmsr(test->vcpu, emulate, UNREGISTER, DESC_GPA + 1);
	TEST_ASSERT(clock->version, "KVM does not serve the area");

	/* KVM writes the others as userspace does. */
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, gpa, 12, WALL_CLOCK), 0);
	TEST_ASSERT(((struct pvclock_wall_clock *)secret)->version, "No wall clock");
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, gpa + 64, 64, STEAL_TIME), 0);
	do_wrmsr(test->vcpu, emulate, UNREGISTER, DESC_GPA + 1);
	TEST_ASSERT(((struct kvm_steal_time *)(secret + 64))->version, "No steal time");
	vm_set_user_memory_region(test->vm, AREA_SLOT + 1, 0, gpa, 0, NULL);
	kvm_munmap(secret, PAGE_SIZE);
	close(fd);
}

/* All of them at once. */
TEST_F(area, unregister_all)
{
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;
	int i;

	for (i = 0; i < 2; i++) {
		register_areas(test, emulate);
		TEST_ASSERT_EQ(do_wrmsr(test->vcpu, emulate, UNREGISTER, 0), 0);
		check_msrs(test->vcpu, 0, 0, 0);
		TEST_ASSERT_EQ(do_wrmsr(test->vcpu, emulate, UNREGISTER, 0), 0);
	}
}

/* A second area replaces the first, and MSRs and areas are the same thing. */
TEST_F(area, replace)
{
	struct kvm_clock_data data = {};
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	bool emulate = variant->emulate;

	register_areas(test, emulate);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, STEAL_GPA + 64, 64,
				    STEAL_TIME), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, WALL_GPA + PAGE_SIZE, 12,
				    WALL_CLOCK), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, TIME_GPA + PAGE_SIZE, 32,
				    SYSTEM_TIME), 0);
	check_msrs(vcpu, WALL_GPA + PAGE_SIZE, (TIME_GPA + PAGE_SIZE) | 1,
		   (STEAL_GPA + 64) | 1);
	/* KVM writes to the second areas, and not to the first any more. */
	memset(area_hva(test, AREA_GPA), 0, 2 * PAGE_SIZE);
	vm_ioctl(test->vm, KVM_SET_CLOCK, &data);
	TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, REGISTER, 1), GP_VECTOR);
	TEST_ASSERT_EQ(*(u32 *)area_hva(test, TIME_GPA), 0);
	TEST_ASSERT(*(u32 *)area_hva(test, TIME_GPA + PAGE_SIZE), "The second is not served");
	/* Only the second can be taken back. */
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA, 64, STEAL_TIME),
		       KVM_MEM_AREA_NOT_REGISTERED);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, WALL_GPA, 12, WALL_CLOCK),
		       KVM_MEM_AREA_NOT_REGISTERED);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, TIME_GPA, 32, SYSTEM_TIME),
		       KVM_MEM_AREA_NOT_REGISTERED);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, WALL_GPA + PAGE_SIZE, 12,
				    WALL_CLOCK), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, TIME_GPA + PAGE_SIZE, 32,
				    SYSTEM_TIME), 0);

	TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, MSR_KVM_STEAL_TIME, STEAL_GPA | 1), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA, 64, STEAL_TIME), 0);
	TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, MSR_KVM_SYSTEM_TIME_NEW, TIME_GPA | 1), 0);
	check_msrs(vcpu, 0, TIME_GPA | 1, 0);
	TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, MSR_KVM_SYSTEM_TIME_NEW, 0), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, TIME_GPA, 32, SYSTEM_TIME),
		       KVM_MEM_AREA_NOT_REGISTERED);
}

/* An area can be taken back when its memory is gone. */
TEST_F(area, unregister_without_memory)
{
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;

	register_areas(test, emulate);
	set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, 0);
	set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, PAGE_SIZE);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, WALL_GPA, 12, WALL_CLOCK), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, TIME_GPA, 32, SYSTEM_TIME), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA, 64, STEAL_TIME), 0);
	check_msrs(test->vcpu, 0, 0, 0);

	/* KVM does not look at the addresses at all. */
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, BIT_ULL(62), 64, STEAL_TIME),
		       KVM_MEM_AREA_NOT_REGISTERED);
	enable_exits(test->vm, 1);
	start_command(test, emulate, UNREGISTER, BIT_ULL(62), 4096, VMM_TYPE)->result = 6;
	TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), KVM_MEM_AREA_NOT_REGISTERED);
}

/* System time and steal time are the vCPU's, the wall clock is the VM's. */
TEST(vcpus)
{
	struct area_test test;

	area_init(&test, 2);
	register_areas(&test, false);
	check_msrs(test.vcpus[0], WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);
	check_msrs(test.vcpus[1], WALL_GPA, 0, 0);
	TEST_ASSERT_EQ(do_wrmsr(test.vcpus[1], false, UNREGISTER, 0), 0);
	check_msrs(test.vcpus[0], 0, TIME_GPA | 1, STEAL_GPA | 1);
	area_free(&test);
}

/* Where a type has no MSR, nothing can be registered, and nothing is. */
TEST(enforced)
{
	const struct {
		struct kvm_x86_cpu_feature feature;
		u32 type, size;
	} absent[] = {
		{ X86_FEATURE_KVM_CLOCKSOURCE2_BIT, WALL_CLOCK, 12 },
		{ X86_FEATURE_KVM_CLOCKSOURCE2_BIT, SYSTEM_TIME, 32 },
		{ X86_FEATURE_KVM_STEAL_TIME_BIT, STEAL_TIME, 64 },
	};
	struct area_test test;
	int i;

	for (i = 0; i < ARRAY_SIZE(absent); i++) {
		area_init(&test, 1);
		vcpu_enable_cap(test.vcpu, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1);
		vcpu_clear_cpuid_feature(test.vcpu, absent[i].feature);
		TEST_ASSERT_EQ(area_command(&test, false, REGISTER, AREA_GPA, absent[i].size,
					    absent[i].type), KVM_MEM_AREA_DENIED);
		TEST_ASSERT_EQ(area_command(&test, false, UNREGISTER, AREA_GPA, absent[i].size,
					    absent[i].type), KVM_MEM_AREA_NOT_REGISTERED);
		area_free(&test);
	}
}

/* Xen's steal time replaces KVM's. */
TEST(xen)
{
	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
		.msr = 0x40000000,
	};
	struct area_test test;

	if (!kvm_has_cap(KVM_CAP_XEN_HVM))
		SKIP(return, "No Xen");

	area_init(&test, 1);
	vm_ioctl(test.vm, KVM_XEN_HVM_CONFIG, &config);
	TEST_ASSERT_EQ(area_command(&test, false, REGISTER, STEAL_GPA, 64, STEAL_TIME),
		       KVM_MEM_AREA_DENIED);
	TEST_ASSERT_EQ(vcpu_get_msr(test.vcpu, MSR_KVM_STEAL_TIME), 0);
	TEST_ASSERT_EQ(area_command(&test, false, UNREGISTER, STEAL_GPA, 64, STEAL_TIME),
		       KVM_MEM_AREA_NOT_REGISTERED);
	TEST_ASSERT_EQ(area_command(&test, false, REGISTER, TIME_GPA, 32, SYSTEM_TIME), 0);
	area_free(&test);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA));

	return test_harness_run(argc, argv);
}
