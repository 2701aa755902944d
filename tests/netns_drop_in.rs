// SPDX-License-Identifier: Apache-2.0
//! The proxy as operators and load balancers see it, in iptables mode, in a network namespace of
//! this machine: health check ports of Services, changes of the configuration file.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::json;
use tempfile::TempDir;

use kpr_testkit::few_rights;
use kpr_testkit::manifests::{Endpoint, ManifestDirectory, Service};
use kpr_testkit::namespace::{Namespace, command};
use kpr_testkit::proxy::{Invocation, METRICS_PORT, Proxy, ask_proxy};
use kpr_testkit::requirements::is_required;
use kpr_testkit::topology::Host;
use kpr_testkit::traffic::Protocol;
use kpr_testkit::wait;

/// A test: its name and what it does.
type Test = (&'static str, fn() -> Result<()>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each test starts a proxy, and there are two processors.
    arguments.test_threads.get_or_insert(2);
    let tests: [Test; 7] = [
        (
            "a_changed_configuration_file_costs_no_connection",
            a_changed_configuration_file_costs_no_connection,
        ),
        (
            "a_restart_in_place_keeps_its_place",
            a_restart_in_place_keeps_its_place,
        ),
        (
            "few_rights_are_enough_after_init_only",
            few_rights_are_enough_after_init_only,
        ),
        (
            "health_check_ports_answer_where_node_ports_do",
            health_check_ports_answer_where_node_ports_do,
        ),
        (
            "health_check_ports_follow_the_nodes_addresses",
            health_check_ports_follow_the_nodes_addresses,
        ),
        (
            "the_running_proxy_answers_questions",
            the_running_proxy_answers_questions,
        ),
        (
            "a_plan_without_a_reader_ends_quietly",
            a_plan_without_a_reader_ends_quietly,
        ),
    ];
    let is_root = nix::unistd::geteuid().is_root();
    let trial = |(name, test): Test| {
        let run = move || {
            if !is_root {
                return Err(Failed::from("needs root"));
            }
            test().map_err(|error| Failed::from(format!("{error:?}")))
        };
        Trial::test(name, run).with_ignored_flag(!is_root && !is_required("REQUIRE_NETNS"))
    };
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}

/// A node without neighbours.
fn node(addresses: &[&str]) -> Result<Namespace> {
    let node = Namespace::new()?;
    node.ip("link set lo up\nlink add eth0 type bridge\nlink set eth0 up\n")?;
    for address in addresses {
        add_address(&node, address)?;
    }
    Ok(node)
}

fn add_address(node: &Namespace, address: &str) -> Result<()> {
    let nodad = if address.contains(':') { " nodad" } else { "" };
    node.ip(&format!("address add {address} dev eth0{nodad}\n"))
}

fn start(node: &Namespace, manifests: &ManifestDirectory, flags: &[&str]) -> Result<Proxy> {
    Proxy::start(node, &invocation(manifests).with(flags))
}

fn invocation(manifests: &ManifestDirectory) -> Invocation {
    let binary = Path::new(env!("CARGO_BIN_EXE_kube-proxy-rs"));
    Invocation::new(binary, manifests, "iptables")
}

