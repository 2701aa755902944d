// SPDX-License-Identifier: Apache-2.0
//! Reads and writes the configuration file.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Deserialize;

use super::types::{API_VERSION, KIND, KubeProxyConfiguration};

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
    /// The file is no YAML, has a field that does not exist, or a value of the wrong type.
    #[error("failed to decode {path}:{line}:{column}: {message}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// Line, from 1; 0 if it is not known.
        line: u64,
        /// Column, from 1; 0 if it is not known.
        column: u64,
        /// What is wrong there.
        message: String,
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

/// What says of what type the rest is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypeMeta {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

/// Reads a file. Unknown and repeated fields are errors.
pub fn load(path: &Path) -> Result<KubeProxyConfiguration, FileError> {
    let text = fs::read_to_string(path).map_err(|source| FileError::Read {
        path: path.to_owned(),
        source,
    })?;
    decode(path, &text)
}

/// Reads the text of a file; `path` is for messages.
pub fn decode(path: &Path, text: &str) -> Result<KubeProxyConfiguration, FileError> {
    let kind_error = |message: String| FileError::Kind {
        path: path.to_owned(),
        message,
    };
    if text.trim().is_empty() {
        return Err(kind_error("the file is empty".to_owned()));
    }
    let meta: TypeMeta =
        serde_saphyr::from_str(text).map_err(|error| decode_error(path, text, &error))?;
    if meta.kind.is_empty() {
        return Err(kind_error(format!("'kind' is missing: want kind: {KIND}")));
    }
    if meta.api_version.is_empty() {
        return Err(kind_error(format!(
            "'apiVersion' is missing: want apiVersion: {API_VERSION}"
        )));
    }
    if meta.kind != KIND || meta.api_version != API_VERSION {
        return Err(kind_error(format!(
            "no kind {:?} is registered for version {:?}: want kind: {KIND} and apiVersion: {API_VERSION}",
            meta.kind, meta.api_version
        )));
    }
    serde_saphyr::from_str(text).map_err(|error| decode_error(path, text, &error))
}

/// Errors of types do not name the field, so the line itself is quoted.
fn decode_error(path: &Path, text: &str, error: &serde_saphyr::Error) -> FileError {
    let location = error.location();
    let (line, column) = location.map_or((0, 0), |location| (location.line(), location.column()));
    let rendered = error.without_snippet().to_string();
    let place = format!(" at line {line}, column {column}");
    let message = rendered.strip_suffix(&place).unwrap_or(&rendered);
    // Advice for programmers.
    let message = message.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
    let quoted = usize::try_from(line)
        .ok()
        .and_then(|line| text.lines().nth(line.checked_sub(1)?))
        .map(|source| format!(" in `{}`", source.trim()))
        .unwrap_or_default();
    FileError::Decode {
        path: path.to_owned(),
        line,
        column,
        message: format!("{message}{quoted}"),
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
