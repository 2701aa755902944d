// SPDX-License-Identifier: Apache-2.0
//! Forwarding without translation. The endpoints are made ready by the steps of
//! `docs/forwarding-methods.md`, as they stand there: the client gets its answer, the endpoint sees
//! the client, and the node never sees the reply.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::Service;
use kpr_testkit::namespace::{Namespace, command};
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Answer, Connection, Outcome, Patience, Protocol, ask};

pub(super) const METHOD: &str = "kube-proxy-rs.io/forwarding-method";
const PAGE: &str = include_str!("../../docs/forwarding-methods.md");
/// Packets keep their port. TCP is served at it on all addresses.
pub(super) const PORT: u16 = 8080;
/// UDP and SCTP are served at it on the VIPs themselves, so that replies have them as their source.
pub(super) const OWN_PORT: u16 = 8085;
/// More than fits into one packet, by far.
const LARGE: usize = 20_000;

/// Endpoints of tunnels are pods of the other node; direct routing needs the same link.
const METHODS: [(&str, &[Host]); 4] = [
    ("direct-routing", &[Host::Lan]),
    ("ipip", &[Host::Web3, Host::Web4]),
    ("gre", &[Host::Web3]),
    ("gue", &[Host::Web4]),
];

const fn port_of(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => PORT,
        Protocol::Udp | Protocol::Sctp => OWN_PORT,
    }
}

fn services() -> Vec<Service> {
    METHODS
        .into_iter()
        .zip(1..)
        .map(|((method, endpoints), n)| {
            let mut service = Service::new(method, n, endpoints).exposed();
            for port in &mut service.ports {
                port.port = PORT;
            }
            service.port(OWN_PORT, OWN_PORT).annotated(METHOD, method)
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
    let allowed = "--service-annotations=forwarding-method";
    let lab = Lab::new(binary, &all, &[allowed])?;
    prepare(&lab, &services)?;
    let proxy = lab.start()?;
    for service in &services {
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                is_direct(&lab, service, family, protocol).with_context(|| {
                    let name = &service.name;
                    format!("{name} {family} {protocol}; the log:\n{}", proxy.log())
                })?;
            }
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
    lab.nothing_to_do_soon()
}

/// Makes endpoints and their node ready, as the page says.
pub(super) fn prepare(lab: &Lab, services: &[Service]) -> Result<()> {
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
    let mut served = BTreeSet::new();
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
                for protocol in [Protocol::Udp, Protocol::Sctp] {
                    let mut own = vec![first, second];
                    // Of two Services' endpoints on one host the first serves those that are
                    // translated.
                    if served.insert((endpoint.host, family, protocol)) {
                        own.push(endpoint.host.address(family));
                    }
                    for ip in own {
                        let at = SocketAddr::new(ip, OWN_PORT);
                        lab.servers
                            .add(&lab.topology, endpoint.host, protocol, at)?;
                    }
                }
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
    let port = port_of(protocol);
    // How an address becomes a forwarded one is the same for all protocols.
    let forwarded: &[At] = match protocol {
        Protocol::Tcp => &[At::ExternalIp, At::Vip],
        Protocol::Udp | Protocol::Sctp => &[At::Vip],
    };
    for at in forwarded {
        let to = at.address(service, family, port);
        let replies = Replies::count(lab, service, family, protocol, to.ip())?;
        for _ in 0..2 * service.endpoints.len() {
            let answer = answered(lab, Host::Client, to, protocol)?;
            ensure!(answer.source == client, "{to}: the endpoint saw {answer:?}");
        }
        if protocol != Protocol::Udp {
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
    let cluster_ip = At::ClusterIp.address(service, family, port);
    answered(lab, Host::Shell, cluster_ip, protocol)?;
    // That of the first port.
    let node_port = At::NodePort.address(service, family, PORT);
    answered(lab, Host::Client, node_port, Protocol::Tcp)?;
    Ok(())
}

fn answered(lab: &Lab, from: Host, to: SocketAddr, protocol: Protocol) -> Result<Answer> {
    match ask(lab.topology.host(from), None, to, protocol, Patience::Long)? {
        Outcome::Answered(answer) => Ok(answer),
        outcome => bail!("{from} at {to} was {outcome}"),
    }
}

/// Counts packets that the node gets from the VIP or from the endpoints' port. The counters go with
/// it.
struct Replies<'a> {
    node: &'a Namespace,
    program: &'static str,
    sources: Vec<IpAddr>,
    protocol: Protocol,
}

impl<'a> Replies<'a> {
    fn count(
        lab: &'a Lab,
        service: &Service,
        family: Family,
        protocol: Protocol,
        vip: IpAddr,
    ) -> Result<Self> {
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
            protocol,
        };
        replies.each("-A")?;
        Ok(replies)
    }

    fn each(&self, action: &str) -> Result<()> {
        let (protocol, port) = (self.protocol, port_of(self.protocol));
        for source in &self.sources {
            let rule =
                format!("-w -t raw {action} PREROUTING -s {source} -p {protocol} --sport {port}");
            let rule: Vec<&str> = rule.split(' ').collect();
            self.node.run(self.program, &rule)?;
        }
        Ok(())
    }

    fn seen(&self) -> Result<u64> {
        let list = ["-w", "-t", "raw", "-L", "PREROUTING", "-vnx"];
        let text = self.node.run(self.program, &list)?;
        let mut packets = 0;
        let port = format!("spt:{}", port_of(self.protocol));
        for line in text.lines().filter(|line| line.contains(&port)) {
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
