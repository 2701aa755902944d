// SPDX-License-Identifier: Apache-2.0
//! CNI plugins v1.10.0 as a runtime calls them: `bridge` with `host-local` and masquerading,
//! `portmap`, `firewall`. One pod publishes port 80, which is that of the Services too.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Lab, Probe, Wanted, of_empty_service, of_service};
use crate::cases::{At, Dataplane};
use crate::cni::{HostPort, Plugins};
use crate::kernel;
use crate::manifests::Service;
use crate::topology::{Family, Host};

const PUBLISHED: [HostPort; 1] = [HostPort {
    port: 80,
    target: 8080,
}];

/// The pods of the node, and what they publish.
const PODS: [(Host, &[HostPort]); 3] = [
    (Host::Shell, &[]),
    (Host::Web1, &[]),
    (Host::Web2, &PUBLISHED),
];

struct World {
    lab: Lab,
    plugins: Plugins,
    services: [Service; 3],
}

impl World {
    fn new(binary: &Path, dataplane: Dataplane) -> Result<Self> {
        let services = [
            Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed(),
            Service::new("itself", 2, &[Host::Web2]),
            Service::new("empty", 3, &[]).exposed(),
        ];
        let lab = Lab::new(binary, dataplane, &services, &[])?;
        Ok(Self {
            plugins: Plugins::new(&lab.programs, json!({}))?,
            lab,
            services,
        })
    }

    fn add_pods(&mut self) -> Result<()> {
        for (pod, ports) in PODS {
            self.plugins.add(&self.lab.topology, pod, ports)?;
        }
        Ok(())
    }

    /// The plugins find all of theirs.
    fn plugins_find_theirs(&self) -> Result<()> {
        for (pod, ports) in PODS {
            self.plugins.check(&self.lab.topology, pod, ports)?;
        }
        Ok(())
    }

    /// Services and the published port serve everybody.
    fn serves(&self, when: &str) -> Result<()> {
        let [web, itself, empty] = &self.services;
        for family in Family::ALL {
            let own = At::ClusterIp.address(itself, family, 80);
            let mut probes = of_service(web, family, &[Host::Web1, Host::Web3]);
            probes.push((Host::Web2, own, Wanted::Answer(&[Host::Web2], None)));
            probes.extend(published(family));
            probes.extend(of_empty_service(empty, family));
            self.lab
                .becomes(&format!("all is served {when}"), &probes)?;
        }
        Ok(())
    }
}

/// The port of the node that leads to a pod: with the client's address from outside, and for the
/// pod itself.
fn published(family: Family) -> Vec<Probe<'static>> {
    let port = SocketAddr::new(Host::Node.address(family), 80);
    let client = Some(Host::Client.address(family));
    let mut probes = vec![(Host::Client, port, Wanted::Answer(&[Host::Web2], client))];
    for from in [Host::Shell, Host::Node, Host::Web2] {
        probes.push((from, port, Wanted::Answer(&[Host::Web2], None)));
    }
    if family == Family::V4 {
        let port = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 80);
        probes.push((Host::Node, port, Wanted::Answer(&[Host::Web2], None)));
    }
    probes
}

/// The pods were there before the proxy came; after its clean-up the node is as it was.
pub(super) fn first(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let mut world = World::new(binary, dataplane)?;
    world.add_pods()?;
    let before = kernel::read(world.lab.node())?;
    let proxy = world.lab.start()?;
    world.serves("beside pods that were there")?;
    proxy.terminate()?;
    let proxy = world.lab.start()?;
    world.serves("after a restart of the proxy")?;
    world.lab.is_settled()?;
    proxy.terminate()?;
    world.lab.clean_up()?;
    let after = kernel::read(world.lab.node())?;
    let differences = kernel::differences(&before, &after);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    world.plugins_find_theirs()?;
    for family in Family::ALL {
        world
            .lab
            .becomes("the port is published", &published(family))?;
    }
    Ok(())
}

/// The proxy was there before the pods came, one is made anew, and kubelet is started again.
pub(super) fn later(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let mut world = World::new(binary, dataplane)?;
    let proxy = world.lab.start()?;
    world.add_pods()?;
    world.serves("for pods that came later")?;
    let (pod, ports) = PODS[2];
    world.plugins.delete(&world.lab.topology, pod, ports)?;
    world.plugins.add(&world.lab.topology, pod, ports)?;
    world.lab.script("kubelet", &[])?;
    world.serves("with a new pod")?;
    world.lab.is_settled()?;
    proxy.terminate()?;
    let _proxy = world.lab.start()?;
    world.serves("after a restart of the proxy")?;
    world.plugins_find_theirs()
}
