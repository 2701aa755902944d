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
use kpr_core::plan::Context;
use kpr_core::plan::ipvs::set::{SetId, SetType};
use kpr_core::plan::ipvs::static_rules as rules;
use kpr_core::plan::ruleset::Ruleset;
use kube_proxy_rs::clock::Clock;
use kube_proxy_rs::config::{self, Command};
use kube_proxy_rs::dataplane::exec::{Exec as _, System};
use kube_proxy_rs::dataplane::iptables::{Backends, Iptables};
use kube_proxy_rs::dataplane::links::Links;
use kube_proxy_rs::reconcile::context::{self, NodeFacts, NodeView};
use netlink_pipeline::SocketStats;
use serde_json::{Value, json};

use crate::{Shape, cluster, save};

const TCP: u8 = 6;

/// Processes to start for the mean cost of one.
const PROCESSES: u32 = 8;

pub(crate) fn measure(clock: &Clock, shape: Shape, out: &Path) -> anyhow::Result<()> {
    let mut ipvs = Ipvs::open()?;
    ipvs.probe_scheduler(KernelName::ROUND_ROBIN)?;
    let mut ipset = Ipset::open()?;
    let mut links = Links::open()?;
    let exec = Arc::new(System::new(clock.clone(), System::DEFAULT_DEADLINE));
    let backends = Backends::detect(&*exec, None)?;
    let sets = sets()?;
    let mut edits = Vec::new();
    for family in IpFamily::ALL {
        let wanted = rules::fixed_rules(&context(family)?)?;
        edits.push((family, rules::edits(&wanted, &Ruleset::new())));
    }
    let addresses: Vec<_> = (0..shape.services)
        .map(|number| cluster::cluster_ip(number).into())
        .collect();
    let entries = entries(shape)?;
    let operations = operations(shape);

    let mut phases = Vec::new();
    let mut phase = |what: &str, begin: Duration, objects: usize, before, after| {
        let elapsed = clock.monotonic().saturating_sub(begin);
        phases.push(phase_json(what, elapsed, objects, before, after));
        elapsed
    };
    let mut total = Duration::ZERO;

    let (begin, before) = (clock.monotonic(), ipset.stats());
    for set in &sets {
        ipset.create(set)?;
    }
    total += phase("sets", begin, sets.len(), before, ipset.stats());

    let (begin, before) = (clock.monotonic(), SocketStats::default());
    for (family, edits) in &edits {
        Iptables::new(exec.clone(), backends.programs(*family)).restore(edits)?;
    }
    total += phase("rules", begin, edits.len(), before, before);

    let (begin, before) = (clock.monotonic(), ipset.stats());
    let mut count = 0;
    for (set, entries) in &entries {
        let failures = ipset.add(set, entries)?;
        anyhow::ensure!(failures.is_empty(), "{failures:?}");
        count += entries.len();
    }
    total += phase("entries", begin, count, before, ipset.stats());

    let (begin, before) = (clock.monotonic(), ipvs.socket_stats());
    for result in ipvs.apply(&operations)? {
        result.context("the kernel rejected a server")?;
    }
    let count = operations.len();
    let servers = phase("servers", begin, count, before, ipvs.socket_stats());
    total += servers;

    let (begin, before) = (clock.monotonic(), links.stats());
    let link = links.ensure_dummy(kpr_core::plan::ipvs::step::LINK)?;
    let failures = links.add_addresses(link.index, &addresses)?;
    anyhow::ensure!(failures.is_empty(), "{failures:?}");
    total += phase("addresses", begin, addresses.len(), before, links.stats());

    // Cost of a child process on this kernel; not part of the floor.
    let begin = clock.monotonic();
    for _ in 0..PROCESSES {
        let program = backends.programs(IpFamily::V4).save;
        exec.run(&program, &[], b"")?;
    }
    let process = clock.monotonic().saturating_sub(begin) / PROCESSES;

    let result = json!({
        "kind": "floor",
        "processSeconds": process.as_secs_f64(),
        "services": shape.services,
        "endpoints": shape.endpoints,
        "seconds": total.as_secs_f64(),
        "serversSeconds": servers.as_secs_f64(),
        "phases": phases,
    });
    save(out, &result)
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
