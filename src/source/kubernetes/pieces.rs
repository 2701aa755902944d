// SPDX-License-Identifier: Apache-2.0
//! Takes the body of an answer apart as it arrives: a watch into its events, a list into its items.
//! At no time is more than one object in memory.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use compression_codecs::core::util::{PartialBuffer, WriteBuffer};
use compression_codecs::{DecodeV2 as _, GzipDecoder};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body_util::BodyExt as _;
use kube::client::Body;
use tokio::time::{Instant, timeout_at};

use super::encoding::Encoding;
use super::failure::Failure;
pub(super) use json::JsonItems;
pub(super) use protobuf::ProtobufItems;

mod json;
mod protobuf;

/// Far more than an object can have: an API server takes no request above 3 MB.
const MAX_PIECE: usize = 64 << 20;
/// The same for what says how long it will be. client-go reads no longer events either.
const MAX_FRAME: usize = 16 << 20;
/// Bytes.
const INFLATED_AT_ONCE: usize = 16 << 10;

/// A body that is being read.
#[derive(Debug)]
pub(super) struct Incoming {
    body: Body,
    encoding: Encoding,
    inflating: Option<Inflating>,
    buffer: BytesMut,
    /// How much of the buffer was looked at.
    seen: usize,
    /// Longest wait for more.
    silence: Duration,
    /// When all of it must be there.
    until: Option<Instant>,
}

impl Incoming {
    /// The body of an answer with these headers.
    pub(super) fn new(headers: &HeaderMap, body: Body, silence: Duration) -> Result<Self, Failure> {
        let coding = headers.get(CONTENT_ENCODING);
        let inflating = match coding.map(|value| value.as_bytes().to_ascii_lowercase()) {
            None => None,
            Some(coding) if coding == b"identity" => None,
            Some(coding) if coding == b"gzip" || coding == b"x-gzip" => Some(Inflating::default()),
            Some(coding) => {
                let coding = String::from_utf8_lossy(&coding).into_owned();
                let message = format!("an answer with content-encoding {coding:?}");
                return Err(Failure::Malformed(message));
            }
        };
        Ok(Self {
            body,
            encoding: Encoding::of_answer(headers),
            inflating,
            buffer: BytesMut::new(),
            seen: 0,
            silence,
            until: None,
        })
    }

    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Sets the limit for what follows, or lifts it.
    pub(super) fn limit(&mut self, silence: Duration, until: Option<Instant>) {
        self.silence = silence;
        self.until = until;
    }

    /// Waits for more bytes. `false`: the end.
    async fn more(&mut self) -> Result<bool, Failure> {
        self.more_until(Instant::now() + self.silence).await
    }

