// SPDX-License-Identifier: Apache-2.0
//! Replaces all entries of a set in one step: fills another one and swaps the two. Rules that match
//! against the set see the old entries or the new ones, never a mixture.
//!
//! `cargo run --example swap`, with `CAP_NET_ADMIN`.

use std::io::{self, Write as _};
use std::net::IpAddr;

use ipset_netlink::{Client, Entry, HashType, IpFamily, SetEntry, SetSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut client = Client::open()?;
    let live = SetSpec::hash("example-live".parse()?, HashType::Ip, IpFamily::V4);
    let next = SetSpec::hash("example-next".parse()?, HashType::Ip, IpFamily::V4);
    fill(&mut client, &live, &["192.0.2.1", "192.0.2.2"])?;
    show(&mut client, &live)?;

    fill(&mut client, &next, &["198.51.100.7"])?;
    client.swap(&next.name, &live.name)?;
    show(&mut client, &live)?;

    // It holds the old entries now.
    client.destroy(&next.name)?;
    client.destroy(&live.name)?;
    Ok(())
}

fn fill(
    client: &mut Client,
    set: &SetSpec,
    ips: &[&str],
) -> Result<(), Box<dyn std::error::Error>> {
    client.create(set)?;
    client.flush(&set.name)?;
    let ips = ips
        .iter()
        .map(|ip| ip.parse())
        .collect::<Result<Vec<IpAddr>, _>>()?;
    let entries: Vec<SetEntry> = ips.into_iter().map(|ip| Entry::Ip(ip).into()).collect();
    match client.add(&set.name, &entries)?.into_iter().next() {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}

fn show(client: &mut Client, set: &SetSpec) -> Result<(), Box<dyn std::error::Error>> {
    if let Some((info, entries)) = client.entries(&set.name)? {
        let entries: Vec<String> = entries.iter().map(ToString::to_string).collect();
        writeln!(io::stdout(), "{}: {}", info.name, entries.join(", "))?;
    }
    Ok(())
}
