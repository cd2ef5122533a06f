// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST reshapes memslots while vCPUs write to them.
 *
 * Pages that stay must cause no fault, pages that have gone must not be written to
 * once the ioctl has returned, and the dirty log must have all writes.  The argument
 * is the number of updates.
 */
#include <sched.h>

#include <linux/sizes.h>

#include "kselftest.h"
#include "running_vcpus.h"

#define WINDOW_GPA	0xc0000000ul
#define NR_PAGES	2048
#define PARK_GPA	0x100000000ul
/* These always stay, for the test that counts faults. */
#define KEPT_PAGES	700

static u8 *mem;
static int nr_updates = 300;

static void guest_write(int id, u64 nr_pages, u64 step)
{
	u64 pass, i;

	for (pass = 1; !READ_ONCE(guest_stop); pass++) {
		for (i = 0; i < nr_pages; i += step)
			WRITE_ONCE(((u64 *)(WINDOW_GPA + i * PAGE_SIZE))[id], pass);
		WRITE_ONCE(guest_passes[id], pass);
	}
	GUEST_DONE();
}

static void guest_writer(int id)
{
	guest_write(id, KEPT_PAGES, 1);
}

static void guest_hunter(int id)
{
	guest_write(id, NR_PAGES, 3);
}

static struct region_entry part(u32 slot, u64 from, u64 to)
{
	return region_set(slot, 0, WINDOW_GPA + from * PAGE_SIZE,
			  (to - from) * PAGE_SIZE, mem + from * PAGE_SIZE);
}

static u64 faults(void)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < nr_workers; i++)
		sum += vcpu_get_stat(workers[i].vcpu, pf_taken);
	return sum;
}

