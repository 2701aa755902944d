// SPDX-License-Identifier: Apache-2.0
//! The IPVS client against a real kernel, with `ipvsadm` as the independent reader.
//!
//! Run it where IPVS exists and its tables are not in use: `hack/guest -- PATH_OF_THIS_PROGRAM`.
//! Elsewhere every test reads *ignored*; with `REQUIRE_KERNEL=1` that is a failure.
#![cfg(test)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use ipvs_netlink::{
    AddressFamily, Client, Destination, Error, Forwarding, Netmask, Operation, Persistence,
    Protocol, Service, ServiceFlags, ServiceKey, Timeouts, Tunnel, TunnelKind,
};
use libtest_mimic::{Arguments, Failed, Trial};
use netlink_pipeline::KernelErrorKind;

mod scale;
mod support;

use support::{
    apply_all, destination, destinations, ipvsadm, name, open, run, service_lines, services,
    sorted, tcp, wait_for,
};

/// Schedulers of Linux 6.1; `twos` came with 6.2 and serves as the missing one.
const SCHEDULERS: [&str; 13] = [
    "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh",
];

/// Makes this program only open the client and report the result.
const OPEN_ONLY: &str = "--open-only";

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == OPEN_ONLY) {
        return match Client::open() {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = Arguments::from_args();
    // The tests share the tables.
    arguments.test_threads = Some(1);
    let obstacle = obstacle();
    if let Some(obstacle) = &obstacle {
        eprintln!("kernel_netlink: {obstacle}");
    }
    let required = std::env::var_os("REQUIRE_KERNEL").is_some_and(|value| value == "1");
    let tests: [(&str, fn()); 14] = [
        (
            "every_scheduler_serves_every_family_and_protocol",
            every_scheduler,
        ),
        (
            "services_are_what_ipvsadm_reads",
            services_are_what_ipvsadm_reads,
        ),
        (
            "a_changed_service_keeps_its_destinations",
            a_changed_service_keeps_its_destinations,
        ),
        (
            "destinations_are_what_ipvsadm_reads",
            destinations_are_what_ipvsadm_reads,
        ),
        (
            "a_thousand_services_with_ten_destinations_each",
            scale::a_thousand_services,
        ),
        ("a_missing_scheduler_is_named", a_missing_scheduler_is_named),
        (
            "a_probe_leaves_nothing_behind",
            a_probe_leaves_nothing_behind,
        ),
        (
            "what_is_not_there_is_not_an_error_to_read",
            what_is_not_there,
        ),
        ("refusals_are_told_apart", refusals_are_told_apart),
        ("time_outs_are_set_and_read", time_outs_are_set_and_read),
        ("information_is_that_of_proc", information_is_that_of_proc),
        ("counters_follow_a_connection", counters_follow_a_connection),
        ("a_flush_empties_the_tables", a_flush_empties_the_tables),
        (
            "without_the_capability_the_error_says_so",
            without_the_capability,
        ),
    ];
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            let obstacle = obstacle.clone();
            let ignored = obstacle.is_some() && !required;
            let run = move || {
                if let Some(obstacle) = obstacle {
                    return Err(Failed::from(obstacle));
                }
                open().flush().unwrap();
                test();
                Ok(())
            };
            Trial::test(name, run).with_ignored_flag(ignored)
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if obstacle.is_none() {
        open().flush().unwrap();
    }
    conclusion.exit_code()
}

/// Why the tests cannot run here, if they cannot.
fn obstacle() -> Option<String> {
    let mut client = match Client::open() {
        Ok(client) => client,
        Err(error) => return Some(error.to_string()),
    };
    match client.services() {
        Ok(services) if services.is_empty() => None,
        Ok(_) => Some("the IPVS tables of this kernel are in use".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

fn every_scheduler() {
    let mut client = open();
    let mut wanted = Vec::new();
    for (index, scheduler) in (1_u8..).zip(SCHEDULERS) {
        client.probe_scheduler(name(scheduler)).unwrap();
        let v4 = IpAddr::V4(Ipv4Addr::new(10, 0, 0, index));
        let v6 = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, index.into()));
        for address in [v4, v6] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let key = ServiceKey::new(protocol, address, 80);
                wanted.push(Service::new(key, name(scheduler)));
            }
        }
    }
    let operations: Vec<Operation> = wanted.iter().copied().map(Operation::AddService).collect();
    apply_all(&mut client, &operations);
    assert_eq!(
        service_lines(),
        sorted(wanted.iter().map(Service::to_string))
    );
    assert_eq!(services(&mut client), sorted(wanted));
}

