// SPDX-License-Identifier: Apache-2.0
//! Reads `wire/nft.txt`, which `wire/capture-nft.sh` recorded.

use crate::Message;

/// A message with its netlink header's type and flags, and what follows that header.
#[derive(Clone, Debug)]
pub(super) struct Captured {
    pub(super) command: &'static str,
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) payload: Vec<u8>,
}

impl Captured {
    /// Whether it is one of `nf_tables`, not of netlink itself.
    fn is_ours(&self) -> bool {
        self.kind >> 8 == 10
    }

    pub(super) fn decode(&self) -> Message {
        Message::parse(self.kind, &self.payload)
            .unwrap_or_else(|error| panic!("{}: {error}", self.command))
    }
}

/// What was sent (`>`) or received (`<`).
fn all(direction: &str) -> Vec<Captured> {
    let mut command = "";
    let mut messages = Vec::new();
    for line in include_str!("../wire/nft.txt").lines() {
        if let Some(text) = line.strip_prefix("# nft ") {
            command = text;
        } else if let Some(hex) = line.strip_prefix(direction) {
            let bytes = bytes(hex.trim());
            messages.push(Captured {
                command,
                kind: u16::from_le_bytes([bytes[4], bytes[5]]),
                flags: u16::from_le_bytes([bytes[6], bytes[7]]),
                payload: bytes[16..].to_vec(),
            });
        }
    }
    messages
}

/// All messages of `nf_tables` to the kernel.
pub(super) fn requests() -> Vec<Captured> {
    all(">").into_iter().filter(Captured::is_ours).collect()
}

/// All messages of `nf_tables` from the kernel.
pub(super) fn answers() -> Vec<Captured> {
    all("<").into_iter().filter(Captured::is_ours).collect()
}

/// What ended or began transactions.
pub(super) fn boundaries() -> Vec<Captured> {
    let is_boundary = |message: &Captured| [0x10, 0x11].contains(&message.kind);
    all(">").into_iter().filter(is_boundary).collect()
}

/// The messages of a command's transaction.
pub(super) fn of(command: &str) -> Vec<Captured> {
    let found: Vec<Captured> = requests()
        .into_iter()
        .filter(|message| message.command == command)
        .collect();
    assert!(!found.is_empty(), "not captured: {command}");
    found
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
