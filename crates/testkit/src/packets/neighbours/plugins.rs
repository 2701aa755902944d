// SPDX-License-Identifier: Apache-2.0
//! CNI plugins v1.10.0 as a runtime calls them: `bridge` with `host-local` and masquerading,
//! `portmap`, `firewall`. One pod publishes port 80, which is that of the Services too.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::{Lab, Probe, Wanted, of_empty_service, of_service};
use crate::cases::{At, Dataplane};
use crate::cni::{HostPort, Plugins};
use crate::kernel;
use crate::manifests::Service;
use crate::proxy::series;
use crate::topology::{Family, Host};
use crate::traffic::{Outcome, Patience, Protocol, ask};
use crate::wait;

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
    services: [Service; 5],
}

/// The configuration of plugins, where it is not what they choose themselves.
struct Special {
    portmap: Value,
    bridge: Value,
}

impl Default for Special {
    fn default() -> Self {
        Self {
            portmap: json!({}),
            bridge: json!({}),
        }
    }
}

impl World {
    fn new(binary: &Path, dataplane: Dataplane) -> Result<Self> {
        Self::with(binary, dataplane, Special::default(), &[])
    }

    fn with(binary: &Path, dataplane: Dataplane, special: Special, flags: &[&str]) -> Result<Self> {
        let services = [
            Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed(),
            Service::new("itself", 2, &[Host::Web2]),
            Service::new("empty", 3, &[]).exposed(),
            // In IPVS mode pods and the node reach the endpoint elsewhere by a mark.
            Service::new("near", 4, &[Host::Web1, Host::Web3])
                .exposed()
                .with("externalTrafficPolicy", json!("Local")),
            Service::new("sticky", 5, &[Host::Web1, Host::Web3])
                .exposed()
                .with("sessionAffinity", json!("ClientIP")),
        ];
        let lab = Lab::new(binary, dataplane, &services, flags)?;
        Ok(Self {
            plugins: Plugins::new(&lab.programs, special.portmap, special.bridge)?,
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

    /// Without the proxy the port is published as before.
    fn publishes(&self) -> Result<()> {
        self.plugins_find_theirs()?;
        for family in Family::ALL {
            self.lab
                .becomes("the port is published", &published(family))?;
        }
        Ok(())
    }

    /// Services and the published port serve everybody.
    fn serves(&self, when: &str) -> Result<()> {
        let [web, itself, empty, near, _] = &self.services;
        for family in Family::ALL {
            let own = At::ClusterIp.address(itself, family, 80);
            let mut probes = of_service(web, family, &[Host::Web1, Host::Web3]);
            probes.push((Host::Web2, own, Wanted::Answer(&[Host::Web2], None)));
            probes.extend(published(family));
            probes.extend(of_empty_service(empty, family));
            probes.extend(of_near_service(near, family));
            self.lab
                .becomes(&format!("all is served {when}"), &probes)?;
        }
        Ok(())
    }

    /// Who serves each client of the sticky Service: one and the same, however often it asks.
    fn kept(&self) -> Result<BTreeMap<(Host, SocketAddr), String>> {
        let [.., sticky] = &self.services;
        let mut kept = BTreeMap::new();
        for family in Family::ALL {
            for (from, at) in [
                (Host::Shell, At::ClusterIp),
                (Host::Node, At::ClusterIp),
                (Host::Client, At::Vip),
            ] {
                let to = at.address(sticky, family, 80);
                for _ in 0..8 {
                    let host = self.lab.topology.host(from);
                    let outcome = ask(host, None, to, Protocol::Tcp, Patience::Long)?;
                    let Outcome::Answered(answer) = outcome else {
                        bail!("{from} to {to}: {outcome}")
                    };
                    let first = kept.entry((from, to)).or_insert_with(|| answer.by.clone());
                    ensure!(
                        *first == answer.by,
                        "{from} to {to}: {first}, then {}",
                        answer.by
                    );
                }
            }
        }
        Ok(kept)
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

/// What they meet with policy Local: the endpoint of this node from outside, with their own
/// address; pods and the node all of them.
fn of_near_service(service: &Service, family: Family) -> Vec<Probe<'static>> {
    let client = Some(Host::Client.address(family));
    let near = Wanted::Answer(&[Host::Web1], client);
    let all = Wanted::Answer(&[Host::Web1, Host::Web3], None);
    [
        (Host::Client, At::NodePort, near),
        (Host::Client, At::Vip, near),
        (Host::Shell, At::Vip, all),
        (Host::Node, At::Vip, all),
    ]
    .map(|(from, at, wanted)| (from, at.address(service, family, 80), wanted))
    .to_vec()
}

/// The pods were there before the proxy came; after its clean-up the node is as it was.
pub(super) fn first(binary: &Path, dataplane: Dataplane) -> Result<()> {
    before_the_proxy(World::new(binary, dataplane)?)
}

/// The same where the rules of IPVS mode are in nftables and those of the plugins are not.
pub(super) fn first_in_iptables(binary: &Path) -> Result<()> {
    let special = Special {
        portmap: json!({ "backend": "iptables" }),
        ..Special::default()
    };
    let flags = ["--ipvs-rules=nftables"];
    before_the_proxy(World::with(binary, Dataplane::Ipvs, special, &flags)?)
}

/// The same where those of the plugins are in nftables, at the hooks before those of iptables.
pub(super) fn first_in_nftables(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let special = Special {
        portmap: json!({ "backend": "nftables" }),
        bridge: json!({ "ipMasqBackend": "nftables" }),
    };
    let world = World::with(binary, dataplane, special, &[])?;
    let node = world.lab.node().try_clone()?;
    before_the_proxy(world)?;
    let tables = node.run("nft", &["list", "tables"])?;
    for table in [
        "ip cni_hostport",
        "ip6 cni_hostport",
        "inet cni_plugins_masquerade",
    ] {
        ensure!(tables.contains(table), "{table}: {tables}");
    }
    Ok(())
}

fn before_the_proxy(mut world: World) -> Result<()> {
    world.add_pods()?;
    let before = kernel::read(world.lab.node())?;
    let proxy = world.lab.start()?;
    world.serves("beside pods that were there")?;
    let kept = world.kept()?;
    proxy.terminate()?;
    let proxy = world.lab.start()?;
    world.serves("after a restart of the proxy")?;
    let now = world.kept()?;
    ensure!(now == kept, "{kept:?} before a restart, {now:?} after");
    world.lab.is_settled()?;
    proxy.terminate()?;
    world.lab.clean_up()?;
    let after = kernel::read(world.lab.node())?;
    let differences = kernel::differences(&before, &after);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    world.publishes()
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

fn rules_are_in(lab: &Lab, rules: &str, reason: &str) -> Result<()> {
    wait::until(&format!("the rules are in {rules}"), || {
        let name = format!("kube_proxy_rs_ipvs_rules{{reason=\"{reason}\",rules=\"{rules}\"}}");
        let found = series(lab.node(), "kube_proxy_rs_ipvs_rules")?;
        ensure!(found.contains_key(&name), "{found:?}");
        Ok(())
    })
}

/// portmap publishes by nftables, where no rule of iptables comes before: IPVS mode moves its rules
/// there when that begins, once, and Services win whichever of both tables is the older one.
pub(super) fn published_by_nftables(binary: &Path) -> Result<()> {
    let flags = ["--ipvs-rules=auto", "--ipvs-sync-period=5s"];
    let special = Special {
        portmap: json!({ "backend": "nftables" }),
        ..Special::default()
    };
    let mut world = World::with(binary, Dataplane::Ipvs, special, &flags)?;
    let proxy = world.lab.start()?;
    rules_are_in(&world.lab, "iptables", "iptables-works")?;
    world.add_pods()?;
    rules_are_in(&world.lab, "nftables", "published-ports")?;
    world.serves("beside ports that nftables publish")?;
    let (pod, ports) = PODS[2];
    world.plugins.delete(&world.lab.topology, pod, ports)?;
    for family in ["ip", "ip6"] {
        let table = ["delete", "table", family, "cni_hostport"];
        world.lab.node().run("nft", &table)?;
    }
    world.plugins.add(&world.lab.topology, pod, ports)?;
    world.serves("beside a table that was made later")?;
    world.lab.is_settled()?;
    let (_, log) = proxy.terminate()?;
    let restarts = log.matches("restarting in place").count();
    ensure!(restarts == 1, "{restarts} restarts in place: {log}");
    ensure!(!log.contains("cni_hostport"), "it warned: {log}");
    let proxy = world.lab.start()?;
    world.serves("after a restart of the proxy")?;
    proxy.terminate()?;
    world.lab.clean_up()?;
    let tables = world.lab.node().run("nft", &["list", "tables"])?;
    ensure!(!tables.contains("kube-proxy-rs"), "{tables}");
    world.publishes()
}
