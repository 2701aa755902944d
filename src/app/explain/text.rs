// SPDX-License-Identifier: Apache-2.0
//! Explanations as text: the verdict first, then why, then what the kernel holds.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::Value;

use super::kernel::{Connections, RealServer};
use crate::app::screen::{Colour, Paint};

/// Connections printed of each place; JSON has more.
const PRINTED: usize = 5;
/// Endpoints printed of each table of connections.
const ENDPOINTS: usize = 8;

/// Explanations to print.
#[derive(Debug)]
pub(in crate::app) struct Explanations {
    explained: Vec<Explained>,
    paint: Paint,
}

/// An explanation as it is printed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Explained {
    place: String,
    from: String,
    verdict: String,
    why: String,
    virtual_server: Option<String>,
    service: Option<String>,
    role: Option<String>,
    without: Vec<String>,
    policy: Option<String>,
    affinity_seconds: Option<u64>,
    affinity_clients: Option<u32>,
    upper_threshold: Option<u32>,
    slow_start_seconds: Option<u64>,
    source_ranges: Vec<String>,
    masqueraded: Option<String>,
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    real_servers: Vec<RealServer>,
    #[serde(default)]
    rules: Vec<String>,
    conntrack: Option<Connections>,
    ipvs_connections: Option<Connections>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    address: SocketAddr,
    may_answer: bool,
    why: String,
    is_local: bool,
}

impl Explanations {
    pub(in crate::app) fn of(value: Value, paint: Paint) -> serde_json::Result<Self> {
        let explained = serde_json::from_value(value)?;
        Ok(Self { explained, paint })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.explained.is_empty()
    }

    /// Whether some connection is answered.
    pub(super) fn is_any_answered(&self) -> bool {
        let mut explained = self.explained.iter();
        explained.any(|one| one.verdict == "answered")
    }
}

impl Display for Explanations {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, one) in self.explained.iter().enumerate() {
            one.promise(f, self.paint)?;
            // The kernel's part is of the place and its virtual server, whoever the client is.
            let next = self.explained.get(index + 1);
            let is_last = next.is_none_or(|next| next.place != one.place);
            let is_other = next.is_none_or(|next| next.virtual_server != one.virtual_server);
            if is_last || is_other {
                one.servers(f)?;
            }
            if is_last {
                one.connections(f)?;
            }
        }
        Ok(())
    }
}

impl Explained {
    fn promise(&self, f: &mut Formatter<'_>, paint: Paint) -> fmt::Result {
        let Self {
            place,
            from,
            verdict,
            why,
            ..
        } = self;
        let colour = match verdict.as_str() {
            "answered" => Colour::Good,
            "depends" | "notServed" => Colour::Doubtful,
            _ => Colour::Bad,
        };
        let verdict = paint.with(colour, words(verdict));
        writeln!(f, "{place} from {from}: {verdict}: {why}")?;
        if let (Some(service), Some(role)) = (&self.service, &self.role) {
            line(f, "service", format_args!("{service}, {}", words(role)))?;
        }
        for loser in &self.without {
            let text = format_args!("{loser} claims this too and does not get it");
            line(f, "loses", text)?;
        }
        if let Some(policy) = &self.policy {
            line(f, "policy", format_args!("{policy} for this client"))?;
        }
        if let Some(seconds) = self.affinity_seconds {
            let few = self.affinity_clients.map_or_else(String::new, |clients| {
                format!(", if it is one of the last {clients} of that endpoint")
            });
            let text = format_args!("a client keeps its endpoint for {seconds} s{few}");
            line(f, "affinity", text)?;
        }
        if let Some(seconds) = self.slow_start_seconds {
            let text = format_args!("a new endpoint has its whole weight after {seconds} s");
            line(f, "slow start", text)?;
        }
        if let Some(upper) = self.upper_threshold {
            let text = format_args!("{upper} connections for each endpoint at this address");
            line(f, "limit", text)?;
        }
        if !self.source_ranges.is_empty() {
            line(
                f,
                "sources",
                format_args!("only {}", self.source_ranges.join(", ")),
            )?;
        }
        if self.verdict == "answered" {
            let source = match &self.masqueraded {
                Some(why) => format!("this node ({why})"),
                None => "the client's own address".to_owned(),
            };
            line(f, "source seen", source)?;
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
            let Endpoint { address, why, .. } = endpoint;
            let text = format_args!("{address} {answers}: {why}{place}");
            line(f, "endpoint", text)?;
        }
        Ok(())
    }

    fn servers(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(server) = &self.virtual_server {
            let servers = match self.real_servers.len() {
                0 => "has no real server",
                _ => "leads to",
            };
            line(
                f,
                "kernel",
                format_args!("virtual server {server} {servers}"),
            )?;
        }
        for server in &self.real_servers {
            let RealServer {
                endpoint,
                weight,
                active_connections,
                inactive_connections,
            } = server;
            let drains = if *weight == 0 {
                ": no new connections"
            } else {
                ""
            };
            let text = format_args!(
                "{endpoint} weight {weight}, {active_connections} active and \
                 {inactive_connections} inactive connections{drains}"
            );
            line(f, "kernel", text)?;
        }
        for rule in &self.rules {
            line(f, "kernel", rule)?;
        }
        Ok(())
    }

