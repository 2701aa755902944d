// SPDX-License-Identifier: Apache-2.0
//! The page at `/` of the admin port: the status, and Services with what the kernel is believed to
//! hold of them, trouble first. Read-only, without assets of others, and whole without JavaScript.

use std::collections::{BTreeMap, BTreeSet};

use askama::Template;
use ipvs_netlink::Stats;

use super::explain::{self, Explanations};
use super::screen::Paint;
use super::status::{Family, FinishedRound, Overview, Status, age, latency};
use crate::dataplane::modes::ipvs::statistics::{Counters, Listed};
use crate::reconcile::show::{Question, ServiceShown, Shown};
use kpr_core::model::{IpFamily, ProxyMode};
use kpr_core::plan::shown::{ObjectState, PortState};

/// Services of one page at most; there are fewer if they are large.
const SERVICES: usize = 250;
/// Height of the plot of latencies in pixels.
const HEIGHT: f64 = 30.0;

#[derive(Debug, Template)]
#[template(path = "page.html")]
struct Page {
    status: Status,
    up: String,
    asked: Asked,
    /// What was explained, or why not.
    explained: Option<String>,
    families: Vec<FamilyRow>,
    rows: Vec<Row>,
    /// How many Services there are that contain the text.
    count: usize,
    is_ipvs: bool,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asked {
    /// Part of a Service's name.
    text: String,
    /// So many Services are on pages before.
    skip: usize,
    /// What is to be explained.
    explain: String,
}

impl Asked {
    fn of(query: &[(String, String)]) -> Result<Self, String> {
        let mut asked = Self::default();
        for (name, value) in query {
            match name.as_str() {
                "q" => asked.text.clone_from(value),
                "explain" => asked.explain.clone_from(value),
                "skip" => {
                    asked.skip = value
                        .parse()
                        .map_err(|error| format!("skip {value:?}: {error}"))?;
                }
                _ => return Err(format!("unknown parameter {name:?}: q, skip, explain")),
            }
        }
        Ok(asked)
    }
}

impl Page {
    /// Services before the present page, where the one before it begins.
    fn before(&self) -> Option<usize> {
        (self.asked.skip > 0).then(|| self.asked.skip.saturating_sub(SERVICES))
    }

    /// Where the next page begins.
    fn after(&self) -> Option<usize> {
        let next = self.asked.skip + self.rows.len();
        (next < self.count && !self.rows.is_empty()).then_some(next)
    }
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
    frontends: Vec<Frontend>,
}

/// An address and port of a Service, or a chain, with its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Frontend {
    port: String,
    name: String,
    settings: String,
    /// What to ask for an explanation.
    target: String,
    traffic: Option<Traffic>,
    endpoints: Vec<Endpoint>,
    /// It is a virtual server without endpoints.
    refuses: bool,
}

/// What the kernel says of a virtual server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Traffic {
    stats: Stats,
    active: u64,
    inactive: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Endpoint {
    name: String,
    settings: String,
    listed: Option<Listed>,
}

impl Endpoint {
    /// It gets no new connections.
    fn drains(&self) -> bool {
        self.listed.is_some_and(|listed| listed.weight == 0)
    }
}

/// Renders the page for a query such as `q=default/web`.
pub(super) async fn page(
    overview: &Overview,
    query: &[(String, String)],
) -> Result<String, String> {
    let asked = Asked::of(query)?;
    let explained = match asked.explain.as_str() {
        "" => None,
        target => Some(
            explain(overview, target)
                .await
                .unwrap_or_else(|error| error),
        ),
    };
    let question = Question {
        service: None,
        matching: Some(asked.text.clone()).filter(|text| !text.is_empty()),
        skip: asked.skip,
        limit: SERVICES,
    };
    let (status, shown) = overview.gather(question).await;
    let is_ipvs = overview.mode == ProxyMode::IPVS.as_str();
    // Beside the servers: the kernel is read, and the text may be long.
    let rendering = super::blocking(move || {
        let known = if is_ipvs {
            Known::of(&shown)
        } else {
            Known::default()
        };
        let families = status.families.iter();
        let page = Page {
            up: age(&status.started, &status.time),
            asked,
            explained,
            families: families
                .map(|(name, family)| family_row(name, family, &status.time))
                .collect(),
            rows: rows(&shown, &known),
            count: shown.matching_count.unwrap_or(shown.service_count),
            is_ipvs,
            status,
        };
        Ok(page.render()?)
    });
    rendering.await.map_err(|error| error.to_string())
}

