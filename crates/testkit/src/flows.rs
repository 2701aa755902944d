// SPDX-License-Identifier: Apache-2.0
//! The connection tracking table as `conntrack` prints it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

use crate::namespace::Namespace;
use crate::topology::Family;
use crate::traffic::Protocol;

/// Client and the address that it sends to.
pub type Ends = (SocketAddr, SocketAddr);

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub id: u64,
    /// Where answers come from.
    pub answerer: SocketAddr,
}

/// The flows of a node.
pub fn flows(node: &Namespace, family: Family, protocol: Protocol) -> Result<BTreeMap<Ends, Flow>> {
    let (family, protocol) = (family.to_string(), protocol.to_string());
    let text = node.run(
        "conntrack",
        &["-L", "-o", "id", "-f", &family, "-p", &protocol],
    )?;
    text.lines()
        .map(|line| read(line).with_context(|| format!("conntrack printed {line:?}")))
        .collect()
}

/// `udp 17 29 src=A dst=B sport=1 dport=2 [UNREPLIED] src=C dst=D sport=3 dport=4 mark=0 use=1
/// id=5`
fn read(line: &str) -> Result<(Ends, Flow)> {
    let values = |key: &str| {
        let words = line.split_whitespace();
        words
            .filter_map(|word| word.strip_prefix(key))
            .collect::<Vec<_>>()
    };
    let nth = |key: &str, n: usize| {
        let value = values(key).get(n).copied();
        value.with_context(|| format!("there is no {key} number {n}"))
    };
    let at = |address: &str, port: &str, n| -> Result<SocketAddr> {
        let address: IpAddr = nth(address, n)?.parse()?;
        Ok(SocketAddr::new(address, nth(port, n)?.parse()?))
    };
    let ends = (at("src=", "sport=", 0)?, at("dst=", "dport=", 0)?);
    let flow = Flow {
        id: nth("id=", 0)?.parse()?,
        answerer: at("src=", "sport=", 1)?,
    };
    Ok((ends, flow))
}
