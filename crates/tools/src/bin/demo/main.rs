// SPDX-License-Identifier: Apache-2.0
//! The program behind `hack/demo`: a small cluster of network namespaces, the real proxy on a
//! directory of manifests, real traffic, and a commentary. Exits with 1 unless all checks pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Parser;

use kpr_testkit::manifests::{Endpoint, ManifestDirectory, Service};
use kpr_testkit::namespace::Namespace;
use kpr_testkit::oracle;
use kpr_testkit::proxy::{Invocation, Printed, Proxy, ask_proxy, metrics, plan};
use kpr_testkit::topology::{
    CLUSTER_CIDRS, Family, Host, Topology, cluster_ip, external_ip, load_balancer_vip, node_port,
};
use kpr_testkit::traffic::{Answer, Connection, Outcome, Patience, Protocol, Servers, ask};
use kpr_testkit::wait;

/// Connections per row of the traffic table.
const CONNECTIONS: usize = 12;
/// Lines of the plan to show.
const SHOWN_STEPS: usize = 12;
/// Schedulers that always send a client to the same real server.
const STICKY: [&str; 4] = ["sh", "dh", "lblc", "lblcr"];

/// Shows what kube-proxy-rs does, with real packets.
#[derive(Debug, Parser)]
struct Arguments {
    /// The proxy's executable.
    #[arg(long)]
    binary: PathBuf,
    /// ipvs or iptables.
    #[arg(long, default_value = "ipvs")]
    mode: String,
    /// IPVS scheduler.
    #[arg(long, default_value = "rr")]
    scheduler: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut demo = Demo { wrong: Vec::new() };
    if let Err(error) = demo.run(&arguments) {
        demo.wrong.push(format!("{error:#}"));
    }
    if demo.wrong.is_empty() {
        say("\nVERDICT: everything was as it should be");
        return ExitCode::SUCCESS;
    }
    say("\nVERDICT: not as it should be:");
    for wrong in &demo.wrong {
        say(format!("  - {wrong}"));
    }
    ExitCode::FAILURE
}

#[expect(clippy::print_stdout, reason = "printing is its purpose")]
fn say(text: impl Display) {
    println!("{text}");
}

fn title(text: &str) {
    say(format!("\n== {text}"));
}

fn indented(text: &str) {
    for line in text.lines() {
        say(format!("   {line}"));
    }
}

/// A row of the traffic table.
#[derive(Clone, Copy, Debug)]
struct Row {
    from: Host,
    to: Kind,
    family: Family,
    protocol: Protocol,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    ClusterIp,
    NodePort,
    ExternalIp,
    Vip,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster IP",
            Self::NodePort => "node port",
            Self::ExternalIp => "external IP",
            Self::Vip => "load balancer",
        }
    }

    fn address(self, service: &Service, family: Family) -> std::net::SocketAddr {
        let n = service.n;
        match self {
            Self::ClusterIp => (cluster_ip(family, n), 80),
            Self::NodePort => (Host::Node.address(family), node_port(n)),
            Self::ExternalIp => (external_ip(family, n), 80),
            Self::Vip => (load_balancer_vip(family, n), 80),
        }
        .into()
    }
}

const fn row(from: Host, to: Kind, family: Family, protocol: Protocol) -> Row {
    Row {
        from,
        to,
        family,
        protocol,
    }
}

const ROWS: [Row; 12] = [
    row(Host::Shell, Kind::ClusterIp, Family::V4, Protocol::Tcp),
    row(Host::Shell, Kind::ClusterIp, Family::V4, Protocol::Udp),
    row(Host::Node, Kind::ClusterIp, Family::V4, Protocol::Tcp),
    row(Host::Client, Kind::NodePort, Family::V4, Protocol::Tcp),
    row(Host::Client, Kind::NodePort, Family::V4, Protocol::Udp),
    row(Host::Client, Kind::ExternalIp, Family::V4, Protocol::Tcp),
    row(Host::Client, Kind::Vip, Family::V4, Protocol::Tcp),
    row(Host::Client, Kind::Vip, Family::V4, Protocol::Udp),
    row(Host::Remote, Kind::Vip, Family::V4, Protocol::Tcp),
    row(Host::Shell, Kind::ClusterIp, Family::V6, Protocol::Tcp),
    row(Host::Client, Kind::NodePort, Family::V6, Protocol::Udp),
    row(Host::Client, Kind::Vip, Family::V6, Protocol::Tcp),
];

