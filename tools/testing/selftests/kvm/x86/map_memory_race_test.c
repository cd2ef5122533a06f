// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY beside other calls of it, memslot updates, and changes of the host's
 * mappings.
 */
#include <pthread.h>
#include <signal.h>

#include <asm/barrier.h>

#include "kvm_test_harness.h"
#include "map_memory.h"
#include "memory_region_list.h"

#define NR_VCPUS	4

struct portion {
	pthread_t thread;
	struct kvm_vcpu *vcpu;
	struct kvm_memory_mapping m;
	int err;
};

static void *populate_portion(void *arg)
{
	struct portion *p = arg;

	p->err = map_memory(p->vcpu, &p->m);
	return NULL;
}

static void populate_portions(struct kvm_vcpu **vcpus, struct portion *portions)
{
	int i;

	for (i = 0; i < NR_VCPUS; i++) {
		portions[i].vcpu = vcpus[i];
		kvm_pthread_create(&portions[i].thread, NULL, populate_portion,
				   &portions[i]);
	}
	for (i = 0; i < NR_VCPUS; i++) {
		kvm_pthread_join(portions[i].thread, NULL);
		TEST_ASSERT(!portions[i].err, "vCPU %d: errno %d", i,
			    portions[i].err);
	}
}

TEST(several_vcpus)
{
	const u64 nr = WINDOW_PAGES / NR_VCPUS;
	void *source = new_pattern(WINDOW_PAGES, 1000);
	struct kvm_vcpu *vcpus[NR_VCPUS], *vcpu;
	struct portion portions[NR_VCPUS];
	struct kvm_memory_mapping *m;
	struct kvm_vm *vm;
	void *mem;
	u64 pages;
	int i, round;

	vm = vm_create_with_vcpus(NR_VCPUS, guest_code, vcpus);
	vcpu = vcpus[0];
	set_up_guest(vcpu);
	pages = vm_get_stat(vm, pages_4k);

	for (round = 0; round < 20; round++) {
		mem = new_mem(WINDOW_PAGES);
		set_slot(vm, SLOT, 0, 0, WINDOW_PAGES, mem);
		for (i = 0; i < NR_VCPUS; i++) {
			m = &portions[i].m;
			/* All populate the same memory, or each a part of it. */
			if (round & 1)
				*m = memory_mapping(window_gpa(0), WINDOW_PAGES,
						    WRITE, NULL);
			else
				*m = memory_mapping(window_gpa(i * nr), nr,
						    WRITE, NULL);
			if (round & 2)
				m->source = (uintptr_t)source;
			if ((round & 3) == 2)
				m->source += i * nr * PAGE_SIZE;
			if (round & 4)
				m->flags = i % 2 ? WRITE : READ;
		}
		populate_portions(vcpus, portions);
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), pages + WINDOW_PAGES);
		if (round & 2)
			guest_sees(vcpu, 0, WINDOW_PAGES, 1000);
		if (!(round & 4))
			TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0,
						    WINDOW_PAGES), 0);
		delete_slot(vm, SLOT);
		populate_guests_own(vcpu);
		munmap(mem, WINDOW_PAGES * PAGE_SIZE);
	}
	kvm_vm_free(vm);
}

#define RACE_PAGES	256

struct race_test {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	void *mem, *source;

	/* Between the test and the thread that it races with. */
	bool stop;
	u64 nr_updates;
	int nr_calls;
	int source_round, source_delay;
	/* Odd while a call runs. */
	u64 call_seq;
	bool populated;
};

FIXTURE(race)
{
	struct race_test test;
};

FIXTURE_VARIANT(race)
{
	bool zap_all;
};

/* When a slot is deleted, KVM drops all mappings, or those of the slot. */
FIXTURE_VARIANT_ADD(race, zap_all)
{
	.zap_all = true,
};

FIXTURE_VARIANT_ADD(race, zap_slot)
{
	.zap_all = false,
};

