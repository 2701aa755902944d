// SPDX-License-Identifier: Apache-2.0
//! `kube-proxy-rs explain`: what connections to a Service meet on this node, and why. The running
//! proxy answers; the command prints.

mod rules;

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;

use super::local;
use super::output::print;
use super::page::connections;
use super::state::StatePage;
use super::status::Status;
use crate::clock::Clock;
use crate::config::OutputFormat;
use crate::dataplane::exec::{Exec as _, System};
use crate::reconcile::show::{Explain, From, Target};
use kpr_core::model::{Protocol, ServiceName};
use kpr_core::plan::explain::Place;

/// Exit code of `explain` if no connection is answered.
const EXIT_UNANSWERED: u8 = 2;

/// Answers a query such as `target=web.shop:80` and `from=pod`. Fails with what is wrong with it.
pub(super) async fn answer(state: &StatePage, query: &[(String, String)]) -> Result<Value, String> {
    let mut wanted = Explain {
        target: Target::Service(ServiceName::new("", ""), None),
        from: From::Everywhere,
    };
    let mut has_target = false;
    for (name, value) in query {
        match name.as_str() {
            "target" => {
                wanted.target = target(value)?;
                has_target = true;
            }
            "from" => wanted.from = from(value)?,
            _ => return Err(format!("unknown parameter {name:?}: target, from")),
        }
    }
    if !has_target {
        return Err("target is missing: SERVICE[.NAMESPACE][:PORT] or ADDRESS:PORT[/PROTO]".into());
    }
    let explained = state.explain(wanted).await;
    let explained = explained.ok_or("the sync loop is busy, try again")?;
    let mut value = serde_json::to_value(explained).map_err(|error| error.to_string())?;
    add_kernel(&mut value);
    Ok(value)
}

/// Adds what the kernel holds at each place, as it is now: real servers with their connections.
fn add_kernel(explained: &mut Value) {
    let connections = connections();
    for explanation in explained.as_array_mut().into_iter().flatten() {
        let place = explanation["place"].as_str().unwrap_or_default().to_owned();
        let servers = connections
            .iter()
            .filter(|((server, _), _)| *server == place)
            .map(|((_, endpoint), listed)| {
                serde_json::json!({
                    "endpoint": endpoint,
                    "weight": listed.weight,
                    "activeConnections": listed.active,
                    "inactiveConnections": listed.inactive,
                })
            });
        let servers: Vec<Value> = servers.collect();
        let count = |server: &Value, what| server[what].as_u64().unwrap_or_default();
        let upper = explanation["upperThreshold"].as_u64();
        let full = servers.iter().filter(|server| {
            let connections =
                count(server, "activeConnections") + count(server, "inactiveConnections");
            upper.is_some_and(|upper| connections >= upper)
        });
        let full: Vec<Value> = full.map(|server| server["endpoint"].clone()).collect();
        hold_off(explanation, &full);
        if let Value::Object(fields) = explanation {
            fields.insert("realServers".to_owned(), Value::Array(servers));
        }
    }
}

/// Real servers that have as many connections as they may get no new ones. Clients with affinity
/// still reach theirs.
fn hold_off(explanation: &mut Value, full: &[Value]) {
    let endpoints = explanation["endpoints"].as_array_mut();
    let mut left = 0;
    for endpoint in endpoints.into_iter().flatten() {
        if endpoint["mayAnswer"] == true && full.contains(&endpoint["address"]) {
            endpoint["mayAnswer"] = false.into();
            endpoint["why"] = "has as many connections as its upper threshold".into();
        } else if endpoint["mayAnswer"] == true {
            left += 1;
        }
    }
    if !full.is_empty() && left == 0 && explanation["verdict"] == "answered" {
        explanation["verdict"] = "refused".into();
        explanation["why"] = "all endpoints have as many connections as they may".into();
    }
}

/// Adds the rules that the kernel has now, as the proxy's iptables prints them.
fn add_rules(explained: &mut Value, backend: &str) {
    let exec = System::new(Clock::system(), System::DEFAULT_DEADLINE);
    let mut saved = BTreeMap::new();
    for explanation in explained.as_array_mut().into_iter().flatten() {
        let place = explanation["place"].as_str().map(str::to_owned);
        let Some(place) = place.as_deref().and_then(parse_place) else {
            continue;
        };
        let name = explanation["service"].as_str().unwrap_or_default();
        let name = name.split([':', ' ']).next().unwrap_or_default();
        let program = match place.address {
            IpAddr::V4(_) => format!("iptables-{backend}-save"),
            IpAddr::V6(_) => format!("ip6tables-{backend}-save"),
        };
        let saved = saved.entry(program).or_insert_with_key(|program| {
            // Without it the proxy's own account stands alone.
            let output = exec.run(program, &["-t", "nat"], &[]);
            let stdout = output.map(|output| output.stdout).unwrap_or_default();
            String::from_utf8_lossy(&stdout).into_owned()
        });
        let rules = rules::of(saved, place, name);
        if let Value::Object(fields) = explanation {
            fields.insert("rules".to_owned(), serde_json::json!(rules));
        }
    }
}

