// SPDX-License-Identifier: Apache-2.0
//! Drops packets from a set of networks: makes a table, shows it as the kernel has it, and deletes
//! it.
//!
//! `cargo run --example block -- 192.0.2.0/24 198.51.100.7/32`, with `CAP_NET_ADMIN`.

use std::io::{self, Write as _};
use std::net::IpAddr;

use nft_netlink::{
    Base, Chain, ChainType, Client, DataType, Element, ElementKey, Expression, Family, Field, Hook,
    Operation, Place, Register, Rule, Set, SetFlags, Table, TableKey, Verdict,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let networks = std::env::args()
        .skip(1)
        .map(|text| network(&text))
        .collect::<Result<Vec<_>, _>>()?;
    let mut client = Client::open()?;
    let table = TableKey::new(Family::Ipv4, "example_block".parse()?);
    let blocked =
        Set::keys(table.set("blocked".parse()?), DataType::Ipv4Address).with(SetFlags::INTERVAL);
    let input = table.chain("input".parse()?);
    client.apply(&[
        Operation::AddTable(Table::new(table.clone())),
        Operation::AddSet(blocked.clone()),
        Operation::AddChain(Chain::base(
            input.clone(),
            Base::new(ChainType::Filter, Hook::Input, 0),
        )),
        Operation::AddRule(
            Rule::new(
                input,
                [
                    Field::Ipv4Source.load(Register::FIRST),
                    Expression::is_in(blocked.key.name.clone()),
                    Expression::counts(),
                    Expression::verdict(Verdict::Drop),
                ],
            )
            .commented("blocked networks"),
            Place::Last,
        ),
        Operation::AddElements(blocked.key.clone(), networks),
    ])?;
    let mut out = io::stdout().lock();
    for status in client.elements(&blocked)? {
        writeln!(out, "{}", status.element)?;
    }
    for status in client.rules(&table)? {
        let steps: Vec<&str> = status
            .rule
            .expressions
            .iter()
            .map(Expression::name)
            .collect();
        writeln!(out, "rule {}: {}", status.handle, steps.join(", "))?;
    }
    client.apply(&[Operation::DeleteTable(table)])?;
    Ok(())
}

fn network(text: &str) -> Result<Element, Box<dyn std::error::Error>> {
    let (address, prefix) = text.split_once('/').ok_or("not ADDRESS/PREFIX")?;
    let address: IpAddr = address.parse()?;
    Ok(Element::key(ElementKey::network(address, prefix.parse()?)))
}
