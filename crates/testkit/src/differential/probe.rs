// SPDX-License-Identifier: Apache-2.0
//! Packets, and what becomes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::dice::Dice;
use super::objects::{Kind, SHARED, Service};
use super::side::{MANY, SOURCES, Side, source};
use crate::topology::{
    Family, Host, cluster_ip, external_ip, load_balancer_vip, second_node_address,
};
use crate::traffic::{Answer, HOST_PORT, Outcome, Patience, Protocol, ask};

/// An address of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    ClusterIp,
    ExternalIp,
    SharedIp,
    Vip,
    NodePort,
    SecondNodePort,
    Localhost,
    /// `healthCheckNodePort`, asked over HTTP.
    HealthCheck,
}

impl At {
    pub const ALL: [Self; 8] = [
        Self::ClusterIp,
        Self::ExternalIp,
        Self::SharedIp,
        Self::Vip,
        Self::NodePort,
        Self::SecondNodePort,
        Self::Localhost,
        Self::HealthCheck,
    ];

    /// Whether a packet there has an address of the node itself.
    pub const fn is_on_node(self) -> bool {
        matches!(
            self,
            Self::NodePort | Self::SecondNodePort | Self::Localhost | Self::HealthCheck
        )
    }
}

/// Clients, and how many of a hundred packets are theirs.
///
/// None is a pod of another node: the answers that it gets come past this node.
const CLIENTS: [(Host, usize); 5] = [
    (Host::Client, 30),
    (Host::Shell, 25),
    (Host::Node, 20),
    (Host::Web1, 13),
    (Host::Remote, 12),
];

/// A client, and what it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    pub n: u8,
    pub from: Host,
    pub at: At,
    pub family: Family,
    pub protocol: Protocol,
    /// The Service's port.
    pub port: u16,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            n,
            from,
            at,
            protocol,
            ..
        } = self;
        write!(
            f,
            "{from} to {at:?} of service-{n}: {protocol} {}",
            self.to()
        )
    }
}

impl Probe {
    pub fn random(services: &[&Service], dice: &mut Dice) -> Self {
        let service = dice.pick(services);
        let mut which = dice.below(100);
        let from = CLIENTS.into_iter().find(|(_, share)| {
            let is_it = which < *share;
            which = which.saturating_sub(*share);
            is_it
        });
        let from = from.map_or(Host::Client, |(host, _)| host);
        let port = dice.pick(&service.ports);
        let at = loop {
            let at = dice.pick(&At::ALL);
            // Others cannot be asked there.
            if at == At::Localhost && from != Host::Node {
                continue;
            }
            // What the Service has is asked more often.
            if has(service, at) || dice.chance(8) {
                break at;
            }
        };
        let family = if dice.chance(95) {
            dice.pick(&service.families)
        } else {
            dice.pick(&Family::ALL)
        };
        let (mut number, mut protocol) = (port.number, port.protocol);
        match dice.below(40) {
            0 => number = HOST_PORT,
            1 => number = 81,
            2 => protocol = dice.pick(&super::objects::protocols()),
            3 => number = Service::health_check_port(service.n),
            _ => {}
        }
        if at == At::HealthCheck {
            protocol = Protocol::Tcp;
        }
        Self {
            n: service.n,
            from,
            at,
            family,
            protocol,
            port: number,
        }
    }

    pub fn to(self) -> SocketAddr {
        let Self {
            n, family, port, ..
        } = self;
        let node_port = Service::node_port(n, port);
        match self.at {
            At::ClusterIp => (cluster_ip(family, n + 100), port),
            At::ExternalIp => (external_ip(family, n), port),
            At::SharedIp => (external_ip(family, SHARED), port),
            At::Vip => (load_balancer_vip(family, n), port),
            At::NodePort => (Host::Node.address(family), node_port),
            At::SecondNodePort => (second_node_address(family), node_port),
            At::Localhost => (loopback(family), node_port),
            At::HealthCheck => (Host::Node.address(family), Service::health_check_port(n)),
        }
        .into()
    }

    /// Whether each client address is another client to the Service.
    fn is_sticky(self, services: &BTreeMap<u8, Service>) -> bool {
        services
            .get(&self.n)
            .is_some_and(|service| service.has_affinity)
    }
}

/// The loopback address.
const fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// Whether a Service answers there, if anybody does.
pub fn has(service: &Service, at: At) -> bool {
    match at {
        At::ClusterIp => service.kind != Kind::ExternalName && service.kind != Kind::Headless,
        At::ExternalIp => service.has_external_ip,
        At::SharedIp => service.has_shared_ip,
        At::Vip => service.kind == Kind::LoadBalancer && service.has_vip,
        At::NodePort | At::SecondNodePort | At::Localhost => service.has_node_ports(),
        At::HealthCheck => service.has_health_check(),
    }
}

/// What became of the packets of a probe, in words: who answered and whom he saw, or how nobody
/// did.
pub type Fate = BTreeSet<String>;

pub const REFUSED: &str = "refused";
pub const TIMED_OUT: &str = "timed out";

/// A probe that met something else on the other node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub probe: Probe,
    pub left: Fate,
    pub right: Fate,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:\n  left:  {:?}\n  right: {:?}",
            self.probe, self.left, self.right
        )
    }
}

/// Connections that are made at least.
const FEWEST: usize = 4;
/// More connections for each endpoint than any fair choice among them needs to reach all of them.
const MOST: usize = 30;
/// Clients that ask at the same time. Most of them wait for an answer that does not come.
const AT_A_TIME: usize = 24;

