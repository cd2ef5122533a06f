/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Accesses that KVM makes for a vCPU while a list replaces memslots.
 *
 * The list replaces the memslots of the guest's page tables and of its data.  The
 * page tables before and after the list name different frames, so the contents of
 * memory and registers tell which memslots an access has used.
 *
 * vCPU 0 waits for memory from userfaultfd inside of kvm->srcu, and so holds up the
 * list.  vCPU 1 makes the access, which begins between the two swaps of the list and
 * ends after the second, as it waits for memory, too.
 */
#ifndef SELFTEST_KVM_LIST_ACCESS_H
#define SELFTEST_KVM_LIST_ACCESS_H

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <linux/sizes.h>

#include "held_update.h"
#include "kvm_util.h"
#include "page_table.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"
#include "uffd_page.h"

/* What vCPU 0 waits for. */
#define HOLD_GPA	0xc0000000ul
#define HOLD_SLOT	10

/* Two pages, with a page table each. */
#define GVA		(0x140000000ul + SZ_2M - PAGE_SIZE)

#define PORT		0x2000
#define VALUE		0xe3e2e1e0

/* How often an access may begin at a wrong moment. */
#define MAX_ATTEMPTS	5
/* Seconds after which a thread is stuck. */
#define PATIENCE	60

/* Before and after the list. */
enum world {
	OLD,
	NEW,
};

static const char * const world_names[] = { "old", "new" };

/* Memory with contents of its own in each world, which the list replaces. */
struct area {
	u32 slot;
	gpa_t gpa;
	u64 pages;
	u8 *mem[2];
};

/* A directory, a page table for each page, and a spare one. */
static struct area tables = { 11, 0xc0200000ul, 4 };
static struct area data = { 12, 0xc0400000ul, 4 };

enum result {
	GOOD,
	BAD,
	/* The access has ended without waiting for memory. */
	NO_WAIT,
	/* The access began so early that it held up the first swap, too. */
	EARLY,
};

static struct kvm_vm *vm;
static struct kvm_vcpu *holder, *vcpu;
/* Of vCPU 1, when it makes the access. */
static int run_ret;
static struct held_update update;

/* The frame of @data that a page at GVA is in. */
static inline int frame(enum world world, int page)
{
	return 2 * world + page;
}

static inline void guest_hold(void)
{
	WRITE_ONCE(*(u64 *)HOLD_GPA, 1);
	GUEST_DONE();
}

static inline u8 *page(const struct area *area, enum world world, int nr)
{
	return area->mem[world] + nr * PAGE_SIZE;
}

static inline void add_area(struct area *area)
{
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, area->gpa,
				    area->slot, area->pages, 0);
	area->mem[OLD] = addr_gpa2hva(vm, area->gpa);
	area->mem[NEW] = kvm_mmap(area->pages * PAGE_SIZE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static inline void free_area(struct area *area)
{
	if (area->mem[NEW])
		kvm_munmap(area->mem[NEW], area->pages * PAGE_SIZE);
	area->mem[NEW] = NULL;
}

/* Gives both worlds the same contents. */
static inline void copy_area(struct area *area)
{
	memcpy(area->mem[NEW], area->mem[OLD], area->pages * PAGE_SIZE);
}

/* The place in @world that @p is in the old one. */
static inline u64 *in_world(const struct area *area, enum world world, u64 *p)
{
	return (u64 *)(area->mem[world] + ((u8 *)p - area->mem[OLD]));
}

static inline gpa_t data_gpa(int frame)
{
	return data.gpa + frame * PAGE_SIZE;
}

static inline u64 *old_pte(int page)
{
	return vm_get_pte(vm, GVA + page * PAGE_SIZE);
}

/* Puts the guest's page tables for both pages at GVA into @tables. */
static inline void set_up_tables(void)
{
	enum world world;
	int i;

	add_area(&tables);
	add_area(&data);
	vm->memslots[MEM_REGION_PT] = tables.slot;
	virt_map(vm, GVA, data.gpa, 2);
	vm->memslots[MEM_REGION_PT] = 0;
	copy_area(&tables);

	for (world = OLD; world <= NEW; world++)
		for (i = 0; i < 2; i++)
			point_to(in_world(&tables, world, old_pte(i)),
				 data_gpa(frame(world, i)));
}

/* Memory that is not present, or write-protected. */
struct waited {
	u8 *page;
	bool is_protected;
	int uffd;
	u8 contents[PAGE_SIZE];
};

static inline void take_away(struct waited *w, void *page, bool protect)
{
	w->page = page;
	w->is_protected = protect;
	memcpy(w->contents, page, PAGE_SIZE);
	if (protect) {
		w->uffd = uffd_open_protected(page, PAGE_SIZE);
		return;
	}
	TEST_ASSERT(!madvise(page, PAGE_SIZE, MADV_DONTNEED), "errno %d", errno);
	w->uffd = uffd_open(page, PAGE_SIZE);
}

static inline void give_back(struct waited *w)
{
	if (w->is_protected)
		uffd_unprotect(w->uffd, w->page, PAGE_SIZE);
	else
		uffd_copy(w->uffd, w->page, w->contents);
}

static struct waited held, waited;

static inline void set_up_holder(void)
{
	u8 *mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);

	vm_set_user_memory_region(vm, HOLD_SLOT, 0, HOLD_GPA, PAGE_SIZE, mem);
	virt_map(vm, HOLD_GPA, HOLD_GPA, 1);
	take_away(&held, mem, false);
}

