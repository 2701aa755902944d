// SPDX-License-Identifier: Apache-2.0
//! The guest's kernel as `ipvsadm`, `ipset`, `ip` and `iptables-save` print it, each object one
//! line of plain text. None of the proxy's own code is used, so a mistake in it cannot hide itself
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kpr_testkit::guest::Guest;

/// A kernel's or a wanted state: one line for each thing in it.
pub(crate) type Lines = BTreeSet<String>;

/// Services in the kernel, and the node's own addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) lines: Lines,
    pub(crate) node_addresses: Vec<IpAddr>,
}

pub(crate) fn kernel(guest: &mut Guest) -> Kernel {
    const MARK: &str = "=====\n";
    let script = format!(
        "set -e; ipvsadm -Ln; printf {MARK:?}; ipset list; printf {MARK:?}; ip -o address show"
    );
    let text = guest.run(&script);
    let parts: Vec<&str> = text.split(MARK).collect();
    let [virtual_servers, sets, addresses] = parts.as_slice() else {
        panic!("{text}");
    };
    let mut lines = Lines::new();
    read_virtual_servers(virtual_servers, &mut lines);
    read_sets(sets, &mut lines);
    let node_addresses = read_addresses(addresses, &mut lines);
    Kernel {
        lines: named_marks(lines),
        node_addresses,
    }
}

/// `ipvsadm -Ln`: a virtual server, then its real servers. The counters at the end of a line of
/// those are none of our business.
fn read_virtual_servers(text: &str, lines: &mut Lines) {
    let mut server = String::new();
    // Two lines that name the columns, and one with the version.
    for line in text.lines().skip(3) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["->", real, method, weight, ..] => {
                lines.insert(format!("{server} -> {real} {method} weight {weight}"));
            }
            [protocol, address, rest @ ..] => {
                server = format!("{protocol} {address}");
                lines.insert(format!("{server} {}", rest.join(" ")));
            }
            _ => panic!("ipvsadm printed {line:?}"),
        }
    }
}

/// Gives each firewall mark the name of all that has it: which number it is does not matter.
fn named_marks(lines: Lines) -> Lines {
    let mut names: BTreeMap<(bool, String), Vec<String>> = BTreeMap::new();
    for line in &lines {
        if let Some((entry, mark)) = line.split_once(" skbmark 0x") {
            let (set, entry) = entry.rsplit_once(' ').unwrap();
            let mark = mark.split('/').next().unwrap_or_default();
            let mark = u32::from_str_radix(mark, 16).unwrap().to_string();
            let of_mark = names.entry((set.contains("KUBE-6-"), mark)).or_default();
            of_mark.push(entry.to_owned());
        }
    }
    let name_of = |is_six: bool, mark: &str| {
        let name = names
            .get(&(is_six, mark.to_owned()))
            .map(|all| all.join("+"));
        name.unwrap_or_else(|| format!("unused mark {mark}"))
    };
    let renamed = lines.into_iter().map(|line| {
        if let Some((entry, _)) = line.split_once(" skbmark ") {
            return entry.to_owned();
        }
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["FWM", mark, "IPv6", rest @ ..] => {
                format!("marked {} {}", name_of(true, mark), rest.join(" "))
            }
            ["FWM", mark, rest @ ..] => {
                let is_six = rest.get(1).is_some_and(|word| word.starts_with('['));
                format!("marked {} {}", name_of(is_six, mark), rest.join(" "))
            }
            _ => line,
        }
    });
    renamed.collect()
}

/// `ipset list`: a head for each set, then its members.
fn read_sets(text: &str, lines: &mut Lines) {
    let mut set = "";
    let mut is_member = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Name: ") {
            set = name;
            lines.insert(format!("set {set}"));
        } else if line == "Members:" {
            is_member = true;
        } else if line.is_empty() {
            is_member = false;
        } else if is_member {
            lines.insert(format!("set {set} {line}"));
        }
    }
}

/// `ip -o address show`: number, link, family, address. Returns those that are the node's own.
fn read_addresses(text: &str, lines: &mut Lines) -> Vec<IpAddr> {
    let mut own = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, link, family, address, ..] = words.as_slice() else {
            panic!("ip printed {line:?}");
        };
        let (address, bits) = address.split_once('/').unwrap();
        let address: IpAddr = address.parse().unwrap();
        if *link == "kube-ipvs0" {
            assert_eq!(bits, if *family == "inet" { "32" } else { "128" }, "{line}");
            lines.insert(format!("address {address}"));
        } else if !address.is_loopback() && !words.contains(&"link") {
            own.push(address);
        }
    }
    own
}

/// The rules of both families and how `kube-ipvs0` is; no change of a Service changes them.
pub(crate) fn fixed(guest: &mut Guest) -> String {
    let text = guest.run(
        "set -e; ip -o link show kube-ipvs0 | cut -d ' ' -f 2,3; iptables-save; ip6tables-save",
    );
    let rules = text.lines().filter(|line| !line.starts_with('#'));
    // A chain's packets and bytes are none of our business.
    let rules = rules.map(|line| line.split(" [").next().unwrap_or(line));
    rules.collect::<Vec<_>>().join("\n")
}

/// What is wrong with the rules: kube-proxy's jumps must be there, once, and every set that a rule
/// names must exist.
pub(crate) fn check_fixed(fixed: &str, lines: &Lines) -> Result<(), String> {
    let (link, rules) = fixed.split_once('\n').unwrap();
    if !link.contains("NOARP") || link.contains("UP") {
        return Err(link.to_owned());
    }
    for (chain, comment, target) in JUMPS {
        let jump = format!("-A {chain} -m comment --comment \"{comment}\" -j {target}");
        let count = rules.lines().filter(|line| *line == jump).count();
        // Once in the rules of IPv4, once in those of IPv6.
        if count != 2 {
            return Err(format!("{count} times {jump}:\n{rules}"));
        }
    }
    for line in rules.lines() {
        let mut words = line.split_whitespace();
        while let Some(word) = words.next() {
            let set = format!("set {}", words.clone().next().unwrap_or_default());
            if word == "--match-set" && !lines.contains(&set) {
                return Err(format!("{line}: no {set}"));
            }
        }
    }
    Ok(())
}

/// From which chain, with which comment, to which chain.
const JUMPS: [(&str, &str, &str); 8] = [
    ("OUTPUT", "kubernetes service portals", "KUBE-SERVICES"),
    ("PREROUTING", "kubernetes service portals", "KUBE-SERVICES"),
    (
        "POSTROUTING",
        "kubernetes postrouting rules",
        "KUBE-POSTROUTING",
    ),
    ("FORWARD", "kubernetes forwarding rules", "KUBE-FORWARD"),
    ("INPUT", "kubernetes health check rules", "KUBE-NODE-PORT"),
    ("INPUT", "kube-proxy firewall rules", "KUBE-PROXY-FIREWALL"),
    (
        "FORWARD",
        "kube-proxy firewall rules",
        "KUBE-PROXY-FIREWALL",
    ),
    ("INPUT", "kubernetes ipvs access filter", "KUBE-IPVS-FILTER"),
];
