// SPDX-License-Identifier: Apache-2.0
//! What annotations of a Service change, while it serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::{Endpoint, Service};
use kpr_testkit::oracle::{self, VirtualServer};
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Connection, Patience, Protocol};
use kpr_testkit::wait;

const HOSTS: [Host; 2] = [Host::Web1, Host::Web3];

/// One after the other, with the same connections open all the time.
pub(super) fn change_live(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &HOSTS).protocols(&[Protocol::Tcp]);
    let lab = Lab::new(
        binary,
        std::slice::from_ref(&service),
        &["--ipvs-scheduler=lc", "--service-schedulers=mh,sh,twos"],
    )?;
    let proxy = lab.start()?;
    is_now(&lab, &service, "lc", None, [1, 1])?;
    let mut connections = open(&lab, &service)?;
    let mut becomes = |service: &Service, scheduler, flags, weights| -> Result<()> {
        lab.manifests.apply(service)?;
        is_now(&lab, service, scheduler, flags, weights)
            .with_context(|| format!("the log:\n{}", proxy.log()))?;
        connections.iter_mut().try_for_each(Connection::echo)?;
        lab.nothing_to_do_soon()
    };

    let mh = service
        .clone()
        .annotated("kube-proxy-rs.io/scheduler", "mh")
        .annotated("kube-proxy-rs.io/weights", weights([3, 2]));
    becomes(&mh, "mh", Some("mh-fallback,mh-port"), [3, 2])?;
    let without_port = mh.annotated("kube-proxy-rs.io/scheduler-flags", "fallback");
    becomes(&without_port, "mh", Some("mh-fallback"), [3, 2])?;
    let sh = service
        .clone()
        .annotated("kube-router.io/service.scheduler", "sh")
        .annotated("kube-router.io/service.schedflags", "flag-1,flag-2");
    becomes(&sh, "sh", Some("sh-fallback,sh-port"), [1, 1])?;
    let bad = service
        .clone()
        .annotated("kube-proxy-rs.io/scheduler", "fastest")
        .annotated("kube-proxy-rs.io/weight", "7");
    becomes(&bad, "lc", None, [7, 7])?;
    proxy.wait_for_log(&["default/web", "kube-proxy-rs.io/scheduler", "fastest"])?;
    let missing = service
        .clone()
        .annotated("kube-proxy-rs.io/scheduler", "twos");
    becomes(&missing, "lc", None, [1, 1])?;
    proxy.wait_for_log(&["default/web", "ip_vs_twos"])?;
    becomes(&service, "lc", None, [1, 1])
}

/// A connection to each endpoint, in each family.
fn open(lab: &Lab, service: &Service) -> Result<Vec<Connection>> {
    let shell = lab.topology.host(Host::Shell);
    let mut connections = Vec::new();
    for family in Family::ALL {
        let to = At::ClusterIp.address(service, family, 80);
        for _ in HOSTS {
            let connection = Connection::open(shell, to, Protocol::Tcp, Patience::Long)?;
            connections.push(connection.map_err(|outcome| anyhow!("{to} was {outcome}"))?);
        }
    }
    let by: BTreeSet<&str> = connections.iter().map(|c| c.answer.by.as_str()).collect();
    ensure!(by.len() == HOSTS.len(), "only {by:?} answered");
    Ok(connections)
}

fn weights(weights: [u32; 2]) -> String {
    let each = HOSTS.into_iter().zip(weights).flat_map(|(host, weight)| {
        Family::ALL.map(|family| format!("{}={weight}", host.address(family)))
    });
    each.collect::<Vec<_>>().join(",")
}

fn is_now(
    lab: &Lab,
    service: &Service,
    scheduler: &str,
    flags: Option<&str>,
    weights: [u32; 2],
) -> Result<()> {
    wait::until("ipvsadm shows the settings", || {
        let found = oracle::virtual_servers(lab.node())?;
        for family in Family::ALL {
            let to = At::ClusterIp.address(service, family, 80);
            let wanted = VirtualServer {
                scheduler: scheduler.to_owned(),
                flags: flags.map(str::to_owned),
                persistent: None,
                real_servers: HOSTS
                    .map(|host| SocketAddr::new(host.address(family), 8080))
                    .into_iter()
                    .zip(weights)
                    .collect::<BTreeMap<_, _>>(),
            };
            let found = found.get(&(Protocol::Tcp, to));
            ensure!(
                found == Some(&wanted),
                "{to}: wanted {wanted:?}, found {found:?}"
            );
        }
        Ok(())
    })
}

