// SPDX-License-Identifier: Apache-2.0
//! Objects as protobuf: the messages of the API with those of their fields that
//! [`super::super::convert`] reads. All others are passed over. Texts are slices of what arrived,
//! and only those that count are copied: an annotation of 200 kB that means nothing here is not.
//!
//! Numbers are those of `generated.proto` in k8s.io/api and k8s.io/apimachinery v0.37.2.

use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use prost::{DecodeError, Message};

use super::object::{Decode, Object, Unreadable};
pub(super) use objects::{EndpointSlice, Named, Node, Service, ServiceCidr};

mod objects;

/// What every object and list begins with; an event of a watch does not.
pub(super) const MAGIC: [u8; 4] = *b"k8s\0";

/// Decodes an object with its envelope.
pub(super) fn decode<K: Decode>(bytes: Bytes) -> Object<K> {
    let raw = unwrapped(bytes).map_err(|message| {
        Box::new(Unreadable {
            metadata: ObjectMeta::default(),
            field: String::new(),
            message,
        })
    })?;
    decode_bare(raw)
}

/// Decodes an object without one, as the items of lists are.
pub(super) fn decode_bare<K: Decode>(bytes: Bytes) -> Object<K> {
    K::Message::decode(bytes.clone())
        .map(K::Message::into)
        .map_err(|error| Box::new(unreadable(&error, bytes)))
}

/// Decodes what is no object but comes like one.
pub(super) fn decode_other<M: Message + Default>(bytes: Bytes) -> Result<M, String> {
    M::decode(unwrapped(bytes)?).map_err(|error| error.to_string())
}

/// What is in an envelope.
fn unwrapped(mut bytes: Bytes) -> Result<Bytes, String> {
    if !bytes.starts_with(&MAGIC) {
        return Err("malformed".to_owned());
    }
    let envelope = Unknown::decode(bytes.split_off(MAGIC.len()));
    let envelope = envelope.map_err(|error| path_and_message(&error).1)?;
    if !envelope.content_encoding.is_empty() {
        let encoding = lossy(&envelope.content_encoding);
        return Err(format!("its content has the encoding {encoding:?}"));
    }
    Ok(envelope.raw)
}

/// Reads an object again that could not be read, to name it. Rare.
fn unreadable(error: &DecodeError, bytes: Bytes) -> Unreadable {
    let (field, message) = path_and_message(error);
    let mut object = Named::default();
    // What comes before the fault stays.
    drop(object.merge(bytes));
    let meta = object.metadata.unwrap_or_default();
    Unreadable {
        metadata: meta.into(),
        field,
        message,
    }
}

/// The path of the field (`spec.ports.port`), and what is wrong with it.
fn path_and_message(error: &DecodeError) -> (String, String) {
    let text = error.to_string();
    let mut rest = text
        .rsplit_once("message: ")
        .map_or(&*text, |(_, rest)| rest);
    let mut path = String::new();
    // The innermost comes first: `ServicePort.node_port: ServiceSpec.ports: ...`.
    while let Some((place, behind)) = rest.split_once(": ")
        && let Some((_, field)) = place.split_once('.')
    {
        let field = camel_case(field);
        path = if path.is_empty() {
            field
        } else {
            format!("{field}.{path}")
        };
        rest = behind;
    }
    (path, rest.to_owned())
}

/// The API's name of a field.
fn camel_case(field: &str) -> String {
    let mut name = String::new();
    for (index, word) in field.split('_').enumerate() {
        let mut letters = word.chars();
        match word {
            "" => {}
            _ if index == 0 => name.push_str(word),
            "ip" => name.push_str("IP"),
            "ips" => name.push_str("IPs"),
            "cidr" => name.push_str("CIDR"),
            "cidrs" => name.push_str("CIDRs"),
            _ => {
                name.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
                name.push_str(letters.as_str());
            }
        }
    }
    name
}

/// A text that need not be one: any byte can be stored. The API server shows each byte that is no
/// part of a letter as U+FFFD in JSON, and so is it here.
fn lossy(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

/// A text that is there if it is not empty.
pub(super) fn text(bytes: &Bytes) -> Option<String> {
    (!bytes.is_empty()).then(|| lossy(bytes))
}

/// `runtime.Unknown`: the envelope of objects and lists.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Unknown {
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) raw: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) content_encoding: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TypeMeta {
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) kind: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ListMeta {
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) resource_version: Bytes,
    /// `continue`.
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) token: Bytes,
}

/// An event of a watch.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchEvent {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) r#type: Bytes,
    #[prost(message, optional, tag = "2")]
    pub(super) object: Option<RawExtension>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RawExtension {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) raw: Bytes,
}

/// The object of an event of type `ERROR`, and the body of a refusal.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) message: Bytes,
    #[prost(int32, tag = "6")]
    pub(super) code: i32,
}

impl From<Status> for super::failure::Status {
    fn from(status: Status) -> Self {
        Self {
            code: u16::try_from(status.code).unwrap_or_default(),
            message: lossy(&status.message),
        }
    }
}

#[cfg(test)]
mod tests;
