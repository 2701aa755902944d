// SPDX-License-Identifier: Apache-2.0
//! What kube-router v2.11.1 writes: its firewall with a policy in force, and its service proxy,
//! which somebody forgot to stop.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Lab, Wanted, of_empty_service, of_service};
use crate::cases::{At, Dataplane};
use crate::kernel;
use crate::manifests::Service;
use crate::oracle;
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
    let before = kernel::read(lab.node())?;
    let proxy = lab.start()?;
    holds("where the firewall was first")?;
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
    let differences = kernel::differences(&before, &kernel::read(lab.node())?);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// Its service proxy beside ours: what it takes away is back at our next look, routes at once.
pub(super) fn service_proxy(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let services = std::slice::from_ref(&web);
    let lab = Lab::new(binary, dataplane, services, &["--ipvs-sync-period=5s"])?;
    let _proxy = lab.start()?;
    let serves = |when: &str| -> Result<()> {
        let probes = of_service(&web, Family::V4, &[Host::Web1, Host::Web3]);
        lab.becomes(&format!("all is served {when}"), &probes)
    };
    let wanted = oracle::bound_addresses(lab.node())?;
    let node = Host::Node.address(Family::V4).to_string();
    let service = cluster_ip(Family::V4, 1).to_string();
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
    lab.is_settled()
}
