// SPDX-License-Identifier: Apache-2.0
//! What the kernel keeps for the `nft` program beside an object: type, length and value, each type
//! and length one byte (`include/libnftnl/udata.h`).

/// `NFTNL_UDATA_RULE_COMMENT`, which is `NFTNL_UDATA_SET_ELEM_COMMENT`, too.
const COMMENT: u8 = 0;
const SET_KEY_BYTE_ORDER: u8 = 0;
const SET_DATA_BYTE_ORDER: u8 = 1;

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