/// Runs the demo and collects failed checks.
#[derive(Debug)]
struct Demo {
    wrong: Vec<String>,
}

impl Demo {
    /// Prints a check and records it if it fails.
    fn check(&mut self, claim: &str, holds: bool) {
        say(format!(
            "   [{}] {claim}",
            if holds { "ok" } else { "WRONG" }
        ));
        if !holds {
            self.wrong.push(claim.to_owned());
        }
    }

    fn run(&mut self, arguments: &Arguments) -> Result<()> {
        title("A cluster of network namespaces");
        indented(
            "shell web-1 web-2        web-3 web-4 remote-shell     pods\n\
             \x20   \\  |  /                \\  |  /\n\
             \x20    node ------------------ remote                   nodes; the proxy runs on the first\n\
             \x20              |\n\
             \x20            client                                   outside",
        );
        let topology = Topology::new().context("cannot set up the cluster")?;
        let _servers = Servers::new(&topology)?;
        let node = topology.host(Host::Node);
        let mut service = Service::new("web", 1, &[Host::Web1, Host::Web3])
            .exposed()
            .protocols(&[Protocol::Tcp, Protocol::Udp]);
        let manifests = ManifestDirectory::new(std::slice::from_ref(&service))?;
        let invocation = invocation(arguments, manifests.path());
        say(
            "   Service web: TCP and UDP, IPv4 and IPv6; endpoints web-1 (on this node) and web-3 (on the other)",
        );

        title("kube-proxy-rs plan: what it would change, without changing it");
        let planned = plan(node, &invocation)?;
        show_plan(&planned);
        self.check("the plan has steps (exit code 2)", planned.code == Some(2));

        title("The proxy starts");
        say(format!("   {:?}", invocation.command()));
        let start = wait::now();
        let proxy = Proxy::start(node, &invocation)?;
        say(format!("   ready after {} ms", start.elapsed().as_millis()));
        self.nothing_left_to_do(node, &invocation)?;

        self.traffic(&topology, arguments, &service, "Traffic to two endpoints")?;
        show_servers(node, arguments, &service)?;

        service.endpoints = Host::WEB.into_iter().map(Endpoint::ready).collect();
        self.change(node, &manifests, arguments, &invocation, &service)?;
        self.traffic(&topology, arguments, &service, "Scaled up: four endpoints")?;

        title("An endpoint is removed while a client is connected to it");
        let mut connection = open(&topology, &service)?;
        let leaving = connection.answer.by.clone();
        say(format!(
            "   client has a TCP connection through the load-balancer VIP; {leaving} answers it"
        ));
        service.endpoints.retain(|e| e.host.name() != leaving);
        manifests.apply(&service)?;
        self.wait_for(node, arguments, &service)?;
        show_servers(node, arguments, &service)?;
        // `dh` drops packets for a server of weight 0, so nothing drains under it.
        let drains = arguments.mode != "ipvs" || arguments.scheduler != "dh";
        let what = if drains { "still works" } else { "has ended" };
        self.check(
            &format!("the open connection to {leaving} {what}"),
            connection.echo().is_ok() == drains,
        );
        self.traffic(&topology, arguments, &service, "New connections avoid it")?;
        connection.abort()?;

        title("The proxy's metrics (/metrics)");
        show_metrics(node)?;
        let _proxy = self.restart(&topology, &service, &invocation, proxy)?;
        self.wait_for(node, arguments, &service)?;

        let vip = Kind::Vip.address(&service, Family::V4).to_string();
        for command in [&["status"][..], &["explain", &vip, "--from", "outside"]] {
            title(&format!("kube-proxy-rs {}", command.join(" ")));
            let answer = ask_proxy(node, &invocation.binary, command)?;
            indented(&answer.text);
            self.check("the exit code is 0", answer.code == Some(0));
        }
        Ok(())
    }

    /// Applies a change to the manifests and waits until the kernel has it.
    fn change(
        &mut self,
        node: &Namespace,
        manifests: &ManifestDirectory,
        arguments: &Arguments,
        invocation: &Invocation,
        service: &Service,
    ) -> Result<()> {
        manifests.apply(service)?;
        self.wait_for(node, arguments, service)?;
        self.nothing_left_to_do(node, invocation)
    }

