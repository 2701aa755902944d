// SPDX-License-Identifier: Apache-2.0
//! UDP clients that never change their port, and what becomes of them when endpoints, addresses and
//! Services come and go. Both modes; `conntrack` says which flows there are.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libtest_mimic::Trial;

use crate::cases::run::{SharedWorld, World, failed};
use crate::cases::{At, Dataplane};
use crate::flows::{Ends, Flow, flows};
use crate::manifests::{Endpoint, ManifestDirectory, Service};
use crate::namespace::Namespace;
use crate::proxy::{self, Invocation, Proxy};
use crate::topology::{Family, Host};
use crate::traffic::{
    Connection, HOST_PORT, Outcome, Patience, Protocol, ask_again, datagram_socket,
};
use crate::wait;

/// Clients, and the kinds of addresses at which they meet the Service.
const CLIENTS: [(Host, At); 10] = [
    (Host::Shell, At::ClusterIp),
    (Host::Node, At::ClusterIp),
    (Host::Remote, At::ClusterIp),
    (Host::Client, At::ExternalIp),
    (Host::Client, At::Vip),
    (Host::Client, At::NodePort),
    (Host::Remote, At::NodePort),
    (Host::Shell, At::NodePort),
    (Host::Node, At::NodePort),
    (Host::Client, At::SecondNodePort),
];

/// Before that a flow does not end by itself, even of a client that sends nothing.
const SOON: Duration = Duration::from_secs(20);

const MAX: &str = "net/netfilter/nf_conntrack_max";
const BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// Where a rule of somebody else leads to an endpoint.
const FOREIGN_PORT: u16 = 7777;

/// Pairs of clients at one address that any choice among two endpoints needs to send both ways.
const MOST_CLIENTS: usize = 60;

/// The tests of a world.
pub fn trials(world: &SharedWorld, binary: &'static Path) -> Vec<Trial> {
    let test = |name: &str, run: fn(&World, &Path) -> Result<()>| {
        let world = world.clone();
        Trial::test(format!("{}::flows::{name}", world.dataplane()), move || {
            world
                .without_proxy(|world| run(world, binary))
                .map_err(failed)
        })
    };
    vec![
        test("follow_endpoints_and_services", follow),
        test("are_caught_up_with_after_a_crash", catch_up),
    ]
}

/// A client that keeps its port.
struct Client {
    socket: UdpSocket,
    from: Host,
    at: At,
    /// The first answer's.
    by: String,
}

impl Client {
    fn ends(&self) -> Result<Ends> {
        Ok((self.socket.local_addr()?, self.socket.peer_addr()?))
    }

    fn family(&self) -> Result<Family> {
        Ok(family_of(self.socket.peer_addr()?))
    }

    fn ask(&self) -> Result<Outcome> {
        ask_again(&self.socket, Patience::Long)
    }

    fn describe(&self) -> String {
        format!(
            "{} at {:?} ({:?})",
            self.from,
            self.at,
            self.socket.peer_addr()
        )
    }
}

fn family_of(address: SocketAddr) -> Family {
    if address.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    }
}

struct Lab<'a> {
    world: &'a World,
    manifests: ManifestDirectory,
    invocation: Invocation,
    service: Service,
}

impl<'a> Lab<'a> {
    fn new(world: &'a World, binary: &Path, flags: &[&str]) -> Result<Self> {
        let service = Service::new("flows", 77, &[Host::Web1, Host::Web3])
            .protocols(&[Protocol::Tcp, Protocol::Udp])
            .exposed();
        let manifests = ManifestDirectory::new(std::slice::from_ref(&service))?;
        let mode = world.dataplane.mode().name();
        Ok(Self {
            invocation: Invocation::new(binary, &manifests, mode)
                .in_cluster()
                .with(flags),
            world,
            manifests,
            service,
        })
    }

    fn node(&self) -> &Namespace {
        self.world.topology.host(Host::Node)
    }

    /// A rule of somebody else that leads UDP at [`FOREIGN_PORT`] to an endpoint.
    fn foreign_rule(&self, verb: &str) -> Result<()> {
        let program = self.world.dataplane.program(Family::V4);
        let (port, web) = (FOREIGN_PORT.to_string(), Host::Web1.address(Family::V4));
        let to = SocketAddr::new(web, 8080).to_string();
        let rule = [
            "-p",
            "udp",
            "--dport",
            &port,
            "-j",
            "DNAT",
            "--to-destination",
            &to,
        ];
        let place = ["-w", "-t", "nat", verb, "PREROUTING"];
        self.node().run(&program, &[&place[..], &rule].concat())?;
        Ok(())
    }

