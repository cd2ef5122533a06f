// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! An update beside other threads, in all interleavings.

use loom::sync::Arc;
use loom::thread;

/// Runs `update` on what `new` makes together with `others`, in all interleavings, and `check` after each.
/// With more than one other thread, only in those with at most three preemptions, as all would take hours.
pub fn run<M: 'static>(
    new: impl Fn() -> M + Send + Sync + 'static,
    update: impl Fn(&M) + Send + Sync + 'static,
    others: &'static [fn(&M)],
    check: impl Fn(&M) + Send + Sync + 'static,
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = (others.len() > 1).then_some(3);
    builder.check(move || {
        let model = Arc::new(new());
        let others: Vec<_> = others
            .iter()
            .map(|other| {
                let model = model.clone();
                thread::spawn(move || other(&model))
            })
            .collect();
        update(&model);
        for other in others {
            other.join().expect("the thread did not panic");
        }
        check(&model);
    });
}