FIXTURE_SETUP(race)
{
	struct race_test *test = &self->test;

	if (!variant->zap_all &&
	    !(kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) &
	      KVM_X86_QUIRK_SLOT_ZAP_ALL))
		SKIP(return, "No such quirk");

	test->vm = vm_create_with_one_vcpu(&test->vcpu, guest_code);
	if (!variant->zap_all)
		vm_enable_cap(test->vm, KVM_CAP_DISABLE_QUIRKS2,
			      KVM_X86_QUIRK_SLOT_ZAP_ALL);
	set_up_guest(test->vcpu);
	test->mem = new_pattern(RACE_PAGES, 0);
	test->source = new_mem(RACE_PAGES);
	set_slot(test->vm, SLOT, 0, 0, RACE_PAGES, test->mem);
}

FIXTURE_TEARDOWN(race)
{
	kvm_vm_free(self->test.vm);
}

/* A slot for a part of the memory. */
static struct region_entry piece(struct race_test *test, u32 slot, u32 flags,
				 u64 page, u64 nr)
{
	return region_set(slot, flags, window_gpa(page), nr * PAGE_SIZE,
			  hva(test->mem, page));
}

static void count_update(struct race_test *test)
{
	WRITE_ONCE(test->nr_updates, test->nr_updates + 1);
}

/* At every moment, slots cover all of the memory. */
static void *replace_thread(void *arg)
{
	struct race_test *test = arg;
	const u64 half = RACE_PAGES / 2, all = RACE_PAGES;
	struct kvm_vm *vm = test->vm;

	while (!READ_ONCE(test->stop)) {
		vm_set_region_list(vm, region_delete(SLOT),
				   piece(test, SLOT, 0, 0, all));
		count_update(test);
		vm_set_region_list(vm, region_delete(SLOT),
				   piece(test, SLOT + 1, LOG, 0, all));
		count_update(test);
		vm_set_region_list(vm, region_delete(SLOT + 1),
				   piece(test, SLOT, 0, 0, half),
				   piece(test, SLOT + 2, 0, half, half));
		count_update(test);
		/* One moves there and back, which no vCPU observes. */
		vm_set_region_list(vm,
				   region_set(SLOT + 2, 0, ELSEWHERE_GPA,
					      half * PAGE_SIZE,
					      hva(test->mem, half)),
				   region_delete(SLOT),
				   piece(test, SLOT + 3, 0, 0, half),
				   piece(test, SLOT + 2, 0, half, half));
		count_update(test);
		vm_set_region_list(vm, region_delete(SLOT + 3),
				   region_delete(SLOT + 2),
				   piece(test, SLOT, 0, 0, all));
		count_update(test);
	}
	return NULL;
}

/* Populates over and over beside @thread.  @may_miss: slots may be missing. */
static void race(struct race_test *test, void *(*thread)(void *),
		 bool may_miss)
{
	struct kvm_vcpu *vcpu = test->vcpu;
	const u64 flags[] = { READ, WRITE, EXEC, WRITE | USER };
	u64 i, was, nr_missed = 0;
	struct kvm_memory_mapping m;
	pthread_t updater;
	bool with_source;
	int err;

	test->stop = false;
	test->nr_updates = 0;
	kvm_pthread_create(&updater, NULL, thread, test);

	for (i = 0; i < 20 || READ_ONCE(test->nr_updates) < 100; i++) {
		with_source = i % 2;
		m = memory_mapping(window_gpa(0), RACE_PAGES, flags[i / 2 % 4],
				   with_source ? test->source : NULL);
		if (with_source)
			fill(test->source, RACE_PAGES, i);
		while ((err = map_memory(vcpu, &m))) {
			TEST_ASSERT(err == ENOENT && may_miss,
				    "errno %d after %llu pages, round %lu", err,
				    RACE_PAGES - m.nr_pages, i);
			nr_missed++;
			/* Retry only after the next update. */
			was = READ_ONCE(test->nr_updates);
			while (READ_ONCE(test->nr_updates) == was)
				cpu_relax();
		}
		/* Round 0 leaves the tag 0; each odd one fills. */
		check_pattern(test->mem, RACE_PAGES,
			      with_source ? i : i ? i - 1 : 0);
	}

	WRITE_ONCE(test->stop, true);
	kvm_pthread_join(updater, NULL);
	ksft_print_msg("%lu rounds, %lu updates, no slot %lu times\n", i,
		       test->nr_updates, nr_missed);
	populate_guests_own(vcpu);
	populate(vcpu, 0, RACE_PAGES, WRITE, test->source);
	guest_sees(vcpu, 0, RACE_PAGES, *(u64 *)test->mem / pattern(1, 0));
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, RACE_PAGES), 0);
}

