// SPDX-License-Identifier: Apache-2.0
//! An endpoint that goes away keeps the connections that it has, gets no new one, and is removed
//! when they have ended.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::{Endpoint, Service};
use kpr_testkit::oracle;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{
    Connection, Outcome, Patience, Protocol, ask, ask_again, datagram_socket,
};
use kpr_testkit::wait;

pub(super) fn lets_connections_end(binary: &Path) -> Result<()> {
    let mut service = Service::new("web", 1, &[Host::Web1]).exposed();
    let lab = Lab::new(binary, &[service.clone()], &[])?;
    let proxy = lab.start()?;
    let at = |family| At::ClusterIp.address(&service, family, 80);
    let targets: Vec<SocketAddr> = Family::ALL.map(at).to_vec();
    let shell = lab.topology.host(Host::Shell);
    let mut connections = Vec::new();
    for to in &targets {
        let connection = Connection::open(shell, *to, Protocol::Tcp, Patience::Long)?;
        connections.push(connection.map_err(|outcome| anyhow!("{to}: {outcome}"))?);
    }

    service.endpoints = vec![Endpoint::ready(Host::Web3)];
    lab.manifests.apply(&service)?;
    for (family, to) in Family::ALL.into_iter().zip(&targets) {
        let leaving = SocketAddr::new(Host::Web1.address(family), 8080);
        wait::until("the endpoint drains", || {
            let found = oracle::virtual_servers(lab.node())?;
            let server = found
                .get(&(Protocol::Tcp, *to))
                .context("there is no virtual server")?;
            ensure!(
                server.real_servers.get(&leaving) == Some(&0) && server.real_servers.len() == 2,
                "wanted {leaving} with weight 0 beside another, found {server:?}"
            );
            Ok(())
        })?;
        for _ in 0..4 {
            let outcome = ask(shell, None, *to, Protocol::Tcp, Patience::Long)?;
            ensure!(
                matches!(&outcome, Outcome::Answered(answer) if answer.by == Host::Web3.name()),
                "a new connection to {to} was {outcome}"
            );
        }
    }
    for connection in &mut connections {
        connection
            .echo()
            .with_context(|| format!("while it drains; the log:\n{}", proxy.log()))?;
    }
    // Nothing is left to do while it drains.
    lab.nothing_to_do_soon()?;

    for connection in connections {
        connection.abort()?;
    }
    lab.settles_at(&[service], "rr")
        .with_context(|| format!("after the connections ended; the log:\n{}", proxy.log()))
}

/// UDP flows stay with an endpoint that shuts down as long as it serves, and move when it does not.
pub(super) fn udp_stays_while_it_serves(binary: &Path) -> Result<()> {
    let hosts = [Host::Web1, Host::Web3];
    let mut service = Service::new("web", 1, &hosts).protocols(&[Protocol::Udp]);
    let lab = Lab::new(binary, &[service.clone()], &[])?;
    let proxy = lab.start()?;
    let shell = lab.topology.host(Host::Shell);
    let mut flows = Vec::new();
    // Round robin: two flows of each family meet both endpoints.
    for family in Family::ALL {
        let to = At::ClusterIp.address(&service, family, 80);
        for _ in hosts {
            let socket = datagram_socket(shell, to)?;
            let by = answered(&ask_again(&socket, Patience::Long)?)?;
            flows.push((to, socket, by));
        }
    }
    service.endpoints = vec![
        Endpoint::terminating(Host::Web1, true),
        Endpoint::ready(Host::Web3),
    ];
    lab.manifests.apply(&service)?;
    let weights = |wanted: &[u32]| {
        wait::until("the weights are as wanted", || {
            let found = oracle::virtual_servers(lab.node())?;
            for (to, ..) in &flows {
                let server = found
                    .get(&(Protocol::Udp, *to))
                    .context("no virtual server")?;
                let found: Vec<u32> = server.real_servers.values().copied().collect();
                ensure!(found == wanted, "{to}: {found:?}");
            }
            Ok(())
        })
        .with_context(|| format!("the log:\n{}", proxy.log()))
    };
    weights(&[0, 1])?;
    for (to, socket, by) in &flows {
        let now = answered(&ask_again(socket, Patience::Long)?)?;
        ensure!(now == *by, "{to}: the flow moved from {by} to {now}");
        let new = answered(&ask(shell, None, *to, Protocol::Udp, Patience::Long)?)?;
        ensure!(new == Host::Web3.name(), "{to}: a new flow went to {new}");
    }
    lab.nothing_to_do_soon()?;
    service.endpoints = vec![Endpoint::ready(Host::Web3)];
    lab.manifests.apply(&service)?;
    weights(&[1])?;
    for (to, socket, _) in &flows {
        let now = answered(&ask_again(socket, Patience::Long)?)?;
        ensure!(now == Host::Web3.name(), "{to}: the flow is at {now}");
    }
    Ok(())
}

fn answered(outcome: &Outcome) -> Result<String> {
    match outcome {
        Outcome::Answered(answer) => Ok(answer.by.clone()),
        outcome => Err(anyhow!("a datagram was {outcome}")),
    }
}
