// SPDX-License-Identifier: Apache-2.0
//! The proxy as operators and load balancers see it, in iptables mode, in a network namespace of this machine: health
//! check ports of Services, the two HTTP servers.
#![cfg(test)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::json;

use common::manifests::{Endpoint, ManifestDirectory, Service};
use common::namespace::Namespace;
use common::proxy::{Invocation, Proxy};
use common::requirements::is_required;
use common::topology::Host;
use common::wait;

mod common;

/// A test: its name and what it does.
type Test = (&'static str, fn() -> Result<()>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each test starts a proxy, and there are two processors.
    arguments.test_threads.get_or_insert(2);
    let tests: [Test; 2] = [
        (
            "health_check_ports_answer_where_node_ports_do",
            health_check_ports_answer_where_node_ports_do,
        ),
        (
            "health_check_ports_follow_the_nodes_addresses",
            health_check_ports_follow_the_nodes_addresses,
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
    let invocation = Invocation {
        binary: Path::new(env!("CARGO_BIN_EXE_kube-proxy-rs")).to_owned(),
        manifests: manifests.path().to_owned(),
        mode: "iptables".to_owned(),
        flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
    };
    Proxy::start(node, &invocation)
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
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
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
    proxy.wait_for_log(&["health check port not opened", "0.0.0.0:32000"])?;
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
