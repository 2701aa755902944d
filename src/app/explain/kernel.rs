// SPDX-License-Identifier: Apache-2.0
//! What the kernel holds at the places that are explained, as it is now: real servers, connections
//! that IPVS remembers, and entries of connection tracking. Read beside the loop.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::parse_place;
use crate::dataplane::conntrack::{self, Wanted};
use crate::dataplane::modes::ipvs::statistics;
use crate::error_chain::ErrorChain;
use kpr_core::plan::explain::Place;

/// Connections shown of each place.
const MOST: usize = 20;

/// Connections to a place, from one of the kernel's two tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Connections {
    pub(super) count: u64,
    /// Of them, those that nobody has answered.
    pub(super) unanswered: u64,
    /// Where they lead.
    pub(super) by_endpoint: BTreeMap<String, u64>,
    /// The first ones.
    pub(super) shown: Vec<Shown>,
    /// Why they could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    pub(super) client: SocketAddr,
    pub(super) endpoint: SocketAddr,
    /// What the endpoint takes for the client, if another address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) masqueraded_as: Option<SocketAddr>,
    pub(super) state: String,
    pub(super) seconds_left: Option<u64>,
}

impl Connections {
    fn add(&mut self, shown: Shown, is_answered: bool) {
        self.count += 1;
        self.unanswered += u64::from(!is_answered);
        let endpoint = shown.endpoint.to_string();
        *self.by_endpoint.entry(endpoint).or_default() += 1;
        if self.shown.len() < MOST {
            self.shown.push(shown);
        }
    }

    fn failed(error: &dyn std::error::Error) -> Self {
        Self {
            error: Some(ErrorChain(error).to_string()),
            ..Self::default()
        }
    }
}

/// A real server at the moment.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RealServer {
    pub(super) endpoint: String,
    pub(super) weight: u32,
    pub(super) active_connections: u64,
    pub(super) inactive_connections: u64,
}

/// Adds to each explanation what the kernel holds at its place; connections of one client alone, if
/// it is given.
pub(super) fn add(explained: &mut Value, client: Option<IpAddr>, is_ipvs: bool) {
    let explained = explained
        .as_array_mut()
        .map_or(&mut [][..], Vec::as_mut_slice);
    let places = explained.iter().filter_map(place_of).map(|(text, _)| text);
    let places: Vec<String> = places.collect();
    let tracked = tracked(explained, client);
    let remembered = is_ipvs.then(|| remembered(&places, client));
    let servers = is_ipvs.then(|| statistics::servers().unwrap_or_default());
    let servers: BTreeMap<String, _> = servers
        .into_iter()
        .flatten()
        .map(|(key, of)| (key.to_string(), of))
        .collect();
    for explanation in explained {
        let Some((place, _)) = place_of(explanation) else {
            continue;
        };
        let server = explanation["virtualServer"].as_str().unwrap_or(&place);
        let real_servers = servers.get(server).into_iter().flatten();
        let real_servers: Vec<RealServer> = real_servers
            .map(|(key, listed)| RealServer {
                endpoint: key.to_string(),
                weight: listed.weight,
                active_connections: listed.active,
                inactive_connections: listed.inactive,
            })
            .collect();
        hold_off(explanation, &real_servers);
        let Value::Object(fields) = explanation else {
            continue;
        };
        fields.insert("realServers".to_owned(), json!(real_servers));
        if let Some(tracked) = tracked.get(&place) {
            fields.insert("conntrack".to_owned(), json!(tracked));
        }
        if let Some(remembered) = &remembered {
            let of_place = match remembered {
                Ok(remembered) => remembered.get(&place).cloned().unwrap_or_default(),
                Err(failed) => failed.clone(),
            };
            fields.insert("ipvsConnections".to_owned(), json!(of_place));
        }
    }
}

