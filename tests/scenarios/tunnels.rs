// SPDX-License-Identifier: Apache-2.0
//! Whoever may annotate a Service cannot make nodes send packets of their own to where they like: a
//! tunnel's outer packets have the node's address, and the other end may trust that.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::Service;
use kpr_testkit::namespace::Namespace;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, ask};

const METHODS: [&str; 3] = ["ipip", "gre", "gue"];
/// That of VXLAN, which carries a cluster's own traffic between nodes.
const OVERLAY: u16 = 8472;
/// Tunnels do not translate ports.
const PORT: u16 = 8080;

/// The tenant's endpoint is another node.
fn services() -> Vec<Service> {
    METHODS
        .into_iter()
        .zip(1..)
        .map(|(method, n)| {
            let mut service = Service::new(method, n, &[Host::Remote])
                .protocols(&[Protocol::Tcp])
                .exposed()
                .annotated("kube-proxy-rs.io/forwarding-method", method)
                .annotated("kube-proxy-rs.io/gue-port", OVERLAY.to_string());
            for port in &mut service.ports {
                port.port = PORT;
            }
            service
        })
        .collect()
}

/// How a method's packets look to a firewall.
fn packets(method: &str, family: Family) -> String {
    match (method, family) {
        ("ipip", Family::V4) => "-p 4".to_owned(),
        ("ipip", Family::V6) => "-p 41".to_owned(),
        ("gre", _) => "-p 47".to_owned(),
        _ => format!("-p udp --dport {OVERLAY}"),
    }
}

/// Counts what the other node gets of each method.
struct Received<'a>(&'a Namespace);

impl Received<'_> {
    const fn program(family: Family) -> &'static str {
        match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        }
    }

    fn count(&self) -> Result<()> {
        for family in Family::ALL {
            for method in METHODS {
                let from = Host::Node.address(family);
                let what = packets(method, family);
                let rule = format!(
                    "-w -t raw -A PREROUTING -s {from} {what} -m comment --comment by-{method}"
                );
                let rule: Vec<&str> = rule.split(' ').collect();
                self.0.run(Self::program(family), &rule)?;
            }
        }
        Ok(())
    }

    fn by(&self, method: &str, family: Family) -> Result<u64> {
        let list = ["-w", "-t", "raw", "-L", "PREROUTING", "-vnx"];
        let text = self.0.run(Self::program(family), &list)?;
        let comment = format!("by-{method} ");
        let line = text.lines().find(|line| line.contains(&comment));
        let count = line.and_then(|line| line.split_whitespace().next());
        Ok(count.with_context(|| text.clone())?.parse()?)
    }
}

pub(super) fn lead_nowhere_unasked(binary: &Path) -> Result<()> {
    let remote = Family::ALL.map(|family| Host::Remote.address(family));
    let ranges = format!("--tunnel-cidrs={}/32,{}/128", remote[0], remote[1]);
    let allowed = "--service-annotations=forwarding-method";
    // What the log says of it; nothing where the operator allowed it.
    let runs: [(&[&str], Option<&str>); 3] = [
        (&[], Some("--service-annotations")),
        (&[allowed], Some("--tunnel-cidrs")),
        (&[allowed, &ranges], None),
    ];
    for (flags, refusal) in runs {
        let lab = Lab::new(binary, &services(), flags)?;
        let received = Received(lab.topology.host(Host::Remote));
        received.count()?;
        let proxy = lab.start()?;
        for service in services() {
            for family in Family::ALL {
                let method = service.name.as_str();
                let to: SocketAddr = At::Vip.address(&service, family, PORT);
                let patience = if refusal.is_some() {
                    Patience::Long
                } else {
                    Patience::Glance
                };
                let from = lab.topology.host(Host::Client);
                let outcome = ask(from, None, to, Protocol::Tcp, patience);
                let count = received.by(method, family)?;
                let at = format!("{flags:?}, {method} {family}: {count} packets");
                if refusal.is_some() {
                    // Masqueraded, as without the annotation: nobody listens on that node.
                    let outcome = outcome?;
                    let log = proxy.log();
                    ensure!(outcome == Outcome::Refused, "{at}, {outcome}\n{log}");
                    ensure!(count == 0, "{at}");
                } else {
                    // Nobody unpacks them there, and what the client hears depends on the method.
                    drop(outcome);
                    ensure!(count > 0, "{at}\n{}", proxy.log());
                }
            }
            if let Some(refusal) = refusal {
                let name = format!("default/{}", service.name);
                proxy.wait_for_log(&[&name, refusal])?;
            }
        }
    }
    Ok(())
}
