// SPDX-License-Identifier: Apache-2.0
//! A rolling update under load: ten pods are replaced one by one as a Deployment does it, and no client notices.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::common::load::{Load, Pod};
use crate::common::manifests::{ManifestDirectory, Service};
use crate::common::proxy::{Invocation, Proxy};
use crate::common::topology::{
    CLUSTER_CIDRS, Family, Host, Topology, cluster_ip, load_balancer_vip,
};
use crate::common::traffic::Protocol;
use crate::common::wait;

const PODS: usize = 10;
const PORT: u16 = 7070;
/// New connections per second, from a pod and from outside together: as many are begun if the machine can. Clients, pods
/// and proxy share the one slow processor of the guest, which made 155 per second in all when that was measured last.
const PER_SECOND: u32 = 200;
/// Connections that stay.
const HELD: usize = 20;
/// A pod that shuts down goes on for as many connections of others: what `preStop` waits for.
const QUIET: usize = 200;

/// One generation of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(usize);

impl Place {
    fn host(self) -> Host {
        Host::WEB[self.0 % Host::WEB.len()]
    }

    /// Each has addresses of its own, beside those of the host that it runs on.
    fn address(self, family: Family) -> IpAddr {
        let n = 20 + u8::try_from(self.0).unwrap_or(u8::MAX);
        match self.host().address(family) {
            IpAddr::V4(own) => {
                let [a, b, c, _] = own.octets();
                IpAddr::from([a, b, c, n])
            }
            IpAddr::V6(own) => {
                IpAddr::V6(Ipv6Addr::from_bits(own.to_bits() & !0xffff | u128::from(n)))
            }
        }
    }

    fn start(self, topology: &Topology, runtime: &Runtime) -> Result<Pod> {
        let namespace = topology.host(self.host());
        let addresses = Family::ALL.map(|family| self.address(family));
        let add = |ip: &IpAddr| {
            let bits = if ip.is_ipv4() { 24 } else { 64 };
            format!("address add {ip}/{bits} dev eth0 nodad\n")
        };
        namespace.ip(&addresses.iter().map(add).collect::<String>())?;
        let addresses = addresses.map(|ip| SocketAddr::new(ip, PORT));
        Pod::start(runtime, namespace, &addresses)
    }
}

/// An endpoint of the Service.
#[derive(Clone, Copy, Debug)]
struct Member {
    place: Place,
    is_terminating: bool,
}

fn manifest(service: &Service, members: &[Member]) -> String {
    let slices = Family::ALL.map(|family| {
        let endpoint = |member: &Member| {
            json!({
                "addresses": [member.place.address(family)],
                "conditions": {
                    "ready": !member.is_terminating,
                    "serving": true,
                    "terminating": member.is_terminating,
                },
                "nodeName": member.place.host().node().map(Host::name),
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default",
                "name": format!("{}-{family}", service.name),
                "labels": { "kubernetes.io/service-name": service.name },
            },
            "addressType": match family { Family::V4 => "IPv4", Family::V6 => "IPv6" },
            "ports": [{ "name": "tcp-80", "protocol": "TCP", "port": PORT }],
            "endpoints": members.iter().map(endpoint).collect::<Vec<Value>>(),
        })
    });
    let items: Vec<Value> = [service.service_manifest()]
        .into_iter()
        .chain(slices)
        .collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

/// A Service with its pods, a proxy, and clients.
struct Rollout {
    topology: Topology,
    /// Runs the pods.
    runtime: Runtime,
    pods: Vec<(Place, Pod)>,
    service: Service,
    members: Vec<Member>,
    manifests: ManifestDirectory,
}

impl Rollout {
    fn new() -> Result<Self> {
        let mut service = Service::new("web", 1, &[])
            .protocols(&[Protocol::Tcp])
            .exposed();
        for port in &mut service.ports {
            port.target = PORT;
        }
        let mut rollout = Self {
            topology: Topology::new()?,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
            pods: Vec::new(),
            service,
            members: Vec::new(),
            manifests: ManifestDirectory::new(&[])?,
        };
        for n in 0..PODS {
            rollout.add(Place(n))?;
        }
        Ok(rollout)
    }

    fn publish(&self) -> Result<()> {
        let manifest = manifest(&self.service, &self.members);
        self.manifests.write("web.json", &manifest)
    }

    /// A new pod becomes an endpoint as soon as it serves.
    fn add(&mut self, place: Place) -> Result<()> {
        let pod = place.start(&self.topology, &self.runtime)?;
        self.pods.push((place, pod));
        self.members.push(Member {
            place,
            is_terminating: false,
        });
        self.publish()
    }

    /// A pod shuts down: it is told apart at once, serves while others may not know that, and ends.
    fn remove(&mut self, place: Place, clients: &Clients<'_>) -> Result<()> {
        for member in &mut self.members {
            member.is_terminating |= member.place == place;
        }
        self.publish()?;
        let mut pods = self.pods.iter();
        let at = pods.position(|(other, _)| *other == place);
        let (_, pod) = self.pods.swap_remove(at.context("no such pod")?);
        clients.go_on_without("no new connection comes", || pod.accepted())?;
        pod.leave();
        wait::until("its connections have ended", || pod.is_alone())?;
        self.members.retain(|member| member.place != place);
        self.publish()
    }
}

/// Those who must not notice.
struct Clients<'a> {
    loads: &'a [Load],
}

