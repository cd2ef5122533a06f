// SPDX-License-Identifier: GPL-2.0-only
/*
 * A hunt for mappings that KVM_SET_USER_MEMORY_REGION_LIST should have taken from
 * the guest.
 *
 * Random lists reshape the memslots of a window: memory goes, comes back, becomes
 * read-only, or lies elsewhere in the host.  After each list, one vCPU probes some
 * pages: its write must land where the slots say, or exit.  Another vCPU writes all
 * the time, so that mappings are in use and page faults in flight.  Host memory to
 * which no slot lets the guest write must not change once the ioctl has returned.
 *
 * The arguments are the number of lists and the seed.
 */
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include <linux/sizes.h>

#include "kselftest.h"
#include "memory_region_list.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define WINDOW_GPA	0xc0000000ul
#define NR_PAGES	1024
/* Behind the slots, so that a slot can be backed from an address of its choice. */
#define MEM_PAGES	(2 * NR_PAGES)

#define FIRST_ID	10
#define MAX_SLOTS	5
#define NR_PROBES	8

/* What the host writes to memory that must not change. */
#define CANARY(round)	(0xca000000ul + (round))

/* The host accesses the guest's copies. */
static struct {
	u64 val;
	u32 pages[NR_PROBES];
} guest_probes;
static bool guest_stop;

static struct kvm_vm *vm;
static struct kvm_vcpu *prober, *hammer;
static u8 *mem;

/* Words of a page: the prober's and the hammer's. */
enum { PROBER, HAMMER };

/* What the slots make of a page of the window: -1 or a page of @mem. */
struct view {
	int backing;
	bool readonly;
};

static struct view views[NR_PAGES];
/* Whether the guest may write to a page of @mem. */
static bool writable[MEM_PAGES];

static void guest_write(u32 page, int who, u64 val)
{
	WRITE_ONCE(((u64 *)(WINDOW_GPA + page * PAGE_SIZE))[who], val);
}

static void guest_prober(void)
{
	int i;

	for (;;) {
		for (i = 0; i < NR_PROBES; i++)
			guest_write(guest_probes.pages[i], PROBER,
				    guest_probes.val + i);
		GUEST_SYNC(0);
	}
}

static void guest_hammer(void)
{
	u32 page = 1;
	u64 n;

	for (n = 0; !READ_ONCE(guest_stop); n++) {
		/* Visits all pages, in an order that is not that of the host. */
		page = (page * 5 + 3) % NR_PAGES;
		guest_write(page, HAMMER, n);
	}
	GUEST_DONE();
}

static void *hammer_thread(void *unused)
{
	struct kvm_run *run = hammer->run;

	for (;;) {
		vcpu_run(hammer);
		if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write)
			continue;
		TEST_ASSERT(get_ucall(hammer, NULL) == UCALL_DONE,
			    "Unexpected exit: %s",
			    exit_reason_str(run->exit_reason));
		return NULL;
	}
}

static u64 *word(int page, int who)
{
	return (u64 *)(mem + page * PAGE_SIZE) + who;
}

static u32 random_below(struct kvm_random_state *rng, u32 end)
{
	return kvm_random_u32_in_range(rng, 0, end - 1);
}

/* Makes up slots, which do not overlap.  Returns how many there are. */
static int random_slots(struct kvm_random_state *rng, struct region_entry *entries)
{
	u32 page = 0, nr, from, flags, id = random_below(rng, MAX_SLOTS);
	int n = 0;

	while (n < MAX_SLOTS && page < NR_PAGES) {
		/* A hole, of one page or of many. */
		if (!random_below(rng, 3))
			page += random_below(rng, 2) ? 1 : random_below(rng, 300);
		if (page >= NR_PAGES)
			break;
		nr = 1 + random_below(rng, random_below(rng, 3) ? 500 : 8);
		nr = min(nr, NR_PAGES - page);
		/* Mostly, page n of the memory is at page n of the window. */
		from = random_below(rng, 6) ? page : random_below(rng, MEM_PAGES - nr);
		flags = random_below(rng, 5) ? 0 : KVM_MEM_READONLY;
		flags |= random_below(rng, 4) ? 0 : KVM_MEM_LOG_DIRTY_PAGES;
		entries[n] = region_set(FIRST_ID + (id + n) % MAX_SLOTS, flags,
					WINDOW_GPA + page * PAGE_SIZE,
					nr * PAGE_SIZE, mem + from * PAGE_SIZE);
		n++;
		page += nr;
	}
	return n;
}

