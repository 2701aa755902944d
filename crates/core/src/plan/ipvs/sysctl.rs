// SPDX-License-Identifier: Apache-2.0
//! PURE: the kernel settings that IPVS mode needs.

use crate::plan::context::{Context, KernelVersion};

/// A path under `/proc/sys` and the wanted value.
pub type Sysctl = (&'static str, &'static str);

/// All settings that IPVS mode ever writes, for observing.
pub const KEYS: [&str; 7] = [
    "net/ipv4/vs/conntrack",
    "net/ipv4/vs/conn_reuse_mode",
    "net/ipv4/vs/expire_nodest_conn",
    "net/ipv4/vs/expire_quiescent_template",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/arp_ignore",
    "net/ipv4/conf/all/arp_announce",
];

/// `conn_reuse_mode` came with 4.1. Until 5.9 its value 1 delays a connection that reuses a source
/// port by a second, or loses it (<https://github.com/kubernetes/kubernetes/issues/81775>).
const CONN_REUSE_ADDED: KernelVersion = KernelVersion { major: 4, minor: 1 };
const CONN_REUSE_FIXED: KernelVersion = KernelVersion { major: 5, minor: 9 };

/// The settings that a context wants, in the order of writing.
pub fn wanted(context: &Context) -> Vec<Sysctl> {
    let mut sysctls = vec![
        // Netfilter must know the flows that IPVS handles: masquerading depends on it.
        ("net/ipv4/vs/conntrack", "1"),
        // A flow to a real server that is gone ends, so that the next packet finds another.
        ("net/ipv4/vs/expire_nodest_conn", "1"),
        // Persistence does not keep a client on a server that is draining.
        ("net/ipv4/vs/expire_quiescent_template", "1"),
        ("net/ipv4/ip_forward", "1"),
    ];
    if (CONN_REUSE_ADDED..CONN_REUSE_FIXED).contains(&context.kernel) {
        sysctls.push(("net/ipv4/vs/conn_reuse_mode", "0"));
    }
    if context.strict_arp {
        // The addresses on our link are not announced on others (load balancers do that).
        sysctls.push(("net/ipv4/conf/all/arp_ignore", "1"));
        sysctls.push(("net/ipv4/conf/all/arp_announce", "2"));
    }
    sysctls
}

#[cfg(test)]
mod tests;
