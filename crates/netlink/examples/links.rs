// SPDX-License-Identifier: Apache-2.0
//! Names the network interfaces of this network namespace, over route netlink. Needs no capability.
//!
//! `cargo run --example links`

use std::io::{self, Write as _};

use netlink_pipeline::{Request, Socket, attribute};

// include/uapi/linux/netlink.h, rtnetlink.h and if_link.h
const NETLINK_ROUTE: isize = 0;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;

/// Bytes of `struct ifinfomsg`.
const HEADER: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut socket = Socket::open(NETLINK_ROUTE)?;
    let every_link = Request {
        kind: RTM_GETLINK,
        flags: 0,
        payload: vec![0; HEADER],
    };
    let mut out = io::stdout().lock();
    for reply in socket.dump(every_link)? {
        for attribute in attribute::list(reply.payload.get(HEADER..).unwrap_or_default()) {
            let attribute = attribute?;
            match attribute.kind() {
                IFLA_IFNAME => write!(out, "{}", attribute.string())?,
                IFLA_MTU => writeln!(out, ": mtu {}", attribute.u32("IFLA_MTU")?)?,
                _ => {}
            }
        }
    }
    writeln!(out, "{:?}", socket.stats())?;
    Ok(())
}
