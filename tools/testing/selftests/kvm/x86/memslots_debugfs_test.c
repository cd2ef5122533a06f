// SPDX-License-Identifier: GPL-2.0-only
/*
 * The file "memslots" in the debugfs directory of a VM shows the slots that there
 * are, also while an update is under way.
 */
#include <pthread.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/sizes.h>

#include "held_update.h"
#include "kvm_test_harness.h"
#include "memslots_file.h"
#include "region_list_fixture.h"
#include "uffd_page.h"

#define PAGES(n)	((n) * PAGE_SIZE)

/* The pages that the vCPUs of the test of an update's window wait for. */
#define WAIT_SLOT	20
#define WAIT_GPA	0x100000000ul
#define WAIT_GVA(id)	(WAIT_GPA + (id) * SZ_2M)

static const struct memslot_row *find_row(const struct memslots_file *file, u32 slot)
{
	const struct memslot_row *row, *found = NULL;

	for (row = file->rows; row < file->rows + file->nr_rows; row++) {
		if (row->as != slot >> 16 || row->id != (u16)slot)
			continue;
		TEST_ASSERT(!found, "Slot 0x%x is there twice", slot);
		found = row;
	}
	return found;
}

/* Checks the row of a slot that is in @sets and has the @extra flags. */
static void check_row(const struct memslots_file *file, struct region_entry entry,
		      const char *sets, u32 extra)
{
	const struct memslot_row *row = find_row(file, entry.slot);
	u32 flags = entry.flags | extra;

	TEST_ASSERT(row, "Slot 0x%x is missing", entry.slot);
	TEST_ASSERT(!strcmp(row->sets, sets), "Slot 0x%x is in '%s', not '%s'",
		    entry.slot, row->sets, sets);
	TEST_ASSERT_EQ(row->gfn, entry.guest_phys_addr / PAGE_SIZE);
	TEST_ASSERT_EQ(row->pages, entry.memory_size / PAGE_SIZE);
	TEST_ASSERT_EQ(row->hva, entry.userspace_addr);
	TEST_ASSERT_EQ(row->flags, flags);
	TEST_ASSERT_EQ(!!strstr(row->words, "log"),
		       !!(flags & KVM_MEM_LOG_DIRTY_PAGES));
	TEST_ASSERT_EQ(!!strstr(row->words, "bitmap"),
		       !!(flags & KVM_MEM_LOG_DIRTY_PAGES));
	TEST_ASSERT_EQ(!!strstr(row->words, "readonly"),
		       !!(flags & KVM_MEM_READONLY));
	TEST_ASSERT_EQ(!!strstr(row->words, "guest_memfd"),
		       !!(flags & KVM_MEM_GUEST_MEMFD));
	TEST_ASSERT_EQ(!!strstr(row->words, "INVALID"),
		       !!(flags & MEMSLOT_INVALID));
}

static void check_no_row(const struct memslots_file *file, u32 slot)
{
	TEST_ASSERT(!find_row(file, slot), "Slot 0x%x is there", slot);
}

TEST_F(list, shows_slots)
{
	struct list_test *test = &self->test;
	const struct region_entry slots[] = {
		set(10, 0, 8, 4, 8),
		set(11, KVM_MEM_LOG_DIRTY_PAGES, 0, 8, 0),
		set(12, KVM_MEM_READONLY, 20, 1, 3),
		set(13, KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES, 13, 5, 40),
		set(SMM | 10, 0, 0, 2, 10),
		set(SMM | 14, KVM_MEM_LOG_DIRTY_PAGES, 30, 2, 0),
	};
	const int nr = ARRAY_SIZE(slots) - (test->nr_as > 1 ? 0 : 2);
	struct memslots_file file;
	int i;

	list_swaps(test, ANY_SWAPS, slots[0], slots[1], slots[2], slots[3]);
	if (test->nr_as > 1)
		list_swaps(test, ANY_SWAPS, slots[4], slots[5]);

	read_memslots(test->vm, &file);
	TEST_ASSERT(file.has_inactive && !file.update_waits, "No update waits");
	for (i = 0; i < nr; i++)
		check_row(&file, slots[i], "both", 0);
	/* The guest's own memory is there in each address space. */
	TEST_ASSERT_EQ(memslots_nr_user_rows(&file), nr + test->nr_as);
	for (i = 1; i < file.nr_rows; i++) {
		const struct memslot_row *row = &file.rows[i];

		TEST_ASSERT(row[-1].as < row->as ||
			    (row[-1].as == row->as &&
			     row[-1].gfn + row[-1].pages <= row->gfn),
			    "Row %d is out of order", i);
	}
	free_memslots(&file);

	/* All of it changes, and one slot goes. */
	list_swaps(test, ANY_SWAPS, region_delete(10), set(11, 0, 0, 8, 0),
		   set(12, KVM_MEM_READONLY, 21, 1, 3));
	read_memslots(test->vm, &file);
	check_no_row(&file, 10);
	check_row(&file, set(11, 0, 0, 8, 0), "both", 0);
	check_row(&file, set(12, KVM_MEM_READONLY, 21, 1, 3),
		  "both", 0);
	free_memslots(&file);
}

