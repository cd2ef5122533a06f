// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The areas that this VMM serves: what the guest has registered, and what is in it.
//!
//! A guest can register whatever it likes. KVM has checked that the area was memory
//! when it was registered; each read looks again.

use std::{
    collections::BTreeMap,
    mem::{offset_of, size_of},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use kvm_memory_uapi::{Answer, Area, Request};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{
    areas::layout::{self, Heartbeat, Pressure, Record, LOG_SIZE, REASON_SIZE},
    linux::console::printable,
};

/// The base of each area that is registered, by its type.
pub type Bases = BTreeMap<u32, u64>;

/// The guest's areas, for the vCPU thread that registers them and the thread that
/// reads them. At most one of each type: a second one replaces the first.
#[derive(Clone, Default)]
pub struct Served(Arc<Mutex<Areas>>);

#[derive(Default)]
struct Areas {
    bases: Bases,
    /// The answer about types that the guest may not have.
    refused: BTreeMap<u32, Answer>,
    /// Types that the guest gets, but is not told so.
    lost: Vec<u32>,
}

impl Served {
    /// Areas that were registered before, in a VM that is restored.
    pub fn restored(bases: Bases) -> Served {
        Served(Arc::new(Mutex::new(Areas {
            bases,
            ..Default::default()
        })))
    }

    pub fn bases(&self) -> Bases {
        self.lock().bases.clone()
    }

    /// Refuses these types, and no others, by this answer from now on.
    pub fn refuse(&self, types: &[u32], answer: Answer) {
        self.lock().refused = types.iter().map(|&kind| (kind, answer)).collect();
    }

    /// Loses the answer when such a type is registered, from now on: as where the descriptor's
    /// memory is gone by then.
    pub fn lose(&self, types: Vec<u32>) {
        self.lock().lost = types;
    }

    /// Does what the guest asks.
    pub fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Register(area) => self.register(area),
            Request::Unregister(area) => self.unregister(area),
            Request::UnregisterAll => {
                self.lock().bases.clear();
                Answer::Done
            }
        }
    }

    fn register(&self, area: Area) -> Answer {
        let Some(size) = size_of_type(area.kind) else {
            return Answer::UnknownType;
        };
        if area.size as usize != size {
            return Answer::BadSize;
        }
        // Integers are read atomically.
        if area.guest_phys_addr % size_of::<u64>() as u64 != 0 {
            return Answer::BadAlignment;
        }
        let mut areas = self.lock();
        if let Some(&refusal) = areas.refused.get(&area.kind) {
            return refusal;
        }
        areas.bases.insert(area.kind, area.guest_phys_addr);
        if areas.lost.contains(&area.kind) {
            return Answer::Fault;
        }
        Answer::Done
    }

    fn unregister(&self, area: Area) -> Answer {
        let mut areas = self.lock();
        if areas.bases.get(&area.kind) != Some(&area.guest_phys_addr) {
            return Answer::NotRegistered;
        }
        areas.bases.remove(&area.kind);
        Answer::Done
    }

    /// The field at `offset` of the guest's area of this type.
    fn load(&self, memory: &GuestMemoryMmap, kind: u32, offset: usize) -> Result<Option<u64>> {
        // Held until the read is over: an area that the guest has unregistered is
        // not read.
        let areas = self.lock();
        let Some(base) = areas.bases.get(&kind) else {
            return Ok(None);
        };
        let address = GuestAddress(base.wrapping_add(offset as u64));
        memory
            .load(address, std::sync::atomic::Ordering::Acquire)
            .map(Some)
            .with_context(|| format!("the area {kind:#x} is not memory any more"))
    }

    fn bytes(
        &self,
        memory: &GuestMemoryMmap,
        kind: u32,
        offset: usize,
        bytes: &mut [u8],
    ) -> Result<()> {
        let areas = self.lock();
        if let Some(base) = areas.bases.get(&kind) {
            memory
                .read_slice(bytes, GuestAddress(base.wrapping_add(offset as u64)))
                .with_context(|| format!("the area {kind:#x} is not memory any more"))?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Areas> {
        // Every change is a single call, so a panic cannot leave one
        // unfinished.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The heartbeat, if the guest has one.
    pub fn beats(&self, memory: &GuestMemoryMmap) -> Result<Option<Beats>> {
        let field = |offset| self.load(memory, layout::HEARTBEAT, offset);
        let (Some(timer), Some(task)) = (
            field(offset_of!(Heartbeat<u64>, timer_beats))?,
            field(offset_of!(Heartbeat<u64>, task_beats))?,
        ) else {
            return Ok(None);
        };
        Ok(Some(Beats { timer, task }))
    }

    /// How much memory the guest has, if it says so.
    pub fn memory(&self, memory: &GuestMemoryMmap) -> Result<Option<Memory>> {
        let field = |offset| self.load(memory, layout::PRESSURE, offset);
        // A guest that changes the figures all the time, or stopped within a change,
        // has none.
        for _ in 0..100 {
            let sequence = field(offset_of!(Pressure<u64>, sequence))?;
            let (Some(total), Some(free), Some(available)) = (
                field(offset_of!(Pressure<u64>, total))?,
                field(offset_of!(Pressure<u64>, free))?,
                field(offset_of!(Pressure<u64>, available))?,
            ) else {
                return Ok(None);
            };
            let again = field(offset_of!(Pressure<u64>, sequence))?;
            if sequence == again && sequence.is_some_and(|sequence| sequence % 2 == 0) {
                return Ok(Some(Memory {
                    total,
                    free,
                    available,
                }));
            }
        }
        Ok(None)
    }

    /// What remains of the guest, if it has a record.
    pub fn remains(&self, memory: &GuestMemoryMmap) -> Result<Option<Remains>> {
        type Layout = Record<u64, u8>;
        let field = |offset| self.load(memory, layout::RECORD, offset);
        let (Some(state), Some(time), Some(logged)) = (
            field(offset_of!(Layout, state))?,
            field(offset_of!(Layout, time))?,
            field(offset_of!(Layout, logged))?,
        ) else {
            return Ok(None);
        };
        let mut reason = [0; REASON_SIZE];
        self.bytes(
            memory,
            layout::RECORD,
            offset_of!(Layout, reason),
            &mut reason,
        )?;
        let mut log = [0; LOG_SIZE];
        self.bytes(memory, layout::RECORD, offset_of!(Layout, log), &mut log)?;
        Ok(Some(Remains {
            panic: (state == layout::PANICKED).then(|| Panic {
                time: Duration::from_nanos(time),
                reason: printable(reason.split(|&byte| byte == 0).next().unwrap_or_default()),
            }),
            log: printable(&unrolled(&log, logged)),
        }))
    }
}

/// The size of the areas of a type that this VMM serves.
fn size_of_type(kind: u32) -> Option<usize> {
    match kind {
        layout::HEARTBEAT => Some(size_of::<Heartbeat<u64>>()),
        layout::RECORD => Some(size_of::<Record<u64, u8>>()),
        layout::PRESSURE => Some(size_of::<Pressure<u64>>()),
        _ => None,
    }
}

/// A ring into which `written` bytes have gone, in the order in which they came.
fn unrolled(ring: &[u8], written: u64) -> Vec<u8> {
    let len = ring.len() as u64;
    if written < len {
        return ring[..written as usize].to_vec();
    }
    let mut bytes = ring.to_vec();
    bytes.rotate_left((written % len) as usize);
    bytes
}

/// Counters of a heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beats {
    /// The guest took an interrupt.
    pub timer: u64,
    /// A task ran.
    pub task: u64,
}

/// Memory of the guest, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    pub free: u64,
    pub available: u64,
}

