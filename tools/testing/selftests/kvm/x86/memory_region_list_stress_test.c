// SPDX-License-Identifier: GPL-2.0-only
/*
 * Resizes, splits, merges and moves memslots under running vCPUs.
 *
 * The slots that change hold all that the guest has: code, stacks, page tables,
 * data.  The host memory at a guest physical address never changes, so the guest
 * must not notice.  There are three ways to change the slots:
 *
 *  - with single ioctls: at times there is no slot, and a vCPU that accesses its
 *    memory then dies.  The outcome does not count, and shows that the other ways
 *    are put to the test;
 *  - with single ioctls while all vCPUs are paused;
 *  - with KVM_SET_USER_MEMORY_REGION_LIST.
 */
#include <getopt.h>
#include <string.h>
#include <time.h>

#include <asm/kvm_para.h>
#include <asm/pvclock-abi.h>

#include "running_vcpus.h"

#define DEFAULT_ITERATIONS	36
#define DEFAULT_VCPUS		2
#define DATA_PAGES		16

#define PARK_GPA		0x100000000ul

#define MAX_PIECES		5
#define NR_SLOTS		16

enum form {
	SINGLE,
	PAUSED,
	LIST,
};

static const char * const form_names[] = {
	"single ioctls", "single ioctls, vCPUs paused", "list",
};

static int nr_iterations = DEFAULT_ITERATIONS;

/* The host accesses the guest's copies. */
static u64 guest_data[MAX_VCPUS][DATA_PAGES][PAGE_SIZE / sizeof(u64)]
	__aligned(PAGE_SIZE);
/* Between the words of guest_data that count the passes. */
#define GUEST_STEAL_TIME(id)	((struct kvm_steal_time *)&guest_data[id][6][64])
#define GUEST_CLOCK(id)		((struct pvclock_vcpu_time_info *)&guest_data[id][9][64])
static gpa_t guest_steal_time_gpa[MAX_VCPUS], guest_clock_gpa[MAX_VCPUS];

/* Each word counts the passes, which shows lost and stale writes. */
static void guest_work_on_data(int id, u64 pass)
{
	int i;

	for (i = 0; i < DATA_PAGES; i++) {
		u64 *word = &guest_data[id][i][pass % 2];

		GUEST_ASSERT_EQ(READ_ONCE(*word), pass < 2 ? 0 : pass - 2);
		WRITE_ONCE(*word, pass);
	}
}

static void guest_plain(int id)
{
	u64 pass;

	for (pass = 0; !READ_ONCE(guest_stop); pass++) {
		guest_work_on_data(id, pass);
		WRITE_ONCE(guest_passes[id], pass + 1);
	}
	GUEST_DONE();
}

/* KVM reads all of these instructions, and the strings, through the memslots. */
static void guest_emulated(int id)
{
	/* Each string crosses a page border. */
	u8 *in = (u8 *)guest_data[id][2] - STRING_LEN / 2;
	u8 *out = (u8 *)guest_data[id][4] - STRING_LEN / 2;
	u32 eax, ebx, ecx, edx, ebx0, val;
	void *buf;
	u64 pass;
	u64 n;
	int i;

	__cpuid(0, 0, &eax, &ebx0, &ecx, &edx);

	for (pass = 0; !READ_ONCE(guest_stop); pass++) {
		for (i = 0; i < 8; i++) {
			__cpuid(0, 0, &eax, &ebx, &ecx, &edx);
			GUEST_ASSERT_EQ(ebx, ebx0);
		}

		val = pass;
		asm volatile("outl %0, %1" : : "a"(val), "Nd"((u16)PIO_PORT));
		asm volatile("inl %1, %0" : "=a"(val) : "Nd"((u16)PIO_PORT));
		GUEST_ASSERT_EQ(val, (u32)~pass);

		for (i = 0; i < STRING_LEN; i++)
			out[i] = string_byte(pass * STRING_LEN + i);
		buf = out;
		n = STRING_LEN;
		asm volatile("rep outsb" : "+S"(buf), "+c"(n)
			     : "d"((u16)STRING_PORT) : "memory");

		buf = in;
		n = STRING_LEN;
		asm volatile("rep insb" : "+D"(buf), "+c"(n)
			     : "d"((u16)STRING_PORT) : "memory");
		for (i = 0; i < STRING_LEN; i++)
			GUEST_ASSERT_EQ(in[i], string_byte(pass * STRING_LEN + i));

		WRITE_ONCE(*(u64 *)MMIO_GPA, mmio_val(pass));
		GUEST_ASSERT_EQ(READ_ONCE(*(u64 *)MMIO_GPA), ~mmio_val(pass));

		WRITE_ONCE(guest_passes[id], pass + 1);
	}
	GUEST_DONE();
}

