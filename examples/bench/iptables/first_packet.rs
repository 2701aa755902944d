// SPDX-License-Identifier: Apache-2.0
//! What the rules cost a new connection: the time of `connect`, during which the kernel takes the packets of the
//! handshake all the way to a pod and back, on one processor and without another thread.
//!
//! Nodes take turns, so that what else the machine does meets all alike.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use kube_proxy_rs::clock::Clock;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use socket2::{Domain, Socket, Type};

use super::probe;
use super::world::{Node, World};
use crate::cluster;

/// Connections between two changes of the node.
const TURN: u16 = 20;

/// A pod that no Service has, but with a listener of ours.
const POD: Ipv4Addr = Ipv4Addr::new(10, 191, 0, 1);

/// From where, and to what.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    is_forwarded: bool,
    is_service: bool,
}

const ROWS: [Row; 4] = [
    Row {
        name: "forwarded, no Service",
        is_forwarded: true,
        is_service: false,
    },
    Row {
        name: "forwarded, last Service",
        is_forwarded: true,
        is_service: true,
    },
    Row {
        name: "from the node, no Service",
        is_forwarded: false,
        is_service: false,
    },
    Row {
        name: "from the node, last Service",
        is_forwarded: false,
        is_service: true,
    },
];

/// Nodes by name; the one named `none` has no rules of a proxy.
pub(super) fn measure(
    clock: &Clock,
    world: &World,
    nodes: &[(&str, &Node)],
    service: IpAddr,
    connections: u16,
) -> anyhow::Result<Value> {
    let mut result = Map::new();
    for (name, node) in nodes {
        if *name == "none" {
            // Connections are tracked and tables looked at there too, or the kernel's own cost would be taken for ours.
            node.namespace.run(
                "iptables-legacy",
                &[
                    "-w",
                    "5",
                    "-t",
                    "nat",
                    "-A",
                    "OUTPUT",
                    "-m",
                    "conntrack",
                    "--ctstate",
                    "INVALID",
                ],
            )?;
            node.namespace.run(
                "iptables-legacy",
                &[
                    "-w",
                    "5",
                    "-A",
                    "FORWARD",
                    "-m",
                    "conntrack",
                    "--ctstate",
                    "INVALID",
                ],
            )?;
        }
    }
    let thread = std::thread::scope(|scope| {
        scope
            .spawn(|| -> anyhow::Result<()> {
                let mut one = CpuSet::new();
                one.set(1)?;
                // A machine with one processor has no other to go to.
                sched_setaffinity(Pid::from_raw(0), &one).ok();
                for row in ROWS {
                    let times = rounds(clock, world, nodes, service, row, connections)?;
                    result.insert(row.name.to_owned(), times);
                }
                Ok(())
            })
            .join()
    });
    thread.map_err(|_panic| anyhow::anyhow!("the probe panicked"))??;
    Ok(json!({ "kind": "first packet", "rows": result }))
}

fn rounds(
    clock: &Clock,
    world: &World,
    nodes: &[(&str, &Node)],
    service: IpAddr,
    row: Row,
    connections: u16,
) -> anyhow::Result<Value> {
    let listener = world.pods.enter(|| -> anyhow::Result<Socket> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        listener.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, cluster::TARGET_PORT)).into())?;
        listener.listen(1024)?;
        Ok(listener)
    })??;
    let mut times: Vec<(&str, Vec<u64>)> =
        nodes.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for round in 0..=connections / TURN {
        for ((name, node), (_, times)) in nodes.iter().zip(&mut times) {
            let to = if row.is_service && *name != "none" {
                SocketAddr::new(service, cluster::PORT)
            } else {
                SocketAddr::from((POD, cluster::TARGET_PORT))
            };
            let from = if row.is_forwarded {
                &node.client
            } else {
                &node.namespace
            };
            let address = if row.is_forwarded {
                node.client_address()
            } else {
                Ipv4Addr::UNSPECIFIED
            };
            let took = from.enter(|| turn(clock, &listener, address, to))??;
            // The first round warms up.
            if round > 0 {
                times.extend(took);
            }
        }
    }
    let times: Map<String, Value> = times
        .into_iter()
        .map(|(name, times)| (name.to_owned(), json!(times)))
        .collect();
    Ok(times.into())
}

fn turn(
    clock: &Clock,
    listener: &Socket,
    from: Ipv4Addr,
    to: SocketAddr,
) -> anyhow::Result<Vec<u64>> {
    let mut times = Vec::new();
    for _ in 0..TURN {
        let socket = probe::socket(from)?;
        let begin = clock.monotonic();
        socket
            .connect(&to.into())
            .with_context(|| format!("no connection to {to}"))?;
        let took = clock.monotonic().saturating_sub(begin);
        let (accepted, _) = listener.accept()?;
        drop(socket);
        drop(accepted);
        times.push(nanos(took));
    }
    Ok(times)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
