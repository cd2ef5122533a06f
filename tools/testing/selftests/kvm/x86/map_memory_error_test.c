// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MAP_MEMORY: memory that it cannot populate.  It fails with the page that is
 * first in its way, and populates the pages before that.
 */
#include <signal.h>

#include "apic.h"
#include "map_memory_fixture.h"

/* Added to a slot id: the address space of System Management Mode. */
#define SMM		BIT(16)

TEST_F(map, hole)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	u8 *mem = new_pattern(32, 1), *source = new_pattern(32, 100);
	u64 flags;

	populate_fails(vcpu, 0, 32, READ, NULL, ENOENT, 0);
	set_slot(vm, SLOT, 0, 0, 12, mem);
	set_slot(vm, OTHER_SLOT, 0, 20, 12, hva(mem, 20));

	for (flags = 0; flags <= (WRITE | EXEC | USER); flags++) {
		populate_fails(vcpu, 0, 32, flags, NULL, ENOENT, 12);
		populate_fails(vcpu, 12, 20, flags, NULL, ENOENT, 0);
		populate_fails(vcpu, 19, 2, flags, NULL, ENOENT, 0);
		populate(vcpu, 20, 12, flags, NULL);
	}
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 20, 12), 0);

	fill(mem, 32, 1);
	populate_fails(vcpu, 4, 28, 0, source, ENOENT, 8);
	check_pattern(mem, 4, 1);
	check_pattern(hva(mem, 4), 8, 100);
	check_pattern(hva(mem, 12), 20, 13);
	populate(vcpu, 20, 12, WRITE, hva(source, 16));
	check_pattern(hva(mem, 20), 12, 116);

	/* There is no hole between slots that adjoin. */
	delete_slot(vm, OTHER_SLOT);
	set_slot(vm, OTHER_SLOT, 0, 12, 20, hva(mem, 12));
	populate_guests_own(vcpu);
	populate(vcpu, 0, 32, WRITE, source);
	guest_sees(vcpu, 0, 32, 100);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 32), 0);

	/* A hole that has been filled can be populated. */
	populate_fails(vcpu, 32, 1, READ, NULL, ENOENT, 0);
	set_slot(vm, SLOT + 2, 0, 32, 1, new_mem(1));
	populate(vcpu, 32, 1, WRITE, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 32, 1), 0);
}

/* Without any memslot, KVM has nothing to make page tables for. */
TEST(no_memslot)
{
	u8 *source = new_pattern(16, 100);
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 flags;

	vm = vm_create_barebones();
	vcpu = __vm_vcpu_add(vm, 0);
	for (flags = 0; flags <= (WRITE | EXEC | USER); flags++) {
		populate_fails(vcpu, 0, 16, flags, NULL, ENOENT, 0);
		populate_fails(vcpu, 0, 16, flags, source, ENOENT, 0);
		populate_gpa(vcpu, 0, 1, flags, NULL, ENOENT, 0);
	}
	kvm_vm_free(vm);
}

TEST_F(map, read_only_slot)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	u8 *mem = new_pattern(16, 1), *source = new_pattern(32, 100);

	set_slot(vm, SLOT, KVM_MEM_READONLY, 0, 16, mem);
	populate(vcpu, 0, 16, READ, NULL);
	populate(vcpu, 0, 16, EXEC | USER, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 16), 0);
	populate_fails(vcpu, 0, 16, WRITE, NULL, ENOENT, 0);
	populate_fails(vcpu, 0, 16, WRITE | EXEC, NULL, ENOENT, 0);
	populate_fails(vcpu, 0, 16, READ, source, ENOENT, 0);
	populate_fails(vcpu, 0, 16, WRITE, source, ENOENT, 0);
	check_pattern(mem, 16, 1);
	guest_sees(vcpu, 0, 16, 1);

	/* Beside a slot that is not read-only. */
	set_slot(vm, OTHER_SLOT, 0, 16, 16, new_mem(16));
	populate_guests_own(vcpu);
	populate(vcpu, 0, 32, READ, NULL);
	populate_fails(vcpu, 12, 20, WRITE, NULL, ENOENT, 0);
	populate(vcpu, 16, 16, WRITE, source);
	guest_sees(vcpu, 16, 16, 100);
}

