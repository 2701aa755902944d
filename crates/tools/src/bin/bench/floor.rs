// SPDX-License-Identifier: Apache-2.0
//! The floor: time to create the cluster's kernel objects through our clients, from requests
//! prepared in advance. No source, no model, no planning, no reading.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ipset_netlink::{Client as Ipset, Entry, HashType, SetEntry, SetName, SetSpec};
use ipvs_netlink::{
    Client as Ipvs, Destination, DestinationKey, KernelName, Operation, Protocol, Service,
    ServiceKey,
};
use kpr_core::model::IpFamily;
use kpr_core::plan::ipvs::Step;
use kpr_core::plan::ipvs::set::{self as rules_set, SetId, SetType};
use kpr_core::plan::ipvs::static_rules as rules;
use kpr_core::plan::ruleset::Ruleset;
use kpr_core::plan::{Context, IpvsRules, Outcome};
use kube_proxy_rs::clock::Clock;
use kube_proxy_rs::config::{self, Command};
use kube_proxy_rs::dataplane::exec::{Exec as _, System};
use kube_proxy_rs::dataplane::iptables::{Backends, Iptables};
use kube_proxy_rs::dataplane::links::Links;
use kube_proxy_rs::dataplane::own_table::OwnTable;
use kube_proxy_rs::reconcile::context::{self, NodeFacts, NodeView};
use netlink_pipeline::SocketStats;
use serde_json::{Value, json};

use crate::{Rules, Shape, cluster, save};

const TCP: u8 = 6;

/// Processes to start for the mean cost of one.
const PROCESSES: u32 = 8;

pub(crate) fn measure(
    clock: &Clock,
    shape: Shape,
    rules: Option<Rules>,
    out: &Path,
) -> anyhow::Result<()> {
    let mut ipvs = Ipvs::open()?;
    ipvs.probe_scheduler(KernelName::ROUND_ROBIN)?;
    let mut links = Links::open()?;
    let exec = Arc::new(System::new(clock.clone(), System::DEFAULT_DEADLINE));
    let backends = Backends::detect(&*exec, None)?;
    let addresses: Vec<_> = (0..shape.services)
        .map(|number| cluster::cluster_ip(number).into())
        .collect();
    let operations = operations(shape);
    let mut timer = Timer {
        clock,
        phases: Vec::new(),
        total: Duration::ZERO,
    };

    if rules == Some(Rules::Nftables) {
        nftables(&mut timer, shape)?;
    } else {
        iptables(&mut timer, shape, &exec, &backends)?;
    }

    let (begin, before) = (clock.monotonic(), ipvs.socket_stats());
    for result in ipvs.apply(&operations)? {
        result.context("the kernel rejected a server")?;
    }
    let count = operations.len();
    let servers = timer.ended("servers", begin, count, before, ipvs.socket_stats());

    let (begin, before) = (clock.monotonic(), links.stats());
    let link = links.ensure_dummy(kpr_core::plan::ipvs::step::LINK)?;
    let failures = links.add_addresses(link.index, &addresses)?;
    anyhow::ensure!(failures.is_empty(), "{failures:?}");
    timer.ended("addresses", begin, addresses.len(), before, links.stats());

    // Cost of a child process on this kernel; not part of the floor.
    let begin = clock.monotonic();
    for _ in 0..PROCESSES {
        let program = backends.programs(IpFamily::V4).save;
        exec.run(&program, &[], b"")?;
    }
    let process = clock.monotonic().saturating_sub(begin) / PROCESSES;

    let kind = rules.map_or_else(
        || "floor".to_owned(),
        |rules| format!("floor-rules-{}", rules.as_str()),
    );
    let result = json!({
        "kind": kind,
        "processSeconds": process.as_secs_f64(),
        "services": shape.services,
        "endpoints": shape.endpoints,
        "seconds": timer.total.as_secs_f64(),
        "serversSeconds": servers.as_secs_f64(),
        "phases": timer.phases,
    });
    save(out, &result)
}

/// What took how long.
struct Timer<'a> {
    clock: &'a Clock,
    phases: Vec<Value>,
    total: Duration,
}

