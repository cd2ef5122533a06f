// SPDX-License-Identifier: GPL-2.0-only
/*
 * An access that KVM makes for a vCPU belongs as a whole to the memslots before a
 * list or to those after it.
 *
 * KVM walks the guest's page tables, looks up the memslot of the result, and reads
 * or writes what is behind it; for each page of the access, and for a nested guest
 * on two levels.  Each of these steps can wait for memory, here for userfaultfd.
 * Meanwhile a list replaces the memslots of the page tables and of the data: the
 * access begins between the two swaps of the list, and ends after the second.  The
 * page tables before and after the list name different frames, so that the
 * contents of memory and registers tell which memslots an access has used.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include <linux/sizes.h>

#include "held_update.h"
#include "kvm_util.h"
#include "memory_region_list.h"
#include "nested_guest.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* What vCPU 0 waits for. */
#define HOLD_GPA	0xc0000000ul
#define HOLD_SLOT	10

/* Two pages, with a page table each. */
#define GVA		(0x140000000ul + SZ_2M - PAGE_SIZE)

#define PORT		0x2000
#define NO_MSR		0x474f4f00
#define VALUE		0xe3e2e1e0

#define FEP_PARAM	"/sys/module/kvm/parameters/force_emulation_prefix"

/* How often an access may begin at a wrong moment. */
#define MAX_ATTEMPTS	5
/* Seconds after which a thread is stuck. */
#define PATIENCE	60

enum world {
	OLD,
	NEW,
};

static const char * const world_names[] = { "old", "new" };

/* Memory with contents of its own in each world, which a list replaces. */
struct area {
	u32 slot;
	gpa_t gpa;
	u64 pages;
	u8 *mem[2];
};

/* A directory, a page table for each page, and a spare one. */
static struct area tables = { 11, 0xc0200000ul, 4 };
static struct area data = { 12, 0xc0400000ul, 4 };
static struct area nested_tables = { 13, 0xc0600000ul, 8 };

/* The frame of @data that a page at GVA is in. */
static int frame(enum world world, int page)
{
	return 2 * world + page;
}

enum access {
	INS,
	OUTS,
	FETCH,
	CMPXCHG,
};

static const char * const access_names[] = {
	"ins", "outs", "fetch", "cmpxchg",
};

/* What the access waits for; both pages differ if it crosses their border. */
enum wait {
	/* The accessed or dirty bit in the page table of the last page. */
	WAIT_BITS,
	/* The page table of the last page. */
	WAIT_TABLE,
	/* The memory of the first page. */
	WAIT_DATA,
	/* L2's page table that names the one for the page, or the page. */
	WAIT_NESTED_DIRECTORY,
	WAIT_NESTED_TABLE,
};

static const char * const wait_names[] = {
	"accessed and dirty bits", "a page table", "the first page",
	"a page directory", "a page table",
};

struct test {
	enum access access;
	bool crosses;
	enum wait wait;
};

static const struct test tests[] = {
	{ INS, false, WAIT_BITS },
	{ OUTS, false, WAIT_BITS },
	{ FETCH, false, WAIT_BITS },
	{ CMPXCHG, false, WAIT_BITS },
	{ INS, true, WAIT_BITS },
	{ INS, true, WAIT_TABLE },
	{ INS, true, WAIT_DATA },
	{ OUTS, true, WAIT_BITS },
	{ OUTS, true, WAIT_TABLE },
	{ OUTS, true, WAIT_DATA },
	{ FETCH, true, WAIT_BITS },
	{ FETCH, true, WAIT_TABLE },
	{ FETCH, true, WAIT_DATA },
	{ INS, false, WAIT_NESTED_DIRECTORY },
	{ INS, false, WAIT_NESTED_TABLE },
};

static bool is_nested(const struct test *test)
{
	return test->wait >= WAIT_NESTED_DIRECTORY;
}

