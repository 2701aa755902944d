// SPDX-License-Identifier: Apache-2.0
//! A socket whose kernel sends any bytes, in each kind of exchange: framing, verdicts, extended
//! ACKs, ends of dumps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink_pipeline::Request;

use kpr_fuzz::Peer;

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (exchange, cut, bytes) = input;
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let mut socket = Peer::socket([first.to_vec(), second.to_vec()]);
    let request = Request::default;
    match exchange % 4 {
        0 => drop(socket.transact(&[request(), request()])),
        1 => drop(socket.get(request())),
        2 => drop(socket.dump(request())),
        _ => {
            let requests = [request(), request()];
            drop(socket.transact_in_batch(&request(), &requests, &request()));
        }
    }
});