fn services_are_what_ipvsadm_reads() {
    let mut client = open();
    let rr = name("rr");
    let sticky = |timeout, netmask| Some(Persistence { timeout, netmask });
    let flags = ServiceFlags::FALLBACK | ServiceFlags::HASH_PORT;
    let mark = ServiceKey::Mark {
        family: AddressFamily::Inet,
        mark: 7,
    };
    let mark6 = ServiceKey::Mark {
        family: AddressFamily::Inet6,
        mark: 0x4000,
    };
    let rows = [
        (Service::new(tcp("10.0.0.1", 80), rr), "TCP 10.0.0.1:80 rr"),
        (
            Service {
                persistence: sticky(10_800, Netmask::host(AddressFamily::Inet)),
                ..Service::new(tcp("10.0.0.2", 80), rr)
            },
            "TCP 10.0.0.2:80 rr persistent 10800",
        ),
        (
            Service {
                persistence: sticky(1, Netmask::Inet(Ipv4Addr::new(255, 255, 0, 0))),
                ..Service::new(tcp("10.0.0.3", 80), rr)
            },
            "TCP 10.0.0.3:80 rr persistent 1 mask 255.255.0.0",
        ),
        (
            Service {
                persistence: sticky(300, Netmask::Inet6(64)),
                ..Service::new(tcp("fd00::1", 80), rr)
            },
            "TCP [fd00::1]:80 rr persistent 300 mask 64",
        ),
        (
            Service {
                flags,
                ..Service::new(tcp("10.0.0.4", 80), name("mh"))
            },
            "TCP 10.0.0.4:80 mh (mh-fallback,mh-port)",
        ),
        (
            Service {
                flags: ServiceFlags::HASH_PORT,
                ..Service::new(tcp("10.0.0.5", 80), name("sh"))
            },
            "TCP 10.0.0.5:80 sh (sh-port)",
        ),
        (
            Service {
                flags: ServiceFlags::ONE_PACKET,
                ..Service::new(
                    ServiceKey::new(Protocol::Udp, Ipv4Addr::new(10, 0, 0, 6).into(), 53),
                    rr,
                )
            },
            "UDP 10.0.0.6:53 rr ops",
        ),
        (Service::new(mark, rr), "FWM 7 rr"),
        (Service::new(mark6, name("wlc")), "FWM 16384 IPv6 wlc"),
    ];
    apply_all(
        &mut client,
        &rows.map(|(service, _)| Operation::AddService(service)),
    );
    assert_eq!(
        service_lines(),
        sorted(rows.map(|(_, line)| line.to_owned()))
    );
    assert_eq!(
        services(&mut client),
        sorted(rows.map(|(service, _)| service))
    );
    for (service, _) in rows {
        assert_eq!(
            client.service(&service.key).unwrap().unwrap().service,
            service
        );
    }
    apply_all(
        &mut client,
        &rows.map(|(service, _)| Operation::DelService(service.key)),
    );
    assert_eq!(ipvsadm(), Vec::<String>::new());
}

fn a_changed_service_keeps_its_destinations() {
    let mut client = open();
    let key = tcp("10.0.0.1", 80);
    let server = destination("10.1.0.1", 8080);
    let before = Service {
        flags: ServiceFlags::HASH_PORT,
        persistence: Some(Persistence {
            timeout: 60,
            netmask: Netmask::host(AddressFamily::Inet),
        }),
        ..Service::new(key, name("mh"))
    };
    apply_all(
        &mut client,
        &[
            Operation::AddService(before),
            Operation::AddDestination(key, server),
        ],
    );
    let after = Service::new(key, name("wrr"));
    apply_all(&mut client, &[Operation::SetService(after)]);
    // Flags and persistence are cleared, not just left out of the request.
    assert_eq!(services(&mut client), [after]);
    assert_eq!(
        ipvsadm(),
        ["TCP 10.0.0.1:80 wrr", "-> 10.1.0.1:8080 Masq 1 0 0"]
    );
}

