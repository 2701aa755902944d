// SPDX-License-Identifier: Apache-2.0
//! What the guest's kernel holds, read through clients of our own.

use anyhow::Context as _;
use kube_proxy_rs::dataplane::ipset::Client as Ipset;
use kube_proxy_rs::dataplane::ipvs::Client as Ipvs;
use kube_proxy_rs::dataplane::links::Links;
use serde_json::{Value, json};

/// Objects by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) services: usize,
    pub(crate) destinations: usize,
    pub(crate) sets: usize,
    pub(crate) entries: usize,
    pub(crate) addresses: usize,
}

impl Counts {
    pub(crate) fn to_json(self) -> Value {
        json!({
            "virtualServers": self.services,
            "realServers": self.destinations,
            "sets": self.sets,
            "entries": self.entries,
            "addresses": self.addresses,
        })
    }
}

/// Counts everything. Disturbs who works meanwhile.
pub(crate) fn count() -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let mut ipvs = Ipvs::open()?;
    let services = ipvs.services()?;
    counts.services = services.len();
    for service in &services {
        counts.destinations += ipvs.destinations(&service.service.key)?.len();
    }
    let mut ipset = Ipset::open()?;
    for name in ipset.names()? {
        let (_, entries) = ipset.entries(&name)?.context("a set vanished")?;
        counts.sets += 1;
        counts.entries += entries.len();
    }
    let mut links = Links::open()?;
    if let Some(link) = links.find(kube_proxy_rs::plan::step::LINK)? {
        counts.addresses = links
            .addresses_of(link.index)?
            .iter()
            .filter(|address| address.is_host())
            .count();
    }
    Ok(counts)
}
