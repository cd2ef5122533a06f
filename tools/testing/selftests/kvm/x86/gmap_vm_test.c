// SPDX-License-Identifier: GPL-2.0-only
/*
 * VMs whose vCPUs have address spaces of their own (UCAS): how a VM becomes one, and
 * what such a VM does not have.
 */
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gmap_guest.h"
#include "kvm_test_harness.h"
#include "memory_region_list.h"
#include "memslots_file.h"

#define ENABLE	KVM_CAP_S390_UCONTROL

/* Checks that an ioctl of the VM or of a vCPU fails with EINVAL. */
#define EXPECT_EINVAL(call)						\
do {									\
	int __r = (call);						\
									\
	EXPECT_EQ(-1, __r);						\
	EXPECT_EQ(EINVAL, errno) TH_LOG("%s", #call);			\
} while (0)

FIXTURE(vm)
{
	struct kvm_vm *vm;
};

FIXTURE_SETUP(vm)
{
	self->vm = vm_create_barebones();
}

FIXTURE_TEARDOWN(vm)
{
	kvm_vm_free(self->vm);
}

TEST_F(vm, capability)
{
	EXPECT_GE(max_ucas_vcpus(), 256);
	EXPECT_EQ(max_ucas_vcpus(), vm_check_cap(self->vm, ENABLE));
	vm_enable_cap(self->vm, ENABLE, 0);
	EXPECT_EQ(max_ucas_vcpus(), vm_check_cap(self->vm, ENABLE));
	/* Those that userspace can give slots to. */
	EXPECT_LE(vm_check_cap(self->vm, KVM_CAP_MULTI_ADDRESS_SPACE), 1);
}

TEST_F(vm, arguments)
{
	struct kvm_enable_cap cap;
	int i;

	for (i = 0; i < 32; i++) {
		cap = (struct kvm_enable_cap) { .cap = ENABLE, .flags = BIT(i) };
		EXPECT_EINVAL(__vm_ioctl(self->vm, KVM_ENABLE_CAP, &cap));
	}
	for (i = 0; i < ARRAY_SIZE(cap.args); i++) {
		cap = (struct kvm_enable_cap) { .cap = ENABLE };
		cap.args[i] = 1;
		EXPECT_EINVAL(__vm_ioctl(self->vm, KVM_ENABLE_CAP, &cap));
		cap.args[i] = BIT_ULL(63);
		EXPECT_EINVAL(__vm_ioctl(self->vm, KVM_ENABLE_CAP, &cap));
	}

	/* None of that has made it such a VM. */
	vm_set_user_memory_region(self->vm, 0, 0, 0, SEGMENT, segments_alloc(1));
}

TEST_F(vm, has_vcpu)
{
	struct kvm_vcpu *vcpu = __vm_vcpu_add(self->vm, 0);

	EXPECT_EINVAL(__vm_enable_cap(self->vm, ENABLE, 0));
	EXPECT_EQ(EINVAL, __gmap_map(vcpu, segments_alloc(1), 0, SEGMENT));
	vm_set_user_memory_region(self->vm, 0, 0, 0, SEGMENT, segments_alloc(1));
}

TEST_F(vm, has_memslot)
{
	const u32 slots[] = { 0, 1, 500, BIT(16) };
	int i, nr = kvm_has_cap(KVM_CAP_X86_SMM) ? 4 : 3;

	for (i = 0; i < nr; i++) {
		vm_set_user_memory_region(self->vm, slots[i], 0, 0, SEGMENT,
					  segments_alloc(1));
		EXPECT_EINVAL(__vm_enable_cap(self->vm, ENABLE, 0));
		vm_set_user_memory_region(self->vm, slots[i], 0, 0, 0, NULL);
	}
	/* It has none any more. */
	vm_enable_cap(self->vm, ENABLE, 0);
}

TEST_F(vm, has_irqchip)
{
	vm_create_irqchip(self->vm);
	EXPECT_EINVAL(__vm_enable_cap(self->vm, ENABLE, 0));
}

TEST_F(vm, has_split_irqchip)
{
	vm_enable_cap(self->vm, KVM_CAP_SPLIT_IRQCHIP, 24);
	EXPECT_EINVAL(__vm_enable_cap(self->vm, ENABLE, 0));
}

TEST_F(vm, has_other_type)
{
	struct kvm_vm *vm;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "No other type of VM");

	vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	EXPECT_EINVAL(__vm_enable_cap(vm, ENABLE, 0));
	EXPECT_EQ(0, vm_check_cap(vm, ENABLE));
	kvm_vm_free(vm);
}

