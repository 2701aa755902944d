// SPDX-License-Identifier: Apache-2.0
//! Tests of the codec and of the client; those against a kernel are in `tests/netns_nft`.

mod captured;
mod client;
mod elements;
mod properties;
mod spelled;
mod wire;

use crate::{ChainKey, Family, Name, SetKey, TableKey};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn table() -> TableKey {
    TableKey::new(Family::Ipv4, name("t"))
}

fn chain(text: &str) -> ChainKey {
    table().chain(name(text))
}

fn set(text: &str) -> SetKey {
    table().set(name(text))
}
