// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas and what the VMM does to the state of vCPUs: it restores them in
 * another VM, writes their MSRs, and resets them.
 */
#include <stdlib.h>
#include <time.h>

#include "mem_area_fixture.h"

#define VMM_GPA		(AREA_GPA + PAGE_SIZE)

/* Time of the guest that no test takes. */
#define LONG_TIME	(10000ull * NSEC_PER_SEC)

static struct kvm_x86_state *save(struct area_test *test, struct kvm_clock_data *clock)
{
	struct kvm_x86_state *state;

	/* Completes the exit that is pending, by immediate_exit. */
	state = vcpu_save_state(test->vcpu);
	vm_ioctl(test->vm, KVM_GET_CLOCK, clock);
	kvm_vm_release(test->vm);
	return state;
}

/*
 * Restores the vCPU in a second VM, which has the same memory.  The clock comes
 * first, because loading its MSR writes the wall clock again.
 */
static void restore(struct area_test *test, struct kvm_x86_state *state,
		    struct kvm_clock_data *clock, bool feature, bool exits)
{
	test->vcpu = vm_recreate_with_one_vcpu(test->vm);
	set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, WINDOW_SIZE);
	vm_ioctl(test->vm, KVM_SET_CLOCK, clock);
	if (feature)
		vcpu_set_cpuid_feature(test->vcpu, X86_FEATURE_KVM_MEM_AREA);
	if (exits)
		enable_exits(test->vm, 1);
	vcpu_load_state(test->vcpu, state);
	kvm_x86_state_cleanup(state);
}

/* Moves a guest that has all of KVM's areas, in the middle of a command. */
static void move(struct area_test *test, bool emulate, bool feature, bool exits)
{
	struct pvclock_vcpu_time_info *clock = area_hva(test, TIME_GPA);
	struct pvclock_wall_clock *wall = area_hva(test, WALL_GPA);
	struct kvm_steal_time *steal = area_hva(test, STEAL_GPA);
	struct kvm_clock_data data = { .clock = LONG_TIME };
	u32 clock_version, wall_version, steal_version;
	struct kvm_x86_state *state;
	u64 stolen, seconds;

	vm_ioctl(test->vm, KVM_SET_CLOCK, &data);
	enable_exits(test->vm, 1);
	register_areas(test, emulate);
	start_command(test, emulate, REGISTER, VMM_GPA, PAGE_SIZE, VMM_TYPE)->result = 0;
	state = save(test, &data);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0);
	clock_version = clock->version;
	wall_version = wall->version;
	steal_version = steal->version;
	stolen = steal->steal;

	restore(test, state, &data, feature, exits);
	check_msrs(test->vcpu, WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);
	/* The guest goes on after the WRMSR. */
	TEST_ASSERT_EQ(guest_op(test->vcpu)->vector, 0xff);
	TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0);

	TEST_ASSERT(clock->version > clock_version && !(clock->version & 1),
		    "version %u after %u", clock->version, clock_version);
	TEST_ASSERT(clock->system_time >= data.clock, "%lu ns after %llu",
		    clock->system_time, data.clock);
	TEST_ASSERT(steal->version > steal_version && !(steal->version & 1),
		    "version %u after %u", steal->version, steal_version);
	TEST_ASSERT(steal->steal >= stolen, "%llu ns after %lu", steal->steal, stolen);
	TEST_ASSERT(wall->version > wall_version && !(wall->version & 1),
		    "version %u after %u", wall->version, wall_version);
	seconds = data.clock / NSEC_PER_SEC;
	TEST_ASSERT(llabs(time(NULL) - (s64)(wall->sec + seconds)) < 3600,
		    "Wall clock %u with a clock of %lu s", wall->sec, seconds);
}

TEST_F(area, restored)
{
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;

	move(test, emulate, true, true);
	start_command(test, emulate, UNREGISTER, VMM_GPA, PAGE_SIZE, VMM_TYPE)->result = 0;
	TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA, 64, STEAL_TIME), 0);
	check_msrs(test->vcpu, WALL_GPA, TIME_GPA | 1, 0);
	start_unregister_all(test->vcpu, emulate);
	TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
	check_msrs(test->vcpu, 0, 0, 0);
}

/* A VMM that does not enable the exit again is not asked, and not told. */
TEST_F(area, restored_without_exits)
{
	struct area_test *test = &self->test;

	move(test, variant->emulate, true, false);
	TEST_ASSERT_EQ(area_command(test, variant->emulate, UNREGISTER, VMM_GPA, PAGE_SIZE,
				    VMM_TYPE), KVM_MEM_AREA_UNKNOWN_TYPE);
	TEST_ASSERT_EQ(do_wrmsr(test->vcpu, variant->emulate, UNREGISTER, 0), 0);
	check_msrs(test->vcpu, 0, 0, 0);
}

/* Without the feature bit, KVM serves what is in the MSRs, and the guest is stuck with it. */
TEST_F(area, restored_without_feature)
{
	struct area_test *test = &self->test;

	move(test, variant->emulate, false, true);
	TEST_ASSERT_EQ(do_wrmsr(test->vcpu, variant->emulate, UNREGISTER, 0), GP_VECTOR);
	check_msrs(test->vcpu, WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);
}

