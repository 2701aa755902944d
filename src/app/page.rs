// SPDX-License-Identifier: Apache-2.0
//! The page at `/` of the admin port: the status, and Services with what the kernel is believed to
//! hold of them, trouble first. Read-only, without assets of others, and whole without JavaScript.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::net::SocketAddr;

use askama::Template;
use ipvs_netlink::{ListedKey, Listing, ListingError};

use super::status::{Family, FinishedRound, Overview, Status, age, latency};
use crate::reconcile::show::{Question, ServiceShown, Shown};
use kpr_core::model::IpFamily;
use kpr_core::plan::shown::{ObjectState, PortState};

/// Services shown at most; the loop stops earlier if they are large.
const SERVICES: usize = 1_000;
/// Height of the plot of latencies in pixels.
const HEIGHT: f64 = 30.0;

#[derive(Debug, Template)]
#[template(path = "page.html")]
struct Page {
    status: Status,
    up: String,
    query: String,
    families: Vec<FamilyRow>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct FamilyRow {
    name: String,
    of: Family,
    synced: String,
    bars: Vec<Bar>,
    /// What the highest bar stands for.
    scale: String,
}

#[derive(Debug, PartialEq)]
struct Bar {
    height: u32,
    succeeded: bool,
    title: String,
}

#[derive(Debug)]
struct Row {
    service: String,
    notes: Vec<String>,
    lines: Vec<Line>,
}

/// One endpoint of one frontend; or one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line {
    port: String,
    frontend: String,
    settings: String,
    endpoint: String,
    weight: String,
    active: String,
    inactive: String,
}

/// Renders the page for a query such as `q=default/web`.
pub(super) async fn page(
    overview: &Overview,
    query: &[(String, String)],
) -> Result<String, String> {
    let mut text = String::new();
    for (name, value) in query {
        match name.as_str() {
            "q" => text.clone_from(value),
            _ => return Err(format!("unknown parameter {name:?}: q")),
        }
    }
    let question = Question {
        service: None,
        matching: Some(text.clone()).filter(|text| !text.is_empty()),
        limit: SERVICES,
    };
    let (status, shown) = overview.gather(question).await;
    let connections = connections();
    let families = status.families.iter();
    let page = Page {
        up: age(&status.started, &status.time),
        query: text,
        families: families
            .map(|(name, family)| family_row(name, family, &status.time))
            .collect(),
        rows: rows(&shown, &connections),
        status,
    };
    page.render().map_err(|error| error.to_string())
}

fn family_row(name: &str, family: &Family, now: &str) -> FamilyRow {
    let seconds = family.rounds.iter().map(|round| round.seconds);
    let slowest = seconds.fold(0.0, f64::max);
    let bar = |round: &FinishedRound| {
        let share = (round.seconds / slowest.max(f64::MIN_POSITIVE) * HEIGHT).clamp(1.0, HEIGHT);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and the height"
        )]
        let height = share as u32;
        Bar {
            height,
            succeeded: round.succeeded,
            title: format!(
                "{}: {}, {} changes",
                round.time,
                latency(round.seconds),
                round.changes
            ),
        }
    };
    FamilyRow {
        name: name.to_owned(),
        of: family.clone(),
        synced: age(&family.last_success, now),
        bars: family.rounds.iter().map(bar).collect(),
        scale: if family.rounds.is_empty() {
            "none yet".to_owned()
        } else {
            format!("slowest {}", latency(slowest))
        },
    }
}

/// Those with errors come first, as the loop has them; then by name.
fn rows(shown: &Shown, connections: &Connections) -> Vec<Row> {
    let row = |(name, families): (&String, &BTreeMap<IpFamily, ServiceShown>)| Row {
        service: name.clone(),
        notes: families
            .iter()
            .flat_map(|(family, shown)| notes(*family, shown))
            .collect(),
        lines: families
            .values()
            .flat_map(|shown| &shown.view.ports)
            .flat_map(|(port, state)| lines(port, state, connections))
            .collect(),
    };
    let mut rows: Vec<Row> = shown.services.iter().map(row).collect();
    rows.sort_by_key(|row| row.notes.is_empty());
    rows
}

fn notes(family: IpFamily, shown: &ServiceShown) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(error) = &shown.error {
        notes.push(format!("{family}: {}", error.message));
    }
    notes.extend(shown.unmet.iter().map(|unmet| format!("{family}: {unmet}")));
    if !shown.view.pending.is_empty() {
        notes.push(format!("{family}: {} pending", shown.view.pending.len()));
    }
    if shown.is_changed && family == IpFamily::V4 {
        notes.push("changed since the last sync".to_owned());
    }
    notes
}

