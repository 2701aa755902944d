// SPDX-License-Identifier: Apache-2.0
//! More than one packet: changes while connections are open, clients that are forgotten and a node
//! with strict rules of its own in both modes; in iptables mode packets that belong to no
//! connection. Each scenario has a cluster of its own.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::cases::run::{failed, hint_at};
use crate::cases::{At, Dataplane};
use crate::manifests::{ManifestDirectory, Service};
use crate::namespace::Namespace;
use crate::proxy::{Invocation, Proxy};
use crate::topology::{Family, Host, Topology};
use crate::traffic::{Answer, Outcome, Patience, Protocol, Servers, ask};

mod affinity;
mod flows;
mod invalid;
mod refusals;
mod strict;
mod tenants;

/// All scenarios of a dataplane as tests.
pub fn trials(dataplane: Dataplane, binary: &'static Path) -> Vec<Trial> {
    let scenario = |name: &str, run: fn(&Path, Dataplane) -> Result<()>| {
        let name = format!("{dataplane}::{name}");
        Trial::test(name, move || run(binary, dataplane).map_err(failed))
    };
    let both = scenario("changes::connections_live_on", flows::live_on);
    let tenants = scenario("tenants::hurt_nobody", tenants::hurt_nobody);
    if dataplane == Dataplane::Ipvs {
        let admitted = scenario(
            "strict::services_are_to_be_admitted",
            strict::services_are_to_be_admitted,
        );
        let expires = scenario("affinity::expires", affinity::expires_after_connections);
        return vec![both, tenants, expires, admitted];
    }
    vec![
        both,
        tenants,
        scenario("affinity::expires", affinity::expires),
        scenario(
            "strict::services_are_let_through",
            strict::services_are_let_through,
        ),
        scenario("refusals::come_first", refusals::come_first),
        scenario("invalid::is_dropped", invalid::is_dropped),
        scenario(
            "invalid::passes_where_liberal",
            invalid::passes_where_liberal,
        ),
    ]
}

/// A cluster with a proxy.
struct Lab {
    topology: Topology,
    dataplane: Dataplane,
    manifests: ManifestDirectory,
    proxy: Proxy,
    _servers: Servers,
}

impl Lab {
    fn new(
        binary: &Path,
        dataplane: Dataplane,
        services: &[Service],
        flags: &[&str],
    ) -> Result<Self> {
        let topology = Topology::new().context("cannot lay out the cluster")?;
        if let Dataplane::Iptables(backend) = dataplane {
            hint_at(topology.host(Host::Node), backend)?;
        }
        let servers = Servers::new(&topology)?;
        let manifests = ManifestDirectory::new(services)?;
        let invocation = Invocation::new(binary, &manifests, dataplane.mode().name())
            .in_cluster()
            .with(flags);
        let proxy = Proxy::start(topology.host(Host::Node), &invocation)?;
        Ok(Self {
            topology,
            dataplane,
            manifests,
            proxy,
            _servers: servers,
        })
    }

    fn host(&self, host: Host) -> &Namespace {
        self.topology.host(host)
    }

    fn ask(&self, from: Host, to: SocketAddr, protocol: Protocol) -> Result<Outcome> {
        ask(self.host(from), None, to, protocol, Patience::Long)
    }

    /// No answer and no refusal.
    fn meets_silence(&self, from: Host, to: SocketAddr, protocol: Protocol) -> Result<()> {
        let outcome = ask(self.host(from), None, to, protocol, Patience::Short)?;
        ensure!(
            outcome == Outcome::TimedOut,
            "{from} to {to}, {protocol}: wanted silence, was {outcome}"
        );
        Ok(())
    }

    /// Runs the dataplane's program on the node.
    fn iptables(&self, family: Family, arguments: &str) -> Result<()> {
        let program = self.dataplane.program(family);
        let arguments: Vec<&str> = ["-w"].into_iter().chain(arguments.split(' ')).collect();
        self.host(Host::Node).run(&program, &arguments)?;
        Ok(())
    }
}

fn answered(outcome: Outcome) -> Result<Answer> {
    match outcome {
        Outcome::Answered(answer) => Ok(answer),
        other => anyhow::bail!("wanted an answer, was {other}"),
    }
}

fn at(at: At, service: &Service, family: Family) -> SocketAddr {
    at.address(service, family, 80)
}
