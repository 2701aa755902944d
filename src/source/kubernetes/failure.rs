// SPDX-License-Identifier: Apache-2.0
//! Why a list or a watch ended, and how that is said.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::RETRY_AFTER;
use serde::Deserialize;

use super::encoding::Encoding;
use super::message;

/// The end of a list or a watch that was no orderly one.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server answered that it will not.
    Refused {
        code: u16,
        message: String,
        retry_after: Option<Duration>,
    },
    /// No answer, or a connection that broke off.
    Broken(String),
    /// Nothing arrived for so long.
    Silent(Duration),
    /// A list that does not end.
    Endless,
    /// Something arrived that is no event and no list.
    Malformed(String),
    /// A list from before what was seen already.
    Older { version: String, seen: String },
    /// Our credentials changed: the connection is closed and made anew.
    Renewed,
}

/// The texts of the API server's refusals, and of events of type `ERROR`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) message: String,
}

/// Of the text of a refusal, no more is shown.
const MAX_TEXT: usize = 200;

impl Failure {
    pub(super) fn broken(error: &(dyn StdError + 'static)) -> Self {
        Self::Broken(describe(error))
    }

    /// A refusal by status code and body.
    pub(super) fn refused(code: u16, headers: &HeaderMap, body: &Bytes) -> Self {
        let status = match Encoding::of_answer(headers) {
            Encoding::Json => serde_json::from_slice(body).ok(),
            Encoding::Protobuf => message::decode_other::<message::Status>(body.clone())
                .map(Status::from)
                .ok(),
        };
        let status = status.unwrap_or_default();
        let message = if status.message.is_empty() {
            // A balancer's or proxy's own page.
            String::from_utf8_lossy(body)
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        } else {
            status.message
        };
        let message = match message.char_indices().nth(MAX_TEXT) {
            Some((end, _)) => format!("{}...", message.get(..end).unwrap_or_default()),
            None => message,
        };
        // A date, the other form, is not what API servers write.
        let seconds = headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        Self::Refused {
            code,
            message,
            retry_after: seconds.map(Duration::from_secs),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { code, message, .. } if message.is_empty() => {
                write!(f, "the server refuses ({code})")
            }
            Self::Refused { code, message, .. } => {
                write!(f, "the server refuses: {message} ({code})")
            }
            Self::Broken(text) => f.write_str(text),
            Self::Silent(limit) => write!(f, "the server said nothing for {} s", limit.as_secs()),
            Self::Endless => f.write_str("the list did not end in time"),
            Self::Malformed(text) => write!(f, "the server sent what cannot be read: {text}"),
            Self::Older { version, seen } => write!(
                f,
                "the server's list is of version {version}, older than version {seen} that was \
                 seen before"
            ),
            Self::Renewed => f.write_str("credentials changed"),
        }
    }
}

/// An error with its causes. Errors of libraries repeat the texts of their causes: each is said
/// once here.
pub(super) fn describe(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        next = cause(error);
        let own = error.to_string();
        let own = match next.map(ToString::to_string) {
            Some(cause) => own
                .strip_suffix(&cause)
                .unwrap_or(&own)
                .trim_end_matches(": "),
            None => &own,
        }
        .to_owned();
        if !own.is_empty() && !text.contains(&own) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&own);
        }
    }
    text
}

/// What an error came from. An `io::Error` does not name the error in it as its cause.
pub(super) fn cause<'a>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a (dyn StdError + 'static)> {
    if let Some(io) = error.downcast_ref::<std::io::Error>()
        && let Some(inner) = io.get_ref()
    {
        return Some(inner);
    }
    error.source()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_described_in_short() {
        let body = br#"{"kind": "Status", "message": "no", "reason": "Forbidden", "code": 403}"#;
        let failure = Failure::refused(403, &HeaderMap::new(), &Bytes::from_static(body));
        assert_eq!(failure.to_string(), "the server refuses: no (403)");
        let page = format!("<html>\n  {}\n</html>", "x".repeat(500));
        let text = Failure::refused(502, &HeaderMap::new(), &page.into()).to_string();
        assert!(text.starts_with("the server refuses: <html> xxx"), "{text}");
        assert_eq!(text.len(), "the server refuses: ... (502)".len() + MAX_TEXT);
        let empty = Failure::refused(503, &HeaderMap::new(), &Bytes::new());
        assert_eq!(empty.to_string(), "the server refuses (503)");
    }

    #[test]
    fn a_refusal_says_when_to_come_again() {
        let when = |value: &str| {
            let headers = [(RETRY_AFTER, value.parse().unwrap())]
                .into_iter()
                .collect();
            match Failure::refused(429, &headers, &Bytes::new()) {
                Failure::Refused { retry_after, .. } => retry_after,
                other => panic!("{other}"),
            }
        };
        assert_eq!(when("30"), Some(Duration::from_secs(30)));
        assert_eq!(when("soon"), None);
    }

    #[test]
    fn a_failed_connection_is_described_with_its_cause_once() {
        let cause = std::io::Error::other("connection refused");
        let error = kube::Error::ReadEvents(cause);
        assert_eq!(
            describe(&error),
            "Error reading events stream: connection refused"
        );
    }
}