/// What is believed to be in the kernel.
fn lines(port: &str, state: &PortState, connections: &Connections) -> Vec<Line> {
    let mut lines = Vec::new();
    let start = Line {
        port: port.to_owned(),
        ..Line::default()
    };
    for frontend in &state.frontends {
        lines.push(Line {
            frontend: frontend.clone(),
            ..start.clone()
        });
    }
    for (name, object) in &state.believed {
        match object {
            ObjectState::Rules(count) => lines.push(Line {
                frontend: name.clone(),
                settings: format!("{count} rules"),
                ..start.clone()
            }),
            ObjectState::VirtualServer {
                settings,
                real_servers,
            } => {
                let first = Line {
                    frontend: name.clone(),
                    settings: settings.clone(),
                    ..start.clone()
                };
                if real_servers.is_empty() {
                    lines.push(Line {
                        endpoint: "none: refused".to_owned(),
                        ..first.clone()
                    });
                }
                for (endpoint, weight) in real_servers {
                    let known = connections.get(&(name.clone(), endpoint.clone()));
                    let shown = |number: Option<u32>| {
                        number.map_or_else(String::new, |number| number.to_string())
                    };
                    lines.push(Line {
                        endpoint: endpoint.clone(),
                        weight: weight.clone(),
                        active: shown(known.map(|known| known.active)),
                        inactive: shown(known.map(|known| known.inactive)),
                        ..first.clone()
                    });
                }
            }
        }
    }
    lines
}

/// What is listed, by virtual server and real server.
pub(super) type Connections = BTreeMap<(String, String), Listed>;

/// A real server as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) weight: u32,
    pub(super) active: u32,
    pub(super) inactive: u32,
}

/// What the kernel lists; nothing without IPVS.
pub(super) fn connections() -> Connections {
    read_connections().unwrap_or_default()
}

fn read_connections() -> Result<Connections, ListingError> {
    let mut connections = Connections::new();
    for service in Listing::new(BufReader::new(File::open("/proc/net/ip_vs")?))? {
        let service = service?;
        for destination in service.destinations {
            let family = IpFamily::of(destination.key.address);
            // As `VirtualServerKey` is shown.
            let name = match service.key {
                ListedKey::Address {
                    protocol,
                    address,
                    port,
                } => format!("{protocol} {}", SocketAddr::new(address, port)),
                ListedKey::Mark(mark) => format!("FWM {mark} {family}"),
                _ => continue,
            };
            let listed = Listed {
                weight: destination.weight,
                active: destination.active_connections,
                inactive: destination.inactive_connections,
            };
            connections.insert((name, destination.key.to_string()), listed);
        }
    }
    Ok(connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plot_is_as_high_as_the_slowest_round() {
        let round = |seconds, succeeded| FinishedRound {
            seconds,
            succeeded,
            ..FinishedRound::default()
        };
        let family = Family {
            rounds: vec![round(0.5, true), round(1.0, false), round(0.0, true)],
            ..Family::default()
        };
        let row = family_row("IPv4", &family, "2026-01-01T00:00:00Z");
        let bars: Vec<_> = row
            .bars
            .iter()
            .map(|bar| (bar.height, bar.succeeded))
            .collect();
        assert_eq!(bars, [(15, true), (30, false), (1, true)]);
        assert_eq!(row.scale, "slowest 1.00 s");
    }

    #[test]
    fn names_are_escaped_and_trouble_comes_first() {
        let mut shown = Shown::default();
        let bad = ServiceShown {
            unmet: vec!["<b>".to_owned()],
            ..ServiceShown::default()
        };
        for (name, service) in [("a/a", ServiceShown::default()), ("b/b", bad)] {
            let families = BTreeMap::from([(IpFamily::V4, service)]);
            shown.services.insert(name.to_owned(), families);
        }
        let rows = rows(&shown, &Connections::new());
        assert_eq!(rows[0].service, "b/b");
        let page = Page {
            status: Status::default(),
            up: String::new(),
            query: "\"><script>".to_owned(),
            families: Vec::new(),
            rows,
        };
        let text = page.render().unwrap();
        assert!(
            !text.contains("<b>IPv4") && text.contains("IPv4: &#60;b&#62;"),
            "{text}"
        );
        assert!(!text.contains("\"><script>"), "{text}");
    }

    #[test]
    fn each_real_server_has_its_connections() {
        let server = |weight: &str| ("10.0.0.1:80".to_owned(), weight.to_owned());
        let object = ObjectState::VirtualServer {
            settings: "rr".to_owned(),
            real_servers: BTreeMap::from([server("weight 1")]),
        };
        let name = "TCP 10.96.0.1:80".to_owned();
        let state = PortState {
            believed: BTreeMap::from([(name.clone(), object)]),
            ..PortState::default()
        };
        let listed = Listed {
            weight: 1,
            active: 3,
            inactive: 4,
        };
        let connections = BTreeMap::from([((name, "10.0.0.1:80".to_owned()), listed)]);
        let lines = lines("http TCP", &state, &connections);
        let [line] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        assert_eq!((line.active.as_str(), line.inactive.as_str()), ("3", "4"));
        assert_eq!(line.endpoint, "10.0.0.1:80");
    }
}
