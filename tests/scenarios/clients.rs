// SPDX-License-Identifier: Apache-2.0
//! Clients on the node whose own port is a node port of a Service.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, ensure};

use super::Lab;
use super::neighbours::iptables;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::Service;
use kpr_testkit::oracle;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{
    HOST_PORT, Outcome, Patience, Protocol, WEB_PORTS, ask, ask_from, is_supported,
};
use kpr_testkit::wait;

/// IPVS would take what they are answered for new connections to the Service. They get it all the
/// same, whoever answers, and the Service is still served at the port.
pub(super) fn with_a_node_port(binary: &Path) -> Result<()> {
    let lab = Lab::new(binary, &[], &["--ipvs-drain-limit=1s"])?;
    let _proxy = lab.start()?;
    are_answered(&lab, node_port(&service(&[])), "without Services")?;
    for policy in ["Cluster", "Local"] {
        let service =
            service(&[Host::Web1, Host::Web3]).with("externalTrafficPolicy", policy.into());
        lab.manifests.apply(&service)?;
        for family in Family::ALL {
            let to = At::NodePort.address(&service, family, 80);
            wait::until(&format!("{to} answers"), || {
                let client = lab.topology.host(Host::Client);
                let met = ask(client, None, to, Protocol::Tcp, Patience::Long)?;
                ensure!(matches!(met, Outcome::Answered(_)), "{met}");
                Ok(())
            })?;
        }
        are_answered(&lab, node_port(&service), policy)?;
    }
    masqueraded_pods_are_answered(&lab, node_port(&service(&[])))?;
    lab.manifests.delete(&service(&[]))?;
    wait::until("nothing is left of it", || {
        let left = oracle::virtual_servers(lab.node())?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    lab.nothing_to_do_soon()
}

fn service(endpoints: &[Host]) -> Service {
    Service::new("web", 1, endpoints)
        .protocols(&[Protocol::Tcp, Protocol::Udp])
        .exposed()
}

fn node_port(service: &Service) -> u16 {
    At::NodePort.address(service, Family::V4, 80).port()
}

/// From the node's address and this port.
fn are_answered(lab: &Lab, port: u16, when: &str) -> Result<()> {
    // Outside, a pod of this node, one of another node, and the node itself.
    let servers = [
        (Host::Lan, WEB_PORTS[0]),
        (Host::Web2, WEB_PORTS[0]),
        (Host::Web4, WEB_PORTS[0]),
        (Host::Node, HOST_PORT),
    ];
    let protocols = Protocol::ALL.into_iter().filter(|it| is_supported(*it));
    for protocol in protocols {
        for (family, (host, at)) in Family::ALL
            .into_iter()
            .flat_map(|family| servers.map(|server| (family, server)))
        {
            let from = SocketAddr::new(Host::Node.address(family), port);
            let to = SocketAddr::new(host.address(family), at);
            let met = ask_from(lab.node(), Some(from), to, protocol, Patience::Long)?;
            ensure!(
                matches!(&met, Outcome::Answered(answer) if answer.by == host.name()),
                "{when}: from {from} to {to} over {protocol}: {met}"
            );
        }
    }
    Ok(())
}

/// From the node's address and this port, which the rules of a CNI give them.
fn masqueraded_pods_are_answered(lab: &Lab, port: u16) -> Result<()> {
    let (pod, server) = (Host::Shell, Host::Lan);
    for family in Family::ALL {
        let (from, to) = (
            pod.address(family),
            SocketAddr::new(server.address(family), WEB_PORTS[0]),
        );
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let rule = format!(
                "-t nat -I POSTROUTING -s {from} -p {protocol} -j MASQUERADE --to-ports {port}"
            );
            iptables(lab.node(), family, &rule)?;
            let met = ask(lab.topology.host(pod), None, to, protocol, Patience::Long)?;
            ensure!(
                matches!(&met, Outcome::Answered(answer)
                    if answer.source == Host::Node.address(family)),
                "{from} as the node's {port} to {to} over {protocol}: {met}"
            );
        }
    }
    Ok(())
}
