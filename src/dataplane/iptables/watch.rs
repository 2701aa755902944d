// SPDX-License-Identifier: Apache-2.0
//! Tells, at next to no cost and without a process, that somebody else may have changed rules of ours.
//!
//! legacy: the kernel tells the size and outline of a table, and of a small table all of it, without any rule being
//! parsed ([`legacy`]). nft: the kernel notifies of every change ([`nft`]). What was changed is not told: the rules must
//! be read for that. False alarms cost that reading, so callers limit how often they do it.

mod legacy;
mod nft;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use tracing::warn;

use super::backend::Backend;
use crate::telemetry::ErrorChain;
use kpr_core::model::net::IpFamily;
use kpr_core::plan::ruleset::{Edit, Table};
use kpr_core::plan::step::RuleEdits;

/// See the module.
#[derive(Debug)]
pub struct Watch(Eye);

#[derive(Debug)]
enum Eye {
    Legacy(BTreeMap<IpFamily, legacy::Watch>),
    Nft(Box<nft::Watch>),
    /// This kernel does not let us.
    Blind,
}

impl Watch {
    /// Watches the rules of this network namespace. Nothing is known before the first [`Self::before_look`].
    pub fn open(backend: Backend, families: impl Iterator<Item = IpFamily>) -> Self {
        let opened = match backend {
            Backend::Legacy => families
                .map(|family| Ok((family, legacy::Watch::open(family)?)))
                .collect::<io::Result<_>>()
                .map(Eye::Legacy),
            Backend::Nft => nft::Watch::open().map(|watch| Eye::Nft(Box::new(watch))),
        };
        Self(opened.unwrap_or_else(|error| {
            warn!(%backend, error = %ErrorChain(&error), "rules are not watched, only audits find changes");
            Eye::Blind
        }))
    }

    /// The rules of a family are about to be read: what changed before that is known by it.
    pub fn before_look(&mut self, family: IpFamily) {
        match &mut self.0 {
            Eye::Legacy(watches) => {
                if let Some(watch) = watches.get_mut(&family) {
                    watch.before_look();
                }
            }
            Eye::Nft(watch) => watch.before_look(family),
            Eye::Blind => {}
        }
    }

    /// Somebody else may have changed rules of ours since the last [`Self::before_look`].
    pub fn has_changed(&mut self, family: IpFamily) -> bool {
        match &mut self.0 {
            Eye::Legacy(watches) => watches
                .get_mut(&family)
                .is_some_and(legacy::Watch::has_changed),
            Eye::Nft(watch) => watch.has_changed(family),
            Eye::Blind => false,
        }
    }

    /// Makes a change of our own, which is no news afterwards.
    pub fn around_write<E>(
        &mut self,
        edits: &RuleEdits,
        write: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let tables: BTreeSet<Table> = edits.edits.iter().map(Edit::table).collect();
        match &mut self.0 {
            Eye::Legacy(watches) => match watches.get_mut(&edits.family) {
                Some(watch) => watch.around_write(&tables, &edits.growth, write),
                None => write(),
            },
            Eye::Nft(watch) => watch.around_write(tables.len(), write),
            Eye::Blind => write(),
        }
    }
}
