// SPDX-License-Identifier: Apache-2.0
//! Connection limits of endpoints: what clients meet at them, under every scheduler.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::Service;
use kpr_testkit::proxy::{ask_proxy, series};
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Connection, Outcome, Patience, Protocol, ask};
use kpr_testkit::wait;

const UPPER: &str = "kube-proxy-rs.io/upper-threshold";
const LOWER: &str = "kube-proxy-rs.io/lower-threshold";
const HOSTS: [Host; 2] = [Host::Web1, Host::Web3];
/// Of each endpoint.
const LIMIT: usize = 2;
/// A connection that was reset is counted for ten seconds more, one that was closed for two
/// minutes.
const MANY: usize = 8;

/// How many connections a Service of two endpoints takes, by scheduler.
const SCHEDULERS: [(&str, usize); 13] = [
    ("rr", 2 * LIMIT),
    ("wrr", 2 * LIMIT),
    ("lc", 2 * LIMIT),
    ("wlc", 2 * LIMIT),
    ("sed", 2 * LIMIT),
    ("nq", 2 * LIMIT),
    ("fo", 2 * LIMIT),
    ("ovf", 2 * LIMIT),
    ("sh", 2 * LIMIT),
    ("mh", 2 * LIMIT),
    // The endpoint of the address is full, and there is no other for it.
    ("dh", LIMIT),
    ("lblcr", 2 * LIMIT),
    // It remembers an endpoint, and does not look at its limit.
    ("lblc", MANY),
];

fn limited(name: &str, n: u8) -> Service {
    Service::new(name, n, &HOSTS)
        .protocols(&[Protocol::Tcp])
        .annotated(UPPER, LIMIT.to_string())
}

fn open(lab: &Lab, to: SocketAddr) -> Result<Result<Connection, Outcome>> {
    let shell = lab.topology.host(Host::Shell);
    Connection::open(shell, to, Protocol::Tcp, Patience::Long)
}

/// Opens connections until one is not answered, and says what it met.
fn fill(lab: &Lab, to: SocketAddr) -> Result<(Vec<Connection>, Option<Outcome>)> {
    let mut held = Vec::new();
    while held.len() < MANY {
        match open(lab, to)? {
            Ok(connection) => held.push(connection),
            Err(outcome) => return Ok((held, Some(outcome))),
        }
    }
    Ok((held, None))
}

pub(super) fn refuse_under_every_scheduler(binary: &Path) -> Result<()> {
    let services: Vec<Service> = SCHEDULERS
        .iter()
        .zip(1..)
        .map(|((scheduler, _), n)| {
            limited(scheduler, n)
                .annotated("kube-proxy-rs.io/scheduler", *scheduler)
                // More than there will be connections: those are a limit to some schedulers.
                .annotated("kube-proxy-rs.io/weight", "50")
        })
        .collect();
    let names = SCHEDULERS.map(|(name, _)| name).join(",");
    let lab = Lab::new(
        binary,
        &services,
        &[&format!("--service-schedulers={names}")],
    )?;
    let proxy = lab.start()?;
    let mut found = Vec::new();
    for (service, (name, taken)) in services.iter().zip(SCHEDULERS) {
        for family in Family::ALL {
            let to = At::ClusterIp.address(service, family, 80);
            let (held, outcome) = fill(&lab, to)?;
            let wanted = (taken < MANY).then_some(Outcome::Refused);
            if (held.len(), &outcome) != (taken, &wanted) {
                found.push(format!("{name} {family}: {} then {outcome:?}", held.len()));
            }
        }
    }
    ensure!(found.is_empty(), "{found:#?}\nthe log:\n{}", proxy.log());
    Ok(())
}

/// Real servers and their thresholds.
fn thresholds(lab: &Lab) -> Result<BTreeMap<SocketAddr, (u32, u32)>> {
    let text = lab.node().run("ipvsadm", &["-L", "-n", "--thresholds"])?;
    let of = |line: &str| {
        let rest = line.trim().strip_prefix("-> ")?;
        let mut words = rest.split_whitespace();
        let server = words.next()?.parse().ok()?;
        let upper = words.next()?.parse().ok()?;
        Some((server, (upper, words.next()?.parse().ok()?)))
    };
    Ok(text.lines().filter_map(of).collect())
}

fn has_thresholds(lab: &Lab, wanted: (u32, u32)) -> Result<()> {
    wait::until("the thresholds are as wanted", || {
        let found = thresholds(lab)?;
        let is_so = found.len() == 4 && found.values().all(|found| *found == wanted);
        ensure!(is_so, "wanted {wanted:?}, found {found:?}");
        Ok(())
    })
}