/// Clients of one network share an endpoint where the netmask says so.
pub(super) fn netmask(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &HOSTS)
        .protocols(&[Protocol::Tcp])
        .with("sessionAffinity", "ClientIP".into());
    let shared = service
        .clone()
        .annotated("kube-proxy-rs.io/persistence-netmask", "ipv4/24,ipv6/64");
    let lab = Lab::new(binary, std::slice::from_ref(&shared), &[])?;
    let proxy = lab.start()?;
    let shell = lab.topology.host(Host::Shell);
    for family in Family::ALL {
        let sources = neighbours(family);
        let bits = if family == Family::V4 { 24 } else { 64 };
        let add = |ip: &IpAddr| format!("address add {ip}/{bits} dev eth0 nodad\n");
        shell.ip(&sources.iter().map(add).collect::<String>())?;
        let to = At::ClusterIp.address(&service, family, 80);
        let asked = || -> Result<BTreeSet<String>> {
            let answers = sources.iter().map(|source| {
                let source = Some(SocketAddr::new(*source, 0));
                let connection =
                    Connection::open_from(shell, source, to, Protocol::Tcp, Patience::Long)?;
                let connection = connection.map_err(|outcome| anyhow!("{to} was {outcome}"))?;
                let by = connection.answer.by.clone();
                connection.abort()?;
                Ok(by)
            });
            answers.collect()
        };
        let together = asked().with_context(|| format!("the log:\n{}", proxy.log()))?;
        ensure!(together.len() == 1, "{family}: neighbours met {together:?}");
    }
    lab.manifests.apply(&service)?;
    lab.nothing_to_do_soon()
}

fn neighbours(family: Family) -> Vec<IpAddr> {
    (0x61..0x65_u8)
        .map(|n| match Host::Shell.address(family) {
            IpAddr::V4(own) => {
                let [a, b, c, _] = own.octets();
                IpAddr::from([a, b, c, n])
            }
            IpAddr::V6(own) => IpAddr::V6((own.to_bits() & !0xffff | u128::from(n)).into()),
        })
        .collect()
}

/// A connection to a removed endpoint is cut when the limit of its Service is reached; without it,
/// it would live.
pub(super) fn drain_limit(binary: &Path) -> Result<()> {
    let limited = Service::new("limited", 1, &[Host::Web1])
        .protocols(&[Protocol::Tcp, Protocol::Sctp])
        .annotated("kube-proxy-rs.io/drain-limit", "1s");
    let mut services = [limited, Service::new("usual", 2, &[Host::Web1])];
    let lab = Lab::new(binary, &services, &[])?;
    let proxy = lab.start()?;
    let shell = lab.topology.host(Host::Shell);
    let mut connections = BTreeMap::new();
    for service in &services {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Sctp] {
                let to = At::ClusterIp.address(service, family, 80);
                let connection = Connection::open(shell, to, protocol, Patience::Long)?;
                let connection = connection.map_err(|outcome| anyhow!("{to} was {outcome}"))?;
                connections.insert((service.name.clone(), protocol, to), connection);
            }
        }
    }
    for service in &mut services {
        service.endpoints = vec![Endpoint::ready(Host::Web3)];
        lab.manifests.apply(service)?;
    }
    wait::until("the limited ones are cut, and only those", || {
        let found = oracle::virtual_servers(lab.node())?;
        for (name, protocol, to) in connections.keys() {
            let server = found.get(&(*protocol, *to)).context("no virtual server")?;
            let count = if name == "limited" { 1 } else { 2 };
            ensure!(
                server.real_servers.len() == count,
                "{name} {protocol} {to}: {server:?}"
            );
        }
        Ok(())
    })
    .with_context(|| format!("the log:\n{}", proxy.log()))?;
    for ((name, protocol, to), connection) in &mut connections {
        let lives = connection.echo().is_ok();
        ensure!(
            lives == (name == "usual"),
            "{name} {protocol} {to}: lives is {lives}"
        );
    }
    Ok(())
}
