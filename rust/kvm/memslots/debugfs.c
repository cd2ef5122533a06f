// SPDX-License-Identifier: GPL-2.0-only
/*
 * The file "memslots" in the debugfs directory of a VM: both memslot sets of each
 * address space.
 *
 * Opening the file takes a snapshot, and reading only formats it.  So every read
 * of an open file belongs to the same moment, no lock is held while the reader's
 * memory is written to, and reading all of it takes linear time.
 *
 * This is C because nothing in it needs what the types of the core guarantee, and
 * because the debugfs of the kernel crate makes files in its own directories only.
 */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/kvm_memory_core.h>
#include <linux/rbtree.h>
#include <linux/seq_file.h>

/* How long an open waits for slots_lock before it makes do with the active sets. */
#define LOCK_PATIENCE	(HZ / 5)

enum { IN_ACTIVE = 1, IN_INACTIVE = 2 };

/* A slot, in one of the sets of its address space or in both. */
struct slot_row {
	gfn_t base_gfn;
	unsigned long npages;
	unsigned long userspace_addr;
	u32 flags;
	u16 as_id;
	short id;
	u8 sets;
	bool has_bitmap;
};

struct memslot_space {
	/* The active set.  Valid while the snapshot is being taken. */
	struct kvm_memslots *active;
	u64 generation;
	int node_idx;
};

struct snapshot {
	/* slots_lock was held.  Otherwise there are rows of active sets only. */
	bool locked;

	int nr_spaces, max_spaces;
	struct memslot_space *spaces;

	unsigned long nr_rows, max_rows;
	struct slot_row *rows;
};

static struct kvm_memory_slot *slot_of_node(struct rb_node *node, int idx)
{
	return node ? container_of(node, struct kvm_memory_slot, gfn_node[idx]) :
		      NULL;
}

static struct kvm_memory_slot *first_slot(struct kvm_memslots *set)
{
	return slot_of_node(rb_first(&set->gfn_tree), set->node_idx);
}

static struct kvm_memory_slot *next_slot(struct kvm_memslots *set,
					 struct kvm_memory_slot *slot)
{
	int idx = set->node_idx;

	return slot_of_node(rb_next(&slot->gfn_node[idx]), idx);
}

/* Counts a row also if there is no room for it. */
static void add_row(struct snapshot *snap, struct kvm_memory_slot *slot, u8 sets)
{
	unsigned long nr = snap->nr_rows++;

	if (nr >= snap->max_rows)
		return;

	snap->rows[nr] = (struct slot_row) {
		.base_gfn = slot->base_gfn,
		.npages = slot->npages,
		.userspace_addr = slot->userspace_addr,
		.flags = slot->flags,
		.as_id = slot->as_id,
		.id = slot->id,
		.sets = sets,
		.has_bitmap = slot->dirty_bitmap,
	};
}

/*
 * Adds the slots of an address space in the order of their gfns.  The sets have
 * the same slots whenever slots_lock is free, but that is not taken for granted
 * here: a slot that is in one set only gets a row that says so.
 */
static void add_slots(struct snapshot *snap, struct kvm_memslots *active,
		      struct kvm_memslots *inactive)
{
	struct kvm_memory_slot *a = first_slot(active);
	struct kvm_memory_slot *i = inactive ? first_slot(inactive) : NULL;

	while (a || i) {
		if (a == i) {
			add_row(snap, a, IN_ACTIVE | IN_INACTIVE);
			a = next_slot(active, a);
			i = next_slot(inactive, i);
		} else if (!i || (a && a->base_gfn <= i->base_gfn)) {
			add_row(snap, a, IN_ACTIVE);
			a = next_slot(active, a);
		} else {
			add_row(snap, i, IN_INACTIVE);
			i = next_slot(inactive, i);
		}
	}
}

/*
 * Takes slots_lock, and returns 1.  Returns 0 if the lock cannot be had soon:
 * should an update wait for readers forever, this file must still tell what it has
 * done so far.  Returns -EINTR if a signal arrives.
 */
static int lock_slots(struct kvm *kvm)
{
	unsigned long end = jiffies + LOCK_PATIENCE;

	for (;;) {
		if (mutex_trylock(&kvm->slots_lock))
			return 1;
		if (time_after(jiffies, end))
			return 0;
		if (msleep_interruptible(1))
			return -EINTR;
	}
}

static void copy_spaces(struct kvm *kvm, struct snapshot *snap, bool locked)
{
	struct kvm_memslots *inactive;
	struct memslot_space *space;
	int i;

	/* A batch publishes the sets of all address spaces under this lock. */
	spin_lock(&kvm->mn_invalidate_lock);
	for (i = 0; i < snap->nr_spaces; i++)
		snap->spaces[i].active = __kvm_memslots(kvm, i);
	spin_unlock(&kvm->mn_invalidate_lock);

	for (i = 0; i < snap->nr_spaces; i++) {
		space = &snap->spaces[i];
		space->generation = READ_ONCE(space->active->generation);
		space->node_idx = space->active->node_idx;
		inactive = locked ? kvm_memory_inactive(kvm, i) : NULL;
		add_slots(snap, space->active, inactive);
		cond_resched();
	}
}

/*
 * Copies what there is room for, and counts all address spaces and, if there was
 * room for these, all rows.  The inactive sets change under slots_lock.  The
 * active ones do not change as long as there are readers.
 */
