// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): what is done to one of them does not concern the
 * others.
 */
#include <pthread.h>

#include "gmap_guest.h"
#include "kvm_test_harness.h"
#include "two_cpus.h"

/* vCPUs at the edges of words of bits, and the last one. */
#define NR_CHOSEN	7
#define NR_SEGMENTS	2
#define NR_REMAPS	500

struct world {
	int index;
	struct kvm_vcpu *vcpu;
	u8 *mem;
};

static struct world worlds[NR_CHOSEN];

static u64 tag(const struct world *w, int segment)
{
	return 0x1000 + w->index * 16 + segment;
}

static u64 *word(const struct world *w, int segment)
{
	return (u64 *)(w->mem + segment * SEGMENT);
}

FIXTURE(isolation)
{
	struct kvm_vm *vm;
};

FIXTURE_SETUP(isolation)
{
	kvm_set_files_rlimit(max_ucas_vcpus());
	self->vm = gmap_vm_create();
}

FIXTURE_TEARDOWN(isolation)
{
	kvm_vm_free(self->vm);
}

/* All vCPUs that the VM may have.  Their ids go the other way than their indexes. */
static void create_worlds(struct kvm_vm *vm)
{
	const int nr = max_ucas_vcpus();
	const int chosen[NR_CHOSEN] = { 0, 1, 31, 32, 63, 64, nr - 1 };
	struct world *w;
	int i, s, next = 0;

	for (i = 0; i < nr; i++) {
		if (i != chosen[next]) {
			__vm_vcpu_add(vm, nr - 1 - i);
			continue;
		}
		w = &worlds[next++];
		w->index = i;
		w->vcpu = gmap_guest_add(vm, nr - 1 - i);
		w->mem = segments_alloc(NR_SEGMENTS);
		gmap_map(w->vcpu, w->mem, DATA_GPA, NR_SEGMENTS * SEGMENT);
		for (s = 0; s < NR_SEGMENTS; s++)
			*word(w, s) = tag(w, s);
	}
}

static void check_world(struct world *w)
{
	int s;

	for (s = 0; s < NR_SEGMENTS; s++)
		TEST_ASSERT(run_read(w->vcpu, DATA_GPA + s * SEGMENT) == tag(w, s),
			    "vCPU %d: segment %d has 0x%lx", w->index, s,
			    run_read(w->vcpu, DATA_GPA + s * SEGMENT));
}

static void check_all(void)
{
	int i;

	for (i = 0; i < NR_CHOSEN; i++)
		check_world(&worlds[i]);
}

/* The same guest address is different memory to each vCPU. */
TEST_F_TIMEOUT(isolation, all_vcpus, 300)
{
	struct world *w, *other;
	int i;

	create_worlds(self->vm);
	/* There are no more. */
	EXPECT_EQ(-1, __vm_ioctl(self->vm, KVM_CREATE_VCPU,
				 (void *)(unsigned long)max_ucas_vcpus()));
	EXPECT_EQ(EINVAL, errno);

	check_all();
	for (i = 0; i < NR_CHOSEN; i++) {
		w = &worlds[i];
		other = &worlds[(i + 1) % NR_CHOSEN];

		/* A write. */
		run_write(w->vcpu, DATA_GPA, 0xbad);
		EXPECT_EQ(0xbad, *word(w, 0));
		*word(w, 0) = tag(w, 0);

		/* A hole. */
		gmap_unmap(w->vcpu, DATA_GPA + SEGMENT, SEGMENT);
		run_read_hole(w->vcpu, DATA_GPA + SEGMENT);
		check_world(other);

		/* Another's memory. */
		gmap_map(w->vcpu, other->mem + SEGMENT, DATA_GPA + SEGMENT, SEGMENT);
		EXPECT_EQ(tag(other, 1), run_read(w->vcpu, DATA_GPA + SEGMENT));
		gmap_unmap(w->vcpu, DATA_GPA, SZ_1G);
		check_world(other);

		gmap_map(w->vcpu, w->mem, DATA_GPA, NR_SEGMENTS * SEGMENT);
		check_all();
	}
}

/* Guest and host share these. */
static bool guest_stop;
static u64 guest_rounds;

static u64 guest_spin(u64 *addr)
{
	while (!READ_ONCE(guest_stop)) {
		READ_ONCE(*addr);
		WRITE_ONCE(guest_rounds, guest_rounds + 1);
	}
	return 0;
}

