// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas: those that the VMM serves, by KVM_EXIT_X86_MSR_OP.
 */
#include <pthread.h>
#include <signal.h>

#include "mem_area_fixture.h"

/* The VMM's answer is what the guest finds. */
TEST_F(area, answers)
{
	struct area_test *test = &self->test;
	struct kvm_x86_msr_op *op;
	u32 msr;
	int i;

	enable_exits(test->vm, 1);
	for (msr = REGISTER; msr <= UNREGISTER; msr++) {
		for (i = 0; i < 256; i += msr == REGISTER ? 1 : 15) {
			op = start_command(test, variant->emulate, msr, AREA_GPA + i, i + 1,
					   VMM_TYPE + i);
			op->result = i;
			TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
			TEST_ASSERT_EQ(result_at(test, DESC_GPA), i);
		}
	}
}

TEST_F(area, largest)
{
	struct area_test *test = &self->test;

	enable_exits(test->vm, 1);
	start_command(test, variant->emulate, REGISTER, AREA_GPA, BIT(20), ~0u)->result = 0;
	TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0);
}

/* A VMM that asks for the exit and then ignores it is safe. */
TEST_F(area, ignored)
{
	struct area_test *test = &self->test;

	enable_exits(test->vm, 1);
	start_command(test, variant->emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
	TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), KVM_MEM_AREA_UNKNOWN_TYPE);
}

TEST_F(area, error)
{
	struct area_test *test = &self->test;
	struct kvm_x86_msr_op *op;
	u32 msr;
	int i;

	enable_exits(test->vm, 1);
	for (msr = REGISTER; msr <= UNREGISTER; msr++) {
		for (i = 1; i < 256; i *= 2) {
			op = start_command(test, variant->emulate, msr, AREA_GPA, 4096,
					   VMM_TYPE);
			op->error = i;
			op->result = 0;
			TEST_ASSERT_EQ(finish_command(test->vcpu), GP_VECTOR);
			TEST_ASSERT_EQ(result_at(test, DESC_GPA), NO_ANSWER);
		}
	}
}

/* KVM takes nothing but the answer from kvm_run. */
TEST_F(area, scribbled)
{
	struct area_test *test = &self->test;
	struct kvm_run *run = test->vcpu->run;
	struct kvm_x86_msr_op *op;
	int i;

	enable_exits(test->vm, 1);
	for (i = 0; i < 4; i++) {
		set_desc_at(test, DESC_GPA + 64, AREA_GPA, 64, STEAL_TIME);
		op = start_command(test, variant->emulate, REGISTER + i / 2, AREA_GPA, 4096,
				   VMM_TYPE);
		memset(op, i % 2 ? 0xff : 0x55, sizeof(*op));
		op->msr_data = DESC_GPA + 64;
		op->index = UNREGISTER - i / 2;
		op->error = 0;
		op->result = 0x80 + i;
		run->exit_reason = KVM_EXIT_X86_WRMSR;
		TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
		TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0x80 + i);
		TEST_ASSERT_EQ(result_at(test, DESC_GPA + 64), NO_ANSWER);

		/* The whole page, except for what KVM_RUN takes from it. */
		start_command(test, variant->emulate, REGISTER + i / 2, AREA_GPA, 4096,
			      VMM_TYPE);
		memset(run->padding, 0xff, sizeof(run->padding));
		TEST_ASSERT_EQ(finish_command(test->vcpu), GP_VECTOR);
	}
}

static bool stop_scribbling;

static void *scribble(void *arg)
{
	struct kvm_x86_msr_op *op = arg;
	u64 i;

	for (i = 0; !READ_ONCE(stop_scribbling); i++) {
		WRITE_ONCE(op->msr_data, i % 3 ? DESC_GPA + 64 : 0);
		WRITE_ONCE(op->base, i);
		WRITE_ONCE(op->index, REGISTER + i % 2);
		WRITE_ONCE(op->error, i % 5 == 0);
		WRITE_ONCE(op->result, 0x80 + i % 16);
	}
	return NULL;
}

