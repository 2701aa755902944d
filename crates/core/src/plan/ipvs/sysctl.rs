// SPDX-License-Identifier: Apache-2.0
//! PURE: the kernel settings that IPVS mode needs.

use std::borrow::Cow;

pub use cpus::Cpus;

use crate::plan::context::{Context, KernelVersion};

mod cpus;

/// A path under `/proc/sys` and the wanted value.
pub type Sysctl = (&'static str, Cow<'static, str>);

/// Settings of the kernel's own work in IPVS mode, which operators may ask for. Not every kernel
/// has all of them, and Services are served without.
pub const RUN_ESTIMATION: &str = "net/ipv4/vs/run_estimation";
pub const EST_CPULIST: &str = "net/ipv4/vs/est_cpulist";
pub const EST_NICE: &str = "net/ipv4/vs/est_nice";
pub const CONN_LFACTOR: &str = "net/ipv4/vs/conn_lfactor";
pub const CONN_MAX: &str = "net/ipv4/vs/conn_max";
pub const SVC_LFACTOR: &str = "net/ipv4/vs/svc_lfactor";

/// All settings that IPVS mode may write, for observation.
pub const KEYS: [&str; 13] = [
    RUN_ESTIMATION,
    EST_CPULIST,
    EST_NICE,
    CONN_LFACTOR,
    CONN_MAX,
    SVC_LFACTOR,
    "net/ipv4/vs/conntrack",
    "net/ipv4/vs/conn_reuse_mode",
    "net/ipv4/vs/expire_nodest_conn",
    "net/ipv4/vs/expire_quiescent_template",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/arp_ignore",
    "net/ipv4/conf/all/arp_announce",
];

/// `conn_reuse_mode` came with Linux 4.1. Until 5.9 its value 1 delays a connection that reuses a
/// source port by a second, or drops it (<https://github.com/kubernetes/kubernetes/issues/81775>).
const CONN_REUSE_ADDED: KernelVersion = KernelVersion { major: 4, minor: 1 };
const CONN_REUSE_FIXED: KernelVersion = KernelVersion { major: 5, minor: 9 };

/// The settings for a context, in the order of writing.
pub fn wanted(context: &Context) -> Vec<Sysctl> {
    let mut sysctls = vec![
        // Netfilter must see the flows that IPVS handles: masquerading depends on it.
        ("net/ipv4/vs/conntrack", "1".into()),
        // Expires a flow to a deleted real server, so that the next packet is scheduled again.
        ("net/ipv4/vs/expire_nodest_conn", "1".into()),
        // Persistence must not keep a client on a draining server.
        ("net/ipv4/vs/expire_quiescent_template", "1".into()),
        ("net/ipv4/ip_forward", "1".into()),
    ];
    if (CONN_REUSE_ADDED..CONN_REUSE_FIXED).contains(&context.kernel) {
        sysctls.push(("net/ipv4/vs/conn_reuse_mode", "0".into()));
    }
    if context.strict_arp {
        // Addresses on our link are not announced on other links (load balancers do that).
        sysctls.push(("net/ipv4/conf/all/arp_ignore", "1".into()));
        sysctls.push(("net/ipv4/conf/all/arp_announce", "2".into()));
    }
    let asked = context.sysctls.iter();
    sysctls.extend(asked.map(|(key, value)| (*key, value.clone().into())));
    sysctls
}

#[cfg(test)]
mod tests;
