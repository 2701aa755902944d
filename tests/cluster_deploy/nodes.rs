// SPDX-License-Identifier: Apache-2.0
//! The pods of every way to deploy, on a node of network namespaces: with the image's files, their
//! own account's token and the rights that the manifests give them, their probes succeed and
//! packets reach endpoints.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::Test;
use crate::helm::{Helm, Release};
use crate::kubeadm::Kubeadm;
use crate::manifests::Overlay;
use crate::pod::{Pod, Tree};
use kpr_testkit::manifests::{Service, list};
use kpr_testkit::namespace::{Namespace, Uplink};
use kpr_testkit::proxy::{self, Proxy};
use kpr_testkit::testbed::{Objects, Testbed};
use kpr_testkit::topology::{Family, Host, Topology, cluster_ip, node_port};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, Servers, ask};
use kpr_testkit::wait;

pub(crate) const TESTS: &[Test] = &[
    (
        "nodes::image_has_what_it_needs_and_no_shell",
        image_is_small,
    ),
    ("nodes::helm_kustomize_and_kubeadm_serve", every_way_serves),
];

pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_kube-proxy-rs");

fn image_is_small(_: &Testbed) -> Result<()> {
    let tree = Tree::assemble(Path::new(OURS))?;
    let root = tree.path();
    for name in ["sh", "bash", "dash", "busybox"] {
        for folder in ["bin", "usr/bin", "sbin", "usr/local/bin"] {
            let path = root.join(folder).join(name);
            ensure!(!path.exists(), "there is {}", path.display());
        }
    }
    // Under both names, without anything of this machine.
    for (program, expected) in [
        ("/usr/local/bin/kube-proxy-rs", "kube-proxy-rs"),
        ("/usr/local/bin/kube-proxy", "kube-proxy-rs"),
        ("/usr/sbin/iptables-nft", "nf_tables"),
        ("/usr/sbin/ip6tables-legacy-save", "legacy"),
        ("/sbin/modprobe", "kmod"),
    ] {
        let here = Namespace::current()?;
        let root = root.to_str().context("a path")?;
        let said = here.run("chroot", &[root, program, "--version"])?;
        ensure!(said.contains(expected), "{program}: {said}");
    }
    Ok(())
}

/// What is asked.
pub(crate) fn web() -> Service {
    Service::new("deploy-web", 20, &[Host::Web1, Host::Web3])
        .protocols(&[Protocol::Tcp, Protocol::Udp])
        .exposed()
}

/// Makes a Service with its endpoints, and the node.
pub(crate) fn register<'a>(testbed: &'a Testbed, service: &Service) -> Objects<'a> {
    let mut manifests = service.slice_manifests();
    manifests.push(service.service_manifest());
    manifests.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}}));
    Objects::new(testbed, &list(&manifests).to_string())
}

/// A node with a Service, and no proxy yet.
struct World<'a> {
    topology: Topology,
    web: Service,
    // In the order in which they go.
    _servers: Servers,
    _uplink: Uplink,
    _objects: Objects<'a>,
}

impl<'a> World<'a> {
    fn new(testbed: &'a Testbed) -> Result<Self> {
        let topology = Topology::new()?;
        let servers = Servers::new(&topology)?;
        let node = topology.host(Host::Node);
        let uplink = Uplink::new(node, "api0", testbed.env("BRIDGE"))?;
        let net = testbed.env("NET4");
        node.ip(&format!("address add {net}.253/24 dev api0\n"))?;
        let web = web();
        let objects = register(testbed, &web);
        testbed.set_addresses(
            "node",
            &Family::ALL.map(|family| Host::Node.address(family)),
        );
        Ok(Self {
            topology,
            web,
            _servers: servers,
            _uplink: uplink,
            _objects: objects,
        })
    }

    fn node(&self) -> &Namespace {
        self.topology.host(Host::Node)
    }

