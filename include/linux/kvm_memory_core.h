/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The seam between KVM's C code and its guest-memory core in Rust (rust/kvm/).
 *
 * C calls the functions in the sections marked "for C to call", and
 * kvm_enable_gmaps() and kvm_create_gmap().  Rust calls the rest: what only C
 * macros and inline functions can do, and what stays C.
 */
#ifndef __LINUX_KVM_MEMORY_CORE_H
#define __LINUX_KVM_MEMORY_CORE_H

#include <linux/kvm_host.h>
#include <linux/log2.h>

/* virt/kvm/kvm_main.c */
void kvm_free_memslot(struct kvm *kvm, struct kvm_memory_slot *slot);

#ifdef CONFIG_KVM_RUST_MEMORY

/* Largest number of entries in a list: one list can replace every user slot. */
enum { KVM_MEMORY_REGION_LIST_MAX = 2 * KVM_USER_MEM_SLOTS };

/* The fields of an entry that KVM knows and that were padding at first. */
enum {
	KVM_MEMORY_REGION_LIST_FIELDS =
		KVM_MEMORY_REGION_LIST_DIRTY_BITMAP |
		(IS_ENABLED(CONFIG_KVM_GUEST_MEMFD) ?
		 KVM_MEMORY_REGION_LIST_GUEST_MEMFD : 0)
};

/* The bit in a generation that forbids caching it. */
enum {
	KVM_MEMORY_GEN_UPDATE_BIT =
		const_ilog2(KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS)
};

/**
 * struct kvm_memory_limits - what a VM allows its memslots to be
 * @address_spaces: number of address spaces
 * @generation_step: by how much an update increases the generation of memslots
 * @slots: number of slot ids, internal ones included
 * @user_slots: number of slot ids for userspace
 * @max_user_pages: largest size of a user slot, in pages
 * @flags: flags that a slot may have
 * @bitmaps: whether slots that log have dirty bitmaps
 */
struct kvm_memory_limits {
	u16 address_spaces;
	u16 generation_step;
	u16 slots;
	u16 user_slots;
	u64 max_user_pages;
	u32 flags;
	bool bitmaps;
};

/**
 * struct kvm_memory_gfns - frames that a memslot update takes from the guest
 * @start: first frame
 * @end: end (exclusive)
 * @as_id: address space
 * @keep: take only write access, and leave the frames mapped
 */
struct kvm_memory_gfns {
	gfn_t start;
	gfn_t end;
	u16 as_id;
	bool keep;
};

/**
 * struct kvm_memory_report - what a batch of memslot updates has done
 * @entries: number of entries
 * @changes: number of changes; a replacement is two
 * @swaps: number of swaps
 * @invalid: number of INVALID copies
 * @kept: pages of removed memslots that were kept
 * @gone: pages of removed memslots that are gone
 * @duration_ns: how long it took
 * @failed: the entry that is to blame for @error, or -1
 * @error: 0 or a negative errno
 */
struct kvm_memory_report {
	u32 entries;
	u32 changes;
	u32 swaps;
	u32 invalid;
	u64 kept;
	u64 gone;
	u64 duration_ns;
	int failed;
	int error;
};

/* rust/kvm/memslots/ioctl.rs, for C to call */
int kvm_set_memory_region(struct kvm *kvm,
			  const struct kvm_userspace_memory_region2 *mem);
int kvm_vm_ioctl_set_memory_region_list(struct kvm *kvm, void __user *argp);

/* rust/kvm/memslots/seam.c */
void kvm_memory_get_limits(struct kvm *kvm, struct kvm_memory_limits *limits);
bool kvm_memory_is_user_range(u64 hva, u64 size);
bool kvm_memory_traces_batches(void);
struct kvm_memslots *kvm_memory_active(struct kvm *kvm, int as_id);
struct kvm_memslots *kvm_memory_inactive(struct kvm *kvm, int as_id);
struct kvm_memory_slot *kvm_memory_find_id(struct kvm_memslots *slots, int id);
struct kvm_memory_slot *kvm_memory_find_gfn(struct kvm_memslots *slots,
					    gfn_t start, gfn_t end);
void kvm_memory_hash_add(struct kvm_memslots *slots,
			 struct kvm_memory_slot *slot);
