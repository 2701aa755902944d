// SPDX-License-Identifier: Apache-2.0
//! Invalid input: which object, which field, what is wrong. The part is skipped, the rest of the
//! object is used. Each state of an object is reported once, however often it is read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tracing::{trace, warn};

use super::Observer;
use crate::clock::Clock;
use crate::line_limit::{LineLimit, Verdict};
use kpr_core::model::ServiceName;

/// A part of an object that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Kind, namespace and name: `Service default/web`. For a file that cannot be read, its path.
    pub object: String,
    /// Path of the field: `spec.ports[1].port`. Empty where the whole object is meant.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// A label for metrics; one of [`reason`].
    pub reason: &'static str,
    /// The Service, if it is one that has the problem.
    pub service: Option<ServiceName>,
}

/// The values of [`Problem::reason`].
pub mod reason {
    pub const ADDRESS: &str = "address";
    pub const PORT: &str = "port";
    pub const PROTOCOL: &str = "protocol";
    pub const SOURCE_RANGE: &str = "source_range";
    pub const VALUE: &str = "value";
    pub const ANNOTATION: &str = "annotation";
    pub const DUPLICATE: &str = "duplicate";
    pub const DUPLICATE_OBJECT: &str = "duplicate_object";
    pub const NO_CLUSTER_IP: &str = "no_cluster_ip";
    pub const METADATA: &str = "metadata";
    pub const UNKNOWN_FIELD: &str = "unknown_field";
    pub const TYPE: &str = "type";
    pub const SYNTAX: &str = "syntax";
    pub const UNREADABLE: &str = "unreadable";
}

impl Problem {
    /// A problem of a whole object or file.
    pub(crate) fn new(
        object: impl Into<String>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            object: object.into(),
            field: String::new(),
            message: message.into(),
            reason,
            service: None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object)?;
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Reports problems once: an identical object that is read again stays silent.
#[derive(Debug)]
pub(crate) struct ProblemLog {
    observer: Arc<dyn Observer>,
    clock: Clock,
    lines: LineLimit,
    /// What was reported last, by what was read. Only that with problems is in here.
    reported: BTreeMap<String, Vec<Problem>>,
}

impl ProblemLog {
    pub(crate) fn new(observer: Arc<dyn Observer>) -> Self {
        Self {
            observer,
            clock: Clock::system(),
            lines: LineLimit::default(),
            reported: BTreeMap::new(),
        }
    }

    /// `subject` (an object or a file) was read and has these problems, or none.
    pub(crate) fn report(&mut self, subject: &str, problems: Vec<Problem>) {
        if problems.is_empty() {
            self.reported.remove(subject);
            return;
        }
        let known = self.reported.get(subject).map_or(&[][..], Vec::as_slice);
        let now = self.clock.monotonic();
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            let verdict = self.lines.verdict(subject, now);
            if verdict != Verdict::Said {
                trace!(%problem, "skipped invalid input");
                let is_first = verdict == Verdict::Silenced;
                self.observer.problem_beyond_limit(problem, is_first);
                continue;
            }
            warn!(
                object = %problem.object,
                field = %problem.field,
                reason = problem.reason,
                problem = %problem.message,
                "skipped invalid input"
            );
            self.observer.problem(problem);
        }
        self.reported.insert(subject.to_owned(), problems);
    }

    /// Nothing that was reported is still so.
    pub(crate) fn is_empty(&self) -> bool {
        self.reported.is_empty()
    }

    /// Only these subjects are left.
    pub(crate) fn retain(&mut self, is_left: impl Fn(&str) -> bool) {
        self.reported.retain(|subject, _| is_left(subject));
    }
}
