// SPDX-License-Identifier: Apache-2.0
//! A list as protobuf: behind a magic number an `Unknown`, whose field `raw` is the list.

use bytes::{Buf as _, Bytes};
use prost::Message as _;

use super::super::message::{self, MAGIC};
use super::{Failure, Incoming, ListMeta, MAX_FRAME, too_long};

/// A list whose items are read one by one.
#[derive(Debug)]
pub(in super::super) struct ProtobufItems {
    incoming: Incoming,
    place: Place,
    kind: message::TypeMeta,
    meta: message::ListMeta,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Begin,
    /// Within the list, of which so many bytes are left.
    List(usize),
    /// Behind it.
    End,
}

/// A field with its number.
enum Field {
    /// So many bytes.
    Bytes(u32, usize),
    /// Anything else: none that we need.
    Other,
}

/// Numbers of the fields of an `Unknown`.
const TYPE_META: u32 = 1;
const RAW: u32 = 2;
const CONTENT_ENCODING: u32 = 3;
/// Numbers of the fields of every list.
const METADATA: u32 = 1;
const ITEMS: u32 = 2;

impl ProtobufItems {
    pub(in super::super) fn new(incoming: Incoming) -> Self {
        Self {
            incoming,
            place: Place::Begin,
            kind: message::TypeMeta::default(),
            meta: message::ListMeta::default(),
        }
    }

    /// The next item. `None`: the list is complete.
    pub(in super::super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.place == Place::Begin {
            self.begin().await?;
        }
        while let Place::List(left) = self.place {
            if left == 0 {
                self.place = Place::End;
                self.end().await?;
                break;
            }
            match self.field().await? {
                Field::Bytes(ITEMS, length) => return self.bytes(length).await.map(Some),
                Field::Bytes(METADATA, length) => {
                    let bytes = self.bytes(length).await?;
                    self.meta.merge(bytes).map_err(none)?;
                }
                Field::Bytes(_, length) => self.skip(length).await?,
                Field::Other => {}
            }
        }
        Ok(None)
    }

    /// What the list says of itself, once it is complete.
    pub(in super::super) fn meta(&self) -> ListMeta {
        ListMeta {
            resource_version: message::text(&self.meta.resource_version),
            token: message::text(&self.meta.token),
        }
    }

    /// Reads up to the list.
    async fn begin(&mut self) -> Result<(), Failure> {
        let magic = self.bytes(MAGIC.len()).await?;
        if *magic != MAGIC {
            return Err(none("it does not begin as one"));
        }
        loop {
            match self.field().await? {
                Field::Bytes(RAW, length) => {
                    if !self.kind.kind.ends_with(b"List") {
                        return Err(none("it is of another kind"));
                    }
                    self.place = Place::List(length);
                    return Ok(());
                }
                Field::Bytes(TYPE_META, length) => {
                    let bytes = self.bytes(length).await?;
                    self.kind.merge(bytes).map_err(none)?;
                }
                Field::Bytes(_, length) => self.skip(length).await?,
                Field::Other => {}
            }
        }
    }

    /// Reads what is behind the list.
    async fn end(&mut self) -> Result<(), Failure> {
        while !self.incoming.buffer.is_empty() || self.incoming.more().await? {
            match self.field().await? {
                Field::Bytes(CONTENT_ENCODING, 1..) => return Err(none("it is encoded")),
                Field::Bytes(_, length) => self.skip(length).await?,
                Field::Other => {}
            }
        }
        Ok(())
    }

    /// The next field; what it holds comes next if it is bytes, and is passed over otherwise.
    async fn field(&mut self) -> Result<Field, Failure> {
        let key = self.number().await?;
        let number = u32::try_from(key >> 3).map_err(none)?;
        match key & 7 {
            0 => drop(self.number().await?),
            1 => self.skip(8).await?,
            2 => return Ok(Field::Bytes(number, self.number().await?)),
            5 => self.skip(4).await?,
            _ => return Err(none("a field of unknown type")),
        }
        Ok(Field::Other)
    }

    /// A number of as many bytes as it needs.
    async fn number(&mut self) -> Result<usize, Failure> {
        loop {
            let mut bytes = &*self.incoming.buffer;
            let length = bytes.iter().take(MAX_NUMBER).position(|byte| *byte < 0x80);
            if length.is_some() || bytes.len() >= MAX_NUMBER {
                let before = bytes.len();
                let number = prost::decode_length_delimiter(&mut bytes).map_err(none)?;
                let length = before - bytes.len();
                self.leave(length)?;
                self.incoming.buffer.advance(length);
                return Ok(number);
            }
            self.more().await?;
        }
    }

    async fn bytes(&mut self, length: usize) -> Result<Bytes, Failure> {
        if length > MAX_FRAME {
            return Err(too_long(MAX_FRAME));
        }
        self.leave(length)?;
        while self.incoming.buffer.len() < length {
            self.more().await?;
        }
        Ok(self.incoming.buffer.split_to(length).freeze())
    }

    /// Passes over bytes without keeping them.
    async fn skip(&mut self, length: usize) -> Result<(), Failure> {
        self.leave(length)?;
        let mut left = length;
        loop {
            let here = left.min(self.incoming.buffer.len());
            self.incoming.buffer.advance(here);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.more().await?;
        }
    }

    /// Bytes of the list are being read.
    fn leave(&mut self, length: usize) -> Result<(), Failure> {
        if let Place::List(left) = &mut self.place {
            *left = left
                .checked_sub(length)
                .ok_or_else(|| none("a field longer than the list"))?;
        }
        Ok(())
    }

    async fn more(&mut self) -> Result<(), Failure> {
        if self.incoming.more().await? {
            Ok(())
        } else {
            Err(Failure::Broken("the list ended within an object".into()))
        }
    }
}

/// Bytes of the longest number.
const MAX_NUMBER: usize = 10;

fn none(error: impl std::fmt::Display) -> Failure {
    Failure::Malformed(format!("a list that is none: {error}"))
}
