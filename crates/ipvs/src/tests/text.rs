// SPDX-License-Identifier: Apache-2.0
//! Names and the one-line forms that people read.

use crate::{
    AddressFamily, Destination, DestinationKey, KernelName, Netmask, Operation, Persistence,
    Protocol, Service, ServiceFlags, ServiceKey,
};

#[test]
fn names_are_what_fits_into_the_kernels_array() {
    let name: KernelName = "rr".parse().unwrap();
    assert_eq!(name, KernelName::ROUND_ROBIN);
    assert_eq!(name.as_str(), "rr");
    assert_eq!(format!("{name:>4}|"), "  rr|");
    assert_eq!(
        "123456789012345".parse::<KernelName>().unwrap().as_str(),
        "123456789012345"
    );
    for bad in ["", "1234567890123456", "r r", "r\0", "rü", "rr\n"] {
        let error = bad.parse::<KernelName>().unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("invalid name {bad:?}")),
            "{error}"
        );
    }
}

#[test]
fn names_sort_like_their_text() {
    let mut names: Vec<KernelName> = ["wrr", "rr", "wlc", "w", "mh"]
        .map(|text| text.parse().unwrap())
        .to_vec();
    names.sort_unstable();
    let sorted: Vec<&str> = names.iter().map(KernelName::as_str).collect();
    assert_eq!(sorted, ["mh", "rr", "w", "wlc", "wrr"]);
}

#[test]
fn operations_name_their_objects() {
    let key = ServiceKey::new(Protocol::Tcp, "10.0.0.1".parse().unwrap(), 80);
    let key6 = ServiceKey::new(Protocol::Sctp, "fd00::1".parse().unwrap(), 80);
    let mark = ServiceKey::Mark {
        family: AddressFamily::Inet6,
        mark: 7,
    };
    let rr = KernelName::ROUND_ROBIN;
    let destination_key = DestinationKey {
        address: "10.1.0.1".parse().unwrap(),
        port: 8080,
    };
    let destination = Destination::new(destination_key, 1);
    let limited = Destination {
        upper_threshold: 9,
        lower_threshold: 3,
        ..destination
    };
    let sticky = Service {
        flags: ServiceFlags::HASH_PORT,
        persistence: Some(Persistence {
            timeout: 300,
            netmask: Netmask::Inet6(64),
        }),
        ..Service::new(key6, rr)
    };
    for (operation, text) in [
        (
            Operation::AddService(Service::new(key, rr)),
            "add service TCP 10.0.0.1:80 rr",
        ),
        (
            Operation::SetService(sticky),
            "set service SCTP [fd00::1]:80 rr persistent 300 mask 64 flags 0x10",
        ),
        (Operation::DelService(mark), "delete service FWM 7 IPv6"),
        (
            Operation::AddDestination(key, destination),
            "add destination 10.1.0.1:8080 Masq weight 1 to TCP 10.0.0.1:80",
        ),
        (
            Operation::SetDestination(key, limited),
            "set destination 10.1.0.1:8080 Masq weight 1 thresholds 3..9 of TCP 10.0.0.1:80",
        ),
        (
            Operation::DelDestination(key, destination_key),
            "delete destination 10.1.0.1:8080 of TCP 10.0.0.1:80",
        ),
    ] {
        assert_eq!(operation.to_string(), text);
    }
}
