// SPDX-License-Identifier: Apache-2.0
//! Round trips, and decoders against bytes that no kernel sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_pipeline::attribute::Unknown;
use proptest::prelude::*;

use super::captured;
use crate::{
    AddressFamily, Destination, DestinationAttribute, DestinationKey, DestinationStatus,
    Forwarding, Info, IpvsAttribute, IpvsCommand, IpvsMessage, KernelName, MaskedFlags, Netmask,
    Operation, Persistence, Protocol, Service, ServiceAttribute, ServiceFlags, ServiceKey,
    ServiceStatus, SyncDaemon, SyncRole, Timeouts, Tunnel, TunnelKind,
};

fn round_trip(message: &IpvsMessage) -> IpvsMessage {
    IpvsMessage::parse(&message.payload().unwrap()).unwrap()
}

/// Reads everything that can be read of a message; the results do not matter.
fn interpret(message: &IpvsMessage) {
    if let Some(attributes) = message.service() {
        drop(ServiceStatus::from_attributes(attributes));
    }
    if let Some(attributes) = message.destination() {
        drop(DestinationStatus::from_attributes(
            attributes,
            AddressFamily::Inet,
        ));
    }
    if let Some(attributes) = message.daemon() {
        drop(SyncDaemon::from_attributes(attributes));
    }
    drop(Info::from_attributes(&message.attributes));
    Timeouts::from_attributes(&message.attributes);
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<Ipv4Addr>().prop_map(IpAddr::V4),
        any::<Ipv6Addr>().prop_map(IpAddr::V6),
    ]
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    let protocol = any::<u16>().prop_map(Protocol::from_number);
    let family = prop_oneof![Just(AddressFamily::Inet), Just(AddressFamily::Inet6)];
    prop_oneof![
        (protocol, address(), any::<u16>())
            .prop_map(|(protocol, address, port)| ServiceKey::new(protocol, address, port)),
        (family, 1_u32..).prop_map(|(family, mark)| ServiceKey::Mark { family, mark }),
    ]
}

fn kernel_name() -> impl Strategy<Value = KernelName> {
    "[!-~]{1,15}".prop_map(|text| text.parse().unwrap())
}

fn service() -> impl Strategy<Value = Service> {
    (
        service_key(),
        kernel_name(),
        any::<u32>(),
        proptest::option::of(any::<(u32, u32)>()),
        proptest::option::of(kernel_name()),
    )
        .prop_map(
            |(key, scheduler, bits, persistence, persistence_engine)| Service {
                key,
                scheduler,
                flags: ServiceFlags::from_bits(bits),
                persistence: persistence.map(|(timeout, mask)| Persistence {
                    timeout,
                    netmask: match key.family() {
                        AddressFamily::Inet => Netmask::Inet(mask.into()),
                        AddressFamily::Inet6 => Netmask::Inet6(mask),
                    },
                }),
                persistence_engine,
            },
        )
}

fn forwarding() -> impl Strategy<Value = Forwarding> {
    let kind = prop_oneof![
        Just(TunnelKind::IpIp),
        Just(TunnelKind::Gue),
        Just(TunnelKind::Gre),
        (3_u8..).prop_map(TunnelKind::Other),
    ];
    prop_oneof![
        Just(Forwarding::Masquerade),
        Just(Forwarding::Local),
        (kind, any::<u16>(), any::<u16>())
            .prop_map(|(kind, port, flags)| Forwarding::Tunnel(Tunnel { kind, port, flags })),
        Just(Forwarding::DirectRoute),
        Just(Forwarding::Bypass),
        (5_u32..8).prop_map(Forwarding::Other),
    ]
}

fn destination() -> impl Strategy<Value = Destination> {
    (
        address(),
        any::<u16>(),
        forwarding(),
        any::<(u32, u32, u32)>(),
    )
        .prop_map(
            |(address, port, forwarding, (weight, upper_threshold, lower_threshold))| Destination {
                key: DestinationKey { address, port },
                forwarding,
                weight,
                upper_threshold,
                lower_threshold,
            },
        )
}

