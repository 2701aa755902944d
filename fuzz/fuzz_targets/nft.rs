// SPDX-License-Identifier: Apache-2.0
//! Messages of nftables, and what the client makes of listings and of refusals.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nft_netlink::{
    Client, DataType, Element, Family, Message, Operation, Set, SetFlags, TableKey, Value,
};

use kpr_fuzz::{Peer, ack, done, message, messages};

/// A generation.
const GENERATION: &[u8] = b"\0\0\0\0\x08\0\x01\0\0\0\0\x07";

fuzz_target!(|datagram: &[u8]| {
    let table = TableKey::new(Family::Ipv4, "t".parse().expect("it is a name"));
    let plain = Set::keys(
        table.set("s".parse().expect("it is a name")),
        DataType::Port,
    );
    let ranges = plain.clone().with(SetFlags::INTERVAL);
    for (kind, payload) in messages(datagram) {
        if let Ok(parsed) = Message::parse(kind, payload) {
            let written = parsed.payload().expect("it fitted before");
            let kind = Message::kind(parsed.command);
            assert_eq!(Message::parse(kind, &written).as_ref(), Ok(&parsed));
        }
        let listing = message(kind, payload);
        let asked = || {
            let hello = message(0x0a0f, GENERATION);
            let answers = [hello, ack(), listing.clone(), done()];
            Client::over(Peer::socket(answers)).expect("it knows its generation")
        };
        drop(asked().tables());
        drop(asked().chains(&table));
        drop(asked().rules(&table));
        drop(asked().sets(&table));
        drop(asked().elements(&plain));
        drop(asked().elements(&ranges));
        // A refusal with attributes: NLM_F_CAPPED and NLM_F_ACK_TLVS are in its flags only if the
        // input says so.
        let mut client = asked();
        let elements = [1, 2].map(|port| Element::key(Value::port(port))).into();
        drop(client.apply(&[Operation::AddElements(plain.key.clone(), elements)]));
    }
});
