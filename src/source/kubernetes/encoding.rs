// SPDX-License-Identifier: Apache-2.0
//! In which form the API server is asked for objects, and in which it answers.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// The media type of [`Encoding::Protobuf`].
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON: &str = "application/json";

/// A form of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// As kube-proxy asks by default; JSON from a server that will not.
    #[default]
    Protobuf,
    Json,
}

impl Encoding {
    /// The first of these media types that we know; `None` if there is none.
    pub fn first_of(media_types: &str) -> Option<Self> {
        media_types.split(',').find_map(Self::named)
    }

    /// The form of a media type, with or without parameters.
    fn named(media_type: &str) -> Option<Self> {
        let name = media_type.split(';').next().unwrap_or_default().trim();
        if name.eq_ignore_ascii_case(PROTOBUF) {
            Some(Self::Protobuf)
        } else if name.eq_ignore_ascii_case(JSON) {
            Some(Self::Json)
        } else {
            None
        }
    }

    /// The header `Accept`, as client-go's: a server may lack protobuf.
    pub(super) const fn accept(self) -> &'static str {
        match self {
            Self::Protobuf => "application/vnd.kubernetes.protobuf,application/json",
            Self::Json => JSON,
        }
    }

    /// The form of an answer. What does not say is JSON: so are pages of what is between.
    pub(super) fn of_answer(headers: &HeaderMap) -> Self {
        let value = headers.get(CONTENT_TYPE);
        let text = value.and_then(|value| value.to_str().ok());
        text.and_then(Self::named).unwrap_or(Self::Json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_is_known_counts() {
        let of = Encoding::first_of;
        assert_eq!(of(PROTOBUF), Some(Encoding::Protobuf));
        assert_eq!(of(JSON), Some(Encoding::Json));
        let both = "application/cbor, Application/JSON;q=0.9, application/vnd.kubernetes.protobuf";
        assert_eq!(of(both), Some(Encoding::Json));
        assert_eq!(of(""), None);
        assert_eq!(of("application/yaml"), None);
    }

    #[test]
    fn an_answer_says_its_form() {
        let of = |value: &'static str| {
            let headers = [(CONTENT_TYPE, value.parse().unwrap())];
            Encoding::of_answer(&headers.into_iter().collect())
        };
        assert_eq!(of(PROTOBUF), Encoding::Protobuf);
        let watch = "application/vnd.kubernetes.protobuf;stream=watch";
        assert_eq!(of(watch), Encoding::Protobuf);
        assert_eq!(of("application/json; charset=utf-8"), Encoding::Json);
        assert_eq!(of("text/html"), Encoding::Json);
        assert_eq!(Encoding::of_answer(&HeaderMap::new()), Encoding::Json);
    }
}
