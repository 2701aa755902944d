// SPDX-License-Identifier: Apache-2.0
//! A rolling update under load: ten pods are replaced one by one as a Deployment does it, and no
//! client notices. Where the pods are, and how a proxy hears of them, is a [`Ground`].

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::load::{Load, Pod, Totals};
use crate::manifests::Service;
use crate::namespace::Namespace;
use crate::topology::{Family, Host};
use crate::traffic::{Outcome, Patience, Protocol, ask_again, datagram_socket};
use crate::wait;

pub const PODS: usize = 10;
const PORT: u16 = 7070;
/// Connections that stay, of all clients together.
const HELD: usize = 20;
/// A pod that shuts down goes on for as many connections of others: what `preStop` waits for.
const QUIET: usize = 200;

/// Where a rolling update happens.
pub trait Ground {
    /// Where a pod is; its addresses are there.
    fn make_room(&self, place: Place) -> Result<&Namespace>;

    /// Tells the proxy.
    fn publish(&self, manifest: &str) -> Result<()>;
}

/// Who asks, and whom.
#[derive(Debug)]
pub struct Client<'a> {
    pub from: &'a Namespace,
    pub targets: Vec<SocketAddr>,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// Of each client.
    pub totals: Vec<Totals>,
    pub took: Duration,
    /// The longest time from the news that a pod is no endpoint to the answer of another pod, for
    /// those who do not change their port.
    pub slowest_move: Duration,
}

impl Report {
    /// New connections of all clients.
    #[expect(clippy::cast_precision_loss, reason = "a figure to read")]
    pub fn per_second(&self) -> f64 {
        let connections: usize = self.totals.iter().map(|totals| totals.connections).sum();
        connections as f64 / self.took.as_secs_f64()
    }
}

/// The Service; its pods serve TCP and UDP at one port of their own.
pub fn service(name: &str, n: u8) -> Service {
    let mut service = Service::new(name, n, &[])
        .protocols(&[Protocol::Tcp, Protocol::Udp])
        .exposed();
    for port in &mut service.ports {
        port.target = PORT;
    }
    service
}

/// One generation of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize);

impl Place {
    /// All that there ever are.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..2 * PODS).map(Self)
    }

    /// Where there are several namespaces of pods.
    pub fn host(self) -> Host {
        Host::WEB[self.0 % Host::WEB.len()]
    }

    /// Each has addresses of its own, beside those of the host that it runs on.
    pub fn address(self, family: Family) -> IpAddr {
        let n = 20 + u8::try_from(self.0).unwrap_or(u8::MAX);
        match self.host().address(family) {
            IpAddr::V4(own) => {
                let [a, b, c, _] = own.octets();
                IpAddr::from([a, b, c, n])
            }
            IpAddr::V6(own) => {
                IpAddr::V6(Ipv6Addr::from_bits(own.to_bits() & !0xffff | u128::from(n)))
            }
        }
    }

    fn name(self) -> String {
        format!("pod-{}", self.0)
    }

    fn start(self, ground: &impl Ground, runtime: &Runtime) -> Result<Pod> {
        let namespace = ground.make_room(self)?;
        let addresses = Family::ALL.map(|family| SocketAddr::new(self.address(family), PORT));
        Pod::start(runtime, &self.name(), namespace, &addresses)
    }
}

/// An endpoint of the Service.
#[derive(Clone, Copy, Debug)]
struct Member {
    place: Place,
    is_terminating: bool,
}

