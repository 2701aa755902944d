// SPDX-License-Identifier: Apache-2.0
//! Connection synchronisation: a virtual address moves to another node and keeps its connections.
//! Two nodes on one wire, each with a proxy; the client's route says which of them has the address.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::Lab;
use super::forwarding::{METHOD, OWN_PORT, PORT, prepare};
use kpr_testkit::cases::At;
use kpr_testkit::load::{Load, Pod};
use kpr_testkit::manifests::Service;
use kpr_testkit::namespace::Namespace;
use kpr_testkit::proxy::{Proxy, ask_proxy};
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Connection, Patience, Protocol};
use kpr_testkit::wait;

/// Long connections of each family.
const LONG: usize = 24;
/// Where pods of the load serve.
const LOAD_PORT: u16 = 8086;
const FLAGS: [&str; 2] = ["--ipvs-sync-interface=eth0", "--ipvs-sync-id=7"];

/// The two nodes, of which one has the virtual addresses.
const NODES: [Host; 2] = [Host::Node, Host::Remote];

struct Pair {
    lab: Lab,
    service: Service,
}

impl Pair {
    fn start(&self, flags: &[&str]) -> Result<[Proxy; 2]> {
        let invocation = self.lab.invocation.clone().with(flags);
        let [one, other] = NODES.map(|host| {
            let proxy = Proxy::start(self.at(host), &invocation);
            proxy.with_context(|| format!("on {host}"))
        });
        Ok([one?, other?])
    }

    fn at(&self, host: Host) -> &Namespace {
        self.lab.topology.host(host)
    }

    fn vip(&self, family: Family, port: u16) -> SocketAddr {
        At::Vip.address(&self.service, family, port)
    }

    /// From now on the client's packets to the virtual addresses go to this node.
    fn move_to(&self, host: Host) -> Result<()> {
        let routes = Family::ALL.map(|family| {
            let network = match family {
                Family::V4 => "198.51.100.0/24",
                Family::V6 => "2001:db8:198::/64",
            };
            format!("route replace {network} via {}\n", host.address(family))
        });
        self.at(Host::Client).ip(&routes.concat())
    }

    fn open(&self, count: usize) -> Result<Vec<Connection>> {
        let mut open = Vec::new();
        for family in Family::ALL {
            let to = self.vip(family, PORT);
            for _ in 0..count {
                let from = self.at(Host::Client);
                let connection = Connection::open(from, to, Protocol::Tcp, Patience::Long)?;
                let mut connection = connection.map_err(|outcome| anyhow!("{to} was {outcome}"))?;
                // A connection is sent after three packets.
                connection.echo()?;
                open.push(connection);
            }
        }
        Ok(open)
    }

    /// Established connections that a node knows.
    fn known(&self, host: Host) -> Result<usize> {
        let text = self.at(host).run("ipvsadm", &["-L", "-n", "-c"])?;
        Ok(text
            .lines()
            .filter(|line| line.contains("ESTABLISHED"))
            .count())
    }

    /// Active connections of the virtual addresses, as a node counts them.
    fn counted(&self, host: Host) -> Result<usize> {
        let mut count = 0;
        for family in Family::ALL {
            let at = self.vip(family, PORT).to_string();
            let text = self.at(host).run("ipvsadm", &["-L", "-n", "-t", &at])?;
            let servers = text.lines().filter(|line| line.trim().starts_with("->"));
            let active =
                servers.filter_map(|line| line.split_whitespace().nth(4)?.parse::<usize>().ok());
            count += active.sum::<usize>();
        }
        Ok(count)
    }