/* Not even if another thread writes to kvm_run while KVM reads the answer. */
TEST_F(area, scribbled_meanwhile)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	int i, nr_faults = 0;
	pthread_t thread;
	u8 result;

	enable_exits(test->vm, 1);
	TEST_ASSERT_EQ(area_command(test, variant->emulate, REGISTER, STEAL_GPA, 64,
				    STEAL_TIME), 0);
	WRITE_ONCE(stop_scribbling, false);
	pthread_create(&thread, NULL, scribble, &vcpu->run->msr_op);
	for (i = 0; i < 300; i++) {
		set_desc_at(test, DESC_GPA, AREA_GPA, 4096, VMM_TYPE);
		set_desc_at(test, DESC_GPA + 64, AREA_GPA, 4096, VMM_TYPE);
		start_op(vcpu, true, variant->emulate, REGISTER + i % 2, DESC_GPA);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_X86_MSR_OP);
		vcpu_run_complete_io(vcpu);
		result = result_at(test, DESC_GPA);
		/* The preset answer is one, too. */
		TEST_ASSERT(result == NO_ANSWER || result == KVM_MEM_AREA_UNKNOWN_TYPE ||
			    (result >= 0x80 && result < 0x90), "Result %#x", result);
		nr_faults += result == NO_ANSWER;
		TEST_ASSERT_EQ(result_at(test, DESC_GPA + 64), NO_ANSWER);
		/* The guest's exit is scribbled over, too. */
		vcpu_run(vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	}
	WRITE_ONCE(stop_scribbling, true);
	pthread_join(thread, NULL);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_STEAL_TIME), STEAL_GPA | 1);
	TH_LOG("%d of %d answers were errors", nr_faults, i);
}

/* Other ioctls of the vCPU neither disturb the exit nor answer it. */
TEST_F(area, ioctls_meanwhile)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	struct kvm_vcpu_events events;
	struct kvm_x86_msr_op *op;
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	enable_exits(test->vm, 1);
	op = start_command(test, variant->emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
	op->result = 0x83;
	set_desc_at(test, DESC_GPA + 64, STEAL_GPA, 64, STEAL_TIME);
	TEST_ASSERT_EQ(_vcpu_set_msr(vcpu, REGISTER, DESC_GPA + 64), 0);
	TEST_ASSERT_EQ(_vcpu_set_msr(vcpu, UNREGISTER, 0), 0);
	vcpu_set_msr(vcpu, MSR_KVM_STEAL_TIME, STEAL_GPA | 1);
	vcpu_regs_get(vcpu, &regs);
	vcpu_regs_set(vcpu, &regs);
	vcpu_sregs_get(vcpu, &sregs);
	vcpu_sregs_set(vcpu, &sregs);
	vcpu_events_get(vcpu, &events);
	vcpu_events_set(vcpu, &events);
	vcpu_set_cpuid(vcpu);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), NO_ANSWER);
	TEST_ASSERT_EQ(finish_command(vcpu), 0);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0x83);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA + 64), NO_ANSWER);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_STEAL_TIME), STEAL_GPA | 1);
}

/* The guest's own changes of the descriptor come too late. */
TEST_F(area, descriptor_changes)
{
	struct area_test *test = &self->test;
	struct kvm_x86_msr_op *op;

	enable_exits(test->vm, 1);
	op = start_command(test, variant->emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
	set_desc_at(test, DESC_GPA, ~0ull, ~0u, STEAL_TIME);
	TEST_ASSERT_EQ(op->base, AREA_GPA);
	op->result = 0;
	TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0);
	TEST_ASSERT_EQ(vcpu_get_msr(test->vcpu, MSR_KVM_STEAL_TIME), 0);
}