/* The capability is the VM's. */
TEST_F(vm, vcpu_capability)
{
	struct kvm_enable_cap cap = { .cap = ENABLE };
	struct kvm_vcpu *vcpu;

	vm_enable_cap(self->vm, ENABLE, 0);
	vcpu = __vm_vcpu_add(self->vm, 0);
	EXPECT_EINVAL(__vcpu_ioctl(vcpu, KVM_ENABLE_CAP, &cap));
}

FIXTURE(ucas)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *mem;
};

FIXTURE_SETUP(ucas)
{
	self->vm = gmap_vm_with_guest(&self->vcpu);
	self->mem = segments_alloc(1);
	*(u64 *)self->mem = 0x1234;
	gmap_map(self->vcpu, self->mem, DATA_GPA, SEGMENT);
}

/* What the VM refuses has no effect on its vCPU. */
FIXTURE_TEARDOWN(ucas)
{
	EXPECT_EQ(0x1234, run_read(self->vcpu, DATA_GPA));
	run_read_hole(self->vcpu, DATA_GPA + SEGMENT);
	kvm_vm_free(self->vm);
}

TEST_F(ucas, memslots)
{
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = DATA_GPA + SEGMENT,
		.memory_size = SEGMENT,
		.userspace_addr = (uintptr_t)self->mem,
	};
	struct kvm_userspace_memory_region2 region2 = {
		.guest_phys_addr = DATA_GPA + SEGMENT,
		.memory_size = SEGMENT,
		.userspace_addr = (uintptr_t)self->mem,
	};
	struct region_entry entry = region_set(0, 0, DATA_GPA + SEGMENT, SEGMENT,
					       self->mem);
	u32 as;

	/* In no address space, least of all in a vCPU's. */
	for (as = 0; as < 5; as++) {
		region.slot = as << 16;
		region2.slot = region.slot;
		entry.slot = region.slot;
		EXPECT_EINVAL(__vm_ioctl(self->vm, KVM_SET_USER_MEMORY_REGION, &region));
		EXPECT_EINVAL(__vm_ioctl(self->vm, KVM_SET_USER_MEMORY_REGION2,
					 &region2));
		EXPECT_EINVAL(__vm_set_region_list(self->vm, 1, &entry));
		/* Deletions, and slots of the map itself. */
		EXPECT_EINVAL(__vm_set_user_memory_region(self->vm, as << 16, 0, 0, 0,
							  NULL));
		EXPECT_EINVAL(__vm_set_user_memory_region(self->vm, as << 16 | 1, 0, 0,
							  0, NULL));
		entry = region_delete(as << 16);
		EXPECT_EINVAL(__vm_set_region_list(self->vm, 1, &entry));
	}
}

TEST_F(ucas, dirty_log)
{
	struct kvm_dirty_log get = {};
	struct kvm_clear_dirty_log clear = { .num_pages = 64 };
	unsigned long bitmap[SEGMENT / PAGE_SIZE / 64];
	u32 as;

	for (as = 0; as < 5; as++) {
		get.slot = as << 16;
		get.dirty_bitmap = bitmap;
		EXPECT_EINVAL(__vm_ioctl(self->vm, KVM_GET_DIRTY_LOG, &get));
		clear.slot = as << 16;
		clear.dirty_bitmap = bitmap;
		EXPECT_EINVAL(__vm_ioctl(self->vm, KVM_CLEAR_DIRTY_LOG, &clear));
	}
	EXPECT_EINVAL(__vm_enable_cap(self->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
				      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE));
}

/* Before the VM has a vCPU, which forbids a dirty ring for any VM. */
TEST_F(vm, no_dirty_ring)
{
	vm_enable_cap(self->vm, ENABLE, 0);
	EXPECT_EINVAL(__vm_enable_cap(self->vm, KVM_CAP_DIRTY_LOG_RING, SZ_64K));
	EXPECT_EINVAL(__vm_enable_cap(self->vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, SZ_64K));
	EXPECT_EINVAL(__vm_ioctl(self->vm, KVM_RESET_DIRTY_RINGS, NULL));
}

