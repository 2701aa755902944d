// SPDX-License-Identifier: Apache-2.0
//! All that a kernel holds where a proxy writes, in the words of other programs.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::namespace::Namespace;

/// What each program says. Two of these are equal when nothing was left behind.
pub type Kernel = BTreeMap<String, Vec<String>>;

/// Programs that need not be there, or not work in every kernel.
const PROGRAMS: [(&str, &[&str]); 7] = [
    ("iptables-legacy-save", &[]),
    ("ip6tables-legacy-save", &[]),
    ("iptables-nft-save", &[]),
    ("ip6tables-nft-save", &[]),
    ("ipset", &["save"]),
    ("ipvsadm", &["-S", "-n"]),
    ("ip", &["-o", "address"]),
];

pub fn read(node: &Namespace) -> Result<Kernel> {
    let mut kernel = Kernel::new();
    for (program, arguments) in PROGRAMS {
        let Ok(text) = node.run(program, arguments) else {
            continue;
        };
        let lines = text
            .lines()
            // What a table without rules looks like depends on whether anybody ever asked for it.
            .filter(|line| !line.starts_with(['#', '*']) && *line != "COMMIT")
            .map(|line| line.split(" [").next().unwrap_or(line))
            .filter(|line| !(line.starts_with(':') && line.ends_with(" ACCEPT")))
            .map(|line| line.split(" valid_lft").next().unwrap_or(line).trim().to_owned())
            .collect();
        kernel.insert(program.to_owned(), lines);
    }
    ensure!(kernel.contains_key("ip"), "ip does not work");
    Ok(kernel)
}

/// Where they differ, one line each.
pub fn differences(before: &Kernel, after: &Kernel) -> Vec<String> {
    let none = Vec::new();
    let programs: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut differences = Vec::new();
    for program in programs {
        let lines = |of: &Kernel| of.get(program).unwrap_or(&none).clone();
        let (before, after) = (lines(before), lines(after));
        let lost = before.iter().filter(|line| !after.contains(line));
        differences.extend(lost.map(|line| format!("{program} lost: {line}")));
        let left = after.iter().filter(|line| !before.contains(line));
        differences.extend(left.map(|line| format!("{program} has more: {line}")));
        if before != after && before.len() == after.len() && differences.is_empty() {
            differences.push(format!("{program} has another order"));
        }
    }
    differences
}
