// SPDX-License-Identifier: GPL-2.0-only
/*
 * MMU notifiers beside KVM_SET_USER_MEMORY_REGION_LIST.
 *
 * Lists reshape the memslots of memory that stays, while the host changes how it
 * maps that memory: takes pages away, protects them, makes them huge, merges equal
 * ones, has userfaultfd watch them.  vCPUs count in the memory: each word must hold
 * what its vCPU has last written to it, for the guest all the time, and for the
 * host in the end.
 *
 * The arguments are the number of milliseconds for each kind of change, and a part
 * of the names of those kinds to test.
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <linux/sizes.h>

#include "attr_util.h"
#include "kselftest.h"
#include "running_vcpus.h"
#include "uffd_page.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

#define WINDOW_GPA	0xc0000000ul
#define NR_PAGES	1024
/* The slots always map these, which the guest uses. */
#define KEPT_PAGES	400
#define NR_VCPUS	2
/* A cache line for each vCPU. */
#define WORD(id)	((id) * 8)
/* Every 4th page is the same to its last byte, except for a moment. */
#define QUIET		4
#define QUIET_VAL	0x5a5a5a5aul

#define KSM		"/sys/kernel/mm/ksm/"
#define KSM_PAGES	128

struct churn {
	const char *name;
	/* Returns false if the host cannot do that. */
	bool (*begin)(void);
	/* Changes something about @nr pages from @page on. */
	void (*change)(int page, int nr);
	void (*end)(void);
	bool shared, huge, may_be_denied, forks;
};

static const struct churn *churn;
static u8 *mem;
static int memfd;
static struct kvm_random_state churn_rng;

static bool stop_churn, stop_handler;
static u64 nr_changes;
static int uffd = -1;
static pthread_t handler;
static u64 nr_handled;

static void guest_code(int id)
{
	u64 pass, i, *page;

	for (pass = 1; !READ_ONCE(guest_stop); pass++) {
		for (i = 0; i < KEPT_PAGES; i++) {
			page = (u64 *)(WINDOW_GPA + i * PAGE_SIZE);
			if (i % QUIET) {
				GUEST_ASSERT_EQ(READ_ONCE(page[WORD(id)]), pass - 1);
				WRITE_ONCE(page[WORD(id)], pass);
			} else {
				GUEST_ASSERT_EQ(READ_ONCE(page[0]), QUIET_VAL);
				/* Gives the page a copy of its own again. */
				if (pass % KEPT_PAGES == i)
					WRITE_ONCE(page[0], QUIET_VAL);
			}
		}
		WRITE_ONCE(guest_passes[id], pass);
	}
	GUEST_DONE();
}

static u8 *page_at(int page)
{
	return mem + page * PAGE_SIZE;
}

static void change_advice(int page, int nr, int advice)
{
	int r = madvise(page_at(page), nr * PAGE_SIZE, advice);

	TEST_ASSERT(!r || errno == EAGAIN || errno == EBUSY || errno == EINVAL,
		    "madvise(%d) failed, errno %d", advice, errno);
}

static void change_prot(int page, int nr, int prot)
{
	TEST_ASSERT(!mprotect(page_at(page), nr * PAGE_SIZE, prot),
		    "mprotect() failed, errno %d", errno);
}

/* The pages stay in the memfd. */
static void drop(int page, int nr)
{
	change_advice(page, nr, MADV_DONTNEED);
}

static void forbid_writes(int page, int nr)
{
	change_prot(page, nr, PROT_READ);
	usleep(200);
	change_prot(page, nr, PROT_READ | PROT_WRITE);
}

static void forbid_all(int page, int nr)
{
	change_prot(page, nr, PROT_NONE);
	change_prot(page, nr, PROT_READ | PROT_WRITE);
}

/* Splits a huge page by giving a part of it other permissions, and makes it again. */
static void split_and_collapse(int page, int nr)
{
	int first = page / 512 * 512;

	change_prot(page, nr, PROT_READ | PROT_WRITE | PROT_EXEC);
	usleep(500);
	change_prot(page, nr, PROT_READ | PROT_WRITE);
	change_advice(first, 512, MADV_COLLAPSE);
}

static void drop_and_collapse(int page, int nr)
{
	change_advice(page, nr, MADV_DONTNEED);
	if (nr % 4 == 0)
		change_advice(page / 512 * 512, 512, MADV_COLLAPSE);
}

/* Comparing pages takes too long to have the kernel do it with all of them. */
static bool begin_ksm(void)
{
	return !madvise(mem, KSM_PAGES * PAGE_SIZE, MADV_MERGEABLE) &&
	       write_attr(KSM "sleep_millisecs", "20") &&
	       write_attr(KSM "pages_to_scan", "50") &&
	       write_attr(KSM "run", "1");
}