/* Which commands exit, the setting decides when they begin. */
TEST_F(area, setting)
{
	struct area_test *test = &self->test;
	bool emulate = variant->emulate;
	struct kvm_x86_msr_op *op;
	int i;

	for (i = 0; i < 2; i++) {
		TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE),
			       KVM_MEM_AREA_UNKNOWN_TYPE);
		enable_exits(test->vm, 1);
		enable_exits(test->vm, 1);
		op = start_command(test, emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
		enable_exits(test->vm, 0);
		op->result = 0x99;
		TEST_ASSERT_EQ(finish_command(test->vcpu), 0);
		TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0x99);
	}

	/* KVM's own types never exit. */
	enable_exits(test->vm, 1);
	TEST_ASSERT_EQ(area_command(test, emulate, REGISTER, STEAL_GPA, 64, STEAL_TIME), 0);
}

/* A descriptor at address 0 is no command to forget all. */
TEST_F(area, descriptor_at_0)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	struct kvm_memory_area *desc = addr_gpa2hva(test->vm, 0);

	enable_exits(test->vm, 1);
	TEST_ASSERT_EQ(area_command(test, variant->emulate, REGISTER, STEAL_GPA, 64,
				    STEAL_TIME), 0);
	*desc = (struct kvm_memory_area) { AREA_GPA, 4096, VMM_TYPE, NO_ANSWER };
	start_op(vcpu, true, variant->emulate, REGISTER, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_X86_MSR_OP);
	TEST_ASSERT_EQ(vcpu->run->msr_op.base, AREA_GPA);
	vcpu->run->msr_op.result = 0x88;
	TEST_ASSERT_EQ(finish_command(vcpu), 0);
	TEST_ASSERT_EQ(desc->result, 0x88);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_STEAL_TIME), STEAL_GPA | 1);
}

/* immediate_exit and signals complete the command, and nothing else. */
TEST_F(area, immediate_exit)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	struct kvm_x86_msr_op *op;
	int i;

	enable_exits(test->vm, 1);
	for (i = 0; i < 2; i++) {
		op = start_command(test, variant->emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
		op->error = i;
		op->result = 0x77;
		vcpu_run_complete_io(vcpu);
		TEST_ASSERT_EQ(result_at(test, DESC_GPA), i ? NO_ANSWER : 0x77);
		/* The guest has not gone on yet. */
		TEST_ASSERT_EQ(guest_op(vcpu)->vector, 0xff);
		TEST_ASSERT_EQ(finish_command(vcpu), i ? GP_VECTOR : 0);
		TEST_ASSERT_EQ(result_at(test, DESC_GPA), i ? NO_ANSWER : 0x77);
	}
}

static void on_signal(int sig)
{
}

/* Runs the vCPU with a signal pending. */
static void run_with_signal(struct kvm_vcpu *vcpu)
{
	struct kvm_signal_mask *mask;
	sigset_t blocked;
	int sig;

	signal(SIGUSR1, on_signal);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	mask = calloc(1, sizeof(*mask) + 8);
	mask->len = 8;
	vcpu_ioctl(vcpu, KVM_SET_SIGNAL_MASK, mask);
	free(mask);

	raise(SIGUSR1);
	TEST_ASSERT(__vcpu_run(vcpu) == -1 && errno == EINTR, "errno %d", errno);
	TEST_ASSERT_EQ(sigwait(&blocked, &sig), 0);
}

TEST_F(area, signal)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;

	enable_exits(test->vm, 1);
	start_command(test, variant->emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE)->result = 0x66;
	run_with_signal(vcpu);
	/* The command is complete, and the guest has not gone on yet. */
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0x66);
	TEST_ASSERT_EQ(guest_op(vcpu)->vector, 0xff);
	TEST_ASSERT_EQ(finish_command(vcpu), 0);
}

/* The command to forget all areas, which KVM's own also end with. */
TEST_F(area, unregister_all)
{
	struct area_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	bool emulate = variant->emulate;
	/* How it is completed, before the guest goes on. */
	void (*const complete[])(struct kvm_vcpu *vcpu) = {
		NULL, vcpu_run_complete_io, run_with_signal,
	};
	int i, error;

	enable_exits(test->vm, 1);
	for (i = 0; i < ARRAY_SIZE(complete); i++) {
		for (error = 0; error < 2; error++) {
			register_areas(test, emulate);
			start_unregister_all(vcpu, emulate)->error = error;
			check_msrs(vcpu, WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);
			if (complete[i]) {
				complete[i](vcpu);
				check_msrs(vcpu, 0, 0, 0);
				TEST_ASSERT_EQ(guest_op(vcpu)->vector, 0xff);
			}
			TEST_ASSERT_EQ(finish_command(vcpu), error ? GP_VECTOR : 0);
			check_msrs(vcpu, 0, 0, 0);
		}
	}
}

