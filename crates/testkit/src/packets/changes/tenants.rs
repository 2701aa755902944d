// SPDX-License-Identifier: Apache-2.0
//! A tenant claims what is somebody's: a load balancer's address, a node port, a cluster IP,
//! another node, a neighbour and a port of the node itself. Everybody else is reached as before.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Lab;
use crate::cases::Dataplane;
use crate::manifests::{Service, list};
use crate::oracle;
use crate::proxy::series;
use crate::topology::{Family, Host, cluster_ip, external_ip, load_balancer_vip, node_port};
use crate::traffic::{HOST_PORT, Outcome, Protocol, WEB_PORTS};

/// The number of the victim, and of the tenant's two Services.
const VICTIM: u8 = 1;
const TENANT: u8 = 9;
const HOOK: u8 = 8;

/// What the tenant lists, in each family: its own address is the last one.
fn claimed(family: Family) -> Vec<std::net::IpAddr> {
    vec![
        load_balancer_vip(family, VICTIM),
        cluster_ip(family, VICTIM),
        Host::Node.address(family),
        Host::Remote.address(family),
        Host::Lan.address(family),
        Host::Web3.address(family),
        external_ip(family, TENANT),
    ]
}

/// Older than the victim, on the victim's ports, the node's and another node's.
fn service() -> Value {
    let ports = [80, node_port(VICTIM), HOST_PORT, WEB_PORTS[0]];
    let ports: Vec<Value> = ports
        .into_iter()
        .map(|port| json!({ "name": format!("p{port}"), "port": port, "targetPort": 8080 }))
        .collect();
    let external: Vec<_> = Family::ALL.into_iter().flat_map(claimed).collect();
    let own = Family::ALL.map(|family| cluster_ip(family, TENANT));
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "namespace": "tenant", "name": "evil", "creationTimestamp": "1999-01-01T00:00:00Z",
        },
        "spec": {
            "clusterIP": own[0], "clusterIPs": own, "ipFamilies": ["IPv4", "IPv6"],
            "ports": ports, "externalIPs": external,
        },
    })
}

/// A Service whose endpoints are what the cluster and the load balancer gave to the victim.
fn hook() -> Value {
    let own = Family::ALL.map(|family| cluster_ip(family, HOOK));
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "tenant", "name": "hook" },
        "spec": {
            "clusterIP": own[0], "clusterIPs": own, "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{ "name": "p80", "port": 80 }],
        },
    })
}

fn slice(service: &str, family: Family, addresses: &[std::net::IpAddr]) -> Value {
    let ports = [80, node_port(VICTIM), HOST_PORT, WEB_PORTS[0]];
    let ports: Vec<Value> = ports
        .into_iter()
        .map(|port| json!({ "name": format!("p{port}"), "port": 8080 }))
        .collect();
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({ "addresses": [address] }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "tenant", "name": format!("{service}-{family}"),
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": match family { Family::V4 => "IPv4", Family::V6 => "IPv6" },
        "ports": ports, "endpoints": endpoints,
    })
}

/// Another node, as its object says.
fn other_node() -> Value {
    let addresses = Family::ALL
        .map(|family| json!({ "type": "InternalIP", "address": Host::Remote.address(family) }));
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": Host::Remote.name() },
        "status": { "addresses": addresses },
    })
}

