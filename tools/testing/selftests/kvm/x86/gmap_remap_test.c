// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): segments that are mapped to other memory, and
 * unmapped, by another thread while the vCPU runs.
 *
 *	gmap_remap_test [REMAPS]
 */
#include <pthread.h>
#include <stdlib.h>

#include "gmap_guest.h"
#include "kselftest.h"

#define DEFAULT_REMAPS	200
#define NR_SEGMENTS	4
/* Seconds after which a guest that makes no progress is stuck. */
#define PATIENCE	60

static u64 nr_remaps = DEFAULT_REMAPS;

/* Guest and host share these. */
static bool guest_stop;
static u64 guest_rounds;

struct runner {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	/* Of segments that were not mapped, and what to map there. */
	u64 nr_holes;
	u8 *mem;
	/* What the guest's function has returned. */
	u64 result;
};

/* Runs the guest until its function returns.  It may meet a hole in the window. */
static void *runner_thread(void *arg)
{
	struct runner *r = arg;
	struct kvm_run *run = r->vcpu->run;
	gpa_t gpa;

	for (;;) {
		vcpu_run(r->vcpu);
		if (is_guest_sync(r->vcpu))
			break;

		TEST_ASSERT_KVM_EXIT_REASON(r->vcpu, KVM_EXIT_S390_UCONTROL);
		gpa = run->s390_ucontrol.trans_exc_code & ~(SEGMENT - 1ul);
		TEST_ASSERT(r->mem, "Exit for 0x%lx, where memory is always mapped",
			    gpa);
		TEST_ASSERT(gpa >= DATA_GPA && gpa < DATA_GPA + NR_SEGMENTS * SEGMENT,
			    "Exit for 0x%lx", gpa);
		r->nr_holes++;
		gmap_map(r->vcpu, r->mem + (gpa - DATA_GPA), gpa, SEGMENT);
	}
	r->result = guest_rax(r->vcpu);
	return NULL;
}

static void runner_start(struct runner *r, void *fn, u64 a, u64 b)
{
	WRITE_ONCE(guest_stop, false);
	WRITE_ONCE(guest_rounds, 0);
	guest_set_call(r->vcpu, fn, a, b, 0);
	kvm_pthread_create(&r->thread, NULL, runner_thread, r);
}

static u64 runner_stop(struct runner *r)
{
	WRITE_ONCE(guest_stop, true);
	kvm_pthread_join(r->thread, NULL);
	return r->result;
}

/* Waits until the guest has begun another @nr rounds. */
static void await_rounds(u64 nr)
{
	u64 start = READ_ONCE(guest_rounds);
	int i;

	for (i = 0; READ_ONCE(guest_rounds) < start + nr; i++) {
		TEST_ASSERT(i < PATIENCE * 10000, "The guest does not get on");
		usleep(100);
	}
}

/*
 * Runs in the segment that it works on.  rax counts; the words at rdi must follow,
 * and so must the stack, which is there too.  Returns the count, or -1.
 */
#define WORK_SIZE	0x100

static __guest_asm void guest_work(void)
{
	asm("	mov	%rsp, %r8\n"
	    "	lea	0x8000(%rdi), %rsp\n"
	    "	xor	%eax, %eax\n"
	    "0:	inc	%rax\n"
	    "	mov	%rax, (%rdi)\n"
	    "	lock incq 0x1000(%rdi)\n"
	    "	push	%rax\n"
	    "	pop	%rbx\n"
	    "	cmp	%rbx, %rax\n"
	    "	jne	1f\n"
	    "	cmp	(%rdi), %rax\n"
	    "	jne	1f\n"
	    "	cmp	0x1000(%rdi), %rax\n"
	    "	jne	1f\n"
	    /* KVM fetches this one to find out how long it is, every now and then. */
	    "	test	$0xff, %al\n"
	    "	jnz	2f\n"
	    "	push	%rax\n"
	    "	xor	%eax, %eax\n"
	    "	cpuid\n"
	    "	pop	%rax\n"
	    "2:	movabs	$guest_rounds, %rsi\n"
	    "	mov	%rax, (%rsi)\n"
	    "	movabs	$guest_stop, %rsi\n"
	    "	cmpb	$0, (%rsi)\n"
	    "	je	0b\n"
	    "	jmp	3f\n"
	    "1:	mov	$-1, %rax\n"
	    "3:	mov	%r8, %rsp\n"
	    "	ret\n");
}

