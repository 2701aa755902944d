// SPDX-License-Identifier: Apache-2.0
//! What `/explain` says of a probe, compared with what the packets are to meet.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::run::{World, promised};
use super::{At, Case, Probe, Setup, Source, Want};
use crate::proxy::{METRICS_PORT, get};
use crate::topology::{Family, Host};
use crate::traffic::Protocol;

static TURN: Mutex<()> = Mutex::new(());

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Explained {
    verdict: String,
    why: String,
    masqueraded: Option<String>,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    address: SocketAddr,
    may_answer: bool,
}

/// Fails if the explanation of a probe is not what its packets meet.
pub(super) fn check(
    world: &World,
    case: &Case,
    probe: &Probe,
    family: Family,
    protocol: Protocol,
) -> Result<()> {
    // Such packets never reach the node.
    if probe.at == At::Localhost && probe.from != Host::Node {
        return Ok(());
    }
    let to = probe.at.address(&case.service, family, probe.port);
    let from = match probe.from {
        Host::Node => "node".to_owned(),
        // Pods that are known by their interface have no address that says so.
        Host::Shell if matches!(case.setup, Setup::Bridge | Setup::InterfacePrefix) => {
            "pod".to_owned()
        }
        host => host.address(family).to_string(),
    };
    let path = format!("/explain?target={to}/{protocol}&from={from}").to_lowercase();
    let node = world.topology.host(Host::Node);
    // The server takes few connections of one client at a time.
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = get(node, METRICS_PORT, &path)?;
    drop(turn);
    let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    let explained: Vec<Explained> =
        serde_json::from_str(body).with_context(|| format!("{path} says {body}"))?;
    let [explained] = explained.as_slice() else {
        anyhow::bail!("{path} says {body}")
    };
    let want = promised(case, probe, world.dataplane.mode(), protocol);
    compare(explained, want, probe, family)
        .with_context(|| format!("{path} says {explained:?}, packets meet {want:?}"))
}

fn compare(explained: &Explained, want: Want, probe: &Probe, family: Family) -> Result<()> {
    ensure!(!explained.why.is_empty(), "no reason");
    let verdict = explained.verdict.as_str();
    let hosts: Vec<(Host, Vec<u16>)> = match want {
        Want::Answer(hosts, _) | Want::OneOf(hosts, _) => {
            let at = |host: &Host| (*host, vec![probe.target]);
            hosts.iter().map(at).collect()
        }
        Want::AnswerAt(hosts, _) => hosts
            .iter()
            .map(|(host, at)| (*host, at.to_vec()))
            .collect(),
        Want::Refused => {
            ensure!(
                matches!(verdict, "refused" | "notServed"),
                "another verdict"
            );
            return Ok(());
        }
        Want::Dropped => {
            ensure!(verdict == "dropped", "another verdict");
            return Ok(());
        }
        Want::NoAnswer => {
            ensure!(verdict != "answered", "another verdict");
            return Ok(());
        }
    };
    ensure!(verdict == "answered", "another verdict");
    let wanted: BTreeSet<SocketAddr> = hosts
        .into_iter()
        .flat_map(|(host, ports)| ports.into_iter().map(move |port| (host, port)))
        .map(|(host, port)| SocketAddr::new(host.address(family), port))
        .collect();
    let answering = explained
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.may_answer);
    let answering: BTreeSet<SocketAddr> = answering.map(|endpoint| endpoint.address).collect();
    ensure!(answering == wanted, "other endpoints");
    match want {
        Want::Answer(_, Source::Own) => {
            ensure!(explained.masqueraded.is_none(), "not masqueraded");
        }
        Want::Answer(_, Source::Node) if probe.from != Host::Node => {
            ensure!(explained.masqueraded.is_some(), "masqueraded");
        }
        _ => {}
    }
    Ok(())
}