static inline void *holder_thread(void *unused)
{
	vcpu_run(holder);
	TEST_ASSERT_EQ(get_ucall(holder, NULL), UCALL_DONE);
	return NULL;
}

static bool access_has_ended;

static inline void *access_thread(void *unused)
{
	run_ret = __vcpu_run(vcpu) ? -errno : 0;
	WRITE_ONCE(access_has_ended, true);
	return NULL;
}

static inline void will_replace(const struct area *area)
{
	held_update_add(&update, region_delete(area->slot));
	held_update_add(&update, region_set(area->slot, 0, area->gpa,
					    area->pages * PAGE_SIZE,
					    area->mem[NEW]));
}

/* Returns whether the access waits for memory.  If not, it has ended. */
static inline bool access_waits(void)
{
	struct pollfd pollfd = { .fd = waited.uffd, .events = POLLIN };
	int i;

	for (i = 0; i < PATIENCE * 100; i++) {
		if (poll(&pollfd, 1, 10) == 1) {
			uffd_await_fault(waited.uffd);
			return true;
		}
		if (READ_ONCE(access_has_ended))
			return false;
	}
	TEST_FAIL("The access neither waits nor ends");
	return false;
}

static inline void join(pthread_t thread)
{
	struct timespec deadline;

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += PATIENCE;
	TEST_ASSERT(!pthread_timedjoin_np(thread, NULL, &deadline), "Stuck");
}

/* Runs vCPU 1 from between the two swaps of the list to after the second one. */
static inline enum result run_between_swaps(void)
{
	pthread_t holder_id, access_id;
	enum result result = GOOD;

	end_grace_periods(vm);
	kvm_pthread_create(&holder_id, NULL, holder_thread, NULL);
	uffd_await_fault(held.uffd);

	held_update_start(&update);
	TEST_ASSERT(held_update_await(&update, 0), "The list does not wait");
	/* The sooner the access begins, the likelier it holds up the first swap. */
	usleep(20000);

	access_has_ended = false;
	kvm_pthread_create(&access_id, NULL, access_thread, NULL);
	if (!access_waits())
		result = NO_WAIT;

	give_back(&held);
	if (result == GOOD && !held_update_await(&update, 1))
		result = EARLY;
	give_back(&waited);

	join(access_id);
	join(update.thread);
	join(holder_id);
	return result;
}

static inline void create_guest(void *code)
{
	vm = vm_create(2);
	holder = vm_vcpu_add(vm, 0, guest_hold);
	vcpu = vm_vcpu_add(vm, 1, code);
	set_up_holder();
	set_up_tables();
	update = (struct held_update) { .vm = vm };
	will_replace(&tables);
	will_replace(&data);
}

