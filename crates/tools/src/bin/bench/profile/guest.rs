// SPDX-License-Identifier: Apache-2.0
//! Symbol names for samples of a user-mode Linux.
//!
//! The guest kernel is a process of the host, and so is each guest process, whose code runs
//! natively at the guest's addresses. `perf` on the host samples both and lacks only the symbols.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Context as _;

use super::stacks::{Sample, plain};

const PROGRAM: &str = "kube-proxy-rs";

/// Functions of ours that run on the thread `sync`: guest samples do not name their thread.
const SYNC: [&str; 1] = ["kube_proxy_rs::reconcile::"];

/// See the module's documentation.
pub(super) struct Guest {
    /// Mapped files by address.
    files: Vec<(Range<u64>, String)>,
    /// Load address of our program.
    base: u64,
    program: Symbols,
    kernel: Symbols,
}

impl Guest {
    /// Parses the guest's `/proc/PID/maps` and `/proc/kallsyms`, and `nm` of our program.
    pub(super) fn new(maps: &str, program: &str, kernel: &str) -> anyhow::Result<Self> {
        let files: Vec<_> = maps.lines().filter_map(mapping).collect();
        let ours = files.iter().filter(|(_, file)| file == PROGRAM);
        let base = ours.map(|(range, _)| range.start).min();
        Ok(Self {
            base: base.context("our program is not mapped")?,
            files,
            program: Symbols::parse(program),
            kernel: Symbols::parse(kernel),
        })
    }

    /// Names all frames and threads, and drops samples of the guest's other processes. Addresses
    /// cannot tell them apart; ours is the busiest process without samples before `start`.
    pub(super) fn name_all(&self, samples: &mut Vec<Sample>, start: f64) {
        let mut pids = BTreeMap::<u64, (bool, u32)>::new();
        for sample in &*samples {
            let (is_older, count) = pids.entry(sample.pid).or_default();
            *is_older |= sample.at < start;
            *count += 1;
        }
        let younger = pids.iter().filter(|(_, (is_older, _))| !is_older);
        let ours = younger
            .max_by_key(|(_, (_, count))| *count)
            .map(|(pid, _)| *pid);
        samples.retain_mut(|sample| {
            let innermost = sample.frames.first().map(|frame| frame.address);
            if innermost.is_some_and(|at| self.kernel.contains(at)) {
                "guest kernel".clone_into(&mut sample.thread);
                for frame in &mut sample.frames {
                    if let Some(name) = self.kernel.name(frame.address) {
                        frame.name = plain(name);
                    }
                }
                return true;
            }
            if ours != Some(sample.pid) {
                return false;
            }
            for frame in &mut sample.frames {
                frame.name = match self.file(frame.address) {
                    Some(PROGRAM) => self.program.name(frame.address.saturating_sub(self.base)),
                    _ => None,
                }
                .map_or_else(
                    || format!("[{}]", self.file(frame.address).unwrap_or("unknown")),
                    plain,
                );
            }
            let on_sync = |name: &str| SYNC.iter().any(|of| name.contains(of));
            let is_sync = sample.frames.iter().any(|frame| on_sync(&frame.name));
            (if is_sync { "sync" } else { PROGRAM }).clone_into(&mut sample.thread);
            true
        });
    }

    fn file(&self, address: u64) -> Option<&str> {
        let at = |(range, _): &&(Range<u64>, String)| range.contains(&address);
        self.files.iter().find(at).map(|(_, file)| file.as_str())
    }
}

/// A line of `/proc/PID/maps`: addresses and base name of the file.
fn mapping(line: &str) -> Option<(Range<u64>, String)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let file = words.nth(4)?.rsplit('/').next()?;
    Some((number(start)?..number(end)?, file.to_owned()))
}

/// Symbols by start address.
struct Symbols(BTreeMap<u64, String>);

impl Symbols {
    /// Parses lines of address, type letter and name.
    fn parse(text: &str) -> Self {
        let symbol = |line: &str| {
            let (address, rest) = line.split_once(' ')?;
            let (kind, name) = rest.split_once(' ')?;
            let is_code = ["t", "T", "w", "W"].contains(&kind);
            let address = u64::from_str_radix(address, 16).ok()?;
            is_code.then(|| (address, name.to_owned()))
        };
        Self(text.lines().filter_map(symbol).collect())
    }

    fn name(&self, address: u64) -> Option<&str> {
        let (_, name) = self.0.range(..=address).next_back()?;
        Some(name)
    }

    fn contains(&self, address: u64) -> bool {
        let first = self.0.first_key_value().map(|(first, _)| *first);
        let last = self.0.last_key_value().map(|(last, _)| *last);
        first.is_some_and(|first| first <= address) && last.is_some_and(|last| address <= last)
    }
}

#[cfg(test)]
mod tests {
    use super::super::stacks::Frame;
    use super::*;

    #[test]
    fn frames_are_named_and_other_processes_dropped() {
        let guest = Guest::new(
            "55000000-55001000 r--p 00000000 00:00 1  /bin/kube-proxy-rs\n\
             55002000-55003000 r-xp 00001000 00:00 1  /bin/kube-proxy-rs\n",
            "2000 t kube_proxy_rs::reconcile::run\n2100 t serde_json::read\n",
            "60000000 T _text\n60000100 t netlink_rcv\n60000200 T _etext\n",
        )
        .expect("a guest");
        let sample = |at, pid, addresses: &[u64]| Sample {
            at,
            pid,
            thread: "linux.uml".to_owned(),
            frames: addresses
                .iter()
                .map(|address| Frame {
                    address: *address,
                    name: "[unknown]".to_owned(),
                })
                .collect(),
        };
        let mut samples = vec![
            sample(1.0, 1, &[0x6000_0110]),
            sample(3.0, 2, &[0x7000_0000, 0x5500_2110, 0x5500_2010]),
            sample(3.0, 2, &[0x5500_2110]),
            sample(1.0, 3, &[0x5500_2110]),
            sample(3.0, 3, &[0x5500_2110]),
            sample(4.0, 4, &[0x5500_2110]),
        ];
        guest.name_all(&mut samples, 2.0);
        let named: Vec<_> = samples
            .iter()
            .map(|sample| {
                let names = sample.frames.iter().map(|frame| frame.name.as_str());
                (sample.thread.as_str(), names.collect::<Vec<_>>())
            })
            .collect();
        let expected = [
            ("guest kernel", vec!["netlink_rcv"]),
            (
                "sync",
                vec![
                    "[unknown]",
                    "serde_json::read",
                    "kube_proxy_rs::reconcile::run",
                ],
            ),
            ("kube-proxy-rs", vec!["serde_json::read"]),
        ];
        assert_eq!(named, expected);
    }
}