    fn connections(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (name, table) in [
            ("conntrack", &self.conntrack),
            ("ipvs", &self.ipvs_connections),
        ] {
            if let Some(table) = table {
                table_of(f, name, table)?;
            }
        }
        Ok(())
    }
}

fn table_of(f: &mut Formatter<'_>, name: &str, table: &Connections) -> fmt::Result {
    if let Some(error) = &table.error {
        return line(f, name, format_args!("cannot be read: {error}"));
    }
    let unanswered = match table.unanswered {
        0 => String::new(),
        count => format!(", {count} unanswered"),
    };
    line(
        f,
        name,
        format_args!("{} connections{unanswered}", table.count),
    )?;
    if table.by_endpoint.len() > 1 || table.count > table.shown.len() as u64 {
        most(f, &table.by_endpoint)?;
    }
    for shown in table.shown.iter().take(PRINTED) {
        let seen = shown
            .masqueraded_as
            .map(|seen| format!(" as {}", seen.ip()));
        let left = shown.seconds_left.map(|left| format!(", {left} s left"));
        let text = format!(
            "{}{} -> {} {}{}",
            shown.client,
            seen.unwrap_or_default(),
            shown.endpoint,
            shown.state,
            left.unwrap_or_default()
        );
        line(f, "", text)?;
    }
    let printed = PRINTED.min(table.shown.len()) as u64;
    match table.count - printed.min(table.count) {
        0 => Ok(()),
        more => line(f, "", format_args!("and {more} more")),
    }
}

/// Where most of the connections lead.
fn most(f: &mut Formatter<'_>, by_endpoint: &BTreeMap<String, u64>) -> fmt::Result {
    let mut counts: Vec<(&String, &u64)> = by_endpoint.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (endpoint, count) in counts.iter().take(ENDPOINTS) {
        line(f, "", format_args!("{count} to {endpoint}"))?;
    }
    match counts.len().saturating_sub(ENDPOINTS) {
        0 => Ok(()),
        more => line(f, "", format_args!("and to {more} other endpoints")),
    }
}

fn line(f: &mut Formatter<'_>, name: &str, text: impl Display) -> fmt::Result {
    writeln!(f, "  {name:<12} {text}")
}

fn words(word: &str) -> &str {
    match word {
        "clusterIp" => "cluster IP",
        "loadBalancer" => "load balancer address",
        "externalIp" => "external IP",
        "nodePort" => "node port",
        "notServed" => "not served",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn explained() -> Value {
        let one = |from: &str, server: &str| {
            json!({
                "place": "TCP 203.0.113.1:80", "from": from, "verdict": "answered",
                "why": "endpoints can answer", "virtualServer": server,
                "service": "shop/web:http TCP", "role": "loadBalancer", "without": [],
                "policy": "Cluster", "affinitySeconds": null, "sourceRanges": [],
                "masqueraded": null,
                "endpoints": [{ "address": "10.1.0.1:8080", "mayAnswer": true, "why": "ready",
                    "isLocal": true }],
                "realServers": [{ "endpoint": "10.1.0.1:8080", "weight": 1,
                    "activeConnections": 7, "inactiveConnections": 0 }],
                "conntrack": { "count": 7, "unanswered": 1,
                    "byEndpoint": { "10.1.0.1:8080": 6, "10.1.0.2:8080": 1 },
                    "shown": [{ "client": "192.0.2.7:4000", "endpoint": "10.1.0.1:8080",
                        "masqueradedAs": "192.168.0.10:4001", "state": "ESTABLISHED",
                        "secondsLeft": 86399 }] },
                "ipvsConnections": { "count": 0, "unanswered": 0, "byEndpoint": {}, "shown": [],
                    "error": "permission denied" },
            })
        };
        json!([
            one("a pod", "FWM 4097 IPv4"),
            one("this node", "FWM 4097 IPv4"),
            one("outside", "TCP 203.0.113.1:80")
        ])
    }

    #[test]
    fn the_kernels_part_stands_once_for_each_place_and_server() {
        let text = Explanations::of(explained(), Paint::PLAIN)
            .unwrap()
            .to_string();
        let promise = "  service      shop/web:http TCP, load balancer address
  policy       Cluster for this client
  source seen  the client's own address
  endpoint     10.1.0.1:8080 may answer: ready, on this node
";
        let server = "  kernel       10.1.0.1:8080 weight 1, 7 active and 0 inactive connections\n";
        assert_eq!(
            text,
            format!(
                "\
TCP 203.0.113.1:80 from a pod: answered: endpoints can answer
{promise}\
TCP 203.0.113.1:80 from this node: answered: endpoints can answer
{promise}  kernel       virtual server FWM 4097 IPv4 leads to
{server}\
TCP 203.0.113.1:80 from outside: answered: endpoints can answer
{promise}  kernel       virtual server TCP 203.0.113.1:80 leads to
{server}  conntrack    7 connections, 1 unanswered
               6 to 10.1.0.1:8080
               1 to 10.1.0.2:8080
               192.0.2.7:4000 as 192.168.0.10 -> 10.1.0.1:8080 ESTABLISHED, 86399 s left
               and 6 more
  ipvs         cannot be read: permission denied
"
            )
        );
    }
}
