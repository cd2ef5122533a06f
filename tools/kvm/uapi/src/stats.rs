// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! KVM's binary statistics that are single numbers.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{kvm_stats_desc, kvm_stats_header, KVMIO};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

// kvm-bindings has the structs, but no numbers of ioctls.
ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// Statistics of a VM or a vCPU (`KVM_GET_STATS_FD`), by their names.
///
/// A vCPU has, for example, `exits`, the number of times that it left guest
/// mode, and `pf_taken`, the number of page faults of the guest that KVM
/// handled. A VM has `memslot_list_calls`, the number of lists of memslot
/// updates. All are cumulative.
///
/// Source: "KVM_GET_STATS_FD" in `Documentation/virt/kvm/api.rst`.
pub trait Stats {
    /// A counter for the statistic of this name, which must be a single number;
    /// `None` if KVM does not have it.
    ///
    /// # Errors
    ///
    /// The error of `KVM_GET_STATS_FD`, for example if this kernel has no
    /// statistics, or of reading the file.
    ///
    /// # Example
    ///
    /// The counter is read while another thread runs the vCPU:
    ///
    /// ```no_run
    /// use kvm_ioctls::Kvm;
    /// use kvm_memory_uapi::Stats;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let vm = Kvm::new()?.create_vm()?;
    /// let mut vcpu = vm.create_vcpu(0)?;
    /// let faults = vcpu.counter("pf_taken")?.ok_or("this KVM does not count page faults")?;
    /// let guest = std::thread::spawn(move || vcpu.run().is_ok());
    /// let before = faults.read()?;
    /// // ... update a memslot ...
    /// println!("{} page faults", faults.read()? - before);
    /// # Ok(())
    /// # }
    /// ```
    fn counter(&self, name: &str) -> io::Result<Option<Counter>>;

    /// The statistic of this name, which must be a single number; `None` if KVM
    /// does not have it. To read one again and again, [`counter`](Self::counter)
    /// looks it up only once.
    ///
    /// # Errors
    ///
    /// As for [`counter`](Self::counter).
    ///
    /// # Example
    ///
    /// ```no_run
    /// use kvm_ioctls::Kvm;
    /// use kvm_memory_uapi::Stats;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let vm = Kvm::new()?.create_vm()?;
    /// let vcpu = vm.create_vcpu(0)?;
    /// assert_eq!(vcpu.stat("pf_taken")?, Some(0));
    /// assert_eq!(vcpu.stat("pf_given")?, None);
    /// # Ok(())
    /// # }
    /// ```
    fn stat(&self, name: &str) -> io::Result<Option<u64>> {
        self.counter(name)?
            .map(|counter| counter.read())
            .transpose()
    }
}

impl Stats for VmFd {
    fn counter(&self, name: &str) -> io::Result<Option<Counter>> {
        Counter::find(file(self)?, name)
    }
}

impl Stats for VcpuFd {
    fn counter(&self, name: &str) -> io::Result<Option<Counter>> {
        Counter::find(file(self)?, name)
    }
}

/// One statistic of a VM or a vCPU, from [`Stats::counter`]. Any thread can read
/// it. KVM keeps the VM for as long as the counter exists.
#[derive(Debug)]
pub struct Counter {
    file: File,
    /// Where the number is in the file.
    offset: u64,
}

impl Counter {
    fn find(file: File, name: &str) -> io::Result<Option<Self>> {
        Ok(find(&file, name)?.map(|offset| Counter { file, offset }))
    }

    /// The number now.
    ///
    /// # Errors
    ///
    /// The error of reading the file.
    pub fn read(&self) -> io::Result<u64> {
        number(&self.file, self.offset)
    }
}

/// The file with the statistics of a VM or a vCPU.
fn file(of: &impl AsRawFd) -> io::Result<File> {
    // SAFETY: on a descriptor of KVM this ioctl takes no argument.
    let fd = unsafe { ioctl(of, KVM_GET_STATS_FD()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Where in the file the number of this name is.
fn find(file: &impl FileExt, name: &str) -> io::Result<Option<u64>> {
    let mut bytes = [0; size_of::<kvm_stats_header>()];
    file.read_exact_at(&mut bytes, 0)?;
    // flags, name_size, num_desc, id_offset, desc_offset, data_offset
    let [_, name_size, descs, _, desc_offset, data_offset] =
        [0, 4, 8, 12, 16, 20].map(|at| u64::from(u32_at(&bytes, at)));

    let fixed = size_of::<kvm_stats_desc>();
    let size = fixed as u64 + name_size;
    let mut desc = vec![0; size as usize];
    for i in 0..descs {
        file.read_exact_at(&mut desc, desc_offset + i * size)?;
        let found = desc[fixed..].split(|&byte| byte == 0).next();
        if found == Some(name.as_bytes()) {
            // flags: u32, exponent: i16, size: u16, offset: u32
            return Ok(Some(data_offset + u64::from(u32_at(&desc, 8))));
        }
    }
    Ok(None)
}

fn number(file: &impl FileExt, offset: u64) -> io::Result<u64> {
    let mut value = [0; 8];
    file.read_exact_at(&mut value, offset)?;
    Ok(u64::from_ne_bytes(value))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in KVM's format, in memory.
    struct Bytes(Vec<u8>);

    impl FileExt for Bytes {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let rest = self.0.get(offset as usize..).unwrap_or(&[]);
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn stats() -> Bytes {
        let mut bytes = Vec::new();
        let mut words = |words: &[u32], name: &[u8]| {
            bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
            bytes.extend(name);
        };
        words(&[0, 8, 2, 24, 32, 80], b"kvm-1\0\0\0");
        words(&[0, 1 << 16, 0, 0], b"pf\0\0\0\0\0\0");
        words(&[0, 1 << 16, 8, 0], b"pf_take\0");
        words(&[7, 0, 9, 1], b"");
        Bytes(bytes)
    }

    fn read(bytes: &Bytes, name: &str) -> io::Result<Option<u64>> {
        let offset = find(bytes, name)?;
        offset.map(|offset| number(bytes, offset)).transpose()
    }

    #[test]
    fn a_stat_is_found_by_its_whole_name() -> io::Result<()> {
        assert_eq!(read(&stats(), "pf")?, Some(7));
        assert_eq!(read(&stats(), "pf_take")?, Some((1 << 32) + 9));
        assert_eq!(read(&stats(), "pf_t")?, None);
        assert_eq!(read(&stats(), "")?, None);
        Ok(())
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let Bytes(mut bytes) = stats();
        bytes.pop();
        let read = read(&Bytes(bytes), "pf_take").map_err(|e| e.kind());
        assert_eq!(read, Err(io::ErrorKind::UnexpectedEof));
    }
}