static void *run_thread(void *arg)
{
	guest_run(arg);
	return NULL;
}

static void await_round(void)
{
	u64 start = READ_ONCE(guest_rounds);
	int i;

	for (i = 0; READ_ONCE(guest_rounds) < start + 2; i++) {
		TEST_ASSERT(i < 600000, "The guest does not get on");
		usleep(100);
	}
}

struct bystander {
	u64 faults, flushes, exits;
};

static struct bystander stats_of(struct kvm_vcpu *vcpu)
{
	return (struct bystander) {
		.faults = vcpu_get_stat(vcpu, pf_taken),
		.flushes = vcpu_get_stat(vcpu, tlb_flush),
		.exits = vcpu_get_stat(vcpu, exits),
	};
}

/* Has a vCPU run for as long as @ns, without changing its map. */
static void run_for(struct kvm_vcpu *vcpu, u64 ns)
{
	struct timespec start;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (timespec_to_ns(timespec_elapsed(start)) < ns)
		run_read(vcpu, DATA_GPA);
}

/*
 * A vCPU that runs beside changes of another one's map takes no fault, flushes no
 * TLB, and is not kicked out of the guest.  The host's timer makes it exit as well:
 * it must exit about as often as beside a vCPU whose map does not change.
 */
TEST_F_TIMEOUT(isolation, bystander, 300)
{
	struct kvm_vcpu *changed, *bystander;
	struct bystander before, after, victim;
	struct timespec start;
	u64 rounds, exits, others, ns;
	pthread_t thread;
	u8 *mem[2];
	int cpus[2];
	int i;

	find_two_cpus(cpus);
	changed = gmap_guest_add(self->vm, 0);
	bystander = gmap_guest_add(self->vm, 1);
	for (i = 0; i < 2; i++)
		mem[i] = segments_alloc(1);
	gmap_map(changed, mem[0], DATA_GPA, SEGMENT);
	gmap_map(bystander, mem[0], DATA_GPA, SEGMENT);

	/* Its own memory is present before. */
	run_read(bystander, DATA_GPA);
	guest_set_call(bystander, guest_spin, DATA_GPA, 0, 0);
	kvm_pthread_create(&thread, NULL, run_thread, bystander);
	pin_self_to_cpu(cpus[0]);
	pin_task_to_cpu(thread, cpus[1]);
	await_round();
	await_round();

	before = stats_of(bystander);
	victim = stats_of(changed);
	rounds = guest_rounds;
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (i = 1; i <= NR_REMAPS; i++) {
		run_read(changed, DATA_GPA);
		gmap_map(changed, mem[i % 2], DATA_GPA, SEGMENT);
	}
	ns = timespec_to_ns(timespec_elapsed(start));
	after = stats_of(bystander);
	exits = after.exits - before.exits;
	run_for(changed, ns);
	others = stats_of(bystander).exits - after.exits;
	await_round();
	EXPECT_NE(rounds, guest_rounds);
	WRITE_ONCE(guest_stop, true);
	kvm_pthread_join(thread, NULL);

	/* That is what it would look like. */
	EXPECT_GE(vcpu_get_stat(changed, pf_taken) - victim.faults, NR_REMAPS);
	TH_LOG("%lu exits beside %d remaps, %lu without", exits, NR_REMAPS, others);

	EXPECT_EQ(before.faults, after.faults);
	EXPECT_EQ(before.flushes, after.flushes);
	EXPECT_LT(exits, others + NR_REMAPS / 2);
}

/* The same memory at different addresses of different vCPUs. */
TEST_F(isolation, shared_memory)
{
	struct kvm_vcpu *vcpus[3];
	u8 *mem = segments_alloc(2);
	u64 i, j;

	for (i = 0; i < 3; i++) {
		vcpus[i] = gmap_guest_add(self->vm, i);
		gmap_map(vcpus[i], mem, DATA_GPA + i * SZ_16M, 2 * SEGMENT);
	}
	for (i = 0; i < 3; i++) {
		run_write(vcpus[i], DATA_GPA + i * SZ_16M + SEGMENT, 100 + i);
		for (j = 0; j < 3; j++)
			EXPECT_EQ(100 + i, run_read(vcpus[j], DATA_GPA + j * SZ_16M +
						    SEGMENT));
		run_read_hole(vcpus[i], DATA_GPA + (i + 1) % 3 * SZ_16M);
	}
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());

	return test_harness_run(argc, argv);
}
