// SPDX-License-Identifier: Apache-2.0
//! A cluster of one node: the guest. A client outside, a pod that asks and pods that serve are
//! namespaces of this machine, on the same wire as the guest; pods have the node for a router.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kernel::{self, Kernel};
use crate::node_load::NodeLoad;
use kpr_testkit::guest::Guest;
use kpr_testkit::manifests::{Service, list};
use kpr_testkit::namespace::{Namespace, Uplink};
use kpr_testkit::neighbours::{Neighbours, pods};
use kpr_testkit::steady_load::{Load, Plan};
use kpr_testkit::testbed::Testbed;
use kpr_testkit::topology::{CLUSTER_CIDRS, Family, Host, cluster_ip, node_port};
use kpr_testkit::traffic::Protocol;
use kpr_testkit::wait;

const METRICS_PORT: u16 = 10249;
/// kube-proxy starts some hundred programs before it has synced, and the guest needs up to 0.2 s
/// for each.
const PATIENCE: Duration = Duration::from_mins(4);

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    KubeProxy,
    Ours,
}

/// A proxy that has synced.
#[derive(Debug)]
#[must_use = "it runs until it is stopped"]
pub(crate) struct Running {
    program: Program,
    mode: &'static str,
    process: String,
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.program {
            Program::KubeProxy => "kube-proxy",
            Program::Ours => "kube-proxy-rs",
        };
        write!(f, "{name} in {} mode", self.mode)
    }
}

