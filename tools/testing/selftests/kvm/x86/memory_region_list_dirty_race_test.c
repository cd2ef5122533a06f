// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST loses no dirty page of vCPUs that write while
 * logged slots change their shape.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <linux/bitmap.h>

#include "dirty_log_fixture.h"

/* The port that KVM gets from userspace what it writes. */
#define IO_PORT		0x2000
#define NR_ROUNDS	60
#define MAX_PIECES	6
#define FIRST_ID	10

/* The host accesses the guest's copies. */
static u64 guest_wrote[NR_WRITERS][NR_PAGES];
static bool guest_stop;

/*
 * Writes to random pages, and notes outside of the logged slots what it wrote.
 * The last writer has KVM write.
 */
static void guest_code(int id)
{
	struct kvm_random_state rng = new_kvm_random_state(id + 1);
	u64 n, *to;
	int i;

	for (n = 1; !READ_ONCE(guest_stop); n++) {
		i = kvm_random_u32(&rng) % NR_PAGES;
		to = &((u64 *)(WINDOW_GPA + i * PAGE_SIZE))[id];
		if (id < NR_WRITERS - 1)
			WRITE_ONCE(*to, n);
		else
			asm volatile("insl" : "+D"(to)
				     : "d"((u16)IO_PORT) : "memory");
		guest_wrote[id][i] = n;
	}
	GUEST_DONE();
}

/* How slots cut up the window, all of which is mapped all the time. */
struct pieces {
	int nr;
	int first[MAX_PIECES + 1];
};

static u32 slot_id(int round, int piece)
{
	return FIRST_ID + round % 2 * MAX_PIECES + piece;
}

static int compare_ints(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

static void cut(struct pieces *p)
{
	int i;

	do {
		p->nr = kvm_random_u32_in_range(&kvm_rng, 1, MAX_PIECES);
		p->first[0] = 0;
		p->first[p->nr] = NR_PAGES;
		for (i = 1; i < p->nr; i++)
			p->first[i] = kvm_random_u32_in_range(&kvm_rng, 1, NR_PAGES - 1);
		qsort(p->first, p->nr, sizeof(p->first[0]), compare_ints);
		for (i = 0; i < p->nr && p->first[i] < p->first[i + 1]; i++)
			;
	} while (i < p->nr);
}

static void replace_pieces(struct dirty_log_test *test, int round,
			   const struct pieces *old, const struct pieces *new)
{
	struct region_entry entries[2 * MAX_PIECES];
	int i, nr = 0;

	for (i = 0; i < old->nr; i++)
		entries[nr++] = region_delete(slot_id(round - 1, i));
	for (i = 0; i < new->nr; i++)
		entries[nr++] = log_set(slot_id(round, i), new->first[i],
					new->first[i + 1] - new->first[i]);
	vm_set_region_entries(test->vm, nr, entries);
}

/* Copies the pages that are dirty, as a migration does. */
static void copy_dirty(struct dirty_log_test *test, int round,
		       const struct pieces *p, u8 *copy)
{
	DECLARE_BITMAP(log, NR_PAGES);
	int i, page, nr;
	size_t at;

	for (i = 0; i < p->nr; i++) {
		nr = p->first[i + 1] - p->first[i];
		harvest(test, slot_id(round, i), nr, log);
		for (page = 0; page < nr; page++) {
			at = (p->first[i] + page) * PAGE_SIZE;
			if (test_bit(page, log))
				memcpy(copy + at, mem + at, NR_WRITERS * sizeof(u64));
		}
	}
}

static void *vcpu_worker(void *arg)
{
	struct kvm_vcpu *vcpu = arg;
	struct kvm_run *run = vcpu->run;
	struct ucall uc;
	u32 n = 1;

	for (;;) {
		vcpu_run(vcpu);
		if (run->exit_reason != KVM_EXIT_IO || run->io.port != IO_PORT)
			break;
		*(u32 *)((u8 *)run + run->io.data_offset) = n++;
	}
	switch (get_ucall(vcpu, &uc)) {
	case UCALL_DONE:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected exit: %s",
			  exit_reason_str(vcpu->run->exit_reason));
	}
	return NULL;
}

TEST_F_TIMEOUT(dirty_log, running_writers, 120)
{
	struct dirty_log_test *test = &self->test;
	u8 *copy = calloc(NR_PAGES, PAGE_SIZE);
	struct pieces old = {}, new;
	pthread_t threads[NR_WRITERS];
	u64 in_mem, copied, wrote;
	int i, id, round;

	TEST_ASSERT(copy, "Insufficient Memory");
	cut(&new);
	replace_pieces(test, 0, &old, &new);

	for (id = 0; id < NR_WRITERS; id++) {
		vcpu_args_set(test->vcpus[id], 1, id);
		kvm_pthread_create(&threads[id], NULL, vcpu_worker, test->vcpus[id]);
	}

	for (round = 1; round < NR_ROUNDS; round++) {
		usleep(kvm_random_u32_in_range(&kvm_rng, 0, 5000));
		/* Sometimes, several lists pass before the log is read. */
		if (kvm_random_bool(&kvm_rng))
			copy_dirty(test, round - 1, &new, copy);
		old = new;
		cut(&new);
		replace_pieces(test, round, &old, &new);
	}

	WRITE_ONCE(*guest_ptr(test->vm, guest_stop), true);
	for (id = 0; id < NR_WRITERS; id++)
		kvm_pthread_join(threads[id], NULL);
	copy_dirty(test, round - 1, &new, copy);

	for (id = 0; id < NR_WRITERS; id++) {
		for (i = 0; i < NR_PAGES; i++) {
			in_mem = ((u64 *)(mem + i * PAGE_SIZE))[id];
			copied = ((u64 *)(copy + i * PAGE_SIZE))[id];
			wrote = (*guest_ptr(test->vm, guest_wrote))[id][i];
			TEST_ASSERT(in_mem == wrote,
				    "page %d: vCPU %d wrote %lu, there is %lu",
				    i, id, wrote, in_mem);
			TEST_ASSERT(in_mem == copied,
				    "page %d: vCPU %d's %lu was not logged, %lu was",
				    i, id, in_mem, copied);
		}
	}
	free(copy);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	return test_harness_run(argc, argv);
}
