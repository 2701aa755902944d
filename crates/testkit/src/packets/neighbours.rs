// SPDX-License-Identifier: Apache-2.0
//! Other programs of a node beside the proxy, in both modes: CNI plugins as real processes, and
//! what others write to the kernel, as scripts (`tests/neighbours`). Each is there before and after
//! the proxy, is started again, as is the proxy, and keeps what is its own over `--cleanup`.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use crate::cases::run::failed;
use crate::cases::{At, Dataplane};
use crate::cni::Programs;
use crate::kernel::{self, Kernel};
use crate::manifests::{ManifestDirectory, Service};
use crate::namespace::{Namespace, command};
use crate::proxy::{self, Invocation, Proxy};
use crate::topology::{Family, Host, Topology};
use crate::traffic::{Outcome, Patience, Protocol, Servers, ask};
use crate::wait;

mod addresses;
mod firewalld;
mod kube_router;
mod plugins;

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// All of them as tests.
pub fn trials(dataplane: Dataplane, binary: &'static Path) -> Vec<Trial> {
    let trial = |name: &str, run: fn(&Path, Dataplane) -> Result<()>| {
        let name = format!("{dataplane}::neighbours::{name}");
        Trial::test(name, move || run(binary, dataplane).map_err(failed))
    };
    let mut trials = vec![
        trial("plugins_first", plugins::first),
        trial("plugins_later", plugins::later),
        trial("policies", kube_router::policies),
        trial("policies_later", kube_router::policies_later),
        trial("dns_cache", addresses::dns_cache),
        trial("moving_address", addresses::moving),
        trial("probes_from_balancer", addresses::probes_from_balancer),
    ];
    match dataplane {
        // Its kernel has no nat in nftables.
        Dataplane::Iptables(_) => trials.extend([
            trial("firewalld", firewalld::translated),
            trial("plugins_first_in_nftables", plugins::first_in_nftables),
            trial(
                "health_checks_at_a_local_address",
                addresses::health_checks_at_a_local_address,
            ),
        ]),
        Dataplane::Ipvs => trials.extend([
            trial("service_proxy", kube_router::service_proxy),
            trial("from_service_proxy", kube_router::from_service_proxy),
            trial("cleanup_config", kube_router::cleanup_config),
        ]),
    }
    trials
}

/// Where the kernel can translate addresses in nftables.
pub fn trials_in_nftables(binary: &'static Path) -> Vec<Trial> {
    let trial = |name: &str, run: fn(&Path) -> Result<()>| {
        let name = format!("nftables::{name}");
        Trial::test(name, move || run(binary).map_err(failed))
    };
    vec![
        trial("published_ports", plugins::published_by_nftables),
        trial("published_ports_in_iptables", plugins::first_in_iptables),
        trial("firewalld", firewalld::closed),
    ]
}

/// A cluster with the programs of its node, and how the proxy is started there.
struct Lab {
    topology: Topology,
    programs: Programs,
    _servers: Servers,
    invocation: Invocation,
    _manifests: ManifestDirectory,
}

/// What a client meets.
#[derive(Clone, Copy, Debug)]
enum Wanted<'a> {
    /// An answer of one of these, who saw this address.
    Answer(&'a [Host], Option<IpAddr>),
    Refusal,
}

/// A client, what it asks, and what it meets.
type Probe<'a> = (Host, SocketAddr, Wanted<'a>);

impl Lab {
    fn new(
        binary: &Path,
        dataplane: Dataplane,
        services: &[Service],
        flags: &[&str],
    ) -> Result<Self> {
        let topology = Topology::new().context("cannot lay out the cluster")?;
        let manifests = ManifestDirectory::new(services)?;
        let lab = Self {
            programs: Programs::new(dataplane)?,
            _servers: Servers::new(&topology)?,
            invocation: Invocation::new(binary, &manifests, dataplane.mode().name())
                .in_cluster()
                .with(flags),
            topology,
            _manifests: manifests,
        };
        // It comes first on every node, and says which iptables this one uses.
        lab.script("kubelet", &[])?;
        Ok(lab)
    }