proptest! {
    #[test]
    fn a_service_is_read_as_it_was_written(service in service()) {
        let message = round_trip(&Operation::AddService(service).to_message());
        prop_assert_eq!(message.command, IpvsCommand::NewService);
        let status = ServiceStatus::from_attributes(message.service().unwrap()).unwrap();
        prop_assert_eq!(status.service, service);
    }

    #[test]
    fn a_destination_is_read_as_it_was_written(key in service_key(), destination in destination()) {
        let message = round_trip(&Operation::AddDestination(key, destination).to_message());
        let read = ServiceKey::from_attributes(message.service().unwrap()).unwrap();
        prop_assert_eq!(read, key);
        let status =
            DestinationStatus::from_attributes(message.destination().unwrap(), key.family());
        prop_assert_eq!(status.unwrap().destination, destination);
    }

    #[test]
    fn a_daemon_is_read_as_it_was_written(
        (role, interface, sync_id) in (any::<u32>(), "[!-~]{1,15}", any::<u32>()),
        (max_length, group, port, ttl) in (any::<u16>(), address(), any::<u16>(), any::<u8>()),
    ) {
        let role = SyncRole::from_number(role);
        let daemon = SyncDaemon { role, interface, sync_id, max_length, group, port, ttl };
        let attributes = vec![IpvsAttribute::Daemon(daemon.to_attributes())];
        let message = round_trip(&IpvsMessage::new(IpvsCommand::NewDaemon, attributes));
        prop_assert_eq!(SyncDaemon::from_attributes(message.daemon().unwrap()).unwrap(), daemon);
    }

    #[test]
    fn the_marks_of_the_kernel_do_not_make_a_service_differ(service in service()) {
        // IP_VS_SVC_F_HASHED, which every answer has.
        let mut attributes = service.to_attributes();
        for attribute in &mut attributes {
            if let ServiceAttribute::Flags(MaskedFlags { flags, .. }) = attribute {
                *flags |= 2;
            }
        }
        prop_assert_eq!(Service::from_attributes(&attributes).unwrap(), service);
    }

    #[test]
    fn unknown_attributes_are_kept(kind in 100_u16..0x3fff, flags in 0_u16..4, value: Vec<u8>) {
        let other = Unknown { kind: kind | (flags << 14), value };
        let message = IpvsMessage::new(IpvsCommand::Other(77), vec![
            IpvsAttribute::Service(vec![ServiceAttribute::Other(other.clone())]),
            IpvsAttribute::Destination(vec![DestinationAttribute::Other(other.clone())]),
            IpvsAttribute::Other(other),
        ]);
        prop_assert_eq!(round_trip(&message), message);
    }

    #[test]
    fn decoding_survives_any_bytes(mut bytes: Vec<u8>, command: u8) {
        bytes.splice(..0, [command, 1, 0, 0]);
        if let Ok(message) = IpvsMessage::parse(&bytes) {
            interpret(&message);
            // Whatever was understood can be written down again.
            prop_assert_eq!(round_trip(&message), message);
        }
    }

    /// Random bytes rarely get past the first header; broken messages of a kernel do.
    #[test]
    fn decoding_survives_broken_messages(
        which: prop::sample::Index,
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..8),
        length: prop::sample::Index,
    ) {
        let messages: Vec<Vec<u8>> = captured::all()
            .into_iter()
            .flat_map(|capture| {
                let requests = capture.requests.into_iter().map(|(_, bytes)| bytes);
                requests.chain(capture.replies).collect::<Vec<_>>()
            })
            .collect();
        let mut bytes = which.get(&messages).clone();
        for (index, value) in changes {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        bytes.truncate(length.index(bytes.len() + 1));
        if let Ok(message) = IpvsMessage::parse(&bytes) {
            interpret(&message);
        }
    }
}

/// A million random cases found this one: both flags of an attribute that we do not know.
#[test]
fn both_flags_of_an_attribute_are_written_back() {
    let bytes = [0, 1, 0, 0, 9, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0];
    let message = IpvsMessage::parse(&bytes).unwrap();
    assert_eq!(message.payload().unwrap(), bytes);
}