/// An answer over HTTP: status, headers in lower case, body.
#[derive(Debug)]
struct Answer {
    code: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

fn get(node: &Namespace, address: SocketAddr, path: &str) -> Result<Answer> {
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(10));
    let mut stream = node
        .enter(connect)?
        .with_context(|| format!("no connection to {address}"))?;
    stream.set_read_timeout(Some(wait::LIMIT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP")?;
    let mut lines = head.lines();
    let status = lines.next().context("no status line")?;
    let code = status.split(' ').nth(1).context("no status")?.parse()?;
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    Ok(Answer {
        code,
        headers,
        body: body.to_owned(),
    })
}

/// Waits until a health check port answers with this status.
fn answers(node: &Namespace, address: &str, code: u16) -> Result<Answer> {
    let address: SocketAddr = address.parse()?;
    wait::until(&format!("{address} answers {code}"), || {
        let answer = get(node, address, "/")?;
        ensure!(answer.code == code, "it is {answer:?}");
        Ok(answer)
    })
}

/// Waits until nobody listens there.
fn is_closed(node: &Namespace, address: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    wait::until(&format!("{address} is closed"), || {
        let answer = get(node, address, "/");
        ensure!(answer.is_err(), "it is {answer:?}");
        Ok(())
    })
}

/// Web-1 is on the node, web-3 is not.
fn checked(endpoints: &[Host]) -> Service {
    Service::new("web", 1, endpoints)
        .exposed()
        .with("externalTrafficPolicy", json!("Local"))
        .with("healthCheckNodePort", json!(32_000))
}

fn health_check_ports_answer_where_node_ports_do() -> Result<()> {
    let node = node(&["192.0.2.1/24", "2001:db8::1/64"])?;
    let manifests = ManifestDirectory::new(&[checked(&[Host::Web1, Host::Web3])])?;
    // Somebody has the port in one family: the other one works, and this one follows.
    let taken = node.enter(|| TcpListener::bind("0.0.0.0:32000"))??;
    let proxy = start(&node, &manifests, &[])?;
    let answer = answers(&node, "[2001:db8::1]:32000", 200)?;
    let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}";
    ensure!(answer.body == body, "{answer:?}");
    let weight = answer.headers.get("x-load-balancing-endpoint-weight");
    ensure!(weight.map(String::as_str) == Some("1"), "{answer:?}");
    proxy.wait_for_log(&["failed to open health check port", "0.0.0.0:32000"])?;
    drop(taken);
    answers(&node, "192.0.2.1:32000", 200)?;
    answers(&node, "127.0.0.1:32000", 200)?;

    // One that ends is not ready: load balancers must stop sending.
    let mut ending = checked(&[]);
    ending.endpoints = vec![
        Endpoint::terminating(Host::Web1, true),
        Endpoint::ready(Host::Web3),
    ];
    manifests.apply(&ending)?;
    for address in ["192.0.2.1:32000", "[2001:db8::1]:32000"] {
        let answer = answers(&node, address, 503)?;
        ensure!(answer.body.contains("\"localEndpoints\": 0"), "{answer:?}");
    }
    manifests.delete(&ending)?;
    for address in ["192.0.2.1:32000", "[2001:db8::1]:32000"] {
        is_closed(&node, address)?;
    }
    Ok(())
}

fn health_check_ports_follow_the_nodes_addresses() -> Result<()> {
    let node = node(&["192.0.2.1/24", "198.51.100.1/24", "2001:db8::1/64"])?;
    let manifests = ManifestDirectory::new(&[checked(&[Host::Web1])])?;
    let flags = [
        "--nodeport-addresses=192.0.2.0/24,2001:db8::/64",
        // Nothing but the announcement of an address may lead to it.
        "--iptables-sync-period=10m",
    ];
    let _proxy = start(&node, &manifests, &flags)?;
    answers(&node, "192.0.2.1:32000", 200)?;
    answers(&node, "[2001:db8::1]:32000", 200)?;
    for elsewhere in ["127.0.0.1:32000", "198.51.100.1:32000", "[::1]:32000"] {
        let address: SocketAddr = elsewhere.parse()?;
        let answer = get(&node, address, "/");
        ensure!(answer.is_err(), "{elsewhere} answers {answer:?}");
    }
    // kube-proxy looks at the addresses once; here they come and go.
    for new in ["192.0.2.7", "2001:db8::7"] {
        let ip: IpAddr = new.parse()?;
        let length = if ip.is_ipv4() { 24 } else { 64 };
        add_address(&node, &format!("{new}/{length}"))?;
        answers(&node, &SocketAddr::new(ip, 32_000).to_string(), 200)?;
    }
    node.ip("address del 192.0.2.7/24 dev eth0\n")?;
    add_address(&node, "192.0.2.8/24")?;
    answers(&node, "192.0.2.8:32000", 200)?;
    answers(&node, "192.0.2.1:32000", 200)?;
    Ok(())
}

/// A ConfigMap volume with one file, as the kubelet lays it out and updates it.
struct ConfigMap {
    directory: TempDir,
    version: usize,
}

impl ConfigMap {
    fn new(body: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("kpr-config-").tempdir()?;
        let mut volume = Self {
            directory,
            version: 0,
        };
        volume.update(body)?;
        symlink("..data/config.conf", volume.path())?;
        Ok(volume)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("config.conf")
    }