/* The wall clock's memory is the hypervisor's until the guest takes it back. */
TEST_F(area, wall_clock_again)
{
	struct area_test *test = &self->test;
	struct pvclock_wall_clock *wall = area_hva(test, WALL_GPA), before;
	struct kvm_clock_data clock = { .clock = LONG_TIME };
	struct kvm_vcpu *vcpu = test->vcpu;
	bool emulate = variant->emulate;
	s64 back;

	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, WALL_GPA, 12, WALL_CLOCK), 0);
	before = *wall;
	vm_ioctl(test->vm, KVM_SET_CLOCK, &clock);
	TEST_ASSERT_EQ(do_wrmsr(vcpu, emulate, REGISTER, 1), GP_VECTOR);
	TEST_ASSERT(!memcmp(wall, &before, sizeof(before)), "Written by KVM_SET_CLOCK");

	vcpu_set_msr(vcpu, MSR_KVM_WALL_CLOCK_NEW, WALL_GPA);
	TEST_ASSERT_EQ(wall->version, before.version + 2);
	back = (s64)before.sec - wall->sec - (s64)(LONG_TIME / NSEC_PER_SEC);
	TEST_ASSERT(llabs(back) < 3600, "From %u to %u", before.sec, wall->sec);

	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, WALL_GPA, 12, WALL_CLOCK), 0);
	before = *wall;
	vcpu_set_msr(vcpu, MSR_KVM_WALL_CLOCK_NEW, vcpu_get_msr(vcpu, MSR_KVM_WALL_CLOCK_NEW));
	TEST_ASSERT(!memcmp(wall, &before, sizeof(before)), "Written after it was taken back");
}

/* What a vCPU starts with, except for its MSRs. */
struct reset {
	struct kvm_mp_state mp_state;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
};

static struct reset get_reset(struct kvm_vcpu *vcpu)
{
	struct reset reset;

	vcpu_mp_state_get(vcpu, &reset.mp_state);
	vcpu_sregs_get(vcpu, &reset.sregs);
	vcpu_regs_get(vcpu, &reset.regs);
	return reset;
}

static void set_reset(struct kvm_vcpu *vcpu, struct reset *reset)
{
	vcpu_sregs_set(vcpu, &reset->sregs);
	vcpu_mp_state_set(vcpu, &reset->mp_state);
	vcpu_regs_set(vcpu, &reset->regs);
}

/* A vCPU that the VMM resets keeps the areas that the VMM does not end by their MSRs. */
TEST_F(area, reset)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	struct reset reset = get_reset(vcpu);
	bool emulate = variant->emulate;

	register_areas(test, emulate);
	set_reset(vcpu, &reset);
	check_msrs(vcpu, WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, STEAL_GPA, 64, STEAL_TIME), 0);

	set_reset(vcpu, &reset);
	vcpu_set_msr(vcpu, MSR_KVM_SYSTEM_TIME_NEW, 0);
	check_msrs(vcpu, WALL_GPA, 0, 0);
	memset(area_hva(test, TIME_GPA), 0, 32);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, TIME_GPA, 32, SYSTEM_TIME),
		       KVM_MEM_AREA_NOT_REGISTERED);
	TEST_ASSERT_EQ(*(u32 *)area_hva(test, TIME_GPA), 0);
	TEST_ASSERT_EQ(area_command(test, emulate, UNREGISTER, WALL_GPA, 12, WALL_CLOCK), 0);
}

/*
 * The exit that is pending survives a reset: the next KVM_RUN completes the command,
 * and moves RIP over an instruction that the vCPU does not execute any more.  A VMM
 * that completes it first gets a vCPU that starts where it must.
 */
TEST_F(area, reset_with_exit_pending)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	struct reset reset = get_reset(vcpu);
	bool emulate = variant->emulate;
	struct kvm_regs regs;

	enable_exits(test->vm, 1);
	register_areas(test, emulate);
	start_command(test, emulate, REGISTER, VMM_GPA, PAGE_SIZE, VMM_TYPE)->result = 0x55;
	set_reset(vcpu, &reset);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), NO_ANSWER);
	vcpu_run_complete_io(vcpu);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0x55);
	vcpu_regs_get(vcpu, &regs);
	TEST_ASSERT(regs.rip != reset.regs.rip, "RIP is where the VMM has set it");

	set_reset(vcpu, &reset);
	start_unregister_all(vcpu, emulate);
	set_reset(vcpu, &reset);
	check_msrs(vcpu, WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);
	vcpu_run_complete_io(vcpu);
	check_msrs(vcpu, 0, 0, 0);

	/* The right order. */
	set_reset(vcpu, &reset);
	start_command(test, emulate, REGISTER, VMM_GPA, PAGE_SIZE, VMM_TYPE)->result = 0x56;
	vcpu_run_complete_io(vcpu);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0x56);
	set_reset(vcpu, &reset);
	vcpu_run_complete_io(vcpu);
	vcpu_regs_get(vcpu, &regs);
	TEST_ASSERT_EQ(regs.rip, reset.regs.rip);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, STEAL_GPA, 64, STEAL_TIME), 0);
}

/* INIT ends areas as it ends their MSRs. */
TEST(init)
{
	struct kvm_vcpu_events events;
	struct kvm_mp_state state;
	struct area_test test;

	area_init(&test, 2);
	test.vcpu = test.vcpus[1];
	register_areas(&test, false);

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
