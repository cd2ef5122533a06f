// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! A model of how `rust/kvm/memslots/changes.rs` commits a batch. loom runs it with vCPUs through all
//! interleavings.
//!
//! The batch deletes a slot and creates another one at the same frame and host address, as a batch does
//! that resizes a slot under a running guest. Steps have the names that they have in `changes.rs`.
//! [`Step`] has each rule about their order: a test breaks the rule, and the model must fail.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex, MutexGuard};

use crate::interleavings;

/// A rule that the update breaks.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    None,
    /// Removes the slot from the list, without an INVALID copy.
    RemoveAtOnce,
    /// Does not wait for readers after a swap.
    NoGracePeriod,
    /// Flushes the page tables before it publishes the INVALID copy.
    FlushFirst,
    /// Ignores what a vCPU allocated for slots while slots_arch_lock was free.
    NoRefresh,
    /// Carries dirty bits before it publishes the final slots.
    CarryFirst,
    /// Frees the INVALID copy before it publishes the final slots.
    FreeFirst,
    /// Does not update the list that was active last.
    OneListOnly,
}

/// A memslot, by its number: to a reader the slots of the model differ in nothing else.
type Node = usize;
const OLD: Node = 0;
const INVALID: Node = 1;
const NEW: Node = 2;

/// A list of one frame.
type List = Option<Node>;

struct Vm {
    lists: [UnsafeCell<List>; 2],
    active: AtomicUsize,
    /// Whether a slot is freed. Readers look without a lock, so loom finds accesses that race.
    freed: [UnsafeCell<bool>; 3],
    /// The frame's dirty bit in the log of OLD and INVALID, and in the log of NEW.
    dirty: [AtomicBool; 2],
    srcu: Srcu,
    arch: Mutex<Arch>,
    /// The slot from which the entry of the second-level page table came.
    spte: Mutex<Option<Node>>,
}

/// What slots_arch_lock protects.
#[derive(Default)]
struct Arch {
    shadow_root: bool,
    /// For each slot, whether it has what a shadow root needs.
    rmaps: [bool; 3],
}

/// Counts the readers that began in even and in odd grace periods.
struct Srcu {
    state: Mutex<(usize, [usize; 2])>,
    left: Condvar,
}

impl Srcu {
    fn read<T>(&self, section: impl FnOnce() -> T) -> T {
        let period = {
            let mut state = lock(&self.state);
            let period = state.0;
            state.1[period] += 1;
            period
        };
        let result = section();
        lock(&self.state).1[period] -= 1;
        self.left.notify_all();
        result
    }