    fn update(&mut self, body: &str) -> Result<()> {
        const HEAD: &str =
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let at = |name: &str| self.directory.path().join(name);
        self.version += 1;
        let version = format!("..{}", self.version);
        fs::create_dir(at(&version))?;
        fs::write(
            at(&version).join("config.conf"),
            format!("{HEAD}mode: iptables\nclusterCIDR: 10.244.0.0/16\n{body}"),
        )?;
        symlink(&version, at("..data_tmp"))?;
        fs::rename(at("..data_tmp"), at("..data"))?;
        Ok(())
    }
}

/// Connects all the time, one connection after the other, and counts those that fail.
struct Client {
    stop: Arc<AtomicBool>,
    counting: std::thread::JoinHandle<(usize, Vec<String>)>,
}

impl Client {
    fn start(node: &Namespace, address: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let connect = move || {
            let (mut count, mut failures) = (0, Vec::new());
            while !is_over.load(Ordering::Relaxed) {
                match TcpStream::connect_timeout(&address, Duration::from_secs(10)) {
                    Ok(_) => count += 1,
                    Err(error) => failures.push(error.to_string()),
                }
            }
            (count, failures)
        };
        // The thread inherits the namespace.
        let counting = node.enter(|| std::thread::spawn(connect))?;
        Ok(Self { stop, counting })
    }

    /// All succeeded, and there were some.
    fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok((count, failures)) = self.counting.join() else {
            bail!("the client died");
        };
        ensure!(
            failures.is_empty() && count > 0,
            "{count} connections, failed: {failures:?}"
        );
        Ok(())
    }
}

/// Starts it with this file.
fn start_with(node: &Namespace, file: &Path, manifests: &ManifestDirectory) -> Result<Proxy> {
    let mut command = command(env!("CARGO_BIN_EXE_kube-proxy-rs"));
    command.args([
        format!("--config={}", file.display()),
        format!("--manifests={}", manifests.path().display()),
        "--hostname-override=node".to_owned(),
    ]);
    Proxy::spawn(node, command)
}

fn configz(node: &Namespace, port: u16) -> Result<serde_json::Value> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let answer = get(node, address, "/configz")?;
    let value: serde_json::Value = serde_json::from_str(&answer.body)?;
    Ok(value["kubeproxy.config.k8s.io"].clone())
}

/// Another proxy waits all the time, and does not get between the two halves of a restart.
fn a_restart_in_place_keeps_its_place() -> Result<()> {
    const RESTARTS: u16 = 8;
    let node = node(&["192.0.2.1/24"])?;
    let manifests = ManifestDirectory::new(&[checked(&[Host::Web1])])?;
    let mut volume = ConfigMap::new("")?;
    let first = start_with(&node, &volume.path(), &manifests)?;
    answers(&node, "192.0.2.1:32000", 200)?;
    let mut other = invocation(&manifests).command();
    other.args([
        "--healthz-bind-address=127.0.0.1:10300",
        "--metrics-bind-address=127.0.0.1:10301",
    ]);
    let second = Proxy::spawn(&node, other)?;
    second.wait_for_log(&["another kube-proxy-rs serves this network namespace"])?;
    for number in 0..RESTARTS {
        let port = 10_400 + number;
        volume.update(&format!("metricsBindAddress: 127.0.0.1:{port}\n"))?;
        wait::until("the new start answers", || configz(&node, port))
            .with_context(|| format!("{}\n{}", first.log(), second.log()))?;
    }
    let log = second.log();
    ensure!(!log.contains("the other proxy has ended"), "{log}");
    // The new start says who it is.
    let mut command = command(env!("CARGO_BIN_EXE_kube-proxy-rs"));
    command.arg("--cleanup");
    let (_, said) = Proxy::spawn(&node, command)?.wait()?;
    let holder = format!("runs here (process {}, mode iptables", first.pid());
    ensure!(said.contains(&holder), "{said}");
    let log = first.log();
    ensure!(
        !log.contains("another kube-proxy-rs"),
        "it waits for itself: {log}"
    );
    let (status, log) = first.terminate()?;
    ensure!(status.success(), "it ended with {status}:\n{log}");
    second.wait_for_log(&["the other proxy has ended"])?;
    wait::until("the second one serves", || configz(&node, 10_301))?;
    Ok(())
}