TEST_F_TIMEOUT(race, replace, 120)
{
	race(&self->test, replace_thread, false);
}

static void *recreate_single_thread(void *arg)
{
	struct race_test *test = arg;

	while (!READ_ONCE(test->stop)) {
		vm_set_region_entry(test->vm, region_delete(SLOT));
		vm_set_region_entry(test->vm, piece(test, SLOT, 0, 0, RACE_PAGES));
		count_update(test);
	}
	return NULL;
}

TEST_F_TIMEOUT(race, recreate_single, 120)
{
	race(&self->test, recreate_single_thread, true);
}

static void *recreate_list_thread(void *arg)
{
	struct race_test *test = arg;

	while (!READ_ONCE(test->stop)) {
		vm_set_region_list(test->vm, region_delete(SLOT));
		vm_set_region_list(test->vm, piece(test, SLOT, 0, 0, RACE_PAGES));
		count_update(test);
	}
	return NULL;
}

TEST_F_TIMEOUT(race, recreate_list, 120)
{
	race(&self->test, recreate_list_thread, true);
}

static void *move_thread(void *arg)
{
	struct race_test *test = arg;
	const u64 size = RACE_PAGES * PAGE_SIZE;

	while (!READ_ONCE(test->stop)) {
		vm_set_region_entry(test->vm, region_set(SLOT, 0, ELSEWHERE_GPA,
							 size, test->mem));
		vm_set_region_entry(test->vm, piece(test, SLOT, 0, 0, RACE_PAGES));
		count_update(test);
	}
	return NULL;
}

TEST_F_TIMEOUT(race, move, 120)
{
	race(&self->test, move_thread, true);
}

/* Each deletion may make the root obsolete that the vCPU populates. */
static void *other_slot_thread(void *arg)
{
	struct race_test *test = arg;
	const struct region_entry other =
		region_set(OTHER_SLOT, 0, ELSEWHERE_GPA, PAGE_SIZE, new_mem(1));
	struct kvm_vm *vm = test->vm;

	while (!READ_ONCE(test->stop)) {
		vm_set_region_entry(vm, other);
		vm_set_region_entry(vm, region_delete(OTHER_SLOT));
		count_update(test);
		vm_set_region_list(vm, other);
		vm_set_region_list(vm, region_delete(OTHER_SLOT), other);
		vm_set_region_list(vm, region_delete(OTHER_SLOT));
		count_update(test);
	}
	return NULL;
}

TEST_F_TIMEOUT(race, other_slot, 120)
{
	race(&self->test, other_slot_thread, false);
}

static void *log_thread(void *arg)
{
	struct race_test *test = arg;

	while (!READ_ONCE(test->stop)) {
		vm_set_region_entry(test->vm, piece(test, SLOT, LOG, 0, RACE_PAGES));
		vm_set_region_list(test->vm, piece(test, SLOT, 0, 0, RACE_PAGES));
		count_update(test);
	}
	return NULL;
}

TEST_F_TIMEOUT(race, log, 120)
{
	race(&self->test, log_thread, false);
}

