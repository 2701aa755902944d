// SPDX-License-Identifier: Apache-2.0
//! What tells each scheduler of the kernel from the others, with real connections. Every scheduler
//! has a Service of its own, whose annotations choose it and its weights: nothing that one leaves
//! behind counts for the next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::{Endpoint, Service};
use kpr_testkit::oracle;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Connection, Patience, Protocol};
use kpr_testkit::wait;

const SCHEDULER: &str = "kube-proxy-rs.io/scheduler";
const FLAGS: &str = "kube-proxy-rs.io/scheduler-flags";
const WEIGHTS: &str = "kube-proxy-rs.io/weights";

const HOSTS: [Host; 3] = [Host::Web1, Host::Web2, Host::Web3];
/// Clients of one pod: as many addresses.
const SOURCES: u8 = 12;

/// A scheduler's Service, its weights, and its test.
struct Case {
    scheduler: &'static str,
    weights: [u16; 3],
    check: fn(&Site<'_>) -> Result<()>,
}

const CASES: [Case; 13] = [
    case("rr", [1, 1, 1], takes_turns),
    case("wrr", [1, 2, 3], takes_turns_by_weight),
    case("lc", [1, 9, 9], picks_the_least_busy),
    case("wlc", [1, 3, 0], picks_the_least_busy_by_weight),
    case("sed", [1, 4, 0], leaves_the_slow_one_idle),
    case("nq", [1, 4, 0], picks_the_idle_one),
    case("fo", [3, 2, 1], picks_the_heaviest),
    case("ovf", [2, 1, 1], overflows),
    case("sh", [1, 1, 1], sticks_to_the_source),
    case("dh", [1, 1, 1], sticks_to_the_destination),
    case("lblc", [2, 2, 2], moves_when_overloaded),
    case("lblcr", [2, 2, 2], adds_a_server_when_overloaded),
    case("mh", [1, 1, 1], hardly_moves_when_a_server_leaves),
];

const fn case(
    scheduler: &'static str,
    weights: [u16; 3],
    check: fn(&Site<'_>) -> Result<()>,
) -> Case {
    Case {
        scheduler,
        weights,
        check,
    }
}

/// The Service of a case, as one family sees it.
struct Site<'a> {
    lab: &'a Lab,
    service: &'a Service,
    family: Family,
}

pub(super) fn show_what_defines_them(binary: &Path) -> Result<()> {
    let services: Vec<Service> = CASES
        .iter()
        .zip(1..)
        .map(|(case, n)| {
            Service::new(case.scheduler, n, &HOSTS)
                .protocols(&[Protocol::Tcp])
                .exposed()
                .annotated(SCHEDULER, case.scheduler)
                // One source, one server: the port would make each connection another.
                .annotated(FLAGS, if case.scheduler == "rr" { "" } else { "fallback" })
                .annotated(WEIGHTS, weights(case.weights))
        })
        .collect();
    let names = CASES.map(|case| case.scheduler).join(",");
    let allowed = format!("--service-schedulers={names}");
    let lab = Lab::new(binary, &services, &[&allowed])?;
    let proxy = lab.start()?;
    let addresses = Family::ALL.map(|family| {
        let bits = if family == Family::V4 { 24 } else { 64 };
        let add = |n| format!("address add {}/{bits} dev eth0 nodad\n", source(family, n));
        (0..SOURCES).map(add).collect::<String>()
    });
    lab.topology.host(Host::Shell).ip(&addresses.concat())?;
    for (case, service) in CASES.iter().zip(&services) {
        for family in Family::ALL {
            let site = Site {
                lab: &lab,
                service,
                family,
            };
            site.is_programmed(case.scheduler)
                .and_then(|()| (case.check)(&site))
                .with_context(|| {
                    format!(
                        "{family}, scheduler {}; the log:\n{}",
                        case.scheduler,
                        proxy.log()
                    )
                })?;
        }
    }
    Ok(())
}

fn weights(weights: [u16; 3]) -> String {
    let each = HOSTS.into_iter().zip(weights).flat_map(|(host, weight)| {
        Family::ALL.map(|family| format!("{}={weight}", host.address(family)))
    });
    each.collect::<Vec<_>>().join(",")
}

/// Another address of the client.
fn source(family: Family, n: u8) -> IpAddr {
    match (family, Host::Shell.address(family)) {
        (_, IpAddr::V4(own)) => {
            let [a, b, c, _] = own.octets();
            IpAddr::from([a, b, c, 100 + n])
        }
        (_, IpAddr::V6(own)) => {
            let network = own.to_bits() & !0xffff;
            IpAddr::V6(Ipv6Addr::from_bits(network | 0x100 | u128::from(n)))
        }
    }
}

impl Site<'_> {
    fn at(&self, at: At) -> SocketAddr {
        at.address(self.service, self.family, 80)
    }

