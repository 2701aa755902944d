// SPDX-License-Identifier: Apache-2.0
//! Many objects at once. The printed times are informative; no test depends on them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipvs_netlink::{
    Destination, DestinationKey, KernelName, Operation, Protocol, Service, ServiceKey,
};
use kube_proxy_rs::clock::Clock;
use netlink_pipeline::KernelErrorKind;

use crate::support::{apply_all, destinations, ipvsadm, open, tcp};

/// Operations for 1,000 services with ten destinations each.
fn many() -> Vec<Operation> {
    (0..1_000_u16)
        .flat_map(|index| {
            let [high, low] = index.to_be_bytes();
            let key = ServiceKey::new(Protocol::Tcp, Ipv4Addr::new(10, 96, high, low).into(), 80);
            let add = Operation::AddService(Service::new(key, KernelName::ROUND_ROBIN));
            let servers = (1..=10).map(move |host| {
                let address = IpAddr::V4(Ipv4Addr::new(10, 128 + high, low, host));
                let server = Destination::new(
                    DestinationKey {
                        address,
                        port: 8080,
                    },
                    1,
                );
                Operation::AddDestination(key, server)
            });
            std::iter::once(add).chain(servers)
        })
        .collect()
}

pub(crate) fn a_thousand_services() {
    let mut client = open();
    let clock = Clock::system();
    let mut operations = many();
    // Duplicates its predecessor, which the kernel rejects. All others must still be applied.
    let wrong = 5_555;
    operations.insert(wrong, operations[wrong - 1]);
    let before = client.socket_stats();
    let begin = clock.monotonic();
    let results = client.apply(&operations).unwrap();
    let elapsed = clock.monotonic().saturating_sub(begin);
    let after = client.socket_stats();
    assert_eq!(results.len(), 11_001);
    for (index, result) in results.iter().enumerate() {
        match result {
            Ok(()) => assert_ne!(index, wrong),
            Err(error) => {
                assert_eq!((index, error.kind), (wrong, KernelErrorKind::AlreadyExists));
            }
        }
    }
    let round_trips = after.round_trips - before.round_trips;
    println!(
        "1,000 services with 10 destinations each: {elapsed:?}, {round_trips} round trips, {} bytes out, {} in",
        after.bytes_sent - before.bytes_sent,
        after.bytes_received - before.bytes_received,
    );
    assert!(
        round_trips < 300,
        "{round_trips} round trips: requests were not pipelined"
    );

    let lines = ipvsadm();
    let (servers, heads): (Vec<&String>, Vec<&String>) =
        lines.iter().partition(|line| line.starts_with("->"));
    assert_eq!((heads.len(), servers.len()), (1_000, 10_000));
    let wanted: BTreeSet<String> = operations
        .iter()
        .map(|operation| match operation {
            Operation::AddDestination(_, server) => format!("-> {} Masq 1 0 0", server.key),
            Operation::AddService(service) => service.to_string(),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(lines.into_iter().collect::<BTreeSet<String>>(), wanted);
    // A dump in many datagrams.
    let begin = clock.monotonic();
    assert_eq!(client.services().unwrap().len(), 1_000);
    println!(
        "1,000 services listed: {:?}",
        clock.monotonic().saturating_sub(begin)
    );
    let last = tcp("10.96.3.231", 80);
    assert_eq!(destinations(&mut client, &last).len(), 10);

    let begin = clock.monotonic();
    let deletions: Vec<Operation> = operations
        .iter()
        .filter(|operation| matches!(operation, Operation::AddService(_)))
        .map(|operation| Operation::DelService(operation.service()))
        .collect();
    apply_all(&mut client, &deletions);
    println!(
        "1,000 services deleted: {:?}",
        clock.monotonic().saturating_sub(begin)
    );
    assert_eq!(ipvsadm(), Vec::<String>::new());
}
