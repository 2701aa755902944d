// SPDX-License-Identifier: Apache-2.0
//! A proxy that is killed and started again finds its work done and breaks nothing.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::{Endpoint, Service};
use kpr_testkit::oracle;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Connection, Patience, Protocol};

/// One open connection from a pod through the cluster IP and one from outside through the node port
/// and the VIP, of each family.
pub(super) fn open_connections(lab: &Lab, service: &Service) -> Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for family in Family::ALL {
        for (from, at) in [
            (Host::Shell, At::ClusterIp),
            (Host::Client, At::NodePort),
            (Host::Client, At::Vip),
        ] {
            let to: SocketAddr = at.address(service, family, 80);
            let connection =
                Connection::open(lab.topology.host(from), to, Protocol::Tcp, Patience::Long)?;
            connections.push(connection.map_err(|outcome| anyhow!("{from} to {to}: {outcome}"))?);
        }
    }
    Ok(connections)
}

pub(super) fn all_live(connections: &mut [Connection], when: &str) -> Result<()> {
    for connection in connections {
        let by = connection.answer.by.clone();
        connection
            .echo()
            .with_context(|| format!("the connection to {by}, {when}"))?;
    }
    Ok(())
}

pub(super) fn keeps_connections(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let lab = Lab::new(binary, std::slice::from_ref(&service), &[])?;
    let proxy = lab.start()?;
    let mut connections = open_connections(&lab, &service)?;
    all_live(&mut connections, "before")?;
    let kernel = || -> Result<_> {
        Ok((
            oracle::virtual_servers(lab.node())?,
            oracle::bound_addresses(lab.node())?,
            oracle::sets(lab.node())?,
            oracle::rules(lab.node(), Family::V4)?,
            oracle::rules(lab.node(), Family::V6)?,
        ))
    };
    let before = kernel()?;

    proxy.kill()?;
    all_live(&mut connections, "while no proxy runs")?;
    // What the next proxy finds is what it would plan.
    lab.nothing_to_do()?;

    let proxy = lab.start()?;
    all_live(&mut connections, "after the restart")?;
    ensure!(
        kernel()? == before,
        "the restart has changed the kernel; the log:\n{}",
        proxy.log()
    );

    let (status, log) = proxy.terminate()?;
    ensure!(status.success(), "asked to end, it says {status}:\n{log}");
    all_live(&mut connections, "after an orderly end")?;
    ensure!(kernel()? == before, "an orderly end has changed the kernel");
    Ok(())
}

/// What changed while no proxy ran is done at the start.
pub(super) fn catches_up(binary: &Path) -> Result<()> {
    let mut web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let gone = Service::new("gone", 2, &[Host::Web2]).exposed();
    let lab = Lab::new(binary, &[web.clone(), gone.clone()], &[])?;
    let proxy = lab.start()?;
    lab.settles_at(&[web.clone(), gone.clone()], "rr")?;
    proxy.kill()?;
    web.endpoints = vec![Endpoint::ready(Host::Web4)];
    let new = Service::new("new", 3, &[Host::Web2]);
    lab.manifests.apply(&web)?;
    lab.manifests.apply(&new)?;
    lab.manifests.delete(&gone)?;
    let planned = lab.plan()?;
    ensure!(planned.code == Some(2), "wanted a plan, got {planned:?}");
    let proxy = lab.start()?;
    lab.settles_at(&[web, new], "rr")
        .with_context(|| format!("the log:\n{}", proxy.log()))
}
