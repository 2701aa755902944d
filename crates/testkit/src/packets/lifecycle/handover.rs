// SPDX-License-Identifier: Apache-2.0
//! A rolling update of the proxy itself under load, in both orders: the new one is there before the
//! old one goes, or comes when it has gone. Nobody notices, and no change is lost.

use std::path::Path;

use anyhow::{Result, ensure};

use super::switch::{are_flawless, go_on, loads};
use crate::cases::At;
use crate::manifests::{ManifestDirectory, Service};
use crate::namespace::Namespace;
use crate::proxy::{Invocation, Proxy};
use crate::topology::{Family, Host, Topology};
use crate::traffic::{Outcome, Patience, Protocol, Servers, ask};
use crate::wait;

/// `rate`: new connections per second of each client.
pub(super) fn loses_nothing(binary: &Path, mode: &str, flags: &[&str], rate: u32) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let topology = Topology::new()?;
    let _servers = Servers::new(&topology)?;
    let manifests = ManifestDirectory::new(std::slice::from_ref(&service))?;
    let (node, shell) = (topology.host(Host::Node), topology.host(Host::Shell));
    let invocation = Invocation::new(binary, &manifests, mode)
        .in_cluster()
        .with(flags);
    let change = |name: &str, n: u8| -> Result<Service> {
        let new = Service::new(name, n, &[Host::Web2]);
        manifests.apply(&new)?;
        Ok(new)
    };

    let first = Proxy::start(node, &invocation)?;
    let loads = loads(&topology, &service, rate)?;
    go_on(&loads)?;
    let mut second = Proxy::spawn(node, invocation.command())?;
    let said = second.wait_for_log(&["another kube-proxy-rs serves this network namespace"])?;
    let whom = format!("pid={} ", first.pid());
    ensure!(said.contains(&whom), "{whom:?} is not in {said}");
    is_served(shell, &change("beside", 2)?)?;
    go_on(&loads)?;
    ends(first)?;
    second.wait_for_log(&["the other proxy has ended"])?;
    second.wait_until_synced(node)?;
    is_served(shell, &change("after", 3)?)?;
    go_on(&loads)?;

    ends(second)?;
    go_on(&loads)?;
    let meanwhile = change("meanwhile", 4)?;
    let third = Proxy::start(node, &invocation)?;
    is_served(shell, &meanwhile)?;
    go_on(&loads)?;
    let what = format!(
        "rolling update of the proxy, {mode} mode {}",
        flags.join(" ")
    );
    are_flawless(loads, &what)?;
    let log = third.log();
    ensure!(!log.contains("another kube-proxy-rs"), "{log}");
    Ok(())
}

/// As a kubelet ends it.
fn ends(proxy: Proxy) -> Result<()> {
    let (status, log) = proxy.terminate()?;
    ensure!(status.success(), "it ended with {status}:\n{log}");
    // Two at once would undo what the other one wrote.
    ensure!(!log.contains("changed by another program"), "{log}");
    Ok(())
}

fn is_served(from: &Namespace, service: &Service) -> Result<()> {
    for family in Family::ALL {
        let to = At::ClusterIp.address(service, family, 80);
        wait::until(&format!("{to} answers"), || {
            let met = ask(from, None, to, Protocol::Tcp, Patience::Long)?;
            ensure!(matches!(met, Outcome::Answered(_)), "{met}");
            Ok(())
        })?;
    }
    Ok(())
}
