// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! A model of `try_synchronize_srcu()`, by which an update finds out that nobody reads the lists that it has
//! replaced. loom runs it with readers through all interleavings, and all orders of memory accesses that the
//! barriers allow.
//!
//! The barriers have the letters that they have in `kernel/rcu/srcutree.c`. [`Step`] has each rule that the
//! function rests on: a test breaks the rule, and the model must fail.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{fence, AtomicUsize, Ordering::*};

use crate::interleavings;

/// A rule that the update breaks.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    None,
    /// Looks at the index that readers use now, and not at the other one.
    OneIndex,
    /// Adds up the locks first.
    LocksFirst,
    /// Has no barrier between replacing the list and looking for readers.
    NoBarrierA,
    /// Readers have no barrier between their lock and their first access.
    NoBarrierB,
    /// Readers have no barrier between their last access and their unlock.
    NoBarrierC,
}

const CPUS: usize = 2;

/// Counts of readers that have begun and ended, for each CPU, of one index.
#[derive(Default)]
struct Counts {
    locks: [AtomicUsize; CPUS],
    unlocks: [AtomicUsize; CPUS],
}

struct Model {
    counts: [Counts; 2],
    /// The index that readers use who begin now.
    index: AtomicUsize,
    /// Which of `freed` is active.
    active: AtomicUsize,
    /// Whether a list is freed. loom finds a reader that races.
    freed: [UnsafeCell<bool>; 2],
    wrong: Step,
}

fn sum(counts: &[AtomicUsize; CPUS]) -> usize {
    counts.iter().map(|count| count.load(Relaxed)).sum()
}

impl Model {
    fn new(wrong: Step) -> Self {
        Self {
            counts: Default::default(),
            index: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            freed: [0, 1].map(|_| UnsafeCell::new(false)),
            wrong,
        }
    }

    /// A reader that begins on one CPU and ends on another.
    fn read(&self, begins_on: usize, ends_on: usize) {
        let index = self.index.load(Relaxed);
        self.counts[index].locks[begins_on].fetch_add(1, Relaxed);
        if self.wrong != Step::NoBarrierB {
            fence(SeqCst);
        }
        // Relaxed, where the kernel has a dependent load: what it finds was there from the start.
        let list = self.active.load(Relaxed);
        // SAFETY: Readers may read at any time. loom finds a writer that races.
        let freed = self.freed[list].with(|freed| unsafe { *freed });
        assert!(!freed, "a reader sees a list that was freed");
        if self.wrong != Step::NoBarrierC {
            fence(SeqCst);
        }
        self.counts[index].unlocks[ends_on].fetch_add(1, Relaxed);
    }

    /// `srcu_readers_active_idx_check()`
    fn is_idle(&self, index: usize) -> bool {
        let counts = &self.counts[index];
        let barrier_a = || {
            if self.wrong != Step::NoBarrierA {
                fence(SeqCst);
            }
        };
        if self.wrong == Step::LocksFirst {
            barrier_a();
            let locks = sum(&counts.locks);
            return locks == sum(&counts.unlocks);
        }
        let unlocks = sum(&counts.unlocks);
        barrier_a();
        unlocks == sum(&counts.locks)
    }

    /// Replaces the list, and frees it if nobody reads it.
    fn update(&self) {
        self.active.store(1, Release);
        let now = self.index.load(Relaxed);
        if self.is_idle(now) && (self.wrong == Step::OneIndex || self.is_idle(now ^ 1)) {
            // SAFETY: Nobody else writes here. loom finds a reader that races.
            self.freed[0].with_mut(|freed| unsafe { *freed = true });
        }
    }
}

/// Runs an update together with `others`, where the rule `wrong` is broken.
fn model(wrong: Step, others: &'static [fn(&Model)]) {
    interleavings::run(move || Model::new(wrong), Model::update, others, |_| ());
}

fn stays(model: &Model) {
    model.read(0, 0);
}

fn migrates(model: &Model) {
    model.read(0, 1);
}

fn migrates_back(model: &Model) {
    model.read(1, 0);
}

/// A grace period of somebody else is in progress.
fn flip(model: &Model) {
    fence(SeqCst);
    model.index.store(1, Relaxed);
    fence(SeqCst);
}

#[test]
fn a_reader() {
    model(Step::None, &[stays]);
    model(Step::None, &[migrates]);
}

#[test]
fn two_readers() {
    model(Step::None, &[migrates, migrates_back]);
}

#[test]
fn readers_of_both_indexes() {
    model(Step::None, &[migrates, flip]);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn both_indexes_are_checked() {
    model(Step::OneIndex, &[stays, flip]);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn unlocks_are_added_up_first() {
    model(Step::LocksFirst, &[stays, migrates_back]);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn replacing_the_list_comes_before_looking_for_readers() {
    model(Step::NoBarrierA, &[stays]);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_reader_locks_before_it_reads() {
    model(Step::NoBarrierB, &[stays]);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_reader_unlocks_after_it_has_read() {
    model(Step::NoBarrierC, &[stays]);
}
