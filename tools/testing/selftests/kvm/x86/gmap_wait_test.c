// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): changes of maps beside a vCPU that waits for
 * memory from userfaultfd.  Such a change may wait for the vCPU, as documented, but
 * it ends when the memory is there, and the vCPU sees its result.
 *
 * These tests end in a timeout if two wait for each other.
 */
#include <pthread.h>

#include "gmap_guest.h"
#include "kvm_test_harness.h"
#include "uffd_page.h"

FIXTURE(wait)
{
	struct kvm_vm *vm;
	/* The one that waits, and another one. */
	struct kvm_vcpu *vcpu, *other;
	u8 *mem, *other_mem;
	u8 contents[PAGE_SIZE] __aligned(8);
	int uffd;
	pthread_t runner;
	u64 seen;
};

#define test_data FIXTURE_DATA(wait)

FIXTURE_SETUP(wait)
{
	self->vm = gmap_vm_create();
	self->vcpu = gmap_guest_add(self->vm, 0);
	self->other = gmap_guest_add(self->vm, 1);
	self->mem = segments_alloc(2);
	self->other_mem = segments_alloc(2);
	*(u64 *)self->other_mem = 0x07e4;
	*(u64 *)self->contents = 0x3a17;
	madvise(self->mem, 2 * SEGMENT, MADV_NOHUGEPAGE);
	gmap_map(self->vcpu, self->mem, DATA_GPA, 2 * SEGMENT);
	gmap_map(self->other, self->other_mem, DATA_GPA, 2 * SEGMENT);
	self->uffd = uffd_open(self->mem, SEGMENT);
}

FIXTURE_TEARDOWN(wait)
{
	close(self->uffd);
	kvm_vm_free(self->vm);
}

static void *run_thread(void *arg)
{
	test_data *self = arg;

	self->seen = guest_run(self->vcpu);
	return NULL;
}

/* Runs the vCPU until it waits for the first page of its memory. */
static void start_waiting(test_data *self)
{
	guest_set_call(self->vcpu, guest_read, DATA_GPA, 0, 0);
	kvm_pthread_create(&self->runner, NULL, run_thread, self);
	uffd_await_fault(self->uffd);
}

struct change {
	struct kvm_vcpu *vcpu;
	u8 *user;
	pthread_t thread;
	bool has_ended;
};

static void *change_thread(void *arg)
{
	struct change *c = arg;

	if (c->user)
		gmap_map(c->vcpu, c->user, DATA_GPA, SEGMENT);
	else
		gmap_unmap(c->vcpu, DATA_GPA, SEGMENT);
	WRITE_ONCE(c->has_ended, true);
	return NULL;
}

/* Makes a change beside the vCPU that waits.  Both end when the page is there. */
static void change_beside_wait(test_data *self, struct kvm_vcpu *vcpu, u8 *user)
{
	struct change c = { .vcpu = vcpu, .user = user };

	start_waiting(self);
	kvm_pthread_create(&c.thread, NULL, change_thread, &c);
	usleep(100000);
	ksft_print_msg("the change %s\n",
		       READ_ONCE(c.has_ended) ? "has not waited" : "waits");
	uffd_copy(self->uffd, self->mem, self->contents);
	kvm_pthread_join(c.thread, NULL);
	kvm_pthread_join(self->runner, NULL);
}

TEST_F(wait, map_other)
{
	change_beside_wait(self, self->other, self->other_mem + SEGMENT);
	EXPECT_EQ(0x3a17, self->seen);
	EXPECT_EQ(0, run_read(self->other, DATA_GPA));
}

TEST_F(wait, unmap_other)
{
	change_beside_wait(self, self->other, NULL);
	EXPECT_EQ(0x3a17, self->seen);
	run_read_hole(self->other, DATA_GPA);
	EXPECT_EQ(0x3a17, run_read(self->vcpu, DATA_GPA));
}

/* Its own map: the vCPU reads the old memory or the new. */
TEST_F(wait, map_own)
{
	change_beside_wait(self, self->vcpu, self->other_mem);
	EXPECT_TRUE(self->seen == 0x3a17 || self->seen == 0x07e4)
		TH_LOG("0x%lx", self->seen);
	EXPECT_EQ(0x07e4, run_read(self->vcpu, DATA_GPA));
}

/* A map of the segment beside it, by which the extents are joined. */
TEST_F(wait, map_same)
{
	change_beside_wait(self, self->vcpu, self->mem);
	EXPECT_EQ(0x3a17, self->seen);
	EXPECT_EQ(0x3a17, run_read(self->vcpu, DATA_GPA));
}

/* The other vCPU runs, faults, and meets holes meanwhile. */
TEST_F(wait, run_other)
{
	start_waiting(self);
	EXPECT_EQ(0x07e4, run_read(self->other, DATA_GPA));
	run_read_hole(self->other, DATA_GPA + 2 * SEGMENT);
	EXPECT_EQ(0, __gmap_fault(self->other, DATA_GPA + SEGMENT));
	uffd_copy(self->uffd, self->mem, self->contents);
	kvm_pthread_join(self->runner, NULL);
	EXPECT_EQ(0x3a17, self->seen);
}

static void *fault_thread(void *arg)
{
	test_data *self = arg;

	self->seen = __gmap_fault(self->vcpu, DATA_GPA);
	return NULL;
}

/* KVM_S390_VCPU_FAULT waits as well. */
TEST_F(wait, vcpu_fault)
{
	kvm_pthread_create(&self->runner, NULL, fault_thread, self);
	uffd_await_fault(self->uffd);
	uffd_copy(self->uffd, self->mem, self->contents);
	kvm_pthread_join(self->runner, NULL);
	EXPECT_EQ(0, self->seen);
	EXPECT_EQ(0x3a17, run_read(self->vcpu, DATA_GPA));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());

	return test_harness_run(argc, argv);
}
