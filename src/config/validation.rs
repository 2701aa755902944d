// SPDX-License-Identifier: Apache-2.0
//! Errors of configuration values, printed as Kubernetes prints them.

use std::fmt;

use kpr_core::model::GoDuration;

/// The path that every field's path starts with.
const ROOT: &str = "KubeProxyConfiguration";

/// The stages of a start, in order. kube-proxy stops at the first one that finds an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Feature gates are set.
    Complete,
    /// Logging is set up.
    Logging,
    /// Everything else is validated.
    Validate,
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field below the configuration. Upstream's internal names, which operators search
    /// for.
    pub path: String,
    /// What is wrong.
    pub problem: Problem,
}

impl FieldError {
    fn stage(&self) -> Stage {
        match self.path.split('.').next() {
            Some("featureGates") => Stage::Complete,
            Some("logging") => Stage::Logging,
            _ => Stage::Validate,
        }
    }
}

impl std::error::Error for FieldError {}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, problem } = self;
        match (self.stage(), problem) {
            (Stage::Complete, Problem::Invalid { message, .. }) => f.write_str(message),
            (Stage::Logging, _) => write!(f, "{path}: {problem}"),
            (Stage::Complete | Stage::Validate, _) => write!(f, "{ROOT}.{path}: {problem}"),
        }
    }
}

/// Kinds of wrong values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// An invalid value.
    Invalid {
        /// The value, text in quotes.
        value: String,
        /// The rule.
        message: String,
    },
    /// A repeated value.
    Duplicate {
        /// The value, in quotes.
        value: String,
    },
    /// A value out of a list of possible ones.
    Unsupported {
        /// The value, in quotes.
        value: String,
        /// The possible values.
        supported: Vec<&'static str>,
    },
    /// A value that is not allowed here.
    Forbidden(String),
    /// A required value.
    Required(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { value, message } => write!(f, "Invalid value: {value}: {message}"),
            Self::Duplicate { value } => write!(f, "Duplicate value: {value}"),
            Self::Unsupported { value, supported } => {
                let supported: Vec<String> = supported.iter().map(|v| format!("{v:?}")).collect();
                write!(
                    f,
                    "Unsupported value: {value}: supported values: {}",
                    supported.join(", ")
                )
            }
            Self::Forbidden(message) => write!(f, "Forbidden: {message}"),
            Self::Required(message) => write!(f, "Required value: {message}"),
        }
    }
}

/// All that is wrong with a configuration; never empty. Several errors print as `[a, b, c]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidationErrors(Vec<FieldError>);

impl std::error::Error for ValidationErrors {}

impl ValidationErrors {
    /// The errors, in the order of upstream's checks.
    pub fn errors(&self) -> &[FieldError] {
        &self.0
    }

    /// The first stage that finds errors, and those errors.
    pub fn of_first_stage(self) -> (Stage, Self) {
        let first = self.0.iter().map(FieldError::stage).min();
        let stage = first.unwrap_or(Stage::Validate);
        let of_stage = self.0.into_iter().filter(|error| error.stage() == stage);
        (stage, Self(of_stage.collect()))
    }
}

impl fmt::Display for ValidationErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0.as_slice() {
            return only.fmt(f);
        }
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "[{}]", texts.join(", "))
    }
}

/// Collects errors, so that an operator sees all of them at once.
#[derive(Debug, Default)]
pub(super) struct Errors(Vec<FieldError>);

impl Errors {
    pub(super) fn push(&mut self, path: impl Into<String>, problem: Problem) {
        self.0.push(FieldError {
            path: path.into(),
            problem,
        });
    }

    /// An invalid number or boolean.
    pub(super) fn invalid(&mut self, path: &str, value: impl fmt::Display, message: &str) {
        let problem = Problem::Invalid {
            value: value.to_string(),
            message: message.to_owned(),
        };
        self.push(path, problem);
    }

    /// An invalid duration; upstream prints it as text.
    pub(super) fn invalid_duration(&mut self, path: &str, value: GoDuration, message: &str) {
        self.invalid_text(path, value.to_string(), message);
    }

    /// An invalid string or list of strings.
    pub(super) fn invalid_text(&mut self, path: &str, value: impl fmt::Debug, message: &str) {
        self.invalid(path, format_args!("{value:?}"), message);
    }

    /// The value, if nothing was wrong.
    pub(super) fn into_result<T>(self, value: T) -> Result<T, ValidationErrors> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(ValidationErrors(self.0))
        }
    }
}
