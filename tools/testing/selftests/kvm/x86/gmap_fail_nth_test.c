// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): a change of a map, or a new vCPU, whose nth
 * allocation fails.  Nothing has changed then, and the next try succeeds.
 *
 * Each ioctl is made with its first allocation failing, then with its second one, and
 * so on until no allocation fails.
 */
#include "fault_injection.h"
#include "gmap_guest.h"
#include "kvm_test_harness.h"

#define NR_SEGMENTS	8

FIXTURE(fail_nth)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *mem, *other;
};

#define test_data FIXTURE_DATA(fail_nth)

FIXTURE_SETUP(fail_nth)
{
	u64 i;

	if (!have_fault_injection())
		SKIP(return, "No fault injection");
	self->vm = gmap_vm_with_guest(&self->vcpu);
	self->mem = segments_alloc(NR_SEGMENTS);
	self->other = segments_alloc(NR_SEGMENTS);
	for (i = 0; i < NR_SEGMENTS; i++) {
		*(u64 *)(self->mem + i * SEGMENT) = 0x100 + i;
		*(u64 *)(self->other + i * SEGMENT) = 0x200 + i;
	}
}

FIXTURE_TEARDOWN(fail_nth)
{
	kvm_vm_free(self->vm);
	close(fail_nth_fd);
}

/* The base state: segments 0 to 2 are mapped as one, 4 to 7 are, 3 is a hole. */
static void reset_map(test_data *self)
{
	gmap_unmap(self->vcpu, DATA_GPA, NR_SEGMENTS * SEGMENT);
	gmap_map(self->vcpu, self->mem, DATA_GPA, 3 * SEGMENT);
	gmap_map(self->vcpu, self->mem + 4 * SEGMENT, DATA_GPA + 4 * SEGMENT,
		 4 * SEGMENT);
}

static void check_segment(test_data *self, int segment, u64 want,
			  const char *when)
{
	gpa_t gpa = DATA_GPA + segment * SEGMENT;
	u64 seen = 0;

	if (gmap_is_mapped(self->vcpu, gpa))
		seen = run_read(self->vcpu, gpa);
	TEST_ASSERT(seen == want, "%s: segment %d is 0x%lx instead of 0x%lx", when,
		    segment, seen, want);
}

static void check_reset(test_data *self, const char *when)
{
	int i;

	for (i = 0; i < NR_SEGMENTS; i++)
		check_segment(self, i, i == 3 ? 0 : 0x100 + i, when);
}

/* A change of segments: @other maps them, or else they are unmapped. */
static void sweep(test_data *self, const char *name, int at, int nr,
		  bool map)
{
	struct kvm_s390_ucas_mapping mapping = {
		.user_addr = (uintptr_t)self->other + at * SEGMENT,
		.vcpu_addr = DATA_GPA + at * SEGMENT,
		.length = nr * SEGMENT,
	};
	const unsigned long cmd = map ? KVM_S390_UCAS_MAP : KVM_S390_UCAS_UNMAP;
	int r, i, nr_failed = 0, nr_survived = 0;
	bool failed = true;
	unsigned int nth;
	char when[64];

	for (nth = 1; failed; nth++) {
		snprintf(when, sizeof(when), "%s, failure %u", name, nth);
		reset_map(self);
		/* With mappings in place. */
		check_reset(self, when);
		r = ioctl_fail_nth(nth, self->vcpu->fd, cmd, &mapping, &failed);
		if (r) {
			TEST_ASSERT(failed && errno == ENOMEM, "%s: errno %d%s", when,
				    errno, failed ? "" : ", and nothing failed");
			nr_failed++;
			check_reset(self, when);
			r = ioctl(self->vcpu->fd, cmd, &mapping);
			TEST_ASSERT(!r, "%s: then errno %d", when, errno);
		} else {
			nr_survived += failed;
		}
		for (i = 0; i < NR_SEGMENTS; i++) {
			if (i >= at && i < at + nr)
				check_segment(self, i, map ? 0x200 + i : 0, when);
			else
				check_segment(self, i, i == 3 ? 0 : 0x100 + i, when);
		}
	}
	ksft_print_msg("%s: failed %d times, managed without %d times\n", name, nr_failed,
		       nr_survived);
	TEST_ASSERT(nr_failed >= 2, "%s: failed only %d times", name, nr_failed);
}

TEST_F_TIMEOUT(fail_nth, map_hole, 120)
{
	sweep(self, "map a hole", 3, 1, true);
}

TEST_F_TIMEOUT(fail_nth, map_over, 120)
{
	sweep(self, "map over extents", 1, 5, true);
	sweep(self, "map all", 0, 8, true);
}

TEST_F_TIMEOUT(fail_nth, split, 120)
{
	sweep(self, "split by a map", 5, 1, true);
	sweep(self, "split by a hole", 5, 1, false);
	sweep(self, "unmap across", 2, 4, false);
}