/// `TCP 10.96.0.1:80`
fn parse_place(text: &str) -> Option<Place> {
    let (protocol, socket) = text.split_once(' ')?;
    let socket: SocketAddr = socket.parse().ok()?;
    Some(Place {
        address: socket.ip(),
        port: socket.port(),
        protocol: protocol.parse().ok()?,
    })
}

fn from(text: &str) -> Result<From, String> {
    match text {
        "" => Ok(From::Everywhere),
        "pod" => Ok(From::Pod),
        "node" => Ok(From::Node),
        "outside" => Ok(From::Outside),
        address => address
            .parse()
            .map(From::Address)
            .map_err(|_error| format!("from {text:?}: want pod, node, outside or an IP address")),
    }
}

fn target(text: &str) -> Result<Target, String> {
    let (place, protocol) = match text.rsplit_once('/') {
        Some((place, protocol)) => (place, Some(protocol)),
        None => (text, None),
    };
    if let Ok(socket) = place.parse::<SocketAddr>() {
        let protocol = match protocol {
            None => Protocol::Tcp,
            Some(name) => name.to_uppercase().parse().map_err(|_error| {
                format!("target {text:?}: want tcp, udp or sctp after the slash")
            })?,
        };
        return Ok(Target::Place(Place {
            address: socket.ip(),
            port: socket.port(),
            protocol,
        }));
    }
    if place.parse::<IpAddr>().is_ok() {
        return Err(format!("target {text:?}: want a port behind the address"));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => {
            let port = port
                .parse()
                .map_err(|_error| format!("target {text:?}: want a port number"))?;
            (name, Some(port))
        }
        None => (text, None),
    };
    let (name, namespace) = name.split_once('.').unwrap_or((name, "default"));
    // As in names that the cluster's DNS answers.
    let namespace = namespace.split('.').next().unwrap_or(namespace);
    if name.is_empty() || namespace.is_empty() || text.contains('/') {
        let forms = "SERVICE[.NAMESPACE][:PORT] or ADDRESS:PORT[/PROTO]";
        return Err(format!("target {text:?}: want {forms}"));
    }
    Ok(Target::Service(ServiceName::new(namespace, name), port))
}

/// Asks the running proxy, and prints its answer.
pub(super) async fn command(
    target: &str,
    from: Option<&str>,
    output: OutputFormat,
) -> anyhow::Result<ExitCode> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("target", target);
    if let Some(from) = from {
        query.append_pair("from", from);
    }
    let answer = local::ask(&format!("/explain?{}", query.finish())).await?;
    let mut value: Value = serde_json::from_str(&answer)?;
    let status: Status = serde_json::from_str(&local::ask("/status").await?)?;
    if let (true, Some((backend, _))) = (status.mode == "iptables", &status.iptables) {
        add_rules(&mut value, backend);
    }
    let explained: Vec<Explained> = serde_json::from_value(value.clone())?;
    match output {
        OutputFormat::Text if explained.is_empty() => {
            anyhow::bail!("no Service {target} is known to the proxy, or it has no such port")
        }
        OutputFormat::Text => {
            for one in &explained {
                print(one)?;
            }
        }
        OutputFormat::Json => print(format_args!("{}\n", serde_json::to_string_pretty(&value)?))?,
        OutputFormat::Yaml => print(serde_saphyr::to_string(&value)?)?,
    }
    let is_answered = explained.iter().any(|one| one.verdict == "answered");
    Ok(if is_answered {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_UNANSWERED)
    })
}

/// An explanation as it is printed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Explained {
    place: String,
    from: String,
    verdict: String,
    why: String,
    service: Option<String>,
    role: Option<String>,
    without: Vec<String>,
    policy: Option<String>,
    affinity_seconds: Option<u64>,
    upper_threshold: Option<u32>,
    slow_start_seconds: Option<u64>,
    source_ranges: Vec<String>,
    masqueraded: Option<String>,
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    real_servers: Vec<RealServer>,
    #[serde(default)]
    rules: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    address: SocketAddr,
    may_answer: bool,
    why: String,
    is_local: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RealServer {
    endpoint: String,
    weight: u32,
    active_connections: u32,
    inactive_connections: u32,
}