pub(super) fn hurt_nobody(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let victim = Service::new("web", VICTIM, &[Host::Web1, Host::Web3]).exposed();
    let lab = Lab::new(binary, dataplane, &[victim], &[])?;
    lab.manifests
        .write("node-2.json", &other_node().to_string())?;
    let mut items = vec![service(), hook()];
    for family in Family::ALL {
        let given = [
            load_balancer_vip(family, VICTIM),
            cluster_ip(family, VICTIM),
        ];
        items.push(slice("evil", family, &[Host::Web2.address(family)]));
        items.push(slice("hook", family, &given));
    }
    lab.manifests
        .write("tenant.json", &list(&items).to_string())?;
    // What is its own is served; then all the rest has been planned too.
    for family in Family::ALL {
        let own = SocketAddr::new(external_ip(family, TENANT), 80);
        crate::wait::until("the tenant is served", || {
            let outcome = lab.ask(Host::Client, own, Protocol::Tcp)?;
            ensure!(by(&outcome) == Some(Host::Web2.name()), "{own}: {outcome}");
            Ok(())
        })?;
    }
    for family in Family::ALL {
        let vip = SocketAddr::new(load_balancer_vip(family, VICTIM), 80);
        let internal = SocketAddr::new(cluster_ip(family, VICTIM), 80);
        let at_node = SocketAddr::new(Host::Node.address(family), node_port(VICTIM));
        for (from, to) in [
            (Host::Client, vip),
            (Host::Shell, vip),
            (Host::Node, vip),
            (Host::Shell, internal),
            (Host::Node, internal),
            (Host::Client, at_node),
            (Host::Shell, at_node),
        ] {
            let outcome = lab.ask(from, to, Protocol::Tcp)?;
            let is_victims = [Host::Web1, Host::Web3]
                .map(Host::name)
                .contains(&by(&outcome).unwrap_or_default());
            ensure!(is_victims, "{from} to {to}: {outcome}\n{}", lab.proxy.log());
        }
        // Whoever has an address is reached there, at the ports that the tenant claims as well.
        for (from, to, port, answers) in [
            (Host::Client, Host::Node, HOST_PORT, Host::Node),
            (Host::Shell, Host::Node, HOST_PORT, Host::Node),
            (Host::Node, Host::Lan, WEB_PORTS[0], Host::Lan),
            (Host::Shell, Host::Lan, WEB_PORTS[0], Host::Lan),
            (Host::Node, Host::Web3, WEB_PORTS[0], Host::Web3),
        ] {
            let to = SocketAddr::new(to.address(family), port);
            let outcome = lab.ask(from, to, Protocol::Tcp)?;
            ensure!(
                by(&outcome) == Some(answers.name()),
                "{from} to {to}: {outcome}"
            );
        }
        // Nothing listens on the other node: it is its refusal that the node and pods meet, at the
        // tenant's port and at others.
        for (from, port) in [(Host::Node, 80), (Host::Shell, 80), (Host::Node, 10_250)] {
            let to = SocketAddr::new(Host::Remote.address(family), port);
            let outcome = lab.ask(from, to, Protocol::Tcp)?;
            ensure!(outcome == Outcome::Refused, "{from} to {to}: {outcome}");
            let route = lab
                .host(Host::Node)
                .run("ip", &["route", "get", &to.ip().to_string()])?;
            ensure!(!route.contains("local"), "{route}");
        }
    }
    if dataplane == Dataplane::Ipvs {
        let bound = oracle::bound_addresses(lab.host(Host::Node))?;
        for family in Family::ALL {
            for address in [
                load_balancer_vip(family, VICTIM),
                cluster_ip(family, VICTIM),
            ] {
                ensure!(
                    bound.contains(&address),
                    "{address} is not bound: {bound:?}"
                );
            }
            for host in [Host::Remote, Host::Lan, Host::Web3] {
                ensure!(
                    !bound.contains(&host.address(family)),
                    "{host} is bound: {bound:?}"
                );
            }
        }
    }
    // Of one object ten problems are logged at once.
    lab.proxy
        .wait_for_log(&["tenant/evil", "it is another node's address"])?;
    let unbound = series(lab.host(Host::Node), "kube_proxy_rs_unbound_addresses")?;
    let is_counted = unbound.len() == 2 && unbound.values().all(|count| *count > 2.5);
    ensure!(is_counted, "{unbound:?}");
    Ok(())
}

fn by(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Answered(answer) => Some(&answer.by),
        _ => None,
    }
}