void kvm_memory_hash_del(struct kvm_memslots *slots,
			 struct kvm_memory_slot *slot);
void kvm_memory_publish(struct kvm *kvm, int first, int end);
void kvm_memory_wait_for_readers(struct kvm *kvm);
void kvm_memory_copy_arch_back(struct kvm *kvm, struct kvm_memory_slot *slot,
			       const struct kvm_memory_slot *copy);
bool kvm_memory_alloc_dirty_bitmap(struct kvm *kvm,
				   struct kvm_memory_slot *slot);
int kvm_memory_gmem_prepare(struct kvm *kvm, struct kvm_memory_slot *slot,
			    unsigned int fd, u64 offset);
int kvm_memory_gmem_bind(struct kvm *kvm, struct kvm_memory_slot *slot);
void kvm_memory_gmem_unbind(struct kvm_memory_slot *slot);
void kvm_memory_gmem_rebind(struct kvm_memory_slot *slot, struct file *file);
struct file *kvm_memory_gmem_file(struct kvm_memory_slot *slot);
u64 kvm_memory_gmem_pgoff(struct kvm_memory_slot *slot);
int kvm_memory_gmem_get(struct kvm *kvm, unsigned int fd, u64 offset,
			u64 npages, struct file **file);
int kvm_memory_fault_in_log(u64 address, u64 npages);
int kvm_memory_copy_log(struct kvm_memory_slot *slot, u64 address);
int kvm_memory_copy_started_log(struct kvm *kvm, u64 address, u64 npages);
int kvm_memory_lock_slots_interruptible(struct kvm *kvm);

/* rust/kvm/memslots/debugfs.c, for C to call */
void kvm_memory_create_vm_debugfs(struct kvm *kvm);

/* rust/kvm/memslots/x86.c */
/* Can memslots be removed and added without zapping what stays mapped? */
bool kvm_arch_can_reshape_memslots(struct kvm *kvm);
/* Take @n ranges of gfns, which only INVALID memslots map, from the guest. */
void kvm_arch_take_gfns(struct kvm *kvm, const struct kvm_memory_gfns *gfns,
			unsigned long n);
/* Split huge pages in two parts of which one ends at @gfn, without a fault. */
void kvm_arch_split_at(struct kvm *kvm, int as_id, gfn_t gfn);
/* Undo that, where both parts are in @slot now. */
void kvm_arch_join_at(struct kvm *kvm, const struct kvm_memory_slot *slot,
		      gfn_t gfn);
/* Make the mappings of @slot, which no longer logs, huge again. */
void kvm_arch_recover_huge_pages(struct kvm *kvm,
				 const struct kvm_memory_slot *slot);
/* Do for some gfns what FLAGS_ONLY does for a memslot that starts to log. */
void kvm_arch_start_logging(struct kvm *kvm, const struct kvm_memory_slot *slot,
			    gfn_t start, gfn_t end);
/* Does hardware log writes, which vCPUs mark dirty when they exit (PML)? */
bool kvm_arch_logs_late(struct kvm *kvm);
/*
 * Wait until all vCPUs are in SRCU read sections in which they log, in memslots
 * that are active now or were before, what hardware has logged.
 */
void kvm_arch_drain_dirty_log(struct kvm *kvm);

/* rust/kvm/gmap/gmap.c */
int kvm_enable_gmaps(struct kvm *kvm, int max_vcpus);
int kvm_create_gmap(struct kvm_vcpu *vcpu);
int kvm_gmap_free_id(struct kvm *kvm, int as_id, int from);
void kvm_gmap_set_id(struct kvm *kvm, int as_id, int id, bool used);

/* rust/kvm/gmap/x86.c */
/* The address space of the vCPU's own, or 0. */
int kvm_arch_vcpu_gmap(struct kvm_vcpu *vcpu);
/* Say in the run structure that nothing is mapped at @gfn. */
void kvm_arch_gmap_missing(struct kvm_vcpu *vcpu, gfn_t gfn);

/* rust/kvm/populate/ioctl.rs, for C to call */
int kvm_vcpu_ioctl_map_memory(struct kvm_vcpu *vcpu, void __user *argp);

/* rust/kvm/populate/fill.c */
void kvm_memory_cond_resched(void);
bool kvm_memory_dirty_ring_is_full(struct kvm_vcpu *vcpu);
void kvm_memory_fault_in(struct kvm_vcpu *vcpu, gfn_t gfn, unsigned long npages,
			 bool write);
