// SPDX-License-Identifier: Apache-2.0
//! Our bytes against those of `ipvsadm` 1.31 and Linux 6.1, recorded on a little-endian machine.
#![cfg(target_endian = "little")]

use std::borrow::Borrow;
use std::time::Duration;

use super::captured;
use crate::{
    AddressFamily, Destination, DestinationAttribute, DestinationKey, DestinationStatus,
    Forwarding, Info, IpvsAttribute, IpvsCommand, IpvsMessage, KernelName, MaskedFlags, Netmask,
    Operation, Persistence, Protocol, Service, ServiceAttribute, ServiceFlags, ServiceKey,
    ServiceStatus, Stats, SyncDaemon, SyncRole, Timeouts, Tunnel, TunnelKind,
};

fn decode(bytes: &[u8]) -> IpvsMessage {
    IpvsMessage::parse(bytes).unwrap()
}

fn encode(message: impl Borrow<IpvsMessage>) -> Vec<u8> {
    message.borrow().payload().unwrap()
}

fn name(text: &str) -> KernelName {
    text.parse().unwrap()
}

fn key(protocol: Protocol, address: &str, port: u16) -> ServiceKey {
    ServiceKey::new(protocol, address.parse().unwrap(), port)
}

fn service(protocol: Protocol, address: &str, port: u16, scheduler: &str) -> Service {
    Service::new(key(protocol, address, port), name(scheduler))
}

fn destination(address: &str, port: u16, weight: u32) -> Destination {
    Destination::new(
        DestinationKey {
            address: address.parse().unwrap(),
            port,
        },
        weight,
    )
}

/// Removes what `ipvsadm` sends and the kernel does not read: scheduler (empty), flags, time-out
/// and netmask of a service that is only looked up, and all but the key of a destination that is
/// deleted. We leave these out: a message is a third shorter.
fn lean(mut message: IpvsMessage) -> IpvsMessage {
    let key_only = !matches!(
        message.command,
        IpvsCommand::NewService | IpvsCommand::SetService
    );
    for attribute in &mut message.attributes {
        match attribute {
            IpvsAttribute::Service(attributes) if key_only => attributes.retain(|attribute| {
                let dropped = matches!(
                    attribute,
                    ServiceAttribute::Scheduler(_)
                        | ServiceAttribute::Flags(MaskedFlags { flags: 0, .. })
                        | ServiceAttribute::Timeout(0)
                        | ServiceAttribute::Netmask(_)
                );
                !dropped
            }),
            IpvsAttribute::Destination(attributes)
                if message.command == IpvsCommand::DelDestination =>
            {
                attributes.retain(|attribute| {
                    matches!(
                        attribute,
                        DestinationAttribute::Family(_)
                            | DestinationAttribute::Address(_)
                            | DestinationAttribute::Port(_)
                    )
                });
            }
            _ => {}
        }
    }
    message
}

