// SPDX-License-Identifier: Apache-2.0
//! PURE: the kernel settings of connection tracking, which both modes write at start. Values and
//! scaling are kube-proxy's.

use std::collections::BTreeMap;
use std::time::Duration;

/// Upper limit of the table size computed from the number of CPUs.
const MOST_BY_SCALING: u64 = 1 << 20;

/// Maximum number of flows per hash bucket.
const FLOWS_PER_BUCKET: u64 = 4;

/// The settings from the configuration. `None` keeps the kernel's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Table size per CPU.
    pub max_per_core: Option<u32>,
    /// Minimum table size, if `max_per_core` is set.
    pub min: u32,
    pub tcp_established_timeout: Option<Duration>,
    pub tcp_close_wait_timeout: Option<Duration>,
    /// Do not treat packets outside of their connection's window as invalid. Never switched off.
    pub tcp_be_liberal: bool,
    pub udp_timeout: Option<Duration>,
    pub udp_stream_timeout: Option<Duration>,
}

/// The file system that a setting is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    /// `/proc/sys`
    Sysctl,
    /// `/sys`
    Sysfs,
}

/// A kernel setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    pub tree: Tree,
    /// The path below the root of that file system.
    pub path: &'static str,
}

const fn sysctl(path: &'static str) -> Setting {
    Setting {
        tree: Tree::Sysctl,
        path,
    }
}

/// Read-only in network namespaces other than the initial one.
pub const MAX: Setting = sysctl("net/netfilter/nf_conntrack_max");
/// Shared by all network namespaces.
pub const BUCKETS: Setting = Setting {
    tree: Tree::Sysfs,
    path: "module/nf_conntrack/parameters/hashsize",
};
pub const TCP_ESTABLISHED_TIMEOUT: Setting =
    sysctl("net/netfilter/nf_conntrack_tcp_timeout_established");
pub const TCP_CLOSE_WAIT_TIMEOUT: Setting =
    sysctl("net/netfilter/nf_conntrack_tcp_timeout_close_wait");
pub const TCP_BE_LIBERAL: Setting = sysctl("net/netfilter/nf_conntrack_tcp_be_liberal");
pub const UDP_TIMEOUT: Setting = sysctl("net/netfilter/nf_conntrack_udp_timeout");
pub const UDP_STREAM_TIMEOUT: Setting = sysctl("net/netfilter/nf_conntrack_udp_timeout_stream");

/// The target of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Exactly(u64),
    AtLeast(u64),
}

impl Wanted {
    /// The value to write if the target is not met.
    pub const fn value(self) -> u64 {
        match self {
            Self::Exactly(value) | Self::AtLeast(value) => value,
        }
    }

    pub const fn is_met_by(self, present: u64) -> bool {
        match self {
            Self::Exactly(value) => present == value,
            Self::AtLeast(value) => present >= value,
        }
    }
}

impl Tuning {
    /// All settings for a machine with this many CPUs, in the order of writing.
    pub fn wanted(&self, cpus: u32) -> Vec<(Setting, Wanted)> {
        let timeout = |setting, timeout: Option<Duration>| {
            timeout.map(|timeout| (setting, Wanted::Exactly(whole_seconds(timeout))))
        };
        let table = self.table_size(cpus);
        [
            table.map(|size| (MAX, Wanted::AtLeast(size))),
            table.map(|size| (BUCKETS, Wanted::AtLeast(size / FLOWS_PER_BUCKET))),
            timeout(TCP_ESTABLISHED_TIMEOUT, self.tcp_established_timeout),
            timeout(TCP_CLOSE_WAIT_TIMEOUT, self.tcp_close_wait_timeout),
            self.tcp_be_liberal
                .then_some((TCP_BE_LIBERAL, Wanted::Exactly(1))),
            timeout(UDP_TIMEOUT, self.udp_timeout),
            timeout(UDP_STREAM_TIMEOUT, self.udp_stream_timeout),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The settings to write. Includes settings whose value is unknown: the write then reports the
    /// error.
    pub fn unmet(&self, cpus: u32, present: &BTreeMap<Setting, u64>) -> Vec<(Setting, Wanted)> {
        let mut wanted = self.wanted(cpus);
        wanted.retain(|(setting, wanted)| {
            !present
                .get(setting)
                .is_some_and(|present| wanted.is_met_by(*present))
        });
        wanted
    }

    fn table_size(&self, cpus: u32) -> Option<u64> {
        let scaled = u64::from(self.max_per_core?) * u64::from(cpus);
        if scaled > MOST_BY_SCALING {
            // Applies even where `min` is larger.
            return Some(MOST_BY_SCALING);
        }
        Some(scaled.max(self.min.into()))
    }
}

/// The kernel counts whole seconds. A fraction is rounded up to one, because 0 would end every flow
/// at once.
fn whole_seconds(timeout: Duration) -> u64 {
    timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0)
}

/// The number of CPUs in a list such as `0-3,8`, the format of `/sys/devices/system/cpu/online`.
pub fn count_cpus(online: &str) -> Option<u32> {
    online.trim().split(',').try_fold(0_u32, |count, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests;
