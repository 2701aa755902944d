// SPDX-License-Identifier: Apache-2.0
//! Runs the table with real packets: one topology, one proxy per setup.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libtest_mimic::{Failed, Trial};

use super::{At, Backend, Case, Dataplane, Mode, Probe, Setup, Want, all, explained, loopback};
use crate::manifests::ManifestDirectory;
use crate::namespace::Namespace;
use crate::proxy::{Invocation, Proxy, metric, nothing_is_left};
use crate::topology::{Family, Host, Topology};
use crate::traffic::{Answer, HOST_PORT, Outcome, Patience, Protocol, Servers, ask, ping};

/// More new connections per endpoint than any fair choice among them needs to reach all of them.
const MOST_CONNECTIONS: usize = 30;

/// The cluster and the proxy that runs in it.
#[derive(Debug)]
pub struct World {
    pub topology: Topology,
    pub dataplane: Dataplane,
    _servers: Servers,
    running: Option<Running>,
    /// A setup with which the proxy did not start: it is not tried again for each case.
    failed: Option<Setup>,
}

#[derive(Debug)]
struct Running {
    setup: Setup,
    proxy: Proxy,
    _manifests: ManifestDirectory,
}

/// Made when it is first needed. Many tests use it at the same time; one that wants another setup
/// waits until it has the world for itself.
#[derive(Clone, Debug)]
pub struct SharedWorld {
    dataplane: Dataplane,
    world: Arc<RwLock<Option<World>>>,
}

impl SharedWorld {
    pub fn new(dataplane: Dataplane) -> Self {
        Self {
            dataplane,
            world: Arc::default(),
        }
    }

    pub const fn dataplane(&self) -> Dataplane {
        self.dataplane
    }

    /// Runs `f` with the world and no proxy.
    pub fn without_proxy<T>(&self, f: impl FnOnce(&World) -> Result<T>) -> Result<T> {
        self.alone(|world| {
            world.running = None;
            f(world)
        })
    }

    /// Runs `f` while a proxy with this setup serves the Services of all of its cases.
    fn with_setup<T>(
        &self,
        binary: &Path,
        setup: Setup,
        f: impl FnOnce(&World) -> Result<T>,
    ) -> Result<T> {
        loop {
            // One failed test says nothing about the next.
            let world = self.world.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(world) = &*world
                && world.running.as_ref().is_some_and(|it| it.setup == setup)
            {
                return f(world);
            }
            drop(world);
            self.alone(|world| world.serve(binary, setup))?;
        }
    }

    fn alone<T>(&self, f: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        let mut world = self.world.write().unwrap_or_else(PoisonError::into_inner);
        if world.is_none() {
            let new = World::new(self.dataplane).context("cannot lay out the cluster")?;
            *world = Some(new);
        }
        f(world.as_mut().context("there is no world")?)
    }
}

impl World {
    pub fn new(dataplane: Dataplane) -> Result<Self> {
        let topology = Topology::new()?;
        if let Dataplane::Iptables(backend) = dataplane {
            hint_at(topology.host(Host::Node), backend)?;
        }
        let servers = Servers::new(&topology)?;
        Ok(Self {
            topology,
            dataplane,
            _servers: servers,
            running: None,
            failed: None,
        })
    }

