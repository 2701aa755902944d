// SPDX-License-Identifier: Apache-2.0
//! PURE: parts of rules, spelled and ordered as `iptables-save` prints them: addresses, interfaces,
//! protocol, then matches in the order in which they were given.

use std::net::IpAddr;

use crate::model::node::LocalDetector;
use crate::model::{IpFamily, Protocol};
use crate::plan::ruleset::quote;

/// `-m comment --comment …`
pub fn comment(text: &str) -> String {
    format!("-m comment --comment {}", quote(text))
}

/// `ADDRESS/LENGTH` of a single host.
pub fn host(address: IpAddr) -> String {
    format!("{address}/{}", IpFamily::of(address).host_prefix_len())
}

/// The match of an address (if any), a protocol and a port, with a comment between them.
pub fn destination(
    address: Option<IpAddr>,
    protocol: Protocol,
    port: u16,
    comment_text: &str,
) -> String {
    let protocol = protocol.lowercase();
    let comment = comment(comment_text);
    let to = address.map_or_else(String::new, |address| format!("-d {} ", host(address)));
    format!("{to}-p {protocol} {comment} -m {protocol} --dport {port}")
}

/// The parts of a rule that match traffic of local pods: before and after the destination address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    pub source: String,
    pub interface: String,
}

impl Locality {
    /// `None` if local traffic cannot be detected. `negated`: traffic that is not local.
    pub fn of(detector: &LocalDetector, negated: bool) -> Option<Self> {
        let not = if negated { "! " } else { "" };
        let by_interface = |interface: String| Self {
            source: String::new(),
            interface,
        };
        match detector {
            LocalDetector::Cidr(cidr) => Some(Self {
                source: format!("{not}-s {cidr} "),
                interface: String::new(),
            }),
            LocalDetector::BridgeInterface(name) => Some(by_interface(format!("{not}-i {name} "))),
            LocalDetector::InterfacePrefix(prefix) => {
                Some(by_interface(format!("{not}-i {prefix}+ ")))
            }
            LocalDetector::None => None,
        }
    }
}

/// `-m statistic …` for `part` of `all`; empty if that is all. Ends with a blank.
///
/// The kernel counts in units of 2^-31, which is what iptables prints.
pub fn chance(part: usize, all: usize) -> String {
    if part >= all {
        return String::new();
    }
    let (part, all) = (wide(part), wide(all));
    let share = ((part << 31) + all / 2) / all;
    let share = u32::try_from(share).unwrap_or(u32::MAX);
    let probability = f64::from(share) / f64::from(1_u32 << 31);
    format!("-m statistic --mode random --probability {probability:.11} ")
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The argument of a mark match or target: value and mask.
pub fn mark(mark: u32) -> String {
    format!("{mark:#x}/{mark:#x}")
}

/// The match of a packet whose source is its destination: a BPF program that compares both in its
/// IP header.
pub const fn reaches_itself(family: IpFamily) -> &'static str {
    // `length,CODE JUMP-IF JUMP-IF-NOT VALUE,...`: for each word of the address 32 (load) source, 7
    // (keep), 32 destination, 29 (equal, or jump to the end); 6 returns yes (65535) or no.
    match family {
        IpFamily::V4 => {
            "-m bpf --bytecode \"6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0\""
        }
        IpFamily::V6 => concat!(
            "-m bpf --bytecode \"18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,",
            "32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0,32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0,",
            "32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,6 0 0 65535,6 0 0 0\""
        ),
    }
}

/// `REJECT` with the response of a closed port.
pub const fn reject(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "REJECT --reject-with icmp-port-unreachable",
        IpFamily::V6 => "REJECT --reject-with icmp6-port-unreachable",
    }
}

/// Counts packets in a named counter of the kernel. `iptables-save` prints two blanks.
pub fn counted(counter: &str) -> String {
    format!("-m nfacct --nfacct-name  {counter} ")
}
