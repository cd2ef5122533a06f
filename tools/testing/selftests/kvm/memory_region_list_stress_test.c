// SPDX-License-Identifier: GPL-2.0-only
/*
 * Resizes, splits, merges and moves memslots under running vCPUs.
 *
 * The slots that change hold all that the guest has: code, stacks, page
 * tables, data.  What is behind a guest physical address never changes, so a
 * guest must not notice.  There are three ways to do it:
 *
 *  - with single ioctls: there is a moment without a slot, and a vCPU that runs
 *    just then dies.  This shows that the others are put to the test; its
 *    outcome is told but does not count;
 *  - with single ioctls while all vCPUs are paused;
 *  - with KVM_SET_USER_MEMORY_REGION_LIST.
 *
 * All the time, KVM_MAP_MEMORY populates this memory through another vCPU.  Beside
 * lists, fork() write-protects it, which takes it out of KVM's page tables.
 */
#include <getopt.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include <asm/kvm_para.h>
#include <asm/pvclock-abi.h>
#include <linux/sizes.h>

#include "held_update.h"
#include "hyperv.h"
#include "kvm_util.h"
#include "memory_region_list.h"
#include "nested_guest.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define DEFAULT_ITERATIONS	36
#define DEFAULT_VCPUS		2
#define MAX_VCPUS		8
#define DATA_PAGES		16

#define PARK_GPA		0x100000000ul
#define MMIO_GPA		0xd0000000ul
#define SWITCH_GPA		0xc0000000ul
#define SWITCH_PAGES		8
#define SWITCH_SLOT		20

/* Each is in a page table of its own. */
#define WAIT_GVA(id)		(SWITCH_GPA + (id) * SZ_2M)
#define TABLE_GPA		(SWITCH_GPA + SZ_1M)
#define TABLE_SLOT		21
#define TABLE_GVA		0x140000000ul

#define PIO_PORT		0x2000
#define STRING_PORT		0x2004
#define STRING_LEN		64

/* How much is populated at once, and how much has its contents set. */
#define MAX_POPULATE		200
#define SCRATCH_PAGES		16

#define MAX_PIECES		5
#define NR_SLOTS		16

#define SIG_IPI			SIGUSR1

enum form {
	SINGLE,
	PAUSED,
	LIST,
};

static const char * const form_names[] = {
	"single ioctls", "single ioctls, vCPUs paused", "list",
};

/* Guest and host, each with its own copy; see guest_ptr(). */
static u64 guest_data[MAX_VCPUS][DATA_PAGES][PAGE_SIZE / sizeof(u64)]
	__aligned(PAGE_SIZE);
static u64 guest_passes[MAX_VCPUS];
static bool guest_stop;
/* Between the words of guest_data that count the passes. */
#define GUEST_STEAL_TIME(id)	((struct kvm_steal_time *)&guest_data[id][6][64])
#define GUEST_CLOCK(id)		((struct pvclock_vcpu_time_info *)&guest_data[id][9][64])
static gpa_t guest_steal_time_gpa[MAX_VCPUS], guest_clock_gpa[MAX_VCPUS];

#define guest_ptr(vm, var) ((typeof(var) *)addr_gva2hva(vm, (gva_t)&(var)))

static u8 string_byte(u64 pos)
{
	return pos * 7 + 3;
}

static u64 mmio_val(u64 nr)
{
	return nr * 0x9e3779b97f4a7c15ul;
}

/* Each word counts the passes, so one that is lost or stale is found. */
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