int kvm_memory_fault_in_source(u64 source, unsigned long npages);
long kvm_memory_fill(struct kvm_vcpu *vcpu, gfn_t gfn, u64 source,
		     unsigned long npages);
long kvm_memory_fill_private(struct kvm_vcpu *vcpu, gfn_t gfn, u64 source);

/* The most PTEs that kvm_arch_vcpu_map_gfns() makes in one call. */
enum { KVM_MAP_PAGES_MAX = 64 };

/* rust/kvm/populate/x86.c */
/* The highest gfn that the vCPU can address. */
gfn_t kvm_arch_vcpu_max_gfn(struct kvm_vcpu *vcpu);
/* Can KVM_MAP_MEMORY with @flags be carried out; with contents, if @fill? */
int kvm_arch_vcpu_may_map(struct kvm_vcpu *vcpu, u64 flags, bool fill);
/*
 * Try once to map @gfn, as the fault that KVM_MAP_MEMORY's @flags describe
 * would, and what is easily mapped along with it of the @npages from @gfn on.
 * Returns the number of pages from @gfn on that are mapped, of a huge page all
 * of them; 0 if the caller must retry; -EAGAIN if the memslot is INVALID.
 */
long kvm_arch_vcpu_map_gfns(struct kvm_vcpu *vcpu, gfn_t gfn,
			    unsigned long npages, u64 flags);

/* rust/kvm/gmap/ioctl.rs, for C to call */
int kvm_vcpu_ioctl_ucas(struct kvm_vcpu *vcpu, bool map, void __user *argp);
int kvm_vcpu_ioctl_fault(struct kvm_vcpu *vcpu, unsigned long gpa);

struct msr_data;

/*
 * What a write of MSR_KVM_REGISTER_MEM_AREA or MSR_KVM_UNREGISTER_MEM_AREA leads
 * to: return codes of KVM's MSR functions.  KVM_MEM_AREA_MSR_ASK asks to leave
 * for userspace by kvm_mem_area_exit(), and to finish the instruction by what
 * kvm_mem_area_complete() returns.
 */
enum kvm_mem_area_msr {
	KVM_MEM_AREA_MSR_DONE = 0,
	KVM_MEM_AREA_MSR_FAULT = 1,
	KVM_MEM_AREA_MSR_UNSUPPORTED = 2,
	KVM_MEM_AREA_MSR_ASK = 4,
};

/* rust/kvm/areas/msr.rs and ioctl.rs, for C to call */
int kvm_mem_area_set_msr(struct kvm_vcpu *vcpu, const struct msr_data *msr);
int kvm_mem_area_get_msr(struct kvm_vcpu *vcpu);
void kvm_mem_area_exit(struct kvm_vcpu *vcpu);
int kvm_mem_area_complete(struct kvm_vcpu *vcpu);
int kvm_vm_ioctl_register_mem_area(struct kvm *kvm, void __user *argp);

/* rust/kvm/areas/x86.c */
bool kvm_mem_area_is_running(struct kvm_vcpu *vcpu);
bool kvm_mem_area_read_desc(struct kvm_vcpu *vcpu, gpa_t gpa, void *desc);
bool kvm_mem_area_write_result(struct kvm_vcpu *vcpu, gpa_t gpa, u8 result);
bool kvm_mem_area_is_memory(struct kvm_vcpu *vcpu, gpa_t gpa, u32 size);
bool kvm_mem_area_can_write(struct kvm_vcpu *vcpu, gpa_t gpa, u32 size);
bool kvm_mem_area_can_map(struct kvm_vcpu *vcpu, gpa_t gpa, u32 size);
bool kvm_mem_area_msr_read(struct kvm_vcpu *vcpu, u32 index, u64 *value);
bool kvm_mem_area_msr_write(struct kvm_vcpu *vcpu, u32 index, u64 value);

/* rust/kvm/seam.c */
void kvm_memory_srcu_lock(struct kvm_vcpu *vcpu);
void kvm_memory_srcu_unlock(struct kvm_vcpu *vcpu);

#endif /* CONFIG_KVM_RUST_MEMORY */

#endif /* __LINUX_KVM_MEMORY_CORE_H */
