// SPDX-License-Identifier: Apache-2.0
//! The table of cases without a kernel: manifests in, rules out, and a tracer follows packets
//! through the rules. It meets what real packets meet (`netns_packets`), because both take their
//! clients and expectations from the same table.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};

use kpr_core::model::{Event, IpFamily, NodeInfo, ServiceName, ServiceView, Tracker};
use kpr_core::plan::Planner as _;
use kpr_core::plan::iptables::static_rules::ROUTE_LOCALNET;
use kpr_core::plan::iptables::{Planner, State};
use kpr_core::plan::testing::fake::FakeKernel;
use kpr_core::plan::testing::tracer::{End, Packet, Tracer};
use kpr_testkit::cases::run::failed;
use kpr_testkit::cases::{self, At, Case, Mode, Probe, Setup, Source, Want, loopback};
use kpr_testkit::manifests::ManifestDirectory;
use kpr_testkit::topology::{Family, Host, second_node_address};
use kpr_testkit::traffic::{HOST_PORT, Protocol};
use kube_proxy_rs::config::{self, Command};
use kube_proxy_rs::dataplane::kernel::NodeSurroundings;
use kube_proxy_rs::reconcile::context::{NodeFacts, NodeView, context};
use kube_proxy_rs::source::{Options, Unobserved, Update, manifests};