    /// Makes the proxy run with a setup and with the Services of all of its cases.
    fn serve(&mut self, binary: &Path, setup: Setup) -> Result<()> {
        if let Some(running) = &self.running {
            // Its audits read with this kernel's programs what it wrote.
            let drift = metric(self.topology.host(Host::Node), "kube_proxy_rs_drift_total")?;
            ensure!(
                drift == 0.0,
                "drift with {:?}, where nobody else writes: {}",
                running.setup,
                running.proxy.log()
            );
            if running.setup == setup {
                return Ok(());
            }
        }
        ensure!(
            self.failed != Some(setup),
            "the proxy did not start for an earlier case"
        );
        self.running = None;
        self.failed = Some(setup);
        let services: Vec<_> = all()
            .into_iter()
            .filter(|case| case.setup == setup)
            .map(|case| case.service)
            .collect();
        let manifests = ManifestDirectory::new(&services)?;
        let invocation = Invocation {
            flags: setup.flags(),
            ..Invocation::new(binary, &manifests, self.dataplane.mode().name())
        };
        let node = self.topology.host(Host::Node);
        let proxy = Proxy::start(node, &invocation)?;
        if setup == Setup::Forwarder {
            let ports = services.iter().flat_map(|service| &service.ports);
            // In two families, TCP and UDP.
            let open = 4 * ports.filter(|port| port.node_port.is_some()).count();
            proxy.wait_for_log(&[
                "forwarding node ports on localhost",
                &format!("ports={open}"),
            ])?;
        }
        // Other programs print what the kernel has: it is what was wanted, word for word. What the
        // Services before have left may still drain.
        nothing_is_left(node, &invocation, "after the start")?;
        self.failed = None;
        self.running = Some(Running {
            setup,
            proxy,
            _manifests: manifests,
        });
        Ok(())
    }
}

