// SPDX-License-Identifier: GPL-2.0-only
/*
 * An access that KVM makes for a vCPU belongs as a whole to the memslots before a
 * list or to those after it.
 *
 * KVM walks the guest's page tables, looks up the memslot of the resulting frame, and
 * reads or writes the memory behind it, for each page of the access.  Each of these
 * steps can wait for memory, and a list can replace the memslots meanwhile.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attr_util.h"
#include "list_access.h"

#define NO_MSR		0x474f4f00

#define FEP_PARAM	"/sys/module/kvm/parameters/force_emulation_prefix"

enum access {
	INS,
	OUTS,
	FETCH,
	CMPXCHG,
};

static const char * const access_names[] = {
	"ins", "outs", "fetch", "cmpxchg",
};

/* What the access waits for.  If it crosses pages, the first and last one differ. */
enum wait {
	/* The accessed or dirty bit in the page table of the last page. */
	WAIT_BITS,
	/* The page table of the last page. */
	WAIT_TABLE,
	/* The memory of the first page. */
	WAIT_DATA,
};

static const char * const wait_names[] = {
	"accessed and dirty bits", "a page table", "the first page",
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
};

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

/* At @code is an RDMSR with prefixes, whose length tells where it is from. */
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

/* The old value that CMPXCHG compares with. */
static void clear_data(void)
{
	enum world world;

	for (world = OLD; world <= NEW; world++)
		memset(data.mem[world], 0, data.pages * PAGE_SIZE);
}

/* The length of an instruction tells its world; it is wrong in all other places. */
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
	/* This instruction ends with the first page. */
	memcpy(page(&data, NEW, frame(NEW, 1)) - 2, bare, sizeof(bare));
}

static bool check_read(const struct test *test, u32 value)
{
	if (value == read_data(test->crosses, OLD) || value == read_data(test->crosses, NEW))
		return true;
	ksft_print_msg("0x%08x was read, and not 0x%08x or 0x%08x\n", value,
		       read_data(test->crosses, OLD), read_data(test->crosses, NEW));
	return false;
}

static bool check_fetched(const struct test *test)
{
	const int old = test->crosses ? 4 : 2, new = test->crosses ? 2 : 4;
	struct kvm_regs regs;
	long len;

	vcpu_regs_get(vcpu, &regs);
	len = regs.rip - access_gva(test->crosses);
	if (len == old || len == new)
		return true;
	ksft_print_msg("%ld bytes were fetched, and not %d or %d\n", len, old,
		       new);
	return false;
}

/* Runs the vCPU up to the access, which the next KVM_RUN makes. */
static void run_to_access(enum access access)
{
	switch (access) {
	case INS:
		run_to_ins();
		break;
	case FETCH:
		vcpu_run(vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_X86_RDMSR);
		/* KVM completes the instruction before it exits. */
		vcpu->run->immediate_exit = 1;
		break;
	case OUTS:
	case CMPXCHG:
		vcpu_run(vcpu);
		TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_SYNC);
		break;
	}
}

/* Clears a bit, so that KVM has to set it. */
static void prepare_bits(const struct test *test)
{
	const u64 accessed = PTE_ACCESSED_MASK(&vm->mmu);
	const u64 dirty = PTE_DIRTY_MASK(&vm->mmu);
	u64 *last = old_pte(test->crosses);

	*old_pte(0) |= accessed | dirty;
	*last &= ~(accessed | dirty);
	/* KVM reads its operand first. */
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

static bool check_access(const struct test *test)
{
	switch (test->access) {
	case INS:
		return exits_with(-EINTR, 0) && check_written(test->crosses);
	case OUTS:
		return exits_with(0, KVM_EXIT_IO) && vcpu->run->io.port == PORT &&
		       check_read(test, *(u32 *)io_data());
	case FETCH:
		return exits_with(-EINTR, 0) && check_fetched(test);
	case CMPXCHG:
		return exits_with(0, KVM_EXIT_IO) &&
		       get_ucall(vcpu, NULL) == UCALL_DONE && check_written(test->crosses);
	}
	return false;
}

static enum result try_access(const struct test *test)
{
	enum result result;

	create_guest(guest_code[test->access]);
	vcpu_args_set(vcpu, 1, access_gva(test->crosses));
	vm_enable_cap(vm, KVM_CAP_X86_USER_SPACE_MSR,
		      KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL);
	if (test->access == FETCH)
		fill_code(test->crosses);
	else if (test->access == CMPXCHG)
		clear_data();
	else
		fill_data();

	run_to_access(test->access);
	prepare_bits(test);
	prepare_wait(test);
	result = run_between_swaps();
	if (result == GOOD && !check_access(test))
		result = BAD;
	close_guest();
	return result;
}

static char fep_was[16];

static void restore_fep(void)
{
	write_attr(FEP_PARAM, fep_was);
}

/* Lets the guest force the emulation of an instruction. */
static void enable_fep(void)
{
	TEST_ASSERT(read_attr(FEP_PARAM, fep_was, sizeof(fep_was)),
		    "%s cannot be read", FEP_PARAM);
	atexit(restore_fep);
	write_attr(FEP_PARAM, "1");
}

/* Returns why this host cannot run the test, or NULL. */
static const char *lacks(const struct test *test)
{
	if (test->wait == WAIT_BITS && !uffd_can_protect())
		return "no write protection by userfaultfd";
	if (test->access == CMPXCHG && !kvm_is_forced_emulation_enabled())
		return "no forced emulation";
	return NULL;
}

static void run_test(const struct test *test)
{
	const char *why = lacks(test);
	enum result result = EARLY;
	char name[128];
	int i;

	snprintf(name, sizeof(name), "%s%s waits for %s",
		 access_names[test->access], test->crosses ? " of two pages" : "",
		 wait_names[test->wait]);

	for (i = 0; !why && result == EARLY && i < MAX_ATTEMPTS; i++)
		result = try_access(test);
	/* Some CPUs tell KVM all it needs to know about the instruction. */
	if (result == NO_WAIT && test->access == FETCH)
		why = "KVM fetches no instruction to skip it";

	report_result(name, result, why);
}

int main(int argc, char *argv[])
{
	int i;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY_REGION_LIST));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_USER_SPACE_MSR));

	enable_fep();
	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(tests));
	for (i = 0; i < ARRAY_SIZE(tests); i++)
		run_test(&tests[i]);
	ksft_finished();
}
