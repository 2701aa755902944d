// SPDX-License-Identifier: Apache-2.0
//! Messages of ipset, and what the client makes of a listing of sets and of entries.
#![no_main]

use ipset_netlink::{Client, Message, SetName};
use libfuzzer_sys::fuzz_target;

use kpr_fuzz::{Peer, ack, done, message, messages};

/// The kernel speaks protocols 6 and 7.
const PROTOCOL: &[u8] = b"\x02\0\0\0\x05\0\x01\0\x07\0\0\0\x05\0\x0a\0\x06\0\0\0";

fuzz_target!(|datagram: &[u8]| {
    let name: SetName = "A".parse().expect("it is a name");
    for (kind, payload) in messages(datagram) {
        if let Ok(parsed) = Message::parse(kind, payload) {
            let written = parsed.payload().expect("it fitted before");
            let kind = Message::kind(parsed.command);
            assert_eq!(Message::parse(kind, &written).as_ref(), Ok(&parsed));
        }
        let listing = message(0x0607, payload);
        let (hello, ack) = (message(0x0601, PROTOCOL), ack());
        let asked = || {
            let answers = [hello.clone(), ack.clone(), listing.clone(), done()];
            Client::over(Peer::socket(answers)).expect("it speaks our protocol")
        };
        drop(asked().sets());
        drop(asked().names());
        drop(asked().entries(&name));
        // A refusal that echoes the request, in which the kernel has written the line of the
        // refused entry.
        let mut refusal = (-17_i32).to_ne_bytes().to_vec();
        refusal.extend(message(0x0609, payload));
        let answers = [
            hello.clone(),
            ack.clone(),
            message(2, &refusal),
            ack.clone(),
        ];
        let mut client = Client::over(Peer::socket(answers)).expect("it speaks our protocol");
        let entries = [1, 2].map(|port| ipset_netlink::Entry::Port(port).into());
        drop(client.add(&name, &entries));
    }
});
