// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random calls of KVM_SET_USER_MEMORY_REGION and KVM_SET_USER_MEMORY_REGION2, with
 * valid and invalid values of every argument.  Prints the result of each call, and
 * regularly which slots exist.  The calls are the same in every run, so two kernels
 * that behave the same print the same.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

#define NR_CALLS	10000
#define NR_IDS		6
/* Room for the slots, in guest memory and in the host's. */
#define WINDOW_PAGES	24
#define MEMFD_PAGES	8
#define MAX_SLOT_PAGES	4096
#define HVA		((void *)0x700000000000ul)

enum {
	MEMFD,
	/* Userspace may map it, if KVM supports that. */
	MEMFD_MMAP,
	/* Belongs to another VM. */
	MEMFD_OTHER,
	NOT_MEMFD,
	NO_FD,
	NR_FDS,
};

static struct kvm_random_state rng;
static struct kvm_vm *vm;
static int fds[NR_FDS];
static char stdout_buffer[1 << 16];

static u64 random_u64(u64 min, u64 max)
{
	return kvm_random_u64_in_range(&rng, min, max);
}

static bool one_in(int n)
{
	return !random_u64(0, n - 1);
}

#define pick(...)							\
({									\
	const u64 __of[] = { __VA_ARGS__ };				\
									\
	__of[random_u64(0, ARRAY_SIZE(__of) - 1)];			\
})

static u64 pages(u64 min, u64 max)
{
	return random_u64(min, max) * PAGE_SIZE;
}

static u32 random_slot(void)
{
	u32 id = random_u64(0, NR_IDS - 1);

	if (one_in(20))
		id = pick(32762, 32763, 32764, 32766, 32767, 32768, 65535);
	if (one_in(4))
		id |= BIT(16);
	if (one_in(50))
		id |= BIT(random_u64(17, 31));
	return id;
}

static u32 random_flags(bool with_memfd)
{
	u32 flags = pick(0, 0, 0, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY,
			 KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY);

	if (with_memfd && one_in(3))
		flags = KVM_MEM_GUEST_MEMFD;
	if (one_in(20))
		flags ^= BIT(random_u64(0, 31));
	return flags;
}

static u64 random_size(void)
{
	if (one_in(3))
		return 0;
	if (one_in(15))
		return pick(1, PAGE_SIZE - 1, PAGE_SIZE + 1, 1ul << 43,
			    (1ul << 43) + PAGE_SIZE, 1ul << 63, -PAGE_SIZE, ~0ul,
			    MAX_SLOT_PAGES * PAGE_SIZE);
	return pages(1, 4);
}

static u64 random_gpa(void)
{
	u64 top = (vm->max_gfn + 1) << vm->page_shift;

	if (one_in(15))
		return pick(1, PAGE_SIZE / 2, ~0ul, -PAGE_SIZE, 1ul << 63,
			    top, top - PAGE_SIZE, top - 2 * PAGE_SIZE, 1ul << 52,
			    (1ul << 52) - PAGE_SIZE, 1ul << 48);
	return pages(0, WINDOW_PAGES - 1);
}

static u64 random_hva(void)
{
	if (one_in(15))
		return pick(0, 1, PAGE_SIZE, (u64)HVA + 1, 1ul << 46, 1ul << 47,
			    (1ul << 47) - PAGE_SIZE, (1ul << 47) - 2 * PAGE_SIZE,
			    1ul << 62, 1ul << 63, -PAGE_SIZE, ~0ul);
	return (u64)HVA + pages(0, 3);
}

static u64 random_offset(void)
{
	if (one_in(6))
		return pick(1, PAGE_SIZE - 1, 1ul << 62, 1ul << 63, -PAGE_SIZE,
			    -4 * PAGE_SIZE, ~0ul);
	return pages(0, MEMFD_PAGES);
}

static void print_result(u64 nr, const char *what, int r)
{
	ksft_print_msg("%lu: %s: %s\n", nr, what, r ? strerrorname_np(errno) : "0");
}

