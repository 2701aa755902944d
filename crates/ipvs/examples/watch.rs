// SPDX-License-Identifier: Apache-2.0
//! Adds a virtual server with two real servers, watches its counters, and deletes it.
//!
//! `cargo run --example watch [ADDRESS:PORT [SECONDS]]`, with `CAP_NET_ADMIN`; 192.0.2.1:80 for ten
//! seconds by default. Connect to it meanwhile, from another host or through an address of your
//! own.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use ipvs_netlink::{
    Client, Destination, DestinationKey, KernelName, Operation, Protocol, Service, ServiceKey,
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments
        .next()
        .unwrap_or_else(|| "192.0.2.1:80".to_owned());
    let address: SocketAddr = address.parse()?;
    let seconds = arguments.next().map_or(Ok(10), |text| text.parse())?;

    let mut client = Client::open()?;
    let key = ServiceKey::new(Protocol::Tcp, address.ip(), address.port());
    let mut operations = vec![Operation::AddService(Service::new(
        key,
        KernelName::ROUND_ROBIN,
    ))];
    for port in [8080, 8081] {
        let server = DestinationKey {
            address: address.ip(),
            port,
        };
        operations.push(Operation::AddDestination(key, Destination::new(server, 1)));
    }
    // One system call; a refused operation does not stop those behind it.
    for (operation, result) in operations.iter().zip(client.apply(&operations)?) {
        result.map_err(|refusal| format!("cannot {operation}: {refusal}"))?;
    }
    let watched = watch(&mut client, seconds);
    client.apply(&[Operation::DelService(key)])?;
    watched
}

/// Prints once a second which counters have changed.
#[expect(
    clippy::disallowed_methods,
    reason = "the kernel has no notification of counters to wait for"
)]
fn watch(client: &mut Client, seconds: u32) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let mut known = HashMap::new();
    for _ in 0..seconds {
        for status in client.services()? {
            let (key, stats) = (status.service.key, status.stats);
            if known.insert(key, stats) != Some(stats) {
                writeln!(
                    out,
                    "{key}: {} connections, {} packets and {} bytes in, {} and {} out",
                    stats.connections,
                    stats.incoming_packets,
                    stats.incoming_bytes,
                    stats.outgoing_packets,
                    stats.outgoing_bytes
                )?;
            }
        }
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}
