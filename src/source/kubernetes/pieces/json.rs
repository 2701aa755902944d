// SPDX-License-Identifier: Apache-2.0
//! A list as JSON.

use bytes::Bytes;
use serde::Deserialize;

use super::{Failure, Incoming, ListMeta, MAX_PIECE};

/// A list whose items are read one by one.
#[derive(Debug)]
pub(in super::super) struct JsonItems {
    incoming: Incoming,
    /// Everything but the items.
    envelope: Vec<u8>,
    /// Where we are: open brackets, within a string, after a backslash.
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The brackets around us are those of the items.
    inside: bool,
}

/// The rest of a list.
#[derive(Debug, Default, Deserialize)]
struct Envelope {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    token: Option<String>,
}

impl JsonItems {
    pub(in super::super) fn new(incoming: Incoming) -> Self {
        Self {
            incoming,
            envelope: Vec::new(),
            depth: 0,
            in_string: false,
            escaped: false,
            inside: false,
        }
    }

    /// The next item. `None`: the list is complete.
    pub(in super::super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let unseen = self.incoming.buffer.get(self.incoming.seen..);
            let mut end = None;
            let mut read = 0;
            for byte in unseen.unwrap_or_default() {
                read += 1;
                let was_item = self.is_in_item();
                step(
                    *byte,
                    &mut self.depth,
                    &mut self.in_string,
                    &mut self.escaped,
                );
                if !was_item && !self.inside {
                    self.envelope.push(*byte);
                    self.inside = *byte == b'['
                        && !self.in_string
                        && self.depth == ITEMS
                        && ends_with_items(&self.envelope);
                } else if self.inside && self.depth < ITEMS {
                    self.inside = false;
                    self.envelope.push(*byte);
                }
                let is_item = self.inside && self.depth > ITEMS;
                if is_item != was_item {
                    end = Some(was_item);
                    break;
                }
            }
            self.incoming.seen += read;
            match end {
                // Commas and blanks before an item; its first bracket stays.
                Some(false) => {
                    drop(self.incoming.buffer.split_to(self.incoming.seen - 1));
                    self.incoming.seen = 1;
                }
                Some(true) => {
                    let item = self.incoming.buffer.split_to(self.incoming.seen);
                    self.incoming.seen = 0;
                    return Ok(Some(item.freeze()));
                }
                None => {
                    if self.envelope.len() > MAX_PIECE {
                        return Err(Failure::Malformed("a list that is none".to_owned()));
                    }
                    if !self.is_in_item() {
                        self.incoming.buffer.clear();
                        self.incoming.seen = 0;
                    }
                    if !self.incoming.more().await? {
                        return self.complete().map(|()| None);
                    }
                }
            }
        }
    }

    fn is_in_item(&self) -> bool {
        self.inside && self.depth > ITEMS
    }

    fn complete(&self) -> Result<(), Failure> {
        if self.depth == 0 && !self.envelope.is_empty() {
            Ok(())
        } else {
            Err(Failure::Broken("the list ended within an object".into()))
        }
    }

    /// What the list says of itself, once it is complete.
    pub(in super::super) fn meta(&self) -> Result<ListMeta, Failure> {
        let envelope: Envelope = serde_json::from_slice(&self.envelope)
            .map_err(|error| Failure::Malformed(format!("a list that is none: {error}")))?;
        Ok(ListMeta {
            resource_version: envelope.metadata.resource_version,
            token: envelope.metadata.token,
        })
    }
}

/// The depth right within the brackets of the items.
const ITEMS: u32 = 2;

/// Follows the brackets and strings of JSON.
fn step(byte: u8, depth: &mut u32, in_string: &mut bool, escaped: &mut bool) {
    if *in_string {
        match byte {
            _ if *escaped => *escaped = false,
            b'\\' => *escaped = true,
            b'"' => *in_string = false,
            _ => {}
        }
        return;
    }
    match byte {
        b'"' => *in_string = true,
        b'{' | b'[' => *depth = depth.saturating_add(1),
        b'}' | b']' => *depth = depth.saturating_sub(1),
        _ => {}
    }
}

/// Whether the last bracket of an envelope opens its items.
fn ends_with_items(envelope: &[u8]) -> bool {
    let before = envelope.strip_suffix(b"[").unwrap_or_default();
    let before = before.trim_ascii_end().strip_suffix(b":");
    before.is_some_and(|before| before.trim_ascii_end().ends_with(b"\"items\""))
}