/// Each operation as `ipvsadm` spells it.
#[expect(clippy::too_many_lines, reason = "a table")]
fn operations() -> Vec<(&'static str, Operation)> {
    use Operation::{
        AddDestination, AddService, DelDestination, DelService, SetDestination, SetService,
    };
    use Protocol::{Sctp, Tcp, Udp};
    let web = key(Tcp, "10.0.0.1", 80);
    let web6 = key(Tcp, "fd00::1", 443);
    let mark = ServiceKey::Mark {
        family: AddressFamily::Inet,
        mark: 7,
    };
    let mark6 = ServiceKey::Mark {
        family: AddressFamily::Inet6,
        mark: 7,
    };
    vec![
        (
            "-A -t 10.0.0.1:80 -s rr",
            AddService(service(Tcp, "10.0.0.1", 80, "rr")),
        ),
        (
            "-A -u 10.0.0.1:53 -s wlc",
            AddService(service(Udp, "10.0.0.1", 53, "wlc")),
        ),
        (
            "-A --sctp-service 10.0.0.1:9999 -s lc",
            AddService(service(Sctp, "10.0.0.1", 9999, "lc")),
        ),
        (
            "-A -t [fd00::1]:443 -s rr",
            AddService(service(Tcp, "fd00::1", 443, "rr")),
        ),
        ("-A -f 7 -s rr", AddService(Service::new(mark, name("rr")))),
        (
            "-A -f 7 -6 -s wrr",
            AddService(Service::new(mark6, name("wrr"))),
        ),
        (
            "-A -t 10.0.0.2:80 -s rr -p 300 -M 255.255.255.0",
            AddService(Service {
                persistence: Some(Persistence {
                    timeout: 300,
                    netmask: Netmask::Inet([255, 255, 255, 0].into()),
                }),
                ..service(Tcp, "10.0.0.2", 80, "rr")
            }),
        ),
        (
            "-A -t [fd00::2]:80 -s rr -p 10800 -M 64",
            AddService(Service {
                persistence: Some(Persistence {
                    timeout: 10_800,
                    netmask: Netmask::Inet6(64),
                }),
                ..service(Tcp, "fd00::2", 80, "rr")
            }),
        ),
        (
            "-A -t 10.0.0.3:80 -s mh -b mh-port,mh-fallback",
            AddService(Service {
                flags: ServiceFlags::HASH_PORT | ServiceFlags::FALLBACK,
                ..service(Tcp, "10.0.0.3", 80, "mh")
            }),
        ),
        (
            "-A -t 10.0.0.4:80 -s sh -b sh-port",
            AddService(Service {
                flags: ServiceFlags::HASH_PORT,
                ..service(Tcp, "10.0.0.4", 80, "sh")
            }),
        ),
        (
            "-A -u 10.0.0.5:53 -s rr -o",
            AddService(Service {
                flags: ServiceFlags::ONE_PACKET,
                ..service(Udp, "10.0.0.5", 53, "rr")
            }),
        ),
        (
            "-A -u 10.0.0.6:5060 -s rr -p 60 --pe sip",
            AddService(Service {
                persistence: Some(Persistence {
                    timeout: 60,
                    netmask: Netmask::host(AddressFamily::Inet),
                }),
                persistence_engine: Some(name("sip")),
                ..service(Udp, "10.0.0.6", 5060, "rr")
            }),
        ),
        (
            "-E -t 10.0.0.1:80 -s wrr -p 600",
            SetService(Service {
                persistence: Some(Persistence {
                    timeout: 600,
                    netmask: Netmask::host(AddressFamily::Inet),
                }),
                ..service(Tcp, "10.0.0.1", 80, "wrr")
            }),
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m",
            AddDestination(web, destination("10.1.0.1", 8080, 1)),
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.1.0.2:8080 -m -w 3 -x 100 -y 50",
            AddDestination(web, with_thresholds()),
        ),
        (
            "-a -t [fd00::1]:443 -r [fd00:1::1]:8443 -m",
            AddDestination(web6, destination("fd00:1::1", 8443, 1)),
        ),
        (
            "-a -f 7 -r 10.1.0.1 -g",
            AddDestination(
                mark,
                Destination {
                    forwarding: Forwarding::DirectRoute,
                    ..destination("10.1.0.1", 0, 1)
                },
            ),
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.1.0.3:80 -i",
            AddDestination(
                web,
                Destination {
                    forwarding: Forwarding::Tunnel(Tunnel::default()),
                    ..destination("10.1.0.3", 80, 1)
                },
            ),
        ),
        (
            "-a -t 10.0.0.1:80 -r 10.1.0.4:80 -i --tun-type gue --tun-port 5555 --tun-remcsum",
            AddDestination(web, through_gue()),
        ),
        (
            "-a -t 10.0.0.1:80 -r [fd00:1::9]:80 -i -w 2",
            AddDestination(web, across_families()),
        ),
        (
            "-e -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 0",
            SetDestination(web, destination("10.1.0.1", 8080, 0)),
        ),
        (
            "-d -t 10.0.0.1:80 -r 10.1.0.1:8080",
            DelDestination(web, destination("10.1.0.1", 8080, 0).key),
        ),
        ("-D -t 10.0.0.1:80", DelService(web)),
        ("-D -t [fd00::1]:443", DelService(web6)),
        ("-D -f 7", DelService(mark)),
    ]
}

fn with_thresholds() -> Destination {
    Destination {
        upper_threshold: 100,
        lower_threshold: 50,
        ..destination("10.1.0.2", 8080, 3)
    }
}

fn through_gue() -> Destination {
    Destination {
        forwarding: Forwarding::Tunnel(Tunnel {
            kind: TunnelKind::Gue,
            port: 5555,
            flags: 2,
        }),
        ..destination("10.1.0.4", 80, 1)
    }
}

fn across_families() -> Destination {
    Destination {
        forwarding: Forwarding::Tunnel(Tunnel::default()),
        ..destination("fd00:1::9", 80, 2)
    }
}

