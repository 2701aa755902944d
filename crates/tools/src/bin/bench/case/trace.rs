// SPDX-License-Identifier: Apache-2.0
//! System calls of a proxy and its child processes, counted in the output of `strace -f -ttt -yy`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use serde_json::{Value, json};

/// How many of the most frequent calls are listed.
const NAMED: usize = 8;

#[derive(Default)]
struct Counts {
    calls: BTreeMap<String, u64>,
    programs: u64,
    sent: (u64, u64),
    received: (u64, u64),
}

/// Counts of each section, given as its name, begin and end in Unix seconds.
pub(super) fn count(
    path: &Path,
    sections: &[(String, f64, f64)],
) -> anyhow::Result<Vec<(String, Value)>> {
    let mut counts: Vec<Counts> = sections.iter().map(|_| Counts::default()).collect();
    // By thread: the first half of a call whose line another thread's output interrupted.
    let mut unfinished: BTreeMap<String, String> = BTreeMap::new();
    for line in BufReader::new(File::open(path)?).lines() {
        let line = line?;
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((time, call)) = rest.trim_start().split_once(' ') else {
            continue;
        };
        let Ok(time) = time.parse::<f64>() else {
            continue;
        };
        let mut call = call.to_owned();
        if let Some(half) = call.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread.to_owned(), half.to_owned());
            continue;
        }
        if call.starts_with("<... ")
            && let Some((_, second)) = call.split_once(" resumed>")
            && let Some(first) = unfinished.remove(thread)
        {
            call = first + second;
        }
        let is_in = |(_, begin, end): &&(String, f64, f64)| *begin <= time && time < *end;
        let at = sections.iter().position(|section| is_in(&section));
        if let Some(counts) = at.and_then(|at| counts.get_mut(at)) {
            counts.add(&call);
        }
    }
    let named = sections.iter().zip(counts);
    Ok(named
        .map(|((name, begin, end), counts)| (name.clone(), counts.to_json(end - begin)))
        .collect())
}

impl Counts {
    fn add(&mut self, call: &str) {
        let Some((name, arguments)) = call.split_once('(') else {
            return;
        };
        *self.calls.entry(name.to_owned()).or_default() += 1;
        let result = arguments.rsplit_once(" = ").map(|(_, result)| result);
        let result = result.and_then(|result| result.split(' ').next()?.parse::<i64>().ok());
        if name == "execve" && result == Some(0) {
            self.programs += 1;
        }
        let is_netlink = arguments
            .split(',')
            .next()
            .is_some_and(|first| first.contains("<NETLINK:"));
        let Some(bytes) = result.and_then(|bytes| u64::try_from(bytes).ok()) else {
            return;
        };
        let to = match name {
            "sendto" | "sendmsg" | "sendmmsg" if is_netlink => &mut self.sent,
            "recvfrom" | "recvmsg" | "read" if is_netlink => &mut self.received,
            _ => return,
        };
        to.0 += 1;
        to.1 += bytes;
    }

    fn to_json(&self, seconds: f64) -> Value {
        let mut top: Vec<_> = self.calls.iter().collect();
        top.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), (*name).clone()));
        top.truncate(NAMED);
        let top: BTreeMap<_, _> = top.into_iter().collect();
        json!({
            "seconds": crate::rounded(seconds),
            "calls": self.calls.values().sum::<u64>(),
            "programs": self.programs,
            "netlinkSends": self.sent.0,
            "netlinkBytesSent": self.sent.1,
            "netlinkReceives": self.received.0,
            "netlinkBytesReceived": self.received.1,
            "top": top,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_calls_are_joined_and_sections_kept_apart() {
        let text = "\
10 100.1 execve(\"/bin/ipset\"..., [...], 0x7 /* 3 vars */) = 0
10 100.2 sendto(3<NETLINK:[GENERIC:12]>, [{}], 20, 0, NULL, 0) = 20
11 100.3 recvfrom(3<NETLINK:[GENERIC:12]>,  <unfinished ...>
10 100.4 execve(\"/nowhere\", [...], 0x7) = -1 ENOENT (No such file or directory)
11 100.5 <... recvfrom resumed>[{}], 64, 0, NULL, NULL) = 36
11 103.0 sendto(4<TCP:[1.1.1.1:1->1.1.1.1:2]>, \"\"..., 5, 0, NULL, 0) = 5
";
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        let sections = [
            ("a".to_owned(), 100.0, 101.0),
            ("b".to_owned(), 101.0, 104.0),
        ];
        let counts = count(file.path(), &sections).expect("counts");
        let number = |index: usize, key: &str| counts[index].1[key].as_u64();
        assert_eq!(number(0, "calls"), Some(4));
        assert_eq!(number(0, "programs"), Some(1));
        assert_eq!(number(0, "netlinkBytesSent"), Some(20));
        assert_eq!(number(0, "netlinkBytesReceived"), Some(36));
        assert_eq!(number(1, "calls"), Some(1));
        assert_eq!(number(1, "netlinkSends"), Some(0));
    }
}