/* Nor may a VM with a ring become such a VM. */
TEST_F(vm, has_dirty_ring)
{
	int size = vm_check_cap(self->vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL);

	if (!size)
		SKIP(return, "No dirty ring");
	vm_enable_cap(self->vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, SZ_64K);
	EXPECT_EINVAL(__vm_enable_cap(self->vm, ENABLE, 0));
}

TEST_F(vm, no_irqchip)
{
	vm_enable_cap(self->vm, ENABLE, 0);
	EXPECT_EINVAL(__vm_ioctl(self->vm, KVM_CREATE_IRQCHIP, NULL));
	EXPECT_EINVAL(__vm_enable_cap(self->vm, KVM_CAP_SPLIT_IRQCHIP, 24));
	EXPECT_EQ(0, self->vm->has_irqchip);
}

TEST_F(vm, no_guest_memfd)
{
	struct kvm_create_guest_memfd create = { .size = SZ_2M };

	vm_enable_cap(self->vm, ENABLE, 0);
	EXPECT_EINVAL(__vm_ioctl(self->vm, KVM_CREATE_GUEST_MEMFD, &create));
	EXPECT_EQ(0, vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD));
}

TEST_F(ucas, no_smm)
{
	struct kvm_vcpu_events events;

	EXPECT_EQ(0, vm_check_cap(self->vm, KVM_CAP_X86_SMM));
	/* As in a kernel without SMM. */
	EXPECT_EQ(-1, __vcpu_ioctl(self->vcpu, KVM_SMI, NULL));
	EXPECT_EQ(ENOTTY, errno);

	vcpu_events_get(self->vcpu, &events);
	EXPECT_EQ(0, events.smi.smm);
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = 1;
	EXPECT_EINVAL(__vcpu_ioctl(self->vcpu, KVM_SET_VCPU_EVENTS, &events));
	events.smi.smm = 0;
	events.smi.pending = 1;
	EXPECT_EINVAL(__vcpu_ioctl(self->vcpu, KVM_SET_VCPU_EVENTS, &events));

	/* What it says of itself can be given back. */
	vcpu_events_get(self->vcpu, &events);
	vcpu_events_set(self->vcpu, &events);
}

/* CPUID.80000001H:ECX.SVM, and CPUID.1:ECX.VMX. */
static u64 guest_has_nested(void)
{
	u32 eax, ebx, svm, vmx, edx;

	cpuid(0x80000001, &eax, &ebx, &svm, &edx);
	cpuid(1, &eax, &ebx, &vmx, &edx);
	return (svm >> 2 & 1) | (vmx >> 5 & 1);
}

static u64 guest_set_svme(void)
{
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
	return 0;
}

TEST_F(ucas, no_nested)
{
	struct kvm_nested_state state = {
		.format = KVM_STATE_NESTED_FORMAT_SVM,
		.size = sizeof(state),
		.flags = KVM_STATE_NESTED_GIF_SET,
	};
	struct kvm_sregs sregs;

	if (!kvm_cpu_has(X86_FEATURE_SVM) && !kvm_cpu_has(X86_FEATURE_VMX))
		SKIP(return, "no VM on this machine has nested guests");

	/* The vCPU has what KVM_GET_SUPPORTED_CPUID gives. */
	EXPECT_EQ(0, guest_call(self->vcpu, guest_has_nested, 0, 0, 0));
	EXPECT_EQ(0, vm_check_cap(self->vm, KVM_CAP_NESTED_STATE));

	if (host_cpu_is_intel)
		state.format = KVM_STATE_NESTED_FORMAT_VMX;
	state.flags |= KVM_STATE_NESTED_GUEST_MODE;
	EXPECT_EINVAL(__vcpu_ioctl(self->vcpu, KVM_SET_NESTED_STATE, &state));

	vcpu_sregs_get(self->vcpu, &sregs);
	if (host_cpu_is_intel)
		sregs.cr4 |= X86_CR4_VMXE;
	else
		sregs.efer |= EFER_SVME;
	EXPECT_EINVAL(_vcpu_sregs_set(self->vcpu, &sregs));
}