TEST_F(map, host_mappings)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	u8 *mem = new_pattern(16, 1), *source = new_pattern(16, 100);
	void *sources[] = { NULL, source };
	int i;

	set_slot(vm, SLOT, 0, 0, 16, mem);

	mprotect(hva(mem, 5), PAGE_SIZE, PROT_NONE);
	for (i = 0; i < 2; i++) {
		populate_fails(vcpu, 0, 16, READ, sources[i], EFAULT, 5);
		populate_fails(vcpu, 0, 16, WRITE, sources[i], EFAULT, 5);
		populate_fails(vcpu, 5, 1, EXEC, sources[i], EFAULT, 0);
	}

	mprotect(hva(mem, 5), PAGE_SIZE, PROT_READ);
	populate(vcpu, 0, 16, READ, NULL);
	populate(vcpu, 0, 16, EXEC, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 16), 0);
	populate_fails(vcpu, 0, 16, WRITE, NULL, EFAULT, 5);
	populate_fails(vcpu, 0, 16, READ, source, EFAULT, 5);
	populate_fails(vcpu, 0, 16, WRITE, source, EFAULT, 5);
	check_pattern(hva(mem, 5), 1, 6);

	munmap(hva(mem, 5), PAGE_SIZE);
	for (i = 0; i < 2; i++) {
		populate_fails(vcpu, 0, 16, READ, sources[i], EFAULT, 5);
		populate_fails(vcpu, 0, 16, WRITE, sources[i], EFAULT, 5);
	}
	/* Retrying fails the same way. */
	populate_fails(vcpu, 5, 11, READ, NULL, EFAULT, 0);
	populate(vcpu, 6, 10, WRITE, source);
	check_pattern(hva(mem, 6), 10, 100);

	/* The host maps memory there again. */
	mmap_at(hva(mem, 5), 1, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1);
	populate(vcpu, 0, 16, WRITE, source);
	guest_sees(vcpu, 0, 16, 100);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 16), 0);
}

TEST_F(map, end_of_file)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	int i, fd = kvm_memfd_alloc(4 * PAGE_SIZE, false);
	u8 *mem, *source = new_pattern(8, 100);

	for (i = 0; i < 2; i++) {
		mem = mmap_at(reserve(8), 8, PROT_READ | PROT_WRITE,
			      i ? MAP_PRIVATE : MAP_SHARED, fd);
		set_slot(vm, SLOT + i, 0, 8 * i, 8, mem);
		populate_fails(vcpu, 8 * i, 8, READ, NULL, EFAULT, 4);
		populate_fails(vcpu, 8 * i, 8, WRITE, NULL, EFAULT, 4);
		populate_fails(vcpu, 8 * i, 8, READ, source, EFAULT, 4);
		TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 8 * i, 4), 0);
		fill(mem, 4, 1);
	}

	/* A source that ends with its file. */
	set_slot(vm, SLOT + 2, 0, 16, 8, source);
	populate_fails(vcpu, 16, 8, WRITE, mem, EFAULT, 4);
	check_pattern(source, 4, 1);
	check_pattern(hva(source, 4), 4, 104);

	TEST_ASSERT(!ftruncate(fd, 8 * PAGE_SIZE), "errno %d", errno);
	populate(vcpu, 0, 16, WRITE, NULL);
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_WRITE, 0, 16), 0);
	TEST_ASSERT(!ftruncate(fd, 2 * PAGE_SIZE), "errno %d", errno);
	populate_fails(vcpu, 0, 8, READ, NULL, EFAULT, 2);
}

static int nr_sigbus;

static void on_sigbus(int sig)
{
	nr_sigbus++;
}