/// Who is full says so, takes clients again when connections are gone, and has the limit back that
/// somebody takes away.
pub(super) fn end_and_come_back(binary: &Path) -> Result<()> {
    let service = limited("web", 1).annotated(LOWER, "1");
    let lab = Lab::new(
        binary,
        std::slice::from_ref(&service),
        &["--ipvs-sync-period=1s"],
    )?;
    let proxy = lab.start()?;
    has_thresholds(&lab, (2, 1))?;
    for family in Family::ALL {
        let to = At::ClusterIp.address(&service, family, 80);
        let (held, outcome) = fill(&lab, to)?;
        ensure!(held.len() == 2 * LIMIT && outcome == Some(Outcome::Refused));
        let why = ask_proxy(
            lab.node(),
            binary,
            &["explain", &to.to_string(), "--from", "pod"],
        )?;
        ensure!(
            why.code == Some(2)
                && why.text.contains("refused")
                && why
                    .text
                    .contains("has as many connections as its upper threshold"),
            "{why:?}"
        );
        // One endpoint goes on: below the lower threshold.
        let (mine, others): (Vec<_>, Vec<_>) = held
            .into_iter()
            .partition(|open| open.answer.by == Host::Web1.name());
        ensure!(
            mine.len() == LIMIT && others.len() == LIMIT,
            "not spread evenly"
        );
        mine.into_iter().try_for_each(Connection::abort)?;
        let again = wait::until("connections are taken again", || {
            open(&lab, to)?.map_err(|outcome| anyhow!("it was {outcome}"))
        })?;
        ensure!(again.answer.by == Host::Web1.name(), "{:?}", again.answer);
        let real = SocketAddr::new(Host::Web1.address(family), 8080);
        let change = format!("-e -t {to} -r {real} -m -w 1 -x 7 -y 3");
        let change: Vec<&str> = change.split(' ').collect();
        lab.node().run("ipvsadm", &change)?;
        has_thresholds(&lab, (2, 1))?;
    }
    wait::until("the drift is counted", || {
        let drift = series(lab.node(), "kube_proxy_rs_drift_total")?;
        let repaired = |(name, count): (&String, &f64)| {
            name.contains("state=\"repaired\"") && name.contains("set-real-server") && *count > 0.0
        };
        ensure!(drift.iter().any(repaired), "{drift:?}");
        Ok(())
    })?;
    lab.nothing_to_do_soon()?;
    // An impossible pair: the lower one is ignored, and said.
    lab.manifests
        .apply(&limited("web", 1).annotated(LOWER, "9"))?;
    has_thresholds(&lab, (2, 0)).with_context(|| proxy.log())?;
    proxy.wait_for_log(&["default/web", LOWER, "1 to 2"])?;
    // The limit goes, and with it the refusals.
    let unlimited = Service::new("web", 1, &HOSTS).protocols(&[Protocol::Tcp]);
    lab.manifests.apply(&unlimited)?;
    has_thresholds(&lab, (0, 0))?;
    let to = At::ClusterIp.address(&unlimited, Family::V4, 80);
    let (held, _) = fill(&lab, to)?;
    ensure!(held.len() == MANY, "only {} are taken", held.len());
    Ok(())
}

/// A client with affinity has its endpoint, full or not; others do not get it.
pub(super) fn let_clients_with_affinity_pass(binary: &Path) -> Result<()> {
    let affinity = serde_json::json!({"clientIP": {"timeoutSeconds": 300}});
    let sticky = limited("sticky", 1)
        .with("sessionAffinity", "ClientIP".into())
        .with("sessionAffinityConfig", affinity);
    let lab = Lab::new(binary, std::slice::from_ref(&sticky), &[])?;
    let _proxy = lab.start()?;
    for family in Family::ALL {
        let to = At::ClusterIp.address(&sticky, family, 80);
        let (held, outcome) = fill(&lab, to)?;
        ensure!(held.len() == MANY && outcome.is_none(), "{outcome:?}");
        let from = lab.topology.host(Host::Node);
        match ask(from, None, to, Protocol::Tcp, Patience::Long)? {
            Outcome::Answered(answer) => ensure!(answer.by != held[0].answer.by, "{answer:?}"),
            outcome => return Err(anyhow!("another client was {outcome}")),
        }
    }
    Ok(())
}
