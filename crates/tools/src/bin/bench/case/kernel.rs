// SPDX-License-Identifier: Apache-2.0
//! The kernel objects of a node.

use anyhow::Context as _;
use ipset_netlink::Client as Ipset;
use kube_proxy_rs::dataplane::links::Links;
use serde_json::{Map, Value, json};

use crate::world::{Backend, find};

/// Counts everything in this thread's namespace. Slows down whatever runs meanwhile.
pub(crate) fn count(backend: Backend) -> anyhow::Result<Value> {
    let mut counts = Map::new();
    for (family, program) in [("rules", "iptables"), ("rules6", "ip6tables")] {
        let program = find(&format!("{program}-{}-save", backend.as_str()))?;
        let output = kpr_testkit::namespace::command(&program).output()?;
        anyhow::ensure!(output.status.success(), "{}", program.display());
        let text = String::from_utf8_lossy(&output.stdout);
        let lines = |with: &str| text.lines().filter(|line| line.starts_with(with)).count();
        counts.insert(family.to_owned(), json!(lines("-A")));
        if family == "rules" {
            counts.insert("chains".to_owned(), json!(lines(":KUBE-")));
        }
    }
    // Absent in kernels without IPVS.
    if let Ok(text) = std::fs::read_to_string("/proc/thread-self/net/ip_vs") {
        let lines = |with: &[&str]| {
            let is_it = |line: &&str| with.iter().any(|with| line.starts_with(with));
            text.lines().filter(is_it).count()
        };
        let services = lines(&["TCP ", "UDP ", "SCTP ", "FWM "]);
        counts.insert("virtualServers".to_owned(), json!(services));
        // The header line has an arrow as well.
        let servers = lines(&["  -> "]).saturating_sub(1);
        counts.insert("realServers".to_owned(), json!(servers));
    }
    let mut sets = Map::new();
    let mut ipset = Ipset::open()?;
    for name in ipset.names()? {
        let (_, entries) = ipset.entries(&name)?.context("a set disappeared")?;
        if !entries.is_empty() {
            sets.insert(name.as_str().to_owned(), json!(entries.len()));
        }
    }
    counts.insert("sets".to_owned(), json!(ipset.names()?.len()));
    counts.insert("entries".to_owned(), Value::Object(sets));
    let mut links = Links::open()?;
    if let Some(link) = links.find(kpr_core::plan::ipvs::step::LINK)? {
        let addresses = links.addresses_of(link.index, None)?;
        let count = addresses.iter().filter(|at| at.is_host()).count();
        counts.insert("addresses".to_owned(), json!(count));
    }
    Ok(Value::Object(counts))
}
