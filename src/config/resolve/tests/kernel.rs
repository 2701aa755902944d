// SPDX-License-Identifier: Apache-2.0
//! The rules of what ends up in the kernel: masquerade mark, IPVS, connection tracking, OOM score.

use super::*;

#[test]
fn masquerade_bit_is_a_bit_in_any_mode() {
    for mode in ["iptables", "ipvs"] {
        for bit in [-1, 32] {
            refused(
                |c| {
                    mode.clone_into(&mut c.mode);
                    c.iptables.masquerade_bit = Some(bit);
                },
                &format!(
                    "KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: {bit}: must be within the range [0, 31]"
                ),
            );
        }
    }
    for (bit, mark) in [(0, 1), (31, 0x8000_0000)] {
        assert_eq!(
            settings(|c| c.iptables.masquerade_bit = Some(bit)).masquerade_mark(),
            mark
        );
    }
}

#[test]
fn ipvs_timeouts_are_not_negative_in_ipvs_mode() {
    type Field = fn(&mut KubeProxyConfiguration) -> &mut GoDuration;
    let fields: [(&str, Field); 3] = [
        ("TCPTimeout", |c| &mut c.ipvs.tcp_timeout),
        ("TCPFinTimeout", |c| &mut c.ipvs.tcp_fin_timeout),
        ("UDPTimeout", |c| &mut c.ipvs.udp_timeout),
    ];
    for (name, field) in fields {
        refused(
            |c| {
                "ipvs".clone_into(&mut c.mode);
                *field(c) = negative();
            },
            &format!(
                "KubeProxyIPVSConfiguration.{name}: Invalid value: \"-1s\": must be greater than or equal to 0"
            ),
        );
        settings(|c| *field(c) = negative());
    }
    let given = settings(|c| {
        "ipvs".clone_into(&mut c.mode);
        c.ipvs.tcp_fin_timeout = secs(7);
    });
    let expected = IpvsTimeouts {
        tcp_fin: Some(Duration::from_secs(7)),
        ..Default::default()
    };
    assert_eq!(given.ipvs.timeouts, expected);
    assert!(!expected.is_empty() && IpvsTimeouts::default().is_empty());
}

#[test]
fn exclude_cidrs_are_cidrs_in_ipvs_mode() {
    let bad = Some(vec!["10.0.0.0/8".to_owned(), "10.0.0.1".to_owned()]);
    refused(
        |c| {
            "ipvs".clone_into(&mut c.mode);
            c.ipvs.exclude_cidrs.clone_from(&bad);
        },
        r#"KubeProxyIPVSConfiguration.ExcludeCidrs[1]: Invalid value: "10.0.0.1": must be a valid CIDR"#,
    );
    assert_eq!(
        settings(|c| c.ipvs.exclude_cidrs.clone_from(&bad))
            .ipvs
            .exclude_cidrs,
        []
    );
    let given = settings(|c| {
        "ipvs".clone_into(&mut c.mode);
        c.ipvs.exclude_cidrs = Some(vec!["010.0.0.1/8".to_owned(), "fd00::/8".to_owned()]);
    });
    let texts: Vec<String> = given
        .ipvs
        .exclude_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(texts, ["10.0.0.0/8", "fd00::/8"]);
}

#[test]
fn the_scheduler_is_a_kernel_name() {
    for name in ["this-name-is-too-long", "r r", "../rr"] {
        refused(
            |c| {
                "ipvs".clone_into(&mut c.mode);
                name.clone_into(&mut c.ipvs.scheduler);
            },
            &format!(
                "KubeProxyIPVSConfiguration.Scheduler: Invalid value: {name:?}: must be the name of a scheduler of the kernel, such as rr, wrr, lc or sh"
            ),
        );
    }
    let scheduler = |name: &str| {
        settings(|c| {
            "ipvs".clone_into(&mut c.mode);
            name.clone_into(&mut c.ipvs.scheduler);
        })
        .ipvs
        .scheduler
    };
    assert_eq!(scheduler(""), "rr");
    assert_eq!(scheduler("lblcr"), "lblcr");
}

#[test]
fn conntrack_values_are_not_negative() {
    const PATH: &str = "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration";
    let rule = "must be greater than or equal to 0";
    refused(
        |c| c.conntrack.max_per_core = Some(-1),
        &format!("{PATH}.MaxPerCore: Invalid value: -1: {rule}"),
    );
    refused(
        |c| c.conntrack.min = Some(-1),
        &format!("{PATH}.Min: Invalid value: -1: {rule}"),
    );
    refused(
        |c| c.conntrack.tcp_established_timeout = Some(negative()),
        &format!("{PATH}.TCPEstablishedTimeout: Invalid value: \"-1s\": {rule}"),
    );
    refused(
        |c| c.conntrack.tcp_close_wait_timeout = Some(negative()),
        &format!("{PATH}.TCPCloseWaitTimeout: Invalid value: \"-1s\": {rule}"),
    );
    refused(
        |c| c.conntrack.udp_timeout = negative(),
        &format!("{PATH}.UDPTimeout: Invalid value: \"-1s\": {rule}"),
    );
    refused(
        |c| c.conntrack.udp_stream_timeout = negative(),
        &format!("{PATH}.UDPStreamTimeout: Invalid value: \"-1s\": {rule}"),
    );
}

#[test]
fn conntrack_zeros_leave_the_kernels_values() {
    let settings = settings(|c| {
        c.conntrack.max_per_core = Some(0);
        c.conntrack.tcp_established_timeout = Some(GoDuration::ZERO);
        c.conntrack.tcp_close_wait_timeout = Some(GoDuration::ZERO);
    });
    let expected = Tuning {
        min: 131_072,
        ..Default::default()
    };
    assert_eq!(settings.conntrack, expected);
}

#[test]
fn oom_score_is_in_the_kernels_range() {
    for score in [-1001, 1001, 70_000] {
        refused(
            |c| c.oom_score_adj = Some(score),
            &format!(
                "KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: {score}: must be within the range [-1000, 1000]"
            ),
        );
    }
    for score in [-1000, 1000] {
        assert_eq!(
            i32::from(settings(|c| c.oom_score_adj = Some(score)).oom_score_adj),
            score
        );
    }
}
