// SPDX-License-Identifier: Apache-2.0
//! What the rules cost a new connection: the time of `connect`, during which the kernel carries the
//! packets of the handshake to a pod and back, on one processor and without another thread.
//!
//! Nodes take turns, so that other load on the machine affects all alike.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use kube_proxy_rs::clock::Clock;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use socket2::{Domain, Socket, Type};

use crate::cluster;
use crate::probe;
use crate::sample::Sample;
use crate::world::{Node, World};

/// Connections in a row from the same node.
const TURN: u16 = 20;

/// A pod with our listener that no Service selects.
const POD: Ipv4Addr = Ipv4Addr::new(10, 223, 0, 1);

/// Source and destination of the connections.
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

/// Compares a node with `bare`, which has no proxy rules, by the median of each turn.
pub(super) fn measure(
    clock: &Clock,
    world: &World,
    bare: &Node,
    node: &Node,
    service: IpAddr,
    connections: u16,
) -> anyhow::Result<Value> {
    // The bare node needs conntrack and tables too, else their cost would be charged to the proxy.
    for chain in [&["-t", "nat", "-A", "OUTPUT"][..], &["-A", "FORWARD"]] {
        let mut arguments = vec!["-w", "5"];
        arguments.extend(chain);
        arguments.extend(["-m", "conntrack", "--ctstate", "INVALID"]);
        bare.namespace.run("iptables-legacy", &arguments)?;
    }
    let listener = world.pods.enter(|| -> anyhow::Result<Socket> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        listener.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, cluster::TARGET_PORT)).into())?;
        listener.listen(1024)?;
        Ok(listener)
    })??;
    let direct = SocketAddr::from((POD, cluster::TARGET_PORT));
    let rows = || -> anyhow::Result<Map<String, Value>> {
        let mut one = CpuSet::new();
        one.set(0)?;
        // Fails only where there is no choice: on a single processor.
        sched_setaffinity(Pid::from_raw(0), &one).ok();
        let mut rows = Map::new();
        for row in ROWS {
            let to = if row.is_service {
                SocketAddr::new(service, cluster::PORT)
            } else {
                direct
            };
            let (mut bases, mut more) = (Vec::new(), Vec::new());
            // The first round is a warm-up.
            for round in 0..=connections / TURN {
                let without = turn(clock, &listener, bare, row, direct)?;
                let with = turn(clock, &listener, node, row, to)?;
                if round > 0 {
                    bases.push(tenths(without));
                    more.push(tenths(with - without));
                }
            }
            rows.insert(row.name.to_owned(), json!({ "none": bases, "more": more }));
        }
        Ok(rows)
    };
    // On a separate thread, because the affinity stays.
    let thread = std::thread::scope(|scope| scope.spawn(rows).join());
    let rows = thread.map_err(|_panic| anyhow::anyhow!("the probe panicked"))??;
    Ok(Value::Object(rows))
}

/// The median time of some connections, in microseconds.
fn turn(
    clock: &Clock,
    listener: &Socket,
    node: &Node,
    row: Row,
    to: SocketAddr,
) -> anyhow::Result<f64> {
    let (from, address) = if row.is_forwarded {
        (&node.client, node.client_address())
    } else {
        (&node.namespace, Ipv4Addr::UNSPECIFIED)
    };
    let connect = || -> anyhow::Result<Vec<f64>> {
        let mut times = Vec::new();
        for _ in 0..TURN {
            let socket = probe::socket(address)?;
            let begin = clock.monotonic();
            socket
                .connect(&to.into())
                .with_context(|| format!("cannot connect to {to}"))?;
            let took = clock.monotonic().saturating_sub(begin);
            let (accepted, _) = listener.accept()?;
            drop(socket);
            drop(accepted);
            times.push(took.as_secs_f64() * 1e6);
        }
        Ok(times)
    };
    Ok(Sample::new(from.enter(connect)??).median())
}

fn tenths(micros: f64) -> f64 {
    (micros * 10.0).round() / 10.0
}