static void set_views(const struct region_entry *slots, int nr)
{
	u32 page, i, n;
	int s;

	for (page = 0; page < NR_PAGES; page++)
		views[page].backing = -1;
	memset(writable, false, sizeof(writable));

	for (s = 0; s < nr; s++) {
		page = (slots[s].guest_phys_addr - WINDOW_GPA) / PAGE_SIZE;
		n = slots[s].memory_size / PAGE_SIZE;
		for (i = 0; i < n; i++) {
			struct view *view = &views[page + i];

			view->backing = (slots[s].userspace_addr -
					 (uintptr_t)mem) / PAGE_SIZE + i;
			view->readonly = slots[s].flags & KVM_MEM_READONLY;
			if (!view->readonly)
				writable[view->backing] = true;
		}
	}
}

/* Runs the prober.  Returns false if a write went where it must not. */
static bool probe(int round)
{
	typeof(guest_probes) *probes = guest_ptr(vm, guest_probes);
	struct kvm_run *run = prober->run;
	bool exits[NR_PROBES] = {};
	const struct view *view;
	bool good = true, want;
	u64 val;
	int i;

	for (;;) {
		vcpu_run(prober);
		if (run->exit_reason != KVM_EXIT_MMIO)
			break;
		memcpy(&val, run->mmio.data, sizeof(val));
		i = val - probes->val;
		TEST_ASSERT(run->mmio.is_write && i >= 0 && i < NR_PROBES &&
			    run->mmio.phys_addr == WINDOW_GPA +
						   probes->pages[i] * PAGE_SIZE,
			    "Stray MMIO at 0x%llx", run->mmio.phys_addr);
		exits[i] = true;
	}
	TEST_ASSERT(get_ucall(prober, NULL) == UCALL_SYNC, "Unexpected exit: %s",
		    exit_reason_str(run->exit_reason));

	for (i = 0; i < NR_PROBES; i++) {
		view = &views[probes->pages[i]];
		want = view->backing < 0 || view->readonly;
		if (exits[i] == want)
			continue;
		ksft_print_msg("list %d: a write to page %u %s\n", round,
			       probes->pages[i], want ? "does not exit" : "exits");
		good = false;
	}
	/* Another probe may have gone to the same page of the host. */
	for (i = 0; i < NR_PROBES; i++) {
		view = &views[probes->pages[i]];
		if (view->backing < 0 || view->readonly)
			continue;
		val = READ_ONCE(*word(view->backing, PROBER)) - probes->val;
		if (val < NR_PROBES &&
		    views[probes->pages[val]].backing == view->backing)
			continue;
		ksft_print_msg("list %d: a write to page %u is lost\n", round,
			       probes->pages[i]);
		good = false;
	}
	return good;
}

static void set_canaries(u64 canary)
{
	int page;

	for (page = 0; page < MEM_PAGES; page++) {
		if (writable[page])
			continue;
		WRITE_ONCE(*word(page, PROBER), canary);
		WRITE_ONCE(*word(page, HAMMER), canary);
	}
}

static bool check_canaries(u64 canary, int round)
{
	int page, who;

	for (page = 0; page < MEM_PAGES; page++) {
		if (writable[page])
			continue;
		for (who = PROBER; who <= HAMMER; who++) {
			if (READ_ONCE(*word(page, who)) == canary)
				continue;
			ksft_print_msg("list %d: the %s has written to host page %d\n",
				       round, who == PROBER ? "prober" : "hammer",
				       page);
			return false;
		}
	}
	return true;
}

