// SPDX-License-Identifier: Apache-2.0
//! All that the guest's kernel holds where a proxy writes, in the words of other programs.

use std::collections::BTreeMap;

use kpr_testkit::guest::Guest;

/// Chains with their rules in order, and for other programs their lines. Two of these are equal
/// when nothing is left over.
pub(crate) type Kernel = BTreeMap<String, Vec<String>>;

const MARK: &str = "=====";
/// Each prints something of its own; the first two are read as rules.
const COMMANDS: [&str; 7] = [
    "iptables-save",
    "ip6tables-save",
    "ipset save",
    "ipvsadm -Sn",
    "ip -o address",
    "ip -o link",
    // Not those of iptables-nft. User-mode Linux may have none at all.
    "for family in ip ip6; do nft --terse list table $family kube-proxy-rs 2>/dev/null; done | grep -v '^ *counter'; true",
];

pub(crate) fn read(guest: &mut Guest) -> Kernel {
    let text = guest.run(&COMMANDS.join(&format!("; echo {MARK}; ")));
    let mut kernel = Kernel::new();
    for (command, text) in COMMANDS.into_iter().zip(text.split(&format!("{MARK}\n"))) {
        if command.ends_with("tables-save") {
            read_rules(command, text, &mut kernel);
            continue;
        }
        // The kernel gives itself link-local addresses when it comes to it.
        let lines = text.lines().filter(|line| !line.contains("scope link"));
        let mut lines: Vec<String> = lines.map(essence).collect();
        lines.sort();
        kernel.insert(command.to_owned(), lines);
    }
    kernel
}

/// A line without what is chance, or of no effect on a link that is down: the link's number, its
/// physical address, the length of its queue, flags and time-outs of addresses.
fn essence(line: &str) -> String {
    let line = match line.split_once(": ") {
        Some((number, rest)) if number.parse::<u32>().is_ok() => rest,
        _ => line,
    };
    let ends = [" initval ", " qlen ", " \\", " nodad", " valid_lft"];
    let end = ends.into_iter().filter_map(|end| line.find(end)).min();
    end.and_then(|end| line.get(..end))
        .unwrap_or(line)
        .trim()
        .to_owned()
}

/// A jump that is there already stays where it is, so the order in these is not compared.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

fn read_rules(program: &str, text: &str, kernel: &mut Kernel) {
    let mut table = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let (name, policy) = (words.next(), words.next());
            // What a table without rules looks like depends on whether anybody ever asked for it.
            if policy == Some("-") {
                kernel
                    .entry(format!("{program} {table} {}", name.unwrap_or_default()))
                    .or_default();
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            let rules = kernel
                .entry(format!("{program} {table} {chain}"))
                .or_default();
            rules.push(rule.to_owned());
            if BUILT_IN.contains(&chain) {
                rules.sort();
            }
        }
    }
}

/// Where they differ, one line each.
pub(crate) fn differences(wanted: &Kernel, present: &Kernel) -> Vec<String> {
    let mut differences = Vec::new();
    for key in wanted
        .keys()
        .chain(present.keys().filter(|key| !wanted.contains_key(*key)))
    {
        let (wanted, present) = match (wanted.get(key), present.get(key)) {
            (Some(wanted), Some(present)) => (wanted, present),
            (None, Some(_)) => {
                differences.push(format!("{key} is there"));
                continue;
            }
            _ => {
                differences.push(format!("{key} is not there"));
                continue;
            }
        };
        let lacking = wanted.iter().filter(|line| !present.contains(line));
        differences.extend(lacking.map(|line| format!("{key} lacks: {line}")));
        let surplus = present.iter().filter(|line| !wanted.contains(line));
        differences.extend(surplus.map(|line| format!("{key} has more: {line}")));
        let mut sorted = (wanted.clone(), present.clone());
        sorted.0.sort();
        sorted.1.sort();
        if wanted != present && sorted.0 == sorted.1 {
            differences.push(format!("{key} has another order: {present:#?}"));
        }
    }
    differences
}