static void create(void *code, int nr_vcpus, int advice)
{
	create_guest(code, nr_vcpus, true, true);
	/* Its faults are not the guest's, but it maps what the test watches. */
	populater.vcpu = NULL;

	mem = kvm_mmap(NR_PAGES * PAGE_SIZE + SZ_2M, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	mem = align_ptr_up(mem, SZ_2M);
	madvise(mem, NR_PAGES * PAGE_SIZE, advice);
	memset(mem, 0, NR_PAGES * PAGE_SIZE);
	virt_map(vm, WINDOW_GPA, WINDOW_GPA, NR_PAGES);
	vm_set_user_memory_region(vm, 10, 0, WINDOW_GPA, NR_PAGES * PAGE_SIZE, mem);
}

/* Two slots share the kept pages, and reach as far as they like beyond them. */
static bool count_faults(int advice)
{
	u64 cut, end, before, at_end;
	bool good;
	int i;

	create(guest_writer, 2, advice);
	run_vcpus();
	good = wait_for_passes();

	/* The first list has a slot to delete, the others two. */
	vm_set_region_list(vm, region_delete(10), part(10, 0, 1),
			   part(11, 1, NR_PAGES));
	good &= wait_for_passes();
	before = faults();
	for (i = 0; good && i < nr_updates; i++) {
		cut = kvm_random_u64_in_range(&kvm_rng, 1, KEPT_PAGES - 1);
		end = kvm_random_u64_in_range(&kvm_rng, KEPT_PAGES, NR_PAGES);
		vm_set_region_list(vm, region_delete(10), region_delete(11),
				   part(10, 0, cut), part(11, cut, end));
		if (i % 64 == 0)
			good = wait_for_passes();
	}
	good &= wait_for_passes();
	at_end = faults();
	ksft_print_msg("%d updates, %lu faults\n", i, at_end - before);
	if (stop_guest())
		good = false;
	kvm_vm_free(vm);
	return good && before == at_end;
}

/* Adds the log of @pages pages, which it clears.  Returns how many are in @seen. */
static int add_log(u32 slot, u64 pages, unsigned long *seen)
{
	unsigned long log[NR_PAGES / 64] = {};
	int i, nr = 0;

	kvm_vm_get_dirty_log(vm, slot, log);
	for (i = 0; i < DIV_ROUND_UP(pages, 64); i++) {
		seen[i] |= log[i];
		nr += __builtin_popcountl(seen[i]);
	}
	return nr;
}

/* From the moment that a list makes slots log, all writes are logged. */
static bool begin_to_log(int advice)
{
	const u64 cut = KEPT_PAGES / 2;
	unsigned long seen[2][NR_PAGES / 64];
	struct region_entry log[2], plain[2];
	bool good = true;
	int i, j, nr;

	create(guest_writer, 2, advice);
	run_vcpus();
	vm_set_region_list(vm, region_delete(10), part(10, 0, cut),
			   part(11, cut, KEPT_PAGES));
	plain[0] = part(10, 0, cut);
	plain[1] = part(11, cut, KEPT_PAGES);
	for (i = 0; i < 2; i++) {
		log[i] = plain[i];
		log[i].flags = KVM_MEM_LOG_DIRTY_PAGES;
	}

	for (i = 0; good && i < nr_updates / 50 + 1; i++) {
		good = wait_for_passes();
		vm_set_region_list(vm, region_delete(10), region_delete(11),
				   log[0], log[1]);
		/* These writes may have been made before. */
		add_log(10, cut, seen[0]);
		add_log(11, KEPT_PAGES - cut, seen[1]);
		/*
		 * What hardware has logged may come with the next log, but a
		 * page that is missed once is missed for good.
		 */
		memset(seen, 0, sizeof(seen));
		for (j = nr = 0; good && nr < KEPT_PAGES && j < 4; j++) {
			good = wait_for_passes();
			nr = add_log(10, cut, seen[0]) +
			     add_log(11, KEPT_PAGES - cut, seen[1]);
		}
		if (good && nr < KEPT_PAGES) {
			ksft_print_msg("update %d: %d of %d pages are logged\n", i,
				       nr, KEPT_PAGES);
			good = false;
		}
		vm_set_region_list(vm, region_delete(10), region_delete(11),
				   plain[0], plain[1]);
	}
	if (stop_guest())
		good = false;
	kvm_vm_free(vm);
	return good;
}

static struct {
	sem_t go;
	bool runs, stop;
} hog;

/* Takes a CPU for 20 ms each time. */
static void *hog_worker(void *unused)
{
	struct timespec start;

	while (!sem_wait(&hog.go) && !READ_ONCE(hog.stop)) {
		clock_gettime(CLOCK_MONOTONIC, &start);
		WRITE_ONCE(hog.runs, true);
		while (timespec_to_ns(timespec_elapsed(start)) < 20000000)
			;
		WRITE_ONCE(hog.runs, false);
	}
	return NULL;
}

/*
 * A logged slot goes elsewhere after a vCPU has written to it: its log has all
 * writes.  The hog preempts the vCPU then.  It has left guest mode, and has not yet
 * marked as dirty what hardware has logged.
 */
static bool move_log(int advice)
{
	const u32 log = KVM_MEM_LOG_DIRTY_PAGES;
	const u64 size = KEPT_PAGES * PAGE_SIZE;
	unsigned long seen[NR_PAGES / 64];
	struct sched_param param = {};
	u64 *passes, pass, *page;
	bool good = true;
	pthread_t thread;
	int i, p, nr, cpu;
	u8 *other;

	create(guest_writer, 1, advice);
	other = mem + NR_PAGES / 2 * PAGE_SIZE;
	vm_set_region_list(vm, region_delete(10), part(11, 0, KEPT_PAGES),
			   region_set(10, log, PARK_GPA, size, other));
	run_vcpus();
	passes = *guest_ptr(vm, guest_passes);

	cpu = pin_task_to_any_cpu(workers[0].thread);
	TEST_ASSERT(!pthread_setschedparam(workers[0].thread, SCHED_IDLE, &param),
		    "Cannot let the hog preempt the vCPU");
	memset(&hog, 0, sizeof(hog));
	sem_init(&hog.go, 0, 0);
	kvm_pthread_create(&thread, NULL, hog_worker, NULL);
	pin_task_to_cpu(thread, cpu);

	for (i = 0; good && i < nr_updates / 50 + 4; i++) {
		vm_set_region_list(vm, region_delete(11),
				   region_set(10, log, WINDOW_GPA, size, other));
		good = wait_for_passes();
		memset(seen, 0, sizeof(seen));
		add_log(10, KEPT_PAGES, seen);
		pass = READ_ONCE(passes[0]) + 1;
		good &= wait_for_passes();

		sem_post(&hog.go);
		while (!READ_ONCE(hog.runs))
			usleep(100);
		vm_set_region_list(vm, region_set(10, log, PARK_GPA, size, other),
				   part(11, 0, KEPT_PAGES));
		memset(seen, 0, sizeof(seen));
		add_log(10, KEPT_PAGES, seen);
		for (p = nr = 0; p < KEPT_PAGES; p++) {
			page = (u64 *)(other + p * PAGE_SIZE);
			nr += *page > pass && !(seen[p / 64] & BIT(p % 64));
		}
		if (!nr)
			continue;
		ksft_print_msg("update %d: %d of %d pages are not logged\n", i, nr,
			       KEPT_PAGES);
		good = false;
	}
	WRITE_ONCE(hog.stop, true);
	sem_post(&hog.go);
	kvm_pthread_join(thread, NULL);
	if (stop_guest())
		good = false;
	kvm_vm_free(vm);
	return good;
}

/* Like vcpu_worker(), for a guest that accesses what no slot maps. */
static void *hunter(void *arg)
{
	struct worker *w = arg;
	struct kvm_run *run = w->vcpu->run;
	struct ucall uc;

	for (;;) {
		vcpu_run(w->vcpu);
		if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write)
			continue;
		if (get_ucall(w->vcpu, &uc) == UCALL_DONE)
			break;
		snprintf(w->death, sizeof(w->death), "%s",
			 exit_reason_str(run->exit_reason));
		break;
	}
	WRITE_ONCE(w->ended, true);
	return NULL;
}