TEST(guest_memfd)
{
	struct region_entry entry;
	struct memslots_file file;
	struct kvm_vm *vm;
	int fd;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "No private memory");

	vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	create_backing();
	fd = vm_create_guest_memfd(vm, PAGES(4), 0);
	entry = set(10, KVM_MEM_GUEST_MEMFD, 0, 4, 0);
	vm_set_user_memory_region2(vm, entry.slot, entry.flags,
				   entry.guest_phys_addr, entry.memory_size,
				   (void *)entry.userspace_addr, fd, 0);
	read_memslots(vm, &file);
	check_row(&file, entry, "both", 0);
	TEST_ASSERT_EQ(file.nr_rows, 1);
	free_memslots(&file);
	close(fd);
	kvm_vm_free(vm);
	free_backing();
}

/* A file shows the slots as they were when it was opened, wherever it is read. */
TEST_F(list, is_a_snapshot)
{
	struct list_test *test = &self->test;
	const struct region_entry before = set(10, 0, 0, 4, 0);
	struct memslots_file file;
	char part[64], *text;
	int fd, i;

	list_ok(test, before);
	fd = open_memslots_file(test->vm);
	TEST_ASSERT(read(fd, part, 10) == 10, "Cannot read, errno %d", errno);
	list_ok(test, region_delete(10), set(11, 0, 8, 4, 8));
	lseek(fd, 0, SEEK_SET);
	text = read_text(fd, 7);
	for (i = strlen(text) - sizeof(part); i >= 0; i -= 13) {
		TEST_ASSERT(pread(fd, part, sizeof(part), i) == sizeof(part) &&
			    !memcmp(part, text + i, sizeof(part)),
			    "Differs at offset %d", i);
	}
	parse_memslots(text, &file);
	check_row(&file, before, "both", 0);
	check_no_row(&file, 11);
	free_memslots(&file);
	close(fd);

	read_memslots(test->vm, &file);
	check_no_row(&file, 10);
	free_memslots(&file);
}

static void guest_wait(gva_t gva)
{
	/* If it could be interrupted, it would wait as if halted (async #PF). */
	cli();
	WRITE_ONCE(*(u64 *)gva, 1);
	GUEST_DONE();
}

static void *vcpu_thread(void *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_DONE);
	return NULL;
}

/*
 * vCPUs that wait for memory hold an update up, first between its two swaps and
 * then after the second one.
 */
