// SPDX-License-Identifier: Apache-2.0
//! What kube-router v2.11.1 writes: its firewall with a policy in force, and its service proxy,
//! which somebody forgot to stop, and the way from there to ours.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Lab, Wanted, of_empty_service, of_service};
use crate::cases::{At, Dataplane};
use crate::manifests::Service;
use crate::oracle;
use crate::proxy::series;
use crate::topology::{Family, Host, cluster_ip};
use crate::wait;

/// A sync of its firewall: one pod may be reached by one client.
fn sync(lab: &Lab) -> Result<()> {
    for family in Family::ALL {
        let (program, services) = match family {
            Family::V4 => ("iptables", "10.96.0.0/16"),
            Family::V6 => ("ip6tables", "fd00:96::/64"),
        };
        let address = |host: Host| host.address(family).to_string();
        let pods = [Host::Web1, Host::Shell, Host::Web2].map(address);
        let [closed, client, other] = &pods;
        lab.script(
            "kube-router-firewall",
            &[program, services, closed, client, client, other],
        )?;
    }
    Ok(())
}

/// The policy holds for Services, whose refusals hold beside what it accepts.
pub(super) fn policies(binary: &Path, dataplane: Dataplane) -> Result<()> {
    policies_beside(binary, dataplane, true)
}

/// The same where the proxy was first.
pub(super) fn policies_later(binary: &Path, dataplane: Dataplane) -> Result<()> {
    policies_beside(binary, dataplane, false)
}

fn policies_beside(binary: &Path, dataplane: Dataplane, is_first: bool) -> Result<()> {
    let closed = Service::new("closed", 1, &[Host::Web1]).exposed();
    let open = Service::new("open", 2, &[Host::Web2, Host::Web3]).exposed();
    let empty = Service::new("empty", 3, &[]).exposed();
    let services = [closed.clone(), open.clone(), empty.clone()];
    let lab = Lab::new(binary, dataplane, &services, &[])?;
    let holds = |when: &str| -> Result<()> {
        for family in Family::ALL {
            let mut probes = of_service(&open, family, &[Host::Web2, Host::Web3]);
            for (from, at) in [
                (Host::Shell, At::ClusterIp),
                // The node itself may reach its pods.
                (Host::Node, At::ClusterIp),
                (Host::Shell, At::Vip),
            ] {
                let to = at.address(&closed, family, 80);
                probes.push((from, to, Wanted::Answer(&[Host::Web1], None)));
            }
            let to = At::ClusterIp.address(&closed, family, 80);
            probes.push((Host::Web2, to, Wanted::Refusal));
            probes.extend(of_empty_service(&empty, family));
            lab.becomes(&format!("{family} is so {when}"), &probes)?;
        }
        Ok(())
    };
    sync(&lab)?;
    let before = lab.kernel()?;
    if !is_first {
        for program in ["iptables", "ip6tables"] {
            lab.script("kube-router-firewall", &[program, "cleanup-config"])?;
        }
    }
    let proxy = lab.start()?;
    if !is_first {
        sync(&lab)?;
    }
    holds("with both")?;
    sync(&lab)?;
    holds("after a sync of the firewall")?;
    proxy.terminate()?;
    let proxy = lab.start()?;
    holds("after a restart of the proxy")?;
    lab.is_settled()?;
    proxy.terminate()?;
    lab.clean_up()?;
    // Its chains are first again.
    sync(&lab)?;
    lab.is_as(&before)
}

/// Its service proxy beside ours: what it takes away is back at our next look, routes at once.
pub(super) fn service_proxy(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let services = std::slice::from_ref(&web);
    let lab = Lab::new(binary, dataplane, services, &["--ipvs-sync-period=5s"])?;
    let node = Host::Node.address(Family::V4).to_string();
    let service = cluster_ip(Family::V4, 1).to_string();
    lab.script("kube-router-service-proxy", &["start", &node, &service])?;
    let before = lab.kernel()?;
    lab.script("kube-router-service-proxy", &["end"])?;
    let proxy = lab.start()?;
    let serves = |when: &str| -> Result<()> {
        let probes = of_service(&web, Family::V4, &[Host::Web1, Host::Web3]);
        lab.becomes(&format!("all is served {when}"), &probes)
    };
    let wanted = oracle::bound_addresses(lab.node())?;
    let unknown = [At::Vip, At::ExternalIp].map(|at| at.address(&web, Family::V4, 80).to_string());
    for round in ["first", "second"] {
        lab.script("kube-router-service-proxy", &["start", &node, &service])?;
        let [vip, external] = &unknown;
        lab.script("kube-router-service-proxy", &["sync", vip, external])?;
        serves(&format!("after its {round} sync"))?;
        lab.script("kube-router-service-proxy", &["end"])?;
        serves(&format!("after its {round} end"))?;
    }
    wait::until("kube-ipvs0 has the addresses that it had", || {
        let found = oracle::bound_addresses(lab.node())?;
        ensure!(found == wanted, "{found:?}");
        Ok(())
    })?;
    lab.is_settled()?;
    lab.script("kube-router-service-proxy", &["start", &node, &service])?;
    lab.is_left_by(proxy, &before)?;
    let route = ["route", "show", "table", "local", &service];
    let routes = lab.node().run("ip", &route)?;
    ensure!(routes.contains(" dev kube-dummy-if "), "{routes}");
    Ok(())
}

