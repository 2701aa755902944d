// SPDX-License-Identifier: Apache-2.0
//! The exchange against a scripted peer: what the kernel would do on a bad day.

use std::io;

use proptest::prelude::*;

use super::*;
use crate::KernelErrorKind;
use crate::message::NLM_F_DUMP_INTR;
use crate::scripted::{Header, Script, Scripted, done, message, verdict};

fn acks(sent: &[Header]) -> Vec<io::Result<Vec<u8>>> {
    sent.iter()
        .map(|header| Ok(verdict(header.sequence, 0)))
        .collect()
}

fn request(kind: u16) -> Request {
    Request {
        kind,
        flags: 0,
        payload: vec![1, 2, 3, 4],
    }
}

const NLM_F_MULTI: u16 = 2;

#[test]
fn a_refusal_belongs_to_its_request() {
    let peer = Scripted::default().then(|sent| {
        let mut answers = acks(sent);
        answers[1] = Ok(verdict(sent[1].sequence, libc::EEXIST));
        answers
    });
    let results = peer
        .socket()
        .transact(&[request(1), request(2), request(3)])
        .unwrap();
    assert_eq!(results[0], Ok(()));
    assert_eq!(results[2], Ok(()));
    let refusal = results[1].clone().unwrap_err();
    assert_eq!(refusal.kind, KernelErrorKind::AlreadyExists);
    assert_eq!(refusal.echoed.as_deref(), Some(&b"echo"[..]));
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    assert_eq!(
        peer.headers(),
        [[(1, flags, 1), (2, flags, 2), (3, flags, 3)]]
    );
}

#[test]
fn answers_may_share_a_datagram_and_come_in_any_order() {
    let peer = Scripted::default().then(|sent| {
        let datagram = sent
            .iter()
            .rev()
            .flat_map(|header| {
                verdict(
                    header.sequence,
                    if header.kind == 2 { libc::ENOENT } else { 0 },
                )
            })
            .collect();
        vec![Ok(datagram)]
    });
    let results = peer
        .socket()
        .transact(&[request(1), request(2), request(3)])
        .unwrap();
    let failed: Vec<bool> = results.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, true, false]);
}

#[test]
fn windows_keep_the_answers_within_the_queue() {
    let peer = (0..8).fold(Scripted::default(), |peer, _| peer.then(acks));
    let mut socket = peer.socket();
    let results = socket.transact(&vec![request(9); 100]).unwrap();
    assert_eq!(results, vec![Ok(()); 100]);
    let sizes: Vec<usize> = peer.sent().iter().map(Vec::len).collect();
    // 1024 + 2 * 20 bytes of answer each, 16 KiB of queue.
    assert_eq!(sizes, [15, 15, 15, 15, 15, 15, 10]);
    assert_eq!(socket.stats().round_trips, 7);
    assert_eq!(socket.stats().messages_sent, 100);
    assert_eq!(socket.stats().messages_received, 100);
}

#[test]
fn a_silent_kernel_is_an_error_and_the_next_call_works() {
    let peer = Scripted::default().then(|sent| acks(&sent[..1])).then(acks);
    let mut socket = peer.socket();
    let error = socket.transact(&[request(1), request(2)]).unwrap_err();
    assert!(
        matches!(
            error,
            NetlinkError::TimedOut {
                answered: 1,
                expected: 2
            }
        ),
        "{error}"
    );
    assert_eq!(socket.transact(&[request(3)]).unwrap(), [Ok(())]);
    assert_eq!(peer.resets(), 1);
}

#[test]
fn late_answers_of_an_aborted_batch_are_not_taken_for_new_ones() {
    let peer = Scripted::default().then(|_| vec![]).then(|sent| {
        // The refusals of sequence 1 and 2 arrive now, ahead of the ACK of 3.
        vec![
            Ok(verdict(1, libc::EEXIST)),
            Ok(verdict(2, libc::EEXIST)),
            Ok(verdict(sent[0].sequence, 0)),
        ]
    });
    let mut socket = peer.socket();
    assert!(socket.transact(&[request(1), request(2)]).is_err());
    assert_eq!(socket.transact(&[request(3)]).unwrap(), [Ok(())]);
}

#[test]
fn an_overrun_receive_queue_is_an_error_of_its_own() {
    let peer = Scripted::default()
        .then(|_| vec![Err(io::Error::from_raw_os_error(libc::ENOBUFS))])
        .then(acks);
    let mut socket = peer.socket();
    assert!(matches!(
        socket.transact(&[request(1)]),
        Err(NetlinkError::Overrun)
    ));
    assert_eq!(socket.transact(&[request(1)]).unwrap(), [Ok(())]);
}

