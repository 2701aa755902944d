// SPDX-License-Identifier: Apache-2.0
//! The kernel settings of IPVS mode.

use super::*;
use crate::model::IpFamily;
use crate::plan::testing::context;

type Pair = (&'static str, &'static str);

fn wanted_by(context: &Context) -> Vec<Pair> {
    let wanted = wanted(context).into_iter();
    wanted
        .map(|(key, value)| (key, &*value.into_owned().leak()))
        .collect()
}

fn with_kernel(release: &str) -> Vec<Pair> {
    wanted_by(&Context {
        kernel: KernelVersion::parse(release).unwrap(),
        ..context(IpFamily::V4)
    })
}

const ALWAYS: [Pair; 4] = [
    ("net/ipv4/vs/conntrack", "1"),
    ("net/ipv4/vs/expire_nodest_conn", "1"),
    ("net/ipv4/vs/expire_quiescent_template", "1"),
    ("net/ipv4/ip_forward", "1"),
];

#[test]
fn a_current_kernel_needs_four_settings() {
    assert_eq!(with_kernel("6.1.0-25-amd64"), ALWAYS);
}

#[test]
fn reuse_of_connections_is_off_where_it_is_broken() {
    let has = |release| with_kernel(release).contains(&("net/ipv4/vs/conn_reuse_mode", "0"));
    let kernels = [
        "4.0.9",
        "4.1.0",
        "4.19.0-amd64",
        "5.8.18",
        "5.9.0",
        "5.10.0",
        "6.12.1",
    ];
    assert_eq!(
        kernels.map(has),
        [false, true, true, true, false, false, false]
    );
}

#[test]
fn strict_arp_is_two_settings_more() {
    let strict = Context {
        strict_arp: true,
        ..context(IpFamily::V4)
    };
    let more = [
        ("net/ipv4/conf/all/arp_ignore", "1"),
        ("net/ipv4/conf/all/arp_announce", "2"),
    ];
    assert_eq!(wanted_by(&strict), [&ALWAYS[..], &more[..]].concat());
}

#[test]
fn all_that_is_ever_written_is_observed() {
    let asked = [
        RUN_ESTIMATION,
        EST_CPULIST,
        EST_NICE,
        CONN_LFACTOR,
        CONN_MAX,
        SVC_LFACTOR,
    ];
    let old_and_strict = Context {
        strict_arp: true,
        sysctls: asked.map(|key| (key, "1".to_owned())).into(),
        kernel: KernelVersion { major: 4, minor: 4 },
        ..context(IpFamily::V4)
    };
    let mut written: Vec<_> = wanted(&old_and_strict)
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    let mut observed = KEYS.to_vec();
    written.sort_unstable();
    observed.sort_unstable();
    assert_eq!(written, observed);
}

#[test]
fn releases_without_numbers_are_no_versions() {
    assert_eq!(KernelVersion::parse("linux"), None);
    assert_eq!(KernelVersion::parse("6"), None);
    assert_eq!(
        KernelVersion::parse("5.15.153.1-microsoft-standard-WSL2"),
        Some(KernelVersion {
            major: 5,
            minor: 15
        })
    );
}