fn a_changed_configuration_file_costs_no_connection() -> Result<()> {
    // The endpoint is the node itself.
    let node = node(&["192.0.2.1/24", "198.51.100.1/24", "10.244.1.11/32"])?;
    node.ip("route add 10.96.0.0/16 dev eth0\n")?;
    let server = node.enter(|| TcpListener::bind("10.244.1.11:8080"))??;
    std::thread::spawn(move || server.incoming().for_each(drop));
    let manifests = ManifestDirectory::new(&[checked(&[Host::Web1])])?;
    let mut volume = ConfigMap::new("nodePortAddresses: [192.0.2.0/24]\n")?;
    let mut proxy = start_with(&node, &volume.path(), &manifests)?;
    answers(&node, "192.0.2.1:32000", 200)?;
    let client = Client::start(&node, "10.96.0.1:80".parse()?)?;
    let configz = |port| configz(&node, port);

    volume.update("nodePortAddresses: [198.51.100.0/24]\n")?;
    answers(&node, "198.51.100.1:32000", 200)?;
    is_closed(&node, "192.0.2.1:32000")?;
    wait::until("the rules follow", || {
        let rules = node.run("iptables-save", &["-t", "nat"])?;
        ensure!(
            rules.contains("-d 198.51.100.1/32") && !rules.contains("-d 192.0.2.1/32"),
            "{rules}"
        );
        ensure!(configz(10249)?["nodePortAddresses"] == json!(["198.51.100.0/24"]));
        Ok(())
    })?;
    proxy.wait_for_log(&["reloaded without a restart"])?;

    volume.update("nodePortAddresses: [everywhere]\n")?;
    proxy.wait_for_log(&["keeping the previous configuration", "NodePortAddresses[0]"])?;
    volume.update("nodePortAddresses: all\n")?;
    proxy.wait_for_log(&[
        "keeping the previous configuration",
        "nodePortAddresses: want a list",
    ])?;
    ensure!(configz(10249)?["nodePortAddresses"] == json!(["198.51.100.0/24"]));
    answers(&node, "198.51.100.1:32000", 200)?;

    volume.update("metricsBindAddress: 127.0.0.1:10248\n")?;
    proxy.wait_for_log(&["needs a restart", "metricsBindAddress"])?;
    wait::until("the new start answers", || configz(10248))?;
    answers(&node, "192.0.2.1:32000", 200)?;
    ensure!(proxy.is_running()?, "{}", proxy.log());
    ensure!(configz(10249).is_err());
    client
        .finish()
        .with_context(|| format!("the log:\n{}", proxy.log()))
}

fn the_running_proxy_answers_questions() -> Result<()> {
    let node = node(&["192.0.2.1/24", "2001:db8::1/64"])?;
    let binary = Path::new(env!("CARGO_BIN_EXE_kube-proxy-rs"));
    let ask = |arguments: &[&str]| ask_proxy(&node, binary, arguments);
    let nobody = ask(&["status"])?;
    ensure!(nobody.code == Some(1), "{nobody:?}");
    let says = nobody
        .errors
        .contains("no kube-proxy-rs runs in this network namespace");
    ensure!(says, "{nobody:?}");

    let web = Service::new("web", 1, &[Host::Web1]).exposed();
    let empty = Service::new("empty", 2, &[]);
    let manifests = ManifestDirectory::new(&[web, empty])?;
    let proxy = start(&node, &manifests, &[])?;
    let status = wait::until("both Services are known", || {
        let status = ask(&["status", "--output=json"])?;
        let status: serde_json::Value = serde_json::from_str(&status.text)?;
        ensure!(status["services"] == 2, "{status}");
        Ok(status)
    })?;
    let facts = ["mode", "node", "healthy", "serviceErrors", "isBusy"].map(|name| &status[name]);
    ensure!(
        facts
            == [
                &json!("iptables"),
                &json!("node"),
                &json!(true),
                &json!(0),
                &json!(false)
            ],
        "{status}"
    );
    let rounds = status["families"]["IPv4"]["rounds"]
        .as_array()
        .map(Vec::len);
    ensure!(rounds.is_some_and(|rounds| rounds > 0), "{status}");
    let text = ask(&["status"])?;
    ensure!(
        text.code == Some(0) && text.text.contains("mode iptables, node node"),
        "{text:?}"
    );
    ensure!(
        !text.text.contains('\x1b'),
        "no terminal, no colours: {text:?}"
    );

    let web = ask(&["explain", "web:80", "--from=node"])?;
    let line = "endpoint     10.244.1.11:8080 may answer: ready";
    ensure!(web.code == Some(0) && web.text.contains(line), "{web:?}");
    // Read, not believed.
    ensure!(
        web.text
            .contains("-j DNAT --to-destination 10.244.1.11:8080"),
        "{web:?}"
    );
    let empty = ask(&["explain", "empty.default"])?;
    ensure!(
        empty.code == Some(2) && empty.text.contains("refused: no endpoint can answer"),
        "{empty:?}"
    );
    for (target, error) in [
        ("none", "no Service none is known"),
        ("a/b", "want SERVICE"),
    ] {
        let answer = ask(&["explain", target])?;
        ensure!(
            answer.code == Some(1) && answer.errors.contains(error),
            "{answer:?}"
        );
    }
    let top = ask(&["top", "--once"])?;
    ensure!(
        top.code == Some(1) && top.errors.contains("mode iptables has no counters"),
        "{top:?}"
    );

    let address: SocketAddr = format!("127.0.0.1:{METRICS_PORT}").parse()?;
    let page = get(&node, address, "/?q=default/we")?;
    ensure!(
        page.code == 200 && page.headers["content-type"].starts_with("text/html"),
        "{page:?}"
    );
    ensure!(
        page.body.contains("default/web") && !page.body.contains("default/empty"),
        "{page:?}"
    );
    drop(proxy);
    Ok(())
}

