// SPDX-License-Identifier: GPL-2.0-only
/*
 * However a sequence of memslot updates is cut into lists, the result is the same.
 *
 * One VM makes each update by KVM_SET_USER_MEMORY_REGION, and another one makes
 * them in lists, which the test cuts at random.  Both then have the same slots, and
 * their guests make the same writes: these must go to the same memory, or exit.  The
 * dirty logs must be exactly what the rules say: those of the first VM are the model
 * of the single ioctl, those of the second one have carried bits, too.
 *
 * The digest is that of all results of the VM with single ioctls.  The same seed
 * gives the same digest on every kernel, also on one without lists.
 *
 * The arguments are the number of updates and the seed.
 */
#include <string.h>
#include <sys/mman.h>

#include "kselftest.h"
#include "memory_region_list.h"
#include "memslots_file.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define WINDOW_GPA	0xc0000000ul
/* A dirty log then is one word. */
#define NR_PAGES	64
#define MEM_PAGES	(2 * NR_PAGES)

#define FIRST_ID	10
#define NR_IDS		10
#define NR_AS		2
#define LOG		KVM_MEM_LOG_DIRTY_PAGES

#define MAX_LIST	16
#define NR_WRITES	6
/* Lists from one comparison of everything to the next. */
#define COMPARE_EVERY	16

/* The host accesses the guest's copies. */
static struct {
	u64 val;
	u32 pages[NR_WRITES];
} guest_writes;

/* A slot as the test knows it.  No pages: it does not exist. */
struct slot {
	int at, nr, from;
	u32 flags;
};

struct space {
	struct slot slots[NR_IDS];
	u64 logs[NR_IDS];
};

/* One of the two VMs, and what its slots and logs must be. */
struct side {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *mem;
	struct space spaces[NR_AS];
};

static struct side single, lists;
static bool have_lists;
static int nr_as;

/* The list that is being made, and the slots before it. */
static struct region_entry entries[MAX_LIST];
static int nr_entries;
static struct space before[NR_AS];
/* Of each slot: the list has deleted it; has turned its logging off. */
static bool deleted[NR_AS][NR_IDS], unlogged[NR_AS][NR_IDS];

static u64 digest = 0xcbf29ce484222325ul;

static void add_to_digest(u64 val)
{
	int i;

	for (i = 0; i < sizeof(val); i++, val >>= 8)
		digest = (digest ^ (u8)val) * 0x100000001b3ul;
}

static void guest_code(void)
{
	int i;

	for (;;) {
		/* A read would have KVM map, and log, the page as well. */
		for (i = 0; i < NR_WRITES; i++)
			WRITE_ONCE(*(u64 *)(WINDOW_GPA + guest_writes.pages[i] * PAGE_SIZE),
				   guest_writes.val + i);
		GUEST_SYNC(0);
	}
}

static int random_int(struct kvm_random_state *rng, int min, int max)
{
	return kvm_random_u32_in_range(rng, min, max);
}

static struct region_entry entry_of(struct side *side, int as, int id,
				    const struct slot *slot)
{
	return region_set(as << 16 | (FIRST_ID + id), slot->flags,
			  slot->nr ? WINDOW_GPA + slot->at * PAGE_SIZE : 0,
			  slot->nr * PAGE_SIZE,
			  slot->nr ? side->mem + slot->from * PAGE_SIZE : NULL);
}

static bool overlaps(const struct space *space, int at, int nr, int except)
{
	const struct slot *slot;
	int id;

	for (id = 0; id < NR_IDS; id++) {
		slot = &space->slots[id];
		if (id != except && slot->nr && at < slot->at + slot->nr &&
		    slot->at < at + nr)
			return true;
	}
	return false;
}

static struct slot *slot_at(struct space *space, int page, int *id)
{
	int i;

	for (i = 0; i < NR_IDS; i++) {
		if (page < space->slots[i].at ||
		    page >= space->slots[i].at + space->slots[i].nr)
			continue;
		*id = i;
		return &space->slots[i];
	}
	return NULL;
}

/*
 * Makes an update of the VM with single ioctls, and notes what it means for slots
 * and logs there.
 */
static void do_single(int as, int id, struct slot slot)
{
	struct region_entry entry = entry_of(&single, as, id, &slot);
	struct space *space = &single.spaces[as];
	u32 was = space->slots[id].flags;

	vm_set_region_entry(single.vm, entry);
	if (!space->slots[id].nr || !slot.nr || !(slot.flags & was & LOG))
		space->logs[id] = 0;
	space->slots[id] = slot;
}

static void do_update(int as, int id, struct slot slot)
{
	struct slot *was = &single.spaces[as].slots[id];

	deleted[as][id] |= was->nr && !slot.nr;
	unlogged[as][id] |= was->nr && slot.nr && !(slot.flags & LOG);
	entries[nr_entries++] = entry_of(&lists, as, id, &slot);
	do_single(as, id, slot);
}

