// SPDX-License-Identifier: Apache-2.0
//! The same for IPVS mode, on a node that is a guest kernel: what the manifests give to the pods is
//! enough there, too.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::Test;
use crate::helm::{Helm, Release};
use crate::manifests::Overlay;
use crate::nodes::{OURS, register, web};
use crate::pod::{Pod, Tree};
use kpr_testkit::guest::Guest;
use kpr_testkit::manifests::Service;
use kpr_testkit::neighbours::Neighbours;
use kpr_testkit::testbed::{Objects, Testbed};
use kpr_testkit::topology::{CLUSTER_CIDRS, Family, Host, cluster_ip, node_port};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, ask};
use kpr_testkit::wait;

pub(crate) const TESTS: &[Test] = &[(
    "guest_nodes::helm_and_kustomize_serve_in_ipvs_mode",
    both_ways_serve,
)];

const LOG: &str = "/run/proxy.log";

/// A node that has IPVS, with a Service, and no proxy yet.
struct World<'a> {
    guest: Guest,
    neighbours: Neighbours,
    web: Service,
    _objects: Objects<'a>,
}

impl<'a> World<'a> {
    fn new(testbed: &'a Testbed) -> Result<Self> {
        let mut guest = Guest::start(testbed);
        let neighbours = Neighbours::new(testbed, &mut guest, &[Host::Web1, Host::Web3])?;
        let web = web();
        let objects = register(testbed, &web);
        testbed.set_addresses("node", &guest.addresses);
        // What a kubelet's rules tell the proxy to use; this kernel lacks the other backend's nat
        // table.
        for family in ["iptables", "ip6tables"] {
            guest.run(&format!("{family}-legacy -t mangle -N KUBE-IPTABLES-HINT"));
        }
        Ok(Self {
            guest,
            neighbours,
            web,
            _objects: objects,
        })
    }

    /// Runs a pod until its probes succeed, looks at its rights and at IPVS, and sends packets.
    fn serves(&mut self, pod: &Pod) -> Result<()> {
        for init in pod.init()? {
            let answer = self.guest.answer(&in_shell(&init)?);
            ensure!(answer.code == Some(0), "the init container: {answer:?}");
        }
        let main = in_shell(&pod.main()?)?;
        let process = self
            .guest
            .run(&format!("{main} </dev/null >{LOG} 2>&1 & echo $!"));
        let process = process.trim();
        let is_well = self.is_well(pod, process);
        let log = self.guest.run(&format!("tail -n 30 {LOG} | cut -c 1-300"));
        // It ends in good order.
        self.guest.run(&format!(
            "kill {process}; while kill -0 {process} 2>/dev/null; do :; done"
        ));
        is_well.with_context(|| format!("the log:\n{log}"))
    }

    fn is_well(&mut self, pod: &Pod, process: &str) -> Result<()> {
        for kind in ["readinessProbe", "livenessProbe"] {
            let (port, path) = pod.probe(kind)?;
            let address = SocketAddr::new(self.guest.addresses[0], port);
            wait::until(&format!("{kind} succeeds"), || succeeds(address, &path))?;
        }
        let status = self.guest.run(&format!("cat /proc/{process}/status"));
        for (field, expected) in pod.rights()? {
            let line = format!("{field}:\t{expected}\n");
            ensure!(status.contains(&line), "no {line:?} in {status}");
        }
        wait::until("IPVS has the servers", || self.has_servers(1))?;
        self.packets_pass()
    }

    /// What `ipvsadm` shows of the Service: both pods behind every address and protocol, or
    /// nothing.
    fn has_servers(&mut self, times: usize) -> Result<()> {
        let servers = self.guest.run("ipvsadm -Sn");
        for family in Family::ALL {
            let address = SocketAddr::new(cluster_ip(family, self.web.n), 80);
            for option in ["-t", "-u"] {
                for host in [Host::Web1, Host::Web3] {
                    let pod = SocketAddr::new(host.address(family), 8080);
                    let line = format!("-a {option} {address} -r {pod} -m -w 1\n");
                    let found = servers.matches(&line).count();
                    ensure!(found == times, "{found} of {line:?} in\n{servers}");
                }
            }
        }
        Ok(())
    }

    fn packets_pass(&self) -> Result<()> {
        for family in Family::ALL {
            let n = self.web.n;
            let node = self.guest.addresses.iter();
            let node = node.filter(|address| address.is_ipv4() == (family == Family::V4));
            let to_node = node.map(|address| (&self.neighbours.client, *address, node_port(n)));
            let to_service = (&self.neighbours.shell, cluster_ip(family, n), 80);
            for (from, address, port) in to_node.chain([to_service]) {
                let to = SocketAddr::new(address, port);
                wait::until(&format!("an answer from {to}"), || {
                    let outcome = ask(from, None, to, Protocol::Tcp, Patience::Short)?;
                    ensure!(matches!(outcome, Outcome::Answered(_)), "{outcome:?}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    }
}

/// A probe, as the kubelet of the node makes it.
fn succeeds(address: SocketAddr, path: &str) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    Ok(())
}

/// A command as a line of a shell script.
fn in_shell(command: &Command) -> Result<String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| {
        let word = word.to_str().context("no UTF-8")?;
        Ok(format!("'{}'", word.replace('\'', r"'\''")))
    });
    Ok(quoted.collect::<Result<Vec<_>>>()?.join(" "))
}

fn both_ways_serve(testbed: &Testbed) -> Result<()> {
    let tree = Tree::assemble(Path::new(OURS))?;
    let mut world = World::new(testbed)?;
    {
        let _overlay = Overlay::apply(testbed, "ipvs")?;
        let pod = Pod::new(testbed, "kube-proxy-rs", &tree)?;
        world.serves(&pod).context("kustomize")?;
    }
    // So that what serves next is not what is there.
    world.guest.run(&format!("{OURS} --cleanup"));
    world.has_servers(0)?;
    let helm = Helm::new(testbed)?;
    let server = format!(
        "k8sServiceHost={},k8sServicePort={}",
        testbed.env("HOST4"),
        testbed.env("API_PORT")
    );
    let ranges = format!("clusterCIDR={}", CLUSTER_CIDRS.replace(',', "\\,"));
    let more = ["--set", "mode=ipvs", "--set", &server, "--set", &ranges];
    let _release = Release::install(&helm, "defaults", &more)?;
    let pod = Pod::new(testbed, "kube-proxy-rs", &tree)?;
    world.serves(&pod).context("Helm")
}