/// A probe on one of the sides.
struct Asking<'a> {
    side: &'a Side,
    probe: Probe,
    is_sticky: bool,
    /// Where among the addresses of a client those begin that have not asked before.
    first: u16,
    asked: u16,
    met: Fate,
}

impl Asking<'_> {
    fn once(&mut self, patience: Patience) -> Result<()> {
        let Probe {
            from,
            protocol,
            at,
            family,
            ..
        } = self.probe;
        let namespace = self.side.topology.host(from);
        if at == At::HealthCheck {
            let met = health(self, patience);
            self.met.insert(met);
            return Ok(());
        }
        let own = if self.is_sticky && MANY.contains(&from) {
            let index = self.first + self.asked % (SOURCES / 2);
            Some(source(from, family, index))
        } else if protocol == Protocol::Sctp {
            // It would name all of its addresses, more than a frame has room for.
            Some(if at == At::Localhost {
                loopback(family)
            } else {
                from.address(family)
            })
        } else {
            None
        };
        self.asked += 1;
        let ask = |patience| ask(namespace, own, self.probe.to(), protocol, patience);
        let first = ask(patience)?;
        let mut words = told(&first, own, self.is_sticky && own.is_none());
        if self.is_sticky && own.is_some() && matches!(first, Outcome::Answered(_)) {
            // The same client meets the same endpoint.
            let again = told(&ask(patience)?, own, false);
            if again != words {
                words = String::from("not the same endpoint again");
            }
        }
        self.met.insert(words);
        Ok(())
    }

    fn is_answered(&self) -> bool {
        self.met.iter().any(|words| words.starts_with("answered"))
    }
}

/// An outcome in words that do not depend on chance.
fn told(outcome: &Outcome, own: Option<IpAddr>, is_by_chance: bool) -> String {
    match outcome {
        // Whom the one endpoint sees depends on which it is.
        Outcome::Answered(_) if is_by_chance => "answered".to_owned(),
        Outcome::Answered(Answer { by, port, source }) if own == Some(*source) => {
            format!("answered by {by}:{port}, saw the client")
        }
        outcome => outcome.to_string(),
    }
}

/// What the health check says.
fn health(asking: &Asking<'_>, patience: Patience) -> String {
    let limit = Duration::from_secs(if patience == Patience::Long { 60 } else { 2 });
    let answer = || -> Result<String> {
        let to = asking.probe.to();
        let namespace = asking.side.topology.host(asking.probe.from);
        let mut stream = namespace.enter(|| TcpStream::connect_timeout(&to, limit))??;
        stream.set_read_timeout(Some(limit))?;
        write!(stream, "GET / HTTP/1.0\r\nHost: node\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let code = head.split(' ').nth(1).context("no status")?.to_owned();
        let body: String = body.split_whitespace().collect();
        Ok(format!("answered {code}: {body}"))
    };
    answer().unwrap_or_else(|error| {
        let error = error.downcast_ref::<std::io::Error>();
        match error.map(std::io::Error::kind) {
            Some(std::io::ErrorKind::ConnectionRefused) => REFUSED.to_owned(),
            _ => TIMED_OUT.to_owned(),
        }
    })
}

/// Sends the packets of all probes on both sides; returns those that met something else.
pub fn compare(
    sides: &[Side; 2],
    probes: &[Probe],
    services: &BTreeMap<u8, Service>,
    first: u16,
    patience: Patience,
) -> Result<Vec<Difference>> {
    let next = Mutex::new(probes.iter());
    let found = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        loop {
            let Some(probe) = next.lock().expect("nobody panics").next() else {
                return Ok(());
            };
            if let Some(difference) = differs(sides, *probe, services, first, patience)? {
                found.lock().expect("nobody panics").push(difference);
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a client does not panic"))
    })?;
    let mut found = found.into_inner().expect("nobody panics");
    found.sort_by_key(|difference| difference.probe);
    Ok(found)
}

fn differs(
    sides: &[Side; 2],
    probe: Probe,
    services: &BTreeMap<u8, Service>,
    first: u16,
    patience: Patience,
) -> Result<Option<Difference>> {
    let is_sticky = probe.is_sticky(services);
    let [mut left, mut right] = [0, 1].map(|index| Asking {
        side: &sides[index],
        probe,
        is_sticky,
        first,
        asked: 0,
        met: Fate::new(),
    });
    for asking in [&mut left, &mut right] {
        asking.once(patience).with_context(|| format!("{probe}"))?;
        // What is not answered is not answered a second time either; a second time is seen if the
        // other is.
        if asking.is_answered() && probe.at != At::HealthCheck {
            for _ in 1..FEWEST {
                asking.once(patience)?;
            }
        }
    }
    let most = MOST * left.met.union(&right.met).count();
    let mut count = 0;
    // Whoever has not met what the other has goes on asking.
    while left.met != right.met && count < most && (left.is_answered() && right.is_answered()) {
        count += 1;
        let lacks_left = !left.met.is_superset(&right.met);
        let lacks_right = !right.met.is_superset(&left.met);
        if lacks_left {
            left.once(patience)?;
        }
        if lacks_right {
            right.once(patience)?;
        }
    }
    Ok((left.met != right.met).then_some(Difference {
        probe,
        left: left.met,
        right: right.met,
    }))
}