/* Whether a slot that was there before the list has gone, or gone elsewhere. */
static bool is_removed(int as, int id)
{
	const struct slot *old = &before[as].slots[id];
	const struct slot *new = &lists.spaces[as].slots[id];

	return old->nr && (deleted[as][id] || old->at != new->at);
}

/* Returns the bits of the removed slot's log that a slot of the list must get. */
static u64 carried(int old_as, int old_id, const struct slot *new)
{
	const struct slot *old = &before[old_as].slots[old_id];
	u64 bits = 0;
	int i, page;

	if (!(old->flags & LOG) || old->at - new->at != old->from - new->from)
		return 0;
	for (i = 0; i < old->nr; i++) {
		page = old->at + i - new->at;
		if (page >= 0 && page < new->nr &&
		    (before[old_as].logs[old_id] & BIT(i)))
			bits |= BIT(page);
	}
	return bits;
}

static void expect_log(int as, int id)
{
	const struct slot *old = &before[as].slots[id];
	const struct slot *new = &lists.spaces[as].slots[id];
	u64 *log = &lists.spaces[as].logs[id];
	bool created, moved, logs;
	int old_as, old_id;

	created = new->nr && (!old->nr || deleted[as][id]);
	moved = old->nr && new->nr && !created && old->at != new->at;
	logs = new->nr && (new->flags & LOG);

	if (!logs || created || !(old->flags & LOG) || unlogged[as][id])
		*log = 0;
	if (!logs || !(created || moved))
		return;
	for (old_as = 0; old_as < nr_as; old_as++)
		for (old_id = 0; old_id < NR_IDS; old_id++)
			if (is_removed(old_as, old_id))
				*log |= carried(old_as, old_id, new);
}

/* Makes the list, and notes what it means. */
static void do_list(void)
{
	int as, id;

	if (have_lists)
		vm_set_region_entries(lists.vm, nr_entries, entries);

	memcpy(before, lists.spaces, sizeof(before));
	for (as = 0; as < nr_as; as++)
		memcpy(lists.spaces[as].slots, single.spaces[as].slots,
		       sizeof(lists.spaces[as].slots));
	for (as = 0; as < nr_as; as++)
		for (id = 0; id < NR_IDS; id++)
			expect_log(as, id);

	nr_entries = 0;
	memset(deleted, 0, sizeof(deleted));
	memset(unlogged, 0, sizeof(unlogged));
}

static u32 random_flags(struct kvm_random_state *rng)
{
	u32 flags = random_int(rng, 0, 2) ? LOG : 0;

	return flags | (random_int(rng, 0, 7) ? 0 : KVM_MEM_READONLY);
}

static int free_id(const struct space *space, struct kvm_random_state *rng)
{
	int id = random_int(rng, 0, NR_IDS - 1), i;

	for (i = 0; i < NR_IDS; i++, id = (id + 1) % NR_IDS)
		if (!space->slots[id].nr)
			return id;
	return -1;
}

/* The following are the kinds of updates, some of which are several entries. */

static void create(struct kvm_random_state *rng, int as)
{
	int nr = random_int(rng, 1, 12), at = random_int(rng, 0, NR_PAGES - nr);
	struct space *space = &single.spaces[as];
	int id = free_id(space, rng);

	if (id < 0 || overlaps(space, at, nr, -1))
		return;
	do_update(as, id, (struct slot) {
		.at = at,
		.nr = nr,
		/* Mostly where another slot has had, or will have, it. */
		.from = random_int(rng, 0, 4) ? at :
			random_int(rng, 0, MEM_PAGES - nr),
		.flags = random_flags(rng),
	});
}

static void delete(int as, int id)
{
	do_update(as, id, (struct slot) {});
}

static void move(struct kvm_random_state *rng, int as, int id)
{
	struct slot slot = single.spaces[as].slots[id];

	slot.at = random_int(rng, 0, NR_PAGES - slot.nr);
	if (!overlaps(&single.spaces[as], slot.at, slot.nr, id))
		do_update(as, id, slot);
}

static void set_flags(int as, int id)
{
	struct slot slot = single.spaces[as].slots[id];

	slot.flags ^= LOG;
	do_update(as, id, slot);
}

