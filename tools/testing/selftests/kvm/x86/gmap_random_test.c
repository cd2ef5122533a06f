// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): random maps, unmaps, faults and remaps beside a
 * running guest, compared with a plain array of what each segment is mapped to.
 *
 *	gmap_random_test [OPERATIONS [SEED]]
 */
#include <pthread.h>
#include <stdlib.h>

#include <asm/barrier.h>

#include "gmap_guest.h"
#include "kselftest.h"

#define DEFAULT_OPS	1500
#define NR_WORLDS	2
/* Of the window in each world, and of the memory, which is mapped twice. */
#define NR_SEGMENTS	40
#define NR_MEM		24
#define MAX_LENGTH	8
#define HOLE		0

/* How many maps of a segment a reader may miss. */
#define HISTORY		256

/* The words of a segment of memory: its tag, and what guests have added. */
enum {
	TAG,
	SUM,
};

/*
 * What a segment has been mapped to, from the first map on.  An entry counts from
 * when the ioctl begins; entries before the last one, from when it ends, no more.
 */
struct segment {
	u16 tags[HISTORY];
	unsigned int begun, ended;
};

struct world {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	u32 seed;
	struct segment segments[NR_SEGMENTS];
	/* The plain array: the user address of each segment, NULL for a hole. */
	u8 *map[NR_SEGMENTS];
	u64 nr_reads, nr_holes, nr_added;
};

static struct world worlds[NR_WORLDS];
static u8 *alias[2];
static bool stop;

static u16 tag_of(const u8 *user)
{
	int i;

	for (i = 0; user && i < 2; i++)
		if (user >= alias[i] && user < alias[i] + NR_MEM * SEGMENT)
			return 1 + (user - alias[i]) / SEGMENT;
	return HOLE;
}

static u64 *word_of(u8 *user, int word)
{
	return (u64 *)(user + word * 8);
}

static gpa_t gpa_of(int segment)
{
	return DATA_GPA + segment * SEGMENT;
}

static void note_begin(struct segment *s, u16 tag)
{
	s->tags[(s->begun + 1) % HISTORY] = tag;
	/* After the tag; pairs with could_have(). */
	smp_store_release(&s->begun, s->begun + 1);
}

static void note_end(struct segment *s)
{
	/* After the ioctl; pairs with visit_thread(). */
	smp_store_release(&s->ended, s->begun);
}

/* Whether a segment had this tag at some time from when it was at entry @from on. */
static bool could_have(struct segment *s, unsigned int from, u16 tag)
{
	/* Before the tags; pairs with note_begin(). */
	unsigned int to = smp_load_acquire(&s->begun);

	if (to - from >= HISTORY)
		return true;
	for (; (int)(to - from) >= 0; from++)
		if (s->tags[from % HISTORY] == tag)
			return true;
	return false;
}

/* Reads the tag of a segment, and adds 1 to the segment's sum. */
static u64 guest_visit(u64 *segment)
{
	u64 tag = READ_ONCE(segment[TAG]);

	__sync_fetch_and_add(&segment[SUM], 1);
	return tag;
}

/*
 * Has the guest visit random segments, and checks what it finds.  An exit is a hole,
 * at the read or, if the segment was there then, at the addition.
 */
static void *visit_thread(void *arg)
{
	struct world *w = arg;
	struct kvm_random_state rng = new_kvm_random_state(w->seed);
	struct segment *s;
	unsigned int from;
	int segment;
	u64 tag;

	while (!READ_ONCE(stop)) {
		segment = kvm_random_u32_in_range(&rng, 0, NR_SEGMENTS - 1);
		s = &w->segments[segment];
		/* Before the guest runs; pairs with note_end(). */
		from = smp_load_acquire(&s->ended);
		guest_set_call(w->vcpu, guest_visit, gpa_of(segment), 0, 0);
		vcpu_run(w->vcpu);
		if (is_guest_sync(w->vcpu)) {
			tag = guest_rax(w->vcpu);
			w->nr_added++;
			w->nr_reads++;
		} else {
			assert_hole_exit(w->vcpu, gpa_of(segment));
			tag = HOLE;
			w->nr_holes++;
		}
		TEST_ASSERT(could_have(s, from, tag),
			    "World %ld, segment %d: tag %lu from entry %u on, now %u",
			    w - worlds, segment, tag, from, s->begun);
	}
	return NULL;
}

/* These change the map and the array. */

static void do_map(struct world *w, int at, int nr, u8 *user)
{
	int i;

	for (i = 0; i < nr; i++)
		note_begin(&w->segments[at + i], user ? tag_of(user + i * SEGMENT) : HOLE);
	if (user)
		gmap_map(w->vcpu, user, gpa_of(at), nr * SEGMENT);
	else
		gmap_unmap(w->vcpu, gpa_of(at), nr * SEGMENT);
	for (i = 0; i < nr; i++) {
		w->map[at + i] = user ? user + i * SEGMENT : NULL;
		note_end(&w->segments[at + i]);
	}
}