impl Display for Explained {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            place,
            from,
            verdict,
            why,
            ..
        } = self;
        writeln!(f, "{place} from {from}: {verdict}: {why}")?;
        if let (Some(service), Some(role)) = (&self.service, &self.role) {
            writeln!(f, "  service      {service}, {}", words(role))?;
        }
        for loser in &self.without {
            writeln!(
                f,
                "  loses        {loser} claims this too and does not get it"
            )?;
        }
        if let Some(policy) = &self.policy {
            writeln!(f, "  policy       {policy} for this client")?;
        }
        if let Some(seconds) = self.affinity_seconds {
            writeln!(
                f,
                "  affinity     a client keeps its endpoint for {seconds} s"
            )?;
        }
        if let Some(seconds) = self.slow_start_seconds {
            writeln!(
                f,
                "  slow start   a new endpoint has its whole weight after {seconds} s"
            )?;
        }
        if let Some(upper) = self.upper_threshold {
            writeln!(
                f,
                "  limit        {upper} connections for each endpoint at this address"
            )?;
        }
        if !self.source_ranges.is_empty() {
            writeln!(f, "  sources      only {}", self.source_ranges.join(", "))?;
        }
        if self.verdict == "answered" {
            let source = match &self.masqueraded {
                Some(why) => format!("this node ({why})"),
                None => "the client's own address".to_owned(),
            };
            writeln!(f, "  source seen  {source}")?;
        }
        for endpoint in &self.endpoints {
            let answers = if endpoint.may_answer {
                "may answer"
            } else {
                "does not"
            };
            let place = if endpoint.is_local {
                ", on this node"
            } else {
                ""
            };
            writeln!(
                f,
                "  endpoint     {} {answers}: {}{place}",
                endpoint.address, endpoint.why
            )?;
        }
        for server in &self.real_servers {
            writeln!(
                f,
                "  kernel       {} weight {}, {} active and {} inactive connections",
                server.endpoint,
                server.weight,
                server.active_connections,
                server.inactive_connections
            )?;
        }
        for rule in &self.rules {
            writeln!(f, "  kernel       {rule}")?;
        }
        Ok(())
    }
}

fn words(role: &str) -> &str {
    match role {
        "clusterIp" => "cluster IP",
        "loadBalancer" => "load balancer address",
        "externalIp" => "external IP",
        "nodePort" => "node port",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_services_or_places() {
        let service =
            |namespace, name, port| Ok(Target::Service(ServiceName::new(namespace, name), port));
        let place = |socket: &str, protocol| {
            let socket: SocketAddr = socket.parse().unwrap();
            Ok(Target::Place(Place {
                address: socket.ip(),
                port: socket.port(),
                protocol,
            }))
        };
        for (text, wanted) in [
            ("web", service("default", "web", None)),
            ("web:80", service("default", "web", Some(80))),
            ("web.shop", service("shop", "web", None)),
            ("web.shop:80", service("shop", "web", Some(80))),
            (
                "web.shop.svc.cluster.local:80",
                service("shop", "web", Some(80)),
            ),
            ("10.96.0.1:80", place("10.96.0.1:80", Protocol::Tcp)),
            ("10.96.0.1:80/udp", place("10.96.0.1:80", Protocol::Udp)),
            ("[fd00::1]:53/SCTP", place("[fd00::1]:53", Protocol::Sctp)),
        ] {
            assert_eq!(target(text), wanted, "{text}");
        }
        for text in [
            "",
            ".shop",
            "web.",
            "web:http",
            "10.96.0.1",
            "fd00::1",
            "a/b",
            "10.96.0.1:80/x",
        ] {
            let error = target(text).unwrap_err();
            assert!(
                error.starts_with(&format!("target {text:?}: want ")),
                "{error}"
            );
        }
    }

    #[test]
    fn endpoints_at_their_limit_do_not_answer() {
        let explained = |full: &[&str]| {
            let mut explanation = serde_json::json!({
                "verdict": "answered",
                "endpoints": [
                    {"address": "10.0.0.1:80", "mayAnswer": true, "why": "ready"},
                    {"address": "10.0.0.2:80", "mayAnswer": true, "why": "ready"},
                    {"address": "10.0.0.3:80", "mayAnswer": false, "why": "not ready"},
                ],
            });
            let full: Vec<Value> = full.iter().map(|text| (*text).into()).collect();
            hold_off(&mut explanation, &full);
            let endpoints = explanation["endpoints"].as_array().unwrap().clone();
            let may: Vec<Value> = endpoints.iter().map(|it| it["mayAnswer"].clone()).collect();
            (
                explanation["verdict"].clone(),
                may,
                endpoints[2]["why"].clone(),
            )
        };
        let all = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
        for (full, verdict, may) in [
            (&all[..0], "answered", [true, true]),
            (&all[..1], "answered", [false, true]),
            (&all, "refused", [false, false]),
        ] {
            let (found, found_may, third) = explained(full);
            assert_eq!(found, verdict);
            assert_eq!(found_may, [may[0], may[1], false]);
            assert_eq!(third, "not ready");
        }
    }

    #[test]
    fn clients_are_words_or_addresses() {
        assert_eq!(from("pod"), Ok(From::Pod));
        assert_eq!(
            from("10.0.0.1"),
            Ok(From::Address("10.0.0.1".parse().unwrap()))
        );
        assert!(from("web").is_err());
    }
}