impl Timer<'_> {
    fn ended(
        &mut self,
        what: &str,
        begin: Duration,
        objects: usize,
        before: SocketStats,
        after: SocketStats,
    ) -> Duration {
        let elapsed = self.clock.monotonic().saturating_sub(begin);
        self.phases
            .push(phase_json(what, elapsed, objects, before, after));
        self.total += elapsed;
        elapsed
    }
}

/// Sets and rules of both families, and the entries of IPv4: as ipsets and rules of iptables.
fn iptables(
    timer: &mut Timer<'_>,
    shape: Shape,
    exec: &Arc<System>,
    backends: &Backends,
) -> anyhow::Result<()> {
    let clock = timer.clock;
    let mut ipset = Ipset::open()?;
    let sets = sets()?;
    let entries = entries(shape)?;
    let mut edits = Vec::new();
    for family in IpFamily::ALL {
        let wanted = rules::fixed_rules(&context(family)?)?;
        edits.push((family, rules::edits(&wanted, &Ruleset::new())));
    }

    let (begin, before) = (clock.monotonic(), ipset.stats());
    for set in &sets {
        ipset.create(set)?;
    }
    timer.ended("sets", begin, sets.len(), before, ipset.stats());

    let (begin, before) = (clock.monotonic(), SocketStats::default());
    for (family, edits) in &edits {
        Iptables::new(exec.clone(), backends.programs(*family)).restore(edits)?;
    }
    timer.ended("rules", begin, edits.len(), before, before);

    let (begin, before) = (clock.monotonic(), ipset.stats());
    let mut count = 0;
    for (set, entries) in &entries {
        let failures = ipset.add(set, entries)?;
        anyhow::ensure!(failures.is_empty(), "{failures:?}");
        count += entries.len();
    }
    timer.ended("entries", begin, count, before, ipset.stats());
    Ok(())
}

/// The same as our tables of nftables, where endpoints have no entries.
fn nftables(timer: &mut Timer<'_>, shape: Shape) -> anyhow::Result<()> {
    let clock = timer.clock;
    let way = IpvsRules::Nftables;
    let mut table = OwnTable::open()?;
    let sets: Vec<Step> = IpFamily::ALL
        .into_iter()
        .flat_map(|family| {
            let spec = move |id| Step::CreateSet(rules_set::SetSpec::new(id, family, u32::MAX));
            SetId::of(way).map(spec)
        })
        .collect();
    let mut edits = Vec::new();
    for family in IpFamily::ALL {
        let context = Context {
            ipvs_rules: way,
            ..context(family)?
        };
        let wanted = rules::fixed_rules(&context)?;
        edits.push((family, rules::edits(&wanted, &Ruleset::new())));
    }
    let mut entries = Vec::new();
    for number in 0..shape.services {
        let address = cluster::cluster_ip(number).into();
        let of_port =
            rules_set::SetEntry::IpPort(address, kpr_core::model::Protocol::Tcp, cluster::PORT);
        for (id, entry) in [
            (SetId::IpvsIps, rules_set::SetEntry::Ip(address)),
            (SetId::ClusterIp, of_port),
        ] {
            let set = id.name(IpFamily::V4);
            entries.push(Step::AddEntry { set, entry });
        }
    }
    // One set after the other, as the proxy adds them.
    entries.sort_by_key(|step| match step {
        Step::AddEntry { set, .. } => Some(set.clone()),
        _ => None,
    });

    let (begin, before) = (clock.monotonic(), table.stats());
    made(&table.apply_sets(&sets.iter().collect::<Vec<_>>()))?;
    timer.ended("sets", begin, sets.len(), before, table.stats());

    let (begin, before) = (clock.monotonic(), table.stats());
    for (family, edits) in &edits {
        table.edit(*family, edits)?;
    }
    timer.ended("rules", begin, edits.len(), before, table.stats());

    let (begin, before) = (clock.monotonic(), table.stats());
    made(&table.apply_sets(&entries.iter().collect::<Vec<_>>()))?;
    timer.ended("entries", begin, entries.len(), before, table.stats());
    Ok(())
}