TEST_F(map, hwpoison)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	struct sigaction sa = { .sa_handler = on_sigbus };
	u8 *mem = new_pattern(16, 1), *source = new_pattern(16, 100);
	u64 flags;

	sigaction(SIGBUS, &sa, NULL);
	/* One page that has been populated, and one that has not. */
	set_slot(vm, SLOT, 0, 0, 16, mem);
	populate(vcpu, 0, 8, WRITE, NULL);
	if (madvise(hva(mem, 5), PAGE_SIZE, MADV_HWPOISON) ||
	    madvise(hva(mem, 10), PAGE_SIZE, MADV_HWPOISON))
		SKIP(return, "Cannot poison memory");
	/* madvise() itself raises some. */
	nr_sigbus = 0;

	for (flags = 0; flags <= (WRITE | EXEC | USER); flags++) {
		populate_fails(vcpu, 0, 16, flags, NULL, EHWPOISON, 5);
		populate_fails(vcpu, 0, 16, flags, source, EHWPOISON, 5);
		populate_fails(vcpu, 6, 10, flags, NULL, EHWPOISON, 4);
		populate_fails(vcpu, 6, 10, flags, source, EHWPOISON, 4);
		populate_fails(vcpu, 10, 1, flags, NULL, EHWPOISON, 0);
	}
	TEST_ASSERT_EQ(guest_faults(vcpu, GUEST_READ, 0, 5), 0);
	TEST_ASSERT_EQ(nr_sigbus, 0);

	/* KVM cannot read a source there. */
	set_slot(vm, OTHER_SLOT, 0, 16, 16, source);
	populate_guests_own(vcpu);
	populate_fails(vcpu, 16, 16, WRITE, mem, EFAULT, 5);
	check_pattern(hva(source, 5), 11, 105);
	TEST_ASSERT_EQ(nr_sigbus, 0);
}

/* The registers of the I/O APIC, which no test accesses. */
TEST_F(map, device_memory)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	int fd = open("/dev/mem", O_RDWR);
	void *mem = MAP_FAILED;

	if (fd >= 0)
		mem = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			   fd, 0xfec00000);
	if (mem == MAP_FAILED)
		SKIP(return, "No device memory");

	set_slot(vm, SLOT, 0, 0, 1, mem);
	populate(vcpu, 0, 1, READ, NULL);
	populate(vcpu, 0, 1, WRITE, NULL);
	populate_fails(vcpu, 0, 1, WRITE, new_mem(1), EFAULT, 0);

	/* Device memory that the host itself cannot write to. */
	TEST_ASSERT(!mprotect(mem, PAGE_SIZE, PROT_READ), "errno %d", errno);
	populate(vcpu, 0, 1, READ, NULL);
	populate_fails(vcpu, 0, 1, WRITE, NULL, EFAULT, 0);
}

/* The page of the local APIC, for which KVM may have a slot of its own. */
TEST_F(map, internal_slot)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_memory_mapping m =
		memory_mapping(APIC_DEFAULT_GPA, 1, WRITE, NULL);
	int err;

	err = map_memory_once(vcpu, &m);
	TEST_ASSERT(!err || err == ENOENT, "errno %d", err);
	populate_gpa(vcpu, APIC_DEFAULT_GPA, 1, WRITE, new_mem(1), ENOENT, 0);
}

/* The vCPU's address space decides which slots there are. */
TEST_F(map, smm)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_vm *vm = self->vm;
	struct kvm_vcpu_events events;
	u8 *mem = new_mem(2);

	if (!kvm_has_cap(KVM_CAP_X86_SMM))
		SKIP(return, "No SMM");

	set_slot(vm, SLOT, 0, 0, 1, mem);
	set_slot(vm, SMM | SLOT, 0, 1, 1, hva(mem, 1));
	populate_fails(vcpu, 0, 2, WRITE, NULL, ENOENT, 1);

	vcpu_events_get(vcpu, &events);
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = 1;
	vcpu_events_set(vcpu, &events);
	populate_fails(vcpu, 0, 2, WRITE, NULL, ENOENT, 0);
	populate(vcpu, 1, 1, WRITE, new_pattern(1, 7));
	check_pattern(hva(mem, 1), 1, 7);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MAP_MEMORY));

	return test_harness_run(argc, argv);
}