static void random_call(u64 nr)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = random_slot(),
		.guest_phys_addr = random_gpa(),
		.memory_size = random_size(),
		.userspace_addr = random_hva(),
		.guest_memfd_offset = random_offset(),
		/* KVM ignores the padding. */
		.pad1 = random_u64(0, 1),
		.pad2[13] = random_u64(0, 1),
	};
	bool region2 = one_in(2);
	int fd = random_u64(0, NR_FDS - 1);
	char what[160];

	region.flags = random_flags(region2);
	region.guest_memfd = fds[fd];
	snprintf(what, sizeof(what),
		 "%s slot 0x%x flags 0x%x gpa 0x%llx size 0x%llx hva 0x%llx fd %d+0x%llx",
		 region2 ? "REGION2" : "REGION", region.slot, region.flags,
		 region.guest_phys_addr, region.memory_size,
		 region.userspace_addr, fd, region.guest_memfd_offset);
	/* Both structs begin with the same members. */
	print_result(nr, what,
		     ioctl(vm->fd, region2 ? KVM_SET_USER_MEMORY_REGION2 :
					     KVM_SET_USER_MEMORY_REGION, &region));
}

/* Tells which slots exist, as only these can be deleted, and which have a log. */
static void delete_all(void)
{
	unsigned long bitmap[MAX_SLOT_PAGES / BITS_PER_LONG];
	struct kvm_userspace_memory_region region = {};
	struct kvm_dirty_log log = { .dirty_bitmap = bitmap };
	char what[80];
	u32 slot;
	int as;

	for (as = 0; as < 2; as++) {
		for (slot = as << 16; slot <= (as << 16 | 32767); slot++) {
			if ((u16)slot == NR_IDS)
				slot += 32760 - NR_IDS;
			log.slot = slot;
			snprintf(what, sizeof(what), "log of slot 0x%x", slot);
			print_result(0, what,
				     __vm_ioctl(vm, KVM_GET_DIRTY_LOG, &log));
			region.slot = slot;
			snprintf(what, sizeof(what), "deletion of slot 0x%x", slot);
			print_result(0, what,
				     __vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION,
						&region));
		}
	}
}

static void test(unsigned long type)
{
	struct kvm_vm *other;
	u64 memfd_flags, i;

	rng = new_kvm_random_state(0x6b766d00 + type);
	vm = vm_create_barebones_type(type);
	other = vm_create_barebones_type(type);
	memfd_flags = vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) &
		      (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);

	for (i = 0; i < NR_FDS; i++)
		fds[i] = -1;
	fds[NOT_MEMFD] = open("/dev/null", O_RDWR);
	if (vm_check_cap(vm, KVM_CAP_GUEST_MEMFD)) {
		fds[MEMFD] = vm_create_guest_memfd(vm, MEMFD_PAGES * PAGE_SIZE, 0);
		fds[MEMFD_MMAP] = vm_create_guest_memfd(vm, MEMFD_PAGES * PAGE_SIZE,
							memfd_flags);
		fds[MEMFD_OTHER] = vm_create_guest_memfd(other, MEMFD_PAGES * PAGE_SIZE, 0);
	}

	for (i = 0; i < NR_CALLS; i++) {
		random_call(i);
		if (i % 500 == 499)
			delete_all();
	}

	for (i = 0; i < NR_FDS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	kvm_vm_free(other);
	kvm_vm_free(vm);
	ksft_test_result_pass("VM of type %lu\n", type);
}

int main(void)
{
	unsigned long types = kvm_check_cap(KVM_CAP_VM_TYPES);

	TEST_ASSERT(mmap(HVA, 8 * PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			 -1, 0) == HVA, "mmap() failed, errno %d", errno);

	ksft_print_header();
	/* Writing each of so many lines by itself takes longer than the calls. */
	setvbuf(stdout, stdout_buffer, _IOFBF, sizeof(stdout_buffer));
	ksft_set_plan(types & BIT(KVM_X86_SW_PROTECTED_VM) ? 2 : 1);
	test(KVM_X86_DEFAULT_VM);
	if (types & BIT(KVM_X86_SW_PROTECTED_VM))
		test(KVM_X86_SW_PROTECTED_VM);
	ksft_finished();
}