/// Clients of both families: a pod, somebody outside, the node itself.
#[derive(Debug)]
pub(crate) struct Clients {
    outside: Vec<(&'static str, Load)>,
    node: NodeLoad,
}

pub(crate) struct World {
    pub(crate) testbed: Testbed,
    pub(crate) guest: Guest,
    pub(crate) neighbours: Neighbours,
    /// Each start has a log of its own.
    logs: Vec<String>,
    loads: usize,
    /// They go with this.
    manifests: Vec<String>,
}

/// What is exposed, and asked.
fn web() -> Service {
    tcp("swap-web", 120, &[Host::Web1, Host::Web2]).exposed()
}

fn tcp(name: &str, n: u8, endpoints: &[Host]) -> Service {
    Service::new(name, n, endpoints).protocols(&[Protocol::Tcp])
}

fn services() -> [Service; 3] {
    [
        web(),
        // UDP must not hinder the rest.
        Service::new("swap-dns", 121, &[Host::Web1]).protocols(&[Protocol::Udp, Protocol::Tcp]),
        tcp("swap-nobody", 122, &[]),
    ]
}

impl World {
    /// `kernel` are options of `hack/guest`.
    pub(crate) fn new(testbed: &Testbed, kernel: &[&str]) -> Result<Self> {
        let testbed = testbed.clone();
        let kube_proxy = Path::new(testbed.env("BIN")).join("kube-proxy");
        ensure!(
            kube_proxy.exists(),
            "build it: hack/testbed/build kube-proxy"
        );
        let mut guest = Guest::start_with(&testbed, kernel);
        let neighbours = Neighbours::new(&testbed, &mut guest, &[Host::Web1, Host::Web2])?;
        let manifests: Vec<Value> = services()
            .iter()
            .flat_map(|service| {
                [vec![service.service_manifest()], service.slice_manifests()].concat()
            })
            .chain([json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}})])
            .collect();
        let world = Self {
            testbed,
            guest,
            neighbours,
            logs: Vec::new(),
            loads: 0,
            manifests: vec![list(&manifests).to_string()],
        };
        world
            .manifests
            .iter()
            .for_each(|manifests| world.testbed.apply(manifests));
        world.testbed.set_addresses("node", &world.guest.addresses);
        Ok(world)
    }

    /// One more namespace, with the addresses of many pods.
    pub(crate) fn pods(&mut self, addresses: &[IpAddr]) -> Result<(Namespace, Uplink)> {
        pods(&self.testbed, &mut self.guest, addresses)
    }

    /// Objects that somebody else makes are gone after the test, too.
    pub(crate) fn takes_away(&mut self, manifest: &Value) {
        self.manifests.push(manifest.to_string());
    }

    fn program(&self, program: Program) -> PathBuf {
        match program {
            Program::KubeProxy => Path::new(self.testbed.env("BIN")).join("kube-proxy"),
            Program::Ours => PathBuf::from(env!("CARGO_BIN_EXE_kube-proxy-rs")),
        }
    }

    /// Starts a proxy and waits until it has synced.
    pub(crate) fn start(&mut self, program: Program, mode: &'static str) -> Result<Running> {
        self.start_with(program, mode, "")
    }

    /// The same with further flags.
    pub(crate) fn start_with(
        &mut self,
        program: Program,
        mode: &'static str,
        flags: &str,
    ) -> Result<Running> {
        let log = format!("/run/log-{}", self.logs.len());
        let script = format!(
            "{} --kubeconfig={} --proxy-mode={mode} --hostname-override=node --v=2 --cluster-cidr={CLUSTER_CIDRS} \
             --metrics-bind-address=0.0.0.0:{METRICS_PORT} {flags} </dev/null >{log} 2>&1 & echo $!",
            self.program(program).display(),
            self.testbed.kubeconfig("proxy").display(),
        );
        let began = wait::now();
        let process = self.guest.run(&script).trim().to_owned();
        self.logs.push(log);
        let running = Running {
            program,
            mode,
            process,
        };
        let metrics = SocketAddr::new(self.guest.addresses[0], METRICS_PORT);
        wait::until_within(PATIENCE, "it has synced", || has_synced(metrics))
            .with_context(|| running.to_string())?;
        eprintln!(
            "{running} has synced after {:.1} s",
            began.elapsed().as_secs_f64()
        );
        Ok(running)
    }

    pub(crate) fn stop(&mut self, running: Running) {
        let process = running.process;
        self.guest.run(&format!(
            "kill {process}; while kill -0 {process} 2>/dev/null; do :; done"
        ));
    }

    /// The ends of the logs.
    pub(crate) fn logs(&mut self) -> String {
        let logs = self.logs.clone();
        let ends = logs.iter().map(|log| {
            self.guest
                .answer(&format!("echo == {log}; tail -n 35 {log} | cut -c 1-300"))
                .stdout
        });
        ends.collect()
    }

    /// `--cleanup` by us, with kube-proxy's own flags.
    pub(crate) fn clean_up(&mut self) -> Result<()> {
        let answer = self.guest.answer(&format!(
            "{} --cleanup",
            self.program(Program::Ours).display()
        ));
        ensure!(answer.code == Some(0), "{answer:?}");
        Ok(())
    }

    pub(crate) fn kernel(&mut self) -> Kernel {
        kernel::read(&mut self.guest)
    }

    /// Waits until the kernel is exactly so.
    pub(crate) fn becomes(&mut self, wanted: &Kernel, what: &str) -> Result<()> {
        self.differs_only_in(wanted, "nothing", what)
    }

    /// The same, but for the chain that is kubelet's, too: it stays until the clean-up.
    pub(crate) fn has_only_ours(&mut self, wanted: &Kernel, what: &str) -> Result<()> {
        self.differs_only_in(wanted, "KUBE-FIREWALL", what)
    }

    fn differs_only_in(&mut self, wanted: &Kernel, word: &str, what: &str) -> Result<()> {
        // ipvs mode waits for its connections, and IPVS remembers some for two minutes.
        wait::until_within(PATIENCE, what, || {
            let mut differences = kernel::differences(wanted, &self.kernel());
            differences.retain(|line| !line.contains(word));
            ensure!(differences.is_empty(), "{}", differences.join("\n"));
            Ok(())
        })
    }

    /// More than 200 new connections per second, and 24 that stay.
    pub(crate) fn clients(&mut self) -> Result<Clients> {
        let web = web();
        let cluster_ips = Family::ALL.map(|family| SocketAddr::new(cluster_ip(family, web.n), 80));
        let node_ports: Vec<SocketAddr> = self
            .guest
            .addresses
            .iter()
            .map(|address| SocketAddr::new(*address, node_port(web.n)))
            .collect();
        let start = |from: &Namespace, targets: &[SocketAddr]| {
            let plan = Plan {
                targets: targets.to_vec(),
                rate: 105,
                held: 10,
            };
            Load::start(from, plan)
        };
        let outside = vec![
            (
                "from a pod",
                start(&self.neighbours.shell, &cluster_ips).context("from a pod")?,
            ),
            (
                "from outside",
                start(&self.neighbours.client, &node_ports).context("from outside")?,
            ),
        ];
        self.loads += 1;
        let node = NodeLoad::start(&mut self.guest, &self.loads.to_string(), &cluster_ips, 5, 4)?;
        Ok(Clients { outside, node })
    }

    /// All were served.
    pub(crate) fn are_flawless(&mut self, clients: Clients, what: &str) -> Result<()> {
        let mut results = Vec::new();
        for (from, load) in clients.outside {
            let tally = load.finish()?;
            eprintln!("{what}, {from}: {}", tally.line());
            results.push(
                tally
                    .is_flawless(BETWEEN)
                    .with_context(|| format!("{what}, {from}")),
            );
        }
        let tally = clients.node.finish(&mut self.guest)?;
        eprintln!("{what}, from the node: {}", tally["line"]);
        results.push(
            if tally["failures"] == json!([]) && tally["answered"].as_u64() > Some(0) {
                Ok(())
            } else {
                Err(anyhow::anyhow!("{what}, from the node: {tally:#}"))
            },
        );
        results.into_iter().collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let arguments = ["delete", "--ignore-not-found", "--wait=false", "-f", "-"];
        for manifests in &self.manifests {
            drop(self.testbed.kubectl_as("admin", &arguments, manifests));
        }
    }
}

/// Connections between two events, for one load after the other.
const BETWEEN: u64 = 300;

impl Clients {
    pub(crate) fn go_on(&self) -> Result<()> {
        self.outside
            .iter()
            .try_for_each(|(from, load)| load.goes_on_for(BETWEEN).context(*from))
    }
}

fn has_synced(metrics: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&metrics, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: node\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let synced = answer.lines().filter(|line| {
        let value = line
            .rsplit(' ')
            .next()
            .and_then(|value| value.parse::<f64>().ok());
        line.starts_with("kubeproxy_sync_proxy_rules_last_timestamp_seconds{") && value > Some(0.0)
    });
    let families = synced.count();
    ensure!(families == 2, "{families} families have synced");
    Ok(())
}
