// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces of vCPUs (UCAS): what KVM writes to guest memory on behalf of the
 * whole VM finds no memory, and must not get into the world of any vCPU.
 *
 * Each feature is also tried in a VM with memslots, where it must write: a feature
 * that the test cannot get to work proves nothing.
 */
#include "gmap_guest.h"
#include "hyperv.h"
#include "kvm_test_harness.h"
#include "mem_area.h"

/* Where the features are told to write. */
#define TARGET_GPA	DATA_GPA
#define FILLER		0xa5

#define XEN_HYPERCALL_MSR	0x40000200

#define KVM_CLOCK_PAIRING_WALLCLOCK	0

#define NR_WORLDS	4

struct world {
	struct kvm_vcpu *vcpu;
	u8 *mem;
};

struct machine {
	struct kvm_vm *vm;
	bool is_ucas;
	int nr_worlds;
	struct world worlds[NR_WORLDS];
};

/* What a feature does for a vCPU.  Returns false if this KVM refuses it. */
typedef bool (*feature_fn)(struct kvm_vcpu *vcpu);

static struct machine ucas, plain;

static void create_ucas(void)
{
	struct world *w;

	ucas = (struct machine) {
		.vm = gmap_vm_create(), .is_ucas = true, .nr_worlds = NR_WORLDS,
	};
	for (w = ucas.worlds; w < ucas.worlds + NR_WORLDS; w++) {
		w->vcpu = gmap_guest_add(ucas.vm, w - ucas.worlds);
		w->mem = segments_alloc(1);
		gmap_map(w->vcpu, w->mem, TARGET_GPA, SEGMENT);
	}
}

/* The same memory as memslots, which all vCPUs see. */
static void create_plain(void)
{
	struct world *w = plain.worlds;
	u8 *boot = segments_alloc(1);

	plain = (struct machine) { .vm = vm_create_barebones(), .nr_worlds = 1 };
	w->mem = segments_alloc(1);
	boot_fill(boot);
	vm_set_user_memory_region(plain.vm, 0, 0, BOOT_GPA, SEGMENT, boot);
	vm_set_user_memory_region(plain.vm, 1, 0, image_gpa(), image_size(),
				  (void *)image_gpa());
	vm_set_user_memory_region(plain.vm, 2, 0, TARGET_GPA, SEGMENT, w->mem);
	w->vcpu = gmap_vcpu_add(plain.vm, 0);
}

static bool is_untouched(const struct world *w)
{
	int i;

	for (i = 0; i < SEGMENT; i++)
		if (w->mem[i] != FILLER)
			return false;
	return true;
}

static u64 guest_nothing(void)
{
	return 0;
}

/* Returns how many worlds the feature has written to. */
static int nr_written(struct machine *m, struct world *w, feature_fn feature, bool *took)
{
	int i, nr = 0;

	for (i = 0; i < m->nr_worlds; i++)
		memset(m->worlds[i].mem, FILLER, SEGMENT);
	*took = feature(w->vcpu);
	/* KVM writes some of it when it enters the guest next. */
	for (i = 0; i < 3; i++)
		guest_call(w->vcpu, guest_nothing, 0, 0, 0);
	for (i = 0; i < m->nr_worlds; i++)
		nr += !is_untouched(&m->worlds[i]);
	return nr;
}

/* Whether the host has what the feature needs, as a VM with memslots shows. */
static bool works(feature_fn feature)
{
	bool took;

	create_plain();
	took = nr_written(&plain, plain.worlds, feature, &took) && took;
	kvm_vm_free(plain.vm);
	return took;
}

/* From each vCPU, among them vCPU 0. */
static void expect_nothing(struct __test_metadata *_metadata, feature_fn feature)
{
	struct world *w;
	bool took;
	int nr;

	if (!works(feature))
		SKIP(return, "Not even with memslots");

	create_ucas();
	for (w = ucas.worlds; w < ucas.worlds + NR_WORLDS; w++) {
		nr = nr_written(&ucas, w, feature, &took);
		TEST_ASSERT(!nr, "vCPU %u: the feature has written to %d worlds",
			    w->vcpu->id, nr);
	}
	kvm_vm_free(ucas.vm);
}

/* Needs an in-kernel irqchip, without which not even a VM with memslots has it. */
static void expect_refused(feature_fn feature)
{
	struct world *w;
	bool took;

	create_ucas();
	for (w = ucas.worlds; w < ucas.worlds + NR_WORLDS; w++) {
		TEST_ASSERT(!nr_written(&ucas, w, feature, &took),
			    "vCPU %u: the feature has written", w->vcpu->id);
		TEST_ASSERT(!took, "vCPU %u has the feature", w->vcpu->id);
	}
	kvm_vm_free(ucas.vm);
}

