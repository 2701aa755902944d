// SPDX-License-Identifier: Apache-2.0
//! Prints what is changed in nftables, and by whom, until it is stopped.
//!
//! `cargo run --example monitor`, with `CAP_NET_ADMIN`.

use std::io::{self, Write as _};
use std::time::Duration;

use nft_netlink::{Body, Generation, Heard, Monitor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut monitor = Monitor::open()?;
    let mut out = io::stdout().lock();
    loop {
        let mut messages = Vec::new();
        let patience = Some(Duration::from_secs(60));
        let heard = monitor.receive(patience, |message| messages.push(message))?;
        for message in messages {
            match (&message.body, message.table()) {
                (Body::Generation(attributes), _) => {
                    let generation = Generation::from_attributes(attributes)?;
                    let name = generation.thread_name.unwrap_or_default();
                    writeln!(out, "generation {} by {name}", generation.id)?;
                }
                (_, Some(table)) => writeln!(out, "{:?} in {table}", message.command)?,
                (_, None) => writeln!(out, "{:?}", message.command)?,
            }
        }
        if heard == Heard::Lost {
            writeln!(out, "some changes were missed")?;
        }
    }
}