enum result {
	GOOD,
	BAD,
	/* KVM has not come to wait for memory. */
	NO_WAIT,
	/* The access began when the list still waited for what begins. */
	EARLY,
};

static struct kvm_vm *vm;
static struct kvm_vcpu *holder, *vcpu;
/* Of the second, when its access is made. */
static int run_ret;

static void guest_hold(void)
{
	WRITE_ONCE(*(u64 *)HOLD_GPA, 1);
	GUEST_DONE();
}

static void guest_ins(void *at)
{
	asm volatile("insl" : "+D"(at) : "d"((u16)PORT) : "memory");
	GUEST_DONE();
}

static void guest_outs(void *at)
{
	GUEST_SYNC(0);
	asm volatile("outsl" : "+S"(at) : "d"((u16)PORT) : "memory");
	GUEST_DONE();
}

/* At @code is RDMSR, with prefixes that tell where it is from. */
static void guest_fetch(void *code)
{
	asm volatile("jmp *%0" : : "r"(code), "c"(NO_MSR));
}

static void guest_cmpxchg(u32 *at)
{
	u32 was = 0;

	GUEST_SYNC(0);
	asm volatile(KVM_FEP "lock cmpxchgl %2, %1"
		     : "+a"(was), "+m"(*at) : "r"(VALUE) : "memory");
	GUEST_DONE();
}

static void * const guest_code[] = {
	guest_ins, guest_outs, guest_fetch, guest_cmpxchg,
};

static bool l2_is_done;

static void l2_guest_code(void)
{
	void *at = (void *)GVA;

	asm volatile("insl" : "+D"(at) : "d"((u16)PORT) : "memory");
	WRITE_ONCE(l2_is_done, true);
	vmcall();
}

static void l1_guest_code(void *data)
{
	run_nested_guest(data, l2_guest_code);
	GUEST_SYNC(READ_ONCE(l2_is_done));
}

static u8 *page(const struct area *area, enum world world, int nr)
{
	return area->mem[world] + nr * PAGE_SIZE;
}

static void add_area(struct area *area)
{
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, area->gpa,
				    area->slot, area->pages, 0);
	area->mem[OLD] = addr_gpa2hva(vm, area->gpa);
	area->mem[NEW] = kvm_mmap(area->pages * PAGE_SIZE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static void free_area(struct area *area)
{
	if (area->mem[NEW])
		kvm_munmap(area->mem[NEW], area->pages * PAGE_SIZE);
	area->mem[NEW] = NULL;
}

/* From here on, what is new in both worlds is made by the test. */
static void copy_area(struct area *area)
{
	memcpy(area->mem[NEW], area->mem[OLD], area->pages * PAGE_SIZE);
}

/* The same place in the other world; @p is in the old one. */
static u64 *in_world(const struct area *area, enum world world, u64 *p)
{
	return (u64 *)(area->mem[world] + ((u8 *)p - area->mem[OLD]));
}

static u8 *page_of(void *p)
{
	return (u8 *)((uintptr_t)p & PAGE_MASK);
}

static void point_to(u64 *entry, gpa_t gpa)
{
	*entry = gpa | (*entry & ~PHYSICAL_PAGE_MASK);
}

static gpa_t data_gpa(int frame)
{
	return data.gpa + frame * PAGE_SIZE;
}

static u64 *old_pte(int page)
{
	return vm_get_pte(vm, GVA + page * PAGE_SIZE);
}

/* In the directory, which is the first of the page tables that are allocated. */
static u64 *old_pde(int page)
{
	u64 *pde = (u64 *)tables.mem[OLD] +
		   ((GVA + page * PAGE_SIZE) / SZ_2M) % (PAGE_SIZE / sizeof(u64));

	TEST_ASSERT_EQ(*pde & PHYSICAL_PAGE_MASK,
		       addr_hva2gpa(vm, page_of(old_pte(page))));
	return pde;
}

/* Has the guest's page tables for both pages at GVA lie in @tables. */
static void set_up_tables(void)
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

/* Memory that is not there, or write-protected. */
struct waited {
	u8 *page;
	bool is_protected;
	int uffd;
	u8 contents[PAGE_SIZE];
};

static void take_away(struct waited *w, void *page, bool protect)
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

static void give_back(struct waited *w)
{
	if (w->is_protected)
		uffd_unprotect(w->uffd, w->page, PAGE_SIZE);
	else
		uffd_copy(w->uffd, w->page, w->contents);
}

static struct waited held, waited;

/* vCPU 0 waits inside of kvm->srcu. */
static void set_up_holder(void)
{
	u8 *mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);

	vm_set_user_memory_region(vm, HOLD_SLOT, 0, HOLD_GPA, PAGE_SIZE, mem);
	virt_map(vm, HOLD_GPA, HOLD_GPA, 1);
	take_away(&held, mem, false);
}

