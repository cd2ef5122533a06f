// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory areas: guests that register them in a loop, on all vCPUs, while another
 * vCPU rewrites the descriptor, or the VMM replaces memslots or takes them away.
 */
#include <pthread.h>
#include <stdio.h>

#include "mem_area.h"
#include "memory_region_list.h"

#define NR_VCPUS	2
#define NR_LOOPS	15000

/* A round of NR_LOOPS ends after so long: the harness gives a test 30 seconds. */
#define MAX_SECONDS	8

/* Less than 5 bytes for each of 6 commands a loop: no object is as small. */
#define MAX_GROWTH_KB(loops)	max((loops) * 6 * 5 / 1024, 256ul)

/* The page of vCPU @id, with its descriptor, and the areas after that. */
#define PAGE_OF(id)	(WINDOW_GPA + (id) * PAGE_SIZE)
#define STEAL_OF(id)	(PAGE_OF(id) + 128)
#define TIME_OF(id)	(PAGE_OF(id) + 192)
#define WALL_OF(id)	(PAGE_OF(id) + 256)

/* Where replace_slots() splits the window, and an area across that. */
#define SPLIT_GPA	(WINDOW_GPA + WINDOW_SIZE / 2)
#define ACROSS_GPA	(SPLIT_GPA - 8)

static bool guest_stop;
static u64 guest_nr_ok[NR_VCPUS], guest_nr_failed[NR_VCPUS];

static u8 guest_command(gpa_t desc_gpa, u32 msr, u64 base, u32 size, u32 type)
{
	/* The window is mapped to the same address. */
	struct kvm_memory_area *desc = (void *)desc_gpa;
	u8 vector;

	*desc = (struct kvm_memory_area) { base, size, type, NO_ANSWER };
	vector = wrmsr_safe(msr, desc_gpa);
	GUEST_ASSERT_EQ(vector, 0);
	return READ_ONCE(desc->result);
}

static void guest_register(int id, u32 msr)
{
	GUEST_ASSERT_EQ(guest_command(PAGE_OF(id), msr, STEAL_OF(id), 64, STEAL_TIME), 0);
	GUEST_ASSERT_EQ(guest_command(PAGE_OF(id), msr, TIME_OF(id), 32, SYSTEM_TIME), 0);
	/* The VMM says that, too.  Its types are checked for memory only here. */
	GUEST_ASSERT_EQ(guest_command(PAGE_OF(id), msr, ACROSS_GPA, 64, VMM_TYPE),
			KVM_MEM_AREA_UNKNOWN_TYPE);
}

/* Each vCPU registers its own areas, and is always told that it could. */
static void guest_loop(int id)
{
	int i;

	for (;;) {
		for (i = 0; i < NR_LOOPS / NR_VCPUS && !READ_ONCE(guest_stop); i++) {
			guest_register(id, REGISTER);
			guest_register(id, i % 16 ? REGISTER : UNREGISTER);
			guest_nr_ok[id]++;
		}
		GUEST_SYNC(0);
	}
}

