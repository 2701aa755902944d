// SPDX-License-Identifier: Apache-2.0
//! A rolling update in the small cluster, where clients, pods and the proxy share one kernel.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};

use crate::manifests::ManifestDirectory;
use crate::namespace::Namespace;
use crate::proxy::{Invocation, Proxy};
use crate::rollout::{Client, Ground, Place, Rollout, service};
use crate::topology::{Family, Host, Topology, cluster_ip, load_balancer_vip};

/// New connections per second, from a pod and from outside together: as many are begun if the
/// machine can. In the guest clients, pods and proxy share one slow processor, which made 155 per
/// second when that was measured last; `tests/cluster_takeover` has the rate.
const PER_SECOND: u32 = 220;

/// Pods are in those of the small cluster.
struct Lab<'a> {
    topology: &'a Topology,
    manifests: &'a ManifestDirectory,
}

impl Ground for Lab<'_> {
    fn make_room(&self, place: Place) -> Result<&Namespace> {
        let namespace = self.topology.host(place.host());
        let add = |ip: IpAddr| {
            let bits = if ip.is_ipv4() { 24 } else { 64 };
            format!("address add {ip}/{bits} dev eth0 nodad\n")
        };
        let addresses = Family::ALL.map(|family| add(place.address(family)));
        namespace.ip(&addresses.concat())?;
        Ok(namespace)
    }

    fn publish(&self, manifest: &str) -> Result<()> {
        self.manifests.write("web.json", manifest)
    }
}

/// Replaces all pods of a Service under load. `mode` and `flags` are those of the proxy.
pub fn loses_nothing(binary: &Path, mode: &str, flags: &[&str]) -> Result<()> {
    let topology = Topology::new()?;
    let manifests = ManifestDirectory::new(&[])?;
    let lab = Lab {
        topology: &topology,
        manifests: &manifests,
    };
    let service = service("web", 1);
    let targets = |address: fn(Family, u8) -> IpAddr| {
        Family::ALL
            .map(|family| SocketAddr::new(address(family, service.n), 80))
            .to_vec()
    };
    let clients = [
        Client {
            from: topology.host(Host::Shell),
            targets: targets(cluster_ip),
        },
        Client {
            from: topology.host(Host::Client),
            targets: targets(load_balancer_vip),
        },
    ];
    let mut rollout = Rollout::new(lab, service.clone())?;
    let invocation = Invocation::new(binary, &manifests, mode)
        .in_cluster()
        .with(flags);
    let proxy = Proxy::start(topology.host(Host::Node), &invocation)?;
    let report = rollout.replace_all(&clients, PER_SECOND).with_context(|| {
        let log = proxy.log();
        let end: Vec<&str> = log.lines().rev().take(20).collect();
        end.join("\n")
    })?;
    eprintln!(
        "rolling update in {mode} mode: {:.0} per second, {report:?}",
        report.per_second()
    );
    Ok(())
}
