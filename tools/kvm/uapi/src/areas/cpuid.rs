// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The CPUID bit that lets a guest use memory areas.

use kvm_bindings::{kvm_cpuid_entry2, CpuId};

use crate::bindings::KVM_FEATURE_MEM_AREA;

/// `KVM_CPUID_SIGNATURE` in EBX, ECX and EDX: "KVMKVMKVM".
const SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];

/// Lets the guest use areas, by the bit `KVM_FEATURE_MEM_AREA` of KVM's features.
///
/// The VMM passes `cpuid` to each vCPU. Returns whether `cpuid` has the leaf with KVM's features;
/// without it there is no place for the bit, and the guest has no areas.
///
/// # Example
///
/// ```no_run
/// use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
/// use kvm_ioctls::Kvm;
/// use kvm_memory_uapi::{offer_areas, VmFdMemoryExt};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let kvm = Kvm::new()?;
/// let vm = kvm.create_vm()?;
/// let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
/// if vm.can_serve_areas() && offer_areas(&mut cpuid) {
///     vm.serve_areas(true)?;
/// }
/// vm.create_vcpu(0)?.set_cpuid2(&cpuid)?;
/// # Ok(())
/// # }
/// ```
pub fn offer_areas(cpuid: &mut CpuId) -> bool {
    offer_in(cpuid.as_mut_slice())
}

fn offer_in(entries: &mut [kvm_cpuid_entry2]) -> bool {
    // A VMM that also offers Hyper-V's leaves moves KVM's up by 0x100 at a time.
    let Some(base) = entries
        .iter()
        .filter(|e| (0x4000_0000..0x4001_0000).contains(&e.function) && e.function & 0xff == 0)
        .find(|e| [e.ebx, e.ecx, e.edx] == SIGNATURE)
        .map(|e| e.function)
    else {
        return false;
    };
    let Some(features) = entries.iter_mut().find(|e| e.function == base + 1) else {
        return false;
    };
    features.eax |= 1 << KVM_FEATURE_MEM_AREA;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, [ebx, ecx, edx]: [u32; 3]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    #[test]
    fn the_bit_is_in_kvms_leaf_wherever_that_is() {
        let hyperv = leaf(0x4000_0000, [1, 2, 3]);
        for base in [0x4000_0000, 0x4000_0100] {
            let mut entries = [
                leaf(0, SIGNATURE),
                hyperv,
                leaf(base + 1, [0; 3]),
                leaf(base, SIGNATURE),
            ];
            assert!(offer_in(&mut entries));
            let bits: Vec<_> = entries.iter().map(|e| e.eax).collect();
            assert_eq!(bits, [0, 0, 1 << 23, 0]);
        }
        assert!(!offer_in(&mut [hyperv, leaf(0x4000_0001, [0; 3])]));
        assert!(!offer_in(&mut [leaf(0x4000_0000, SIGNATURE)]));
        assert!(!offer_in(&mut []));
        assert_eq!(SIGNATURE.map(u32::to_le_bytes).concat(), b"KVMKVMKVM\0\0\0");
    }
}