/* Chooses pages of which the list has changed something, and some others. */
static void choose_probes(struct kvm_random_state *rng, const struct view *before,
			  int round)
{
	typeof(guest_probes) *probes = guest_ptr(vm, guest_probes);
	u32 i, page, tries;

	probes->val = (u64)round << 16;
	for (i = 0; i < NR_PROBES; i++) {
		for (tries = 0; tries < 8; tries++) {
			page = random_below(rng, NR_PAGES);
			if (i % 2 || memcmp(&before[page], &views[page],
					    sizeof(views[page])))
				break;
		}
		probes->pages[i] = page;
	}
}

static bool hunt(int advice, int nr_lists, u32 seed)
{
	struct kvm_random_state rng = new_kvm_random_state(seed);
	struct region_entry entries[2 * MAX_SLOTS], slots[MAX_SLOTS];
	static struct view before[NR_PAGES];
	int i, round, nr, nr_slots;
	u64 gone, kept;
	pthread_t thread;
	bool good = true;
	void *area;

	vm = vm_create(2);
	prober = vm_vcpu_add(vm, 0, guest_prober);
	hammer = vm_vcpu_add(vm, 1, guest_hammer);
	virt_map(vm, WINDOW_GPA, WINDOW_GPA, NR_PAGES);
	area = kvm_mmap(MEM_PAGES * PAGE_SIZE + SZ_2M, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
	mem = align_ptr_up(area, SZ_2M);
	madvise(mem, MEM_PAGES * PAGE_SIZE, advice);
	memset(mem, 0, MEM_PAGES * PAGE_SIZE);

	nr_slots = random_slots(&rng, slots);
	vm_set_region_entries(vm, nr_slots, slots);
	set_views(slots, nr_slots);
	kvm_pthread_create(&thread, NULL, hammer_thread, NULL);

	for (round = 1; good && round <= nr_lists; round++) {
		memcpy(before, views, sizeof(views));
		for (nr = 0; nr < nr_slots; nr++)
			entries[nr] = region_delete(slots[nr].slot);
		nr_slots = random_slots(&rng, slots);
		for (i = 0; i < nr_slots; i++)
			entries[nr++] = slots[i];
		vm_set_region_entries(vm, nr, entries);

		set_views(slots, nr_slots);
		set_canaries(CANARY(round));
		choose_probes(&rng, before, round);
		good = probe(round) && check_canaries(CANARY(round), round);
	}

	gone = vm_get_stat(vm, memslot_gone_pages);
	kept = vm_get_stat(vm, memslot_kept_pages);
	ksft_print_msg("%d lists, %lu pages stayed, %lu went\n", round - 1, kept,
		       gone);
	WRITE_ONCE(*guest_ptr(vm, guest_stop), true);
	kvm_pthread_join(thread, NULL);
	kvm_vm_free(vm);
	kvm_munmap(area, MEM_PAGES * PAGE_SIZE + SZ_2M);
	return good && gone && kept;
}

int main(int argc, char *argv[])
{
	int advice[] = { MADV_NOHUGEPAGE, MADV_HUGEPAGE }, i, nr_lists = 600;
	u32 seed = kvm_random_seed;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	if (argc > 1)
		nr_lists = atoi_positive("Number of lists", argv[1]);
	if (argc > 2)
		seed = strtoul(argv[2], NULL, 0);

	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(advice));
	ksft_print_msg("seed 0x%x\n", seed);
	for (i = 0; i < ARRAY_SIZE(advice); i++)
		ksft_test_result(hunt(advice[i], nr_lists / 2 + 1, seed + i),
				 "no stale mapping, %s pages\n", i ? "huge" : "small");
	ksft_finished();
}
