// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The table.

use std::{fmt::Write, time::Duration};

use crate::populate::parallel::Populated;

/// The result for one guest.
pub struct Outcome {
    /// `None` for the guest without populated memory.
    pub populated: Option<Populated>,
    /// Time in which the guest touched all of its memory.
    pub touching: Duration,
    /// Page faults of the guest in that time.
    pub faults: u64,
    /// Exits in that time.
    pub exits: u64,
    /// A vCPU that read wrong contents.
    pub wrong: Option<u64>,
}

/// One line per guest.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "                ------ populating ------   ---------- the guest touches all ----------\n\
         guest memory     seconds         pages/s   seconds   page faults     exits   contents\n",
    );
    for outcome in outcomes {
        let (name, time, rate) = match &outcome.populated {
            None => ("not populated", "-".to_owned(), "-".to_owned()),
            Some(populated) => {
                let seconds = populated.time.as_secs_f64();
                let rate = populated.pages as f64 / seconds;
                ("populated", format!("{seconds:.3}"), format!("{rate:.0}"))
            }
        };
        let contents = match outcome.wrong {
            None => "right".to_owned(),
            Some(vcpu) => format!("WRONG on vCPU {vcpu}"),
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{name:<15} {time:>8} {rate:>15} {:>9.3} {:>13} {:>9}   {contents}",
            outcome.touching.as_secs_f64(),
            outcome.faults,
            outcome.exits,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_shows_what_populating_saves() {
        let outcome = |populated, faults| Outcome {
            populated,
            touching: Duration::from_millis(1500),
            faults,
            exits: faults + 2,
            wrong: (faults == 0).then_some(1),
        };
        let time = Duration::from_millis(500);
        let populated = Some(Populated { pages: 300, time });
        let table = table(&[outcome(None, 300), outcome(populated, 0)]);
        let words = |line| -> Vec<&str> {
            let line: &str = table.lines().nth(line).expect("a line");
            line.split_whitespace().collect()
        };
        assert_eq!(
            words(2),
            ["not", "populated", "-", "-", "1.500", "300", "302", "right"]
        );
        assert_eq!(
            words(3)[..6],
            ["populated", "0.500", "600", "1.500", "0", "2"]
        );
        assert!(table.contains("WRONG on vCPU 1"));
    }
}