fn a_plan_without_a_reader_ends_quietly() -> Result<()> {
    let node = node(&["192.0.2.1/24"])?;
    let manifests = ManifestDirectory::new(&[checked(&[Host::Web1])])?;
    for output in ["text", "json"] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = command(env!("CARGO_BIN_EXE_kube-proxy-rs"));
        command
            .args(["plan", "--hostname-override=node", "--output", output])
            .arg(format!("--manifests={}", manifests.path().display()))
            .stdout(writer)
            .stderr(Stdio::piped());
        let ended = node.enter(move || command.spawn()?.wait_with_output())??;
        let log = String::from_utf8_lossy(&ended.stderr);
        // 2: there is something to change.
        ensure!(ended.status.code() == Some(2), "{}: {log}", ended.status);
        ensure!(!log.contains("panicked") && !log.contains("Error"), "{log}");
    }
    Ok(())
}

fn few_rights_are_enough_after_init_only() -> Result<()> {
    // The first one is the Node object's.
    let node = node(&["172.20.0.10/24", "192.0.2.1/24", "2001:db8::1/64"])?;
    let web = Service::new("web", 1, &[Host::Web1]).protocols(&[Protocol::Tcp]);
    let manifests = ManifestDirectory::new(&[web.exposed()])?;
    // Not for a network namespace to change.
    let flags = ["--conntrack-max-per-core=0", "--conntrack-min=0"];
    let setting = |name: &str| -> Result<String> {
        let value = node.run("cat", &[&format!("/proc/sys/{name}")])?;
        Ok(value.trim().to_owned())
    };
    let mut command = command(env!("CARGO_BIN_EXE_kube-proxy-rs"));
    command
        .args(["--init-only", "--proxy-mode=iptables"])
        .args(flags);
    let output = node.enter(|| command.output())??;
    ensure!(output.status.success(), "{output:?}");
    for (name, value) in [
        ("net/ipv4/conf/all/route_localnet", "1"),
        ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "3600"),
    ] {
        ensure!(setting(name)? == value, "{name} is {}", setting(name)?);
    }
    let rules = node.run("iptables-save", &[])?;
    ensure!(!rules.contains("KUBE-"), "{rules}");

    let command = few_rights::command(&invocation(&manifests).with(&flags).command());
    let proxy = Proxy::spawn(&node, command)?;
    for program in ["iptables-save", "ip6tables-save"] {
        wait::until("the Service has its rules", || {
            let rules = node.run(program, &["-t", "nat"])?;
            ensure!(rules.contains("--dport 30001"), "{rules}\n{}", proxy.log());
            Ok(())
        })?;
    }
    let (_, log) = proxy.terminate()?;
    few_rights::has_no_complaints(&log)
}