static void *holder_thread(void *unused)
{
	vcpu_run(holder);
	TEST_ASSERT_EQ(get_ucall(holder, NULL), UCALL_DONE);
	return NULL;
}

static bool access_has_ended;

static void *access_thread(void *unused)
{
	run_ret = __vcpu_run(vcpu) ? -errno : 0;
	WRITE_ONCE(access_has_ended, true);
	return NULL;
}

static struct region_entry updates[6];
static int nr_updates;

static void will_replace(const struct area *area)
{
	updates[nr_updates++] = region_delete(area->slot);
	updates[nr_updates++] = region_set(area->slot, 0, area->gpa,
					   area->pages * PAGE_SIZE,
					   area->mem[NEW]);
}

static pid_t updater_tid;

static void *updater_thread(void *unused)
{
	WRITE_ONCE(updater_tid, syscall(__NR_gettid));
	TEST_ASSERT(!__vm_set_region_list(vm, nr_updates, updates),
		    "Update failed, errno %d", errno);
	return NULL;
}

/* Whether the access waits for memory; if not, it has ended. */
static bool access_waits(void)
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

static void join(pthread_t thread)
{
	struct timespec deadline;

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += PATIENCE;
	TEST_ASSERT(!pthread_timedjoin_np(thread, NULL, &deadline), "Stuck");
}

/*
 * Runs vCPU 1 from a moment between the two swaps of the list to one after the
 * second, in which it waits for memory.
 */
static enum result run_between_swaps(void)
{
	pthread_t holder_id, updater_id, access_id;
	enum result result = GOOD;
	u64 swaps = vm_get_stat(vm, memslot_swaps);

	kvm_pthread_create(&holder_id, NULL, holder_thread, NULL);
	uffd_await_fault(held.uffd);

	updater_tid = 0;
	kvm_pthread_create(&updater_id, NULL, updater_thread, NULL);
	TEST_ASSERT(await_held_update(vm, &updater_tid, swaps),
		    "The list does not wait");
	/* The sooner the access begins, the likelier it is waited for, too. */
	usleep(20000);

	access_has_ended = false;
	kvm_pthread_create(&access_id, NULL, access_thread, NULL);
	if (!access_waits())
		result = NO_WAIT;

	give_back(&held);
	if (result == GOOD && !await_held_update(vm, &updater_tid, swaps + 1))
		result = EARLY;
	give_back(&waited);

	join(access_id);
	join(updater_id);
	join(holder_id);
	return result;
}

static void close_guest(void)
{
	close(waited.uffd);
	close(held.uffd);
	kvm_vm_free(vm);
	kvm_munmap(held.page, PAGE_SIZE);
	free_area(&tables);
	free_area(&data);
	free_area(&nested_tables);
}

/* Whether a byte is of VALUE, and none that fill_data() has put there. */
static bool is_of_value(u8 byte)
{
	return byte >> 4 == VALUE >> 28;
}

