// SPDX-License-Identifier: Apache-2.0
//! An endpoint that goes away keeps the connections that it has, gets no new one, and is removed when
//! they have ended.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::Lab;
use crate::cases::At;
use crate::common::manifests::{Endpoint, Service};
use crate::common::oracle;
use crate::common::topology::{Family, Host};
use crate::common::traffic::{Connection, Outcome, Patience, Protocol, ask};
use crate::common::wait;

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
    lab.nothing_to_do()?;

    for connection in connections {
        connection.abort()?;
    }
    lab.settles_at(&[service], "rr")
        .with_context(|| format!("after the connections ended; the log:\n{}", proxy.log()))
}