    /// Runs a pod until its probes succeed, then sends packets.
    fn serves(&self, pod: &Pod) -> Result<()> {
        for mut init in pod.init()? {
            init.stdin(Stdio::null());
            let output = self.node().enter(|| init.output())??;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.success(),
                "the init container: {}\n{errors}",
                output.status
            );
        }
        let mut proxy = Proxy::spawn(self.node(), pod.main()?)?;
        let probed = ["readinessProbe", "livenessProbe"]
            .into_iter()
            .try_for_each(|kind| {
                let (port, path) = pod.probe(kind)?;
                wait::until(&format!("{kind} succeeds"), || {
                    ensure!(proxy.is_running()?, "it has ended");
                    let answer = proxy::get(self.node(), port, &path)?;
                    ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
                    Ok(())
                })
            });
        probed.with_context(|| format!("the log:\n{}", proxy.log()))?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid()))?;
        for (field, expected) in pod.rights()? {
            let line = format!("{field}:\t{expected}\n");
            ensure!(status.contains(&line), "no {line:?} in {status}");
        }
        self.packets_pass()
            .with_context(|| format!("the log:\n{}", proxy.log()))?;
        let (status, log) = proxy.terminate()?;
        ensure!(status.success(), "it ended with {status}:\n{log}");
        Ok(())
    }

    fn packets_pass(&self) -> Result<()> {
        for family in Family::ALL {
            let n = self.web.n;
            let cluster_ip = (cluster_ip(family, n), 80);
            let node_port: (IpAddr, u16) = (Host::Node.address(family), node_port(n));
            for (from, to) in [
                (Host::Shell, cluster_ip),
                (Host::Node, cluster_ip),
                (Host::Client, node_port),
            ] {
                let to = SocketAddr::from(to);
                wait::until(&format!("{from} gets an answer from {to}"), || {
                    let from = self.topology.host(from);
                    let outcome = ask(from, None, to, Protocol::Tcp, Patience::Short)?;
                    ensure!(matches!(outcome, Outcome::Answered(_)), "{outcome:?}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// What a kubelet's rules tell the proxy to use.
    fn prefer(&self, backend: &str) -> Result<()> {
        for family in ["iptables", "ip6tables"] {
            let program = format!("{family}-{backend}");
            self.node()
                .run(&program, &["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"])?;
        }
        Ok(())
    }

    /// Which of both has the Service.
    fn has_rules(&self, backend: &str) -> Result<()> {
        for other in ["legacy", "nft"] {
            let rules = self
                .node()
                .run(&format!("iptables-{other}-save"), &["-t", "nat"])?;
            let address = cluster_ip(Family::V4, self.web.n).to_string();
            let found = rules.contains(&address);
            ensure!(found == (backend == other), "{other}:\n{rules}");
        }
        Ok(())
    }
}

fn every_way_serves(testbed: &Testbed) -> Result<()> {
    let tree = Tree::assemble(Path::new(OURS))?;
    let in_iptables_mode = [
        "--set",
        "mode=iptables",
        "--set",
        "clusterCIDR=10.244.0.0/16\\,fd00:244::/32",
    ];
    let server = format!(
        "k8sServiceHost={},k8sServicePort={}",
        testbed.env("HOST4"),
        testbed.env("API_PORT")
    );
    {
        let world = World::new(testbed)?;
        world.prefer("nft")?;
        let helm = Helm::new(testbed)?;
        let more = [&in_iptables_mode[..], &["--set", &server]].concat();
        let _release = Release::install(&helm, "defaults", &more)?;
        let pod = Pod::new(testbed, "kube-proxy-rs", &tree)?;
        world.serves(&pod).context("Helm")?;
        world.has_rules("nft")?;
    }
    let world = World::new(testbed)?;
    world.prefer("legacy")?;
    {
        let _overlay = Overlay::apply(testbed, "iptables")?;
        let pod = Pod::new(testbed, "kube-proxy-rs", &tree)?;
        world.serves(&pod).context("kustomize")?;
        world.has_rules("legacy")?;
    }
    let kubeadm = Kubeadm::new(testbed)?;
    kubeadm.add_patch()?;
    kubeadm.init()?;
    let pod = Pod::new(testbed, "kube-proxy", &tree)?;
    world.serves(&pod).context("kubeadm")?;
    world.has_rules("legacy")
}