    fn is_programmed(&self, scheduler: &str) -> Result<()> {
        let found = oracle::virtual_servers(self.lab.node())?;
        let at = self.at(At::ClusterIp);
        let server = found.get(&(Protocol::Tcp, at));
        let server = server.with_context(|| format!("there is nothing at {at}"))?;
        ensure!(server.scheduler == scheduler, "{at} has {server:?}");
        Ok(())
    }

    fn connect_to(&self, from: Option<IpAddr>, at: At) -> Result<Connection> {
        let shell = self.lab.topology.host(Host::Shell);
        let to = self.at(at);
        let from = from.map(|ip| SocketAddr::new(ip, 0));
        Connection::open_from(shell, from, to, Protocol::Tcp, Patience::Long)?
            .map_err(|outcome| anyhow!("{to} was {outcome}"))
    }

    /// A connection that stays open.
    fn hold(&self) -> Result<Connection> {
        self.connect_to(None, At::ClusterIp)
    }

    fn hold_many(&self, count: usize) -> Result<Vec<Connection>> {
        (0..count).map(|_| self.hold()).collect()
    }

    /// Who answers a connection that ends at once.
    fn ask(&self, from: Option<IpAddr>, at: At) -> Result<String> {
        let connection = self.connect_to(from, at)?;
        let by = connection.answer.by.clone();
        connection.abort()?;
        Ok(by)
    }

    fn ask_many(&self, count: usize) -> Result<Vec<String>> {
        (0..count).map(|_| self.ask(None, At::ClusterIp)).collect()
    }

    /// Who answers each source at the cluster IP.
    fn by_source(&self) -> Result<BTreeMap<u8, String>> {
        (0..SOURCES)
            .map(|n| Ok((n, self.ask(Some(source(self.family, n)), At::ClusterIp)?)))
            .collect()
    }

    /// Another set of weights, as soon as it counts.
    fn reweigh(&self, all: [u16; 3]) -> Result<()> {
        let changed = self.service.clone().annotated(WEIGHTS, weights(all));
        self.lab.manifests.apply(&changed)?;
        self.wait_for_weights(&all.map(u32::from))
    }

    fn wait_for_weights(&self, wanted: &[u32]) -> Result<()> {
        let key = (Protocol::Tcp, self.at(At::ClusterIp));
        wait::until("the weights are as wanted", || {
            let found = oracle::virtual_servers(self.lab.node())?;
            let servers = &found
                .get(&key)
                .context("there is no virtual server")?
                .real_servers;
            let found: Vec<u32> = servers.values().copied().collect();
            ensure!(found == wanted, "they are {found:?}");
            Ok(())
        })
    }
}

fn counts(answers: impl IntoIterator<Item = String>) -> [usize; 3] {
    let answers: Vec<String> = answers.into_iter().collect();
    HOSTS.map(|host| answers.iter().filter(|by| *by == host.name()).count())
}

fn held(connections: &[Connection]) -> [usize; 3] {
    counts(connections.iter().map(|open| open.answer.by.clone()))
}

fn is(found: [usize; 3], wanted: [usize; 3]) -> Result<()> {
    ensure!(
        found == wanted,
        "wanted {wanted:?} connections, found {found:?}"
    );
    Ok(())
}

/// `rr`: one after the other, whatever they do.
fn takes_turns(site: &Site<'_>) -> Result<()> {
    let answers = site.ask_many(9)?;
    for (i, by) in answers.iter().enumerate() {
        ensure!(*by == answers[i % 3], "not in turn: {answers:?}");
    }
    is(counts(answers), [3, 3, 3])
}

/// `wrr`: in each cycle as often as the weight says.
fn takes_turns_by_weight(site: &Site<'_>) -> Result<()> {
    is(counts(site.ask_many(12)?), [2, 4, 6])
}

/// `lc`: the fewest open connections, whatever the weight.
fn picks_the_least_busy(site: &Site<'_>) -> Result<()> {
    let mut connections = site.hold_many(6)?;
    is(held(&connections), [2, 2, 2])?;
    let ended = connections.swap_remove(3);
    let by = ended.answer.by.clone();
    ended.abort()?;
    let next = site.hold()?;
    ensure!(
        next.answer.by == by,
        "{by} had fewer, {} was picked",
        next.answer.by
    );
    Ok(())
}

/// `wlc`: the fewest open connections for its weight.
fn picks_the_least_busy_by_weight(site: &Site<'_>) -> Result<()> {
    is(held(&site.hold_many(8)?), [2, 6, 0])
}

