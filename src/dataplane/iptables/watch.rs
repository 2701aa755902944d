// SPDX-License-Identifier: Apache-2.0
//! Detects, at next to no cost and without a process, that another program may have changed our
//! rules.
//!
//! legacy: the kernel returns the size and layout of a table, and the content of a small one,
//! without any rule being parsed ([`legacy`]). nft: the kernel notifies of every change ([`nft`]).
//! What has changed remains unknown until the rules are read. A false alarm costs that, so callers
//! limit how often they read.

mod legacy;
mod nft;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use tracing::warn;

use super::backend::Backend;
use crate::telemetry::ErrorChain;
use kpr_core::model::net::IpFamily;
use kpr_core::plan::ruleset::RuleBatch;
use kpr_core::plan::ruleset::{Edit, Table};

/// See the module.
#[derive(Debug)]
pub struct Watch(Method);

/// The chains of ours that other programs changed, as far as notifications name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Any chain may have changed: notifications were lost, or a table was deleted.
    pub any: bool,
    /// A table was deleted: if it is there, it is another one, and numbers its rules anew.
    pub is_remade: bool,
    /// Table and chain.
    pub chains: BTreeSet<(String, String)>,
}

#[derive(Debug)]
enum Method {
    Legacy(BTreeMap<IpFamily, legacy::LegacyWatch>),
    Nft(Box<nft::NftWatch>),
    /// The kernel does not let us.
    Unavailable,
}

impl Watch {
    /// Watches the rules of this network namespace. Reports no change before the first
    /// [`Self::before_look`].
    pub fn open(backend: Backend, families: impl Iterator<Item = IpFamily>) -> Self {
        let opened = match backend {
            Backend::Legacy => families
                .map(|family| Ok((family, legacy::LegacyWatch::open(family)?)))
                .collect::<io::Result<_>>()
                .map(Method::Legacy),
            Backend::Nft => nft::NftWatch::open()
                .map(|watch| Method::Nft(Box::new(watch)))
                .map_err(io::Error::other),
        };
        Self(opened.unwrap_or_else(|error| {
            warn!(%backend, error = %ErrorChain(&error), "cannot watch iptables rules, only audits will find changes");
            Method::Unavailable
        }))
    }

    /// The rules of a family are about to be read: earlier changes need not be reported. Returns
    /// what is known of them.
    pub fn before_look(&mut self, family: IpFamily) -> Touched {
        match &mut self.0 {
            Method::Legacy(watches) => {
                if let Some(watch) = watches.get_mut(&family) {
                    watch.before_look();
                }
                Touched::default()
            }
            Method::Nft(watch) => watch.before_look(family),
            Method::Unavailable => Touched::default(),
        }
    }

    /// Whether another program may have changed our rules since the last [`Self::before_look`].
    pub fn has_changed(&mut self, family: IpFamily) -> bool {
        match &mut self.0 {
            Method::Legacy(watches) => watches
                .get_mut(&family)
                .is_some_and(legacy::LegacyWatch::has_changed),
            Method::Nft(watch) => watch.has_changed(family),
            Method::Unavailable => false,
        }
    }

    /// Whether changes are noticed at all.
    pub const fn is_watching(&self) -> bool {
        !matches!(self.0, Method::Unavailable)
    }

    /// Makes a change of our own, which is not reported afterwards.
    pub fn around_write<E>(
        &mut self,
        edits: &RuleBatch,
        write: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let (numbered, rest): (Vec<&Edit>, Vec<&Edit>) = edits
            .edits
            .iter()
            .partition(|edit| edit.unread_handle().is_some());
        let tables: BTreeSet<Table> = rest.into_iter().map(Edit::table).collect();
        match &mut self.0 {
            Method::Legacy(watches) => match watches.get_mut(&edits.family) {
                Some(watch) => watch.around_write(&tables, &edits.growth, write),
                None => write(),
            },
            // Each of the others is a transaction of its own.
            Method::Nft(watch) => watch.around_write(tables.len() + numbered.len(), write),
            Method::Unavailable => write(),
        }
    }
}

/// Whether the legacy tables of a family have one of these chains. Starts no program.
pub fn legacy_has_chain(family: IpFamily, names: &[&str]) -> bool {
    legacy::LegacyWatch::open(family).is_ok_and(|legacy| legacy.has_chain(names))
}

/// Decodes what the kernel may send, for `fuzz/`.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    nft::fuzz(bytes);
    legacy::fuzz(bytes);
}