TEST(update_in_its_window)
{
	const u32 log = KVM_MEM_LOG_DIRTY_PAGES;
	struct region_entry goes, shrinks, stays, shrunk, new;
	static u8 zeros[PAGE_SIZE];
	struct kvm_vcpu *vcpus[2];
	struct held_update update;
	struct memslots_file file;
	pthread_t threads[2];
	struct kvm_vm *vm;
	int uffd, i;
	u8 *mem;

	vm = vm_create_with_vcpus(2, guest_wait, vcpus);
	create_backing();
	mem = kvm_mmap(PAGES(2), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(vm, WAIT_SLOT, 0, WAIT_GPA, PAGES(2), mem);
	for (i = 0; i < 2; i++) {
		virt_map(vm, WAIT_GVA(i), WAIT_GPA + PAGES(i), 1);
		vcpu_args_set(vcpus[i], 1, WAIT_GVA(i));
	}
	uffd = uffd_open(mem, PAGES(2));

	goes = set(10, KVM_MEM_READONLY, 0, 4, 0);
	shrinks = set(11, log, 8, 8, 8);
	stays = set(12, 0, 20, 4, 20);
	shrunk = set(11, log, 8, 4, 8);
	new = set(13, 0, 0, 1, 30);
	vm_set_region_list(vm, goes, shrinks, stays);

	update = (struct held_update) { .vm = vm };
	held_update_add(&update, region_delete(goes.slot));
	held_update_add(&update, region_delete(shrinks.slot));
	held_update_add(&update, shrunk);
	held_update_add(&update, new);

	end_grace_periods(vm);
	kvm_pthread_create(&threads[0], NULL, vcpu_thread, vcpus[0]);
	uffd_await_fault(uffd);
	held_update_start(&update);
	TEST_ASSERT(held_update_await(&update, 0), "The update does not wait");

	read_memslots(vm, &file);
	TEST_ASSERT(!file.has_inactive && file.update_waits, "The update waits");
	check_row(&file, goes, "active", MEMSLOT_INVALID);
	check_row(&file, shrinks, "active", MEMSLOT_INVALID);
	check_row(&file, stays, "active", 0);
	check_no_row(&file, new.slot);
	free_memslots(&file);

	/* A vCPU that begins too early would hold up the first swap, too. */
	usleep(100000);
	kvm_pthread_create(&threads[1], NULL, vcpu_thread, vcpus[1]);
	uffd_await_fault(uffd);
	uffd_copy(uffd, mem, zeros);
	TEST_ASSERT(held_update_await(&update, 1), "The update does not wait");

	read_memslots(vm, &file);
	TEST_ASSERT(!file.has_inactive && file.update_waits, "The update waits");
	check_no_row(&file, goes.slot);
	check_row(&file, shrunk, "active", 0);
	check_row(&file, stays, "active", 0);
	check_row(&file, new, "active", 0);
	free_memslots(&file);

	uffd_copy(uffd, mem + PAGE_SIZE, zeros);
	kvm_pthread_join(update.thread, NULL);
	for (i = 0; i < 2; i++)
		kvm_pthread_join(threads[i], NULL);

	read_memslots(vm, &file);
	TEST_ASSERT(file.has_inactive && !file.update_waits, "The update is over");
	check_no_row(&file, goes.slot);
	check_row(&file, shrunk, "both", 0);
	check_row(&file, stays, "both", 0);
	check_row(&file, new, "both", 0);
	free_memslots(&file);

	close(uffd);
	kvm_vm_free(vm);
	kvm_munmap(mem, PAGES(2));
	free_backing();
}

/* Returns how many ns it takes to open and read the file with @nr slots. */
static u64 time_slots(u32 nr)
{
	struct kvm_vm *vm = vm_create_barebones();
	struct region_entry *entries;
	struct memslots_file file;
	struct timespec start;
	char *text;
	int i, fd;
	u64 ns;

	entries = calloc(nr, sizeof(*entries));
	TEST_ASSERT(entries, "Insufficient Memory");
	for (i = 0; i < nr; i++)
		entries[i] = region_set(nr - 1 - i, i % 2 ? 0 : KVM_MEM_READONLY,
					2 * i * PAGE_SIZE, PAGE_SIZE,
					backing_page(i % BACKING_PAGES));
	vm_set_region_entries(vm, nr, entries);

	clock_gettime(CLOCK_MONOTONIC, &start);
	fd = open_memslots_file(vm);
	TEST_ASSERT(fd >= 0, "Cannot open memslots, errno %d", errno);
	text = read_text(fd, SZ_1M);
	ns = timespec_to_ns(timespec_elapsed(start));
	close(fd);

	parse_memslots(text, &file);
	TEST_ASSERT_EQ(file.nr_rows, nr);
	TEST_ASSERT(file.has_inactive, "No update waits");
	for (i = 0; i < nr; i++) {
		struct memslots_file one = { .nr_rows = 1, .rows = &file.rows[i] };

		check_row(&one, entries[i], "both", 0);
	}
	free_memslots(&file);
	free(entries);
	kvm_vm_free(vm);
	return ns;
}

TEST_F_TIMEOUT(list, many_slots, 120)
{
	/* With KASAN, kmemleak and lockdep, all slots would take minutes. */
	const bool slow = !access("/sys/kernel/debug/kmemleak", F_OK);
	const u32 nr = slow ? 2048 : kvm_check_cap(KVM_CAP_NR_MEMSLOTS);
	u64 ns = time_slots(nr);

	TH_LOG("%u slots in %lu us", nr, ns / 1000);
	/* Time that is not linear would be minutes. */
	TEST_ASSERT(ns < 10ul * NSEC_PER_SEC, "Reading takes too long");
}

static void *update_thread(void *arg)
{
	const struct region_entry whole = set(10, 0, 0, 32, 0);
	struct kvm_vm *vm = arg;
	int i, cut;

	for (i = 0; i < 200; i++) {
		cut = 1 + i % 31;
		vm_set_region_list(vm, region_delete(10), set(10, 0, 0, cut, 0),
				   set(11, 0, cut, 32 - cut, cut));
		vm_set_region_list(vm, region_delete(10), region_delete(11),
				   whole);
	}
	return NULL;
}

/* Whatever is under way, a file shows all slots of one moment. */
TEST_F(list, beside_updates)
{
	struct list_test *test = &self->test;
	int i, nr_files = 0, nr_locked = 0;
	struct memslots_file file;
	pthread_t thread;
	u64 pages;

	vm_set_region_list(test->vm, set(10, 0, 0, 32, 0));
	kvm_pthread_create(&thread, NULL, update_thread, test->vm);
	do {
		read_memslots(test->vm, &file);
		for (i = pages = 0; i < file.nr_rows; i++) {
			struct memslot_row *row = &file.rows[i];

			TEST_ASSERT(!strcmp(row->sets, file.has_inactive ?
						       "both" : "active"),
				    "Slot %u is in '%s'", row->id, row->sets);
			if (row->id == 10 || row->id == 11)
				pages += row->pages;
		}
		TEST_ASSERT(pages == 32, "Two slots have %lu pages", pages);
		nr_files++;
		nr_locked += file.has_inactive;
		free_memslots(&file);
	} while (pthread_tryjoin_np(thread, NULL));
	TH_LOG("read %d times, %d of them with the inactive sets", nr_files,
	       nr_locked);
}

TEST(only_for_root)
{
	struct kvm_vm *vm = vm_create_barebones();
	struct stat st;
	int fd, status;
	pid_t pid;

	fd = open_memslots_file(vm);
	TEST_ASSERT(fd >= 0 && !fstat(fd, &st), "No file, errno %d", errno);
	TEST_ASSERT_EQ(st.st_mode & 0777, 0400);
	TEST_ASSERT_EQ(st.st_uid, 0);
	pid = fork();
	if (!pid) {
		char name[64];

		snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
		_exit(setuid(65534) || open(name, O_RDONLY) >= 0 || errno != EACCES);
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid && !status,
		    "Others can open it, status 0x%x", status);
	close(fd);
	kvm_vm_free(vm);
}

static bool stop_opening;

static void *open_thread(void *dir)
{
	char name[128], buf[4096];
	int fd;

	snprintf(name, sizeof(name), "/sys/kernel/debug/kvm/%s/memslots",
		 (char *)dir);
	while (!READ_ONCE(stop_opening)) {
		fd = open(name, O_RDONLY);
		if (fd < 0)
			continue;
		TEST_ASSERT(read(fd, buf, sizeof(buf)) > 0, "errno %d", errno);
		close(fd);
	}
	return NULL;
}

/* An open file keeps the VM.  The last one to close ends it, and its directory. */
TEST(keeps_the_vm)
{
	struct memslots_file file;
	pthread_t thread;
	struct kvm_vm *vm;
	char dir[64];
	int fd, i;

	create_backing();
	vm = vm_create_barebones();
	vm_set_region_entry(vm, set(10, 0, 0, 4, 0));
	fd = open_memslots_file(vm);
	snprintf(dir, sizeof(dir), "/sys/kernel/debug/kvm/%ld-%d",
		 syscall(__NR_gettid), vm->fd);
	kvm_vm_free(vm);
	TEST_ASSERT(!access(dir, F_OK), "%s is gone too early", dir);
	parse_memslots(read_text(fd, SZ_1M), &file);
	check_row(&file, set(10, 0, 0, 4, 0), "both", 0);
	free_memslots(&file);
	close(fd);
	TEST_ASSERT(access(dir, F_OK), "%s is still there", dir);

	/* Opening beside the VM's end. */
	kvm_pthread_create(&thread, NULL, open_thread, strrchr(dir, '/') + 1);
	for (i = 0; i < 50; i++) {
		vm = vm_create_barebones();
		if (i % 2)
			usleep(1000);
		kvm_vm_free(vm);
	}
	WRITE_ONCE(stop_opening, true);
	kvm_pthread_join(thread, NULL);
	free_backing();
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));
	TEST_REQUIRE(!access("/sys/kernel/debug/kvm", R_OK | X_OK));

	return test_harness_run(argc, argv);
}
