// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST: random lists, and the largest one.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "region_list_fixture.h"

#define RANDOM_SEED	0x6d656d73
#define NR_RANDOM_LISTS	300
#define MAX_RANDOM_LIST	10

static int random_int(struct kvm_random_state *rng, int min, int max)
{
	return kvm_random_u32_in_range(rng, min, max);
}

/* Returns an entry that is likely to succeed, given the present slots. */
static struct region_entry random_entry(struct list_test *test,
					struct kvm_random_state *rng)
{
	int as = random_int(rng, 0, test->nr_as - 1);
	int id = random_int(rng, 0, NR_IDS - 1);
	const struct slot *slots = test->slots[as], *old = &slots[id];
	u32 slot = as << 16 | (FIRST_ID + id);
	struct region_entry entry;
	int nr, at, tries = 0;

	if (!old->size) {
		nr = random_int(rng, 1, 4);
		/* Mostly where there is room. */
		do {
			at = random_int(rng, 0, WINDOW_PAGES - nr);
		} while (tries++ < 4 &&
			 (slot_at(slots, NR_IDS, window_gpa(at)) ||
			  slot_at(slots, NR_IDS, window_gpa(at + nr - 1))));
		entry = set(slot, random_int(rng, 0, 3), at, nr,
			    random_int(rng, 0, BACKING_PAGES - nr));
	} else {
		entry = region_set(slot, old->flags, old->gpa, old->size, old->hva);
		nr = old->size / PAGE_SIZE;
		switch (random_int(rng, 0, 7)) {
		case 0 ... 2:
			entry = region_delete(slot);
			break;
		case 3 ... 4:
			entry.guest_phys_addr =
				window_gpa(random_int(rng, 0,
						      WINDOW_PAGES - nr));
			break;
		case 5 ... 6:
			entry.flags ^= KVM_MEM_LOG_DIRTY_PAGES;
			break;
		}
	}

	/* Sometimes, makes a mistake. */
	switch (random_int(rng, 0, 99)) {
	case 0:
		entry.flags |= BIT(random_int(rng, 2, 31));
		break;
	case 1:
		entry.guest_phys_addr += 1 << random_int(rng, 0, 11);
		break;
	case 2:
		entry.memory_size += 1 << random_int(rng, 0, 11);
		break;
	case 3:
		entry.userspace_addr += 1 << random_int(rng, 0, 11);
		break;
	case 4:
		entry.slot |= BIT(random_int(rng, 17, 31));
		break;
	case 5:
		entry = region_delete(slot);
		entry.slot |= 0x7ffc;
		break;
	case 6:
		entry.guest_phys_addr |= 1ul << 63;
		break;
	case 7:
		entry.flags ^= KVM_MEM_READONLY;
		break;
	}
	return entry;
}

/*
 * A second VM gets the entries of each random list one by one, through the single
 * ioctl.  Both must agree on the first error and on the resulting slots.
 */
TEST_F_TIMEOUT(list, like_single_ioctls, 120)
{
	struct list_test *test = &self->test;
	struct kvm_random_state rng = new_kvm_random_state(RANDOM_SEED);
	struct slot before[NR_AS][NR_IDS], after[NR_AS][NR_IDS];
	struct region_entry entries[MAX_RANDOM_LIST];
	int round, nent, i, as, r, err, nr_failed = 0;
	struct kvm_vm *twin = vm_create_barebones();
	bool invalidates;
	struct slot *old;

	TH_LOG("seed 0x%x, %d lists", RANDOM_SEED, NR_RANDOM_LISTS);

	for (round = 0; round < NR_RANDOM_LISTS; round++) {
		memcpy(before, test->slots, sizeof(before));
		nent = random_int(&rng, 1, MAX_RANDOM_LIST);
		err = 0;

		for (i = 0; i < nent; i++) {
			entries[i] = random_entry(test, &rng);
			/* Entries after the first error must not matter. */
			if (err)
				continue;

			if (__vm_set_region_entry(twin, &entries[i])) {
				err = errno;
				continue;
			}
			old = slot_of(test, &entries[i]);
			invalidates = old->size &&
				      (!entries[i].memory_size ||
				       old->gpa != entries[i].guest_phys_addr);
			entries[i].invalidate_slot = invalidates &&
						     kvm_random_bool(&rng);
			expect(test, &entries[i]);
		}

		memcpy(after, test->slots, sizeof(after));
		memcpy(test->slots, before, sizeof(before));
		do_list(test, err, err ? 0 : ANY_SWAPS, nent, entries);
		if (!err)
			continue;

		/* Give the second VM the slots again that the list has left. */
		nr_failed++;
		for (as = 0; as < test->nr_as; as++) {
			for (i = 0; i < NR_IDS; i++) {
				if (!after[as][i].size)
					continue;
				r = __vm_set_user_memory_region(twin, as << 16 | (FIRST_ID + i),
								0, 0, 0, NULL);
				TEST_ASSERT(!r, "Deletion failed, errno %d", errno);
			}
		}
		for (as = 0; as < test->nr_as; as++) {
			for (i = 0; i < NR_IDS; i++) {
				old = &before[as][i];
				if (old->size)
					vm_set_user_memory_region(twin, as << 16 | (FIRST_ID + i),
								  old->flags, old->gpa,
								  old->size, old->hva);
			}
		}
	}

	/* Both kinds of lists must be frequent. */
	TH_LOG("%d of them fail", nr_failed);
	TEST_ASSERT(nr_failed > NR_RANDOM_LISTS / 10 &&
		    nr_failed < NR_RANDOM_LISTS * 9 / 10, "Lopsided lists");
	kvm_vm_free(twin);
}