#[test]
fn a_get_returns_the_messages_before_the_ack() {
    let peer = Scripted::default().then(|sent| {
        let sequence = sent[0].sequence;
        vec![
            Ok(message(0x20, 0, sequence, b"info")),
            Ok(verdict(sequence, 0)),
        ]
    });
    let replies = peer.socket().get(request(1)).unwrap().unwrap();
    assert_eq!(
        replies,
        [Reply {
            kind: 0x20,
            payload: b"info".to_vec()
        }]
    );
}

#[test]
fn an_empty_dump_is_an_empty_list() {
    let peer = Scripted::default().then(|sent| vec![Ok(done(sent[0].sequence, NLM_F_MULTI))]);
    assert_eq!(peer.socket().dump(request(1)).unwrap(), []);
    assert_eq!(peer.headers(), [[(1, NLM_F_REQUEST | NLM_F_DUMP, 1)]]);
}

#[test]
fn an_interrupted_dump_is_repeated_and_its_answers_are_dropped() {
    let peer = Scripted::default()
        .then(|sent| {
            let sequence = sent[0].sequence;
            vec![
                Ok(message(
                    0x20,
                    NLM_F_MULTI | NLM_F_DUMP_INTR,
                    sequence,
                    b"half",
                )),
                Ok(done(sequence, NLM_F_MULTI)),
            ]
        })
        .then(|sent| {
            let sequence = sent[0].sequence;
            let mut datagram = message(0x20, NLM_F_MULTI, sequence, b"a");
            datagram.extend(message(0x20, NLM_F_MULTI, sequence, b"b"));
            vec![Ok(datagram), Ok(done(sequence, NLM_F_MULTI))]
        });
    let replies = peer.socket().dump(request(1)).unwrap();
    let payloads: Vec<&[u8]> = replies
        .iter()
        .map(|reply| reply.payload.as_slice())
        .collect();
    assert_eq!(payloads, [b"a", b"b"]);
}

#[test]
fn a_dump_that_never_settles_gives_up() {
    let interrupted: Script =
        |sent| vec![Ok(done(sent[0].sequence, NLM_F_MULTI | NLM_F_DUMP_INTR))];
    let peer = (0..DUMP_ATTEMPTS).fold(Scripted::default(), |peer, _| peer.then(interrupted));
    assert!(matches!(
        peer.socket().dump(request(1)),
        Err(NetlinkError::DumpInterrupted {
            attempts: DUMP_ATTEMPTS
        })
    ));
}

#[test]
fn a_refused_dump_says_why() {
    let peer = Scripted::default()
        .then(|sent| vec![Ok(verdict(sent[0].sequence, libc::EPERM))])
        .then(|sent| {
            vec![Ok(message(
                3,
                NLM_F_MULTI,
                sent[0].sequence,
                &(-libc::ENOMEM).to_ne_bytes(),
            ))]
        });
    let mut socket = peer.socket();
    for kind in [KernelErrorKind::Permission, KernelErrorKind::Full] {
        let Err(NetlinkError::Refused(refusal)) = socket.dump(request(1)) else {
            panic!("the dump must be refused");
        };
        assert_eq!(refusal.kind, kind);
    }
}

