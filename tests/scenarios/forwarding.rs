// SPDX-License-Identifier: Apache-2.0
//! Forwarding without translation. The endpoints are made ready by the steps of `docs/forwarding-methods.md`, as they stand
//! there: the client gets its answer, the endpoint sees the client, and the node never sees the reply.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::Lab;
use crate::cases::At;
use crate::common::manifests::Service;
use crate::common::namespace::{Namespace, command};
use crate::common::topology::{Family, Host};
use crate::common::traffic::{Answer, Connection, Outcome, Patience, Protocol, ask};

const METHOD: &str = "kube-proxy-rs.io/forwarding-method";
const PAGE: &str = include_str!("../../docs/forwarding-methods.md");
/// Packets keep their port.
const PORT: u16 = 8080;
/// More than fits into one packet, by far.
const LARGE: usize = 20_000;

/// Endpoints of tunnels are pods of the other node; direct routing needs the same link.
const METHODS: [(&str, &[Host]); 4] = [
    ("direct-routing", &[Host::Lan]),
    ("ipip", &[Host::Web3, Host::Web4]),
    ("gre", &[Host::Web3]),
    ("gue", &[Host::Web4]),
];

fn services() -> Vec<Service> {
    METHODS
        .into_iter()
        .zip(1..)
        .map(|((method, endpoints), n)| {
            let mut service = Service::new(method, n, endpoints).exposed();
            for port in &mut service.ports {
                port.port = PORT;
            }
            service
                .protocols(&[Protocol::Tcp])
                .annotated(METHOD, method)
        })
        .collect()
}

pub(super) fn replies_go_straight(binary: &Path) -> Result<()> {
    let services = services();
    // One endpoint on this node, one that serves at another port.
    let mixed = Service::new("mixed", 5, &[Host::Web1]).annotated(METHOD, "ipip");
    let mut mixed = mixed.protocols(&[Protocol::Tcp]).exposed();
    for port in &mut mixed.ports {
        port.port = PORT;
    }
    let elsewhere = Service::new("elsewhere", 6, &[Host::Web3]).annotated(METHOD, "ipip");
    let elsewhere = elsewhere.protocols(&[Protocol::Tcp]).exposed();
    let all: Vec<Service> = services
        .iter()
        .chain([&mixed, &elsewhere])
        .cloned()
        .collect();
    let lab = Lab::new(binary, &all, &[])?;
    prepare(&lab, &services)?;
    let proxy = lab.start()?;
    for service in &services {
        for family in Family::ALL {
            // The servers of these tests answer datagrams from another address than the VIP, as most do.
            is_direct(&lab, service, family, Protocol::Tcp)
                .with_context(|| format!("{} {family}; the log:\n{}", service.name, proxy.log()))?;
        }
    }
    for family in Family::ALL {
        // Translated on this node, and still it is the client that is seen.
        let to = At::Vip.address(&mixed, family, PORT);
        let answer = answered(&lab, Host::Client, to, Protocol::Tcp)?;
        ensure!(answer.source == Host::Client.address(family), "{answer:?}");
        let to = At::Vip.address(&elsewhere, family, 80);
        answered(&lab, Host::Client, to, Protocol::Tcp)?;
    }
    proxy.wait_for_log(&["default/ipip", "node port 30002", "masqueraded"])?;
    proxy.wait_for_log(&["default/elsewhere", "port 80", "8080"])?;
    lab.nothing_to_do()
}

/// Makes endpoints and their node ready, as the page says.
fn prepare(lab: &Lab, services: &[Service]) -> Result<()> {
    let remote = lab.topology.host(Host::Remote);
    // As if a proxy ran there too.
    remote.ip("link add kube-ipvs0 type dummy\n")?;
    steps(remote, "node ipv4", &[("LINK", "cni0")])?;
    steps(remote, "modules", &[])?;
    for host in [Host::Web3, Host::Web4] {
        for family in Family::ALL {
            let namespace = lab.topology.host(host);
            steps(namespace, &format!("mss {family}"), &[])?;
        }
    }
    for service in services {
        for family in Family::ALL {
            for at in [At::ExternalIp, At::Vip] {
                let vip = at.address(service, family, PORT).ip().to_string();
                if service.name != "direct-routing" {
                    remote.ip(&format!("address add {vip} dev kube-ipvs0\n"))?;
                }
            }
            for endpoint in &service.endpoints {
                let address = endpoint.host.address(family).to_string();
                let namespace = lab.topology.host(endpoint.host);
                let title = format!("{} {family}", service.name);
                let first = At::ExternalIp.address(service, family, PORT).ip();
                let second = At::Vip.address(service, family, PORT).ip();
                let variables = [("VIP", &*first.to_string()), ("ENDPOINT", &*address)];
                steps(namespace, &title, &variables)?;
                // The address step once more.
                add_address(namespace, &title, second)?;
            }
        }
    }
    Ok(())
}