/// Real servers that have as many connections as they may get no new ones. Clients with affinity
/// still reach theirs.
fn hold_off(explanation: &mut Value, servers: &[RealServer]) {
    let upper = explanation["upperThreshold"].as_u64();
    let is_full = |server: &&RealServer| {
        let connections = server.active_connections + server.inactive_connections;
        upper.is_some_and(|upper| connections >= upper)
    };
    let full: BTreeSet<&str> = servers
        .iter()
        .filter(is_full)
        .map(|server| server.endpoint.as_str())
        .collect();
    let endpoints = explanation["endpoints"].as_array_mut();
    let mut left = 0;
    for endpoint in endpoints.into_iter().flatten() {
        let address = endpoint["address"].as_str().unwrap_or_default();
        let is_full = full.contains(address);
        if endpoint["mayAnswer"] == true && is_full {
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

fn place_of(explanation: &Value) -> Option<(String, Place)> {
    let text = explanation["place"].as_str()?;
    Some((text.to_owned(), parse_place(text)?))
}

/// The entries of connection tracking by place. The kernel filters them.
fn tracked(explained: &[Value], client: Option<IpAddr>) -> BTreeMap<String, Connections> {
    let mut opened = conntrack::Client::open();
    let mut tracked = BTreeMap::new();
    for (text, place) in explained.iter().filter_map(place_of) {
        // Several explanations are of one place.
        if let Entry::Vacant(entry) = tracked.entry(text) {
            entry.insert(match &mut opened {
                Ok(conntrack) => of_place(conntrack, place, client),
                Err(error) => Connections::failed(error),
            });
        }
    }
    tracked
}

fn of_place(
    conntrack: &mut conntrack::Client,
    place: Place,
    client: Option<IpAddr>,
) -> Connections {
    let wanted = Wanted {
        destination: SocketAddr::new(place.address, place.port),
        protocol: place.protocol,
        client,
    };
    let mut found = Connections::default();
    let listed = conntrack.connections_to(&wanted, &mut |connection| {
        let is_masqueraded = connection.reply_to.ip() != connection.client.ip();
        let shown = Shown {
            client: connection.client,
            endpoint: connection.answerer,
            masqueraded_as: is_masqueraded.then_some(connection.reply_to),
            state: connection.state.unwrap_or_default().to_owned(),
            seconds_left: connection.seconds_left.map(u64::from),
        };
        found.add(shown, connection.is_answered);
    });
    match listed {
        Ok(()) => found,
        Err(error) => Connections::failed(&error),
    }
}

/// The connections of IPVS by place, in one reading of all of them.
fn remembered(
    places: &[String],
    client: Option<IpAddr>,
) -> Result<BTreeMap<String, Connections>, Connections> {
    let mut remembered = BTreeMap::<String, Connections>::new();
    let wanted: BTreeMap<(_, SocketAddr), &String> = places
        .iter()
        .filter_map(|text| {
            let place = parse_place(text)?;
            let at = SocketAddr::new(place.address, place.port);
            Some(((place.protocol, at), text))
        })
        .collect();
    let listed = statistics::connections(&mut |connection| {
        let at = (connection.protocol, connection.destination);
        let is_theirs = client.is_none_or(|client| connection.client.ip() == client);
        let Some(place) = wanted.get(&at).filter(|_| is_theirs) else {
            return;
        };
        let shown = Shown {
            client: connection.client,
            endpoint: connection.endpoint,
            masqueraded_as: None,
            state: connection.state,
            seconds_left: Some(connection.seconds_left),
        };
        let of_place = remembered.entry((*place).clone()).or_default();
        of_place.add(shown, true);
    });
    match listed {
        Ok(()) => Ok(remembered),
        Err(error) => Err(Connections::failed(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_at_their_limit_do_not_answer() {
        let explained = |full: &[&str]| {
            let mut explanation = json!({
                "verdict": "answered",
                "upperThreshold": 2,
                "endpoints": [
                    {"address": "10.0.0.1:80", "mayAnswer": true, "why": "ready"},
                    {"address": "10.0.0.2:80", "mayAnswer": true, "why": "ready"},
                    {"address": "10.0.0.3:80", "mayAnswer": false, "why": "not ready"},
                ],
            });
            let server = |endpoint: &str, active_connections| RealServer {
                endpoint: endpoint.to_owned(),
                weight: 1,
                active_connections,
                inactive_connections: 1,
            };
            let full = full.iter().map(|endpoint| server(endpoint, 1));
            let servers: Vec<_> = full.chain([server("10.0.0.9:80", 0)]).collect();
            hold_off(&mut explanation, &servers);
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
}
