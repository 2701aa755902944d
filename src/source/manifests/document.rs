// SPDX-License-Identifier: Apache-2.0
//! The documents of a manifest file. Each one is parsed on its own, so that an invalid one does not
//! affect the others.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::de::IgnoredAny;

/// One document of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// Counted from 1, as the file separates them.
    pub(super) number: usize,
    /// The line of the file that it starts on, counted from 1.
    pub(super) line: usize,
    pub(super) text: &'a str,
    /// What is wrong with a value of JSON.
    pub(super) error: Option<SyntaxError>,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    /// Any number of values, without separators.
    Json,
}

/// A document that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// The line of the file.
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

    /// A line of the document as a line of the file.
    pub(super) fn line_of(&self, line: usize) -> usize {
        self.line + line.saturating_sub(1)
    }
}

/// The documents of a file, without those that hold nothing but comments.
pub(super) fn split(text: &str, format: Format) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Yaml => split_yaml(text),
        Format::Json => split_json(text),
    }
}

fn split_json(text: &str) -> Vec<Document<'_>> {
    let mut documents: Vec<Document<'_>> = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let mut start = 0;
    while let Some(value) = values.next() {
        let end = match value {
            Ok(_) => values.byte_offset(),
            Err(_) => text.len(),
        };
        // The blanks before it count for its line.
        let (before, rest) = text.split_at_checked(start).unwrap_or((text, ""));
        let whole = rest.get(..end.saturating_sub(start)).unwrap_or_default();
        let blanks = whole.len() - whole.trim_start().len();
        let line = 1 + [before, whole.get(..blanks).unwrap_or_default()]
            .iter()
            .map(|text| text.matches('\n').count())
            .sum::<usize>();
        documents.push(Document {
            number: documents.len() + 1,
            line,
            text: whole.trim(),
            error: value.err().map(|error| {
                let text = error.to_string();
                let place = format!(" at line {} column {}", error.line(), error.column());
                SyntaxError {
                    line: error.line(),
                    message: text.strip_suffix(&place).unwrap_or(&text).to_owned(),
                }
            }),
        });
        start = end;
    }
    documents
}

fn split_yaml(text: &str) -> Vec<Document<'_>> {
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
                error: None,
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
    use super::*;

    fn texts(text: &str, format: Format) -> Vec<(usize, usize, &str)> {
        split(text, format)
            .into_iter()
            .map(|document| (document.number, document.line, document.text))
            .collect()
    }

    #[test]
    fn documents_keep_their_line() {
        assert_eq!(
            texts("a: 1\n---\nb: 2\n--- # next\nc: 3", Format::Yaml),
            [
                (1, 1, "a: 1\n"),
                (2, 2, "---\nb: 2\n"),
                (3, 4, "--- # next\nc: 3")
            ]
        );
    }

    #[test]
    fn documents_without_content_do_not_count() {
        assert_eq!(texts("# only a comment\n---\n\n---\n", Format::Yaml), []);
        assert_eq!(
            texts("%YAML 1.2\n---\na: 1\n...\n# end\n", Format::Yaml),
            [(1, 2, "---\na: 1\n")]
        );
        assert_eq!(texts(" \n", Format::Json), []);
    }

    #[test]
    fn a_marker_within_indented_text_separates_nothing() {
        assert_eq!(texts("a: |\n  ---\n  b\n", Format::Yaml).len(), 1);
        assert_eq!(texts("a: 1\n----\n", Format::Yaml).len(), 1);
    }

    #[test]
    fn json_values_follow_each_other() {
        assert_eq!(
            texts("{\"a\": 1}\n\n{\"b\": 2} {}\n", Format::Json),
            [(1, 1, "{\"a\": 1}"), (2, 3, "{\"b\": 2}"), (3, 3, "{}")]
        );
        let documents = split("{\"a\": 1}\n{\"b\": ", Format::Json);
        let error = documents[1].error.as_ref().unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(error.line, 2);
        assert!(!error.message.contains("line"), "{error:?}");
        let documents = split("{\"a\": 1} x", Format::Json);
        assert!(documents[1].error.is_some());
    }
}
