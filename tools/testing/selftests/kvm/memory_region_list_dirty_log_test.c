// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_USER_MEMORY_REGION_LIST and the dirty log: when slots that are
 * logged change their shape, no dirty page is lost.
 *
 * A page that a deleted or moved slot has logged stays dirty if a slot that the
 * same list creates logs it at the same guest physical and host address.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <asm/barrier.h>
#include <linux/bitmap.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "memory_region_list.h"
#include "processor.h"
#include "test_util.h"

#define WINDOW_GPA	0xc0000000ul
#define PARK_GPA	0xd0000000ul
#define NR_PAGES	256
#define LOG		KVM_MEM_LOG_DIRTY_PAGES

#define NR_WRITERS	3
/* Where what KVM is to write comes from. */
#define IO_PORT		0x2000
#define NR_ROUNDS	60
#define MAX_PIECES	6
#define FIRST_ID	10

#define RING_ENTRIES	4096

/* Ends a list of pages. */
#define NONE		-1

/* Guest and host, each with its own copy; see guest_ptr(). */
static bool guest_to_write[NR_PAGES];
static u64 guest_wrote[NR_WRITERS][NR_PAGES];
static bool guest_stop;

#define guest_ptr(vm, var) ((typeof(var) *)addr_gva2hva(vm, (gva_t)&(var)))

static void guest_code(void)
{
	int i;

	for (;;) {
		for (i = 0; i < NR_PAGES; i++)
			if (guest_to_write[i])
				WRITE_ONCE(*(u64 *)(WINDOW_GPA + i * PAGE_SIZE), i + 1);
		GUEST_SYNC(0);
	}
}

/*
 * Writes to random pages and notes, outside of the logged slots, what it wrote.
 * The last of the writers has KVM write.
 */
static void guest_writer(int id)
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

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpus[NR_WRITERS];
static u8 *mem;
static u64 manual_protect;

FIXTURE(dirty_log) {};

FIXTURE_VARIANT(dirty_log)
{
	u64 manual_protect;
};

FIXTURE_VARIANT_ADD(dirty_log, get_and_clear)
{
	.manual_protect = 0,
};

FIXTURE_VARIANT_ADD(dirty_log, manual_protect)
{
	.manual_protect = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
};

FIXTURE_VARIANT_ADD(dirty_log, initially_set)
{
	.manual_protect = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
			  KVM_DIRTY_LOG_INITIALLY_SET,
};