/*
 * Both mappings are of the same memory, at different user addresses, so that the
 * guest must not notice anything.
 */
static void test_alias(void)
{
	struct runner runner = {};
	u64 swaps, result, i;
	struct kvm_vm *vm;
	u8 *alias[2];
	int fd;

	vm = gmap_vm_with_guest(&runner.vcpu);
	fd = segments_memfd(1);
	for (i = 0; i < 2; i++)
		alias[i] = segments_alias(fd, 1);
	memcpy(alias[0] + 0x10000, guest_work, WORK_SIZE);
	gmap_map(runner.vcpu, alias[0], DATA_GPA, SEGMENT);

	runner_start(&runner, (void *)(DATA_GPA + 0x10000), DATA_GPA, 0);
	await_rounds(1);
	swaps = vm_get_stat(vm, memslot_swaps);
	for (i = 1; i <= nr_remaps; i++) {
		gmap_map(runner.vcpu, alias[i % 2], DATA_GPA, SEGMENT);
		if (!(i % 64))
			await_rounds(1);
	}
	await_rounds(2);
	result = runner_stop(&runner);

	TEST_ASSERT(result != -1, "The guest has lost a write, or seen a torn state");
	TEST_ASSERT_EQ(*(u64 *)alias[0], result);
	TEST_ASSERT_EQ(*(u64 *)(alias[1] + 0x1000), result);
	TEST_ASSERT(vm_get_stat(vm, memslot_swaps) - swaps >= nr_remaps,
		    "Only %lu swaps", vm_get_stat(vm, memslot_swaps) - swaps);
	kvm_vm_free(vm);
	close(fd);
	ksft_test_result_pass("alias: %lu remaps, %lu rounds\n", nr_remaps, result);
}

/* The words of a segment. */
enum {
	VERSION,
	STAMP,
	NR_WORDS,
};

/*
 * Reads the version of each segment, and leaves a stamp in each.  The version must
 * never go back: all segments are mapped at once.  Returns 0 or what it saw last.
 */
static u64 guest_versions(u64 base)
{
	u64 version, round, last = 0, stamp = 0;
	u64 *words;
	int i;

	for (round = 0; !READ_ONCE(guest_stop); round++) {
		/* Neighbours in another order each round. */
		for (i = 0; i < NR_SEGMENTS; i++) {
			words = (u64 *)(base + (i * 3 + round) % NR_SEGMENTS * SEGMENT);
			version = READ_ONCE(words[VERSION]);
			if (version < last)
				return version;
			last = version;
			WRITE_ONCE(words[STAMP], ++stamp);
		}
		WRITE_ONCE(guest_rounds, guest_rounds + 1);
	}
	return 0;
}

static u64 *words_of(u8 *mem, int segment)
{
	return (u64 *)(mem + segment * SEGMENT);
}

static void test_versions(void)
{
	struct runner runner = {};
	u64 stamps[NR_SEGMENTS];
	u64 version, result;
	u8 *mem[3], *old;
	struct kvm_vm *vm;
	int i;

	vm = gmap_vm_with_guest(&runner.vcpu);
	for (i = 0; i < 3; i++)
		mem[i] = segments_alloc(NR_SEGMENTS);
	gmap_map(runner.vcpu, mem[0], DATA_GPA, NR_SEGMENTS * SEGMENT);

	runner_start(&runner, guest_versions, DATA_GPA, 0);
	await_rounds(1);
	for (version = 1; version <= nr_remaps; version++) {
		for (i = 0; i < NR_SEGMENTS; i++)
			words_of(mem[version % 3], i)[VERSION] = version;
		gmap_map(runner.vcpu, mem[version % 3], DATA_GPA, NR_SEGMENTS * SEGMENT);

		/* No write lands in the old memory any more. */
		old = mem[(version - 1) % 3];
		for (i = 0; i < NR_SEGMENTS; i++)
			stamps[i] = READ_ONCE(words_of(old, i)[STAMP]);
		if (!(version % 16))
			await_rounds(1);
		for (i = 0; i < NR_SEGMENTS; i++)
			TEST_ASSERT(stamps[i] == READ_ONCE(words_of(old, i)[STAMP]),
				    "Version %lu: a write to memory that is gone",
				    version);
	}
	await_rounds(2);
	for (i = 0; i < NR_SEGMENTS; i++)
		TEST_ASSERT(words_of(mem[nr_remaps % 3], i)[STAMP],
			    "The guest has not got to segment %d", i);
	result = runner_stop(&runner);
	TEST_ASSERT(!result, "The version went back to %lu", result);
	kvm_vm_free(vm);
	ksft_test_result_pass("versions: %lu rounds\n", guest_rounds);
}