fn manifest(service: &Service, members: &[Member]) -> String {
    let slices = Family::ALL.map(|family| {
        let endpoint = |member: &Member| {
            json!({
                "addresses": [member.place.address(family)],
                "conditions": {
                    "ready": !member.is_terminating,
                    "serving": true,
                    "terminating": member.is_terminating,
                },
                "nodeName": member.place.host().node().map(Host::name),
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default",
                "name": format!("{}-{family}", service.name),
                "labels": { "kubernetes.io/service-name": service.name },
            },
            "addressType": match family { Family::V4 => "IPv4", Family::V6 => "IPv6" },
            "ports": [
                { "name": "tcp-80", "protocol": "TCP", "port": PORT },
                { "name": "udp-80", "protocol": "UDP", "port": PORT },
            ],
            "endpoints": members.iter().map(endpoint).collect::<Vec<Value>>(),
        })
    });
    let items: Vec<Value> = [service.service_manifest()]
        .into_iter()
        .chain(slices)
        .collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

/// A Service with its pods.
pub struct Rollout<G> {
    ground: G,
    /// Runs the pods.
    runtime: Runtime,
    pods: Vec<(Place, Pod)>,
    service: Service,
    members: Vec<Member>,
}

impl<G: Ground> Rollout<G> {
    /// The first generation of pods serves.
    pub fn new(ground: G, service: Service) -> Result<Self> {
        let mut rollout = Self {
            ground,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
            pods: Vec::new(),
            service,
            members: Vec::new(),
        };
        for place in Place::all().take(PODS) {
            rollout.add(place)?;
        }
        rollout.publish()?;
        Ok(rollout)
    }

    fn publish(&self) -> Result<()> {
        self.ground.publish(&manifest(&self.service, &self.members))
    }

    fn add(&mut self, place: Place) -> Result<()> {
        let pod = place.start(&self.ground, &self.runtime)?;
        self.pods.push((place, pod));
        self.members.push(Member {
            place,
            is_terminating: false,
        });
        Ok(())
    }

    /// A pod shuts down: it is told apart at once, serves while others may not know that, and ends.
    fn remove(&mut self, place: Place, clients: &mut Clients) -> Result<()> {
        for member in &mut self.members {
            member.is_terminating |= member.place == place;
        }
        self.publish()?;
        let mut pods = self.pods.iter();
        let at = pods.position(|(other, _)| *other == place);
        let (_, pod) = self.pods.swap_remove(at.context("no such pod")?);
        clients.go_on_without("no new connection comes", || pod.accepted())?;
        clients.are_answered()?;
        pod.leave();
        wait::until("its connections have ended", || pod.is_alone())?;
        self.members.retain(|member| member.place != place);
        self.publish()?;
        clients.move_on_from(place)
    }

    /// Replaces all pods while these ask, so many new connections each second in all. The proxy
    /// knows the Service.
    pub fn replace_all(&mut self, clients: &[Client<'_>], per_second: u32) -> Result<Report> {
        let share = u32::try_from(clients.len())?.max(1);
        let mut sockets = Vec::new();
        let mut loads = Vec::new();
        let start = wait::now();
        for client in clients {
            for to in &client.targets {
                sockets.push(datagram_socket(client.from, *to)?);
            }
            let held = HELD / clients.len();
            let targets = client.targets.clone();
            loads.push(Load::start(client.from, targets, per_second / share, held)?);
        }
        let mut clients = Clients {
            loads,
            sockets,
            slowest_move: Duration::ZERO,
        };
        // Of the first generation, so that each has to move.
        let first = clients.are_answered()?;
        let places: Vec<Place> = Place::all().collect();
        for (old, new) in places.iter().zip(places.iter().skip(PODS)) {
            // A new pod becomes an endpoint as soon as it serves.
            self.add(*new)?;
            self.publish()?;
            self.remove(*old, &mut clients)?;
        }
        for (before, now) in first.iter().zip(clients.are_answered()?) {
            ensure!(*before != now, "datagrams went to {now} all the time");
        }
        // After the last change too.
        clients.go_on_without("the load goes on", || 0)?;
        for (place, pod) in &self.pods {
            ensure!(pod.accepted() > 0, "{place:?} was never used");
        }
        let took = start.elapsed();
        let totals = clients.loads.into_iter().map(Load::finish);
        let totals = totals.collect::<Result<Vec<Totals>>>()?;
        for totals in &totals {
            ensure!(
                totals.reconnects > 0 && totals.requests > totals.reconnects,
                "{totals:?}"
            );
            ensure!(totals.connections >= PODS * QUIET / 4, "{totals:?}");
        }
        Ok(Report {
            totals,
            took,
            slowest_move: clients.slowest_move,
        })
    }
}

/// Those who must not notice.
struct Clients {
    loads: Vec<Load>,
    /// Each asks from one port all the time.
    sockets: Vec<UdpSocket>,
    slowest_move: Duration,
}

impl Clients {
    fn connections(&self) -> usize {
        self.loads.iter().map(Load::connections).sum()
    }

    /// Who answers each of those that keep their port.
    fn are_answered(&self) -> Result<Vec<String>> {
        let ask = |socket: &UdpSocket| match ask_again(socket, Patience::Long)? {
            Outcome::Answered(answer) => Ok(answer.by),
            other => bail!("a datagram to {:?} was {other}", socket.peer_addr()),
        };
        self.sockets.iter().map(ask).collect()
    }

    /// Waits until none of those that keep their port is answered by this pod.
    fn move_on_from(&mut self, place: Place) -> Result<()> {
        let (name, since) = (place.name(), wait::now());
        wait::until("datagrams go elsewhere", || {
            let answers = self.are_answered()?;
            ensure!(!answers.contains(&name), "{name} still answers");
            Ok(())
        })?;
        self.slowest_move = self.slowest_move.max(since.elapsed());
        Ok(())
    }

    /// Waits until they have made many connections while `count` did not change.
    fn go_on_without(&self, what: &str, mut count: impl FnMut() -> usize) -> Result<()> {
        let (mut last, mut since) = (count(), self.connections());
        wait::until(what, || {
            // There is nothing to wait for any more.
            if let Err(harm) = self.loads.iter().try_for_each(Load::is_unharmed) {
                return Ok(Err(harm));
            }
            let now = count();
            if now != last {
                (last, since) = (now, self.connections());
            }
            let quiet = self.connections() - since;
            ensure!(
                quiet >= QUIET,
                "{quiet} connections without it, {now} with it"
            );
            Ok(Ok(()))
        })?
    }
}
