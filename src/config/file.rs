// SPDX-License-Identifier: Apache-2.0
//! Reads and writes the configuration file.
//!
//! As kube-proxy's: the first document of a file counts, strictly at first and leniently where only
//! unknown or repeated fields are wrong. What begins with a brace is JSON.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::de::IgnoredAny;

use super::decode::{Decoder, Field as _, Finding, Mistake, REPEATED};
use super::types::{API_VERSION, KIND, KubeProxyConfiguration};
use crate::yaml::{self, Node, Place, Reader, Repeated, Value, Words};

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is no YAML, or has values of the wrong type.
    #[error("failed to decode {}", shown(path, mistakes))]
    Decode {
        /// The file.
        path: PathBuf,
        /// All that is wrong; never empty.
        mistakes: Vec<Mistake>,
    },
    /// The file holds something else.
    #[error("failed to decode {path}: {message}")]
    Kind {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The file cannot be written.
    #[error("cannot write configuration file {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The configuration has no YAML form, which no configuration can lack.
    #[error("cannot encode the configuration")]
    Encode(#[source] serde_saphyr::ser_error::Error),
}

/// `FILE:LINE:COLUMN: MESSAGE`, and each further one with its line.
fn shown(path: &Path, mistakes: &[Mistake]) -> String {
    let shown = |(index, mistake): (usize, &Mistake)| {
        let Mistake {
            line,
            column,
            message,
        } = mistake;
        match index {
            0 => format!("{}:{line}:{column}: {message}", path.display()),
            _ => format!("line {line}: {message}"),
        }
    };
    let texts: Vec<String> = mistakes.iter().enumerate().map(shown).collect();
    texts.join("; ")
}

/// A configuration as a file has it.
#[derive(Debug)]
pub struct Loaded {
    /// Without defaults.
    pub configuration: KubeProxyConfiguration,
    /// What kube-proxy passes over.
    pub findings: Vec<Finding>,
}

/// A document of a file.
#[derive(Clone, Debug)]
pub(super) struct Document {
    /// Where it begins; 0 in an empty file.
    pub(super) line: usize,
    pub(super) root: Node,
    repeated: Vec<Repeated>,
    words: Words,
}

/// What a document says when it is read as a configuration.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) configuration: KubeProxyConfiguration,
    pub(super) findings: Vec<Finding>,
    pub(super) mistakes: Vec<Mistake>,
}

/// Reads a file.
pub fn load(path: &Path) -> Result<Loaded, FileError> {
    decode(path, &read(path)?)
}

