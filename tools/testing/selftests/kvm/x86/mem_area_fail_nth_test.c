// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas: no allocation that fails has an effect that the guest is not told.
 *
 * Each command is executed with KVM_RUN's first allocation failing, then with its
 * second one, and so on until no allocation fails.
 */
#include "fault_injection.h"
#include "mem_area.h"

/* Far more allocations than one KVM_RUN makes, and than can fail in a row. */
#define MAX_NTH		500
#define MAX_RETRIES	100

static const struct kind {
	u64 base, enable;
	u32 size, type, msr;
} kinds[] = {
	{ AREA_GPA, 0, 12, WALL_CLOCK, MSR_KVM_WALL_CLOCK_NEW },
	{ AREA_GPA + 64, 1, 32, SYSTEM_TIME, MSR_KVM_SYSTEM_TIME_NEW },
	{ AREA_GPA + 128, 1, 64, STEAL_TIME, MSR_KVM_STEAL_TIME },
	{ AREA_GPA, 0, 4096, VMM_TYPE, 0 },
};

/* Runs the vCPU with its @nth allocation failing, and again until it leaves. */
static bool run_fail_nth(struct kvm_vcpu *vcpu, unsigned int nth)
{
	bool failed;
	int r, i;

	r = ioctl_fail_nth(nth, vcpu->fd, KVM_RUN, NULL, &failed);
	for (i = 0; r && i < MAX_RETRIES; i++) {
		TEST_ASSERT(errno == EINTR || errno == EFAULT || errno == ENOMEM,
			    "Failure %u: errno %d", nth, errno);
		r = __vcpu_run(vcpu);
	}
	TEST_ASSERT(!r, "Failure %u: KVM_RUN still fails, errno %d", nth, errno);
	return failed;
}

/*
 * Executes a command until no allocation fails.  Whatever fails, KVM_RUN can be
 * repeated, and the command has succeeded if the guest is told so, or else has
 * changed nothing.
 */
static void sweep(struct area_test *test, u32 msr, const struct kind *kind)
{
	const u64 on = kind->base | kind->enable, off = 0;
	const u64 before = msr == REGISTER ? off : on;
	const u64 after = msr == REGISTER ? on : off;
	struct kvm_vcpu *vcpu = test->vcpu;
	int nr_failed = 0, nr_refused = 0;
	unsigned int nth;
	bool failed = true;
	u8 result, vector;

	for (nth = 1; failed; nth++) {
		TEST_ASSERT(nth < MAX_NTH, "There are always more allocations");
		if (kind->msr)
			vcpu_set_msr(vcpu, kind->msr, before);
		/* Memory of the host comes in anew. */
		madvise(area_hva(test, AREA_GPA), PAGE_SIZE, MADV_DONTNEED);
		set_desc_at(test, DESC_GPA, kind->base, kind->size, kind->type);
		*guest_op(vcpu) = (struct guest_op) {
			.value = DESC_GPA,
			.msr = msr,
			.write = true,
			.vector = 0xff,
		};
		failed = run_fail_nth(vcpu, nth);
		if (vcpu->run->exit_reason == KVM_EXIT_X86_MSR_OP) {
			vcpu->run->msr_op.result = 0;
			failed |= run_fail_nth(vcpu, nth);
		}
		nr_failed += failed;
		vector = op_vector(vcpu);
		result = result_at(test, DESC_GPA);
		nr_refused += vector || result;
		TEST_ASSERT(failed || (!vector && !result),
			    "Nothing failed, vector %u, result %u", vector, result);
		TEST_ASSERT(!vector || result == NO_ANSWER, "#GP, and result %u", result);
		if (!kind->msr)
			continue;
		TEST_ASSERT(vcpu_get_msr(vcpu, kind->msr) ==
			    (vector || result ? before : after),
			    "Failure %u: vector %u, result %u, the MSR is %#lx", nth,
			    vector, result, vcpu_get_msr(vcpu, kind->msr));
	}
	ksft_print_msg("MSR %#x, type %#x: %d of %u failed, the guest was told of %d\n",
		       msr, kind->type, nr_failed, nth - 1, nr_refused);
}

TEST(commands)
{
	struct area_test test;
	int i;

	if (!have_fault_injection())
		SKIP(return, "No fault injection");

	area_init(&test, 1);
	enable_exits(test.vm, 1);
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		sweep(&test, REGISTER, &kinds[i]);
		sweep(&test, UNREGISTER, &kinds[i]);
	}
	TEST_ASSERT(fail_pages(true), "Cannot make pages fail");
	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		sweep(&test, REGISTER, &kinds[i]);
	area_free(&test);
	close(fail_nth_fd);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA));
	TEST_REQUIRE(have_fault_injection());

	return test_harness_run(argc, argv);
}
