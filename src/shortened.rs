// SPDX-License-Identifier: Apache-2.0
//! Values of objects, cut before they reach logs, Events and `/state`: an annotation may have
//! 256 KiB, and every node would write it.

/// Maximum number of characters of a value.
const SHOWN: usize = 200;

/// Maximum number of characters of a message with several values in it.
const MESSAGE: usize = 3 * SHOWN;

/// A value in quotes; a long one is cut, and its length said.
pub fn quoted(text: &str) -> String {
    match cut(text, SHOWN) {
        None => format!("{text:?}"),
        Some(start) => format!("{start:?}... ({} bytes)", text.len()),
    }
}

/// A message; a long one is cut.
pub fn message(text: String) -> String {
    match cut(&text, MESSAGE) {
        None => text,
        Some(start) => format!("{start}... ({} bytes)", text.len()),
    }
}

/// The start of a text that has more characters.
fn cut(text: &str, most: usize) -> Option<&str> {
    let (end, _) = text.char_indices().nth(most)?;
    Some(text.split_at(end).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_values_are_cut() {
        let exactly = "é".repeat(SHOWN);
        assert_eq!(quoted(&exactly), format!("{exactly:?}"));
        let longer = format!("{exactly}é");
        assert_eq!(quoted(&longer), format!("{exactly:?}... (402 bytes)"));
        assert_eq!(message("short".to_owned()), "short");
        let long = message("x".repeat(246_000));
        assert!(long.len() < MESSAGE + 30 && long.ends_with("(246000 bytes)"));
    }
}
