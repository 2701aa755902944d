// SPDX-License-Identifier: Apache-2.0
//! Upstream's defaults of the configuration file.
//!
//! Flags start from the same values and then replace them, so that a zero given as a flag stays a
//! zero.

use std::time::Duration;

use kpr_core::model::address::parse_ip;

use super::types::{API_VERSION, KIND, KubeProxyConfiguration};
use crate::source::kubernetes;
use kpr_core::model::GoDuration;

/// Port of `/healthz`.
pub const HEALTHZ_PORT: u16 = 10256;
/// Port of `/metrics`.
pub const METRICS_PORT: u16 = 10249;
/// What upstream speaks with the API server, and so do we.
pub const CONTENT_TYPE: &str = kubernetes::PROTOBUF;
/// The kernel's round robin.
pub const SCHEDULER: &str = "rr";
/// Of `--ipvs-drain-limit`. Long enough for all but the longest connections, and something must
/// bound them.
pub const IPVS_DRAIN_LIMIT: Duration = Duration::from_hours(1);
/// Bit of the packet mark that asks for masquerading.
pub const MASQUERADE_BIT: i32 = 14;

const SYNC_PERIOD: GoDuration = GoDuration::from_secs(30);
const MIN_SYNC_PERIOD: GoDuration = GoDuration::from_secs(1);

impl KubeProxyConfiguration {
    /// The configuration of a process that is given nothing.
    pub fn with_defaults() -> Self {
        let mut configuration = Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            ..Self::default()
        };
        configuration.set_defaults();
        configuration
    }

    /// The same, before flags are applied. Theirs is the only way to a shortest period in ipvs
    /// mode, because upstream's flags begin with the periods of iptables mode.
    pub(super) fn with_flag_defaults() -> Self {
        let mut configuration = Self::with_defaults();
        configuration.ipvs.min_sync_period = MIN_SYNC_PERIOD;
        configuration
    }

    /// Fills what a file leaves out. Most zeros count as left out; those of `conntrack` do not.
    pub fn set_defaults(&mut self) {
        default_text(&mut self.bind_address, "0.0.0.0");
        // Decided by the family of the address in the file, as upstream.
        let v6 = parse_ip(&self.bind_address).is_ok_and(|ip| ip.is_ipv6());
        default_text(
            &mut self.healthz_bind_address,
            if v6 { "::" } else { "0.0.0.0" },
        );
        default_text(
            &mut self.metrics_bind_address,
            if v6 { "::1" } else { "127.0.0.1" },
        );
        append_port(&mut self.healthz_bind_address, HEALTHZ_PORT);
        append_port(&mut self.metrics_bind_address, METRICS_PORT);

        default_text(&mut self.client_connection.content_type, CONTENT_TYPE);
        if self.client_connection.qps == 0.0 {
            self.client_connection.qps = 5.0;
        }
        if self.client_connection.burst == 0 {
            self.client_connection.burst = 10;
        }
        default_duration(&mut self.config_sync_period, GoDuration::from_secs(15 * 60));

        self.conntrack.max_per_core.get_or_insert(32 * 1024);
        self.conntrack.min.get_or_insert(128 * 1024);
        self.conntrack
            .tcp_established_timeout
            .get_or_insert(GoDuration::from_secs(24 * 60 * 60));
        self.conntrack
            .tcp_close_wait_timeout
            .get_or_insert(GoDuration::from_secs(60 * 60));

        self.iptables.masquerade_bit.get_or_insert(MASQUERADE_BIT);
        self.iptables.localhost_node_ports.get_or_insert(true);
        default_duration(&mut self.iptables.sync_period, SYNC_PERIOD);
        default_duration(&mut self.iptables.min_sync_period, MIN_SYNC_PERIOD);
        default_duration(&mut self.ipvs.sync_period, SYNC_PERIOD);
        self.nftables.masquerade_bit.get_or_insert(MASQUERADE_BIT);
        default_duration(&mut self.nftables.sync_period, SYNC_PERIOD);
        default_duration(&mut self.nftables.min_sync_period, MIN_SYNC_PERIOD);

        default_text(&mut self.logging.format, "text");
        default_duration(
            &mut self.logging.flush_frequency.0,
            GoDuration::from_secs(5),
        );
        self.oom_score_adj.get_or_insert(-999);
    }

    /// Clears what the configured mode does not read, as upstream shows its effective
    /// configuration.
    pub(super) fn forget_other_modes(&mut self) {
        // Upstream reads it and has no place for it.
        self.port_range.clear();
        self.nftables.masquerade_all = false;
        self.nftables.sync_period = GoDuration::ZERO;
        self.nftables.min_sync_period = GoDuration::ZERO;
        let (sync_period, min_sync_period) = if self.mode == "ipvs" {
            (
                &mut self.iptables.sync_period,
                &mut self.iptables.min_sync_period,
            )
        } else {
            (&mut self.ipvs.sync_period, &mut self.ipvs.min_sync_period)
        };
        *sync_period = GoDuration::ZERO;
        *min_sync_period = GoDuration::ZERO;
    }

    /// Fills what upstream decides only once it runs: the mode and how local traffic is detected.
    /// Apart from [`Self::set_defaults`] so that a blank can be remarked on.
    pub fn set_platform_defaults(&mut self) {
        default_text(&mut self.mode, "iptables");
        default_text(&mut self.detect_local_mode, "ClusterCIDR");
    }
}