/// The lines below a title of the page.
fn text_of(title: &str) -> Result<&'static str> {
    let marker = format!("<!-- steps: {title} -->\n```sh\n");
    let (_, rest) = PAGE
        .split_once(&marker)
        .with_context(|| format!("the page has no steps for {title}"))?;
    let (steps, _) = rest.split_once("```").context("no end of the steps")?;
    Ok(steps)
}

fn steps(at: &Namespace, title: &str, variables: &[(&str, &str)]) -> Result<()> {
    run(at, title, text_of(title)?, variables)
}

fn add_address(at: &Namespace, title: &str, vip: IpAddr) -> Result<()> {
    let steps = text_of(title)?;
    let mut lines = steps.lines();
    let step = lines.find(|line| line.contains(" address add "));
    let vip = vip.to_string();
    run(at, title, step.context("no such step")?, &[("VIP", &vip)])
}

fn run(at: &Namespace, title: &str, script: &str, variables: &[(&str, &str)]) -> Result<()> {
    let mut shell = command("sh");
    shell
        .args(["-e", "-c", script])
        .envs(variables.iter().copied());
    let output = at.enter(|| shell.output())??;
    ensure!(
        output.status.success(),
        "steps of {title}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn is_direct(lab: &Lab, service: &Service, family: Family, protocol: Protocol) -> Result<()> {
    let client = Host::Client.address(family);
    for at in [At::ExternalIp, At::Vip] {
        let to = at.address(service, family, PORT);
        let replies = Replies::count(lab, service, family, to.ip())?;
        for _ in 0..2 * service.endpoints.len() {
            let answer = answered(lab, Host::Client, to, protocol)?;
            ensure!(answer.source == client, "{to}: the endpoint saw {answer:?}");
        }
        if protocol == Protocol::Tcp {
            let from = lab.topology.host(Host::Client);
            let connection = Connection::open(from, to, protocol, Patience::Long)?;
            let mut connection = connection.map_err(|outcome| anyhow!("{to} was {outcome}"))?;
            connection.echo_much(LARGE)?;
            connection.abort()?;
        }
        ensure!(replies.seen()? == 0, "{to}: the node saw replies");
        // Pods and the node are translated.
        for from in [Host::Shell, Host::Node] {
            answered(lab, from, to, protocol)?;
        }
        ensure!(replies.seen()? > 0, "{to}: replies to pods are not counted");
    }
    for at in [At::ClusterIp, At::NodePort] {
        let from = if at == At::ClusterIp {
            Host::Shell
        } else {
            Host::Client
        };
        answered(lab, from, at.address(service, family, PORT), protocol)?;
    }
    Ok(())
}

fn answered(lab: &Lab, from: Host, to: SocketAddr, protocol: Protocol) -> Result<Answer> {
    match ask(lab.topology.host(from), None, to, protocol, Patience::Long)? {
        Outcome::Answered(answer) => Ok(answer),
        outcome => bail!("{from} at {to} was {outcome}"),
    }
}

/// Counts packets that the node gets from the VIP or from the endpoints' port. The counters go with it.
struct Replies<'a> {
    node: &'a Namespace,
    program: &'static str,
    sources: Vec<IpAddr>,
}

impl<'a> Replies<'a> {
    fn count(lab: &'a Lab, service: &Service, family: Family, vip: IpAddr) -> Result<Self> {
        let endpoints = service.endpoints.iter();
        let replies = Self {
            node: lab.node(),
            program: match family {
                Family::V4 => "iptables",
                Family::V6 => "ip6tables",
            },
            sources: endpoints
                .map(|endpoint| endpoint.host.address(family))
                .chain([vip])
                .collect(),
        };
        replies.each("-A")?;
        Ok(replies)
    }

    fn each(&self, action: &str) -> Result<()> {
        for source in &self.sources {
            let source = source.to_string();
            for protocol in ["tcp", "udp"] {
                let rule = [
                    "-w",
                    "-t",
                    "raw",
                    action,
                    "PREROUTING",
                    "-s",
                    &source,
                    "-p",
                    protocol,
                    "--sport",
                    "8080",
                ];
                self.node.run(self.program, &rule)?;
            }
        }
        Ok(())
    }

    fn seen(&self) -> Result<u64> {
        let list = ["-w", "-t", "raw", "-L", "PREROUTING", "-vnx"];
        let text = self.node.run(self.program, &list)?;
        let mut packets = 0;
        for line in text.lines().filter(|line| line.contains("spt:8080")) {
            let count = line.split_whitespace().next().unwrap_or_default();
            packets += count.parse::<u64>().with_context(|| line.to_owned())?;
        }
        Ok(packets)
    }
}

impl Drop for Replies<'_> {
    fn drop(&mut self) {
        // The namespace goes anyway.
        drop(self.each("-D"));
    }
}
