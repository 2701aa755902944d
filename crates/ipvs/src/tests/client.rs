// SPDX-License-Identifier: Apache-2.0
//! The client against a scripted kernel: which requests it makes, and what it makes of refusals.

use std::io;

use super::captured;
use crate::{Client, Error, KernelName, Operation, Protocol, Service, ServiceKey};
use netlink_pipeline::scripted::{Header, Scripted, done, message, verdict};
use netlink_pipeline::{KernelErrorKind, NetlinkError};

/// The number of the family, which the kernel gives out anew at each load.
const FAMILY: u16 = 0x23;

type Answers = Vec<io::Result<Vec<u8>>>;

/// The controller's answer, with an attribute that no released kernel has.
fn family(sent: &[Header]) -> Answers {
    assert_eq!(sent[0].kind, 16, "GENL_ID_CTRL");
    // CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME "IPVS": the bytes of ipvsadm.
    assert_eq!(sent[0].payload[..13], *b"\x03\x02\0\0\x09\0\x02\0IPVS\0");
    let mut answer = vec![1, 2, 0, 0, 5, 0, 99, 0, 7, 0, 0, 0, 6, 0, 1, 0];
    answer.extend(FAMILY.to_ne_bytes());
    answer.extend([0, 0]);
    vec![
        Ok(message(16, 0, sent[0].sequence, &answer)),
        Ok(verdict(sent[0].sequence, 0)),
    ]
}

/// The answer to `IPVS_CMD_GET_INFO`.
fn info(sent: &[Header]) -> Answers {
    assert_eq!(
        (sent[0].kind, sent[0].flags),
        (FAMILY, 5),
        "NLM_F_REQUEST | NLM_F_ACK"
    );
    let replies = captured::replies("ipvsadm -A -t 10.0.0.1:80 -s rr");
    vec![
        Ok(message(FAMILY, 0, sent[0].sequence, &replies[0])),
        Ok(verdict(sent[0].sequence, 0)),
    ]
}

/// An empty table.
fn nothing(sent: &[Header]) -> Answers {
    assert_eq!(sent[0].flags, 0x301, "NLM_F_REQUEST | NLM_F_DUMP");
    vec![Ok(done(sent[0].sequence, 2))]
}

fn ack(sent: &[Header]) -> Answers {
    sent.iter()
        .map(|header| Ok(verdict(header.sequence, 0)))
        .collect()
}

fn opened() -> Scripted {
    Scripted::default().then(family).then(info)
}

fn refusal(errno: i32) -> fn(&[Header]) -> Answers {
    match errno {
        libc::ENOENT => |sent| vec![Ok(verdict(sent[0].sequence, libc::ENOENT))],
        libc::EPERM => |sent| vec![Ok(verdict(sent[0].sequence, libc::EPERM))],
        libc::EEXIST => |sent| vec![Ok(verdict(sent[0].sequence, libc::EEXIST))],
        other => panic!("no script refuses with {other}"),
    }
}

fn name(text: &str) -> KernelName {
    text.parse().unwrap()
}

#[test]
fn a_kernel_without_ipvs_is_told_by_the_name_of_its_module() {
    let kernel = Scripted::default().then(refusal(libc::ENOENT));
    let error = Client::over(kernel.socket()).unwrap_err();
    assert!(matches!(error, Error::NotAvailable(_)));
    assert_eq!(
        error.to_string(),
        "IPVS is not available: kernel module ip_vs is neither loaded nor loadable"
    );
}

#[test]
fn a_missing_capability_is_told_from_a_missing_module() {
    let kernel = Scripted::default().then(family).then(refusal(libc::EPERM));
    let error = Client::over(kernel.socket()).unwrap_err();
    assert!(matches!(error, Error::Permission(_)));
    assert_eq!(
        error.to_string(),
        "no permission to use IPVS: CAP_NET_ADMIN is needed"
    );
}

#[test]
fn a_scheduler_in_use_needs_no_probe() {
    let kernel = opened().then(|sent| {
        let mut answers: Answers = captured::replies("ipvsadm -Ln")
            .iter()
            .filter(|reply| reply[0] == 1)
            .map(|reply| Ok(message(FAMILY, 2, sent[0].sequence, reply)))
            .collect();
        answers.push(Ok(done(sent[0].sequence, 2)));
        answers
    });
    let mut client = Client::over(kernel.socket()).unwrap();
    client.probe_scheduler(name("mh")).unwrap();
    assert_eq!(kernel.sent().len(), 3);
}