/// The steps of docs/migrate.md: it ends, `--cleanup-config`, ours starts.
pub(super) fn from_service_proxy(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let services = std::slice::from_ref(&web);
    let lab = Lab::new(binary, dataplane, services, &[])?;
    let node = Host::Node.address(Family::V4).to_string();
    let at = At::ClusterIp.address(&web, Family::V4, 80);
    let (service, port) = (at.ip().to_string(), at.port().to_string());
    let real_server = SocketAddr::new(Host::Web3.address(Family::V4), 8080).to_string();
    let before = lab.kernel()?;
    // It is killed the second time, and its link stays.
    for is_killed in [false, true] {
        lab.script("kube-router-service-proxy", &["start", &node, &service])?;
        let serve = ["serve", &service, &port, &real_server];
        lab.script("kube-router-service-proxy", &serve)?;
        let probe = (Host::Shell, at, Wanted::Answer(&[Host::Web3], None));
        lab.becomes("kube-router serves", &[probe])?;
        if !is_killed {
            lab.script("kube-router-service-proxy", &["end"])?;
        }
        lab.script("kube-router-service-proxy", &["cleanup-config"])?;
        lab.is_as(&before)?;
    }
    let proxy = lab.start()?;
    for family in Family::ALL {
        let probes = of_service(&web, family, &[Host::Web1, Host::Web3]);
        lab.becomes("ours serves", &probes)?;
    }
    let wanted = oracle::wanted_virtual_servers(services, "rr", &oracle::node_addresses());
    let found = oracle::virtual_servers(lab.node())?;
    let differences = oracle::differences(&wanted, &found);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    lab.is_settled()?;
    lab.is_left_by(proxy, &before)
}

/// `--cleanup-config` when ours serves already: sets that our rules use survive, and what was
/// flushed is back at our next look.
pub(super) fn cleanup_config(binary: &Path, dataplane: Dataplane) -> Result<()> {
    // Of all kinds of sets some have entries.
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let local = Service::new("local", 2, &[Host::Web1, Host::Web3])
        .exposed()
        .with("externalTrafficPolicy", json!("Local"))
        .with("loadBalancerSourceRanges", json!(["172.20.0.0/16"]));
    let services = [web.clone(), local.clone()];
    let lab = Lab::new(binary, dataplane, &services, &["--ipvs-sync-period=5s"])?;
    let node = lab.node();
    let proxy = lab.start()?;
    lab.is_settled()?;
    let sets = oracle::sets(node)?;
    let servers = oracle::virtual_servers(node)?;
    let of_nobody = "kube-router-pod-subnets";
    node.run("ipset", &["create", of_nobody, "hash:net", "timeout", "0"])?;
    lab.script("kube-router-service-proxy", &["cleanup-config"])?;
    let names = node.run("ipset", &["-name", "list"])?;
    ensure!(!names.lines().any(|name| name == of_nobody), "{names}");
    let left = oracle::sets(node)?;
    ensure!(left == sets, "{left:#?}");
    wait::until("the virtual servers are back", || {
        let found = oracle::virtual_servers(node)?;
        let differences = oracle::differences(&servers, &found);
        ensure!(
            differences.is_empty(),
            "{}\n{}",
            differences.join("\n"),
            proxy.log()
        );
        Ok(())
    })?;
    for family in Family::ALL {
        lab.becomes(
            "it serves",
            &of_service(&web, family, &[Host::Web1, Host::Web3]),
        )?;
    }
    // They were not made anew.
    let drift = series(node, "kube_proxy_rs_drift_total")?;
    let of_sets = drift.keys().find(|name| name.contains("set\""));
    ensure!(of_sets.is_none(), "{drift:?}");
    lab.is_settled()
}
