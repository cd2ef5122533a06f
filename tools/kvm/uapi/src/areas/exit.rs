// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! `KVM_EXIT_X86_MSR_OP` of a vCPU.

use std::mem::{align_of, size_of_val};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

use super::request::{Answer, Request};
use crate::bindings::{kvm_x86_msr_op, KVM_EXIT_X86_MSR_OP};

/// The reason of the exit that [`VcpuFdAreaExt::serve_area`] completes, which
/// [`VcpuFd::run`] returns as [`VcpuExit::Unsupported`](kvm_ioctls::VcpuExit::Unsupported).
pub const MSR_OP_EXIT: u32 = KVM_EXIT_X86_MSR_OP;

/// Areas that the VMM serves, on a [`VcpuFd`].
///
/// Source: `Documentation/virt/kvm/memory/areas.rst`.
pub trait VcpuFdAreaExt {
    /// Answers the request with which the vCPU has left [`VcpuFd::run`].
    ///
    /// A request that has been looked at is also answered: `serve` must return an [`Answer`], and
    /// the vCPU cannot run before it has. The guest finds the answer when the vCPU runs again.
    /// A VMM that does not call this answers [`Answer::UnknownType`].
    ///
    /// Returns the request and what `serve` has answered; [`None`], without a call of
    /// `serve`, if the vCPU has left for another reason.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use kvm_ioctls::{VcpuExit, VcpuFd};
    /// use kvm_memory_uapi::{Answer, Area, Request, VcpuFdAreaExt, MSR_OP_EXIT};
    ///
    /// const HEARTBEAT: u32 = 0x8000_0001;
    ///
    /// fn run(vcpu: &mut VcpuFd, heartbeat: &mut Option<Area>) -> Result<(), kvm_ioctls::Error> {
    ///     loop {
    ///         match vcpu.run()? {
    ///             VcpuExit::Unsupported(MSR_OP_EXIT) => {}
    ///             exit => unimplemented!("{exit:?}"),
    ///         }
    ///         vcpu.serve_area(|request| match request {
    ///             Request::Register(area) if area.kind != HEARTBEAT => Answer::UnknownType,
    ///             Request::Register(area) if area.size != 8 => Answer::BadSize,
    ///             Request::Register(area) => {
    ///                 *heartbeat = Some(area);
    ///                 Answer::Done
    ///             }
    ///             Request::Unregister(area) if *heartbeat != Some(area) => Answer::NotRegistered,
    ///             Request::Unregister(_) | Request::UnregisterAll => {
    ///                 *heartbeat = None;
    ///                 Answer::Done
    ///             }
    ///         });
    ///     }
    /// }
    /// ```
    ///
    /// A closure that forgets a case does not compile:
    ///
    /// ```compile_fail
    /// # use kvm_ioctls::VcpuFd;
    /// # use kvm_memory_uapi::VcpuFdAreaExt;
    /// fn ignore(vcpu: &mut VcpuFd) {
    ///     vcpu.serve_area(|_request| {});
    /// }
    /// ```
    fn serve_area<F>(&mut self, serve: F) -> Option<(Request, Answer)>
    where
        F: FnOnce(Request) -> Answer;
}

impl VcpuFdAreaExt for VcpuFd {
    fn serve_area<F>(&mut self, serve: F) -> Option<(Request, Answer)>
    where
        F: FnOnce(Request) -> Answer,
    {
        serve_in(self.get_kvm_run(), serve)
    }
}

fn serve_in<F>(run: &mut kvm_run, serve: F) -> Option<(Request, Answer)>
where
    F: FnOnce(Request) -> Answer,
{
    if run.exit_reason != MSR_OP_EXIT {
        return None;
    }
    let op = msr_op(run);
    let request = Request::from_uapi(op);
    let answer = serve(request);
    answer.write_to(op);
    Some((request, answer))
}

/// The exit's data. It is in the union that all exits share; [`kvm_bindings`] does not know this
/// member.
fn msr_op(run: &mut kvm_run) -> &mut kvm_x86_msr_op {
    let union = &mut run.__bindgen_anon_1;
    assert!(size_of_val(union) >= size_of::<kvm_x86_msr_op>());
    assert!(align_of_val(union) >= align_of::<kvm_x86_msr_op>());
    let op: *mut kvm_x86_msr_op = std::ptr::from_mut(union).cast();
    // SAFETY: The union is large and aligned enough, and is borrowed for as long as the
    // result. All fields are integers, for which every bit pattern is valid.
    unsafe { &mut *op }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::{MSR_KVM_REGISTER_MEM_AREA, MSR_KVM_UNREGISTER_MEM_AREA};

    #[test]
    fn the_answer_is_where_kvm_looks_for_it() {
        let mut run = kvm_run {
            exit_reason: MSR_OP_EXIT,
            ..Default::default()
        };
        let start = std::ptr::from_ref(&run) as usize;
        let op = msr_op(&mut run);
        assert_eq!(std::ptr::from_ref(op) as usize - start, 32);
        op.msr_data = 0x2000;
        op.index = MSR_KVM_REGISTER_MEM_AREA;
        op.result = 1;

        let served = serve_in(&mut run, |request| {
            assert!(matches!(request, Request::Register(_)));
            Answer::Denied
        });
        assert!(matches!(served, Some((_, Answer::Denied))));
        assert_eq!((msr_op(&mut run).error, msr_op(&mut run).result), (0, 7));

        msr_op(&mut run).index = MSR_KVM_UNREGISTER_MEM_AREA;
        assert!(serve_in(&mut run, |_| Answer::Fault).is_some());
        assert_eq!(msr_op(&mut run).error, 1);
    }

    #[test]
    fn other_exits_are_left_alone() {
        let mut run = kvm_run::default();
        assert_eq!(serve_in(&mut run, |_| unreachable!()), None);
    }
}
