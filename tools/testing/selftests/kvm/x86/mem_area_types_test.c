// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas: the types that KVM serves are the MSRs of the same name.
 */
#include <stdlib.h>
#include <time.h>

#include "mem_area_fixture.h"

#define WALL_GPA	AREA_GPA
#define TIME_GPA	(AREA_GPA + 64)
#define STEAL_GPA	(AREA_GPA + 128)

static void register_all(struct area_test *test, bool emulate)
{
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, WALL_GPA, 12, WALL_CLOCK), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, TIME_GPA, 32, SYSTEM_TIME), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, STEAL_GPA, 64, STEAL_TIME), 0);
}

static void check_msrs(struct kvm_vcpu *vcpu, u64 wall, u64 time, u64 steal)
{
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_WALL_CLOCK_NEW), wall);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_SYSTEM_TIME_NEW), time);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_STEAL_TIME), steal);
}

TEST_F(area, served)
{
	struct area_test *test = &self->test;
	struct pvclock_vcpu_time_info *clock = area_hva(test, TIME_GPA);
	struct pvclock_wall_clock *wall = area_hva(test, WALL_GPA);
	struct kvm_steal_time *steal = area_hva(test, STEAL_GPA);
	bool emulate = variant->emulate;
	u32 version;

	register_all(test, emulate);
	check_msrs(test->vcpu, WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);

	TEST_ASSERT(wall->version && !(wall->version & 1), "version %u", wall->version);
	TEST_ASSERT(llabs((s64)wall->sec - (s64)time(NULL)) < 3600, "sec %u", wall->sec);
	TEST_ASSERT(clock->version && !(clock->version & 1), "version %u", clock->version);
	TEST_ASSERT(clock->tsc_to_system_mul, "No factor");
	/* KVM has taken the update of the last area with it into the guest. */
	TEST_ASSERT(steal->version && !(steal->version & 1), "version %u", steal->version);

	/* They are kept up to date. */
	version = steal->version;
	do_wrmsr(test->vcpu, emulate, UNREGISTER, DESC_GPA + 1);
	usleep(1000);
	do_wrmsr(test->vcpu, emulate, UNREGISTER, DESC_GPA + 1);
	TEST_ASSERT(steal->version >= version, "Version %u after %u", steal->version, version);
}

TEST_F(area, unregister)
{
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;
	struct pvclock_vcpu_time_info *clock = area_hva(test, TIME_GPA);
	int i;

	register_all(test, emulate);
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

/* All of them at once. */
TEST_F(area, unregister_all)
{
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;
	int i;

	for (i = 0; i < 2; i++) {
		register_all(test, emulate);
		TEST_ASSERT_EQ(do_wrmsr(test->vcpu, emulate, UNREGISTER, 0), 0);
		check_msrs(test->vcpu, 0, 0, 0);
		TEST_ASSERT_EQ(do_wrmsr(test->vcpu, emulate, UNREGISTER, 0), 0);
	}
}

/* A second area replaces the first, and MSRs and areas are the same thing. */
TEST_F(area, replace)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	bool emulate = variant->emulate;

	register_all(test, emulate);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, STEAL_GPA + 64, 64,
				    STEAL_TIME), 0);
	check_msrs(vcpu, WALL_GPA, TIME_GPA | 1, (STEAL_GPA + 64) | 1);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA, 64, STEAL_TIME),
		       KVM_MEM_AREA_NOT_REGISTERED);

	TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, MSR_KVM_STEAL_TIME, STEAL_GPA | 1), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA, 64, STEAL_TIME), 0);
	check_msrs(vcpu, WALL_GPA, TIME_GPA | 1, 0);
	TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, MSR_KVM_SYSTEM_TIME_NEW, 0), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, TIME_GPA, 32, SYSTEM_TIME),
		       KVM_MEM_AREA_NOT_REGISTERED);
}

/* An area can be taken back when its memory is gone. */
TEST_F(area, unregister_without_memory)
{
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;

	register_all(test, emulate);
	set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, 0);
	set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, PAGE_SIZE);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, WALL_GPA, 12, WALL_CLOCK), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, TIME_GPA, 32, SYSTEM_TIME), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA, 64, STEAL_TIME), 0);
	check_msrs(test->vcpu, 0, 0, 0);
}

/* Saving and restoring is that of the MSRs. */
TEST_F(area, restored)
{
	struct area_test *test = &self->test, other;
	struct kvm_steal_time *steal;
	bool emulate = variant->emulate;

	register_all(test, emulate);
	area_init(&other, 1);
	vcpu_set_msr(other.vcpu, MSR_KVM_STEAL_TIME,
		     vcpu_get_msr(test->vcpu, MSR_KVM_STEAL_TIME));
	TEST_ASSERT_EQ(do_wrmsr(other.vcpu, emulate, REGISTER, 1), GP_VECTOR);
	steal = area_hva(&other, STEAL_GPA);
	TEST_ASSERT(steal->version, "KVM does not serve the area");
	TEST_ASSERT_EQ(area_command(&other, emulate, UNREGISTER, STEAL_GPA, 64, STEAL_TIME), 0);
	area_free(&other);
}

/* System time and steal time are the vCPU's, the wall clock is the VM's. */
TEST(vcpus)
{
	struct area_test test;

	area_init(&test, 2);
	register_all(&test, false);
	check_msrs(test.vcpus[0], WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);
	check_msrs(test.vcpus[1], WALL_GPA, 0, 0);
	TEST_ASSERT_EQ(do_wrmsr(test.vcpus[1], false, UNREGISTER, 0), 0);
	check_msrs(test.vcpus[0], 0, TIME_GPA | 1, STEAL_GPA | 1);
	area_free(&test);
}

/* INIT ends areas as it ends their MSRs. */
TEST(init)
{
	struct kvm_vcpu_events events;
	struct kvm_mp_state state;
	struct area_test test;

	area_init(&test, 2);
	test.vcpu = test.vcpus[1];
	register_all(&test, false);

	vcpu_events_get(test.vcpu, &events);
	events.flags |= KVM_VCPUEVENT_VALID_SMM;
	events.smi.latched_init = 1;
	vcpu_events_set(test.vcpu, &events);
	/* The vCPU takes the INIT before it reports its state. */
	vcpu_mp_state_get(test.vcpu, &state);
	TEST_ASSERT_EQ(state.mp_state, KVM_MP_STATE_INIT_RECEIVED);
	check_msrs(test.vcpu, WALL_GPA, 0, 0);
	area_free(&test);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA));

	return test_harness_run(argc, argv);
}