#[test]
fn an_extended_ack_explains_itself_capped_or_not() {
    for capped in [false, true] {
        let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
        let mut echoed = message(0x10, 0, 7, b"abcde");
        if capped {
            echoed.truncate(16);
        }
        payload.extend(echoed);
        payload.extend([12_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        payload.extend(b"bad idx\0");
        let flags = 0x200 | if capped { 0x100 } else { 0 };
        let datagram = message(2, flags, 7, &payload);
        let incoming = Messages::new(&datagram).next().unwrap().unwrap();
        let Answer::Verdict(Some(error)) = incoming.answer else {
            panic!("{incoming:?}")
        };
        assert_eq!(error.message.as_deref(), Some("bad idx"));
        assert_eq!(error.echoed.as_deref(), (!capped).then_some(&b"abcde"[..]));
        assert_eq!(error.to_string(), "invalid argument (EINVAL): bad idx");
    }
}

#[test]
fn too_long_a_request_stops_the_batch_before_anything_is_sent() {
    let peer = Scripted::default();
    let long = Request {
        payload: vec![0; 256 * 1024],
        ..Request::default()
    };
    let result = peer.socket().transact(&[request(1), long]);
    assert!(matches!(result, Err(NetlinkError::TooLong { .. })));
    assert!(peer.sent().is_empty());
}

/// A transaction of two requests with the kinds 1 and 2.
fn transact_two(peer: &Scripted) -> Result<Result<(), Vec<BatchRefusal>>, NetlinkError> {
    let requests = [request(1), request(2)];
    peer.socket()
        .transact_in_batch(&request(0x10), &requests, &request(0x11))
}

#[test]
fn a_transaction_is_one_datagram_with_one_ack() {
    let peer = Scripted::default().then(|sent| acks(&sent[2..3]));
    let mut socket = peer.socket();
    let requests = [request(1), request(2)];
    let done = socket.transact_in_batch(&request(0x10), &requests, &request(0x11));
    assert_eq!(done.unwrap(), Ok(()));
    let asked = NLM_F_REQUEST | NLM_F_ACK;
    assert_eq!(
        peer.headers(),
        [[
            (0x10, NLM_F_REQUEST, 1),
            (1, NLM_F_REQUEST, 2),
            (2, asked, 3),
            (0x11, NLM_F_REQUEST, 4)
        ]]
    );
    // Without requests nothing is sent.
    let nothing = socket.transact_in_batch(&request(0x10), &[], &request(0x11));
    assert_eq!(nothing.unwrap(), Ok(()));
    assert_eq!((socket.stats().round_trips, peer.resets()), (1, 0));
}

#[test]
fn all_refusals_of_a_transaction_are_told() {
    let peer = Scripted::default().then(|sent| {
        vec![
            Ok(verdict(sent[1].sequence, libc::ENOENT)),
            Ok(verdict(sent[2].sequence, libc::EEXIST)),
        ]
    });
    let refusals = transact_two(&peer).unwrap().unwrap_err();
    let told: Vec<_> = refusals
        .iter()
        .map(|refusal| (refusal.request, refusal.error.errno))
        .collect();
    assert_eq!(told, [(Some(0), libc::ENOENT), (Some(1), libc::EEXIST)]);
    assert_eq!(
        refusals[0].to_string(),
        "the kernel refused request 0 of the transaction"
    );
}

#[test]
fn a_transaction_that_is_refused_as_a_whole_has_no_request() {
    // At its beginning, and at its end, after the ACK of the last request.
    let scripts: [Script; 2] = [
        |sent| vec![Ok(verdict(sent[0].sequence, libc::EPERM))],
        |sent| vec![Ok(verdict(sent[3].sequence, libc::EPERM))],
    ];
    for script in scripts {
        let refusals = transact_two(&Scripted::default().then(script))
            .unwrap()
            .unwrap_err();
        let told: Vec<_> = refusals.iter().map(|refusal| refusal.request).collect();
        assert_eq!(told, [None]);
    }
}

#[test]
fn a_refused_transaction_leaves_nothing_for_the_next_exchange() {
    let peer = Scripted::default()
        .then(|sent| vec![Ok(verdict(sent[0].sequence, libc::ENOMEM))])
        // The ACK of the last request, which came although the commit had failed.
        .then(|sent| vec![Ok(verdict(3, 0)), Ok(verdict(sent[0].sequence, 0))]);
    let mut socket = peer.socket();
    let requests = [request(1), request(2)];
    let refused = socket.transact_in_batch(&request(0x10), &requests, &request(0x11));
    assert!(refused.unwrap().is_err());
    assert_eq!(socket.transact(&[request(3)]).unwrap(), [Ok(())]);
    assert_eq!(peer.resets(), 1);
}

proptest! {
    #[test]
    fn framing_survives_any_bytes(datagram: Vec<u8>) {
        // Termination and absence of panics are the property.
        for incoming in Messages::new(&datagram) {
            prop_assert!(incoming.is_ok() || incoming.is_err());
        }
    }

    #[test]
    fn verdicts_survive_any_payload(payload: Vec<u8>, flags: u16) {
        let datagram = message(2, flags, 1, &payload);
        let read: Vec<_> = Messages::new(&datagram).collect();
        prop_assert_eq!(read.len(), 1);
    }
}

#[test]
fn the_hosts_kernel_answers_over_route_netlink() {
    let mut socket = Socket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
    // struct ifinfomsg, all zero: every link.
    let links = Request {
        kind: libc::RTM_GETLINK,
        flags: 0,
        payload: vec![0; 16],
    };
    assert!(!socket.dump(links).unwrap().is_empty());
    // Interface index 2^31-1 does not exist.
    let mut payload = vec![0; 16];
    payload[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
    let missing = Request {
        kind: libc::RTM_GETLINK,
        flags: 0,
        payload,
    };
    let refusal = socket.get(missing.clone()).unwrap().unwrap_err();
    assert_eq!(refusal.kind, KernelErrorKind::NotFound);
    let results = socket.transact(&vec![missing; 500]).unwrap();
    assert!(results.iter().all(|result| *result == Err(refusal.clone())));
    assert!(socket.stats().round_trips < 20, "{:?}", socket.stats());
}
