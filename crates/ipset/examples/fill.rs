// SPDX-License-Identifier: Apache-2.0
//! Creates a set, fills it with ten thousand entries, reads it back and destroys it.
//!
//! `cargo run --example fill`, with `CAP_NET_ADMIN`.

use std::io::{self, Write as _};
use std::net::Ipv4Addr;

use ipset_netlink::{Client, Entry, HashType, IpFamily, SetEntry, SetSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut client = Client::open()?;
    let set = SetSpec::hash("example-fill".parse()?, HashType::IpPort, IpFamily::V4);
    client.create(&set)?;
    let first = u32::from(Ipv4Addr::new(10, 0, 0, 0));
    let entries: Vec<SetEntry> = (first..first + 10_000)
        .map(|host| {
            let ip = Ipv4Addr::from(host).into();
            Entry::IpPort {
                ip,
                protocol: 6,
                port: 443,
            }
            .into()
        })
        .collect();
    let mut out = io::stdout().lock();
    for failure in client.add(&set.name, &entries)? {
        writeln!(out, "{failure}: {}", failure.refusal)?;
    }
    let calls = client.stats().round_trips;
    if let Some((info, entries)) = client.entries(&set.name)? {
        let (name, bytes) = (info.name, info.memsize);
        writeln!(
            out,
            "{name}: {} entries, {bytes} bytes, {calls} system calls",
            entries.len()
        )?;
        for entry in entries.iter().take(3) {
            writeln!(out, "  {entry}")?;
        }
    }
    client.destroy(&set.name)?;
    Ok(())
}
