// SPDX-License-Identifier: Apache-2.0
//! PURE: lists of CPUs as the kernel writes them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The largest `CONFIG_NR_CPUS` of any architecture is 8192.
const LAST: u16 = 8191;

/// Some CPUs, by number. Displays as the kernel does: `0-3,8`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus(BTreeSet<u16>);

impl Cpus {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that are among the others, too.
    #[must_use]
    pub fn within(&self, others: &Self) -> Self {
        Self(self.0.intersection(&others.0).copied().collect())
    }
}

/// Not a list of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidCpus;

impl FromStr for Cpus {
    type Err = InvalidCpus;

    fn from_str(text: &str) -> Result<Self, InvalidCpus> {
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<u16>().map_err(|_odd| InvalidCpus);
            let (first, last) = (number(first)?, number(last)?);
            if first > last || last > LAST {
                return Err(InvalidCpus);
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for cpu in self.0.iter().copied() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => ranges.push((cpu, cpu)),
            }
        }
        for (index, (first, last)) in ranges.into_iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, InvalidCpus> {
        text.parse::<Cpus>().map(|cpus| cpus.to_string())
    }

    #[test]
    fn lists_are_shown_as_the_kernel_shows_them() {
        for (given, kernel) in [
            ("0", "0"),
            ("1,0", "0-1"),
            ("0,2,1,8-9,4", "0-2,4,8-9"),
            ("0-8191", "0-8191"),
            ("3-3", "3"),
        ] {
            assert_eq!(shown(given).as_deref(), Ok(kernel), "{given}");
        }
        for odd in ["", "all", "0-N", "3-1", "8192", "-1", "0,", "1-2-3"] {
            assert_eq!(shown(odd), Err(InvalidCpus), "{odd}");
        }
    }

    #[test]
    fn those_of_two_lists_may_be_none() {
        let cpus = |text: &str| text.parse::<Cpus>().unwrap();
        assert_eq!(cpus("0-3,8").within(&cpus("2-9")), cpus("2-3,8"));
        assert!(cpus("4").within(&cpus("0-3")).is_empty());
    }
}