/// `sed`: the shortest expected delay: four times as strong, it gets the first three although the
/// other is idle.
fn leaves_the_slow_one_idle(site: &Site<'_>) -> Result<()> {
    is(held(&site.hold_many(3)?), [0, 3, 0])
}

/// `nq`: as `sed`, but never a queue where another is idle.
fn picks_the_idle_one(site: &Site<'_>) -> Result<()> {
    let mut connections = site.hold_many(2)?;
    is(held(&connections), [1, 1, 0])?;
    connections.push(site.hold()?);
    is(held(&connections), [1, 2, 0])
}

/// `fo`: all go to the heaviest; when that takes no more, to the next.
fn picks_the_heaviest(site: &Site<'_>) -> Result<()> {
    is(counts(site.ask_many(6)?), [6, 0, 0])?;
    site.reweigh([0, 2, 1])?;
    is(counts(site.ask_many(6)?), [0, 6, 0])?;
    site.reweigh([3, 2, 1])
}

/// `ovf`: the heaviest until it has more connections than its weight, then the next.
fn overflows(site: &Site<'_>) -> Result<()> {
    let mut connections = site.hold_many(3)?;
    is(held(&connections), [3, 0, 0])?;
    connections.extend(site.hold_many(2)?);
    let [first, ..] = held(&connections);
    ensure!(first == 3, "{:?}", held(&connections));
    Ok(())
}

/// `sh`: a client's address always leads to the same server, different ones to different servers.
fn sticks_to_the_source(site: &Site<'_>) -> Result<()> {
    let first = site.by_source()?;
    ensure!(first == site.by_source()?, "a source was moved");
    let servers: BTreeSet<&String> = first.values().collect();
    ensure!(servers.len() > 1, "all sources meet {servers:?}");
    Ok(())
}

/// `dh`: the address that is asked decides, whoever asks.
fn sticks_to_the_destination(site: &Site<'_>) -> Result<()> {
    for at in [At::ClusterIp, At::ExternalIp, At::Vip] {
        let answers = (0..SOURCES).map(|n| site.ask(Some(source(site.family, n)), at));
        let answers: BTreeSet<String> = answers.collect::<Result<_>>()?;
        ensure!(
            answers.len() == 1,
            "{} is answered by {answers:?}",
            site.at(at)
        );
    }
    Ok(())
}

/// The three of one server that fill it, and the fourth that finds it overloaded.
fn overload(site: &Site<'_>) -> Result<(Vec<Connection>, Connection)> {
    let first = site.hold_many(3)?;
    let by: BTreeSet<&str> = first.iter().map(|open| open.answer.by.as_str()).collect();
    ensure!(by.len() == 1, "one destination, but {by:?}");
    let fourth = site.hold()?;
    ensure!(
        !by.contains(fourth.answer.by.as_str()),
        "{by:?} is overloaded and still picked"
    );
    Ok((first, fourth))
}

fn end(connections: Vec<Connection>) -> Result<()> {
    connections.into_iter().try_for_each(Connection::abort)
}

/// `lblc`: a destination stays with its server until that is overloaded while another is not, then
/// moves for good.
fn moves_when_overloaded(site: &Site<'_>) -> Result<()> {
    let (first, fourth) = overload(site)?;
    end(first)?;
    let next = site.hold()?;
    ensure!(next.answer.by == fourth.answer.by, "it moved back");
    Ok(())
}

/// `lblcr`: as `lblc`, but the new server joins the old one, which is picked again when it has
/// fewer connections.
fn adds_a_server_when_overloaded(site: &Site<'_>) -> Result<()> {
    let (first, _fourth) = overload(site)?;
    let old = first.first().context("three")?.answer.by.clone();
    end(first)?;
    let next = site.hold()?;
    ensure!(next.answer.by == old, "{} instead of {old}", next.answer.by);
    Ok(())
}

/// `mh`: sources stick to servers, and when one leaves only its own sources move.
fn hardly_moves_when_a_server_leaves(site: &Site<'_>) -> Result<()> {
    let before = site.by_source()?;
    ensure!(before == site.by_source()?, "a source was moved");
    let leaving = Host::Web3;
    let smaller = site
        .service
        .clone()
        .endpoints(&[Endpoint::ready(Host::Web1), Endpoint::ready(Host::Web2)]);
    site.lab.manifests.apply(&smaller)?;
    site.wait_for_weights(&[1, 1])?;
    let after = site.by_source()?;
    let moved = before
        .iter()
        .filter(|(n, by)| *by != leaving.name() && after.get(n) != Some(by))
        .count();
    ensure!(
        moved <= 1,
        "{moved} moved without need: {before:?}, then {after:?}"
    );
    site.lab.manifests.apply(site.service)?;
    site.wait_for_weights(&[1, 1, 1])?;
    ensure!(before == site.by_source()?, "it is not as before");
    Ok(())
}