TEST_F(ucas, other_process)
{
	u8 *mem = segments_alloc(1);
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(__gmap_map(self->vcpu, mem, 0, SEGMENT) != EIO ||
		      __gmap_unmap(self->vcpu, 0, SEGMENT) != EIO ||
		      __gmap_fault(self->vcpu, 0) != EIO);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

/* The vCPU keeps the VM. */
TEST_F(ucas, vm_fd_closed)
{
	int fd = dup(self->vcpu->fd);
	struct kvm_vcpu vcpu = { .fd = fd };

	kvm_vm_free(self->vm);
	EXPECT_EQ(0, __gmap_map(&vcpu, self->mem, 1ul << 35, SEGMENT));
	EXPECT_EQ(0, __gmap_fault(&vcpu, 1ul << 35));
	EXPECT_EQ(0, __gmap_unmap(&vcpu, 1ul << 35, SEGMENT));
	close(fd);

	self->vm = gmap_vm_with_guest(&self->vcpu);
	gmap_map(self->vcpu, self->mem, DATA_GPA, SEGMENT);
}

static int next_fd;
static bool racers_stop;

static void *use_next_vcpu(void *mem)
{
	struct kvm_vcpu vcpu;

	while (!READ_ONCE(racers_stop)) {
		vcpu.fd = READ_ONCE(next_fd);
		__gmap_map(&vcpu, mem, 0, SEGMENT);
		__gmap_fault(&vcpu, 0);
		__gmap_unmap(&vcpu, 0, SEGMENT);
	}
	return NULL;
}

/* A thread that guesses the number uses a vCPU's file before KVM_CREATE_VCPU returns. */
TEST_F(ucas, used_while_created)
{
	u8 *mem = segments_alloc(1);
	struct kvm_vcpu vcpu;
	pthread_t thread;
	int i;

	next_fd = dup(self->vm->fd);
	close(next_fd);
	racers_stop = false;
	kvm_pthread_create(&thread, NULL, use_next_vcpu, mem);
	for (i = 255; i > 0; i--) {
		vcpu.fd = __vm_ioctl(self->vm, KVM_CREATE_VCPU, (void *)(unsigned long)i);
		ASSERT_GE(vcpu.fd, 0);
		WRITE_ONCE(next_fd, vcpu.fd + 1);
	}
	WRITE_ONCE(racers_stop, true);
	kvm_pthread_join(thread, NULL);
	EXPECT_EQ(0, __gmap_map(&vcpu, mem, 0, SEGMENT));
	for (i = 255; i > 0; i--)
		close(vcpu.fd - (i - 1));
}

/* What people see who look inside, of each vCPU. */
TEST_F(ucas, shown_in_debugfs)
{
	struct kvm_vcpu *vcpus[] = { self->vcpu, __vm_vcpu_add(self->vm, 1) };
	u8 *mem = segments_alloc(ARRAY_SIZE(vcpus));
	const gpa_t gpa = 1ull << 35;
	struct memslots_file file;
	struct memslot_row *row;
	int i, fd, found = 0;

	fd = open_memslots_file(self->vm);
	if (fd < 0)
		SKIP(return, "No debugfs");
	close(fd);

	for (i = 0; i < ARRAY_SIZE(vcpus); i++)
		gmap_map(vcpus[i], mem + i * SEGMENT, gpa, SEGMENT);

	read_memslots(self->vm, &file);
	for (row = file.rows; row < file.rows + file.nr_rows; row++) {
		EXPECT_STREQ("both", row->sets);
		if (row->gfn != gpa >> PAGE_SHIFT)
			continue;
		i = row->as - 2;
		ASSERT_TRUE(i == 0 || i == 1) TH_LOG("Address space %u", row->as);
		EXPECT_EQ((uintptr_t)mem + i * SEGMENT, row->hva);
		EXPECT_EQ(SEGMENT >> PAGE_SHIFT, row->pages);
		found |= BIT(i);
	}
	EXPECT_EQ(3, found);
	free_memslots(&file);
}

/* The #GP finds no IDT. */
TEST_F(ucas, no_svme)
{
	struct kvm_vcpu *vcpu = gmap_guest_add(self->vm, 1);

	if (host_cpu_is_intel)
		SKIP(return, "Not AMD");
	guest_set_call(vcpu, guest_set_svme, 0, 0, 0);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_SHUTDOWN);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());

	return test_harness_run(argc, argv);
}