/// The text that the command `explain` prints.
async fn explain(overview: &Overview, target: &str) -> Result<String, String> {
    let query = [("target".to_owned(), target.to_owned())];
    let value = explain::answer(overview, &query).await?;
    let text = Explanations::of(value, Paint::PLAIN).map_err(|error| error.to_string())?;
    Ok(text.to_string())
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
fn rows(shown: &Shown, known: &Known) -> Vec<Row> {
    let row = |(name, families): (&String, &BTreeMap<IpFamily, ServiceShown>)| Row {
        service: name.clone(),
        notes: families
            .iter()
            .flat_map(|(family, shown)| notes(*family, shown))
            .collect(),
        frontends: families
            .values()
            .flat_map(|shown| &shown.view.ports)
            .flat_map(|(port, state)| frontends(port, state, known))
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

/// What is believed to be in the kernel, with its traffic.
fn frontends(port: &str, state: &PortState, known: &Known) -> Vec<Frontend> {
    let mut frontends = Vec::new();
    let start = Frontend {
        port: port.to_owned(),
        ..Frontend::default()
    };
    for name in &state.frontends {
        frontends.push(Frontend {
            name: name.clone(),
            target: target(name),
            ..start.clone()
        });
    }
    for (name, object) in &state.believed {
        let first = Frontend {
            name: name.clone(),
            ..start.clone()
        };
        frontends.push(match object {
            ObjectState::Rules(count) => Frontend {
                settings: format!("{count} rules"),
                ..first
            },
            ObjectState::Clients { timeout_seconds } => Frontend {
                settings: timeout_seconds.map_or_else(String::new, |it| format!("timeout {it} s")),
                ..first
            },
            ObjectState::VirtualServer {
                settings,
                real_servers,
            } => Frontend {
                settings: settings.clone(),
                target: target(name),
                traffic: known.traffic(name),
                refuses: real_servers.is_empty(),
                endpoints: real_servers
                    .iter()
                    .map(|(endpoint, settings)| Endpoint {
                        name: endpoint.clone(),
                        settings: settings.clone(),
                        listed: known.listed(name, endpoint),
                    })
                    .collect(),
                ..first
            },
        });
    }
    frontends
}

/// `TCP 10.96.0.1:80` as `explain` takes it; nothing for a chain or a mark.
fn target(name: &str) -> String {
    match name.split_once(' ') {
        Some(("FWM", _)) | None => String::new(),
        Some((protocol, place)) => format!("{place}/{}", protocol.to_lowercase()),
    }
}

/// What the kernel says, by names of servers as they are shown.
#[derive(Debug, Default)]
struct Known {
    listed: BTreeMap<String, BTreeMap<String, Listed>>,
    stats: BTreeMap<String, Stats>,
}

impl Known {
    /// Of the virtual servers that are shown only: reading all real servers of a large cluster
    /// takes as long as many rounds. Nothing where the kernel says nothing.
    fn of(shown: &Shown) -> Self {
        let services = shown.services.values().flat_map(BTreeMap::values);
        let ports = services.flat_map(|service| service.view.ports.values());
        let names: BTreeSet<&String> = ports.flat_map(|port| port.believed.keys()).collect();
        let mut known = Self::default();
        let Ok(mut counters) = Counters::open() else {
            return known;
        };
        for (key, stats) in counters.of_servers().unwrap_or_default() {
            let name = key.to_string();
            if names.contains(&name) {
                let listed = counters.listed(&key).unwrap_or_default().into_iter();
                let listed = listed.map(|(key, listed)| (key.to_string(), listed));
                known.listed.insert(name.clone(), listed.collect());
                known.stats.insert(name, stats);
            }
        }
        known
    }

    fn listed(&self, server: &str, endpoint: &str) -> Option<Listed> {
        self.listed.get(server)?.get(endpoint).copied()
    }

    fn traffic(&self, server: &str) -> Option<Traffic> {
        let listed = self.listed.get(server).into_iter().flatten();
        let mut traffic = Traffic {
            stats: *self.stats.get(server)?,
            ..Traffic::default()
        };
        for (_, listed) in listed {
            traffic.active += listed.active;
            traffic.inactive += listed.inactive;
        }
        Some(traffic)
    }
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
        let rows = rows(&shown, &Known::default());
        assert_eq!(rows[0].service, "b/b");
        let text = page(rows, "\"><script>").render().unwrap();
        assert!(
            !text.contains("<b>IPv4") && text.contains("IPv4: &#60;b&#62;"),
            "{text}"
        );
        assert!(!text.contains("\"><script>"), "{text}");
    }

    fn page(rows: Vec<Row>, text: &str) -> Page {
        Page {
            status: Status::default(),
            up: String::new(),
            asked: Asked {
                text: text.to_owned(),
                ..Asked::default()
            },
            explained: None,
            families: Vec::new(),
            count: rows.len(),
            rows,
            is_ipvs: true,
        }
    }

    fn named(name: &str) -> Row {
        Row {
            service: name.to_owned(),
            notes: Vec::new(),
            frontends: Vec::new(),
        }
    }

    #[test]
    fn pages_lead_to_all_services() {
        let mut first = page(vec![named("a/a"), named("a/b")], "a/");
        first.count = 5;
        assert_eq!((first.before(), first.after()), (None, Some(2)));
        first.asked.skip = 2;
        assert_eq!((first.before(), first.after()), (Some(0), Some(4)));
        let text = first.render().unwrap();
        assert!(text.contains("href=\"?q=a/&amp;skip=4\""), "{text}");
        first.asked.skip = 3;
        assert_eq!(first.after(), None);
        // A loop that is busy shows none.
        first.rows.clear();
        assert_eq!(first.after(), None);
    }

    #[test]
    fn queries_are_understood_or_named() {
        let asked = |name: &str, value: &str| Asked::of(&[(name.to_owned(), value.to_owned())]);
        assert_eq!(asked("skip", "250").unwrap().skip, 250);
        assert!(asked("skip", "-1").unwrap_err().starts_with("skip \"-1\""));
        assert!(asked("x", "1").unwrap_err().contains("q, skip, explain"));
    }

    #[test]
    fn virtual_servers_are_explained_by_their_place() {
        assert_eq!(target("TCP 10.96.0.1:80"), "10.96.0.1:80/tcp");
        assert_eq!(target("UDP [fd00::1]:53"), "[fd00::1]:53/udp");
        assert_eq!(target("FWM 4097 IPv4"), "");
        assert_eq!(target("KUBE-SVC-A"), "");
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
            weight: 0,
            active: 3,
            inactive: 4,
        };
        let mut counted = Stats::default();
        counted.connections = 9;
        let servers = BTreeMap::from([("10.0.0.1:80".to_owned(), listed)]);
        let known = Known {
            listed: BTreeMap::from([(name.clone(), servers)]),
            stats: BTreeMap::from([(name, counted)]),
        };
        let frontends = frontends("http TCP", &state, &known);
        let [frontend] = frontends.as_slice() else {
            panic!("{frontends:?}")
        };
        let traffic = Traffic {
            stats: counted,
            active: 3,
            inactive: 4,
        };
        assert_eq!(frontend.traffic, Some(traffic));
        let [endpoint] = frontend.endpoints.as_slice() else {
            panic!("{frontend:?}")
        };
        assert_eq!(endpoint.name, "10.0.0.1:80");
        assert!(endpoint.drains() && endpoint.listed == Some(listed));
    }
}