impl Clients<'_> {
    fn connections(&self) -> usize {
        self.loads.iter().map(Load::connections).sum()
    }

    /// Waits until they have made many connections while `count` did not change.
    fn go_on_without(&self, what: &str, mut count: impl FnMut() -> usize) -> Result<()> {
        let (mut last, mut since) = (count(), self.connections());
        wait::until(what, || {
            // There is nothing to wait for any more.
            if let Err(harm) = self.loads.iter().try_for_each(Load::is_unharmed) {
                return Ok(Err(harm));
            }
            let now = count();
            if now != last {
                (last, since) = (now, self.connections());
            }
            let quiet = self.connections() - since;
            ensure!(
                quiet >= QUIET,
                "{quiet} connections without it, {now} with it"
            );
            Ok(Ok(()))
        })?
    }
}

/// Replaces all pods of a Service under load. `mode` and `flags` are those of the proxy.
pub(crate) fn loses_nothing(binary: &Path, mode: &str, flags: &[&str]) -> Result<()> {
    let mut rollout = Rollout::new()?;
    let mut all_flags = vec![format!("--cluster-cidr={CLUSTER_CIDRS}")];
    all_flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    let proxy = Proxy::start(
        rollout.topology.host(Host::Node),
        &Invocation {
            binary: binary.to_owned(),
            manifests: rollout.manifests.path().to_owned(),
            mode: mode.to_owned(),
            flags: all_flags,
        },
    )?;
    let targets = |address: fn(Family, u8) -> IpAddr| {
        Family::ALL
            .map(|family| SocketAddr::new(address(family, rollout.service.n), 80))
            .to_vec()
    };
    let start = wait::now();
    let loads = [
        (Host::Shell, targets(cluster_ip)),
        (Host::Client, targets(load_balancer_vip)),
    ]
    .into_iter()
    .map(|(from, to)| {
        let from = rollout.topology.host(from);
        Load::start(from, to, PER_SECOND / 2, HELD / 2)
    })
    .collect::<Result<Vec<Load>>>()?;
    replace_all(&mut rollout, &Clients { loads: &loads }).with_context(|| {
        let log = proxy.log();
        let end: Vec<&str> = log.lines().rev().take(20).collect();
        end.join("\n")
    })?;
    let took = start.elapsed();
    for load in loads {
        let totals = load.finish()?;
        eprintln!("rolling update in {mode} mode: {totals:?} in {took:?}");
        ensure!(
            totals.reconnects > 0 && totals.requests > totals.reconnects,
            "{totals:?}"
        );
        ensure!(totals.connections >= PODS * QUIET / 4, "{totals:?}");
    }
    Ok(())
}

fn replace_all(rollout: &mut Rollout, clients: &Clients<'_>) -> Result<()> {
    for n in 0..PODS {
        rollout.add(Place(PODS + n))?;
        rollout.remove(Place(n), clients)?;
    }
    // After the last change too.
    clients.go_on_without("the load goes on", || 0)?;
    for (place, pod) in &rollout.pods {
        ensure!(pod.accepted() > 0, "{place:?} was never used");
    }
    Ok(())
}