static u64 ksm_pages(void)
{
	char buf[32];

	return read_attr(KSM "pages_sharing", buf, sizeof(buf)) ? atol(buf) : 0;
}

/* The kernel's thread does it. */
static void wait_for_ksm(int page, int nr)
{
	usleep(10000);
	if (nr % 16 == 0) {
		page %= KSM_PAGES - 64;
		change_advice(page, nr, MADV_UNMERGEABLE);
		change_advice(page, nr, MADV_MERGEABLE);
	}
}

static void end_ksm(void)
{
	ksft_print_msg("%lu pages merged\n", ksm_pages());
	write_attr(KSM "run", "2");
	write_attr(KSM "run", "0");
}

/* Resolves the faults that userfaultfd reports. */
static void *handle_faults(void *unused)
{
	struct pollfd pollfd = { .fd = uffd, .events = POLLIN };
	struct uffdio_continue cont;
	struct uffd_msg msg;
	u64 addr;

	while (!READ_ONCE(stop_handler)) {
		if (poll(&pollfd, 1, 10) <= 0 ||
		    read(uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		addr = msg.arg.pagefault.address & PAGE_MASK;
		nr_handled++;
		if (msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
			uffd_unprotect(uffd, (void *)addr, PAGE_SIZE);
			continue;
		}
		cont = (struct uffdio_continue) {
			.range = { .start = addr, .len = PAGE_SIZE },
		};
		TEST_ASSERT(!ioctl(uffd, UFFDIO_CONTINUE, &cont) || errno == EEXIST ||
			    errno == EAGAIN,
			    "UFFDIO_CONTINUE failed, errno %d", errno);
		if (cont.mapped < 0)
			ioctl(uffd, UFFDIO_WAKE, &cont.range);
	}
	return NULL;
}

static bool open_uffd(u64 mode)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)mem, .len = NR_PAGES * PAGE_SIZE },
		.mode = mode,
	};
	struct uffdio_api api = { .api = UFFD_API };

	/* A fault that is over can no longer be read. */
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg))
		return false;

	stop_handler = false;
	nr_handled = 0;
	kvm_pthread_create(&handler, NULL, handle_faults, NULL);
	return true;
}

static bool begin_write_protect(void)
{
	return uffd_can_protect() && open_uffd(UFFDIO_REGISTER_MODE_WP);
}

static void write_protect(int page, int nr)
{
	__uffd_protect(uffd, page_at(page), nr * PAGE_SIZE,
		       UFFDIO_WRITEPROTECT_MODE_WP);
	usleep(1000);
}

static bool begin_minor(void)
{
	return open_uffd(UFFDIO_REGISTER_MODE_MINOR);
}

static void end_uffd(void)
{
	WRITE_ONCE(stop_handler, true);
	kvm_pthread_join(handler, NULL);
	close(uffd);
	uffd = -1;
	ksft_print_msg("%lu faults handled\n", nr_handled);
}

static void wait_for_fork(int page, int nr)
{
	usleep(1000);
}

static const struct churn churns[] = {
	{ "DONTNEED", NULL, drop, .shared = true },
	{ "mprotect, no writes", NULL, forbid_writes, .may_be_denied = true },
	{ "mprotect, no accesses", NULL, forbid_all, .may_be_denied = true },
	{ "COLLAPSE", NULL, split_and_collapse, .huge = true },
	{ "COLLAPSE of a file", NULL, drop_and_collapse, .shared = true,
	  .huge = true },
	{ "KSM", begin_ksm, wait_for_ksm, end_ksm },
	{ "userfaultfd, write-protection", begin_write_protect, write_protect,
	  end_uffd },
	{ "userfaultfd, minor faults", begin_minor, drop, end_uffd,
	  .shared = true },
	{ "fork()", NULL, wait_for_fork, .forks = true },
};

static void *churn_thread(void *unused)
{
	int page, nr;

	for (nr_changes = 0; !READ_ONCE(stop_churn); nr_changes++) {
		page = kvm_random_u32_in_range(&churn_rng, 0, KEPT_PAGES - 1);
		nr = kvm_random_u32_in_range(&churn_rng, 1, 64);
		churn->change(page, nr);
		/* The guest must get something done, too. */
		usleep(100);
	}
	return NULL;
}