fn made(outcomes: &[Outcome]) -> anyhow::Result<()> {
    let failed = outcomes.iter().find(|outcome| **outcome != Outcome::Done);
    anyhow::ensure!(failed.is_none(), "{failed:?}");
    Ok(())
}

fn phase_json(
    what: &str,
    elapsed: Duration,
    objects: usize,
    before: SocketStats,
    after: SocketStats,
) -> Value {
    json!({
        "what": what,
        "seconds": elapsed.as_secs_f64(),
        "objects": objects,
        "roundTrips": after.round_trips - before.round_trips,
        "messagesSent": after.messages_sent - before.messages_sent,
        "messagesReceived": after.messages_received - before.messages_received,
        "bytesSent": after.bytes_sent - before.bytes_sent,
        "bytesReceived": after.bytes_received - before.bytes_received,
    })
}

/// The sets of both families, as the proxy creates them.
fn sets() -> anyhow::Result<Vec<SetSpec>> {
    let mut sets = Vec::new();
    for (family, wire) in [
        (IpFamily::V4, ipset_netlink::IpFamily::V4),
        (IpFamily::V6, ipset_netlink::IpFamily::V6),
    ] {
        for id in SetId::ALL {
            let name = SetName::new(id.name(family).as_str())?;
            let hash = |hash_type| SetSpec::hash(name.clone(), hash_type, wire);
            sets.push(match id.set_type() {
                SetType::HashIp => hash(HashType::Ip),
                SetType::HashIpPort | SetType::HashIpPortMark => hash(HashType::IpPort),
                SetType::HashIpPortIp => hash(HashType::IpPortIp),
                SetType::HashIpPortNet => hash(HashType::IpPortNet),
                SetType::BitmapPort => SetSpec::bitmap_port(name),
            });
        }
    }
    Ok(sets)
}

/// Set entries for cluster IPs and for endpoints on this node.
fn entries(shape: Shape) -> anyhow::Result<Vec<(SetName, Vec<SetEntry>)>> {
    let mut of_set: [(SetId, Vec<SetEntry>); 3] = [
        (SetId::IpvsIps, Vec::new()),
        (SetId::ClusterIp, Vec::new()),
        (SetId::LoopBack, Vec::new()),
    ];
    let [(_, ips), (_, cluster_ips), (_, loop_back)] = &mut of_set;
    for number in 0..shape.services {
        let ip = cluster::cluster_ip(number).into();
        let (protocol, port) = (TCP, cluster::PORT);
        ips.push(Entry::Ip(ip).into());
        cluster_ips.push(Entry::IpPort { ip, protocol, port }.into());
        for index in (0..shape.endpoints).filter(|index| cluster::is_local(*index)) {
            let ip = cluster::endpoint(number, index).into();
            let (port, ip2) = (cluster::TARGET_PORT, ip);
            let entry = Entry::IpPortIp {
                ip,
                protocol,
                port,
                ip2,
            };
            loop_back.push(entry.into());
        }
    }
    of_set
        .into_iter()
        .map(|(id, entries)| Ok((SetName::new(id.name(IpFamily::V4).as_str())?, entries)))
        .collect()
}

fn operations(shape: Shape) -> Vec<Operation> {
    (0..shape.services)
        .flat_map(|number| {
            let address = cluster::cluster_ip(number).into();
            let key = ServiceKey::new(Protocol::Tcp, address, cluster::PORT);
            let add = Operation::AddService(Service::new(key, KernelName::ROUND_ROBIN));
            let servers = (0..shape.endpoints).map(move |index| {
                let server = DestinationKey {
                    address: cluster::endpoint(number, index).into(),
                    port: cluster::TARGET_PORT,
                };
                Operation::AddDestination(key, Destination::new(server, 1))
            });
            std::iter::once(add).chain(servers)
        })
        .collect()
}

/// The planner's context with default settings and no Node object.
fn context(family: IpFamily) -> anyhow::Result<Context> {
    let Command::Run(settings) = config::parse(["kube-proxy-rs".into()])? else {
        anyhow::bail!("no arguments must mean the run command");
    };
    let facts = NodeFacts::default();
    Ok(context::context(
        NodeView::new(&settings, &facts),
        family,
        false,
    ))
}