    fn node(&self) -> &Namespace {
        self.topology.host(Host::Node)
    }

    fn start(&self) -> Result<Proxy> {
        Proxy::start(self.node(), &self.invocation)
    }

    /// Runs a script of `tests/neighbours` on the node.
    fn script(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let script = crate::repository().join("tests/neighbours").join(name);
        let mut command = command(script);
        command
            .args(arguments)
            .env("PATH", self.programs.path()?)
            .stdin(Stdio::null());
        let output = self.node().enter(|| command.output())??;
        ensure!(
            output.status.success(),
            "{name} {arguments:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// The proxy takes away what is its own.
    fn clean_up(&self) -> Result<()> {
        let said = proxy::ask_proxy(self.node(), &self.invocation.binary, &["--cleanup"])?;
        ensure!(said.code == Some(0), "{:?}: {}", said.code, said.errors);
        Ok(())
    }

    /// What the kernel holds. Links of others that came again have other numbers, and link-local
    /// addresses.
    fn kernel(&self) -> Result<Kernel> {
        let mut kernel = kernel::read(self.node())?;
        if let Some(addresses) = kernel.get_mut("ip") {
            addresses.retain(|line| !line.contains(" fe80:"));
            for line in addresses {
                if let Some((_, address)) = line.split_once(": ") {
                    *line = address.to_owned();
                }
            }
        }
        Ok(kernel)
    }

    /// The kernel holds what it held before the proxy came.
    fn is_as(&self, before: &Kernel) -> Result<()> {
        let differences = kernel::differences(before, &self.kernel()?);
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    }

    /// The proxy ends, and takes away what is its own and nothing else.
    fn is_left_by(&self, proxy: Proxy, before: &Kernel) -> Result<()> {
        proxy.terminate()?;
        self.clean_up()?;
        self.is_as(before)
    }

    /// Waits until all clients meet what they are to meet, with each protocol.
    fn becomes(&self, what: &str, probes: &[Probe<'_>]) -> Result<()> {
        wait::until(what, || {
            for (from, to, wanted) in probes {
                for protocol in PROTOCOLS {
                    let host = self.topology.host(*from);
                    let outcome = ask(host, None, *to, protocol, Patience::Short)?;
                    let is_right = match (&outcome, wanted) {
                        (Outcome::Answered(answer), Wanted::Answer(by, seen)) => {
                            by.iter().any(|host| host.name() == answer.by)
                                && seen.is_none_or(|seen| seen == answer.source)
                        }
                        (Outcome::Refused, Wanted::Refusal) => true,
                        _ => false,
                    };
                    ensure!(
                        is_right,
                        "{from} to {to}, {protocol}: wanted {wanted:?}, was {outcome}"
                    );
                }
            }
            Ok(())
        })
    }

    /// Nothing is left to do for the proxy: the other program and it do not undo each other's work.
    fn is_settled(&self) -> Result<()> {
        proxy::nothing_is_left(self.node(), &self.invocation, "beside the other program")
    }
}

/// What pods, the node and clients outside meet at a Service with these endpoints.
fn of_service<'a>(service: &Service, family: Family, by: &'a [Host]) -> Vec<Probe<'a>> {
    let wanted = Wanted::Answer(by, None);
    [
        (Host::Shell, At::ClusterIp),
        (Host::Node, At::ClusterIp),
        (Host::Client, At::NodePort),
        (Host::Client, At::Vip),
        (Host::Shell, At::Vip),
    ]
    .map(|(from, at)| (from, at.address(service, family, 80), wanted))
    .to_vec()
}

/// What they meet where there are no endpoints.
fn of_empty_service(service: &Service, family: Family) -> Vec<Probe<'static>> {
    [
        (Host::Shell, At::ClusterIp),
        (Host::Node, At::ClusterIp),
        (Host::Client, At::Vip),
        (Host::Shell, At::Vip),
    ]
    .map(|(from, at)| (from, at.address(service, family, 80), Wanted::Refusal))
    .to_vec()
}