    fn synchronize(&self) {
        let mut state = lock(&self.state);
        let period = state.0;
        state.0 ^= 1;
        while state.1[period] > 0 {
            state = self.left.wait(state).expect("no thread panicked");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panicked")
}

impl Vm {
    fn new() -> Self {
        Self {
            lists: [0, 1].map(|_| UnsafeCell::new(Some(OLD))),
            active: AtomicUsize::new(0),
            freed: [0, 1, 2].map(|_| UnsafeCell::new(false)),
            dirty: [0, 1].map(|_| AtomicBool::new(false)),
            srcu: Srcu {
                state: Mutex::new((0, [0, 0])),
                left: Condvar::new(),
            },
            arch: Mutex::new(Arch::default()),
            spte: Mutex::new(None),
        }
    }

    /// A look-up by a reader, in a section of `srcu`.
    fn find(&self) -> Node {
        let list = &self.lists[self.active.load(Ordering::Acquire)];
        // SAFETY: Readers may read at any time. loom finds a writer that races.
        let node = list.with(|list| unsafe { *list });
        let node = node.expect("a frame that neither the old nor the new slot has");
        self.touch(node);
        node
    }

    fn touch(&self, node: Node) {
        // SAFETY: As in `find`.
        let freed = self.freed[node].with(|freed| unsafe { *freed });
        assert!(!freed, "use of a slot after it was freed");
    }

    fn mark_dirty(&self, node: Node) {
        self.touch(node);
        self.dirty[usize::from(node == NEW)].store(true, Ordering::Relaxed);
    }

    /// kvm_write_guest().
    fn write(&self) {
        self.srcu.read(|| self.mark_dirty(self.find()));
    }

    /// A page fault on a write. Does nothing on an INVALID slot: the guest faults again, and a later fault
    /// is another interleaving.
    fn fault(&self) {
        self.srcu.read(|| {
            let node = self.find();
            if node != INVALID {
                let mut spte = lock(&self.spte);
                self.mark_dirty(node);
                *spte = Some(node);
            }
        });
    }

    /// The first shadow root gives rmaps to all slots in the lists.
    fn shadow_root(&self) {
        self.srcu.read(|| {
            let mut arch = lock(&self.arch);
            let node = self.find();
            arch.rmaps[node] = true;
            arch.shadow_root = true;
        });
    }

    fn set_inactive(&self, list: List) {
        let inactive = self.active.load(Ordering::Relaxed) ^ 1;
        // SAFETY: Only updates change lists, one at a time. loom finds a reader that races.
        self.lists[inactive].with_mut(|to| unsafe { *to = list });
    }

    fn free(&self, node: Node) {
        // SAFETY: As in `set_inactive`.
        self.freed[node].with_mut(|freed| unsafe { *freed = true });
    }

    /// Drops the lock before it waits: otherwise it would deadlock with a vCPU that makes a shadow root.
    /// No test breaks this rule, as loom finds the deadlock but does not survive it.
    fn swap(&self, arch: MutexGuard<'_, Arch>, wrong: Step) {
        let active = self.active.load(Ordering::Relaxed);
        self.active.store(active ^ 1, Ordering::Release);
        drop(arch);
        if wrong != Step::NoGracePeriod {
            self.srcu.synchronize();
        }
    }

    fn flush(&self) {
        *lock(&self.spte) = None;
    }

    fn carry_dirty_bits(&self) {
        if self.dirty[0].load(Ordering::Relaxed) {
            self.dirty[1].store(true, Ordering::Relaxed);
        }
    }

    fn update(&self, wrong: Step) {
        let invalid = (wrong != Step::RemoveAtOnce).then_some(INVALID);

        // prepare
        let mut arch = lock(&self.arch);
        arch.rmaps[NEW] = arch.shadow_root;

        // invalidate
        if wrong == Step::FlushFirst {
            self.flush();
        }
        arch.rmaps[INVALID] = arch.rmaps[OLD];
        self.set_inactive(invalid);
        self.swap(arch, wrong);
        self.set_inactive(invalid);
        if wrong != Step::FlushFirst {
            self.flush();
        }
        let mut arch = lock(&self.arch);
        if wrong != Step::NoRefresh {
            arch.rmaps[OLD] = arch.rmaps[INVALID];
            arch.rmaps[NEW] = arch.shadow_root;
        }

        // publish
        if wrong == Step::CarryFirst {
            self.carry_dirty_bits();
        }
        if wrong == Step::FreeFirst {
            self.free(INVALID);
        }
        self.set_inactive(Some(NEW));
        self.swap(arch, wrong);
        if wrong != Step::CarryFirst {
            self.carry_dirty_bits();
        }
        if wrong != Step::OneListOnly {
            self.set_inactive(Some(NEW));
        }

        // finish
        self.free(OLD);
        if wrong != Step::FreeFirst {
            self.free(INVALID);
        }
    }

    /// What must hold after the update and the vCPUs have ended.
    fn check(&self) {
        for list in &self.lists {
            // SAFETY: All other threads have ended.
            let list = list.with(|list| unsafe { *list });
            assert_eq!(list, Some(NEW), "the lists differ");
        }
        let spte = *lock(&self.spte);
        assert!(matches!(spte, None | Some(NEW)), "an old mapping is left");
        let arch = lock(&self.arch);
        assert!(arch.rmaps[NEW] || !arch.shadow_root, "a slot has no rmaps");
        let [old, new] = self.dirty.each_ref().map(|bit| bit.load(Ordering::Relaxed));
        assert!(new || !old, "a dirty bit is lost");
    }
}

/// Runs an update that breaks the rule `wrong` together with `vcpus`.
fn model(wrong: Step, vcpus: &'static [fn(&Vm)]) {
    interleavings::run(Vm::new, move |vm| vm.update(wrong), vcpus, Vm::check);
}

#[test]
fn a_vcpu_that_writes() {
    model(Step::None, &[Vm::write]);
}

#[test]
fn a_vcpu_that_faults() {
    model(Step::None, &[Vm::fault]);
}

#[test]
fn a_vcpu_that_makes_a_shadow_root() {
    model(Step::None, &[Vm::shadow_root]);
}

#[test]
fn two_vcpus() {
    model(Step::None, &[Vm::write, Vm::fault]);
    model(Step::None, &[Vm::fault, Vm::shadow_root]);
}

#[test]
#[should_panic(expected = "neither the old nor the new slot")]
fn removing_a_slot_at_once_leaves_a_hole() {
    model(Step::RemoveAtOnce, &[Vm::write]);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn lists_are_not_changed_before_a_grace_period() {
    model(Step::NoGracePeriod, &[Vm::write]);
}

#[test]
#[should_panic(expected = "an old mapping is left")]
fn flushing_first_leaves_mappings() {
    model(Step::FlushFirst, &[Vm::fault]);
}

#[test]
#[should_panic(expected = "a slot has no rmaps")]
fn prepared_slots_miss_rmaps_without_a_refresh() {
    model(Step::NoRefresh, &[Vm::shadow_root]);
}

#[test]
#[should_panic(expected = "a dirty bit is lost")]
fn carrying_dirty_bits_first_loses_some() {
    model(Step::CarryFirst, &[Vm::write]);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn slots_are_not_freed_before_a_grace_period() {
    model(Step::FreeFirst, &[Vm::write]);
}

#[test]
#[should_panic(expected = "the lists differ")]
fn both_lists_are_brought_up_to_date() {
    model(Step::OneListOnly, &[]);
}