/* KVM writes to this memory through host addresses that it has cached. */
static void guest_paravirt(int id)
{
	struct kvm_steal_time *steal = GUEST_STEAL_TIME(id);
	struct pvclock_vcpu_time_info *clock = GUEST_CLOCK(id);
	u64 pass;
	u32 val;

	wrmsr(MSR_KVM_STEAL_TIME, guest_steal_time_gpa[id] | KVM_MSR_ENABLED);
	for (pass = 0; !READ_ONCE(guest_stop); pass++) {
		guest_work_on_data(id, pass);

		WRITE_ONCE(steal->version, 0);
		WRITE_ONCE(clock->version, 0);
		wrmsr(MSR_KVM_SYSTEM_TIME_NEW, guest_clock_gpa[id] | 1);
		/* KVM_RUN updates both before it enters the guest again. */
		val = pass;
		asm volatile("outl %0, %1" : : "a"(val), "Nd"((u16)PIO_PORT));
		val = READ_ONCE(steal->version);
		GUEST_ASSERT(val && !(val & 1));
		val = READ_ONCE(clock->version);
		GUEST_ASSERT(val && !(val & 1));

		WRITE_ONCE(guest_passes[id], pass + 1);
	}
	GUEST_DONE();
}

static const struct guest guests[] = {
	{ guest_plain, "plain", true },
	{ guest_emulated, "emulated", false },
	{ guest_paravirt, "paravirtualised", true },
};

/* How what was slot 0 is cut up; one piece may be parked elsewhere. */
struct piece {
	u32 slot;
	gpa_t gpa;
	/* In pages of slot 0. */
	u64 first, nr;
};

struct layout {
	int nr;
	struct piece piece[MAX_PIECES];
};

static const struct piece *find_piece(const struct layout *l, u32 slot)
{
	int i;

	for (i = 0; i < l->nr; i++)
		if (l->piece[i].slot == slot)
			return &l->piece[i];
	return NULL;
}

static void add_piece(struct layout *l, u32 slot, u64 first, u64 nr)
{
	l->piece[l->nr++] = (struct piece) {
		.slot = slot, .gpa = first * PAGE_SIZE, .first = first, .nr = nr,
	};
}

static u32 unused_slot(const struct layout *a, const struct layout *b)
{
	u32 slot = kvm_random_u32_in_range(&kvm_rng, 0, NR_SLOTS - 1);

	while (find_piece(a, slot) || find_piece(b, slot))
		slot = (slot + 1) % NR_SLOTS;
	return slot;
}

/* Cuts everything anew into @nr pieces, the first of which keeps its slot. */
static void cut(struct layout *new, const struct layout *old, u64 pages, int nr)
{
	u64 first = 0, len;

	new->nr = 0;
	for (; nr; nr--) {
		len = nr == 1 ? pages - first :
		      kvm_random_u64_in_range(&kvm_rng, 1, pages - first - nr);
		add_piece(new, new->nr ? unused_slot(old, new) : old->piece[0].slot,
			  first, len);
		first += len;
	}
}

static void next_layout(struct layout *new, const struct layout *old, u64 pages,
			int step)
{
	struct piece *parked;

	switch (step % 6) {
	case 0:
		/* Split. */
		cut(new, old, pages, 2);
		break;
	case 1:
		/* One shrinks, the other grows. */
		cut(new, old, pages, 2);
		break;
	case 2:
		cut(new, old, pages, 4);
		break;
	case 3:
		/* A slot moves away, and another one takes its place. */
		*new = *old;
		parked = &new->piece[1];
		add_piece(new, unused_slot(old, new), parked->first, parked->nr);
		parked->gpa = PARK_GPA;
		break;
	case 4:
		/* The slot moves back. */
		*new = *old;
		new->piece[1].gpa = new->piece[1].first * PAGE_SIZE;
		new->nr--;
		break;
	case 5:
		/* Merge. */
		cut(new, old, pages, 1);
		break;
	}
}

/* The entries that turn one layout into the other; deletions come first. */
static int make_entries(struct region_entry *entries, const struct layout *old,
			const struct layout *new, u8 *host_mem)
{
	const struct piece *p, *q;
	int pass, nr = 0;

	for (p = old->piece; p < old->piece + old->nr; p++) {
		q = find_piece(new, p->slot);
		if (!q || q->first != p->first || q->nr != p->nr)
			entries[nr++] = region_delete(p->slot);
	}
	for (pass = 0; pass < 2; pass++) {
		for (p = new->piece; p < new->piece + new->nr; p++) {
			q = find_piece(old, p->slot);
			if (q && (q->first != p->first || q->nr != p->nr))
				q = NULL;
			/* Moves, then creations. */
			if (pass ? !!q : !q || q->gpa == p->gpa)
				continue;
			entries[nr++] = region_set(p->slot, 0, p->gpa,
						   p->nr * PAGE_SIZE,
						   host_mem + p->first * PAGE_SIZE);
		}
	}
	return nr;
}

static void update(enum form form, int nr, const struct region_entry *entries)
{
	int i, r = 0;

	if (form == LIST) {
		r = __vm_set_region_list(vm, nr, entries);
	} else {
		if (form == PAUSED)
			pause_vcpus();
		for (i = 0; i < nr && !r; i++)
			r = __vm_set_region_entry(vm, &entries[i]);
		if (form == PAUSED)
			resume_vcpus();
	}
	TEST_ASSERT(!r, "Update failed, errno %d", errno);
}

