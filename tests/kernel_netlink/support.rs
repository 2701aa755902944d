// SPDX-License-Identifier: Apache-2.0
//! Shared by the tests: two readers of the kernel, builders and waiting.

use std::time::Duration;

use ipvs_netlink::{
    Client, Destination, DestinationKey, KernelName, Operation, Protocol, Service, ServiceKey,
};
use kube_proxy_rs::clock::Clock;

// === the two readers ===

pub(crate) fn open() -> Client {
    Client::open().unwrap()
}

/// Runs a program, which must succeed, and returns its output.
#[expect(
    clippy::disallowed_methods,
    reason = "an oracle, not the program under test"
)]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Lines of `ipvsadm -Ln` without the header, with single blanks: services as their `Display`,
/// destinations as `-> ADDRESS METHOD WEIGHT ACTIVE INACTIVE`.
pub(crate) fn ipvsadm() -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    run("ipvsadm", &["-Ln"])
        .lines()
        .skip(3)
        .map(words)
        .collect()
}

pub(crate) fn sorted<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.into_iter().collect();
    items.sort_unstable();
    items
}

pub(crate) fn service_lines() -> Vec<String> {
    sorted(ipvsadm().into_iter().filter(|line| !line.starts_with("->")))
}

pub(crate) fn services(client: &mut Client) -> Vec<Service> {
    sorted(
        client
            .services()
            .unwrap()
            .into_iter()
            .map(|status| status.service),
    )
}

pub(crate) fn destinations(client: &mut Client, service: &ServiceKey) -> Vec<Destination> {
    let statuses = client.destinations(service).unwrap();
    sorted(statuses.into_iter().map(|status| status.destination))
}

// === builders ===

pub(crate) fn name(text: &str) -> KernelName {
    text.parse().unwrap()
}

pub(crate) fn tcp(address: &str, port: u16) -> ServiceKey {
    ServiceKey::new(Protocol::Tcp, address.parse().unwrap(), port)
}

pub(crate) fn destination(address: &str, port: u16) -> Destination {
    Destination::new(
        DestinationKey {
            address: address.parse().unwrap(),
            port,
        },
        1,
    )
}

pub(crate) fn apply_all(client: &mut Client, operations: &[Operation]) {
    let results = client.apply(operations).unwrap();
    assert_eq!(results.len(), operations.len());
    for (operation, result) in operations.iter().zip(results) {
        result.unwrap_or_else(|error| panic!("{operation}: {error}"));
    }
}

/// Polls a condition until it holds, with a time limit.
#[expect(
    clippy::disallowed_methods,
    reason = "between two looks, not instead of them"
)]
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let clock = Clock::system();
    while !is_so() {
        assert!(
            clock.monotonic() < kpr_testkit::wait::LIMIT,
            "{what} did not come"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