fn destinations_are_what_ipvsadm_reads() {
    let mut client = open();
    let v4 = tcp("10.0.0.1", 80);
    let v6 = tcp("fd00::1", 443);
    let limited = Destination {
        upper_threshold: 100,
        lower_threshold: 50,
        ..destination("10.1.0.1", 80)
    };
    let gue = Tunnel {
        kind: TunnelKind::Gue,
        port: 5555,
        flags: 1,
    };
    let tunnelled = Destination {
        forwarding: Forwarding::Tunnel(gue),
        ..destination("10.1.0.2", 80)
    };
    let routed = Destination {
        forwarding: Forwarding::DirectRoute,
        ..destination("10.1.0.3", 80)
    };
    let heavy = Destination {
        weight: 65_535,
        ..destination("10.1.0.4", 8080)
    };
    let rr = name("rr");
    apply_all(
        &mut client,
        &[
            Operation::AddService(Service::new(v4, rr)),
            Operation::AddService(Service::new(v6, rr)),
            Operation::AddDestination(v4, limited),
            Operation::AddDestination(v4, tunnelled),
            Operation::AddDestination(v4, routed),
            Operation::AddDestination(v4, heavy),
            Operation::AddDestination(v6, destination("fd00:1::1", 8443)),
        ],
    );
    assert_eq!(
        destinations(&mut client, &v4),
        [limited, tunnelled, routed, heavy]
    );
    assert_eq!(
        destinations(&mut client, &v6),
        [destination("fd00:1::1", 8443)]
    );
    let lines = sorted(ipvsadm());
    assert_eq!(
        lines,
        [
            "-> 10.1.0.1:80 Masq 1 0 0",
            "-> 10.1.0.2:80 Tunnel 1 0 0",
            "-> 10.1.0.3:80 Route 1 0 0",
            "-> 10.1.0.4:8080 Masq 65535 0 0",
            "-> [fd00:1::1]:8443 Masq 1 0 0",
            "TCP 10.0.0.1:80 rr",
            "TCP [fd00::1]:443 rr",
        ]
    );
    // Draining and removal, as in graceful termination.
    let drained = Destination {
        weight: 0,
        ..limited
    };
    apply_all(
        &mut client,
        &[
            Operation::SetDestination(v4, drained),
            Operation::DelDestination(v4, tunnelled.key),
            Operation::DelDestination(v4, routed.key),
            Operation::DelDestination(v6, destination("fd00:1::1", 8443).key),
        ],
    );
    assert_eq!(destinations(&mut client, &v4), [drained, heavy]);
    assert_eq!(destinations(&mut client, &v6), []);
}

fn a_missing_scheduler_is_named() {
    let mut client = open();
    let error = client.probe_scheduler(name("twos")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "IPVS scheduler \"twos\" is not available: kernel module ip_vs_twos"
    );
    // The same error in the middle of a batch.
    let results = client
        .apply(&[
            Operation::AddService(Service::new(tcp("10.0.0.1", 80), name("twos"))),
            Operation::AddService(Service::new(tcp("10.0.0.2", 80), name("rr"))),
        ])
        .unwrap();
    assert_eq!(
        results[0].as_ref().unwrap_err().kind,
        KernelErrorKind::NotFound
    );
    assert_eq!(results[1], Ok(()));
}

fn a_probe_leaves_nothing_behind() {
    let mut client = open();
    client.probe_scheduler(name("sed")).unwrap();
    assert_eq!(ipvsadm(), Vec::<String>::new());
    // Left behind by a probe that was killed, possibly kube-proxy's.
    run("ipvsadm", &["-A", "-t", "198.51.100.0:20000", "-s", "rr"]);
    client.probe_scheduler(name("sed")).unwrap();
    assert_eq!(ipvsadm(), ["TCP 198.51.100.0:20000 rr"]);
}

fn what_is_not_there() {
    let mut client = open();
    assert_eq!(client.services().unwrap(), []);
    assert_eq!(client.service(&tcp("10.0.0.1", 80)).unwrap(), None);
    assert_eq!(client.destinations(&tcp("10.0.0.1", 80)).unwrap(), []);
}

fn refusals_are_told_apart() {
    let mut client = open();
    let key = tcp("10.0.0.1", 80);
    let absent = tcp("10.0.0.9", 80);
    let service = Service::new(key, name("rr"));
    let server = destination("10.1.0.1", 80);
    let too_heavy = Destination {
        weight: u32::MAX,
        ..destination("10.1.0.2", 80)
    };
    let other = ServiceKey::new(Protocol::Other(1), Ipv4Addr::new(10, 0, 0, 3).into(), 80);
    let results = client
        .apply(&[
            Operation::AddService(service),
            Operation::AddService(service),
            Operation::AddDestination(key, server),
            Operation::AddDestination(key, server),
            Operation::AddDestination(absent, server),
            Operation::AddDestination(key, too_heavy),
            Operation::SetService(Service::new(absent, name("rr"))),
            Operation::SetDestination(key, destination("10.1.0.3", 80)),
            Operation::DelDestination(key, destination("10.1.0.3", 80).key),
            Operation::DelService(absent),
            Operation::DelService(key),
        ])
        .unwrap();
    let kinds: Vec<Option<KernelErrorKind>> = results
        .into_iter()
        .map(|result| result.err().map(|error| error.kind))
        .collect();
    let exists = Some(KernelErrorKind::AlreadyExists);
    let missing = Some(KernelErrorKind::NotFound);
    let invalid = Some(KernelErrorKind::Invalid);
    assert_eq!(
        kinds,
        [
            None, exists, None, exists, missing, invalid, missing, missing, missing, missing, None
        ]
    );
    // However the kernel treats the ICMP packet, the connection must survive.
    client
        .apply(&[Operation::AddService(Service::new(other, name("rr")))])
        .unwrap();
    assert_eq!(client.service(&key).unwrap(), None);
}