/* Deletes a slot, and creates one with other edges, flags or another id. */
static void resize(struct kvm_random_state *rng, int as, int id)
{
	struct slot slot = single.spaces[as].slots[id], old = slot;
	int by = random_int(rng, 0, 8) - 4;

	if (random_int(rng, 0, 1)) {
		slot.nr += by;
	} else {
		slot.at += by;
		slot.from += by;
		slot.nr -= by;
	}
	if (!random_int(rng, 0, 3))
		slot.flags = random_flags(rng);
	if (slot.at < 0 || slot.from < 0 || slot.nr < 1 ||
	    slot.at + slot.nr > NR_PAGES || slot.from + slot.nr > MEM_PAGES ||
	    overlaps(&single.spaces[as], slot.at, slot.nr, id))
		slot = old;
	delete(as, id);
	if (random_int(rng, 0, 1))
		id = free_id(&single.spaces[as], rng);
	do_update(as, id, slot);
}

static void split(struct kvm_random_state *rng, int as, int id)
{
	struct slot first = single.spaces[as].slots[id], second = first;
	int other = free_id(&single.spaces[as], rng);

	if (other < 0 || first.nr < 2)
		return;
	first.nr = random_int(rng, 1, first.nr - 1);
	second.nr -= first.nr;
	second.at += first.nr;
	second.from += first.nr;
	if (!random_int(rng, 0, 3))
		second.flags = random_flags(rng);
	delete(as, id);
	do_update(as, id, first);
	do_update(as, other, second);
}

static void merge(int as, int id)
{
	struct slot slot = single.spaces[as].slots[id], *next;
	int other;

	next = slot_at(&single.spaces[as], slot.at + slot.nr, &other);
	if (!next || next->from != slot.from + slot.nr)
		return;
	slot.nr += next->nr;
	delete(as, other);
	delete(as, id);
	do_update(as, id, slot);
}

/* At most 3 entries. */
static void random_update(struct kvm_random_state *rng)
{
	int as = nr_as > 1 && !random_int(rng, 0, 5), id, kind;

	id = random_int(rng, 0, NR_IDS - 1);
	kind = random_int(rng, 0, 9);
	if (!single.spaces[as].slots[id].nr) {
		create(rng, as);
		return;
	}
	switch (kind) {
	case 0:
		delete(as, id);
		break;
	case 1:
		move(rng, as, id);
		break;
	case 2 ... 3:
		set_flags(as, id);
		break;
	case 4 ... 5:
		resize(rng, as, id);
		break;
	case 6 ... 7:
		split(rng, as, id);
		break;
	case 8 ... 9:
		merge(as, id);
		break;
	}
}

/* Has the guest write to some pages, and notes which of them get dirty. */
static void run_guest(struct side *side, const u32 *pages, u64 val)
{
	typeof(guest_writes) *writes = guest_ptr(side->vm, guest_writes);
	struct kvm_run *run = side->vcpu->run;
	const struct slot *slot;
	bool exits, want;
	int i, id;

	writes->val = val;
	memcpy(writes->pages, pages, sizeof(writes->pages));
	vcpu_run(side->vcpu);
	for (i = 0; i < NR_WRITES; i++) {
		slot = slot_at(&side->spaces[0], pages[i], &id);
		exits = run->exit_reason == KVM_EXIT_MMIO &&
			run->mmio.phys_addr == WINDOW_GPA + pages[i] * PAGE_SIZE &&
			!memcmp(run->mmio.data, &(u64) { val + i }, sizeof(val));
		want = !slot || (slot->flags & KVM_MEM_READONLY);
		TEST_ASSERT(exits == want, "%s: a write to page %u %s",
			    side == &lists ? "lists" : "single ioctls", pages[i],
			    exits ? "exits" : "does not exit");
		if (exits)
			vcpu_run(side->vcpu);
		else if (slot->flags & LOG)
			side->spaces[0].logs[id] |= BIT(pages[i] - slot->at);
		if (side == &single)
			add_to_digest(exits);
	}
	TEST_ASSERT(get_ucall(side->vcpu, NULL) == UCALL_SYNC, "Unexpected exit: %s",
		    exit_reason_str(run->exit_reason));
}

static void check_logs(struct side *side)
{
	struct space *space;
	int as, id;
	u64 log;

	for (as = 0; as < nr_as; as++) {
		for (id = 0; id < NR_IDS; id++) {
			space = &side->spaces[as];
			if (!space->slots[id].nr || !(space->slots[id].flags & LOG))
				continue;
			log = 0;
			kvm_vm_get_dirty_log(side->vm, as << 16 | (FIRST_ID + id),
					     &log);
			TEST_ASSERT(log == space->logs[id],
				    "%s: the log of slot 0x%x is 0x%lx instead of 0x%lx",
				    side == &lists ? "lists" : "single ioctls",
				    as << 16 | (FIRST_ID + id), log,
				    space->logs[id]);
			space->logs[id] = 0;
			if (side == &single)
				add_to_digest(log);
		}
	}
}

