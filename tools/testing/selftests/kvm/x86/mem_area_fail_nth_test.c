// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas: no allocation that fails has an effect that the guest is not told.
 *
 * Each command is executed with KVM_RUN's first allocation failing, then with its
 * second one, and so on until no allocation fails.
 */
#include "fault_injection.h"
#include "mem_area.h"

#define STEAL_GPA	(AREA_GPA + 128)

/*
 * Executes a command until no allocation fails.  Whatever fails, KVM_RUN fails and
 * can be repeated, or the command succeeds.
 */
static void sweep(struct area_test *test, u32 msr, u64 base, u32 size, u32 type)
{
	struct kvm_vcpu *vcpu = test->vcpu;
	int r, nr_failed = 0, nr_eintr = 0;
	unsigned int nth;
	bool failed = true;

	for (nth = 1; failed; nth++) {
		/* Memory of the host comes in anew. */
		madvise(area_hva(test, AREA_GPA), PAGE_SIZE, MADV_DONTNEED);
		set_desc_at(test, DESC_GPA, base, size, type);
		*guest_op(vcpu) = (struct guest_op) {
			.value = DESC_GPA,
			.msr = msr,
			.write = true,
			.vector = 0xff,
		};
		r = ioctl_fail_nth(nth, vcpu->fd, KVM_RUN, NULL, &failed);
		while (r && (errno == EINTR || errno == EFAULT || errno == ENOMEM)) {
			nr_eintr++;
			r = __vcpu_run(vcpu);
		}
		TEST_ASSERT(!r, "Failure %u: errno %d", nth, errno);
		if (vcpu->run->exit_reason == KVM_EXIT_X86_MSR_OP) {
			vcpu->run->msr_op.result = 0;
			r = ioctl_fail_nth(nth, vcpu->fd, KVM_RUN, NULL, &failed);
			while (r && (errno == EINTR || errno == EFAULT || errno == ENOMEM))
				r = __vcpu_run(vcpu);
			TEST_ASSERT(!r, "Failure %u: errno %d", nth, errno);
		}
		nr_failed += failed;
		TEST_ASSERT(op_vector(vcpu) == 0 || failed, "#GP, and nothing failed");
		if (op_vector(vcpu))
			TEST_ASSERT_EQ(result_at(test, DESC_GPA), NO_ANSWER);
		else
			TEST_ASSERT(result_at(test, DESC_GPA) == 0 || failed,
				    "Result %u, and nothing failed",
				    result_at(test, DESC_GPA));
		if (!result_at(test, DESC_GPA) && type == STEAL_TIME)
			TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_KVM_STEAL_TIME),
				       msr == REGISTER ? base | 1 : 0);
		/* Unregister something that is registered the next time. */
		if (msr == UNREGISTER && type == STEAL_TIME)
			vcpu_set_msr(vcpu, MSR_KVM_STEAL_TIME, base | 1);
	}
	ksft_print_msg("MSR %#x, type %#x: %d of %u failed, %d repeated\n", msr, type,
		       nr_failed, nth - 1, nr_eintr);
}

TEST(commands)
{
	struct area_test test;

	if (!have_fault_injection())
		SKIP(return, "No fault injection");

	area_init(&test, 1);
	enable_exits(test.vm, 1);
	sweep(&test, REGISTER, AREA_GPA, 12, WALL_CLOCK);
	sweep(&test, REGISTER, AREA_GPA, 32, SYSTEM_TIME);
	sweep(&test, REGISTER, STEAL_GPA, 64, STEAL_TIME);
	sweep(&test, UNREGISTER, STEAL_GPA, 64, STEAL_TIME);
	sweep(&test, REGISTER, AREA_GPA, 4096, VMM_TYPE);
	TEST_ASSERT(fail_pages(true), "Cannot make pages fail");
	sweep(&test, REGISTER, AREA_GPA, 12, WALL_CLOCK);
	sweep(&test, REGISTER, AREA_GPA, 32, SYSTEM_TIME);
	sweep(&test, REGISTER, STEAL_GPA, 64, STEAL_TIME);
	area_free(&test);
	close(fail_nth_fd);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA));
	TEST_REQUIRE(have_fault_injection());

	return test_harness_run(argc, argv);
}