/* Adds to each segment in turn.  Returns how often it did. */
static u64 guest_count(u64 base)
{
	u64 nr = 0, *word;

	while (!READ_ONCE(guest_stop)) {
		word = (u64 *)(base + nr % NR_SEGMENTS * SEGMENT);
		WRITE_ONCE(*word, READ_ONCE(*word) + 1);
		nr++;
		WRITE_ONCE(guest_rounds, nr);
	}
	return nr;
}

/* The thread that runs the vCPU maps what another one unmaps. */
static void test_unmap(void)
{
	struct runner runner = {};
	u64 i, result, sum = 0;
	struct kvm_vm *vm;

	vm = gmap_vm_with_guest(&runner.vcpu);
	runner.mem = segments_alloc(NR_SEGMENTS);
	runner_start(&runner, guest_count, DATA_GPA, 0);
	for (i = 0; i < nr_remaps; i++) {
		gmap_unmap(runner.vcpu, DATA_GPA + i % NR_SEGMENTS * SEGMENT, SEGMENT);
		if (!(i % 16))
			await_rounds(1);
	}
	result = runner_stop(&runner);
	for (i = 0; i < NR_SEGMENTS; i++)
		sum += words_of(runner.mem, i)[0];
	TEST_ASSERT(sum == result, "%lu of %lu additions are there", sum, result);
	TEST_ASSERT(runner.nr_holes > NR_SEGMENTS, "Only %lu exits", runner.nr_holes);
	kvm_vm_free(vm);
	ksft_test_result_pass("unmap: %lu additions, %lu exits\n", result,
			      runner.nr_holes);
}

/* While the segments around it are mapped and unmapped, a segment stays as it is. */
static void test_neighbours(void)
{
	struct runner runner = {};
	u64 faults, i, result;
	struct kvm_vm *vm;
	u8 *mem;

	vm = gmap_vm_with_guest(&runner.vcpu);
	mem = segments_alloc(3 + NR_SEGMENTS);
	gmap_map(runner.vcpu, mem + SEGMENT, DATA_GPA, NR_SEGMENTS * SEGMENT);
	runner_start(&runner, guest_count, DATA_GPA, 0);
	await_rounds(2 * NR_SEGMENTS);
	faults = vcpu_get_stat(runner.vcpu, pf_taken);
	for (i = 0; i < nr_remaps / 4; i++) {
		/* Grow it at both ends, and shrink it again. */
		gmap_map(runner.vcpu, mem, DATA_GPA - SEGMENT, SEGMENT);
		gmap_map(runner.vcpu, mem + (1 + NR_SEGMENTS) * SEGMENT,
			 DATA_GPA + NR_SEGMENTS * SEGMENT, 2 * SEGMENT);
		gmap_unmap(runner.vcpu, DATA_GPA - SEGMENT, SEGMENT);
		gmap_unmap(runner.vcpu, DATA_GPA + NR_SEGMENTS * SEGMENT, 2 * SEGMENT);
		/* The same memory over all of it, and a part of it. */
		gmap_map(runner.vcpu, mem, DATA_GPA - SEGMENT,
			 (2 + NR_SEGMENTS) * SEGMENT);
		gmap_map(runner.vcpu, mem + 2 * SEGMENT, DATA_GPA + SEGMENT, SEGMENT);
		gmap_unmap(runner.vcpu, DATA_GPA - SEGMENT, SEGMENT);
		gmap_unmap(runner.vcpu, DATA_GPA + NR_SEGMENTS * SEGMENT, SEGMENT);
	}
	await_rounds(2 * NR_SEGMENTS);
	faults = vcpu_get_stat(runner.vcpu, pf_taken) - faults;
	result = runner_stop(&runner);
	TEST_ASSERT(!faults, "%lu faults on memory that stays", faults);
	kvm_vm_free(vm);
	ksft_test_result_pass("neighbours: %lu additions, no fault\n", result);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());
	if (argc > 1)
		nr_remaps = atoi_positive("Number of remaps", argv[1]);

	ksft_print_header();
	ksft_set_plan(4);
	test_alias();
	test_versions();
	test_unmap();
	test_neighbours();
	ksft_finished();
}