static void *host_mapping_thread(void *arg)
{
	struct race_test *test = arg;
	const size_t size = RACE_PAGES * PAGE_SIZE;
	void *mem = test->mem;
	int calls;

	while (!READ_ONCE(test->stop)) {
		madvise(mem, size, MADV_DONTNEED);
		mprotect(mem, size, PROT_READ);
		mprotect(mem, size, PROT_NONE);
		munmap(hva(mem, RACE_PAGES / 2), PAGE_SIZE);
		mmap_at(hva(mem, RACE_PAGES / 2), 1, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
		mprotect(mem, size, PROT_READ | PROT_WRITE);
		count_update(test);
		/* Lets some calls run without a change. */
		calls = READ_ONCE(test->nr_calls);
		while (READ_ONCE(test->nr_calls) < calls + 2 && !READ_ONCE(test->stop))
			cpu_relax();
	}
	return NULL;
}

TEST_F_TIMEOUT(race, host_mapping, 120)
{
	struct race_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	struct kvm_memory_mapping m;
	int i, err, nr_faults = 0;
	pthread_t updater;

	test->stop = false;
	kvm_pthread_create(&updater, NULL, host_mapping_thread, test);
	for (i = 0; i < 200 || READ_ONCE(test->nr_updates) < 30; i++) {
		m = memory_mapping(window_gpa(0), RACE_PAGES,
				   i % 2 ? WRITE : READ,
				   i % 4 < 2 ? NULL : test->source);
		err = map_memory(vcpu, &m);
		TEST_ASSERT(!err || err == EFAULT, "errno %d", err);
		nr_faults += !!err;
		WRITE_ONCE(test->nr_calls, i + 1);
	}
	WRITE_ONCE(test->stop, true);
	kvm_pthread_join(updater, NULL);
	TH_LOG("%d of %d calls failed", nr_faults, i);
	populate_guests_own(vcpu);
	populate(vcpu, 0, RACE_PAGES, WRITE, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, RACE_PAGES), 0);
}

/* In the memory that is its own source. */
#define COUNTER_PAGE	8

static void *increment_thread(void *arg)
{
	struct race_test *test = arg;
	u64 *counter = hva(test->mem, COUNTER_PAGE);

	while (!READ_ONCE(test->stop)) {
		__atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
		test->nr_updates++;
	}
	return NULL;
}

/* Memory that is its own source can be in use. */
TEST_F_TIMEOUT(race, source_is_the_memory, 60)
{
	struct race_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	u64 *counter = hva(test->mem, COUNTER_PAGE), before = *counter;
	pthread_t user;
	int i;

	test->stop = false;
	test->nr_updates = 0;
	kvm_pthread_create(&user, NULL, increment_thread, test);
	for (i = 0; i < 20000; i++)
		populate(vcpu, COUNTER_PAGE, 1, WRITE, counter);
	WRITE_ONCE(test->stop, true);
	kvm_pthread_join(user, NULL);
	TEST_ASSERT(*counter - before == test->nr_updates,
		    "%lu of %lu increments are left", *counter - before,
		    test->nr_updates);
}

static void *source_mapping_thread(void *arg)
{
	struct race_test *test = arg;
	int round = 0, i;

	while (!READ_ONCE(test->stop)) {
		if (READ_ONCE(test->source_round) == round)
			continue;
		for (i = READ_ONCE(test->source_delay); i > 0; i--)
			cpu_relax();
		mprotect(test->source, CHUNK_PAGES * PAGE_SIZE, PROT_NONE);
		WRITE_ONCE(test->nr_updates, ++round);
	}
	return NULL;
}