static bool set_msr(struct kvm_vcpu *vcpu, u32 msr, u64 value)
{
	return _vcpu_set_msr(vcpu, msr, value) == 1;
}

static u64 guest_wrmsr(u64 msr, u64 value)
{
	wrmsr(msr, value);
	return 0;
}

/* The guest writes it.  Returns false if that is a #GP, which finds no IDT. */
static bool run_wrmsr(struct kvm_vcpu *vcpu, u32 msr, u64 value)
{
	guest_set_call(vcpu, guest_wrmsr, msr, value, 0);
	vcpu_run(vcpu);
	return is_guest_sync(vcpu);
}

static bool system_time_feature(struct kvm_vcpu *vcpu)
{
	return set_msr(vcpu, MSR_KVM_SYSTEM_TIME_NEW, TARGET_GPA | 1);
}

static bool guest_system_time_feature(struct kvm_vcpu *vcpu)
{
	return run_wrmsr(vcpu, MSR_KVM_SYSTEM_TIME_NEW, (TARGET_GPA + 0x1000) | 1);
}

static bool wall_clock_feature(struct kvm_vcpu *vcpu)
{
	return set_msr(vcpu, MSR_KVM_WALL_CLOCK_NEW, TARGET_GPA + 0x2000);
}

static bool guest_wall_clock_feature(struct kvm_vcpu *vcpu)
{
	return run_wrmsr(vcpu, MSR_KVM_WALL_CLOCK_NEW, TARGET_GPA + 0x2000);
}

static bool steal_time_feature(struct kvm_vcpu *vcpu)
{
	return set_msr(vcpu, MSR_KVM_STEAL_TIME, (TARGET_GPA + 0x3000) | 1);
}

static bool guest_steal_time_feature(struct kvm_vcpu *vcpu)
{
	return run_wrmsr(vcpu, MSR_KVM_STEAL_TIME, (TARGET_GPA + 0x3000) | 1);
}

static bool reference_tsc_feature(struct kvm_vcpu *vcpu)
{
	return set_msr(vcpu, HV_X64_MSR_GUEST_OS_ID, 0x5a) &&
	       set_msr(vcpu, HV_X64_MSR_REFERENCE_TSC, (TARGET_GPA + 0x4000) | 1);
}

TEST(system_time)
{
	expect_nothing(_metadata, system_time_feature);
}

TEST(guest_system_time)
{
	expect_nothing(_metadata, guest_system_time_feature);
}

TEST(wall_clock)
{
	expect_nothing(_metadata, wall_clock_feature);
}

TEST(guest_wall_clock)
{
	expect_nothing(_metadata, guest_wall_clock_feature);
}

TEST(steal_time)
{
	expect_nothing(_metadata, steal_time_feature);
}

TEST(guest_steal_time)
{
	expect_nothing(_metadata, guest_steal_time_feature);
}

TEST(reference_tsc)
{
	expect_nothing(_metadata, reference_tsc_feature);
}

static bool async_pf_feature(struct kvm_vcpu *vcpu)
{
	return set_msr(vcpu, MSR_KVM_ASYNC_PF_EN, (TARGET_GPA + 0x5000) | 1);
}

static bool pv_eoi_feature(struct kvm_vcpu *vcpu)
{
	return set_msr(vcpu, MSR_KVM_PV_EOI_EN, (TARGET_GPA + 0x6000) | 1);
}

static struct kvm_memory_area area __aligned(32);

/* KVM finds no descriptor, although the vCPU has memory there. */
static bool mem_area_feature(struct kvm_vcpu *vcpu)
{
	bool took;

	vcpu_set_cpuid_feature(vcpu, X86_FEATURE_KVM_MEM_AREA);
	area = (struct kvm_memory_area) {
		.base = TARGET_GPA + 0xd000,
		.size = 64,
		.type = KVM_MEM_AREA_TYPE_STEAL_TIME,
		.result = 0xff,
	};
	took = run_wrmsr(vcpu, MSR_KVM_REGISTER_MEM_AREA, (uintptr_t)&area);
	TEST_ASSERT(took == (area.result != 0xff), "%d, result %d", took, area.result);
	return took;
}

TEST(mem_area)
{
	struct world *w;
	bool took;

	TEST_ASSERT(works(mem_area_feature), "Not even with memslots");

	create_ucas();
	for (w = ucas.worlds; w < ucas.worlds + NR_WORLDS; w++) {
		memset(w->mem, FILLER, SEGMENT);
		took = mem_area_feature(w->vcpu);
		TEST_ASSERT(!took && is_untouched(w), "vCPU %u has an area", w->vcpu->id);
	}
	kvm_vm_free(ucas.vm);
}

