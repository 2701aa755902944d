// SPDX-License-Identifier: Apache-2.0
//! Connection time-outs: `IPVS_CMD_{SET,GET}_CONFIG`.

use std::time::Duration;

use super::message::IpvsAttribute;
use netlink_pipeline::find_attribute;

/// Idle time-outs of connections, per network namespace; whole seconds. `struct
/// ip_vs_timeout_user`.
///
/// When setting, zero leaves a value as it is. Fractions of a second are cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeouts {
    /// Of an established TCP connection; the kernel's default is 15 minutes.
    pub tcp: Duration,
    /// Of a TCP connection after a FIN; 2 minutes.
    pub tcp_fin: Duration,
    /// Of a UDP flow; 5 minutes.
    pub udp: Duration,
}

impl Timeouts {
    /// The attributes of a command, in the order of `ipvsadm --set`.
    pub fn to_attributes(self) -> Vec<IpvsAttribute> {
        vec![
            IpvsAttribute::TimeoutTcp(seconds(self.tcp)),
            IpvsAttribute::TimeoutTcpFin(seconds(self.tcp_fin)),
            IpvsAttribute::TimeoutUdp(seconds(self.udp)),
        ]
    }

    /// Reads an answer. A kernel without UDP (or TCP) support in IPVS leaves those out: zero.
    pub fn from_attributes(attributes: &[IpvsAttribute]) -> Self {
        let duration = |seconds: Option<&u32>| {
            Duration::from_secs(seconds.copied().unwrap_or_default().into())
        };
        Self {
            tcp: duration(find_attribute!(attributes, IpvsAttribute::TimeoutTcp)),
            tcp_fin: duration(find_attribute!(attributes, IpvsAttribute::TimeoutTcpFin)),
            udp: duration(find_attribute!(attributes, IpvsAttribute::TimeoutUdp)),
        }
    }
}

/// The kernel refuses more than `INT_MAX / HZ` seconds itself.
fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