    /// Whether iptables mode has the rule against packets that conntrack calls invalid, in both
    /// families.
    fn drops_invalid(&self) -> Result<Option<bool>> {
        let Dataplane::Iptables(backend) = self.world.dataplane else {
            return Ok(None);
        };
        let mut drops = Vec::new();
        for family in Family::ALL {
            let save = format!("{}-save", backend.program(family));
            let rules = self.node().run(&save, &["-t", "filter"])?;
            drops.push(rules.lines().any(|rule| {
                // Between them the packets may be counted.
                rule.starts_with("-A KUBE-FORWARD")
                    && rule.contains("--ctstate INVALID ")
                    && rule.ends_with("-j DROP")
            }));
        }
        ensure!(
            drops.iter().all(|drop| Some(drop) == drops.first()),
            "{drops:?}"
        );
        Ok(drops.first().copied())
    }

    fn start(&self) -> Result<Proxy> {
        Proxy::start(self.node(), &self.invocation)
    }

    fn client(&self, from: Host, at: At, family: Family) -> Result<Client> {
        let to = at.address(&self.service, family, 80);
        let socket = datagram_socket(self.world.topology.host(from), to)?;
        Ok(Client {
            socket,
            from,
            at,
            by: String::new(),
        })
    }

    /// For each kind of client at each address, one that each of the endpoints answers.
    fn clients(&self) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for family in Family::ALL {
            for (from, at) in CLIENTS {
                let mut found: BTreeMap<String, Client> = BTreeMap::new();
                let mut asked = 0;
                while found.len() < 2 {
                    let client = self.client(from, at, family)?;
                    asked += 1;
                    ensure!(
                        asked <= MOST_CLIENTS,
                        "{}: only {:?} answer",
                        client.describe(),
                        found.keys()
                    );
                    match client.ask()? {
                        Outcome::Answered(answer) => {
                            let by = answer.by.clone();
                            found.insert(by.clone(), Client { by, ..client });
                        }
                        other => bail!("{} was {other}", client.describe()),
                    }
                }
                clients.extend(found.into_values());
            }
        }
        Ok(clients)
    }

    fn flows(&self, protocol: Protocol) -> Result<BTreeMap<Ends, Flow>> {
        let mut all = BTreeMap::new();
        for family in Family::ALL {
            all.extend(flows(self.node(), family, protocol)?);
        }
        Ok(all)
    }

    /// The ids of some clients' flows.
    fn ids(&self, clients: &[&Client]) -> Result<BTreeMap<Ends, u64>> {
        let flows = self.flows(Protocol::Udp)?;
        clients
            .iter()
            .map(|client| {
                let ends = client.ends()?;
                let flow = flows.get(&ends);
                let flow = flow.with_context(|| format!("no flow of {}", client.describe()))?;
                Ok((ends, flow.id))
            })
            .collect()
    }
}

/// Sends from all of the clients ten times a second until another host answers each of them, and
/// returns how long that took.
fn moved(clients: &[&Client], to: Host) -> Result<Duration> {
    let start = wait::now();
    let mut waiting: Vec<&Client> = clients.to_vec();
    for client in &waiting {
        client.socket.set_nonblocking(true)?;
    }
    let mut sent = None;
    let result = wait::until_within(SOON, "all clients have moved", || {
        if sent.is_none_or(|at: std::time::Instant| at.elapsed() >= Duration::from_millis(100)) {
            sent = Some(wait::now());
            for client in &waiting {
                // A refusal that was under way is no matter.
                drop(client.socket.send(b"who is there?"));
            }
        }
        waiting.retain(|client| {
            let mut buffer = [0; 64];
            let mut is_moved = false;
            while let Ok(length) = client.socket.recv(&mut buffer) {
                let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
                is_moved |= line.starts_with(&format!("{to} "));
            }
            !is_moved
        });
        let left: Vec<String> = waiting.iter().map(|client| client.describe()).collect();
        ensure!(left.is_empty(), "not moved:\n{}", left.join("\n"));
        Ok(())
    });
    for client in clients {
        client.socket.set_nonblocking(false)?;
    }
    result.map(|()| start.elapsed())
}

/// All of the clients get an answer of this host.
fn answered(clients: &[&Client], by: Host) -> Result<()> {
    for client in clients {
        let outcome = client.ask()?;
        ensure!(
            matches!(&outcome, Outcome::Answered(answer) if answer.by == by.name()),
            "{} was {outcome}, wanted {by}",
            client.describe()
        );
    }
    Ok(())
}

fn follow(world: &World, binary: &Path) -> Result<()> {
    let lab = Lab::new(world, binary, &[])?;
    let proxy = lab.start()?;
    lab.foreign_rule("-A")?;
    let result = Story::begin(&lab).and_then(Story::tell);
    lab.foreign_rule("-D")?;
    result.with_context(|| {
        let log = proxy.log();
        let end: Vec<&str> = log.lines().rev().take(20).collect();
        format!("the end of the log, last line first:\n{}", end.join("\n"))
    })
}