/* A segment that joins the extents on both sides of it. */
TEST_F_TIMEOUT(fail_nth, join, 120)
{
	struct kvm_s390_ucas_mapping mapping = {
		.user_addr = (uintptr_t)self->mem + 3 * SEGMENT,
		.vcpu_addr = DATA_GPA + 3 * SEGMENT,
		.length = SEGMENT,
	};
	bool failed = true;
	unsigned int nth;
	int r, i;

	for (nth = 1; failed; nth++) {
		reset_map(self);
		r = ioctl_fail_nth(nth, self->vcpu->fd, KVM_S390_UCAS_MAP, &mapping,
				   &failed);
		if (r) {
			TEST_ASSERT(failed && errno == ENOMEM, "errno %d", errno);
			check_reset(self, "join");
			r = ioctl(self->vcpu->fd, KVM_S390_UCAS_MAP, &mapping);
			TEST_ASSERT(!r, "errno %d", errno);
		}
		for (i = 0; i < NR_SEGMENTS; i++)
			check_segment(self, i, 0x100 + i, "joined");
	}
	EXPECT_GT(nth, 2);
}

/*
 * A vCPU that could not be created leaves nothing behind: the next one with its id
 * has an empty world, and the worlds of the others stay.
 */
TEST_F_TIMEOUT(fail_nth, create_vcpu, 240)
{
	const int max = max_ucas_vcpus() - 1;
	int fd, nr_failed = 0, nr_created = 0;
	struct kvm_vcpu *next;
	bool failed = true;
	unsigned int nth;

	reset_map(self);
	for (nth = 1; failed && nr_created < max; nth++) {
		fd = ioctl_fail_nth(nth, self->vm->fd, KVM_CREATE_VCPU,
				    (void *)(unsigned long)nth, &failed);
		if (fd >= 0) {
			close(fd);
			nr_created++;
			continue;
		}
		TEST_ASSERT(failed && errno == ENOMEM, "Failure %u: errno %d", nth,
			    errno);
		nr_failed++;
		if (nth % 8)
			continue;
		check_segment(self, 0, 0x100, "after a vCPU");
	}
	TH_LOG("failed %d times, managed without %d times", nr_failed, nr_created - 1);
	EXPECT_GE(nr_failed, 4);
	check_reset(self, "after all");

	next = gmap_guest_add(self->vm, nth);
	EXPECT_FALSE(gmap_is_mapped(next, DATA_GPA));
	gmap_map(next, self->other, DATA_GPA, SEGMENT);
	EXPECT_EQ(0x200, run_read(next, DATA_GPA));
	EXPECT_EQ(0x100, run_read(self->vcpu, DATA_GPA));
}

/* The first vCPU of a VM, which may allocate more. */
TEST_F_TIMEOUT(fail_nth, create_first_vcpu, 240)
{
	struct kvm_vm *vm;
	bool failed = true;
	unsigned int nth;
	struct kvm_vcpu *vcpu;
	int fd;

	for (nth = 1; failed; nth++) {
		vm = gmap_vm_create();
		fd = ioctl_fail_nth(nth, vm->fd, KVM_CREATE_VCPU, (void *)7ul, &failed);
		TEST_ASSERT(fd >= 0 || (failed && errno == ENOMEM),
			    "Failure %u: errno %d", nth, errno);
		if (fd >= 0)
			close(fd);
		if (!(nth % 4) || !failed) {
			vcpu = gmap_guest_add(vm, 0);
			gmap_map(vcpu, self->mem, DATA_GPA, SEGMENT);
			EXPECT_EQ(0x100, run_read(vcpu, DATA_GPA));
		}
		kvm_vm_free(vm);
	}
	EXPECT_GT(nth, 5);
}

/* The capability, which may allocate as well. */
TEST_F(fail_nth, enable)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_S390_UCONTROL };
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	bool failed = true;
	unsigned int nth;
	int r;

	for (nth = 1; failed; nth++) {
		vm = vm_create_barebones();
		r = ioctl_fail_nth(nth, vm->fd, KVM_ENABLE_CAP, &cap, &failed);
		TEST_ASSERT(!r || (failed && errno == ENOMEM), "Failure %u: errno %d",
			    nth, errno);
		if (r)
			vm_enable_cap(vm, KVM_CAP_S390_UCONTROL, 0);
		vcpu = gmap_guest_add(vm, 0);
		gmap_map(vcpu, self->mem, DATA_GPA, SEGMENT);
		EXPECT_EQ(0x100, run_read(vcpu, DATA_GPA));
		kvm_vm_free(vm);
	}
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());
	TEST_REQUIRE(have_fault_injection());

	return test_harness_run(argc, argv);
}
