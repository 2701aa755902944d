// SPDX-License-Identifier: Apache-2.0
//! The documents of a manifest file. Each one is parsed on its own, so that an invalid one does not
//! affect the others.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::de::DeserializeSeed;

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// Counted from 1, as the file separates them.
    pub(super) number: usize,
    /// The line of the file that it starts on, counted from 1.
    pub(super) line: usize,
    pub(super) text: &'a str,
    pub(super) format: Format,
}

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// A document that cannot be parsed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// The line of the file, if the parser knows.
    pub(super) line: usize,
    pub(super) message: String,
}

impl Document<'_> {
    /// Equal texts have equal fingerprints, and only they, for all that matters.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        hasher.finish()
    }

    /// Reads the values in it, each with a seed of its own: one for YAML, any number for JSON,
    /// which has no separators.
    pub(super) fn read<S>(&self, mut seed: impl FnMut() -> S) -> Result<(), SyntaxError>
    where
        S: for<'de> DeserializeSeed<'de, Value = ()>,
    {
        match self.format {
            Format::Yaml => {
                let options = yaml_options();
                serde_saphyr::with_deserializer_from_str_with_options(
                    self.text,
                    options,
                    |deserializer| seed().deserialize(deserializer),
                )
                .map_err(|error| {
                    let line = error
                        .location()
                        .map_or(1, |at| usize::try_from(at.line()).unwrap_or(1));
                    self.syntax_error(line, error.without_snippet().to_string())
                })
            }
            Format::Json => {
                let mut deserializer = serde_json::Deserializer::from_str(self.text);
                let failed =
                    |error: serde_json::Error| self.syntax_error(error.line(), error.to_string());
                while deserializer.end().is_err() {
                    seed().deserialize(&mut deserializer).map_err(failed)?;
                }
                Ok(())
            }
        }
    }

    fn syntax_error(&self, line: usize, message: String) -> SyntaxError {
        SyntaxError {
            line: self.line_of(line),
            message,
        }
    }

    /// A line of the document as a line of the file.
    fn line_of(&self, line: usize) -> usize {
        self.line + line.saturating_sub(1)
    }
}

/// Files are the operator's own, and a dump of a cluster is large: the limits that guard against
/// hostile input are out of the way, those on aliases and depth stay.
fn yaml_options() -> serde_saphyr::Options {
    let mut budget = serde_saphyr::Budget::default();
    budget.max_reader_input_bytes = None;
    budget.max_events = usize::MAX;
    budget.max_nodes = usize::MAX;
    budget.max_total_scalar_bytes = usize::MAX;
    budget.max_total_comment_bytes = usize::MAX;
    let mut options = serde_saphyr::Options::default();
    options.budget = Some(budget);
    // `yes` and `on` are texts, as in YAML 1.2.
    options.strict_booleans = true;
    options.with_snippet = false;
    options
}

/// The documents of a file, without those that hold nothing but comments.
pub(super) fn split(text: &str, format: Format) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if format == Format::Json {
        let document = Document {
            number: 1,
            line: 1,
            text,
            format,
        };
        return Vec::from_iter((!text.trim().is_empty()).then_some(document));
    }
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset, mut number) = (0, 1, 0, 0);
    let mut close = |start: usize, end: usize, line: usize| {
        let text = text.get(start..end).unwrap_or_default();
        if has_content(text) {
            number += 1;
            documents.push(Document {
                number,
                line,
                text,
                format,
            });
        }
    };
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let after = offset + line.len();
        if is_marker(line, "---") {
            close(start, offset, start_line);
            (start, start_line) = (offset, index + 1);
        } else if is_marker(line, "...") {
            close(start, offset, start_line);
            (start, start_line) = (after, index + 2);
        }
        offset = after;
    }
    close(start, offset, start_line);
    documents
}

/// YAML forbids such a line within a document, even in quoted text.
fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.chars().next().is_none_or(char::is_whitespace))
}

/// There is more than comments, directives and the start marker.
fn has_content(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim_start();
        !(line.is_empty() || line.starts_with('#') || line.starts_with('%'))
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use serde::{Deserialize, Deserializer};
    use serde_json::Value;

    use super::*;

    fn texts(text: &str) -> Vec<(usize, usize, &str)> {
        split(text, Format::Yaml)
            .into_iter()
            .map(|document| (document.number, document.line, document.text))
            .collect()
    }

    #[test]
    fn documents_keep_their_line() {
        assert_eq!(
            texts("a: 1\n---\nb: 2\n--- # next\nc: 3"),
            [
                (1, 1, "a: 1\n"),
                (2, 2, "---\nb: 2\n"),
                (3, 4, "--- # next\nc: 3")
            ]
        );
    }

    #[test]
    fn documents_without_content_do_not_count() {
        assert_eq!(texts("# only a comment\n---\n\n---\n"), []);
        assert_eq!(
            texts("%YAML 1.2\n---\na: 1\n...\n# end\n"),
            [(1, 2, "---\na: 1\n")]
        );
    }

    #[test]
    fn a_marker_within_indented_text_separates_nothing() {
        assert_eq!(texts("a: |\n  ---\n  b\n").len(), 1);
        assert_eq!(texts("a: 1\n----\n").len(), 1);
    }

    /// All values, or the error after some of them.
    fn values(document: &Document<'_>) -> Result<Vec<Value>, SyntaxError> {
        struct Seed<'a>(&'a RefCell<Vec<Value>>);
        impl<'de> DeserializeSeed<'de> for Seed<'_> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
                self.0.borrow_mut().push(Value::deserialize(deserializer)?);
                Ok(())
            }
        }
        let found = RefCell::default();
        document.read(|| Seed(&found))?;
        Ok(found.into_inner())
    }

    #[test]
    fn a_syntax_error_names_the_line_of_the_file() {
        let text = "a: 1\n---\nb: 2\nc: [1, 2\n";
        let documents = split(text, Format::Yaml);
        let error = values(&documents[1]).unwrap_err();
        assert!((3..=5).contains(&error.line), "{error:?}");
        assert!(values(&documents[0]).is_ok());
    }

    #[test]
    fn duplicate_keys_are_an_error() {
        let documents = split("a: 1\na: 2\n", Format::Yaml);
        assert_eq!(values(&documents[0]).unwrap_err().line, 2);
    }

    #[test]
    fn yes_is_a_text_and_numbers_are_numbers() {
        let documents = split("a: yes\nb: 80\nc: 10.0.0.1\nd: true\n", Format::Yaml);
        assert_eq!(
            values(&documents[0]).unwrap(),
            [serde_json::json!({"a": "yes", "b": 80, "c": "10.0.0.1", "d": true})]
        );
    }

    #[test]
    fn json_values_follow_each_other() {
        let documents = split("{\"a\": 1}\n{\"b\": 2} ", Format::Json);
        assert_eq!(values(&documents[0]).unwrap().len(), 2);
        let documents = split("{\"a\": 1}\n{\"b\": ", Format::Json);
        assert_eq!(values(&documents[0]).unwrap_err().line, 2);
        let documents = split("{\"a\": 1} x", Format::Json);
        assert_eq!(values(&documents[0]).unwrap_err().line, 1);
    }
}