/// Leaves the chain by which kubelet says which iptables a node uses.
pub fn hint_at(node: &Namespace, backend: Backend) -> Result<()> {
    for family in Family::ALL {
        let program = backend.program(family);
        node.run(
            &program,
            &["-w", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"],
        )?;
    }
    Ok(())
}

/// The cluster by itself: without a proxy, what is direct works and no Service answers. Otherwise
/// no other result would mean anything.
pub fn direct(world: &SharedWorld, protocols: &[Protocol]) -> Result<()> {
    world.without_proxy(|world| {
        let ask = |from, to: Host, port, family, protocol, patience| {
            let to = SocketAddr::new(to.address(family), port);
            ask(world.topology.host(from), None, to, protocol, patience)
        };
        let pairs = [
            (Host::Node, Host::Web1),
            (Host::Shell, Host::Web1),
            (Host::Shell, Host::Web3),
            (Host::Remote, Host::Web2),
            (Host::RemoteShell, Host::Web2),
            (Host::Node, Host::Web4),
        ];
        for family in Family::ALL {
            for protocol in protocols.iter().copied() {
                for (from, to) in pairs {
                    let outcome = ask(from, to, 8080, family, protocol, Patience::Long)?;
                    let is_right = |answer: &Answer| {
                        answer.by == to.name()
                            && answer.port == 8080
                            && from.addresses(family).contains(&answer.source)
                    };
                    met(
                        &outcome,
                        "a direct answer",
                        |outcome| matches!(outcome, Outcome::Answered(answer) if is_right(answer)),
                    )
                    .with_context(|| format!("{from} to {to}, {family} {protocol}"))?;
                }
                let outcome = ask(
                    Host::Client,
                    Host::Node,
                    HOST_PORT,
                    family,
                    protocol,
                    Patience::Long,
                )?;
                met(
                    &outcome,
                    "the node's own answer",
                    |outcome| matches!(outcome, Outcome::Answered(answer) if answer.by == Host::Node.name()),
                )?;
                let outcome = ask(
                    Host::Client,
                    Host::Web1,
                    8080,
                    family,
                    protocol,
                    Patience::Short,
                )?;
                met(&outcome, "no way to a pod", |outcome| {
                    !matches!(outcome, Outcome::Answered(_))
                })
                .with_context(|| format!("{family} {protocol}"))?;
            }
            for from in [Host::Client, Host::Shell, Host::Remote, Host::Node] {
                let node = Host::Node.address(family);
                let outcome = ping(world.topology.host(from), node, Patience::Long)?;
                met(&outcome, "an echo", |outcome| *outcome == Outcome::Echoed)
                    .with_context(|| format!("{from} pings the node, {family}"))?;
            }
        }
        Ok(())
    })
}

/// A test per case, family and protocol.
pub fn trials(world: &SharedWorld, binary: &'static Path, protocols: &[Protocol]) -> Vec<Trial> {
    let mut trials = Vec::new();
    let dataplane = world.dataplane;
    for case in all() {
        let case = Arc::new(case);
        for family in Family::ALL {
            if case.probes(family).next().is_none() {
                continue;
            }
            for protocol in protocols.iter().copied() {
                let name = format!("{dataplane}::{}::{family}::{protocol}", case.service.name);
                let (case, world) = (case.clone(), world.clone());
                trials.push(Trial::test(name, move || {
                    let run = |world: &World| run(world, &case, family, protocol);
                    world.with_setup(binary, case.setup, run).map_err(failed)
                }));
            }
            if protocols.contains(&Protocol::Tcp) && case.pings(family).next().is_some() {
                let name = format!("{dataplane}::{}::{family}::ping", case.service.name);
                let (case, world) = (case.clone(), world.clone());
                trials.push(Trial::test(name, move || {
                    let run = |world: &World| pings(world, &case, family);
                    world.with_setup(binary, case.setup, run).map_err(failed)
                }));
            }
        }
    }
    trials
}

/// An error with all of its causes.
#[allow(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
pub fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

/// All pings of a case, at the same time.
fn pings(world: &World, case: &Case, family: Family) -> Result<()> {
    let mode = world.dataplane.mode();
    let check = |probe: &Probe| {
        let from = world.topology.host(probe.from);
        let to = probe.at.address(&case.service, family, 0).ip();
        let want = probe.expected(mode);
        let patience = match want {
            Want::Refused => Patience::Long,
            _ => Patience::Short,
        };
        let outcome = ping(from, to, patience)?;
        met(&outcome, &format!("{want:?}"), |outcome| match want {
            Want::Refused => *outcome == Outcome::Refused,
            Want::Dropped => *outcome == Outcome::TimedOut,
            Want::NoAnswer => *outcome != Outcome::Echoed,
            Want::Answer(..) | Want::AnswerAt(..) | Want::OneOf(..) => *outcome == Outcome::Echoed,
        })
    };
    thread::scope(|scope| {
        let all: Vec<_> = case
            .pings(family)
            .map(|probe| scope.spawn(move || check(probe).with_context(|| probe.describe())))
            .collect();
        all.into_iter().try_for_each(|one| {
            one.join()
                .map_err(|_panic| anyhow!("a ping panicked"))
                .flatten()
        })
    })
}

/// All probes of a case. Those that are to get no answer wait at the same time; the others take
/// turns, because two clients in step could always meet the same backends.
fn run(world: &World, case: &Case, family: Family, protocol: Protocol) -> Result<()> {
    let mode = world.dataplane.mode();
    let probe = |probe: &Probe| {
        check(world, case, probe, family, protocol)
            .and_then(|()| explained::check(world, case, probe, family, protocol))
            .with_context(|| probe.describe())
            .err()
            .map(|error| format!("{error:#}"))
    };
    let (answered, unanswered): (Vec<_>, Vec<_>) = case.probes(family).partition(|probe| {
        let want = wanted(case, probe, mode, protocol);
        want.answers(probe.target).is_some()
    });
    let problems: Vec<String> = thread::scope(|scope| {
        let waiting: Vec<_> = unanswered
            .into_iter()
            .map(|unanswered| scope.spawn(move || probe(unanswered)))
            .collect();
        let mut problems: Vec<String> = answered.into_iter().filter_map(probe).collect();
        problems.extend(waiting.into_iter().filter_map(|waiting| {
            waiting
                .join()
                .unwrap_or_else(|_| Some("a probe panicked".to_owned()))
        }));
        problems
    });
    if problems.is_empty() {
        return Ok(());
    }
    let log = world.running.as_ref().map(|running| running.proxy.log());
    let log = log.unwrap_or_default();
    let end: Vec<&str> = log.lines().rev().take(15).collect();
    let end: Vec<&str> = end.into_iter().rev().collect();
    bail!(
        "{}\nthe end of the proxy's log:\n{}",
        problems.join("\n"),
        end.join("\n")
    )
}

/// What the proxy promises for a probe with a protocol.
pub(super) fn promised(case: &Case, probe: &Probe, mode: Mode, protocol: Protocol) -> Want {
    let is_forwarded = case.setup == Setup::Forwarder && probe.at == At::Localhost;
    match probe.expected(mode) {
        // Only TCP and UDP are forwarded.
        _ if is_forwarded && protocol == Protocol::Sctp => Want::NoAnswer,
        want => want,
    }
}

/// What a probe is to meet with a protocol.
fn wanted(case: &Case, probe: &Probe, mode: Mode, protocol: Protocol) -> Want {
    match promised(case, probe, mode, protocol) {
        // The kernel's SCTP does not tell its user about a port that an ICMP message calls
        // unreachable.
        Want::Refused if protocol == Protocol::Sctp => Want::NoAnswer,
        want => want,
    }
}

fn check(
    world: &World,
    case: &Case,
    probe: &Probe,
    family: Family,
    protocol: Protocol,
) -> Result<()> {
    let to = probe.at.address(&case.service, family, probe.port);
    let from = world.topology.host(probe.from);
    // The first packet of an SCTP client that has not chosen an address names all addresses of its
    // machine. On the node that includes those of the Services: it grows longer than a frame.
    let own = match probe.at {
        At::Localhost => loopback(family),
        _ => probe.from.address(family),
    };
    let bound = (protocol == Protocol::Sctp && probe.from == Host::Node).then_some(own);
    let ask = |patience| ask(from, bound, to, protocol, patience);
    let want = wanted(case, probe, world.dataplane.mode(), protocol);
    if let Some((hosts, source)) = want.answers(probe.target) {
        let is_sticky = matches!(want, Want::OneOf(..));
        return answers(&hosts, is_sticky, || {
            let outcome = ask(Patience::Long)?;
            if let Outcome::Answered(answer) = &outcome {
                ensure!(
                    source.admits(answer.source, &answer.by, probe.from, to, family)
                        || bound == Some(answer.source),
                    "wanted that the backend sees {source:?}, was {outcome}"
                );
            }
            Ok(outcome)
        });
    }
    match want {
        Want::Refused => met(&ask(Patience::Long)?, "a refusal", |outcome| {
            *outcome == Outcome::Refused
        }),
        Want::Dropped => met(&ask(Patience::Short)?, "silence", |outcome| {
            *outcome == Outcome::TimedOut
        }),
        _ => met(&ask(Patience::Short)?, "no answer", |outcome| {
            !matches!(outcome, Outcome::Answered(_))
        }),
    }
}

/// Connects until each of `wanted` has answered, or, if the choice is sticky, often enough to see
/// that. Nobody else may answer.
fn answers(
    wanted: &BTreeSet<(&str, u16)>,
    is_sticky: bool,
    ask: impl Fn() -> Result<Outcome>,
) -> Result<()> {
    let mut seen = BTreeSet::new();
    let mut connections = 0;
    // Twice around, at least, to meet one that should not be there.
    while connections < 2 * wanted.len() || (!is_sticky && seen.len() < wanted.len()) {
        connections += 1;
        ensure!(
            connections <= MOST_CONNECTIONS * wanted.len(),
            "wanted answers from all of {wanted:?}, got only {seen:?}"
        );
        let outcome = ask()?;
        let Outcome::Answered(Answer { by, port, .. }) = &outcome else {
            bail!("wanted an answer of {wanted:?}, was {outcome} (attempt {connections})");
        };
        ensure!(
            wanted.contains(&(by.as_str(), *port)),
            "wanted an answer of {wanted:?}, was {outcome}"
        );
        seen.insert((by.clone(), *port));
        if is_sticky {
            ensure!(seen.len() == 1, "wanted one and the same, got {seen:?}");
        }
    }
    Ok(())
}

fn met(outcome: &Outcome, wanted: &str, is_met: impl FnOnce(&Outcome) -> bool) -> Result<()> {
    if is_met(outcome) {
        return Ok(());
    }
    Err(anyhow!("wanted {wanted}, was {outcome}"))
}