/* The VMM gets that once for each vCPU, and KVM ends the areas of that vCPU. */
TEST(unregister_all_of_vcpus)
{
	struct area_test test;
	int i;

	area_init(&test, 3);
	enable_exits(test.vm, 1);
	for (i = 0; i < 3; i++) {
		test.vcpu = test.vcpus[i];
		register_areas(&test, false);
	}
	for (i = 0; i < 3; i++)
		start_unregister_all(test.vcpus[i], false);
	for (i = 0; i < 3; i++) {
		check_msrs(test.vcpus[i], i ? 0 : WALL_GPA, TIME_GPA | 1, STEAL_GPA | 1);
		TEST_ASSERT_EQ(finish_command(test.vcpus[i]), 0);
		check_msrs(test.vcpus[i], 0, 0, 0);
	}
	area_free(&test);
}

/* A vCPU that never runs again, and one whose exit is pending when it is saved. */
TEST_F(area, abandoned)
{
	struct area_test *test = &self->test;
	struct area_test other;
	struct kvm_x86_state *state;
	struct kvm_x86_msr_op *op;

	enable_exits(test->vm, 1);
	op = start_command(test, variant->emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
	op->result = 0;
	/* Completes the exit first. */
	state = vcpu_save_state(test->vcpu);
	TEST_ASSERT_EQ(result_at(test, DESC_GPA), 0);
	kvm_x86_state_cleanup(state);

	area_init(&other, 1);
	enable_exits(other.vm, 1);
	start_command(&other, variant->emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
	area_free(&other);
}

/* The descriptor's memory goes while the exit is pending. */
TEST_F(area, descriptor_goes)
{
	struct area_test *test = &self->test;
	struct kvm_x86_msr_op *op;
	int i;

	enable_exits(test->vm, 1);
	for (i = 0; i < 5; i++) {
		u8 *mem = area_hva(test, DESC_GPA), want = GP_VECTOR;
		void *copy;

		op = start_command(test, variant->emulate, REGISTER, AREA_GPA, 4096, VMM_TYPE);
		op->result = 0x55;
		switch (i) {
		case 0:
			set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, 0);
			break;
		case 1:
			set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, 0);
			set_area_slot(test, AREA_SLOT, KVM_MEM_READONLY, WINDOW_GPA, WINDOW_SIZE);
			break;
		case 2:
			mprotect(mem, PAGE_SIZE, PROT_READ);
			break;
		case 3:
			/* Zeroes, and the result. */
			madvise(mem, PAGE_SIZE, MADV_DONTNEED);
			want = 0;
			break;
		case 4:
			/* Another memslot in the same place. */
			set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, 0);
			copy = test->mem + WINDOW_SIZE / 2;
			memcpy(copy, mem, PAGE_SIZE);
			vm_set_user_memory_region(test->vm, AREA_SLOT, 0, WINDOW_GPA,
						  PAGE_SIZE, copy);
			want = 0;
			break;
		}
		TEST_ASSERT_EQ(finish_command(test->vcpu), want);
		if (i == 4)
			TEST_ASSERT_EQ(((struct kvm_memory_area *)copy)->result, 0x55);
		else
			TEST_ASSERT_EQ(result_at(test, DESC_GPA), want ? NO_ANSWER : 0x55);

		mprotect(mem, PAGE_SIZE, PROT_READ | PROT_WRITE);
		__vm_set_user_memory_region(test->vm, AREA_SLOT, 0, WINDOW_GPA, 0, NULL);
		set_area_slot(test, AREA_SLOT, 0, WINDOW_GPA, WINDOW_SIZE);
	}
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA));

	return test_harness_run(argc, argv);
}
