// SPDX-License-Identifier: Apache-2.0
//! Takes the body of an answer apart as it arrives: a watch into lines, a list into its items. At
//! no time is more than one object in memory.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;

/// Far more than an object can have: an API server takes no request above 3 MB.
const MAX_PIECE: usize = 64 << 20;

/// A body that is being read.
#[derive(Debug)]
pub(super) struct Incoming {
    body: Body,
    buffer: BytesMut,
    /// How much of the buffer was looked at.
    seen: usize,
    /// Longest wait for more.
    silence: Duration,
    /// When all of it must be there.
    until: Option<Instant>,
}

impl Incoming {
    pub(super) fn new(body: Body, silence: Duration) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            seen: 0,
            silence,
            until: None,
        }
    }

    /// Sets the limit for what follows, or lifts it.
    pub(super) fn limit(&mut self, silence: Duration, until: Option<Instant>) {
        self.silence = silence;
        self.until = until;
    }

    /// Waits for more bytes. `false`: the end.
    async fn more(&mut self) -> Result<bool, Failure> {
        let silent_at = Instant::now() + self.silence;
        let limit = self.until.map_or(silent_at, |until| until.min(silent_at));
        loop {
            if self.buffer.len() > MAX_PIECE {
                return Err(Failure::Malformed(format!(
                    "an object of more than {} MiB",
                    MAX_PIECE >> 20
                )));
            }
            let frame = match timeout_at(limit, self.body.frame()).await {
                Ok(frame) => frame,
                Err(_elapsed) if limit == silent_at => return Err(Failure::Silent(self.silence)),
                Err(_elapsed) => return Err(Failure::Endless),
            };
            match frame {
                None => return Ok(false),
                Some(Err(error)) => return Err(Failure::broken(&error)),
                // Trailers say nothing.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        self.buffer.extend_from_slice(&data);
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// The next line that is not empty, without its end. `None`: the stream ended after a line.
    pub(super) async fn line(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let unseen = self.buffer.get(self.seen..).unwrap_or_default();
            if let Some(length) = unseen.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.seen + length).freeze();
                drop(self.buffer.split_to(1));
                self.seen = 0;
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            self.seen = self.buffer.len();
            if !self.more().await? {
                return if self.buffer.trim_ascii().is_empty() {
                    Ok(None)
                } else {
                    Err(Failure::Broken("the stream ended within an event".into()))
                };
            }
        }
    }

    /// All that is left, up to a limit in bytes; for the texts of refusals.
    pub(super) async fn rest(mut self, limit: usize) -> Bytes {
        while self.buffer.len() < limit {
            match self.more().await {
                Ok(true) => {}
                _ => break,
            }
        }
        self.buffer.truncate(limit);
        self.buffer.freeze()
    }
}

/// A list whose items are read one by one.
#[derive(Debug)]
pub(super) struct Items {
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

/// What a list says of itself.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Envelope {
    #[serde(default)]
    pub(super) metadata: ListMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    pub(super) resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub(super) token: Option<String>,
}

impl Items {
    pub(super) fn new(incoming: Incoming) -> Self {
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
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
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
    pub(super) fn envelope(&self) -> Result<Envelope, Failure> {
        serde_json::from_slice(&self.envelope)
            .map_err(|error| Failure::Malformed(format!("a list that is none: {error}")))
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

#[cfg(test)]
mod tests;