TEST(async_pf)
{
	expect_refused(async_pf_feature);
}

TEST(pv_eoi)
{
	expect_refused(pv_eoi_feature);
}

static u64 guest_clock_pairing(u64 gpa)
{
	return kvm_hypercall(KVM_HC_CLOCK_PAIRING, gpa, KVM_CLOCK_PAIRING_WALLCLOCK,
			     0, 0);
}

static bool clock_pairing_feature(struct kvm_vcpu *vcpu)
{
	return !guest_call(vcpu, guest_clock_pairing, TARGET_GPA + 0x7000, 0, 0);
}

TEST(clock_pairing)
{
	expect_nothing(_metadata, clock_pairing_feature);
}

/* The page where Hyper-V's guests find the code of a hypercall. */
static bool hypercall_page_feature(struct kvm_vcpu *vcpu)
{
	return set_msr(vcpu, HV_X64_MSR_GUEST_OS_ID, 0x5a) &&
	       set_msr(vcpu, HV_X64_MSR_HYPERCALL, (TARGET_GPA + 0x8000) | 1);
}

static bool xen_hypercall_page_feature(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
		.msr = XEN_HYPERCALL_MSR,
	};

	return !__vm_ioctl(vcpu->vm, KVM_XEN_HVM_CONFIG, &config) &&
	       run_wrmsr(vcpu, XEN_HYPERCALL_MSR, TARGET_GPA + 0x9000);
}

/*
 * These two pages are written for the vCPU that asks for them.  They may be in its
 * own world; they must be in no other one.
 */
static void expect_own(struct __test_metadata *_metadata, feature_fn feature)
{
	struct world *w, *other;
	bool took;

	if (!works(feature))
		SKIP(return, "Not even with memslots");

	create_ucas();
	for (w = ucas.worlds; w < ucas.worlds + NR_WORLDS; w++) {
		nr_written(&ucas, w, feature, &took);
		for (other = ucas.worlds; other < ucas.worlds + NR_WORLDS; other++)
			TEST_ASSERT(other == w || is_untouched(other),
				    "vCPU %u's page is in vCPU %u's world",
				    w->vcpu->id, other->vcpu->id);
	}
	kvm_vm_free(ucas.vm);
}

TEST(hypercall_page)
{
	expect_own(_metadata, hypercall_page_feature);
}

TEST(xen_hypercall_page)
{
	expect_own(_metadata, xen_hypercall_page_feature);
}

static bool xen_shared_info_feature(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
		.msr = XEN_HYPERCALL_MSR,
	};
	struct kvm_xen_hvm_attr long_mode = {
		.type = KVM_XEN_ATTR_TYPE_LONG_MODE,
		.u.long_mode = 1,
	};
	struct kvm_xen_hvm_attr info = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = (TARGET_GPA + 0xa000) >> PAGE_SHIFT,
	};

	return !__vm_ioctl(vcpu->vm, KVM_XEN_HVM_CONFIG, &config) &&
	       !__vm_ioctl(vcpu->vm, KVM_XEN_HVM_SET_ATTR, &long_mode) &&
	       !__vm_ioctl(vcpu->vm, KVM_XEN_HVM_SET_ATTR, &info);
}

/* Of a vCPU, and with it the time that KVM keeps there. */
static bool xen_vcpu_info_feature(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
		.msr = XEN_HYPERCALL_MSR,
	};
	struct kvm_xen_vcpu_attr info = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO,
		.u.gpa = TARGET_GPA + 0xb000,
	};

	return !__vm_ioctl(vcpu->vm, KVM_XEN_HVM_CONFIG, &config) &&
	       !__vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &info);
}

static bool xen_runstate_feature(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
		.msr = XEN_HYPERCALL_MSR,
	};
	struct kvm_xen_vcpu_attr info = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
		.u.gpa = TARGET_GPA + 0xc000,
	};

	return !__vm_ioctl(vcpu->vm, KVM_XEN_HVM_CONFIG, &config) &&
	       !__vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &info);
}

TEST(xen_shared_info)
{
	expect_nothing(_metadata, xen_shared_info_feature);
}

TEST(xen_vcpu_info)
{
	expect_nothing(_metadata, xen_vcpu_info_feature);
}

TEST(xen_runstate)
{
	expect_nothing(_metadata, xen_runstate_feature);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(max_ucas_vcpus());

	return test_harness_run(argc, argv);
}