/* Bytes that tell world and frame; but a value that is compared is 0. */
static void fill_data(enum access access)
{
	enum world world;
	int i;

	for (world = OLD; world <= NEW; world++)
		for (i = 0; i < data.pages; i++)
			memset(page(&data, world, i),
			       access == CMPXCHG ? 0 : (world ? 0xb0 : 0xa0) + i,
			       PAGE_SIZE);
}

/* The length of the instruction is 2 or 4 as it should be, or more. */
static void fill_code(bool crosses)
{
	static const u8 bare[] = { 0x0f, 0x32 };
	static const u8 prefixed[] = { 0x66, 0x66, 0x0f, 0x32 };
	static const u8 wrong[] = { 0x66, 0x66, 0x66, 0x66, 0x66, 0x0f, 0x32 };
	enum world world;
	int i;

	for (world = OLD; world <= NEW; world++) {
		for (i = 0; i < data.pages; i++) {
			memset(page(&data, world, i), 0x66, PAGE_SIZE);
			memcpy(page(&data, world, i), wrong, sizeof(wrong));
		}
	}
	if (!crosses) {
		memcpy(page(&data, OLD, frame(OLD, 0)), bare, sizeof(bare));
		memcpy(page(&data, NEW, frame(NEW, 0)), prefixed, sizeof(prefixed));
		return;
	}
	memcpy(page(&data, OLD, frame(OLD, 1)) - 2, prefixed, sizeof(prefixed));
	/* This one ends with the first page. */
	memcpy(page(&data, NEW, frame(NEW, 1)) - 2, bare, sizeof(bare));
}

/* The bytes of the access that are in the first page. */
static int first_bytes(const struct test *test)
{
	return test->crosses ? 2 : 4;
}

static gva_t access_gva(const struct test *test)
{
	return test->crosses ? GVA + PAGE_SIZE - 2 : GVA;
}

static u8 *access_page(const struct test *test, enum world world, int nr)
{
	u8 *p = page(&data, world, frame(world, nr));

	return test->crosses && !nr ? p + PAGE_SIZE - 2 : p;
}

static u32 read_data(const struct test *test, enum world world)
{
	int first = first_bytes(test);
	u32 value;

	memcpy(&value, access_page(test, world, 0), first);
	memcpy((u8 *)&value + first, access_page(test, world, 1),
	       sizeof(value) - first);
	return value;
}

/* In the memory of one world, where its page tables say, and nowhere else. */
static bool check_written(const struct test *test)
{
	enum world world;
	bool good = false;
	int i, nr = 0;

	for (world = OLD; world <= NEW; world++) {
		good |= read_data(test, world) == VALUE;
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

static bool check_read(const struct test *test, u32 value)
{
	if (value == read_data(test, OLD) || value == read_data(test, NEW))
		return true;
	ksft_print_msg("0x%08x was read, and not 0x%08x or 0x%08x\n", value,
		       read_data(test, OLD), read_data(test, NEW));
	return false;
}

static bool check_fetched(const struct test *test)
{
	const int old = test->crosses ? 4 : 2, new = test->crosses ? 2 : 4;
	struct kvm_regs regs;
	long len;

	vcpu_regs_get(vcpu, &regs);
	len = regs.rip - access_gva(test);
	if (len == old || len == new)
		return true;
	ksft_print_msg("%ld bytes were fetched, and not %d or %d\n", len, old,
		       new);
	return false;
}

static bool exits_with(int ret, u32 reason)
{
	if (run_ret == ret && (ret || vcpu->run->exit_reason == reason))
		return true;
	ksft_print_msg("KVM_RUN gives %d, exit %s\n", run_ret,
		       exit_reason_str(vcpu->run->exit_reason));
	return false;
}

static void *io_data(void)
{
	return (u8 *)vcpu->run + vcpu->run->io.data_offset;
}

/* Runs the vCPU to where the next KVM_RUN makes the access. */
static void run_to_access(enum access access)
{
	struct kvm_run *run = vcpu->run;

	vcpu_run(vcpu);
	switch (access) {
	case INS:
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
		TEST_ASSERT(run->io.port == PORT && run->io.size == 4 &&
			    run->io.direction == KVM_EXIT_IO_IN, "Another port");
		*(u32 *)io_data() = VALUE;
		break;
	case FETCH:
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_X86_RDMSR);
		break;
	case OUTS:
	case CMPXCHG:
		TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_SYNC);
		break;
	}
	/* What KVM has to complete is enough. */
	run->immediate_exit = access == INS || access == FETCH;
}

