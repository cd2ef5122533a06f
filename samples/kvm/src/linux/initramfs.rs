// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! An initramfs: a cpio archive in the format `newc`, which the kernel unpacks.
//!
//! Source: `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::{path::Path, process::Command};

use anyhow::{ensure, Context, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive that grows entry by entry.
pub struct Initramfs {
    archive: Vec<u8>,
    entries: u32,
}

impl Initramfs {
    pub fn new() -> Initramfs {
        Initramfs {
            archive: Vec::new(),
            entries: 0,
        }
    }

    /// A root file system of busybox, whose `/init` is the shell script `init`.
    pub fn with_busybox(busybox: &Path, init: &str) -> Result<Initramfs> {
        let mut fs = Initramfs::new();
        for dir in ["bin", "dev", "proc", "sys", "tmp"] {
            fs.directory(dir)?;
        }
        // The kernel opens the console before init can mount a file system.
        fs.add("dev/console", CHARACTER_DEVICE, (5, 1), &[])?;
        fs.host_file("bin/busybox", busybox)?;
        fs.file("init", init.as_bytes())?;
        Ok(fs)
    }

    pub fn directory(&mut self, path: &str) -> Result<()> {
        self.add(path, DIRECTORY, (0, 0), &[])
    }

    /// Adds an executable file.
    pub fn file(&mut self, path: &str, contents: &[u8]) -> Result<()> {
        self.add(path, PROGRAM, (0, 0), contents)
    }

    /// Adds a copy of the host's file `from`.
    pub fn host_file(&mut self, path: &str, from: &Path) -> Result<()> {
        let contents =
            std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(path, &contents)
    }

    /// Adds a copy of the host's program `from`, and of the libraries that it is linked to.
    pub fn host_program(&mut self, from: &Path) -> Result<()> {
        let ldd = Command::new("ldd")
            .arg(from)
            .output()
            .context("cannot run ldd")?;
        ensure!(
            ldd.status.success(),
            "ldd {}: {}",
            from.display(),
            String::from_utf8_lossy(&ldd.stderr).trim()
        );
        let libraries = String::from_utf8(ldd.stdout)?;
        let libraries = libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        for file in libraries.map(Path::new).chain([from]) {
            let path = file.strip_prefix("/").context("a program needs its path")?;
            let mut above: Vec<_> = path.ancestors().skip(1).collect();
            // The last one is the root.
            above.pop();
            for dir in above.into_iter().rev() {
                self.directory(&dir.to_string_lossy())?;
            }
            self.host_file(&path.to_string_lossy(), file)?;
        }
        Ok(())
    }

    /// The finished archive.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.add("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.archive)
    }

    fn add(&mut self, path: &str, mode: u32, rdev: (u32, u32), contents: &[u8]) -> Result<()> {
        let size = u32::try_from(contents.len()).with_context(|| format!("{path} is too large"))?;
        ensure!(!path.contains('\0'), "a path has a NUL in it");
        self.entries += 1;
        let (uid, gid, links, mtime, dev, check) = (0, 0, 1, 0, (0, 0), 0);
        self.archive.extend(b"070701");
        for field in [
            self.entries, // the inode
            mode,
            uid,
            gid,
            links,
            mtime,
            size,
            dev.0,
            dev.1,
            rdev.0,
            rdev.1,
            path.len() as u32 + 1,
            check,
        ] {
            self.archive.extend(format!("{field:08x}").bytes());
        }
        self.archive.extend(path.bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend(contents);
        self.pad();
        Ok(())
    }

    /// Headers and contents start at multiples of 4.
    fn pad(&mut self) {
        self.archive
            .resize(self.archive.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_a_trailer_ends_them() -> Result<()> {
        let mut fs = Initramfs::new();
        fs.directory("d")?;
        fs.file("d/f", b"hello")?;
        let archive = fs.finish()?;

        let mut at = 0;
        let mut found = Vec::new();
        while at < archive.len() {
            let field = |n: usize| {
                let start = at + 6 + 8 * n;
                std::str::from_utf8(&archive[start..start + 8])
                    .ok()
                    .and_then(|hex| usize::from_str_radix(hex, 16).ok())
                    .context("not a number")
            };
            assert_eq!(&archive[at..at + 6], b"070701");
            let (size, name) = (field(6)?, field(11)?);
            let name_at = at + 110;
            let path = String::from_utf8(archive[name_at..name_at + name - 1].to_vec())?;
            let data = (name_at + name).next_multiple_of(4);
            found.push((path, field(1)?, archive[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
        assert_eq!(
            found,
            [
                ("d".to_owned(), 0o040_755, vec![]),
                ("d/f".to_owned(), 0o100_755, b"hello".to_vec()),
                ("TRAILER!!!".to_owned(), 0, vec![]),
            ]
        );
        Ok(())
    }
}
