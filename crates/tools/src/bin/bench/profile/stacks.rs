// SPDX-License-Identifier: Apache-2.0
//! Weighted stacks, of CPU samples (`perf`) and of allocations (`heaptrack_print`).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

/// Suffix of kernel functions; flame graphs color them differently.
const KERNEL: &str = "_[k]";

/// Crates of this workspace.
const OURS: [&str; 5] = [
    "kube_proxy_rs",
    "kpr_core",
    "netlink_pipeline",
    "ipvs_netlink",
    "ipset_netlink",
];

/// Crates of the language, whose functions mean little without their caller.
const LANGUAGE: [&str; 4] = ["core", "alloc", "std", "hashbrown"];

/// Names of the threads that form the tokio runtime.
const RUNTIME: [&str; 2] = ["kube-proxy-rs", "tokio-rt-worker"];

/// Measuring processes, not part of the profile.
const WATCHERS: [&str; 3] = ["bench", "perf", "setpriv"];

pub(super) struct Sample {
    /// Unix time in seconds.
    pub(super) at: f64,
    pub(super) pid: u64,
    /// Name of the thread.
    pub(super) thread: String,
    /// Innermost first.
    pub(super) frames: Vec<Frame>,
}

pub(super) struct Frame {
    pub(super) address: u64,
    pub(super) name: String,
}

impl Sample {
    /// Reads what `perf data convert --to-json` wrote.
    pub(super) fn parse(text: &str) -> anyhow::Result<Vec<Self>> {
        let recorded: Value = serde_json::from_str(text)?;
        let samples = recorded.get("samples").and_then(Value::as_array);
        let samples = samples.context("no samples")?.iter();
        samples
            .map(|sample| Self::one(sample).with_context(|| sample.to_string()))
            .collect()
    }

    fn one(sample: &Value) -> Option<Self> {
        let time = Duration::from_nanos(sample.get("timestamp")?.as_u64()?);
        let frames = sample.get("callchain")?.as_array()?.iter();
        Some(Self {
            at: time.as_secs_f64(),
            pid: sample.get("pid")?.as_u64()?,
            thread: sample.get("comm")?.as_str()?.to_owned(),
            frames: frames.map(Frame::one).collect::<Option<_>>()?,
        })
    }
}

impl Frame {
    fn one(frame: &Value) -> Option<Self> {
        let address = frame.get("ip")?.as_str()?.strip_prefix("0x")?;
        let text = |key: &str| frame.get(key).and_then(Value::as_str);
        let file = text("dso").unwrap_or("unknown");
        let name = match text("symbol") {
            None => format!("[{}]", file.rsplit('/').next().unwrap_or(file)),
            Some(name) if file.starts_with("[kernel") => format!("{name}{KERNEL}"),
            Some(name) => plain(name),
        };
        Some(Self {
            address: u64::from_str_radix(address, 16).ok()?,
            name,
        })
    }
}

/// A function name without the hash of its symbol, and without the separator of frames.
pub(super) fn plain(name: &str) -> String {
    let name = match name.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 => name,
        _ => name,
    };
    name.replace(';', ",")
}

/// Weights by stack, outermost frame first.
#[derive(Default)]
pub(super) struct Stacks(BTreeMap<Vec<String>, u64>);

impl Stacks {
    /// Counts samples. The outermost frame is the thread, or the child process.
    pub(super) fn of_samples<'a>(samples: impl Iterator<Item = &'a Sample>) -> Self {
        let mut stacks = Self::default();
        for sample in samples {
            let thread = sample.thread.as_str();
            if WATCHERS.contains(&thread) {
                continue;
            }
            let thread = if RUNTIME.contains(&thread) {
                "main"
            } else {
                thread
            };
            let frames = sample.frames.iter().rev().map(|frame| frame.name.clone());
            let stack = std::iter::once(thread.to_owned()).chain(frames).collect();
            *stacks.0.entry(stack).or_default() += 1;
        }
        stacks
    }

    /// Parses lines of semicolon-separated frames and a weight.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut stacks = Self::default();
        for line in text.lines() {
            let (stack, weight) = line.rsplit_once(' ').context("no weight")?;
            let stack = stack.split(';').map(plain).collect();
            // Negative weights (freed before the peak) count as zero.
            *stacks.0.entry(stack).or_default() += weight.parse::<u64>().unwrap_or_default();
        }
        Ok(stacks)
    }

    pub(super) fn folded(&self) -> String {
        let line =
            |(stack, weight): (&Vec<String>, &u64)| format!("{} {weight}\n", stack.join(";"));
        self.0.iter().map(line).collect()
    }

    pub(super) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Weights by outermost frame: total and kernel's share.
    pub(super) fn by_thread(&self) -> BTreeMap<&str, (u64, u64)> {
        let mut threads = BTreeMap::<&str, (u64, u64)>::new();
        for (stack, weight) in &self.0 {
            let Some(thread) = stack.first() else {
                continue;
            };
            let sums = threads.entry(thread).or_default();
            sums.0 += weight;
            if stack.last().is_some_and(|last| last.ends_with(KERNEL)) {
                sums.1 += weight;
            }
        }
        threads
    }

    /// The heaviest places in our own program.
    pub(super) fn top(&self, count: usize) -> Vec<(String, u64)> {
        let mut places = BTreeMap::<String, u64>::new();
        for (stack, weight) in &self.0 {
            if let Some(place) = place(stack) {
                *places.entry(place).or_default() += weight;
            }
        }
        let mut places: Vec<_> = places.into_iter().collect();
        places.sort_by_key(|(place, weight)| (std::cmp::Reverse(*weight), place.clone()));
        places.truncate(count);
        places
    }
}