/* A bit that is clear has to be set; the page tables are as if made anew. */
static void prepare_bits(const struct test *test)
{
	const u64 accessed = PTE_ACCESSED_MASK(&vm->mmu);
	const u64 dirty = PTE_DIRTY_MASK(&vm->mmu);
	u64 *last = old_pte(test->crosses);

	*old_pte(0) |= accessed | dirty;
	*last &= ~(accessed | dirty);
	/* Its operand is read before. */
	if (test->access == CMPXCHG)
		*last |= accessed;
}

static void prepare_wait(const struct test *test)
{
	if (test->wait == WAIT_DATA)
		take_away(&waited, page(&data, OLD, frame(OLD, 0)), false);
	else
		take_away(&waited, page_of(old_pte(test->crosses)),
			  test->wait == WAIT_BITS);
}

static void create_guest(void *code)
{
	vm = vm_create(2);
	holder = vm_vcpu_add(vm, 0, guest_hold);
	vcpu = vm_vcpu_add(vm, 1, code);
	set_up_holder();
	set_up_tables();
	nr_updates = 0;
	will_replace(&tables);
	will_replace(&data);
}

static bool check_access(const struct test *test)
{
	switch (test->access) {
	case INS:
		return exits_with(-EINTR, 0) && check_written(test);
	case OUTS:
		return exits_with(0, KVM_EXIT_IO) && vcpu->run->io.port == PORT &&
		       check_read(test, *(u32 *)io_data());
	case FETCH:
		return exits_with(-EINTR, 0) && check_fetched(test);
	case CMPXCHG:
		return exits_with(0, KVM_EXIT_IO) &&
		       get_ucall(vcpu, NULL) == UCALL_DONE && check_written(test);
	}
	return false;
}

static enum result try_access(const struct test *test)
{
	enum result result;

	create_guest(guest_code[test->access]);
	vcpu_args_set(vcpu, 1, access_gva(test));
	vm_enable_cap(vm, KVM_CAP_X86_USER_SPACE_MSR,
		      KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL);
	if (test->access == FETCH)
		fill_code(test->crosses);
	else
		fill_data(test->access);

	run_to_access(test->access);
	prepare_bits(test);
	prepare_wait(test);
	result = run_between_swaps();
	if (result == GOOD && !check_access(test))
		result = BAD;
	close_guest();
	return result;
}

static u64 *nested_pte(enum world world, gpa_t gpa)
{
	return in_world(&nested_tables, world, tdp_get_pte(vm, gpa));
}

/* L1's page tables map @old_gpa in one world, and @new_gpa in the other. */
static void set_up_nested_tables(gpa_t old_gpa, gpa_t new_gpa)
{
	tdp_identity_map_default_memslots(vm);
	add_area(&nested_tables);
	vm->memslots[MEM_REGION_PT] = nested_tables.slot;
	tdp_map(vm, tables.gpa, tables.gpa, tables.pages * PAGE_SIZE);
	tdp_map(vm, data.gpa, data.gpa, data.pages * PAGE_SIZE);
	vm->memslots[MEM_REGION_PT] = 0;
	copy_area(&nested_tables);
	*nested_pte(OLD, new_gpa) = 0;
	*nested_pte(NEW, old_gpa) = 0;
	will_replace(&nested_tables);
}

