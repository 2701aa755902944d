// SPDX-License-Identifier: Apache-2.0
//! Runs the table with real packets: one topology, one proxy per setup.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libtest_mimic::{Failed, Trial};

use super::{Case, Mode, Probe, Setup, Want, all};
use crate::common::manifests::ManifestDirectory;
use crate::common::proxy::{Invocation, Proxy};
use crate::common::topology::{Family, Host, Topology};
use crate::common::traffic::{Answer, HOST_PORT, Outcome, Patience, Protocol, Servers, ask};

/// More new connections than any fair choice among the endpoints needs to reach all of them.
const MOST_CONNECTIONS: usize = 60;

/// The cluster and the proxy that runs in it.
#[derive(Debug)]
pub struct World {
    pub topology: Topology,
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

/// Made when it is first needed.
pub type SharedWorld = Arc<Mutex<Option<World>>>;

impl World {
    pub fn new() -> Result<Self> {
        let topology = Topology::new()?;
        let servers = Servers::new(&topology)?;
        Ok(Self {
            topology,
            _servers: servers,
            running: None,
            failed: None,
        })
    }

    /// Runs `f` with the world.
    pub fn with<T>(shared: &SharedWorld, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        // One failed test says nothing about the next.
        let mut world = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if world.is_none() {
            *world = Some(Self::new().context("cannot lay out the cluster")?);
        }
        f(world.as_mut().context("there is no world")?)
    }

    /// Ends the proxy that serves the table.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// Makes the proxy run with a setup and with the Services of all of its cases.
    fn serve(&mut self, binary: &Path, mode: Mode, setup: Setup) -> Result<()> {
        if let Some(running) = &mut self.running
            && running.setup == setup
            && running.proxy.is_running()?
        {
            return Ok(());
        }
        ensure!(
            self.failed != Some(setup),
            "the proxy did not start for an earlier case"
        );
        self.stop();
        self.failed = Some(setup);
        let services: Vec<_> = all()
            .into_iter()
            .filter(|case| case.setup == setup)
            .map(|case| case.service)
            .collect();
        let manifests = ManifestDirectory::new(&services)?;
        let invocation = Invocation {
            binary: binary.to_owned(),
            manifests: manifests.path().to_owned(),
            mode: mode.name().to_owned(),
            flags: setup.flags(),
        };
        let proxy = Proxy::start(self.topology.host(Host::Node), &invocation)?;
        self.failed = None;
        self.running = Some(Running {
            setup,
            proxy,
            _manifests: manifests,
        });
        Ok(())
    }
}

/// The cluster by itself: without a proxy, what is direct works and no Service answers. Otherwise
/// no other result would mean anything.
pub fn direct(world: &SharedWorld, protocols: &[Protocol]) -> Result<()> {
    World::with(world, |world| {
        world.stop();
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
        }
        Ok(())
    })
}

/// A test per case, family and protocol.
pub fn trials(
    mode: Mode,
    binary: &'static Path,
    protocols: &[Protocol],
    world: &SharedWorld,
) -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in all() {
        let case = Arc::new(case);
        for family in Family::ALL {
            for protocol in protocols.iter().copied() {
                let name = format!(
                    "{}::{}::{family}::{protocol}",
                    mode.name(),
                    case.service.name
                );
                let (case, world) = (case.clone(), world.clone());
                trials.push(Trial::test(name, move || {
                    World::with(&world, |world| {
                        world.serve(binary, mode, case.setup)?;
                        run(world, mode, &case, family, protocol)
                    })
                    .map_err(failed)
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

/// All probes of a case. Those that are to get no answer wait at the same time; the others take turns, because
/// two clients in step could always meet the same backends.
fn run(world: &World, mode: Mode, case: &Case, family: Family, protocol: Protocol) -> Result<()> {
    let probe = |probe: &Probe| {
        check(world, mode, case, probe, family, protocol)
            .with_context(|| probe.describe())
            .err()
            .map(|error| format!("{error:#}"))
    };
    let (answered, unanswered): (Vec<_>, Vec<_>) = case.probes.iter().partition(|probe| {
        matches!(
            wanted(probe, mode, protocol),
            Want::Answer(..) | Want::OneOf(..)
        )
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

/// What a probe is to meet with a protocol.
fn wanted(probe: &Probe, mode: Mode, protocol: Protocol) -> Want {
    match probe.expected(mode) {
        // The kernel's SCTP does not tell its user about a port that an ICMP message calls unreachable.
        Want::Refused if protocol == Protocol::Sctp => Want::NoAnswer,
        want => want,
    }
}

fn check(
    world: &World,
    mode: Mode,
    case: &Case,
    probe: &Probe,
    family: Family,
    protocol: Protocol,
) -> Result<()> {
    let to = probe.at.address(&case.service, family, probe.port);
    let from = world.topology.host(probe.from);
    // The first packet of an SCTP client that has not chosen an address names all addresses of its machine.
    // On the node that includes those of the Services: it grows longer than a frame.
    let bound = (protocol == Protocol::Sctp && probe.from == Host::Node)
        .then(|| probe.from.address(family));
    let ask = |patience| ask(from, bound, to, protocol, patience);
    match wanted(probe, mode, protocol) {
        want @ (Want::Answer(hosts, source) | Want::OneOf(hosts, source)) => {
            let is_sticky = matches!(want, Want::OneOf(..));
            let wanted: BTreeSet<&str> = hosts.iter().map(|host| host.name()).collect();
            let mut seen = BTreeSet::new();
            let mut connections = 0;
            // Twice around, at least, to meet one that should not be there.
            while connections < 2 * hosts.len() || (!is_sticky && seen.len() < wanted.len()) {
                connections += 1;
                ensure!(
                    connections <= MOST_CONNECTIONS,
                    "wanted answers from all of {wanted:?}, got only {seen:?}"
                );
                let outcome = ask(Patience::Long)?;
                let Outcome::Answered(Answer {
                    by,
                    port,
                    source: saw,
                }) = &outcome
                else {
                    bail!("wanted an answer of {wanted:?}, was {outcome} (attempt {connections})");
                };
                ensure!(
                    wanted.contains(by.as_str()) && *port == probe.target,
                    "wanted an answer of {wanted:?} at {}, was {outcome}",
                    probe.target
                );
                ensure!(
                    source.admits(*saw, probe.from, to, family) || bound == Some(*saw),
                    "wanted that the backend sees {source:?}, was {outcome}"
                );
                seen.insert(by.clone());
                if is_sticky {
                    ensure!(seen.len() == 1, "wanted one and the same, got {seen:?}");
                }
            }
            Ok(())
        }
        Want::Refused => met(&ask(Patience::Long)?, "a refusal", |outcome| {
            *outcome == Outcome::Refused
        }),
        Want::Dropped => met(&ask(Patience::Short)?, "silence", |outcome| {
            *outcome == Outcome::TimedOut
        }),
        Want::NoAnswer => met(&ask(Patience::Short)?, "no answer", |outcome| {
            !matches!(outcome, Outcome::Answered(_))
        }),
    }
}

fn met(outcome: &Outcome, wanted: &str, is_met: impl FnOnce(&Outcome) -> bool) -> Result<()> {
    if is_met(outcome) {
        return Ok(());
    }
    Err(anyhow!("wanted {wanted}, was {outcome}"))
}