static bool data_is_right(int id)
{
	u64 passes = (*guest_ptr(vm, guest_passes))[id];
	u64 *words;
	int i;

	for (i = 0; i < DATA_PAGES; i++) {
		words = (*guest_ptr(vm, guest_data))[id][i];
		if (words[(passes - 1) % 2] != passes - 1 ||
		    words[passes % 2] != passes - 2) {
			ksft_print_msg("vCPU %d, page %d: %lu and %lu after %lu passes\n",
				       id, i, words[0], words[1], passes);
			return false;
		}
	}
	return true;
}

static void create_reshaped_guest(enum form form, const struct guest *guest,
				  int nr_vcpus, bool zap_all)
{
	gpa_t *steal_time_gpa, *clock_gpa;
	int i;

	create_guest(guest->code, nr_vcpus, form != LIST, zap_all);
	steal_time_gpa = *guest_ptr(vm, guest_steal_time_gpa);
	clock_gpa = *guest_ptr(vm, guest_clock_gpa);
	for (i = 0; i < nr_vcpus; i++) {
		steal_time_gpa[i] = addr_gva2gpa(vm, (gva_t)GUEST_STEAL_TIME(i));
		clock_gpa[i] = addr_gva2gpa(vm, (gva_t)GUEST_CLOCK(i));
	}
}

static bool reshape(enum form form, const struct guest *guest, int nr_vcpus,
		    bool zap_all)
{
	struct region_entry entries[3 * MAX_PIECES];
	struct userspace_mem_region *region;
	struct timespec start, elapsed;
	u64 ns, total_ns = 0, max_ns = 0;
	struct layout old, new;
	u64 pages;
	int i, nr, id;
	bool good = true;

	/* On a slow machine, a pass takes a while. */
	patience = form == SINGLE ? 2 : 30;
	create_reshaped_guest(form, guest, nr_vcpus, zap_all);
	region = memslot2region(vm, 0);
	pages = region->region.memory_size / PAGE_SIZE;
	old.nr = 0;
	add_piece(&old, 0, 0, pages);
	run_vcpus();

	for (i = 0; i < nr_iterations; i++) {
		if (!wait_for_passes()) {
			good = false;
			break;
		}
		/* Vary the point of the pass. */
		usleep(kvm_random_u32_in_range(&kvm_rng, 0, 1000));

		next_layout(&new, &old, pages, i);
		nr = make_entries(entries, &old, &new, region->host_mem);

		clock_gettime(CLOCK_MONOTONIC, &start);
		update(form, nr, entries);
		elapsed = timespec_elapsed(start);

		ns = timespec_to_ns(elapsed);
		total_ns += ns;
		max_ns = max(max_ns, ns);
		old = new;
	}
	good &= wait_for_passes();
	if (stop_guest())
		good = false;
	if (good && guest->counts_passes)
		for (id = 0; id < nr_vcpus; id++)
			good &= data_is_right(id);

	ksft_print_msg("%s, %s guest: %s after %d updates, %lu us each, %lu us at most\n",
		       form_names[form], guest->name, good ? "alive" : "dead", i,
		       i ? total_ns / i / 1000 : 0, max_ns / 1000);
	kvm_vm_free(vm);
	return good;
}

static void help(const char *name)
{
	printf("usage: %s [-h] [-i iterations] [-v vcpus]\n", name);
	printf(" -i: number of updates per way and guest (default: %d)\n",
	       DEFAULT_ITERATIONS);
	printf(" -v: number of vCPUs, up to %d (default: %d)\n", MAX_VCPUS,
	       DEFAULT_VCPUS);
	exit(0);
}

int main(int argc, char *argv[])
{
	struct sigaction sa = { .sa_handler = sig_ipi };
	int nr_vcpus = DEFAULT_VCPUS;
	int quirks, zap_all, opt, i;
	enum form form;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	while ((opt = getopt(argc, argv, "hi:v:")) != -1) {
		switch (opt) {
		case 'i':
			nr_iterations = atoi_positive("Number of iterations", optarg);
			break;
		case 'v':
			nr_vcpus = atoi_positive("Number of vCPUs", optarg);
			TEST_ASSERT(nr_vcpus <= MAX_VCPUS, "At most %d vCPUs",
				    MAX_VCPUS);
			break;
		case 'h':
		default:
			help(argv[0]);
		}
	}

	sigaction(SIG_IPI, &sa, NULL);
	quirks = kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL;

	ksft_print_header();
	ksft_set_plan((quirks ? 2 : 1) * 2 * ARRAY_SIZE(guests));

	for (zap_all = 1; zap_all >= (quirks ? 0 : 1); zap_all--) {
		for (i = 0; i < ARRAY_SIZE(guests); i++) {
			if (zap_all)
				reshape(SINGLE, &guests[i], nr_vcpus, zap_all);
			for (form = PAUSED; form <= LIST; form++)
				ksft_test_result(reshape(form, &guests[i], nr_vcpus,
							 zap_all),
						 "%s guest, %s%s\n",
						 guests[i].name, form_names[form],
						 zap_all ? "" : ", slot zap quirk disabled");
		}
	}

	ksft_finished();
}