/* If the source vanishes meanwhile, a page is copied as a whole or not at all. */
TEST_F_TIMEOUT(race, source_mapping, 120)
{
	struct race_test *test = &self->test;
	struct kvm_vcpu *vcpu = test->vcpu;
	const size_t size = CHUNK_PAGES * PAGE_SIZE;
	struct kvm_memory_mapping m;
	int i, err, nr_faults = 0;
	pthread_t updater;
	u64 done;

	test->stop = false;
	fill(test->source, CHUNK_PAGES, 1);
	kvm_pthread_create(&updater, NULL, source_mapping_thread, test);
	for (i = 1; i <= 1000; i++) {
		fill(test->mem, CHUNK_PAGES, 1000);
		mprotect(test->source, size, PROT_READ | PROT_WRITE);
		m = memory_mapping(window_gpa(0), CHUNK_PAGES, WRITE,
				   test->source);

		WRITE_ONCE(test->source_round, i);
		err = map_memory(vcpu, &m);
		TEST_ASSERT(!err || err == EFAULT, "errno %d", err);
		done = CHUNK_PAGES - m.nr_pages;
		check_pattern(test->mem, done, 1);
		check_pattern(hva(test->mem, done), m.nr_pages, 1000 + done);

		/* Adjusts the delay such that the source vanishes halfway. */
		nr_faults += !!err;
		WRITE_ONCE(test->source_delay,
			   test->source_delay + (done < CHUNK_PAGES / 2 ? 1 : -1));
		while (READ_ONCE(test->nr_updates) != i)
			cpu_relax();
	}
	WRITE_ONCE(test->stop, true);
	kvm_pthread_join(updater, NULL);
	TH_LOG("%d of %d calls failed", nr_faults, i - 1);
}

#define BIG_SLOT	(SLOT + 8)
#define BIG_PAGES	(SZ_1G / PAGE_SIZE)

static void *populate_big_thread(void *arg)
{
	struct race_test *test = arg;
	struct kvm_memory_mapping m =
		memory_mapping(ELSEWHERE_GPA, BIG_PAGES, READ, NULL);
	int err;

	do {
		WRITE_ONCE(test->call_seq, test->call_seq + 1);
		err = map_memory_once(test->vcpu, &m);
		WRITE_ONCE(test->call_seq, test->call_seq + 1);
	} while (err == EAGAIN);
	/* The test has sent a signal to end this. */
	TEST_ASSERT(!err || err == EINTR, "errno %d", err);
	WRITE_ONCE(test->populated, true);
	return NULL;
}

/*
 * Memslot updates need not wait for a call: one begins after the call has mapped
 * its first page, and ends before the call maps its last one.
 */
TEST_F_TIMEOUT(race, updates_during_call, 240)
{
	struct race_test *test = &self->test;
	struct kvm_vm *vm = test->vm;
	u64 start, before, after, seq, nr = 0, nr_tried = 0;
	void *big = new_mem(BIG_PAGES);
	pthread_t populater;
	int round;

	if (variant->zap_all)
		SKIP(return, "All pages go with a slot, and cannot be counted");

	catch_signal(SIGUSR1);
	for (round = 0; round < 50 && nr < 5; round++) {
		vm_set_region_entry(vm, region_set(BIG_SLOT, 0, ELSEWHERE_GPA,
						   BIG_PAGES * PAGE_SIZE, big));
		test->populated = false;
		test->call_seq = 0;
		start = vm_get_stat(vm, pages_4k);
		kvm_pthread_create(&populater, NULL, populate_big_thread, test);

		while (nr < 5 && !READ_ONCE(test->populated)) {
			seq = READ_ONCE(test->call_seq);
			before = vm_get_stat(vm, pages_4k) - start;
			if (!(seq % 2) || before % CALL_PAGES == 0)
				continue;
			/* This slot has no mappings, which would be counted. */
			vm_set_region_list(vm, region_delete(SLOT),
					   piece(test, SLOT, 0, 0, RACE_PAGES));
			after = vm_get_stat(vm, pages_4k) - start;
			nr_tried++;
			if (READ_ONCE(test->call_seq) == seq &&
			    before / CALL_PAGES == after / CALL_PAGES &&
			    after % CALL_PAGES < CALL_PAGES - CHUNK_PAGES)
				nr++;
		}
		pthread_kill(populater, SIGUSR1);
		kvm_pthread_join(populater, NULL);
		vm_set_region_entry(vm, region_delete(BIG_SLOT));
	}
	TH_LOG("%lu of %lu updates during a call", nr, nr_tried);
	TEST_ASSERT(nr == 5, "Only %lu of %lu updates during a call", nr,
		    nr_tried);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