static void ignore_signal(int sig)
{
}

TEST_F_TIMEOUT(list, largest_list, 120)
{
	/* With KASAN, kmemleak and lockdep, all slots would take minutes. */
	const bool slow = !access("/sys/kernel/debug/kmemleak", F_OK);
	const u32 nr_slots = slow ? 2048 : kvm_check_cap(KVM_CAP_NR_MEMSLOTS);
	const u32 max = kvm_check_cap(KVM_CAP_USER_MEMORY_REGION_LIST);
	struct kvm_vm *big = vm_create_barebones();
	const struct itimerval every_ms = { { .tv_usec = 1000 }, { .tv_usec = 1000 } };
	const struct itimerval never = {};
	struct region_entry *entries;
	struct timespec start;
	u64 swaps;
	int i, r;

	entries = calloc(max, sizeof(*entries));
	TEST_ASSERT(entries, "Insufficient Memory");

	for (i = 0; i < nr_slots; i++)
		entries[i] = region_set(i, 0, 2 * i * PAGE_SIZE, PAGE_SIZE,
					backing);
	swaps = vm_get_stat(big, memslot_swaps);
	clock_gettime(CLOCK_MONOTONIC, &start);
	r = __vm_set_region_list(big, nr_slots, entries);
	TEST_ASSERT(!r, "Creating %u slots, errno %d", nr_slots, errno);
	TH_LOG("%u slots created in %lu us", nr_slots,
	       timespec_to_ns(timespec_elapsed(start)) / 1000);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 1);

	/* Replace all, and once more with an error in the last entry. */
	for (i = 0; i < nr_slots; i++) {
		entries[i] = region_delete(i);
		entries[nr_slots + i] = region_set(nr_slots - 1 - i, 0,
						   (2 * i + 1) * PAGE_SIZE,
						   PAGE_SIZE, backing);
	}
	/* Signals must not interrupt a list halfway. */
	signal(SIGALRM, ignore_signal);
	setitimer(ITIMER_REAL, &every_ms, NULL);
	clock_gettime(CLOCK_MONOTONIC, &start);
	r = __vm_set_region_list(big, 2 * nr_slots, entries);
	TEST_ASSERT(!r, "Replacing %u slots, errno %d", nr_slots, errno);
	setitimer(ITIMER_REAL, &never, NULL);
	TH_LOG("%u slots replaced in %lu us", nr_slots,
	       timespec_to_ns(timespec_elapsed(start)) / 1000);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 3);

	entries[2 * nr_slots - 1].guest_phys_addr = PAGE_SIZE;
	r = __vm_set_region_list(big, 2 * nr_slots, entries);
	TEST_ASSERT(r && errno == EEXIST, "A clash, %d, errno %d", r, errno);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 3);
	for (i = 0; i < nr_slots; i++)
		vm_set_user_memory_region(big, nr_slots - 1 - i, 0,
					  (2 * i + 1) * PAGE_SIZE, PAGE_SIZE,
					  backing);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 3);

	/* Move all, in the only order without a clash, and delete all. */
	for (i = 0; i < nr_slots; i++)
		entries[i] = region_set(i, 0, 2 * (nr_slots - i) * PAGE_SIZE,
					PAGE_SIZE, backing);
	r = __vm_set_region_list(big, nr_slots, entries);
	TEST_ASSERT(!r, "Moving %u slots, errno %d", nr_slots, errno);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 5);

	for (i = 0; i < nr_slots; i++)
		entries[i] = region_delete(i);
	r = __vm_set_region_list(big, nr_slots, entries);
	TEST_ASSERT(!r, "Deleting %u slots, errno %d", nr_slots, errno);
	TEST_ASSERT_EQ(vm_get_stat(big, memslot_swaps), swaps + 7);
	for (i = 0; i < nr_slots; i++) {
		r = __vm_set_region_entry(big, &entries[i]);
		TEST_ASSERT(r && errno == EINVAL, "Slot %d is still there", i);
	}

	free(entries);
	kvm_vm_free(big);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	return test_harness_run(argc, argv);
}