static void create_memory(void)
{
	const size_t size = NR_PAGES * PAGE_SIZE;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, i;
	void *area;

	memfd = -1;
	if (churn->shared) {
		memfd = kvm_memfd_alloc(size, false);
		flags = MAP_SHARED;
	}
	/* Only reserves address space. */
	area = kvm_mmap(size + SZ_2M, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	mem = align_ptr_up(area, SZ_2M);
	TEST_ASSERT(mmap(mem, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED,
			 memfd, 0) == mem, "mmap() failed, errno %d", errno);
	madvise(mem, size, churn->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (i = 0; i < NR_PAGES; i++)
		*(u64 *)page_at(i) = i % QUIET ? 0 : QUIET_VAL;
}

/* Two to four slots, which cut the kept pages somewhere and end beyond them. */
static int random_slots(struct region_entry *entries)
{
	int nr = kvm_random_u32_in_range(&kvm_rng, 2, 4), from = 0, to, i;
	u32 flags;

	for (i = 0; i < nr; i++, from = to) {
		to = i == nr - 1 ?
		     kvm_random_u32_in_range(&kvm_rng, KEPT_PAGES, NR_PAGES) :
		     kvm_random_u32_in_range(&kvm_rng, from + 1, KEPT_PAGES - nr + i);
		flags = kvm_random_u32_in_range(&kvm_rng, 0, 3) ? 0 :
			KVM_MEM_LOG_DIRTY_PAGES;
		entries[i] = region_set(10 + i, flags, WINDOW_GPA + from * PAGE_SIZE,
					(to - from) * PAGE_SIZE, page_at(from));
	}
	return nr;
}

static bool check_memory(void)
{
	u64 *passes = *guest_ptr(vm, guest_passes), val;
	int i, id;

	for (i = 0; i < KEPT_PAGES; i++) {
		for (id = 0; id < NR_VCPUS; id++) {
			val = ((u64 *)page_at(i))[i % QUIET ? WORD(id) : 0];
			if (val == (i % QUIET ? passes[id] : QUIET_VAL))
				continue;
			ksft_print_msg("page %d is 0x%lx after %lu passes of vCPU %d\n",
				       i, val, passes[id], id);
			return false;
		}
	}
	return true;
}

static bool reshape_beside_churn(int ms)
{
	struct region_entry entries[8];
	int i, nr, nr_slots, nr_lists;
	struct timespec start;
	pthread_t thread;
	bool good;

	create_guest(guest_code, NR_VCPUS, true, true);
	/* The vCPUs shall take all the faults. */
	populater.vcpu = NULL;
	has_forker = churn->forks;
	may_be_denied = churn->may_be_denied;
	virt_map(vm, WINDOW_GPA, WINDOW_GPA, NR_PAGES);
	nr_slots = random_slots(entries);
	vm_set_region_entries(vm, nr_slots, entries);

	stop_churn = false;
	run_vcpus();
	kvm_pthread_create(&thread, NULL, churn_thread, NULL);
	good = wait_for_passes();

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (nr_lists = 0; all_run() &&
	     timespec_to_ns(timespec_elapsed(start)) / 1000000 < ms; nr_lists++) {
		for (i = 0; i < nr_slots; i++)
			entries[i] = region_delete(10 + i);
		nr = nr_slots;
		nr_slots = random_slots(entries + nr);
		vm_set_region_entries(vm, nr + nr_slots, entries);
	}
	good &= wait_for_passes();

	WRITE_ONCE(stop_churn, true);
	kvm_pthread_join(thread, NULL);
	if (stop_guest())
		good = false;
	ksft_print_msg("%d lists, %lu changes, %lu and %lu passes\n", nr_lists,
		       nr_changes, (*guest_ptr(vm, guest_passes))[0],
		       (*guest_ptr(vm, guest_passes))[1]);
	return good;
}

static void test_churn(int ms)
{
	bool good;

	create_memory();
	if (churn->begin && !churn->begin()) {
		ksft_test_result_skip("%s: the host cannot\n", churn->name);
		return;
	}
	good = reshape_beside_churn(ms);
	/* Nothing waits for the handler any more. */
	if (churn->end)
		churn->end();
	good = good && check_memory();
	ksft_test_result(good, "%s\n", churn->name);
	kvm_vm_free(vm);
	munmap(mem, NR_PAGES * PAGE_SIZE);
	if (memfd >= 0)
		close(memfd);
}

int main(int argc, char *argv[])
{
	struct sigaction sa = { .sa_handler = sig_ipi };
	int ms = 300;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));

	if (argc > 1)
		ms = atoi_positive("Milliseconds", argv[1]);
	sigaction(SIG_IPI, &sa, NULL);
	patience = 60;

	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(churns));
	churn_rng = new_kvm_random_state(kvm_random_seed);
	for (churn = churns; churn < churns + ARRAY_SIZE(churns); churn++) {
		if (argc > 2 && !strstr(churn->name, argv[2]))
			ksft_test_result_skip("%s: not asked for\n", churn->name);
		else
			test_churn(ms);
	}
	ksft_finished();
}
