// SPDX-License-Identifier: Apache-2.0
//! PURE: Service ports whose chains would have the same names. A name is 80 bits of a hash of the
//! Service port's, as in kube-proxy: who is ready to compute for some days finds two ports that
//! share one. Neither is served then, or each round would write the chains of both in turn; who is
//! not served does not depend on the order of changes. Others cannot be hit, because the hash of a
//! given name takes 2^80 tries to find.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ServiceName, ServicePortName};
use crate::plan::iptables::port_rules::PortRules;

/// The bits in the names of a Service port's chains.
type Bits = u128;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SameNames {
    /// Of the Service ports that are served.
    taken: BTreeSet<Bits>,
    /// Those that are not, two or more for each name. Nearly always none.
    apart: BTreeMap<Bits, BTreeMap<ServicePortName, PortRules>>,
}

impl SameNames {
    /// The rules of a Service port that is not served because of its name.
    pub(super) fn get(&self, name: &ServicePortName) -> Option<&PortRules> {
        self.apart.values().find_map(|group| group.get(name))
    }

    /// The Service ports that are not served, each with another one of its group.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&ServicePortName, &ServicePortName)> {
        self.apart.values().flat_map(|group| {
            let names = group.keys();
            names.filter_map(move |name| Some((name, group.keys().find(|it| *it != name)?)))
        })
    }

    /// The ports of a Service among them.
    pub(super) fn of(&self, service: &ServiceName) -> impl Iterator<Item = &ServicePortName> {
        let names = self.apart.values().flat_map(BTreeMap::keys);
        names.filter(move |name| name.service == *service)
    }
}

/// What a Service port's new rules mean.
pub(super) enum Meaning {
    /// As without this module.
    Ordinary(Option<PortRules>),
    /// It stays or becomes one that is not served; its former rules.
    Apart(Option<PortRules>),
    /// It is gone, and there is one left of its name, which is served now; its former rules.
    Frees(Option<PortRules>, ServicePortName, Box<PortRules>),
    /// A Service port that is served has the same bits: both are not served any more.
    Meets(PortRules),
}

impl SameNames {
    /// Takes in the new rules of a Service port. `is_served`: it has rules at present.
    pub(super) fn take_in(
        &mut self,
        bits: Bits,
        name: &ServicePortName,
        is_served: bool,
        new: Option<PortRules>,
    ) -> Meaning {
        if let Some(group) = self.apart.get_mut(&bits) {
            let old = match new {
                Some(new) => return Meaning::Apart(group.insert(name.clone(), new)),
                None => group.remove(name),
            };
            if group.len() == 1
                && let Some((last, rules)) = group.pop_first()
            {
                self.apart.remove(&bits);
                self.taken.insert(bits);
                return Meaning::Frees(old, last, Box::new(rules));
            }
            return Meaning::Apart(old);
        }
        match new {
            Some(new) if !is_served && !self.taken.insert(bits) => Meaning::Meets(new),
            None if is_served => {
                self.taken.remove(&bits);
                Meaning::Ordinary(None)
            }
            new => Meaning::Ordinary(new),
        }
    }

    /// Neither of these is served.
    pub(super) fn part(&mut self, bits: Bits, both: [(ServicePortName, PortRules); 2]) {
        self.taken.remove(&bits);
        self.apart.entry(bits).or_default().extend(both);
    }
}