static int random_int(struct kvm_random_state *rng, int min, int max)
{
	return kvm_random_u32_in_range(rng, min, max);
}

static void random_op(struct kvm_random_state *rng)
{
	struct world *w = &worlds[random_int(rng, 0, NR_WORLDS - 1)];
	int at = random_int(rng, 0, NR_SEGMENTS - 1), nr, from;
	u8 *user;

	nr = min(random_int(rng, 1, MAX_LENGTH), NR_SEGMENTS - at);
	from = random_int(rng, 0, NR_MEM - nr);
	user = alias[random_int(rng, 0, 1)];
	switch (random_int(rng, 0, 9)) {
	case 0 ... 3:
		do_map(w, at, nr, user + from * SEGMENT);
		break;
	case 4 ... 5:
		do_map(w, at, nr, NULL);
		break;
	case 6 ... 7:
		/* What follows the segment below, so that they can be joined. */
		if (!at || !w->map[at - 1])
			break;
		user = w->map[at - 1] + SEGMENT;
		if (tag_of(w->map[at - 1]) + nr == tag_of(user + (nr - 1) * SEGMENT))
			do_map(w, at, nr, user);
		break;
	case 8:
		/* The same memory at another user address. */
		if (w->map[at])
			do_map(w, at, 1, user + (tag_of(w->map[at]) - 1) * SEGMENT);
		break;
	case 9:
		/* The host takes pages away. */
		madvise(user + from * SEGMENT, nr * SEGMENT, MADV_DONTNEED);
		break;
	}
}

/* The vCPUs are stopped: the map is exactly what the array says. */
static void check_worlds(void)
{
	struct world *w;
	int i;

	for (w = worlds; w < worlds + NR_WORLDS; w++) {
		for (i = 0; i < NR_SEGMENTS; i++) {
			TEST_ASSERT(gmap_is_mapped(w->vcpu, gpa_of(i)) == !!w->map[i],
				    "World %ld, segment %d is %smapped", w - worlds, i,
				    w->map[i] ? "not " : "");
			if (!w->map[i])
				continue;
			TEST_ASSERT_EQ(run_read(w->vcpu, gpa_of(i)),
				       tag_of(w->map[i]));
		}
		/* Not a segment further. */
		TEST_ASSERT(!gmap_is_mapped(w->vcpu, gpa_of(NR_SEGMENTS)),
			    "Mapped beyond the window");
		TEST_ASSERT(!gmap_is_mapped(w->vcpu, DATA_GPA - SEGMENT),
			    "Mapped before the window");
	}
}

int main(int argc, char *argv[])
{
	struct kvm_random_state rng;
	u64 nr_ops = DEFAULT_OPS, i, added = 0, sum = 0;
	u32 seed = 0x9a9;
	struct kvm_vm *vm;
	struct world *w;
	int fd, round;

	TEST_REQUIRE(max_ucas_vcpus());
	if (argc > 1)
		nr_ops = atoi_positive("Number of operations", argv[1]);
	if (argc > 2)
		seed = atoi_positive("Seed", argv[2]);

	ksft_print_header();
	ksft_set_plan(1);
	ksft_print_msg("seed %u\n", seed);
	rng = new_kvm_random_state(seed);

	fd = segments_memfd(NR_MEM);
	for (i = 0; i < 2; i++)
		alias[i] = segments_alias(fd, NR_MEM);
	for (i = 0; i < NR_MEM; i++)
		*word_of(alias[0] + i * SEGMENT, TAG) = i + 1;

	vm = gmap_vm_create();
	for (w = worlds; w < worlds + NR_WORLDS; w++) {
		w->vcpu = gmap_guest_add(vm, w - worlds);
		w->seed = seed + 1 + (w - worlds);
	}
	for (round = 0; round < 10; round++) {
		stop = false;
		for (w = worlds; w < worlds + NR_WORLDS; w++)
			kvm_pthread_create(&w->thread, NULL, visit_thread, w);
		for (i = 0; i < nr_ops / 10; i++)
			random_op(&rng);
		WRITE_ONCE(stop, true);
		for (w = worlds; w < worlds + NR_WORLDS; w++)
			kvm_pthread_join(w->thread, NULL);
		check_worlds();
	}

	for (w = worlds; w < worlds + NR_WORLDS; w++) {
		TEST_ASSERT(w->nr_reads > nr_ops / 20 && w->nr_holes > nr_ops / 20,
			    "World %ld: only %lu reads and %lu holes", w - worlds,
			    w->nr_reads, w->nr_holes);
		added += w->nr_added;
	}
	for (i = 0; i < NR_MEM; i++)
		sum += *word_of(alias[1] + i * SEGMENT, SUM);
	TEST_ASSERT(sum == added, "%lu of %lu additions are in memory", sum, added);

	ksft_test_result_pass("%lu operations, %lu reads, %lu and %lu holes\n", nr_ops,
			      worlds[0].nr_reads + worlds[1].nr_reads,
			      worlds[0].nr_holes, worlds[1].nr_holes);
	kvm_vm_free(vm);
	close(fd);
	ksft_finished();
}
