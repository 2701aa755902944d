// SPDX-License-Identifier: Apache-2.0
//! Troubles that last are told once.

use std::collections::BTreeSet;
use std::fmt::Display;

use tracing::info;

/// The troubles that were told and have not ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told(BTreeSet<String>);

impl Told {
    /// Tells those of the present troubles that are new, and the end of those that are not there any more.
    pub(super) fn take_in<T: Display>(&mut self, troubles: &[T], tell: impl Fn(&T)) {
        let present: BTreeSet<String> = troubles.iter().map(ToString::to_string).collect();
        for trouble in troubles {
            if !self.0.contains(&trouble.to_string()) {
                tell(trouble);
            }
        }
        for ended in self.0.difference(&present) {
            info!(failure = ended, "no longer so");
        }
        self.0 = present;
    }
}