fn default_text(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

fn default_duration(field: &mut GoDuration, default: GoDuration) {
    if field.is_zero() {
        *field = default;
    }
}

/// Turns a bare address into `address:port`; leaves everything else for validation to judge.
pub(super) fn append_port(address: &mut String, port: u16) {
    if split_host_port(address).is_some() {
        return;
    }
    if let Ok(ip) = parse_ip(address) {
        *address = std::net::SocketAddr::new(ip, port).to_string();
    }
}

/// `host:port` or `[host]:port`, the host without its brackets.
pub(super) fn split_host_port(text: &str) -> Option<(&str, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once("]:")?;
        return (!port.contains(':')).then_some((host, port));
    }
    let (host, port) = text.split_once(':')?;
    (!port.contains([':', ']'])).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_bind_address(address: &str) -> KubeProxyConfiguration {
        let mut configuration = KubeProxyConfiguration {
            bind_address: address.to_owned(),
            ..Default::default()
        };
        configuration.set_defaults();
        configuration
    }

    #[test]
    fn server_addresses_follow_the_family_of_the_bind_address() {
        let v4 = with_bind_address("");
        assert_eq!(v4.bind_address, "0.0.0.0");
        assert_eq!(v4.healthz_bind_address, "0.0.0.0:10256");
        assert_eq!(v4.metrics_bind_address, "127.0.0.1:10249");
        let v6 = with_bind_address("fd00::1");
        assert_eq!(v6.healthz_bind_address, "[::]:10256");
        assert_eq!(v6.metrics_bind_address, "[::1]:10249");
    }

    #[test]
    fn a_bare_address_gets_the_port() {
        for (address, with_port) in [
            ("192.0.2.1", "192.0.2.1:99"),
            ("192.0.2.01", "192.0.2.1:99"),
            ("fd00::1", "[fd00::1]:99"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("localhost", "localhost"),
            ("", ""),
        ] {
            let mut text = address.to_owned();
            append_port(&mut text, 99);
            assert_eq!(text, with_port, "{address}");
        }
    }

    #[test]
    fn zeros_of_conntrack_are_kept_and_nulls_are_not() {
        let mut configuration = KubeProxyConfiguration::default();
        configuration.conntrack.max_per_core = Some(0);
        configuration.conntrack.tcp_established_timeout = Some(GoDuration::ZERO);
        configuration.set_defaults();
        assert_eq!(configuration.conntrack.max_per_core, Some(0));
        assert_eq!(configuration.conntrack.min, Some(131_072));
        assert_eq!(
            configuration.conntrack.tcp_established_timeout,
            Some(GoDuration::ZERO)
        );
        assert_eq!(
            configuration
                .conntrack
                .tcp_close_wait_timeout
                .map(|d| d.to_string()),
            Some("1h0m0s".to_owned())
        );
    }

    #[test]
    fn only_iptables_mode_has_a_shortest_sync_period() {
        let configuration = KubeProxyConfiguration::with_defaults();
        assert_eq!(configuration.iptables.min_sync_period.to_string(), "1s");
        assert_eq!(configuration.ipvs.min_sync_period.to_string(), "0s");
        assert_eq!(configuration.ipvs.sync_period.to_string(), "30s");
    }

    #[test]
    fn host_and_port_are_split_at_the_right_colon() {
        assert_eq!(split_host_port("1.2.3.4:80"), Some(("1.2.3.4", "80")));
        assert_eq!(split_host_port("[::1]:80"), Some(("::1", "80")));
        assert_eq!(split_host_port(":80"), Some(("", "80")));
        for text in ["1.2.3.4", "::1", "[::1]", "[::1:80", "1.2.3.4:80:90"] {
            assert_eq!(split_host_port(text), None, "{text}");
        }
    }
}