static int copy_slots(struct kvm *kvm, struct snapshot *snap)
{
	int locked, srcu_idx;

	locked = lock_slots(kvm);
	if (locked < 0)
		return locked;

	srcu_idx = srcu_read_lock(&kvm->srcu);

	snap->locked = locked;
	snap->nr_rows = 0;
	snap->nr_spaces = kvm_nr_memslot_as_ids(kvm);
	if (snap->nr_spaces <= snap->max_spaces)
		copy_spaces(kvm, snap, locked);

	srcu_read_unlock(&kvm->srcu, srcu_idx);
	if (locked)
		mutex_unlock(&kvm->slots_lock);
	return 0;
}

/* Userspace may create a few more vCPUs or slots until the next attempt. */
static unsigned long room_for(unsigned long nr)
{
	return nr + nr / 8;
}

static int take_snapshot(struct kvm *kvm, struct snapshot *snap)
{
	int r;

	for (;;) {
		r = copy_slots(kvm, snap);
		if (r)
			return r;

		if (snap->nr_spaces > snap->max_spaces) {
			kvfree(snap->spaces);
			snap->max_spaces = room_for(snap->nr_spaces);
			snap->spaces = kvmalloc_objs(*snap->spaces,
						     snap->max_spaces,
						     GFP_KERNEL_ACCOUNT);
			if (!snap->spaces)
				return -ENOMEM;
		} else if (snap->nr_rows > snap->max_rows) {
			kvfree(snap->rows);
			snap->max_rows = room_for(snap->nr_rows);
			snap->rows = kvmalloc_objs(*snap->rows, snap->max_rows,
						   GFP_KERNEL_ACCOUNT);
			if (!snap->rows)
				return -ENOMEM;
		} else {
			return 0;
		}
	}
}

static void show_header(struct seq_file *m, struct snapshot *snap)
{
	u64 generation;
	int i;

	for (i = 0; i < snap->nr_spaces; i++) {
		generation = snap->spaces[i].generation;
		seq_printf(m, "# address space %d: set %d is active, generation %llu%s\n",
			   i, snap->spaces[i].node_idx,
			   generation & ~KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
			   generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS ?
			   ", an update waits for readers" : "");
	}
	if (!snap->locked)
		seq_puts(m, "# slots_lock is taken: inactive sets are not shown\n");
	seq_puts(m, "# sets   as    id            gfn          pages               hva   flags\n");
}

static void show_row(struct seq_file *m, const struct slot_row *row)
{
	static const char * const sets[] = {
		[IN_ACTIVE] = "active",
		[IN_INACTIVE] = "inactive",
		[IN_ACTIVE | IN_INACTIVE] = "both",
	};

	seq_printf(m, "%-8s %2u %5d %#14llx %#14lx %#17lx %#7x", sets[row->sets],
		   row->as_id, row->id, row->base_gfn, row->npages,
		   row->userspace_addr, row->flags);
	if (row->flags & KVM_MEM_LOG_DIRTY_PAGES)
		seq_puts(m, " log");
	if (row->has_bitmap)
		seq_puts(m, " bitmap");
	if (row->flags & KVM_MEM_READONLY)
		seq_puts(m, " readonly");
	if (row->flags & KVM_MEM_GUEST_MEMFD)
		seq_puts(m, " guest_memfd");
	if (row->flags & KVM_MEMSLOT_INVALID)
		seq_puts(m, " INVALID");
	if (row->id >= KVM_USER_MEM_SLOTS)
		seq_puts(m, " internal");
	seq_putc(m, '\n');
}

/* Position 0 is the header, position n the nth row. */
static void *memslots_start(struct seq_file *m, loff_t *pos)
{
	struct snapshot *snap = m->private;

	if (!*pos)
		return SEQ_START_TOKEN;
	return *pos <= snap->nr_rows ? &snap->rows[*pos - 1] : NULL;
}

static void *memslots_next(struct seq_file *m, void *v, loff_t *pos)
{
	++*pos;
	return memslots_start(m, pos);
}

static void memslots_stop(struct seq_file *m, void *v)
{
}

static int memslots_show(struct seq_file *m, void *v)
{
	if (v == SEQ_START_TOKEN)
		show_header(m, m->private);
	else
		show_row(m, v);
	return 0;
}

static const struct seq_operations memslots_seq_ops = {
	.start	= memslots_start,
	.next	= memslots_next,
	.stop	= memslots_stop,
	.show	= memslots_show,
};

static void free_snapshot(struct inode *inode, struct file *file)
{
	struct snapshot *snap = ((struct seq_file *)file->private_data)->private;

	kvfree(snap->rows);
	kvfree(snap->spaces);
	seq_release_private(inode, file);
}

static int memslots_open(struct inode *inode, struct file *file)
{
	struct kvm *kvm = inode->i_private;
	struct snapshot *snap;
	int r = -ENOMEM;

	if (!kvm_get_kvm_safe(kvm))
		return -ENOENT;

	snap = __seq_open_private(file, &memslots_seq_ops, sizeof(*snap));
	if (!snap)
		goto err_put;

	r = take_snapshot(kvm, snap);
	if (r) {
		free_snapshot(inode, file);
		goto err_put;
	}
	return 0;

err_put:
	kvm_put_kvm(kvm);
	return r;
}

static int memslots_release(struct inode *inode, struct file *file)
{
	free_snapshot(inode, file);
	kvm_put_kvm(inode->i_private);
	return 0;
}

static const struct file_operations memslots_fops = {
	.owner		= THIS_MODULE,
	.open		= memslots_open,
	.read		= seq_read,
	.llseek		= seq_lseek,
	.release	= memslots_release,
};

void kvm_memory_create_vm_debugfs(struct kvm *kvm)
{
	/* Host addresses are nobody's business but root's. */
	debugfs_create_file("memslots", 0400, kvm->debugfs_dentry, kvm,
			    &memslots_fops);
}
