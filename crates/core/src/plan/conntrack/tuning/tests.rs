// SPDX-License-Identifier: Apache-2.0

use super::*;

/// kube-proxy's defaults.
fn defaults() -> Tuning {
    Tuning {
        max_per_core: Some(32_768),
        min: 131_072,
        tcp_established_timeout: Some(Duration::from_hours(24)),
        tcp_close_wait_timeout: Some(Duration::from_hours(1)),
        ..Tuning::default()
    }
}

fn size(max_per_core: u32, min: u32, cpus: u32) -> Option<u64> {
    let tuning = Tuning {
        max_per_core: Some(max_per_core),
        min,
        ..Tuning::default()
    };
    tuning.table_size(cpus)
}

#[test]
fn defaults_are_kube_proxys() {
    assert_eq!(
        defaults().wanted(2),
        [
            (MAX, Wanted::AtLeast(131_072)),
            (BUCKETS, Wanted::AtLeast(32_768)),
            (TCP_ESTABLISHED_TIMEOUT, Wanted::Exactly(86_400)),
            (TCP_CLOSE_WAIT_TIMEOUT, Wanted::Exactly(3_600)),
        ]
    );
}

#[test]
fn table_grows_with_the_cpus_from_min_up_to_a_million() {
    assert_eq!(size(32_768, 131_072, 4), Some(131_072));
    assert_eq!(size(32_768, 131_072, 8), Some(262_144));
    assert_eq!(size(32_768, 131_072, 32), Some(1_048_576));
    assert_eq!(size(32_768, 131_072, 64), Some(1_048_576));
    // The limit applies only to the size derived from the CPUs ...
    assert_eq!(size(32_768, 2_000_000, 32), Some(2_000_000));
    // ... and then even above `min`.
    assert_eq!(size(32_768, 2_000_000, 33), Some(1_048_576));
    assert_eq!(size(u32::MAX, 0, u32::MAX), Some(1_048_576));
}

#[test]
fn without_a_size_per_cpu_the_table_is_left_alone() {
    let tuning = Tuning {
        max_per_core: None,
        ..defaults()
    };
    let wanted = tuning.wanted(64);
    assert!(
        wanted
            .iter()
            .all(|(setting, _)| ![MAX, BUCKETS].contains(setting))
    );
}

#[test]
fn table_is_only_raised_and_time_outs_are_set() {
    let present = BTreeMap::from([
        (MAX, 262_144),
        (BUCKETS, 1_000),
        (TCP_ESTABLISHED_TIMEOUT, 432_000),
        (TCP_CLOSE_WAIT_TIMEOUT, 3_600),
    ]);
    assert_eq!(
        defaults().unmet(2, &present),
        [
            (BUCKETS, Wanted::AtLeast(32_768)),
            (TCP_ESTABLISHED_TIMEOUT, Wanted::Exactly(86_400)),
        ]
    );
}

#[test]
fn liberal_is_never_switched_off() {
    let present = BTreeMap::from([(TCP_BE_LIBERAL, 1)]);
    assert_eq!(Tuning::default().unmet(2, &present), []);
    let liberal = Tuning {
        tcp_be_liberal: true,
        ..Tuning::default()
    };
    assert_eq!(liberal.unmet(2, &present), []);
    assert_eq!(
        liberal.unmet(2, &BTreeMap::new()),
        [(TCP_BE_LIBERAL, Wanted::Exactly(1))],
        "an unreadable setting is written"
    );
}

#[test]
fn parts_of_a_second_are_a_second() {
    let tuning = Tuning {
        udp_timeout: Some(Duration::from_millis(1)),
        udp_stream_timeout: Some(Duration::from_millis(2_500)),
        ..Tuning::default()
    };
    assert_eq!(
        tuning.wanted(1),
        [
            (UDP_TIMEOUT, Wanted::Exactly(1)),
            (UDP_STREAM_TIMEOUT, Wanted::Exactly(3)),
        ]
    );
}

#[test]
fn cpus_are_counted_from_the_kernels_list() {
    for (list, count) in [
        ("0", Some(1)),
        ("0-1\n", Some(2)),
        ("0-3,8,10-11", Some(7)),
        ("", None),
        ("3-0", None),
        ("0-x", None),
        ("0-4294967295", None),
    ] {
        assert_eq!(count_cpus(list), count, "{list:?}");
    }
}