/// The innermost function of ours, and the foreign crate or kernel working for it.
fn place(stack: &[String]) -> Option<String> {
    let ours = stack
        .iter()
        .rev()
        .find(|name| OURS.iter().any(|of| name.contains(&format!("{of}::"))));
    let by = if stack.last().is_some_and(|last| last.ends_with(KERNEL)) {
        Some("kernel")
    } else {
        let mut crates = stack.iter().rev().filter_map(|name| crate_of(name));
        crates.find(|name| !LANGUAGE.contains(name))
    };
    match (ours, by) {
        (Some(ours), Some(by)) if !OURS.contains(&by) => {
            Some(format!("{by}, for `{}`", short(ours)))
        }
        (Some(ours), _) => Some(format!("`{}`", short(ours))),
        // Stacks of runtime tasks do not always lead back to our functions.
        (None, Some(by)) if stack.iter().any(|name| crate_of(name).is_some()) => {
            Some(by.to_owned())
        }
        (None, _) => None,
    }
}

/// The crate in the name of a function, if any.
fn crate_of(name: &str) -> Option<&str> {
    let name = name.trim_start_matches(['<', '&', '*', '[']);
    let name = name.strip_prefix("mut ").unwrap_or(name);
    let name = name.strip_prefix("dyn ").unwrap_or(name);
    let (first, _) = name.split_once("::")?;
    first
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_')
        .then_some(first)
}

/// A function name short enough for a table.
fn short(name: &str) -> String {
    const LONGEST: usize = 90;
    let name = name
        .replace("kube_proxy_rs::", "")
        .replace("kpr_core::", "")
        .replace("::{{closure}}", "");
    let name = name.replace('|', "\\|").replace('`', "'");
    if name.chars().count() <= LONGEST {
        return name;
    }
    name.chars().take(LONGEST).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = r#"{"samples": [
        {"timestamp": 100500000000, "pid": 10, "tid": 12, "comm": "sync", "callchain": [
            {"ip": "0x7f01", "dso": "libc.so.6"},
            {"ip": "0x5502", "symbol": "alloc::vec::Vec<T>::push::h0123456789abcdef", "dso": "kube-proxy-rs"},
            {"ip": "0x5501", "symbol": "kpr_core::plan::ipvs::diff::diff::h0123456789abcdef", "dso": "kube-proxy-rs"}]},
        {"timestamp": 101000000000, "pid": 10, "tid": 10, "comm": "kube-proxy-rs", "callchain": [
            {"ip": "0xffffffff81", "symbol": "do_syscall_64", "dso": "[kernel.kallsyms]"},
            {"ip": "0x5501", "symbol": "serde_json::read", "dso": "kube-proxy-rs"}]},
        {"timestamp": 101000000000, "pid": 9, "tid": 9, "comm": "bench", "callchain": [{"ip": "0x1"}]}]}"#;

    #[test]
    fn samples_become_stacks_by_thread_without_measuring_processes() {
        let samples = Sample::parse(RECORDED).expect("samples");
        assert_eq!(samples.len(), 3);
        let stacks = Stacks::of_samples(samples.iter());
        let expected = "\
main;serde_json::read;do_syscall_64_[k] 1
sync;kpr_core::plan::ipvs::diff::diff;alloc::vec::Vec<T>::push;[libc.so.6] 1
";
        assert_eq!(stacks.folded(), expected);
        assert_eq!(stacks.by_thread()["main"], (1, 1));
        let top = [
            ("`plan::ipvs::diff::diff`".to_owned(), 1),
            ("kernel".to_owned(), 1),
        ];
        assert_eq!(stacks.top(3), top);
    }
}