static bool hunt_writes(int advice)
{
	u64 from, to, page;
	bool good = true;
	int i, id;

	create(guest_hunter, 2, advice);
	for (id = 0; id < nr_workers; id++)
		kvm_pthread_create(&workers[id].thread, NULL, hunter, &workers[id]);

	for (i = 0; good && i < nr_updates / 10; i++) {
		from = kvm_random_u64_in_range(&kvm_rng, 0, NR_PAGES - 2);
		to = kvm_random_u64_in_range(&kvm_rng, from + 1, NR_PAGES - 1);
		if (from)
			vm_set_region_list(vm, region_delete(10), part(10, 0, from),
					   part(11, to, NR_PAGES));
		else
			vm_set_region_list(vm, region_delete(10),
					   part(11, to, NR_PAGES));

		for (page = from; page < to; page++)
			memset(mem + page * PAGE_SIZE, 0, 16);
		if (i % 8 == 0)
			good = wait_for_passes();
		for (page = from; good && page < to; page++) {
			for (id = 0; id < nr_workers; id++) {
				if (!READ_ONCE(((u64 *)(mem + page * PAGE_SIZE))[id]))
					continue;
				ksft_print_msg("update %d, page %lu: written to when gone\n",
					       i, page);
				good = false;
			}
		}

		if (from)
			vm_set_region_list(vm, region_delete(11), region_delete(10),
					   part(10, 0, NR_PAGES));
		else
			vm_set_region_list(vm, region_delete(11),
					   part(10, 0, NR_PAGES));
	}
	good &= wait_for_passes();
	if (stop_guest())
		good = false;
	kvm_vm_free(vm);
	return good;
}

int main(int argc, char *argv[])
{
	struct sigaction sa = { .sa_handler = sig_ipi };
	int advice[] = { MADV_NOHUGEPAGE, MADV_HUGEPAGE }, i;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	if (argc > 1)
		nr_updates = atoi_positive("Number of updates", argv[1]);
	sigaction(SIG_IPI, &sa, NULL);
	patience = 60;

	ksft_print_header();
	ksft_set_plan(8);
	for (i = 0; i < 2; i++) {
		const char *pages = i ? "huge" : "small";

		if (kvm_is_tdp_enabled())
			ksft_test_result(count_faults(advice[i]),
					 "no fault on what stays, %s pages\n", pages);
		else
			ksft_test_result_skip("shadow paging zaps, %s pages\n", pages);
		ksft_test_result(begin_to_log(advice[i]),
				 "all writes to what stays are logged, %s pages\n",
				 pages);
		ksft_test_result(move_log(advice[i]),
				 "all writes to what moves are logged, %s pages\n",
				 pages);
		ksft_test_result(hunt_writes(advice[i]),
				 "no write to what has gone, %s pages\n", pages);
	}
	ksft_finished();
}