#[test]
fn operations_are_the_bytes_of_ipvsadm() {
    for (command, operation) in operations() {
        let captured = captured::request(&format!("ipvsadm {command}"));
        let expected = encode(lean(decode(&captured)));
        assert_eq!(encode(operation.to_message()), expected, "{command}");
        if matches!(
            operation,
            Operation::AddService(_) | Operation::SetService(_)
        ) {
            // Nothing was left out here.
            assert_eq!(expected, captured, "{command}");
        }
    }
}

#[test]
fn every_captured_request_is_encoded_as_it_was_decoded() {
    let mut requests = 0;
    for capture in captured::all() {
        for (_, bytes) in capture.requests {
            assert_eq!(encode(decode(&bytes)), bytes, "{}", capture.command);
            requests += 1;
        }
    }
    assert!(requests > 40, "{requests} requests");
}

#[test]
fn every_captured_message_is_known_to_the_last_attribute() {
    for capture in captured::all() {
        let requests = capture.requests.into_iter().map(|(_, bytes)| bytes);
        for bytes in requests.chain(capture.replies) {
            let message = decode(&bytes);
            assert!(
                !matches!(message.command, IpvsCommand::Other(_)),
                "{message:?}"
            );
            let text = format!("{message:?}");
            assert!(!text.contains("Other"), "{}: {text}", capture.command);
        }
    }
}

#[test]
fn replies_survive_encoding() {
    // The kernel does not mark nested lists in its answers, we do: values are compared, not bytes.
    for bytes in captured::all()
        .into_iter()
        .flat_map(|capture| capture.replies)
    {
        let message = decode(&bytes);
        assert_eq!(decode(&encode(&message)), message);
    }
}

#[test]
fn time_outs_are_the_bytes_of_ipvsadm() {
    let timeouts = Timeouts {
        tcp: Duration::from_mins(15),
        tcp_fin: Duration::from_mins(2),
        udp: Duration::from_mins(5),
    };
    let message = IpvsMessage::new(IpvsCommand::SetConfig, timeouts.to_attributes());
    assert_eq!(
        encode(message),
        captured::request("ipvsadm --set 900 120 300")
    );
    let replies = captured::replies("ipvsadm -Ln --timeout");
    let answer = decode(replies.last().unwrap());
    assert_eq!(Timeouts::from_attributes(&answer.attributes), timeouts);
}

#[test]
fn commands_without_an_object_are_the_bytes_of_ipvsadm() {
    for (command, ours) in [
        ("ipvsadm -C", IpvsCommand::Flush),
        ("ipvsadm -Z", IpvsCommand::Zero),
        ("ipvsadm -Ln --timeout", IpvsCommand::GetConfig),
    ] {
        assert_eq!(
            encode(IpvsMessage::new(ours, vec![])),
            captured::request(command)
        );
    }
    let list = captured::all()
        .into_iter()
        .find(|capture| capture.command == "ipvsadm -Ln");
    let (flags, services) = list.unwrap().requests.swap_remove(0);
    assert_eq!(
        encode(IpvsMessage::new(IpvsCommand::GetService, vec![])),
        services
    );
    // 0x300 is NLM_F_DUMP. We ask for no ACK, which a dump does not get.
    assert_eq!(flags, "NLM_F_REQUEST|NLM_F_ACK|0x300");
}

#[test]
fn a_dump_of_destinations_is_asked_for_in_the_bytes_of_ipvsadm() {
    let list = captured::all()
        .into_iter()
        .find(|capture| capture.command == "ipvsadm -Ln");
    let (_, request) = list.unwrap().requests.pop().unwrap();
    let mark = ServiceKey::Mark {
        family: AddressFamily::Inet6,
        mark: 7,
    };
    let ours = IpvsMessage::new(
        IpvsCommand::GetDestination,
        vec![IpvsAttribute::Service(mark.to_attributes())],
    );
    assert_eq!(encode(ours), request);
}