    async fn more_until(&mut self, silent_at: Instant) -> Result<bool, Failure> {
        let limit = self.until.map_or(silent_at, |until| until.min(silent_at));
        loop {
            if self.buffer.len() > MAX_PIECE {
                return Err(too_long(MAX_PIECE));
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
                        && self.take_in(&data)?
                    {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Adds data to what is there. `false`: that was nothing yet.
    fn take_in(&mut self, data: &[u8]) -> Result<bool, Failure> {
        let Some(inflating) = &mut self.inflating else {
            self.buffer.extend_from_slice(data);
            return Ok(!data.is_empty());
        };
        let before = self.buffer.len();
        let inflated = inflating.inflate(data, &mut self.buffer);
        inflated.map_err(|error| Failure::Malformed(format!("gzip: {error}")))?;
        Ok(self.buffer.len() > before)
    }

    /// The next event of a watch, as it was sent. `None`: the stream ended after one.
    pub(super) async fn event(&mut self) -> Result<Option<Bytes>, Failure> {
        match self.encoding {
            Encoding::Json => self.line().await,
            Encoding::Protobuf => self.frame().await,
        }
    }

    /// When an event must be complete. A list as a whole has its own limit; a watch gets bookmarks,
    /// so that one whose event does not end has the limit of one that is silent.
    fn complete_by(&self) -> Option<Instant> {
        self.until.is_none().then(|| Instant::now() + self.silence)
    }

    async fn more_by(&mut self, by: Option<Instant>) -> Result<bool, Failure> {
        let by = by.unwrap_or_else(|| Instant::now() + self.silence);
        self.more_until(by).await
    }

    /// The next line that is not empty, without its end. `None`: the stream ended after a line.
    async fn line(&mut self) -> Result<Option<Bytes>, Failure> {
        let by = self.complete_by();
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
            if !self.more_by(by).await? {
                return at_end(self.buffer.trim_ascii().is_empty());
            }
        }
    }

    /// The next event behind its length, four bytes. `None`: the stream ended after one.
    async fn frame(&mut self) -> Result<Option<Bytes>, Failure> {
        let by = self.complete_by();
        loop {
            if let Some(length) = self.buffer.first_chunk() {
                let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
                if length > MAX_FRAME {
                    return Err(too_long(MAX_FRAME));
                }
                if self.buffer.len() - LENGTH >= length {
                    drop(self.buffer.split_to(LENGTH));
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
            }
            if !self.more_by(by).await? {
                return at_end(self.buffer.is_empty());
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

/// What inflates compressed data. An API server ends them after each event and begins anew: the
/// state is used again, because one for each event, between objects that stay, would leave holes
/// that are several times the size of the objects.
#[derive(Debug)]
struct Inflating {
    decoder: GzipDecoder,
    is_at_end: bool,
    output: Box<[u8]>,
}

impl Default for Inflating {
    fn default() -> Self {
        Self {
            decoder: GzipDecoder::new(),
            is_at_end: false,
            output: vec![0; INFLATED_AT_ONCE].into(),
        }
    }
}

impl Inflating {
    fn inflate(&mut self, data: &[u8], buffer: &mut BytesMut) -> io::Result<()> {
        let mut input = PartialBuffer::new(data);
        let mut is_full = false;
        while is_full || !input.unwritten().is_empty() {
            let mut output = WriteBuffer::new_initialized(&mut self.output);
            if input.unwritten().is_empty() {
                self.decoder.flush(&mut output)?;
            } else {
                if std::mem::take(&mut self.is_at_end) {
                    self.decoder.reinit()?;
                }
                self.is_at_end = self.decoder.decode(&mut input, &mut output)?;
            }
            is_full = output.has_no_spare_space();
            buffer.extend_from_slice(output.written());
        }
        Ok(())
    }
}

/// The stream ended.
fn at_end(is_between: bool) -> Result<Option<Bytes>, Failure> {
    if is_between {
        Ok(None)
    } else {
        Err(Failure::Broken("the stream ended within an event".into()))
    }
}

/// Bytes of the length before an event.
const LENGTH: usize = 4;

fn too_long(limit: usize) -> Failure {
    let message = format!("an object of more than {} MiB", limit >> 20);
    Failure::Malformed(message)
}

/// A list whose items are read one by one.
#[derive(Debug)]
pub(super) enum Items {
    Json(JsonItems),
    Protobuf(ProtobufItems),
}

/// What a list says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListMeta {
    pub(super) resource_version: Option<String>,
    /// Of the next page.
    pub(super) token: Option<String>,
}

impl Items {
    pub(super) fn new(incoming: Incoming) -> Self {
        match incoming.encoding() {
            Encoding::Json => Self::Json(JsonItems::new(incoming)),
            Encoding::Protobuf => Self::Protobuf(ProtobufItems::new(incoming)),
        }
    }

    pub(super) fn encoding(&self) -> Encoding {
        match self {
            Self::Json(_) => Encoding::Json,
            Self::Protobuf(_) => Encoding::Protobuf,
        }
    }

    /// The next item. `None`: the list is complete.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match self {
            Self::Json(items) => items.next().await,
            Self::Protobuf(items) => items.next().await,
        }
    }

    /// What the list says of itself, once it is complete.
    pub(super) fn meta(&self) -> Result<ListMeta, Failure> {
        match self {
            Self::Json(items) => items.meta(),
            Self::Protobuf(items) => Ok(items.meta()),
        }
    }
}

#[cfg(test)]
mod tests;