/// Clients of a Service that changes, and what must not be touched by that.
struct Story<'a> {
    lab: &'a Lab<'a>,
    service: Service,
    clients: Vec<Client>,
    connections: Vec<Connection>,
    /// Flows that are none of the proxy's.
    foreign: Vec<Client>,
    /// The ids of the flows at the beginning.
    ids: BTreeMap<Ends, u64>,
}

impl<'a> Story<'a> {
    fn begin(lab: &'a Lab<'a>) -> Result<Self> {
        let mut connections = Vec::new();
        let mut foreign = Vec::new();
        let shell = lab.world.topology.host(Host::Shell);
        let outside = lab.world.topology.host(Host::Client);
        for family in Family::ALL {
            let to = At::ClusterIp.address(&lab.service, family, 80);
            for _ in 0..2 {
                let opened = Connection::open(shell, to, Protocol::Tcp, Patience::Long)?;
                connections.push(opened.map_err(|outcome| anyhow!("{to}: {outcome}"))?);
            }
            let node = Host::Node.address(family);
            let mut places = vec![SocketAddr::new(node, HOST_PORT)];
            if family == Family::V4 {
                places.push(SocketAddr::new(node, FOREIGN_PORT));
            }
            for to in places {
                let client = Client {
                    socket: datagram_socket(outside, to)?,
                    from: Host::Client,
                    at: At::NodePort,
                    by: String::new(),
                };
                let outcome = client.ask()?;
                ensure!(
                    matches!(outcome, Outcome::Answered(_)),
                    "foreign {to} was {outcome}"
                );
                foreign.push(client);
            }
        }
        let clients = lab.clients()?;
        let all: Vec<&Client> = clients.iter().chain(&foreign).collect();
        Ok(Self {
            ids: lab.ids(&all)?,
            service: lab.service.clone(),
            lab,
            clients,
            connections,
            foreign,
        })
    }

    fn tell(mut self) -> Result<()> {
        self.endpoint_goes().context("an endpoint went")?;
        self.address_goes().context("an address went")?;
        self.last_endpoint_goes()
            .context("the last endpoint went")?;
        self.first_endpoint_comes()
            .context("the first endpoint came")?;
        self.service_goes().context("the Service went")?;
        self.lab.manifests.apply(&self.service)?;
        moved(&self.all(), Host::Web1).context("the Service came back")?;
        self.are_untouched(&[])
    }

    fn all(&self) -> Vec<&Client> {
        self.clients.iter().collect()
    }

    /// Those that this host answered first.
    fn of(&self, by: Host) -> Vec<&Client> {
        let mut of = self.all();
        of.retain(|client| client.by == by.name());
        of
    }

    /// These clients and the foreign ones have the flows that they had at the beginning.
    fn are_untouched(&self, clients: &[&Client]) -> Result<()> {
        let all: Vec<&Client> = clients.iter().copied().chain(&self.foreign).collect();
        for (ends, id) in self.lab.ids(&all)? {
            let before = self.ids.get(&ends);
            ensure!(
                before == Some(&id),
                "the flow {ends:?} was {before:?} and is {id}"
            );
        }
        Ok(())
    }

    fn endpoint_goes(&mut self) -> Result<()> {
        self.service.endpoints = vec![Endpoint::ready(Host::Web3)];
        self.lab.manifests.apply(&self.service)?;
        let leaving = self.of(Host::Web1);
        let took = moved(&leaving, Host::Web3)?;
        eprintln!("{} clients moved within {took:?}", leaving.len());
        let staying = self.of(Host::Web3);
        answered(&staying, Host::Web3)?;
        self.are_untouched(&staying)?;
        for connection in &mut self.connections {
            connection.echo()?;
        }
        Ok(())
    }

    /// The Service alone changes.
    fn address_goes(&mut self) -> Result<()> {
        let (at_vip, others): (Vec<&Client>, Vec<&Client>) = self
            .of(Host::Web3)
            .into_iter()
            .partition(|client| client.at == At::Vip);
        let ending: Vec<Ends> = at_vip.iter().map(|c| c.ends()).collect::<Result<_>>()?;
        ensure!(ending.len() == 2, "{ending:?}");
        let without_vip = Service {
            load_balancer: false,
            ..self.service.clone()
        };
        self.lab.manifests.apply(&without_vip)?;
        wait::until_within(SOON, "flows to the VIP have ended", || {
            let flows = self.lab.flows(Protocol::Udp)?;
            let mut left = ending.iter().filter(|ends| flows.contains_key(ends));
            let first = left.next();
            ensure!(first.is_none(), "{first:?} is left");
            Ok(())
        })?;
        self.are_untouched(&others)?;
        self.lab.manifests.apply(&self.service)?;
        let mut at_vip = self.all();
        at_vip.retain(|client| client.at == At::Vip);
        moved(&at_vip, Host::Web3).context("it came back")?;
        Ok(())
    }