/*
 * What a page table of L2 names in either world is mapped by L1's page tables of
 * that world alone.  It is the page table that the access waits for.
 */
static enum result try_nested_access(const struct test *test)
{
	const gpa_t spare = tables.gpa + (tables.pages - 1) * PAGE_SIZE;
	enum result result;
	struct ucall uc;
	u64 *entry;

	create_guest(l1_guest_code);
	vm_enable_tdp(vm);
	vcpu_alloc_nested(vm, vcpu);
	fill_data(test->access);

	entry = test->wait == WAIT_NESTED_TABLE ? old_pte(0) : old_pde(0);
	if (test->wait == WAIT_NESTED_DIRECTORY) {
		memcpy(page(&tables, NEW, tables.pages - 1),
		       page_of(in_world(&tables, NEW, old_pte(0))), PAGE_SIZE);
		point_to(in_world(&tables, NEW, entry), spare);
	}
	set_up_nested_tables(*entry & PHYSICAL_PAGE_MASK,
			     *in_world(&tables, NEW, entry) & PHYSICAL_PAGE_MASK);

	run_to_access(test->access);
	take_away(&waited, page_of(entry), false);
	result = run_between_swaps();
	if (result != GOOD)
		goto out;

	if (!exits_with(-EINTR, 0) || !check_written(test))
		result = BAD;
	vcpu->run->immediate_exit = 0;
	vcpu_run(vcpu);
	if (get_ucall(vcpu, &uc) != UCALL_SYNC || !uc.args[1]) {
		ksft_print_msg("L1 sees an exit that neither memslots justify\n");
		result = BAD;
	}
out:
	close_guest();
	return result;
}

static bool has_nested_tdp(void)
{
	return kvm_is_tdp_enabled() && kvm_cpu_has_tdp() &&
	       (kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM));
}

static int fep_was;

static void set_fep(int value)
{
	int fd = open(FEP_PARAM, O_WRONLY);

	if (fd < 0)
		return;
	dprintf(fd, "%d", value);
	close(fd);
}

static void restore_fep(void)
{
	set_fep(fep_was);
}

/* Why this host cannot run the test, or NULL. */
static const char *lacks(const struct test *test)
{
	if (test->wait == WAIT_BITS && !uffd_can_protect())
		return "no write protection by userfaultfd";
	if (test->access == CMPXCHG && !kvm_is_forced_emulation_enabled())
		return "no forced emulation";
	if (is_nested(test) && !has_nested_tdp())
		return "no nested two-dimensional paging";
	return NULL;
}

static void run_test(const struct test *test)
{
	const char *why = lacks(test);
	enum result result = EARLY;
	char name[128];
	int i;

	snprintf(name, sizeof(name), "%s%s%s waits for %s",
		 is_nested(test) ? "nested " : "", access_names[test->access],
		 test->crosses ? " of two pages" : "", wait_names[test->wait]);

	for (i = 0; !why && result == EARLY && i < MAX_ATTEMPTS; i++)
		result = is_nested(test) ? try_nested_access(test) :
			 try_access(test);
	/* With the help of the CPU, it need not know the instruction. */
	if (result == NO_WAIT && test->access == FETCH)
		why = "KVM fetches no instruction to skip it";

	if (why)
		ksft_test_result_skip("%s: %s\n", name, why);
	else
		ksft_test_result(result == GOOD, "%s\n", name);
	if (!why && result > BAD)
		ksft_print_msg("the access %s\n", result == NO_WAIT ?
			       "did not wait" : "began too early, every time");
}

int main(int argc, char *argv[])
{
	int i;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_USER_SPACE_MSR));

	fep_was = get_kvm_param_integer("force_emulation_prefix");
	atexit(restore_fep);
	set_fep(1);

	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(tests));
	for (i = 0; i < ARRAY_SIZE(tests); i++)
		run_test(&tests[i]);
	ksft_finished();
}