/* Checks the slots that debugfs shows. */
static void check_map(struct side *side)
{
	const u32 nr_ids = kvm_check_cap(KVM_CAP_NR_MEMSLOTS);
	struct memslots_file file;
	struct memslot_row *row;
	int as, id, i, nr = 0;
	struct slot *slot;

	read_memslots(side->vm, &file);
	for (i = 0; i < file.nr_rows; i++) {
		row = &file.rows[i];
		TEST_ASSERT(!strcmp(row->sets, "both"), "Slot 0x%x is in '%s'",
			    row->as << 16 | row->id, row->sets);
		/* KVM has slots of its own, e.g. for VMX's APIC-access page. */
		if (row->gfn < WINDOW_GPA / PAGE_SIZE || row->id >= nr_ids)
			continue;
		id = row->id - FIRST_ID;
		TEST_ASSERT(row->as < nr_as && id >= 0 && id < NR_IDS,
			    "Slot 0x%x is not the test's", row->as << 16 | row->id);
		slot = &side->spaces[row->as].slots[id];
		TEST_ASSERT(row->gfn == WINDOW_GPA / PAGE_SIZE + slot->at &&
			    row->pages == slot->nr && row->flags == slot->flags &&
			    row->hva == (uintptr_t)side->mem + slot->from * PAGE_SIZE,
			    "Slot 0x%x is not as expected", row->as << 16 | row->id);
		nr++;
	}
	for (as = 0; as < nr_as; as++)
		for (id = 0; id < NR_IDS; id++)
			nr -= !!side->spaces[as].slots[id].nr;
	TEST_ASSERT(!nr, "%d slots too many", nr);
	free_memslots(&file);
}

static void compare(bool have_file)
{
	u64 val, with_lists;
	int i;

	for (i = 0; i < MEM_PAGES; i++) {
		val = *(u64 *)(single.mem + i * PAGE_SIZE);
		add_to_digest(val);
		if (!have_lists)
			continue;
		with_lists = *(u64 *)(lists.mem + i * PAGE_SIZE);
		TEST_ASSERT(val == with_lists,
			    "Page %d is 0x%lx, with lists 0x%lx", i, val,
			    with_lists);
	}
	check_logs(&single);
	if (!have_lists)
		return;
	check_logs(&lists);
	if (have_file) {
		check_map(&single);
		check_map(&lists);
	}
}

static void create_side(struct side *side, bool zap_all)
{
	side->vm = vm_create_with_one_vcpu(&side->vcpu, guest_code);
	if (!zap_all && (kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) &
			 KVM_X86_QUIRK_SLOT_ZAP_ALL))
		vm_enable_cap(side->vm, KVM_CAP_DISABLE_QUIRKS2,
			      KVM_X86_QUIRK_SLOT_ZAP_ALL);
	virt_map(side->vm, WINDOW_GPA, WINDOW_GPA, NR_PAGES);
	side->mem = kvm_mmap(MEM_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memset(side->mem, 0, MEM_PAGES * PAGE_SIZE);
}

int main(int argc, char *argv[])
{
	int nr_updates = 4000, done = 0, nr_lists = 0, goal, i;
	struct kvm_random_state rng;
	u32 pages[NR_WRITES];
	u32 seed = 0x70617274;
	bool have_file;

	if (argc > 1)
		nr_updates = atoi_positive("Number of updates", argv[1]);
	if (argc > 2)
		seed = strtoul(argv[2], NULL, 0);

	ksft_print_header();
	ksft_set_plan(1);
	rng = new_kvm_random_state(seed);
	have_lists = kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST);
	nr_as = kvm_has_cap(KVM_CAP_X86_SMM) ? NR_AS : 1;
	/* Zapping everything takes the most time. */
	create_side(&single, seed & 1);
	if (have_lists)
		create_side(&lists, seed & 1);
	i = open_memslots_file(single.vm);
	have_file = i >= 0;
	close(i);

	while (done < nr_updates) {
		goal = random_int(&rng, 1, MAX_LIST - 3);
		if (!random_int(&rng, 0, 3))
			goal = 1;
		while (nr_entries < goal)
			random_update(&rng);
		done += nr_entries;
		do_list();
		nr_lists++;

		for (i = 0; i < NR_WRITES; i++)
			pages[i] = random_int(&rng, 0, NR_PAGES - 1);
		run_guest(&single, pages, (u64)done << 8);
		if (have_lists)
			run_guest(&lists, pages, (u64)done << 8);
		if (nr_lists % COMPARE_EVERY == 0 || done >= nr_updates)
			compare(have_file);
	}

	ksft_print_msg("seed 0x%x, %d updates in %d lists: digest 0x%016lx\n",
		       seed, done, nr_lists, digest);
	if (have_lists)
		ksft_test_result_pass("lists do what single ioctls do\n");
	else
		ksft_test_result_skip("no lists, single ioctls only\n");
	kvm_vm_free(single.vm);
	if (have_lists)
		kvm_vm_free(lists.vm);
	ksft_finished();
}