    /// Nobody answers any more, at node ports neither.
    fn last_endpoint_goes(&mut self) -> Result<()> {
        self.service.endpoints = Vec::new();
        self.lab.manifests.apply(&self.service)?;
        for client in &self.clients {
            wait::until_within(SOON, "it is refused", || {
                let outcome = client.ask()?;
                ensure!(
                    outcome == Outcome::Refused,
                    "{} was {outcome}",
                    client.describe()
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    fn first_endpoint_comes(&mut self) -> Result<()> {
        self.service.endpoints = vec![Endpoint::ready(Host::Web1)];
        self.lab.manifests.apply(&self.service)?;
        moved(&self.all(), Host::Web1)?;
        Ok(())
    }

    /// What its clients send from now on goes past where it was, and is remembered as such.
    fn service_goes(&self) -> Result<()> {
        self.lab.manifests.delete(&self.service)?;
        wait::until_within(SOON, "no flow leads to an endpoint of the Service", || {
            for client in &self.clients {
                drop(client.socket.send(b"anybody?"));
            }
            let flows = self.lab.flows(Protocol::Udp)?;
            let mut past = 0;
            for client in &self.clients {
                let (ends, web) = (client.ends()?, Host::Web1.address(client.family()?));
                let answerer = flows.get(&ends).map(|flow| flow.answerer);
                ensure!(
                    answerer.is_none_or(|answerer| answerer.ip() != web),
                    "{}: {answerer:?}",
                    client.describe()
                );
                past += usize::from(answerer == Some(ends.1));
            }
            // At least those that are forwarded.
            ensure!(past >= 4, "only {past} flows go past it");
            Ok(())
        })
    }
}

/// What changed while no proxy ran is found at the next start. Kernel settings are made then, too.
fn catch_up(world: &World, binary: &Path) -> Result<()> {
    let flags = [
        "--conntrack-tcp-timeout-established=2h",
        "--conntrack-udp-timeout=41s",
        // Only the machine's first network namespace may.
        "--conntrack-max-per-core=1000000",
    ];
    let lab = Lab::new(world, binary, &flags)?;
    lab.node().sysctl(&[(BE_LIBERAL, "1")])?;
    let proxy = lab.start()?;
    ensure!(lab.drops_invalid()? != Some(true), "the kernel is liberal");
    for (key, value) in [("tcp_timeout_established", "7200"), ("udp_timeout", "41")] {
        let path = format!("net.netfilter.nf_conntrack_{key}");
        let found = lab.node().run("sysctl", &["-n", &path])?;
        ensure!(found.trim() == value, "{key} is {found}");
    }
    let unwritable = proxy::series(lab.node(), "kube_proxy_rs_sysctl_unwritable")?;
    let series = format!("kube_proxy_rs_sysctl_unwritable{{name=\"{MAX}\"}}");
    ensure!(unwritable.get(&series) == Some(&1.0), "{unwritable:?}");
    let log = proxy.log();
    ensure!(
        log.lines().filter(|line| line.contains(MAX)).count() == 1,
        "wanted one line about {MAX}:\n{log}"
    );

    let clients = lab.clients()?;
    let (on_web1, on_web3): (Vec<&Client>, Vec<&Client>) = clients
        .iter()
        .partition(|client| client.by == Host::Web1.name());
    let untouched = lab.ids(&on_web3)?;
    proxy.kill()?;
    let mut service = lab.service.clone();
    service.endpoints = vec![Endpoint::ready(Host::Web3)];
    lab.manifests.apply(&service)?;
    answered(&on_web1, Host::Web1).context("without a proxy")?;
    lab.node().sysctl(&[(BE_LIBERAL, "0")])?;
    let proxy = lab.start()?;
    ensure!(lab.drops_invalid()? != Some(false), "the kernel is strict");
    moved(&on_web1, Host::Web3).with_context(|| format!("the log:\n{}", proxy.log()))?;
    answered(&on_web3, Host::Web3)?;
    ensure!(
        lab.ids(&on_web3)? == untouched,
        "flows to a live endpoint were replaced"
    );
    let rounds = proxy::metric(
        lab.node(),
        "kubeproxy_conntrack_reconciler_sync_duration_seconds_count",
    )?;
    ensure!(
        rounds >= 2.0,
        "looked at flows {rounds} times in two families"
    );
    Ok(())
}
