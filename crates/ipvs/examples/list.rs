// SPDX-License-Identifier: Apache-2.0
//! Lists virtual servers and their real servers, as `ipvsadm -Ln` does.
//!
//! `cargo run --example list`, with `CAP_NET_ADMIN`.

use std::io::{self, Write as _};

use ipvs_netlink::Client;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut client = Client::open()?;
    let mut out = io::stdout().lock();
    writeln!(out, "IPVS {}", client.info()?)?;
    for service in client.services()? {
        let service = service.service;
        writeln!(out, "{service}")?;
        for server in client.destinations(&service.key)? {
            writeln!(
                out,
                "  -> {}, {} active and {} inactive connections",
                server.destination, server.active_connections, server.inactive_connections
            )?;
        }
    }
    Ok(())
}