/// What the proxy of one setup has made of a kernel, per family.
type Kernels = BTreeMap<Family, State>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = vec![Trial::test("traced::differences_are_documented", || {
        differences_are_documented().map_err(failed)
    })];
    for setup in Setup::ALL {
        let of_setup: Vec<Case> = cases::all()
            .into_iter()
            .filter(|case| case.setup == setup)
            .collect();
        // Kernels that can compare addresses have another rule for pods that reach themselves.
        let kinds = [false, true].map(|comparing| program(setup, &of_setup, comparing));
        let kernels = match kinds.into_iter().collect::<Result<Vec<Kernels>>>() {
            Ok(kernels) => Arc::new(kernels),
            Err(error) => {
                let failure = format!("{error:#}");
                let name = format!("traced::{setup:?}");
                trials.push(Trial::test(name, move || Err(failure.into())));
                continue;
            }
        };
        for case in of_setup {
            let kernels = kernels.clone();
            let name = format!("traced::{}", case.service.name);
            trials.push(Trial::test(name, move || {
                let mut runs = kernels.iter().map(|kernels| run(kernels, &case));
                runs.try_for_each(|run| run.map_err(failed))
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What the proxy writes into an empty kernel.
fn program(setup: Setup, cases: &[Case], comparing: bool) -> Result<Kernels> {
    let services: Vec<_> = cases.iter().map(|case| case.service.clone()).collect();
    let manifests = ManifestDirectory::new(&services)?;
    let mut arguments = vec![
        "kube-proxy-rs".to_owned(),
        "--proxy-mode=iptables".to_owned(),
        "--hostname-override=node".to_owned(),
        format!("--manifests={}", manifests.path().display()),
    ];
    arguments.extend(setup.flags());
    let Command::Run(settings) = config::parse(arguments.into_iter().map(Into::into))? else {
        bail!("the flags mean something else than to run");
    };
    let (info, events) = read(&manifests)?;
    let addresses = Family::ALL.map(|family| Host::Node.addresses(family));
    let facts = NodeFacts {
        info,
        around: NodeSurroundings {
            addresses: addresses.into_iter().flatten().collect(),
            ..NodeSurroundings::default()
        },
        comparing: IpFamily::ALL.into_iter().filter(|_| comparing).collect(),
        ..NodeFacts::default()
    };
    let mut tracker = Tracker::default();
    for event in events {
        tracker.apply(event);
    }
    let names: Vec<ServiceName> = tracker.services().map(|s| s.name.clone()).collect();
    let mut all = Kernels::new();
    for (family, ip_family) in Family::ALL.into_iter().zip(IpFamily::ALL) {
        let mut planner = Planner::new(context(NodeView::new(&settings, &facts), ip_family, true));
        planner.observed(State::default());
        for name in &names {
            planner.update(&ServiceView::of(&tracker, name, ip_family), &tracker);
        }
        let mut kernel = FakeKernel::default();
        let report = kernel.apply(&planner.plan());
        ensure!(report.is_success(), "{report:?}");
        all.insert(family, kernel.state);
    }
    Ok(all)
}

/// The Node and all other objects, as the source sends them.
fn read(directory: &ManifestDirectory) -> Result<(Option<NodeInfo>, Vec<Event>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let options = Options {
        node_name: "node".into(),
        allow_external_ips: true,
        annotations: kube_proxy_rs::source::Annotations::default(),
        cluster: kube_proxy_rs::source::ClusterSize::default(),
    };
    runtime.block_on(async {
        let (sender, mut updates) = tokio::sync::mpsc::channel(8);
        let source = manifests::run(directory.path(), options, Arc::new(Unobserved), sender);
        let (mut node, mut services, mut slices) = (None, None, None);
        let receive = async {
            while node.is_none() || services.is_none() || slices.is_none() {
                match updates.recv().await {
                    Some(Update::Node(info)) => node = Some(info),
                    Some(Update::Model(event @ Event::ServicesReplaced(_))) => {
                        services = Some(event);
                    }
                    Some(Update::Model(event @ Event::SlicesReplaced(_))) => slices = Some(event),
                    Some(_) => {}
                    None => break,
                }
            }
        };
        tokio::select! {
            ended = source => bail!("the source ended: {ended:?}"),
            () = receive => {}
        }
        let events = [services, slices].into_iter().flatten().collect();
        Ok((node.flatten(), events))
    })
}

fn run(kernels: &Kernels, case: &Case) -> Result<()> {
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            for probe in case.probes(family) {
                check(&kernels[&family], case, probe, family, protocol)
                    .with_context(|| format!("{}, {family} {protocol}", probe.describe()))?;
            }
        }
    }
    Ok(())
}

fn check(
    kernel: &State,
    case: &Case,
    probe: &Probe,
    family: Family,
    protocol: Protocol,
) -> Result<()> {
    let to = probe.at.address(&case.service, family, probe.port);
    // From which of its addresses the node connects is the kernel's choice.
    let sources = match (probe.from, probe.at) {
        (Host::Node, At::Localhost) => vec![loopback(family)],
        // A pod's packet to its own loopback address never comes here.
        (from, At::Localhost) if from.node().is_some() => return Ok(()),
        (Host::Node, _) => vec![Host::Node.address(family), second_node_address(family)],
        (from, _) => vec![from.address(family)],
    };
    // The kernel itself drops what comes from elsewhere to a loopback address, unless it is told
    // not to.
    let is_martian = to.ip().is_loopback()
        && probe.from != Host::Node
        && !kernel.settings.sysctls.contains_key(ROUTE_LOCALNET);

    let mut local = Host::Node.addresses(family);
    local.push(loopback(family));
    let is_local = local.contains(&to.ip());
    let rules = &kernel.rules;
    let tracer = Tracer { rules, local };
    for from in sources {
        let packet = Packet {
            from,
            interface: interface(probe.from),
            to,
            protocol: match protocol {
                Protocol::Tcp => kpr_core::model::Protocol::Tcp,
                Protocol::Udp => kpr_core::model::Protocol::Udp,
                Protocol::Sctp => kpr_core::model::Protocol::Sctp,
            },
            known_to: None,
        };
        let ends = tracer.trace(&packet);
        let kinds: BTreeSet<End> = ends.keys().copied().collect();
        let want = probe.expected(Mode::Iptables);
        if case.setup == Setup::Forwarder && probe.from == Host::Node && probe.at == At::Localhost {
            // It is for the proxy's own socket.
            ensure!(
                kinds == BTreeSet::from([End::Untouched]),
                "from {from}: {ends:?}"
            );
            continue;
        }
        let is_met = match want.answers(probe.target) {
            Some((hosts, source)) => {
                let wanted = wanted_ends(&hosts, source, probe.from, from, family);
                let share = 1.0 / wanted_count(wanted.len());
                // Each is as likely as every other.
                kinds.is_subset(&wanted.iter().flatten().copied().collect())
                    && wanted.iter().all(|one_of| {
                        let chance: f64 = one_of.iter().filter_map(|end| ends.get(end)).sum();
                        (chance - share).abs() < 1e-6
                    })
            }
            None => kinds.iter().all(|end| match (want, end) {
                (Want::Refused, End::Rejected) | (Want::Dropped, End::Dropped) => true,
                (Want::Dropped, End::Untouched) => is_martian,
                // The kernel's own answer where nobody listens.
                (Want::Refused, End::Untouched) => is_local && to.port() != HOST_PORT,
                (Want::NoAnswer, end) => match end {
                    End::Untouched => !is_local,
                    End::Rejected | End::Dropped => true,
                    End::To(_) | End::Masqueraded(_) => false,
                },
                _ => false,
            }),
        };
        ensure!(is_met, "from {from}: wanted {want:?}, was {ends:?}");
    }
    Ok(())
}

fn wanted_count(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// For each endpoint that is to answer the ends that are right.
fn wanted_ends(
    hosts: &BTreeSet<(&str, u16)>,
    source: Source,
    client: Host,
    from: IpAddr,
    family: Family,
) -> Vec<BTreeSet<End>> {
    let endpoint = |(name, port): &(&str, u16)| {
        let pod = Host::ALL.into_iter().find(|host| host.name() == *name);
        pod.map(|pod| SocketAddr::new(pod.address(family), *port))
    };
    hosts
        .iter()
        .filter_map(endpoint)
        .map(|to| match source {
            // What the node sends by itself has one of its addresses anyway.
            Source::Node if client == Host::Node && !from.is_loopback() => {
                BTreeSet::from([End::To(to), End::Masqueraded(to)])
            }
            Source::Node => BTreeSet::from([End::Masqueraded(to)]),
            Source::NodeByItself if to.ip() == from => BTreeSet::from([End::Masqueraded(to)]),
            Source::Own | Source::NodeByItself => BTreeSet::from([End::To(to)]),
            Source::Asked => BTreeSet::new(),
        })
        .collect()
}

/// The link by which a host's packets come to the node.
fn interface(from: Host) -> Option<&'static str> {
    match (from, from.node()) {
        (Host::Node, _) => None,
        (_, Some(Host::Node)) => Some("cni0"),
        _ => Some("eth0"),
    }
}

/// The table of `docs/design/differences.md` has what the cases say of differences between the
/// modes, and nothing else.
fn differences_are_documented() -> Result<()> {
    const HEADING: &str = "## Differences between our two modes\n";
    let text = include_str!("../docs/design/differences.md");
    let (_, section) = text.split_once(HEADING).context("there is no section")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    // Behind the two lines of the table's head.
    let rows = section
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1);
    let documented: BTreeSet<&str> = rows
        .filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next())
        .collect();
    let all = cases::all();
    let stated: BTreeSet<&str> = all
        .iter()
        .flat_map(|case| &case.probes)
        .filter_map(|probe| probe.instead.map(|(_, _, why)| why))
        .filter(|why| !why.starts_with("pending "))
        .collect();
    ensure!(
        stated.is_subset(&documented),
        "the cases state {stated:#?}, the page has {documented:#?}"
    );
    Ok(())
}