pub(super) fn read(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(|source| FileError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads the text of a file; `path` is for messages.
pub fn decode(path: &Path, text: &str) -> Result<Loaded, FileError> {
    let kind_error = |message: String| FileError::Kind {
        path: path.to_owned(),
        message,
    };
    let decode_error = |mistakes| FileError::Decode {
        path: path.to_owned(),
        mistakes,
    };
    let documents = documents(text).map_err(|mistake| decode_error(vec![mistake]))?;
    let Some((document, others)) = documents.split_first() else {
        return Err(kind_error("the file is empty".to_owned()));
    };
    let named = |mistake| decode_error(vec![mistake]);
    if let Err(message) = document.is_configuration().map_err(named)? {
        let others = others.iter().enumerate();
        let mut found = others.filter(|(_, other)| matches!(other.is_configuration(), Ok(Ok(()))));
        let hint = found.next().map_or_else(String::new, |(index, other)| {
            let (number, line) = (index + 2, other.line);
            format!("; document {number}, line {line}, is one, but the first document counts")
        });
        return Err(kind_error(format!("{message}{hint}")));
    }
    let mut reading = document.read();
    if !reading.mistakes.is_empty() {
        return Err(decode_error(reading.mistakes));
    }
    if let Some(other) = others.first() {
        reading.findings.push(Finding {
            field: "---".to_owned(),
            line: other.line,
            message: "what follows the first document is ignored".to_owned(),
        });
    }
    Ok(Loaded {
        configuration: reading.configuration,
        findings: reading.findings,
    })
}

/// The documents of a file that hold something; the first one even if it does not. What cannot be
/// read behind the first ends the list.
pub(super) fn documents(text: &str) -> Result<Vec<Document>, Mistake> {
    let words = if text.trim_start().starts_with('{') {
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| json_mistake(&error))?;
        Words::Json
    } else {
        Words::Yaml11
    };
    let failed = |error: yaml::Error| {
        let line = text.lines().nth(error.place.line.saturating_sub(1));
        let line = line.map(str::trim).unwrap_or_default();
        let message = if line.contains("{{") {
            format!("still a template, render it first: `{line}`")
        } else if line.is_empty() {
            error.message
        } else {
            format!("{} in `{line}`", error.message)
        };
        Mistake::at(error.place, message)
    };
    let mut reader = Reader::new(text, words);
    let mut documents = Vec::new();
    loop {
        let next = match reader.next_document() {
            Ok(false) => break,
            Ok(true) => reader.node(),
            Err(error) => Err(error),
        };
        let root = match next {
            Ok(root) => root,
            Err(error) if documents.is_empty() => return Err(failed(error)),
            // It does not count, but it is there.
            Err(error) => Node {
                place: error.place,
                value: Value::Text(error.message),
                is_literal: false,
            },
        };
        let is_broken = matches!(root.value, Value::Text(_));
        if documents.is_empty() || root.value != Value::Null {
            documents.push(Document {
                line: root.place.line,
                root,
                repeated: std::mem::take(&mut reader.repeated),
                words,
            });
        }
        if is_broken {
            break;
        }
    }
    Ok(documents)
}

fn json_mistake(error: &serde_json::Error) -> Mistake {
    let place = Place {
        line: error.line(),
        column: error.column(),
    };
    let text = error.to_string();
    let end = format!(" at line {} column {}", place.line, place.column);
    let message = text.strip_suffix(&end).unwrap_or(&text);
    Mistake::at(
        place,
        format!("{message} (a file that begins with {{ is read as JSON)"),
    )
}

impl Document {
    /// Its kind and version, or why it has none. As upstream, which looks for them before it looks
    /// at anything else, in whatever case.
    pub(super) fn kind(&self) -> Result<(String, String), Mistake> {
        let (mut kind, mut api_version) = (String::new(), String::new());
        let mut entries: Vec<_> = match &self.root.value {
            Value::Map(entries) => entries.iter().collect(),
            Value::Null => Vec::new(),
            other => {
                let message = format!("want a map of fields, not {}", other.named());
                return Err(Mistake::at(self.root.place, message));
            }
        };
        if self.words != Words::Json {
            entries.sort_by(|a, b| a.key.cmp(&b.key));
        }
        for entry in entries {
            let field = match entry.key.to_lowercase().as_str() {
                "kind" => &mut kind,
                "apiversion" => &mut api_version,
                _ => continue,
            };
            match &entry.node.value {
                Value::Null => {}
                Value::Text(text) => field.clone_from(text),
                other => {
                    let message = format!("{}: want a text, not {}", entry.key, other.named());
                    return Err(Mistake::at(entry.node.place, message));
                }
            }
        }
        Ok((kind, api_version))
    }

    /// Whether it is a configuration; the inner error says what it is instead.
    pub(super) fn is_configuration(&self) -> Result<Result<(), String>, Mistake> {
        let (kind, api_version) = self.kind()?;
        Ok(if self.root.value == Value::Null {
            Err(format!(
                "it is empty: want kind: {KIND} and apiVersion: {API_VERSION}"
            ))
        } else if kind.is_empty() {
            Err(format!("'kind' is missing: want kind: {KIND}"))
        } else if api_version.is_empty() {
            Err(format!(
                "'apiVersion' is missing: want apiVersion: {API_VERSION}"
            ))
        } else if kind != KIND || api_version != API_VERSION {
            Err(format!(
                "no kind {kind:?} is registered for version {api_version:?}: \
                 want kind: {KIND} and apiVersion: {API_VERSION}"
            ))
        } else {
            Ok(())
        })
    }

    /// Reads it as a configuration.
    pub(super) fn read(&self) -> Reading {
        let mut reading = Reading::default();
        let mut decoder = Decoder::default();
        reading.configuration.set(&self.root, &mut decoder);
        reading.findings = decoder.findings;
        let repeated = self.repeated.iter().map(|repeated| Finding {
            field: repeated.key.clone(),
            line: repeated.place.line,
            message: REPEATED.to_owned(),
        });
        reading.findings.extend(repeated);
        reading.findings.sort_by_key(|finding| finding.line);
        reading.mistakes = decoder.mistakes;
        API_VERSION.clone_into(&mut reading.configuration.api_version);
        KIND.clone_into(&mut reading.configuration.kind);
        reading
    }
}

/// The YAML text of a configuration, keys in alphabetical order.
pub fn encode(configuration: &KubeProxyConfiguration) -> Result<String, FileError> {
    serde_saphyr::to_string(configuration).map_err(FileError::Encode)
}

/// Writes a configuration as YAML.
pub fn write(path: &Path, configuration: &KubeProxyConfiguration) -> Result<(), FileError> {
    let text = encode(configuration)?;
    fs::write(path, text).map_err(|source| FileError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
