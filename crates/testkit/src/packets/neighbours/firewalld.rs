// SPDX-License-Identifier: Apache-2.0
//! A firewall in a table of its own that lets clients outside reach nothing but ssh, and what was
//! translated: no rule of ours can let pass what it refuses.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Lab, of_empty_service, of_service};
use crate::cases::{At, Dataplane};
use crate::manifests::Service;
use crate::topology::{CLUSTER_CIDRS, Family, Host};
use crate::traffic::{Outcome, Patience, Protocol, ask};

fn start(lab: &Lab) -> Result<()> {
    let (v4, v6) = CLUSTER_CIDRS.split_once(',').unwrap_or_default();
    lab.script("firewalld", &["start", v4, v6])
}

/// Iptables mode translates destinations: all is served, whoever was first.
pub(super) fn translated(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let empty = Service::new("empty", 3, &[]).exposed();
    let services = [web.clone(), empty.clone()];
    let lab = Lab::new(binary, dataplane, &services, &[])?;
    let serves = |when: &str| -> Result<()> {
        for family in Family::ALL {
            let mut probes = of_service(&web, family, &[Host::Web1, Host::Web3]);
            probes.extend(of_empty_service(&empty, family));
            lab.becomes(&format!("{family} is served {when}"), &probes)?;
        }
        Ok(())
    };
    start(&lab)?;
    let before = lab.kernel()?;
    let proxy = lab.start()?;
    serves("behind the firewall")?;
    start(&lab)?;
    serves("after its reload")?;
    proxy.terminate()?;
    lab.script("firewalld", &["end"])?;
    let proxy = lab.start()?;
    start(&lab)?;
    serves("with a firewall that came later")?;
    lab.is_settled()?;
    lab.is_left_by(proxy, &before)
}

/// IPVS mode does not, and what nftables translates to itself does not count as translated: pods
/// and the node are served, clients outside when the firewall has the port.
pub(super) fn closed(binary: &Path) -> Result<()> {
    closed_with(binary, "--ipvs-rules=nftables")?;
    closed_with(binary, "--ipvs-rules=iptables")
}

fn closed_with(binary: &Path, flag: &str) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let flags = [flag];
    let lab = Lab::new(binary, Dataplane::Ipvs, std::slice::from_ref(&web), &flags)?;
    start(&lab)?;
    let _proxy = lab.start()?;
    for family in Family::ALL {
        let probes = of_service(&web, family, &[Host::Web1, Host::Web3]);
        let inside: Vec<_> = probes
            .iter()
            .filter(|it| it.0 != Host::Client)
            .copied()
            .collect();
        lab.becomes("those inside are served", &inside)?;
        for at in [At::NodePort, At::Vip] {
            let to = at.address(&web, family, 80);
            let client = lab.topology.host(Host::Client);
            let outcome = ask(client, None, to, Protocol::Tcp, Patience::Short)?;
            let is_served = matches!(outcome, Outcome::Answered(_));
            ensure!(!is_served, "the firewall lets {to} pass");
            let port = format!("meta l4proto {{ tcp, udp }} th dport {} accept", to.port());
            let rule = format!("insert rule inet firewalld filter_IN_public {port}");
            lab.node().run("nft", &[&rule])?;
            let opened: Vec<_> = probes.iter().filter(|it| it.1 == to).copied().collect();
            lab.becomes("an open port is served", &opened)?;
            start(&lab)?;
        }
    }
    Ok(())
}