#[test]
fn a_probe_adds_a_service_where_nobody_serves_and_deletes_it() {
    let kernel = opened().then(nothing).then(ack).then(ack);
    let mut client = Client::over(kernel.socket()).unwrap();
    client.probe_scheduler(name("rr")).unwrap();
    let sent = kernel.sent();
    let commands: Vec<u8> = sent.iter().map(|sent| sent[0].payload[0]).collect();
    // The controller, information, services; then the probe: new and delete.
    assert_eq!(commands, [3, 15, 4, 1, 3]);
    for probe in &sent[3..] {
        assert_eq!(probe[0].payload[28..32], [198, 51, 100, 0]);
        assert_eq!(probe[0].payload[48..50], 20_000_u16.to_be_bytes());
    }
}

#[test]
fn a_missing_scheduler_is_told_by_the_name_of_its_module() {
    let kernel = opened().then(nothing).then(refusal(libc::ENOENT));
    let mut client = Client::over(kernel.socket()).unwrap();
    let error = client.probe_scheduler(name("twos")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "IPVS scheduler \"twos\" is not available: kernel module ip_vs_twos"
    );
}

#[test]
fn what_a_dead_probe_left_behind_is_stepped_over() {
    let kernel = opened()
        .then(nothing)
        .then(refusal(libc::EEXIST))
        .then(ack)
        .then(ack);
    let mut client = Client::over(kernel.socket()).unwrap();
    client.probe_scheduler(name("rr")).unwrap();
    let sent = kernel.sent();
    assert_eq!(sent[5][0].payload[48..50], 20_001_u16.to_be_bytes());
}

#[test]
fn a_service_that_is_not_there_is_none() {
    // ip_vs_genl_get_cmd answers ESRCH.
    let kernel = opened()
        .then(|sent| vec![Ok(verdict(sent[0].sequence, libc::ESRCH))])
        .then(|sent| {
            let replies = captured::replies("ipvsadm -Ln");
            vec![
                Ok(message(FAMILY, 0, sent[0].sequence, &replies[0])),
                Ok(verdict(sent[0].sequence, 0)),
            ]
        });
    let mut client = Client::over(kernel.socket()).unwrap();
    let key = ServiceKey::new(Protocol::Tcp, "10.0.0.4".parse().unwrap(), 80);
    assert_eq!(client.service(&key).unwrap(), None);
    assert_eq!(client.service(&key).unwrap().unwrap().service.key, key);
}

#[test]
fn operations_share_a_send_and_keep_their_verdicts_apart() {
    let kernel = opened().then(|sent| {
        let mut answers = ack(sent);
        answers[1] = Ok(verdict(sent[1].sequence, libc::EEXIST));
        answers
    });
    let mut client = Client::over(kernel.socket()).unwrap();
    let service = |port| {
        let key = ServiceKey::new(Protocol::Udp, "10.0.0.1".parse().unwrap(), port);
        Operation::AddService(Service::new(key, KernelName::ROUND_ROBIN))
    };
    let results = client.apply(&[service(1), service(2), service(3)]).unwrap();
    let kinds: Vec<Option<KernelErrorKind>> = results
        .iter()
        .map(|result| result.as_ref().err().map(|error| error.kind))
        .collect();
    assert_eq!(kinds, [None, Some(KernelErrorKind::AlreadyExists), None]);
    assert_eq!(kernel.sent()[2].len(), 3);
    assert_eq!(client.socket_stats().round_trips, 3);
}

#[test]
fn a_silent_kernel_is_a_time_out() {
    let kernel = opened().then(|_| vec![]);
    let mut client = Client::over(kernel.socket()).unwrap();
    let error = client.services().unwrap_err();
    assert!(matches!(
        error,
        Error::Netlink {
            what: "list IPVS services",
            source: NetlinkError::TimedOut { .. }
        }
    ));
}

#[test]
fn nonsense_from_the_kernel_is_an_error_that_says_where() {
    let kernel = opened().then(|sent| {
        // An attribute of three bytes, which is less than its header.
        let nonsense = [1, 1, 0, 0, 3, 0, 1, 0];
        vec![
            Ok(message(FAMILY, 2, sent[0].sequence, &nonsense)),
            Ok(done(sent[0].sequence, 2)),
        ]
    });
    let mut client = Client::over(kernel.socket()).unwrap();
    let error = client.services().unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot decode the kernel's answer: cannot list IPVS services"
    );
}
