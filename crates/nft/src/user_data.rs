// SPDX-License-Identifier: Apache-2.0
//! What the kernel keeps for the `nft` program beside an object: type, length and value, each type
//! and length one byte (`include/libnftnl/udata.h`).

use crate::expression::NetworkBytes;

/// `NFTNL_UDATA_RULE_COMMENT`, which is `NFTNL_UDATA_SET_ELEM_COMMENT`, too.
const COMMENT: u8 = 0;
const SET_KEY_BYTE_ORDER: u8 = 0;
const SET_DATA_BYTE_ORDER: u8 = 1;
const SET_KEY_TYPEOF: u8 = 3;

// An expression whose type a set's keys have: `NFTNL_UDATA_SET_TYPEOF_*`, the expressions as `nft`
// numbers them (its `include/expression.h`), and what it writes of a payload (its `src/payload.c`).
const TYPEOF_EXPRESSION: u8 = 0;
const TYPEOF_DATA: u8 = 1;
const EXPRESSION_PAYLOAD: u32 = 7;
const EXPRESSION_CONCATENATION: u32 = 13;
const PAYLOAD_DESCRIPTION: u8 = 0;
const PAYLOAD_TYPE: u8 = 1;
const PAYLOAD_BASE: u8 = 2;
const PAYLOAD_OFFSET: u8 = 3;
const PAYLOAD_LENGTH: u8 = 4;
/// `PROTO_BASE_NETWORK_HDR` of `nft`.
const NETWORK_HEADER: u32 = 2;

/// The longest comment that `nft` writes, `NFTNL_UDATA_COMMENT_MAXLEN`.
const MAX_COMMENT: usize = 127;

fn append(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) {
    // All values here are short.
    bytes.push(kind);
    bytes.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(value);
}

/// A comment with its terminating NUL, cut off where `nft` would refuse it.
pub(crate) fn comment(text: &str) -> Vec<u8> {
    let mut end = text.len().min(MAX_COMMENT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut value = text.as_bytes().get(..end).unwrap_or_default().to_vec();
    value.push(0);
    let mut bytes = Vec::new();
    append(&mut bytes, COMMENT, &value);
    bytes
}

/// The comment among what was kept.
pub(crate) fn comment_of(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes;
    while let [kind, length, values @ ..] = rest {
        let (value, next) = values.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = next;
    }
    None
}

/// How `nft` prints the keys of a set, and the values of a map.
pub(crate) fn byte_orders(key: u32, data: Option<u32>) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, SET_KEY_BYTE_ORDER, &key.to_ne_bytes());
    if let Some(data) = data {
        append(&mut bytes, SET_DATA_BYTE_ORDER, &data.to_ne_bytes());
    }
    bytes
}

/// Of which bytes of packets a set's keys are: what `typeof @nh,120,8 . @nh,152,8` means.
pub(crate) fn key_bytes(parts: &[NetworkBytes]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, SET_KEY_TYPEOF, &expression_of(parts));
    bytes
}

fn expression_of(parts: &[NetworkBytes]) -> Vec<u8> {
    if let [part] = parts {
        return expression(EXPRESSION_PAYLOAD, &payload(*part));
    }
    let mut all = Vec::new();
    for (index, part) in (0..).zip(parts) {
        append(&mut all, index, &expression_of(std::slice::from_ref(part)));
    }
    expression(EXPRESSION_CONCATENATION, &all)
}

fn expression(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, TYPEOF_EXPRESSION, &number.to_ne_bytes());
    append(&mut bytes, TYPEOF_DATA, data);
    bytes
}

fn payload(part: NetworkBytes) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, number) in [
        (PAYLOAD_DESCRIPTION, 0),
        (PAYLOAD_TYPE, 0),
        (PAYLOAD_BASE, NETWORK_HEADER),
        (PAYLOAD_OFFSET, part.offset.saturating_mul(8)),
        (PAYLOAD_LENGTH, part.length.saturating_mul(8)),
    ] {
        append(&mut bytes, kind, &number.to_ne_bytes());
    }
    bytes
}