    /// Waits until exactly the Service's endpoints receive new connections, by other programs'
    /// account.
    fn wait_for(
        &mut self,
        node: &Namespace,
        arguments: &Arguments,
        service: &Service,
    ) -> Result<()> {
        if arguments.mode != "ipvs" {
            let result = wait::until("iptables-save shows the endpoints", || {
                for family in Family::ALL {
                    let wanted: BTreeSet<String> = service
                        .endpoints
                        .iter()
                        .map(|endpoint| (endpoint.host.address(family), 8080).into())
                        .map(|target: std::net::SocketAddr| target.to_string())
                        .collect();
                    let found: BTreeSet<String> = oracle::rules(node, family)?
                        .iter()
                        .filter_map(|rule| rule.split_once("--to-destination "))
                        .map(|(_, target)| target.to_owned())
                        .collect();
                    anyhow::ensure!(found == wanted, "{family}: {found:?}, not {wanted:?}");
                }
                Ok(())
            });
            self.check(
                "iptables-save shows exactly the expected endpoints",
                result.is_ok(),
            );
            return result;
        }
        let services = std::slice::from_ref(service);
        let wanted = oracle::wanted_virtual_servers(
            services,
            &arguments.scheduler,
            &oracle::node_addresses(),
        );
        let result = wait::until("ipvsadm shows the endpoints", || {
            let mut found = oracle::virtual_servers(node)?;
            for server in found.values_mut() {
                // Weight 0: draining.
                server.real_servers.retain(|_, weight| *weight > 0);
            }
            let differences = oracle::differences(&wanted, &found);
            anyhow::ensure!(differences.is_empty(), "{}", differences.join("; "));
            Ok(())
        });
        self.check("ipvsadm shows exactly the expected servers", result.is_ok());
        result
    }

    fn nothing_left_to_do(&mut self, node: &Namespace, invocation: &Invocation) -> Result<()> {
        let planned = plan(node, invocation)?;
        self.check(
            "planning again finds nothing to do (exit code 0)",
            planned.code == Some(0),
        );
        Ok(())
    }

    fn traffic(
        &mut self,
        topology: &Topology,
        arguments: &Arguments,
        service: &Service,
        what: &str,
    ) -> Result<()> {
        let how = match arguments.mode.as_str() {
            "ipvs" => format!("scheduler {}", arguments.scheduler),
            _ => "endpoints are chosen at random".to_owned(),
        };
        title(&format!("{what}: {CONNECTIONS} connections each, {how}"));
        say(format!(
            "   {:<7} {:<14} {:<24} {:<5} answered by",
            "from", "to", "", ""
        ));
        let mut all_right = true;
        for row in ROWS {
            let to = row.to.address(service, row.family);
            let mut answers: BTreeMap<String, usize> = BTreeMap::new();
            for _ in 0..CONNECTIONS {
                let from = topology.host(row.from);
                let outcome = ask(from, None, to, row.protocol, Patience::Long)?;
                let by = match outcome {
                    Outcome::Answered(Answer { by, .. }) => by,
                    other => other.to_string(),
                };
                *answers.entry(by).or_default() += 1;
            }
            let shown: Vec<String> = answers.iter().map(|(by, n)| format!("{by} x{n}")).collect();
            let right = is_right(&answers, service, arguments);
            all_right &= right;
            say(format!(
                "   {:<7} {:<14} {:<24} {:<5} {}{}",
                row.from.name(),
                row.to.name(),
                to.to_string(),
                row.protocol.to_string(),
                shown.join("  "),
                if right { "" } else { "   <-- WRONG" }
            ));
        }
        let claim = match arguments.scheduler.as_str() {
            "rr" | "wrr" if arguments.mode == "ipvs" => "every endpoint answered equally often",
            name if STICKY.contains(&name) && arguments.mode == "ipvs" => {
                "each row was answered by one and the same endpoint"
            }
            _ => "only endpoints answered, every time",
        };
        self.check(claim, all_right);
        Ok(())
    }