    fn daemons(&self, host: Host) -> Result<Vec<String>> {
        let text = self.at(host).run("ipvsadm", &["-L", "--daemon"])?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn has_daemons(&self, host: Host, count: usize) -> Result<()> {
        wait::until("the sync daemons are as wanted", || {
            let found = self.daemons(host)?;
            let are_so = found.iter().all(|it| it.contains("mcast=eth0, syncid=7"));
            ensure!(found.len() == count && are_so, "{host}: {found:?}");
            Ok(())
        })
    }
}

/// How many still answer.
fn alive(connections: &mut [Connection]) -> usize {
    let answers = connections.iter_mut().map(Connection::echo);
    answers.flatten().count()
}

fn pair(binary: &Path) -> Result<Pair> {
    let mut service = Service::new("direct-routing", 1, &[Host::Lan]).exposed();
    for port in &mut service.ports {
        port.port = PORT;
    }
    let service = service
        .port(OWN_PORT, OWN_PORT)
        .port(LOAD_PORT, LOAD_PORT)
        .annotated(METHOD, "direct-routing");
    let flags = [
        "--service-annotations=forwarding-method",
        "--ipvs-sync-period=1s",
    ];
    let lab = Lab::new(binary, std::slice::from_ref(&service), &flags)?;
    prepare(&lab, std::slice::from_ref(&service))?;
    Ok(Pair { lab, service })
}

pub(super) fn connections_move_with_their_address(binary: &Path) -> Result<()> {
    let pair = pair(binary)?;
    // Without it they break: what follows shows something.
    let proxies = pair.start(&[])?;
    pair.move_to(Host::Node)?;
    let mut lost = pair.open(4)?;
    pair.move_to(Host::Remote)?;
    let left = alive(&mut lost);
    ensure!(left == 0, "{left} of 8 connections moved by themselves");
    drop(lost);
    for proxy in proxies {
        proxy.terminate()?;
    }

    let proxies = pair.start(&FLAGS)?;
    for host in NODES {
        pair.has_daemons(host, 2)?;
    }
    pair.move_to(Host::Node)?;
    let before = pair.known(Host::Remote)?;
    let mut long = pair.open(LONG)?;
    wait::until("the other node knows all connections", || {
        let known = pair.known(Host::Remote)?;
        ensure!(
            known >= before + 2 * LONG,
            "it knows {known}, {before} before"
        );
        Ok(())
    })?;
    let counted = pair.counted(Host::Remote)?;
    ensure!(counted >= long.len(), "it counts {counted} as its own");
    // Both directions: there, and back.
    for to in [Host::Remote, Host::Node, Host::Remote] {
        pair.move_to(to)?;
        let left = alive(&mut long);
        ensure!(
            left == long.len(),
            "{left} of {} connections live on {to}; the logs:\n{}\n{}",
            long.len(),
            proxies[0].log(),
            proxies[1].log()
        );
    }
    println!("{} long connections, 3 moves: none lost", long.len());
    under_load(&pair)
}

/// Long connections that talk all the time, and new ones, while the address moves to and fro. Those
/// that are being opened at that moment are too young to have been sent: with `sloppy_tcp` the
/// other node takes them in from any packet.
fn under_load(pair: &Pair) -> Result<()> {
    for host in NODES {
        pair.at(host).sysctl(&[("net/ipv4/vs/sloppy_tcp", "1")])?;
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let targets: Vec<SocketAddr> = Family::ALL.map(|family| pair.vip(family, LOAD_PORT)).into();
    let _pod = Pod::start(&runtime, "lan", pair.at(Host::Lan), &targets)?;
    let load = Load::start(pair.at(Host::Client), targets, 20, LONG)?;
    let mut answered = 0;
    for to in [Host::Node, Host::Remote, Host::Node] {
        answered += 40;
        wait::until("new connections are answered", || {
            load.is_unharmed()?;
            ensure!(load.connections() >= answered, "{}", load.connections());
            Ok(())
        })?;
        pair.move_to(to)?;
    }
    wait::until("new connections are answered", || {
        ensure!(
            load.connections() >= answered + 40,
            "{}",
            load.connections()
        );
        Ok(())
    })?;
    let totals = load.finish()?;
    println!("under load, 3 moves: {totals:?}, none failed, {LONG} connections held");
    Ok(())
}

/// The daemons are kept while the flag is there, and go with it; others' stay.
pub(super) fn daemons_follow_the_flag(binary: &Path) -> Result<()> {
    let pair = pair(binary)?;
    let node = pair.at(Host::Node);
    let with = |flags: &[&str]| {
        let invocation = pair.lab.invocation.clone().with(flags);
        Proxy::start(node, &invocation)
    };
    let theirs = [
        "--start-daemon",
        "backup",
        "--mcast-interface",
        "eth0",
        "--syncid",
        "7",
    ];
    node.run("ipvsadm", &theirs)?;
    let proxy = with(&[])?;
    pair.has_daemons(Host::Node, 1)?;
    proxy.terminate()?;
    pair.has_daemons(Host::Node, 1)?;
    node.run("ipvsadm", &["--stop-daemon", "backup"])?;

    let proxy = with(&FLAGS)?;
    pair.has_daemons(Host::Node, 2)?;
    for role in ["master", "backup"] {
        node.run("ipvsadm", &["--stop-daemon", role])?;
        pair.has_daemons(Host::Node, 2)?;
    }
    // They stay while the proxy is restarted, and one without the flag stops them.
    proxy.terminate()?;
    pair.has_daemons(Host::Node, 2)?;
    let proxy = with(&[])?;
    pair.has_daemons(Host::Node, 0)?;
    proxy.terminate()?;

    let proxy = with(&FLAGS)?;
    pair.has_daemons(Host::Node, 2)?;
    proxy.terminate()?;
    let done = ask_proxy(node, binary, &["--cleanup"])?;
    ensure!(done.code == Some(0), "{done:?}");
    pair.has_daemons(Host::Node, 0)
}

/// Both nodes have a link of their own for it, which comes late, goes, and comes back.
pub(super) fn daemons_follow_their_interface(binary: &Path) -> Result<()> {
    let pair = pair(binary)?;
    let there = pair.at(Host::Remote).path();
    let plug = || {
        let both = format!("link add sync0 type veth peer name sync0 netns {there}\n");
        pair.at(Host::Node).ip(&both)?;
        NODES.into_iter().enumerate().try_for_each(|(index, host)| {
            let up = format!("address add 192.0.2.{index}/31 dev sync0\nlink set sync0 up\n");
            pair.at(host).ip(&up)
        })
    };
    let has = |count: usize| {
        wait::until("the sync daemons are as wanted", || {
            for host in NODES {
                let found = pair.daemons(host)?;
                ensure!(found.len() == count, "{host}: {found:?}");
            }
            Ok(())
        })
    };
    // Services do not wait for it.
    let proxies = pair.start(&["--ipvs-sync-interface=sync0"])?;
    for proxy in &proxies {
        proxy.wait_for_log(&["--ipvs-sync-interface sync0 is not there"])?;
    }
    pair.move_to(Host::Node)?;
    drop(pair.open(1)?);
    has(0)?;
    plug()?;
    has(2)?;
    let hears = || {
        wait::until("connections are heard of over the interface", || {
            let before = pair.known(Host::Remote)?;
            let _open = pair.open(1)?;
            wait::until_within(Duration::from_secs(10), "they are known", || {
                let known = pair.known(Host::Remote)?;
                ensure!(known >= before + 2, "{known}, {before} before");
                Ok(())
            })
        })
    };
    hears()?;
    // The kernel's daemons would stay with the one that is gone.
    pair.at(Host::Node).ip("link delete sync0\n")?;
    plug()?;
    has(2)?;
    hears()?;
    pair.at(Host::Node).ip("link delete sync0\n")?;
    has(0)
}