FIXTURE_SETUP(dirty_log)
{
	u64 caps = kvm_check_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);

	manual_protect = variant->manual_protect;
	if (manual_protect & ~caps)
		SKIP(return, "No such mode");

	vm = vm_create_with_vcpus(NR_WRITERS, guest_code, vcpus);
	virt_map(vm, WINDOW_GPA, WINDOW_GPA, NR_PAGES);
	if (manual_protect)
		vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, manual_protect);

	/* Twice the window: other host addresses for the same pages. */
	mem = kvm_mmap(2 * NR_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

FIXTURE_TEARDOWN(dirty_log)
{
	kvm_vm_free(vm);
	kvm_munmap(mem, 2 * NR_PAGES * PAGE_SIZE);
}

static struct region_entry set(u32 slot, u32 flags, int at, int nr, int from)
{
	return region_set(slot, flags, WINDOW_GPA + at * PAGE_SIZE,
			  nr * PAGE_SIZE, mem + from * PAGE_SIZE);
}

/* The usual case: page n of the window lies at page n of the memory. */
static struct region_entry log_set(u32 slot, int at, int nr)
{
	return set(slot, LOG, at, nr, at);
}

static struct region_entry park(struct region_entry entry)
{
	entry.guest_phys_addr += PARK_GPA - WINDOW_GPA;
	return entry;
}

static void run_list(int line, u32 nent, const struct region_entry *entries)
{
	int r = __vm_set_region_list(vm, nent, entries);

	TEST_ASSERT(!r, "line %d: errno %d", line, errno);
}

#define list(...)							\
do {									\
	const struct region_entry __e[] = { __VA_ARGS__ };		\
									\
	run_list(__LINE__, ARRAY_SIZE(__e), __e);			\
} while (0)

static void write_pages(const int *pages)
{
	bool *to_write = *guest_ptr(vm, guest_to_write);

	memset(to_write, 0, sizeof(guest_to_write));
	for (; *pages != NONE; pages++)
		to_write[*pages] = true;

	vcpu_run(vcpus[0]);
	TEST_ASSERT(get_ucall(vcpus[0], NULL) == UCALL_SYNC,
		    "Unexpected exit: %s",
		    exit_reason_str(vcpus[0]->run->exit_reason));
}

/* Pages of the window. */
#define guest_writes(...) write_pages((const int []) { __VA_ARGS__, NONE })

/* What there is in the log, which is clear afterwards. */
static void harvest(u32 slot, int nr, unsigned long *log)
{
	bitmap_zero(log, NR_PAGES);
	kvm_vm_get_dirty_log(vm, slot, log);
	if (manual_protect)
		kvm_vm_clear_dirty_log(vm, slot, log, 0, nr);
}

static void check_log(int line, u32 slot, int nr, bool all, const int *pages)
{
	DECLARE_BITMAP(want, NR_PAGES);
	DECLARE_BITMAP(log, NR_PAGES);
	int i;

	bitmap_zero(want, NR_PAGES);
	for (; *pages != NONE; pages++)
		__set_bit(*pages, want);

	harvest(slot, nr, log);
	for (i = 0; i < nr; i++)
		TEST_ASSERT(test_bit(i, log) == (all || test_bit(i, want)),
			    "line %d: slot %u, page %d is %s", line, slot, i,
			    test_bit(i, log) ? "dirty" : "clean");
}

/* Pages of the slot.  A slot that has just been created may be all dirty. */
#define log_is(slot, nr, ...)						\
	check_log(__LINE__, slot, nr, false, (const int []) { __VA_ARGS__, NONE })
#define new_log_is(slot, nr, ...)					\
	check_log(__LINE__, slot, nr,					\
		  manual_protect & KVM_DIRTY_LOG_INITIALLY_SET,		\
		  (const int []) { __VA_ARGS__, NONE })

static void not_logged(u32 slot)
{
	DECLARE_BITMAP(log, NR_PAGES);
	struct kvm_dirty_log args = { .slot = slot, .dirty_bitmap = log };
	int r = __vm_ioctl(vm, KVM_GET_DIRTY_LOG, &args);

	TEST_ASSERT(r && errno == ENOENT, "Slot %u is logged", slot);
}

TEST_F(dirty_log, resize)
{
	list(log_set(10, 0, 16));
	new_log_is(10, 16, NONE);
	guest_writes(1, 5, 12, 15);

	list(region_delete(10), log_set(10, 0, 8));
	new_log_is(10, 8, 1, 5);

	/* What was cut off is forgotten. */
	guest_writes(2);
	list(region_delete(10), log_set(10, 0, 16));
	new_log_is(10, 16, 2);

	/* Logging goes on, with pages that were dirty already and others. */
	guest_writes(2, 12);
	log_is(10, 16, 2, 12);
	log_is(10, 16, NONE);

	/* At the front. */
	guest_writes(0, 3, 15);
	list(region_delete(10), log_set(10, 3, 13));
	new_log_is(10, 13, 0, 12);
	guest_writes(4);
	list(region_delete(10), log_set(10, 1, 15));
	new_log_is(10, 15, 3);
}

TEST_F(dirty_log, split_and_merge)
{
	list(log_set(10, 0, 200));
	new_log_is(10, 200, NONE);
	guest_writes(0, 1, 62, 63, 64, 66, 67, 68, 127, 128, 130, 131, 199);

	/* Borders in the middle of the bitmap's words. */
	list(region_delete(10), log_set(10, 0, 67), log_set(11, 67, 64),
	     log_set(12, 131, 69));
	new_log_is(10, 67, 0, 1, 62, 63, 64, 66);
	new_log_is(11, 64, 0, 1, 60, 61, 63);
	new_log_is(12, 69, 0, 68);

	guest_writes(66, 67, 130, 131, 199);
	list(region_delete(12), region_delete(10), region_delete(11),
	     log_set(13, 0, 200));
	new_log_is(13, 200, 66, 67, 130, 131, 199);
}

/* What is not logged has nothing to hand on. */
TEST_F(dirty_log, merge_with_unlogged)
{
	list(log_set(10, 0, 8), set(11, 0, 8, 8, 8));
	new_log_is(10, 8, NONE);
	guest_writes(3, 7, 8, 12);
	list(region_delete(10), region_delete(11), log_set(12, 0, 24));
	new_log_is(12, 24, 3, 7);
}

/* What counts is where a page is, not in which address space. */
TEST_F(dirty_log, address_spaces)
{
	const u32 smm = 1 << 16;

	if (vm_check_cap(vm, KVM_CAP_MULTI_ADDRESS_SPACE) < 2)
		SKIP(return, "One address space");

	list(log_set(10, 0, 16));
	new_log_is(10, 16, NONE);
	guest_writes(1, 5, 12);

	list(region_delete(10), log_set(smm | 11, 4, 12));
	new_log_is(smm | 11, 12, 1, 8);

	/* A successor in each. */
	list(log_set(10, 0, 16));
	new_log_is(10, 16, NONE);
	guest_writes(2, 6);
	list(region_delete(10), region_delete(smm | 11), log_set(10, 0, 8),
	     log_set(smm | 10, 0, 16));
	new_log_is(10, 8, 2, 6);
	new_log_is(smm | 10, 16, 2, 6);
}

/* A page that is fetched is clean only when it has been cleared. */
TEST_F(dirty_log, fetched_but_not_cleared)
{
	DECLARE_BITMAP(log, NR_PAGES);

	list(log_set(10, 0, 16));
	new_log_is(10, 16, NONE);
	guest_writes(1, 5);

	kvm_vm_get_dirty_log(vm, 10, log);
	guest_writes(6);
	list(region_delete(10), log_set(10, 0, 8));
	if (manual_protect)
		new_log_is(10, 8, 1, 5, 6);
	else
		new_log_is(10, 8, 6);
}

TEST_F(dirty_log, no_successor)
{
	list(log_set(10, 0, 16));
	new_log_is(10, 16, NONE);

	/* The same pages, from another host address. */
	guest_writes(2, 9);
	list(region_delete(10), set(10, LOG, 0, 16, NR_PAGES));
	new_log_is(10, 16, NONE);

	/* From the same one, at another place. */
	guest_writes(2, 9);
	list(region_delete(10), set(10, LOG, 1, 15, NR_PAGES));
	new_log_is(10, 15, NONE);

	/* Half of the one, half of the other. */
	guest_writes(2, 9);
	list(region_delete(10), set(10, LOG, 1, 4, NR_PAGES),
	     set(11, LOG, 5, 11, NR_PAGES + 5));
	new_log_is(10, 4, 1);
	new_log_is(11, 11, NONE);

	/* Without logging, and logged again later. */
	guest_writes(5, 6);
	list(region_delete(11), set(11, 0, 5, 11, NR_PAGES + 5));
	not_logged(11);
	list(set(11, LOG, 5, 11, NR_PAGES + 5));
	new_log_is(11, 11, NONE);

	/* Only in the next list. */
	guest_writes(5, 6);
	list(region_delete(11));
	list(set(11, LOG, 5, 11, NR_PAGES + 5));
	new_log_is(11, 11, NONE);
}

TEST_F(dirty_log, moves)
{
	list(log_set(10, 0, 16));
	new_log_is(10, 16, NONE);

	/* A slot takes its log along ... */
	guest_writes(1, 15);
	list(log_set(11, 20, 4), park(log_set(10, 0, 16)), log_set(10, 0, 16),
	     park(log_set(10, 0, 16)));
	log_is(10, 16, 1, 15);
	list(log_set(10, 0, 16));

	/* ... and leaves a copy to what follows in its place. */
	guest_writes(1, 15);
	list(park(log_set(10, 0, 16)), log_set(12, 0, 8), log_set(13, 8, 8));
	new_log_is(12, 8, 1);
	new_log_is(13, 8, 7);
	log_is(10, 16, 1, 15);

	/* There and back again. */
	list(region_delete(12), region_delete(13), log_set(10, 0, 16));
	guest_writes(3);
	log_is(10, 16, 3);
}

/* Through slots that live and die within the list. */
TEST_F(dirty_log, within_a_list)
{
	list(log_set(10, 0, 16));
	new_log_is(10, 16, NONE);

	guest_writes(1, 14);
	list(region_delete(10), log_set(11, 0, 16), region_delete(11),
	     log_set(10, 0, 15));
	new_log_is(10, 15, 1, 14);

	/* Logging comes with a second entry. */
	guest_writes(1, 14);
	list(region_delete(10), set(12, 0, 0, 16, 0), log_set(12, 0, 16));
	new_log_is(12, 16, 1, 14);

	/* The successor moves in. */
	guest_writes(1, 14);
	list(park(log_set(13, 0, 16)), region_delete(12), log_set(13, 0, 16));
	new_log_is(13, 16, 1, 14);

	/* Switched off and on again, as with two single ioctls. */
	guest_writes(1, 14);
	list(set(13, 0, 0, 16, 0), log_set(13, 0, 16));
	new_log_is(13, 16, NONE);
}

/* Harvested once, after many changes. */
TEST_F(dirty_log, many_lists)
{
	list(log_set(10, 0, 128));
	new_log_is(10, 128, NONE);

	guest_writes(0, 50, 100);
	list(region_delete(10), log_set(10, 0, 51), log_set(11, 51, 77));
	guest_writes(1, 51, 101);
	list(region_delete(10), log_set(12, 0, 30), log_set(13, 30, 21));
	guest_writes(2, 52, 102);
	list(region_delete(11), log_set(10, 51, 60), log_set(11, 111, 17));
	list(region_delete(10), region_delete(11), region_delete(12),
	     region_delete(13), log_set(14, 0, 128));
	guest_writes(127);
	new_log_is(14, 128, 0, 1, 2, 50, 51, 52, 100, 101, 102, 127);
}

TEST_F(dirty_log, failure_keeps_the_log)
{
	const struct region_entry entries[] = {
		region_delete(10), log_set(10, 0, 8), log_set(11, 8, 8),
		region_delete(17),
	};
	int r;

	list(log_set(10, 0, 16));
	new_log_is(10, 16, NONE);
	guest_writes(1, 15);

	r = __vm_set_region_list(vm, ARRAY_SIZE(entries), entries);
	TEST_ASSERT(r && errno == EINVAL, "%d, errno %d", r, errno);
	guest_writes(3);
	log_is(10, 16, 1, 3, 15);
}

/* A window cut up at random, so that all of it is mapped all the time. */
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

static void replace_pieces(int round, const struct pieces *old,
			   const struct pieces *new)
{
	struct region_entry entries[2 * MAX_PIECES];
	int i, nr = 0;

	for (i = 0; i < old->nr; i++)
		entries[nr++] = region_delete(slot_id(round - 1, i));
	for (i = 0; i < new->nr; i++)
		entries[nr++] = log_set(slot_id(round, i), new->first[i],
					new->first[i + 1] - new->first[i]);
	run_list(__LINE__, nr, entries);
}

/* As a migration does it: pages that are found dirty are copied. */
static void copy_dirty(int round, const struct pieces *p, u8 *copy)
{
	DECLARE_BITMAP(log, NR_PAGES);
	int i, page, nr;
	size_t at;

	for (i = 0; i < p->nr; i++) {
		nr = p->first[i + 1] - p->first[i];
		harvest(slot_id(round, i), nr, log);
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
	u8 *copy = calloc(NR_PAGES, PAGE_SIZE);
	struct pieces old = {}, new;
	pthread_t threads[NR_WRITERS];
	u64 in_mem, copied, wrote;
	int i, id, round;

	TEST_ASSERT(copy, "Insufficient Memory");
	cut(&new);
	replace_pieces(0, &old, &new);

	for (id = 0; id < NR_WRITERS; id++) {
		vcpu_arch_set_entry_point(vcpus[id], guest_writer);
		vcpu_args_set(vcpus[id], 1, id);
		kvm_pthread_create(&threads[id], NULL, vcpu_worker, vcpus[id]);
	}

	for (round = 1; round < NR_ROUNDS; round++) {
		usleep(kvm_random_u32_in_range(&kvm_rng, 0, 5000));
		/* Some changes go by without a look at the log in between. */
		if (kvm_random_bool(&kvm_rng))
			copy_dirty(round - 1, &new, copy);
		old = new;
		cut(&new);
		replace_pieces(round, &old, &new);
	}

	WRITE_ONCE(*guest_ptr(vm, guest_stop), true);
	for (id = 0; id < NR_WRITERS; id++)
		kvm_pthread_join(threads[id], NULL);
	copy_dirty(round - 1, &new, copy);

	for (id = 0; id < NR_WRITERS; id++) {
		for (i = 0; i < NR_PAGES; i++) {
			in_mem = ((u64 *)(mem + i * PAGE_SIZE))[id];
			copied = ((u64 *)(copy + i * PAGE_SIZE))[id];
			wrote = (*guest_ptr(vm, guest_wrote))[id][i];
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

/* Entries stay in the ring as they were; the new slots get theirs. */
static void ring_is(struct kvm_vcpu *vcpu, u32 slot, u64 offset)
{
	struct kvm_dirty_gfn *gfns = vcpu_map_dirty_ring(vcpu), *gfn;

	gfn = &gfns[vcpu->fetch_index++ % vcpu->dirty_gfns_count];
	/* The rest of the entry is valid once KVM has set the flag. */
	TEST_ASSERT(smp_load_acquire(&gfn->flags) == KVM_DIRTY_GFN_F_DIRTY,
		    "No entry for slot %u, page %lu", slot, offset);
	TEST_ASSERT(gfn->slot == slot && gfn->offset == offset,
		    "Slot %u, page %llu instead of %u, %lu", gfn->slot,
		    gfn->offset, slot, offset);
	/* KVM may use the entry again: it must have been read by then. */
	smp_store_release(&gfn->flags, KVM_DIRTY_GFN_F_RESET);
}

TEST(dirty_ring)
{
	struct kvm_vcpu *vcpu;

	if (!kvm_has_cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		SKIP(return, "No dirty ring");

	vm = vm_create(1);
	vm_enable_dirty_ring(vm, RING_ENTRIES * sizeof(struct kvm_dirty_gfn));
	vcpu = vm_vcpu_add(vm, 0, guest_code);
	vcpus[0] = vcpu;
	virt_map(vm, WINDOW_GPA, WINDOW_GPA, NR_PAGES);
	mem = kvm_mmap(NR_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);

	list(log_set(10, 0, 16));
	/* One by one: hardware may log several in any order. */
	guest_writes(3);
	guest_writes(12);
	list(region_delete(10), log_set(11, 0, 8), log_set(12, 8, 8));
	guest_writes(4);
	guest_writes(12);

	ring_is(vcpu, 10, 3);
	ring_is(vcpu, 10, 12);
	ring_is(vcpu, 11, 4);
	ring_is(vcpu, 12, 4);
	/* Two of them for a slot that is gone. */
	TEST_ASSERT_EQ(kvm_vm_reset_dirty_ring(vm), 4);

	guest_writes(4);
	guest_writes(12);
	ring_is(vcpu, 11, 4);
	ring_is(vcpu, 12, 4);

	/* The others go while their entries wait for the reset. */
	list(region_delete(11), region_delete(12), log_set(13, 0, 16));
	TEST_ASSERT_EQ(kvm_vm_reset_dirty_ring(vm), 2);
	guest_writes(4);
	guest_writes(12);
	ring_is(vcpu, 13, 4);
	ring_is(vcpu, 13, 12);

	kvm_vm_free(vm);
	kvm_munmap(mem, NR_PAGES * PAGE_SIZE);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	return test_harness_run(argc, argv);
}