    fn restart(
        &mut self,
        topology: &Topology,
        service: &Service,
        invocation: &Invocation,
        proxy: Proxy,
    ) -> Result<Proxy> {
        title("The proxy is killed and restarted");
        let node = topology.host(Host::Node);
        let mut connection = open(topology, service)?;
        say(format!(
            "   client is connected to {}",
            connection.answer.by
        ));
        proxy.kill()?;
        self.check(
            "the connection works while no proxy is running",
            connection.echo().is_ok(),
        );
        self.nothing_left_to_do(node, invocation)?;
        let proxy = Proxy::start(node, invocation)?;
        self.check(
            "the connection survived the restart",
            connection.echo().is_ok(),
        );
        connection.abort()?;
        Ok(proxy)
    }
}

fn invocation(arguments: &Arguments, manifests: &Path) -> Invocation {
    let mut flags = vec![format!("--cluster-cidr={CLUSTER_CIDRS}")];
    if arguments.mode == "ipvs" {
        flags.push(format!("--ipvs-scheduler={}", arguments.scheduler));
    }
    Invocation {
        binary: arguments.binary.clone(),
        manifests: manifests.to_owned(),
        mode: arguments.mode.clone(),
        flags,
    }
}

/// Whether the answers match the scheduler's distribution.
fn is_right(answers: &BTreeMap<String, usize>, service: &Service, arguments: &Arguments) -> bool {
    let is_endpoint = |name: &String| service.endpoints.iter().any(|e| e.host.name() == name);
    if !answers.keys().all(is_endpoint) {
        return false;
    }
    let endpoints = service.endpoints.len();
    match arguments.scheduler.as_str() {
        _ if arguments.mode != "ipvs" => true,
        "rr" | "wrr" => {
            answers.len() == endpoints && answers.values().all(|n| *n == CONNECTIONS / endpoints)
        }
        name if STICKY.contains(&name) => answers.len() == 1,
        _ => true,
    }
}

/// A TCP connection from the client through the load-balancer VIP.
fn open(topology: &Topology, service: &Service) -> Result<Connection> {
    let to = Kind::Vip.address(service, Family::V4);
    Connection::open(
        topology.host(Host::Client),
        to,
        Protocol::Tcp,
        Patience::Long,
    )?
    .map_err(|outcome| anyhow!("the client's connection to {to} was {outcome}"))
}

fn show_plan(planned: &Printed) {
    let lines: Vec<&str> = planned.text.lines().collect();
    for line in lines.iter().take(SHOWN_STEPS) {
        let cut: String = line.chars().take(110).collect();
        say(format!(
            "   {cut}{}",
            if cut.len() < line.len() { " ..." } else { "" }
        ));
    }
    if lines.len() > SHOWN_STEPS {
        say(format!(
            "   ... and {} more lines",
            lines.len() - SHOWN_STEPS
        ));
    }
    indented(planned.errors.trim_end());
}

/// Prints one Service port as other programs list it; the other ports look alike.
fn show_servers(node: &Namespace, arguments: &Arguments, service: &Service) -> Result<()> {
    if arguments.mode != "ipvs" {
        let rules = oracle::rules(node, Family::V4)?;
        let about = format!("/{}:tcp-80", service.name);
        let shown = |rule: &&String| {
            rule.starts_with("-A KUBE-SERVICES ") || rule.starts_with("-A KUBE-SVC-")
        };
        say(format!(
            "\n   # iptables-save -t nat     (some of {} rules)",
            rules.iter().filter(|rule| rule.starts_with("-A")).count()
        ));
        for rule in rules
            .iter()
            .filter(shown)
            .filter(|rule| rule.contains(&about))
        {
            indented(rule);
        }
        return Ok(());
    }
    let vip = Kind::Vip.address(service, Family::V4).to_string();
    let all = oracle::virtual_servers(node)?.len();
    say(format!(
        "\n   # ipvsadm -Ln -t {vip}     (one of {all} virtual servers)"
    ));
    indented(&node.run("ipvsadm", &["-Ln", "-t", &vip])?);
    Ok(())
}

fn show_metrics(node: &Namespace) -> Result<()> {
    const SHOWN: [&str; 8] = [
        "kubeproxy_sync_proxy_rules_duration_seconds_count",
        "kubeproxy_sync_proxy_rules_duration_seconds_sum",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "kube_proxy_rs_plan_steps_total",
        "kube_proxy_rs_netlink",
        "kube_proxy_rs_processes_started_total",
    ];
    for line in metrics(node)?.lines() {
        if SHOWN.iter().any(|name| line.starts_with(name)) {
            say(format!("   {line}"));
        }
    }
    Ok(())
}