/// What remains of a guest that has died.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    pub panic: Option<Panic>,
    /// The end of the kernel log.
    pub log: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Panic {
    /// Time since the guest's boot.
    pub time: Duration,
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(kind: u32, guest_phys_addr: u64, size: usize) -> Area {
        Area {
            guest_phys_addr,
            size: size as u32,
            kind,
        }
    }

    #[test]
    fn areas_are_registered_replaced_and_unregistered() {
        let served = Served::default();
        let heartbeat = |base| area(layout::HEARTBEAT, base, size_of::<Heartbeat<u64>>());
        let register = |base| served.answer(Request::Register(heartbeat(base)));
        let unregister = |base| served.answer(Request::Unregister(heartbeat(base)));
        assert_eq!(unregister(0x1000), Answer::NotRegistered);
        assert_eq!(register(0x1000), Answer::Done);
        assert_eq!(register(0x2000), Answer::Done);
        assert_eq!(unregister(0x1000), Answer::NotRegistered);
        assert_eq!(served.bases(), [(layout::HEARTBEAT, 0x2000)].into());
        assert_eq!(unregister(0x2000), Answer::Done);
        assert_eq!(served.bases(), Bases::new());

        assert_eq!(register(0x1000), Answer::Done);
        assert_eq!(served.answer(Request::UnregisterAll), Answer::Done);
        assert_eq!(served.bases(), Bases::new());
    }

    #[test]
    fn types_are_refused_until_others_are() {
        let served = Served::default();
        let heartbeat = area(layout::HEARTBEAT, 0x1000, size_of::<Heartbeat<u64>>());
        for (refused, answer) in [
            (&[layout::HEARTBEAT][..], Answer::Denied),
            (&[layout::HEARTBEAT], Answer::Fault),
            (&[layout::RECORD], Answer::Done),
        ] {
            served.refuse(refused, answer);
            assert_eq!(served.answer(Request::Register(heartbeat)), answer);
        }
        assert_eq!(served.bases(), [(layout::HEARTBEAT, 0x1000)].into());
    }

    #[test]
    fn an_answer_that_is_lost_leaves_the_area_registered() {
        let served = Served::default();
        let heartbeat = area(layout::HEARTBEAT, 0x1000, size_of::<Heartbeat<u64>>());
        served.lose(vec![layout::HEARTBEAT]);
        let answer = served.answer(Request::Register(heartbeat));
        assert_eq!(answer, Answer::Fault);
        assert_eq!(served.bases(), [(layout::HEARTBEAT, 0x1000)].into());
        let answer = served.answer(Request::Unregister(heartbeat));
        assert_eq!(answer, Answer::Done);
        assert_eq!(served.bases(), Bases::new());
    }

    #[test]
    fn bad_areas_are_refused() {
        let served = Served::default();
        let size = size_of::<Heartbeat<u64>>();
        for (area, refusal) in [
            (area(0x8000_0000, 0, size), Answer::UnknownType),
            (area(layout::HEARTBEAT, 0, size + 8), Answer::BadSize),
            (area(layout::HEARTBEAT, 4, size), Answer::BadAlignment),
        ] {
            assert_eq!(served.answer(Request::Register(area)), refusal);
        }
        assert_eq!(served.bases(), Bases::new());
    }

    #[test]
    fn contents_are_read_where_the_guest_has_them() -> Result<()> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)])?;
        let served =
            Served::restored([(layout::HEARTBEAT, 0x1000), (layout::RECORD, 0x2000)].into());
        assert_eq!(served.memory(&memory)?, None);

        memory.write_obj(7u64, GuestAddress(0x1008))?;
        memory.write_obj(6u64, GuestAddress(0x1018))?;
        assert_eq!(served.beats(&memory)?, Some(Beats { timer: 7, task: 6 }));

        memory.write_obj(layout::PANICKED, GuestAddress(0x2000))?;
        memory.write_obj(1_000_000_000u64, GuestAddress(0x2008))?;
        memory.write_obj(3u64, GuestAddress(0x2010))?;
        memory.write_slice(b"why\x1b[2J", GuestAddress(0x2018))?;
        memory.write_slice(b"log", GuestAddress(0x2018 + REASON_SIZE as u64))?;
        let remains = served.remains(&memory)?.context("no record")?;
        assert_eq!(
            remains,
            Remains {
                panic: Some(Panic {
                    time: Duration::from_secs(1),
                    reason: "why[2J".to_owned(),
                }),
                log: "log".to_owned(),
            }
        );

        // Memory can go, or never have been there.
        let gone = Served::restored([(layout::HEARTBEAT, u64::MAX - 15)].into());
        assert!(gone.beats(&memory).is_err());
        Ok(())
    }

    #[test]
    fn a_ring_is_unrolled() {
        assert_eq!(unrolled(b"ab..", 2), b"ab");
        assert_eq!(unrolled(b"abcd", 4), b"abcd");
        assert_eq!(unrolled(b"efcd", 6), b"cdef");
    }
}
