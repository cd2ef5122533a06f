// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What a guest asks about memory areas, and what the VMM answers.

use crate::bindings::{
    kvm_x86_msr_op, KVM_MEM_AREA_BAD_ADDRESS, KVM_MEM_AREA_BAD_ALIGNMENT, KVM_MEM_AREA_BAD_PAD,
    KVM_MEM_AREA_BAD_SIZE, KVM_MEM_AREA_DENIED, KVM_MEM_AREA_NOT_REGISTERED, KVM_MEM_AREA_OK,
    KVM_MEM_AREA_UNKNOWN_TYPE, KVM_MEM_AREA_VMM_FIRST, KVM_MEM_AREA_VMM_LAST,
    MSR_KVM_REGISTER_MEM_AREA,
};

/// A range of guest physical addresses, as KVM has read it from the guest and checked it: it is not
/// empty, has at most 1 MiB, and does not wrap around.
///
/// In [`Request::Register`], all of it was in memslots when KVM checked it. In
/// [`Request::Unregister`], it can be anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Area {
    /// Guest physical address in bytes.
    pub guest_phys_addr: u64,
    /// Size in bytes.
    pub size: u32,
    /// What the area is for: 0x80000000 at least.
    pub kind: u32,
}

/// What the guest wants from the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Use this area from now on.
    Register(Area),
    /// Do not use this area any more. The guest may never have registered it.
    Unregister(Area),
    /// Do not use any area any more. The answer is not reported, unless it is [`Answer::Fault`].
    UnregisterAll,
}

impl Request {
    pub(super) fn from_uapi(op: &kvm_x86_msr_op) -> Self {
        let area = Area {
            guest_phys_addr: op.base,
            size: op.size,
            kind: op.type_,
        };
        match op.index {
            MSR_KVM_REGISTER_MEM_AREA => Request::Register(area),
            // Only the command about all areas has no descriptor.
            _ if op.msr_data == 0 => Request::UnregisterAll,
            _ => Request::Unregister(area),
        }
    }
}

/// What the VMM answers.
///
/// # Example
///
/// ```
/// use kvm_memory_uapi::Answer;
///
/// let full = Answer::custom(0x80).expect("a result of the VMM's own");
/// assert_eq!(full.result(), Some(0x80));
/// assert_eq!(Answer::custom(0x7f), None, "reserved for KVM");
/// assert_eq!(Answer::custom(0xff), None, "what the guest presets");
/// assert_eq!(Answer::Fault.result(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the guest waits for the answer"]
pub enum Answer {
    /// The VMM has done it.
    Done,
    /// The VMM does not serve areas of this type.
    UnknownType,
    /// The VMM cannot use this memory.
    BadAddress,
    /// The type has another size.
    BadSize,
    /// The type needs another alignment.
    BadAlignment,
    /// The area is not registered.
    NotRegistered,
    /// The guest may not have the area.
    Denied,
    /// One of the VMM's own results; see [`Answer::custom`].
    Custom(CustomResult),
    /// #GP, for a guest that no result can help.
    Fault,
}

/// A result from 0x80 to 0xfe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CustomResult(u8);

impl Answer {
    /// A result whose meaning the VMM defines, from 0x80 to 0xfe.
    pub fn custom(result: u8) -> Option<Self> {
        (KVM_MEM_AREA_VMM_FIRST..=KVM_MEM_AREA_VMM_LAST)
            .contains(&u32::from(result))
            .then_some(Answer::Custom(CustomResult(result)))
    }

    /// What the guest finds in the descriptor; [`None`] if it gets #GP.
    pub fn result(self) -> Option<u8> {
        let result = match self {
            Answer::Done => KVM_MEM_AREA_OK,
            Answer::UnknownType => KVM_MEM_AREA_UNKNOWN_TYPE,
            Answer::BadAddress => KVM_MEM_AREA_BAD_ADDRESS,
            Answer::BadSize => KVM_MEM_AREA_BAD_SIZE,
            Answer::BadAlignment => KVM_MEM_AREA_BAD_ALIGNMENT,
            Answer::NotRegistered => KVM_MEM_AREA_NOT_REGISTERED,
            Answer::Denied => KVM_MEM_AREA_DENIED,
            Answer::Custom(CustomResult(result)) => return Some(result),
            Answer::Fault => return None,
        };
        Some(result as u8)
    }

    pub(super) fn write_to(self, op: &mut kvm_x86_msr_op) {
        op.error = u8::from(self == Answer::Fault);
        op.result = self.result().unwrap_or_default();
    }
}

// All results are bytes.
const _: () = assert!(KVM_MEM_AREA_BAD_PAD < 0x80 && KVM_MEM_AREA_VMM_LAST < 0xff);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::MSR_KVM_UNREGISTER_MEM_AREA;

    fn op(msr_data: u64, index: u32) -> kvm_x86_msr_op {
        kvm_x86_msr_op {
            msr_data,
            base: 0x1000,
            size: 64,
            type_: 0x8000_0001,
            index,
            error: 0,
            result: 1,
            pad: [0; 2],
        }
    }

    #[test]
    fn a_request_is_what_the_msr_and_its_value_say() {
        let area = Area {
            guest_phys_addr: 0x1000,
            size: 64,
            kind: 0x8000_0001,
        };
        let register = MSR_KVM_REGISTER_MEM_AREA;
        let unregister = MSR_KVM_UNREGISTER_MEM_AREA;
        for (op, request) in [
            (op(0x2000, register), Request::Register(area)),
            (op(0, register), Request::Register(area)),
            (op(0x2000, unregister), Request::Unregister(area)),
            (op(0, unregister), Request::UnregisterAll),
        ] {
            assert_eq!(Request::from_uapi(&op), request);
        }
    }

    #[test]
    fn an_answer_is_a_result_or_gp() {
        for (answer, error, result) in [
            (Answer::Done, 0, 0),
            (Answer::UnknownType, 0, 1),
            (Answer::BadAddress, 0, 2),
            (Answer::BadSize, 0, 3),
            (Answer::BadAlignment, 0, 4),
            (Answer::NotRegistered, 0, 6),
            (Answer::Denied, 0, 7),
            (Answer::custom(0xfe).expect("the VMM's"), 0, 0xfe),
            (Answer::Fault, 1, 0),
        ] {
            let mut op = op(0x2000, MSR_KVM_REGISTER_MEM_AREA);
            answer.write_to(&mut op);
            assert_eq!((op.error, op.result), (error, result));
        }
        assert_eq!(
            (0..=255).filter_map(Answer::custom).count(),
            0xfe - 0x80 + 1
        );
    }
}