fn daemons() -> [(&'static str, SyncDaemon); 3] {
    let daemon = |role, sync_id| SyncDaemon::new(role, "d0".to_owned(), sync_id);
    let backup = SyncDaemon {
        max_length: 1400,
        group: "224.0.0.99".parse().unwrap(),
        port: 9000,
        ttl: 3,
        ..daemon(SyncRole::Backup, 7)
    };
    let over_ipv6 = SyncDaemon {
        group: "ff02::99".parse().unwrap(),
        ..daemon(SyncRole::Master, 0)
    };
    [
        (
            "--start-daemon master --mcast-interface d0 --syncid 7",
            daemon(SyncRole::Master, 7),
        ),
        (
            "--start-daemon backup --mcast-interface d0 --syncid 7 --sync-maxlen 1400 --mcast-group 224.0.0.99 --mcast-port 9000 --mcast-ttl 3",
            backup,
        ),
        (
            "--start-daemon master --mcast-interface d0 --mcast-group ff02::99",
            over_ipv6,
        ),
    ]
}

#[test]
fn daemons_are_started_and_stopped_in_the_bytes_of_ipvsadm() {
    let message = |command, attributes| {
        encode(IpvsMessage::new(
            command,
            vec![IpvsAttribute::Daemon(attributes)],
        ))
    };
    for (command, daemon) in daemons() {
        let ours = message(IpvsCommand::NewDaemon, daemon.to_attributes());
        assert_eq!(ours, captured::request(&format!("ipvsadm {command}")));
    }
    for role in [SyncRole::Master, SyncRole::Backup] {
        let ours = message(IpvsCommand::DelDaemon, SyncDaemon::stop_attributes(role));
        let command = format!("ipvsadm --stop-daemon {role}");
        assert_eq!(ours, captured::request(&command));
    }
    let ours = encode(IpvsMessage::new(IpvsCommand::GetDaemon, vec![]));
    assert_eq!(ours, captured::request("ipvsadm -L --daemon"));
}

#[test]
fn daemons_are_read_back_as_they_were_started() {
    let [(_, master), (_, backup), _] = daemons();
    let read: Vec<String> = captured::replies("ipvsadm -L --daemon")
        .iter()
        .map(|bytes| SyncDaemon::from_attributes(decode(bytes).daemon().unwrap()))
        .map(|daemon| daemon.unwrap().to_string())
        .collect();
    // The kernel says how long it made the messages of the first.
    let master = SyncDaemon {
        max_length: 1472,
        ..master
    };
    assert_eq!(read, [master.to_string(), backup.to_string()]);
    assert_eq!(
        read[0],
        "master sync daemon (mcast=d0, syncid=7, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)"
    );
}

#[test]
fn information_is_read() {
    let replies = captured::replies("ipvsadm -A -t 10.0.0.1:80 -s rr");
    let info = Info::from_attributes(&decode(&replies[0]).attributes).unwrap();
    assert_eq!(
        info,
        Info {
            version: 0x01_02_01,
            connection_table_size: 4096
        }
    );
    assert_eq!(info.to_string(), "1.2.1 (size=4096)");
}

#[test]
fn services_are_read_back_as_they_were_written() {
    let mut read: Vec<Service> = captured::replies("ipvsadm -Ln")
        .iter()
        .map(|bytes| decode(bytes))
        .filter_map(|message| message.service().map(ServiceStatus::from_attributes))
        .map(|status| {
            let status = status.unwrap();
            assert_eq!(status.stats, Stats::default());
            status.service
        })
        .collect();
    read.sort_unstable();
    let mut written: Vec<Service> = operations()
        .into_iter()
        .filter_map(|(_, operation)| match operation {
            // Changed by `-E` before the dump was taken.
            Operation::AddService(service) if service.key == key(Protocol::Tcp, "10.0.0.1", 80) => {
                None
            }
            Operation::AddService(service) | Operation::SetService(service) => Some(service),
            _ => None,
        })
        .collect();
    written.sort_unstable();
    assert_eq!(read, written);
}

#[test]
fn destinations_are_read_back_as_they_were_written() {
    let mut read: Vec<Destination> = captured::replies("ipvsadm -Ln")
        .iter()
        .map(|bytes| decode(bytes))
        .filter_map(|message| {
            let attributes = message.destination()?;
            // Linux 3.18 and later tell the family, so that of the service does not matter.
            let wrong = AddressFamily::Inet6;
            let status = DestinationStatus::from_attributes(attributes, wrong).unwrap();
            assert_eq!(status.active_connections + status.inactive_connections, 0);
            Some(status.destination)
        })
        .collect();
    read.sort_unstable();
    let mut written: Vec<Destination> = operations()
        .into_iter()
        .filter_map(|(command, operation)| match operation {
            // Changed by `-e` before the dump was taken.
            Operation::AddDestination(..) if command == "-a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m" => {
                None
            }
            Operation::AddDestination(_, destination)
            | Operation::SetDestination(_, destination) => Some(destination),
            _ => None,
        })
        .collect();
    written.sort_unstable();
    assert_eq!(read, written);
}
