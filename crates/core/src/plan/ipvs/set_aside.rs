// SPDX-License-Identifier: Apache-2.0
//! PURE: objects that the kernel refuses for a reason that does not pass by itself: IPv6 is
//! disabled on the link, a set is full, a feature is missing. Everything else is served without
//! them. So are kernel settings that only operators want.
//!
//! The first refusal may come from a wrong belief, so the object is observed and tried again at
//! once. After the second it waits until it changes, or until everything is compared, which audits
//! do once per sync period.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::plan::context::Context;
use crate::plan::ipvs::desired::Dirty;
use crate::plan::ipvs::object::{SyncRole, VirtualServerKey};
use crate::plan::ipvs::set::{SetEntry, SetId};
use crate::plan::ipvs::step::Step;
use crate::plan::report::FailureKind;

/// An object that steps of Services change, or one without which all of them are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// With its real servers.
    Server(VirtualServerKey),
    Address(IpAddr),
    Entry(SetId, SetEntry),
    SyncDaemon(SyncRole),
    /// One that an operator asked for.
    Sysctl(&'static str),
}

impl Object {
    /// The object that a step adds or changes; `None` if all Services need it. What is not deleted
    /// is never set aside: what it needs must stay as well.
    pub fn of(step: &Step, context: &Context) -> Option<Self> {
        match step {
            Step::SetSysctl { key, .. } => context
                .sysctls
                .contains_key(key)
                .then_some(Self::Sysctl(key)),
            Step::AddVirtualServer { key, .. }
            | Step::SetVirtualServer { key, .. }
            | Step::AddRealServer { vs: key, .. }
            | Step::SetRealServer { vs: key, .. } => Some(Self::Server(*key)),
            Step::AddAddress { address } => Some(Self::Address(*address)),
            Step::StartSyncDaemon { role, .. } => Some(Self::SyncDaemon(*role)),
            // A set that is to replace another has no identity.
            Step::AddEntry { set, entry }
            | Step::ReplaceEntries {
                set, new: entry, ..
            } => SetId::ALL
                .into_iter()
                .find(|id| id.name(context.family) == *set)
                .map(|id| Self::Entry(id, *entry)),
            _ => None,
        }
    }

    /// Whether such a refusal may be of the object alone. Without privileges nothing works; but
    /// whoever serves Services may have no need to write settings.
    pub fn may_be_refused(&self, why: FailureKind) -> bool {
        why.may_be_of_object() || matches!(self, Self::Sysctl(_))
    }

    fn is_in(&self, dirty: &Dirty) -> bool {
        match self {
            Self::Server(key) => dirty.virtual_servers.contains(key),
            Self::Address(address) => dirty.addresses.contains(address),
            Self::Entry(id, entry) => dirty.entries.contains(&(*id, *entry)),
            Self::SyncDaemon(_) | Self::Sysctl(_) => false,
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct SetAside {
    /// Refused once.
    suspects: BTreeSet<Object>,
    /// Refused again.
    refused: BTreeSet<Object>,
    has_news: bool,
}

impl SetAside {
    pub fn contains(&self, object: &Object) -> bool {
        self.refused.contains(object)
    }

    pub fn objects(&self) -> &BTreeSet<Object> {
        &self.refused
    }

    /// Whether the objects may have changed since this was last asked.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Takes in a refusal; returns whether the object is set aside now.
    pub fn refuse(&mut self, object: Object) -> bool {
        let again = self.suspects.remove(&object) || self.refused.contains(&object);
        if again {
            self.add(object);
        } else {
            self.suspects.insert(object);
        }
        again
    }

    /// The object depends on one that is set aside.
    pub fn add(&mut self, object: Object) {
        self.has_news |= self.refused.insert(object);
    }

    /// Forgets objects that a plan compared and did not have refused. `compared`: these, or all.
    pub fn compared(&mut self, compared: Option<&Dirty>, refused: &BTreeSet<Object>) {
        if self.suspects.is_empty() && self.refused.is_empty() {
            return;
        }
        let stays = |object: &Object| {
            refused.contains(object) || compared.is_some_and(|dirty| !object.is_in(dirty))
        };
        let count = self.refused.len();
        self.suspects.retain(stays);
        self.refused.retain(stays);
        self.has_news |= self.refused.len() != count;
    }
}