static u64 guest_random(u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static const u64 guest_bases[] = {
	STEAL_OF(0), TIME_OF(0), WALL_OF(0), PAGE_OF(0), ~0ull, 0xfee00000,
	WINDOW_GPA + WINDOW_SIZE - 8, 1ull << 62, ACROSS_GPA,
};

static const u32 guest_sizes[] = { 12, 32, 64, 0, 4096, ~0u, 1 << 20, 1 };
static const u32 guest_types[] = { 1, 2, 3, 0, 4, VMM_TYPE, ~0u, 2 };

/* vCPU 1 rewrites the descriptor that vCPU 0 uses. */
static void guest_race(int id)
{
	struct kvm_memory_area *desc = (void *)PAGE_OF(0);
	u64 state = 88172645463325252ull + id;

	while (!READ_ONCE(guest_stop)) {
		u64 r = guest_random(&state);

		if (id) {
			WRITE_ONCE(desc->base, guest_bases[r % ARRAY_SIZE(guest_bases)]);
			WRITE_ONCE(desc->size, guest_sizes[(r >> 8) % 8]);
			WRITE_ONCE(desc->type, guest_types[(r >> 16) % 8]);
			WRITE_ONCE(desc->pad[r % 7], (r >> 24) % 16 ? 0 : r >> 32);
			continue;
		}
		WRITE_ONCE(desc->result, NO_ANSWER);
		if (wrmsr_safe(r % 4 ? REGISTER : UNREGISTER, PAGE_OF(0))) {
			guest_nr_failed[0]++;
			continue;
		}
		guest_nr_ok[0]++;
		GUEST_ASSERT_NE(READ_ONCE(desc->result), NO_ANSWER);
	}
	GUEST_SYNC(0);
}

/*
 * The descriptors of guest_beside_removal() are in a page that guest and host have
 * in two places.  The guest accesses it in one, and the other comes and goes.
 */
#define STABLE_SLOT	(AREA_SLOT + 1)
#define STABLE_GPA	(WINDOW_GPA + WINDOW_SIZE)
#define GOING_SLOT	(AREA_SLOT + 2)
#define GOING_GPA	(STABLE_GPA + PAGE_SIZE)
#define DESC_OFFSET(id)	((id) * KVM_MEM_AREA_DESC_ALIGN)

/* A command is carried out and its result written, or raises #GP without one. */
static void guest_beside_removal(int id)
{
	struct kvm_memory_area *desc = (void *)(STABLE_GPA + DESC_OFFSET(id));
	const struct {
		u64 base;
		u32 size, type;
	} areas[] = {
		{ STEAL_OF(id), 64, STEAL_TIME },
		{ TIME_OF(id), 32, SYSTEM_TIME },
		{ ACROSS_GPA, 64, VMM_TYPE },
	};
	int i;

	for (i = 0; !READ_ONCE(guest_stop); i++) {
		const u32 msr = i / 3 % 2 ? UNREGISTER : REGISTER, type = areas[i % 3].type;
		u8 vector, result;

		*desc = (struct kvm_memory_area) {
			areas[i % 3].base, areas[i % 3].size, type, NO_ANSWER,
		};
		vector = wrmsr_safe(msr, GOING_GPA + DESC_OFFSET(id));
		result = READ_ONCE(desc->result);
		if (vector) {
			GUEST_ASSERT_EQ(vector, GP_VECTOR);
			GUEST_ASSERT_EQ(result, NO_ANSWER);
			guest_nr_failed[id]++;
			continue;
		}
		guest_nr_ok[id]++;
		if (type == VMM_TYPE)
			GUEST_ASSERT_EQ(result, KVM_MEM_AREA_UNKNOWN_TYPE);
		else if (result)
			/* What was registered last may have been #GP. */
			GUEST_ASSERT(msr == UNREGISTER &&
				     result == KVM_MEM_AREA_NOT_REGISTERED);
	}
	GUEST_SYNC(0);
}

static void init(struct area_test *test, void *code)
{
	int i;

	area_init(test, NR_VCPUS);
	virt_map(test->vm, WINDOW_GPA, WINDOW_GPA, WINDOW_PAGES);
	for (i = 0; i < NR_VCPUS; i++)
		vcpu_arch_set_entry_point(test->vcpus[i], code);
}

/* What vCPU 1 has never written, KVM must not make of it. */
static void check_op(struct kvm_x86_msr_op *op)
{
	int i;

	TEST_ASSERT(op->base + op->size >= op->base && op->size && op->size <= BIT(20) &&
		    op->type >= VMM_TYPE, "Area %#llx + %#x, type %#x", op->base, op->size,
		    op->type);
	for (i = 0; i < ARRAY_SIZE(guest_bases); i++)
		if (op->base == guest_bases[i])
			return;
	TEST_FAIL("Base %#llx", op->base);
}

static void *run_vcpu(void *arg)
{
	struct kvm_vcpu *vcpu = arg;
	struct ucall uc;

	for (;;) {
		vcpu_run(vcpu);
		if (vcpu->run->exit_reason == KVM_EXIT_X86_MSR_OP) {
			check_op(&vcpu->run->msr_op);
			continue;
		}
		switch (get_ucall(vcpu, &uc)) {
		case UCALL_SYNC:
			return NULL;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
		default:
			TEST_FAIL("Unexpected exit: %s",
				  exit_reason_str(vcpu->run->exit_reason));
		}
	}
}

static void start_vcpus(struct area_test *test, pthread_t *threads)
{
	int i;

	for (i = 0; i < NR_VCPUS; i++)
		pthread_create(&threads[i], NULL, run_vcpu, test->vcpus[i]);
}

/* Has the guest end, and lets it run again if it is started again. */
static void stop_vcpus(struct area_test *test, pthread_t *threads)
{
	bool *stop = guest_ptr(test->vm, guest_stop);
	int i;

	WRITE_ONCE(*stop, true);
	for (i = 0; i < NR_VCPUS; i++)
		pthread_join(threads[i], NULL);
	WRITE_ONCE(*stop, false);
}

static long slab_kb(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char line[128];
	long kb = -1;

	while (file && kb < 0 && fgets(line, sizeof(line), file))
		sscanf(line, "SUnreclaim: %ld kB", &kb);
	TEST_ASSERT(kb >= 0, "Cannot read /proc/meminfo");
	fclose(file);
	return kb;
}

/* A guest cannot make KVM allocate memory. */
TEST(slab)
{
	pthread_t threads[NR_VCPUS];
	struct area_test test;
	unsigned long loops = 0;
	long before = 0, growth;
	int i, tenths;
	u64 *ok;

	init(&test, guest_loop);
	enable_exits(test.vm, 1);
	ok = *guest_ptr(test.vm, guest_nr_ok);
	/* The first round warms up. */
	for (i = 0; i < 2; i++) {
		before = slab_kb();
		loops = READ_ONCE(ok[0]) + READ_ONCE(ok[1]);
		start_vcpus(&test, threads);
		for (tenths = 0; tenths < 10 * MAX_SECONDS; tenths++) {
			if (READ_ONCE(ok[0]) + READ_ONCE(ok[1]) >= loops + NR_LOOPS)
				break;
			usleep(100000);
		}
		stop_vcpus(&test, threads);
		loops = ok[0] + ok[1] - loops;
	}
	growth = slab_kb() - before;
	TH_LOG("%ld KiB more after %lu commands", growth, 6 * loops);
	TEST_ASSERT(growth < MAX_GROWTH_KB(loops), "%ld KiB", growth);
	area_free(&test);
}

/* Replaces the memslot of the window, and maps it to the same memory. */
static void replace_slots(struct area_test *test, int round)
{
	const u64 half = SPLIT_GPA - WINDOW_GPA;
	const struct region_entry split[] = {
		region_delete(AREA_SLOT),
		region_set(AREA_SLOT, 0, WINDOW_GPA, half, test->mem),
		region_set(AREA_SLOT + 1, 0, WINDOW_GPA + half, half, test->mem + half),
	};
	const struct region_entry merge[] = {
		region_delete(AREA_SLOT),
		region_delete(AREA_SLOT + 1),
		region_set(AREA_SLOT, KVM_MEM_LOG_DIRTY_PAGES * (round / 2 % 2),
			   WINDOW_GPA, WINDOW_SIZE, test->mem),
	};

	vm_set_region_entries(test->vm, 3, round % 2 ? merge : split);
}

/* The guest does not notice. */
TEST(beside_lists)
{
	pthread_t threads[NR_VCPUS];
	struct area_test test;
	int i;

	init(&test, guest_loop);
	start_vcpus(&test, threads);
	for (i = 0; i < 60; i++)
		replace_slots(&test, i);
	stop_vcpus(&test, threads);
	TH_LOG("%lu and %lu rounds beside %d lists", (*guest_ptr(test.vm, guest_nr_ok))[0],
	       (*guest_ptr(test.vm, guest_nr_ok))[1], i);
	area_free(&test);
}

/* An MSR only has what a command that KVM accepts can give it. */
static void check_msr(struct kvm_vcpu *vcpu, u32 msr, u64 enable, bool may_cross)
{
	const u64 value = vcpu_get_msr(vcpu, msr);
	const u64 bases[] = { STEAL_OF(0), TIME_OF(0), WALL_OF(0) };
	int i;

	for (i = 0; i < ARRAY_SIZE(bases); i++)
		if (value == (bases[i] | enable))
			return;
	TEST_ASSERT(!value || (may_cross && value == ACROSS_GPA), "MSR %#x is %#lx", msr, value);
}

/* It has the vCPU's own area, or none. */
static void check_own_msr(struct kvm_vcpu *vcpu, u32 msr, gpa_t base)
{
	const u64 value = vcpu_get_msr(vcpu, msr);

	TEST_ASSERT(!value || value == (base | 1), "MSR %#x is %#lx", msr, value);
}

/* Any mixture of old and new is one that KVM checks. */
static void race(bool churn)
{
	pthread_t threads[NR_VCPUS];
	struct area_test test;
	u64 *ok, *failed;
	int i;

	init(&test, guest_race);
	enable_exits(test.vm, 1);
	ok = *guest_ptr(test.vm, guest_nr_ok);
	failed = *guest_ptr(test.vm, guest_nr_failed);
	start_vcpus(&test, threads);
	for (i = 0; i < 40; i++) {
		usleep(50000);
		enable_exits(test.vm, i % 2);
		if (!churn)
			continue;
		madvise(test.mem, PAGE_SIZE, MADV_DONTNEED);
		replace_slots(&test, i);
	}
	stop_vcpus(&test, threads);
	check_msr(test.vcpu, MSR_KVM_WALL_CLOCK_NEW, 0, true);
	check_msr(test.vcpu, MSR_KVM_SYSTEM_TIME_NEW, 1, false);
	check_msr(test.vcpu, MSR_KVM_STEAL_TIME, 1, false);
	ksft_print_msg("%lu commands, %lu #GP\n", ok[0], failed[0]);
	TEST_ASSERT(ok[0] && !failed[0], "%lu commands, %lu #GP", ok[0], failed[0]);
	area_free(&test);
}

/* The pages of an area, each a memslot, of which two are never there together. */
#define NR_PAGES	256
#define PAGE_SLOT(i)	(100 + (i))
#define AREA_PAGE(i)	(AREA_GPA + (i) * PAGE_SIZE)

static bool stop_flipping;

static void *flip_ends(void *arg)
{
	struct area_test *test = arg;
	int i;

	for (i = 0; !READ_ONCE(stop_flipping); i++) {
		const int from = i % 2 ? NR_PAGES - 1 : 0, to = NR_PAGES - 1 - from;
		const struct region_entry entries[] = {
			region_delete(PAGE_SLOT(from)),
			region_set(PAGE_SLOT(to), 0, AREA_PAGE(to), PAGE_SIZE,
				   area_hva(test, AREA_PAGE(to))),
		};

		vm_set_region_entries(test->vm, 2, entries);
	}
	return NULL;
}

/* An area must be in one set of memslots, not in parts of two. */
TEST(one_set_of_memslots)
{
	struct area_test test;
	int i, nr_wrong = 0;
	pthread_t thread;

	area_init(&test, 1);
	set_area_slot(&test, AREA_SLOT, 0, WINDOW_GPA, 0);
	set_area_slot(&test, AREA_SLOT, 0, WINDOW_GPA, PAGE_SIZE);
	for (i = 0; i < NR_PAGES - 1; i++)
		set_area_slot(&test, PAGE_SLOT(i), 0, AREA_PAGE(i), PAGE_SIZE);
	WRITE_ONCE(stop_flipping, false);
	pthread_create(&thread, NULL, flip_ends, &test);
	/* Memory is checked before the type, which nobody serves. */
	for (i = 0; i < 1000; i++)
		nr_wrong += area_command(&test, false, REGISTER, AREA_GPA,
					 NR_PAGES * PAGE_SIZE, VMM_TYPE) !=
			    KVM_MEM_AREA_BAD_ADDRESS;
	WRITE_ONCE(stop_flipping, true);
	pthread_join(thread, NULL);
	TEST_ASSERT(!nr_wrong, "KVM has accepted an area without memory %d times", nr_wrong);
	area_free(&test);
}

/* Takes the memory at GOING_GPA away in each way that there is, and gives it back. */
static void take_away(struct kvm_vm *vm, void *mem, int round)
{
	switch (round % 3) {
	case 0:
		vm_set_user_memory_region(vm, GOING_SLOT, 0, GOING_GPA, 0, mem);
		usleep(5000);
		vm_set_user_memory_region(vm, GOING_SLOT, 0, GOING_GPA, PAGE_SIZE, mem);
		break;
	case 1:
		mprotect(mem, PAGE_SIZE, PROT_READ);
		usleep(5000);
		mprotect(mem, PAGE_SIZE, PROT_READ | PROT_WRITE);
		break;
	case 2:
		mprotect(mem, PAGE_SIZE, PROT_NONE);
		usleep(5000);
		mprotect(mem, PAGE_SIZE, PROT_READ | PROT_WRITE);
		break;
	}
}

static void *map_page(struct kvm_vm *vm, int fd, u32 slot, gpa_t gpa)
{
	void *mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	vm_set_user_memory_region(vm, slot, 0, gpa, PAGE_SIZE, mem);
	return mem;
}

/* Nobody sees more of it than #GP. */
TEST(beside_removal)
{
	pthread_t threads[NR_VCPUS];
	void *stable, *going;
	struct area_test test;
	u64 *ok, *failed;
	int i, fd;

	init(&test, guest_beside_removal);
	fd = kvm_memfd_alloc(PAGE_SIZE, false);
	stable = map_page(test.vm, fd, STABLE_SLOT, STABLE_GPA);
	going = map_page(test.vm, fd, GOING_SLOT, GOING_GPA);
	virt_map(test.vm, STABLE_GPA, STABLE_GPA, 1);
	enable_exits(test.vm, 1);
	ok = *guest_ptr(test.vm, guest_nr_ok);
	failed = *guest_ptr(test.vm, guest_nr_failed);
	start_vcpus(&test, threads);
	for (i = 0; i < 60; i++) {
		take_away(test.vm, going, i);
		usleep(20000);
	}
	stop_vcpus(&test, threads);
	for (i = 0; i < NR_VCPUS; i++) {
		TH_LOG("%lu commands, %lu #GP", ok[i], failed[i]);
		TEST_ASSERT(ok[i] && failed[i], "%lu commands, %lu #GP", ok[i], failed[i]);
		check_own_msr(test.vcpus[i], MSR_KVM_SYSTEM_TIME_NEW, TIME_OF(i));
		check_own_msr(test.vcpus[i], MSR_KVM_STEAL_TIME, STEAL_OF(i));
	}
	area_free(&test);
	kvm_munmap(stable, PAGE_SIZE);
	kvm_munmap(going, PAGE_SIZE);
	close(fd);
}

TEST(rewritten)
{
	race(false);
}

TEST(rewritten_beside_lists)
{
	race(true);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_REGISTER_MEM_AREA));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	return test_harness_run(argc, argv);
}