static inline void close_guest(void)
{
	close(waited.uffd);
	close(held.uffd);
	kvm_vm_free(vm);
	kvm_munmap(held.page, PAGE_SIZE);
	free_area(&tables);
	free_area(&data);
}

/* Whether a byte is part of VALUE, and not from fill_data(). */
static inline bool is_of_value(u8 byte)
{
	return byte >> 4 == VALUE >> 28;
}

/* Fills both worlds with bytes that tell the world and the frame. */
static inline void fill_data(void)
{
	enum world world;
	int i;

	for (world = OLD; world <= NEW; world++)
		for (i = 0; i < data.pages; i++)
			memset(page(&data, world, i), (world ? 0xb0 : 0xa0) + i,
			       PAGE_SIZE);
}

/* How many bytes of the access are in the first page.  It may cross to the second. */
static inline int first_bytes(bool crosses)
{
	return crosses ? 2 : 4;
}

static inline gva_t access_gva(bool crosses)
{
	return crosses ? GVA + PAGE_SIZE - 2 : GVA;
}

static inline u8 *access_page(bool crosses, enum world world, int nr)
{
	u8 *p = page(&data, world, frame(world, nr));

	return crosses && !nr ? p + PAGE_SIZE - 2 : p;
}

static inline u32 read_data(bool crosses, enum world world)
{
	int first = first_bytes(crosses);
	u32 value;

	memcpy(&value, access_page(crosses, world, 0), first);
	memcpy((u8 *)&value + first, access_page(crosses, world, 1),
	       sizeof(value) - first);
	return value;
}

/* Checks that VALUE is in one world's memory, where its page tables say, and nowhere else. */
static inline bool check_written(bool crosses)
{
	enum world world;
	bool good = false;
	int i, nr = 0;

	for (world = OLD; world <= NEW; world++) {
		good |= read_data(crosses, world) == VALUE;
		for (i = 0; i < data.pages * PAGE_SIZE; i++)
			nr += is_of_value(data.mem[world][i]);
	}
	if (good && nr == sizeof(u32))
		return true;

	ksft_print_msg("not written as a whole, %d bytes in all\n", nr);
	for (world = OLD; world <= NEW; world++)
		for (i = 0; i < data.pages * PAGE_SIZE; i++)
			if (is_of_value(data.mem[world][i]))
				ksft_print_msg("0x%x at 0x%llx of frame %lld, %s memory\n",
					       data.mem[world][i], i % PAGE_SIZE,
					       i / PAGE_SIZE, world_names[world]);
	return false;
}

static inline bool exits_with(int ret, u32 reason)
{
	if (run_ret == ret && (ret || vcpu->run->exit_reason == reason))
		return true;
	ksft_print_msg("KVM_RUN gives %d, exit %s\n", run_ret,
		       exit_reason_str(vcpu->run->exit_reason));
	return false;
}

static inline void *io_data(void)
{
	return (u8 *)vcpu->run + vcpu->run->io.data_offset;
}

/* Runs the vCPU up to an INS, which the next KVM_RUN completes with VALUE. */
static inline void run_to_ins(void)
{
	struct kvm_run *run = vcpu->run;

	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT(run->io.port == PORT && run->io.size == 4 &&
		    run->io.direction == KVM_EXIT_IO_IN, "Another port");
	*(u32 *)io_data() = VALUE;
	run->immediate_exit = 1;
}

/* Reports a result.  @why: why this host cannot run the test, or NULL. */
static inline void report_result(const char *name, enum result result, const char *why)
{
	if (why)
		ksft_test_result_skip("%s: %s\n", name, why);
	else
		ksft_test_result(result == GOOD, "%s\n", name);
	if (!why && result > BAD)
		ksft_print_msg("the access %s\n", result == NO_WAIT ?
			       "did not wait" : "began too early, every time");
}

#endif /* SELFTEST_KVM_LIST_ACCESS_H */
