// SPDX-License-Identifier: Apache-2.0
//! Open connections outlive every change; new ones obey it.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use super::{Lab, at};
use crate::cases::{At, Dataplane, Mode};
use crate::manifests::{Endpoint, Service};
use crate::topology::{Family, Host};
use crate::traffic::{Connection, Outcome, Patience, Protocol, ask};
use crate::wait;

/// Clients of every kind, and where they connect to.
const CLIENTS: [(Host, At); 6] = [
    (Host::Shell, At::ClusterIp),
    (Host::Remote, At::ClusterIp),
    (Host::Node, At::ExternalIp),
    (Host::Client, At::Vip),
    (Host::Client, At::NodePort),
    (Host::Remote, At::NodePort),
];

pub(super) fn live_on(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1])
        .protocols(&[Protocol::Tcp])
        .exposed();
    let mut story = Story {
        lab: Lab::new(binary, dataplane, std::slice::from_ref(&web), &[])?,
        web,
        open: Vec::new(),
    };
    let told = story.tell();
    told.with_context(|| {
        let log = story.lab.proxy.log();
        let end: Vec<&str> = log.lines().rev().take(20).collect();
        format!("the end of the log, last line first:\n{}", end.join("\n"))
    })
}

/// A Service that changes, and connections to it.
struct Story {
    lab: Lab,
    web: Service,
    open: Vec<(Host, SocketAddr, Connection)>,
}

impl Story {
    fn tell(&mut self) -> Result<()> {
        self.connect()?;
        self.endpoint_is_exchanged()?;
        self.live_on().context("after their endpoint left")?;
        self.connect()?;
        self.ranges_come()?;
        self.live_on().context("after the ranges came")?;
        self.rules_are_deleted()?;
        self.live_on().context("after rules were deleted")?;
        self.last_endpoint_leaves()?;
        self.live_on().context("after the last endpoint left")?;
        self.publish(&[Host::Web2])?;
        self.all_meet(Host::Web2)?;
        self.connect()?;
        self.service_is_deleted()?;
        self.live_on().context("after the Service was deleted")?;
        self.publish(&[Host::Web3])?;
        self.all_meet(Host::Web3)?;
        self.live_on().context("after it was made anew")
    }

    fn everywhere(&self) -> Vec<(Host, SocketAddr)> {
        let clients = Family::ALL
            .into_iter()
            .flat_map(|family| CLIENTS.map(|(from, place)| (from, at(place, &self.web, family))));
        clients.collect()
    }

    fn publish(&mut self, hosts: &[Host]) -> Result<()> {
        self.web.endpoints = hosts.iter().copied().map(Endpoint::ready).collect();
        self.lab.manifests.apply(&self.web)
    }

    /// Opens a connection of each client.
    fn connect(&mut self) -> Result<()> {
        for (from, to) in self.everywhere() {
            let opened = Connection::open(self.lab.host(from), to, Protocol::Tcp, Patience::Long)?;
            let connection = opened.map_err(|outcome| anyhow!("{from} to {to}: {outcome}"))?;
            self.open.push((from, to, connection));
        }
        Ok(())
    }

    fn live_on(&mut self) -> Result<()> {
        for (from, to, connection) in &mut self.open {
            let by = connection.answer.by.clone();
            connection
                .echo()
                .with_context(|| format!("{from} to {to}, with {by}"))?;
        }
        Ok(())
    }

    fn ask(&self, from: Host, to: SocketAddr) -> Result<Outcome> {
        let host = self.lab.host(from);
        ask(host, None, to, Protocol::Tcp, Patience::Short)
    }

    /// Waits until a new connection meets this.
    fn becomes(&self, from: Host, to: SocketAddr, is_met: impl Fn(&Outcome) -> bool) -> Result<()> {
        wait::until(&format!("{from} meets something else at {to}"), || {
            let outcome = self.ask(from, to)?;
            ensure!(is_met(&outcome), "it was {outcome}");
            Ok(())
        })
    }

    /// Waits until new connections reach this endpoint alone. A new endpoint comes before the old
    /// one goes, so the first that reaches it says little.
    fn only(&self, from: Host, to: SocketAddr, wanted: Host) -> Result<()> {
        let what = format!("{from} meets only {} at {to}", wanted.name());
        wait::until(&what, || {
            for _ in 0..3 {
                let outcome = self.ask(from, to)?;
                let by = match &outcome {
                    Outcome::Answered(answer) => answer.by.as_str(),
                    _ => "nobody",
                };
                ensure!(by == wanted.name(), "it was {outcome}");
            }
            Ok(())
        })
    }

    fn all_meet(&self, wanted: Host) -> Result<()> {
        let mut everywhere = self.everywhere().into_iter();
        everywhere.try_for_each(|(from, to)| self.only(from, to, wanted))
    }

    fn endpoint_is_exchanged(&mut self) -> Result<()> {
        self.publish(&[Host::Web3])?;
        self.all_meet(Host::Web3)
    }

    /// Source ranges that leave the client out, and that hold for the load balancer's address
    /// alone.
    fn ranges_come(&self) -> Result<()> {
        let ranged = self.web.clone().with(
            "loadBalancerSourceRanges",
            json!(["192.0.2.0/24", "2001:db8:1::/64"]),
        );
        self.lab.manifests.apply(&ranged)?;
        for family in Family::ALL {
            let vip = at(At::Vip, &self.web, family);
            self.becomes(Host::Client, vip, |outcome| *outcome == Outcome::TimedOut)?;
            let node_port = at(At::NodePort, &self.web, family);
            self.only(Host::Client, node_port, Host::Web3)?;
        }
        Ok(())
    }

    /// Somebody deletes the jumps of `nat`, through which all Services are reached; they come back.
    /// So do the Services without ranges.
    fn rules_are_deleted(&self) -> Result<()> {
        for family in Family::ALL {
            for chain in ["PREROUTING", "OUTPUT", "POSTROUTING"] {
                self.lab.iptables(family, &format!("-t nat -F {chain}"))?;
            }
        }
        self.lab.manifests.apply(&self.web)?;
        self.all_meet(Host::Web3)
    }

    fn last_endpoint_leaves(&mut self) -> Result<()> {
        self.publish(&[])?;
        for (from, to) in self.everywhere() {
            self.becomes(from, to, |outcome| *outcome == Outcome::Refused)?;
        }
        Ok(())
    }

    /// While its connections live, IPVS mode refuses new ones. In iptables mode its addresses are
    /// as if they had never been. Its node port is the node's again in both.
    fn service_is_deleted(&self) -> Result<()> {
        self.lab.manifests.delete(&self.web)?;
        let is_ipvs = self.lab.dataplane.mode() == Mode::Ipvs;
        for (from, to) in self.everywhere() {
            let is_node = Family::ALL
                .map(|family| Host::Node.address(family))
                .contains(&to.ip());
            self.becomes(from, to, |outcome| match outcome {
                Outcome::Refused => true,
                Outcome::Answered(_) => false,
                _ => !is_node && !is_ipvs,
            })?;
        }
        Ok(())
    }
}
