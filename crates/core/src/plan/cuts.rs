// SPDX-License-Identifier: Apache-2.0
//! PURE: what the budget left out of Services.

use std::collections::BTreeMap;

use crate::model::{Cut, ServiceName, ServiceView};
use crate::plan::by_port::Revision;

/// The Services of which something was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cuts {
    by_service: BTreeMap<ServiceName, Cut>,
    revision: Revision,
}

impl Cuts {
    /// Takes in a changed Service.
    pub fn update(&mut self, changed: &ServiceView<'_>) {
        let before = if changed.cut.is_empty() {
            self.by_service.remove(changed.name)
        } else {
            self.by_service.insert(changed.name.clone(), changed.cut)
        };
        if before.unwrap_or_default() != changed.cut {
            self.revision.bump();
        }
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ServiceName, Cut)> {
        self.by_service.iter().map(|(name, cut)| (name, *cut))
    }

    /// Changes whenever the content may have changed.
    pub const fn revision(&self) -> u64 {
        self.revision.get()
    }
}
