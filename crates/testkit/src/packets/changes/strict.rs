// SPDX-License-Identifier: Apache-2.0
//! A node whose own rules let nothing in and forward nothing: iptables mode lets Services through,
//! IPVS mode where the node's rules admit what is for them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Lab, answered, at};
use crate::cases::{At, Dataplane};
use crate::manifests::Service;
use crate::topology::{Family, Host};
use crate::traffic::{HOST_PORT, Protocol, is_supported};
use crate::wait;

const HEALTH_CHECK: u16 = 32_001;

pub(super) fn services_are_let_through(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let local = Service::new("local", 2, &[Host::Web1])
        .exposed()
        .with("externalTrafficPolicy", json!("Local"))
        .with("healthCheckNodePort", json!(HEALTH_CHECK));
    let lab = Lab::new(binary, dataplane, &[web.clone(), local], &[])?;
    for family in Family::ALL {
        close(&lab, family)?;
        for protocol in Protocol::ALL.into_iter().filter(|p| is_supported(*p)) {
            let node = SocketAddr::new(Host::Node.address(family), HOST_PORT);
            lab.meets_silence(Host::Client, node, protocol)?;
            let pod = SocketAddr::new(Host::Web1.address(family), 8080);
            lab.meets_silence(Host::Remote, pod, protocol)?;
            for place in At::EXTERNAL {
                let to = at(place, &web, family);
                for _ in 0..6 {
                    let outcome = lab.ask(Host::Client, to, protocol)?;
                    answered(outcome).with_context(|| format!("{to} {protocol}"))?;
                }
            }
        }
        let health = SocketAddr::new(Host::Node.address(family), HEALTH_CHECK);
        let status = http_status(&lab, health).with_context(|| health.to_string())?;
        ensure!(status == "HTTP/1.1 200 OK", "{health} says {status}");
    }
    Ok(())
}

/// IPVS sees a packet after the rules of INPUT. Ours come first there, so they cannot admit it in
/// spite of the policy only: they would in spite of all of the node's own rules. The rules that can
/// are these.
pub(super) fn services_are_to_be_admitted(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let lab = Lab::new(binary, dataplane, std::slice::from_ref(&web), &[])?;
    for family in Family::ALL {
        close(&lab, family)?;
        let clients = At::EXTERNAL.map(|place| (Host::Client, at(place, &web, family)));
        let pod = (Host::Shell, at(At::ClusterIp, &web, family));
        let clients: Vec<(Host, SocketAddr)> = clients.into_iter().chain([pod]).collect();
        for (from, to) in &clients {
            lab.meets_silence(*from, *to, Protocol::Tcp)?;
        }
        for set in [
            "CLUSTER-IP",
            "EXTERNAL-IP",
            "LOAD-BALANCER",
            "NODE-PORT-HASH",
        ] {
            let prefix = if family == Family::V6 {
                "KUBE-6"
            } else {
                "KUBE"
            };
            lab.iptables(
                family,
                &format!("-A INPUT -m set --match-set {prefix}-{set} dst,dst -j ACCEPT"),
            )?;
        }
        for protocol in Protocol::ALL.into_iter().filter(|p| is_supported(*p)) {
            for (from, to) in &clients {
                for _ in 0..4 {
                    let outcome = lab.ask(*from, *to, protocol)?;
                    answered(outcome).with_context(|| format!("{from} to {to} {protocol}"))?;
                }
            }
            let node = SocketAddr::new(Host::Node.address(family), HOST_PORT);
            lab.meets_silence(Host::Client, node, protocol)?;
        }
    }
    Ok(())
}

/// The node's own rules.
fn close(lab: &Lab, family: Family) -> Result<()> {
    if family == Family::V6 {
        // Else nobody finds his neighbours.
        for chain in ["INPUT", "FORWARD"] {
            lab.iptables(family, &format!("-A {chain} -p ipv6-icmp -j ACCEPT"))?;
        }
    }
    lab.iptables(family, "-P INPUT DROP")?;
    lab.iptables(family, "-P FORWARD DROP")
}

fn http_status(lab: &Lab, to: SocketAddr) -> Result<String> {
    let limit = wait::LIMIT;
    let client = lab.host(Host::Client);
    let mut stream = client.enter(|| TcpStream::connect_timeout(&to, limit))??;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}
