// SPDX-License-Identifier: Apache-2.0
//! Reads the events of a watch.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use serde::Deserialize;

use super::encoding::Encoding;
use super::failure::{Failure, Status};
use super::message;
use super::object::{Decode, InEvent, Object, decode_in};

/// What an event says.
#[derive(Debug)]
pub(super) enum Change<K> {
    Applied(Object<K>),
    Deleted(Object<K>),
    Bookmark { version: String, ends_list: bool },
}

/// An event without its object.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "type")]
    kind: String,
}

/// A bookmark's object.
#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// The annotation of the bookmark that ends a streamed list.
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// Reads an event in this form. An object that cannot be read is an event all the same.
pub(super) fn event<K: Decode>(encoding: Encoding, bytes: Bytes) -> Result<Change<K>, Failure> {
    match encoding {
        Encoding::Json => of_json(&bytes),
        Encoding::Protobuf => of_protobuf(bytes),
    }
}

fn of_json<K: Decode>(line: &[u8]) -> Result<Change<K>, Failure> {
    let malformed = |error: serde_json::Error| Failure::Malformed(error.to_string());
    let head: Head = serde_json::from_slice(line).map_err(malformed)?;
    let object = || decode_in::<K>(line);
    match head.kind.as_str() {
        "ADDED" | "MODIFIED" => Ok(Change::Applied(object())),
        "DELETED" => Ok(Change::Deleted(object())),
        "BOOKMARK" => {
            let bookmark: InEvent<Bookmark> = serde_json::from_slice(line).map_err(malformed)?;
            let meta = bookmark.object.metadata;
            let ends_list = meta.annotations.is_some_and(|annotations| {
                annotations.get(END_OF_LIST).map(String::as_str) == Some("true")
            });
            Ok(Change::Bookmark {
                version: meta.resource_version,
                ends_list,
            })
        }
        "ERROR" => {
            let error: InEvent<Status> = serde_json::from_slice(line).map_err(malformed)?;
            Err(refused(error.object))
        }
        other => Err(unknown(other)),
    }
}

fn of_protobuf<K: Decode>(frame: Bytes) -> Result<Change<K>, Failure> {
    let event = message::WatchEvent::decode(frame);
    let event = event.map_err(|error| Failure::Malformed(error.to_string()))?;
    let object = event.object.unwrap_or_default().raw;
    match &*event.r#type {
        b"ADDED" | b"MODIFIED" => Ok(Change::Applied(message::decode(object))),
        b"DELETED" => Ok(Change::Deleted(message::decode(object))),
        b"BOOKMARK" => {
            let bookmark = message::decode_other::<message::Named>(object);
            let meta = bookmark.map_err(Failure::Malformed)?.metadata;
            let meta = meta.unwrap_or_default();
            Ok(Change::Bookmark {
                version: meta.resource_version().unwrap_or_default(),
                ends_list: meta.annotation(END_OF_LIST) == Some(b"true"),
            })
        }
        b"ERROR" => {
            let status = message::decode_other::<message::Status>(object);
            Err(refused(status.map_err(Failure::Malformed)?.into()))
        }
        other => Err(unknown(&String::from_utf8_lossy(other))),
    }
}

fn refused(status: Status) -> Failure {
    Failure::Refused {
        code: status.code,
        message: status.message,
        retry_after: None,
    }
}

fn unknown(kind: &str) -> Failure {
    let kind: String = kind.chars().take(MAX_SHOWN).collect();
    Failure::Malformed(format!("an event of type {kind:?}"))
}

/// Letters of an unknown type that are shown.
const MAX_SHOWN: usize = 40;