fn time_outs_are_set_and_read() {
    let mut client = open();
    let before = client.timeouts().unwrap();
    let wanted = Timeouts {
        tcp: Duration::from_secs(901),
        tcp_fin: Duration::from_secs(121),
        udp: Duration::from_secs(301),
    };
    client.set_timeouts(wanted).unwrap();
    assert_eq!(client.timeouts().unwrap(), wanted);
    let line = run("ipvsadm", &["-Ln", "--timeout"]);
    assert_eq!(line.trim(), "Timeout (tcp tcpfin udp): 901 121 301");
    // Zero keeps the current value.
    let only_udp = Timeouts {
        udp: Duration::from_secs(302),
        ..Timeouts::default()
    };
    client.set_timeouts(only_udp).unwrap();
    assert_eq!(
        client.timeouts().unwrap(),
        Timeouts {
            udp: only_udp.udp,
            ..wanted
        }
    );
    client.set_timeouts(before).unwrap();
}

fn information_is_that_of_proc() {
    let info = open().info().unwrap();
    let proc = std::fs::read_to_string("/proc/net/ip_vs").unwrap();
    let expected = format!("IP Virtual Server version {info}");
    assert_eq!(proc.lines().next(), Some(expected.as_str()));
}

fn counters_follow_a_connection() {
    let mut client = open();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    run("ip", &["address", "add", "10.99.0.1/32", "dev", "lo"]);
    let key = tcp("10.99.0.1", 80);
    apply_all(
        &mut client,
        &[
            Operation::AddService(Service::new(key, name("rr"))),
            Operation::AddDestination(key, destination("127.0.0.1", port)),
        ],
    );
    let mut near =
        TcpStream::connect_timeout(&"10.99.0.1:80".parse().unwrap(), Duration::from_secs(10))
            .unwrap();
    let (mut far, _) = listener.accept().unwrap();
    near.write_all(&[7; 1000]).unwrap();
    let mut received = [0; 1000];
    far.read_exact(&mut received).unwrap();
    run("ip", &["address", "del", "10.99.0.1/32", "dev", "lo"]);

    // The kernel sums the per-CPU counters every two seconds.
    wait_for("the counters", || {
        client.service(&key).unwrap().unwrap().stats.connections > 0
            && client.destinations(&key).unwrap()[0].stats.connections > 0
    });
    let service = client.service(&key).unwrap().unwrap().stats;
    let status = client.destinations(&key).unwrap()[0];
    for stats in [service, status.stats] {
        assert_eq!(stats.connections, 1);
        assert!(stats.incoming_packets >= 3, "{stats:?}");
        assert!(
            (1_000..100_000).contains(&stats.incoming_bytes),
            "{stats:?}"
        );
        assert!(stats.outgoing_packets >= 1, "{stats:?}");
    }
    assert_eq!(status.active_connections, 1);
    assert_eq!(
        (status.inactive_connections, status.persistent_connections),
        (0, 0)
    );
    assert!(ipvsadm()[1].ends_with("Masq 1 1 0"), "{:?}", ipvsadm());
    client.zero(Some(&key)).unwrap();
    assert_eq!(client.service(&key).unwrap().unwrap().stats.connections, 0);
}

fn a_flush_empties_the_tables() {
    let mut client = open();
    let key = tcp("10.0.0.1", 80);
    apply_all(
        &mut client,
        &[Operation::AddService(Service::new(key, name("rr")))],
    );
    client.flush().unwrap();
    assert_eq!(ipvsadm(), Vec::<String>::new());
}

#[expect(
    clippy::disallowed_methods,
    reason = "another process, with fewer rights"
)]
fn without_the_capability() {
    let own = std::env::current_exe().unwrap();
    let output = std::process::Command::new("setpriv")
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
        .arg(own)
        .arg(OPEN_ONLY)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let permission = netlink_pipeline::KernelError::from_errno(libc::EPERM);
    assert_eq!(said.trim(), Error::Permission(permission).to_string());
    assert!(!output.status.success());
}