/* KVM reads all of these instructions, and the strings, through the slots. */
static void guest_emulated(int id)
{
	/* Halves of the strings lie in different pages. */
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

/* KVM writes to this memory through host addresses that it keeps. */
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
		/* Both are up to date when KVM_RUN comes back to the guest. */
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

/* Both write the inverted number of the pass to one page after the other. */

static void guest_writer(int id)
{
	u64 pass;
	int i;

	for (pass = 0; !READ_ONCE(guest_stop); pass++) {
		for (i = 0; i < SWITCH_PAGES; i++)
			WRITE_ONCE(*(u32 *)(SWITCH_GPA + i * PAGE_SIZE), ~pass);
		WRITE_ONCE(guest_passes[id], pass + 1);
	}
	GUEST_DONE();
}

/* It is KVM that writes. */
static void guest_emulated_writer(int id)
{
	u64 pass;
	void *buf;
	u32 val;
	int i;

	for (pass = 0; !READ_ONCE(guest_stop); pass++) {
		val = pass;
		asm volatile("outl %0, %1" : : "a"(val), "Nd"((u16)PIO_PORT));
		for (i = 0; i < SWITCH_PAGES; i++) {
			buf = (void *)(SWITCH_GPA + i * PAGE_SIZE);
			asm volatile("insl" : "+D"(buf)
				     : "d"((u16)PIO_PORT) : "memory");
		}
		WRITE_ONCE(guest_passes[id], pass + 1);
	}
	GUEST_DONE();
}

static void guest_wait(gva_t gva)
{
	WRITE_ONCE(*(u64 *)gva, 1);
	GUEST_DONE();
}

struct guest {
	void (*code)(int id);
	const char *name;
	bool counts_passes;
};

static const struct guest guests[] = {
	{ guest_plain, "plain", true },
	{ guest_emulated, "emulated", false },
	{ guest_paravirt, "paravirtualised", true },
}, writers[] = {
	{ guest_writer, "plain" },
	{ guest_emulated_writer, "emulated" },
};

struct worker {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	bool pause, quit;
	sem_t paused, resume;

	/* How far the guest has got in what it does with the outside. */
	u64 pio, mmio, outs, ins;

	bool ended;
	/* Empty if it ended well. */
	char death[256];
};

struct populater {
	/* Which never runs. */
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	bool stop;

	/* What is populated, and whether a part of it may have no slot. */
	gpa_t gpa;
	u64 pages;
	bool may_miss;

	/* Guest memory that the guest leaves alone. */
	gpa_t scratch_gpa;
	u64 *scratch;
};

static int nr_iterations = DEFAULT_ITERATIONS;
static bool has_populater;
static pthread_t forker;
static bool has_forker, forker_stop;
static struct populater populater;
static struct worker workers[MAX_VCPUS];
static int nr_workers;
static struct kvm_vm *vm;
/* Seconds without progress that make a vCPU dead. */
static int patience;

static void sig_ipi(int sig)
{
}

/* The three below: false if the guest has done something wrong. */

static bool handle_io(struct worker *w)
{
	struct kvm_run *run = w->vcpu->run;
	u8 *data = (u8 *)run + run->io.data_offset;
	bool out = run->io.direction == KVM_EXIT_IO_OUT;
	int i;

	if (run->io.port == STRING_PORT) {
		for (i = 0; i < run->io.count; i++) {
			if (!out)
				data[i] = string_byte(w->ins++);
			else if (data[i] != string_byte(w->outs++))
				return false;
		}
		return true;
	}

	if (run->io.port != PIO_PORT || run->io.size != 4)
		return false;
	if (out)
		return *(u32 *)data == (u32)w->pio++;
	*(u32 *)data = ~(u32)(w->pio - 1);
	return true;
}

static bool handle_mmio(struct worker *w)
{
	struct kvm_run *run = w->vcpu->run;
	u64 *data = (u64 *)run->mmio.data;

	if (run->mmio.phys_addr != MMIO_GPA || run->mmio.len != 8)
		return false;
	if (run->mmio.is_write)
		return *data == mmio_val(w->mmio++);
	*data = ~mmio_val(w->mmio - 1);
	return true;
}

/* True if the guest is to go on. */
static bool handle_exit(struct worker *w)
{
	struct kvm_run *run = w->vcpu->run;
	struct ucall *uc = ucall_arch_get_ucall(w->vcpu);
	size_t len;

	if (uc && uc->cmd == UCALL_DONE)
		return false;
	if (!uc && run->exit_reason == KVM_EXIT_IO && handle_io(w))
		return true;
	if (run->exit_reason == KVM_EXIT_MMIO && handle_mmio(w))
		return true;

	len = snprintf(w->death, sizeof(w->death), "%s",
		       exit_reason_str(run->exit_reason));
	if (uc)
		snprintf(w->death, sizeof(w->death), "ucall %lu: %.200s",
			 uc->cmd, uc->buffer);
	else if (run->exit_reason == KVM_EXIT_MMIO)
		snprintf(w->death + len, sizeof(w->death) - len, " at 0x%llx",
			 run->mmio.phys_addr);
	else if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
		snprintf(w->death + len, sizeof(w->death) - len, " %u",
			 run->internal.suberror);
	return false;
}

static void *vcpu_worker(void *arg)
{
	struct worker *w = arg;
	int err;

	do {
		err = __vcpu_run(w->vcpu) ? errno : 0;
		if (READ_ONCE(w->pause)) {
			sem_post(&w->paused);
			while (sem_wait(&w->resume))
				;
		}
		if (READ_ONCE(w->quit))
			snprintf(w->death, sizeof(w->death), "stuck");
		else if (err && err != EINTR)
			snprintf(w->death, sizeof(w->death),
				 "KVM_RUN failed with errno %d", err);
	} while (!w->death[0] && (err || handle_exit(w)));

	WRITE_ONCE(w->ended, true);
	sem_post(&w->paused);
	return NULL;
}

static void kick(struct worker *w)
{
	WRITE_ONCE(w->vcpu->run->immediate_exit, 1);
	pthread_kill(w->thread, SIG_IPI);
}

static void quit(struct worker *w)
{
	WRITE_ONCE(w->quit, true);
	kick(w);
}

static void pause_vcpus(void)
{
	struct worker *w;

	for (w = workers; w < workers + nr_workers; w++) {
		WRITE_ONCE(w->pause, true);
		kick(w);
	}
	for (w = workers; w < workers + nr_workers; w++)
		if (!READ_ONCE(w->ended))
			sem_wait(&w->paused);
}

static void resume_vcpus(void)
{
	struct worker *w;

	for (w = workers; w < workers + nr_workers; w++) {
		WRITE_ONCE(w->pause, false);
		WRITE_ONCE(w->vcpu->run->immediate_exit, 0);
		sem_post(&w->resume);
	}
}

static bool all_run(void)
{
	int i;

	for (i = 0; i < nr_workers; i++)
		if (READ_ONCE(workers[i].ended))
			return false;
	return true;
}

/* Every vCPU has done two passes more.  False if one never will. */
static bool wait_for_passes(void)
{
	u64 *passes = *guest_ptr(vm, guest_passes);
	struct timespec start;
	u64 seen[MAX_VCPUS];
	int i;

	for (i = 0; i < nr_workers; i++)
		seen[i] = READ_ONCE(passes[i]);

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (i = 0; i < nr_workers; i++) {
		while (READ_ONCE(passes[i]) < seen[i] + 2) {
			if (!all_run())
				return false;
			if (timespec_elapsed(start).tv_sec >= patience) {
				for (i = 0; i < nr_workers; i++)
					quit(&workers[i]);
				return false;
			}
			usleep(100);
		}
	}
	return true;
}

/* What is left in @m can only be for want of a slot. */
static void map_memory(struct kvm_memory_mapping *m)
{
	int r;

	do {
		r = __vcpu_ioctl(populater.vcpu, KVM_MAP_MEMORY, m);
	} while (r && (errno == EAGAIN || errno == EINTR));
	TEST_ASSERT(!r || (errno == ENOENT && populater.may_miss),
		    "KVM_MAP_MEMORY failed with errno %d, %llu pages left",
		    errno, m->nr_pages);
}

static void fill_scratch(u64 *source, u64 tag)
{
	struct kvm_memory_mapping m = {
		.base_gfn = populater.scratch_gpa >> PAGE_SHIFT,
		.nr_pages = SCRATCH_PAGES,
		.flags = tag % 8,
		.source = (uintptr_t)source,
	};
	int i;

	for (i = 0; i < SCRATCH_PAGES * PAGE_SIZE / sizeof(*source); i++)
		source[i] = mmio_val(tag + i);
	map_memory(&m);
	TEST_ASSERT(!memcmp(populater.scratch, source,
			    (SCRATCH_PAGES - m.nr_pages) * PAGE_SIZE),
		    "KVM_MAP_MEMORY has not set the contents");
}

static void *populate(void *unused)
{
	struct kvm_random_state rng = new_kvm_random_state(kvm_random_seed);
	struct kvm_memory_mapping m;
	u64 first, calls;
	void *source;

	source = kvm_mmap(SCRATCH_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1);

	for (calls = 0; !READ_ONCE(populater.stop); calls++) {
		if (calls % 8 == 0)
			fill_scratch(source, calls / 8);

		first = kvm_random_u64_in_range(&rng, 0, populater.pages - 1);
		m = (struct kvm_memory_mapping) {
			.base_gfn = (populater.gpa >> PAGE_SHIFT) + first,
			.nr_pages = min(kvm_random_u64_in_range(&rng, 1, MAX_POPULATE),
					populater.pages - first),
			.flags = kvm_random_u32_in_range(&rng, 0, 7),
		};
		map_memory(&m);
	}
	kvm_munmap(source, SCRATCH_PAGES * PAGE_SIZE);
	return NULL;
}

/* Has the host take its pages away from the guest, over and over. */
static void *fork_children(void *unused)
{
	pid_t pid;

	while (!READ_ONCE(forker_stop)) {
		pid = fork();
		TEST_ASSERT(pid >= 0, "fork() failed, errno %d", errno);
		if (!pid)
			_exit(0);
		waitpid(pid, NULL, 0);
		usleep(20000);
	}
	return NULL;
}

static void set_up_populater(struct kvm_vcpu *vcpu, bool may_miss)
{
	struct userspace_mem_region *region = memslot2region(vm, 0);
	gva_t scratch = vm_alloc_pages(vm, SCRATCH_PAGES);

	populater = (struct populater) {
		.vcpu = vcpu,
		.gpa = region->region.guest_phys_addr,
		.pages = region->region.memory_size / PAGE_SIZE,
		.may_miss = may_miss,
		.scratch_gpa = addr_gva2gpa(vm, scratch),
		.scratch = addr_gva2hva(vm, scratch),
	};
}

static void start_guest(enum form form, void *guest_code, int nr_vcpus,
			bool zap_all)
{
	struct kvm_vcpu *vcpus[MAX_VCPUS + 1];
	int i;

	nr_workers = nr_vcpus;
	vm = vm_create_with_vcpus(nr_vcpus + 1, guest_code, vcpus);
	set_up_populater(vcpus[nr_vcpus], form != LIST);
	has_forker = form == LIST;
	forker_stop = false;
	virt_map(vm, MMIO_GPA, MMIO_GPA, 1);
	virt_map(vm, SWITCH_GPA, SWITCH_GPA, SWITCH_PAGES);
	if (!zap_all)
		vm_enable_cap(vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL);

	memset(workers, 0, sizeof(workers));
	for (i = 0; i < nr_workers; i++) {
		workers[i].vcpu = vcpus[i];
		sem_init(&workers[i].paused, 0, 0);
		sem_init(&workers[i].resume, 0, 0);
		vcpu_args_set(vcpus[i], 1, i);
		(*guest_ptr(vm, guest_steal_time_gpa))[i] =
			addr_gva2gpa(vm, (gva_t)GUEST_STEAL_TIME(i));
		(*guest_ptr(vm, guest_clock_gpa))[i] =
			addr_gva2gpa(vm, (gva_t)GUEST_CLOCK(i));
	}
}

static void run_vcpus(void)
{
	int i;

	for (i = 0; i < nr_workers; i++)
		kvm_pthread_create(&workers[i].thread, NULL, vcpu_worker,
				   &workers[i]);
	if (has_populater)
		kvm_pthread_create(&populater.thread, NULL, populate, NULL);
	if (has_forker)
		kvm_pthread_create(&forker, NULL, fork_children, NULL);
}

/* The number of vCPUs that died. */
static int stop_guest(void)
{
	struct timespec start;
	struct worker *w;
	int nr_dead = 0;

	if (has_forker) {
		WRITE_ONCE(forker_stop, true);
		kvm_pthread_join(forker, NULL);
	}
	if (has_populater) {
		WRITE_ONCE(populater.stop, true);
		kvm_pthread_join(populater.thread, NULL);
	}

	WRITE_ONCE(*guest_ptr(vm, guest_stop), true);
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (w = workers; w < workers + nr_workers; w++) {
		while (!READ_ONCE(w->ended) &&
		       timespec_elapsed(start).tv_sec < patience)
			usleep(100);
		if (!READ_ONCE(w->ended))
			quit(w);
		kvm_pthread_join(w->thread, NULL);
		if (!w->death[0])
			continue;
		ksft_print_msg("vCPU %ld died: %s\n", w - workers, w->death);
		nr_dead++;
	}
	return nr_dead;
}

/* How slot 0, as it once was, is cut up now; and one piece may be parked. */
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

/* Cut anew into @nr pieces, of which the first keeps its slot. */
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
		/* A slot goes elsewhere, another takes its place. */
		*new = *old;
		parked = &new->piece[1];
		add_piece(new, unused_slot(old, new), parked->first, parked->nr);
		parked->gpa = PARK_GPA;
		break;
	case 4:
		/* It returns. */
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

/* What leads from one to the other: room is made first. */
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

	/* The slowest machine needs a while for a pass, a lost vCPU forever. */
	patience = form == SINGLE ? 2 : 30;
	start_guest(form, guest->code, nr_vcpus, zap_all);
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
		/* Not always at the same point of a pass. */
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

/*
 * The same guest memory, another host address, over and over.  A vCPU that
 * writes to page after page must have its writes in the old memory up to some
 * point and in the new one from there on, and none in the old one once the
 * ioctl has returned.
 */
static bool switch_memory(const struct guest *writer, bool zap_all)
{
	const size_t size = SWITCH_PAGES * PAGE_SIZE;
	struct region_entry entries[2];
	u32 seen[SWITCH_PAGES];
	u8 *mem[2];
	int i, p, r, old;
	bool good = true;

	/* With one writer there is an order to check. */
	start_guest(LIST, writer->code, 1, zap_all);
	populater.gpa = SWITCH_GPA;
	populater.pages = SWITCH_PAGES;
	for (i = 0; i < 2; i++)
		mem[i] = kvm_mmap(size, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(vm, SWITCH_SLOT, 0, SWITCH_GPA, size, mem[0]);
	run_vcpus();

	for (i = 0; good && i < nr_iterations; i++) {
		old = i % 2;
		good = wait_for_passes();
		if (!good)
			break;
		usleep(kvm_random_u32_in_range(&kvm_rng, 0, 300));

		entries[0] = region_delete(SWITCH_SLOT + old);
		entries[1] = region_set(SWITCH_SLOT + !old, 0, SWITCH_GPA, size,
					mem[!old]);
		r = __vm_set_region_list(vm, 2, entries);
		TEST_ASSERT(!r, "Update failed, errno %d", errno);

		for (p = 0; p < SWITCH_PAGES; p++)
			seen[p] = ~READ_ONCE(*(u32 *)(mem[old] + p * PAGE_SIZE));
		for (p = 1; p < SWITCH_PAGES; p++) {
			if (seen[p] <= seen[p - 1] && seen[p] + 1 >= seen[0])
				continue;
			ksft_print_msg("update %d, page %d: pass %u where page 0 has %u\n",
				       i, p, seen[p], seen[0]);
			good = false;
		}

		good &= wait_for_passes();
		for (p = 0; p < SWITCH_PAGES; p++) {
			if (~READ_ONCE(*(u32 *)(mem[old] + p * PAGE_SIZE)) == seen[p])
				continue;
			ksft_print_msg("update %d, page %d: written to after the update\n",
				       i, p);
			good = false;
		}
	}
	if (stop_guest())
		good = false;

	kvm_vm_free(vm);
	for (i = 0; i < 2; i++)
		kvm_munmap(mem[i], size);
	return good;
}

/* The entry for @gva in the guest's page table of @level. */
static u64 *table_entry(gva_t gva, int level)
{
	const int entries = PAGE_SIZE / sizeof(u64);
	u64 *entry = &vm->mmu.pgd;
	int l;

	for (l = vm->mmu.pgtable_levels; l >= level; l--)
		entry = (u64 *)addr_gpa2hva(vm, *entry & PHYSICAL_PAGE_MASK) +
			(gva >> (PAGE_SHIFT + (l - 1) * 9)) % entries;
	return entry;
}

static void point_to(u64 *entry, gpa_t table)
{
	*entry = table | (*entry & ~PHYSICAL_PAGE_MASK);
}

static void *page_of(void *p)
{
	return (void *)((uintptr_t)p & PAGE_MASK);
}

static void set_slot(u32 slot, u32 flags, gpa_t gpa, void *page)
{
	vm_set_user_memory_region(vm, slot, flags, gpa, PAGE_SIZE, page);
}

static struct region_entry updates[3];
static int nr_updates;
static pid_t updater_tid;

static void *update_thread(void *unused)
{
	WRITE_ONCE(updater_tid, syscall(__NR_gettid));
	TEST_ASSERT(!__vm_set_region_list(vm, nr_updates, updates),
		    "Update failed, errno %d", errno);
	return NULL;
}

/* Not the zero page, which a write would replace at once. */
static u8 zeros[PAGE_SIZE];

/* A VM of two vCPUs, and two pages at SWITCH_GPA that are not present. */
static int create_waiting_guest(bool zap_all, u8 **mem)
{
	int i;

	start_guest(LIST, guest_wait, 2, zap_all);
	*mem = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(vm, SWITCH_SLOT, 0, SWITCH_GPA, 2 * PAGE_SIZE,
				  *mem);
	virt_map(vm, WAIT_GVA(1), SWITCH_GPA + PAGE_SIZE, 1);
	for (i = 0; i < 2; i++)
		vcpu_args_set(workers[i].vcpu, 1, WAIT_GVA(i));

	return uffd_open(*mem, 2 * PAGE_SIZE);
}

/*
 * Has vCPU 0 wait for the first of the two pages, and so hold up an update that
 * begins then.  False if it does not wait for readers.
 */
static bool start_held_update(int uffd, pthread_t *updater)
{
	u64 swaps = vm_get_stat(vm, memslot_swaps);

	kvm_pthread_create(&workers[0].thread, NULL, vcpu_worker, &workers[0]);
	uffd_await_fault(uffd);

	updater_tid = 0;
	kvm_pthread_create(updater, NULL, update_thread, NULL);
	return await_held_update(vm, &updater_tid, swaps);
}

/* After the page has come.  False if the vCPU did not end well. */
static bool end_held_update(pthread_t updater)
{
	kvm_pthread_join(updater, NULL);
	kvm_pthread_join(workers[0].thread, NULL);
	return !workers[0].death[0];
}

/*
 * Has @code begin when the update is between its swaps, wait for the second of the
 * two pages, and go on with @contents in it when the second swap has been made.
 * False if it does not end like this.
 */
static bool run_between_swaps(int uffd, u8 *mem, void *contents,
			      void *(*code)(void *), void *arg)
{
	u64 swaps = vm_get_stat(vm, memslot_swaps);
	struct timespec deadline;
	pthread_t updater, thread;
	bool good;

	good = start_held_update(uffd, &updater);
	/* A reader that begins right now may still be waited for. */
	usleep(100000);
	kvm_pthread_create(&thread, NULL, code, arg);
	uffd_await_fault(uffd);

	uffd_copy(uffd, mem, zeros);
	good &= await_held_update(vm, &updater_tid, swaps + 1);
	uffd_copy(uffd, mem + PAGE_SIZE, contents);

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += 20;
	if (pthread_timedjoin_np(thread, NULL, &deadline)) {
		ksft_print_msg("stuck\n");
		good = false;
		pthread_kill(thread, SIG_IPI);
		kvm_pthread_join(thread, NULL);
	}
	return end_held_update(updater) && good;
}

static void free_waiting_guest(int uffd, u8 *mem)
{
	close(uffd);
	kvm_vm_free(vm);
	kvm_munmap(mem, 2 * PAGE_SIZE);
}

/*
 * A vCPU has walked through a page table in a slot that is being deleted.  When
 * it goes on the slot is gone, and so KVM must not shadow the page table.
 */
static bool delete_page_table(bool zap_all)
{
	const gva_t gva = WAIT_GVA(1);
	u8 *mem, *table;
	bool good;
	int uffd;

	uffd = create_waiting_guest(zap_all, &mem);
	table = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memcpy(table, page_of(table_entry(gva, 1)), PAGE_SIZE);
	point_to(table_entry(gva, 2), TABLE_GPA);
	set_slot(TABLE_SLOT, 0, TABLE_GPA, table);

	nr_updates = 1;
	updates[0] = region_delete(TABLE_SLOT);
	good = run_between_swaps(uffd, mem, zeros, vcpu_worker, &workers[1]);
	/* Without its page table. */
	good &= !!workers[1].death[0];
	free_waiting_guest(uffd, mem);
	kvm_munmap(table, PAGE_SIZE);
	return good;
}

/*
 * A vCPU reads a page table in a slot that is being replaced.  The page table that
 * its entry names is gone after that, but what comes in its place names another.
 */
static bool replace_page_tables(bool zap_all)
{
	static u8 old_directory[PAGE_SIZE] __aligned(PAGE_SIZE);
	static u8 directory[PAGE_SIZE] __aligned(PAGE_SIZE);
	static u8 old_table[PAGE_SIZE] __aligned(PAGE_SIZE);
	const gva_t gva = TABLE_GVA;
	u64 *pde;
	bool good;
	u8 *mem;
	int uffd;

	uffd = create_waiting_guest(zap_all, &mem);
	virt_map(vm, gva, populater.scratch_gpa, 1);
	vcpu_args_set(workers[1].vcpu, 1, gva);

	memcpy(old_table, page_of(table_entry(gva, 1)), PAGE_SIZE);
	pde = table_entry(gva, 2);
	memcpy(directory, page_of(pde), PAGE_SIZE);
	point_to(pde, TABLE_GPA + PAGE_SIZE);
	memcpy(old_directory, page_of(pde), PAGE_SIZE);
	point_to(table_entry(gva, 3), TABLE_GPA);
	set_slot(TABLE_SLOT, 0, TABLE_GPA, mem + PAGE_SIZE);
	set_slot(TABLE_SLOT + 1, 0, TABLE_GPA + PAGE_SIZE, old_table);

	nr_updates = 3;
	updates[0] = region_delete(TABLE_SLOT);
	updates[1] = region_delete(TABLE_SLOT + 1);
	updates[2] = region_set(TABLE_SLOT + 2, 0, TABLE_GPA, PAGE_SIZE, directory);
	good = run_between_swaps(uffd, mem, old_directory, vcpu_worker, &workers[1]);
	if (workers[1].death[0])
		ksft_print_msg("vCPU 1 died: %s\n", workers[1].death);
	good &= !workers[1].death[0];
	free_waiting_guest(uffd, mem);
	return good;
}

static void *set_vp_assist_page(void *unused)
{
	/* Fails in the end: for KVM's further accesses there is no slot. */
	_vcpu_set_msr(workers[1].vcpu, HV_X64_MSR_VP_ASSIST_PAGE,
		      TABLE_GPA | HV_X64_MSR_VP_ASSIST_PAGE_ENABLE);
	return NULL;
}

/* KVM writes to a slot that is being moved: the log that moves along has it. */
static bool move_logged_slot(bool zap_all)
{
	unsigned long log = 0;
	bool good;
	u8 *mem;
	int uffd;

	uffd = create_waiting_guest(zap_all, &mem);
	set_slot(TABLE_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TABLE_GPA, mem + PAGE_SIZE);
	nr_updates = 1;
	updates[0] = region_set(TABLE_SLOT, KVM_MEM_LOG_DIRTY_PAGES, PARK_GPA,
				PAGE_SIZE, mem + PAGE_SIZE);
	good = run_between_swaps(uffd, mem, zeros, set_vp_assist_page, NULL);
	kvm_vm_get_dirty_log(vm, TABLE_SLOT, &log);
	if (log != 1)
		ksft_print_msg("the log is 0x%lx\n", log);
	free_waiting_guest(uffd, mem);
	return good && log == 1;
}

static void *prefault(void *err)
{
	struct kvm_pre_fault_memory range = {
		.gpa = SWITCH_GPA + PAGE_SIZE,
		.size = PAGE_SIZE,
	};

	*(int *)err = __vcpu_ioctl(workers[1].vcpu, KVM_PRE_FAULT_MEMORY, &range) ?
		      errno : 0;
	return NULL;
}

/* The page tables that KVM_PRE_FAULT_MEMORY has begun with are obsolete. */
static bool delete_beside_prefault(bool zap_all)
{
	int uffd, err = -1;
	bool good;
	u8 *mem;

	uffd = create_waiting_guest(zap_all, &mem);
	set_slot(TABLE_SLOT, 0, TABLE_GPA, mem);
	nr_updates = 1;
	updates[0] = region_delete(TABLE_SLOT);
	good = run_between_swaps(uffd, mem, zeros, prefault, &err);
	if (err)
		ksft_print_msg("KVM_PRE_FAULT_MEMORY: errno %d\n", err);
	free_waiting_guest(uffd, mem);
	return good && !err;
}

/*
 * A vCPU has found a slot whose flags change, and waits.  What the first shadow
 * root of the VM gives to all slots in the lists, this one does not get any more.
 */
static bool change_flags_beside_first_shadow_root(bool zap_all)
{
	struct kvm_vcpu *nested;
	pthread_t updater;
	bool good;
	u8 *mem;
	int uffd;

	uffd = create_waiting_guest(zap_all, &mem);
	nested = vm_vcpu_add_nested(vm, MAX_VCPUS);
	nr_updates = 1;
	updates[0] = region_set(SWITCH_SLOT, KVM_MEM_LOG_DIRTY_PAGES, SWITCH_GPA,
				2 * PAGE_SIZE, mem);
	good = start_held_update(uffd, &updater);

	vcpu_run(nested);
	good &= get_ucall(nested, NULL) == UCALL_DONE;

	uffd_copy(uffd, mem, zeros);
	good &= end_held_update(updater);
	free_waiting_guest(uffd, mem);
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
	has_populater = kvm_has_cap(KVM_CAP_MAP_MEMORY);
	quirks = kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL;

	ksft_print_header();
	ksft_set_plan((quirks ? 2 : 1) *
		      (2 * ARRAY_SIZE(guests) + ARRAY_SIZE(writers) + 4));

	for (zap_all = 1; zap_all >= (quirks ? 0 : 1); zap_all--) {
		const char *quirk = zap_all ? "" : ", slot zap quirk disabled";

		for (i = 0; i < ARRAY_SIZE(guests); i++) {
			if (zap_all)
				reshape(SINGLE, &guests[i], nr_vcpus, zap_all);
			for (form = PAUSED; form <= LIST; form++)
				ksft_test_result(reshape(form, &guests[i], nr_vcpus,
							 zap_all),
						 "%s guest, %s%s\n",
						 guests[i].name,
						 form_names[form], quirk);
		}
		for (i = 0; i < ARRAY_SIZE(writers); i++)
			ksft_test_result(switch_memory(&writers[i], zap_all),
					 "%s writer, another host address, list%s\n",
					 writers[i].name, quirk);

		ksft_test_result(move_logged_slot(zap_all),
				 "KVM writes to a logged slot that moves%s\n", quirk);
		if (kvm_is_tdp_enabled() && kvm_cpu_has_tdp())
			ksft_test_result(change_flags_beside_first_shadow_root(zap_all),
					 "flags change beside the first shadow root%s\n",
					 quirk);
		else
			ksft_test_result_skip("no nested two-dimensional paging%s\n",
					      quirk);
		if (kvm_is_tdp_enabled()) {
			ksft_test_result(delete_beside_prefault(zap_all),
					 "deletion beside a prefault%s\n", quirk);
			ksft_test_result_skip("page tables are not shadowed%s\n",
					      quirk);
		} else {
			ksft_test_result(delete_page_table(zap_all),
					 "deletion of a page table%s\n", quirk);
			ksft_test_result(replace_page_tables(zap_all),
					 "replacement of page tables%s\n", quirk);
		}
	}

	ksft_finished();
}
