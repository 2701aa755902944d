// SPDX-License-Identifier: Apache-2.0
//! The tracer itself, over handwritten rules.

use crate::model::Protocol;
use crate::model::testing::ip;
use crate::plan::iptables::tests::proxy::name;
use crate::plan::ruleset::{Rule, Ruleset, Table};
use crate::plan::testing::tracer::{End, Ends, Packet, Tracer};

/// A packet from 10.0.0.1 to 10.0.0.2:80 that arrives on `eth0`.
fn trace(chains: &[(Table, &str, &[&str])]) -> Ends {
    let mut rules = Ruleset::new();
    for (table, chain, texts) in chains {
        let all = texts.iter().map(|text| Rule::new((*text).to_owned()));
        rules.set(*table, name(chain), all.collect());
    }
    let packet = Packet {
        from: ip("10.0.0.1"),
        interface: Some("eth0"),
        to: "10.0.0.2:80".parse().unwrap(),
        protocol: Protocol::Tcp,
        known_to: None,
    };
    let local = vec![ip("10.0.0.9")];
    Tracer {
        rules: &rules,
        local,
    }
    .trace(&packet)
}

fn just(end: End) -> Ends {
    Ends::from([(end, 1.0)])
}

/// Rules of `FORWARD` only.
fn forward(rules: &[&str]) -> Ends {
    trace(&[(Table::Filter, "FORWARD", rules)])
}

const TO: End = End::To(std::net::SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 1)),
    8080,
));

#[test]
fn matches_are_met_or_not() {
    for met in [
        "-s 10.0.0.0/24",
        "! -s 10.0.1.0/24",
        "-d 10.0.0.2/32",
        "-i eth+",
        "! -i cni0",
        "-p tcp -m tcp --dport 80",
        "-p tcp -m tcp --dport 79:81",
        "-m conntrack --ctstate NEW",
        "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT",
        "-m mark --mark 0x0/0x1",
        "-m addrtype ! --dst-type LOCAL",
        "-m comment --comment \"-j ACCEPT is only words\"",
        "",
    ] {
        assert_eq!(
            forward(&[&format!("{met} -j DROP")]),
            just(End::Dropped),
            "{met}"
        );
    }
    for not_met in [
        "-s 10.0.1.0/24",
        "! -d 10.0.0.0/8",
        "-i eth",
        "! -i eth0",
        "-p udp",
        "! -p tcp",
        "-p tcp -m tcp --dport 81:90",
        "-m conntrack ! --ctstate NEW",
        "-m conntrack --ctstate ESTABLISHED",
        "-m mark --mark 0x1/0x1",
        "-m addrtype --src-type LOCAL",
        "-s 10.0.0.0/24 -d 10.0.1.0/24",
    ] {
        let ends = forward(&[&format!("{not_met} -j DROP")]);
        assert_eq!(ends, just(End::Untouched), "{not_met}");
    }
}

#[test]
fn chains_return_and_end() {
    let ends = trace(&[
        (
            Table::Filter,
            "FORWARD",
            &["-j FIRST", "-j REJECT --reject-with icmp-port-unreachable"],
        ),
        (
            Table::Filter,
            "FIRST",
            &["-p udp -j DROP", "-j RETURN", "-j DROP"],
        ),
    ]);
    assert_eq!(ends, just(End::Rejected));
    // One table may accept a packet and another one drop it.
    let ends = trace(&[
        (
            Table::Nat,
            "PREROUTING",
            &["-j ACCEPT", "-j DNAT --to-destination 10.1.0.1:8080"],
        ),
        (Table::Filter, "FORWARD", &["-j DROP"]),
    ]);
    assert_eq!(ends, just(End::Dropped));
    // A rule without a target only counts.
    assert_eq!(
        forward(&["-m comment --comment nothing"]),
        just(End::Untouched)
    );
}

#[test]
fn routing_follows_translation() {
    let to_node = trace(&[
        (
            Table::Nat,
            "PREROUTING",
            &["-j DNAT --to-destination 10.0.0.9:80"],
        ),
        (Table::Filter, "INPUT", &["-j DROP"]),
    ]);
    assert_eq!(to_node, just(End::Dropped));
    let to_pod = trace(&[
        (
            Table::Nat,
            "PREROUTING",
            &["-j DNAT --to-destination 10.1.0.1:8080"],
        ),
        (Table::Filter, "INPUT", &["-j DROP"]),
        (
            Table::Filter,
            "FORWARD",
            &["-m conntrack --ctstate DNAT -j ACCEPT", "-j DROP"],
        ),
    ]);
    assert_eq!(to_pod, just(TO));
}

#[test]
fn chances_multiply() {
    let ends = trace(&[
        (
            Table::Nat,
            "PREROUTING",
            &[
                "-m statistic --mode random --probability 0.25000000000 -j PART",
                "-p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.1.0.1:8080",
            ],
        ),
        (
            Table::Nat,
            "PART",
            &[
                "-m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.1.0.1:8080",
            ],
        ),
    ]);
    // 0.25 * 0.5, and half of the rest.
    assert!((ends[&TO] - (0.125 + 0.875 / 2.0)).abs() < 1e-9, "{ends:?}");
    assert!((ends[&End::Untouched] - 0.4375).abs() < 1e-9, "{ends:?}");
}

#[test]
fn marks_are_set_and_taken_off() {
    let translated: (Table, &str, &[&str]) = (
        Table::Nat,
        "PREROUTING",
        &[
            "-j MARK --set-xmark 0x4000/0x4000",
            "-j DNAT --to-destination 10.1.0.1:8080",
        ],
    );
    let marked = "-m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully";
    let End::To(to) = TO else { unreachable!() };
    let ends = trace(&[translated, (Table::Nat, "POSTROUTING", &[marked])]);
    assert_eq!(ends, just(End::Masqueraded(to)));
    let ends = trace(&[
        translated,
        (
            Table::Nat,
            "POSTROUTING",
            &["-j MARK --set-xmark 0x4000/0x0", marked],
        ),
    ]);
    assert_eq!(ends, just(TO));
}

#[test]
fn what_is_unknown_fails() {
    for unknown in [
        "-m set --match-set KUBE dst -j DROP",
        "-j LOG",
        "-j GONE",
        "-g FIRST",
        "-m conntrack --ctstate SNAT -j DROP",
        "-o eth0 -j DROP",
        "-j MARK --or-mark 0x1",
        "-j DNAT --to-destination 10.1.0.1",
    ] {
        let traced = std::panic::catch_unwind(|| forward(&[unknown]));
        assert!(traced.is_err(), "{unknown}: {traced:?}");
    }
    let loops = std::panic::catch_unwind(|| {
        trace(&[
            (Table::Filter, "FORWARD", &["-j A"]),
            (Table::Filter, "A", &["-j A"]),
        ])
    });
    assert!(loops.is_err());
}
